"""Runs the reflector (see reflector.zig): `python -m bench.loadgen.reflector --port N`."""

from __future__ import annotations

import argparse
import signal
import socket
import sys

from bench.loadgen.library import build, load


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.loadgen.reflector")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    # The loop never comes back to Python, so the default action has to end the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    library = load(build())
    with socket.create_server(("127.0.0.1", arguments.port), backlog=1024) as listener:
        listener.setblocking(False)
        library.loadgen_reflect(listener.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())
