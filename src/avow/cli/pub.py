"""`avow pub`: publish from the command line, a file or standard input."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from avow.channel.named_files import read_named_file
from avow.cli.command_error import CommandError, configuration_errors, operation_errors
from avow.cli.connection_options import ConnectArguments, connection_options
from avow.cli.exit_codes import ExitCode
from avow.cli.interrupts import sigterm_interrupts
from avow.client.options import Protocol
from avow.client.properties import PUBLISH_PROPERTIES, publish_properties
from avow.client.publishing import Publisher, PublishOptions

_PROPERTY_NAMES = ", ".join(PUBLISH_PROPERTIES)


@click.command()
@click.option("-t", "--topic", required=True, help="The topic to publish to.")
@click.option("-m", "--message", metavar="TEXT", help="Publish TEXT.")
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Publish the content of FILE.",
)
@click.option("-l", "--lines", is_flag=True, help="Publish each line of standard input.")
@click.option("-s", "--stdin", "whole_stdin", is_flag=True, help="Publish all of standard input.")
@click.option("-n", "--null", "empty", is_flag=True, help="Publish an empty message.")
@click.option("-q", "--qos", type=click.IntRange(0, 2), default=0, show_default=True)
@click.option("-r", "--retain", is_flag=True, help="Have the broker retain the message.")
@click.option(
    "-D",
    "--property",
    "properties",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"An MQTT 5 property: {_PROPERTY_NAMES} (user-property=KEY=VALUE). May be repeated.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=1,
    metavar="COUNT",
    help="How many times to publish.",
)
@click.option(
    "--repeat-delay",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="How long to wait between repetitions.",
)
@connection_options
def pub(
    connect: ConnectArguments,
    topic: str,
    message: str | None,
    file: Path | None,
    lines: bool,
    whole_stdin: bool,
    empty: bool,
    qos: int,
    retain: bool,
    properties: tuple[str, ...],
    repeat: int,
    repeat_delay: float,
) -> int:
    """Publish messages to the broker at URL.

    \b
    avow pub -t home/door -m open
    sensors | avow pub -t readings -l -q 1 mqtts://broker.example:8883
    """
    _check_sources(message, file, lines, whole_stdin, empty)
    if connect.password_stdin and (lines or whole_stdin):
        raise click.UsageError(
            "expected one use of standard input, got --password-stdin with --lines or --stdin; "
            "use --password-file instead"
        )
    if properties and connect.mqtt_version == Protocol.V311:
        raise click.UsageError(
            "expected MQTT 5 for --property, got an older version; leave one of the two options out"
        )
    with configuration_errors():
        options = connect.options()
        publish = PublishOptions(topic, qos, retain, publish_properties(properties))
        if not topic or "+" in topic or "#" in topic or len(topic.encode()) > 65_535:
            raise CommandError(
                f"expected a topic without wildcards, got {topic!r}; name one topic",
                ExitCode.USAGE,
            )
        payload = b"" if file is None else read_named_file(file, "message")
        if message is not None:
            payload = message.encode()
        publisher = Publisher(options, publish)
    if lines:
        payloads = _stdin_lines()
    else:
        if whole_stdin:
            payload = sys.stdin.buffer.read()
        payloads = _repeated(payload, repeat, repeat_delay)
    with operation_errors(), sigterm_interrupts(), publisher:
        for piece in payloads:
            publisher.publish(piece)
        publisher.finish()
    return ExitCode.OK


def _check_sources(
    message: str | None, file: Path | None, lines: bool, whole_stdin: bool, empty: bool
) -> None:
    given = sum([message is not None, file is not None, lines, whole_stdin, empty])
    if given != 1:
        raise click.UsageError(
            "expected exactly one of --message, --file, --lines, --stdin and --null, got "
            f"{given} of them; choose one"
        )


def _stdin_lines() -> Iterator[bytes]:
    for line in sys.stdin.buffer:
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def _repeated(payload: bytes, count: int, delay_s: float) -> Iterator[bytes]:
    for number in range(count):
        if number and delay_s:
            time.sleep(delay_s)
        yield payload
