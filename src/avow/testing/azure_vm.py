"""A confidential VM of Azure as far as a guest sees it: HCL report and metadata service.

The hardware is a mock (`avow.testing.amd_pki`, `avow.testing.intel_pki`); nothing outside tests
trusts it.
"""

from __future__ import annotations

import base64
import json
import struct
import textwrap
import threading
from collections.abc import Sequence
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Literal, Self

from cryptography.hazmat.primitives.asymmetric import rsa

NV_BYTES: Final = 2600


def runtime_data(ak: rsa.RSAPublicKey, *, secure_boot: bool = True, **changes: Any) -> bytes:
    """The runtime data, byte for byte as the paravisor writes them; `changes` are of the AK."""
    modulus = ak.public_numbers().n.to_bytes(256, "big")
    key = {
        "kid": "HCLAkPub",
        "key_ops": ["sign"],
        "kty": "RSA",
        "e": "AQAB",
        "n": base64.urlsafe_b64encode(modulus).rstrip(b"=").decode(),
    } | changes
    fields = {
        "keys": [key, {**key, "kid": "HCLEkPub", "key_ops": ["encrypt"]}],
        "vm-configuration": {
            "console-enabled": True,
            "secure-boot": secure_boot,
            "tpm-enabled": True,
            "vmUniqueId": "26F8BC30-774E-4290-8E7A-535F3B672AEE",
        },
        "user-data": "0" * 128,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def report_data(runtime: bytes) -> bytes:
    """What the paravisor has the hardware sign (64 bytes)."""
    return sha256(runtime).digest() + bytes(32)


def hcl_report(
    kind: Literal["snp", "tdx"], hardware: bytes, runtime: bytes, *, version: int = 1
) -> bytes:
    """The area in the virtual TPM: `hardware` is an SNP report or a TDREPORT.

    `version` 2 is as OpenVMM writes it (`create_request`): a bitmap of capabilities lies before the
    runtime data.
    """
    size = len(runtime)
    extension = struct.pack("<I", 0x17) if version == 2 else b""
    report_type = 2 if kind == "snp" else 4
    head = struct.pack("<IIIII", 20 + len(extension) + size, version, report_type, 1, size)
    data = head + extension + runtime
    header = struct.pack("<4sIIII12s", b"HCLA", 2, 32 + 1184 + len(data), 2, 0, bytes(12))
    return (header + hardware.ljust(1184, b"\0") + data).ljust(NV_BYTES, b"\0")


def td_report(data: bytes) -> bytes:
    """A TDREPORT (1,024 bytes) with this report data; only the quoting enclave reads the rest."""
    return bytes([0x81, *[0] * 127]) + data + bytes(1024 - 192)


def pem(der: bytes) -> str:
    """A certificate as the service gives it."""
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


class MockMetadata:
    """The metadata service on a port of its own. `answers` are by path; `asked` is what came."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.asked.append((self.command, self.path, dict(self.headers), body))
                answer = service.answers.get(self.path)
                self.send_response(404 if answer is None else 200)
                self.end_headers()
                self.wfile.write(answer or b"")

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def certification(chain: Sequence[bytes]) -> bytes:
    """The service's answer for a VCEK and its issuers."""
    return json.dumps(
        {
            "vcekCert": pem(chain[0]),
            "tcbm": "DB18000000000004",
            "certificateChain": "".join(map(pem, chain[1:])),
            "cacheControl": "86400",
        }
    ).encode()


def quote_answer(quote: bytes) -> bytes:
    """The service's answer for a TDREPORT: the quote in a buffer that zeros fill."""
    padded = base64.urlsafe_b64encode(quote.ljust(5006, b"\0")).rstrip(b"=").decode()
    return json.dumps({"quote": padded}).encode()
