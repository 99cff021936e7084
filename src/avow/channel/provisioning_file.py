"""The owner's file of secrets, in TOML: what is handed over, by name, and where it comes from.

    version = 1
    owner_key = "owner.pem"

    [keys]
    store = "file:store.key"

    [files]
    "tls.crt" = "file:server.pem"
    "tls.key" = "file:server.key"

A source is `file:PATH` (beside the secrets' file), `hex:DIGITS` or, for files, `text:...`. No error
shows a value. docs/spec/provisioning.md, section "The owner's file".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from avow.channel.named_files import Read, read_named_file, read_named_text
from avow.channel.provisioning_messages import KEY_BYTES, Secrets, check_name, encode
from avow.errors import MalformedError

_TABLES: Final = ("keys", "files")
_KNOWN: Final = frozenset({"version", "owner_key", *_TABLES})
_PUBLIC = re.compile(
    rb"\s*(-----BEGIN (CERTIFICATE|X509 CRL)-----[A-Za-z0-9+/=\s]*-----END \2-----\s*)+"
)
_HEX = re.compile(r"([0-9a-fA-F]{2})*")


@dataclass(frozen=True, slots=True)
class SecretsFile:
    """What is handed over, the file of the owner's key if it is named, and what to keep secret.

    `sources`: the files that were read, but for certificates and revocation lists: those are
    public.
    """

    secrets: Secrets
    owner_key: Path | None
    sources: tuple[Path, ...]


def load_secrets(path: Path, *, read: Read = read_named_file) -> SecretsFile:
    """Raises `UnavailableError` or `MalformedError` that names the file and the entry."""
    try:
        content = tomllib.loads(read_named_text(path, "secrets", read=read))
    except tomllib.TOMLDecodeError as error:
        raise MalformedError(f"expected TOML in {path}, got {error}; correct that line") from error
    return _Reading(path, read).secrets_file(content)


class _Reading:
    """One file while it is read."""

    def __init__(self, path: Path, read: Read) -> None:
        self._path = path
        self._read = read
        self._sources: list[Path] = [path]

    def secrets_file(self, content: dict[str, Any]) -> SecretsFile:
        unknown = sorted(set(content) - _KNOWN)
        if unknown:
            raise self._wrong(f"the keys {', '.join(sorted(_KNOWN))}", f"{unknown[0]!r}")
        if type(content.get("version")) is not int or content["version"] != 1:
            raise self._wrong("version = 1", "another or none")
        owner_key = content.get("owner_key")
        if owner_key is not None and not isinstance(owner_key, str):
            raise self._wrong("the path of a file as owner_key", "another type")
        secrets = Secrets(
            {name: self._key(name, text) for name, text in self._entries(content, "keys")},
            {name: self._file(name, text) for name, text in self._entries(content, "files")},
        )
        encode(secrets)  # refuses here what the node would refuse
        return SecretsFile(
            secrets,
            None if owner_key is None else self._path.parent / owner_key,
            tuple(self._sources),
        )

    def _entries(self, content: dict[str, Any], table: str) -> Iterator[tuple[str, str]]:
        entries = content.get(table, {})
        if not isinstance(entries, dict):
            raise self._wrong(f"a table [{table}]", "something else")
        for name, text in entries.items():
            check_name(name)
            if not isinstance(text, str):
                raise self._wrong(f"a source in quotes for {name!r}", "another type")
            yield name, text

    def _key(self, name: str, text: str) -> bytes:
        kind, _, rest = text.partition(":")
        if kind == "file":
            content = self._referenced(rest, "key")
            rest = content.decode("ascii", "replace").strip()
        elif kind != "hex":
            raise self._wrong(f"file:PATH or hex:DIGITS for the key {name!r}", "something else")
        if len(rest) != 2 * KEY_BYTES or not _HEX.fullmatch(rest):
            raise self._wrong(
                f"{2 * KEY_BYTES} hexadecimal digits for the key {name!r}", "something else"
            )
        return bytes.fromhex(rest)

    def _file(self, name: str, text: str) -> bytes:
        kind, colon, rest = text.partition(":")
        if kind == "file":
            return self._referenced(rest, "provisioned")
        if kind == "text" and colon:
            return rest.encode()
        if kind == "hex" and colon and _HEX.fullmatch(rest):
            return bytes.fromhex(rest)
        raise self._wrong(f"file:PATH, text:... or hex:DIGITS for {name!r}", "something else")

    def _referenced(self, text: str, what: str) -> bytes:
        path = self._path.parent / text
        content = self._read(path, what)
        if not _PUBLIC.fullmatch(content):
            self._sources.append(path)
        return content

    def _wrong(self, expected: str, actual: str) -> MalformedError:
        return MalformedError(f"expected {expected} in {self._path}, got {actual}; correct it")
