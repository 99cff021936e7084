"""Writes the reference pages from what they are about. `python -m docs.generate [--check]`.

Each page is a function that returns its text; nothing in `docs/reference/` is written by hand.
`--check` writes nothing and fails when a page is not current; a test does the same.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from avow.broker.config import schema_rows
from avow.broker.memory import CONNECTION_BYTES, PROCESS_BYTES, TLS_CONNECTION_BYTES
from avow.broker.users import ARGON2_MEMORY_KIB
from avow.cli import cli
from docs import judging_pages, zig_source
from tests.conformance.test_coverage import excused, statements, tagged

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs/reference"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def configuration() -> str:
    """Every key of `avow.toml`, from the schema that reads it."""
    parts = [
        "# Configuration\n\n"
        "`avow broker --config avow.toml` reads this file. Every key is optional unless it is "
        "marked *required*. An unknown key is an error that names the nearest known key. "
        "`avow broker --check` says whether a file is valid. The command line takes precedence "
        "over the file. Relative paths are relative to the folder of the file.\n"
    ]
    rows = schema_rows()
    for name in dict.fromkeys(row.table for row in rows):
        parts.append(f"\n## {f'`{name}`' if name else 'Top level'}\n\n")
        parts.append(
            table(
                ("key", "type", "default", "bounds", "meaning"),
                (
                    (f"`{row.key}`", row.type, f"`{row.default}`", row.bounds, row.description)
                    for row in rows
                    if row.table == name
                ),
            )
        )
    return "".join(parts)


def commands() -> str:
    """What `--help` prints, for every command."""
    parts = ["# Commands\n"]
    top = click.Context(cli, info_name="avow", terminal_width=96, **cli.context_settings)
    for context in _contexts(top):
        help_text = context.command.get_help(context).rstrip()
        parts.append(f"\n## {context.command_path}\n\n```text\n{help_text}\n```\n")
    return "".join(parts)


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """A context for a command and for each that is below it."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            below = context.command.get_command(context, name)
            if below is not None:
                yield from _contexts(click.Context(below, info_name=name, parent=context))


def limits() -> str:
    """Bounds that are compiled into the core, and those that the configuration sets."""
    fixed = zig_source.constants((ROOT / "core/src/limits.zig").read_text())
    return (
        "# Bounds\n\n"
        "Everything that a client can make grow has a bound. At the bound, the broker answers as "
        "MQTT demands.\n\n"
        "## Compiled in\n\n"
        "These are the constants of `core/src/limits.zig`. Changing one changes the measurement."
        "\n\n"
        + table(
            ("constant", "value", "what it bounds"),
            ((f"`{name}`", f"{value:,}", comment) for name, value, comment in fixed),
        )
        + "\n## Configured\n\n"
        "These are the keys of the table `[limits]` in the [configuration](configuration.md).\n\n"
        + table(
            ("key", "default", "bounds"),
            (
                (f"`{row.key}`", f"`{row.default}`", row.bounds)
                for row in schema_rows()
                if row.table == "[limits]"
            ),
        )
        + "\n## Memory\n\n"
        "`memory_budget_bytes` bounds the core: what it keeps for clients (sessions, "
        "subscriptions, queues, retained messages, unsent output), and how far its memory "
        "grows. In addition, the broker needs at most\n\n"
        f"- {PROCESS_BYTES >> 20} MiB for the process: Python, wasmtime, OpenSSL, compiled core;\n"
        f"- {ARGON2_MEMORY_KIB >> 10} MiB for each password that it verifies, `login.workers` at a "
        "time;\n"
        f"- {TLS_CONNECTION_BYTES >> 10} KiB for each TLS connection whose peer does not read, and "
        f"{CONNECTION_BYTES >> 10} KiB for each connection.\n\n"
        "`avow broker --check` prints the sum for a configuration with 1,000 connections. The "
        "limit of open files bounds the number of connections. The sum does not include the "
        "journal of one turn, or what the kernel keeps for sockets.\n"
    )


# The tables of core/src/transitions.zig: heading, the enum whose comment introduces it, and the
# enums whose values are explained.
MACHINES = (
    ("accepted", "What a connection accepts", "Phase", ("Phase",)),
    ("life", "The life of a session", "Life", ("LifeEffect",)),
    ("outbound", "Towards a client: QoS 1 and 2", "Outbound", ("OutboundEffect",)),
    ("inbound", "From a client: QoS 2", "Inbound", ("InboundEffect",)),
)


def transitions() -> str:
    """Sessions and QoS exchanges, from the tables by which the core acts."""
    source = (ROOT / "core/src/transitions.zig").read_text()
    tables, enums = zig_source.tables(source), zig_source.enums(source)
    purposes = zig_source.purposes(source)
    if set(tables) != {name for name, *_ in MACHINES}:
        raise ValueError(f"docs/generate.py shows other tables than there are: {sorted(tables)}")
    parts = [
        "# Sessions and QoS\n\n"
        "The core acts by these tables of `core/src/transitions.zig`. Any event that a table does "
        "not name is a protocol error.\n"
    ]
    for name, heading, introduced, explained in MACHINES:
        rows = tables[name]
        parts.append(f"\n## {heading}\n\n{purposes[introduced]}\n\n")
        columns = list(rows[0].fields)
        cells = ([*(f"`{row.fields[c]}`" for c in columns), row.comment] for row in rows)
        parts.append(table((*columns, "statement"), cells))
        if "next" in columns:
            parts.append(_diagram(rows))
        for enum in explained:
            said = [(f"`{value}`", text) for value, text in enums[enum].items() if text]
            parts.append("\n" + table((columns[0] if enum == introduced else "effect", ""), said))
    return "".join(parts)


def _diagram(rows: Iterable[zig_source.Row]) -> str:
    """The same as a state diagram; transitions between the same two states share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        arrows.setdefault((row.fields["state"], row.fields["next"]), []).append(row.fields["event"])
    lines = (f"    {a} --> {b}: {', '.join(events)}\n" for (a, b), events in arrows.items())
    return "\n```mermaid\nstateDiagram-v2\n" + "".join(lines) + "```\n"


def _features(tests: dict[str, list[str]], rows: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
    """Feature, the versions, and how many tests carry a statement about it."""
    for row in rows:
        name, about = row["name"], row["statements"]
        covering = {test for statement in about for test in tests.get(statement, ())}
        if unknown := set(about) - set(statements()):
            raise ValueError(f"docs/mqtt.toml: {name}: no such statement: {sorted(unknown)}")
        if not covering:
            raise ValueError(f"docs/mqtt.toml: {name}: no test carries any of {about}")
        v311 = row.get("v311", True)
        versions = (v311, row.get("v31", v311))
        older = ("yes" if there else "not in this version" for there in versions)
        yield [name, "yes", *older, str(len(covering))]


def _sections(tests: dict[str, list[str]], subjects: dict[str, str]) -> Iterator[list[str]]:
    """Section, subject, and how many statements it has, with tests, with excuses."""
    sections: dict[str, list[str]] = {}
    for statement in statements():
        section = statement.removeprefix("MQTT-").rsplit("-", 1)[0]
        sections.setdefault(section, []).append(statement)
    for section, inside in sections.items():
        with_test = sum(statement in tests for statement in inside)
        with_excuse = sum(statement in excused() for statement in inside)
        yield [section, subjects[section], str(len(inside)), str(with_test), str(with_excuse)]


def mqtt() -> str:
    """What of MQTT is there, and which tests cover which normative statements."""
    data = tomllib.loads((ROOT / "docs/mqtt.toml").read_text())
    tests = tagged()
    return (
        "# MQTT support\n\n"
        "avow implements the server's side of MQTT 5.0, 3.1.1 and 3.1, over TCP, TLS and "
        "WebSocket.\n\n"
        "## Features\n\n"
        + table(("feature", "5.0", "3.1.1", "3.1", "tests"), _features(tests, data["feature"]))
        + "\nThe last column counts the conformance tests that name a statement about the "
        "feature.\n\n"
        + "".join(f"## {note['title']}\n\n{note['text'].strip()}\n\n" for note in data["note"])
        + "## Normative statements of MQTT 5.0\n\n"
        "Each statement has a test that names it, or a reason why a server cannot have one. "
        "`pytest tests/conformance/test_coverage.py` checks this.\n\n"
        + table(
            ("section", "subject", "statements", "with a test", "with a reason"),
            _sections(tests, data["section"]),
        )
        + "\n## Statements without a test\n\n"
        + table(("statement", "reason"), ([name, why] for name, why in excused().items()))
    )


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "commands.md": commands,
    "limits.md": limits,
    "mqtt.md": mqtt,
    "transitions.md": transitions,
    "policy.md": lambda: judging_pages.policy(table),
    "claims.md": lambda: judging_pages.claims(table),
    "checks.md": lambda: judging_pages.checks(table),
}


def stale() -> list[str]:
    """The pages that are not what would be written now."""
    return [
        name
        for name, page in PAGES.items()
        if not (REFERENCE / name).is_file() or (REFERENCE / name).read_text() != page()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pages, or with `--check` says which are stale."""
    parser = argparse.ArgumentParser(description="Write the reference pages.")
    parser.add_argument("--check", action="store_true", help="fail if a page is stale")
    options = parser.parse_args(arguments)
    old = stale()
    for name in old:
        print(f"{'stale' if options.check else 'written'}: docs/reference/{name}")
        if not options.check:
            REFERENCE.mkdir(exist_ok=True)
            (REFERENCE / name).write_text(PAGES[name]())
    return 1 if options.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
