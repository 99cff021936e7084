"""Everything that a configuration names, loaded and checked, before any of it is used.

The start, `--check` and a reload all go through `prepare`, so a broken file is refused in the same
words by all three, and a reload that fails has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from OpenSSL import SSL

from avow.broker.acl import compile_acl
from avow.broker.commands import AclEntry
from avow.broker.config import Configuration, Listener
from avow.broker.measured_configuration import anchor_files, configuration_digest
from avow.broker.users import User, read_users
from avow.channel.address import Address, SocketAddress, resolve
from avow.channel.certificates import (
    load_authorities,
    load_chain,
    load_revocation_lists,
    read_key,
)
from avow.channel.judge import Judge
from avow.channel.named_files import (
    FilesReadOnce,
    Read,
    read_named_file,
    readable_by_others,
)
from avow.channel.psk import PreSharedKeys, load_pre_shared_keys, serve_keys
from avow.channel.tls import Credential, ServerTls, server_context
from avow.errors import AvowError, MalformedError, UnavailableError


class LoadJudge(Protocol):
    """Makes the judge of clients."""

    def __call__(
        self, policy: Path, content: bytes, *, endorsements: Path | None, anchors: Sequence[bytes]
    ) -> Judge:
        """`content` are the bytes of `policy`; `anchors` those of the roots in `endorsements`, as
        they were measured: no other root may count. Raises an `AvowError` that names the file."""


@dataclass(frozen=True, slots=True)
class PreparedListener:
    """A listener whose files are loaded; `targets` are the addresses to bind.

    `context_with` makes the context for a certificate that is made in this process (`ra_tls`).
    """

    listener: Listener
    address: Address
    targets: Sequence[SocketAddress]
    context: SSL.Context | None
    allow_anonymous: bool
    judge: Judge | None = None
    context_with: Callable[[Credential], SSL.Context] | None = field(default=None, repr=False)

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach it."""
        return all(target.loopback for target in self.targets)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that can be used. `users` and `acl` are None where there is no file, no rule.

    `digest` is the configuration's (32 bytes), over exactly the contents that are used. `warnings`
    are sentences for the log: nothing that stops a broker, but somebody should know.
    """

    configuration: Configuration
    listeners: Sequence[PreparedListener]
    users: dict[str, User] | None
    acl: list[AclEntry] | None
    warnings: Sequence[str]
    digest: bytes


def prepare(
    configuration: Configuration,
    now: datetime,
    *,
    load_judge: LoadJudge | None = None,
    read: Read = read_named_file,
) -> Prepared:
    """Loads certificates, keys, CRLs, users and policies. Raises an `AvowError` that names file and
    fix.

    `read` reads every file, once: from the disk, or what the owner has provisioned.
    """
    warnings: list[str] = []
    files = FilesReadOnce(read)
    users = None
    if configuration.password_file is not None:
        users = read_users(configuration.password_file, read=files)
        if not users:
            warnings.append(
                f"{configuration.password_file} holds no user; add one with `avow user add`"
            )
        if readable_by_others(configuration.password_file):
            warnings.append(
                f"other users can read {configuration.password_file}; run `chmod 600 "
                f"{configuration.password_file}`"
            )
    listeners = [
        _ListenerFiles(configuration, listener, now, warnings, files, load_judge).prepared()
        for listener in configuration.listeners
    ]
    if configuration.attestation.tee is not None and not any(
        entry.address.scheme.encrypted for entry in listeners
    ):
        warnings.append(
            "no listener has TLS, so nobody can ask for the broker's evidence; add one with "
            "mqtts:// or wss://"
        )
    acl = None if configuration.acl is None else compile_acl(configuration.acl)
    digest = configuration_digest(configuration, files)
    return Prepared(configuration, listeners, users, acl, warnings, digest)


def problems(
    configuration: Configuration,
    now: datetime,
    *,
    load_judge: LoadJudge | None = None,
    read: Read = read_named_file,
) -> list[AvowError]:
    """All that `prepare` would raise, if each were mended when it was raised."""
    files = FilesReadOnce(read)
    tries: list[Callable[[], object]] = []
    if (users := configuration.password_file) is not None:
        tries.append(lambda: read_users(users, read=files))
    for listener in configuration.listeners:
        tries += _ListenerFiles(configuration, listener, now, [], files, load_judge).parts()
    if (rules := configuration.acl) is not None:
        tries.append(lambda: compile_acl(rules))
    tries.append(lambda: configuration_digest(configuration, files))
    found: dict[str, AvowError] = {}
    for attempt in tries:
        try:
            attempt()
        except AvowError as error:
            found.setdefault(str(error), error)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _ListenerFiles:
    """What one listener is made from."""

    configuration: Configuration
    listener: Listener
    now: datetime
    warnings: list[str]
    files: FilesReadOnce
    load_judge: LoadJudge | None

    def prepared(self) -> PreparedListener:
        listener, address = self.listener, self.listener.address
        targets = resolve(address)
        loopback = all(target.loopback for target in targets)
        allow_anonymous = _admits_anonymous(self.configuration, listener, loopback)
        if not address.scheme.encrypted:
            if not loopback:
                self._warn(
                    f"{address} is not encrypted: others can read passwords and data on the "
                    "way; use mqtts:// or wss://"
                )
            return PreparedListener(listener, address, targets, None, allow_anonymous)
        self._check_that_attestation_is_there()
        for secret, path in (
            ("private key", listener.key),
            ("pre-shared keys", listener.psk_file),
        ):
            if path is not None and readable_by_others(path):
                self._warn(f"other users can read the {secret} {path}; run `chmod 600 {path}`")
        keys = None
        if listener.psk_file is not None:
            keys = load_pre_shared_keys(listener.psk_file, read=self.files)
        if keys is not None and not keys:
            self._warn(f"{listener.psk_file} holds no key; add lines `identity:key`")
        context = self._context(keys, None)
        return PreparedListener(
            listener,
            address,
            targets,
            None if listener.ra_tls else context,
            allow_anonymous,
            self._judge(),
            (lambda credential: self._context(keys, credential)) if listener.ra_tls else None,
        )

    def parts(self) -> list[Callable[[], object]]:
        """What can go wrong in here independently of each other."""
        listener, named = self.listener, self.listener.psk_file
        parts: list[Callable[[], object]] = [self._admitted]
        if listener.address.scheme.encrypted:
            parts += [self._check_that_attestation_is_there, self._judge]
            if named is not None:
                parts.append(lambda: load_pre_shared_keys(named, read=self.files))
            if not listener.ra_tls:
                parts += self._certificate_parts(listener.cert, listener.key)
            parts += self._client_parts(listener.client_ca, listener.crl)
        return parts

    def _certificate_parts(self, cert: Path | None, key: Path | None) -> list[Callable[[], object]]:
        """Each file alone, then whether they belong together."""
        parts: list[Callable[[], object]] = []
        if cert is not None:
            parts.append(lambda: load_chain(cert, self.now, read=self.files))
        if key is not None:
            parts.append(lambda: read_key(key, read=self.files))
        return [*parts, lambda: self._tried(cert=cert, key=key)]

    def _client_parts(self, client_ca: Path | None, crl: Path | None) -> list[Callable[[], object]]:
        """Each file alone, then whether OpenSSL takes them."""
        if client_ca is None:
            return []
        parts: list[Callable[[], object]] = [
            lambda: load_authorities(client_ca, self.now, read=self.files)
        ]
        if crl is not None:
            parts.append(lambda: load_revocation_lists(crl, self.now, read=self.files))
        return [*parts, lambda: self._tried(client_ca=client_ca, crl=crl)]

    def _tried(
        self,
        *,
        cert: Path | None = None,
        key: Path | None = None,
        client_ca: Path | None = None,
        crl: Path | None = None,
    ) -> SSL.Context:
        tls = ServerTls(certificate=cert, key=key, client_ca=client_ca, crl=crl)
        return server_context(tls, self.now, read=self.files)

    def _admitted(self) -> bool:
        loopback = all(target.loopback for target in resolve(self.listener.address))
        return _admits_anonymous(self.configuration, self.listener, loopback)

    def _warn(self, sentence: str) -> None:
        self.warnings.append(sentence)

    def _context(self, keys: PreSharedKeys | None, credential: Credential | None) -> SSL.Context:
        listener = self.listener
        tls = ServerTls(
            certificate=listener.cert,
            key=listener.key,
            client_ca=listener.client_ca,
            crl=listener.crl,
            require_certificate=listener.require_certificate,
            minimum=listener.tls_minimum,
        )
        context = server_context(tls, self.now, credential=credential, read=self.files)
        if keys is not None:
            serve_keys(context, keys)
        return context

    def _judge(self) -> Judge | None:
        path = self.listener.client_policy
        if path is None:
            return None
        if self.load_judge is None:
            raise UnavailableError("expected a reader of policies, got none; report this")
        folder = self.configuration.attestation.endorsements
        return self.load_judge(
            path,
            self.files(path, "policy"),
            endorsements=folder,
            anchors=()
            if folder is None
            else [self.files(anchor, "root") for anchor in anchor_files(folder)],
        )

    def _check_that_attestation_is_there(self) -> None:
        """Keys that promise something which a broker without a platform cannot keep."""
        listener = self.listener
        if self.configuration.attestation.tee is not None:
            return
        for name, asked in (
            ("ra_tls = true", listener.ra_tls),
            ('evidence_for = "authorised"', listener.evidence_for == "authorised"),
            (
                "unattested_clients = false",
                not listener.unattested_clients and listener.client_policy is None,
            ),
        ):
            if asked:
                raise MalformedError(
                    f"expected a platform for {name} at the listener {listener.url}, got none; "
                    f"name it with --tee or `tee` in [attestation]"
                )


def _admits_anonymous(configuration: Configuration, listener: Listener, loopback: bool) -> bool:
    """What was asked for; without a word, only where nobody else comes and nobody can log in."""
    asked = listener.allow_anonymous
    if asked is None:
        asked = configuration.allow_anonymous
    can_log_in = configuration.password_file is not None or (
        (listener.client_ca is not None or listener.psk_file is not None)
        and listener.use_identity_as != "none"
    )
    if asked is not None and (asked or can_log_in):
        return asked
    if can_log_in:
        return False
    if asked is None and loopback:
        return True
    reach = "" if loopback else ", which other machines can reach"
    raise MalformedError(
        f"expected a way to log in at the listener {listener.url}{reach}, got none; make users "
        f"with `avow user add NAME` and name their file with --password-file, ask for client "
        f"certificates with --client-ca, or let everybody in with --allow-anonymous"
    )
