"""The functions by which a program in the sandbox proves itself and judges others."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from wasmtime import WasmtimeError

from avow.channel.attestation import ServerAttestation
from avow.channel.provisioning import Provisioned
from avow.cli import cli
from avow.cli.broker_attestation import measured_endorsements
from avow.cli.command_error import CommandError
from avow.cli.program_trust import ProgramTrust
from avow.errors import AvowError, MalformedError, TrapError, UnavailableError
from avow.evidence.claims import Role, decode_claims
from avow.evidence.envelope import decode_evidence
from avow.evidence.origin import DOCUMENT_BINDER, Expectation, Verified, verify_evidence
from avow.evidence.report_data import ReportData
from avow.sandbox.app_file import parse_app
from avow.sandbox.grants import configuration_digest, parse_grants
from avow.sandbox.program import Surroundings
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
    policy_for,
)
from avow.testing.pki import Authority

NONCE = bytes(range(32))
POLICY = policy_for()


class Smoking(SimulatedAttester):
    """Quotes twice (at the start, and the first time), then never again."""

    def __init__(self) -> None:
        super().__init__()
        self.quotes = 0

    def quote(self, report_data: ReportData) -> bytes:
        self.quotes += 1
        if self.quotes > 2:
            raise UnavailableError("expected a device, got smoke; call somebody")
        return super().quote(report_data)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def attestation() -> Iterator[ServerAttestation]:
    with attesting(Smoking()) as made:
        yield made


@pytest.fixture
def guest(attestation: ServerAttestation, said: list[str]) -> Guest:
    return guest_of(attestation, said.append)


def verified(evidence: bytes, role: Role = Role.PROGRAM) -> Verified:
    return verify_evidence(
        evidence, Expectation(NONCE, role, b"", DOCUMENT_BINDER), KNOWN, datetime.now(UTC)
    )


def test_the_evidence_names_the_module_and_has_the_programs_words_in_one_claim(
    guest: Guest,
) -> None:
    code, evidence = guest.attest(NONCE, b"my public key")
    assert code == 0
    claims = verified(evidence).claims
    assert claims["role"] == "program"
    assert claims["module"] == MODULE
    assert claims["runtime"] == RUNTIME
    assert claims["configuration"] == CONFIGURATION
    assert claims["user_data"] == b"my public key"
    assert claims["key"] == b""


@pytest.mark.parametrize(("length", "code"), [(0, 0), (1024, 0), (1025, 1), (0xFFFFFFFF, 1)])
def test_how_much_a_program_can_say(guest: Guest, length: int, code: int) -> None:
    guest.write(NONCE_AT, NONCE)
    signed = length - 2**32 if length >= 2**31 else length
    numbers = (USER_DATA_AT, signed, NONCE_AT, OUT_AT, OUT_BYTES, LENGTH_AT)
    assert guest.call("attest", *numbers) == code
    written = int.from_bytes(guest.read(LENGTH_AT, 4), "little")
    assert (written > 0) is (code == 0)


def test_too_little_room_says_how_much_and_writes_nothing(guest: Guest) -> None:
    guest.write(NONCE_AT, NONCE)
    marked = b"\xaa" * OUT_BYTES
    guest.write(OUT_AT, marked)
    assert guest.call("attest", USER_DATA_AT, 0, NONCE_AT, OUT_AT, 16, LENGTH_AT) == 68
    wanted = int.from_bytes(guest.read(LENGTH_AT, 4), "little")
    assert wanted > 16
    assert guest.read(OUT_AT, OUT_BYTES) == marked


def test_no_evidence_is_an_errno_and_a_line_for_the_operator(guest: Guest, said: list[str]) -> None:
    assert guest.attest(NONCE)[0] == 0
    assert guest.attest(NONCE)[0] == 29
    assert said == [
        "no evidence for the program: expected a device, got smoke; call somebody",
    ]


@pytest.mark.parametrize(
    "numbers",
    [
        (MEMORY_BYTES - 1, 2, NONCE_AT, OUT_AT, OUT_BYTES, LENGTH_AT),
        (USER_DATA_AT, 0, MEMORY_BYTES - 31, OUT_AT, OUT_BYTES, LENGTH_AT),
        (USER_DATA_AT, 0, -1, OUT_AT, OUT_BYTES, LENGTH_AT),
        (USER_DATA_AT, 0, NONCE_AT, MEMORY_BYTES - 16, OUT_BYTES, LENGTH_AT),
        (USER_DATA_AT, 0, NONCE_AT, OUT_AT, OUT_BYTES, MEMORY_BYTES - 3),
        (USER_DATA_AT, 0, NONCE_AT, OUT_AT, OUT_BYTES, -4),
    ],
)
def test_addresses_outside_end_the_program(guest: Guest, numbers: tuple[int, ...]) -> None:
    with pytest.raises((TrapError, WasmtimeError), match="inside of the program"):
        guest.call("attest", *numbers)


def test_a_program_judges_another_one(guest: Guest) -> None:
    _, evidence = guest.attest(NONCE, b"hello")
    code, result = guest.verify(evidence, NONCE, POLICY.encode())
    assert code == 0
    assert json.loads(result)["submods"]
    assert b"hello".hex().encode() in result


def other(text: str, by: str) -> bytes:
    assert text in POLICY
    return POLICY.replace(text, by).encode()


@pytest.mark.parametrize(
    ("policy", "code", "words"),
    [
        (other(MODULE.hex(), "00" * 32), 2, b"contraindicated"),
        (other("unsafe_simulated = true", ""), 28, b"unsafe_simulated"),
        (other('role = "program"', 'role = "server"'), 2, b"contraindicated"),
        (b"version = 1", 28, b'"judged": false'),
        (b"\xff", 28, b"UTF-8"),
        (b"", 28, b'"judged": false'),
    ],
)
def test_zero_says_accepted_and_nothing_else_does(
    guest: Guest, policy: bytes, code: int, words: bytes
) -> None:
    _, evidence = guest.attest(NONCE)
    found, result = guest.verify(evidence, NONCE, policy)
    assert found == code
    assert words in result


def test_evidence_that_is_none_or_old(guest: Guest) -> None:
    _, evidence = guest.attest(NONCE)
    assert guest.verify(evidence, bytes(32), POLICY.encode())[0] == 2
    assert guest.verify(evidence[:-1], NONCE, POLICY.encode())[0] == 28
    assert guest.verify(b"", NONCE, POLICY.encode())[0] == 28
    changed = bytearray(evidence)
    changed[len(changed) // 2] ^= 1
    assert guest.verify(bytes(changed), NONCE, POLICY.encode())[0] in (2, 28)
    # Longer than evidence can be: not even read.
    assert guest.call("verify", 0, 65537, NONCE_AT, 0, 0, OUT_AT, OUT_BYTES, LENGTH_AT) == 1
    assert guest.call("verify", 0, 0, NONCE_AT, 0, 262145, OUT_AT, OUT_BYTES, LENGTH_AT) == 1


def test_acceptance_without_room_for_the_result_is_no_acceptance(guest: Guest) -> None:
    _, evidence = guest.attest(NONCE)
    guest.write(8192, evidence)
    guest.write(131072, POLICY.encode())
    numbers = (8192, len(evidence), NONCE_AT, 131072, len(POLICY.encode()), OUT_AT, 8, LENGTH_AT)
    assert guest.call("verify", *numbers) == 68


def test_claims_of_a_program_are_those_of_the_profile(guest: Guest) -> None:
    _, evidence = guest.attest(NONCE)
    claims = decode_claims(decode_evidence(evidence).claims)
    assert claims.role is Role.PROGRAM
    for role in (Role.SERVER, Role.CLIENT, Role.DOCUMENT, Role.CERTIFICATE):
        with pytest.raises(AvowError, match="E5"):
            verified(evidence, role)


def seen(files: dict[str, bytes] | None) -> list[tuple[str, str]]:
    """What a program with `env:TOKEN` and `env:HOME` sees."""
    trust = ProgramTrust(provisioned=None if files is None else Provisioned({}, files))
    host = {"TOKEN": "the host's", "HOME": "/root", "PATH": "/bin"}
    grants = parse_grants(["env:TOKEN", "env:HOME"], folder=Path())
    return Surroundings((), grants, trust.environment(host, grants)).variables


def test_provisioned_files_are_values_of_granted_names_and_come_before_the_hosts() -> None:
    assert seen(None) == [("TOKEN", "the host's"), ("HOME", "/root")]
    # What no variable is made of may be any bytes.
    found = seen({"TOKEN": b"the owner's", "PATH": b"not granted", "tls.der": b"\xff\0"})
    assert found == [("TOKEN", "the owner's"), ("HOME", "/root")]
    for wrong in (b"\xff", b"a\0b"):
        with pytest.raises(MalformedError, match="TOKEN"):
            seen({"TOKEN": wrong})


def test_the_owner_of_a_program_is_measured() -> None:
    grants = parse_grants([], folder=Path())
    digests = {
        configuration_digest(["app"], grants, {}, owner=owner)
        for owner in (None, "sha256:" + "00" * 32, "sha256:" + "01" * 32)
    }
    assert len(digests) == 3
    assert configuration_digest(["app"], grants, {}) in digests


def measured(*options: str) -> str:
    """The digest of the configuration that a program has with these options of `avow run`."""
    done = CliRunner().invoke(cli, ["measure", "app", *options], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return next(line for line in done.stdout.splitlines() if line.startswith("configuration"))


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "app.wasm").write_bytes(b"\0asm\x01\0\0\0")
    return str(tmp_path / "app.wasm")


def test_who_can_open_a_programs_store_is_measured(program: str) -> None:
    """A relying party would tell it things that the host has a key for, and could not know."""
    store = (program, "--store", "s", "--key")
    sealed = "@0,7#" + "0b" * 34
    kinds = (
        ("file:k",),
        ("tpm:k",),
        ("tpm:k@0,7",),
        ("gramine",),
        ("gramine:mrsigner",),
        ("snp",),
        ("provisioned",),
        ("tpm:k", "--also-key", "file:k"),
        ("tpm:k", "--also-key", "snp"),
        ("tpm:k", "--anchor", "tpm:0x01800042"),
    )
    digests = [measured(*store, *kind) for kind in kinds]
    assert len({*digests, measured(program)}) == len(kinds) + 1
    # Where it lies is the host's to say.
    assert measured(*store, f"tpm:/elsewhere{sealed}") == digests[2]
    for wrong in (("--store", "s"), ("--key", "file:k"), (*store[1:], "k")):
        with pytest.raises(CommandError):
            measured(program, *wrong)


def test_whom_a_programs_judgements_trust_is_measured(program: str, tmp_path: Path) -> None:
    """Else the host adds an authority of its own, and the program accepts whatever that signs."""
    folder = tmp_path / "endorsements"
    (folder / "tpm").mkdir(parents=True)
    options = (program, "--attest", "--endorsements", str(folder))
    empty = measured(*options)
    (folder / "tpm/list.crl").write_bytes(b"signed by its issuer")
    assert measured(*options) == empty
    (folder / "tpm/root.pem").write_bytes(Authority().pem())
    one = measured(*options)
    (folder / "tpm/root.pem").write_bytes(Authority().pem())
    assert len({measured(program), empty, one, measured(*options)}) == 4
    for wrong in (("--attest", "--endorsements", str(folder / "absent")), options[2:]):
        with pytest.raises(CommandError):
            measured(program, *wrong)


def test_roots_that_change_after_they_were_measured_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tpm").mkdir()
    path = tmp_path / "tpm/root.pem"
    path.write_bytes(before := Authority().pem())
    assert len(measured_endorsements(tmp_path, [before]).tpm_roots) == 1
    # A file that nobody takes for a root, with a certificate of another version, does no harm.
    content = b"".join(before.splitlines()[1:-1])
    odd = base64.b64decode(content).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x14")
    pem = b"-----BEGIN CERTIFICATE-----\n%b-----END CERTIFICATE-----\n" % base64.encodebytes(odd)
    assert len(measured_endorsements(tmp_path, [pem, before]).tpm_roots) == 1
    path.write_bytes(Authority().pem())
    with pytest.raises(UnavailableError, match="to stay the same while they are read"):
        measured_endorsements(tmp_path, [before])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"provision_listen": "127.0.0.1:0"}, "the place and the owner for provisioning"),
        ({"provision_owner": "sha256:" + "00" * 32}, "the place and the owner for provisioning"),
        ({"provision_listen": "nowhere", "provision_owner": "sha256:" + "00" * 32}, "host:port"),
        ({"provision_listen": "127.0.0.1:0", "provision_owner": "me"}, "sha256:"),
    ],
)
def test_where_and_by_whom_a_program_is_provisioned_go_together(
    given: dict[str, str], words: str
) -> None:
    arguments = [part for name, text in given.items() for part in (f"--{name}", text)]
    arguments = [part.replace("_", "-") if part.startswith("--") else part for part in arguments]
    done = CliRunner().invoke(cli, ["measure", "app", "x.wasm", *arguments])
    assert isinstance(done.exception, CommandError)
    assert words in done.exception.sentence
    assert done.exception.code == 2


def test_an_app_file_says_who_provisions_it() -> None:
    owner = "sha256:" + "00" * 32
    table = f'[provisioning]\nlisten = "127.0.0.1:0"\nowner = "{owner}"\n'
    app = parse_app(f'module = "a.wasm"\n{table}'.encode(), folder=Path(), name="app.toml")
    assert app.provisioning is not None
    assert (app.provisioning.listen, app.provisioning.owner) == ("127.0.0.1:0", owner)
    with pytest.raises(MalformedError, match="did you mean `owner`"):
        parse_app(
            b'module = "a.wasm"\n[provisioning]\nowners = "x"\n', folder=Path(), name="app.toml"
        )
