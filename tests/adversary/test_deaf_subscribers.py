"""Thousands who subscribe to everything and never read: a pair that behaves gets each message in
the step that takes it in, and none of its messages is lost for want of memory.
"""

from __future__ import annotations

import pytest

from avow.broker.memory import MIB
from avow.testing.core_abi import Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient
from avow.testing.mqtt import Filter, Pingreq, Pingresp, Publish

DEAF = 1000
# `prompt_receivers` and `crowd_outputs` of core/src/limits.zig.
PROMPT = 32
CROWD = 128
MESSAGE = Publish("pair", b"x" * 1000)


class Scene:
    """Who is deaf subscribed before the reader did."""

    def __init__(self, *, budget: int = 256 * MIB, deaf: int = DEAF) -> None:
        settings = {
            Setting.PERSIST_SESSIONS: 0,
            Setting.SYS_INTERVAL_MS: 0,
            Setting.MEMORY_BUDGET_BYTES: budget,
        }
        self.core = CoreDriver(settings=settings)
        self.deaf = [self._client(f"deaf-{number}", "#") for number in range(deaf)]
        self.reader = self._client("reader", "pair")
        self.writer = self._client("writer")
        self.neighbour = self._client("neighbour")
        self.core.one_step = True

    def _client(self, name: str, *filters: str) -> FakeClient:
        client = FakeClient(self.core, name, version=4)
        client.connect()
        if filters:
            client.subscribe(*[Filter(each) for each in filters])
        return client

    def fill(self) -> None:
        """The sockets of the deaf take nothing from now on."""
        for client in self.deaf:
            self.core.open_window(client.connection, 0)

    def exchange(self, message: Publish = MESSAGE) -> None:
        """One step, in which the reader gets the message and nothing else."""
        self.writer.send(message)
        assert self.reader.expect(Publish).payload == message.payload
        self.reader.expect_nothing()

    def bytes_of_the_deaf(self) -> list[int]:
        return [client.connection.sent_bytes for client in self.deaf]


def test_the_reader_does_not_wait_for_what_the_others_are_sent() -> None:
    scene = Scene()
    before = scene.bytes_of_the_deaf()
    for count in range(1, 4):
        scene.exchange()
        after = scene.bytes_of_the_deaf()
        served = sum(now > then for now, then in zip(after, before, strict=True))
        assert 0 < served <= count * (PROMPT + CROWD)


def test_a_neighbour_with_another_topic_is_answered_before_the_crowd_is_served() -> None:
    scene = Scene()
    scene.exchange()
    for _ in range(3):
        scene.neighbour.send(Pingreq())
        scene.neighbour.expect(Pingresp)


def test_the_crowd_gets_everything_in_order_and_within_a_bounded_number_of_steps() -> None:
    """Also while the pair goes on: nobody's turn comes never."""
    scene = Scene()
    messages = [Publish("pair", b"%d" % number) for number in range(40)]
    for number, message in enumerate(messages):
        scene.exchange(message)
        if number == DEAF // CROWD + 1:
            for client in scene.deaf:
                assert client.pending, "it had no turn"
    scene.core.one_step = False
    scene.core.turn()
    for client in scene.deaf:
        client.pump()
        assert [each.payload for each in client.received()] == [each.payload for each in messages]


def test_who_gets_something_of_its_own_does_not_wait_with_the_crowd() -> None:
    """What was written for it before goes out with that, in order."""
    scene = Scene()
    scene.exchange()
    last = scene.deaf[0]
    assert not last.pending or last.receive()
    waiting = next(client for client in reversed(scene.deaf) if not client.pending)
    waiting.send(Pingreq())
    waiting.expect(Publish)
    waiting.expect(Pingresp)


def test_a_flood_to_readers_does_not_pile_up_in_memory() -> None:
    """They read all: what waits for each of them stays a few messages."""
    scene = Scene()
    before = scene.core.heap_bytes
    flood = b"".join(Publish("flood", b"x" * 100).encode(4) for _ in range(60))
    for _ in range(40):
        scene.writer.send(flood)
    assert scene.core.heap_bytes - before < DEAF * 24 * 1024


@pytest.mark.parametrize("budget", [16 * MIB, 64 * MIB])
def test_full_sockets_take_no_message_from_who_reads(budget: int) -> None:
    """All memory but the last is theirs, each of them has the same, and the pair goes on."""
    scene = Scene(budget=budget, deaf=400)
    scene.fill()
    for _ in range(2 * budget // (400 * len(MESSAGE.payload))):
        scene.exchange()
    assert budget // 2 < scene.core.heap_bytes < budget - budget // 32
    scene.core.one_step = False
    for client in scene.deaf:
        scene.core.open_window(client.connection, None)
    scene.core.turn()
    counts = [len(client.received()) for client in scene.deaf]
    assert min(counts) > 0
    # Memory is had in blocks of 16 KiB.
    assert (max(counts) - min(counts)) * len(MESSAGE.payload) <= 16 * 1024


def test_full_sockets_do_not_all_need_a_block_at_the_same_message() -> None:
    scene = Scene()
    scene.fill()
    grown = []
    for _ in range(400):
        before = scene.core.heap_bytes
        scene.exchange(Publish("pair", b"x" * 64))
        grown.append(scene.core.heap_bytes - before)
    # The first block, of 1 KiB, they all need at once; the others have 16 KiB.
    assert max(grown) < DEAF * 16 * 1024 // 4
