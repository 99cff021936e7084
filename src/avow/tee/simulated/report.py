"""The report of the simulated platform: deterministic CBOR of exactly these three entries.

    { "key":         65 bytes, the signer's P-256 point, uncompressed (SEC 1, section 2.3.3),
      "signature":   64 bytes, r || s, ECDSA with SHA-256 over "avow simulated v1" || report data,
      "report_data": 64 bytes }

Specified in docs/platforms/simulated.md. Nobody vouches for the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from avow.errors import Check, MalformedError
from avow.evidence import cbor

FORMAT: Final = Check("SIM1", "the simulated report is well-formed", "docs/platforms/simulated.md")
KEY_BYTES: Final = 65
SIGNATURE_BYTES: Final = 64
REPORT_DATA_BYTES: Final = 64

_SIGNED: Final = b"avow simulated v1"
_SIZES: Final = {
    "key": KEY_BYTES,
    "signature": SIGNATURE_BYTES,
    "report_data": REPORT_DATA_BYTES,
}


@dataclass(frozen=True, slots=True)
class SimulatedReport:
    """`key` (65 bytes) signed `report_data` (64 bytes) with `signature` (64 bytes)."""

    key: bytes
    signature: bytes
    report_data: bytes

    def encoded(self) -> bytes:
        """The report as bytes."""
        return cbor.encode(
            {"key": self.key, "signature": self.signature, "report_data": self.report_data}
        )


def signed_bytes(report_data: bytes) -> bytes:
    """What the signature is over."""
    return _SIGNED + report_data


def decode_report(content: bytes) -> SimulatedReport:
    """The report that `content` is. Raises `MalformedError`; nothing is verified."""
    try:
        fields = cbor.decode(content, "simulated report")
    except MalformedError as error:
        raise malformed("deterministic CBOR", str(error)) from error
    if not isinstance(fields, dict) or set(fields) != set(_SIZES):
        raise malformed("exactly key, signature and report_data", "something else")
    values: dict[str, bytes] = {}
    for name, size in _SIZES.items():
        value = fields[name]
        if not isinstance(value, bytes) or len(value) != size:
            raise malformed(f"{name} of {size} bytes", "something else")
        values[name] = value
    return SimulatedReport(values["key"], values["signature"], values["report_data"])


def malformed(expected: str, actual: str) -> MalformedError:
    """The error of everything that is no simulated report."""
    return MalformedError.at(
        FORMAT, expected=expected, actual=actual, advice="fetch the evidence again"
    )
