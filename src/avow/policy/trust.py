"""From judged claims to AR4SI's trust vector and the tier.

The numbers are those of draft-ietf-rats-ar4si, section 2.3.4: 2 affirms; 32 and up warn (known
weaknesses, or what cannot be told); 96 and up speak against. A claim that nobody asks about says
nothing, 0. The tier of an accepted result is the worst of its vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from avow.errors import Finding
from avow.evidence.appraisal import Tier, TrustVector, tier_of
from avow.evidence.vocabulary import ClaimValue
from avow.policy.constraints import same

Category = Literal["instance_identity", "configuration", "executables", "hardware"]

# By the longest prefix of a claim's name.
CATEGORIES: Final[Mapping[str, Category]] = {
    "platform": "hardware",
    "simulated": "hardware",
    "role": "configuration",
    "module": "executables",
    "runtime": "executables",
    "configuration": "configuration",
    "boot_id": "instance_identity",
    "key": "instance_identity",
    "user_data": "configuration",
    "evidence_age_s": "configuration",
    "module_measured": "executables",
    "debug": "configuration",
    "tcb": "hardware",
    "collateral": "hardware",
    "sgx": "executables",
    "sgx.attributes": "configuration",
    "sgx.config_id": "configuration",
    "tdx": "configuration",
    "tdx.mrtd": "executables",
    "tdx.rtmr": "executables",
    "tdx.mrseam": "hardware",
    "tdx.mrsignerseam": "hardware",
    "snp": "configuration",
    "snp.measurement": "executables",
    "snp.guest_svn": "executables",
    "snp.family_id": "executables",
    "snp.image_id": "executables",
    "snp.id_key_digest": "executables",
    "snp.author_key_digest": "executables",
    "snp.chip_id": "instance_identity",
    "snp.csp_id": "instance_identity",
    "snp.signer": "hardware",
    "snp.product": "hardware",
    "snp.tcb": "hardware",
    "snp.launch_tcb": "hardware",
    "snp.committed_tcb": "hardware",
    "snp.current_tcb": "hardware",
    "snp.platform": "hardware",
    "snp.platform_info": "hardware",
    "snp.mitigations": "hardware",
    "tpm": "hardware",
    "tpm.pcr": "executables",
    "tpm.ak": "instance_identity",
    "tpm.ek": "instance_identity",
    "tpm.ak_origin": "instance_identity",
    "azure": "configuration",
    "azure.confidential_type": "hardware",
    "nitro.pcr": "executables",
    "nitro.module_id": "instance_identity",
    "psa": "hardware",
    "psa.instance_id": "instance_identity",
    "psa.boot_seed": "instance_identity",
    "psa.client_id": "configuration",
    "psa.software": "executables",
    "cca": "executables",
    "cca.personalization": "configuration",
    "cca.platform_config": "configuration",
    "cca.hash_algorithm": "configuration",
    "cca.instance_id": "instance_identity",
    "cca.mec_policy": "hardware",
    "cca.lfa_policy": "configuration",
}

AFFIRMED: Final = 2
_WARNED: Final[Mapping[Category, int]] = {
    "instance_identity": 32,  # nobody said which instance it is
    "configuration": 36,  # elements of it were not looked at
    "executables": 33,  # not all of them were recognised
    "hardware": 32,  # known weaknesses, or not looked for
}
_REFUSED: Final[Mapping[Category, int]] = {
    "instance_identity": 97,  # not recognised
    "configuration": 96,
    "executables": 96,
    "hardware": 97,  # not recognised
}

# A rule may name these values, and yet they are a known weakness.
_WEAK: Final[Mapping[str, ClaimValue]] = {
    "platform": "simulated",
    "debug": True,
    "module_measured": False,
    "collateral.crl_checked": False,
    "snp.migration_agent": True,
    "snp.platform.alias_check_complete": False,
    "tdx.sept_ve_disable": False,
    "tdx.migratable": True,
    "tpm.clock_safe": False,
    "azure.secure_boot": False,
}


def category_of(claim: str) -> Category:
    """The part of the vector that a claim speaks about."""
    name = claim
    while name not in CATEGORIES:
        name = name.rpartition(".")[0]
        if not name:
            return "hardware"
    return CATEGORIES[name]


@dataclass(slots=True)
class Tally:
    """The worst that was said in each part of the vector."""

    values: dict[Category, int] = field(default_factory=dict)

    @classmethod
    def refused(cls, findings: Iterable[Finding]) -> Tally:
        """Evidence that no rule is for."""
        tally = cls()
        if list(findings):
            tally.refuse("platform")
        return tally

    def refuse(self, claim: str) -> None:
        """A claim was found wrong."""
        category = category_of(claim)
        self._note(category, _REFUSED[category])

    def warn(self, claim: str) -> None:
        """A claim was not looked at, or was accepted by a leniency."""
        category = category_of(claim)
        self._note(category, _WARNED[category])

    def affirm(self, claim: str, value: ClaimValue | None) -> None:
        """A claim is as the policy wants it; where that is a known weakness, it warns."""
        if _is_weak(claim, value):
            self.warn(claim)
        else:
            self._note(category_of(claim), AFFIRMED)

    def _note(self, category: Category, value: int) -> None:
        self.values[category] = max(self.values.get(category, 0), value)

    def vector(self) -> TrustVector:
        """As AR4SI's vector."""
        return TrustVector(**self.values)


def tier(tally: Tally, *, accepted: bool) -> Tier:
    """Contraindicated for what was refused, else the worst of the vector."""
    if not accepted:
        return Tier.CONTRAINDICATED
    return min((tier_of(value) for value in tally.values.values()), key=lambda each: each.rank)


def _is_weak(claim: str, value: ClaimValue | None) -> bool:
    if claim == "tcb.status":
        return value != "UpToDate"
    if claim == "tcb.advisories":
        return bool(value)
    return claim in _WEAK and value is not None and same(_WEAK[claim], value)
