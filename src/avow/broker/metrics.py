"""Figures for Prometheus, read from the pump's and the core's counters when somebody asks."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from avow.broker.config import Metrics
from avow.channel.address import host_and_port
from avow.errors import UnavailableError

# Whoever asks has a thread and a descriptor; of more than so many the one that has them for longest
# goes, and silent ones do anyway.
CONNECTIONS_MAX: Final = 32
_SILENT_S: Final = 10.0

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
            "Refused attestation exchanges, by the number of the check.",
            labels=["check"],
        )
        for check, count in sorted(self._refused_checks().items()):
            refused.add_metric([check], count)
        yield refused

    def describe(self) -> Iterator[Metric]:
        """Nothing: a registry must not ask the pump while it is being put together."""
        return iter(())


class _Handler(WSGIRequestHandler):
    timeout = _SILENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: anybody who reaches the port could fill standard error."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    """A thread for each connection, of which there are few."""

    daemon_threads = True

    def __init__(self, family: int, address: tuple[str, int]) -> None:
        self.address_family = family
        # The one that came first is the first.
        self._open: dict[socket.socket, None] = {}
        self._guard = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            if len(self._open) >= CONNECTIONS_MAX:
                longest = next(iter(self._open))
                del self._open[longest]
                # Its thread reads the end, and closes it.
                with contextlib.suppress(OSError):
                    longest.shutdown(socket.SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self._guard:
            self._open.pop(request, None)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked is gone, or was silent: the default prints a traceback for each."""


class MetricsServer:
    """The HTTP port. Raises `UnavailableError` when it cannot be opened."""

    def __init__(self, settings: Metrics, collector: Collector) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        place = host_and_port(settings.host, settings.port)
        try:
            family, _, _, _, address = socket.getaddrinfo(
                settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            server = _HttpServer(family, (str(address[0]), settings.port))
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
        server.set_app(make_wsgi_app(registry))
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

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
