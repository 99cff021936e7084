"""`--key`: from its text to the owner key that opens a store."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from avow.cli.core_dumps import keep_out_of_core_dumps
from avow.errors import DeniedError, MalformedError, UnavailableError
from avow.sealing.keys import (
    KEY_BYTES,
    KeyBinding,
    bind_key,
    checked_key,
    read_key_file,
    read_small_file,
    write_key_file,
    write_new_file,
)

if TYPE_CHECKING:
    from avow.evidence.claims import Workload
    from avow.tee.tpm.device import TpmDevice

Command = TypeVar("Command", bound=Callable[..., Any])

SOURCES: Final = "file:PATH, tpm:PATH, gramine, gramine:mrsigner, snp or provisioned"
# A path, the PCRs that it is sealed to beside PCR 23, and the name of the TPM's storage key.
_TPM: Final = re.compile(r"tpm:([^#@]+)(?:@([0-9]{1,2}(?:,[0-9]{1,2})*))?(?:#([0-9a-f]{68}))?")
_FILE: Final = "file:"
_SEALED: Final = "tpm:"
_BLOB_BYTES_MAX: Final = 4096
_PCR_MAX: Final = 23


def key_option(command: Command) -> Command:
    """Adds --key to a command that opens a store; it gets it as `key`, None when it is absent."""
    return click.option(
        "--key",
        metavar="SOURCE",
        help=f"Where the store's key comes from: {SOURCES}.",
    )(command)


def check_source(source: str) -> None:
    """Raises `MalformedError` for a text that names no source of keys; opens nothing."""
    named = source in {"gramine", "gramine:mrsigner", "snp", "provisioned"}
    in_file = source.startswith(_FILE) and source != _FILE
    if source.startswith(_SEALED):
        _tpm_place(source)
    elif not (named or in_file):
        raise MalformedError(
            f"expected {SOURCES} as the source of a key, got {source[:100]!r}; correct it"
        )


def key_file(source: str) -> Path | None:
    """The file that `source` names, None where it names none. Raises `MalformedError`."""
    check_source(source)
    if source.startswith(_FILE):
        return Path(source.removeprefix(_FILE))
    return sealed_file(source)


def owner_key(
    source: str,
    binding: KeyBinding | None = None,
    *,
    provisioned: bytes | None = None,
    simulated: bool = False,
    device: TpmDevice | None = None,
) -> bytes:
    """The owner key (32 bytes) that `source` gives to what `binding` names.

    `provisioned` is what the owner handed over, if anything; `simulated` says that the platform is
    the simulated one, which has no keys to give. `device` is an open TPM, where the process has
    one already. A file needs no binding.

    Raises `MalformedError`, `UnavailableError`, `DeniedError` where the source will not give it,
    and `UntrustedError` where somebody answers for the TPM.
    """
    check_source(source)
    keep_out_of_core_dumps()
    if source.startswith(_FILE):
        return read_key_file(Path(source.removeprefix(_FILE)))
    if source == "provisioned":
        return _provisioned(provisioned)
    if simulated:
        raise DeniedError(
            f"expected file:PATH as the source of the key on the simulated platform, which cannot "
            f"protect a key, got {source!r}; keep the key in a file, or use a real platform"
        )
    bound = _needed(binding, source)
    if source == "snp":
        from avow.tee.snp.derived_key import read_derived_key

        return bind_key(read_derived_key(), bound)
    if source.startswith("gramine"):
        from avow.tee.configfs_tsm import KernelFiles
        from avow.tee.sgx.seal_key import read_seal_key

        return bind_key(read_seal_key(KernelFiles(), of_signer=source != "gramine"), bound)
    return bind_key(_unsealed(source, bound, device), bound)


def new_owner_key(
    source: str,
    binding: KeyBinding | None = None,
    *,
    simulated: bool = False,
    device: TpmDevice | None = None,
    say: Callable[[str], None] = lambda line: None,
    replaces: bool = False,
) -> bytes:
    """As `owner_key`, for a store that is made: `file:` and `tpm:` make their file, which must not
    be there. With `replaces`, a sealed key that is there is put aside. `say` is told what to write
    down.
    """
    check_source(source)
    keep_out_of_core_dumps()
    if source.startswith(_FILE):
        key = secrets.token_bytes(KEY_BYTES)
        write_key_file(Path(source.removeprefix(_FILE)), key)
        return key
    if not source.startswith(_SEALED) or simulated:
        return owner_key(source, binding, simulated=simulated, device=device)
    bound = _needed(binding, source)
    place = _tpm_place(source)
    if place.path.exists() and not replaces:
        raise UnavailableError(
            f"expected no file at {place.path}, where the sealed key will be made, got one; "
            "whoever put it there may know what is in it: move it away, or choose another "
            "path"
        )
    from avow.tee.tpm.sealing import seal

    secret = secrets.token_bytes(KEY_BYTES)
    with _Tpm(device) as tpm:
        blob, name = tpm.retried(
            lambda: seal(tpm, secret, _workload(bound), place.pcrs, parent=place.parent)
        )
    if replaces:
        _put_aside(place.path, say)
    write_new_file(place.path, blob.encoded(), "sealed key")
    made = replace(place, parent=name)
    pcrs = ", ".join(map(str, blob.pcrs))
    say(
        f"sealed to PCRs {pcrs}; to name this machine's TPM too, use {made} as the source of "
        "the key"
    )
    return bind_key(secret, bound)


def sealed_file(source: str) -> Path | None:
    """The file of the sealed key that `source` names, None where it names none."""
    return _tpm_place(source).path if source.startswith(_SEALED) else None


def key_of_store(
    source: str,
    binding: KeyBinding | None,
    *,
    made: bool,
    renewed: bool = False,
    provisioned: bytes | None = None,
    simulated: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> bytes:
    """As `owner_key`, for a program with a store. `made` is the store now, or (`renewed`) the key
    for a store that another one opened: then the file of the key is made too where it is not there,
    and a sealed one always. `say` is told.

    Who has the disk can put a sealed key there, even one that this TPM opens: what it sealed to its
    PCRs does not say who knows it. It opens no store that there is, and gets none that there will
    be.
    """
    path, sealed = key_file(source), sealed_file(source) is not None
    if (made or renewed) and path is not None and (sealed or not path.exists()):
        key = new_owner_key(source, binding, simulated=simulated, say=say, replaces=renewed)
        say(f"made a new key in {path}; keep a copy of it: nobody can open the store without it")
        return key
    return owner_key(source, binding, provisioned=provisioned, simulated=simulated)


def _put_aside(path: Path, say: Callable[[str], None]) -> None:
    """A sealed key that does not open its store any more may open another one, or this one after a
    downgrade; so it is kept, under a name of its own."""
    kept = path.with_name(f"{path.name}.{secrets.token_hex(4)}.old")
    try:
        path.replace(kept)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnavailableError(
            f"expected to put the sealed key {path} aside, got {error.strerror}; move it away"
        ) from error
    say(f"kept the sealed key that was there as {kept}")


def _provisioned(key: bytes | None) -> bytes:
    if key is None:
        raise UnavailableError(
            "expected a store key from the owner, got none; hand it over with `avow provision`"
        )
    return checked_key(key, "the owner")


def _needed(binding: KeyBinding | None, source: str) -> KeyBinding:
    if binding is None:
        raise MalformedError(
            f"expected file:PATH as the source of the key here, got {source!r}, which is bound to "
            f"the broker or program that it was made for; use an owner's key, such as the one "
            f"that --also-key adds"
        )
    return binding


def _unsealed(source: str, binding: KeyBinding, device: TpmDevice | None) -> bytes:
    from avow.tee.tpm.event_log import PCR
    from avow.tee.tpm.sealing import decode_blob, unseal

    place = _tpm_place(source)
    content = read_small_file(place.path, _BLOB_BYTES_MAX + 1, "sealed key")
    blob = decode_blob(content, str(place.path))
    if place.pcrs and {*place.pcrs, PCR} != set(blob.pcrs):
        raise DeniedError(
            f"expected a key that is sealed to the PCRs {sorted({*place.pcrs, PCR})}, got one to "
            f"{list(blob.pcrs)} in {place.path}; name the right ones, or make a new key"
        )
    with _Tpm(device) as tpm:
        return tpm.retried(lambda: unseal(tpm, blob, _workload(binding), parent=place.parent))


@dataclass(frozen=True, slots=True)
class _TpmPlace:
    """What `tpm:` names. `parent` is the Name (34 bytes) of the TPM's storage key."""

    path: Path
    pcrs: tuple[int, ...]
    parent: bytes | None

    def __str__(self) -> str:
        pcrs = f"@{','.join(map(str, self.pcrs))}" if self.pcrs else ""
        name = f"#{self.parent.hex()}" if self.parent is not None else ""
        return f"tpm:{self.path}{pcrs}{name}"


def _tpm_place(source: str) -> _TpmPlace:
    match = _TPM.fullmatch(source)
    pcrs = tuple(map(int, match[2].split(","))) if match is not None and match[2] else ()
    if match is None or any(number > _PCR_MAX for number in pcrs):
        raise MalformedError(
            f"expected tpm:PATH, tpm:PATH@0,2,4,7 (with numbers of PCRs) or either with #NAME as "
            f"the source of a key, got {source[:120]!r}; correct it"
        )
    return _TpmPlace(Path(match[1]), pcrs, None if match[3] is None else bytes.fromhex(match[3]))


def _workload(binding: KeyBinding) -> Workload:
    from avow.evidence.claims import BOOT_ID_BYTES, Workload

    # What is measured does not depend on when the process was started.
    return Workload(binding.module, binding.runtime, binding.configuration, bytes(BOOT_ID_BYTES))


class _Tpm:
    """The TPM that is open already, or the one that the environment names, for a while."""

    def __init__(self, device: TpmDevice | None) -> None:
        self._given = device
        self._own: TpmDevice | None = None

    def __enter__(self) -> TpmDevice:
        if self._given is not None:
            return self._given
        from avow.tee.tpm.attester import TpmSettings
        from avow.tee.tpm.device import TpmDevice

        settings = TpmSettings.from_environment(os.environ)
        self._own = TpmDevice(settings.tcti, settings.timeout_s)
        return self._own

    def __exit__(self, *exception: object) -> None:
        if self._own is not None:
            self._own.close()
