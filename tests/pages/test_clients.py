"""Policies, clients, secrets, access rules: the pages about who may do what."""

from __future__ import annotations

import pytest

from tests.pages.running import DOCS, Reader


@pytest.mark.openssl
def test_attested_clients(reader: Reader) -> None:
    printed = reader.run((DOCS / "how-to/attested-clients.md").read_text())
    assert any("not judged" in output for output in printed)
    assert any('"judged": true' in output for output in printed)


@pytest.mark.openssl
def test_policies(reader: Reader) -> None:
    printed = reader.run((DOCS / "how-to/policy.md").read_text())
    assert any("WARNING: it accepts simulated evidence" in each for each in printed)
    assert any(each.startswith("accepted: warning\n") for each in printed)
    assert any(each.startswith("REFUSED: contraindicated\n") for each in printed)


@pytest.mark.openssl
def test_provisioning(reader: Reader) -> None:
    printed = reader.run((DOCS / "how-to/provision.md").read_text())
    assert any("taken: keys store; files tls.crt, tls.key, users\n" in each for each in printed)


def test_access_rules(reader: Reader) -> None:
    printed = reader.run((DOCS / "how-to/access-rules.md").read_text())
    assert printed[-1].startswith("avow")
