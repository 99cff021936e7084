"""ACL rules about what a connection has proven, and what follows for wills and stored sessions."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Access, Attestation, CommandFailed, Rule
from avow.testing.core_driver import CoreDriver, CoreTrapError
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Connack, Puback, Pubcomp, Pubrec, Pubrel, Will, props

CONTROLLER = bytes(range(32))
OTHER = bytes(range(1, 33))
NONE, WARNING, AFFIRMING = 1, 2, 3
LONG = props(session_expiry_interval=1000)
PROVEN = Attestation(AFFIRMING, CONTROLLER)

ONLY_THE_CONTROLLER = [
    Rule(True, "plant/+/command", Access.PUBLISH, module=CONTROLLER, rank_min=AFFIRMING),
    Rule(False, "plant/+/command", Access.PUBLISH),
    Rule(True, "#"),
]
SECRET_FOR_THE_CONTROLLER = [
    Rule(True, "secret", module=CONTROLLER),
    Rule(False, "secret"),
    Rule(True, "#"),
]


def attested(core: CoreDriver, client_id: str, attestation: Attestation | None) -> FakeClient:
    return connected(core, client_id, attestation=attestation, properties=LONG)


def again(
    core: CoreDriver, client_id: str, attestation: Attestation | None, *, will: Will | None = None
) -> FakeClient:
    """The same session over a connection that has proven this."""
    client = FakeClient(core, client_id, attestation=attestation)
    assert client.connect(clean_start=False, properties=LONG, will=will).session_present
    return client


def test_no_module_is_no_module_of_zeros(core: CoreDriver) -> None:
    """Zeros say that nobody has measured what the client runs: no rule can name that."""
    core.acl([Rule(True, "plant/+/command", Access.PUBLISH, module=bytes(32))])
    client = attested(core, "c", Attestation(AFFIRMING, bytes(32)))
    client.publish("plant/7/command", b"x", 1, code=0x87)


@pytest.mark.parametrize(
    ("attestation", "allowed"),
    [
        (PROVEN, True),
        (Attestation(WARNING, CONTROLLER), False),
        (Attestation(NONE, CONTROLLER), False),
        (Attestation(AFFIRMING, OTHER), False),
        (Attestation(AFFIRMING, CONTROLLER[:31] + b"\0"), False),
        (Attestation(AFFIRMING, bytes(32)), False),
        (None, False),
    ],
)
def test_only_the_attested_controller_may_give_commands(
    core: CoreDriver, attestation: Attestation | None, allowed: bool
) -> None:
    core.acl(ONLY_THE_CONTROLLER)
    client = attested(core, "c", attestation)
    client.publish("plant/7/command", b"x", 1, code=None if allowed else 0x87)
    client.publish("plant/7/state", b"x", 1)


@pytest.mark.parametrize("rank_min", [NONE, WARNING, AFFIRMING])
@pytest.mark.parametrize("rank", [None, NONE, WARNING, AFFIRMING])
def test_a_tier_is_a_lowest_one(core: CoreDriver, rank: int | None, rank_min: int) -> None:
    core.acl([Rule(True, "t", rank_min=rank_min)])
    client = attested(core, "c", None if rank is None else Attestation(rank, OTHER))
    allowed = rank is not None and rank >= rank_min
    client.publish("t", b"x", 1, code=None if allowed else 0x87)
    client.subscribe("t", codes=[0 if allowed else 0x87])


def test_a_module_alone_takes_every_tier_but_no_unattested_client(core: CoreDriver) -> None:
    core.acl([Rule(True, "zero", module=bytes(32)), Rule(True, "t", module=CONTROLLER)])
    for rank in (NONE, WARNING, AFFIRMING):
        attested(core, f"c{rank}", Attestation(rank, CONTROLLER)).publish("t", b"x", 1)
    # What stands for "no module" inside of the core must not be a module that fits.
    plain = attested(core, "plain", None)
    plain.publish("zero", b"x", 1, code=0x87)
    plain.publish("t", b"x", 1, code=0x87)


def test_a_deny_with_a_condition_leaves_the_unattested_to_the_next_rule(core: CoreDriver) -> None:
    core.acl([Rule(False, "t", module=OTHER), Rule(True, "#")])
    attested(core, "other", Attestation(AFFIRMING, OTHER)).publish("t", b"x", 1, code=0x87)
    attested(core, "plain", None).publish("t", b"x", 1)


def test_conditions_stand_beside_user_and_placeholders(core: CoreDriver) -> None:
    core.acl([Rule(True, "c/%c", Access.PUBLISH, module=CONTROLLER), Rule(True, "all")])
    client = attested(core, "seven", PROVEN)
    client.publish("c/seven", b"x", 1)
    client.publish("c/eight", b"x", 1, code=0x87)
    client.subscribe("c/seven", codes=[0x87])


def test_live_and_retained_messages_reach_only_who_has_proven_enough(core: CoreDriver) -> None:
    core.acl(SECRET_FOR_THE_CONTROLLER)
    publisher = attested(core, "p", PROVEN)
    publisher.publish("secret", b"retained", retain=True)
    controller = attested(core, "controller", PROVEN)
    plain = attested(core, "plain", None)
    other = attested(core, "other", Attestation(AFFIRMING, OTHER))
    for client in (controller, plain, other):
        client.subscribe("+", qos=1)
    controller.expect_publish("secret", b"retained")
    for _ in range(3):  # the match is remembered from the second time on
        publisher.publish("secret", b"live", 1)
        controller.expect_publish("secret", b"live")
    plain.expect_nothing()
    other.expect_nothing()
    plain.subscribe("secret", codes=[0x87])


def test_a_shared_subscription_passes_over_members_without_the_proof(core: CoreDriver) -> None:
    core.acl([*SECRET_FOR_THE_CONTROLLER])
    plain = attested(core, "plain", None)
    plain.subscribe("$share/g/+", qos=1)
    controller = attested(core, "controller", PROVEN)
    controller.subscribe("$share/g/+", qos=1)
    for number in range(4):
        controller.publish("secret", b"%d" % number, 1)
        controller.expect_publish("secret")
    plain.expect_nothing()


def test_a_will_follows_what_its_connection_had_proven(core: CoreDriver) -> None:
    core.acl(ONLY_THE_CONTROLLER)
    watcher = connected(core, "w")
    watcher.subscribe("plant/#")
    will = Will("plant/7/command", b"stop")
    refused = FakeClient(core, "plain")
    refused.send(refused.connect_packet(will=will))
    assert refused.expect(Connack).code == 0x87
    refused = FakeClient(core, "other", attestation=Attestation(AFFIRMING, OTHER))
    refused.send(refused.connect_packet(will=will))
    assert refused.expect(Connack).code == 0x87
    watcher.expect_nothing()
    connected(core, "c", attestation=PROVEN, will=will).drop()
    watcher.expect_publish("plant/7/command", b"stop")


def test_a_delayed_will_is_published_for_the_connection_that_left(core: CoreDriver) -> None:
    core.acl(ONLY_THE_CONTROLLER)
    watcher = connected(core, "w")
    watcher.subscribe("plant/#")
    will = Will("plant/7/command", b"stop", properties=props(will_delay_interval=5))
    connected(core, "c", attestation=PROVEN, will=will, properties=LONG).drop()
    core.advance(6000)
    watcher.expect_publish("plant/7/command", b"stop")


def test_a_take_over_publishes_the_old_will_with_the_old_proof(core: CoreDriver) -> None:
    core.acl(ONLY_THE_CONTROLLER)
    watcher = connected(core, "w")
    watcher.subscribe("plant/#")
    connected(core, "c", attestation=PROVEN, will=Will("plant/7/command", b"stop"), properties=LONG)
    taker = FakeClient(core, "c")
    taker.send(taker.connect_packet(clean_start=False, will=Will("plant/7/command", b"forged")))
    assert taker.expect(Connack).code == 0x87
    watcher.expect_nothing()
    again(core, "c", None)
    watcher.expect_publish("plant/7/command", b"stop")


def test_an_absent_session_gets_what_its_last_connection_might_have_had(core: CoreDriver) -> None:
    core.acl(SECRET_FOR_THE_CONTROLLER)
    controller = attested(core, "controller", PROVEN)
    plain = attested(core, "plain", None)
    for client in (controller, plain):
        client.subscribe("+", qos=1)
        client.drop()
    publisher = attested(core, "p", PROVEN)
    publisher.publish("secret", b"x", 1)
    publisher.publish("open", b"x", 1)
    controller = again(core, "controller", PROVEN)
    controller.expect_publish("secret", b"x")
    controller.expect_publish("open", b"x")
    plain = again(core, "plain", None)
    plain.expect_publish("open", b"x")
    plain.expect_nothing()


@pytest.mark.parametrize("weaker", [None, Attestation(AFFIRMING, OTHER)])
def test_who_proves_less_does_not_get_what_waits_for_the_session(
    core: CoreDriver, weaker: Attestation | None
) -> None:
    core.acl(SECRET_FOR_THE_CONTROLLER)
    controller = attested(core, "controller", PROVEN)
    controller.subscribe("+", qos=2)
    controller.drop()
    publisher = attested(core, "p", PROVEN)
    for number in range(3):
        publisher.publish("secret", b"secret", number)
        publisher.publish("open", b"%d" % number, number)
    dropped = core.counters()["publish_dropped"]
    taker = again(core, "controller", weaker)
    taker.expect_publish("open", b"1")
    taker.expect_publish("open", b"2")
    taker.expect_nothing()
    assert core.counters()["publish_dropped"] == dropped + 2
    assert core.counters()["queued"] == 0
    # They are gone for good, and the session lives on.
    taker.drop()
    controller = again(core, "controller", PROVEN)
    controller.expect_nothing()
    publisher.publish("secret", b"new", 1)
    controller.expect_publish("secret", b"new")


def test_who_proves_less_does_not_get_what_was_sent_and_not_acknowledged(core: CoreDriver) -> None:
    core.acl(SECRET_FOR_THE_CONTROLLER)
    controller = attested(core, "controller", PROVEN)
    controller.subscribe("+", qos=2)
    publisher = attested(core, "p", PROVEN)
    publisher.publish("secret", b"one", 1)
    publisher.publish("secret", b"two", 2)
    publisher.publish("secret", b"half", 2)
    publisher.publish("open", b"open", 1)
    one, two, half, _ = controller.received()
    assert half.packet_id is not None
    controller.send(Pubrec(half.packet_id))
    controller.expect(Pubrel)
    controller.drop()
    taker = again(core, "controller", None)
    # Exchanges of QoS 2 go on without their messages; the open message comes again.
    for packet in (two, half):
        assert packet.packet_id is not None
        assert taker.expect(Pubrel).packet_id == packet.packet_id
    taker.expect_publish("open", b"open", dup=True)
    for packet in (two, half):
        assert packet.packet_id is not None
        taker.send(Pubcomp(packet.packet_id))
    # Acknowledgements of what is gone do no harm [MQTT-4.13]: the identifiers are free.
    assert one.packet_id is not None
    taker.send(Puback(one.packet_id))
    taker.expect_nothing()
    assert core.counters()["inflight"] == 0
    for number in range(4):
        publisher.publish("open", b"%d" % number, 2)
        taker.expect_publish("open", b"%d" % number, 2)
    taker.ping()


def test_a_subscription_counts_for_what_the_connection_of_now_has_proven(core: CoreDriver) -> None:
    """Also where the match of the topic is remembered."""
    core.acl(SECRET_FOR_THE_CONTROLLER)
    publisher = attested(core, "p", PROVEN)
    controller = attested(core, "controller", PROVEN)
    controller.subscribe("secret", "open")
    for _ in range(3):
        publisher.publish("secret", b"x")
        controller.expect_publish("secret", b"x")
    weak = again(core, "controller", None)
    for _ in range(3):
        publisher.publish("secret", b"x")
        weak.expect_nothing()
        publisher.publish("open", b"x")
        weak.expect_publish("open", b"x")
    strong = again(core, "controller", PROVEN)
    publisher.publish("secret", b"x")
    strong.expect_publish("secret", b"x")


def test_the_proof_of_a_session_survives_a_restart(core: CoreDriver) -> None:
    core.acl(SECRET_FOR_THE_CONTROLLER)
    for name, proof in (("controller", PROVEN), ("plain", None)):
        client = attested(core, name, proof)
        client.subscribe("+", qos=1)
    will = Will("secret", b"will", 1, properties=props(will_delay_interval=1))
    connected(core, "gone", attestation=PROVEN, will=will, properties=LONG)
    connected(core, "plain-gone", will=Will("open", b"will", 1), properties=LONG)
    for journal in (list(core.journal), core.snapshot()):
        restored = CoreDriver(now_ms=core.now_ms, journal=journal)
        restored.acl(SECRET_FOR_THE_CONTROLLER)
        restored.advance(2000)
        attested(restored, "p", PROVEN).publish("secret", b"x", 1)
        controller = again(restored, "controller", PROVEN)
        got = sorted((packet.topic, packet.payload) for packet in controller.received())
        assert got == [("open", b"will"), ("secret", b"will"), ("secret", b"x")]
        plain = again(restored, "plain", None)
        assert [packet.topic for packet in plain.received()] == ["open"]
        # The journal's word counts after the restart too: who proves less gets less.
        attested(restored, "q", PROVEN).publish("secret", b"y", 1)
        controller.drop()
        left = again(restored, "controller", None).received()
        assert [packet.topic for packet in left] == ["open"]


def test_a_new_session_has_nothing_from_the_one_before(core: CoreDriver) -> None:
    core.acl(SECRET_FOR_THE_CONTROLLER)
    attested(core, "c", PROVEN).drop()
    connected(core, "c", clean_start=True).publish("secret", b"x", 1, code=0x87)


@pytest.mark.parametrize(
    "rule",
    [
        b"\x01\x03\x00\x04\x00\x00\x01\x00#",  # a condition that is none
        b"\x01\x03\x00\x02\x00\x00\x00\x01\x00#",  # rank 0: everybody
        b"\x01\x03\x00\x02\x04\x00\x00\x01\x00#",  # rank 4
        b"\x01\x03\x00\x01" + bytes(31),  # half a digest
        b"\x01\x03\x00\x03" + bytes(32),  # no rank
        b"\x01\x03\x00",
    ],
)
def test_malformed_conditions_are_reported_and_the_old_rules_stay(
    core: CoreDriver, rule: bytes
) -> None:
    core.acl([Rule(True, "ok")])
    core.take_events()
    core.command(b"\x02\x01\x00\x00\x00" + rule)
    assert [e.command for e in core.take_events() if isinstance(e, CommandFailed)] == [2]
    client = connected(core, "c")
    client.publish("ok", b"x", 1)
    client.publish("t", b"x", 1, code=0x87)


@pytest.mark.parametrize(
    "information",
    [
        b"",
        b"\0\0\0",
        b"\0\x10\0\0",  # an unknown flag
        b"\x02\0\0\0",  # an unknown transport
        b"\0\x04\0\0",  # attested, and nothing follows
        b"\0\x04\0\0\x00" + bytes(32),  # rank 0
        b"\0\x04\0\0\x04" + bytes(32),
        b"\0\x04\0\0\x03" + bytes(31),
        b"\0\x04\0\0\x03" + bytes(33),
        b"\0\0\0\0\x03" + bytes(32),  # not flagged
    ],
)
def test_open_information_of_another_form_is_never_misread(
    core: CoreDriver, information: bytes
) -> None:
    with pytest.raises(CoreTrapError, match="the open information is malformed"):
        core.open_with(information)


@pytest.mark.parametrize("proof", [PROVEN, None])
def test_a_will_that_a_restart_publishes_is_checked_by_the_rules_of_the_first_step(
    core: CoreDriver, proof: Attestation | None
) -> None:
    """The sessions that end with the restart: before the rules there is nothing but a yes."""
    watcher = attested(core, "w", PROVEN)
    watcher.subscribe("#", qos=1)
    connected(core, "gone", attestation=proof, will=Will("secret", b"will", 1))
    restored = CoreDriver(now_ms=core.now_ms, journal=core.journal, rules=SECRET_FOR_THE_CONTROLLER)
    got = [packet.payload for packet in again(restored, "w", PROVEN).received()]
    assert got == ([b"will"] if proof is PROVEN else [])
