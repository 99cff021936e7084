"""`avow enrol`: a certificate for the attestation key of a machine's TPM, in four steps."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from avow.cli.command_error import (
    CommandError,
    configuration_errors,
    judging_errors,
    operation_errors,
)
from avow.cli.exit_codes import ExitCode
from avow.errors import MalformedError, UnavailableError
from avow.tee.tpm import enrolment
from avow.tee.tpm.attester import TpmAttester, TpmSettings, load_certificates
from avow.tee.tpm.certificates import certificates_in, in_order, read_certificate, read_pem
from avow.tee.tpm.chain import Anchors
from avow.tee.tpm.device import TpmDevice, TpmKey
from avow.tee.tpm.templates import EK_ECC, EK_RSA

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_KINDS: Final = {"ecc": EK_ECC, "rsa": EK_RSA}
_DAYS: Final = 365
_SECRET_MODE: Final = 0o600
_CHAIN_FIRST: Final = 0x01C00100
_CHAIN_INDICES: Final = 0x100

_kind = click.option(
    "--ek",
    "kind",
    type=click.Choice(sorted(_KINDS)),
    default="ecc",
    show_default=True,
    help="Which of the TPM's endorsement keys to use.",
)
_output = click.option("-o", "--output", type=_FILE, required=True, metavar="FILE")


@click.group()
def enrol() -> None:
    """Have an owner's authority certify the attestation key of a machine's TPM.

    Four steps: `request` on the machine, `challenge` at the authority, `answer` on the machine,
    `issue` at the authority. Then set AVOW_TPM_CERTIFICATES on the machine to the certificate's
    file, and put the authority's root into the folder tpm of the clients' endorsements.
    """


@enrol.command()
@_kind
@click.option(
    "--chain",
    type=_FILE,
    metavar="FILE",
    help="Certificates between the endorsement key's and its maker's root, PEM.  [default: the "
    "TPM's]",
)
@_output
def request(kind: str, chain: Path | None, output: Path) -> int:
    """On the machine: write the identities of the TPM and its attestation key."""
    with configuration_errors():
        between = None if chain is None else _certificates(chain)
        attester = TpmAttester(TpmSettings.from_environment(os.environ))
    with operation_errors():
        template = _KINDS[kind]
        device = attester.device

        def identities() -> tuple[TpmKey, bytes, tuple[bytes, ...]]:
            with device.undisturbed():
                ek = device.make_primary(template.template)
                device.forget(ek)
                area = device.read_nv(template.certificate_index)
                return ek, area, _stored_chain(device) if between is None else between

        ek, area, stored = device.retried(identities)
        attester.close()
        certificate = _one(certificates_in(area), template.certificate_index)
        path = (certificate, *between) if between else _path(certificate, stored)
    asked = enrolment.Request(attester.key.public, ek.public, path)
    _write(output, asked.encoded())
    click.echo(f"wrote {output}; send it to the authority for `avow enrol challenge`")
    return ExitCode.OK


@enrol.command()
@click.argument("request", type=_FILE)
@click.option(
    "--makers",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="Roots of the TPM makers that you trust, PEM.",
)
@click.option(
    "--keep",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="A file that the authority keeps until the answer comes. It is secret.",
)
@_output
def challenge(request: Path, makers: Path, keep: Path, output: Path) -> int:
    """At the authority: write a challenge that only that TPM, with that key, can open."""
    with configuration_errors():
        roots = tuple(read_certificate(each).parsed for each in _certificates(makers))
        challenger = enrolment.Challenger(Anchors(roots))
        asked = enrolment.decode_request(_read(request))
    with judging_errors():
        kept, credential = challenger.challenge(
            asked, datetime.now(UTC), secrets.token_bytes(32), secrets.token_bytes(32)
        )
    _write(keep, kept.encoded(), secret=True)
    _write(output, enrolment.encode_credential(credential))
    click.echo(f"wrote {output}; send it to the machine for `avow enrol answer`, and keep {keep}")
    return ExitCode.OK


@enrol.command()
@click.argument("challenge", type=_FILE)
@_kind
@_output
def answer(challenge: Path, kind: str, output: Path) -> int:
    """On the machine: have the TPM open the challenge."""
    with configuration_errors():
        credential = enrolment.decode_credential(_read(challenge))
        attester = TpmAttester(TpmSettings.from_environment(os.environ))
    with operation_errors():
        secret = attester.activate(_KINDS[kind], credential)
        attester.close()
    _write(output, secret, secret=True)
    click.echo(f"wrote {output}; send it to the authority for `avow enrol issue`")
    return ExitCode.OK


@enrol.command()
@click.argument("answer", type=_FILE)
@click.option("--kept", type=_FILE, required=True, metavar="FILE", help="From `challenge --keep`.")
@click.option(
    "--ca", type=_FILE, required=True, metavar="FILE", help="The authority's certificate, PEM."
)
@click.option("--ca-key", type=_FILE, required=True, metavar="FILE", help="Its private key, PEM.")
@click.option(
    "--days",
    type=click.IntRange(1, 10_000),
    default=_DAYS,
    show_default=True,
    help="How long the certificate is valid.",
)
@_output
def issue(answer: Path, kept: Path, ca: Path, ca_key: Path, days: int, output: Path) -> int:
    """At the authority: write the attestation key's certificate, PEM."""
    with configuration_errors():
        authority, key = _authority(ca, ca_key)
        expected = enrolment.decode_kept(_read(kept))
        content = _read(answer)
    with judging_errors():
        certificate = enrolment.Issuer(authority, key).issue(
            expected,
            content,
            datetime.now(UTC),
            timedelta(days=days),
            x509.random_serial_number(),
        )
    chain = [certificate] if authority.issuer == authority.subject else [certificate, authority]
    _write(output, b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    click.echo(
        f"wrote {output} for the TPM with tpm.ek {expected.ek_digest.hex()}; copy it to the "
        "machine, and set AVOW_TPM_CERTIFICATES there to its path"
    )
    return ExitCode.OK


def _stored_chain(device: TpmDevice) -> tuple[bytes, ...]:
    """What the TPM keeps above the endorsement key's certificate.

    TCG "EK Credential Profile for TPM Family 2.0", version 2.5: indices 01c00100h to 01c001ffh hold
    certificates in DER, one after the other and over the ends of the areas.
    """

    def indices(esapi: Any, library: Any) -> list[int]:
        _, found = esapi.get_capability(library.TPM2_CAP.HANDLES, _CHAIN_FIRST, _CHAIN_INDICES)
        return [
            int(each) for each in found.data.handles if 0 <= each - _CHAIN_FIRST < _CHAIN_INDICES
        ]

    areas = [device.read_nv(index) for index in sorted(device.call(indices))]
    return certificates_in(b"".join(areas))


def _one(found: tuple[bytes, ...], index: int) -> bytes:
    if len(found) != 1:
        raise UnavailableError(
            f"expected one certificate of the endorsement key at index {index:08x} of the TPM, "
            f"got {len(found)}; ask the TPM's maker for it, or try the other --ek"
        )
    return found[0]


def _path(leaf: bytes, stored: tuple[bytes, ...]) -> tuple[bytes, ...]:
    try:
        return in_order(leaf, stored)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise MalformedError(
            f"expected X.509 certificates in the TPM, got other bytes ({error}); give the "
            "certificates above the endorsement key's in a file (--chain)"
        ) from error


def _certificates(path: Path) -> tuple[bytes, ...]:
    """The certificates of a PEM file, in DER as their makers wrote them."""
    try:
        return read_pem(_read(path))
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise MalformedError(
            f"expected certificates as PEM in {path}, got something else ({error}); fetch them "
            f"from the TPM's maker again"
        ) from error


def _authority(
    ca: Path, ca_key: Path
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]:
    certificates = load_certificates(ca)
    if not certificates:
        raise MalformedError(f"expected a certificate as PEM in {ca}, got none; name another file")
    certificate = x509.load_der_x509_certificate(certificates[0])
    try:
        key = load_pem_private_key(_read(ca_key), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedError(
            f"expected a private key as PEM without a passphrase in {ca_key}, got something else; "
            f"name another file"
        ) from error
    if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) and (
        key.public_key() == certificate.public_key()
    ):
        return certificate, key
    raise MalformedError(
        f"expected the key (ECDSA or RSA) of the certificate {ca} in {ca_key}, got another; "
        f"name the two that belong together"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnavailableError(
            f"expected to read {path}, got {error.strerror}; name another file"
        ) from error


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    try:
        if secret:
            path.touch(mode=_SECRET_MODE)
            path.chmod(_SECRET_MODE)
        path.write_bytes(content)
    except OSError as error:
        raise CommandError(
            f"expected to write {path}, got {error.strerror}; name another file", ExitCode.FAILED
        ) from error
