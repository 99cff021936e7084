"""What `avow run --attest` gives a program: functions by which it proves itself, and judges others.

    avow_evidence.attest(user_data, user_data_len, nonce, out, out_max, out_len) -> errno
    avow_verify.verify(evidence, evidence_len, nonce, policy, policy_len, out, out_max, out_len)
        -> errno

Pointers and lengths are i32; `nonce` points to 32 bytes, `out_len` to an i32 that gets the length
of what was, or would be, written. docs/how-to/attested-programs.md.

A program says what it likes in one claim, its user data. All other claims are avow's, and what the
hardware signs is derived from the claims: there is no way to have it sign anything else.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from avow.channel.attestation import ServerAttestation
from avow.channel.exchange import QuoteWanted
from avow.channel.issuer import QUOTE_TIMEOUT_S, QUOTES_PER_S, WAITING_MAX
from avow.cli.broker_attestation import open_platform
from avow.cli.reports import render_json
from avow.cli.verify import error_json
from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import NONCE_BYTES, USER_DATA_BYTES_MAX, Claims, Role
from avow.evidence.envelope import Evidence
from avow.evidence.origin import DOCUMENT_BINDER, Expectation, verify_evidence
from avow.evidence.roles import Verifier
from avow.policy.policy_file import parse_policy
from avow.runtime.manifest import runtime_manifest
from avow.sandbox.extra_imports import ExtraImport, GuestMemory

if TYPE_CHECKING:
    from avow.tee.platforms import Endorsements

# Of wasi_snapshot_preview1, which programs know already.
SUCCESS: Final = 0
TOO_BIG: Final = 1
ACCES: Final = 2
INVAL: Final = 28
IO: Final = 29
RANGE: Final = 68

EVIDENCE_BYTES_MAX: Final = 64 * 1024
POLICY_BYTES_MAX: Final = 256 * 1024
_LENGTH_BYTES: Final = 4
# The issuer gives up before; this is for an issuer that does not.
_PATIENCE_S: Final = QUOTE_TIMEOUT_S + 7.0

Clock = Callable[[], datetime]
Say = Callable[[str], None]


def attest_program(tee: str, module: bytes, configuration: bytes) -> ServerAttestation:
    """The evidence of a program before it runs; call `stop` at the end.

    `module` is the SHA-256 of exactly the bytes that were compiled, `configuration` that of the
    program's arguments, grants and limits. Raises `UnavailableError` when `tee` is not here or
    cannot quote.
    """
    attestation = ServerAttestation(
        open_platform(tee, "the program"),
        module=module,
        runtime=runtime_manifest().digest,
        quotes_per_s=QUOTES_PER_S,
        waiting_max=WAITING_MAX,
        quote_timeout_s=QUOTE_TIMEOUT_S,
    )
    attestation.measure(configuration, _now())
    attestation.start()
    return attestation


def attestation_imports(
    attestation: ServerAttestation,
    endorsements: Endorsements | None,
    *,
    say: Say,
    clock: Clock | None = None,
) -> tuple[ExtraImport, ...]:
    """The functions, for `Surroundings.extra_imports`.

    `endorsements` are what vendors say about the hardware of others. `say` is told, in a sentence,
    why there is no evidence.
    """
    from avow.tee.platforms import verifiers

    known = verifiers(endorsements)
    return (
        evidence_import(attestation, say=say, clock=clock or _now),
        verify_import(known, clock=clock or _now),
    )


def evidence_import(attestation: ServerAttestation, *, say: Say, clock: Clock) -> ExtraImport:
    """`avow_evidence.attest`."""

    def attest(
        memory: GuestMemory,
        user_data: int,
        user_data_len: int,
        nonce: int,
        out: int,
        out_max: int,
        out_len: int,
    ) -> int:
        if user_data_len > USER_DATA_BYTES_MAX:
            return TOO_BIG
        claims = Claims(
            nonce=memory.read(nonce, NONCE_BYTES),
            role=Role.PROGRAM,
            workload=attestation.identity.workload,
            key=b"",
            issued_at_s=int(clock().timestamp()),
            user_data=memory.read(user_data, user_data_len),
        )
        try:
            evidence = _quote(attestation, claims).encoded()
        except AvowError as error:
            say(f"no evidence for the program: {error}")
            return IO
        return _give(memory, evidence, _Room(out, out_max, out_len), SUCCESS)

    return ExtraImport("avow_evidence", "attest", ("i32",) * 6, attest)


def verify_import(known: Mapping[str, Verifier], *, clock: Clock) -> ExtraImport:
    """`avow_verify.verify`: 0 and nothing else says that the evidence was accepted."""

    def verify(
        memory: GuestMemory,
        evidence: int,
        evidence_len: int,
        nonce: int,
        policy: int,
        policy_len: int,
        out: int,
        out_max: int,
        out_len: int,
    ) -> int:
        if evidence_len > EVIDENCE_BYTES_MAX or policy_len > POLICY_BYTES_MAX:
            return TOO_BIG
        content = memory.read(evidence, evidence_len)
        expectation = Expectation(
            memory.read(nonce, NONCE_BYTES), Role.PROGRAM, b"", DOCUMENT_BINDER
        )
        text = memory.read(policy, policy_len)
        result, code = _judged(content, expectation, text, known, clock())
        return _give(memory, result.encode(), _Room(out, out_max, out_len), code)

    return ExtraImport("avow_verify", "verify", ("i32",) * 8, verify)


def _judged(
    content: bytes,
    expectation: Expectation,
    policy: bytes,
    known: Mapping[str, Verifier],
    now: datetime,
) -> tuple[str, int]:
    """The result in JSON, as of `avow verify --json`, and the errno that goes with it."""
    try:
        rules = parse_policy(_text(policy), name="the program's policy")
        result = rules.appraise(verify_evidence(content, expectation, known, now))
    except (DeniedError, UntrustedError) as error:
        return error_json(error), ACCES
    except AvowError as error:
        return error_json(error), INVAL
    return render_json(result), SUCCESS if result.accepted else ACCES


def _text(policy: bytes) -> str:
    try:
        return policy.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(
            "expected UTF-8 in the program's policy, got invalid bytes at offset "
            f"{error.start}; correct the program"
        ) from error


def _quote(attestation: ServerAttestation, claims: Claims) -> Evidence:
    answers: queue.SimpleQueue[Evidence | AvowError] = queue.SimpleQueue()
    attestation.quote(QuoteWanted(claims, DOCUMENT_BINDER), answers.put)
    try:
        answer = answers.get(timeout=_PATIENCE_S)
    except queue.Empty as error:
        raise UnavailableError(
            f"expected evidence within {_PATIENCE_S:g} s, got none; `avow tee` shows what "
            "this machine has"
        ) from error
    if isinstance(answer, AvowError):
        raise answer
    return answer


@dataclass(frozen=True, slots=True)
class _Room:
    """Where a program wants an answer: `address` has room for `size_bytes`, and `length` points to
    where its length goes."""

    address: int
    size_bytes: int
    length: int


def _give(memory: GuestMemory, content: bytes, room: _Room, code: int) -> int:
    """`code`, or RANGE where there is too little room; the length is told either way."""
    memory.write(room.length, len(content).to_bytes(_LENGTH_BYTES, "little"))
    if len(content) > room.size_bytes:
        return RANGE
    memory.write(room.address, content)
    return code


def _now() -> datetime:
    return datetime.now(UTC)
