"""How long a verifier takes, on real evidence where it is there, without the network.

A client that connects once pays for the first time, when no chain of certificates is remembered;
one that connects again, and a broker with many clients, pays for the others.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

from avow.evidence.roles import Verifier
from avow.tee.intel.collateral import parse_collateral
from avow.tee.intel.quote import without_padding
from avow.tee.intel.vouching import Roots
from avow.tee.nitro.verifier import NitroVerifier
from avow.tee.sgx.report import encode_report as encode_sgx
from avow.tee.sgx.verifier import SgxVerifier
from avow.tee.simulated.verifier import SimulatedVerifier
from avow.tee.snp.report import SnpEvidence
from avow.tee.snp.verifier import SnpVerifier
from avow.tee.tdx.report import FORMAT as TDX_FORMAT
from avow.tee.tdx.report import encode_report as encode_tdx
from avow.tee.tdx.verifier import TdxVerifier
from avow.tee.tpm.verifier import TpmVerifier
from bench.brokers import ROOT

INTEL_LIMIT_MS = 3.0
LIMIT_MS = 1.0
REAL, MOCK = "real evidence", "mock"
# Inside of what collateral and certificates of the real evidence are valid for.
_INTEL_AT = datetime(2025, 6, 25, tzinfo=UTC)
_AMD_AT = datetime(2025, 6, 1, tzinfo=UTC)
_NITRO_AT = datetime(2021, 3, 17, 22, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Case:
    """One report; `prepare` makes a verifier that has seen nothing, ready to verify it."""

    platform: str
    source: str
    limit_ms: float | None
    prepare: Callable[[], Callable[[], object]]


def time_ms(case: Case, count: int) -> dict[str, float]:
    """Medians: of verifiers that are new, and of one that has seen its like."""
    first = [_took_ms(case.prepare()) for _ in range(max(3, count // 10))]
    verify = case.prepare()
    verify()
    return {
        "ms": statistics.median(_took_ms(verify) for _ in range(count)),
        "first_ms": statistics.median(first),
    }


def _took_ms(verify: Callable[[], object]) -> float:
    start_ns = time.perf_counter_ns()
    verify()
    return (time.perf_counter_ns() - start_ns) / 1e6


def vectors() -> Path | None:
    """The folder of real evidence; None where there is none."""
    beside = ROOT.parent / "shared" / "vectors"
    folder = Path(os.environ.get("AVOW_VECTORS", beside))
    return folder if folder.is_dir() else None


def cases(folder: Path | None) -> Iterator[Case]:
    """One for each platform with a target: real evidence from `folder`, else a mock's."""
    yield from (_mock_intel() if folder is None else _real_intel(folder))
    yield _mock_snp() if folder is None else _real_snp(folder)
    yield _mock_nitro() if folder is None else _real_nitro(folder)
    yield from _software_tpm()
    yield _simulated()


def _authenticate(
    platform: str,
    source: str,
    limit_ms: float | None,
    make: Callable[[], Verifier],
    report: bytes,
    now: datetime,
) -> Case:
    def prepare() -> Callable[[], object]:
        verifier = make()
        return lambda: verifier.authenticate(report, now)

    return Case(platform, source, limit_ms, prepare)


def _real_intel(folder: Path) -> Iterator[Case]:
    sgx, tdx = folder / "sgx/quote_v3", folder / "tdx/quote_v4"
    collateral = [
        parse_collateral(path.with_suffix(".collateral.json").read_bytes(), path.name)
        for path in (sgx, tdx)
    ]
    quotes = [path.with_suffix(".bin").read_bytes() for path in (sgx, tdx)]
    report = encode_sgx(quotes[0], collateral[0])
    yield _authenticate("sgx", REAL, INTEL_LIMIT_MS, SgxVerifier, report, _INTEL_AT)
    # As the kernel hands it out: the attester cuts the padding off.
    report = encode_tdx(without_padding(quotes[1], TDX_FORMAT), collateral[1], None)
    yield _authenticate("tdx", REAL, INTEL_LIMIT_MS, TdxVerifier, report, _INTEL_AT)


def _mock_intel() -> Iterator[Case]:
    from avow.testing.intel_pki import IntelPki, SgxBody, TdxBody

    pki = IntelPki(_INTEL_AT)
    roots = Roots(root_der=pki.root_der)
    now = _INTEL_AT + timedelta(days=1)
    sgx, tdx = (parse_collateral(pki.collateral(t).encode(), t) for t in ("sgx", "tdx"))
    report = encode_sgx(pki.sgx_quote(SgxBody(bytes(64))), sgx)
    yield _authenticate("sgx", MOCK, INTEL_LIMIT_MS, lambda: SgxVerifier(roots), report, now)
    report = encode_tdx(pki.tdx_quote(TdxBody(bytes(64))), tdx, None)
    yield _authenticate("tdx", MOCK, INTEL_LIMIT_MS, lambda: TdxVerifier(roots), report, now)


def _real_snp(folder: Path) -> Case:
    authorities = load_pem_x509_certificates((folder / "snp/milan_ask_ark.pem").read_bytes())
    ask, ark = (each.public_bytes(Encoding.DER) for each in authorities)
    vcek = (folder / "snp/vcek_milan.der").read_bytes()
    evidence = SnpEvidence((folder / "snp/report_milan.bin").read_bytes(), (vcek, ask, ark))
    return _authenticate("snp", REAL, LIMIT_MS, SnpVerifier, evidence.encoded(), _AMD_AT)


def _mock_snp() -> Case:
    from avow.testing.amd_pki import AmdPki

    pki = AmdPki()
    report = pki.chip().evidence(bytes(64)).encoded()
    return _authenticate("snp", MOCK, LIMIT_MS, pki.verifier, report, _AMD_AT)


def _real_nitro(folder: Path) -> Case:
    document = (folder / "nitro/document_production.bin").read_bytes()

    def prepare() -> Callable[[], object]:
        verifier = NitroVerifier()
        # Not `authenticate`: whoever asked for this document had no report data of avow's.
        return lambda: verifier.prove(document, _NITRO_AT)

    return Case("nitro", REAL, LIMIT_MS, prepare)


def _mock_nitro() -> Case:
    from avow.testing.nitro_pki import NOW, NitroPki

    pki = NitroPki()
    return _authenticate("nitro", MOCK, LIMIT_MS, pki.verifier, pki.document(bytes(64)), NOW)


def _software_tpm() -> Iterator[Case]:
    # A key in software makes the same work as one in a TPM.
    from avow.testing.tpm_forge import ForgedKey, Scheme

    schemes: tuple[Scheme, ...] = ("ecdsa", "rsassa")
    for scheme in schemes:
        key = ForgedKey(scheme)
        report = key.report(bytes(32)).encoded()
        source = f"{MOCK}, {scheme}"
        yield _authenticate("tpm", source, LIMIT_MS, TpmVerifier, report, _AMD_AT)


def _simulated() -> Case:
    from avow.evidence.claims import Claims, Role, Workload
    from avow.evidence.report_data import batch
    from avow.tee.simulated.attester import SimulatedAttester

    workload = Workload(bytes(32), bytes(32), bytes(32), bytes(32))
    report_data, _ = batch([(Claims(bytes(32), Role.DOCUMENT, workload, b"", 1), bytes(64))])
    report = SimulatedAttester().quote(report_data)
    return _authenticate("simulated", "software", None, SimulatedVerifier, report, _AMD_AT)
