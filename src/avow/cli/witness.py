"""`avow witness`: remembers for other machines how new their stores are."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from avow.broker.logs import QueuedLines, StrangerLimit, escaped
from avow.cli.command_error import configuration_errors, operation_errors, storage_errors
from avow.cli.exit_codes import ExitCode
from avow.cli.folder import Folder
from avow.errors import counted
from avow.sealing.witness import public_key_text
from avow.sealing.witness_client import Endpoint, parse_endpoint
from avow.sealing.witness_service import (
    CONNECTIONS_MAX,
    STORES_MAX,
    Event,
    ServiceLimits,
    Witness,
    WitnessService,
    open_state,
    run_service,
)

_LISTEN: Final = "127.0.0.1:7420"


@click.command()
@click.option(
    "--listen",
    default=_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen for stores; port 0 takes a free one.",
)
@click.option(
    "--state",
    type=Folder(),
    required=True,
    metavar="DIR",
    help="The folder for the witness's key and memory; the first start makes it. Never "
    "restore it from a backup.",
)
@click.option(
    "--stores-max",
    type=click.IntRange(1),
    default=STORES_MAX,
    show_default=True,
    metavar="COUNT",
    help="How many stores the witness remembers at most.",
)
@click.option("--known-only", is_flag=True, help="Take no new stores.")
@click.option(
    "--connections-max",
    type=click.IntRange(1),
    default=CONNECTIONS_MAX,
    show_default=True,
    metavar="COUNT",
    help=(
        "How many stores may be connected at a time; beyond that, the one that was idle "
        "longest is disconnected."
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def witness(
    listen: str,
    state: Path,
    stores_max: int,
    known_only: bool,
    connections_max: int,
    as_json: bool,
) -> int:
    """Remember the newest state of sealed stores on machines that may be rolled back.

    Run it on another machine than the stores, and give them the first line that it prints as
    --anchor. SIGTERM and Ctrl-C stop it.

    \b
    avow witness --listen 192.0.2.7:7420 --state /var/lib/avow-witness
    """
    with configuration_errors():
        endpoint = parse_endpoint(listen)
    with operation_errors(), storage_errors(), _notes(as_json=as_json) as say:
        memory, key = open_state(state)
        try:
            limits = ServiceLimits(connections_max=connections_max)
            # Those that are known stay, also when there are more.
            answering = Witness(memory, key, stores_max=0 if known_only else stores_max, note=say)
            public = public_key_text(answering.public_key)

            def ready(port: int) -> None:
                place = Endpoint(endpoint.host, port)
                if as_json:
                    _print_json(
                        event="listening", address=str(place), key=public, stores=len(memory)
                    )
                else:
                    click.echo(f"witness:{place}#{public}")
                    click.echo(
                        f"listening on {place}; remembers {counted(len(memory), 'store')}", err=True
                    )

            run_service(
                WitnessService(answering, limits, note=say),
                endpoint.host,
                endpoint.port,
                ready=ready,
                signals=(signal.SIGTERM, signal.SIGINT),
            )
        finally:
            memory.close()
    return ExitCode.OK


@contextmanager
def _notes(*, as_json: bool) -> Iterator[Callable[[Event], None]]:
    """Lines about events. No store waits for whoever reads them, and strangers, of whom each can
    cause as many as it likes, do not fill them: as in the broker's log."""
    limit = StrangerLimit()

    def report(dropped: int) -> None:
        if dropped:
            lines.urgent(_line(as_json, "lines dropped", count=dropped))
        left_out, _ = limit.summary()
        for what, count in left_out.items():
            lines.urgent(_line(as_json, "lines left out", of=what, count=count))

    def say(event: Event) -> None:
        if limit.take(event.what, "", event.host):
            lines.msg(_line(as_json, event.what, **_described(event)))

    stream = sys.stdout if as_json else sys.stderr
    # What was printed so far comes first.
    stream.flush()
    lines = QueuedLines(stream.fileno(), report)
    lines.start()
    try:
        yield say
    finally:
        report(0)
        lines.close()


def _described(event: Event) -> dict[str, object]:
    if not event.store:
        return {"reason": event.reason}
    return {
        "store": event.store_id,
        "key": event.store,
        "sequence": event.sequence,
        "anchor": event.anchor,
    }


def _line(as_json: bool, what: str, **more: object) -> str:
    if as_json:
        return json.dumps({"event": what, **more})
    if set(more) == {"reason"}:
        return escaped(f"{what}: {more['reason']}" if more["reason"] else what)
    said = ", ".join(f"{name} {value}" for name, value in more.items())
    return escaped(f"{what}: {said}" if said else what)


def _print_json(**content: object) -> None:
    click.echo(json.dumps(content))
