"""A program in the sandbox that wants to be another one, or something else than a program.

It can choose every number and byte that it passes. What the hardware signs is derived from claims,
of which one is the program's; each attack here is an attempt to say more with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import WasmtimeError

from avow.channel.attestation import ServerAttestation
from avow.channel.attested_identity import make_identity
from avow.channel.exchange import ServerSettings
from avow.cli import program_attestation
from avow.errors import AvowError, TrapError
from avow.evidence.claims import Claims, Role, Workload, decode_claims
from avow.evidence.envelope import Evidence, decode_evidence
from avow.evidence.origin import DOCUMENT_BINDER, Expectation, verify_evidence
from avow.evidence.report_data import ReportData, batch
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.attesting_guest import (
    CONFIGURATION,
    KNOWN,
    LENGTH_AT,
    MEMORY_BYTES,
    MODULE,
    NONCE_AT,
    OUT_AT,
    OUT_BYTES,
    RUNTIME,
    USER_DATA_AT,
    Guest,
    attesting,
    guest_of,
)
from tests.adversary.removal import Defence, removed
from tests.adversary.scene import CLIENT_CONTEXT, World, check_of

NONCE = bytes(range(32))
VICTIM = Workload(b"\x01" * 32, RUNTIME, CONFIGURATION, b"\x04" * 32)

ROLE = Defence("E5", "avow.evidence.origin", "ROLE")
KEY = Defence("E6", "avow.evidence.origin", "KEY")
BOUND = Defence("E7", "avow.evidence.origin", "BOUND")


class Recording(SimulatedAttester):
    """Keeps what it was asked to sign."""

    def __init__(self) -> None:
        super().__init__()
        self.signed: list[bytes] = []

    def quote(self, report_data: ReportData) -> bytes:
        self.signed.append(report_data.content)
        return super().quote(report_data)


@pytest.fixture(scope="module")
def platform() -> Recording:
    return Recording()


@pytest.fixture(scope="module")
def attestation(platform: Recording) -> Iterator[ServerAttestation]:
    with attesting(platform) as made:
        yield made


@pytest.fixture(scope="module")
def guest(attestation: ServerAttestation) -> Guest:
    return guest_of(attestation)


def claims_of(evidence: bytes) -> Claims:
    return decode_claims(decode_evidence(evidence).claims)


@settings(max_examples=40, deadline=None)
@given(user_data=st.binary(max_size=1024), nonce=st.binary(min_size=32, max_size=32))
def test_whatever_it_says_only_its_own_claims_change(
    guest: Guest, platform: Recording, user_data: bytes, nonce: bytes
) -> None:
    code, evidence = guest.attest(nonce, user_data)
    assert code == 0
    claims = claims_of(evidence)
    assert (claims.role, claims.key) == (Role.PROGRAM, b"")
    assert (claims.workload.module, claims.workload.runtime) == (MODULE, RUNTIME)
    assert claims.workload.configuration == CONFIGURATION
    assert (claims.nonce, claims.user_data) == (nonce, user_data)
    # What was signed is avow's own hash over these claims: none of it is the program's choice.
    expected, _ = batch([(claims, DOCUMENT_BINDER)])
    assert platform.signed[-1] == expected.content
    assert expected.content not in (user_data, nonce)


def smuggled() -> Iterator[bytes]:
    """User data that looks like something that would be worth a signature."""
    victims = Claims(NONCE, Role.PROGRAM, VICTIM, b"", 1_700_000_000)
    server = Claims(NONCE, Role.SERVER, VICTIM, b"\x05" * 32, 1_700_000_000)
    for claims in (victims, server):
        report_data, _ = batch([(claims, DOCUMENT_BINDER)])
        yield claims.encoded()
        yield report_data.content
        yield b"avow evidence v1" + hashlib.sha512(claims.encoded()).digest() + DOCUMENT_BINDER


def test_no_user_data_becomes_report_data_or_claims(guest: Guest, platform: Recording) -> None:
    for user_data in smuggled():
        code, evidence = guest.attest(NONCE, user_data)
        assert code == 0
        parts = decode_evidence(evidence)
        assert claims_of(evidence).workload.module == MODULE
        assert platform.signed[-1] != user_data[:64]
        # The signature that it got, under the claims that it would like to have.
        forged = Evidence(parts.platform, parts.report, user_data, parts.path)
        expectation = Expectation(NONCE, Role.PROGRAM, b"", DOCUMENT_BINDER)
        with pytest.raises(AvowError):
            verify_evidence(forged.encoded(), expectation, KNOWN, datetime.now(UTC))


def test_claims_of_another_module_do_not_fit_the_signature(guest: Guest) -> None:
    parts = decode_evidence(guest.attest(NONCE)[1])
    lies = dataclasses.replace(decode_claims(parts.claims), workload=VICTIM)
    forged = Evidence(parts.platform, parts.report, lies.encoded(), parts.path).encoded()
    expectation = Expectation(NONCE, Role.PROGRAM, b"", DOCUMENT_BINDER)
    with pytest.raises(AvowError, match="E7"):
        verify_evidence(forged, expectation, KNOWN, datetime.now(UTC))
    with removed([BOUND]):
        verified = verify_evidence(forged, expectation, KNOWN, datetime.now(UTC))
    assert verified.claims["module"] == VICTIM.module


def test_another_nonce_does_not_fit_the_signature(guest: Guest) -> None:
    """It keeps evidence of a better day and answers a new question with it."""
    parts = decode_evidence(guest.attest(NONCE)[1])
    new = bytes(range(32, 64))
    lies = dataclasses.replace(decode_claims(parts.claims), nonce=new)
    forged = Evidence(parts.platform, parts.report, lies.encoded(), parts.path).encoded()
    old = Evidence(parts.platform, parts.report, parts.claims, parts.path).encoded()
    expectation = Expectation(new, Role.PROGRAM, b"", DOCUMENT_BINDER)
    with pytest.raises(AvowError, match="E7"):
        verify_evidence(forged, expectation, KNOWN, datetime.now(UTC))
    with pytest.raises(AvowError, match="E4"):
        verify_evidence(old, expectation, KNOWN, datetime.now(UTC))


def test_a_program_is_no_server(guest: Guest) -> None:
    """It passes itself off as the machine at the other end of a channel: the client's context is
    its nonce, the digest of its own TLS key its user data."""
    world = World(broker=make_identity("simulated", VICTIM, datetime.now(UTC)))
    defences = [ROLE, KEY, BOUND]

    def attack() -> AvowError | None:
        talk = world.talk(server=ServerSettings(identity=world.broker))

        def by_the_program(evidence: Evidence) -> Evidence:
            key = sha256(world.broker.spki).digest()
            return decode_evidence(guest.attest(CLIENT_CONTEXT, key)[1])

        talk.server_platform.change = by_the_program
        talk.run()
        return talk.client_error

    for number, defence in enumerate(defences):
        with removed(defences[:number]):
            assert check_of(attack()) == defence.check
    with removed(defences):
        # What is left: the policy knows the broker's module, and this is another one.
        assert check_of(attack()) == "P4"


@pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT, Role.DOCUMENT, Role.CERTIFICATE])
def test_evidence_of_a_program_serves_as_nothing_else(guest: Guest, role: Role) -> None:
    _, evidence = guest.attest(NONCE)
    key = b"" if role is Role.DOCUMENT else b"\x05" * 32
    with pytest.raises(AvowError, match="E5"):
        verify_evidence(
            evidence, Expectation(NONCE, role, key, DOCUMENT_BINDER), KNOWN, datetime.now(UTC)
        )


def test_evidence_for_a_file_is_no_program(guest: Guest) -> None:
    """Whoever may run `avow attest` cannot make what a program says."""
    claims = Claims(NONCE, Role.DOCUMENT, VICTIM, b"", 1_700_000_000, b"said by the program")
    report_data, (path,) = batch([(claims, DOCUMENT_BINDER)])
    report = SimulatedAttester().quote(report_data)
    evidence = Evidence("simulated", report, claims.encoded(), path).encoded()
    assert guest.verify(evidence, NONCE, b"version = 1")[0] == 28
    with pytest.raises(AvowError, match="E5"):
        verify_evidence(
            evidence,
            Expectation(NONCE, Role.PROGRAM, b"", DOCUMENT_BINDER),
            KNOWN,
            datetime.now(UTC),
        )


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6))
def test_any_numbers_at_all_end_in_an_errno_or_the_program(
    guest: Guest, platform: Recording, numbers: list[int]
) -> None:
    """And make the platform sign nothing but a program's claims."""
    before = len(platform.signed)
    try:
        code = guest.call("attest", *numbers)
    except (TrapError, WasmtimeError):
        code = -1
    assert code in (-1, 0, 1, 68)
    assert len(platform.signed) - before <= 1


def test_an_answer_over_the_question_changes_no_claim(guest: Guest) -> None:
    """Everything in one place: nonce, user data, result and its length."""
    guest.write(NONCE_AT, NONCE)
    assert guest.call("attest", NONCE_AT, 32, NONCE_AT, NONCE_AT, OUT_BYTES, LENGTH_AT) == 0
    length = int.from_bytes(guest.read(LENGTH_AT, 4), "little")
    assert length < LENGTH_AT
    claims = claims_of(guest.read(NONCE_AT, length))
    assert (claims.nonce, claims.user_data) == (NONCE, NONCE)
    assert claims.workload.module == MODULE


def test_the_end_of_its_memory_is_the_end(guest: Guest) -> None:
    with pytest.raises((TrapError, WasmtimeError)):
        guest.call("attest", USER_DATA_AT, 0, NONCE_AT, MEMORY_BYTES - 8, OUT_BYTES, LENGTH_AT)
    assert OUT_AT + OUT_BYTES <= MEMORY_BYTES


def test_the_functions_take_claims_and_never_report_data() -> None:
    """No line of this wiring can hand bytes of a program to a platform."""
    source = inspect.getsource(program_attestation)
    assert "ReportData" not in source
    assert ".quote(report" not in source
