"""Provisioning, the node's side: secrets come from the one owner that the configuration names.

A node that waits for its secrets has no certificate yet. It listens with a key and a self-signed
certificate that live as long as the process, shows its evidence in the exchange of
`avow.channel.opening` to who proves in TLS to be the owner, and to nobody else, and takes one
message on each connection. docs/spec/provisioning.md.

What was handed over is in the memory of this process and nowhere else: `Provisioned` reads as files
do, by paths of the form `provisioned:NAME`.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from OpenSSL import SSL

from avow.channel import provisioning_checks as checks
from avow.channel.acceptor import Acceptor, Arrival, Door, Refusal, open_listeners
from avow.channel.address import Address, Scheme, host_and_port, resolve
from avow.channel.attested_identity import AttestedIdentity
from avow.channel.exchange import EvidenceFor, QuoteWanted
from avow.channel.named_files import Read, read_named_file
from avow.channel.opening import DoorAttestation
from avow.channel.provisioning_messages import (
    FrameType,
    Secrets,
    Taken,
    decode,
    encode,
    not_taken_of,
)
from avow.channel.provisioning_stream import ProvisioningStream
from avow.channel.session import facts_of
from avow.channel.tls import Credential, ServerTls, server_context
from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError
from avow.evidence.envelope import Evidence

PREFIX: Final = "provisioned:"
STORE_KEY: Final = "store"
# From the end of the exchange to the last byte of SECRETS.
MESSAGE_TIMEOUT_S: Final = 30.0
STOP_PATIENCE_S: Final = 2.0
# A stranger can hold no more places than this.
HANDSHAKES_MAX: Final = 64

_OWNER = re.compile(r"sha256:([0-9a-f]{64})")
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class ProvisioningSettings:
    """Where a node listens for its owner, and the SHA-256 (32 bytes) of the SubjectPublicKeyInfo of
    that owner's key."""

    host: str
    port: int
    owner: bytes


def parse_place(text: str, *, lowest_port: int = 0) -> tuple[str, int]:
    """Host and port of `host:port` or `[address]:port`. Raises `MalformedError`."""
    match = _PLACE.fullmatch(text)
    if match is None or not lowest_port <= int(match["port"]) <= 65535:
        raise MalformedError(
            f"expected host:port, got {text[:80]!r}; write it like 127.0.0.1:8899 or [::1]:8899"
        )
    return match["host"].strip("[]"), int(match["port"])


def parse_owner(text: str) -> bytes:
    """The digest (32 bytes) in `sha256:` and 64 hexadecimal digits. Raises `MalformedError`."""
    match = _OWNER.fullmatch(text)
    if match is None:
        raise MalformedError(
            f"expected sha256: and 64 hexadecimal digits as the owner, got {text[:80]!r}; copy "
            f"what `avow provision --new-owner-key FILE` prints"
        )
    return bytes.fromhex(match[1])


def provisioned_name(path: Path | str) -> str | None:
    """NAME of `provisioned:NAME`, None for every other path."""
    text = str(path)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What a node has been given, by name; empty at first. Never shown, written or logged."""

    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def after(self, secrets: Secrets) -> Provisioned:
        """With what came: files of the same name are replaced, keys never are.

        A store that is open has its key, and one that is made with another key is another store.
        Raises `DeniedError` (PR3) when keys were provisioned before, for others.
        """
        for name, key in secrets.keys.items():
            known = self.keys.get(name, b"")
            if self._begun and not hmac.compare_digest(known, key):
                raise DeniedError.at(
                    checks.KEYS,
                    expected=f"the key {name} that was provisioned first, or none",
                    actual="another",
                    advice="start the node again to give it other keys",
                )
        return Provisioned({**self.keys, **secrets.keys}, {**self.files, **secrets.files})

    @property
    def _begun(self) -> bool:
        return bool(self.keys or self.files)

    @property
    def store_key(self) -> bytes | None:
        """The key (32 bytes) that `provisioned` means as the source of a store's key."""
        return self.keys.get(STORE_KEY)

    def reader(self, below: Read = read_named_file) -> Read:
        """Reads `provisioned:NAME` from here and every other path by `below`."""

        def read(path: Path, what: str) -> bytes:
            name = provisioned_name(path)
            return below(path, what) if name is None else self._file(name, what)

        return read

    def _file(self, name: str, what: str) -> bytes:
        content = self.files.get(name)
        if content is None:
            raise UnavailableError(
                f"expected a {what} file {name!r} among what the owner has provisioned, got none; "
                f"add it to [files] of the secrets"
            )
        return content


class Offer:
    """Secrets from the owner, checked but for whether the node can use them.

    `taken` or `refused` is called once, by whoever uses `provisioned`: all that the node has then.
    """

    def __init__(self, provisioned: Provisioned) -> None:
        self.provisioned = provisioned
        self._answers: queue.SimpleQueue[AvowError | None] = queue.SimpleQueue()

    def taken(self) -> None:
        """It is in use."""
        self._answers.put(None)

    def refused(self, error: AvowError) -> None:
        """It cannot be used; everything stays as it was."""
        self._answers.put(error)

    def answer(self) -> AvowError | None:
        """Waits; None when it was taken.

        Without a deadline: whoever gave up would not know what the node has.
        """
        return self._answers.get()


class Vouching(Protocol):
    """What a node shows of itself: `avow.channel.attestation.ServerAttestation` is one."""

    @property
    def identity(self) -> AttestedIdentity:
        """The key of this process and what it says of itself."""

    def quote(self, wanted: QuoteWanted, done: Callable[[Evidence | AvowError], None]) -> None:
        """Asks for evidence; `done` is called once."""


class Observer(Protocol):
    """Who is told what happens, from threads of the listener; nothing of it is secret."""

    def refused(self, peer: str, reason: str, check: str) -> None:
        """Somebody was refused."""

    def provisioned(self, peer: str, taken: Taken) -> None:
        """The owner's secrets were taken."""


class ProvisioningListener:
    """Listens from `start` to `stop`. `offer` is called from a thread of its own and must not
    block; every offer has to be answered."""

    def __init__(
        self,
        settings: ProvisioningSettings,
        vouching: Vouching,
        *,
        offer: Callable[[Offer], None],
        observer: Observer,
        now: datetime,
        message_timeout_s: float = MESSAGE_TIMEOUT_S,
    ) -> None:
        """Binds the address. Raises `UnavailableError` where that cannot be."""
        self._owner = settings.owner
        self._offer = offer
        self._observer = observer
        self._message_timeout_s = message_timeout_s
        self._held = Provisioned()
        address = Address(Scheme.MQTTS, settings.host, settings.port)
        targets = [(target.family, target.host) for target in resolve(address)]
        listening = open_listeners(targets, settings.port, address)
        self.port: Final[int] = listening[0].getsockname()[1]
        self.place: Final[str] = host_and_port(settings.host, self.port)
        context = node_context(now)
        attestation = DoorAttestation(
            evidence_for=EvidenceFor.AUTHORISED,
            owner=settings.owner,
            unattested_clients=False,
            identity=vouching.identity,
            quote=vouching.quote,
        )
        self._acceptor = Acceptor(
            [Door(each, address, context, "none", False, attestation) for each in listening],
            admit=self._arrived,
            refused=self._refused,
            exhausted=lambda reason: observer.refused("", reason, ""),
            handshakes_max=HANDSHAKES_MAX,
            name="provisioning acceptor",
        )
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="provisioning", daemon=True)

    def start(self) -> None:
        """Begins to accept."""
        self._acceptor.start()
        self._thread.start()

    def stop(self) -> None:
        """Closes the port; an answer under way gets a moment."""
        self._acceptor.stop()
        self._arrivals.put(None)
        self._thread.join(STOP_PATIENCE_S)

    def _arrived(self, arrival: Arrival) -> None:
        self._arrivals.put(arrival)

    def _refused(self, refusal: Refusal) -> None:
        self._observer.refused(refusal.peer, refusal.reason, refusal.check)

    def _run(self) -> None:
        while (arrival := self._arrivals.get()) is not None:
            with socket.socket(fileno=arrival.fd) as sock:
                if arrival.tls is not None:
                    self._serve(sock, arrival.tls, arrival.peer)

    def _serve(self, sock: socket.socket, tls: SSL.Connection, peer: str) -> None:
        """One message and its answer."""
        stream = ProvisioningStream(sock.fileno(), tls, time.monotonic() + self._message_timeout_s)
        try:
            self._check_owner(tls)
            frame = stream.read_frame((FrameType.SECRETS,))
            secrets = decode(frame, (FrameType.SECRETS,))
            if not isinstance(secrets, Secrets):
                raise MalformedError("expected secrets, got another message; report this")
            offer = Offer(self._held.after(secrets))
            self._offer(offer)
            refusal = offer.answer()
            if refusal is not None:
                raise refusal
        except AvowError as error:
            check = "" if error.finding is None else error.finding.check.number
            self._observer.refused(peer, str(error), check)
            answer = encode(not_taken_of(error))
        else:
            self._held = offer.provisioned
            taken = Taken(tuple(sorted(secrets.keys)), tuple(sorted(secrets.files)))
            self._observer.provisioned(peer, taken)
            answer = encode(taken)
        # The owner may be gone: what was taken is taken.
        with contextlib.suppress(AvowError):
            stream.write(answer)
            stream.end()

    def _check_owner(self, tls: SSL.Connection) -> None:
        """Asked again, by who takes the secrets: the listener before has shown evidence only."""
        spki = facts_of(tls, "server").peer_spki
        if not hmac.compare_digest(sha256(spki).digest(), self._owner):
            raise DeniedError.at(
                checks.OWNER,
                expected=f"the owner sha256:{self._owner.hex()}",
                actual=f"sha256:{sha256(spki).hexdigest()}" if spki else "nobody",
                advice="provision with the key that the configuration names (--owner-key)",
            )


def node_context(now: datetime) -> SSL.Context:
    """TLS with a new key, that asks for a certificate of anybody's.

    Nothing in a certificate counts but its key, and TLS proves that the peer has that key; whose
    key it is, is asked afterwards.
    """
    credential = self_signed(ec.generate_private_key(ec.SECP256R1()), "avow node", now)
    context = server_context(ServerTls(None, None), now, credential=credential)
    # A client takes it that it was asked only where authorities are named.
    context.add_client_ca(credential.certificate)
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    return context


def self_signed(key: ec.EllipticCurvePrivateKey, name: str, now: datetime) -> Credential:
    """A certificate that says nothing but its key."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .sign(key, SHA256())
    )
    return Credential(certificate, key)
