"""What is loaded is compared with what was measured; what a process keeps of its caller."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import click
import pytest

from avow import start
from avow.cli import cli
from avow.errors import MalformedError, UntrustedError
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.origin import DOCUMENT_BINDER
from avow.evidence.report_data import ReportData, batch
from avow.runtime import boot
from avow.runtime.boot import CODE, identity, make_image
from avow.runtime.manifest import PACKAGE, code_digest
from avow.runtime.mappings import code_mappings
from avow.runtime.process import ProcessCheck, wrong_mappings, wrong_modules
from avow.tee.measured_process import CHECK_EVERY_S, OfMeasuredProcess
from avow.tee.platforms import open_attester

MAPS = b"""\
55d0c4a00000-55d0c4a01000 r--p 00000000 fe:00 131 /usr/bin/python3.11
55d0c4a01000-55d0c4a02000 r-xp 00001000 fe:00 131 /usr/bin/python3.11
7f0000000000-7f0000001000 r-xp 00000000 00:00 0
7f0000001000-7f0000002000 r-xp 00000000 fe:00 77 /tmp/a b.so
7f0000003000-7f0000004000 r-xp 00000000 fe:00 78 /tmp/gone.so (deleted)
7f0000005000-7f0000006000 r--p 00000000 fe:00 79 /usr/lib/locale/C.utf8/LC_CTYPE
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0 [vdso]
"""


def test_files_that_are_mapped_as_code() -> None:
    """proc_pid_maps(5)."""
    assert list(code_mappings(MAPS)) == [
        ("/usr/bin/python3.11", 131),
        ("/tmp/a b.so", 77),
        ("/tmp/gone.so (deleted)", 78),
    ]
    with pytest.raises(MalformedError):
        list(code_mappings(b"nonsense\n"))


def test_a_mapped_file_has_to_be_the_measured_one(tmp_path: Path) -> None:
    library = tmp_path / "a.so"
    library.write_bytes(b"code")
    was = identity(str(library))
    assert was is not None
    files = {str(library): was}
    assert not list(wrong_mappings([(str(library), was[1])], files))
    assert list(wrong_mappings([(f"{library} (deleted)", was[1])], files))
    assert list(wrong_mappings([("/other.so", 1)], files)) == ["/other.so (mapped)"]
    if os.major(library.stat().st_dev) != 0:
        assert list(wrong_mappings([(str(library), was[1] + 1)], files))


def test_a_module_has_to_be_of_a_measured_file() -> None:
    own, native, inside = ModuleType("own"), ModuleType("native"), ModuleType("inside")
    own.__file__ = "/p/own.py"
    assert not list(wrong_modules([own, native, inside], {"/p/own.py": None}))
    own.__file__ = "/tmp/evil.py"
    assert list(wrong_modules([own], {"/p/own.py": None})) == ["/tmp/evil.py (the module own)"]


def everything() -> dict[str, Any]:
    """As if all that this process of the tests has loaded had been measured."""
    with open("/proc/self/maps", "rb") as file:
        paths = {path for path, _ in code_mappings(file.read())}
    paths |= {path for m in list(sys.modules.values()) if (path := getattr(m, "__file__", None))}
    return {path: identity(path) for path in paths}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ProcessCheck:
    finder = object()
    this = SimpleNamespace(finder=finder)
    made = ProcessCheck(cast(Any, this), everything())
    monkeypatch.setattr(ProcessCheck, "_finders", lambda self: iter(()))
    return made


def test_a_finding_stays(check: ProcessCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    check.files()
    evil = ModuleType("evil")
    evil.__file__ = "/tmp/evil.py"
    monkeypatch.setitem(sys.modules, "evil", evil)
    with pytest.raises(UntrustedError, match=r"/tmp/evil\.py"):
        check()
    monkeypatch.delitem(sys.modules, "evil")
    with pytest.raises(UntrustedError, match=r"/tmp/evil\.py"):
        check.files()


def test_a_measured_file_that_changes(check: ProcessCheck, tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    path.write_text("root")
    cast(dict[str, Any], check._files)[str(path)] = identity(str(path))
    check.files()
    path.write_text("toor")
    with pytest.raises(UntrustedError, match=r"a\.pem"):
        check.files()


def test_another_finder_is_found() -> None:
    made = ProcessCheck(cast(Any, SimpleNamespace(finder=object())), everything())
    with pytest.raises(UntrustedError, match="another finder"):
        made()


def report_data() -> ReportData:
    workload = Workload(bytes(32), bytes(32), bytes(32), bytes(32))
    claims = Claims(bytes(32), Role.DOCUMENT, workload, key=b"", issued_at_s=0)
    return batch([(claims, DOCUMENT_BINDER)])[0]


def test_an_attester_asks_first_and_not_too_often() -> None:
    asked: list[str] = []
    now = [0.0]
    simulated = open_attester("simulated", {})
    check = SimpleNamespace(files=lambda: asked.append("files"))
    attester = OfMeasuredProcess(simulated, cast(ProcessCheck, check), lambda: now[0])
    assert (attester.platform, attester.answers_at_once) == ("simulated", True)
    attester.measure(Workload(bytes(32), bytes(32), bytes(32), bytes(32)))
    assert asked == ["files"]
    for _ in range(3):
        attester.quote(report_data())
    assert asked == ["files"] * 2
    now[0] = CHECK_EVERY_S
    attester.quote(report_data())
    assert asked == ["files"] * 3


def test_no_evidence_after_a_finding() -> None:
    def refuse() -> None:
        raise UntrustedError("other code")

    check = cast(ProcessCheck, SimpleNamespace(files=refuse))
    attester = OfMeasuredProcess(open_attester("simulated", {}), check)
    with pytest.raises(UntrustedError):
        attester.measure(Workload(bytes(32), bytes(32), bytes(32), bytes(32)))
    with pytest.raises(UntrustedError):
        attester.quote(report_data())


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        (["broker"], True),
        (["run", "x.wasm"], True),
        (["attest"], True),
        (["measure", "runtime"], True),
        (["store", "ls"], True),
        (["witness"], True),
        (["sub", "-t", "a", "--tee", "auto"], True),
        (["proxy", "--tee=tpm"], True),
        (["--", "broker"], True),
        (["--", "attest", "--tee", "auto"], True),
        (["sub", "-t", "a"], False),
        (["verify", "x"], False),
        (["--", "sub", "-t", "a"], False),
        (["--help"], False),
        ([], False),
    ],
)
def test_which_commands_are_measured(arguments: list[str], measured: bool) -> None:
    assert start.measured(arguments) is measured


def test_no_option_before_a_command_has_a_value() -> None:
    """Or its value would be taken for the command."""
    assert all(isinstance(each, click.Option) and each.is_flag for each in cli.params)


def test_what_is_kept_of_an_environment() -> None:
    kept = {"HOME": "/root", "LC_ALL": "C", "AVOW_TPM_TCTI": "device", "NOTIFY_SOCKET": "@x"}
    brought = {"LD_PRELOAD": "x", "PYTHONPATH": "x", "OPENSSL_CONF": "x", "SECRET": "x"}
    assert start.clean({**kept, **brought}) == kept


def test_the_same_sources_give_the_same_code() -> None:
    """Though every process hashes its strings with another seed."""
    first, second = (make_image(PACKAGE, keep=False) for _ in range(2))
    assert code_digest(first) == code_digest(second)
    code = [name for name, entry in first.modules.items() if entry[0] == CODE]
    assert {"avow.cli", "avow.runtime.boot", "pydantic.main", "json"} <= set(code)
    assert "avow.testing.pki" not in first.modules
    assert first.code("avow.errors").co_filename.endswith("src/avow/errors.py")


def test_nothing_but_the_binary_is_needed_to_begin() -> None:
    """What boot imports before its finder is in place comes from no folder."""
    script = (
        "import sys\nbefore = set(sys.modules)\n"
        f"exec(open({boot.__file__!r}).read(), {{'__name__': 'boot'}})\n"
        "for name in set(sys.modules) - before:\n"
        "    print(name, getattr(sys.modules[name].__spec__, 'origin', None))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    ways = {line.split(" ", 1)[1] for line in done.stdout.splitlines()}
    assert ways <= {"built-in", "frozen"}, done.stdout
