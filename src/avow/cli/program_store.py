"""What `avow run` wires for a store: its key, its anchor, and the compiled code in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from avow.cli.anchors import anchor_options, check_begin, open_anchor
from avow.cli.command_error import configuration_errors, storage_errors
from avow.cli.store_keys import key_option
from avow.cli.store_opening import ALSO_KEY_HELP, StoreKeys, is_there, make_store, open_store
from avow.errors import AvowError
from avow.runtime.manifest import runtime_manifest
from avow.sandbox.compiled_cache import CompiledCache
from avow.sealing.anchor import Freshness, begin_fresh, open_fresh
from avow.sealing.keys import KeyBinding
from avow.sealing.store import Store

Command = TypeVar("Command", bound=Callable[..., Any])


def store_options(command: Command) -> Command:
    """Adds the options; `--store` itself is one of `app_options`."""
    also = click.option("--also-key", metavar="SOURCE", help=ALSO_KEY_HELP)
    return key_option(also(anchor_options(command)))


class NoStore:
    """A program without a store: nothing is kept, and its code is compiled at each start."""

    store = None
    cache = None
    keep_up = None

    def commit(self) -> None:
        """Nothing to do."""

    def keep(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    @contextmanager
    def anchored(self, failed: Callable[[AvowError], None]) -> Iterator[None]:
        """Nothing to do."""
        yield


class ProgramStore:
    """An open store with its anchor. `note` is told what its owner should know."""

    def __init__(self, store: Store, fresh: Freshness, note: Callable[[str], None]) -> None:
        self.store = store
        self.cache = CompiledCache(store, note)
        # Where the anchor moves with every commit: for those that the program asks for.
        self.keep_up = fresh.keep_up if fresh.every_commit else None
        self._fresh = fresh
        self._note = note

    def commit(self) -> None:
        """Make durable what is written up to now."""
        self.store.commit()

    def keep(self) -> None:
        """The same with the anchor, but leave the store open: a program may still be using it."""
        self._fresh.close()
        self.store.commit()

    def close(self) -> None:
        """Commit, move the anchor on, and close."""
        try:
            self._fresh.close()
        finally:
            self.store.close()

    @contextmanager
    def anchored(self, failed: Callable[[AvowError], None]) -> Iterator[None]:
        """In here the anchor moves on with the store; `failed` is told when it cannot."""
        with self._fresh.in_background(failed, told=lambda notice: self._note(str(notice))):
            yield


def open_program_store(
    folder: Path | None,
    module: bytes,
    configuration: bytes,
    given: dict[str, Any],
    note: Callable[[str], None],
    *,
    provisioned: bytes | None = None,
) -> ProgramStore | NoStore:
    """The store in `folder`, made if it is not there, for a program.

    `module` and `configuration` are digests (32 bytes), to which keys of platforms are bound;
    `provisioned` is the owner key that the owner has handed over.
    Raises an `AvowError`.
    """
    if folder is None:
        return NoStore()
    made = not is_there(folder)
    with configuration_errors(), storage_errors():
        check_begin(given["anchor"], folder, made=made, new_store=given["new_store"])
    keys = StoreKeys(
        given["key"],
        given["also_key"],
        lambda: KeyBinding(module, configuration, runtime_manifest().digest),
        provisioned,
        given["tee"] == "simulated",
        note,
    )
    with configuration_errors(), storage_errors():
        store = (make_store if made else open_store)(folder, keys)
    try:
        return ProgramStore(store, _fresh(store, made, given), note)
    except AvowError:
        store.abandon()
        raise


def _fresh(store: Store, made: bool, given: dict[str, Any]) -> Freshness:
    anchor = open_anchor(given["anchor"], store)
    interval_s, accepted = given["anchor_interval_s"], given["accept_rollback"]
    if made and accepted is None:
        return begin_fresh(store, anchor, interval_s=interval_s)
    return open_fresh(store, anchor, accept_rollback=accepted, interval_s=interval_s)
