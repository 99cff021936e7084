"""A real mosquitto as a bridge to the broker: both directions, every QoS, retained messages, no
echo, its state, and what happens when either side goes away."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.mosquitto_bridge import STATE, Bridge, Ear, Heard, bridge
from tests.integration.service_process import ServiceProcess, service, write

pytestmark = pytest.mark.mosquitto

LISTEN = ("--allow-anonymous", "--listen", "mqtt://127.0.0.1:0")


@pytest.fixture(scope="module")
def broker() -> Iterator[ServiceProcess]:
    """Used by all tests: each has a bridge of its own, and topics that others do not use."""
    with service(*LISTEN) as running:
        yield running


@pytest.fixture(
    scope="module", params=["default", "mqttv31", "mqttv50"], ids=["default", "3.1", "5.0"]
)
def linked(
    request: pytest.FixtureRequest, broker: ServiceProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bridge]:
    """By default mosquitto speaks MQTT 3.1.1 and says that it is a bridge."""
    version = request.param
    settings = () if version == "default" else (f"bridge_protocol_version {version}",)
    with bridge(tmp_path_factory.mktemp("mosquitto"), broker.port(), *settings) as running:
        expected = {"default": "3.1.1", "mqttv31": "3.1", "mqttv50": "5.0"}[version]
        broker.event("client connected", matches=lambda line: line["protocol"] == expected)
        yield running


def word() -> str:
    """A level that no other test uses."""
    return secrets.token_hex(4)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_go_to_the_broker(broker: ServiceProcess, linked: Bridge, qos: int) -> None:
    topic = f"up/{word()}"
    with Ear(broker.port(), topic) as here, Ear(linked.port) as there:
        there.say(topic, b"x", qos)
        assert here.next() == Heard(topic, b"x", qos, False)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_come_from_the_broker(broker: ServiceProcess, linked: Bridge, qos: int) -> None:
    topic = f"down/{word()}"
    with Ear(broker.port()) as here, Ear(linked.port, topic) as there:
        here.say(topic, b"x", qos)
        assert there.next() == Heard(topic, b"x", qos, False)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_nothing_comes_back(broker: ServiceProcess, linked: Bridge, qos: int) -> None:
    """On a topic of both directions every message is heard once on each side. An echo would have
    come before the message that the other side sends when it has heard the first."""
    topic = f"both/{word()}"
    with Ear(broker.port(), topic) as here, Ear(linked.port, topic) as there:
        for speaker, listener in ((here, there), (there, here), (here, there)):
            payload = word().encode()
            speaker.say(topic, payload, qos)
            assert listener.next().payload == payload
            assert speaker.next().payload == payload


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_what_is_to_be_retained_is_retained(
    broker: ServiceProcess, linked: Bridge, direction: str
) -> None:
    topic = f"{direction}/{word()}"
    ports = (linked.port, broker.port()) if direction == "up" else (broker.port(), linked.port)
    with Ear(ports[0]) as speaker, Ear(ports[1], topic) as listener:
        speaker.say(topic, b"kept", 1, retain=True)
        assert listener.next() == Heard(topic, b"kept", 1, True)
        with Ear(ports[1], topic) as late:
            assert late.next() == Heard(topic, b"kept", 1, True)
        speaker.say(topic, b"", 1, retain=True)
        assert listener.next() == Heard(topic, b"", 1, True)


def test_its_state_follows_it(broker: ServiceProcess, tmp_path: Path) -> None:
    name = f"bridge-{word()}"
    topic = f"$SYS/broker/connection/{name}/state"
    with Ear(broker.port(), topic) as dashboard:
        for _ in range(2):
            with bridge(tmp_path, broker.port(), f"remote_clientid {name}"):
                heard = dashboard.next()
                assert (heard.topic, heard.payload) == (topic, b"1")
                with Ear(broker.port(), STATE) as late:
                    states = [late.next()]
                    while states[-1].topic != topic:
                        states.append(late.next())
                    assert states[-1].retain
            assert dashboard.next().payload == b"0"  # it was killed: its will


def test_rules_that_do_not_name_the_state_cost_only_the_state(tmp_path: Path) -> None:
    """`#` does not match topics that begin with $."""
    rules = '[[acl]]\neffect = "allow"\naccess = "both"\npattern = "#"\n'
    text = f'allow_anonymous = true\n[[listeners]]\nurl = "mqtt://127.0.0.1:0"\n{rules}'
    configuration = write(tmp_path / "avow.toml", text)
    with service("--config", str(configuration)) as broker, bridge(tmp_path, broker.port()) as link:
        topic = f"both/{word()}"
        with Ear(broker.port(), topic) as here, Ear(link.port, topic) as there:
            there.say(topic, b"x")
            assert here.next().payload == b"x"


def test_a_broker_that_was_killed_is_joined_again(tmp_path: Path) -> None:
    """What was said on either side while they were apart arrives, once, and nothing comes back."""
    key = write(tmp_path / "owner.key", secrets.token_hex(32) + "\n")
    key.chmod(0o600)
    store = ("--store", str(tmp_path / "state"), "--store-key", f"file:{key}")
    with service(*LISTEN, *store) as broker:
        port = broker.port()
        with bridge(tmp_path, port, "cleansession false") as link:
            with Ear(port, "up/#", "both/#", session="kept"):
                pass
            with Ear(link.port, "down/#", "both/#") as there:
                broker.process.send_signal(signal.SIGKILL)
                broker.wait()
                link.said(r"attic.*(closed|disconnect|lost)")
                there.say("up/late", b"from mosquitto", 1)
                again = ("--allow-anonymous", "--listen", f"mqtt://127.0.0.1:{port}", *store)
                with service(*again) as restarted:
                    with Ear(port, session="kept") as here:
                        here.say("down/late", b"from avow", 1)
                        assert here.next() == Heard("up/late", b"from mosquitto", 1, False)
                        assert there.next() == Heard("down/late", b"from avow", 1, False)
                        here.say("both/after", b"x", 1)
                        assert there.next().topic == "both/after"
                        there.say("both/fence", b"x", 1)
                        assert here.next().topic == "both/after"
                        assert here.next().topic == "both/fence"
                    assert restarted.process.poll() is None
