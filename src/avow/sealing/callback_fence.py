"""What Python functions raise that native code calls: it ends here, and is kept.

An exception cannot fly through native code. ctypes prints it and gives back whatever lies where the
result should be: a descriptor, or the address of a trap that is none.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType
from typing import Any


class CallbackFence:
    """A context that nothing leaves but by its end; `raised` is the first that tried."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        if error is not None and self.raised is None:
            self.raised = error
        return True

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose result is a negative EIO when it raises."""

        def call(*arguments: Any) -> Any:
            with self:
                return function(*arguments)
            return -errno.EIO

        return call

    def check(self) -> None:
        """Raises what was kept."""
        if self.raised is not None:
            raise self.raised
