"""The text of a new policy: this release's broker, and a rule for each platform.

What only the deployer knows is left as a gap: a text that no claim can have, so that the policy is
refused, naming the place, until it is filled. Reference values can come from evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from avow import __version__
from avow.cli.references import ReferenceValues
from avow.evidence.vocabulary import ClaimValue, kind_of

CLOCKS_DIFFER_S: Final = 300
COLLATERAL_AGE_MAX_S: Final = 30 * 86400

# "held": all of a list; "said": a value; both are left out where the evidence has none.
Form = Literal["value", "min", "fixed", "held", "said"]


@dataclass(frozen=True, slots=True)
class Line:
    """One claim of a rule. `text` is what stands there when no evidence says better; without it
    there is a gap."""

    claim: str
    comment: str
    form: Form = "value"
    text: str | None = None


def _fixed(claim: str, text: str, comment: str = "") -> Line:
    return Line(claim, comment, "fixed", text)


_DEBUG: Final = _fixed("debug", "false", "Nobody looks inside.")
_LOG: Final = _fixed("module_measured", "true", "The platform's own log holds the three digests.")
_COLLATERAL: Final = (
    _fixed("collateral.crl_checked", "true"),
    _fixed("collateral.age_s", f"{{ max = {COLLATERAL_AGE_MAX_S} }}"),
)
_INTEL: Final = (
    Line(
        "tcb.status",
        'Also { accept = ["UpToDate"], grace = ["OutOfDate"], grace_days = 30 }.',
        text='["UpToDate"]',
    ),
    Line("tcb.advisories", "Intel's advisories that you live with.", text="[]"),
    Line("tcb.evaluation_number", "Intel raises it with each recovery of the TCB.", "min"),
    *_COLLATERAL,
)
_SNP: Final = (
    Line("snp.measurement", "The launch measurement of the machine's image."),
    _fixed("snp.vmpl", "0"),
    _fixed("snp.migration_agent", "false"),
    Line(
        "snp.chip_id",
        'The processors that are yours, a list; "any" trusts every owner of one.',
    ),
    Line("snp.tcb.bootloader", "The lowest firmware versions.", "min"),
    Line("snp.tcb.tee", "", "min"),
    Line("snp.tcb.snp", "", "min"),
    Line("snp.tcb.microcode", "", "min"),
    Line("snp.tcb.fmc", "Turin and later; 0 before.", "min"),
    Line("snp.launch_tcb.bootloader", "The same for the firmware that launched the guest.", "min"),
    Line("snp.launch_tcb.tee", "", "min"),
    Line("snp.launch_tcb.snp", "", "min"),
    Line("snp.launch_tcb.microcode", "", "min"),
    Line("snp.launch_tcb.fmc", "", "min"),
    _fixed("snp.platform.alias_check_complete", "true", "BadRAM (AMD-SB-3015) is closed."),
    Line("snp.mitigations.launch", "The mitigations that the firmware has verified.", "held"),
    Line("snp.mitigations.current", "", "held"),
    *_COLLATERAL,
)
_TDX: Final = (
    Line("tdx.mrtd", "The first contents of the trust domain: its firmware."),
    Line("tdx.attributes", ""),
    Line(
        "tdx.sept_ve_disable",
        "false where the host can make the guest's kernel take #VE, as on early Azure v5 VMs.",
        text="true",
    ),
    Line("tdx.migratable", "", text="false"),
    Line(
        "tdx.mrservicetd",
        "The service TD that is bound to the domain; all zero for none.",
        text=f'"{bytes(48).hex()}"',
    ),
    Line("tdx.mrseam", "Intel's module; a list while it is updated."),
)
_BOOT: Final = tuple(
    Line(f"tpm.pcr.{n}", "What was booted: firmware, loader, kernel." if n == 0 else "")
    for n in range(8)
)
_ARM: Final = (
    Line("psa.implementation_id", "The immutable root of trust."),
    Line("psa.lifecycle", ""),
    Line("psa.software", "All software components."),
)

TEMPLATES: Final[Mapping[str, tuple[Line, ...]]] = {
    "simulated": (),
    "sgx": (
        _DEBUG,
        Line("sgx.mrenclave", "Or sgx.mrsigner, sgx.isv_prod_id and sgx.isv_svn = { min = … }."),
        *_INTEL,
    ),
    "tdx": (
        _DEBUG,
        _LOG,
        *_TDX,
        *(Line(f"tdx.rtmr.{n}", "What was booted." if n == 0 else "") for n in range(3)),
        *_INTEL,
    ),
    "snp": (_DEBUG, *_SNP),
    "azure/snp": (_DEBUG, _LOG, _fixed("azure.confidential_type", '"snp"'), *_BOOT, *_SNP),
    "azure/tdx": (_DEBUG, _LOG, _fixed("azure.confidential_type", '"tdx"'), *_BOOT, *_TDX, *_INTEL),
    "nitro": (
        _DEBUG,
        Line("nitro.pcr.0", "The enclave's image, its kernel, its application."),
        Line("nitro.pcr.1", ""),
        Line("nitro.pcr.2", ""),
    ),
    "tpm": (
        _DEBUG,
        _LOG,
        Line("tpm.ak_origin", "", text='"ek"'),
        Line("tpm.ak", "The attestation keys that are yours, a list; or tpm.ek."),
        *_BOOT,
    ),
    "psa": (_DEBUG, *_ARM),
    "cca": (
        _DEBUG,
        *_ARM,
        Line("cca.rim", "What the realm started with, and what it measured since."),
        *(Line(f"cca.rem.{n}", "") for n in range(4)),
        Line("cca.mec_policy", "Whether other realms share the memory's keys.", "said"),
        Line("cca.lfa_policy", "Whether firmware may be exchanged while it runs.", "said"),
    ),
}

HARDWARE: Final = tuple(name for name in TEMPLATES if name != "simulated")


@dataclass(frozen=True, slots=True)
class Draft:
    """A policy's text, and the claims that still have to be filled in."""

    text: str
    gaps: tuple[str, ...]


def template_of(platform: str, claims: Mapping[str, ClaimValue]) -> str:
    """The name of the template for a platform; on azure the claims say which."""
    if platform != "azure":
        return platform
    kind = claims.get("azure.confidential_type")
    return "azure/tdx" if kind == "tdx" else "azure/snp"


def draft(
    references: ReferenceValues,
    templates: Sequence[str],
    claims: Mapping[str, ClaimValue],
) -> Draft:
    """The policy with one rule for each template; without one, all of them as comments."""
    lines = [
        "# What a broker has to show. `avow policy explain` says it in words.",
        "version = 1",
        f'name = "the broker of avow {__version__}"',
    ]
    if "simulated" in templates:
        lines += [
            "# SIMULATED evidence is accepted: nothing is protected. For trials only.",
            "unsafe_simulated = true",
        ]
    lines += ["", "# Exactly this release, with exactly this configuration."]
    lines += [f'{name} = "{value}"' for name, value in references.printable().items()]
    lines += [
        "",
        "# Freshness comes from the nonce; this is how far the two clocks may differ.",
        f"evidence_age_s = {{ min = -{CLOCKS_DIFFER_S}, max = {CLOCKS_DIFFER_S} }}",
    ]
    gaps: list[str] = []
    for name in templates:
        lines += ["", *_rule(name, claims, gaps)]
    if not templates:
        lines += [
            "",
            "# No platform yet, so this policy is refused. Uncomment the rule of yours and fill it",
            "# in, or run `avow policy init` again with --platform or --from.",
        ]
        for name in HARDWARE:
            lines += ["", *(f"# {line}".rstrip() for line in _rule(name, {}, []))]
        gaps.append("platform")
    return Draft("".join(f"{line}\n" for line in lines), tuple(gaps))


def _rule(name: str, claims: Mapping[str, ClaimValue], gaps: list[str]) -> Iterator[str]:
    yield "[[any]]"
    yield f'platform = "{name.partition("/")[0]}"'
    for line in TEMPLATES[name]:
        if line.form in ("held", "said") and not claims.get(line.claim):
            continue
        if line.comment:
            yield f"# {line.comment}"
        yield f"{line.claim} = {_value(line, claims, gaps)}"


def _value(line: Line, claims: Mapping[str, ClaimValue], gaps: list[str]) -> str:
    value = claims.get(line.claim)
    if line.form == "fixed" or value is None:
        if line.text is not None:
            return line.text
        gaps.append(line.claim)
        kind = kind_of(line.claim)
        of_bytes = "" if kind is None or kind.size is None else f", {2 * kind.size} hex digits"
        gap = f'"FILL IN{of_bytes}"'
        return f"{{ min = {gap} }}" if line.form == "min" else gap
    key = {"min": "min", "held": "all_of"}.get(line.form)
    return f"{{ {key} = {_toml(value)} }}" if key else _toml(value)


def _toml(value: ClaimValue) -> str:
    """A claim's value as TOML; what comes from evidence cannot end the text it stands in."""
    match value:
        case bool():
            return str(value).lower()
        case bytes():
            return f'"{value.hex()}"'
        case tuple():
            return "[" + ", ".join(_toml(each) for each in value) + "]"
        case str():
            escaped = "".join(
                char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08X}"
                for char in value
            )
            return f'"{escaped}"'
        case _:
            return str(value)
