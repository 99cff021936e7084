"""What is kept: stores, their keys and their witness."""

from __future__ import annotations

import pytest
from wasmtime import wat2wasm

from avow.cli.anchors import check_anchor
from avow.cli.store_keys import owner_key
from tests.pages.running import DOCS, Reader

# A program of the reader's own.
PROGRAM = wat2wasm('(module (memory (export "memory") 1) (func (export "_start")))')


def test_sealed_stores(reader: Reader) -> None:
    printed = reader.run((DOCS / "how-to/sealed-store.md").read_text())
    assert any("damages: 0\n" in each for each in printed)
    assert any("exit code 104\nthe first line\n" in each for each in printed)
    assert any("notes.txt" in each for each in printed)


@pytest.mark.openssl
def test_store_keys(reader: Reader) -> None:
    reader.run((DOCS / "how-to/store-keys.md").read_text())
    assert len(owner_key(f"file:{reader.place / 'work/owner.key'}")) == 32


def test_durable_broker(reader: Reader) -> None:
    assert len(reader.run((DOCS / "how-to/durable-broker.md").read_text())) == 2


@pytest.mark.openssl
def test_witness(reader: Reader) -> None:
    reader = Reader(reader.checkout, reader.place, {"app.wasm": bytes(PROGRAM)})
    printed = reader.run((DOCS / "how-to/witness.md").read_text())
    check_anchor(printed[1].strip())
