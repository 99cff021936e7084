"""Runs the reflector (see reflector.zig) on a plain and a TLS port.

python -m bench.loadgen.reflector --port N --tls-port M --cert FILE --key FILE
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import struct
import sys
import threading

from OpenSSL import SSL

from bench.loadgen.library import address_of, build, load, tls_functions
from bench.tls_session import shake_hands

# `Adopted` in reflector.zig.
_ADOPTED = struct.Struct("=iIQQQ")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.loadgen.reflector")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls-port", type=int, required=True)
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    return parser.parse_args()


def _accept_tls(listener: socket.socket, context: SSL.Context, pipe: int) -> None:
    sessions = []  # the loop uses them for as long as the process lives
    while True:
        sock, _ = listener.accept()
        session = SSL.Connection(context, None)
        session.set_accept_state()
        try:
            shake_hands(session, sock)
        except (SSL.Error, OSError):
            sock.close()
            continue
        sock.setblocking(False)
        sessions.append(session)
        pointers = (session._ssl, session._into_ssl, session._from_ssl)
        os.write(pipe, _ADOPTED.pack(sock.detach(), 0, *map(address_of, pointers)))


def main() -> int:
    arguments = _arguments()
    # The loop never comes back to Python, so the default action has to end the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.use_certificate_chain_file(arguments.cert)
    context.use_privatekey_file(arguments.key)
    library, functions = load(build()), tls_functions()
    from_python, to_loop = os.pipe()
    plain = socket.create_server(("127.0.0.1", arguments.port), backlog=1024)
    plain.setblocking(False)
    encrypted = socket.create_server(("127.0.0.1", arguments.tls_port), backlog=1024)
    threading.Thread(target=_accept_tls, args=(encrypted, context, to_loop), daemon=True).start()
    library.loadgen_reflect(plain.fileno(), from_python, ctypes.byref(functions))
    return 1


if __name__ == "__main__":
    sys.exit(main())
