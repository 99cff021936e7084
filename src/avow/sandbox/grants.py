"""What a program in the sandbox may use. Nothing that is not written here is there for it.

The grants and how they are written are docs/reference/grants.md. Standard input, output and error,
the arguments and random bytes are always there.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from avow.errors import MalformedError

CLOCKS: Final = ("realtime", "monotonic")
KINDS: Final[Mapping[str, str]] = {
    "sealed": "sealed:/GUEST[=FOLDER][:ro]",
    "plain": "plain:/GUEST=HOST_FOLDER",
    "provisioned": "provisioned:/GUEST",
    "env": "env:NAME[=VALUE]",
    "clock": "clock:realtime or clock:monotonic",
    "tcp": "tcp:HOST:PORT",
    "listen": "listen:ADDRESS:PORT",
    "evidence": "evidence",
}

_PREFIX: Final = b"avow app configuration v1\n"
_READ_ONLY: Final = ":ro"
_NAME_BYTES_MAX: Final = 255
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")


@dataclass(frozen=True, slots=True)
class SealedFolder:
    """A folder of the sealed store below /files (`folder`, "" for all of it), seen at `guest`."""

    guest: str
    folder: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class PlainFolder:
    """A folder of the host that can be read at `guest`. The host chooses what is in it."""

    guest: str
    host: Path


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable; without a value it is the one that avow was started with."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (a name or an address, IPv6 without brackets) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Grants:
    """All that a program may use, in the order in which it was granted. `provisioned`: where in its
    file system the files of its owner are."""

    sealed: tuple[SealedFolder, ...] = ()
    plain: tuple[PlainFolder, ...] = ()
    variables: tuple[Variable, ...] = ()
    clocks: frozenset[str] = field(default_factory=frozenset)
    tcp: tuple[Endpoint, ...] = ()
    listen: tuple[Endpoint, ...] = ()
    evidence: bool = False
    provisioned: tuple[str, ...] = ()

    def joined(self, other: Grants) -> Grants:
        """Both. Raises `MalformedError` when they say two things about one name."""
        return _checked(
            Grants(
                _once(self.sealed + other.sealed),
                _once(self.plain + other.plain),
                _once(self.variables + other.variables),
                self.clocks | other.clocks,
                _once(self.tcp + other.tcp),
                _once(self.listen + other.listen),
                self.evidence or other.evidence,
                _once(self.provisioned + other.provisioned),
            )
        )

    def measured(self) -> dict[str, Any]:
        """What of them is part of the measured configuration.

        Where on the host a plain folder lies, and what value an inherited variable has, is the
        host's business: only that it is granted is measured. The order is not.
        """
        measured: dict[str, Any] = {
            "sealed": sorted(
                [s.guest, s.folder, "ro" if s.read_only else "rw"] for s in self.sealed
            ),
            "plain": sorted(each.guest for each in self.plain),
            "env": sorted(
                [v.name] if v.value is None else [v.name, v.value] for v in self.variables
            ),
            "clock": sorted(self.clocks),
            "tcp": sorted(map(str, self.tcp)),
            "listen": sorted(map(str, self.listen)),
            "evidence": self.evidence,
        }
        # Later than the others, and without it the digests stay what they were.
        if self.provisioned:
            measured["provisioned"] = sorted(self.provisioned)
        return measured


ALL_OF_THE_STORE: Final = SealedFolder("/", "", read_only=False)
"""What `--store` grants when no sealed folder is named."""


def parse_grants(texts: Iterable[str], *, folder: Path) -> Grants:
    """The grants that are written in `texts`; relative host folders are below `folder`.

    Raises `MalformedError` that quotes the text that is wrong.
    """
    grants = Grants()
    for text in texts:
        try:
            grants = grants.joined(_parse(text, folder))
        except MalformedError as error:
            raise MalformedError(f"grant `{text}`: {error}") from error
    return grants


def configuration_digest(
    arguments: Iterable[str],
    grants: Grants,
    limits: Mapping[str, Any],
    *,
    owner: str | None = None,
    store: Mapping[str, str | None] | None = None,
    endorsements: Mapping[str, str] | None = None,
) -> bytes:
    """The SHA-256 (32 bytes) of a program's effective configuration.

    It is over `avow app configuration v1`, a line feed, and JSON with sorted keys and without
    spaces. `arguments` are all that the program sees, the first one too; `limits` by name;
    `owner` is who may hand it secrets, as text, where somebody may; `store` who can open its store
    and what remembers how new that is, where it has one; `endorsements` the files of roots and keys
    that its judgements trust, by name in their folder, with what is in them (`sha256:…`).
    """
    content: dict[str, Any] = {
        "args": list(arguments),
        "grants": grants.measured(),
        "limits": dict(limits),
    }
    for name, value in (("owner", owner), ("store", store), ("endorsements", endorsements)):
        if value is not None:
            content[name] = dict(value) if isinstance(value, Mapping) else value
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(_PREFIX + text.encode("utf-8", "surrogateescape")).digest()


def _parse(text: str, folder: Path) -> Grants:
    kind, colon, rest = text.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        advice = f"did you mean `{near[0]}`?" if near else "correct it"
        raise MalformedError(
            f"expected one of {', '.join(KINDS)} at its beginning, got `{kind}`; {advice}"
        )
    if bool(colon) == (kind == "evidence") or "\0" in text:
        raise _wrong(kind, text)
    match kind:
        case "sealed":
            return Grants(sealed=(_sealed(rest),))
        case "plain":
            guest, equals, host = rest.partition("=")
            if not equals or not host:
                raise _wrong(kind, text)
            return Grants(plain=(PlainFolder(_guest_path(guest), folder / host),))
        case "provisioned":
            return Grants(provisioned=(_guest_path(rest),))
        case "env":
            name, equals, value = rest.partition("=")
            if not name:
                raise _wrong(kind, text)
            return Grants(variables=(Variable(name, value if equals else None),))
        case "clock":
            if rest not in CLOCKS:
                raise _wrong(kind, text)
            return Grants(clocks=frozenset({rest}))
        case "tcp":
            return Grants(tcp=(_endpoint(kind, rest),))
        case "listen":
            return Grants(listen=(_endpoint(kind, rest),))
        case _:
            return Grants(evidence=True)


def _wrong(kind: str, got: str) -> MalformedError:
    return MalformedError(f"expected {KINDS[kind]}, got `{got}`; correct it")


def _sealed(text: str) -> SealedFolder:
    read_only = text.endswith(_READ_ONLY)
    rest = text.removesuffix(_READ_ONLY)
    if rest[-3:].lower() in (_READ_ONLY, ":rw"):
        # Otherwise it would be a part of the name, and `:RO` a folder that can be written to.
        raise _wrong("sealed", text)
    guest, equals, inner = rest.partition("=")
    path = _guest_path(guest)
    if not equals:
        return SealedFolder(path, path.strip("/"), read_only)
    return SealedFolder(path, _guest_path("/" + inner.removeprefix("/")).strip("/"), read_only)


def _guest_path(text: str) -> str:
    """An absolute path that says where it leads: no `.`, `..`, or empty names."""
    names = text.split("/")[1:]
    if not text.startswith("/") or (text != "/" and any(n in ("", ".", "..") for n in names)):
        raise MalformedError(
            f"expected an absolute path without `.`, `..` and empty names, got `{text}`; correct it"
        )
    try:
        sizes_bytes = [len(name.encode()) for name in names]
    except UnicodeEncodeError as error:
        raise MalformedError(
            f"expected a path in UTF-8, got {text.encode('utf-8', 'surrogateescape')!r}; correct it"
        ) from error
    if any(size_bytes > _NAME_BYTES_MAX for size_bytes in sizes_bytes):
        raise MalformedError(
            f"expected names of at most {_NAME_BYTES_MAX} bytes, got a longer one; shorten it"
        )
    return text


def _endpoint(kind: str, text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch("[0-9]{1,5}", port):
        raise _wrong(kind, text)
    if not 1 <= int(port) <= 0xFFFF:
        raise MalformedError(f"expected a port from 1 to 65535, got {port}; correct it")
    return Endpoint(host.strip("[]"), int(port))


def _once(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(entries))


def _checked(grants: Grants) -> Grants:
    for what, names in (
        (
            "path",
            [s.guest for s in grants.sealed]
            + [p.guest for p in grants.plain]
            + [*grants.provisioned],
        ),
        ("variable", [each.name for each in grants.variables]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise MalformedError(
                    f"expected one grant for the {what} {name}, got two that differ; remove one"
                )
    return grants
