"""The digest of a configuration, which is the claim `configuration` of a broker's evidence.

It is the SHA-256 of `avow configuration v1`, a line feed, and the effective configuration as JSON
with sorted keys and without spaces: defaults filled in, command line and file joined, so that two
ways to say the same thing have the same digest. A file that decides what a broker does stands there
by the SHA-256 of what is in it, wherever it lies. Not covered, but for whether they are there:

- `cert`, `key`: renewed all the time; the evidence names the key of its connection itself.
- `password_file`, `psk_file`: secrets, at which a public digest would let anybody guess.
- `crl`: signed by an authority of `client_ca`, and a new one comes out every few days.

Where one of these is provisioned, that stands there with its name: the owner has handed it over to
this configuration, and the disk has no say in it. The owner stands there as well.

Of the folder `attestation.endorsements` the digest covers every *.pem file, by its name in there:
these are the roots and keys that are trusted. What vendors sign (collateral, revocation lists) is
renewed all the time.

`attestation.tee` is left out: the evidence proves the platform, however it was chosen. Of
the table `store` the folder is left out, and of `key`, `also_key` and `anchor` stands there what
`avow.sealing.measured_sources` says: not where bytes lie, but who else can open the store, and
whose answers decide whether an old one is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from avow.broker.config import Configuration
from avow.channel.named_files import Read, read_named_file
from avow.channel.provisioning import provisioned_name
from avow.sealing.measured_sources import measured_anchor, measured_key

_PREFIX: Final = b"avow configuration v1\n"

UNCOVERED_FILES: Final = frozenset({"cert", "key", "password_file", "psk_file", "crl"})
_LEFT_OUT: Final = frozenset({("attestation", "tee"), ("store", "directory")})
_SOURCES: Final[Mapping[tuple[str, ...], Callable[[str], str]]] = {
    ("store", "key"): measured_key,
    ("store", "also_key"): measured_key,
    ("store", "anchor"): measured_anchor,
}


def configuration_digest(configuration: Configuration, read: Read = read_named_file) -> bytes:
    """The digest (32 bytes). Raises `UnavailableError` for a file that cannot be read.

    `read` gives the contents of files: where they are used as well, the same bytes have to be.
    """
    return hashlib.sha256(_PREFIX + measured_text(configuration, read).encode()).digest()


def measured_text(configuration: Configuration, read: Read = read_named_file) -> str:
    """The JSON that the digest is over, without the prefix."""
    content = _measured(configuration.model_dump(), (), read)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def anchor_files(folder: Path) -> list[Path]:
    """The files of a folder of endorsements that hold roots and keys."""
    return sorted(path for path in folder.rglob("*.pem") if path.is_file())


def _measured(value: Any, place: tuple[str, ...], read: Read) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _measured(inner, (*place, name), read)
            for name, inner in value.items()
            if (*place, name) not in _LEFT_OUT
        }
    if place in _SOURCES and value is not None:
        return _SOURCES[place](str(value))
    if isinstance(value, list | tuple):
        return [_measured(inner, place, read) for inner in value]
    if isinstance(value, Path):
        if place[-1] in UNCOVERED_FILES:
            return "present" if provisioned_name(value) is None else str(value)
        if value.is_dir():
            return {
                path.relative_to(value).as_posix(): _measured(path, ("root",), read)
                for path in anchor_files(value)
            }
        content = read(value, place[-1].replace("_", " "))
        return "sha256:" + hashlib.sha256(content).hexdigest()
    return value
