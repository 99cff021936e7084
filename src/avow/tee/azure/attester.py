"""The attesting side of Azure's confidential VMs."""

from __future__ import annotations

from functools import partial
from typing import Final

from avow.errors import MalformedError, UnavailableError
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.azure.hcl import HclReport, parse_hcl_report, parse_runtime_data
from avow.tee.azure.metadata import MetadataService
from avow.tee.azure.report import Report
from avow.tee.intel.collateral import Collateral
from avow.tee.intel.quote import without_padding
from avow.tee.snp.attester import find_chain
from avow.tee.snp.report import SnpEvidence, parse_report
from avow.tee.tdx.report import FORMAT, encode_report
from avow.tee.tpm import event_log
from avow.tee.tpm.attester import DEFAULT_PCRS, Measuring, QuotingKey
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.quote import spki_digest

# Where Azure's virtual TPM has the HCL report and its attestation key.
REPORT_INDEX: Final = 0x01400001
AK_HANDLE: Final = 0x81000003


class AzureAttester:
    """Quotes with the virtual TPM's own key; the hardware's part is fetched once, at the start, as
    it vouches for the key and not for what is quoted."""

    platform = "azure"

    def __init__(
        self,
        device: TpmDevice,
        metadata: MetadataService | None = None,
        *,
        collateral: Collateral | None = None,
        crl: bytes | None = None,
        pcrs: tuple[int, ...] = DEFAULT_PCRS,
    ) -> None:
        """`collateral` (TDX) or `crl` (SEV-SNP, in DER) go with each report. The attester closes
        `device`. Raises `UnavailableError`."""
        self._device = device
        self._metadata = MetadataService() if metadata is None else metadata
        self._collateral = collateral
        self._crl = crl
        self._measuring = Measuring(device)
        try:
            device.retried(lambda: self._open(tuple(sorted({*pcrs, event_log.PCR}))))
        except MalformedError as error:
            device.close()
            raise UnavailableError(
                f"expected the virtual TPM of a confidential VM of Azure, got another ({error}); "
                f"`avow tee` lists what this machine has"
            ) from error
        except UnavailableError:
            device.close()
            raise

    def _open(self, pcrs: tuple[int, ...]) -> None:
        self._hcl = parse_hcl_report(self._device.read_nv(REPORT_INDEX))
        runtime = parse_runtime_data(self._hcl.runtime)
        load = partial(self._device.open_persistent, AK_HANDLE)
        self._quoting = QuotingKey(self._device, load, pcrs, self._measuring)
        if spki_digest(self._quoting.public.key) != spki_digest(runtime.ak):
            raise UnavailableError(
                f"expected the key at handle {AK_HANDLE:#x} to be that of the HCL report, got "
                f"another; restart the VM"
            )
        self._hardware = self._fetch(self._hcl)

    def measure(self, workload: Workload) -> None:
        """See `avow.evidence.roles.Attester`: into PCR 23 of the virtual TPM."""
        self._measuring.measure(workload)

    def quote(self, report_data: ReportData) -> bytes:
        """See `avow.evidence.roles.Attester`."""
        signed = self._quoting.quote(report_data)
        return Report(
            kind=self._hcl.kind,
            hardware=self._hardware,
            runtime=self._hcl.runtime,
            quote=signed.quote,
            signature=signed.signature,
            pcrs=signed.pcrs,
            log=signed.log,
        ).encoded()

    def close(self) -> None:
        """Lets go of the TPM."""
        self._device.close()

    def _fetch(self, hcl: HclReport) -> bytes:
        """The report of the platform `snp` or `tdx`."""
        if hcl.kind == "snp":
            report = parse_report(hcl.hardware_report)
            chain = find_chain(report, self._metadata.amd_certificates())
            return SnpEvidence(hcl.hardware_report, chain, self._crl).encoded()
        quote = without_padding(self._metadata.td_quote(hcl.hardware_report), FORMAT)
        return encode_report(quote, self._collateral, None)
