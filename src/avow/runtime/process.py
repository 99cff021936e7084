"""That a measured process runs what was hashed, and nothing else.

Asked before it shows evidence: what is loaded is compared with what was measured, in both forms
that code comes in, modules of Python and files that are mapped as code.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import BuiltinImporter, FrozenImporter
from types import ModuleType
from typing import Final, NoReturn

from avow.errors import UntrustedError
from avow.runtime.boot import identity
from avow.runtime.manifest import Identity, measurement
from avow.runtime.mappings import MAPS, code_mappings
from avow.runtime.sealed import Sealed, sealed

_SHOWN_MAX: Final = 5
_INODE: Final = 1


class ProcessCheck:
    """Compares what is loaded with `files`, the measured ones; what has not changed is not compared
    again, so that asking before every quote costs little."""

    def __init__(self, this: Sealed, files: Mapping[str, Identity]) -> None:
        self._this = this
        self._files = files
        self._found = ""
        self._maps = b""
        self._modules = 0

    def __call__(self) -> None:
        """Raises `UntrustedError`, which names what is loaded and was not measured."""
        if self._found:
            raise UntrustedError(self._found)
        wrong = list(self._finders())
        with open(MAPS, "rb") as file:
            maps = file.read()
        loaded = len(sys.modules)
        if maps != self._maps:
            wrong += wrong_mappings(code_mappings(maps), self._files)
        if loaded != self._modules:
            wrong += wrong_modules(list(sys.modules.values()), self._files)
        if wrong:
            self._refuse(
                "expected only code that was measured in this process, got "
                + "; ".join(sorted(wrong)[:_SHOWN_MAX])
                + "; remove that and start again; `avow measure runtime` says what differs"
            )
        self._maps, self._modules = maps, loaded

    def files(self) -> None:
        """As a call, and that every measured file is still the one that was hashed."""
        self()
        changed = [path for path, was in self._files.items() if identity(path) != was]
        if changed:
            self._refuse(
                ("expected the measured files as they were when avow started, got changed ones: ")
                + ", ".join(sorted(changed)[:_SHOWN_MAX])
                + "; start again"
            )

    def _refuse(self, sentence: str) -> NoReturn:
        # What has run cannot be taken back: it stays so.
        self._found = sentence
        raise UntrustedError(sentence)

    def _finders(self) -> Iterator[str]:
        if sys.meta_path != [BuiltinImporter, FrozenImporter, self._this.finder]:
            yield "another finder of modules"


def wrong_mappings(
    mapped: Iterable[tuple[str, int]], files: Mapping[str, Identity]
) -> Iterator[str]:
    """Those of `mapped` (paths and inodes) that are not among `files`."""
    for path, inode in dict(mapped).items():
        was = files.get(path)
        # Overlay file systems show the inode of a layer in one place and their own in the other.
        overlaid = was is not None and os.major(os.stat(path).st_dev) == 0
        if was is None or (was[_INODE] != inode and not overlaid):
            yield f"{path} (mapped)"


def wrong_modules(loaded: Iterable[ModuleType], files: Mapping[str, Identity]) -> Iterator[str]:
    """The modules of Python whose files are not among `files`."""
    for module in loaded:
        path = getattr(module, "__file__", None)
        # What native code makes itself has no file; what is inside the binary may have none.
        if path is not None and path not in files and os.path.realpath(path) not in files:
            yield f"{path} (the module {module.__name__})"


@functools.cache
def process_check() -> ProcessCheck | None:
    """The check of this process; None in one that is not measured. Raises as `measurement`."""
    this = sealed()
    return None if this is None else ProcessCheck(this, measurement().files)
