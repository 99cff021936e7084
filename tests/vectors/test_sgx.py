"""The verifier of SGX on a quote and collateral of a real processor."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from avow.errors import AvowError, MalformedError, UnavailableError, UntrustedError
from avow.tee.intel.collateral import Collateral, parse_collateral
from avow.tee.intel.vouching import Roots
from avow.tee.sgx import verifier as sgx
from avow.tee.sgx.report import decode_report, encode_report
from avow.tee.sgx.verifier import SgxVerifier
from avow.testing.intel_pki import IntelPki
from tests.vectors.evidence_files import flips, vector

pytestmark = pytest.mark.vectors

NOW = datetime(2025, 6, 25, tzinfo=UTC)
TODAY = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture(scope="module")
def quote() -> bytes:
    return vector("sgx/quote_v3.bin")


@pytest.fixture(scope="module")
def collateral() -> Collateral:
    return parse_collateral(vector("sgx/quote_v3.collateral.json"), "sgx/quote_v3")


def test_claims(quote: bytes, collateral: Collateral) -> None:
    authenticated = SgxVerifier().authenticate(encode_report(quote, collateral), NOW)
    assert authenticated.bound == b"Hello, world!".ljust(64, b"\0")
    claims = authenticated.claims
    assert claims["tcb.status"] == "ConfigurationAndSWHardeningNeeded"
    assert claims["tcb.advisories"] == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert claims["tcb.evaluation_number"] == 17
    assert claims["debug"] is False
    assert claims["sgx.mrenclave"] == bytes.fromhex(
        "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
    )
    assert claims["sgx.mrsigner"] == bytes.fromhex(
        "815f42f11cf64430c30bab7816ba596a1da0130c3b028b673133a66cf9a3e0e6"
    )
    assert claims["sgx.isv_svn"] == 0
    assert 0 < int(str(claims["collateral.age_s"])) < 6 * 86400
    assert claims["tcb.date_age_s"] == int(
        (NOW - datetime(2024, 3, 13, tzinfo=UTC)).total_seconds()
    )


def test_the_verifiers_own_collateral(quote: bytes, collateral: Collateral) -> None:
    verifier = SgxVerifier(Roots((collateral,)))
    assert verifier.authenticate(encode_report(quote, None), NOW).claims["debug"] is False


def test_out_of_date_today(quote: bytes, collateral: Collateral) -> None:
    for now in (TODAY, datetime(2025, 6, 1, tzinfo=UTC)):
        with pytest.raises(UnavailableError, match=r"out of date|not valid yet") as caught:
            SgxVerifier().authenticate(encode_report(quote, collateral), now)
        assert caught.value.finding is not None
        assert caught.value.finding.check == sgx.CURRENT


def test_no_collateral(quote: bytes) -> None:
    with pytest.raises(UnavailableError, match="FMSPC 00A067110000"):
        SgxVerifier().authenticate(encode_report(quote, None), NOW)


def test_another_root(quote: bytes, collateral: Collateral) -> None:
    verifier = SgxVerifier(Roots((), IntelPki(NOW).root_der))
    with pytest.raises(UntrustedError):
        verifier.authenticate(encode_report(quote, collateral), NOW)


def test_every_flipped_byte(quote: bytes, collateral: Collateral) -> None:
    """Of what is signed: none is accepted. Of the chain: none gives other claims."""
    verifier = SgxVerifier(Roots((collateral,)))
    good = verifier.authenticate(encode_report(quote, None), NOW)
    signed = len(quote) - len(decode_report(encode_report(quote, None)).quote.chain)
    for content in flips(quote)[:signed]:
        with pytest.raises((MalformedError, UntrustedError)):
            verifier.authenticate(encode_report(content, None), NOW)
    for content in flips(quote)[signed:]:
        try:
            assert verifier.authenticate(encode_report(content, None), NOW) == good
        except AvowError:
            continue
