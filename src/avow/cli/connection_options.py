"""The options that `avow pub` and `avow sub` share: where to connect, and as whom."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from avow.channel.address import parse_server_address
from avow.cli.command_error import CommandError
from avow.cli.exit_codes import ExitCode
from avow.cli.secrets_input import PASSWORD_VARIABLE, client_password
from avow.client.options import ClientTls, ConnectOptions, Protocol, Will

DEFAULT_URL = "mqtt://127.0.0.1:1883"

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, dir_okay=False)

_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.argument("url", default=DEFAULT_URL, metavar="[URL]"),
    click.option("-i", "--id", "client_id", default="", help="The client identifier."),
    click.option("-u", "--user", metavar="NAME", help="The user name; also user@ in the URL."),
    click.option("--password-stdin", is_flag=True, help="Read the password from standard input."),
    click.option(
        "--password-file",
        type=_FILE,
        metavar="FILE",
        help="Read the password from the first line of FILE. Without both, the environment "
        f"variable {PASSWORD_VARIABLE} or the terminal is asked.",
    ),
    click.option(
        "-V",
        "--mqtt-version",
        type=click.Choice([version.value for version in Protocol]),
        default=Protocol.V5.value,
        show_default=True,
        help="The version of MQTT.",
    ),
    click.option(
        "-k",
        "--keep-alive",
        type=click.IntRange(5, 65535),
        default=60,
        show_default=True,
        metavar="SECONDS",
    ),
    click.option("--cafile", type=_FILE, metavar="FILE", help="Trust these authorities, PEM."),
    click.option("--cert", type=_FILE, metavar="FILE", help="The client's certificate, PEM."),
    click.option("--key", type=_FILE, metavar="FILE", help="Its private key, PEM."),
    click.option(
        "--unsafe-no-verify",
        is_flag=True,
        help="Do not verify the server's certificate: anybody can read and change everything.",
    ),
    click.option(
        "-x",
        "--session-expiry",
        type=click.IntRange(0, 2**32 - 1),
        metavar="SECONDS",
        help="How long the session outlives the connection (MQTT 5).",
    ),
    click.option("--will-topic", metavar="TOPIC", help="Leave a will: its topic."),
    click.option("--will-payload", default="", metavar="TEXT", help="Its payload."),
    click.option("--will-qos", type=click.IntRange(0, 2), default=0, help="Its QoS."),
    click.option("--will-retain", is_flag=True, help="Have the broker retain it."),
    click.option(
        "--will-delay",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        metavar="SECONDS",
        help="Publish it only so long after the connection was lost (MQTT 5).",
    ),
)


@dataclass(frozen=True, slots=True)
class ConnectArguments:
    """The shared options as click gives them."""

    url: str
    client_id: str
    user: str | None
    password_stdin: bool
    password_file: Path | None
    mqtt_version: str
    keep_alive: int
    cafile: Path | None
    cert: Path | None
    key: Path | None
    unsafe_no_verify: bool
    session_expiry: int | None
    will_topic: str | None
    will_payload: str
    will_qos: int
    will_retain: bool
    will_delay: int

    def options(self, *, persistent: bool = False) -> ConnectOptions:
        """The options of the client room. Raises an `AvowError` for what cannot be."""
        address = parse_server_address(self.url)
        tls = ClientTls(self.cafile, self.cert, self.key, self.unsafe_no_verify)
        if tls != ClientTls() and not address.scheme.encrypted:
            raise CommandError(
                f"expected mqtts:// or wss:// for the TLS options, got {address.scheme}://; "
                f"correct the URL or drop them",
                ExitCode.USAGE,
            )
        protocol = Protocol(self.mqtt_version)
        if self.session_expiry is not None and protocol is Protocol.V311:
            raise CommandError(
                "expected MQTT 5 for --session-expiry, got 3.1.1; drop one of them",
                ExitCode.USAGE,
            )
        user = self.user if self.user is not None else address.user
        return ConnectOptions(
            address=address,
            protocol=protocol,
            client_id=self.client_id,
            user=user,
            password=client_password(user, from_stdin=self.password_stdin, file=self.password_file),
            keep_alive_s=self.keep_alive,
            persistent=persistent,
            session_expiry_s=self.session_expiry,
            tls=tls,
            will=self._will(),
        )

    def _will(self) -> Will | None:
        if self.will_topic is None:
            if self.will_payload or self.will_qos or self.will_retain or self.will_delay:
                raise CommandError(
                    "expected --will-topic beside the other will options, got none; add it",
                    ExitCode.USAGE,
                )
            return None
        return Will(
            self.will_topic,
            self.will_payload.encode(),
            self.will_qos,
            self.will_retain,
            self.will_delay,
        )


def connection_options(command: Callable[..., int]) -> Callable[..., int]:
    """Adds the shared options; the command gets them as `connect: ConnectArguments`."""
    names = ConnectArguments.__slots__

    @functools.wraps(command)
    def gathered(**arguments: Any) -> int:
        shared = {name: arguments.pop(name) for name in names}
        return command(connect=ConnectArguments(**shared), **arguments)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered
