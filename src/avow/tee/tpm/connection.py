"""One way to a TPM: an ESYS context (TCG TSS 2.0 ESAPI) and the thread that its commands run on.

A context that an error of its transport met stays unusable, and so does every handle that was made
in it. Nor does anybody know which question a late answer belongs to. So a connection that failed
or that gave no answer in time is never used again; `avow.tee.tpm.device` opens another.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from avow.errors import UnavailableError
from avow.tee.detection import INSTALL_BINDING

# Part 2, section 6.6: errors of format 1 (bit 7) also name a parameter, handle or session.
_FORMAT_1: Final = 0x80
_FORMAT_1_CODE: Final = 0xBF
_FORMAT_0_CODE: Final = 0xFFF
# Part 2, section 6.6.3: TPM_RC_INITIALIZE, TPM_RC_FAILURE, and TPM_RC_REFERENCE_H0 to _S6. What was
# loaded is not there any more: the TPM was restarted.
_RESTARTED: Final = frozenset({0x100, 0x101, *range(0x910, 0x917), *range(0x918, 0x91F)})
_HANDLES_MAX: Final = 64
# Part 2, section 7.2, TPM_HT, in the highest byte of a handle.
_TRANSIENT: Final = 0x80
_LISTED: Final = (_TRANSIENT << 24, 0x02 << 24)

_T = TypeVar("_T")


class LostTpmError(UnavailableError):
    """The connection failed and is closed; the next one may work at once."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An object or a session that takes a place in the TPM: its handle there, and an object's
    Name."""

    handle: int
    name: bytes


class Connection:
    """From `open` until it is `lost`. One call at a time."""

    def __init__(self) -> None:
        self.library = load_library()
        self.esapi: Any = None
        self.lost = False
        self.loaded: dict[Any, Loaded] = {}
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._calls,), name="tpm", daemon=True)
        self._thread.start()

    def open(self, tcti: str, timeout_s: float) -> None:
        """Raises as `run`."""

        def open_() -> None:
            self.esapi = self.library.ESAPI(tcti)

        self.run(open_, timeout_s)

    def run(self, function: Callable[[], _T], timeout_s: float) -> _T:
        """`function()` on the thread. Raises what it raises, and `StalledError` after `timeout_s`;
        whoever gets something else than a refusal by the TPM has to close the connection."""
        call = _Call(function, self.library.TSS2_Exception)
        self._calls.put(call)
        if not call.done.wait(timeout_s):
            raise StalledError(f"no answer within {timeout_s:g} s")
        if call.error is not None:
            raise call.error
        if not call.completed:
            raise RuntimeError("a fault of avow's own, see the standard error")
        result: _T = call.result
        return result

    def close(self, timeout_s: float) -> bool:
        """Ends the context and its thread, once the command under way has ended; False when that
        is not so after `timeout_s`."""
        if not self.lost:
            self.lost = True
            self._calls.put(_Call(self._close, self.library.TSS2_Exception))
            self._calls.put(None)
        return self.ended(timeout_s)

    def ended(self, timeout_s: float) -> bool:
        """Whether the thread has ended after at most `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def clear(self, left: dict[int, Loaded]) -> None:
        """Flushes what an earlier connection left in the TPM. To be run on the thread.

        A resource manager shows each opener what is its own and does so itself; without one nobody
        else would, and the TPM has three places. What is listed now is not this connection's; an
        object is known again by its Name.
        """
        for first in _LISTED:
            _, found = self.esapi.get_capability(self.library.TPM2_CAP.HANDLES, first, _HANDLES_MAX)
            for handle in map(int, found.data.handles):
                if handle not in left:
                    continue
                again = self.esapi.tr_from_tpmpublic(handle)
                same = bytes(self.esapi.tr_get_name(again)) == left[handle].name
                if handle >> 24 != _TRANSIENT or same:
                    self.esapi.flush_context(again)

    def note(self, esys: Any) -> None:
        """Remembers that the object or session `esys` (an ESYS_TR) takes a place in the TPM. To be
        run on the thread."""
        handle = int(self.esapi.tr_get_tpm_handle(esys))
        is_object = handle >> 24 == _TRANSIENT
        name = bytes(self.esapi.tr_get_name(esys)) if is_object else b""
        self.loaded[esys] = Loaded(handle, name)

    def _close(self) -> None:
        if self.esapi is not None:
            self.esapi.close()


class StalledError(Exception):
    """There was no answer in time."""


def refusal_of(error: BaseException | None) -> int | None:
    """Which TPM_RC the TPM refused with, without the number of the parameter, handle or session;
    None when it was no refusal of the TPM."""
    code: int | None = getattr(error, "rc", None)
    if code is None or code >> 16:
        return None
    return code & (_FORMAT_1_CODE if code & _FORMAT_1 else _FORMAT_0_CODE)


def was_restarted(code: int) -> bool:
    """Whether a TPM that refuses with this TPM_RC has lost what was loaded into it."""
    return code in _RESTARTED


def load_library() -> Any:
    """tpm2-pytss. It is compiled against libtss2, so it is imported only where a TPM is used."""
    # libtss2 writes every error to the standard error itself, also those that are expected here.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss
    except ImportError as error:
        raise UnavailableError(
            f"expected tpm2-pytss for the TPM, got none ({error}); {INSTALL_BINDING}"
        ) from error
    return tpm2_pytss


class _Call:
    """One function for the thread, and how it ended."""

    def __init__(self, function: Callable[[], Any], failure: type[Exception]) -> None:
        self._function = function
        self._failures = (failure, UnavailableError, RuntimeError, OSError, ValueError)
        self.done = threading.Event()
        self.completed = False
        self.result: Any = None
        self.error: Exception | None = None

    def __call__(self) -> None:
        try:
            self.result = self._function()
            self.completed = True
        except self._failures as error:
            self.error = error
        finally:
            self.done.set()


def _serve(calls: queue.SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        call()
