"""`avow sub`: subscribe and print what comes."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click
from paho.mqtt.client import MQTTMessage

from avow.cli.command_error import CommandError, configuration_errors, operation_errors
from avow.cli.connection_options import ConnectArguments, connection_options
from avow.cli.exit_codes import ExitCode
from avow.cli.interrupts import sigterm_interrupts
from avow.cli.standard_streams import drop_output
from avow.client.message_format import CONVERSIONS, Render, as_json, compile_format, raw, verbose
from avow.client.subscribing import Subscriber, SubscribeRequest

_CONVERSIONS_HELP = ", ".join(f"%{letter} {entry[0]}" for letter, entry in CONVERSIONS.items())


@click.command()
@click.option(
    "-t",
    "--topic",
    "topics",
    multiple=True,
    required=True,
    metavar="FILTER",
    help="A topic filter, such as home/+/door or home/#. May be repeated.",
)
@click.option("-q", "--qos", type=click.IntRange(0, 2), default=0, show_default=True)
@click.option(
    "-C", "--count", type=click.IntRange(1), metavar="COUNT", help="Exit after COUNT messages."
)
@click.option(
    "-W",
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Exit after SECONDS; with --count, exit code 1 if fewer messages have come.",
)
@click.option("-v", "--verbose", "show_topic", is_flag=True, help="Print the topic too.")
@click.option(
    "-F",
    "--format",
    "template",
    metavar="FORMAT",
    help=(
        f"Print each message in this format: {_CONVERSIONS_HELP}; \\n \\t \\r \\0 \\\\ as usual."
    ),
)
@click.option("--json", "json_lines", is_flag=True, help="Print each message as a JSON object.")
@click.option("-N", "--no-newline", is_flag=True, help="Print no line end after a message.")
@click.option(
    "-T",
    "--filter-out",
    "excluded",
    multiple=True,
    metavar="FILTER",
    help="Do not print messages with these topics. May be repeated.",
)
@click.option("-R", "--no-retained", is_flag=True, help="Do not print retained messages.")
@click.option("--retained-only", is_flag=True, help="Print retained messages only.")
@click.option(
    "-c",
    "--persistent",
    is_flag=True,
    help=(
        "Keep the session: the broker delivers at the next connection what came meanwhile. "
        "Needs --id."
    ),
)
@click.option("--no-local", is_flag=True, help="Do not receive what this client publishes.")
@click.option(
    "--retain-as-published", is_flag=True, help="Show the retain flag that the publisher set."
)
@click.option(
    "--subscription-identifier",
    type=click.IntRange(1, 268_435_455),
    metavar="NUMBER",
    help="Have the broker mark the messages with NUMBER.",
)
@connection_options
def sub(
    connect: ConnectArguments,
    topics: tuple[str, ...],
    qos: int,
    count: int | None,
    timeout: float | None,
    show_topic: bool,
    template: str | None,
    json_lines: bool,
    no_newline: bool,
    excluded: tuple[str, ...],
    no_retained: bool,
    retained_only: bool,
    persistent: bool,
    no_local: bool,
    retain_as_published: bool,
    subscription_identifier: int | None,
) -> int:
    """Subscribe at the broker at URL, and print one line for each message.

    \b
    avow sub -t 'home/#' -v
    avow sub -t readings -C 1 -W 5 --json mqtts://broker.example:8883
    """
    if no_retained and retained_only:
        raise click.UsageError("expected --no-retained or --retained-only, got both; choose one")
    with configuration_errors():
        render = _renderer(show_topic, template, json_lines)
        printer = _Printer(render, b"" if no_newline else b"\n")
        request = SubscribeRequest(
            filters=topics,
            qos=qos,
            count=count,
            timeout_s=timeout,
            excluded=excluded,
            retained=True if retained_only else False if no_retained else None,
            no_local=no_local,
            retain_as_published=retain_as_published,
            subscription_identifier=subscription_identifier,
        )
        subscriber = Subscriber(
            connect.options(persistent=persistent),
            request,
            deliver=printer,
            note=connect.attested.say,
        )
    try:
        with operation_errors(), sigterm_interrupts():
            subscriber.run()
    except KeyboardInterrupt:
        # To stop it is how one ends a subscription.
        return ExitCode.OK
    except BrokenPipeError:
        drop_output()
        return ExitCode.OK
    return ExitCode.OK


def _renderer(show_topic: bool, template: str | None, json_lines: bool) -> Render:
    if sum([show_topic, template is not None, json_lines]) > 1:
        raise CommandError(
            "expected one of --verbose, --format and --json, got several; choose one",
            ExitCode.USAGE,
        )
    if template is not None:
        return compile_format(template)
    if json_lines:
        return as_json
    return verbose if show_topic else raw


class _Printer:
    """Writes messages to standard output at once: a pipe must see them as they come."""

    def __init__(self, render: Render, end: bytes) -> None:
        self._render = render
        self._end = end

    def __call__(self, message: MQTTMessage) -> None:
        sys.stdout.buffer.write(self._render(message, datetime.now(UTC)) + self._end)
        sys.stdout.buffer.flush()
