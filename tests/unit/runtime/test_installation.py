"""What belongs to an installation, what does not, and how each part is listed."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import pytest

from avow.errors import UnavailableError
from avow.runtime import installation as module
from avow.runtime.installation import InstalledFile, Part, differences, installation, modules


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small avow that is run from its sources, beside a distribution `thing` that it needs."""
    thing = base64.urlsafe_b64encode(hashlib.sha256(b"x = 1").digest()).decode().rstrip("=")
    write(
        tmp_path,
        {
            "avow/__init__.py": "",
            "avow/room/b.py": "",
            "avow/room/__pycache__/b.pyc": "",
            "avow/testing/pki.py": "",
            "avow/_native/broker.wasm": "",
            "avow/_native/libavow_pump.so": "",
            "avow/_native/stamp.json": "",
            "thing/__init__.py": "x = 1",
            "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: Thing\nVersion: 1.0\n"
            "Requires-Dist: absent; extra == 'dev'\n"
            "Requires-Dist: absent; python_version < '3'\n\nName: text\n",
            "thing-1.0.dist-info/INSTALLER": "pip",
            "thing-1.0.dist-info/RECORD": f"thing/__init__.py,sha256={thing},5\n"
            "thing/__pycache__/x.pyc,,\n../../bin/thing,,\n/etc/passwd,,\n"
            "thing-1.0.dist-info/METADATA,,\nthing-1.0.dist-info/INSTALLER,,\n"
            "thing-1.0.dist-info/RECORD,,\n",
        },
    )
    monkeypatch.setattr(module, "DISTRIBUTIONS", ("thing",))
    monkeypatch.setattr(module, "EXTRA_DISTRIBUTIONS", ("no-such-extra",))
    return tmp_path / "avow"


def names(part: Part) -> list[str]:
    return [each.name for each in part.files]


def test_avow_that_is_edited_is_what_lies_there(package: Path) -> None:
    whole = installation(str(package))
    assert whole.editable
    assert whole.avow.version.endswith("+editable")
    # Neither the module, which has a claim of its own, nor mock hardware, nor compiled copies.
    assert sorted(names(whole.avow)) == [
        "avow/__init__.py",
        "avow/_native/libavow_pump.so",
        "avow/room/b.py",
    ]


def test_distribution_is_what_its_installer_listed(package: Path) -> None:
    (thing,) = installation(str(package)).distributions
    assert (thing.name, thing.version) == ("thing", "1.0")
    assert thing.files == (
        InstalledFile(
            "thing/__init__.py",
            str(package.parent / "thing/__init__.py"),
            hashlib.sha256(b"x = 1").digest(),
        ),
        InstalledFile(
            "thing-1.0.dist-info/METADATA",
            str(package.parent / "thing-1.0.dist-info/METADATA"),
            None,
        ),
    )
    assert not list(differences(installation(str(package))))


def test_differences_are_named(package: Path, tmp_path: Path) -> None:
    write(package.parent, {"thing/more.py": "", "thing/deep/er.py": "", "other/x.py": ""})
    (package.parent / "thing/linked").symlink_to(tmp_path)
    (package / "room/c.py").symlink_to(package / "room/b.py")
    found = list(differences(installation(str(package))))
    assert [each.rpartition("/")[2] for each in sorted(found)] == [
        "c.py: expected a file or folder of avow, got a symbolic link",
        "er.py: expected no such file in thing, got one",
        "linked: expected a file or folder of thing, got a symbolic link",
        "more.py: expected no such file in thing, got one",
    ]


def test_what_is_missing_is_said(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package.parent / "thing-1.0.dist-info/RECORD").unlink()
    with pytest.raises(UnavailableError, match=r"list of the files of thing-1\.0"):
        installation(str(package))
    monkeypatch.setattr(module, "DISTRIBUTIONS", ("no-such-thing",))
    with pytest.raises(UnavailableError, match="no-such-thing"):
        installation(str(package))


def test_two_versions_of_one_thing(package: Path) -> None:
    write(package.parent, {"thing-2.0.dist-info/METADATA": "Name: thing\nVersion: 2.0\n"})
    with pytest.raises(UnavailableError, match="one version of thing"):
        installation(str(package))


def test_of_python_links_to_elsewhere_are_left_out(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "python"
    outside = tmp_path / "outside"
    write(outside, {"evil.py": "", "folder/evil.py": ""})
    write(
        root,
        {
            "json/__init__.py": "",
            "lib-dynload/_json.so": "",
            "lib-dynload/_tkinter.so": "",
            "real.py": "",
            "json/__pycache__/x.pyc": "",
            "sourceless.pyc": "",
            "sitecustomize.py": "",
            "site-packages/thing.py": "",
            "test/test_json.py": "",
        },
    )
    (root / "evil.py").symlink_to(outside / "evil.py")
    (root / "folder").symlink_to(outside / "folder")
    (root / "alias.py").symlink_to(root / "real.py")
    monkeypatch.setattr(sys, "_stdlib_dir", str(root))
    python = installation(str(package)).python
    assert names(python) == ["_json.so", "alias.py", "json/__init__.py", "real.py"]


def test_modules_have_the_names_that_they_are_imported_by() -> None:
    suffix = ".abi3.so"
    files = [
        "a/__init__.py",
        "a/b.py",
        f"a/c{suffix}",
        "top.py",
        "a/py.typed",
        "a/x.y.py",
        "d.so.1",
    ]
    part = Part("p", "1", "/p", tuple(InstalledFile(each, f"/p/{each}") for each in files))
    found = {(name, package) for name, package, _ in modules(part)}
    assert found == {("a", True), ("a.b", False), ("a.c", False), ("top", False)}


def test_this_one() -> None:
    whole = installation(str(Path(module.__file__).parent.parent))
    assert whole.editable
    assert not list(differences(whole))
    assert all(os.path.isabs(each.path) for part in whole.parts for each in part.files)


def test_an_environment_is_found_where_site_names_other_folders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Debian's `site` names dist-packages for an environment too until its `main` has run."""

    def debians(prefixes: list[str] | None = None) -> list[str]:
        return [f"{prefix}/local/lib/python3/dist-packages" for prefix in prefixes or []]

    monkeypatch.setattr("site.getsitepackages", debians)
    assert os.path.realpath(sysconfig.get_path("purelib")) in module._roots("/nowhere/avow")
