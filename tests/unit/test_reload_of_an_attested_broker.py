"""What a reload of each key means for the clients of an attested broker."""

from __future__ import annotations

import enum
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from avow.broker.commands import CommandKind
from avow.broker.config import Configuration, schema_rows
from avow.broker.measured_configuration import configuration_digest
from avow.broker.service import Control
from avow.broker.users import add_user, new_user
from avow.channel.acceptor import Arrival, Door
from avow.channel.attestation import ServerAttestation
from avow.cli.broker_attestation import load_judge
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.attested_peer import policy_text
from avow.testing.pki import Authority
from tests.unit.running_service import Running, running, use_fake_pump

Tables = dict[str, Any]
Change = Callable[[Tables, Path], None]


class Then(enum.Enum):
    """What the reload does."""

    ENDS = "the digest is another: everybody ends before anything of it is in force"
    STAYS = "the digest is the same: everybody stays"
    REFUSED = "the key is read at the start only: nothing has changed"


@dataclass(frozen=True)
class Case:
    """A change of one key."""

    then: Then
    change: Change


def put(place: str, value: object, then: Then = Then.ENDS) -> Case:
    """The key at `table.key` gets this value."""

    def change(tables: Tables, folder: Path) -> None:
        table, _, key = place.rpartition(".")
        target = tables.setdefault(table, {}) if table else tables
        if isinstance(target, list):
            target = target[0]
        target[key] = folder / value.name if isinstance(value, Path) else value

    return Case(then, change)


def write(name: str, content: str, then: Then) -> Case:
    """A file gets another content."""

    def change(_: Tables, folder: Path) -> None:
        (folder / name).write_text(content)

    return Case(then, change)


def renew_certificate(_: Tables, folder: Path) -> None:
    authority = Authority()
    authority.issue_server().write(folder, "server")


def renew_list(_: Tables, folder: Path) -> None:
    shutil.copy(folder / "newer.crl", folder / "clients.crl")


def add_to_ca(_: Tables, folder: Path) -> None:
    with (folder / "ca.pem").open("ab") as file:
        file.write(Authority("strangers").pem())
    (folder / "clients.crl").unlink()
    _["listeners"][0].pop("crl")


def add_bob(_: Tables, folder: Path) -> None:
    add_user(folder / "users", new_user("bob", "b"))


def no_user(tables: Tables, folder: Path) -> None:
    del tables["password_file"]


def move(table: str, key: str) -> Case:
    """The same content in another place."""

    def change(tables: Tables, folder: Path) -> None:
        target = tables[table][0] if table else tables
        moved = folder / f"moved-{target[key].name}"
        shutil.copy(target[key], moved)
        target[key] = moved

    return Case(Then.STAYS, change)


def limit(key: str, value: object) -> Case:
    return put(f"limits.{key}", value)


def forget_certificate(tables: Tables, folder: Path) -> None:
    """With pre-shared keys a listener needs no certificate."""
    for name in ("cert", "key"):
        del tables["listeners"][0][name]


def certify_at_the_start(tables: Tables, folder: Path) -> None:
    forget_certificate(tables, folder)
    tables["listeners"][0]["ra_tls"] = True


STORE = {"directory": Path("store"), "key": "file:store.key"}
RULE = {"effect": "allow", "access": "both", "user": "eve", "pattern": "#"}

CASES: dict[str, list[Case]] = {
    "allow_anonymous": [put("allow_anonymous", True)],
    "password_file": [
        Case(Then.STAYS, add_bob),
        move("", "password_file"),
        Case(Then.ENDS, no_user),
    ],
    "response_prefix": [put("response_prefix", "r/")],
    "web_origins": [put("web_origins", ["https://panel.example"])],
    "web_hosts": [put("web_hosts", ["broker.example"])],
    "idle_timeout_s": [put("idle_timeout_s", 7.0, Then.REFUSED)],
    "handshake_timeout_s": [put("handshake_timeout_s", 7.0)],
    "drain_timeout_s": [put("drain_timeout_s", 7.0, Then.REFUSED)],
    "listeners.url": [put("listeners.url", "mqtts://127.0.0.2:0", Then.REFUSED)],
    "listeners.cert": [Case(Then.STAYS, renew_certificate), Case(Then.ENDS, forget_certificate)],
    "listeners.key": [Case(Then.STAYS, renew_certificate), move("listeners", "key")],
    "listeners.client_ca": [Case(Then.ENDS, add_to_ca), move("listeners", "client_ca")],
    "listeners.require_certificate": [put("listeners.require_certificate", False)],
    "listeners.use_identity_as": [put("listeners.use_identity_as", "san")],
    "listeners.crl": [
        Case(Then.STAYS, renew_list),
        Case(Then.ENDS, lambda tables, _: tables["listeners"][0].pop("crl")),
    ],
    "listeners.tls_minimum": [put("listeners.tls_minimum", "1.2")],
    "listeners.allow_anonymous": [put("listeners.allow_anonymous", True)],
    "listeners.psk_file": [
        write("keys", "eve:" + "07" * 32, Then.STAYS),
        Case(Then.ENDS, lambda tables, _: tables["listeners"][0].pop("psk_file")),
    ],
    "listeners.evidence_for": [put("listeners.evidence_for", "authorised")],
    "listeners.unattested_clients": [put("listeners.unattested_clients", False)],
    "listeners.client_policy": [
        write("policy.toml", policy_text(module=bytes(32)), Then.ENDS),
        move("listeners", "client_policy"),
    ],
    "listeners.require_client_evidence": [put("listeners.require_client_evidence", True)],
    "listeners.ra_tls": [Case(Then.REFUSED, certify_at_the_start)],
    "acl.effect": [put("acl.effect", "deny")],
    "acl.access": [put("acl.access", "both")],
    "acl.user": [put("acl.user", "eve")],
    "acl.anonymous": [Case(Then.ENDS, lambda tables, _: tables["acl"][1].update(anonymous=True))],
    "acl.pattern": [put("acl.pattern", "#")],
    "acl.module": [put("acl.module", "sha256:" + "07" * 32)],
    "acl.tier": [put("acl.tier", "none")],
    "limits.maximum_packet_bytes": [limit("maximum_packet_bytes", 100_000)],
    "limits.receive_maximum": [limit("receive_maximum", 7)],
    "limits.topic_alias_maximum": [limit("topic_alias_maximum", 7)],
    "limits.keep_alive_max_s": [limit("keep_alive_max_s", 7)],
    "limits.session_expiry_max_s": [limit("session_expiry_max_s", 7)],
    "limits.queued_bytes_max": [limit("queued_bytes_max", 70_000)],
    "limits.queued_messages_max": [limit("queued_messages_max", 7)],
    "limits.inflight_max": [limit("inflight_max", 7)],
    "limits.subscriptions_max": [limit("subscriptions_max", 7)],
    "limits.topic_levels_max": [limit("topic_levels_max", 7)],
    "limits.memory_budget_bytes": [
        limit("memory_budget_bytes", 64 << 20),
        put("limits.memory_budget_bytes", 2 << 30, Then.REFUSED),
    ],
    "limits.retained_messages_max": [limit("retained_messages_max", 7)],
    "limits.sys_interval_ms": [limit("sys_interval_ms", 7)],
    "limits.connect_timeout_ms": [limit("connect_timeout_ms", 7000)],
    "limits.maximum_qos": [limit("maximum_qos", 1)],
    "limits.retain_available": [limit("retain_available", False)],
    "limits.wildcard_available": [limit("wildcard_available", False)],
    "limits.subscription_identifiers_available": [
        limit("subscription_identifiers_available", False)
    ],
    "limits.shared_available": [limit("shared_available", False)],
    "limits.topic_alias_out_maximum": [limit("topic_alias_out_maximum", 7)],
    "limits.persist_sessions": [put("limits.persist_sessions", False, Then.REFUSED)],
    "limits.will_delay_max_s": [limit("will_delay_max_s", 7)],
    "limits.denials_explained": [limit("denials_explained", False)],
    "attestation.tee": [put("attestation.tee", "tpm", Then.REFUSED)],
    "attestation.quotes_per_s": [put("attestation.quotes_per_s", 7.0, Then.REFUSED)],
    "attestation.waiting_max": [put("attestation.waiting_max", 7, Then.REFUSED)],
    "attestation.quote_timeout_s": [put("attestation.quote_timeout_s", 7.0, Then.REFUSED)],
    "attestation.endorsements": [
        write("vendors/root.pem", "another", Then.ENDS),
        write("vendors/more.pem", "one more", Then.ENDS),
        write("vendors/list.crl", "renewed", Then.STAYS),
        put("attestation.endorsements", Path("elsewhere"), Then.REFUSED),
    ],
    "attestation.certificate_renewal_s": [
        put("attestation.certificate_renewal_s", 7.0, Then.REFUSED)
    ],
    "provisioning.listen": [
        put("provisioning", {"listen": "127.0.0.1:0", "owner": "sha256:" + "0" * 64}, Then.REFUSED)
    ],
    "provisioning.owner": [
        put("provisioning", {"listen": "127.0.0.1:1", "owner": "sha256:" + "1" * 64}, Then.REFUSED)
    ],
    "login.failure_delay_s": [put("login.failure_delay_s", 0.25)],
    "login.failure_delay_max_s": [put("login.failure_delay_max_s", 2.0)],
    "login.pending_max": [put("login.pending_max", 7)],
    "login.workers": [put("login.workers", 3, Then.REFUSED)],
    "store.directory": [put("store", STORE, Then.REFUSED)],
    "store.key": [put("store", STORE | {"key": "file:other.key"}, Then.REFUSED)],
    "store.also_key": [put("store", STORE | {"also_key": "file:other.key"}, Then.REFUSED)],
    "store.durability": [put("store", STORE | {"durability": "none"}, Then.REFUSED)],
    "store.interval_ms": [put("store", STORE | {"interval_ms": 7}, Then.REFUSED)],
    "store.anchor": [put("store", STORE | {"anchor": "tpm:0x01800042"}, Then.REFUSED)],
    "store.anchor_interval_s": [put("store", STORE | {"anchor_interval_s": 7.0}, Then.REFUSED)],
    "log.format": [put("log.format", "human", Then.REFUSED)],
    "log.level": [put("log.level", "error", Then.REFUSED)],
    "metrics.host": [put("metrics", {"host": "127.0.0.2", "port": 0}, Then.REFUSED)],
    "metrics.port": [put("metrics", {"port": 0}, Then.REFUSED)],
}


def key_of(table: str, key: str) -> str:
    return f"{table.strip('[]')}.{key}" if table else key


def tables_in(folder: Path) -> Tables:
    """A configuration in which every file stands, and the files."""
    authority = Authority()
    authority.issue_server().write(folder, "server")
    authority.write(folder / "ca.pem")
    for name in ("clients.crl", "newer.crl"):
        (folder / name).write_bytes(authority.revocation_list([]))
    (folder / "keys").write_text("device:" + "5a" * 32)
    (folder / "keys").chmod(0o600)
    (folder / "policy.toml").write_text(policy_text())
    for name in ("vendors", "elsewhere"):
        (folder / name).mkdir()
    (folder / "vendors" / "root.pem").write_text("a root")
    add_user(folder / "users", new_user("alice", "a"))
    return {
        "password_file": folder / "users",
        "listeners": [
            {
                "url": "mqtts://127.0.0.1:0",
                "cert": folder / "server.pem",
                "key": folder / "server.key",
                "client_ca": folder / "ca.pem",
                "crl": folder / "clients.crl",
                "psk_file": folder / "keys",
                "client_policy": folder / "policy.toml",
            }
        ],
        "acl": [
            {
                "effect": "allow",
                "access": "publish",
                "user": "alice",
                "pattern": "secret/#",
                "module": "sha256:" + "5a" * 32,
                "tier": "warning",
            },
            {"effect": "deny", "access": "both", "pattern": "#"},
        ],
        "attestation": {"tee": "simulated", "endorsements": folder / "vendors"},
    }


def attest(digest: bytes) -> ServerAttestation:
    made = ServerAttestation(
        SimulatedAttester(),
        module=bytes(32),
        runtime=bytes(32),
        quotes_per_s=1000,
        waiting_max=10,
        quote_timeout_s=5,
    )
    made.measure(digest, datetime.now(UTC))
    return made


def commands(made: Running) -> list[int]:
    return [made.pump.commands.get()[0] for _ in range(made.pump.commands.qsize())]


@pytest.fixture(autouse=True)
def _fake_pump(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_pump(monkeypatch)


def test_every_key_has_its_case() -> None:
    keys = [key_of(row.table, row.key) for row in schema_rows()]
    assert len(keys) > 60
    assert sorted(CASES) == sorted(keys)


@pytest.mark.parametrize(
    ("key", "number"), [(key, number) for key in CASES for number in range(len(CASES[key]))]
)
def test_reload_of(key: str, number: int, tmp_path: Path) -> None:
    case = CASES[key][number]
    tables = tables_in(tmp_path)
    reread: list[Callable[[], Configuration]] = [lambda: Configuration(**tables)]
    with running(lambda: reread[0](), load_judge=load_judge, attest=attest) as made:
        made.line("listening")
        old = configuration_digest(reread[0]())
        commands(made)
        case.change(tables, tmp_path)
        made.controls.put(Control.RELOAD)
        if case.then is Then.REFUSED:
            assert "restart" in made.line("reload refused")["reason"]
            assert commands(made) == []
            assert made.service._measured == old
            return
        made.line("reloaded")
        new = configuration_digest(reread[0]())
        sent = commands(made)
        if case.then is Then.ENDS:
            # First of all: what follows is not in force yet when the core ends them.
            assert sent[0] == CommandKind.CONFIGURATION_CHANGES
            assert new != old
        else:
            assert CommandKind.CONFIGURATION_CHANGES not in sent
            assert new == old
        assert made.service._measured == new


def test_no_evidence_counts_before_all_of_the_new_configuration_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the old nor of the new one: by that, the old rules would let somebody in."""
    tables = tables_in(tmp_path)
    with running(lambda: Configuration(**tables), load_judge=load_judge, attest=attest) as made:
        made.line("listening")
        service = made.service
        old = service._measured
        assert old is not None
        seen: list[tuple[str, bytes | None]] = []

        def watched(owner: object, name: str) -> None:
            original = getattr(owner, name)

            def call(*given: Any) -> Any:
                seen.append((name, service._measured))
                return original(*given)

            monkeypatch.setattr(owner, name, call)

        watched(service._authenticator, "reload")
        watched(service, "_send_settings")
        watched(service._certificates, "renew_now")
        tables["acl"] = tables["acl"][1:]
        made.controls.put(Control.RELOAD)
        made.line("reloaded")
        new = service._measured
        assert new not in (None, old)
        assert seen == [("reload", None), ("_send_settings", None), ("renew_now", new)]
        monkeypatch.undo()
        use_fake_pump(monkeypatch)


def arrive(made: Running, door: Door, configuration: bytes | None) -> bool:
    """Whether a plain connection that was accepted in this configuration comes in."""
    ours, theirs = socket.socketpair()
    with theirs:
        made.service._admit(Arrival(ours.detach(), door, "[::1]:1", configuration))
        if made.pump.added.empty():
            assert theirs.recv(1) == b""
            return False
        fd, _ = made.pump.added.get()
        os.close(fd)
        return True


def test_a_connection_of_another_configuration_does_not_come_in(tmp_path: Path) -> None:
    tables = tables_in(tmp_path)
    with running(lambda: Configuration(**tables), load_judge=load_judge, attest=attest) as made:
        made.line("listening")
        ((_, door),) = made.service._doors
        old = door.configuration
        assert old is not None
        assert arrive(made, door, old)
        tables["allow_anonymous"] = True
        made.controls.put(Control.RELOAD)
        made.line("reloaded")
        assert door.configuration == made.service._measured != old
        assert not arrive(made, door, old)
        assert "the configuration has changed" in made.line("handshake refused")["reason"]
        assert arrive(made, door, door.configuration)


def test_without_attestation_everybody_stays(tmp_path: Path) -> None:
    tables = tables_in(tmp_path)
    del tables["attestation"], tables["listeners"][0]["client_policy"]
    for rule in tables["acl"]:
        rule.pop("module", None), rule.pop("tier", None)
    with running(lambda: Configuration(**tables)) as made:
        made.line("listening")
        commands(made)
        ((_, door),) = made.service._doors
        tables["allow_anonymous"] = True
        made.controls.put(Control.RELOAD)
        made.line("reloaded")
        assert CommandKind.CONFIGURATION_CHANGES not in commands(made)
        assert door.configuration is None
        assert arrive(made, door, None)


def test_the_doors_change_after_everybody_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger whom the new configuration lets in must not find the others there."""
    tables = tables_in(tmp_path)
    with running(lambda: Configuration(**tables), load_judge=load_judge, attest=attest) as made:
        made.line("listening")
        ((_, door),) = made.service._doors
        context = door.context
        seen = []

        def command(blob: bytes) -> None:
            if blob[0] == CommandKind.CONFIGURATION_CHANGES:
                seen.append((door.allow_anonymous, door.context is context))

        monkeypatch.setattr(made.pump, "command", command)
        tables["allow_anonymous"] = True
        made.controls.put(Control.RELOAD)
        made.line("reloaded")
        assert seen == [(False, True)]
        assert (door.allow_anonymous, door.context is context) == (True, False)
        monkeypatch.undo()
        use_fake_pump(monkeypatch)
