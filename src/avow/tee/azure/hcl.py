"""The HCL report, which Azure's paravisor leaves in its virtual TPM, and the runtime data in it.

Microsoft, "Confidential VM guest attestation design detail" (learn.microsoft.com, Azure
confidential computing), sections "Hardware Report" and "Report Format"; the structures are also in
OpenVMM's `openhcl_attestation_protocol` (igvm_attest). Little-endian:

      0 signature "HCLA" 4 | version 4 (1 or 2) | size 4 | request type 4 (2) | status 4 | zeros 12
     32 hardware report 1184: an SEV-SNP report, or a TDREPORT of 1024 bytes and zeros
   1216 data size 4 | version 4 (1 or 2) | report type 4 (2 SNP, 4 TDX) | hash 4 (1 SHA-256)
   1232 size 4 | with version 2: capabilities 4
   1236 (version 1) or 1240 (2): runtime data, of that size; then zeros up to the area's end

(The capabilities, IgvmAttestRequestDataExt, say what the paravisor asks its host for.)

The report data of the hardware report is the SHA-256 of the runtime data, and 32 zeros. The runtime
data are JSON: `keys` (RFC 7517) with the public attestation key "HCLAkPub", and `vm-configuration`.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal, cast

from cryptography.hazmat.primitives.asymmetric import rsa

from avow.errors import MalformedError

Kind = Literal["snp", "tdx"]

SNP_REPORT_BYTES: Final = 1184
TDREPORT_BYTES: Final = 1024
RUNTIME_BYTES_MAX: Final = 8192
AK_NAME: Final = "HCLAkPub"

_HEADER: Final = struct.Struct("<4sIIII12s")
_DATA: Final = struct.Struct("<IIIII")
_SIGNATURE: Final = b"HCLA"
_REQUEST_TYPE: Final = 2
_KINDS: Final[dict[int, Kind]] = {2: "snp", 4: "tdx"}
_SHA256: Final = 1
# What lies between the 20 bytes of request data and the JSON, by the data's version.
_EXTENSION_BYTES: Final = {1: 0, 2: 4}
_RSA_BITS: Final = 2048
_EXPONENT: Final = "AQAB"


@dataclass(frozen=True, slots=True)
class HclReport:
    """`hardware_report` has 1,184 bytes (SEV-SNP) or 1,024 (TDREPORT)."""

    kind: Kind
    hardware_report: bytes
    runtime: bytes


def parse_hcl_report(content: bytes) -> HclReport:
    """The report in the TPM's area. Raises `MalformedError`."""
    start = _HEADER.size + SNP_REPORT_BYTES
    runtime_start = start + _DATA.size
    if len(content) < runtime_start:
        raise _malformed(f"{runtime_start} bytes or more", f"{len(content)}")
    signature, version, size, request, status, reserved = _HEADER.unpack_from(content)
    if (signature, request, status) != (_SIGNATURE, _REQUEST_TYPE, 0) or version not in (1, 2):
        raise _malformed("the header HCLA of version 1 or 2", repr(content[:20]))
    data_size, data_version, report_type, hash_type, runtime_size = _DATA.unpack_from(
        content, start
    )
    known = data_version in _EXTENSION_BYTES and report_type in _KINDS
    if not known or hash_type != _SHA256:
        raise _malformed(
            "runtime data of version 1 or 2, hashed by SHA-256, for SEV-SNP or TDX",
            f"version {data_version}, hash {hash_type}, type {report_type}",
        )
    extension = _EXTENSION_BYTES[data_version]
    runtime_start += extension
    end = runtime_start + runtime_size
    sizes = (_DATA.size + extension + runtime_size, end)
    if runtime_size > RUNTIME_BYTES_MAX or (data_size, size) != sizes:
        raise _malformed("sizes that agree", f"{size}, {data_size} and {runtime_size}")
    kind = _KINDS[report_type]
    hardware = content[_HEADER.size : start]
    used = SNP_REPORT_BYTES if kind == "snp" else TDREPORT_BYTES
    if len(content) < end or any(reserved) or any(hardware[used:]) or any(content[end:]):
        raise _malformed("zeros in the unused bytes", "other bytes, or too few")
    return HclReport(kind, hardware[:used], content[runtime_start:end])


@dataclass(frozen=True, slots=True)
class RuntimeData:
    """The attestation key, the SHA-256 (32 bytes) of the VM's configuration as JSON with sorted
    names and no spaces, and whether the paravisor started the VM with secure boot."""

    ak: rsa.RSAPublicKey
    vm_configuration: bytes
    secure_boot: bool


def parse_runtime_data(content: bytes) -> RuntimeData:
    """The runtime data. Raises `MalformedError`."""
    if len(content) > RUNTIME_BYTES_MAX:
        raise _malformed(f"runtime data of at most {RUNTIME_BYTES_MAX} bytes", f"{len(content)}")
    try:
        fields = json.loads(
            content.decode("ascii"), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise _malformed("runtime data in JSON", f"other bytes ({error})") from error
    if not isinstance(fields, dict):
        raise _malformed("an object as runtime data", "something else")
    configuration = fields.get("vm-configuration")
    if not isinstance(configuration, dict):
        raise _malformed("the VM's configuration in the runtime data", "none")
    secure_boot = configuration.get("secure-boot")
    if not isinstance(secure_boot, bool):
        raise _malformed("whether secure boot is on in the VM's configuration", repr(secure_boot))
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    return RuntimeData(_key(fields.get("keys")), sha256(text.encode()).digest(), secure_boot)


def _key(keys: object) -> rsa.RSAPublicKey:
    """The one key of the name HCLAkPub: RSA with 2,048 bits, for signing."""
    if not isinstance(keys, list) or not all(isinstance(each, dict) for each in keys):
        raise _malformed("keys in the runtime data", "none")
    named = [each for each in cast("list[dict[str, Any]]", keys) if each.get("kid") == AK_NAME]
    if len(named) != 1:
        raise _malformed(f"one key {AK_NAME} in the runtime data", f"{len(named)}")
    (key,) = named
    modulus = key.get("n")
    purpose = (key.get("kty"), key.get("e"), key.get("key_ops"))
    if purpose != ("RSA", _EXPONENT, ["sign"]) or not isinstance(modulus, str):
        raise _malformed(f"{AK_NAME} as an RSA key for signing", "another key")
    try:
        content = decode_base64url(modulus)
        # Some TPMs make moduli that begin with zeros; the size is still that of the key.
        if len(content) * 8 != _RSA_BITS:
            raise ValueError(f"{len(content) * 8} bits")
        return rsa.RSAPublicNumbers(65537, int.from_bytes(content, "big")).public_key()
    except ValueError as error:
        raise _malformed(f"{AK_NAME} with {_RSA_BITS} bits", f"none ({error})") from error


def decode_base64url(text: str) -> bytes:
    """Base64 for addresses (RFC 4648, section 5) without padding. Raises `ValueError`."""
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("no base64url") from error
    if base64.urlsafe_b64encode(content).rstrip(b"=").decode() != text:
        raise ValueError("no base64url without padding")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in the HCL report, got {actual}; use a release of avow that knows "
        f"this generation of Azure's confidential VMs"
    )
