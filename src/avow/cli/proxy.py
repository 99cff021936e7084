"""`avow proxy`: attested connections for MQTT clients that know nothing of it."""

from __future__ import annotations

import signal
import socket
import sys

import click
from structlog.typing import FilteringBoundLogger

from avow import __version__
from avow.broker.config import Log
from avow.broker.logs import open_log
from avow.channel.acceptor import open_listeners
from avow.channel.address import (
    Address,
    Scheme,
    parse_listen_address,
    parse_server_address,
    resolve,
)
from avow.channel.web_origin import WebRule
from avow.cli.command_error import CommandError, configuration_errors
from avow.cli.connection_options import AttestationArguments, TlsArguments, secure_options
from avow.cli.exit_codes import ExitCode
from avow.cli.interrupts import signals_told
from avow.client.attested_context import AttestedContext
from avow.client.attested_socket import Attestation
from avow.client.options import ClientTls
from avow.client.proxy import CONNECTIONS_MAX, Proxy
from avow.errors import AvowError
from avow.tee.simulated import NOTHING_IS_PROTECTED

DEFAULT_LISTEN = "mqtt://127.0.0.1:1883"

# What a client speaks to the proxy, and what the proxy then speaks to the server: the same, in TLS.
_ENCRYPTED = {Scheme.MQTT: Scheme.MQTTS, Scheme.WS: Scheme.WSS}


@click.command()
@click.option(
    "--listen",
    metavar="URL",
    default=DEFAULT_LISTEN,
    show_default=True,
    help="Where this machine's clients connect: mqtt:// or ws:// with host and port; port 0 takes "
    "a free one.",
)
@click.option(
    "--connect",
    "server",
    metavar="URL",
    required=True,
    help="The attested broker: mqtts:// for clients of mqtt://, wss:// for those of ws://.",
)
@click.option(
    "--connections-max",
    type=click.IntRange(1, 4096),
    default=CONNECTIONS_MAX,
    show_default=True,
    metavar="COUNT",
    help="How many clients may be connected at a time; further ones wait.",
)
@click.option(
    "--unsafe-listen-anywhere",
    is_flag=True,
    help="Allow an address that other machines can reach: the connection to the proxy is neither "
    "encrypted nor attested.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="With ws://: the origin of web pages that may connect, such as http://127.0.0.1:3000. "
    "Other pages are refused. May be repeated.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="With ws://: a name that clients use for the proxy, besides localhost and addresses.",
)
@secure_options(tee=True)
def proxy(
    security: TlsArguments,
    attested: AttestationArguments,
    listen: str,
    server: str,
    connections_max: int,
    unsafe_listen_anywhere: bool,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
) -> int:
    """Give every MQTT client on this machine an attested connection, unchanged.

    \b
    avow proxy --connect mqtts://broker.example:8883 --policy policy.toml
    mosquitto_pub -t home/door -m open

    The proxy lets a client through only after the broker's evidence has satisfied the policy.
    Otherwise it closes the connection, and the log names the check.

    SIGHUP reads the policy, certificates and endorsements again. New connections use them, and
    existing connections stay. SIGTERM and Ctrl-C stop the proxy.
    """
    with configuration_errors():
        listen_address = parse_listen_address(listen)
        address = parse_server_address(server)
        _check_addresses(listen_address, address, anywhere=unsafe_listen_anywhere)
        if attested.policy is None:
            raise click.UsageError("missing option '--policy'")
        tls = security.tls(address)
        attestation = attested.attestation(address, tls)
        if attestation is None:
            raise click.UsageError("missing option '--policy'")
        context = AttestedContext.of(attestation, tls)
        web = _web_rule(listen_address, hosts, origins)
        targets = [(each.family, each.host) for each in resolve(listen_address)]
        listening = open_listeners(targets, listen_address.port, listen_address)
    with open_log(Log(), sys.stderr) as opened:
        log = opened.log
        if attested.notice:
            # As the broker: once in words, and in every line as a field.
            log.warning(NOTHING_IS_PROTECTED)
            log = log.bind(tee=attested.tee)
        running = Proxy(
            listening, address, context, log=log, connections_max=connections_max, web=web
        )
        files = _Files(attested, tls, attestation)

        def tell(number: int) -> None:
            if number == signal.SIGHUP:
                files.read_again(running, log)
            else:
                running.stop()

        with signals_told((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), tell):
            log.info("avow proxy", version=__version__, server=str(address))
            log.info("listening", url=str(listen_address.at_port(_port(listening))))
            running.serve()
        if attestation.issuer is not None:
            attestation.issuer.stop()
        log.info("stopped")
    return ExitCode.OK


class _Files:
    """What the proxy has read, and reads again."""

    def __init__(
        self, attested: AttestationArguments, tls: ClientTls, attestation: Attestation
    ) -> None:
        self._attested = attested
        self._tls = tls
        self._attestation = attestation

    def read_again(self, running: Proxy, log: FilteringBoundLogger) -> None:
        """New connections get what is in the files now. Where anything in them is wrong, all stays
        as it was."""
        try:
            # Certificates first: what is measured cannot be taken back.
            context = AttestedContext.of(self._attestation, self._tls)
            self._attestation = self._attested.again(self._attestation)
        except AvowError as error:
            log.error(
                "reload refused", reason=str(error), advice="what was read before stays in force"
            )
            return
        running.use(context.attesting(self._attestation))
        log.info("reloaded", policy=str(self._attested.policy))


def _web_rule(listen: Address, hosts: tuple[str, ...], origins: tuple[str, ...]) -> WebRule | None:
    if listen.scheme.websocket:
        return WebRule.of((listen.host, *hosts), origins)
    if hosts or origins:
        raise CommandError(
            "expected ws:// for --listen with --allow-origin and --allow-host, got mqtt://, "
            "which web pages cannot speak; leave these options out",
            ExitCode.USAGE,
        )
    return None


def _check_addresses(listen: Address, server: Address, *, anywhere: bool) -> None:
    if listen.scheme not in _ENCRYPTED:
        raise CommandError(
            f"expected mqtt:// or ws:// for --listen, got {listen.scheme}://; leave TLS out, as "
            "connections to the proxy stay on this machine",
            ExitCode.USAGE,
        )
    if server.scheme is not _ENCRYPTED[listen.scheme]:
        raise CommandError(
            f"expected {_ENCRYPTED[listen.scheme]}:// for --connect with {listen.scheme}:// for "
            f"--listen, got {server.scheme}://; correct one of them",
            ExitCode.USAGE,
        )
    if server.path or server.user is not None:
        raise CommandError(
            "expected only scheme, host and port for --connect, got more; let the clients give "
            "path and user name",
            ExitCode.USAGE,
        )
    if not anywhere and not all(each.loopback for each in resolve(listen)):
        raise CommandError(
            f"expected an address for --listen that only this machine can reach, got {listen}; "
            "listen on 127.0.0.1 or ::1, as everybody who reaches the proxy gets the attested "
            "channel, or say --unsafe-listen-anywhere",
            ExitCode.USAGE,
        )


def _port(listening: list[socket.socket]) -> int:
    return int(listening[0].getsockname()[1])
