"""What a policy's reference values are computed from: the runtime's manifest, the configuration."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
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
from avow.runtime.installation import DISTRIBUTIONS, EXTRA_DISTRIBUTIONS
from avow.runtime.manifest import runtime_manifest

ROOT = Path(__file__).resolve().parents[3]


def names_of(requirements: list[str]) -> set[str]:
    """The names of distributions, without versions."""
    return {re.split(r"[<>=!\[; ]", each)[0].lower() for each in requirements}


def test_manifest_names_what_pyproject_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = names_of(project["dependencies"])
    assert {name.lower() for name in DISTRIBUTIONS} == wanted
    extras = project["optional-dependencies"]
    users = {name for extra, each in extras.items() if extra != "dev" for name in names_of(each)}
    assert {name.lower() for name in EXTRA_DISTRIBUTIONS} == users


def test_manifest_is_made_once_and_is_its_text() -> None:
    made = runtime_manifest()
    assert made is runtime_manifest()
    lines = made.text.splitlines()
    assert lines == sorted(lines)
    names = [line.split()[0] for line in lines]
    assert {"avow", "code", "interpreter", "python", "wasmtime", "pydantic-core"} <= set(names)
    assert "library:libc.so.6" in names
    assert len(set(names)) == len(names)
    assert made.digest == hashlib.sha256(made.text.encode()).digest()
    (wasmtime,) = (each for each in made.entries if each.name == "wasmtime")
    assert wasmtime.version == importlib.metadata.version("wasmtime")
    # The tests run an avow that is edited, and it says so.
    (own,) = (each for each in made.entries if each.name == "avow")
    assert own.version.endswith("+editable")


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
