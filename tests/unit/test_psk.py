"""Pre-shared keys: the file, the handshake, and that a resumed session is not taken for one."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.bindings._rust import _openssl
from OpenSSL import SSL

from avow.channel import psk
from avow.channel.psk import (
    PreSharedKey,
    PreSharedKeys,
    key_identity,
    load_pre_shared_keys,
    offer_key,
    require_key,
    serve_keys,
)
from avow.channel.tls import ServerTls, server_context, session_reused
from avow.errors import MalformedError, UnavailableError, UntrustedError
from avow.testing.pki import Authority

SECRET = bytes(range(100, 132))
DEVICE = PreSharedKey("device-7", SECRET)
KEYS = PreSharedKeys(
    {b"device-7": DEVICE, "geraet-ä".encode(): PreSharedKey("geraet-ä", b"k" * 16)}
)


def context_without_certificate() -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"avow")
    return context


@pytest.fixture
def server() -> SSL.Context:
    context = context_without_certificate()
    serve_keys(context, KEYS)
    return context


def certified(folder: Path) -> SSL.Context:
    certificate, key = Authority().issue_server().write(folder, "server")
    return server_context(ServerTls(certificate, key), datetime.now(UTC))


def client_with(key: PreSharedKey) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    offer_key(context, key)
    return context


def shake(
    server: SSL.Context, client: SSL.Context, session: SSL.Session | None = None
) -> tuple[SSL.Connection, SSL.Connection]:
    """Both ends of a handshake over memory, and what the server sends after it."""
    ends = SSL.Connection(client, None), SSL.Connection(server, None)
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    if session is not None:
        ends[0].set_session(session)
    for _ in range(4):
        for end, other in (ends, ends[::-1]):
            try:
                end.do_handshake()
                end.recv(1)
            except SSL.WantReadError:
                pass
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(end.bio_read(1 << 16))
    return ends


@pytest.mark.parametrize("key", list(KEYS.by_identity.values()))
def test_a_key_of_the_file_authenticates_both_sides(server: SSL.Context, key: PreSharedKey) -> None:
    client_end, server_end = shake(server, client_with(key))
    require_key(client_end)
    assert key_identity(server_end) == key.identity
    assert server_end.get_protocol_version() == SSL.TLS1_3_VERSION
    label = b"EXPORTER-test"
    assert client_end.export_keying_material(label, 32, b"c") == server_end.export_keying_material(
        label, 32, b"c"
    )


def test_the_key_exchange_is_ephemeral(server: SSL.Context) -> None:
    """psk_dhe_ke: without a group there was no key exchange besides the key."""
    client_end, server_end = shake(server, client_with(DEVICE))
    assert client_end.get_group_name() is not None
    assert server_end.get_group_name() == client_end.get_group_name()


@pytest.mark.parametrize(
    "key",
    [
        PreSharedKey("device-7", SECRET[:-1] + b"\0"),
        PreSharedKey("device-7", SECRET[:-1]),
        PreSharedKey("device-8", SECRET),
        PreSharedKey("device-7\0", SECRET),
        PreSharedKey("device-", SECRET),
    ],
)
def test_another_key_or_identity_is_refused(server: SSL.Context, key: PreSharedKey) -> None:
    with pytest.raises(SSL.Error):
        shake(server, client_with(key))


def test_a_client_with_a_key_does_not_take_a_certificate_instead(tmp_path: Path) -> None:
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        shake(certified(tmp_path), client_with(DEVICE))


def test_a_client_that_was_told_to_trust_the_certificate_still_misses_the_key(
    tmp_path: Path,
) -> None:
    client = client_with(DEVICE)
    client.set_verify(SSL.VERIFY_NONE)
    client_end, server_end = shake(certified(tmp_path), client)
    assert key_identity(server_end) is None
    with pytest.raises(UntrustedError, match="pre-shared key"):
        require_key(client_end)


def test_a_server_with_both_serves_both(tmp_path: Path) -> None:
    server = certified(tmp_path)
    serve_keys(server, KEYS)
    assert key_identity(shake(server, client_with(DEVICE))[1]) == "device-7"
    ordinary = SSL.Context(SSL.TLS_CLIENT_METHOD)
    _, server_end = shake(server, ordinary)
    assert server_end.get_protocol_version() == SSL.TLS1_3_VERSION
    assert key_identity(server_end) is None


def test_a_second_hello_of_the_client_finds_the_key_again(server: SSL.Context) -> None:
    """HelloRetryRequest: the callback runs twice."""
    _openssl.lib.SSL_CTX_set1_curves_list(server._context, b"P-384")
    client = client_with(DEVICE)
    _openssl.lib.SSL_CTX_set1_curves_list(client._context, b"X25519:P-384")
    client_end, server_end = shake(server, client)
    require_key(client_end)
    assert key_identity(server_end) == "device-7"


def test_a_resumed_session_is_no_key(tmp_path: Path) -> None:
    """OpenSSL says the same of both; only the callback tells them apart."""
    certificate, key = Authority().issue_server().write(tmp_path, "server")
    lenient = SSL.Context(SSL.TLS_SERVER_METHOD)
    lenient.set_min_proto_version(SSL.TLS1_3_VERSION)
    lenient.use_certificate_file(str(certificate))
    lenient.use_privatekey_file(str(key))
    lenient.set_session_id(b"lenient")
    serve_keys(lenient, KEYS)
    client = SSL.Context(SSL.TLS_CLIENT_METHOD)
    first, _ = shake(lenient, client)
    _, server_end = shake(lenient, client, first.get_session())
    assert session_reused(server_end)
    assert key_identity(server_end) is None


def test_a_ticket_after_a_key_is_useless(
    server: SSL.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_with(DEVICE)
    first, _ = shake(server, client)
    monkeypatch.setitem(psk._server_keys, server, PreSharedKeys({}))
    with pytest.raises(SSL.Error):
        shake(server, client, first.get_session())


def test_the_keys_of_a_context_are_its_own(server: SSL.Context) -> None:
    other = context_without_certificate()
    serve_keys(other, PreSharedKeys({b"x": PreSharedKey("x", b"y" * 32)}))
    assert key_identity(shake(server, client_with(DEVICE))[1]) == "device-7"
    with pytest.raises(SSL.Error):
        shake(other, client_with(DEVICE))


def _run_client(server: SSL.Context, *command: str) -> tuple[str | None, bytes, str]:
    """Has a foreign program connect; gives identity, its first bytes, and what it printed."""
    got: list[tuple[str | None, bytes]] = []

    def serve(listening: socket.socket) -> None:
        sock, _ = listening.accept()
        with sock:
            end = SSL.Connection(server, sock)
            end.set_accept_state()
            try:
                end.do_handshake()
                got.append((key_identity(end), end.recv(100)))
            except SSL.Error:
                got.append((None, b""))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        done = subprocess.run(
            [part.replace("PORT", port) for part in command],
            input=b"hello\n",
            capture_output=True,
            timeout=20,
            check=False,
        )
        thread.join()
    return (*got[0], done.stdout.decode("utf-8", "replace"))


S_CLIENT = ("openssl", "s_client", "-connect", "127.0.0.1:PORT", "-psk_identity", "device-7")


def test_openssl_s_client_comes_in(server: SSL.Context) -> None:
    identity, content, printed = _run_client(
        server, *S_CLIENT, "-psk", SECRET.hex(), "-tls1_3", "-allow_no_dhe_kex"
    )
    assert (identity, content) == ("device-7", b"hello\n")
    # Although it offered to do without.
    assert "Temp Key:" in printed or "group:" in printed


def test_tls_1_2_with_a_key_is_refused(tmp_path: Path) -> None:
    """Even where TLS 1.2 is spoken, keys belong to TLS 1.3 only."""
    certificate, key = Authority().issue_server().write(tmp_path, "server")
    server = server_context(ServerTls(certificate, key, minimum="1.2"), datetime.now(UTC))
    serve_keys(server, KEYS)
    identity, _, _ = _run_client(
        server, *S_CLIENT, "-psk", SECRET.hex(), "-tls1_2", "-cipher", "PSK"
    )
    assert identity is None


def test_mosquitto_s_client_comes_in(server: SSL.Context) -> None:
    assert shutil.which("mosquitto_pub"), "the tests need mosquitto-clients (see .ci/run)"
    identity, content, _ = _run_client(
        server,
        *("mosquitto_pub", "-h", "127.0.0.1", "-p", "PORT", "--psk-identity", "device-7"),
        *("--psk", SECRET.hex(), "-t", "a", "-m", "b"),
    )
    assert identity == "device-7"
    assert content[:1] == b"\x10"


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "psk"
    path.write_text(f"# devices\n\ndevice-7:{SECRET.hex()}\ngeraet-ä:{'6B' * 16}\n")
    keys = load_pre_shared_keys(path)
    assert len(keys) == 2
    assert keys.of("device-7") == DEVICE
    assert keys.of("geraet-ä") == PreSharedKey("geraet-ä", b"k" * 16)
    assert keys.of("nobody") is None


@pytest.mark.parametrize(
    "line",
    [
        "no colon",
        f":{SECRET.hex()}",
        f"a:b:{SECRET.hex()}",
        "a:xyz",
        f"a:{SECRET.hex()}0",
        f"a:{SECRET[:15].hex()}",
        "a:",
        f"a:{'00' * 65}",
        f"a\tb:{SECRET.hex()}",
        f"{'ä' * 65}:{SECRET.hex()}",
        f"twice:{SECRET.hex()}\ntwice:{SECRET.hex()}",
    ],
)
def test_a_line_that_is_none_is_refused_without_its_key(tmp_path: Path, line: str) -> None:
    path = tmp_path / "psk"
    path.write_text("# first\n" + line + "\n")
    with pytest.raises(MalformedError, match=r"line [23] of .*psk") as caught:
        load_pre_shared_keys(path)
    assert SECRET[:8].hex() not in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="pre-shared keys"):
        load_pre_shared_keys(tmp_path / "absent")


def test_keys_are_not_shown() -> None:
    assert SECRET.hex() not in repr(DEVICE) + repr(KEYS)
    assert repr(SECRET) not in repr(DEVICE) + repr(KEYS)
