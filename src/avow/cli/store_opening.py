"""How `avow broker` and `avow run` open their store, or make it, with the keys that are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from avow.cli.store_keys import key_of_store, sealed_file
from avow.errors import AvowError, DeniedError, InUseError, StorageError, UnavailableError
from avow.sealing.keys import KeyBinding, is_bound
from avow.sealing.library import KEYS_MAX
from avow.sealing.store import CONTAINER, Store

ALSO_KEY_HELP = (
    "A second key of the store, the owner's. A new store opens with both. If the first key "
    "no longer opens the store, after an update or on another machine, avow opens it with "
    "this one and adds the first key again."
)


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """Where the keys of a store come from; `also` is None for one key only. See `key_of_store`.

    `binding` is called for a platform's key only: the runtime's manifest takes a while.
    """

    first: str
    also: str | None
    binding: Callable[[], KeyBinding]
    provisioned: bytes | None = field(repr=False)
    simulated: bool
    say: Callable[[str], None]

    def of(self, source: str, *, made: bool, renewed: bool = False) -> bytes:
        """The key (32 bytes) of one of them."""
        return key_of_store(
            source,
            self.binding() if is_bound(source) else None,
            made=made,
            renewed=renewed,
            provisioned=self.provisioned,
            simulated=self.simulated,
            say=self.say,
        )


def is_there(folder: Path) -> bool:
    """Whether there is a store in `folder`."""
    return (folder / CONTAINER).exists()


def make_store(folder: Path, keys: StoreKeys) -> Store:
    """A new store, open. Raises an `AvowError`."""
    made_files: list[Path] = []
    try:
        # The owner's first: what is wrong with it was written by somebody who can mend it.
        owned = [] if keys.also is None else [_new(keys, keys.also, made_files)]
        made = Store.create(folder, [_new(keys, keys.first, made_files), *owned])
    except AvowError:
        # It would be in the way of the next attempt, and opens nothing.
        for path in made_files:
            path.unlink(missing_ok=True)
        raise
    keys.say(f"made a new store in {folder}")
    return made


def _new(keys: StoreKeys, source: str, sealed: list[Path]) -> bytes:
    """A key for a new store; `sealed` gets the file that was made for it by a TPM."""
    key = keys.of(source, made=True)
    path = sealed_file(source)
    if path is not None:
        sealed.append(path)
    return key


def open_store(folder: Path, keys: StoreKeys) -> Store:
    """The store, by its first key, or else by the other one, which adds the first.

    Raises an `AvowError`.
    """
    if keys.also is None:
        return Store.open(folder, keys.of(keys.first, made=False))
    try:
        return Store.open(folder, keys.of(keys.first, made=False))
    except (InUseError, StorageError):
        # With another key it would be the same.
        raise
    except (DeniedError, UnavailableError) as error:
        refusal = error
    store = Store.open(folder, keys.of(keys.also, made=False))
    try:
        if len(store.root.key_ids) >= KEYS_MAX:
            raise UnavailableError(
                f"expected room for the first key beside the {KEYS_MAX} that open the "
                f"store, got none; remove unused ones with `avow store keys {folder} "
                "--remove ID`"
            )
        store.add_key(keys.of(keys.first, made=False, renewed=True))
    except AvowError:
        store.abandon()
        raise
    keys.say(
        f"the first key did not open the store ({refusal}); opened it with the second "
        "and added the first"
    )
    return store
