"""Certificates, keys and CRLs are checked when they are loaded, and identities are exact."""

from __future__ import annotations

import base64
import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from avow.channel.certificates import (
    load_authorities,
    load_chain,
    load_key,
    load_revocation_lists,
)
from avow.channel.identity import IdentitySource, identity_of
from avow.channel.tls import ServerTls, server_context
from avow.client.openssl_context import client_context
from avow.client.options import ClientTls
from avow.errors import DeniedError, MalformedError, UnavailableError, UntrustedError
from avow.testing.pki import DAY, Authority

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def test_chain_and_key_that_belong_together(tmp_path: Path) -> None:
    intermediate = Authority("intermediate", parent=Authority())
    credential = intermediate.issue_server()
    certificate, key = credential.write(tmp_path, "server")
    chain = load_chain(certificate, NOW)
    assert chain == [credential.certificate, intermediate.certificate]
    load_key(key, chain[0], certificate)


@pytest.mark.parametrize(
    ("shift", "words"), [(DAY * 2, "expired at"), (-DAY * 2, "is valid only from")]
)
def test_certificate_outside_its_time(
    tmp_path: Path, authority: Authority, shift: timedelta, words: str
) -> None:
    certificate, _ = authority.issue_server().write(tmp_path, "server")
    with pytest.raises(UntrustedError, match=words) as caught:
        load_chain(certificate, NOW + shift)
    assert str(certificate) in str(caught.value)


def test_expired_intermediate_counts(tmp_path: Path) -> None:
    root = Authority(now=NOW)
    old = Authority("old", parent=root, now=NOW - DAY * 10)
    certificate, _ = old.issue_server(valid_until=NOW + DAY).write(tmp_path, "server")
    with pytest.raises(UntrustedError, match="expired"):
        load_chain(certificate, NOW)


def test_authorities_may_keep_an_expired_root(tmp_path: Path, authority: Authority) -> None:
    old = Authority("old", now=NOW - DAY * 10)
    both = tmp_path / "both.pem"
    both.write_bytes(old.pem() + authority.pem())
    assert len(load_authorities(both, NOW)) == 2
    with pytest.raises(UntrustedError, match="expired"):
        load_authorities(old.write(tmp_path / "old.pem"), NOW)


def test_key_of_another_certificate(tmp_path: Path, authority: Authority) -> None:
    certificate, _ = authority.issue_server().write(tmp_path, "one")
    _, key = authority.issue_server().write(tmp_path, "two")
    with pytest.raises(MalformedError, match="got another key") as caught:
        load_key(key, load_chain(certificate, NOW)[0], certificate)
    assert str(key) in str(caught.value)
    assert str(certificate) in str(caught.value)


def test_key_with_a_passphrase(tmp_path: Path, authority: Authority) -> None:
    credential = authority.issue_server()
    path = tmp_path / "locked.key"
    path.write_bytes(
        credential.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass")
        )
    )
    with pytest.raises(MalformedError, match="unencrypted"):
        load_key(path, credential.certificate, Path("server.pem"))


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_files_that_are_something_else(
    tmp_path: Path, authority: Authority, content: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    certificate = authority.certificate
    for load in (
        lambda: load_chain(path, NOW),
        lambda: load_authorities(path, NOW),
        lambda: load_key(path, certificate, path),
        lambda: load_revocation_lists(path, NOW),
    ):
        with pytest.raises(MalformedError, match="expected") as caught:
            load()
        assert str(path) in str(caught.value)


def changed(pem: bytes, label: str, old: bytes, new: bytes) -> bytes:
    """PEM with other bytes in its DER, of the same length."""
    armour = f"-----BEGIN {label}-----\n", f"-----END {label}-----\n"
    body = pem.decode().split(armour[0])[1].split(armour[1])[0]
    content = base64.b64decode(body)
    assert old in content
    assert len(old) == len(new)
    encoded = base64.encodebytes(content.replace(old, new)).decode()
    return f"{armour[0]}{encoded}{armour[1]}".encode()


# In DER: the version of a certificate and of a list, the OID of P-256, an uncompressed point, and a
# name that is no UTF-8 any more.
CHANGES = {
    "version": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x14"),
    "curve": (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030177")),
    "point": (b"\x03\x42\x00\x04", b"\x03\x42\x00\x05"),
    "name": (b"\x0c\x09localhost", b"\x0c\x09localhos\xff"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_one_reader_takes_and_the_next_does_not(
    tmp_path: Path, authority: Authority, change: str
) -> None:
    """It was no sentence but the end of the broker, by a reload too."""
    certificate, key = authority.issue_server().write(tmp_path, "server")
    own = certificate.read_bytes().split(b"-----END CERTIFICATE-----\n")[0]
    certificate.write_bytes(
        changed(own + b"-----END CERTIFICATE-----\n", "CERTIFICATE", *CHANGES[change])
    )
    with pytest.raises(MalformedError, match=r"server\.pem"):
        server_context(ServerTls(certificate, key), NOW)


def test_authorities_and_lists_of_another_version(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue_server().write(tmp_path, "server")
    bundle, crl = tmp_path / "bundle.pem", tmp_path / "list.pem"
    bundle.write_bytes(changed(authority.pem(), "CERTIFICATE", *CHANGES["version"]))
    tls = ServerTls(certificate, key, bundle)
    with pytest.raises(MalformedError, match=r"bundle\.pem"):
        server_context(tls, NOW)
    with pytest.raises(MalformedError, match=r"bundle\.pem"):
        client_context(ClientTls(cafile=bundle), NOW)
    content = base64.b64decode(b"".join(authority.revocation_list().splitlines()[1:-1]))
    at = content.index(b"\x02\x01\x01")
    encoded = base64.encodebytes(content[: at + 2] + b"\x73" + content[at + 3 :])
    crl.write_bytes(b"-----BEGIN X509 CRL-----\n" + encoded + b"-----END X509 CRL-----\n")
    authority.write(bundle)
    with pytest.raises(MalformedError, match=r"list\.pem"):
        server_context(dataclasses.replace(tls, crl=crl), NOW)


def test_missing_file_folder_and_unreadable_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match="no such file"):
        load_chain(tmp_path / "none", NOW)
    with pytest.raises(UnavailableError, match="not a regular file"):
        load_chain(tmp_path, NOW)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "server.key"
    path.touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnavailableError, match="no permission to read") as caught:
        load_chain(path, NOW)
    assert str(path) in str(caught.value)


def test_revocation_lists(tmp_path: Path, authority: Authority) -> None:
    other = Authority("other")
    path = tmp_path / "crl.pem"
    path.write_bytes(authority.revocation_list() + other.revocation_list())
    assert len(load_revocation_lists(path, NOW)) == 2
    with pytest.raises(UntrustedError, match="due for renewal") as caught:
        load_revocation_lists(path, NOW + DAY * 2)
    assert str(path) in str(caught.value)
    with pytest.raises(UntrustedError, match="set this machine's clock"):
        load_revocation_lists(path, NOW - DAY * 2)
    path.write_bytes(authority.revocation_list()[:200] + b"-----END X509 CRL-----\n")
    with pytest.raises(MalformedError, match="damaged"):
        load_revocation_lists(path, NOW)


def names(*entries: x509.GeneralName) -> list[x509.GeneralName]:
    return list(entries)


@pytest.mark.parametrize(
    ("common_name", "alternatives", "source", "expected"),
    [
        ("alice", names(), "cn", "alice"),
        ("alice", names(x509.DNSName("host.example")), "san", "host.example"),
        ("alice", names(x509.RFC822Name("a@example.com")), "san", "a@example.com"),
        (
            None,
            names(x509.UniformResourceIdentifier("spiffe://example/a")),
            "san",
            "spiffe://example/a",
        ),
        ("alice", names(), "none", None),
    ],
)
def test_identity(
    authority: Authority,
    common_name: str | None,
    alternatives: list[x509.GeneralName],
    source: IdentitySource,
    expected: str | None,
) -> None:
    certificate = authority.issue(common_name, names=alternatives).certificate
    assert identity_of(certificate, source) == expected


@pytest.mark.parametrize(
    ("common_name", "alternatives", "source"),
    [
        (None, names(x509.DNSName("host.example")), "cn"),
        ("alice", names(), "san"),
        ("alice", names(x509.DNSName("a.example"), x509.DNSName("b.example")), "san"),
        ("alice", names(x509.DNSName("a.example"), x509.RFC822Name("a@example.com")), "san"),
        ("alice\0.evil", names(), "cn"),
        ("alice\nbob", names(), "cn"),
    ],
)
def test_identity_that_is_not_exactly_one_plain_name(
    authority: Authority,
    common_name: str | None,
    alternatives: list[x509.GeneralName],
    source: IdentitySource,
) -> None:
    certificate = authority.issue(common_name, names=alternatives).certificate
    with pytest.raises(DeniedError, match="client certificate"):
        identity_of(certificate, source)


def test_repr_of_a_credential_has_no_key(authority: Authority) -> None:
    assert "key=" not in repr(authority.issue("x"))
