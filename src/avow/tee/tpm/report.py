"""The report of the platform `tpm`: a map in deterministic CBOR (RFC 8949, section 4.2.1).

    { "ak":           TPMT_PUBLIC of the attestation key (AK),
      "certificates": [X.509 certificate in DER, ...],
      "log":          [[name, digest], ...],
      "parent":       who the AK's parent is,
      "pcrs":         { number: value, ... },
      "quote":        TPMS_ATTEST,
      "signature":    TPMT_SIGNATURE }

The structures of the TPM are as `avow.tee.tpm.structures` says. `certificates` is empty, or the
AK's certificate by an enrolment authority (`avow.tee.tpm.enrolment`) and those between it and the
authority's root, which is not sent. `log` is as in `avow.tee.tpm.event_log`. `parent` is the
handle of a hierarchy (4 bytes) for a primary key, or the qualified name of the parent key (2 bytes
and a digest). `pcrs` are the quoted values of the SHA-256 bank, 32 bytes each.

Specified to the byte in docs/platforms/tpm.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from avow.errors import MalformedError
from avow.evidence import cbor
from avow.tee.tpm import event_log
from avow.tee.tpm.structures import PCR_BYTES, PCRS

CERTIFICATES_MAX: Final = 4
CERTIFICATE_BYTES_MAX: Final = 4096

_KEYS: Final = frozenset({"ak", "certificates", "log", "parent", "pcrs", "quote", "signature"})


@dataclass(frozen=True, slots=True)
class Report:
    """The report's parts, by the names of the map; `pcrs` in ascending order."""

    quote: bytes
    signature: bytes
    ak: bytes
    parent: bytes
    pcrs: Mapping[int, bytes]
    log: event_log.Log = ()
    certificates: tuple[bytes, ...] = ()

    def encoded(self) -> bytes:
        """The report as bytes."""
        pcrs: dict[int | str, cbor.Value] = {number: self.pcrs[number] for number in self.pcrs}
        return cbor.encode(
            {
                "ak": self.ak,
                "certificates": list(self.certificates),
                "log": event_log.encode(self.log),
                "parent": self.parent,
                "pcrs": pcrs,
                "quote": self.quote,
                "signature": self.signature,
            }
        )


def decode_report(content: bytes) -> Report:
    """The report that `content` is. The TPM's structures stay bytes. Raises `MalformedError`."""
    fields = cbor.decode(content, "TPM report")
    if not isinstance(fields, dict) or fields.keys() != _KEYS:
        raise malformed(f"a map of {', '.join(sorted(_KEYS))}", "something else")
    return Report(
        quote=bytes_of(fields["quote"], "quote"),
        signature=bytes_of(fields["signature"], "signature"),
        ak=bytes_of(fields["ak"], "ak"),
        parent=bytes_of(fields["parent"], "parent"),
        pcrs=decode_pcrs(fields["pcrs"]),
        log=event_log.decode(fields["log"]),
        certificates=_certificates(fields["certificates"]),
    )


def bytes_of(value: cbor.Value, name: str) -> bytes:
    """`value` if it is bytes. Raises `MalformedError`."""
    if not isinstance(value, bytes):
        raise malformed(f"bytes as {name}", type(value).__name__)
    return value


def decode_pcrs(value: cbor.Value) -> dict[int, bytes]:
    """PCR values by number, in ascending order. Raises `MalformedError`."""
    if not isinstance(value, dict):
        raise malformed("a map of PCRs", type(value).__name__)
    pcrs: dict[int, bytes] = {}
    for number, content in value.items():
        if not isinstance(number, int) or not 0 <= number < PCRS:
            raise malformed(f"PCRs from 0 to {PCRS - 1}", repr(number)[:40])
        if not isinstance(content, bytes) or len(content) != PCR_BYTES:
            raise malformed(f"PCRs of {PCR_BYTES} bytes", "something else")
        pcrs[number] = content
    return dict(sorted(pcrs.items()))


def _certificates(value: cbor.Value) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > CERTIFICATES_MAX:
        raise malformed(f"at most {CERTIFICATES_MAX} certificates", "something else")
    certificates = tuple(bytes_of(item, "certificate") for item in value)
    if any(len(each) > CERTIFICATE_BYTES_MAX for each in certificates):
        raise malformed(f"certificates of at most {CERTIFICATE_BYTES_MAX} bytes", "a larger one")
    return certificates


def malformed(expected: str, actual: str) -> MalformedError:
    """The error for a report that has another form."""
    return MalformedError(
        f"expected {expected} in the TPM report, got {actual}; fetch the evidence again"
    )
