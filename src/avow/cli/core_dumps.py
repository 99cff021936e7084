"""Keys and secrets are not in what a process leaves behind when it crashes."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from typing import Final

from avow.errors import UnavailableError

# <linux/prctl.h>
_PR_SET_DUMPABLE: Final = 4


def keep_out_of_core_dumps() -> None:
    """What a process with secrets leaves behind when it crashes is a file that others may read.

    Raises `UnavailableError` where the system does not let that be prevented.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # core(5): the limit does not hold where cores are piped to a program, as distributions have it.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
        return
    # A library OS need not know it: the memory of its enclave is in no core.
    if ctypes.get_errno() != errno.ENOSYS:
        raise UnavailableError(
            "expected to keep secrets out of core dumps, got "
            f"{os.strerror(ctypes.get_errno())!r}; let the process call prctl(PR_SET_DUMPABLE)"
        )
