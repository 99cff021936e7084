"""What `--check`, the start and a reload look at before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from avow.broker.config import Attestation, Configuration, Listener
from avow.broker.measured_configuration import configuration_digest
from avow.broker.prepared import prepare
from avow.broker.users import add_user, new_user
from avow.channel.judge import Judge
from avow.errors import MalformedError, UnavailableError, UntrustedError
from avow.testing.attested_channel import judge
from avow.testing.pki import DAY, Authority

NOW = datetime.now(UTC)


def listen(url: str, **keys: Any) -> Configuration:
    top = {name: keys.pop(name) for name in ("password_file",) if name in keys}
    if "anonymous_everywhere" in keys:
        top["allow_anonymous"] = keys.pop("anonymous_everywhere")
    return Configuration(listeners=[Listener(url=url, **keys)], **top)


@pytest.fixture
def tls_keys(tmp_path: Path) -> dict[str, Any]:
    authority = Authority()
    certificate, key = authority.issue_server().write(tmp_path, "server")
    return {"cert": certificate, "key": key, "client_ca": authority.write(tmp_path / "ca.pem")}


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    add_user(path, new_user("alice", "a"))
    return path


def admits(configuration: Configuration) -> bool:
    return prepare(configuration, NOW).listeners[0].allow_anonymous


def test_loopback_is_anonymous_until_there_is_a_way_to_log_in(password_file: Path) -> None:
    assert admits(listen("mqtt://127.0.0.1")) is True
    assert admits(listen("mqtt://[::1]")) is True
    assert admits(listen("mqtt://127.0.0.1", password_file=password_file)) is False


def test_a_pre_shared_key_is_a_way_to_log_in(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("device:" + "5a" * 32)
    keys.chmod(0o600)
    configuration = listen("mqtts://0.0.0.0", psk_file=keys)
    prepared = prepare(configuration, NOW)
    assert not prepared.warnings
    assert not prepared.listeners[0].allow_anonymous
    with pytest.raises(MalformedError, match="way to log in"):
        prepare(listen("mqtts://0.0.0.0", psk_file=keys, use_identity_as="none"), NOW)
    keys.chmod(0o644)
    keys.write_text("")
    readable, empty = prepare(configuration, NOW).warnings
    assert "pre-shared keys" in readable
    assert "holds no key" in empty


@pytest.mark.parametrize(
    "keys",
    [{"ra_tls": True}, {"evidence_for": "authorised"}, {"unattested_clients": False}],
)
def test_promises_that_need_a_platform_are_refused_without_one(
    tls_keys: dict[str, Any], keys: dict[str, Any]
) -> None:
    if "ra_tls" in keys:
        tls_keys = {"client_ca": tls_keys["client_ca"]}
    configuration = listen("mqtts://127.0.0.1", **tls_keys, **keys)
    with pytest.raises(MalformedError, match="--tee"):
        prepare(configuration, NOW)
    attested = configuration.model_copy(update={"attestation": Attestation(tee="simulated")})
    (listener,) = prepare(attested, NOW).listeners
    assert (listener.context is None) == (listener.context_with is not None)


def test_a_platform_without_tls_is_worth_a_warning() -> None:
    configuration = listen("mqtt://127.0.0.1").model_copy(
        update={"attestation": Attestation(tee="simulated")}
    )
    assert ["nobody can ask" in each for each in prepare(configuration, NOW).warnings] == [True]


def test_the_policy_that_is_judged_by_is_the_one_that_is_measured(
    tls_keys: dict[str, Any], tmp_path: Path
) -> None:
    """A host that swaps the file between the two readings gains nothing."""
    clients = tmp_path / "clients.toml"
    clients.write_text("first")
    configuration = listen("mqtts://127.0.0.1", **tls_keys, client_policy=clients)
    measured = configuration_digest(configuration)
    seen = []

    def load_judge(
        policy: Path, content: bytes, *, endorsements: Path | None, anchors: Sequence[bytes]
    ) -> Judge:
        seen.append(content)
        policy.write_text("swapped")
        return judge()

    prepared = prepare(configuration, NOW, load_judge=load_judge)
    assert seen == [b"first"]
    assert prepared.digest == measured != configuration_digest(configuration)
    assert prepared.listeners[0].judge is not None


def test_other_addresses_have_to_ask_for_it(password_file: Path) -> None:
    with pytest.raises(MalformedError, match="which other machines can reach") as caught:
        prepare(listen("mqtt://0.0.0.0"), NOW)
    for word in ("mqtt://0.0.0.0", "avow user add", "--allow-anonymous", "--client-ca"):
        assert word in str(caught.value)
    assert admits(listen("mqtt://0.0.0.0", allow_anonymous=True)) is True
    assert admits(listen("mqtt://0.0.0.0", anonymous_everywhere=True)) is True
    assert admits(listen("mqtt://0.0.0.0", password_file=password_file)) is False


def test_the_listener_s_own_word_comes_first(password_file: Path) -> None:
    configuration = listen(
        "mqtt://127.0.0.1",
        allow_anonymous=False,
        anonymous_everywhere=True,
        password_file=password_file,
    )
    assert admits(configuration) is False


def test_nobody_could_come_in() -> None:
    with pytest.raises(MalformedError, match="a way to log in"):
        prepare(listen("mqtt://127.0.0.1", allow_anonymous=False), NOW)


def test_certificates_are_a_way_to_log_in(tls_keys: dict[str, Any]) -> None:
    assert admits(listen("mqtts://0.0.0.0", **tls_keys)) is False
    with pytest.raises(MalformedError, match="a way to log in"):
        prepare(listen("mqtts://0.0.0.0", use_identity_as="none", **tls_keys), NOW)


def test_every_file_is_read(tls_keys: dict[str, Any], tmp_path: Path) -> None:
    for name in tls_keys:
        broken = {**tls_keys, name: tmp_path / "none"}
        with pytest.raises(UnavailableError, match="none"):
            prepare(listen("mqtts://127.0.0.1", **broken), NOW)
    with pytest.raises(UnavailableError, match="password file"):
        prepare(listen("mqtt://127.0.0.1", password_file=tmp_path / "none"), NOW)
    with pytest.raises(UntrustedError, match="expired"):
        prepare(listen("mqtts://127.0.0.1", **tls_keys), NOW + 2 * DAY)


def test_warnings(tls_keys: dict[str, Any], tmp_path: Path) -> None:
    empty = tmp_path / "users"
    empty.touch(mode=0o644)
    tls_keys["key"].chmod(0o644)
    configuration = Configuration(
        listeners=[
            Listener(url="mqtt://0.0.0.0"),
            Listener(url="mqtts://127.0.0.1", **tls_keys),
        ],
        password_file=empty,
    )
    words = " ".join(prepare(configuration, NOW).warnings)
    assert "holds no user" in words
    assert f"other users can read {empty}" in words
    assert "mqtt://0.0.0.0:1883 is not encrypted" in words
    assert f"other users can read the private key {tls_keys['key']}" in words


def test_nothing_to_warn_of(tls_keys: dict[str, Any], password_file: Path) -> None:
    configuration = listen("mqtts://0.0.0.0", password_file=password_file, **tls_keys)
    assert prepare(configuration, NOW).warnings == []
