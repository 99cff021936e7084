"""Prints the runtime's manifest for a process that is not measured: a program with `avow.client`.

Started by `avow.runtime.manifest`, as a measured process without a command.
"""

from __future__ import annotations

import sys

from avow.errors import AvowError
from avow.runtime.manifest import runtime_manifest


def main() -> None:
    """What is wrong goes to standard error, with 1 as exit code."""
    try:
        text = runtime_manifest().text
    except AvowError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(text, end="")
