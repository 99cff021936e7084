"""`--anchor`: from its text to an anchor of one store."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import click

from avow.errors import MalformedError, RolledBackError, UnavailableError
from avow.sealing.anchor import (
    INTERVAL_S,
    Anchor,
    AnchoredStore,
    CounterAnchor,
    Note,
    Root,
    Step,
    check_fresh,
    open_fresh,
    read_note,
)
from avow.sealing.witness import parse_public_key, store_key
from avow.sealing.witness_client import WitnessAnchor, parse_endpoint

if TYPE_CHECKING:
    from avow.tee.tpm.device import TpmDevice

Command = TypeVar("Command", bound=Callable[..., Any])

NONE: Final = "none"
INTERVAL_S_MAX: Final = 86_400
NEW_STORE_HELP: Final = (
    "Use once: make a new store although an anchor is named. Without this option avow does not "
    "start when the store is missing, because somebody may have removed it."
)
_TPM: Final = re.compile(r"tpm:0x([0-9a-fA-F]{8})(?:#([0-9a-f]{68}))?")
_WITNESS: Final = "witness:"


class IdentifiedRoot(Root, Protocol):
    """What is needed of `avow.sealing.store.Root`."""

    @property
    def store_id(self) -> bytes:
        """The store's id (16 bytes)."""


class IdentifiedStore(AnchoredStore, Protocol):
    """What is needed of `avow.sealing.store.Store`."""

    @property
    def root(self) -> IdentifiedRoot:
        """The newest commit."""


def anchor_options(command: Command) -> Command:
    """Adds --anchor, --anchor-interval and --accept-rollback to a command that opens a store; it
    gets them as `anchor`, `anchor_interval_s` and `accept_rollback`."""
    options: tuple[Callable[[Command], Command], ...] = (
        click.option(
            "--anchor",
            default=NONE,
            show_default=True,
            metavar="ANCHOR",
            help="What remembers the store's newest state: tpm:0x01800042 (a counter in the TPM), "
            "witness:HOST:PORT#KEY (see `avow witness`), or none.",
        ),
        click.option(
            "--anchor-interval",
            "anchor_interval_s",
            type=click.FloatRange(0, INTERVAL_S_MAX),
            callback=_a_number,
            default=INTERVAL_S,
            show_default=True,
            metavar="SECONDS",
            help="How often commits update the anchor. With 0, every commit does.",
        ),
        click.option("--new-store", is_flag=True, help=NEW_STORE_HELP),
        click.option(
            "--accept-rollback",
            type=click.IntRange(1),
            metavar="SEQUENCE",
            help="Use once: open the store although it is older than its anchor says. The refusal "
            "prints SEQUENCE. Everything after it is lost.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _a_number(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """What is not a number is neither too small nor too large, and nobody can wait for it."""
    if math.isnan(value):
        raise click.BadParameter(f"expected seconds, got {value}", context, parameter)
    return value


def check_begin(text: str, folder: Path, *, made: bool, new_store: bool) -> None:
    """Whether a store may be `made` that goes with the anchor `text`, or was to be.

    Raises `RolledBackError`: whoever has the disk can take a store away, and an anchor does not
    know the one that would be begun in its place, so its owner has to say that it shall be. And
    `MalformedError` where a store is there: what is left in a start script would say it always.
    """
    if made and text != NONE and not new_store:
        raise RolledBackError(
            f"expected the store that goes with {text.partition('#')[0]} in {folder}, got none; "
            "restore it, or make a new one with `--new-store`"
        )
    if new_store and not made:
        raise MalformedError(
            f"expected no store in {folder}, as --new-store is given, got one; leave "
            "--new-store out"
        )


def check_anchor(text: str) -> None:
    """Raises `MalformedError` for a text that names no anchor; opens nothing."""
    if text == NONE:
        return
    if text.startswith(_WITNESS):
        _parse_witness(text)
    else:
        _parse_tpm(text)


def open_anchor(
    text: str, store: IdentifiedStore, *, device: TpmDevice | None = None
) -> Anchor | None:
    """The anchor that `text` names, for an open store; None for "none".

    The store's secret is made where it has none yet, and is durable with the next commit. `device`
    is an open TPM, where the process has one already. Raises `MalformedError`, `UnavailableError`
    where the TPM is not there, and `DamagedError`. A witness is asked later.
    """
    if text == NONE:
        return None
    if text.startswith(_WITNESS):
        endpoint, public_key = _parse_witness(text)
        store_id = store.root.store_id
        key = store_key(read_note(store).secret, store_id)
        return WitnessAnchor(endpoint, public_key, key, store_id)
    index, parent = _parse_tpm(text)
    from avow.tee.tpm.attester import TpmSettings
    from avow.tee.tpm.device import TpmDevice
    from avow.tee.tpm.nv_counter import NvCounter, counter_authorisation

    own = device is None
    if device is None:
        settings = TpmSettings.from_environment(os.environ)
        device = TpmDevice(settings.tcti, settings.timeout_s)
    try:
        authorisation = counter_authorisation(read_note(store).secret, store.root.store_id)
        counter = NvCounter(device, index, authorisation, parent=parent, closes_device=own)
    except BaseException:
        if own:
            device.close()
        raise
    return CounterAnchor(counter, f"the TPM's counter {index:#010x}")


@contextmanager
def anchored_change(text: str | None, store: IdentifiedStore) -> Iterator[None]:
    """In here an owner's command changes a store: the anchor is asked before, and moved on after.

    A store that has an anchor is not changed without it, unless `text` says "none". Raises
    `RolledBackError`, and as `open_anchor` and `Anchor` do.
    """
    if text is None and store.root.anchor != 0:
        raise RolledBackError(
            f"expected the anchor of a store that has one (its value is {store.root.anchor}), "
            "got none; name it with `--anchor`, or say `--anchor none`: then somebody can undo "
            "this change unnoticed until the next start updates the anchor"
        )
    anchor = open_anchor(NONE if text is None else text, store)
    if anchor is None:
        yield
        return
    with closing(anchor):
        with _elsewhere():
            fresh = open_fresh(store, anchor)
        yield
        try:
            fresh.close()
        except UnavailableError as error:
            raise UnavailableError(
                "expected the anchor to record the change, which the store has already made, "
                f"got: {error}; until the next start updates the anchor, somebody can undo the "
                "change unnoticed"
            ) from error


def check_newest(text: str, store: IdentifiedStore) -> None:
    """Whether `store`, which may be open for reading only, is what the anchor `text` remembers.

    Raises `RolledBackError`, and as `open_anchor` and `Anchor` do.
    """
    if text == NONE:
        return
    with _elsewhere():
        if store.root.anchor == 0:
            # It has no key to ask with, nor may one be made here.
            check_fresh(store.root, Note(b"", Step(0, b"", b"")), None, text.partition("#")[0])
        anchor = open_anchor(text, store)
        assert anchor is not None
        with closing(anchor):
            check_fresh(store.root, read_note(store), anchor.read(), anchor.name)


@contextmanager
def _elsewhere() -> Iterator[None]:
    """What refusals name is an option of the commands that go on from a store, not of these."""
    try:
        yield
    except RolledBackError as error:
        if "--accept-rollback" not in str(error):
            raise
        raise RolledBackError(f"{error}, an option of `avow run` and `avow broker`") from error


def _parse_witness(text: str) -> tuple[Any, bytes]:
    place, mark, key = text.removeprefix(_WITNESS).partition("#")
    if not mark:
        raise _malformed(text)
    return parse_endpoint(place), parse_public_key(key)


def _parse_tpm(text: str) -> tuple[int, bytes | None]:
    from avow.tee.tpm.nv_counter import INDICES

    match = _TPM.fullmatch(text)
    if match is None or int(match[1], 16) not in INDICES:
        raise _malformed(text)
    return int(match[1], 16), None if match[2] is None else bytes.fromhex(match[2])


def _malformed(text: str) -> MalformedError:
    return MalformedError(
        f"expected an anchor such as tpm:0x01800042, witness:192.0.2.7:7420#KEY or none, got "
        f"{text[:100]!r}; `avow witness` prints the one to use"
    )
