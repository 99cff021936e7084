"""Calls of WASI that make something durable, for a program whose anchor has to know each commit.

`fd_sync` has done its work when the disk has the data. With a freshness anchor that moves with
every commit, it returns only when the anchor knows it too: else a host could take back what the
program has told the world of.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

from wasmtime import _ffi as wasmtime_ffi

from avow.errors import AvowError

# The last two commit for files that were opened with FDFLAGS_SYNC or FDFLAGS_DSYNC.
COMMITTING: Final = frozenset({"fd_sync", "fd_datasync", "fd_write", "fd_pwrite"})
# WASI preview 1, errno.
_SUCCESS: Final = 0
_IO: Final = 29


def anchored(
    native: Callable[..., int],
    keep_up: Callable[[], object],
    fence: AbstractContextManager[object, bool],
) -> Callable[..., int]:
    """A host function as `native` (wasmtime_func_unchecked_callback_t), which calls `keep_up` after
    each success; an `AvowError` of that is the program's errno `io`, and so is all else that it
    raises, which `fence` has to keep."""

    def call(environment: Any, caller: Any, values: Any, count: int) -> int:
        trap = native(environment, caller, values, count)
        if not trap and values[0].i32 == _SUCCESS:
            values[0].i32 = _IO
            # Whoever keeps the anchor meets the same AvowError, and says it.
            with fence, suppress(AvowError):
                keep_up()
                values[0].i32 = _SUCCESS
        return trap

    function: Callable[..., int] = wasmtime_ffi.wasmtime_func_unchecked_callback_t(call)
    return function
