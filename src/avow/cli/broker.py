"""`avow broker`: reads the configuration, starts the service, turns signals into its controls."""

from __future__ import annotations

import contextlib
import functools
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from structlog.typing import FilteringBoundLogger

from avow import __version__, artefacts
from avow.broker.config import Configuration
from avow.broker.config_file import Overrides, load_configuration
from avow.broker.logs import OpenLog, open_log
from avow.broker.prepared import Prepared, prepare
from avow.broker.service import Control, Controls, Failed, Service
from avow.cli.anchors import NEW_STORE_HELP
from avow.cli.broker_attestation import (
    SIMULATED,
    load_judge,
    open_attestation,
)
from avow.cli.broker_check import check_start
from avow.cli.broker_store import check_store, open_state
from avow.cli.command_error import CommandError, configuration_errors, storage_errors
from avow.cli.exit_codes import ExitCode
from avow.cli.folder import Folder
from avow.cli.interrupts import signals_told, thread_failures
from avow.cli.provisioned import Unprovisioned, await_secrets, unprovisioned
from avow.cli.store_opening import ALSO_KEY_HELP
from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError, UntrustedError
from avow.runtime.process import process_check
from avow.sandbox.engine import LoadedCore, load
from avow.sealing.lateness import AnchorLate, Notice
from avow.tee.simulated import NOTHING_IS_PROTECTED

# What the core's heap may have is a limit of its own; stack, tables and fragmentation come on top.
_MEMORY_BESIDE_BUDGET_BYTES = 512 << 20
_MEMORY_MAX_BYTES = (4 << 30) - (64 << 10)

_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)

_FILE = click.Path(path_type=Path, dir_okay=False)

OPEN_UP = (
    "only clients on this machine can connect, and none is asked for a password. To open the "
    "broker up: `avow user add NAME`, then `avow broker --listen mqtts://0.0.0.0:8883 --cert "
    "server.pem --key server.key --password-file avow.users`"
)


@click.command()
@click.option(
    "--listen",
    "listen",
    multiple=True,
    metavar="URL",
    help="Where to listen: mqtt://, mqtts://, ws:// or wss:// with host and port; port 0 takes a "
    "free one. May be repeated. Replaces the listeners of --config.  [default: "
    "mqtt://127.0.0.1:1883]",
)
@click.option("--cert", type=_FILE, metavar="FILE", help="The server's certificate chain, PEM.")
@click.option("--key", type=_FILE, metavar="FILE", help="Its private key, PEM.")
@click.option(
    "--client-ca",
    type=_FILE,
    metavar="FILE",
    help="Require client certificates that these authorities issued, PEM. The common name becomes "
    "the user name.",
)
@click.option(
    "--password-file", type=_FILE, metavar="FILE", help="The users' file; see `avow user`."
)
@click.option(
    "--psk-file",
    type=_FILE,
    metavar="FILE",
    help="Admit clients that have one of these pre-shared keys: lines `identity:key`, the key "
    "in hexadecimal digits. The identity becomes the user name.",
)
@click.option(
    "--tee",
    metavar="NAME",
    help="The platform that vouches for the broker: auto, or a name that `avow tee` lists. "
    "`simulated` protects nothing.",
)
@click.option(
    "--client-policy",
    type=_FILE,
    metavar="FILE",
    help="Judge the evidence of clients by this policy, where they have any; see `avow policy`.",
)
@click.option(
    "--allow-anonymous",
    is_flag=True,
    default=False,
    help="Admit clients without a user name, from anywhere.",
)
@click.option(
    "--config",
    "config",
    type=_FILE,
    metavar="FILE",
    help="Read the configuration from this file, such as avow.toml. Options take precedence.",
)
@click.option(
    "--store",
    type=Folder(),
    metavar="DIR",
    help="Keep sessions, queued and retained messages in this sealed store; see --store-key.",
)
@click.option(
    "--store-key",
    metavar="SOURCE",
    help="Where the store's key comes from: file:PATH, tpm:PATH, gramine, snp or provisioned.",
)
@click.option("--also-key", metavar="SOURCE", help=ALSO_KEY_HELP)
@click.option(
    "--durability",
    type=click.Choice(["commit", "interval", "none"]),
    help="When acknowledged changes reach the disk: before the acknowledgement (commit, the "
    "default), soon after it (interval), or at a clean shutdown (none).",
)
@click.option(
    "--anchor",
    metavar="ANCHOR",
    help="What makes an old copy of the store detectable: tpm:0x01800042, witness:host:port#KEY, "
    "or none (the default).",
)
@click.option(
    "--accept-rollback",
    type=click.IntRange(min=1),
    metavar="SEQUENCE",
    help="Use once: open the store at this sequence, although its anchor knows a newer one. "
    "Everything after it is lost.",
)
@click.option("--new-store", is_flag=True, help=NEW_STORE_HELP)
@click.option(
    "--check",
    is_flag=True,
    help="Try all that a start needs: files, platform, store, anchor, ports. Change nothing, "
    "print every error, and exit with 0 or 2.",
)
def broker(
    listen: tuple[str, ...],
    cert: Path | None,
    key: Path | None,
    client_ca: Path | None,
    password_file: Path | None,
    psk_file: Path | None,
    tee: str | None,
    client_policy: Path | None,
    allow_anonymous: bool,
    config: Path | None,
    store: Path | None,
    store_key: str | None,
    also_key: str | None,
    durability: str | None,
    anchor: str | None,
    accept_rollback: int | None,
    new_store: bool,
    check: bool,
) -> int:
    """Run the MQTT broker.

    Without options it listens on mqtt://127.0.0.1:1883 for this machine only, and anybody on it
    may connect.

    SIGHUP reads certificates, revocation lists, users, access rules and limits again. Connections
    stay, unless the broker is attested and its evidence would name another configuration. SIGTERM
    and Ctrl-C stop the broker: it tells its clients, and sends what still waits.
    """
    overrides = Overrides(
        listen=listen,
        cert=cert,
        key=key,
        client_ca=client_ca,
        psk_file=psk_file,
        client_policy=client_policy,
        tee=tee,
        allow_anonymous=True if allow_anonymous else None,
        password_file=password_file,
        store=store,
        store_key=store_key,
        also_key=also_key,
        durability=durability,
        anchor=anchor,
    )
    reread = functools.partial(load_configuration, config, overrides)
    with configuration_errors():
        configuration = reread()
        if configuration.store is None and (new_store or accept_rollback is not None):
            name = "--new-store" if new_store else "--accept-rollback"
            raise MalformedError(f"expected --store DIR with {name}, got none; add it")
    if check:
        return check_start(configuration, new_store=new_store)
    with configuration_errors():
        check_store(configuration)
        starting: Prepared | Unprovisioned
        if configuration.provisioning is None:
            starting = prepare(configuration, datetime.now(UTC), load_judge=load_judge)
        else:
            starting = unprovisioned(configuration)
    by_default = config is None and not listen
    with open_log(configuration.log, sys.stderr) as opened:
        return _run(
            opened,
            starting,
            reread,
            by_default=by_default,
            accept_rollback=accept_rollback,
            new_store=new_store,
        )


def _run(
    opened: OpenLog,
    starting: Prepared | Unprovisioned,
    reread: functools.partial[Configuration],
    *,
    by_default: bool,
    accept_rollback: int | None,
    new_store: bool,
) -> int:
    log = opened.log
    if starting.configuration.attestation.tee == SIMULATED:
        # Once in words; every line has it as a field, so that none is taken for a protected one's.
        log.warning(NOTHING_IS_PROTECTED)
        log = log.bind(tee=SIMULATED)
    controls: Controls = queue.SimpleQueue()

    def tell(number: int) -> None:
        controls.put(Control.RELOAD if number == signal.SIGHUP else Control.STOP)

    with signals_told(_SIGNALS, tell), _thread_failures(controls, log):
        with configuration_errors():
            attested = open_attestation(starting)
            core = _load_core(starting.configuration, attested.measure)
            attestation = attested.attestation
            log.info("avow broker", version=__version__, module_sha256=core.sha256.hex())
            if attestation is not None:
                log.info("attested", **attested.described())
            ready = await_secrets(starting, attestation, controls, log, load_judge=load_judge)
            if ready is None:
                return ExitCode.OK
        with _faults(), contextlib.ExitStack() as state:
            with configuration_errors(), storage_errors(), ready.in_use():
                journal = state.enter_context(
                    open_state(
                        ready.prepared,
                        core.sha256,
                        provisioned=ready.provisioned,
                        accept_rollback=accept_rollback,
                        new_store=new_store,
                        failed=lambda error: controls.put(Failed(error)),
                        late=lambda notice: _log_lateness(notice, log),
                        note=lambda line: log.info("store", note=line),
                    )
                )
                service = Service(
                    ready.prepared,
                    core,
                    reread=reread,
                    controls=controls,
                    log=log,
                    attestation=attestation,
                    load_judge=load_judge,
                    provisioned=ready.provisioned,
                    journal=journal,
                    log_counters=opened.counters,
                )
                if attestation is not None or ready.prepared.configuration.store is not None:
                    _check_process()
                service.open()
            if by_default:
                log.info(OPEN_UP)
            service.serve()
    return ExitCode.OK


def _log_lateness(notice: Notice, log: FilteringBoundLogger) -> None:
    """At `warning` both: whoever saw the one has to see the other."""
    if isinstance(notice, AnchorLate):
        log.warning(
            "anchor late",
            anchor=notice.anchor,
            reason=notice.reason,
            broker_ends_in_s=round(notice.left_s),
            advice=(
                "bring it back within that time; until it is back, an old copy of the store goes "
                "unnoticed"
            ),
        )
    else:
        log.warning("anchor back", anchor=notice.anchor, away_s=round(notice.away_s, 1))


@contextmanager
def _faults() -> Iterator[None]:
    """Whatever ends a broker that runs, or is wrong at its end, is a fault, of its storage or of
    its own."""
    try:
        with storage_errors():
            yield
    except (DeniedError, UnavailableError, UntrustedError) as error:
        # An anchor that does not answer any more, or for which somebody else does.
        raise CommandError(str(error), ExitCode.FAILED) from error
    except AvowError as error:
        raise CommandError(str(error), ExitCode.INTERNAL) from error


def _check_process() -> None:
    """Before strangers can speak to it: it runs what was measured."""
    check = process_check()
    if check is not None:
        check.files()


def _load_core(configuration: Configuration, measure: Callable[[bytes], None]) -> LoadedCore:
    path = artefacts.core_path()
    wanted = configuration.limits.memory_budget_bytes + _MEMORY_BESIDE_BUDGET_BYTES
    return load(path.read_bytes(), memory_max_bytes=min(wanted, _MEMORY_MAX_BYTES), measure=measure)


@contextmanager
def _thread_failures(controls: Controls, log: FilteringBoundLogger) -> Iterator[None]:
    """A thread that dies of a bug ends the broker: half a broker must not look like a whole one."""

    def tell(failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread is not None else "unknown"
        log.critical("thread died", thread=name, exc_info=failure.exc_value)
        controls.put(
            Failed(
                AvowError(
                    f"expected the thread {name!r} to keep running, got its end; start the broker "
                    "again, and report this"
                )
            )
        )

    with thread_failures(tell):
        yield
