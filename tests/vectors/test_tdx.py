"""The verifier of TDX on quotes and collateral of real processors."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from avow.errors import AvowError, MalformedError, UnavailableError, UntrustedError
from avow.tee.intel.collateral import Collateral, parse_collateral
from avow.tee.intel.quote import without_padding
from avow.tee.intel.vouching import Roots
from avow.tee.tdx import verifier as tdx
from avow.tee.tdx.report import FORMAT, decode_report, encode_report
from avow.tee.tdx.verifier import TdxVerifier
from tests.vectors.evidence_files import flips, vector

pytestmark = pytest.mark.vectors

NOW = datetime(2025, 6, 25, tzinfo=UTC)
NOW_OUTDATED = datetime(2026, 3, 1, tzinfo=UTC)
TODAY = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture(scope="module")
def quote() -> bytes:
    """As the kernel gave it, 5006 bytes, without the 70 zeros at its end."""
    return without_padding(vector("tdx/quote_v4.bin"), FORMAT)


@pytest.fixture(scope="module")
def collateral() -> Collateral:
    return parse_collateral(vector("tdx/quote_v4.collateral.json"), "tdx/quote_v4")


def test_claims(quote: bytes, collateral: Collateral) -> None:
    authenticated = TdxVerifier().authenticate(encode_report(quote, collateral, None), NOW)
    assert authenticated.bound.hex().startswith("9a9d48e7f6799642d3d1b34e1e5e1742")
    claims = authenticated.claims
    assert claims["tcb.status"] == "UpToDate"
    assert claims["tcb.advisories"] == ()
    assert claims["tcb.evaluation_number"] == 17
    assert claims["debug"] is False
    assert claims["tdx.attributes"] == bytes.fromhex("0000001000000000")
    for name, start in {
        "tdx.mrtd": "91eb2b44d141d4ec",
        "tdx.rtmr.0": "44c0197b39157fdd",
        "tdx.rtmr.1": "0084452c01668329",
        "tdx.rtmr.2": "d833feef2cd94514",
        "tdx.rtmr.3": "0000000000000000",
        "tdx.mrseam": "5b38e33a6487958b",
    }.items():
        value = claims[name]
        assert isinstance(value, bytes)
        assert value.hex().startswith(start)


def test_padding_is_no_part_of_a_report(collateral: Collateral) -> None:
    padded = vector("tdx/quote_v4.bin")
    assert len(padded) == len(without_padding(padded, FORMAT)) + 70
    with pytest.raises(MalformedError):
        TdxVerifier().authenticate(encode_report(padded, collateral, None), NOW)
    with pytest.raises(MalformedError):
        without_padding(padded[:-1] + b"\x01", FORMAT)


def test_out_of_date_today(quote: bytes, collateral: Collateral) -> None:
    with pytest.raises(UnavailableError, match="out of date") as caught:
        TdxVerifier().authenticate(encode_report(quote, collateral, None), TODAY)
    assert caught.value.finding is not None
    assert caught.value.finding.check == tdx.CURRENT


def test_no_collateral(quote: bytes) -> None:
    with pytest.raises(UnavailableError, match="FMSPC B0C06F000000"):
        TdxVerifier().authenticate(encode_report(quote, None, None), NOW)


def test_no_matching_level() -> None:
    """A quote of version 5 around a TD report 1.5, of a platform below all of Intel's levels."""
    name = "tdx/quote_outdated"
    collateral = parse_collateral(vector(f"{name}.collateral.json"), name)
    quote = vector(f"{name}.bin")
    with pytest.raises(UntrustedError, match="No matching TCB level") as caught:
        TdxVerifier().authenticate(encode_report(quote, collateral, None), NOW_OUTDATED)
    assert caught.value.finding is not None
    assert caught.value.finding.check == tdx.TCB_LEVEL


def test_every_flipped_byte(quote: bytes, collateral: Collateral) -> None:
    """Of what is signed: none is accepted. Of the chain: none gives other claims."""
    verifier = TdxVerifier(Roots((collateral,)))
    good = verifier.authenticate(encode_report(quote, None, None), NOW)
    signed = len(quote) - len(decode_report(encode_report(quote, None, None)).quote.chain)
    for content in flips(quote)[:signed]:
        with pytest.raises((MalformedError, UntrustedError)):
            verifier.authenticate(encode_report(content, None, None), NOW)
    for content in flips(quote)[signed:]:
        try:
            assert verifier.authenticate(encode_report(content, None, None), NOW) == good
        except AvowError:
            continue
