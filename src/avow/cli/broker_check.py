"""`avow broker --check`: tries what a start would, and says everything that is wrong at once.

Nothing is changed: no key or store is made, no register extended, no anchor moved on, and what was
opened is closed. What a broker that runs already has (its ports, its store) is a warning, for a
check comes before a reload as well.
"""

from __future__ import annotations

import errno
import functools
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import click

from avow import artefacts
from avow.broker.config import Configuration, Storage
from avow.broker.memory import MemoryNeed, in_words, memory_need
from avow.broker.prepared import Prepared, prepare, problems
from avow.channel.acceptor import open_listeners
from avow.channel.address import Address, Scheme, resolve
from avow.channel.provisioning import parse_place
from avow.cli.anchors import check_begin, check_newest
from avow.cli.broker_attestation import SIMULATED, load_judge, open_platform
from avow.cli.broker_store import check_store
from avow.cli.exit_codes import ExitCode
from avow.cli.provisioned import Unprovisioned, unprovisioned
from avow.cli.store_keys import key_file, sealed_file
from avow.cli.store_opening import StoreKeys, is_there
from avow.errors import AvowError, InUseError, UnavailableError
from avow.runtime.manifest import runtime_manifest
from avow.sealing.keys import KeyBinding, is_bound
from avow.sealing.store import Store
from avow.tee.simulated import NOTHING_IS_PROTECTED

_PROVISIONED = "provisioned"


@dataclass
class _Findings:
    """What is wrong, and what somebody should know, in the order in which a start would meet it."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, action: Callable[[], object]) -> bool:
        """True when it went well."""
        try:
            action()
        except AvowError as error:
            self.errors.append(str(error))
            return False
        return True


def check_start(configuration: Configuration, *, new_store: bool) -> int:
    """Prints what was found, and returns the exit code."""
    found = _Findings()
    simulated = configuration.attestation.tee == SIMULATED
    starting = _prepare(configuration, found)
    if (name := configuration.attestation.tee) is not None:
        found.attempt(lambda: open_platform(name, "the broker"))
    if configuration.store is not None and found.attempt(lambda: check_store(configuration)):
        _check_storage(configuration.store, starting, simulated, new_store, found)
    _check_ports(configuration, found)
    if simulated:
        click.echo(NOTHING_IS_PROTECTED)
    _report(starting, found)
    return ExitCode.USAGE if found.errors else ExitCode.OK


def _prepare(configuration: Configuration, found: _Findings) -> Prepared | Unprovisioned | None:
    now = datetime.now(UTC)
    try:
        if configuration.provisioning is not None:
            return unprovisioned(configuration)
        return prepare(configuration, now, load_judge=load_judge)
    except AvowError as error:
        found.errors.append(str(error))
    if configuration.provisioning is None:
        everything = problems(configuration, now, load_judge=load_judge)
        found.errors += [str(each) for each in everything if str(each) not in found.errors]
    return None


def _check_storage(
    settings: Storage,
    starting: Prepared | Unprovisioned | None,
    simulated: bool,
    new_store: bool,
    found: _Findings,
) -> None:
    folder, made = settings.directory, not is_there(settings.directory)
    found.attempt(lambda: check_begin(settings.anchor, folder, made=made, new_store=new_store))
    found.attempt(lambda: _check_writable(folder))
    sources = [source for source in (settings.key, settings.also_key) if source is not None]
    if _PROVISIONED in sources or (starting is None and any(map(is_bound, sources))):
        # The owner has it, or it is bound to a configuration that is none yet.
        return
    keys = StoreKeys(
        settings.key,
        settings.also_key,
        lambda: _binding(starting),
        None,
        simulated,
        lambda line: None,
    )
    if made:
        for source in sources:
            found.attempt(functools.partial(_check_new_key, keys, source))
        return
    try:
        with _opened(folder, keys) as store:
            found.attempt(lambda: check_newest(settings.anchor, store))
    except InUseError as error:
        found.warnings.append(f"the store was not checked: {error}")
    except AvowError as error:
        found.errors.append(str(error))


def _binding(starting: Prepared | Unprovisioned | None) -> KeyBinding:
    assert starting is not None, "no key is bound to a configuration that is none"
    core = sha256(artefacts.core_path().read_bytes()).digest()
    return KeyBinding(core, starting.digest, runtime_manifest().digest)


def _opened(folder: Path, keys: StoreKeys) -> Store:
    """For reading only, by the first key or the other."""
    try:
        return Store.open(folder, keys.of(keys.first, made=False), read_only=True)
    except InUseError:
        raise
    except AvowError:
        if keys.also is None:
            raise
        return Store.open(folder, keys.of(keys.also, made=False), read_only=True)


def _check_new_key(keys: StoreKeys, source: str) -> None:
    """Of a store that would be made: a file for the key is made with it where there is none."""
    path = key_file(source)
    if path is None or (path.exists() and sealed_file(source) is None):
        keys.of(source, made=False)
    elif path.exists():
        raise UnavailableError(
            f"expected no file at {path}, where the sealed key will be made, got one; whoever "
            "put it there may know what is in it: move it away, or choose another path"
        )
    else:
        _check_writable(path.parent)


def _check_writable(folder: Path) -> None:
    """The folder, or the nearest above it that is there, as it would be made."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UnavailableError(f"expected a folder at {nearest}, got a file; name another place")
    try:
        # It has no name where the file system can do that. Permissions alone say too little: root
        # has them in /proc and on what is mounted read-only.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UnavailableError(
            f"expected to write in the folder {nearest}, got {error.strerror}; make it "
            f"writable for the user that runs the broker, or name another place"
        ) from error


def _check_ports(configuration: Configuration, found: _Findings) -> None:
    addresses = [listener.address for listener in configuration.listeners]
    if configuration.metrics is not None:
        metrics = configuration.metrics
        addresses.append(Address(Scheme.MQTT, metrics.host, metrics.port))
    if configuration.provisioning is not None:
        addresses.append(Address(Scheme.MQTT, *parse_place(configuration.provisioning.listen)))
    held: list[socket.socket] = []
    try:
        for address in addresses:
            _try_port(address, held, found)
    finally:
        for listening in held:
            listening.close()


def _try_port(address: Address, held: list[socket.socket], found: _Findings) -> None:
    """`held` stays open meanwhile: two listeners of one port are found as well."""
    try:
        targets = [(target.family, target.host) for target in resolve(address)]
        held += open_listeners(targets, address.port, address)
    except AvowError as error:
        cause = error.__cause__
        own = {listening.getsockname()[1] for listening in held}
        if (
            isinstance(cause, OSError)
            and cause.errno == errno.EADDRINUSE
            and address.port not in own
        ):
            found.warnings.append(f"the broker would not start now: {error}")
        elif str(error) not in found.errors:
            found.errors.append(str(error))


def _memory(starting: Prepared) -> MemoryNeed:
    configuration = starting.configuration
    return memory_need(
        configuration.limits,
        tls=any(entry.context is not None for entry in starting.listeners),
        password_workers=configuration.login.workers if starting.users is not None else 0,
    )


def _report(starting: Prepared | Unprovisioned | None, found: _Findings) -> None:
    for error in found.errors:
        click.echo(f"avow: {error}", err=True)
    if isinstance(starting, Unprovisioned):
        click.echo("secrets: not checked; they come from the owner when the broker runs")
    elif starting is not None:
        for warning in starting.warnings:
            click.echo(f"warning: {warning}")
        for entry in starting.listeners:
            who = "anybody" if entry.allow_anonymous else "users"
            click.echo(f"listener {entry.address}: {who}")
        if starting.users is not None:
            click.echo(f"users: {len(starting.users)}")
        if starting.acl is not None:
            click.echo(f"access rules: {len(starting.acl)}")
        click.echo(in_words(_memory(starting)))
    for warning in found.warnings:
        click.echo(f"warning: {warning}")
    if found.errors:
        click.echo(f"problems: {len(found.errors)}")
    else:
        click.echo("configuration is valid")
