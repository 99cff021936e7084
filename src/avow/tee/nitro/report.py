"""The attestation document of AWS Nitro Enclaves.

AWS, "Nitro Enclaves Attestation Process" (aws-nitro-enclaves-nsm-api, docs/attestation_process.md),
sections 2.2 (fields), 3.1 (COSE) and 3.2.2 (sizes). avow's payload is the document as it is: a
COSE_Sign1 with ES384 over a CBOR map. The field `user_data` carries the 64 bytes of report data;
`nonce` and `public_key` are free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from avow.errors import MalformedError
from avow.evidence import cbor
from avow.tee.cose import ES384, Sign1, parse_sign1

DOCUMENT_BYTES_MAX: Final = 16384
PCR_BYTES: Final = 48
PCRS_MAX: Final = 32
_CERTIFICATE_BYTES_MAX: Final = 1024
# AWS issues four certificates above the leaf; no chain needs more than this.
_CERTIFICATES_MAX: Final = 8
_TIMESTAMP_MAX_MS: Final = 2**63
# AWS, section 3.2.2.2: smallest and largest size of the optional fields.
_SIZES: Final = {"public_key": (1, 1024), "user_data": (0, 512), "nonce": (0, 512)}
_MANDATORY: Final = frozenset(
    {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"}
)
# Which measure the enclave image, the kernel with its first RAM disk, and the application.
IMAGE_PCRS: Final = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Document:
    """A document's fields; nothing is verified yet.

    `pcrs` (48 bytes each, SHA-384) are by index. `chain` are certificates in DER: the root first,
    the one that signs (`certificate`) last. Optional fields are None where they are absent.
    """

    module_id: str
    timestamp_ms: int
    pcrs: Mapping[int, bytes]
    chain: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    signed: Sign1

    @property
    def debug(self) -> bool:
        """Enclaves in debug mode have zeros where their image is measured (AWS, user guide)."""
        return not all(any(self.pcrs[index]) for index in IMAGE_PCRS)


def parse_document(content: bytes) -> Document:
    """The fields of a document. Raises `MalformedError`."""
    signed = parse_sign1(content, "Nitro document")
    if signed.algorithm is not ES384:
        raise _malformed("the algorithm ES384", signed.algorithm.name)
    if not 0 < len(signed.payload) <= DOCUMENT_BYTES_MAX:
        raise _malformed(f"1 to {DOCUMENT_BYTES_MAX} bytes inside", str(len(signed.payload)))
    fields = cbor.decode_foreign(signed.payload, "Nitro document")
    if not isinstance(fields, dict) or not _MANDATORY <= set(fields) <= _MANDATORY | set(_SIZES):
        raise _malformed("the fields that AWS names", "others")
    module_id, timestamp_ms = fields["module_id"], fields["timestamp"]
    if not isinstance(module_id, str) or not module_id:
        raise _malformed("a text as module_id", "something else")
    if type(timestamp_ms) is not int or not 0 < timestamp_ms < _TIMESTAMP_MAX_MS:
        raise _malformed("a number above zero as timestamp", "something else")
    if fields["digest"] != "SHA384":
        raise _malformed("the digest SHA384", repr(fields["digest"])[:40])
    return Document(
        module_id=module_id,
        timestamp_ms=timestamp_ms,
        pcrs=_pcrs(fields["pcrs"]),
        chain=_chain(fields["cabundle"], fields["certificate"]),
        public_key=_optional(fields, "public_key"),
        user_data=_optional(fields, "user_data"),
        nonce=_optional(fields, "nonce"),
        signed=signed,
    )


def _pcrs(value: cbor.Value) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 0 < len(value) <= PCRS_MAX:
        raise _malformed(f"a map of 1 to {PCRS_MAX} PCRs", "something else")
    pcrs: dict[int, bytes] = {}
    for index, content in value.items():
        if not isinstance(index, int) or not 0 <= index < PCRS_MAX:
            raise _malformed(f"PCRs with an index below {PCRS_MAX}", repr(index)[:40])
        if not isinstance(content, bytes) or len(content) != PCR_BYTES:
            raise _malformed(f"PCRs of {PCR_BYTES} bytes", "others")
        pcrs[index] = content
    if not set(IMAGE_PCRS) <= set(pcrs):
        raise _malformed("the PCRs 0, 1 and 2", "a document without them")
    return pcrs


def _chain(bundle: cbor.Value, leaf: cbor.Value) -> tuple[bytes, ...]:
    if not isinstance(bundle, list) or not 0 < len(bundle) < _CERTIFICATES_MAX:
        raise _malformed(f"1 to {_CERTIFICATES_MAX - 1} certificates in cabundle", "others")
    chain: list[bytes] = []
    for certificate in (*bundle, leaf):
        if not isinstance(certificate, bytes) or not 0 < len(certificate) <= _CERTIFICATE_BYTES_MAX:
            raise _malformed(f"certificates of 1 to {_CERTIFICATE_BYTES_MAX} bytes", "others")
        chain.append(certificate)
    return tuple(chain)


def _optional(fields: dict[int | str, cbor.Value], name: str) -> bytes | None:
    # The hypervisor writes null for what nobody gave.
    value = fields.get(name)
    if value is None:
        return None
    smallest, largest = _SIZES[name]
    if not isinstance(value, bytes) or not smallest <= len(value) <= largest:
        raise _malformed(f"{smallest} to {largest} bytes as {name}", "something else")
    return value


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError(f"expected {expected} in the Nitro document, got {actual}; ask again")
