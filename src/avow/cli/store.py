"""`avow store`: an owner looks into a sealed store, fills it, checks it and changes its keys."""

from __future__ import annotations

import hmac
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from stat import S_ISREG
from typing import Any, Final

import click

from avow.cli.anchors import NONE, anchored_change, check_anchor, check_newest
from avow.cli.command_error import (
    CommandError,
    configuration_errors,
    operation_errors,
    storage_errors,
)
from avow.cli.exit_codes import ExitCode
from avow.cli.folder import Folder
from avow.cli.interrupts import signals_end_at_once, sigterm_interrupts
from avow.cli.progress import Progress, progress
from avow.cli.standard_streams import InputFile, drop_output
from avow.cli.store_export import (
    PIECE_BYTES,
    export_directory,
    export_tar,
    joined,
    pieces,
    walk,
)
from avow.cli.store_keys import key_file, new_owner_key, owner_key
from avow.errors import counted
from avow.sealing.library import KEY_ID_BYTES, KEYS_MAX
from avow.sealing.store import CONTAINER, Root, Stat, Store

_NS_PER_S: Final = 1_000_000_000
_STANDARD_STREAM: Final = "-"
_STANDARD_OUTPUT: Final = 1

_directory = click.argument("directory", type=Folder(), metavar="STORE")
_key = click.option(
    "--key",
    "source",
    required=True,
    metavar="SOURCE",
    help="The owner's key, as file:PATH.",
)
_anchor = click.option(
    "--anchor",
    "anchor_text",
    metavar="ANCHOR",
    help="The store's anchor, if it has one. avow asks it before the change and updates it "
    "afterwards. With none, avow does neither, and somebody can undo the change unnoticed "
    "until the next start.",
)
_new_key_option = click.option(
    "--new-key",
    "new_sources",
    multiple=True,
    metavar="file:PATH",
    help="The same with a new random key, which is written to a new file with mode 0600.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line.")
Decorated = Callable[..., Any]


class _InPath(click.ParamType[str]):
    """An absolute path inside of a store."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text.startswith("/"):
            self.fail(
                f"expected a path in the store such as /files/a, got {text!r}; start it with /",
                param,
                ctx,
            )
        parts = [part for part in text.split("/") if part]
        if {".", ".."} & set(parts):
            self.fail(
                f"expected a path without . and .., got {text!r}; write it without them", param, ctx
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"expected a path in UTF-8, got {os.fsencode(text)!r}", param, ctx)
        return "/" + "/".join(parts)


_IN_STORE: Final = _InPath()


@click.group()
def store() -> None:
    """Inspect, fill and check a sealed store, and change its keys.

    STORE is its folder. Only one process at a time can open it. A change happens completely or not
    at all.
    """


def _opening_key(source: str) -> bytes:
    with configuration_errors():
        return owner_key(source)


def _new_key(source: str) -> bytes:
    with configuration_errors():
        return new_owner_key(source)


@contextmanager
def _new_keys(directory: Path, sources: Sequence[str]) -> Iterator[list[bytes]]:
    """New keys for a store that is made in here. Without the store their files go again, since they
    open nothing and would be in the way of the next attempt."""
    made: list[Path] = []
    keys: list[bytes] = []
    try:
        for source in sources:
            keys.append(_new_key(source))
            path = key_file(source)
            if path is not None:
                made.append(path)
        yield keys
    finally:
        if not (directory / CONTAINER).exists():
            for path in made:
                path.unlink(missing_ok=True)


@contextmanager
def _reporting() -> Iterator[None]:
    """Errors become sentences and exit codes; SIGTERM ends a command as Ctrl-C does."""
    try:
        with operation_errors(), storage_errors(), sigterm_interrupts():
            yield
    except BrokenPipeError:
        drop_output()


@contextmanager
def _reading(directory: Path, source: str) -> Iterator[Store]:
    """The store, opened so that nothing in it changes."""
    with _reporting(), Store.open(directory, _opening_key(source), read_only=True) as opened:
        yield opened


@contextmanager
def _changing(directory: Path, source: str, anchor_text: str | None) -> Iterator[Store]:
    """The store, opened for changes; they are committed at the end, or none of them is."""
    if anchor_text is not None:
        with configuration_errors():
            check_anchor(anchor_text)
    with (
        _reporting(),
        Store.open(directory, _opening_key(source)) as opened,
        anchored_change(anchor_text, opened),
    ):
        yield opened


def readable(name: str) -> str:
    """A name for a terminal: what would move its cursor is written as an escape sequence."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )


def _at(ns: int) -> str:
    return datetime.fromtimestamp(ns / _NS_PER_S, UTC).isoformat(timespec="seconds")


def _print_json(**fields: Any) -> None:
    click.echo(json.dumps(fields, ensure_ascii=True))


def _print_root(root: Root, as_json: bool, **more: Any) -> None:
    fields = {
        "sequence": root.sequence,
        "root_hash": root.digest.hex(),
        "anchor": root.anchor,
        "store_id": root.store_id.hex(),
        "slots": root.slots,
        "free_slots": root.free_slots,
        "damaged_copies": root.damaged_copies,
        **more,
    }
    if as_json:
        _print_json(**fields)
        return
    for name, value in fields.items():
        click.echo(f"{name.replace('_', ' ')}: {value}")


@store.command()
@_directory
@click.option(
    "--key",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="A key that opens the store from now on. May be repeated, up to eight.",
)
@_new_key_option
def init(directory: Path, sources: tuple[str, ...], new_sources: tuple[str, ...]) -> int:
    """Make a new, empty store in the folder STORE.

    \b
    avow store init ./data --new-key file:owner.key
    """
    if not sources and not new_sources:
        raise click.UsageError(
            "expected a key for the new store, got none; give --key SOURCE or --new-key file:PATH"
        )
    if (directory / CONTAINER).exists():
        # Before a key is made that would seem to belong to the store that is there.
        raise CommandError(
            f"expected no store in {directory}, got one; use that one, or name another folder",
            ExitCode.FAILED,
        )
    with _reporting():
        keys = [_opening_key(source) for source in sources]
        with _new_keys(directory, new_sources) as new, Store.create(directory, keys + new) as made:
            root = made.root
    click.echo(f"made the store {root.store_id.hex()} in {directory}")
    return ExitCode.OK


@store.command()
@_directory
@click.argument("path", type=_IN_STORE, default="/")
@_key
@click.option("-R", "--recursive", is_flag=True, help="Everything below, with whole paths.")
@click.option("-l", "--long", "long_lines", is_flag=True, help="Kind, size and time as well.")
@_json
def ls(
    directory: Path,
    path: str,
    source: str,
    recursive: bool,
    long_lines: bool,
    as_json: bool,
) -> int:
    """List the names below PATH.

    Unprintable characters in names appear as escape sequences; --json prints them as they are.
    """
    with _reading(directory, source) as opened:
        for place, stat in _listed(opened, path, recursive):
            if as_json:
                _print_json(
                    path=place,
                    kind=stat.kind,
                    size_bytes=stat.size_bytes,
                    links=stat.links,
                    modified_ns=stat.modified_ns,
                )
                continue
            name = place if recursive else place.rpartition("/")[2] or place
            shown = readable(name) + ("/" if stat.kind == "directory" and name != "/" else "")
            if long_lines:
                shown = f"{stat.kind:9} {stat.size_bytes:>14} {_at(stat.modified_ns)} {shown}"
            click.echo(shown)
    return ExitCode.OK


def _listed(opened: Store, path: str, recursive: bool) -> Iterator[tuple[str, Stat]]:
    if recursive:
        yield from walk(opened, path)
    elif opened.stat(path).kind != "directory":
        yield path, opened.stat(path)
    else:
        for entry in sorted(opened.listdir(path), key=lambda each: each.name):
            yield joined(path, entry.name), entry.stat


@store.command()
@_directory
@click.argument("path", type=_IN_STORE)
@_key
def cat(directory: Path, path: str, source: str) -> int:
    """Write the file PATH to standard output.

    It writes only verified bytes. If a block is damaged, it stops there, with exit code 105.
    """
    with _reading(directory, source) as opened:
        stat = _file(opened, path)
        # Not on a terminal, nor for a pager, which may wait: it would write into their screen.
        waiting = progress("reading", stat.size_bytes) if _goes_to_file() else nullcontext()
        with waiting as shown:
            for piece in pieces(opened, path, stat.size_bytes):
                sys.stdout.buffer.write(piece)
                if shown is not None:
                    shown.add(len(piece))
        sys.stdout.buffer.flush()
    return ExitCode.OK


def _goes_to_file() -> bool:
    return S_ISREG(os.fstat(_STANDARD_OUTPUT).st_mode)


def _file(opened: Store, path: str) -> Stat:
    stat = opened.stat(path)
    if stat.kind == "directory":
        raise CommandError(
            f"expected a file at {path}, got a directory; `avow store ls` lists what is in it",
            ExitCode.FAILED,
        )
    return stat


@store.command()
@_directory
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@click.argument("path", type=_IN_STORE)
@_key
@_anchor
def put(directory: Path, file: str, path: str, source: str, anchor_text: str | None) -> int:
    """Write FILE, or standard input when it is -, to PATH in the store.

    It makes missing folders. It is one commit: PATH has the new content or keeps the old.
    """
    if file == _STANDARD_STREAM:
        stream = BufferedReader(InputFile(sys.stdin.fileno(), "standard input"))
    else:
        stream = BufferedReader(InputFile(file, file))
    # Nothing for a pipe.
    total = os.fstat(stream.fileno()).st_size or None
    with (
        stream,
        _changing(directory, source, anchor_text) as opened,
        progress("writing", total) as shown,
    ):
        _replace(opened, path, stream, shown)
    return ExitCode.OK


def _replace(opened: Store, path: str, stream: BufferedIOBase, shown: Progress) -> None:
    parent = path.rpartition("/")[0]
    if parent and not opened.exists(parent):
        opened.make_directory(parent, parents=True)
    if opened.exists(path):
        _file(opened, path)
        # A file of its own: other names of the one that is there keep what they have.
        opened.remove(path)
    opened.make_file(path)
    offset = 0
    # `read` would go on until it has all it was asked for, deaf to Ctrl-C between two pieces.
    while piece := stream.read1(PIECE_BYTES):
        opened.write(path, piece, offset)
        offset += len(piece)
        shown.add(len(piece))


@store.command()
@_directory
@click.argument("target", metavar="TARGET")
@_key
@click.option(
    "--path",
    type=_IN_STORE,
    default="/",
    show_default=True,
    help="What to export, with everything below it.",
)
def export(directory: Path, target: str, source: str, path: str) -> int:
    """Write the store unencrypted to the new folder TARGET, or for - as tar to stdout.

    TARGET must not exist. It appears only when it is complete, and only you can read its files.
    """
    if target == _STANDARD_STREAM and sys.stdout.isatty():
        raise CommandError(
            "expected standard output to be a file or a pipe, got a terminal; "
            "write `avow store export STORE - ... > store.tar`",
            ExitCode.USAGE,
        )
    if target != _STANDARD_STREAM and os.path.lexists(target):
        raise CommandError(
            f"expected nothing at {target}, got something; name another folder",
            ExitCode.FAILED,
        )
    with _reading(directory, source) as opened:
        total = sum(stat.size_bytes for _, stat in walk(opened, path) if stat.kind == "file")
        with progress("exporting", total) as shown:
            if target == _STANDARD_STREAM:
                export_tar(opened, path, sys.stdout.buffer, shown.add)
                sys.stdout.buffer.flush()
            else:
                count = export_directory(opened, path, Path(target), shown.add)
                click.echo(f"wrote {counted(count, 'file')} to {target}")
    return ExitCode.OK


@store.command()
@_directory
@_key
@click.option(
    "--anchor",
    "anchor_text",
    default=NONE,
    show_default=True,
    metavar="ANCHOR",
    help="Ask this anchor whether the store is in its newest state: tpm:0x01800042 or "
    "witness:HOST:PORT#KEY. It is not updated.",
)
@_json
def check(directory: Path, source: str, anchor_text: str, as_json: bool) -> int:
    """Verify every block, and name the file and block of everything that is damaged.

    The exit code is 105 for damage, and 107 if the anchor knows a newer state. The root hash stands
    for every byte.
    """
    with configuration_errors():
        check_anchor(anchor_text)
    with _reading(directory, source) as opened:
        with progress("checking"), signals_end_at_once():
            found = list(opened.check())
        for damage in found:
            if as_json:
                _print_json(path=damage.path, what=damage.what)
            else:
                click.echo(f"damaged: {readable(str(damage))}")
        damages = len(found)
        _print_root(opened.root, as_json, damages=damages)
        if not damages:
            check_newest(anchor_text, opened)
    if damages:
        raise CommandError(
            f"expected every block as it was committed, got {damages} with damage; restore "
            "these files from a backup",
            ExitCode.DAMAGED,
        )
    return ExitCode.OK


@store.command()
@_directory
@_key
@click.option(
    "--to",
    "to_sources",
    multiple=True,
    metavar="SOURCE",
    help="A key that opens the store afterwards; default: that of --key. May be repeated.",
)
@_new_key_option
@_anchor
def rotate(
    directory: Path,
    source: str,
    to_sources: tuple[str, ...],
    new_sources: tuple[str, ...],
    anchor_text: str | None,
) -> int:
    """Change the keys, and seal new data under new ones.

    Afterwards only the keys of --to and --new-key open the store. Old data keeps its old seal until
    `avow store compact --rewrite` seals it again.

    \b
    avow store rotate ./data --key file:old.key --new-key file:new.key
    """
    with _changing(directory, source, anchor_text) as opened:
        keys = [_opening_key(each) for each in to_sources]
        keys += [_new_key(each) for each in new_sources]
        opened.rotate(keys or [_opening_key(source)])
        root = opened.commit()
    keys_now = counted(len(root.key_ids), "key")
    click.echo(f"rotated: the store has {keys_now}, from sequence {root.sequence}")
    return ExitCode.OK


@store.command()
@_directory
@_key
@click.option(
    "--rewrite",
    is_flag=True,
    help="Seal every block again, and drop the keys from before the last rotation.",
)
@_anchor
def compact(directory: Path, source: str, rewrite: bool, anchor_text: str | None) -> int:
    """Return the space of removed files to the disk."""
    with _changing(directory, source, anchor_text) as opened:
        before = opened.root.slots
        # A store survives that, as it survives a crash.
        with progress("compacting"), signals_end_at_once():
            opened.compact(rewrite=rewrite)
            root = opened.commit()
    click.echo(f"compacted: {before} blocks before, {root.slots} now")
    return ExitCode.OK


@store.command()
@_directory
@_key
@click.option(
    "--add",
    "added",
    multiple=True,
    metavar="SOURCE",
    help="Let this key open the store too. May be repeated.",
)
@click.option(
    "--remove", "removed", multiple=True, metavar="ID", help="Refuse the key with this id."
)
@_anchor
@_json
def keys(
    directory: Path,
    source: str,
    added: tuple[str, ...],
    removed: tuple[str, ...],
    anchor_text: str | None,
    as_json: bool,
) -> int:
    """Add or remove keys that open the store, and list the ids of all.

    The id of the key given with --key is marked. Removing a key does not keep its owner out for
    good: for that, run `avow store rotate` as well.
    """
    ids = [_key_id(text) for text in removed]
    if added or ids:
        with _changing(directory, source, anchor_text) as opened:
            _change_keys(opened, added, ids)
            root = opened.commit()
    else:
        with _reading(directory, source) as opened:
            root = opened.root
    own = _id_of(_opening_key(source), root.store_id)
    for key_id in root.key_ids:
        if as_json:
            _print_json(id=key_id.hex(), given=key_id == own)
        else:
            click.echo(f"{key_id.hex()}{' (of --key)' if key_id == own else ''}")
    return ExitCode.OK


def _id_of(key: bytes, store_id: bytes) -> bytes:
    """What a store calls a key (docs/spec/sealed-store.md, Root record)."""
    return hmac.digest(key, b"avow store key id v1" + store_id, "sha256")[:KEY_ID_BYTES]


def _change_keys(opened: Store, added: Sequence[str], removed: Sequence[bytes]) -> None:
    """All of it or nothing: each is a commit of its own, so all are judged before."""
    keys = [_opening_key(source) for source in added]
    there = list(opened.root.key_ids)
    for source, key in zip(added, keys, strict=True):
        key_id = _id_of(key, opened.root.store_id)
        if key_id in there:
            raise _refused_keys(
                f"a key that does not open the store yet, got {source}, which does; leave it out"
            )
        there.append(key_id)
    if len(there) > KEYS_MAX:
        raise _refused_keys(
            f"at most {KEYS_MAX} keys of a store, got {len(there)}; remove some first"
        )
    for key_id in removed:
        if key_id not in there:
            raise _refused_keys(
                f"the id of a key of the store, got {key_id.hex()}; `avow store keys` lists them"
            )
        there.remove(key_id)
    if not there:
        raise _refused_keys(
            "a key to be left that opens the store, got an order to remove the last one; add "
            "another one with --add"
        )
    for key in keys:
        opened.add_key(key)
    for key_id in removed:
        opened.remove_key(key_id)


def _refused_keys(sentence: str) -> CommandError:
    return CommandError(f"expected {sentence}", ExitCode.FAILED)


def _key_id(text: str) -> bytes:
    try:
        key_id = bytes.fromhex(text)
    except ValueError:
        key_id = b""
    if len(key_id) != KEY_ID_BYTES:
        raise click.UsageError(
            f"expected 16 hexadecimal digits as `avow store keys` prints them, got {text!r}"
        )
    return key_id
