"""Which TCB level of Intel's a platform reaches: avow's own last step.

dcap-qvl ends with rules of its own about attributes (debug, SEPT_VE_DISABLE, a service TD) and then
gives no level at all, although those rules are for a policy. For such quotes the level is found
here, in collateral whose signatures dcap-qvl has verified: docs/decisions/0019.

The rules are Intel's: PCS API version 4, "Get TDX TCB Info", and the Quote Verification Library
1.20 (TcbLevelCheck, TdxModuleCheck, TDRelaunchCheck). Nothing here does I/O or knows a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

COMPONENTS: Final = 16

UP_TO_DATE: Final = "UpToDate"
REVOKED: Final = "Revoked"
_OUT_OF_DATE: Final = "OutOfDate"
_OUT_OF_DATE_CONFIGURATION: Final = "OutOfDateConfigurationNeeded"
_CONFIGURATION: Final = ("ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
_RELAUNCH: Final = "TDRelaunchAdvised"
_RELAUNCH_CONFIGURATION: Final = "TDRelaunchAdvisedConfigurationNeeded"
_STATUSES: Final = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    *_CONFIGURATION,
    _OUT_OF_DATE,
    _OUT_OF_DATE_CONFIGURATION,
    REVOKED,
)


_UPDATE: Final = "update the platform's firmware and microcode"
_UPDATE_MODULE: Final = "update the TDX module"
_NEWER: Final = "fetch newer collateral; if this persists, update the TDX module"


class UnlistedError(Exception):
    """Intel's collateral has no level for the platform. `reason` says for which part, `advice` what
    to do about it."""

    def __init__(self, reason: str, advice: str = _UPDATE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Platform:
    """What the PCK certificate and the quoting enclave's report say. `cpu_svn` is 16 bytes."""

    cpu_svn: bytes
    pce_svn: int
    qe_isv_svn: int


@dataclass(frozen=True, slots=True)
class TdxModule:
    """What the TD report says of the TDX module. `tcb_svn_2` (TD report 1.5) is of the module that
    runs now, `tcb_svn` of the one that started the domain; 16 bytes each."""

    tcb_svn: bytes
    tcb_svn_2: bytes | None
    mrsignerseam: bytes
    seam_attributes: bytes


@dataclass(frozen=True, slots=True)
class Level:
    """Intel's word, the advisories of everything that has one, and the date of the oldest level."""

    status: str
    advisories: tuple[str, ...]
    date: datetime


def find_level(
    tcb_info: Mapping[str, Any],
    qe_identity: Mapping[str, Any],
    platform: Platform,
    module: TdxModule | None,
) -> Level:
    """The level of an SGX platform, or of a TDX one where `module` is given.

    Raises `UnlistedError` where Intel lists none, and `KeyError`, `TypeError` or `ValueError` for
    collateral of another form.
    """
    levels = sorted(tcb_info["tcbLevels"], key=_order, reverse=True)
    reached = [level for level in levels if _reaches(platform, level["tcb"])]
    if not reached:
        raise UnlistedError("the processor's security version is below every level")
    if module is None:
        return _merged(_entry(reached[0]), _qe_entry(qe_identity, platform))
    matching = [level for level in reached if _reaches_tdx(module.tcb_svn, level["tcb"])]
    if not matching:
        raise UnlistedError("the TDX module's TEE_TCB_SVN is below every level", _UPDATE_MODULE)
    processor, domain = _entry(reached[0]), _entry(matching[0])
    own = _module_entry(tcb_info, module)
    qe = _qe_entry(qe_identity, platform)
    if own is None:
        return _merged(domain, qe)
    merged = _merged(domain, own)
    status = _relaunch(tcb_info, levels[0], module, (processor, merged, own, qe))
    return _merged(Level(status, merged.advisories, merged.date), qe)


def _order(level: Mapping[str, Any]) -> tuple[list[int], int, list[int]]:
    tcb = level["tcb"]
    return (
        _svns(tcb["sgxtcbcomponents"]),
        int(tcb["pcesvn"]),
        _svns(tcb.get("tdxtcbcomponents", ())),
    )


def _svns(components: Sequence[Mapping[str, Any]]) -> list[int]:
    return [int(each["svn"]) for each in components]


def _reaches(platform: Platform, tcb: Mapping[str, Any]) -> bool:
    wanted = _svns(tcb["sgxtcbcomponents"])
    if len(wanted) != COMPONENTS or len(platform.cpu_svn) != COMPONENTS:
        raise ValueError("another number of TCB components")
    return platform.pce_svn >= int(tcb["pcesvn"]) and _all_at_least(platform.cpu_svn, wanted)


def _reaches_tdx(tcb_svn: bytes, tcb: Mapping[str, Any]) -> bool:
    wanted = _svns(tcb["tdxtcbcomponents"])
    if len(wanted) != COMPONENTS or len(tcb_svn) != COMPONENTS:
        raise ValueError("another number of TCB components")
    # The first two are the module's own, and a module with a version has levels of its own.
    start = 2 if tcb_svn[1] else 0
    return _all_at_least(tcb_svn[start:], wanted[start:])


def _all_at_least(have: Sequence[int], wanted: Sequence[int]) -> bool:
    return all(mine >= other for mine, other in zip(have, wanted, strict=True))


def _module_entry(tcb_info: Mapping[str, Any], module: TdxModule) -> Level | None:
    """The level of the module's own identity; None for one without a version, which has none."""
    version, svn = module.tcb_svn[1], module.tcb_svn[0]
    identity = _identity(tcb_info, version) if version else tcb_info["tdxModule"]
    mask = bytes.fromhex(identity["attributesMask"])
    wanted = bytes.fromhex(identity["attributes"])
    masked = bytes(a & b for a, b in zip(module.seam_attributes, mask, strict=True))
    if (
        module.mrsignerseam != bytes.fromhex(identity["mrsigner"])
        or masked != wanted
        or module.seam_attributes != masked
    ):
        raise UnlistedError("the TDX module has another signer or other attributes", _NEWER)
    if not version:
        return None
    for level in identity["tcbLevels"]:
        if svn >= int(level["tcb"]["isvsvn"]):
            return _entry(level)
    raise UnlistedError(f"the TDX module's ISVSVN {svn} is below every level", _UPDATE_MODULE)


def _identity(tcb_info: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    name = f"TDX_{version:02X}"
    for identity in tcb_info.get("tdxModuleIdentities", ()):
        if str(identity["id"]).upper() == name:
            found: Mapping[str, Any] = identity
            return found
    raise UnlistedError(f"the TDX module's version {version} ({name}) is not listed", _NEWER)


def _qe_entry(qe_identity: Mapping[str, Any], platform: Platform) -> Level:
    for level in qe_identity["tcbLevels"]:
        if platform.qe_isv_svn >= int(level["tcb"]["isvsvn"]):
            return _entry(level)
    raise UnlistedError("the quoting enclave's ISVSVN is below every level")


def _entry(level: Mapping[str, Any]) -> Level:
    status = level["tcbStatus"]
    if status not in _STATUSES:
        raise ValueError(f"the TCB status {status!r}")
    date = datetime.fromisoformat(str(level["tcbDate"]).replace("Z", "+00:00")).astimezone(UTC)
    return Level(status, tuple(map(str, level.get("advisoryIDs", ()))), date)


def _merged(level: Level, other: Level) -> Level:
    """Both together: QE and TDX module make a platform out of date or revoked, no more."""
    status = level.status
    if REVOKED in (level.status, other.status):
        status = REVOKED
    elif other.status == _OUT_OF_DATE:
        if status in (UP_TO_DATE, "SWHardeningNeeded", _RELAUNCH):
            status = _OUT_OF_DATE
        elif status in (*_CONFIGURATION, _RELAUNCH_CONFIGURATION):
            status = _OUT_OF_DATE_CONFIGURATION
    advisories = dict.fromkeys((*level.advisories, *other.advisories))
    return Level(status, tuple(advisories), min(level.date, other.date))


def _relaunch(
    tcb_info: Mapping[str, Any],
    latest: Mapping[str, Any],
    module: TdxModule,
    found: tuple[Level, Level, Level, Level],
) -> str:
    """ "TDRelaunchAdvised" where all that is old is the module that started the domain: the one
    that runs now is the latest, and the domain has to be started anew to profit."""
    processor, domain, own, qe = found
    if (
        module.tcb_svn_2 is None
        or qe.status in (_OUT_OF_DATE, REVOKED)
        or processor.status not in (UP_TO_DATE, "SWHardeningNeeded", *_CONFIGURATION)
        or domain.status not in (_OUT_OF_DATE, _OUT_OF_DATE_CONFIGURATION)
        or own.status != _OUT_OF_DATE
    ):
        return domain.status
    wanted = _svns(latest["tcb"]["tdxtcbcomponents"])
    svn, version = module.tcb_svn_2[0], module.tcb_svn_2[1]
    least = wanted[0]
    if version:
        least = int(_identity(tcb_info, version)["tcbLevels"][0]["tcb"]["isvsvn"])
    if svn < least or module.tcb_svn_2[2] < wanted[2]:
        return domain.status
    configure = processor.status in _CONFIGURATION or domain.status == _OUT_OF_DATE_CONFIGURATION
    return _RELAUNCH_CONFIGURATION if configure else _RELAUNCH
