"""Who made a PSA token: the device whose initial attestation key (IAK) its maker has published.

RFC 9783, section 7: there is no certificate in a token. The verifier is given the public keys by
instance id, as endorsements; without the key of a device nothing can be said about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from avow.errors import Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence.report_data import REPORT_DATA_BYTES
from avow.evidence.roles import Authenticated
from avow.evidence.vocabulary import ClaimValue
from avow.tee.psa.report import Token, is_secured, parse_token

FORM: Final = Check("PSA1", "the token is well-formed", "RFC 9783, 4 and 5")
KEY: Final = Check("PSA2", "the device's key is endorsed", "RFC 9783, 7")
SIGNATURE: Final = Check("PSA3", "the device signed the token", "RFC 9783, 5.1; RFC 9052, 4.4")
DATA: Final = Check("PSA4", "the nonce is report data", "docs/platforms/psa.md")
CHECKS: Final = (FORM, KEY, SIGNATURE, DATA)


class PsaVerifier:
    """Proves PSA tokens. `keys` are IAK public keys by instance id (33 bytes)."""

    def __init__(self, keys: Mapping[bytes, ec.EllipticCurvePublicKey]) -> None:
        self._keys = dict(keys)

    @property
    def platform(self) -> str:
        """See `avow.evidence.roles.Verifier`."""
        return "psa"

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`. `report` is the token; it does not depend on `now`:
        neither tokens nor endorsed keys have an end."""
        try:
            token = parse_token(report)
        except MalformedError as error:
            raise MalformedError.at(
                FORM,
                expected="a well-formed token",
                actual=f"other bytes ({error})",
                advice="ask again",
            ) from error
        token.signed.verify(endorsed(self._keys, token.instance_id, KEY), SIGNATURE)
        if len(token.nonce) != REPORT_DATA_BYTES:
            raise UntrustedError.at(
                DATA,
                expected=f"{REPORT_DATA_BYTES} bytes of report data as nonce",
                actual=str(len(token.nonce)),
                advice="ask an avow on the device for the token",
            )
        return Authenticated("psa", token.nonce, "report data", _claims(token))


def endorsed(
    keys: Mapping[bytes, ec.EllipticCurvePublicKey], instance_id: bytes, check: Check
) -> ec.EllipticCurvePublicKey:
    """The key of a device. Raises `UnavailableError` at `check` for a device without one."""
    key = keys.get(instance_id)
    if key is None:
        raise UnavailableError.at(
            check,
            expected="the public key of the device in the endorsements",
            actual=f"none for the instance id {instance_id.hex()}",
            advice="get the key from the device's maker, or do not trust the device",
        )
    return key


def _claims(token: Token) -> dict[str, ClaimValue]:
    return {
        "debug": not is_secured(token.lifecycle),
        "psa.profile": token.profile,
        "psa.implementation_id": token.implementation_id,
        "psa.instance_id": token.instance_id,
        "psa.lifecycle": token.lifecycle,
        "psa.boot_seed": token.boot_seed,
        "psa.client_id": token.client_id,
        "psa.software": tuple(map(str, token.components)),
    }
