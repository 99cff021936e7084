"""What vendors and owners say about their hardware: a folder of files for the verifying side.

    intel/*.json    Intel's collateral for SGX and TDX, as avow.tee.intel.collateral reads it
    amd/*.crl       revocation lists of AMD's ARKs, DER
    tpm/*.pem       roots of the authorities that enrol attestation keys
    tpm/*.crl       revocation lists of these and of the authorities below them, DER
    psa/*.pem       public keys of devices (IAK), named by the instance id: 66 hexadecimal digits
    cca/*.pem       public keys of platforms (CPAK), named in the same way

Other files, and folders that are not there, are ignored; a file of these that has another form is
an error. docs/platforms/index.md says where to get each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from avow.errors import MalformedError, UnavailableError

if TYPE_CHECKING:
    from avow.tee.intel.collateral import Collateral

_FILE_BYTES_MAX: Final = 16 * 1024 * 1024

_INSTANCE_ID: Final = re.compile(r"[0-9a-f]{66}")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Endorsements:
    """All of it, read. Lists of AMD are in DER; keys are by instance id (33 bytes)."""

    intel: tuple[Collateral, ...] = ()
    amd_crls: tuple[bytes, ...] = ()
    tpm_roots: tuple[x509.Certificate, ...] = ()
    tpm_crls: tuple[x509.CertificateRevocationList, ...] = ()
    psa_keys: Mapping[bytes, ec.EllipticCurvePublicKey] = field(default_factory=dict)
    cca_keys: Mapping[bytes, ec.EllipticCurvePublicKey] = field(default_factory=dict)


def load_endorsements(folder: Path) -> Endorsements:
    """The endorsements in a folder.

    Raises `UnavailableError` where there is no folder or a file cannot be read, `MalformedError`
    for a file of another form.
    """
    if not folder.is_dir():
        raise UnavailableError(
            f"expected a folder of endorsements at {folder}, got none; make it, with a "
            "subfolder for each vendor, as the pages on platforms describe"
        )
    roots = [
        root
        for path, content in _files(folder / "tpm", ".pem")
        for root in _parsed(path, content, _load_roots, "certificates as PEM")
    ]
    return Endorsements(
        intel=tuple(_intel(path, content) for path, content in _files(folder / "intel", ".json")),
        amd_crls=tuple(
            _checked_amd_crl(path, content) for path, content in _files(folder / "amd", ".crl")
        ),
        tpm_roots=tuple(roots),
        tpm_crls=tuple(
            _parsed(path, content, x509.load_der_x509_crl, "a revocation list in DER")
            for path, content in _files(folder / "tpm", ".crl")
        ),
        psa_keys=_device_keys(folder / "psa"),
        cca_keys=_device_keys(folder / "cca"),
    )


def read_file(path: Path, what: str) -> bytes:
    """A file's content. Raises `UnavailableError`; `what` names it."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UnavailableError(
            f"expected {what} in {path}, got {error.strerror}; check that it exists and is readable"
        ) from error
    if len(content) > _FILE_BYTES_MAX:
        raise UnavailableError(
            f"expected {what} of at most {_FILE_BYTES_MAX} bytes in {path}, got more; "
            f"name another file"
        )
    return content


def _files(folder: Path, suffix: str) -> Iterator[tuple[Path, bytes]]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == suffix)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnavailableError(
            f"expected to list {folder}, got {error.strerror}; check that it is a folder and "
            "readable"
        ) from error
    for path in paths:
        yield path, read_file(path, "endorsements")


def _parsed(path: Path, content: bytes, parse: Callable[[bytes], _T], expected: str) -> _T:
    try:
        return parse(content)
    except (ValueError, x509.InvalidVersion) as error:
        raise MalformedError(
            f"expected {expected} in {path}, got something else; fetch it again"
        ) from error


def _device_keys(folder: Path) -> Mapping[bytes, ec.EllipticCurvePublicKey]:
    keys: dict[bytes, ec.EllipticCurvePublicKey] = {}
    for path, content in _files(folder, ".pem"):
        if not _INSTANCE_ID.fullmatch(path.stem):
            raise MalformedError(
                f"expected the instance id, 66 hexadecimal digits, as the name of {path}, got "
                f"something else; rename it"
            )
        key = _parsed(path, content, _load_key, "a public key as PEM")
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise MalformedError(
                f"expected an elliptic-curve key in {path}, got another kind; ask the "
                "device's maker for the right one"
            )
        keys[bytes.fromhex(path.stem)] = key
    return keys


def _load_roots(content: bytes) -> list[x509.Certificate]:
    from avow.tee.tpm.certificates import read_certificate, read_pem

    return [read_certificate(each).parsed for each in read_pem(content)]


def _load_key(content: bytes) -> object:
    try:
        return load_pem_public_key(content)
    except UnsupportedAlgorithm as error:
        raise ValueError("another algorithm") from error


def _intel(path: Path, content: bytes) -> Collateral:
    from avow.tee.intel.collateral import parse_collateral

    return parse_collateral(content, str(path))


def _checked_amd_crl(path: Path, content: bytes) -> bytes:
    from avow.tee.snp.certificates import parse_crl

    try:
        parse_crl(content)
    except MalformedError as error:
        raise MalformedError(f"{path}: {error}") from error
    return content
