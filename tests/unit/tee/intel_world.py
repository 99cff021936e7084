"""One mock Intel for the tests of SGX and TDX, and what they share."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache

from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.report_data import ReportData, batch
from avow.evidence.roles import Authenticated
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.tee.intel.collateral import Collateral, parse_collateral
from avow.testing.intel_pki import CollateralSettings, IntelPki

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
WORKLOAD = Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32)


@cache
def intel() -> IntelPki:
    """The same keys for all tests of a process."""
    return IntelPki(NOW)


def collateral(
    tee: str, settings: CollateralSettings | None = None, issued: datetime | None = None
) -> Collateral:
    """Collateral of the mock, parsed."""
    return parse_collateral(intel().collateral(tee, settings, issued=issued).encode(), "test")


def report_data() -> ReportData:
    """Report data as the channel would ask for."""
    claims = Claims(bytes(32), Role.DOCUMENT, WORKLOAD, b"", 1)
    return batch([(claims, bytes(64))])[0]


def changed(content: bytes) -> Iterator[bytes]:
    """The content with one byte changed, for every byte."""
    for place in range(len(content)):
        yield content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :]


def assert_in_vocabulary(authenticated: Authenticated) -> None:
    """Every claim has a name and type of the vocabulary, for this platform."""
    for name, value in authenticated.claims.items():
        kind = kind_of(name)
        assert kind is not None, name
        assert is_value_of(kind, value), name
        assert not kind.platforms or authenticated.platform in kind.platforms, name
