"""What `avow run` wires so that a program can be trusted and told secrets: `--attest`, its owner.

What that takes is loaded when it is asked for: all other programs start without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from avow.cli.app_options import EffectiveApp
from avow.cli.command_error import configuration_errors, storage_errors
from avow.cli.store_opening import is_there
from avow.errors import MalformedError, UnavailableError
from avow.sandbox.extra_imports import ExtraImport
from avow.sandbox.grants import Grants
from avow.sealing.store import Store

if TYPE_CHECKING:
    from avow.channel.attestation import ServerAttestation
    from avow.channel.provisioning import Provisioned
    from avow.channel.provisioning_messages import Taken
    from avow.tee.platforms import Endorsements

Command = TypeVar("Command", bound=Callable[..., Any])
Say = Callable[[str], None]

_OPTIONS = (
    click.option(
        "--attest",
        is_flag=True,
        help="Let the program prove itself and judge others (imports `avow_evidence` and "
        "`avow_verify`; with the grant `evidence`).",
    ),
    click.option(
        "--tee",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="With --attest or an owner: the platform that vouches for the program (`avow tee`).",
    ),
    click.option(
        "--endorsements",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="With --attest: a folder with what vendors publish about the hardware of others. The "
        "roots and keys in it are part of the measured configuration.",
    ),
)


def trust_options(command: Command) -> Command:
    """Adds the options; `program_trust` takes what they give."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class ProgramTrust:
    """`imports` are for the program's `Surroundings`; `provisioned` is what its owner has handed
    over, None where it has none."""

    imports: tuple[ExtraImport, ...] = ()
    provisioned: Provisioned | None = field(default=None, repr=False)

    @property
    def store_key(self) -> bytes | None:
        """The key (32 bytes) that the source `provisioned` means."""
        return None if self.provisioned is None else self.provisioned.store_key

    def environment(self, host: Mapping[str, str], grants: Grants) -> Mapping[str, str]:
        """The host's, and over it the provisioned files that `grants` make variables.

        Raises `MalformedError` for one of them that is no value of the environment.
        """
        if self.provisioned is None:
            return host
        return {**host, **_variables(self.provisioned, grants)}

    @property
    def files(self) -> Mapping[str, bytes]:
        """What a program with the grant `provisioned` reads."""
        return {} if self.provisioned is None else self.provisioned.files


@contextmanager
def program_trust(
    app: EffectiveApp, module: bytes, given: Mapping[str, Any], say: Say
) -> Iterator[ProgramTrust]:
    """The platform measures the program before it runs, and its owner is waited for.

    `module` is the SHA-256 of the bytes that will be compiled. Raises an `AvowError`.
    """
    if not given["attest"] and app.provisioning is None:
        yield ProgramTrust()
        return
    with configuration_errors():
        _check_store(app, given)
    from avow.cli.program_attestation import attest_program, attestation_imports
    from avow.tee.simulated import NOTHING_IS_PROTECTED

    with configuration_errors():
        attestation = attest_program(given["tee"], module, app.configuration)
    try:
        if attestation.platform == "simulated":
            say(NOTHING_IS_PROTECTED)
        imports: tuple[ExtraImport, ...] = ()
        if given["attest"]:
            with configuration_errors():
                imports = attestation_imports(
                    attestation, _endorsements(app, given["endorsements"]), say=say
                )
        yield ProgramTrust(imports, _from_its_owner(app, given["store_folder"], attestation, say))
    finally:
        attestation.stop()


def _check_store(app: EffectiveApp, given: Mapping[str, Any]) -> None:
    """An owner's program does not keep what it is told under a key that somebody else knows.

    The evidence says where a key comes from; an owner whose policy does not look at it is safe too.
    """
    for name in ("key", "also_key"):
        if app.provisioning is not None and given[name] not in (None, "provisioned"):
            raise MalformedError(
                "expected --key provisioned and no other key, as the owner provisions this "
                f"program, got --{name.replace('_', '-')} {given[name].partition(':')[0]}; hand "
                "the store's key over as `store` in [keys] of the secrets"
            )


def _endorsements(app: EffectiveApp, folder: Path | None) -> Endorsements | None:
    from avow.cli.broker_attestation import measured_endorsements

    if folder is None or app.roots is None:
        return None
    return measured_endorsements(folder, tuple(app.roots.values()))


def _from_its_owner(
    app: EffectiveApp, store: Path | None, attestation: ServerAttestation, say: Say
) -> Provisioned | None:
    """Waits for the owner, if there is one."""
    if app.provisioning is None:
        return None
    from avow.cli.provisioned import await_provisioning, settings_of

    with configuration_errors(), storage_errors():
        return await_provisioning(
            settings_of(*app.provisioning),
            attestation,
            usable=lambda provisioned: check_usable(app, store, provisioned),
            observer=_Told(say),
            listening=lambda place, _: say(f"listening for its owner at {place}"),
        )


def check_usable(app: EffectiveApp, store: Path | None, provisioned: Provisioned) -> None:
    """Raises an `AvowError` for secrets with which the program could not even start: its owner
    shall read that, and not that they were taken. `store` is the folder of its store."""
    if store is not None:
        key = provisioned.store_key
        if key is None:
            raise UnavailableError(
                "expected the key of the program's store, got none; add `store` to [keys] of the "
                "secrets"
            )
        if is_there(store):
            Store.open(store, key, read_only=True).close()
    if app.grants.provisioned and not provisioned.files:
        raise UnavailableError(
            f"expected files for the grant provisioned:{app.grants.provisioned[0]}, got none; add "
            f"[files] to the secrets"
        )
    _variables(provisioned, app.grants)


class _Told:
    """See `avow.channel.provisioning.Observer`."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def refused(self, peer: str, reason: str, check: str) -> None:
        """Somebody was refused."""
        self._say(f"refused to be provisioned by {peer}: {reason}")

    def provisioned(self, peer: str, taken: Taken) -> None:
        """The owner's secrets were taken."""
        self._say(f"provisioned by {peer}: {', '.join((*taken.keys, *taken.files))}")


def _variables(provisioned: Provisioned, grants: Grants) -> dict[str, str]:
    granted = {each.name for each in grants.variables if each.value is None}
    return {
        name: _value(name, content)
        for name, content in provisioned.files.items()
        if name in granted
    }


def _value(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"expected UTF-8 in the provisioned {name}, got invalid bytes at offset "
            f"{error.start}; a program gets it in its environment"
        ) from error
    if "\0" in text:
        raise MalformedError(
            f"expected no zero byte in the provisioned {name}, got one; a program gets it in its "
            f"environment"
        )
    return text
