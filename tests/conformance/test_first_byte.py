"""What a packet's first byte says is not waited for: type, flags, and whether it may come now.

MQTT 5.0, sections 2.1.2, 2.1.3, 3.1.0; 3.1.1, the same and [MQTT-2.2.2-2].
"""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Outcome, Transport
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Connack, Connect, PacketType, Pingreq, Pingresp, props

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])

FROM_SERVERS = [
    PacketType.CONNACK,
    PacketType.SUBACK,
    PacketType.UNSUBACK,
    PacketType.PINGRESP,
]
# In MQTT 3.1 the flags of all but these are "not used", and these may have DUP.
WITH_FLAGS = {PacketType.PUBREL, PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE}


def begins(kind: int, flags: int = 0) -> bytes:
    return bytes((kind << 4 | flags,))


@VERSIONS
@pytest.mark.parametrize("kind", [0, *FROM_SERVERS])
def test_a_type_that_no_client_sends(core: CoreDriver, version: int, kind: int) -> None:
    client = connected(core, "c", version=version)
    client.send(begins(kind))
    client.expect_close({0x81, 0x82})


@pytest.mark.parametrize("version", [3, 4])
def test_type_15_is_reserved_before_mqtt_5(core: CoreDriver, version: int) -> None:
    client = connected(core, "c", version=version)
    client.send(begins(15))
    client.expect_close()


@VERSIONS
def test_a_second_connect(core: CoreDriver, version: int) -> None:
    client = connected(core, "c", version=version)
    client.send(begins(1))
    client.expect_close(0x82)


@VERSIONS
@pytest.mark.parametrize("kind", [4, 5, 6, 7, 8, 10, 12, 14])
def test_wrong_flags(core: CoreDriver, version: int, kind: int) -> None:
    right = 2 if kind in WITH_FLAGS else 0
    for flags in range(16):
        client = connected(core, "c", version=version)
        client.send(begins(kind, flags))
        if flags == right or (version == 3 and (right == 0 or flags == 10)):
            client.expect_nothing()
        else:
            client.expect_close(0x81)


@VERSIONS
@pytest.mark.parametrize("flags", [6, 7, 14, 15])
def test_a_publish_of_qos_3(core: CoreDriver, version: int, flags: int) -> None:
    client = connected(core, "c", version=version)
    client.send(begins(3, flags))
    client.expect_close(0x81)


@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("first", [byte for byte in range(256) if byte != 0x10])
def test_before_connect_only_connect(core: CoreDriver, first: int, transport: Transport) -> None:
    """A ClientHello of TLS, HTTP and whatever else a stranger sends begins with another byte."""
    client = FakeClient(core, transport=transport)
    client.send(bytes((first,)))
    client.expect_close()


def test_while_authenticating_only_auth_and_disconnect(core: CoreDriver) -> None:
    for first in (0x00, 0x10, 0x30, 0x82, 0xC0):
        client = FakeClient(core, "c")
        client.send(client.connect_packet(properties=props(authentication_method="m")))
        core.auth_result(core.auth_request(), Outcome.CONTINUE, data=b"1")
        client.receive()
        client.send(bytes((first,)))
        client.expect_refused({0x81, 0x82})


def test_what_follows_a_whole_packet_is_looked_at_too(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Pingreq(), begins(0))
    client.expect(Pingresp)
    client.expect_close({0x81, 0x82})


def test_what_was_parked_is_looked_at_when_its_turn_comes(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.send(Connect("c", username="u"), begins(0))
    core.auth_result(core.auth_request(), Outcome.SUCCESS, user="u")
    assert client.expect(Connack).code == 0
    client.expect_close({0x81, 0x82})
