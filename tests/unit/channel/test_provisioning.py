"""Both ends of provisioning over a real connection, and the owner's file."""

from __future__ import annotations

import queue
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from OpenSSL import SSL

from avow.channel import provisioning
from avow.channel.judge import Judge
from avow.channel.provisioning import (
    Offer,
    Provisioned,
    parse_owner,
    parse_place,
    provisioned_name,
)
from avow.channel.provisioning_file import load_secrets
from avow.channel.provisioning_messages import Secrets, Taken, encode
from avow.channel.provisioning_owner import hand_over, new_owner_key, parse_owner_key
from avow.channel.provisioning_stream import ProvisioningStream
from avow.errors import (
    AvowError,
    DeniedError,
    MalformedError,
    StorageError,
    UnavailableError,
    UntrustedError,
)
from avow.policy.policy_file import parse_policy
from avow.tee.simulated.verifier import SimulatedVerifier
from avow.testing.pki import Authority
from avow.testing.provisioning_node import PATIENCE_S, POLICY, Node, provisioning_node

OWNER = new_owner_key()
KEY = bytes(range(32))
SECRETS = Secrets({"store": KEY}, {"users": b"alice"})


def judge() -> Judge:
    return Judge({"simulated": SimulatedVerifier()}, parse_policy(POLICY, name="policy.toml"))


def provision(node: Node, secrets: Secrets = SECRETS) -> Taken:
    now = datetime.now(UTC)
    return hand_over("127.0.0.1", node.port, OWNER, judge(), secrets, now).taken


def check_of(error: AvowError) -> str:
    assert error.finding is not None, error
    return error.finding.check.number


def test_what_is_handed_over_arrives_whole() -> None:
    large = Secrets(
        {f"key{number}": bytes([number]) * 32 for number in range(8)},
        {"large": bytes(range(256)) * 2048, "empty": b""},
    )
    with provisioning_node(OWNER) as node:
        assert provision(node, large) == Taken(tuple(sorted(large.keys)), ("empty", "large"))
        held = node.offers.get(timeout=PATIENCE_S)
        assert (held.keys, held.files) == (large.keys, large.files)


def test_files_are_replaced_by_name_and_keys_stay() -> None:
    with provisioning_node(OWNER) as node:
        provision(node)
        assert provision(node, Secrets({"store": KEY}, {"psk": b"x"})).files == ("psk",)
        with pytest.raises(DeniedError, match="PR3"):
            provision(node, Secrets({"store": bytes(32)}, {"users": b"bob"}))
        with pytest.raises(DeniedError, match="PR3"):
            provision(node, Secrets({"another": KEY}, {}))
        provision(node, Secrets({}, {"users": b"carol"}))
        held = [node.offers.get(timeout=PATIENCE_S) for _ in range(3)][-1]
        assert node.offers.empty()
        assert held.keys == {"store": KEY}
        assert held.files == {"users": b"carol", "psk": b"x"}


def test_what_cannot_be_used_leaves_all_as_it_was_and_the_owner_reads_why() -> None:
    def use(offer: Offer) -> None:
        if b"bad" in offer.provisioned.files.values():
            offer.refused(StorageError("expected a good file, got a bad one; write another"))
        else:
            offer.taken()

    with provisioning_node(OWNER, use=use) as node:
        with pytest.raises(UnavailableError, match="expected a good file") as caught:
            provision(node, Secrets({"store": bytes(32)}, {"users": b"bad"}))
        assert check_of(caught.value) == "PR5"
        # Nothing was taken, so this is still the first time.
        assert provision(node).keys == ("store",)
        node.offers.get(timeout=PATIENCE_S)
        held = node.offers.get(timeout=PATIENCE_S)
        assert held.keys == {"store": KEY}


def test_an_owner_that_says_nothing_does_not_keep_the_node_for_ever() -> None:
    """After its evidence was accepted."""
    with provisioning_node(OWNER, message_timeout_s=0.2) as node:

        def stay_silent(_: object) -> None:
            # In time for the exchange and too late for the message.
            assert node.refusal()[0] == "PR4"

        with pytest.raises(UnavailableError):
            hand_over(
                "127.0.0.1",
                node.port,
                OWNER,
                judge(),
                SECRETS,
                datetime.now(UTC),
                attested=stay_silent,
            )
        assert node.offers.empty()


def test_a_node_that_does_not_answer_does_not_keep_its_owner_for_ever() -> None:
    """And has not refused: what it does in the end, the owner learns the next time."""
    offers: queue.SimpleQueue[Offer] = queue.SimpleQueue()
    with provisioning_node(OWNER, use=offers.put) as node:
        with pytest.raises(UnavailableError) as caught:
            hand_over(
                "127.0.0.1",
                node.port,
                OWNER,
                judge(),
                SECRETS,
                datetime.now(UTC),
                answer_timeout_s=0.2,
            )
        assert check_of(caught.value) == "PR4"
        offers.get(timeout=PATIENCE_S).taken()
        node.taken.get(timeout=PATIENCE_S)


@pytest.mark.parametrize(
    "lie", [Taken((), ("users",)), Taken(("store",), ("other", "users")), Taken(("store",), ())]
)
def test_a_node_that_has_taken_something_else_is_noticed(
    lie: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provisioning, "encode", lambda message: encode(lie))
    with provisioning_node(OWNER) as node:
        with pytest.raises(UntrustedError) as caught:
            provision(node)
        assert check_of(caught.value) == "PR6"


def test_a_judge_without_a_policy_judges_nothing() -> None:
    lenient = Judge({"simulated": SimulatedVerifier()}, None)
    with provisioning_node(OWNER) as node:
        with pytest.raises(MalformedError, match="policy"):
            hand_over("127.0.0.1", node.port, OWNER, lenient, SECRETS, datetime.now(UTC))
        assert node.offers.empty()


def test_nobody_there_and_nobody_who_speaks_tls() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        with pytest.raises(UnavailableError) as caught:
            hand_over("127.0.0.1", port, OWNER, judge(), SECRETS, datetime.now(UTC))
        assert caught.value.finding is None
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        tls = SSL.Connection(OWNER.context(datetime.now(UTC)), left)
        tls.set_connect_state()
        with pytest.raises(UnavailableError):
            ProvisioningStream(left.fileno(), tls, time.monotonic() + 5).handshake()


def test_provisioned_files_read_as_files_do(tmp_path: Path) -> None:
    held = Provisioned({}, {"users": b"alice"})
    read = held.reader(lambda path, what: f"{path} {what}".encode())
    assert read(Path("provisioned:users"), "password") == b"alice"
    assert read(tmp_path / "x", "policy").endswith(b"x policy")
    # A file of that name beside is another one.
    assert read(tmp_path / "provisioned:users", "password") != b"alice"
    with pytest.raises(UnavailableError, match=r"'tls\.crt'"):
        read(Path("provisioned:tls.crt"), "certificate")
    assert held.store_key is None
    assert Provisioned({"store": KEY}).store_key == KEY
    assert provisioned_name(Path("provisioned:a")) == "a"
    assert provisioned_name("file:a") is None
    assert KEY.hex() not in repr(Provisioned({"store": KEY}))


@pytest.mark.parametrize("text", ["", "host", ":1", "h:", "h:65536", "h:-1", "a b:1", "::1:5"])
def test_places_that_are_none(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_place(text)


def test_places_and_owners() -> None:
    assert parse_place("[::1]:0") == ("::1", 0)
    assert parse_place("node.example:8899", lowest_port=1) == ("node.example", 8899)
    with pytest.raises(MalformedError):
        parse_place("[::1]:0", lowest_port=1)
    assert parse_owner("sha256:" + OWNER.digest.hex()) == OWNER.digest
    for text in ("", OWNER.digest.hex(), "sha256:" + OWNER.digest.hex().upper(), "sha256:00"):
        with pytest.raises(MalformedError):
            parse_owner(text)


def test_owner_keys() -> None:
    assert parse_owner_key(OWNER.pem(), "owner.pem").digest == OWNER.digest
    other = Authority().issue("c")
    for content in (b"", b"x", other.certificate_pem()):
        with pytest.raises(MalformedError, match=r"owner\.pem"):
            parse_owner_key(content, "owner.pem")
    assert OWNER.pem().decode().splitlines()[1] not in repr(OWNER)


def pem(label: str) -> str:
    """A block of PEM; what is in it does not matter here."""
    return f"-----BEGIN {label}-----\nMIIB+/a=\n-----END {label}-----\n"


CERTIFICATE, CRL, PRIVATE_KEY = map(pem, ("CERTIFICATE", "X509 CRL", "PRIVATE KEY"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_owners_file(tmp_path: Path) -> None:
    write(tmp_path / "store.key", KEY.hex() + "\n")
    write(tmp_path / "users", "alice")
    text = f"""
version = 1
owner_key = "owner.pem"
[keys]
store = "file:store.key"
other = "hex:{bytes(32).hex()}"
[files]
users = "file:users"
"motd.txt" = "text:hello"
bits = "hex:00ff"
"""
    found = load_secrets(write(tmp_path / "secrets.toml", text))
    assert found.secrets.keys == {"store": KEY, "other": bytes(32)}
    assert found.secrets.files == {"users": b"alice", "motd.txt": b"hello", "bits": b"\0\xff"}
    assert found.owner_key == tmp_path / "owner.pem"
    names = {path.name for path in found.sources}
    assert names == {"secrets.toml", "store.key", "users"}


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (f"{CERTIFICATE}", False),
        (f"{CERTIFICATE}\n{CERTIFICATE}{CRL}", False),
        (f"{CERTIFICATE}{PRIVATE_KEY}", True),
        (f"{PRIVATE_KEY}", True),
        (f"{CERTIFICATE}alice", True),
        ("alice", True),
        ("", True),
    ],
)
def test_certificates_need_not_be_kept_secret(tmp_path: Path, content: str, secret: bool) -> None:
    write(tmp_path / "file", content)
    text = "version = 1\n[files]\nit = 'file:file'\n"
    found = load_secrets(write(tmp_path / "secrets.toml", text))
    assert (tmp_path / "file" in found.sources) == secret


def test_the_example_is_one_and_obviously_no_real_one() -> None:
    path = Path(__file__).parents[3] / "examples/secrets.toml"
    found = load_secrets(path)
    assert found.secrets.keys == {"store": bytes(32)}
    assert set(found.secrets.files) == {"tls.crt", "tls.key", "users", "devices.psk"}
    assert found.sources == (path,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 2\n[keys]\na = 'hex:%s'",
        "version = true\n[keys]\na = 'hex:%s'",
        "version = 1",
        "version = 1\nkeys = 1",
        "version = 1\nother = 1\n[keys]\na = 'hex:%s'",
        "version = 1\nowner_key = 1\n[keys]\na = 'hex:%s'",
        "version = 1\n[keys]\na = '%s'",
        "version = 1\n[keys]\na = 'hex:%s00'",
        "version = 1\n[keys]\na = 'text:%s'",
        "version = 1\n[keys]\n'a/b' = 'hex:%s'",
        "version = 1\n[keys]\na = 1",
        "version = 1\n[files]\na = '%s'",
        "version = 1\n[files]\na = 'hex:%sz'",
        "version = 1\n[files]\na = 'text'",
        "version = 1\n[keys\n",
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    secret = bytes(range(32, 64)).hex()
    path = write(tmp_path / "secrets.toml", text.replace("%s", secret))
    with pytest.raises(MalformedError) as caught:
        load_secrets(path)
    assert secret not in str(caught.value)
    with pytest.raises(UnavailableError):
        load_secrets(tmp_path / "absent.toml")
