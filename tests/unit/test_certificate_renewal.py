"""Certificates with evidence, and whose configuration they are of while another one comes."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from OpenSSL import SSL

from avow.broker import doors
from avow.broker.config import Log
from avow.broker.doors import CertificateRenewal, Doors
from avow.broker.logs import make_log

OLD, NEW = b"o" * 32, b"n" * 32


def door_of(name: str) -> tuple[Doors, Any]:
    """One listener with `ra_tls`, and its door."""

    def context_with(credential: object) -> SSL.Context:
        made.append(SSL.Context(SSL.TLS_METHOD))
        return made[-1]

    made: list[SSL.Context] = []
    door = SimpleNamespace(context=None, address=name)
    prepared = SimpleNamespace(context_with=context_with)
    return cast(Doors, [(prepared, door)]), door


def test_a_renewal_during_a_reload_is_the_old_configurations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new configuration has been measured, and evidence names it; but the authorities by which
    this listener admits clients are still the old ones."""
    until = SimpleNamespace(not_valid_after_utc=datetime.now(UTC))
    monkeypatch.setattr(doors, "make_credential", lambda *_: SimpleNamespace(certificate=until))
    measured = SimpleNamespace(workload=SimpleNamespace(configuration=OLD))
    attestation: Any = SimpleNamespace(identity=measured)
    renewal = CertificateRenewal(attestation, make_log(Log(), io.StringIO()))
    listed, door = door_of("mqtts://old")
    renewal.start(listed, OLD, 3600.0)
    assert renewal.shown_by(door.context) == OLD
    measured.workload.configuration = NEW
    renewal._renew()
    assert renewal.shown_by(door.context) == OLD
    listed, door = door_of("mqtts://new")
    renewal.renew_now(listed, NEW)
    assert renewal.shown_by(door.context) == NEW
    renewal.stop()
