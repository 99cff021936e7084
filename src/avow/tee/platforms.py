"""All platforms in one place: which are here, how to open one, who verifies them.

A platform's code is imported when it is used, so that what it needs matters to nobody else.

The attesting side is set up by environment variables, listed in docs/platforms/index.md: they
describe the machine, not the service that runs on it.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from avow.errors import MalformedError, UnavailableError
from avow.evidence.roles import Attester, Authenticated, Verifier
from avow.runtime.process import process_check
from avow.tee.detection import Found, Machine, detect
from avow.tee.endorsements import Endorsements, load_endorsements, read_file
from avow.tee.measured_process import OfMeasuredProcess

if TYPE_CHECKING:
    from avow.tee.intel.stapling import StapledCollateral

__all__ = [
    "Endorsements",
    "Found",
    "Machine",
    "PLATFORMS",
    "detect",
    "load_endorsements",
    "open_attester",
    "verifiers",
]

Environment = Mapping[str, str]

# By hand: a VCEK has the serial number zero, which X.509 parsers may refuse.
_PEM: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----"
)


def open_attester(
    name: str, environment: Environment | None = None, found: list[Found] | None = None
) -> Attester:
    """The attesting side of the platform `name`, or of the first one found for "auto".

    `auto` never means `simulated`. `environment` (default: the process's) has the platforms'
    settings, `found` (default: what `detect` finds) is where `auto` chooses. Raises
    `UnavailableError`, and `MalformedError` for a setting or a file in it that has the wrong form.
    """
    environment = os.environ if environment is None else environment
    attester = _open_attester(name, environment, found)
    check = process_check()
    return attester if check is None else OfMeasuredProcess(attester, check)


def _open_attester(name: str, environment: Environment, found: list[Found] | None) -> Attester:
    if name == "auto":
        return _first(detect() if found is None else found, environment)
    if name not in _ATTESTERS:
        raise MalformedError(
            f"expected auto or one of {', '.join(PLATFORMS)} as the platform, got {name!r}; "
            f"`avow tee` lists what was found"
        )
    try:
        return _ATTESTERS[name](environment)
    except ImportError as error:
        raise _absent_package(name, error) from error


def verifiers(endorsements: Endorsements | None = None) -> Mapping[str, Verifier]:
    """A verifier for every platform. One that lacks endorsements says so when it is asked."""
    known = Endorsements() if endorsements is None else endorsements
    return {name: _LateVerifier(name, known) for name in PLATFORMS}


class _LateVerifier:
    """Makes the real verifier when it is first asked."""

    def __init__(self, platform: str, endorsements: Endorsements) -> None:
        self.platform = platform
        self._endorsements = endorsements
        self._made: Verifier | None = None

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`."""
        if self._made is None:
            try:
                self._made = _VERIFIERS[self.platform](self._endorsements)
            except ImportError as error:
                raise _absent_package(self.platform, error) from error
        return self._made.authenticate(report, now)


def _first(found: list[Found], environment: Environment) -> Attester:
    """The first platform that is present. Whether Azure's machine is a confidential one shows only
    when it is opened; all others have to open once they are found, or the operator is told."""
    for each in found:
        if not each.present or each.platform == "simulated":
            continue
        try:
            return _open_attester(each.platform, environment, None)
        except UnavailableError as error:
            if each.platform == "azure":
                continue
            raise UnavailableError(
                f"expected the platform {each.platform} to attest, since it was found "
                f"({each.reason}); {error}"
            ) from error
    raise UnavailableError(
        "expected a machine with a trusted execution environment or a TPM, got none; `avow "
        "tee` says why each is absent; `--tee simulated` runs without any protection"
    )


def _absent_package(name: str, error: ImportError) -> UnavailableError:
    return UnavailableError(
        f"expected the package {error.name}, which the platform {name} needs, got none; "
        "`avow tee` says what to install"
    )


def _path(environment: Environment, name: str) -> Path | None:
    value = environment.get(name, "")
    return Path(value) if value else None


def _number(environment: Environment, name: str, allowed: range) -> int | None:
    value = environment.get(name, "")
    if not value:
        return None
    if not (value.isascii() and value.isdecimal()) or int(value[:9]) not in allowed:
        raise MalformedError(
            f"expected a number from {allowed[0]} to {allowed[-1]} in {name}, got {value[:40]!r}; "
            f"change it"
        )
    return int(value[:9])


def _certificates(environment: Environment, name: str) -> list[bytes]:
    """The certificates of a PEM file, in DER."""
    path = _path(environment, name)
    if path is None:
        return []
    content = read_file(path, "certificates as PEM")
    try:
        return [
            base64.b64decode(b"".join(body.split()), validate=True)
            for body in _PEM.findall(content)
        ]
    except ValueError as error:
        raise MalformedError(
            f"expected certificates as PEM in {path}, got something else; fetch them again"
        ) from error


def _stapled(environment: Environment) -> StapledCollateral | None:
    """Intel's collateral that goes with the evidence."""
    from avow.tee.intel.stapling import StapledCollateral

    path = _path(environment, "AVOW_INTEL_COLLATERAL")
    return None if path is None else StapledCollateral(path)


def _simulated(environment: Environment) -> Attester:
    from avow.tee.simulated.attester import SimulatedAttester

    path = _path(environment, "AVOW_SIMULATED_KEY")
    return SimulatedAttester() if path is None else SimulatedAttester.from_file(path)


def _simulated_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.simulated.verifier import SimulatedVerifier

    return SimulatedVerifier()


def _sgx(environment: Environment) -> Attester:
    from avow.tee.configfs_tsm import KernelFiles
    from avow.tee.sgx.attester import SgxAttester

    return SgxAttester(KernelFiles(), collateral=_stapled(environment))


def _sgx_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.intel.vouching import Roots
    from avow.tee.sgx.verifier import SgxVerifier

    return SgxVerifier(Roots(endorsements.intel))


def _tdx(environment: Environment) -> Attester:
    from avow.tee.configfs_tsm import TsmReports
    from avow.tee.tdx.attester import RunTimeRegister, TdxAttester

    return TdxAttester(TsmReports(), RunTimeRegister(), _stapled(environment))


def _tdx_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.intel.vouching import Roots
    from avow.tee.tdx.verifier import TdxVerifier

    return TdxVerifier(Roots(endorsements.intel))


def _snp(environment: Environment) -> Attester:
    from avow.tee.configfs_tsm import REPORTS, TsmReports
    from avow.tee.snp.attester import DeviceSource, SnpAttester, TsmSource

    return SnpAttester(
        TsmSource(TsmReports()) if REPORTS.is_dir() else DeviceSource(),
        vmpl=_number(environment, "AVOW_SNP_VMPL", range(4)),
        certificates=_certificates(environment, "AVOW_SNP_CERTIFICATES"),
        crl=_amd_crl(environment),
    )


def _amd_crl(environment: Environment) -> bytes | None:
    """AMD's revocation list that goes with the evidence."""
    from avow.tee.snp.certificates import parse_crl

    path = _path(environment, "AVOW_SNP_CRL")
    if path is None:
        return None
    crl = read_file(path, "AMD's revocation list")
    parse_crl(crl)
    return crl


def _snp_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.snp.verifier import SnpVerifier

    return SnpVerifier(crls=endorsements.amd_crls)


def _nitro(environment: Environment) -> Attester:
    from avow.tee.nitro.attester import NitroAttester

    return NitroAttester()


def _nitro_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.nitro.verifier import NitroVerifier

    return NitroVerifier()


def _tpm(environment: Environment) -> Attester:
    from avow.tee.tpm.attester import TpmAttester, TpmSettings

    return TpmAttester(TpmSettings.from_environment(environment))


def _tpm_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.tpm.chain import Anchors
    from avow.tee.tpm.verifier import TpmVerifier

    return TpmVerifier(Anchors(endorsements.tpm_roots, endorsements.tpm_crls))


def _azure(environment: Environment) -> Attester:
    from avow.tee.azure.attester import AzureAttester
    from avow.tee.tpm.attester import TpmSettings
    from avow.tee.tpm.device import TpmDevice

    settings = TpmSettings.from_environment(environment)
    stapled, crl = _stapled(environment), _amd_crl(environment)
    collateral = None if stapled is None else stapled()
    device = TpmDevice(settings.tcti, settings.timeout_s)
    try:
        return AzureAttester(device, collateral=collateral, crl=crl)
    except UnavailableError:
        # `auto` goes on with the TPM, which takes one user at a time on some machines.
        device.close()
        raise


def _azure_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.azure.verifier import AzureVerifier

    hardware = {"snp": _snp_verifier(endorsements), "tdx": _tdx_verifier(endorsements)}
    return AzureVerifier(hardware)


def _cca(environment: Environment) -> Attester:
    from avow.tee.cca.attester import CcaAttester
    from avow.tee.configfs_tsm import TsmReports

    return CcaAttester(TsmReports())


def _cca_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.cca.verifier import CcaVerifier

    return CcaVerifier(endorsements.cca_keys)


def _psa(environment: Environment) -> Attester:
    from avow.tee.psa.attester import PsaAttester

    return PsaAttester()


def _psa_verifier(endorsements: Endorsements) -> Verifier:
    from avow.tee.psa.verifier import PsaVerifier

    return PsaVerifier(endorsements.psa_keys)


_ATTESTERS: Final[Mapping[str, Callable[[Environment], Attester]]] = {
    "azure": _azure,
    "tdx": _tdx,
    "snp": _snp,
    "cca": _cca,
    "nitro": _nitro,
    "sgx": _sgx,
    "tpm": _tpm,
    "psa": _psa,
    "simulated": _simulated,
}
_VERIFIERS: Final[Mapping[str, Callable[[Endorsements], Verifier]]] = {
    "azure": _azure_verifier,
    "tdx": _tdx_verifier,
    "snp": _snp_verifier,
    "cca": _cca_verifier,
    "nitro": _nitro_verifier,
    "sgx": _sgx_verifier,
    "tpm": _tpm_verifier,
    "psa": _psa_verifier,
    "simulated": _simulated_verifier,
}
PLATFORMS: Final = tuple(_VERIFIERS)
