"""Figures for Prometheus, read from the pump's and the core's counters when somebody asks."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from avow.broker.config import Metrics
from avow.channel.address import host_and_port
from avow.errors import UnavailableError

# The counters that go down as well as up; all others only grow.
GAUGES = frozenset(
    {
        "connections_open",
        "clients_connected",
        "clients_maximum",
        "sessions",
        "subscriptions",
        "shared_subscriptions",
        "retained",
        "heap_bytes",
        "heap_bytes_maximum",
        "stored_messages",
        "stored_bytes",
        "inflight",
        "queued",
        "quote_requests_waiting",
        "pump_connections_open",
        "pump_journal_bytes",
    }
)


class CountersCollector(Collector):
    """Turns counters by name into metrics with the prefix `avow_`."""

    def __init__(
        self,
        counters: Callable[[], Mapping[str, int]],
        *,
        refused_checks: Callable[[], Mapping[str, int]] = dict,
        gauges: frozenset[str],
        module_sha256: str,
        version: str,
    ) -> None:
        self._counters = counters
        self._refused_checks = refused_checks
        self._gauges = gauges
        self._info = {"module_sha256": module_sha256, "version": version}

    def collect(self) -> Iterator[Metric]:
        """The values of this moment."""
        yield InfoMetricFamily("avow", "The measured module and the package.", value=self._info)
        for name, value in self._counters().items():
            text = name.replace("_", " ").capitalize()
            if name in self._gauges:
                yield GaugeMetricFamily(f"avow_{name}", f"{text}.", value=value)
            else:
                yield CounterMetricFamily(f"avow_{name}", f"{text}, since the start.", value=value)

        refused = CounterMetricFamily(
            "avow_attestation_checks_failed",
            "Attestation exchanges that were refused, by the number of the check.",
            labels=["check"],
        )
        for check, count in sorted(self._refused_checks().items()):
            refused.add_metric([check], count)
        yield refused

    def describe(self) -> Iterator[Metric]:
        """Nothing: a registry must not ask the pump while it is being put together."""
        return iter(())


class MetricsServer:
    """The HTTP port. Raises `UnavailableError` when it cannot be opened."""

    def __init__(self, settings: Metrics, collector: Collector) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        place = host_and_port(settings.host, settings.port)
        server: WSGIServer
        thread: threading.Thread
        try:
            server, thread = start_http_server(settings.port, settings.host, registry)
        except OSError as error:
            reason = (
                "one that another program occupies"
                if error.errno == errno.EADDRINUSE
                else repr(error.strerror)
            )
            raise UnavailableError(
                f"expected a free address for [metrics] at {place}, got {reason}; "
                f"choose another host or port"
            ) from error
        self._server = server
        self._thread = thread

    @property
    def url(self) -> str:
        """Where the figures are, with the real port."""
        host, port = self._server.server_address[:2]
        return f"http://{host_and_port(str(host), int(port))}/metrics"

    def stop(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
