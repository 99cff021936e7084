"""One TPM for all, as on a real machine: it attests, keeps the store's key, and is its anchor."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from avow.cli.exit_codes import ExitCode
from avow.errors import UnavailableError
from avow.evidence.claims import Role, Workload
from avow.evidence.origin import DOCUMENT_BINDER, Expectation, verify_evidence
from avow.tee.platforms import verifiers
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.sealing import seal, unseal
from avow.tee.tpm.templates import AK_ECC
from avow.testing.pki import Authority
from avow.testing.shared_tpm import SLOTS, SharedTpm, refused
from avow.testing.swtpm import SoftwareTpm
from examples.sandbox.programs import ROOT, made, zig
from tests.integration.service_process import ServiceProcess, avow, service

pytestmark = pytest.mark.tpm

ANCHOR = "tpm:0x01800042"
NONCE = "5a" * 32
SECRET = bytes(range(32))
RUNS = Workload(b"m" * 32, b"r" * 32, b"c" * 32, bytes(32))
RC_RETRY = 0x922
TRANSIENT, LOADED_SESSIONS, SAVED_SESSIONS = 0x80000000, 0x02000000, 0x03000000


@dataclass(frozen=True)
class Machine:
    """A TPM behind a resource manager, and a folder."""

    tpm: SoftwareTpm
    shared: SharedTpm
    folder: Path

    def file(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def container(self) -> Path:
        return self.folder / "state" / "store.avow"

    def left_behind(self) -> list[int]:
        """Handles of objects and sessions in the TPM, with nobody using it."""
        return self.shared.handles(TRANSIENT, LOADED_SESSIONS, SAVED_SESSIONS)

    def boot_something_else(self) -> None:
        """What firmware does: PCR 7 gets another value."""
        device = TpmDevice(self.shared.tcti, 5)
        device.extend_pcr(7, b"\x01" * 32)
        device.close()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with SoftwareTpm() as tpm, SharedTpm(tpm) as shared:
        monkeypatch.setenv("AVOW_TPM_TCTI", shared.tcti)
        yield Machine(tpm, shared, tmp_path)


def broker_options(machine: Machine) -> tuple[str, ...]:
    authority = Authority()
    authority.write(machine.folder / "ca.pem")
    certificate, key = authority.issue_server().write(machine.folder, "server")
    return (
        *("--listen", "mqtts://localhost:0", "--allow-anonymous"),
        *("--cert", str(certificate), "--key", str(key)),
        *("--store", machine.file("state"), "--anchor", ANCHOR),
        *("--store-key", f"tpm:{machine.file('store.tpm')}@0,7"),
    )


def written_policy(machine: Machine, options: tuple[str, ...]) -> tuple[str, ...]:
    """From evidence of the broker that is trusted; as options of a client."""
    evidence, policy = machine.file("evidence.cmw"), machine.file("policy.toml")
    attest = ("attest", "--tee", "tpm", "--nonce", "11" * 32, "-o", evidence)
    init = ("policy", "init", "--broker", "--platform", "tpm", "--from", evidence, "-o", policy)
    for command in (attest, init):
        done = avow(*command, *options)
        assert done.returncode == 0, done.stderr
    return ("--cafile", machine.file("ca.pem"), "--policy", policy)


def test_a_broker(machine: Machine) -> None:
    options = broker_options(machine)
    trusted = written_policy(machine, options)
    running = ServiceProcess(["--tee", "tpm", *options, "--new-store"])
    try:
        url = running.url("mqtts")
        kept = avow("pub", *trusted, "-q", "1", "-r", "-t", "a/b", "-m", "kept", url)
        assert kept.returncode == 0, kept.stderr
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    finally:
        running.close()
    shutil.copyfile(machine.container, machine.folder / "old")
    with service("--tee", "tpm", *options) as again:
        found = avow("sub", *trusted, "-t", "a/#", "-C", "1", "-W", "20", again.url("mqtts"))
        assert (found.returncode, found.stdout) == (0, b"kept\n"), found.stderr
    newest = machine.container.read_bytes()
    shutil.copyfile(machine.folder / "old", machine.container)
    refused = avow("broker", "--tee", "tpm", *options)
    assert refused.returncode == ExitCode.ROLLED_BACK, refused.stderr
    assert b"the TPM's counter 0x01800042" in refused.stderr
    machine.container.write_bytes(newest)
    machine.boot_something_else()
    refused = avow("broker", "--tee", "tpm", *options)
    assert refused.returncode == ExitCode.USAGE, refused.stderr
    assert b"expected the PCRs 0, 7, 23 as when the key was sealed" in refused.stderr
    assert refused.stderr.count(b"avow: ") == 1
    assert machine.left_behind() == []


def test_a_program(machine: Machine) -> None:
    source = ROOT / "examples/sandbox/prove.zig"
    flags = ("-target", "wasm32-freestanding", "-O", "ReleaseSmall", "-fno-entry", "-rdynamic")
    program = made(
        "prove.wasm",
        [" ".join(flags), source.read_bytes()],
        lambda path: zig(["build-exe", source, *flags, f"-femit-bin={path}"]),
    )
    options = (
        *(str(program), "--grant", "evidence", "--attest", "--tee", "tpm"),
        *("--store", machine.file("state"), "--anchor", ANCHOR),
        *("--key", f"tpm:{machine.file('store.tpm')}@0,7"),
    )

    def run(*more: str, text: str = "said") -> tuple[int, bytes, bytes]:
        done = avow("run", *options, *more, "--", text, stdin=f"{NONCE}\n".encode())
        return done.returncode, done.stdout, done.stderr

    code, evidence, errors = run("--new-store")
    assert code == 0, errors
    expected = Expectation(bytes.fromhex(NONCE), Role.PROGRAM, b"", DOCUMENT_BINDER)
    shown = verify_evidence(evidence, expected, verifiers(None), datetime.now(UTC)).claims
    assert (shown["user_data"], shown["module_measured"]) == (b"said", True)
    old = machine.container.read_bytes()
    code, _, errors = run()
    assert code == 0, errors
    machine.container.write_bytes(old)
    assert run()[0] == ExitCode.ROLLED_BACK
    # Other arguments are another configuration, and so another value of PCR 23.
    code, _, errors = run(text="something else")
    assert code == ExitCode.USAGE
    assert b"expected the PCRs 0, 7, 23 as when the key was sealed" in errors
    assert machine.left_behind() == []


def test_the_manager_gives_each_opener_its_own(machine: Machine) -> None:
    """Else the tests above would prove nothing: more than one TPM has room for, and no leaks."""
    devices = [TpmDevice(machine.shared.tcti, 5) for _ in range(2)]
    keys = [[device.make_primary(AK_ECC) for _ in range(SLOTS)] for device in devices]
    for device, made_there in zip(devices, keys, strict=True):
        for key in made_there:
            device.quote(key, [0], b"data")
        with pytest.raises(UnavailableError, match="out of memory"):
            device.make_primary(AK_ECC)
    devices[0].close()
    devices[1].quote(keys[1][0], [0], b"data")
    devices[1].close()
    assert machine.left_behind() == []


def test_a_tpm_that_is_busy_is_asked_again(machine: Machine) -> None:
    """TPM_RC_RETRY, once before every command."""
    device = TpmDevice(machine.shared.tcti, 5)
    asked: list[bytes] = []

    def busy(command: bytes) -> bytes | None:
        again = asked[-1:] == [command]
        asked.append(command)
        return None if again else refused(RC_RETRY)

    machine.shared.instead = busy
    blob, _ = seal(device, SECRET, RUNS, (7,))
    assert unseal(device, blob, RUNS) == SECRET
    assert len(asked) > 20
    # For ever: no hang, and nothing is left when it is over.
    machine.shared.instead = lambda command: refused(RC_RETRY) if asked else None
    with pytest.raises(UnavailableError, match="busy"):
        unseal(device, blob, RUNS)
    asked.clear()
    assert unseal(device, blob, RUNS) == SECRET
    device.close()
    assert machine.left_behind() == []
