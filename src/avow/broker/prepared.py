"""Everything that a configuration names, loaded and checked, before any of it is used.

The start, `--check` and a reload all go through `prepare`, so a broken file is refused in the same
words by all three, and a reload that fails has changed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from OpenSSL import SSL

from avow.broker.acl import compile_acl
from avow.broker.commands import AclEntry
from avow.broker.config import Configuration, Listener
from avow.broker.users import User, read_users
from avow.channel.address import Address, SocketAddress, resolve
from avow.channel.named_files import readable_by_others
from avow.channel.tls import ServerTls, server_context
from avow.errors import MalformedError


@dataclass(frozen=True, slots=True)
class PreparedListener:
    """A listener whose files are loaded; `targets` are the addresses to bind."""

    listener: Listener
    address: Address
    targets: Sequence[SocketAddress]
    context: SSL.Context | None
    allow_anonymous: bool

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach it."""
        return all(target.loopback for target in self.targets)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that can be used. `users` and `acl` are None where there is no file, no rule.

    `warnings` are sentences for the log: nothing that stops a broker, but somebody should know.
    """

    configuration: Configuration
    listeners: Sequence[PreparedListener]
    users: dict[str, User] | None
    acl: list[AclEntry] | None
    warnings: Sequence[str]


def prepare(configuration: Configuration, now: datetime) -> Prepared:
    """Loads certificates, keys, CRLs and users. Raises an `AvowError` that names file and fix."""
    warnings: list[str] = []
    users = None
    if configuration.password_file is not None:
        users = read_users(configuration.password_file)
        if not users:
            warnings.append(
                f"{configuration.password_file} holds no user; add one with `avow user add`"
            )
        if readable_by_others(configuration.password_file):
            warnings.append(f"other users can read {configuration.password_file}; chmod 600 it")
    listeners = [
        _prepare_listener(configuration, listener, now, warnings)
        for listener in configuration.listeners
    ]
    acl = None if configuration.acl is None else compile_acl(configuration.acl)
    return Prepared(configuration, listeners, users, acl, warnings)


def _prepare_listener(
    configuration: Configuration, listener: Listener, now: datetime, warnings: list[str]
) -> PreparedListener:
    address = listener.address
    targets = resolve(address)
    loopback = all(target.loopback for target in targets)
    allow_anonymous = _admits_anonymous(configuration, listener, loopback)
    if not loopback and not address.scheme.encrypted:
        warnings.append(f"{address} is not encrypted: passwords and data can be read on the way")
    context = None
    if listener.cert is not None and listener.key is not None:
        if readable_by_others(listener.key):
            warnings.append(f"other users can read the private key {listener.key}; chmod 600 it")
        tls = ServerTls(
            certificate=listener.cert,
            key=listener.key,
            client_ca=listener.client_ca,
            crl=listener.crl,
            require_certificate=listener.require_certificate,
            minimum=listener.tls_minimum,
        )
        context = server_context(tls, now)
    return PreparedListener(listener, address, targets, context, allow_anonymous)


def _admits_anonymous(configuration: Configuration, listener: Listener, loopback: bool) -> bool:
    """What was asked for; without a word, only where nobody else comes and nobody can log in."""
    asked = listener.allow_anonymous
    if asked is None:
        asked = configuration.allow_anonymous
    can_log_in = configuration.password_file is not None or (
        listener.client_ca is not None and listener.use_identity_as != "none"
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
