"""Passwords, SCRAM, anonymous access and access rules through the real process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scramp import ScramClient  # type: ignore[import-untyped]

from avow.broker.users import add_user, new_user, remove_user
from avow.testing.mqtt import Auth, Connack, Connect, Disconnect, Pingreq, Pingresp, Publish
from avow.testing.mqtt_properties import Properties, Property, props
from tests.integration.service_process import PlainClient, ServiceProcess, service, write

LOOPBACK = ("--listen", "mqtt://127.0.0.1:0")
METHOD = "SCRAM-SHA-256"


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "avow.users"
    add_user(path, new_user("alice", "correct horse"))
    add_user(path, new_user("bob", "b"))
    return path


@pytest.fixture(scope="module")
def running(users: Path) -> Iterator[ServiceProcess]:
    config = write(users.with_name("avow.toml"), "[login]\nfailure_delay_s = 0.0\n")
    with service("--config", str(config), "--password-file", str(users), *LOOPBACK) as process:
        yield process


def connect(
    running: ServiceProcess, user: str | None, password: bytes | None, version: int = 5
) -> Connack:
    with PlainClient(running.port(), version=version) as client:
        return client.connect(client_id="c", username=user, password=password)


@pytest.mark.parametrize(("version", "refused"), [(5, 0x86), (4, 4)])
def test_password(running: ServiceProcess, version: int, refused: int) -> None:
    assert connect(running, "alice", b"correct horse", version).code == 0
    assert connect(running, "alice", b"wrong", version).code == refused
    assert connect(running, "nobody", b"correct horse", version).code == refused
    assert connect(running, "alice", None, version).code == refused


@pytest.mark.parametrize(("version", "refused"), [(5, 0x87), (4, 5)])
def test_without_a_name(running: ServiceProcess, version: int, refused: int) -> None:
    assert connect(running, None, None, version).code == refused


def test_refused_login_is_logged_and_the_connection_closed(running: ServiceProcess) -> None:
    with PlainClient(running.port()) as client:
        assert client.connect(client_id="c", username="mallory", password=b"guess").code == 0x86
        assert client.closed()
    line = running.event("login failed", matches=lambda entry: entry["user"] == "mallory")
    assert line["peer"].startswith("127.0.0.1:")
    assert "guess" not in str(running.entries())


def test_failed_login_waits_and_others_do_not(users: Path, tmp_path: Path) -> None:
    config = write(
        tmp_path / "avow.toml", "[login]\nfailure_delay_s = 1.0\nfailure_delay_max_s = 1.5\n"
    )
    arguments = ("--config", str(config), "--password-file", str(users), *LOOPBACK)
    with service(*arguments) as slow, PlainClient(slow.port()) as loser:
        started_s = time.monotonic()
        loser.send(Connect(client_id="l", username="alice", password=b"wrong"))
        slow.event("login failed")
        assert connect(slow, "bob", b"b").code == 0
        others_s = time.monotonic() - started_s
        assert loser.receive(Connack).code == 0x86
        assert time.monotonic() - started_s >= 1.0
        assert others_s < time.monotonic() - started_s
        again_s = time.monotonic()
        assert connect(slow, "alice", b"wrong").code == 0x86
        assert time.monotonic() - again_s >= 1.5
        assert slow.event("login failed", 2)["delay_s"] == 1.5


def test_reload_takes_new_users(tmp_path: Path) -> None:
    path = tmp_path / "users"
    add_user(path, new_user("alice", "a"))
    with (
        service("--password-file", str(path), *LOOPBACK) as running,
        PlainClient(running.port()) as alice,
    ):
        assert alice.connect(client_id="a", username="alice", password=b"a").code == 0
        add_user(path, new_user("carol", "c"))
        remove_user(path, "alice")
        running.reload()
        assert running.event("reloaded")["users"] == 1
        assert connect(running, "carol", b"c").code == 0
        assert connect(running, "alice", b"a").code == 0x86
        # Who is in stays in.
        alice.send(Pingreq())
        alice.receive(Pingresp)


def test_name_that_nobody_checks_is_not_believed(tmp_path: Path) -> None:
    config = write(
        tmp_path / "avow.toml",
        """
        [[acl]]
        effect = "allow"
        access = "both"
        anonymous = true
        pattern = "public/#"
        [[acl]]
        effect = "allow"
        access = "both"
        pattern = "users/%u/#"
        """,
    )
    with service("--config", str(config), *LOOPBACK) as running:
        with PlainClient(running.port()) as client:
            assert client.connect(client_id="c", username="alice", password=b"x").code == 0
            assert client.subscribe("public/a") == 0
            assert client.subscribe("users/alice/a") == 0x87
        assert running.event("client connected")["user"] == ""


def test_rules(users: Path, tmp_path: Path) -> None:
    config = write(
        tmp_path / "avow.toml",
        """
        [[acl]]
        effect = "deny"
        access = "subscribe"
        pattern = "home/secret"
        [[acl]]
        effect = "allow"
        access = "both"
        user = "alice"
        pattern = "home/#"
        [[acl]]
        effect = "allow"
        access = "subscribe"
        pattern = "clients/%c/%u"
        """,
    )
    arguments = ("--config", str(config), "--password-file", str(users), *LOOPBACK)
    with (
        service(*arguments) as running,
        PlainClient(running.port()) as alice,
        PlainClient(running.port()) as bob,
    ):
        alice.connect(client_id="a", username="alice", password=b"correct horse")
        bob.connect(client_id="b", username="bob", password=b"b")
        assert alice.subscribe("home/secret") == 0x87
        assert alice.subscribe("home/kitchen", 1) == 1
        assert bob.subscribe("home/kitchen") == 0x87
        assert bob.subscribe("clients/b/bob") == 0
        assert bob.subscribe("clients/a/bob") == 0x87
        assert bob.subscribe("clients/+/bob") == 0x87


class ScramLogin:
    """A client's side of an exchange, over AUTH packets."""

    def __init__(self, client: PlainClient, user: str, password: str) -> None:
        self._client = client
        self._scram = ScramClient([METHOD], user, password)

    def first(self) -> bytes:
        return str(self._scram.get_client_first()).encode()

    def answer_challenge(self) -> None:
        challenge = self._client.receive(Auth)
        assert challenge.code == 0x18
        assert challenge.props.get(Property.AUTHENTICATION_METHOD) == METHOD
        data = challenge.props.get(Property.AUTHENTICATION_DATA)
        assert isinstance(data, bytes)
        self._scram.set_server_first(data.decode())
        final = str(self._scram.get_client_final()).encode()
        self._client.send(
            Auth(0x18, props(authentication_method=METHOD, authentication_data=final))
        )

    def check_server(self, packet: Connack | Auth) -> None:
        properties = packet.props if isinstance(packet, Auth) else packet.properties
        data = properties.get(Property.AUTHENTICATION_DATA)
        assert isinstance(data, bytes)
        self._scram.set_server_final(data.decode())

    def properties(self) -> Properties:
        return props(authentication_method=METHOD, authentication_data=self.first())


def scram_connect(client: PlainClient, user: str, password: str) -> Connack:
    login = ScramLogin(client, user, password)
    client.send(Connect(client_id="s", properties=login.properties()))
    login.answer_challenge()
    answer = client.receive(Connack)
    if answer.code == 0:
        login.check_server(answer)
    return answer


def test_scram(running: ServiceProcess) -> None:
    with PlainClient(running.port()) as client:
        assert scram_connect(client, "alice", "correct horse").code == 0
        line = running.event("client connected", matches=lambda e: e["client"] == "s")
        assert line["user"] == "alice"
        client.send(Publish("a", b"x"), Pingreq())
        client.receive(Pingresp)


@pytest.mark.parametrize("user", ["alice", "nobody"])
def test_scram_with_a_wrong_password(running: ServiceProcess, user: str) -> None:
    with PlainClient(running.port()) as client:
        assert scram_connect(client, user, "wrong").code == 0x86
        assert client.closed()


def test_scram_again_while_connected(running: ServiceProcess) -> None:
    with PlainClient(running.port()) as client:
        assert scram_connect(client, "alice", "correct horse").code == 0
        login = ScramLogin(client, "alice", "correct horse")
        client.send(Auth(0x19, login.properties()))
        login.answer_challenge()
        done = client.receive(Auth)
        assert done.code == 0
        login.check_server(done)
        client.send(Pingreq())
        client.receive(Pingresp)
        # Another user cannot take over a connection.
        other = ScramLogin(client, "bob", "b")
        client.send(Auth(0x19, other.properties()))
        assert client.receive(Disconnect).code == 0x87
        assert client.closed()


def test_method_that_is_not_offered(running: ServiceProcess) -> None:
    with PlainClient(running.port()) as client:
        properties = props(authentication_method="GS2-KRB5", authentication_data=b"x")
        client.send(Connect(client_id="c", properties=properties))
        assert client.receive(Connack).code == 0x8C
