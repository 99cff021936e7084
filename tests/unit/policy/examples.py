"""A complete rule for every platform, evidence that it accepts, and how to make it wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from avow.evidence.origin import Verified
from avow.evidence.vocabulary import ClaimValue, kind_of
from avow.policy import Policy, parse_policy

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
NONCE = bytes(range(32))


def digest(size: int, fill: int) -> bytes:
    """Bytes that are told apart by `fill`."""
    return bytes([fill]) * size


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a rule, a value that it accepts and one that it does not, and the check that then
    says so. `lenient` lines may say "any" instead."""

    text: str
    good: ClaimValue
    bad: ClaimValue
    check: str


def exact(value: ClaimValue, bad: ClaimValue, check: str = "P4") -> Line:
    """A line that names just one value."""
    return Line(toml(value), value, bad, check)


def toml(value: ClaimValue) -> str:
    """A claim's value as a policy spells it."""
    if isinstance(value, bytes):
        return json.dumps(value.hex())
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def of_bytes(claim: str, fill: int = 0xA1) -> Line:
    """A line for a claim of bytes, of the size that the vocabulary says."""
    kind = kind_of(claim)
    assert kind is not None
    size = kind.size or 32
    return exact(digest(size, fill), digest(size, fill ^ 1))


def at_least(minimum: int) -> Line:
    return Line(f"{{ min = {minimum} }}", minimum, minimum - 1, "P5")


EVERYWHERE: dict[str, Line] = {
    "module": of_bytes("module"),
    "runtime": of_bytes("runtime"),
    "configuration": of_bytes("configuration"),
    "evidence_age_s": Line("{ min = -60, max = 300 }", 300, 301, "P5"),
}
DEBUG = {"debug": exact(False, True, "P9")}
LOG = {"module_measured": exact(True, False)}
COLLATERAL = {
    "collateral.crl_checked": exact(True, False),
    "collateral.age_s": Line("{ max = 86400 }", 86400, 86401, "P5"),
}
INTEL = {
    "tcb.status": exact("UpToDate", "OutOfDate"),
    "tcb.advisories": Line('{ subset_of = ["INTEL-SA-00289"] }', (), ("INTEL-SA-1",), "P6"),
    "tcb.evaluation_number": at_least(17),
    **COLLATERAL,
}
TDX = {
    "tdx.mrtd": of_bytes("tdx.mrtd"),
    "tdx.attributes": of_bytes("tdx.attributes"),
    "tdx.mrseam": of_bytes("tdx.mrseam"),
    "tdx.sept_ve_disable": exact(True, False),
    "tdx.migratable": exact(False, True),
    "tdx.mrservicetd": of_bytes("tdx.mrservicetd", 0),
    **INTEL,
}
SNP = {
    "snp.measurement": of_bytes("snp.measurement"),
    "snp.chip_id": of_bytes("snp.chip_id"),
    "snp.migration_agent": exact(False, True),
    "snp.vmpl": exact(0, 1),
    "snp.tcb.bootloader": at_least(4),
    "snp.tcb.tee": at_least(1),
    "snp.tcb.snp": at_least(22),
    "snp.tcb.microcode": at_least(213),
    "snp.tcb.fmc": at_least(2),
    "snp.launch_tcb.bootloader": at_least(4),
    "snp.launch_tcb.tee": at_least(1),
    "snp.launch_tcb.snp": at_least(22),
    "snp.launch_tcb.microcode": at_least(213),
    "snp.launch_tcb.fmc": at_least(2),
    "snp.platform.alias_check_complete": exact(True, False),
    **COLLATERAL,
}
BOOT = {f"tpm.pcr.{n}": of_bytes("tpm.pcr.0", n + 1) for n in range(8)}
ARM = {
    "psa.implementation_id": of_bytes("psa.implementation_id"),
    "psa.lifecycle": exact(0x3003, 0x4003),
    "psa.software": exact(("BL:aa:bb", "OS:cc:dd"), ("BL:aa:bb",), "P6"),
}

RULES: dict[str, dict[str, Line]] = {
    "simulated": {},
    "sgx": {**DEBUG, "sgx.mrenclave": of_bytes("sgx.mrenclave"), **INTEL},
    "tdx": {
        **DEBUG,
        **LOG,
        **TDX,
        **{f"tdx.rtmr.{n}": of_bytes("tdx.rtmr.0", n + 1) for n in range(3)},
    },
    "snp": {**DEBUG, **SNP},
    "azure/snp": {
        "azure.confidential_type": exact("snp", "tdx"),
        **DEBUG,
        **LOG,
        **BOOT,
        **SNP,
    },
    "azure/tdx": {
        "azure.confidential_type": exact("tdx", "snp"),
        **DEBUG,
        **LOG,
        **BOOT,
        **TDX,
    },
    "nitro": {**DEBUG, **{f"nitro.pcr.{n}": of_bytes("nitro.pcr.0", n + 1) for n in range(3)}},
    "tpm": {
        **DEBUG,
        **LOG,
        "tpm.ak_origin": exact("ek", "owner"),
        "tpm.ak": of_bytes("tpm.ak"),
        **BOOT,
    },
    "psa": {**DEBUG, **ARM},
    "cca": {
        **DEBUG,
        **ARM,
        "cca.rim": of_bytes("cca.rim"),
        **{f"cca.rem.{n}": of_bytes("cca.rim", n + 1) for n in range(4)},
    },
}

# What must be treated and cannot be "any".
NEVER_ANY = frozenset({"debug", "azure.confidential_type"})


def lines_of(name: str) -> dict[str, Line]:
    """All lines of the rule for a platform."""
    return {**EVERYWHERE, **RULES[name]}


def rule_text(name: str, changes: Mapping[str, str | None] | None = None) -> str:
    """The rule of a platform as TOML; `changes` replaces lines, and removes those of None."""
    texts: dict[str, str | None] = {
        "platform": json.dumps(name.partition("/")[0]),
        **{claim: line.text for claim, line in lines_of(name).items()},
        **(changes or {}),
    }
    return "".join(f"{claim} = {text}\n" for claim, text in texts.items() if text is not None)


def head(name: str = "") -> str:
    """The head of a policy for a platform."""
    simulated = "unsafe_simulated = true\n" if name == "simulated" else ""
    return f'version = 1\nname = "test"\n{simulated}'


def policy_for(name: str, changes: Mapping[str, str | None] | None = None) -> Policy:
    """A policy with one rule at the top."""
    return parse_policy(head(name) + rule_text(name, changes), name="policy.toml")


def policy_of(text: str) -> Policy:
    """The policy of `text` behind a head."""
    return parse_policy(head() + text, name="policy.toml")


def evidence_for(name: str, changes: Mapping[str, ClaimValue | None] | None = None) -> Verified:
    """Verified claims that the rule of a platform accepts; None in `changes` removes one."""
    platform = name.partition("/")[0]
    claims: dict[str, ClaimValue | None] = {
        "platform": platform,
        "role": "server",
        "boot_id": digest(32, 7),
        "key": digest(32, 8),
        "user_data": b"",
        "module_measured": False,
        **{claim: line.good for claim, line in lines_of(name).items()},
    }
    if name == "simulated":
        claims |= {"simulated": True, "debug": True}
    claims |= changes or {}
    present = {claim: value for claim, value in claims.items() if value is not None}
    return Verified(platform, NONCE, present, NOW)


def changed(verified: Verified, changes: Mapping[str, ClaimValue]) -> Verified:
    """The same evidence with other claims."""
    return replace(verified, claims={**verified.claims, **changes})
