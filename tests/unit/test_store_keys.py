"""`--key` and `--anchor`: what their texts mean, and what they refuse."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avow.cli import store_keys
from avow.cli.anchors import check_anchor, open_anchor
from avow.errors import DamagedError, DeniedError, MalformedError, UnavailableError
from avow.sealing.anchor import NOTE_PATH
from avow.sealing.keys import KeyBinding, bind_key, read_key_file
from avow.sealing.witness_client import WitnessAnchor
from avow.tee.sgx import seal_key
from avow.tee.snp import derived_key
from tests.unit.sealing.anchor_world import Disk
from tests.unit.sealing.identified_store import IdentifiedStore

BINDING = KeyBinding(b"\x01" * 32, b"\x02" * 32, b"\x03" * 32)
KEY = bytes(range(32))
WITNESS_KEY = base64.b64encode(b"\x09" * 32).decode()
NAME = "000b" + "ab" * 32


def test_a_file_is_the_owners_key(tmp_path: Path) -> None:
    """Used as it is: the owner reads the store with it wherever they are."""
    source = f"file:{tmp_path / 'owner.key'}"
    key = store_keys.new_owner_key(source)
    assert store_keys.owner_key(source) == key == read_key_file(tmp_path / "owner.key")
    assert store_keys.owner_key(source, BINDING, simulated=True) == key
    with pytest.raises(UnavailableError, match="never replaced"):
        store_keys.new_owner_key(source)


def test_keys_are_in_no_core_dump(tmp_path: Path) -> None:
    """In a process of its own: what is switched off there stays so."""
    program = (
        "import ctypes, resource, sys; from avow.cli import store_keys;"
        "getattr(store_keys, sys.argv[1])(sys.argv[2]);"
        "print(ctypes.CDLL(None).prctl(3), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    for function in ("new_owner_key", "owner_key"):
        command = [sys.executable, "-c", program, function, f"file:{tmp_path / 'owner.key'}"]
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
        assert done.stdout == b"0 (0, 0)\n"


def test_new_keys_differ(tmp_path: Path) -> None:
    keys = {store_keys.new_owner_key(f"file:{tmp_path / str(number)}") for number in range(3)}
    assert len(keys) == 3


def test_provisioned() -> None:
    assert store_keys.owner_key("provisioned", provisioned=KEY) == KEY
    with pytest.raises(UnavailableError, match="`avow provision`"):
        store_keys.owner_key("provisioned")
    for wrong in (b"", KEY[:31], KEY + b"\0", bytes(32)):
        with pytest.raises(MalformedError, match="32 bytes, not all zero"):
            store_keys.owner_key("provisioned", provisioned=wrong)


@pytest.mark.parametrize("source", ["gramine", "gramine:mrsigner", "snp", "tpm:store.tpm"])
def test_no_keys_of_a_simulated_platform(source: str) -> None:
    with pytest.raises(DeniedError, match="simulated platform"):
        store_keys.owner_key(source, BINDING, simulated=True)
    with pytest.raises(DeniedError, match="simulated platform"):
        store_keys.new_owner_key(source, BINDING, simulated=True)


@pytest.mark.parametrize("source", ["gramine", "gramine:mrsigner", "snp", "tpm:store.tpm"])
def test_a_platforms_key_without_what_runs(source: str) -> None:
    with pytest.raises(MalformedError, match="bound to the broker or program that it was made for"):
        store_keys.owner_key(source)


def test_platform_keys_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def seal(files: object, *, of_signer: bool = False) -> bytes:
        asked.append(of_signer)
        return KEY[:16]

    monkeypatch.setattr(seal_key, "read_seal_key", seal)
    monkeypatch.setattr(derived_key, "read_derived_key", lambda: KEY)
    assert store_keys.owner_key("snp", BINDING) == bind_key(KEY, BINDING)
    assert store_keys.owner_key("gramine", BINDING) == bind_key(KEY[:16], BINDING)
    assert store_keys.owner_key("gramine:mrsigner", BINDING) == bind_key(KEY[:16], BINDING)
    assert asked == [False, True]


@pytest.mark.parametrize(
    "source",
    [
        *(
            "",
            "file:",
            "tpm:",
            "tpm:#00",
            f"tpm:x#{NAME}0",
            f"tpm:x#{NAME[:-2]}",
            "gramine:mrenclave",
        ),
        *("tpm:x@", "tpm:x@24", "tpm:x@0,", "tpm:x@,1", "tpm:x@0,,1", "tpm:x@007", "tpm:x@\u0661"),
        *("snp:", "FILE:x", "provisioned:x", "owner.key", "https://x"),
    ],
)
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(MalformedError, match="as the source of a key"):
        store_keys.owner_key(source, BINDING, provisioned=KEY)
    store_keys.check_source(f"tpm:x@0,2,23#{NAME}")


def test_a_sealed_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        store_keys.owner_key(f"tpm:{tmp_path / 'absent'}", BINDING)
    # Nobody writes to it: to wait for that would be to hang.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnavailableError, match="a regular file as the sealed key"):
        store_keys.owner_key(f"tpm:{tmp_path / 'pipe'}", BINDING)
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(MalformedError, match="a TPM sealed for avow"):
        store_keys.owner_key(f"tpm:{tmp_path / 'other'}", BINDING)


@pytest.mark.parametrize(
    "text",
    [
        *("none", "tpm:0x01800042", "tpm:0x01BFFFFE", f"tpm:0x01800000#{NAME}"),
        *(f"witness:192.0.2.7:7420#{WITNESS_KEY}", f"witness:[::1]:7420#{WITNESS_KEY}"),
    ],
)
def test_anchors(text: str) -> None:
    check_anchor(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "None", "tpm", "tpm:01800042", "tpm:0x1800042", "tpm:0x01BFFFFF", "tpm:0x017FFFFF"),
        *("tpm:0x01800042#", "tpm:0x01800042#00", f"tpm:0x01800042#{NAME}ff", "tpm:0x01800042 "),
        *("witness:", "witness:host:1", "witness:host:1#", f"witness:host#{WITNESS_KEY}"),
        *(f"witness:host:1#{WITNESS_KEY[:-1]}", f"witness:host:1#{WITNESS_KEY}#x", "ntp:x"),
    ],
)
def test_anchors_that_are_none(text: str) -> None:
    with pytest.raises(MalformedError):
        check_anchor(text)
    with pytest.raises(MalformedError):
        open_anchor(text, IdentifiedStore(Disk()))


def test_no_anchor_leaves_nothing_behind() -> None:
    store = IdentifiedStore(Disk())
    assert open_anchor("none", store) is None
    assert store.files == {}


def test_a_stores_secret_is_made_once() -> None:
    """And stays: what speaks to the anchor today has to speak to it tomorrow."""
    store = IdentifiedStore(Disk())
    text = f"witness:192.0.2.7:7420#{WITNESS_KEY}"
    names = []
    for _ in range(2):
        anchor = open_anchor(text, store)
        assert isinstance(anchor, WitnessAnchor)
        names.append(anchor._store)
    assert names[0] == names[1]
    assert len(store.files[NOTE_PATH]) == 104
    other = open_anchor(text, IdentifiedStore(Disk()))
    assert isinstance(other, WitnessAnchor)
    assert other._store.key != names[0].key
    store.files[NOTE_PATH] = store.files[NOTE_PATH][:103]
    with pytest.raises(DamagedError, match="104 bytes in /anchor"):
        open_anchor(text, store)
