"""`avow run --attest`: a program in Zig proves itself, and `avow verify` accepts exactly that."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from avow.channel.provisioning_owner import new_owner_key
from examples.sandbox.programs import ROOT, made, zig
from tests.integration.service_process import PATIENCE_S, avow, write

NONCE = "5a" * 32
TEXT = "my public key is 7"
GRANTED = ("--grant", "evidence")
ATTESTED = ("--attest", "--tee", "simulated", *GRANTED)


@pytest.fixture(scope="module")
def program() -> Path:
    """Compiled once, and again when its source changes."""
    source = ROOT / "examples/sandbox/prove.zig"
    options = ("-target", "wasm32-freestanding", "-O", "ReleaseSmall", "-fno-entry", "-rdynamic")
    return made(
        "prove.wasm",
        [" ".join(options), source.read_bytes()],
        lambda path: zig(["build-exe", source, *options, f"-femit-bin={path}"]),
    )


def references(*options: str) -> dict[str, str]:
    done = avow("measure", "app", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {name: found[name] for name in ("module", "runtime", "configuration")}


def policy_for(values: dict[str, str], **others: str) -> str:
    """By hand, from what `avow measure app` prints."""
    values = {**values, **others}
    return f"""
version = 1
name = "the program"
unsafe_simulated = true
platform = "simulated"
role = "program"
module = "{values["module"]}"
runtime = "{values["runtime"]}"
configuration = "{values["configuration"]}"
evidence_age_s = {{ min = -300, max = 300 }}
"""


def proven(program: Path, folder: Path, text: str = TEXT) -> Path:
    done = avow("run", str(program), *ATTESTED, "--", text, stdin=f"{NONCE}\n".encode())
    assert done.returncode == 0, done.stderr
    path = folder / "evidence.cmw"
    path.write_bytes(done.stdout)
    return path


def verify(evidence: Path, policy: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    return avow("verify", str(evidence), "--policy", str(policy), "--json", *options)


def test_verify_accepts_what_the_program_says_and_that_it_is_the_program(
    program: Path, tmp_path: Path
) -> None:
    evidence = proven(program, tmp_path)
    values = references(str(program), *GRANTED, "--", TEXT)
    policy = write(tmp_path / "policy.toml", policy_for(values))
    done = verify(evidence, policy, "--program", "--nonce", NONCE)
    assert done.returncode == 0, done.stderr
    assert TEXT.encode().hex() in done.stdout.decode()
    # It is no evidence of a file, for another nonce, of another module, configuration or runtime.
    assert verify(evidence, policy, "--nonce", NONCE).returncode == 3
    assert verify(evidence, policy, "--program", "--nonce", "5b" * 32).returncode == 3
    for name in values:
        write(policy, policy_for(values, **{name: "sha256:" + "00" * 32}))
        assert verify(evidence, policy, "--program", "--nonce", NONCE).returncode == 3, name
    write(policy, policy_for(references(str(program), *GRANTED, "--", "something else")))
    assert verify(evidence, policy, "--program", "--nonce", NONCE).returncode == 3


@pytest.mark.parametrize(("other", "code"), [({}, 0), ({"module": "sha256:" + "00" * 32}, 2)])
def test_the_program_judges_others(program: Path, other: dict[str, str], code: int) -> None:
    values = references(str(program), *GRANTED, "--", TEXT, "judge")
    stdin = f"{NONCE}\n{policy_for(values, **other)}".encode()
    done = avow("run", str(program), *ATTESTED, "--", TEXT, "judge", stdin=stdin)
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["submods"]


def test_the_functions_are_there_for_who_was_granted_them(program: Path) -> None:
    for options in (("--attest", "--tee", "simulated"), GRANTED):
        done = avow("run", str(program), *options, stdin=f"{NONCE}\n".encode())
        assert done.returncode == 101
        assert b"avow_evidence.attest" in done.stderr
    absent = avow("run", str(program), "--attest", "--tee", "nitro", *GRANTED)
    assert absent.returncode == 2


class RunningProgram:
    """A program that may be waiting, with what it says on standard error."""

    def __init__(self, *arguments: str, stdin: bytes = b"") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "avow", "run", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(stdin)
        self.process.stdin.close()
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self, words: str) -> str:
        """Waits for a line with these words."""

        def found() -> list[str]:
            return [line for line in self.said if words in line]

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), PATIENCE_S)
            assert found(), self.said
            return found()[0]

    def ended(self) -> tuple[int, bytes]:
        """Exit code and standard output."""
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        return self.process.wait(PATIENCE_S), output

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.said.append(line.decode())
                self._changed.notify_all()


@contextmanager
def running(*arguments: str, stdin: bytes = b"") -> Iterator[RunningProgram]:
    program = RunningProgram(*arguments, stdin=stdin)
    try:
        yield program
    finally:
        program.process.kill()
        program.process.wait(PATIENCE_S)
        program._reader.join(PATIENCE_S)
        for stream in (program.process.stdout, program.process.stderr):
            if stream is not None:
                stream.close()


READER = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read"
    (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "tls.key")
  (func (export "_start")
    (drop (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 7) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))
    (i32.store (i32.const 32) (i32.const 1024))
    (i32.store (i32.const 36) (i32.const 100))
    (drop (call $read (i32.load (i32.const 8)) (i32.const 32) (i32.const 1) (i32.const 12)))
    (i32.store (i32.const 36) (i32.load (i32.const 12)))
    (drop (call $write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 12)))))
"""


def test_a_program_reads_its_owners_files_and_nothing_of_them_is_on_the_disk(
    tmp_path: Path,
) -> None:
    key = new_owner_key()
    owner, policy = tmp_path / "owner.pem", tmp_path / "policy.toml"
    owner.touch(mode=0o600)
    owner.write_bytes(key.pem())
    (tmp_path / "reader.wasm").write_bytes(wat2wasm(READER))
    app = write(
        tmp_path / "app.toml",
        'module = "reader.wasm"\ngrants = ["provisioned:/run/secrets"]\n[provisioning]\n'
        f'listen = "127.0.0.1:0"\nowner = "sha256:{key.digest.hex()}"\n',
    )
    secrets = write(
        tmp_path / "secrets.toml", 'version = 1\n[files]\n"tls.key" = "hex:00ff6b6579"\n'
    )
    write(policy, policy_for(references("--app", str(app))).replace('"program"', '"server"'))
    before = sorted(tmp_path.rglob("*"))
    with running("--app", str(app), "--tee", "simulated") as waiting:
        place = waiting.line("listening for its owner at ").split()[-1]
        done = avow(
            *("provision", place, str(secrets)),
            *("--policy", str(policy), "--owner-key", str(owner)),
        )
        assert done.returncode == 0, done.stderr
        assert waiting.ended() == (0, b"\0\xffkey"), waiting.said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_program_gets_its_store_key_and_its_secrets_from_its_owner(
    program: Path, tmp_path: Path
) -> None:
    key = new_owner_key()
    owner = tmp_path / "owner.pem"
    owner.touch(mode=0o600)
    owner.write_bytes(key.pem())
    secrets = write(
        tmp_path / "secrets.toml",
        f'version = 1\n[keys]\nstore = "hex:{"07" * 32}"\n[files]\nTOKEN = "text:wild boar"\n',
    )
    folder = tmp_path / "data"
    options = (
        str(program),
        *GRANTED,
        *("--provision-owner", f"sha256:{key.digest.hex()}"),
        *("--provision-listen", "127.0.0.1:0"),
        *("--store", str(folder), "--grant", "env:TOKEN"),
    )
    measured = references(*options, "--attest", "--key", "provisioned")
    policy = policy_for(measured).replace('"program"', '"server"')
    write(tmp_path / "policy.toml", policy)
    arguments = (*options, "--attest", "--tee", "simulated", "--key", "provisioned")
    # Neither in the owner's place nor beside it: a key that the host knows.
    theirs = f"file:{tmp_path / 'host.key'}"
    for named in (("--key", theirs), ("--key", "provisioned", "--also-key", theirs)):
        other = avow("run", *options, "--tee", "simulated", *named)
        assert other.returncode == 2
        assert b"expected --key provisioned" in other.stderr
    with running(*arguments, stdin=f"{NONCE}\n".encode()) as waiting:
        place = waiting.line("listening for its owner at ").split()[-1]
        assert not folder.exists()
        to_it = (place, str(secrets), "--policy", str(tmp_path / "policy.toml"))
        text = secrets.read_text()
        write(secrets, text.replace("store =", "other ="))
        done = avow("provision", *to_it, "--owner-key", str(owner))
        # The owner reads what is missing, and is not told that all went well.
        assert done.returncode == 1
        assert b"add `store` to [keys]" in done.stderr
        write(secrets, text)
        done = avow("provision", *to_it, "--owner-key", str(owner))
        assert done.returncode == 0, done.stderr
        assert b"taken: keys store; files TOKEN" in done.stdout
        code, output = waiting.ended()
        assert (code, len(output) > 100) == (0, True), waiting.said
        assert "wild boar" not in "".join(waiting.said)
    # The store opens with the key that was handed over, and with no other.
    right = write(tmp_path / "right.key", "07" * 32 + "\n")
    wrong = write(tmp_path / "wrong.key", "08" * 32 + "\n")
    for path, code in ((right, 0), (wrong, 104)):
        path.chmod(0o600)
        assert avow("store", "ls", str(folder), "--key", f"file:{path}").returncode == code
