"""`avow broker --store`: what survives a kill, what is refused and with which exit code."""

from __future__ import annotations

import resource
import secrets
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from avow.sealing.store import Store
from avow.testing.mqtt import Puback, Pubcomp, Publish, Pubrec, Pubrel
from tests.integration.service_process import PlainClient, ServiceProcess, avow, service, write
from tests.integration.witness_process import running_witness

LISTEN = ("--listen", "mqtt://127.0.0.1:0")
EXPIRY = 3


class Kept:
    """A broker's store and its key."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.key = write(folder / "owner.key", secrets.token_hex(32) + "\n")
        self.key.chmod(0o600)

    def arguments(self, *more: str) -> tuple[str, ...]:
        return (*LISTEN, "--store", str(self.state), "--store-key", f"file:{self.key}", *more)

    def container(self) -> Path:
        return self.state / "store.avow"


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


class Sleeper(PlainClient):
    """A client of MQTT 3.1.1 with a session that stays; `present` says that there was one."""

    def __init__(self, running: ServiceProcess, name: str, *, clean_start: bool) -> None:
        super().__init__(running.port(), version=4)
        self.present = self.connect(client_id=name, clean_start=clean_start).session_present


def connected(running: ServiceProcess, name: str, *, clean_start: bool = False) -> Sleeper:
    """A client after its CONNACK."""
    return Sleeper(running, name, clean_start=clean_start)


def leave_state(running: ServiceProcess) -> None:
    """A session with a subscription and two messages waiting, and a retained message."""
    with connected(running, "sleeper") as sleeper:
        assert sleeper.subscribe("queue/#", 2) == 2
    with connected(running, "source", clean_start=True) as source:
        source.send(Publish("queue/1", b"first", 1, 1))
        assert source.receive(Puback).packet_id == 1
        source.send(Publish("queue/2", b"second", 2, 2))
        assert source.receive(Pubrec).packet_id == 2
        source.send(Pubrel(2))
        assert source.receive(Pubcomp).packet_id == 2
        source.send(Publish("kept", b"value", 1, 3, retain=True))
        assert source.receive(Puback).packet_id == 3


def check_state(running: ServiceProcess) -> None:
    """All of it is there, in order, once."""
    with connected(running, "sleeper") as sleeper:
        assert sleeper.present
        first = sleeper.receive(Publish)
        assert (first.text, first.payload, first.qos) == ("queue/1", b"first", 1)
        second = sleeper.receive(Publish)
        assert (second.text, second.payload, second.qos) == ("queue/2", b"second", 2)
        assert first.packet_id is not None
        assert second.packet_id is not None
        sleeper.send(Puback(first.packet_id), Pubrec(second.packet_id))
        assert sleeper.receive(Pubrel).packet_id == second.packet_id
        sleeper.send(Pubcomp(second.packet_id))
        assert sleeper.subscribe("kept", 1) == 1
        value = sleeper.receive(Publish)
        assert value.payload == b"value"
        assert value.packet_id is not None
        sleeper.send(Puback(value.packet_id))
        # Answered after all that was sent before is durable.
        assert sleeper.subscribe("nothing", 0) == 0


def killed(running: ServiceProcess) -> None:
    running.process.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL


def test_state_survives_a_kill(kept: Kept) -> None:
    with service(*kept.arguments()) as running:
        leave_state(running)
        killed(running)
    with service(*kept.arguments()) as running:
        check_state(running)
        killed(running)
    # What was delivered is not delivered again.
    with service(*kept.arguments()) as running, connected(running, "sleeper") as sleeper:
        assert sleeper.present
        sleeper.send(Publish("kept", b"end", 1, 9))
        assert {type(sleeper.receive(object)) for _ in range(2)} == {Puback, Publish}


@pytest.mark.parametrize("durability", ["interval", "none"])
def test_state_survives_an_orderly_end(kept: Kept, durability: str) -> None:
    with service(*kept.arguments("--durability", durability)) as running:
        leave_state(running)
        assert running.stop() == 0
    with service(*kept.arguments("--durability", durability)) as running:
        check_state(running)


def test_without_durability_nothing_is_written_before_the_end(kept: Kept) -> None:
    """Were it committed all the same, "none" would be no choice."""
    with service(*kept.arguments("--durability", "none")) as running:
        leave_state(running)
        killed(running)
    with (
        service(*kept.arguments("--durability", "none")) as running,
        connected(running, "sleeper") as sleeper,
    ):
        assert not sleeper.present


def test_disk_shows_nothing(kept: Kept) -> None:
    with service(*kept.arguments()) as running:
        leave_state(running)
    content = kept.container().read_bytes()
    assert b"records-1" not in content
    assert b"sleeper" not in content
    assert b"first" not in content


def refused(kept: Kept, *more: str) -> tuple[int, str]:
    """Exit code and sentence of a broker that does not start."""
    done = avow("broker", *kept.arguments(*more))
    said = done.stderr.decode()
    return done.returncode, said


def test_two_brokers_on_one_store(kept: Kept) -> None:
    with service(*kept.arguments()):
        code, said = refused(kept)
    assert code == 106, said


def test_wrong_key(kept: Kept) -> None:
    with service(*kept.arguments()):
        pass
    kept.key.write_text(secrets.token_hex(32) + "\n")
    code, said = refused(kept)
    assert code == 104
    assert "key" in said


def test_the_owners_key_goes_on_after_an_update(kept: Kept, tmp_path: Path) -> None:
    """The first key stands for a platform's, which is another for another version of avow."""
    also = ("--also-key", f"file:{tmp_path / 'recovery.key'}")
    with service(*kept.arguments(*also)) as running:
        leave_state(running)
    kept.key.write_text(secrets.token_hex(32) + "\n")
    assert refused(kept)[0] == 104
    with service(*kept.arguments(*also)) as running:
        assert "with the second and added the first" in running.event("store")["note"]
    with service(*kept.arguments()) as running:
        check_state(running)


def test_damage_is_named(kept: Kept) -> None:
    with service(*kept.arguments()) as running:
        leave_state(running)
    content = bytearray(kept.container().read_bytes())
    # Every slot behind the root records, so whatever the journal is in.
    for slot in range(4 * 4096, len(content), 4096):
        content[slot + 100] ^= 1
    kept.container().write_bytes(content)
    code, said = refused(kept)
    assert code == 105, said


def test_key_is_needed(kept: Kept) -> None:
    done = avow("broker", *LISTEN, "--store", str(kept.state))
    assert done.returncode == 2
    assert b"key" in done.stderr
    done = avow("broker", *LISTEN, "--store-key", f"file:{kept.key}")
    assert done.returncode == 2
    assert b"--store" in done.stderr


def test_full_disk_stops_before_anything_is_acknowledged(kept: Kept) -> None:
    with service(*kept.arguments()) as running:
        leave_state(running)
    allowed = kept.container().stat().st_size + (1 << 20)

    def limit() -> None:
        # Python ignores SIGXFSZ, so a write beyond the limit fails with EFBIG.
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, allowed))

    acknowledged = 0
    running = ServiceProcess(kept.arguments(), before=limit)
    try:
        with connected(running, "sleeper") as client:
            number = 100
            for number in range(100, 60_000):
                client.send(Publish("queue/n", bytes(60_000), 1, number))
                acknowledged = _acknowledged(client, number, acknowledged)
        assert number < 60_000
    except (AssertionError, ConnectionResetError, BrokenPipeError):
        assert running.wait() == 108, running.entries()
    finally:
        running.close()
    assert acknowledged >= 1
    with service(*kept.arguments()) as again, connected(again, "sleeper") as client:
        assert client.present
        payloads = [client.receive(Publish).payload for _ in range(2 + acknowledged)]
        assert payloads[:2] == [b"first", b"second"]


def _acknowledged(client: PlainClient, number: int, count: int) -> int:
    """Reads up to the PUBACK of `number`; other packets are left unanswered."""
    while True:
        packet = client.receive(object)
        if isinstance(packet, Puback) and packet.packet_id == number:
            return count + 1


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[str]:
    """`avow witness` in a process of its own; the text for --anchor."""
    with running_witness(tmp_path / "witness") as anchor:
        yield anchor


def test_an_old_copy_is_refused_until_it_is_accepted(
    kept: Kept, witness: str, tmp_path: Path
) -> None:
    arguments = kept.arguments("--anchor", witness)
    code, said = refused(kept, "--anchor", witness)
    assert code == 107, said
    assert "--new-store" in said
    with service(*arguments, "--new-store") as running:
        leave_state(running)
    # Said at every start, it would be said too when the store is taken away.
    code, said = refused(kept, "--anchor", witness, "--new-store")
    assert code == 2, said
    assert "leave --new-store out" in said
    old = tmp_path / "old"
    shutil.copyfile(kept.container(), old)
    with service(*arguments) as running:
        check_state(running)
    shutil.copyfile(old, kept.container())
    code, said = refused(kept, "--anchor", witness)
    assert code == 107, said
    assert "--accept-rollback" in said
    sequence = said.partition("--accept-rollback ")[2].split("`")[0]
    wrong = str(int(sequence) + 1)
    assert refused(kept, "--anchor", witness, "--accept-rollback", wrong)[0] == 107
    with service(*arguments, "--accept-rollback", sequence) as running:
        check_state(running)
    with service(*arguments):
        pass


def test_without_the_witness_nothing_starts(kept: Kept) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"witness:127.0.0.1:{taken.getsockname()[1]}#{'A' * 43}="
        code, said = refused(kept, "--anchor", nobody, "--new-store")
    # Not 2: nobody has written anything wrongly, and a service manager may try again.
    assert code == 1, said
    assert "avow witness" in said


def test_a_witness_that_is_gone_at_the_end(kept: Kept, tmp_path: Path) -> None:
    """All is kept, and said: the next start finishes what the end has begun."""
    with running_witness(tmp_path / "witness") as witness:
        arguments = kept.arguments("--anchor", witness)
        running = ServiceProcess([*arguments, "--new-store"])
        leave_state(running)
    try:
        assert running.stop() == 1
        (said,) = [each["text"] for each in running.entries() if "text" in each]
        assert said.startswith("avow: expected the witness")
    finally:
        running.close()
    place = witness.removeprefix("witness:").partition("#")[0]
    with running_witness(tmp_path / "witness", place), service(*arguments) as running:
        check_state(running)


def test_every_commit_goes_to_the_witness(kept: Kept, witness: str, tmp_path: Path) -> None:
    """With an interval of zero a copy from a moment ago is old, too."""
    config = write(
        tmp_path / "avow.toml",
        f"""
[[listeners]]
url = "mqtt://127.0.0.1:0"
[store]
directory = "{kept.state}"
key = "file:{kept.key}"
anchor = "{witness}"
anchor_interval_s = 0.0
""",
    )
    with service("--config", str(config), "--new-store") as running:
        leave_state(running)
        shutil.copyfile(kept.container(), tmp_path / "old")
        with connected(running, "late", clean_start=True) as client:
            client.send(Publish("queue/3", b"third", 1, 1))
            client.receive(Puback)
        killed(running)
    shutil.copyfile(tmp_path / "old", kept.container())
    done = avow("broker", "--config", str(config))
    assert done.returncode == 107, done.stderr


def test_journal_of_a_later_version_is_left_alone(kept: Kept) -> None:
    with service(*kept.arguments()):
        pass
    key = bytes.fromhex(kept.key.read_text().strip())
    with Store.open(kept.state, key) as store:
        store.rename("/journal/records-1", "/journal/records-2")
    code, said = refused(kept)
    assert code == 2, said
    assert "records-2" in said
