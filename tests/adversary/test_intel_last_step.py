"""Quotes that dcap-qvl refuses only for their attributes are judged by the policy. Nothing else may
come in by that door: whatever else is wrong with such a quote is found first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from avow.errors import AvowError, MalformedError, UntrustedError
from avow.tee.intel.collateral import Collateral, parse_collateral
from avow.tee.intel.vouching import Roots
from avow.tee.tdx.report import encode_report
from avow.tee.tdx.verifier import TdxVerifier
from avow.testing import intel_pki
from avow.testing.intel_pki import CollateralSettings, IntelPki, ModuleLevel, TcbLevel, TdxBody

NOW = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
LATER = NOW + timedelta(days=1)
BODY = TdxBody(bytes(64), version=15, tee_tcb_svn=bytes([5, 1, 2, *[0] * 13]))
LISTED = CollateralSettings(modules={1: (ModuleLevel(),)})
# One of each refusal by which dcap-qvl ends.
ODD = {
    "debug": replace(BODY, attributes=bytes.fromhex("0100001000000000")),
    "profiling": replace(BODY, attributes=bytes.fromhex("1000001000000000")),
    "no SEPT_VE_DISABLE": replace(BODY, attributes=bytes(8)),
    "MIGRATABLE": replace(BODY, attributes=bytes.fromhex("0000003000000000")),
    "SERVTD_EXT": replace(BODY, attributes=bytes.fromhex("0000021000000000")),
    "a service TD": replace(BODY, mrservicetd=b"\x01" * 48),
}
# Where the parts of a quote of version 5 around a TD report 1.5 begin.
SIGNATURE = 48 + 6 + 648 + 4
KEY = SIGNATURE + 64
QE_REPORT = KEY + 64 + 6
QE_SIGNATURE = QE_REPORT + 384


@pytest.fixture(scope="module")
def intel() -> IntelPki:
    return IntelPki(NOW)


def parsed(intel: IntelPki, settings: CollateralSettings = LISTED) -> Collateral:
    return parse_collateral(intel.collateral("tdx", settings).encode(), "test")


def judge(
    intel: IntelPki, quote: bytes, collateral: Collateral, now: datetime = LATER
) -> AvowError | None:
    try:
        TdxVerifier(Roots((), intel.root_der)).authenticate(
            encode_report(quote, collateral, None), now
        )
    except AvowError as error:
        return error
    return None


def changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_genuine(intel: IntelPki, body: TdxBody) -> None:
    """What the other tests change is good without their change."""
    assert judge(intel, intel.tdx_quote(body, version=5), parsed(intel)) is None


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "place",
    [48 + 6 + 120, 48 + 6 + 136, SIGNATURE, KEY, QE_REPORT + 64, QE_SIGNATURE, QE_SIGNATURE + 66],
    ids=["attributes", "MRTD", "signature", "key", "QE report", "QE signature", "QE data"],
)
def test_changed(intel: IntelPki, body: TdxBody, place: int) -> None:
    quote = changed(intel.tdx_quote(body, version=5), place)
    assert isinstance(judge(intel, quote, parsed(intel)), UntrustedError)


def test_every_changed_byte(intel: IntelPki) -> None:
    """Up to the chain in PEM, whose line ends and labels nobody reads."""
    quote = intel.tdx_quote(ODD["no SEPT_VE_DISABLE"], version=5)
    collateral = parsed(intel)
    for place in range(quote.index(b"-----BEGIN")):
        error = judge(intel, changed(quote, place), collateral)
        assert isinstance(error, UntrustedError | MalformedError), place


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "settings",
    [
        replace(LISTED, pck_revoked=True),
        replace(LISTED, pck_ca_revoked=True),
        replace(LISTED, tcb_signing_revoked=True),
        replace(LISTED, levels=(TcbLevel(svn=4),)),
        replace(LISTED, levels=(TcbLevel("Revoked"),)),
        replace(LISTED, qe_status="Revoked"),
        replace(LISTED, modules={1: (ModuleLevel("Revoked"),)}),
        replace(LISTED, modules={1: (ModuleLevel(isv_svn=6),)}),
        replace(LISTED, modules={2: (ModuleLevel(),)}),
    ],
    ids=lambda settings: repr(settings)[19:80],
)
def test_revoked_or_not_listed(
    intel: IntelPki, body: TdxBody, settings: CollateralSettings
) -> None:
    quote = intel.tdx_quote(body, version=5)
    assert isinstance(judge(intel, quote, parsed(intel, settings)), UntrustedError)


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_collateral_that_intel_did_not_sign(intel: IntelPki, body: TdxBody, part: str) -> None:
    content = json.loads(intel.collateral("tdx", LISTED))
    content[part] = content[part].replace("2025-01-01", "2025-01-02", 1)
    collateral = parse_collateral(json.dumps(content).encode(), "test")
    quote = intel.tdx_quote(body, version=5)
    assert isinstance(judge(intel, quote, collateral), UntrustedError)


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_another_root(intel: IntelPki, body: TdxBody) -> None:
    """Somebody who calls himself Intel, and signs everything as Intel would."""
    other = IntelPki(NOW)
    quote = other.tdx_quote(body, version=5)
    assert isinstance(judge(intel, quote, parsed(other)), UntrustedError)
    # And one who has Intel's real collateral for the same kind of processor.
    assert isinstance(judge(intel, quote, parsed(intel)), UntrustedError)


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda patch: patch.setitem(intel_pki._QE_MRSIGNER, "tdx", b"\x66" * 32),
        lambda patch: patch.setitem(intel_pki._QE_PRODUCT, "tdx", 9),
        lambda patch: patch.setattr(intel_pki, "_QE_ATTRIBUTES", b"\x13" + bytes(15)),
        lambda patch: patch.setattr(intel_pki, "_QE_SVN", 7),
        lambda patch: patch.setattr(intel_pki, "_INTEL_VENDOR_ID", bytes(16)),
    ],
    ids=["signer", "product", "debug", "ISVSVN", "vendor"],
)
def test_another_quoting_enclave(
    intel: IntelPki,
    body: TdxBody,
    spoil: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any enclave's report can be signed by a PCK: only Intel's quoting enclave may vouch."""
    collateral = parsed(intel)
    spoil(monkeypatch)
    assert isinstance(judge(intel, intel.tdx_quote(body, version=5), collateral), UntrustedError)
