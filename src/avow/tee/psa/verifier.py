"""Who made a PSA token: the device whose initial attestation key (IAK) its maker has published.

RFC 9783, section 7: there is no certificate in a token. The verifier is given the public keys by
instance id, as endorsements; without the key of a device nothing can be said about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.errors import Check, UnavailableError, UntrustedError, well_formed
from avow.evidence.report_data import REPORT_DATA_BYTES
from avow.evidence.roles import Authenticated
from avow.evidence.vocabulary import ClaimValue
from avow.tee.psa.report import Token, is_secured, parse_token

FORM: Final = Check("PSA1", "the token is well-formed", "RFC 9783, 4 and 5")
KEY: Final = Check("PSA2", "the device's key is endorsed", "RFC 9783, 7")
SIGNATURE: Final = Check("PSA3", "the device signed the token", "RFC 9783, 5.1; RFC 9052, 4.4")
DATA: Final = Check("PSA4", "the nonce is report data", "docs/platforms/psa.md")
CHECKS: Final = (FORM, KEY, SIGNATURE, DATA)

# SHA-256 of the SubjectPublicKeyInfo of keys whose private half stands in public source code: the
# examples in OP-TEE's core/pta/veraison_attestation/sign.c and in TF-M's
# tfm_initial_attestation_key.pem, and the platform's key in veraison/ccatoken. Devices get shipped
# with them, and everybody can sign as such a device.
PUBLISHED_KEYS: Final = frozenset(
    {
        "51b944cdfa544d4c3273aa6bf350625a7dd53bbb6a71723274f538b19a207760",
        "7b1a17147ca907e16cad79901fef13991ec6206e3d148b657068ad6c4cba4626",
        "0928f896cb02326566530a62a1e36329a12d0a4a308f4fc81e8ff5560bca6bca",
    }
)


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
        with well_formed(FORM, "token", advice="ask again"):
            token = parse_token(report)
        key = endorsed(self._keys, token.instance_id, KEY)
        token.signed.verify(key, SIGNATURE)
        if len(token.nonce) != REPORT_DATA_BYTES:
            raise UntrustedError.at(
                DATA,
                expected=f"{REPORT_DATA_BYTES} bytes of report data as nonce",
                actual=str(len(token.nonce)),
                advice="use a token that avow has requested on the device",
            )
        return Authenticated("psa", token.nonce, "report data", _claims(token, key))


def is_published(key: ec.EllipticCurvePublicKey) -> bool:
    """True for a key that everybody can sign with."""
    content = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(content).hexdigest() in PUBLISHED_KEYS


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
            advice="get its key from the device's maker, or do not trust the device",
        )
    return key


def _claims(token: Token, key: ec.EllipticCurvePublicKey) -> dict[str, ClaimValue]:
    return {
        "debug": not is_secured(token.lifecycle) or is_published(key),
        "psa.profile": token.profile,
        "psa.implementation_id": token.implementation_id,
        "psa.instance_id": token.instance_id,
        "psa.lifecycle": token.lifecycle,
        "psa.boot_seed": token.boot_seed,
        "psa.client_id": token.client_id,
        "psa.software": tuple(map(str, token.components)),
    }
