"""The attesting side of the simulated platform: a key in a file, or one of its own."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from avow.errors import MalformedError, UnavailableError
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.simulated.report import SimulatedReport, signed_bytes

_ALGORITHM = ec.ECDSA(hashes.SHA256())
_HALF_BYTES = 32


class SimulatedAttester:
    """Signs with a P-256 key in software."""

    platform = "simulated"
    # See `avow.evidence.roles.answers_at_once`.
    answers_at_once = True

    def __init__(self, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        """Without `key` a new one is made, which ends with the process."""
        self._key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
        self._public = self._key.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )

    @classmethod
    def from_file(cls, path: Path) -> SimulatedAttester:
        """The attester with the P-256 key in a PEM file (PKCS #8, no passphrase).

        Raises `UnavailableError` when it cannot be read, `MalformedError` for other content.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UnavailableError(
                f"expected the simulated platform's key in {path}, got {error.strerror}; "
                f"make one with `openssl genpkey -algorithm EC -pkeyopt "
                f"ec_paramgen_curve:P-256 -out {path}`"
            ) from error
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _no_key(path) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise _no_key(path)
        return cls(key)

    def measure(self, workload: Workload) -> None:
        """Nothing: there is no register."""

    def quote(self, report_data: ReportData) -> bytes:
        """The report over `report_data`."""
        content = report_data.content
        r, s = decode_dss_signature(self._key.sign(signed_bytes(content), _ALGORITHM))
        signature = r.to_bytes(_HALF_BYTES, "big") + s.to_bytes(_HALF_BYTES, "big")
        return SimulatedReport(self._public, signature, content).encoded()


def _no_key(path: Path) -> MalformedError:
    return MalformedError(
        f"expected a P-256 private key as PEM without a passphrase in {path}, got something else; "
        f"make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`"
    )
