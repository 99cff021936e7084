"""After a store is closed none of its keys is in the memory of the process, its stack included.

Another process looks: it has the keys from the second reader. The owner's key is in Python's
memory, which nobody can wipe, so that one is not looked for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from avow.sealing.store import Store
from avow.testing.store_reader import StoreReader, root_records, xaes_key
from avow.testing.store_simulation import KEY

WORK = """
import ctypes, pathlib, sys
from avow.sealing import library
from avow.sealing.store import Store
from avow.testing.store_simulation import KEY
wide, end = sys.argv[2:]
library.load().avow_vault_use_wide(wide == "wide")
store = Store.open(pathlib.Path(sys.argv[1]), KEY)
store.write("/files/a", b"more" * 9000)
store.commit()
store.read("/files/a")
assert not list(store.check())
if end == "rewrite":
    store.compact(rewrite=True)
print("open", flush=True)
sys.stdin.readline()
(store.abandon if end == "abandon" else store.close)()
print("closed", flush=True)
sys.stdin.readline()
"""


def keys_of(folder: Path) -> dict[bytes, str]:
    """Everything that opens something of the store, but for the owner's key."""
    image = (folder / "store.avow").read_bytes()
    reader = StoreReader(image, KEY)
    store_id = reader.root.store_id
    slot = HKDF(SHA256(), 32, salt=store_id, info=b"avow store key slot v1").derive(KEY)
    found = {slot: "the key of a slot"}
    for record in root_records(image, KEY):
        found[record.ring_key] = "the ring key"
        found[xaes_key(record.ring_key, record.ring_nonce)] = "the keyring's key"
        for nonce, _ in record.key_slots:
            found[xaes_key(slot, nonce)] = "the derived key of a slot"
        for key in record.data_keys:
            found[key] = "a data key"
    for use in reader.uses:
        found[xaes_key(use.key, use.nonce)] = "the key of blocks"
    return found


def in_memory(process: int, keys: dict[bytes, str]) -> set[str]:
    found = set()
    with (
        Path(f"/proc/{process}/maps").open(encoding="ascii") as maps,
        Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory,
    ):
        for line in maps:
            places, access, *rest = line.split()
            # What cannot be written to was there before the keys were; the rest is the kernel's.
            if not access.startswith("rw") or rest[-1] in {"[vvar]", "[vvar_vclock]"}:
                continue
            start, end = (int(place, 16) for place in places.split("-"))
            memory.seek(start)
            content = memory.read(end - start)
            found |= {what for key, what in keys.items() if key[:16] in content}
    return found


@pytest.mark.parametrize("wide", ["wide", "narrow"])
@pytest.mark.parametrize("end", ["close", "abandon", "rewrite"])
def test_keys_are_gone(tmp_path: Path, wide: str, end: str) -> None:
    folder = tmp_path / "s"
    with Store.create(folder, [KEY]) as store:
        store.make_file("/files/a")
        store.write("/files/a", b"x" * 500_000)
    keys = keys_of(folder)
    command = [sys.executable, "-c", WORK, str(folder), wide, end]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        keys |= keys_of(folder)
        assert in_memory(child.pid, keys) >= {"the ring key", "a data key", "the key of blocks"}
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "closed\n"
        keys |= keys_of(folder)
        found = in_memory(child.pid, keys)
        child.stdin.close()
    assert found == set()
