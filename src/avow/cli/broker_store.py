"""What `avow broker` wires for a store: its key, its anchor, and the journal in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from avow.broker.config import Configuration
from avow.broker.journal import Durability, Journal, open_journal
from avow.broker.prepared import Prepared
from avow.channel.provisioning import STORE_KEY, Provisioned
from avow.cli.anchors import check_anchor, check_begin, open_anchor
from avow.cli.broker_attestation import SIMULATED
from avow.cli.command_error import CommandError, storage_errors
from avow.cli.exit_codes import ExitCode
from avow.cli.store_keys import check_source
from avow.cli.store_opening import StoreKeys, is_there, make_store, open_store
from avow.errors import AvowError, UnavailableError, UntrustedError
from avow.runtime.manifest import runtime_manifest
from avow.sealing.anchor import begin_fresh, open_fresh
from avow.sealing.keys import KeyBinding
from avow.sealing.lateness import Notice


def check_store(configuration: Configuration) -> None:
    """Raises `MalformedError` for a key or an anchor that is none; opens nothing."""
    if configuration.store is not None:
        check_source(configuration.store.key)
        if configuration.store.also_key is not None:
            check_source(configuration.store.also_key)
        check_anchor(configuration.store.anchor)


@contextmanager
def open_state(
    prepared: Prepared,
    module: bytes,
    *,
    provisioned: Provisioned | None,
    accept_rollback: int | None,
    new_store: bool,
    failed: Callable[[AvowError], None],
    late: Callable[[Notice], None],
    note: Callable[[str], None],
) -> Iterator[Journal | None]:
    """The journal, for as long as the broker runs; None where the configuration has no store.

    A store that is not there is made; beside an anchor only with `new_store`. When the broker ends
    in order, the store is committed and its anchor moved on; when an exception ends it, what was
    not committed is dropped. `failed` is told when the anchor cannot be moved on any more, `late`
    when it could not be for now and when it can again, `note` of what is made.
    """
    settings = prepared.configuration.store
    if settings is None:
        yield None
        return
    keys = StoreKeys(
        settings.key,
        settings.also_key,
        lambda: KeyBinding(module, prepared.digest, runtime_manifest().digest),
        _store_key(provisioned),
        prepared.configuration.attestation.tee == SIMULATED,
        note,
    )
    made = not is_there(settings.directory)
    check_begin(settings.anchor, settings.directory, made=made, new_store=new_store)
    with (make_store if made else open_store)(settings.directory, keys) as store:
        with _anchor_errors():
            anchor = open_anchor(settings.anchor, store)
            interval_s = settings.anchor_interval_s
            if made and accept_rollback is None:
                fresh = begin_fresh(store, anchor, interval_s=interval_s)
            else:
                fresh = open_fresh(
                    store, anchor, accept_rollback=accept_rollback, interval_s=interval_s
                )
        journal = open_journal(
            store,
            Durability[settings.durability.upper()],
            settings.interval_ms,
            commit=fresh.commit if fresh.every_commit else None,
        )
        with fresh.in_background(failed, told=late):
            yield journal
        fresh.close()


@contextmanager
def _anchor_errors() -> Iterator[None]:
    """An anchor that does not answer, or for which somebody else does, is no mistake of whoever
    wrote the configuration: it may answer tomorrow."""
    try:
        with storage_errors():
            yield
    except (UnavailableError, UntrustedError) as error:
        raise CommandError(str(error), ExitCode.FAILED) from error


def _store_key(provisioned: Provisioned | None) -> bytes | None:
    return None if provisioned is None else provisioned.keys.get(STORE_KEY)
