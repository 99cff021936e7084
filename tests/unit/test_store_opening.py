"""A store with two keys: the machine's, which an update changes, and its owner's."""

from __future__ import annotations

from pathlib import Path

import pytest

from avow.cli.store_opening import StoreKeys, is_there, make_store, open_store
from avow.errors import DeniedError, UnavailableError, WrongKeyError
from avow.sealing.keys import KeyBinding, read_key_file, write_key_file
from avow.sealing.store import Store

BINDING = KeyBinding(bytes(32), bytes(32), bytes(32))


def keys(folder: Path, first: str, also: str | None, said: list[str]) -> StoreKeys:
    named = None if also is None else f"file:{folder / also}"
    return StoreKeys(f"file:{folder / first}", named, lambda: BINDING, None, False, said.append)


def made(folder: Path, also: str | None) -> Path:
    """A store with a file in it, by the keys `first` and `also`."""
    store = folder / "store"
    with make_store(store, keys(folder, "first", also, [])) as opened:
        opened.make_file("/files/kept")
    return store


def test_a_new_store_opens_with_both(tmp_path: Path) -> None:
    assert not is_there(tmp_path / "store")
    store = made(tmp_path, "also")
    assert is_there(store)
    for name in ("first", "also"):
        with Store.open(store, read_key_file(tmp_path / name)) as opened:
            assert opened.exists("/files/kept")


def test_the_first_key_is_added_when_it_is_another(tmp_path: Path) -> None:
    store = made(tmp_path, "also")
    write_key_file(tmp_path / "updated", b"\x07" * 32)
    said: list[str] = []
    with open_store(store, keys(tmp_path, "updated", "also", said)) as opened:
        assert opened.exists("/files/kept")
    assert len(said) == 1
    assert "with the second and added the first" in said[0]
    # From now on it opens the store by itself, and nothing has to be said.
    with open_store(store, keys(tmp_path, "updated", "also", said)):
        assert len(said) == 1
    with open_store(store, keys(tmp_path, "updated", None, said)) as opened:
        assert len(opened.root.key_ids) == 3


def test_a_first_key_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    """As a key that a TPM has sealed to what ran before the update."""
    store = made(tmp_path, "also")
    (tmp_path / "first").unlink()
    with open_store(store, keys(tmp_path, "first", "also", [])):
        assert (tmp_path / "first").exists()


def test_without_the_owners_key_nothing_is_added(tmp_path: Path) -> None:
    store = made(tmp_path, "also")
    write_key_file(tmp_path / "stranger", b"\x08" * 32)
    write_key_file(tmp_path / "other", b"\x09" * 32)
    for also in (None, "other"):
        with pytest.raises(WrongKeyError):
            open_store(store, keys(tmp_path, "stranger", also, []))
    with Store.open(store, read_key_file(tmp_path / "also")) as opened:
        assert len(opened.root.key_ids) == 2


def test_what_is_no_matter_of_keys_is_not_tried_again(tmp_path: Path) -> None:
    store = made(tmp_path, "also")
    (tmp_path / "also").chmod(0o644)
    with Store.open(store, read_key_file(tmp_path / "first")):
        pass
    write_key_file(tmp_path / "stranger", b"\x08" * 32)
    with pytest.raises(DeniedError, match="chmod 600"):
        open_store(store, keys(tmp_path, "stranger", "also", []))
    with pytest.raises(UnavailableError):
        open_store(tmp_path / "nowhere", keys(tmp_path, "first", None, []))


@pytest.mark.parametrize("source", ["gramine", "snp", "tpm:sealed"])
def test_a_platforms_key_is_bound_whichever_of_the_two_it_is(tmp_path: Path, source: str) -> None:
    asked: list[str] = []

    def binding() -> KeyBinding:
        asked.append(source)
        return BINDING

    named = StoreKeys(f"file:{tmp_path / 'first'}", source, binding, None, True, asked.append)
    named.of(named.first, made=True)
    assert source not in asked
    # No platform gives one here, under simulation; but it was asked for with the binding.
    with pytest.raises(DeniedError, match="simulated platform"):
        named.of(source, made=False)
    assert source in asked
