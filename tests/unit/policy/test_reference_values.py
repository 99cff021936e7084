"""What a policy's reference values are computed from: the runtime's manifest, the configuration."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from avow.broker.config import Configuration, schema_rows
from avow.broker.config_file import Overrides, load_configuration
from avow.broker.measured_configuration import (
    UNCOVERED_FILES,
    configuration_digest,
    measured_text,
)
from avow.channel.named_files import FilesReadOnce
from avow.cli.configuration_options import NAMES
from avow.errors import UnavailableError
from avow.sandbox import manifest
from avow.sandbox.manifest import runtime_manifest

ROOT = Path(__file__).resolve().parents[3]


def names_of(requirements: list[str]) -> set[str]:
    """The names of distributions, without versions."""
    return {re.split(r"[<>=!\[; ]", each)[0].lower() for each in requirements}


def test_manifest_names_what_pyproject_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = names_of(project["dependencies"])
    assert {name.lower() for name in manifest.DISTRIBUTIONS} == wanted
    extras = project["optional-dependencies"]
    users = {name for extra, each in extras.items() if extra != "dev" for name in names_of(each)}
    assert {name.lower() for name in manifest.EXTRA_DISTRIBUTIONS} == users


def test_manifest_is_made_once_and_is_its_text() -> None:
    made = runtime_manifest()
    assert made is runtime_manifest()
    lines = made.text.splitlines()
    assert lines == sorted(lines)
    names = [line.split()[0] for line in lines]
    assert {"avow", "python", "wasmtime", "cryptography", "pydantic-core"} <= set(names)
    assert len(set(names)) == len(names)
    assert made.digest == hashlib.sha256(made.text.encode()).digest()
    (wasmtime,) = (each for each in made.entries if each.name == "wasmtime")
    assert wasmtime.version == importlib.metadata.version("wasmtime")
    # Somebody may be editing the checkout; the others stay.
    again = manifest.runtime_manifest.__wrapped__()
    assert [each for each in again.entries if each.name != "avow"] == [
        each for each in made.entries if each.name != "avow"
    ]


def small_package(folder: Path) -> Path:
    """A package like avow's."""
    for name in ("a.py", "room/b.py", "_native/libavow_pump.so", "_native/broker.wasm"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a.py", True),
        ("room/b.py", True),
        ("room/new.py", True),
        ("new.so", True),
        ("_native/libavow_pump.so", True),
        ("_native/broker.wasm", False),  # has a claim of its own
        ("_native/stamp.json", False),
        ("room/__pycache__/b.pyc", False),
        ("testing/pki.py", False),
    ],
)
def test_what_of_the_package_counts(name: str, counts: bool, tmp_path: Path) -> None:
    folder = small_package(tmp_path / "avow")
    before = manifest._digest_of_package(folder)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("changed")
    assert (manifest._digest_of_package(folder) != before) is counts


def test_package_has_the_same_digest_in_every_folder(tmp_path: Path) -> None:
    one = small_package(tmp_path / "one/avow")
    shutil.copytree(one, tmp_path / "two")
    assert manifest._digest_of_package(one) == manifest._digest_of_package(tmp_path / "two")
    (one / "a.py").rename(one / "c.py")
    assert manifest._digest_of_package(one) != manifest._digest_of_package(tmp_path / "two")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution `thing` that the manifest needs, installed in a folder of its own."""
    site = tmp_path / "site"
    files = {
        "thing/__init__.py": "x = 1",
        "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
        "Requires-Dist: absent; extra == 'dev'\nRequires-Dist: absent; python_version < '3'\n",
        "thing-1.0.dist-info/INSTALLER": "pip",
        "thing-1.0.dist-info/RECORD": "thing/__init__.py,,\nthing/__pycache__/x.pyc,,\n"
        "../../bin/thing,,\nthing-1.0.dist-info/METADATA,,\nthing-1.0.dist-info/INSTALLER,,\n"
        "thing-1.0.dist-info/RECORD,,\n",
    }
    for name, content in files.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(manifest, "DISTRIBUTIONS", ("thing",))
    monkeypatch.setattr(manifest, "EXTRA_DISTRIBUTIONS", ("no-such-extra",))
    return site


def test_distributions_by_their_files(installed: Path) -> None:
    (before,) = manifest._distributions()
    assert (before.name, before.version) == ("thing", "1.0")
    (installed / "thing-1.0.dist-info/INSTALLER").write_text("another")
    assert manifest._distributions() == [before]
    (installed / "thing/__init__.py").write_text("x = 2")
    (after,) = manifest._distributions()
    assert after.sha256 != before.sha256


def test_absent_parts_are_refused(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (installed / "thing/__init__.py").unlink()
    with pytest.raises(UnavailableError, match=r"thing/__init__\.py"):
        manifest._distributions()
    (installed / "thing-1.0.dist-info/RECORD").unlink()
    with pytest.raises(UnavailableError, match="list of the files of thing"):
        manifest._distributions()
    monkeypatch.setattr(manifest, "DISTRIBUTIONS", ("no-such-thing",))
    with pytest.raises(UnavailableError, match="no-such-thing"):
        manifest._distributions()


def written(tmp_path: Path, text: str) -> Configuration:
    """The configuration of a file with `text`."""
    path = tmp_path / "avow.toml"
    path.write_text(text)
    return load_configuration(path, Overrides())


TLS = """
[[listeners]]
url = "mqtts://127.0.0.1:8883"
cert = "server.pem"
key = "server.key"
client_ca = "ca.pem"
crl = "ca.crl"
"""


def test_defaults_and_files_that_say_the_same_have_the_same_digest(tmp_path: Path) -> None:
    assert configuration_digest(Configuration()) == configuration_digest(written(tmp_path, ""))
    said = written(tmp_path, '[[listeners]]\nurl = "mqtt://127.0.0.1:1883"\n')
    assert configuration_digest(said) == configuration_digest(Configuration())
    command = load_configuration(None, Overrides(listen=("mqtt://127.0.0.1:1883",)))
    assert configuration_digest(command) == configuration_digest(Configuration())
    assert len(configuration_digest(said)) == 32


@pytest.mark.parametrize(
    "text",
    [
        "allow_anonymous = true",
        "idle_timeout_s = 5",
        "[limits]\nmaximum_qos = 1",
        '[[acl]]\neffect = "allow"\naccess = "both"\npattern = "#"',
        '[[listeners]]\nurl = "mqtt://127.0.0.1:1884"',
        '[log]\nlevel = "debug"',
        "[metrics]\nport = 9100",
        'password_file = "users"',
    ],
)
def test_every_setting_counts(text: str, tmp_path: Path) -> None:
    digest = configuration_digest(written(tmp_path, text))
    assert digest != configuration_digest(Configuration())
    assert digest == configuration_digest(written(tmp_path, text))


def test_files_count_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("first")
    before = configuration_digest(written(tmp_path, TLS))
    for name in ("server.pem", "server.key", "ca.crl"):  # not covered, and need not be there
        (tmp_path / name).write_text("anything")
        assert configuration_digest(written(tmp_path, TLS)) == before
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "ca.pem").rename(moved / "authorities.pem")
    text = TLS.replace("ca.pem", "elsewhere/authorities.pem")
    assert configuration_digest(written(tmp_path, text)) == before
    (moved / "authorities.pem").write_text("second")
    assert configuration_digest(written(tmp_path, text)) != before
    assert configuration_digest(written(tmp_path, text.replace('crl = "ca.crl"', ""))) != before
    with pytest.raises(UnavailableError, match=r"client ca.*ca\.pem"):
        configuration_digest(written(tmp_path, TLS))


def test_of_endorsements_the_roots_count(tmp_path: Path) -> None:
    text = '[attestation]\nendorsements = "endorsements"\n'
    folder = tmp_path / "endorsements/tpm"
    folder.mkdir(parents=True)
    (folder / "maker.pem").write_text("root")
    before = configuration_digest(written(tmp_path, text))
    (folder / "maker.crl").write_text("renewed all the time")
    assert configuration_digest(written(tmp_path, text)) == before
    (folder / "another.pem").write_text("root")
    more = configuration_digest(written(tmp_path, text))
    assert more != before
    (folder / "another.pem").write_text("another root")
    assert configuration_digest(written(tmp_path, text)) not in (before, more)


def test_what_is_measured_is_what_is_used(tmp_path: Path) -> None:
    """A file that changes between two readings must not be measured as one and used as another."""
    (tmp_path / "ca.pem").write_text("measured")
    configuration = written(tmp_path, TLS)
    before = configuration_digest(configuration)
    files = FilesReadOnce()
    used = files(tmp_path / "ca.pem", "client CA")
    (tmp_path / "ca.pem").write_text("changed")
    assert used == b"measured"
    assert configuration_digest(configuration, files) == before
    assert configuration_digest(configuration) != before


def test_folder_counts_by_its_roots_of_trust(tmp_path: Path) -> None:
    folder = tmp_path / "endorsements"
    (folder / "tpm").mkdir(parents=True)
    text = '[attestation]\nendorsements = "endorsements"\n'
    before = configuration_digest(written(tmp_path, text))
    for name in ("tpm/list.crl", "collateral.json"):
        (folder / name).write_text("signed by others")
        assert configuration_digest(written(tmp_path, text)) == before
    (folder / "tpm/root.pem").write_text("a root")
    with_root = configuration_digest(written(tmp_path, text))
    assert with_root != before
    (folder / "tpm/root.pem").write_text("another root")
    assert configuration_digest(written(tmp_path, text)) != with_root


def test_no_secret_reaches_the_digest(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("alice:secret")
    text = measured_text(written(tmp_path, 'password_file = "users"'))
    assert '"password_file":"present"' in text
    assert str(tmp_path) not in text
    assert hashlib.sha256(b"alice:secret").hexdigest() not in text


def test_every_file_of_the_schema_is_decided_about() -> None:
    """A new key that names a file is covered by its contents; secrets have to be named."""
    files = {row.key for row in schema_rows() if "path" in row.type}
    left_out = {"directory"}  # of the store: where it lies says nothing about what is done with it
    assert files - UNCOVERED_FILES - left_out <= {"client_ca", "client_policy", "endorsements"}, (
        "decide whether a public digest over this file is harmless, then name it here"
    )


def test_options_of_the_broker_are_those_of_the_measurement() -> None:
    overrides = {name for name, field in Overrides.__dataclass_fields__.items() if field.init}
    # How the platform is chosen is not measured.
    assert overrides - {"tee"} <= set(NAMES)
