"""Who made a CCA token: the platform whose key (CPAK) its maker has published, and its realm.

RMM specification (DEN0137), section A7.2.3, and draft-ffm-rats-cca-token, section 5. There is no
certificate in a token: the verifier is given the public keys by instance id, as endorsements.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from avow.errors import Check, UntrustedError, well_formed
from avow.evidence.roles import Authenticated
from avow.evidence.vocabulary import ClaimValue
from avow.tee.cca.report import Token, parse_token
from avow.tee.psa.report import is_secured
from avow.tee.psa.verifier import endorsed, is_published

FORM: Final = Check("CCA1", "the token is well-formed", "DEN0137, A7.2.3")
KEY: Final = Check("CCA2", "the platform's key is endorsed", "draft-ffm-rats-cca-token, 5")
PLATFORM: Final = Check("CCA3", "the platform signed its token", "DEN0137, A7.2.3")
BINDING: Final = Check("CCA4", "the platform names the realm's key", "DEN0137, A7.2.3.2.2")
REALM: Final = Check("CCA5", "the realm's key signed the realm token", "DEN0137, A7.2.3.1.7")
CHECKS: Final = (FORM, KEY, PLATFORM, BINDING, REALM)


class CcaVerifier:
    """Proves CCA tokens. `keys` are CPAK public keys by instance id (33 bytes)."""

    def __init__(self, keys: Mapping[bytes, ec.EllipticCurvePublicKey]) -> None:
        self._keys = dict(keys)

    @property
    def platform(self) -> str:
        """See `avow.evidence.roles.Verifier`."""
        return "cca"

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`. `report` is the token; it does not depend on `now`:
        neither tokens nor endorsed keys have an end."""
        with well_formed(FORM, "token", advice="ask again"):
            token = parse_token(report)
        platform, realm = token.platform, token.realm
        key = endorsed(self._keys, platform.instance_id, KEY)
        platform.signed.verify(key, PLATFORM)
        if not hmac.compare_digest(platform.nonce, realm.key_hash):
            raise UntrustedError.at(
                BINDING,
                expected=f"the realm key {platform.nonce.hex()} that the platform names",
                actual=f"the realm key {realm.key_hash.hex()}",
                advice="ask again; if this persists, somebody has combined two tokens",
            )
        realm.signed.verify(realm.key, REALM)
        return Authenticated("cca", realm.challenge, "report data", _claims(token, key))


def _claims(token: Token, key: ec.EllipticCurvePublicKey) -> dict[str, ClaimValue]:
    platform, realm = token.platform, token.realm
    claims: dict[str, ClaimValue] = {
        "debug": not is_secured(platform.lifecycle) or is_published(key),
        "psa.profile": platform.profile,
        "psa.implementation_id": platform.implementation_id,
        "psa.instance_id": platform.instance_id,
        "psa.lifecycle": platform.lifecycle,
        "psa.software": tuple(map(str, platform.components)),
        "cca.rim": realm.rim,
        "cca.personalization": realm.personalization,
        "cca.hash_algorithm": realm.hash_algorithm,
        "cca.platform_config": platform.config,
    }
    said = {
        "cca.instance_id": realm.instance_id,
        "cca.mec_policy": realm.mec_policy,
        "cca.lfa_policy": realm.lfa_policy,
    }
    claims |= {name: value for name, value in said.items() if value is not None}
    return claims | {f"cca.rem.{index}": rem for index, rem in enumerate(realm.rems)}
