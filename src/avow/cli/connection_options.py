"""The options that clients share: where to connect, as whom, and what the server has to show."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from avow.channel.address import Address, parse_server_address
from avow.cli.command_error import CommandError
from avow.cli.exit_codes import ExitCode
from avow.cli.secrets_input import PASSWORD_VARIABLE, client_password
from avow.client.options import ClientTls, ConnectOptions, Protocol, Will

if TYPE_CHECKING:
    # Loaded with the first option of attestation: a plain connection does without.
    from avow.client.attested_socket import Attestation

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
        help="Read the password from the first line of FILE. Without either option, the password "
        f"comes from the environment variable {PASSWORD_VARIABLE} or the terminal.",
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
    click.option(
        "-x",
        "--session-expiry",
        type=click.IntRange(0, 2**32 - 1),
        metavar="SECONDS",
        help="How long the session outlives the connection (MQTT 5).",
    ),
    click.option("--will-topic", metavar="TOPIC", help="Leave a will on this topic."),
    click.option("--will-payload", default="", metavar="TEXT", help="The will's payload."),
    click.option("--will-qos", type=click.IntRange(0, 2), default=0, help="The will's QoS."),
    click.option("--will-retain", is_flag=True, help="Have the broker retain the will."),
    click.option(
        "--will-delay",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        metavar="SECONDS",
        help=(
            "How long the broker waits after the connection is lost before it publishes the will "
            "(MQTT 5)."
        ),
    ),
)


_TLS_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option("--cafile", type=_FILE, metavar="FILE", help="Trust these authorities, PEM."),
    click.option("--cert", type=_FILE, metavar="FILE", help="The client's certificate, PEM."),
    click.option("--key", type=_FILE, metavar="FILE", help="Its private key, PEM."),
    click.option(
        "--psk",
        type=_FILE,
        metavar="FILE",
        help="Use the pre-shared key in FILE (one line: identity:key, the key in hexadecimal "
        "digits) instead of certificates. Only with --policy.",
    ),
    click.option(
        "--unsafe-no-verify",
        is_flag=True,
        help=(
            "Do not verify the server's certificate: anybody on the way can read and change "
            "everything."
        ),
    ),
)
_POLICY_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--policy",
        type=_FILE,
        metavar="FILE",
        help="Connect only if the server's evidence satisfies this policy; see `avow policy`.",
    ),
    click.option(
        "--endorsements",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help=(
            "A folder with what vendors and owners publish about their hardware: certificates, "
            "collateral, revocation lists."
        ),
    ),
)
_TEE_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--tee",
        metavar="NAME",
        help="Show the server evidence from the platform that this client runs on: auto, or a name "
        "that `avow tee` lists. Only with --policy.",
    ),
)


@dataclass(frozen=True, slots=True)
class TlsArguments:
    """The options of TLS as click gives them."""

    cafile: Path | None
    cert: Path | None
    key: Path | None
    psk: Path | None
    unsafe_no_verify: bool

    def tls(self, address: Address) -> ClientTls:
        """As the client room has them. Raises `CommandError` where there is no TLS."""
        tls = ClientTls(self.cafile, self.cert, self.key, self.unsafe_no_verify, self.psk)
        if tls != ClientTls():
            require_encrypted(address, "the TLS options")
        return tls


@dataclass(frozen=True, slots=True)
class AttestationArguments:
    """The options of attestation as click gives them."""

    policy: Path | None
    endorsements: Path | None
    tee: str | None

    def attestation(self, address: Address, tls: ClientTls) -> Attestation | None:
        """What is asked of the server and shown to it; None without a policy.

        Raises `CommandError` for options that do not go together, and an `AvowError` for files and
        platforms that will not do.
        """
        if self.policy is None:
            for name, value in (
                ("--endorsements", self.endorsements),
                ("--tee", self.tee),
                ("--psk", tls.psk),
            ):
                if value is not None:
                    raise CommandError(
                        f"expected --policy with {name}, got none; name the policy's file",
                        ExitCode.USAGE,
                    )
            return None
        require_encrypted(address, "--policy")
        from avow.client.wiring import AttestationFiles, attestation_of

        return attestation_of(AttestationFiles(self.policy, self.tee, self.endorsements))

    def again(self, before: Attestation) -> Attestation:
        """`before`, made of what the files hold now. Raises an `AvowError`; then it stays."""
        from avow.client.wiring import AttestationFiles, attestation_again

        if self.policy is None:
            return before
        return attestation_again(before, AttestationFiles(self.policy, self.tee, self.endorsements))

    @property
    def notice(self) -> str:
        """What each line on standard error begins with: that nothing is protected, if so."""
        if self.tee != "simulated":
            return ""
        from avow.tee.simulated import NOTHING_IS_PROTECTED

        return f"{NOTHING_IS_PROTECTED}: "

    def say(self, sentence: str) -> None:
        """A line on standard error."""
        click.echo(f"avow: {self.notice}{sentence}", err=True)

    @contextmanager
    def noticed(self, *, announce: bool = True) -> Iterator[None]:
        """Says so in the sentence that a command ends with, and at the start, if `announce`."""
        if not self.notice:
            yield
            return
        if announce:
            self.say("this client's evidence proves nothing")
        try:
            yield
        except CommandError as error:
            raise CommandError(f"{self.notice}{error.sentence}", error.code) from error
        except KeyboardInterrupt as error:
            raise CommandError(f"{self.notice}interrupted", ExitCode.FAILED) from error


def require_encrypted(address: Address, what: str) -> None:
    """Raises `CommandError` where the URL means no TLS."""
    if not address.scheme.encrypted:
        raise CommandError(
            f"expected mqtts:// or wss:// for {what}, got {address.scheme}://; correct the URL, "
            "or leave them out",
            ExitCode.USAGE,
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
    session_expiry: int | None
    will_topic: str | None
    will_payload: str
    will_qos: int
    will_retain: bool
    will_delay: int
    security: TlsArguments
    attested: AttestationArguments

    def options(self, *, persistent: bool = False) -> ConnectOptions:
        """The options of the client room. Raises an `AvowError` for what cannot be."""
        address = parse_server_address(self.url)
        tls = self.security.tls(address)
        protocol = Protocol(self.mqtt_version)
        if self.session_expiry is not None and protocol is Protocol.V311:
            raise CommandError(
                "expected MQTT 5 for --session-expiry, got 3.1.1; leave out one of the two options",
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
            attestation=self.attested.attestation(address, tls),
            will=self._will(),
        )

    def _will(self) -> Will | None:
        if self.will_topic is None:
            if self.will_payload or self.will_qos or self.will_retain or self.will_delay:
                raise CommandError(
                    "expected --will-topic with the other will options, got none; add it",
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
    own = [
        each.name for each in fields(ConnectArguments) if each.name not in ("security", "attested")
    ]

    @functools.wraps(command)
    def gathered(**arguments: Any) -> int:
        shared = {name: arguments.pop(name) for name in own}
        security = take(TlsArguments, arguments)
        attested = take(AttestationArguments, arguments)
        connect = ConnectArguments(**shared, security=security, attested=attested)
        with attested.noticed():
            return command(connect=connect, **arguments)

    return with_options(gathered, (*_OPTIONS, *_TLS_OPTIONS, *_POLICY_OPTIONS, *_TEE_OPTIONS))


def secure_options(*, tee: bool) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Adds the options of TLS and attestation alone, as `security` and `attested`."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def gathered(**arguments: Any) -> int:
            if not tee:
                arguments |= {"tee": None}
            security = take(TlsArguments, arguments)
            attested = take(AttestationArguments, arguments)
            # `avow proxy` says so at the start, and in a field of each line of its log.
            with attested.noticed(announce=False):
                return command(security=security, attested=attested, **arguments)

        return with_options(
            gathered, (*_TLS_OPTIONS, *_POLICY_OPTIONS, *(_TEE_OPTIONS if tee else ()))
        )

    return decorate


Arguments = TypeVar("Arguments", TlsArguments, AttestationArguments)


def take(kind: type[Arguments], arguments: dict[str, Any]) -> Arguments:
    """Takes the fields of `kind` out of click's arguments."""
    return kind(**{each.name: arguments.pop(each.name) for each in fields(kind)})


def with_options(
    command: Callable[..., int], options: tuple[Callable[[Any], Any], ...]
) -> Callable[..., int]:
    """The command with these options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command
