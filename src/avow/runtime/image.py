"""Makes the code image: everything that a measured process can import, compiled.

The bytes depend on the sources and on Python's version, and on neither the folder nor the machine:
file names are those within a part, and marshal's version 2 does not write how often an object is
referred to. So the digest of the code is one that others can make.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import marshal
import os
import pwd
import socket
from collections.abc import Iterator
from typing import Any, Final

from avow.runtime.boot import (
    CODE,
    EXTENSION,
    FOLDER,
    LENGTH_BYTES,
    MAGIC,
    identity,
    python_identity,
)
from avow.runtime.installation import Installation, Part, installation, is_source, modules
from avow.runtime.mappings import mapped_files

MARSHAL_VERSION: Final = 2


def write_image(descriptor: int, package: str) -> None:
    """Compiles, and writes to a descriptor that is empty. Raises `AvowError`."""
    whole = installation(package)
    entries: dict[str, tuple[str, str, bool, int, int, bytes, bytes]] = {}
    blobs: list[bytes] = []
    length = 0
    for part in whole.parts:
        for name, is_package, each in _preferred(part):
            if name in entries:
                continue
            if not is_source(each):
                entries[name] = (EXTENSION, each.path, False, 0, 0, b"", b"")
                continue
            try:
                with open(each.path, "rb") as file:
                    source = file.read()
            except FileNotFoundError:
                # Whoever measures says so.
                continue
            blob = compiled(name, is_package, source, each.name)
            if blob is not None:
                digests = hashlib.sha256(blob).digest(), hashlib.sha256(source).digest()
                entries[name] = (CODE, each.path, is_package, length, len(blob), *digests)
                blobs.append(blob)
                length += len(blob)
    _add_folders(entries)
    header = marshal.dumps(_header(whole, package, entries), MARSHAL_VERSION)
    with open(descriptor, "wb", closefd=False) as out:
        out.write(MAGIC + len(header).to_bytes(LENGTH_BYTES, "little") + header)
        out.writelines(blobs)


def compiled(name: str, is_package: bool, source: bytes, file: str) -> bytes | None:
    """The code of a module, with its name; None for what this Python cannot compile, as templates
    and code for other versions."""
    try:
        code = compile(source, f"<avow>/{file}", "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        return None
    return marshal.dumps((name, is_package, code), MARSHAL_VERSION)


def _header(
    whole: Installation, package: str, entries: dict[str, tuple[Any, ...]]
) -> dict[str, Any]:
    libraries = _libraries([entry[1] for entry in entries.values() if entry[0] == EXTENSION], whole)
    files = [each.path for part in whole.parts for each in part.files]
    watched = sorted({*whole.watched, *files, *libraries})
    return {
        "python": python_identity(package),
        "sources": tuple((path, identity(path)) for path in watched),
        "modules": entries,
        "libraries": tuple(libraries),
        "distributions": tuple((part.name, part.root) for part in whole.parts[1:]),
    }


def _preferred(part: Part) -> list[tuple[str, bool, Any]]:
    """In the order in which Python looks: packages, then extension modules, then sources."""
    return sorted(
        modules(part), key=lambda each: (each[0], not each[1], is_source(each[2]), each[2].name)
    )


def _add_folders(entries: dict[str, tuple[Any, ...]]) -> None:
    """Folders without a file of their own on the way to a module (PEP 420)."""
    for name, entry in list(entries.items()):
        path = os.path.dirname(entry[1]) if entry[2] else entry[1]
        while "." in name:
            name, path = name.rpartition(".")[0], os.path.dirname(path)
            if name not in entries:
                entries[name] = (FOLDER, path, True, 0, 0, b"", b"")


def _libraries(extensions: list[str], whole: Installation) -> list[str]:
    """The system's libraries that the process can have mapped: those of the interpreter, of all
    extension modules and native parts, of the name service, and of a TPM's transports.

    Found by loading them, here, where nothing else happens.
    """
    native = [each.path for part in whole.parts for each in part.files if ".so" in each.name]
    for path in dict.fromkeys([*extensions, *native]):
        try:
            ctypes.CDLL(path, ctypes.RTLD_LOCAL)
        except OSError:
            # Of a library that is not on this machine; who needs the module will hear of it.
            continue
    _ask_name_service()
    known = {*native, *extensions, os.path.realpath("/proc/self/exe")}
    found = {path for path in mapped_files() if path not in known}
    for path in sorted(found):
        folder, name = os.path.split(path)
        if name.startswith("libtss2-tctildr"):
            found |= set(map(os.path.realpath, _transports(folder)))
    return sorted(found)


def _transports(folder: str) -> Iterator[str]:
    yield from glob.iglob(os.path.join(glob.escape(folder), "libtss2-tcti-*.so*"))


def _ask_name_service() -> None:
    """The C library loads modules for it by /etc/nsswitch.conf."""
    for ask in (
        lambda: socket.getaddrinfo("localhost", 1, proto=socket.IPPROTO_TCP),
        lambda: socket.getservbyname("mqtt"),
    ):
        with contextlib.suppress(OSError):
            ask()
    with contextlib.suppress(KeyError):
        pwd.getpwnam("no-such-user-of-avow")
