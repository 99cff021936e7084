"""Builds the programs for the sandbox and prints where they are.

python -m examples.sandbox                      # all of them
python -m examples.sandbox sqlite wordcount     # some
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from avow.errors import AvowError
from examples.sandbox.programs import PROGRAMS, ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all that was asked for is there, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sandbox", description="Builds the programs for the sandbox."
    )
    parser.add_argument("program", nargs="*", metavar="PROGRAM", help=", ".join(PROGRAMS))
    names: list[str] = parser.parse_args(arguments).program or list(PROGRAMS)
    if unknown := [name for name in names if name not in PROGRAMS]:
        parser.error(f"no such program: {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    for name in names:
        try:
            path = PROGRAMS[name]()
        except AvowError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{name}: {path.relative_to(ROOT)} ({path.stat().st_size:,} bytes)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
