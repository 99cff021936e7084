"""The real process on the simulated platform: who gets evidence, and whose evidence counts."""

from __future__ import annotations

import re
import secrets
import subprocess
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from OpenSSL import SSL

from avow.channel.exchange import ClientExchange, ClientSettings
from avow.channel.psk import PreSharedKey, offer_key, require_key
from avow.channel.ra_tls import judge_certificate
from avow.channel.session import facts_of
from avow.errors import AvowError
from avow.runtime.manifest import runtime_manifest
from avow.testing.mqtt import (
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
)
from avow.testing.pki import Authority
from avow.testing.websocket import WebSocketClient
from tests.integration.attested_clients import (
    CONTROLLER,
    AttestedClient,
    broker_policy,
    client_policy,
    judge_of,
    own_evidence,
    tls_context,
)
from tests.integration.service_process import PATIENCE_S, ServiceProcess, avow, service, write

DEVICE = PreSharedKey("device-7", bytes(range(32)))
SIMULATED = "SIMULATED TEE: nothing is protected"


@dataclass
class World:
    """A folder with a server's certificate and a configuration."""

    folder: Path
    authority: Authority

    def config(self, *listener: str, scheme: str = "mqtts", rest: str = "") -> Path:
        keys = "\n".join(listener)
        certificate = "" if "ra_tls = true" in keys else 'cert = "server.pem"\nkey = "server.key"'
        text = f"""
allow_anonymous = true
{rest.partition("---")[0]}
[[listeners]]
url = "{scheme}://127.0.0.1:0"
{certificate}
{keys}
[metrics]
port = 0
{rest.partition("---")[2]}
"""
        return write(self.folder / "avow.toml", text)

    def client_certificate(self, name: str) -> SSL.Context:
        certificate, key = self.authority.issue(name).write(self.folder, name)
        context = tls_context()
        context.use_certificate_file(str(certificate))
        context.use_privatekey_file(str(key))
        return context


@pytest.fixture
def world(tmp_path: Path) -> World:
    authority = Authority()
    authority.issue_server().write(tmp_path, "server")
    authority.write(tmp_path / "ca.pem")
    return World(tmp_path, authority)


def attesting(config: Path) -> tuple[str, ...]:
    return ("--tee", "simulated", "--config", str(config))


def figures(running: ServiceProcess) -> dict[str, float]:
    url = str(running.event("metrics")["url"])
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE)}


def refused(running: ServiceProcess, check: str) -> None:
    line = running.event("attestation refused")
    assert line["check"] == check
    assert f"check {check} " in line["reason"]


def test_the_policy_that_init_writes_accepts_exactly_this_broker(world: World) -> None:
    config = world.config()
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    with service(*attesting(config)) as running:
        with AttestedClient(running.port("mqtts")) as client:
            peer = client.attest(settings).peer
            assert peer is not None
            assert peer.claims["runtime"] == runtime_manifest().digest
            module = running.event("avow broker")["module_sha256"]
            assert peer.claims["module"] == bytes.fromhex(module)
            assert client.connected("c").code == 0
        # An ordinary client on the same port notices nothing.
        with AttestedClient(running.port("mqtts")) as plain:
            assert plain.connected("p").code == 0
        assert figures(running)["avow_quotes_total"] == 1.0
    assert [line["event"] for line in running.entries()].count(SIMULATED) == 1
    # The first of them is the sentence.
    assert all(line["tee"] == "simulated" for line in running.entries()[1:])


def test_a_broker_with_another_configuration_is_refused_by_the_client(world: World) -> None:
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(world.config()))))
    config = world.config(rest="---\n[limits]\nmaximum_qos = 1\n")
    with (
        service(*attesting(config)) as running,
        AttestedClient(running.port("mqtts")) as client,
        pytest.raises(AvowError, match="configuration"),
    ):
        client.attest(settings)


RULES = f"""---
[[acl]]
effect = "allow"
access = "publish"
pattern = "plant/+/command"
tier = "warning"

[[acl]]
effect = "allow"
access = "publish"
pattern = "plant/+/valve"
tier = "affirming"

[[acl]]
effect = "allow"
access = "both"
pattern = "plant/+/program"
module = "sha256:{CONTROLLER.hex()}"

[[acl]]
effect = "deny"
access = "publish"
pattern = "plant/+/+"

[[acl]]
effect = "allow"
access = "both"
pattern = "#"
"""


def publishes(client: AttestedClient, topic: str) -> bool:
    client.send(Publish(topic, b"x", 1, 1))
    packet = client.next_packet()
    assert isinstance(packet, Puback)
    return packet.code < 0x80


def test_only_attested_clients_may_give_commands(world: World) -> None:
    write(world.folder / "clients.toml", client_policy())
    config = world.config('client_policy = "clients.toml"', rest=RULES)
    judge = judge_of(broker_policy("--config", str(config)))
    with service(*attesting(config)) as running:
        with (
            own_evidence(judge) as (settings, issuer),
            AttestedClient(running.port("mqtts")) as controller,
        ):
            assert controller.attest(settings, issuer=issuer).sent_evidence
            controller.connected("controller")
            assert publishes(controller, "plant/7/command")
            # A simulation is worth a warning, never more.
            assert not publishes(controller, "plant/7/valve")
            # It says that it is the module, and nobody has measured that.
            assert not publishes(controller, "plant/7/program")
            assert publishes(controller, "elsewhere")
        assert running.event("client attested")["module"] == "none proven"
        for settings_of_other in (ClientSettings(judge=judge), None):
            with AttestedClient(running.port("mqtts")) as other:
                if settings_of_other is not None:
                    other.attest(settings_of_other)
                other.connected("other")
                assert not publishes(other, "plant/7/command")
                assert publishes(other, "elsewhere")
        with (
            own_evidence(judge, bytes(32)) as (settings, issuer),
            AttestedClient(running.port("mqtts")) as stranger,
            pytest.raises(AvowError, match="P4"),
        ):
            stranger.attest(settings, issuer=issuer)
        refusal = running.event("attestation refused")
        assert refusal["check"] == "P4"
        assert CONTROLLER.hex() in refusal["reason"], "the broker's log names both values"
        assert figures(running)["avow_clients_attested_total"] == 1.0


def test_a_broker_without_a_platform_can_still_ask_its_clients(world: World) -> None:
    write(world.folder / "clients.toml", client_policy())
    config = world.config(
        'client_policy = "clients.toml"', "require_client_evidence = true", rest=RULES
    )
    with service("--config", str(config)) as running:
        with (
            own_evidence(None) as (settings, issuer),
            AttestedClient(running.port("mqtts")) as controller,
        ):
            controller.attest(settings, issuer=issuer)
            controller.connected("controller")
            assert publishes(controller, "plant/7/command")
        with AttestedClient(running.port("mqtts")) as plain:
            plain.send(Publish("t", b"x"))
            assert plain.closed()
        refused(running, "C17")


def test_plain_clients_can_be_refused(world: World) -> None:
    config = world.config("unattested_clients = false")
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    with service(*attesting(config)) as running:
        with AttestedClient(running.port("mqtts")) as plain:
            plain.write_bytes(b"\x10")
            assert plain.closed()
        refused(running, "C18")
        with AttestedClient(running.port("mqtts")) as client:
            client.attest(settings)
            assert client.connected("c").code == 0
        assert figures(running)['avow_attestation_checks_failed_total{check="C18"}'] == 1.0


def test_who_shows_evidence_and_asks_for_none_is_refused_where_all_have_to_ask(
    world: World,
) -> None:
    """Such a client would send its messages to whatever answers."""
    write(world.folder / "clients.toml", client_policy())
    config = world.config("unattested_clients = false", 'client_policy = "clients.toml"')
    judge = judge_of(broker_policy("--config", str(config)))
    with service(*attesting(config)) as running:
        with (
            own_evidence(None) as (settings, issuer),
            AttestedClient(running.port("mqtts")) as trusting,
            pytest.raises(AvowError, match="C18"),
        ):
            trusting.attest(settings, issuer=issuer)
        refused(running, "C18")
        with (
            own_evidence(judge) as (settings, issuer),
            AttestedClient(running.port("mqtts")) as client,
        ):
            client.attest(settings, issuer=issuer)
            assert client.connected("c").code == 0


def test_a_flood_of_strangers_causes_no_quote(world: World) -> None:
    config = world.config(
        'evidence_for = "authorised"', 'client_ca = "ca.pem"', "require_certificate = false"
    )
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    with service(*attesting(config)) as running:
        for _ in range(10):
            with (
                AttestedClient(running.port("mqtts")) as stranger,
                pytest.raises(AvowError, match="C9"),
            ):
                stranger.attest(settings)
        assert figures(running)["avow_quote_requests_total"] == 0.0
        alice = world.client_certificate("alice")
        with AttestedClient(running.port("mqtts"), alice) as client:
            client.attest(settings)
            client.connected("c")
        assert running.event("client connected")["user"] == "alice"
        assert figures(running)["avow_quotes_total"] == 1.0


def test_a_websocket_may_follow_an_exchange(world: World) -> None:
    config = world.config(scheme="wss")
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    with (
        service(*attesting(config)) as running,
        AttestedClient(running.port("wss")) as client,
    ):
        client.attest(settings)
        web = WebSocketClient()
        client.write_bytes(web.upgrade())
        while not web.upgraded:
            web.feed(client.read_bytes())
        client.write_bytes(web.binary(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"))
        content = b""
        while not content:
            content += web.feed(client.read_bytes())
        assert content == b"\x20\x02\x00\x00"


def test_a_reload_measures_the_new_configuration(world: World) -> None:
    config = world.config(rest="---\n[limits]\nmaximum_qos = 1\n")
    before = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    with service(*attesting(config)) as running:
        with AttestedClient(running.port("mqtts")) as client:
            client.attest(before)
        world.config(rest="---\n[limits]\nmaximum_qos = 2\n")
        after = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
        running.reload()
        running.event("reloaded")
        running.event("measured")
        with AttestedClient(running.port("mqtts")) as client:
            client.attest(after)
        with (
            AttestedClient(running.port("mqtts")) as client,
            pytest.raises(AvowError, match="configuration"),
        ):
            client.attest(before)
        # What only a restart brings would leave half of a configuration: refused as a whole.
        world.config(rest="idle_timeout_s = 5.0\n---\n[limits]\nmaximum_qos = 1\n")
        running.reload()
        assert "idle_timeout_s" in running.event("reload refused")["reason"]
        with AttestedClient(running.port("mqtts")) as client:
            client.attest(after)


SECRETS = """---
[[acl]]
effect = "deny"
access = "{access}"
pattern = "secret/#"
[[acl]]
effect = "allow"
access = "both"
pattern = "#"
"""


def half_way(client: AttestedClient, settings: ClientSettings) -> bytes:
    """Takes and judges the broker's evidence; returns what says so, which is not sent yet."""
    exchange = ClientExchange(
        facts_of(client.tls, "client"),
        settings,
        context=secrets.token_bytes(32),
        now=datetime.now(UTC),
    )
    client.write_bytes(exchange.to_send())
    while exchange.outcome is None:
        exchange.receive(client.tls.recv(exchange.needed))
    return exchange.to_send()


def test_a_reload_ends_whoever_another_configuration_admitted(world: World) -> None:
    """Else the new rules give a client's topics to strangers, with its policy none the wiser, or
    strangers are still there whom the new ones would not have admitted."""
    config = world.config(rest=SECRETS.format(access="both"))
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    with service(*attesting(config)) as running:
        port = running.port("mqtts")
        with (
            AttestedClient(port) as modern,
            AttestedClient(port, version=4) as older,
            AttestedClient(port) as silent,
            AttestedClient(port) as midway,
            AttestedClient(port) as plain,
        ):
            for number, client in enumerate((modern, older)):
                client.attest(settings)
                assert client.connected(f"c{number}").code == 0
            silent.attest(settings)
            accepted = half_way(midway, settings)
            assert plain.connected("plain").code == 0
            # Nothing has changed: nobody ends.
            running.reload()
            running.event("reloaded")
            modern.send(Pingreq())
            assert isinstance(modern.next_packet(), Pingresp)
            world.config(rest=SECRETS.format(access="subscribe"))
            running.reload()
            running.event("reloaded", 2)
            for client in (modern, plain):
                ended = client.next_packet()
                assert isinstance(ended, Disconnect)
                assert ended.code == 0x98
            for client in (modern, older, silent, plain):
                assert client.closed()
            midway.write_bytes(accepted)
            midway.send(Connect(client_id="midway"))
            assert midway.closed()
        line = running.event("handshake refused")
        assert "configuration" in line["reason"]
        codes = {
            line["client"]: line["code"]
            for line in running.entries()
            if line["event"] == "client disconnected" and line["by"] == "broker"
        }
        assert codes == {"c0": "0x98", "c1": "0x98", "plain": "0x98"}
        assert not any(line.get("client") == "midway" for line in running.entries())


def test_a_certificate_with_evidence_is_evidence(world: World) -> None:
    """Nobody knows who has judged it: all connections of the listener end."""
    config = world.config("ra_tls = true")
    with service(*attesting(config)) as running, AttestedClient(running.port("mqtts")) as client:
        assert client.connected("c").code == 0
        world.config("ra_tls = true", rest="---\n[limits]\nmaximum_qos = 1\n")
        running.reload()
        ended = client.next_packet()
        assert isinstance(ended, Disconnect)
        assert ended.code == 0x98
        running.event("reloaded")
        with AttestedClient(running.port("mqtts")) as again:
            assert again.connected("c").code == 0


def test_pre_shared_keys_with_and_without_attestation(world: World) -> None:
    write(world.folder / "keys", f"{DEVICE.identity}:{DEVICE.key.hex()}\n").chmod(0o600)
    config = write(
        world.folder / "avow.toml",
        '[[listeners]]\nurl = "mqtts://127.0.0.1:0"\npsk_file = "keys"\n'
        'evidence_for = "authorised"\n',
    )
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    offer_key(context, DEVICE)
    with service(*attesting(config)) as running:
        port = running.port("mqtts")
        for attests in (True, False):
            with AttestedClient(port, context) as client:
                require_key(client.tls)
                if attests:
                    client.attest(settings, psk=True)
                assert client.connected("c").code == 0
        assert running.event("client connected", 2)["user"] == "device-7"
        done = subprocess.run(
            [
                *("mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-q", "1"),
                *("--psk", DEVICE.key.hex(), "--psk-identity", DEVICE.identity),
                *("-t", "t", "-m", "x"),
            ],
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with pytest.raises(SSL.Error):
            AttestedClient(port)
        assert DEVICE.key.hex() not in str(running.entries())


def test_a_resumed_session_is_of_no_use(world: World) -> None:
    config = world.config()
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    context = tls_context()
    with service(*attesting(config)) as running:
        with AttestedClient(running.port("mqtts"), context) as first:
            first.attest(settings)
            first.connected("c")
            session = first.tls.get_session()
        assert session is not None
        with AttestedClient(running.port("mqtts"), context, session=session) as second:
            second.attest(settings)  # facts_of refuses a resumed one
            second.connected("c")


def test_tls_1_2_is_refused_evidence(world: World) -> None:
    config = world.config('tls_minimum = "1.2"')
    older = tls_context()
    older.set_max_proto_version(SSL.TLS1_2_VERSION)
    with service(*attesting(config)) as running:
        with AttestedClient(running.port("mqtts"), older) as plain:
            assert plain.connected("c").code == 0
        with AttestedClient(running.port("mqtts"), older) as client:
            client.write_bytes(b"\xa0")
            assert client.read_bytes()[:1] == b"\xa4"
        refused(running, "C1")


def test_ra_tls_puts_the_evidence_into_the_certificate(world: World) -> None:
    config = world.config("ra_tls = true", rest="---\n[attestation]\ncertificate_renewal_s = 1.0\n")
    judge = judge_of(broker_policy("--config", str(config)))
    with service(*attesting(config)) as running:
        seen = []
        for number in (1, 2):
            running.event("certificate with evidence", number)
            with AttestedClient(running.port("mqtts")) as client:
                certificate = client.tls.get_peer_certificate(as_cryptography=True)
                assert certificate is not None
                judged = judge_certificate(certificate, judge, datetime.now(UTC))
                assert judged.verified.claims["role"] == "certificate"
                seen.append(certificate.serial_number)
                # The exchange works over it as well.
                client.attest(ClientSettings(judge=judge))
                assert client.connected("c").code == 0
        assert len(set(seen)) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tee", "nonsense"), ["nonsense", "avow tee"]),
        (("--tee", "auto"), ["vouch", "tpm:", "snp:", "avow tee", "--tee simulated"]),
        (("--client-policy", "absent.toml"), ["absent.toml", "no such file"]),
        (("--psk-file", "absent"), ["absent", "pre-shared keys"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    world: World, options: tuple[str, ...], words: list[str]
) -> None:
    done = avow("broker", "--config", str(world.config()), *options)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr.decode()


def test_a_check_says_once_that_nothing_is_protected(world: World) -> None:
    done = avow("broker", *attesting(world.config()), "--check")
    assert done.returncode == 0
    assert done.stdout.decode().count(SIMULATED) == 1
