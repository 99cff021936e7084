"""How a program waits for its owner: what is taken, what is refused, and no wait for ever."""

from __future__ import annotations

import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from avow.channel.attestation import ServerAttestation
from avow.channel.judge import Judge
from avow.channel.provisioning import Observer, Provisioned, ProvisioningSettings
from avow.channel.provisioning_messages import Secrets, Taken
from avow.channel.provisioning_owner import hand_over, new_owner_key
from avow.cli.app_options import EffectiveApp
from avow.cli.program_trust import check_usable
from avow.cli.provisioned import await_provisioning
from avow.errors import (
    AvowError,
    DamagedError,
    MalformedError,
    UnavailableError,
    WrongKeyError,
)
from avow.evidence.appraisal import AttestationResult
from avow.policy.policy_file import parse_policy
from avow.sandbox.grants import parse_grants
from avow.sandbox.limits import Limits
from avow.sealing.store import Store
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.attesting_guest import KNOWN, attesting, policy_for

OWNER = new_owner_key()
KEY = bytes(range(32))
PATIENCE_S = 20.0


class Silent:
    """Nothing is told to anybody."""

    def refused(self, peer: str, reason: str, check: str) -> None:
        pass

    def provisioned(self, peer: str, taken: Taken) -> None:
        pass


class Broken(Silent):
    """As where standard error is a pipe that nobody reads any more."""

    def refused(self, peer: str, reason: str, check: str) -> None:
        raise BrokenPipeError


@dataclass
class Waiting:
    """A program that waits: `outcome` has what it got, or why it waits no longer."""

    port: int
    outcome: queue.SimpleQueue[Provisioned | AvowError] = field(default_factory=queue.SimpleQueue)

    def provision(
        self,
        secrets: Secrets,
        attested: Callable[[AttestationResult], None] = lambda _: None,
    ) -> Taken:
        judge = Judge(KNOWN, parse_policy(policy_for("server"), name="p.toml"))
        now = datetime.now(UTC)
        done = hand_over("127.0.0.1", self.port, OWNER, judge, secrets, now, attested=attested)
        return done.taken


@contextmanager
def waiting(
    usable: Callable[[Provisioned], None], observer: Observer | None = None
) -> Iterator[Waiting]:
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    program = Waiting(0)

    def run(attestation: ServerAttestation) -> None:
        try:
            settings = ProvisioningSettings("127.0.0.1", 0, OWNER.digest)
            program.outcome.put(
                await_provisioning(
                    settings,
                    attestation,
                    usable=usable,
                    observer=observer or Silent(),
                    listening=lambda _, port: ports.put(port),
                )
            )
        except AvowError as error:
            program.outcome.put(error)

    with attesting(SimulatedAttester()) as attestation:
        threading.Thread(target=run, args=(attestation,), daemon=True).start()
        program.port = ports.get(timeout=PATIENCE_S)
        yield program


@pytest.fixture(autouse=True)
def _dumps_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests may be looked into."""
    monkeypatch.setattr("avow.cli.provisioned.keep_out_of_core_dumps", lambda: None)


def app(*grants: str) -> EffectiveApp:
    return EffectiveApp(Path("a"), ("a",), parse_grants(grants, folder=Path()), Limits())


def test_what_the_program_could_not_start_with_is_refused_and_it_waits_on() -> None:
    with waiting(lambda provisioned: check_usable(app("env:TOKEN"), None, provisioned)) as program:
        with pytest.raises(AvowError, match="expected UTF-8 in the provisioned TOKEN"):
            program.provision(Secrets({}, {"TOKEN": b"\xff"}))
        assert program.outcome.empty()
        assert program.provision(Secrets({}, {"TOKEN": b"x"})).files == ("TOKEN",)
        found = program.outcome.get(timeout=PATIENCE_S)
        assert isinstance(found, Provisioned)
        assert found.files == {"TOKEN": b"x"}


def test_of_two_owners_at_once_the_second_is_told_that_the_program_starts() -> None:
    """And is not left waiting for an answer until its own time is over."""
    outcomes: queue.SimpleQueue[Taken | AvowError] = queue.SimpleQueue()
    is_next, first_is_taken = threading.Event(), threading.Event()

    def says_so(_: AttestationResult) -> None:
        is_next.set()
        first_is_taken.wait(PATIENCE_S)

    with waiting(lambda _: None) as program:

        def second() -> None:
            try:
                outcomes.put(program.provision(Secrets({}, {"b": b""}), says_so))
            except AvowError as error:
                outcomes.put(error)

        def begins_the_second(_: AttestationResult) -> None:
            threading.Thread(target=second, daemon=True).start()
            assert is_next.wait(PATIENCE_S)

        assert program.provision(Secrets({}, {"a": b""}), begins_the_second).files == ("a",)
        first_is_taken.set()
        found = program.outcome.get(timeout=PATIENCE_S)
        assert isinstance(found, Provisioned)
        assert found.files == {"a": b""}
        refused = outcomes.get(timeout=PATIENCE_S)
        assert isinstance(refused, UnavailableError)
        assert "already has its secrets" in str(refused)


def test_what_a_program_can_start_with(tmp_path: Path) -> None:
    def usable(*grants: str, keys: dict[str, bytes] | None = None, **files: bytes) -> None:
        check_usable(app(*grants), None if keys is None else store, Provisioned(keys or {}, files))

    store = tmp_path / "store"
    usable(der=b"\xff\0")
    usable("env:der=fixed", der=b"\xff\0")
    usable("provisioned:/a", der=b"\xff\0")
    # A store that is not there is made with the key; one that is there has to open with it.
    usable(keys={"store": KEY})
    Store.create(store, [KEY]).close()
    usable(keys={"store": KEY})
    with pytest.raises(WrongKeyError):
        usable(keys={"store": bytes(32)})
    with pytest.raises(UnavailableError, match=r"`store` to \[keys\]"):
        usable(keys={"other": KEY})
    with pytest.raises(UnavailableError, match=r"grant provisioned:/a, got none; add \[files\]"):
        usable("provisioned:/a")
    with pytest.raises(MalformedError, match="zero byte in the provisioned TOKEN"):
        usable("env:TOKEN", TOKEN=b"a\0b")


def test_what_is_no_fault_of_the_secrets_is_told_and_ends_the_wait() -> None:
    def unusable(provisioned: Provisioned) -> None:
        raise DamagedError("expected a store, got a damaged one; look at it")

    with waiting(unusable) as program:
        with pytest.raises(AvowError, match="got a damaged one"):
            program.provision(Secrets({}, {"a": b""}))
        assert isinstance(program.outcome.get(timeout=PATIENCE_S), DamagedError)


def test_a_listener_that_has_died_is_not_waited_for() -> None:
    """Otherwise one stranger at the port would make the program deaf for ever, and nobody knew."""
    with waiting(lambda _: None, Broken()) as program:
        with socket.create_connection(("127.0.0.1", program.port), PATIENCE_S) as stranger:
            stranger.sendall(b"no TLS at all")
            found = program.outcome.get(timeout=PATIENCE_S)
        assert isinstance(found, UnavailableError)
        assert re.search("the end of a thread .*BrokenPipeError", str(found))


def test_no_core_is_dumped_even_where_cores_are_piped_to_a_program() -> None:
    """core(5): for those the limit of the size does not hold."""
    code = (
        "import ctypes, resource; from avow.cli.provisioned import keep_out_of_core_dumps as keep; "
        "keep(); print(ctypes.CDLL(None).prctl(3), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "0 (0, 0)\n"
