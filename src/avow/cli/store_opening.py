"""How `avow broker` and `avow run` open their store, or make it, with the keys that are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from avow.cli.store_keys import is_bound, key_of_store
from avow.errors import AvowError, DeniedError, UnavailableError
from avow.sealing.keys import KeyBinding
from avow.sealing.store import CONTAINER, Store

ALSO_KEY_HELP = (
    "Another key of the store, its owner's: a new store opens with it too. Where the first one "
    "does not open the store, since avow was updated or the machine is another, this one does, and "
    "the first one is added."
)


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """Where the keys of a store come from; `also` is None for one key only. See `key_of_store`.

    `binding` is called for a platform's key only: the runtime's manifest takes a while.
    """

    first: str
    also: str | None
    binding: Callable[[], KeyBinding]
    provisioned: bytes | None
    simulated: bool
    say: Callable[[str], None]

    def of(self, source: str, *, made: bool) -> bytes:
        """The key (32 bytes) of one of them."""
        return key_of_store(
            source,
            self.binding() if is_bound(source) else None,
            made=made,
            provisioned=self.provisioned,
            simulated=self.simulated,
            say=self.say,
        )


def is_there(folder: Path) -> bool:
    """Whether there is a store in `folder`."""
    return (folder / CONTAINER).exists()


def make_store(folder: Path, keys: StoreKeys) -> Store:
    """A new store, open. Raises an `AvowError`."""
    sources = [keys.first] if keys.also is None else [keys.first, keys.also]
    made = Store.create(folder, [keys.of(source, made=True) for source in sources])
    keys.say(f"made a new store in {folder}")
    return made


def open_store(folder: Path, keys: StoreKeys) -> Store:
    """The store, by its first key, or else by the other one, which adds the first.

    Raises an `AvowError`.
    """
    if keys.also is None:
        return Store.open(folder, keys.of(keys.first, made=False))
    try:
        return Store.open(folder, keys.of(keys.first, made=False))
    except (DeniedError, UnavailableError) as error:
        refusal = error
    store = Store.open(folder, keys.of(keys.also, made=False))
    try:
        store.add_key(keys.of(keys.first, made=True))
    except AvowError:
        store.abandon()
        raise
    keys.say(f"added the first key to the store, which did not open with it ({refusal})")
    return store
