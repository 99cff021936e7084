"""Host functions for components, with bytes handed over as a whole.

wasmtime's own conversion makes a Python object of each byte of a `list<u8>`, which takes about a
microsecond. Here a list of bytes is one slice, and handles are numbers. All other values are
converted by wasmtime. Source: wasmtime's C interface, component/val.h and component/linker.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from wasmtime import WasmtimeError
from wasmtime import _ffi as ffi
from wasmtime.component import (
    U8,
    BorrowType,
    FuncType,
    LinkerInstance,
    ListType,
    ResultType,
    TupleType,
    ValType,
)
from wasmtime.component._enter import catch_exceptions

from avow.errors import AvowError

# Reads a value of the C interface, and writes one: (store, value in Python, where to).
Lift = Callable[[Any, Any], Any]
Lower = Callable[[Any, Any, Any], None]

_VALUE: Final[Any] = ffi.wasmtime_component_val_t
_VALUE_BYTES: Final = ctypes.sizeof(_VALUE)
_KIND_AT: Final = _VALUE.kind.offset
_BYTE_AT: Final = _VALUE.of.offset


@dataclass(frozen=True, slots=True)
class Failed:
    """What a function returns in place of its result when that is an error."""

    error: object


class HostFunctions:
    """Functions that were given to a linker; to be kept for as long as the linker is.

    `raised` is the error by which one of them stopped the component: wasmtime passes on none.
    """

    def __init__(self) -> None:
        self.raised: AvowError | None = None
        self._kept: list[Any] = []

    def add(
        self, instance: LinkerInstance, name: str, kind: FuncType, function: Callable[..., Any]
    ) -> None:
        """Define `function`: handles come as the numbers of their resources, `list<u8>` as bytes,
        and a result that is an error is returned as `Failed`."""
        lifts = [_lift(each) for _, each in kind.params]
        result = kind.result
        lower = None if result is None else _lower(result)

        def call(
            _: Any, context: Any, _type: Any, given: Any, count: int, into: Any, _n: Any
        ) -> Any:
            def run(store: Any) -> None:
                # All of them, whatever comes: a handle that was lent has to be given back.
                values = [lift(store, given[at]) for at, lift in enumerate(lifts)]
                try:
                    value = function(*values)
                except AvowError as error:
                    self.raised = error
                    raise WasmtimeError("stopped by a function of avow") from error
                if lower is not None:
                    lower(store, value, into[0])

            return catch_exceptions(context, run)

        callback = ffi.wasmtime_component_func_callback_t(call)
        encoded = name.encode()
        error = ffi.wasmtime_component_linker_instance_add_func(
            instance.ptr(),
            ctypes.create_string_buffer(encoded),
            len(encoded),
            callback,
            None,
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(0),
        )
        if error:
            raise WasmtimeError._from_ptr(error)
        self._kept.append(callback)


def _lift(kind: ValType) -> Lift:
    if isinstance(kind, BorrowType):
        return _lift_handle
    if isinstance(kind, ListType):
        element = kind.element
        if isinstance(element, U8):
            return _lift_bytes
        lift = _lift(element)
        return lambda store, value: [
            lift(store, value.of.list.data[at]) for at in range(value.of.list.size)
        ]
    return lambda store, value: kind.convert_from_c(value)


def _lift_handle(store: Any, value: Any) -> int:
    host = ctypes.POINTER(ffi.wasmtime_component_resource_host_t)()
    # This also gives back what was lent.
    error = ffi.wasmtime_component_resource_any_to_host(
        store._context(), value.of.resource, ctypes.byref(host)
    )
    if error:
        raise WasmtimeError._from_ptr(error)
    number = int(ffi.wasmtime_component_resource_host_rep(host))
    ffi.wasmtime_component_resource_host_delete(host)
    return number


def _lift_bytes(store: Any, value: Any) -> bytes:
    values = value.of.list
    # An empty list has no address that may be read.
    if values.size == 0:
        return b""
    return ctypes.string_at(values.data, values.size * _VALUE_BYTES)[_BYTE_AT::_VALUE_BYTES]


def _lower(kind: ValType) -> Lower:
    if isinstance(kind, ListType) and isinstance(kind.element, U8):
        return _lower_bytes
    if isinstance(kind, TupleType):
        return _lower_tuple([_lower(each) for each in kind.elements])
    if isinstance(kind, ResultType):
        return _lower_result(kind)
    return lambda store, value, into: kind.convert_to_c(store, value, ctypes.pointer(into))


def _lower_bytes(store: Any, value: bytes, into: Any) -> None:
    raw = bytearray(len(value) * _VALUE_BYTES)
    raw[_KIND_AT::_VALUE_BYTES] = bytes([ffi.WASMTIME_COMPONENT_U8.value]) * len(value)
    raw[_BYTE_AT::_VALUE_BYTES] = value
    made = ffi.wasmtime_component_vallist_t()
    ffi.wasmtime_component_vallist_new_uninit(ctypes.byref(made), len(value))
    ctypes.memmove(made.data, (ctypes.c_char * len(raw)).from_buffer(raw), len(raw))
    into.kind = ffi.WASMTIME_COMPONENT_LIST.value
    into.of.list = made


def _lower_tuple(lowers: list[Lower]) -> Lower:
    def lower(store: Any, value: Any, into: Any) -> None:
        # All zero is a valid value, a boolean, so that none is ever without one.
        elements = (_VALUE * len(lowers))()
        for at, each in enumerate(lowers):
            each(store, value[at], elements[at])
        made = ffi.wasmtime_component_valtuple_t()
        ffi.wasmtime_component_valtuple_new(ctypes.byref(made), len(lowers), elements)
        into.kind = ffi.WASMTIME_COMPONENT_TUPLE.value
        into.of.tuple = made

    return lower


def _lower_result(kind: ResultType) -> Lower:
    ok, err = kind.ok, kind.err
    lower_ok = None if ok is None else _lower(ok)
    lower_err = None if err is None else _lower(err)

    def lower(store: Any, value: Any, into: Any) -> None:
        failed = isinstance(value, Failed)
        each = lower_err if failed else lower_ok
        payload = None
        if each is not None:
            case = _VALUE()
            each(store, value.error if failed else value, case)
            payload = ffi.wasmtime_component_val_new(ctypes.byref(case))
        into.kind = ffi.WASMTIME_COMPONENT_RESULT.value
        into.of.result.is_ok = not failed
        into.of.result.val = payload

    return lower
