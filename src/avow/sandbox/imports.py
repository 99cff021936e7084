"""What a program imports, read from its binary without a compiler.

Imports stand at the beginning of a module and at the top level of a component, so that one which
can never run is refused at once, however large it is. Nothing is decided here that wasmtime does
not check again: bytes that are not understood give no imports, and the compiler says what is wrong.

Sources: WebAssembly core specification 3.0, 5.5.5 (import section); component model, Binary.md.
"""

from __future__ import annotations

from typing import Final

_HEADER_BYTES: Final = 8
_CORE_IMPORTS: Final = 2
_COMPONENT_IMPORTS: Final = 10
# A number of at most 32 bits takes five bytes in LEB128, one of 64 bits ten.
_LEB_BYTES_MAX: Final = 10
_NAME_BYTES_MAX: Final = 100_000

CoreImport = tuple[str, str]


class _NotUnderstoodError(Exception):
    """Bytes that this reader does not know."""


class _Reader:
    def __init__(self, content: bytes, at: int, end: int) -> None:
        self._content, self.at, self.end = content, at, end

    def byte(self) -> int:
        if self.at >= self.end:
            raise _NotUnderstoodError
        self.at += 1
        return self._content[self.at - 1]

    def number(self) -> int:
        value = 0
        for place in range(_LEB_BYTES_MAX):
            byte = self.byte()
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value
        raise _NotUnderstoodError

    def skip(self, size: int) -> None:
        if size > self.end - self.at:
            raise _NotUnderstoodError
        self.at += size

    def name(self) -> str:
        size = self.number()
        if size > _NAME_BYTES_MAX:
            raise _NotUnderstoodError
        start = self.at
        self.skip(size)
        try:
            return self._content[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise _NotUnderstoodError from error


def core_imports(content: bytes) -> list[CoreImport]:
    """(module, name) of each import of a core module, in order; empty if it cannot be read."""
    found: list[CoreImport] = []
    try:
        for kind, section in _sections(content):
            if kind == _CORE_IMPORTS:
                for _ in range(section.number()):
                    found.append((section.name(), section.name()))
                    _skip_core_type(section)
                break
    except _NotUnderstoodError:
        return []
    return found


def component_imports(content: bytes) -> list[str]:
    """The name of each import of a component, in order; empty if it cannot be read."""
    found: list[str] = []
    try:
        for kind, section in _sections(content):
            if kind == _COMPONENT_IMPORTS:
                for _ in range(section.number()):
                    found.append(_component_name(section))
                    _skip_description(section)
    except _NotUnderstoodError:
        return []
    return found


def _sections(content: bytes) -> list[tuple[int, _Reader]]:
    """Those at the top, by their number."""
    reader = _Reader(content, _HEADER_BYTES, len(content))
    sections: list[tuple[int, _Reader]] = []
    while reader.at < reader.end:
        kind = reader.byte()
        size = reader.number()
        sections.append((kind, _Reader(content, reader.at, reader.at + size)))
        reader.skip(size)
    return sections


def _skip_core_type(reader: _Reader) -> None:
    kind = reader.byte()
    if kind == 0:  # a function: its type
        reader.number()
    elif kind == 1:  # a table: a reference type, limits
        if reader.byte() in (0x63, 0x64):
            reader.number()
        _skip_limits(reader)
    elif kind == 2:  # a memory
        _skip_limits(reader)
    elif kind == 3:  # a global: a value type, whether it changes
        if reader.byte() in (0x63, 0x64):
            reader.number()
        reader.byte()
    elif kind == 4:  # a tag: attribute, type
        reader.byte()
        reader.number()
    else:
        raise _NotUnderstoodError


def _skip_limits(reader: _Reader) -> None:
    flags = reader.byte()
    reader.number()
    if flags & 1:
        reader.number()


def _component_name(reader: _Reader) -> str:
    if reader.byte() not in (0, 1):
        raise _NotUnderstoodError
    return reader.name()


def _skip_description(reader: _Reader) -> None:
    kind = reader.byte()
    if kind == 0:  # a core module: 0x11, its type
        if reader.byte() != 0x11:
            raise _NotUnderstoodError
        reader.number()
    elif kind in (1, 4, 5):  # a function, a component, an instance: its type
        reader.number()
    elif kind == 3:  # a type: equal to another, or a resource
        if reader.byte() == 0:
            reader.number()
    elif kind == 2:  # a value: equal to another, or of a type
        if reader.byte() == 0:
            reader.number()
        else:
            raise _NotUnderstoodError
    else:
        raise _NotUnderstoodError
