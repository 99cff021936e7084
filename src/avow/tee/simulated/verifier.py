"""The verifying side of the simulated platform. It proves that some key signed, and no more."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from avow.errors import Check, UntrustedError
from avow.evidence.roles import Authenticated
from avow.tee.simulated.report import FORMAT, decode_report, malformed, signed_bytes

SIGNATURE: Final = Check(
    "SIM2",
    "the simulated report is signed by the key that it names",
    "docs/platforms/simulated.md",
)
CHECKS: Final = (FORMAT, SIGNATURE)

_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())
_HALF_BYTES: Final = 32


class SimulatedVerifier:
    """Says of everything that it is simulated and open to its operator."""

    platform = "simulated"

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`; `now` does not matter, as no key ends."""
        decoded = decode_report(report)
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decoded.key)
        except ValueError as error:
            raise malformed("a point on P-256 as the key", "other bytes") from error
        signature = encode_dss_signature(
            int.from_bytes(decoded.signature[:_HALF_BYTES], "big"),
            int.from_bytes(decoded.signature[_HALF_BYTES:], "big"),
        )
        try:
            key.verify(signature, signed_bytes(decoded.report_data), _ALGORITHM)
        except InvalidSignature as error:
            raise UntrustedError.at(
                SIGNATURE,
                expected="a signature by the report's own key",
                actual="another",
                advice=(
                    "ask again; if this persists, somebody may be intercepting the connection to "
                    "the peer"
                ),
            ) from error
        return Authenticated(
            self.platform, decoded.report_data, "report data", {"debug": True, "simulated": True}
        )
