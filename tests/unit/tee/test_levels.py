"""avow's own last step against dcap-qvl: the same platform, once with attributes that dcap-qvl
lets through and once with attributes that it leaves to nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avow.errors import UntrustedError
from avow.evidence.vocabulary import ClaimValue
from avow.tee.intel.vouching import Roots, is_last_step
from avow.tee.sgx import report as sgx_report
from avow.tee.sgx.verifier import SgxVerifier
from avow.tee.tdx import verifier as tdx
from avow.tee.tdx.report import encode_report
from avow.tee.tdx.verifier import TdxVerifier
from avow.testing.intel_pki import (
    CollateralSettings,
    ModuleLevel,
    SgxBody,
    TcbLevel,
    TdxBody,
)
from tests.unit.tee.intel_world import LATER, collateral, intel

STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
# What a TDX module or a quoting enclave can be.
OF_A_PART = ("UpToDate", "OutOfDate", "Revoked")
MODULE_4 = bytes([4, 1, 6, *[0] * 13])


def refused_by(error: UntrustedError) -> str:
    assert error.finding is not None
    return error.finding.check.number


def tdx_claims(body: TdxBody, of: CollateralSettings) -> dict[str, ClaimValue] | str:
    """The claims about the TCB, or the check that refuses."""
    quote = intel().tdx_quote(body, version=5 if body.version == 15 else 4)
    report = encode_report(quote, collateral("tdx", of), None)
    try:
        claims = TdxVerifier(Roots((), intel().root_der)).authenticate(report, LATER).claims
    except UntrustedError as error:
        return refused_by(error)
    return {name: value for name, value in claims.items() if name.startswith("tcb.")}


def both(body: TdxBody, of: CollateralSettings) -> dict[str, ClaimValue] | str:
    """The judgement by dcap-qvl, which has to be avow's too."""
    theirs = tdx_claims(body, of)
    assert tdx_claims(replace(body, attributes=bytes(8)), of) == theirs
    return theirs


svns = st.integers(0, 5)
levels = st.builds(
    TcbLevel,
    st.sampled_from(STATUSES),
    st.integers(1, 4),
    st.sampled_from(("2024-03-13T00:00:00Z", "2025-01-01T00:00:00Z")),
    st.sampled_from(((), ("INTEL-SA-00001",), ("INTEL-SA-00002", "INTEL-SA-00001"))),
    st.tuples(svns, svns, svns),
)
module_levels = st.builds(
    ModuleLevel,
    st.sampled_from(OF_A_PART),
    svns,
    st.sampled_from(("2023-08-09T00:00:00Z", "2025-01-01T00:00:00Z")),
    st.sampled_from(((), ("INTEL-SA-00003",))),
)


@settings(max_examples=150, deadline=None)
@given(
    of=st.builds(
        CollateralSettings,
        st.lists(levels, min_size=1, max_size=4).map(tuple),
        st.dictionaries(
            st.integers(1, 3),
            st.lists(module_levels, min_size=1, max_size=3).map(
                lambda each: tuple(sorted(each, key=lambda level: -level.isv_svn))
            ),
            max_size=3,
        ),
        st.sampled_from(OF_A_PART),
    ),
    version=st.sampled_from((10, 15)),
    svn=st.tuples(svns, st.integers(0, 3), svns),
    svn_2=st.tuples(svns, st.integers(0, 3), svns),
)
def test_as_dcap_qvl(
    of: CollateralSettings,
    version: int,
    svn: tuple[int, int, int],
    svn_2: tuple[int, int, int],
) -> None:
    body = TdxBody(
        bytes(64),
        version=version,
        tee_tcb_svn=bytes([*svn, *[0] * 13]),
        tee_tcb_svn_2=bytes([*svn_2, *[0] * 13]),
    )
    both(body, of)


def test_relaunch_advised() -> None:
    """Only the module that started the domain is old: the one that runs now is the latest."""
    of = CollateralSettings(
        levels=(TcbLevel(tdx_svns=(0, 0, 6)),),
        modules={1: (ModuleLevel(isv_svn=4), ModuleLevel("OutOfDate", 2))},
    )
    body = TdxBody(
        bytes(64),
        version=15,
        tee_tcb_svn=bytes([2, 1, 6, *[0] * 13]),
        tee_tcb_svn_2=bytes([4, 1, 7, *[0] * 13]),
    )
    claims = both(body, of)
    assert isinstance(claims, dict)
    assert claims["tcb.status"] == "TDRelaunchAdvised"
    configuration = replace(of, levels=(replace(of.levels[0], status="ConfigurationNeeded"),))
    claims = both(body, configuration)
    assert isinstance(claims, dict)
    assert claims["tcb.status"] == "TDRelaunchAdvisedConfigurationNeeded"


@pytest.mark.parametrize(
    ("svn", "words"),
    [
        ((1, 1, 6), "ISVSVN 1 is below every level; update the TDX module"),
        ((4, 2, 6), r"TDX_02\) is not listed; fetch newer collateral"),
    ],
)
@pytest.mark.parametrize("attributes", ["0000001000000000", "0000000000000000"])
def test_a_module_below_all_levels_or_not_listed(
    svn: tuple[int, int, int], words: str, attributes: str
) -> None:
    body = TdxBody(
        bytes(64),
        tee_tcb_svn=bytes([*svn, *[0] * 13]),
        attributes=bytes.fromhex(attributes),
    )
    of = CollateralSettings(modules={1: (ModuleLevel(isv_svn=2),)})
    report = encode_report(intel().tdx_quote(body), collateral("tdx", of), None)
    with pytest.raises(UntrustedError, match=words) as caught:
        TdxVerifier(Roots((), intel().root_der)).authenticate(report, LATER)
    assert refused_by(caught.value) == tdx.TCB_LEVEL.number


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("qe_status", OF_A_PART)
def test_sgx_as_dcap_qvl(status: str, qe_status: str) -> None:
    of = CollateralSettings(
        (TcbLevel("UpToDate", 4), TcbLevel(status, 3, "2024-03-13T00:00:00Z", ("INTEL-SA-00001",))),
        qe_status=qe_status,
        qe_advisories=("INTEL-SA-00002",),
    )
    stapled = collateral("sgx", of)
    body = SgxBody(bytes(64))
    found: list[dict[str, ClaimValue] | str] = []
    for each in (body, body.debug()):
        report = sgx_report.encode_report(intel().sgx_quote(each), stapled)
        try:
            authenticated = SgxVerifier(Roots((), intel().root_der)).authenticate(report, LATER)
        except UntrustedError as error:
            found.append(refused_by(error))
            continue
        assert authenticated.claims["debug"] is (each != body)
        found.append(
            {k: v for k, v in authenticated.claims.items() if k.startswith(("tcb.", "collateral."))}
        )
    assert found[0] == found[1]


def test_only_the_words_of_the_last_step_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_last_step("SEPT_VE_DISABLE is not enabled")
    assert not is_last_step("SEPT_VE_DISABLE is not enabled: and more")
    assert not is_last_step("ISV enclave report signature is invalid")
    monkeypatch.setattr("dcap_qvl.__version__", "0.7.1")
    assert not is_last_step("SEPT_VE_DISABLE is not enabled")
