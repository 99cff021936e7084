"""What `avow broker` wires for attestation: a platform, its measurement, judges of clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from avow.broker.config import Configuration
from avow.channel.attestation import ServerAttestation
from avow.channel.judge import Judge
from avow.errors import MalformedError, UnavailableError
from avow.evidence.roles import Attester
from avow.runtime.manifest import runtime_manifest

if TYPE_CHECKING:
    from avow.tee.platforms import Endorsements

SIMULATED: Final = "simulated"


class Measurable(Protocol):
    """What is measured of a broker before it runs: `Prepared` is one."""

    @property
    def configuration(self) -> Configuration:
        """What it runs with."""

    @property
    def digest(self) -> bytes:
        """The configuration's digest (32 bytes)."""


class StartingAttestation:
    """The platform while the broker starts: it measures the module before that runs.

    `attestation` is there after `measure`, unless there is no platform.
    """

    def __init__(self, attester: Attester | None, prepared: Measurable) -> None:
        self._attester = attester
        self._prepared = prepared
        self.attestation: ServerAttestation | None = None

    def measure(self, module: bytes) -> None:
        """The digest (32 bytes) of the bytes that were compiled and are about to run."""
        if self._attester is None:
            return
        settings = self._prepared.configuration.attestation
        self.attestation = ServerAttestation(
            self._attester,
            module=module,
            runtime=runtime_manifest().digest,
            quotes_per_s=settings.quotes_per_s,
            waiting_max=settings.waiting_max,
            quote_timeout_s=settings.quote_timeout_s,
        )
        self.attestation.measure(self._prepared.digest, datetime.now(UTC))

    def described(self) -> dict[str, str]:
        """For the log: what clients will see."""
        if self.attestation is None:
            return {}
        workload = self.attestation.identity.workload
        return {
            "tee": self.attestation.platform,
            "runtime_sha256": workload.runtime.hex(),
            "configuration_sha256": workload.configuration.hex(),
        }


def open_attestation(prepared: Measurable) -> StartingAttestation:
    """Opens the platform that the configuration names.

    Raises `UnavailableError` when it is not there, for `auto` with what was looked for.
    """
    name = prepared.configuration.attestation.tee
    if name is None:
        return StartingAttestation(None, prepared)
    return StartingAttestation(open_platform(name, "the broker"), prepared)


def open_platform(name: str, whom: str) -> Attester:
    """The platform of this name, or, for `auto`, the first that is there and not simulated.

    `whom` it shall vouch for is said in the error, an `UnavailableError`.
    """
    from avow.tee.platforms import detect, open_attester

    if name != "auto":
        return open_attester(name)
    found = detect()
    if not any(each.present for each in found if each.platform != SIMULATED):
        absent = "; ".join(
            f"{each.platform}: {each.reason}" for each in found if each.platform != SIMULATED
        )
        raise UnavailableError(
            f"expected a platform that can vouch for {whom}, got none ({absent}); `avow tee` "
            "lists them, `--tee simulated` runs without any protection"
        )
    return open_attester(name, found=found)


def load_judge(
    policy: Path, content: bytes, *, endorsements: Path | None, anchors: Sequence[bytes]
) -> Judge:
    """See `avow.broker.prepared.LoadJudge`."""
    from avow.policy.policy_file import parse_policy
    from avow.tee.platforms import verifiers

    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"expected UTF-8 in the policy {policy}, got invalid bytes at offset {error.start}; "
            "save it as UTF-8"
        ) from error
    known = None if endorsements is None else measured_endorsements(endorsements, anchors)
    return Judge(verifiers(known), parse_policy(text, name=str(policy)))


def measured_endorsements(folder: Path, anchors: Sequence[bytes]) -> Endorsements:
    """Those in a folder; whoever is believed because of them is in the files that were measured.

    `anchors` are the contents of these. Raises an `AvowError`.
    """
    from avow.tee.platforms import load_endorsements

    known = load_endorsements(folder)
    if not _anchored(known, anchors):
        raise UnavailableError(
            f"expected the roots and keys in {folder} to stay the same while they are read, got "
            "changed ones; stop whatever writes there, and start again"
        )
    return known


def _anchored(known: Endorsements, anchors: Sequence[bytes]) -> bool:
    """Whoever is believed because of these endorsements is in the files that were measured."""
    keys = {_spki(key) for key in (*known.psa_keys.values(), *known.cca_keys.values())}
    return set(known.tpm_roots) <= set(_certificates(anchors)) and keys <= set(_keys(anchors))


def _keys(anchors: Sequence[bytes]) -> Iterator[bytes]:
    for content in anchors:
        try:
            key = load_pem_public_key(content)
        except (ValueError, UnsupportedAlgorithm):
            # No key: then none can have come from it.
            continue
        yield key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _spki(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _certificates(anchors: Sequence[bytes]) -> Iterator[x509.Certificate]:
    for content in anchors:
        try:
            yield from x509.load_pem_x509_certificates(content)
        except (ValueError, x509.InvalidVersion):
            # No certificates: then no root can have come from it.
            continue
