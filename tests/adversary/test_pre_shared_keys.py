"""Connections with pre-shared keys: all the attacks again, without certificates to hold on to.

Every device that knows a key can be the broker towards another one that knows it. What ties the
evidence to a connection is then the exporter alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha512

import pytest
from OpenSSL import SSL

from avow.channel import binding
from avow.channel.psk import (
    PreSharedKey,
    PreSharedKeys,
    key_identity,
    offer_key,
    require_key,
    serve_keys,
)
from avow.channel.session import TlsFacts, facts_of
from avow.errors import AvowError, UntrustedError
from avow.evidence.claims import Role
from avow.testing.attested_channel import handshake_in_memory
from avow.testing.pki import Authority, Credential
from tests.adversary.removal import Defence, removed
from tests.adversary.scene import World, check_of, stopped_by_each
from tests.adversary.test_connection_attacks import (
    ANSWERS,
    BOUND,
    FINISHED,
    KEY,
    NONCE,
    POLICY,
    ROLE,
    SIGNATURE,
    nonce_of_the_servers_choosing,
    of_the_other_role,
    other_configuration,
    other_connection_of_the_same_broker,
    other_module,
    other_runtime,
    path_of_another_batch,
    path_of_another_leaf,
    reflected_authenticator,
    relayed,
    relayed_and_signed_anew,
    replayed,
    stripped,
    swapped_claims,
)

SHARED = PreSharedKey("device-7", bytes(range(32)))
Ends = tuple[SSL.Connection, SSL.Connection]


def server_context(keys: PreSharedKeys, certificate: Credential | None = None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"avow")
    serve_keys(context, keys)
    if certificate is not None:
        context.use_certificate(certificate.certificate)
        context.use_privatekey(certificate.key)
    return context


def client_context(key: PreSharedKey = SHARED) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    offer_key(context, key)
    return context


@dataclass
class KeyWorld(World):
    """The same broker and client, who share a key; as does whoever sits in between."""

    server: SSL.Context = field(
        default_factory=lambda: server_context(PreSharedKeys({b"device-7": SHARED}))
    )

    def connection(self, certificate: Credential | None = None) -> tuple[TlsFacts, TlsFacts]:
        """A connection by the key: the client's facts and the server's. No certificate."""
        client, server = handshake_in_memory(client_context(), self.server)
        require_key(client)
        assert key_identity(server) == SHARED.identity
        self._kept = [*getattr(self, "_kept", []), client, server]
        return (
            facts_of(client, "client", external_psk=True),
            facts_of(server, "server", external_psk=True),
        )


@pytest.mark.parametrize(
    ("attack", "defences"),
    [
        (replayed, [ANSWERS, FINISHED, SIGNATURE, NONCE, BOUND]),
        (relayed, [FINISHED, SIGNATURE, BOUND]),
        (relayed_and_signed_anew, [KEY, BOUND]),
        (other_connection_of_the_same_broker, [BOUND]),
        (reflected_authenticator, [ANSWERS, FINISHED, SIGNATURE, NONCE, ROLE, BOUND]),
        (of_the_other_role, [ROLE, BOUND]),
        (swapped_claims, [BOUND]),
        (nonce_of_the_servers_choosing, [NONCE, BOUND]),
        (path_of_another_leaf, [BOUND]),
        (path_of_another_batch, [BOUND]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_same_checks_hold(
    attack: Callable[[World], AvowError | None], defences: list[Defence]
) -> None:
    stopped_by_each(attack, defences, in_the_end=True, make_world=KeyWorld)


@pytest.mark.parametrize(
    "attack", [other_module, other_runtime, other_configuration], ids=["module", "runtime", "conf"]
)
def test_the_same_policy_holds(attack: Callable[[World], AvowError | None]) -> None:
    once_more = Defence("C11", "avow.channel.exchange", "PRESENT", inside="_finish")
    stopped_by_each(attack, [POLICY, once_more], in_the_end=True, make_world=KeyWorld)


def test_to_know_the_key_is_no_evidence() -> None:
    """Stripped: the server has the key and shows nothing."""
    present = Defence("C11", "avow.channel.exchange", "PRESENT", inside="_judge")
    stopped_by_each(stripped, [present], in_the_end=False, make_world=KeyWorld)


def test_the_exporter_is_what_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody with the key, who has even the instance's key, passes on the genuine evidence of his
    own connection to the broker. With a binder that leaves out the exporter he is believed."""
    assert check_of(other_connection_of_the_same_broker(KeyWorld())) == "E7"

    def without_exporter(
        sender: Role, *, sender_spki: bytes, receiver_spki: bytes, key_spki: bytes, exported: bytes
    ) -> bytes:
        assert sender_spki == receiver_spki == b"", "with a key, TLS shows no certificates"
        return sha512(bytes([sender]) + key_spki).digest()

    monkeypatch.setattr(binding, "binder", without_exporter)
    assert other_connection_of_the_same_broker(KeyWorld()) is None


@pytest.mark.parametrize("with_certificate", [False, True])
def test_a_server_that_does_not_know_the_key(with_certificate: bool) -> None:
    """Without a certificate there is no connection; with one, `require_key` ends it."""
    certificate = Authority().issue_server() if with_certificate else None
    impostor = server_context(PreSharedKeys({}), certificate)
    careless = client_context()
    # A client whose owner has switched off what `offer_key` has set.
    careless.set_verify(SSL.VERIFY_NONE)
    if not with_certificate:
        with pytest.raises(SSL.Error):
            handshake_in_memory(careless, impostor)
        return
    client, _ = handshake_in_memory(careless, impostor)
    with pytest.raises(UntrustedError, match="pre-shared key"):
        require_key(client)
    with removed([Defence("", "avow.channel.psk", inside="require_key")]):
        require_key(client)


def test_a_server_that_does_not_know_the_key_meets_a_careful_client() -> None:
    impostor = server_context(PreSharedKeys({}), Authority().issue_server())
    with pytest.raises(SSL.Error):
        handshake_in_memory(client_context(), impostor)


@pytest.mark.parametrize(
    "other", [PreSharedKey("device-7", bytes(32)), PreSharedKey("device-8", SHARED.key)]
)
def test_another_key_or_another_name(other: PreSharedKey) -> None:
    server = server_context(PreSharedKeys({b"device-7": SHARED}))
    with pytest.raises(SSL.Error):
        handshake_in_memory(client_context(other), server)


def test_a_key_is_not_taken_for_a_resumed_session() -> None:
    """OpenSSL calls both resumed. Who does not say that there was a key is refused (C2)."""
    client, server = handshake_in_memory(
        client_context(), server_context(PreSharedKeys({b"device-7": SHARED}))
    )
    for connection, end in ((client, "client"), (server, "server")):
        with pytest.raises(UntrustedError) as caught:
            facts_of(connection, end)  # type: ignore[arg-type]
        assert check_of(caught.value) == "C2"
