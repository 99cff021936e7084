"""The report of the platform `azure`: a map in deterministic CBOR (RFC 8949, section 4.2.1).

    { "hardware":  report of the platform `kind`, as its own `report.py` says,
      "kind":      "snp" or "tdx",
      "log":       [[name, digest], ...],
      "pcrs":      { number: value, ... },
      "quote":     TPMS_ATTEST of the virtual TPM,
      "runtime":   runtime data (JSON) of the HCL report, byte by byte,
      "signature": TPMT_SIGNATURE }

`log`, `pcrs`, `quote` and `signature` are as in `avow.tee.tpm.report`. What else is in an HCL
report is not signed, so it is not sent. Specified to the byte in docs/platforms/azure.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from avow.errors import MalformedError
from avow.evidence import cbor
from avow.tee.azure.hcl import Kind
from avow.tee.tpm import event_log
from avow.tee.tpm.report import bytes_of, decode_pcrs

_KEYS: Final = frozenset({"hardware", "kind", "log", "pcrs", "quote", "runtime", "signature"})


@dataclass(frozen=True, slots=True)
class Report:
    """The report's parts, by the names of the map."""

    kind: Kind
    hardware: bytes
    runtime: bytes
    quote: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    log: event_log.Log = ()

    def encoded(self) -> bytes:
        """The report as bytes."""
        pcrs: dict[int | str, cbor.Value] = {number: self.pcrs[number] for number in self.pcrs}
        return cbor.encode(
            {
                "hardware": self.hardware,
                "kind": self.kind,
                "log": event_log.encode(self.log),
                "pcrs": pcrs,
                "quote": self.quote,
                "runtime": self.runtime,
                "signature": self.signature,
            }
        )


def decode_report(content: bytes) -> Report:
    """The report that `content` is; its parts stay bytes. Raises `MalformedError`."""
    fields = cbor.decode(content, "Azure report")
    if not isinstance(fields, dict) or fields.keys() != _KEYS:
        raise MalformedError(
            f"expected a map of {', '.join(sorted(_KEYS))} as the Azure report, got something "
            f"else; fetch the evidence again"
        )
    kind = fields["kind"]
    if kind not in ("snp", "tdx"):
        raise MalformedError(
            f"expected snp or tdx in the Azure report, got {kind!r:.40}; fetch the evidence again"
        )
    return Report(
        kind="snp" if kind == "snp" else "tdx",
        hardware=bytes_of(fields["hardware"], "hardware"),
        runtime=bytes_of(fields["runtime"], "runtime"),
        quote=bytes_of(fields["quote"], "quote"),
        signature=bytes_of(fields["signature"], "signature"),
        pcrs=decode_pcrs(fields["pcrs"]),
        log=event_log.decode(fields["log"]),
    )
