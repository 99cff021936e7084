"""The platform `tpm` from end to end, on a real TPM in software: swtpm."""

from __future__ import annotations

import os
import secrets
import signal
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from avow.cli import run
from avow.cli.exit_codes import ExitCode
from avow.errors import UnavailableError, UntrustedError
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.envelope import Evidence
from avow.evidence.origin import DOCUMENT_BINDER, Expectation, Verified, verify_evidence
from avow.evidence.report_data import ReportData, batch
from avow.tee.tpm import event_log
from avow.tee.tpm.attester import TpmAttester, TpmSettings
from avow.tee.tpm.certificates import certificates_in
from avow.tee.tpm.connection import Connection
from avow.tee.tpm.credential import make_credential
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.enrolment import Request, decode_request
from avow.tee.tpm.nv_counter import NvCounter
from avow.tee.tpm.quote import spki_digest
from avow.tee.tpm.report import Report, decode_report
from avow.tee.tpm.structures import parse_public
from avow.tee.tpm.templates import AK_RSA, EK_ECC, EK_RSA, EndorsementKey
from avow.tee.tpm.verifier import TpmVerifier
from avow.testing.shared_tpm import SharedTpm
from avow.testing.swtpm import SoftwareTpm
from avow.testing.tpm_maker import (
    Enrolled,
    Owner,
    TpmAuthority,
    make_persistent,
    provision,
    settings,
)
from tests.adversary.tpm_interposer import (
    CREATE_PRIMARY,
    NV_READ,
    PCR_RESET,
    QUOTE,
    Interposer,
    code_of,
)

pytestmark = pytest.mark.tpm

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
WORKLOAD = Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32)
NONCE = b"n" * 32
EXPECTATION = Expectation(NONCE, Role.DOCUMENT, b"", DOCUMENT_BINDER)


@dataclass(frozen=True)
class Machine:
    tpm: SoftwareTpm
    maker: TpmAuthority
    chains: dict[EndorsementKey, tuple[bytes, ...]]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    maker = TpmAuthority("mock maker", now=NOW)
    line = TpmAuthority("mock line", parent=maker, now=NOW)
    with SoftwareTpm() as tpm:
        yield Machine(tpm, maker, provision(tpm, line))


@pytest.fixture
def attester(machine: Machine) -> Iterator[TpmAttester]:
    opened = TpmAttester(settings(machine.tpm))
    yield opened
    opened.close()


@pytest.fixture
def enrolled(machine: Machine, attester: TpmAttester) -> Enrolled:
    return Owner(machine.maker).enrol(attester, EK_ECC, machine.chains[EK_ECC])


def request(workload: Workload = WORKLOAD, nonce: bytes = NONCE) -> tuple[bytes, ReportData]:
    claims = Claims(nonce, Role.DOCUMENT, workload, b"", int(NOW.timestamp()))
    report_data, _ = batch([(claims, DOCUMENT_BINDER)])
    return claims.encoded(), report_data


def evidence(attester: TpmAttester, workload: Workload = WORKLOAD) -> tuple[bytes, Report]:
    claims, report_data = request(workload)
    return claims, decode_report(attester.quote(report_data))


def verify(
    claims: bytes, report: Report, verifier: TpmVerifier, expectation: Expectation = EXPECTATION
) -> Verified:
    content = Evidence("tpm", report.encoded(), claims).encoded()
    return verify_evidence(content, expectation, {"tpm": verifier}, NOW)


def refused(number: str, claims: bytes, report: Report, verifier: TpmVerifier) -> None:
    with pytest.raises(UntrustedError) as caught:
        verify(claims, report, verifier)
    assert caught.value.finding is not None
    assert caught.value.finding.check.number == number


def certified(report: Report, enrolled: Enrolled) -> Report:
    return replace(report, certificates=enrolled.certificates)


def test_claims_of_an_enrolled_key(attester: TpmAttester, enrolled: Enrolled) -> None:
    attester.measure(WORKLOAD)
    claims, report = evidence(attester)
    verified = verify(claims, certified(report, enrolled), TpmVerifier(enrolled.anchors))
    said = verified.claims
    assert said["tpm.ak_origin"] == "ek"
    assert said["tpm.ek"] == sha256(enrolled.ek_certificate).digest()
    assert said["tpm.ak"] == spki_digest(parse_public(attester.key.public).key)
    assert said["module_measured"] is True
    assert said["collateral.crl_checked"] is False
    assert said["debug"] is False
    assert said["tpm.clock_safe"] is True
    assert said["tpm.pcr.23"] == event_log.replay(event_log.start(WORKLOAD))
    assert said["tpm.pcr.0"] == bytes(32)
    assert {f"tpm.pcr.{n}" for n in (*range(10), *range(11, 16), 23)} == {
        name for name in said if name.startswith("tpm.pcr.")
    }


def test_a_key_that_nobody_certified_is_the_owners_to_name(attester: TpmAttester) -> None:
    claims, report = evidence(attester)
    said = verify(claims, report, TpmVerifier()).claims
    assert said["tpm.ak_origin"] == "owner"
    assert "tpm.ek" not in said
    assert said["module_measured"] is False


@pytest.mark.parametrize("kind", [EK_ECC, EK_RSA], ids=["ecc", "rsa"])
def test_enrolment_with_both_kinds_of_endorsement_key(
    machine: Machine, attester: TpmAttester, kind: EndorsementKey
) -> None:
    chain = machine.chains[kind]
    assert (chain[0],) == certificates_in(attester.device.read_nv(kind.certificate_index))
    enrolled = Owner(machine.maker).enrol(attester, kind, chain)
    claims, report = evidence(attester)
    said = verify(claims, certified(report, enrolled), TpmVerifier(enrolled.anchors)).claims
    assert said["tpm.ek"] == sha256(chain[0]).digest()


def test_rsa_attestation_key_at_a_handle(machine: Machine) -> None:
    handle = 0x81010010
    public = make_persistent(machine.tpm, AK_RSA, handle)
    attester = TpmAttester(replace(settings(machine.tpm), ak_handle=handle))
    try:
        claims, report = evidence(attester)
    finally:
        attester.close()
    assert report.ak == public
    said = verify(claims, report, TpmVerifier()).claims
    assert said["tpm.ak"] == spki_digest(parse_public(public).key)


def test_the_key_is_the_same_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path if len(str(tmp_path)) < 80 else None
    with SoftwareTpm(folder) as tpm:
        first = TpmAttester(settings(tpm))
        first.measure(WORKLOAD)
        _, before = evidence(first)
        first.close()
        tpm.stop()
        tpm.start()
        second = TpmAttester(settings(tpm))
        claims, after = evidence(second)
        second.close()
    assert before.ak == after.ak
    verifier = TpmVerifier()
    said = verify(claims, after, verifier).claims
    assert said["tpm.pcr.23"] == bytes(32)
    earlier = verifier.authenticate(before.encoded(), NOW).claims
    later, sooner = said["tpm.reset_count"], earlier["tpm.reset_count"]
    assert isinstance(later, int)
    assert isinstance(sooner, int)
    assert later == sooner + 1


def test_another_configuration_is_added_to_the_log(attester: TpmAttester) -> None:
    attester.measure(WORKLOAD)
    reloaded = replace(WORKLOAD, configuration=b"C" * 32)
    attester.measure(reloaded)
    attester.measure(reloaded)
    claims, report = evidence(attester, reloaded)
    assert [event.name for event in report.log] == [
        "runtime",
        "configuration",
        "module",
        "configuration",
    ]
    assert verify(claims, report, TpmVerifier()).claims["module_measured"] is True


def test_claims_of_the_earlier_configuration_are_refused(attester: TpmAttester) -> None:
    attester.measure(WORKLOAD)
    attester.measure(replace(WORKLOAD, configuration=b"C" * 32))
    claims, report = evidence(attester)
    refused("E8", claims, report, TpmVerifier())


def test_a_module_that_was_not_measured_is_refused(attester: TpmAttester) -> None:
    attester.measure(WORKLOAD)
    claims, report = evidence(attester, replace(WORKLOAD, module=b"M" * 32))
    refused("E8", claims, report, TpmVerifier())


def test_a_long_log_begins_anew(attester: TpmAttester) -> None:
    for count in range(event_log.EVENTS_MAX + 1):
        attester.measure(replace(WORKLOAD, configuration=count.to_bytes(32, "big")))
    last = replace(WORKLOAD, configuration=event_log.EVENTS_MAX.to_bytes(32, "big"))
    claims, report = evidence(attester, last)
    assert len(report.log) <= event_log.EVENTS_MAX
    assert verify(claims, report, TpmVerifier()).claims["module_measured"] is True


def test_altered_logs_are_refused(attester: TpmAttester) -> None:
    attester.measure(replace(WORKLOAD, module=b"M" * 32))
    claims, report = evidence(attester)
    refused("TPM8", claims, replace(report, log=event_log.start(WORKLOAD)), TpmVerifier())
    refused("TPM8", claims, replace(report, log=(*report.log, report.log[1])), TpmVerifier())


def test_altered_registers_are_refused(attester: TpmAttester) -> None:
    attester.measure(WORKLOAD)
    claims, report = evidence(attester)
    other = {**report.pcrs, 0: b"\1" * 32}
    refused("TPM7", claims, replace(report, pcrs=other), TpmVerifier())
    fewer = {number: value for number, value in report.pcrs.items() if number}
    refused("TPM7", claims, replace(report, pcrs=fewer), TpmVerifier())


def test_a_quote_for_another_nonce_is_refused(attester: TpmAttester) -> None:
    claims, _ = request()
    _, other = request(nonce=b"N" * 32)
    report = decode_report(attester.quote(other))
    refused("E7", claims, report, TpmVerifier())


def test_a_quote_by_another_tpm_is_refused(attester: TpmAttester, enrolled: Enrolled) -> None:
    with SoftwareTpm() as other:
        stranger = TpmAttester(settings(other))
        claims, report = evidence(stranger)
        stranger.close()
    _, ours = evidence(attester)
    verifier = TpmVerifier(enrolled.anchors)
    refused("TPM3", claims, certified(report, enrolled), verifier)
    disguised = replace(report, ak=ours.ak, certificates=enrolled.certificates)
    refused("TPM4", claims, disguised, verifier)


def test_a_tpm_cannot_enrol_for_another(machine: Machine, attester: TpmAttester) -> None:
    """The certificate of a genuine TPM does not help a machine that has another one."""
    with SoftwareTpm() as other:
        stranger = TpmAttester(settings(other))
        owner = Owner(machine.maker)
        genuine = attester.device.make_primary(EK_ECC.template)
        attester.device.forget(genuine)
        kept, credential = owner.challenger.challenge(
            Request(stranger.key.public, genuine.public, machine.chains[EK_ECC]),
            NOW,
            secrets.token_bytes(32),
            secrets.token_bytes(32),
        )
        # Neither TPM opens it: the one lacks the endorsement key, the other the attestation key.
        for machine_asked in (stranger, attester):
            with pytest.raises(UnavailableError):
                machine_asked.device.activate(machine_asked.key, EK_ECC, credential)
        with pytest.raises(UntrustedError, match="TPM11"):
            owner.issuer.issue(kept, bytes(32), NOW, timedelta(1), 1)
        stranger.close()


def test_a_failure_while_measuring_leaves_the_log(
    attester: TpmAttester, monkeypatch: pytest.MonkeyPatch
) -> None:
    attester.measure(WORKLOAD)
    extend = attester.device.extend_pcr

    def fail_at_the_module(number: int, digest: bytes) -> None:
        if digest == event_log.Event("module", b"M" * 32).extended:
            raise UnavailableError("expected a TPM that works, got none; mend it")
        extend(number, digest)

    monkeypatch.setattr(attester.device, "extend_pcr", fail_at_the_module)
    with pytest.raises(UnavailableError):
        attester.measure(replace(WORKLOAD, module=b"M" * 32))
    claims, report = evidence(attester)
    assert verify(claims, report, TpmVerifier()).claims["module_measured"] is True


def test_another_program_used_the_register(attester: TpmAttester) -> None:
    attester.measure(WORKLOAD)
    attester.measure(replace(WORKLOAD, configuration=b"C" * 32))
    attester.measure(WORKLOAD)
    attester.device.reset_pcr(event_log.PCR)
    attester.device.extend_pcr(event_log.PCR, b"\1" * 32)
    claims, report = evidence(attester)
    assert len(report.log) == 5
    assert verify(claims, report, TpmVerifier()).claims["module_measured"] is True


def test_another_program_keeps_using_the_register(
    attester: TpmAttester, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = attester.device.read_pcrs

    def disturbed(pcrs: tuple[int, ...]) -> dict[int, bytes]:
        attester.device.extend_pcr(event_log.PCR, b"\1" * 32)
        return read(pcrs)

    attester.measure(WORKLOAD)
    monkeypatch.setattr(attester.device, "read_pcrs", disturbed)
    monkeypatch.setattr("avow.tee.tpm.attester.give_way", lambda attempt: None)
    _, report_data = request()
    with pytest.raises(UnavailableError, match="PCR 23"):
        attester.quote(report_data)


def test_registers_that_change_while_quoting(
    attester: TpmAttester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and quote belong together even if a register changes between the two commands."""
    read = attester.device.read_pcrs
    changes = iter((True, True, False))

    def read_then_change(pcrs: tuple[int, ...]) -> dict[int, bytes]:
        values = read(pcrs)
        if next(changes, False):
            attester.device.extend_pcr(9, b"\2" * 32)
        return values

    monkeypatch.setattr(attester.device, "read_pcrs", read_then_change)
    claims, report = evidence(attester)
    assert verify(claims, report, TpmVerifier()).claims["tpm.pcr.9"] != bytes(32)


def test_certificates_come_from_a_file(
    machine: Machine, attester: TpmAttester, enrolled: Enrolled, tmp_path: Path
) -> None:
    path = tmp_path / "ak.pem"
    issued = x509.load_der_x509_certificate(enrolled.certificates[0])
    path.write_bytes(issued.public_bytes(Encoding.PEM))
    attester.close()
    again = TpmAttester(replace(settings(machine.tpm), certificates=path))
    claims, report = evidence(again)
    again.close()
    assert report.certificates == enrolled.certificates
    assert verify(claims, report, TpmVerifier(enrolled.anchors)).claims["tpm.ak_origin"] == "ek"


def test_a_tpm_that_stops_is_unavailable(machine: Machine) -> None:
    with SoftwareTpm() as tpm:
        attester = TpmAttester(settings(tpm))
        tpm.stop()
        _, report_data = request()
        with pytest.raises(UnavailableError, match="expected the TPM"):
            attester.quote(report_data)


def still_attests(attester: TpmAttester) -> Report:
    """What PCR 23 holds is what the log says, and the log what runs."""
    claims, report = evidence(attester)
    said = verify(claims, report, TpmVerifier()).claims
    assert said["module_measured"] is True
    assert said["tpm.pcr.23"] == event_log.replay(event_log.start(WORKLOAD))
    return report


def test_a_tpm_that_hangs_serves_again() -> None:
    with SoftwareTpm() as tpm:
        attester = TpmAttester(replace(settings(tpm), timeout_s=0.5))
        attester.measure(WORKLOAD)
        _, report_data = request()
        os.kill(tpm.pid, signal.SIGSTOP)
        try:
            with pytest.raises(UnavailableError, match=r"no answer within.*hangs"):
                attester.quote(report_data)
        finally:
            os.kill(tpm.pid, signal.SIGCONT)
        still_attests(attester)
        attester.close()


def test_a_tpm_that_hangs_for_ever_costs_a_bounded_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("avow.tee.tpm.device._PAUSE_S", 0.0)
    monkeypatch.setattr("avow.tee.tpm.device._PAUSE_MAX_S", 0.0)
    monkeypatch.setattr("avow.tee.tpm.device._STALLED_MANY", 2)
    with SoftwareTpm() as tpm:
        device = TpmDevice(tpm.tcti, 0.1)
        os.kill(tpm.pid, signal.SIGSTOP)
        before = threading.active_count()
        try:
            for _ in range(6):
                with pytest.raises(UnavailableError, match="no answer"):
                    device.read_pcrs([0])
            # Two, and one more an hour.
            assert threading.active_count() <= before + 2
            with pytest.raises(UnavailableError, match=r"3 connections .* in 3[56][0-9]{2} s"):
                device.read_pcrs([0])
        finally:
            os.kill(tpm.pid, signal.SIGCONT)
        for thread in [each for each in threading.enumerate() if each.name == "tpm"]:
            thread.join()
        assert device.read_pcrs([0]) == {0: bytes(32)}
        device.close()


class NeverAnswered:
    """A connection that waits for an answer that nobody gives any more."""

    def ended(self, timeout_s: float) -> bool:
        return False


def test_a_tpm_serves_again_though_no_command_of_before_gets_its_answer() -> None:
    with SoftwareTpm() as tpm:
        device = TpmDevice(tpm.tcti, 5)
        device._stalled = [cast(Connection, NeverAnswered()) for _ in range(20)]
        tpm.stop()
        with pytest.raises(UnavailableError, match="the connection to the TPM failed"):
            device.read_pcrs([0])
        tpm.start()
        assert device.read_pcrs([0]) == {0: bytes(32)}
        device.close()


class AnsweredAtLast(NeverAnswered):
    def ended(self, timeout_s: float) -> bool:
        return True


def test_a_tpm_serves_again_at_once_when_one_command_of_before_gets_its_answer() -> None:
    with SoftwareTpm() as tpm:
        device = TpmDevice(tpm.tcti, 5)
        waiting = [NeverAnswered() for _ in range(20)]
        device._stalled = [cast(Connection, each) for each in waiting]
        device._not_before_s = time.monotonic() + 3600
        tpm.stop()
        with pytest.raises(UnavailableError, match="the connection to the TPM failed"):
            device.read_pcrs([0])
        tpm.start()
        with pytest.raises(UnavailableError, match="20 connections"):
            device.read_pcrs([0])
        device._stalled[3] = cast(Connection, AnsweredAtLast())
        assert device.read_pcrs([0]) == {0: bytes(32)}
        device.close()


class CutOnce(Interposer):
    """Ends the connection at the first command of one kind."""

    def cut_at(self, code: int) -> None:
        def swallow(command: bytes) -> bytes | None:
            if code_of(command) == code:
                self.swallow = lambda command: None
                raise ConnectionError
            return None

        self.swallow = swallow


# TPM 2.0 Library, Part 2, section 6.5.2, TPM_CC.
READ_PUBLIC, PCR_EXTEND, ACTIVATE_CREDENTIAL = 0x173, 0x182, 0x147


@pytest.mark.parametrize("code", [CREATE_PRIMARY, READ_PUBLIC])
def test_a_tpm_that_fails_once_while_an_attester_is_made(code: int) -> None:
    with SoftwareTpm() as tpm, CutOnce(tpm) as bus:
        bus.cut_at(code)
        attester = TpmAttester(TpmSettings(tcti=bus.tcti, timeout_s=30))
        attester.measure(WORKLOAD)
        still_attests(attester)
        attester.close()


@pytest.mark.parametrize("code", [PCR_RESET, PCR_EXTEND])
def test_a_tpm_that_fails_once_while_it_measures(code: int) -> None:
    with SoftwareTpm() as tpm, CutOnce(tpm) as bus:
        attester = TpmAttester(TpmSettings(tcti=bus.tcti, timeout_s=30))
        bus.cut_at(code)
        attester.measure(WORKLOAD)
        bus.cut_at(PCR_EXTEND)
        attester.measure(replace(WORKLOAD, configuration=b"C" * 32))
        attester.measure(WORKLOAD)
        claims, report = evidence(attester)
        assert len(report.log) in (3, 5)
        assert verify(claims, report, TpmVerifier()).claims["module_measured"] is True
        attester.close()


def test_a_tpm_that_fails_twice_while_an_attester_is_made() -> None:
    def cut(command: bytes) -> bytes | None:
        raise ConnectionError

    with (
        SoftwareTpm() as tpm,
        Interposer(tpm, swallow=cut) as bus,
        pytest.raises(UnavailableError, match="the connection to the TPM failed"),
    ):
        TpmAttester(TpmSettings(tcti=bus.tcti, timeout_s=30))


@pytest.mark.parametrize("code", [CREATE_PRIMARY, ACTIVATE_CREDENTIAL])
def test_a_tpm_that_fails_once_while_it_enrols(code: int) -> None:
    with SoftwareTpm() as tpm, CutOnce(tpm) as bus:
        attester = TpmAttester(TpmSettings(tcti=bus.tcti, timeout_s=30))
        ek = attester.device.make_primary(EK_ECC.template)
        attester.device.forget(ek)
        secret = b"S" * 32
        credential = make_credential(
            parse_public(ek.public), parse_public(attester.key.public).name, secret, b"s" * 32
        )
        bus.cut_at(code)
        assert attester.activate(EK_ECC, credential) == secret
        attester.close()


def test_a_tpm_that_fails_once_serves_again_with_its_register_measured_anew() -> None:
    """An error of the transport leaves an ESYS context in a state that nothing mends."""
    with SoftwareTpm() as tpm:
        attester = TpmAttester(settings(tpm))
        attester.measure(WORKLOAD)
        before = still_attests(attester)
        tpm.stop()
        _, report_data = request()
        for _ in range(2):
            with pytest.raises(
                UnavailableError, match=r"the connection to the TPM failed|the TPM is enabled"
            ):
                attester.quote(report_data)
        tpm.start()
        after = still_attests(attester)
        assert after.ak == before.ak
        # Also when nobody noticed the restart: nothing was asked meanwhile.
        tpm.stop()
        tpm.start()
        still_attests(attester)
        attester.close()


@pytest.mark.parametrize("while_it_was_away", ["as it was", "other"])
def test_a_register_is_measured_anew_whatever_it_holds(
    while_it_was_away: str,
) -> None:
    with SoftwareTpm() as tpm, Interposer(tpm) as bus:
        attester = TpmAttester(replace(settings(tpm), tcti=bus.tcti))
        attester.measure(WORKLOAD)
        if while_it_was_away == "other":
            attester.device.extend_pcr(event_log.PCR, b"\1" * 32)
        resets = count_of(bus, PCR_RESET)
        lose_the_next_answer(bus)
        still_attests(attester)
        assert count_of(bus, PCR_RESET) == resets + 1
        still_attests(attester)
        assert count_of(bus, PCR_RESET) == resets + 1
        attester.close()


def test_a_register_that_cannot_be_measured_anew_is_not_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here the events of before are on it still, since the reset does nothing."""
    monkeypatch.setattr("avow.tee.tpm.attester.give_way", lambda attempt: None)
    with SoftwareTpm() as tpm, Interposer(tpm) as bus:
        attester = TpmAttester(replace(settings(tpm), tcti=bus.tcti))
        attester.measure(WORKLOAD)
        lose_the_next_answer(bus)
        done = bus.swallow

        def no_reset(command: bytes) -> bytes | None:
            if code_of(command) == PCR_RESET:
                return struct.pack(">HIIIHBH", 0x8002, 19, 0, 0, 0, 1, 0)
            return done(command)

        bus.swallow = no_reset
        _, report_data = request()
        with pytest.raises(UnavailableError, match="PCR 23"):
            attester.quote(report_data)
        attester.close()


def test_another_tpm_in_its_place_is_refused() -> None:
    """Its key is another one, and so may everything be that was measured."""
    with SoftwareTpm() as tpm, SoftwareTpm() as other, Interposer(tpm) as bus:
        attester = TpmAttester(replace(settings(tpm), tcti=bus.tcti))
        attester.measure(WORKLOAD)
        lose_the_next_answer(bus)
        bus.tpm = other
        _, report_data = request()
        with pytest.raises(UnavailableError, match="replaced or cleared"):
            attester.quote(report_data)
        attester.close()


def test_what_a_lost_connection_left_in_the_tpm_is_flushed() -> None:
    """It has three places, and without a resource manager nobody else makes room."""
    with SoftwareTpm() as tpm, Interposer(tpm) as bus:
        attester = TpmAttester(replace(settings(tpm), tcti=bus.tcti))
        attester.measure(WORKLOAD)
        counter = NvCounter(attester.device, 0x01800042, bytes(range(32)))
        assert counter.begin()[0] == 1
        for _ in range(5):
            lose_the_next_answer(bus, QUOTE)
            still_attests(attester)
            lose_the_next_answer(bus, NV_READ)
            with pytest.raises(UnavailableError, match="the connection to the TPM failed"):
                counter.read()
            found = counter.read()
            assert found is not None
            assert found[0] == 1
        attester.close()


def test_a_key_of_before_is_not_named_to_another_connection() -> None:
    """Under another connection its number belongs to whatever was made there first."""
    with SoftwareTpm() as tpm, Interposer(tpm) as bus:
        device = TpmDevice(bus.tcti, 5)
        key = device.make_primary(AK_RSA)
        lose_the_next_answer(bus)
        with pytest.raises(UnavailableError, match="the connection to the TPM failed"):
            device.read_pcrs([0])
        with pytest.raises(UnavailableError, match="a key of before"):
            device.quote(key, [0], b"data")
        with device.undisturbed():
            lose_the_next_answer(bus)
            for _ in range(2):
                with pytest.raises(UnavailableError):
                    device.read_pcrs([0])
        assert device.read_pcrs([0]) == {0: bytes(32)}
        device.close()


def lose_the_next_answer(bus: Interposer, code: int | None = None) -> None:
    """Of the next command, or of the next of one kind: the TPM has done it, and nobody learns."""

    def lose(command: bytes, answer: bytes) -> bytes:
        if code is not None and code_of(command) != code:
            return answer
        bus.change = lambda command, answer: answer
        raise ConnectionResetError

    bus.change = lose


def count_of(bus: Interposer, code: int) -> int:
    return len(bus.answers_to(code))


def test_several_programs_quote_at_once() -> None:
    """Each has to find its own measurement in the one PCR 23."""
    quoted: list[Report] = []
    with SoftwareTpm() as tpm, SharedTpm(tpm) as shared:

        def go_on(workload: Workload) -> None:
            attester = TpmAttester(TpmSettings(tcti=shared.tcti, timeout_s=30))
            attester.measure(workload)
            _, report_data = request()
            quoted.extend(decode_report(attester.quote(report_data)) for _ in range(8))
            attester.close()

        runs = [replace(WORKLOAD, module=bytes([number]) * 32) for number in range(1, 4)]
        threads = [threading.Thread(target=go_on, args=(workload,)) for workload in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(quoted) == 8 * len(runs)
    assert {event_log.measured(report.log)["module"] for report in quoted} == {
        each.module for each in runs
    }


def test_a_tpm_that_makes_an_rsa_key_has_more_time() -> None:
    with SoftwareTpm() as tpm:
        device = TpmDevice(tpm.tcti, 0.3)
        os.kill(tpm.pid, signal.SIGSTOP)
        going_on = threading.Timer(0.5, os.kill, (tpm.pid, signal.SIGCONT))
        going_on.start()
        assert device.make_primary(AK_RSA).public[:2] == b"\x00\x01"
        going_on.join()


def test_no_tpm() -> None:
    with pytest.raises(UnavailableError, match="/dev/avow-none"):
        TpmDevice("device:/dev/avow-none", 5)
    with pytest.raises(UnavailableError, match="nosuch:"):
        TpmAttester(TpmSettings(tcti="nosuch:x"))


def test_a_key_that_may_sign_anything_is_not_used(machine: Machine) -> None:
    """A signing key without `restricted` signs what its caller says, also a false quote."""
    free = bytearray(AK_RSA)
    free[5] &= ~0x01
    handle = 0x81010011
    make_persistent(machine.tpm, bytes(free), handle)
    with pytest.raises(UnavailableError, match="TPM2"):
        TpmAttester(replace(settings(machine.tpm), ak_handle=handle))


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_a_request_has_the_chain_that_the_tpm_keeps(
    machine: Machine, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what pads the areas, and in order, as the authority reads it."""
    monkeypatch.setenv("AVOW_TPM_TCTI", machine.tpm.tcti)
    made = tmp_path / "request"
    assert run(["enrol", "request", "--ek", kind, "-o", str(made)]) == ExitCode.OK
    template = {"ecc": EK_ECC, "rsa": EK_RSA}[kind]
    request = decode_request(made.read_bytes())
    assert request.ek_certificates == machine.chains[template]
    kept, _ = Owner(machine.maker).challenger.challenge(request, NOW, b"s" * 32, b"e" * 32)
    assert kept.ek_digest == sha256(machine.chains[template][0]).digest()
