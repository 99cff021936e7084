"""What every run says: which tests fail, as they fail, and which are left out, and why."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

# File and needs of each. Under pytest-xdist every worker collects everything, so that one worker's
# list is whole.
_LEFT_OUT = pytest.StashKey[list[tuple[str, str]]]()
_FROM_WORKER = "left_out"


class _Failures:
    """Names failures at once: the summary is minutes away, and a run may never come to it."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After each part of a test."""
        if report.failed:
            cause = getattr(report.longrepr, "reprcrash", None)
            reason = cause.message.partition("\n")[0] if cause is not None else report.when
            self._terminal.ensure_newline()
            self._terminal.write_line(f"FAILED {report.nodeid} - {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is left out yet, and Ctrl-C means something.

    A script's shell ignores SIGINT in what it starts with `&`, and so would every program that a
    test starts and interrupts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_LEFT_OUT] = []


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_programs() -> Iterator[None]:
    """What nohup and a script's `&` have ignored means something to the programs of tests.

    Here such a signal stays without effect. Programs get no handler of ours when they start, but
    they would get that it is ignored: as pytest-xdist's workers do, who begin before this.
    """
    ignored = [
        number
        for number in (signal.SIGHUP, signal.SIGQUIT)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, lambda number, frame: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """A terminal is only in the process that prints."""
    terminal = session.config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None:
        session.config.pluginmanager.register(_Failures(terminal))


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Keeps what `-m` left out; whoever writes `-k` knows what for."""
    for item in items:
        if item.config.option.markexpr:
            markers = {marker.name for marker in item.iter_markers()}
            needs = " and ".join(sorted(markers & _needs(item.config).keys()))
            item.config.stash[_LEFT_OUT].append((item.nodeid.split("::")[0], needs))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands its list to the process that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_FROM_WORKER] = session.config.stash[_LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended; one that crashed has no output."""
    left_out = getattr(node, "workeroutput", {}).get(_FROM_WORKER)
    if left_out:
        node.config.stash[_LEFT_OUT] = left_out


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The tests that were left out: how many, by what they need and by file."""
    left_out = config.stash[_LEFT_OUT]
    if left_out:
        terminalreporter.section(f"left out: {len(left_out)}", sep="=")
    needs = _needs(config)
    for group in sorted({group for _, group in left_out}):
        files = Counter(file for file, each in left_out if each == group)
        why = [f"{marker}: {needs[marker]}" for marker in group.split(" and ") if marker]
        terminalreporter.write_line(f"{files.total():4} {'; '.join(why) or 'by -m'}")
        for file, count in sorted(files.items()):
            terminalreporter.write_line(f"    {count:4} {file}")


def _needs(config: pytest.Config) -> dict[str, str]:
    """The markers that say what a test needs of the machine, from pyproject.toml."""
    lines = [line.partition(": ") for line in config.getini("markers")]
    return {name: need for name, _, need in lines if need.startswith("needs ")}
