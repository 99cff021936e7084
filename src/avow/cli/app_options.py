"""What makes the effective configuration of a program: for `avow run` and `avow measure app`."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from avow.cli.anchors import NONE as NO_ANCHOR
from avow.cli.anchors import check_anchor
from avow.cli.folder import Folder
from avow.cli.store_keys import check_source
from avow.errors import MalformedError, ModuleError, UnavailableError
from avow.sandbox.grants import ALL_OF_THE_STORE, KINDS, Grants, configuration_digest, parse_grants
from avow.sandbox.limits import Limits
from avow.sealing.measured_sources import measured_anchor, measured_key

Command = TypeVar("Command", bound=Callable[..., Any])

MODULE_BYTES_MAX: Final = 1 << 30
_PROGRAM_ARGUMENTS: Final = "avow.program_arguments"
_LIMITS: Final = ("memory_max_bytes", "stack_max_bytes", "run_timeout_s", "fuel")

_OPTIONS: Final = (
    click.argument("module", required=False, type=click.Path(path_type=Path, dir_okay=False)),
    click.option(
        "--app",
        "app_file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Module, arguments, grants and limits from FILE, a TOML file such as app.toml.",
    ),
    click.option(
        "--grant",
        "grants",
        multiple=True,
        metavar="GRANT",
        help=f"Grant the program: {'; '.join(KINDS.values())}. May be repeated.",
    ),
    click.option(
        "--store",
        "store_folder",
        type=Folder(),
        metavar="DIR",
        help="The sealed store. Without a sealed grant the program sees all of its /files as /.",
    ),
    click.option(
        "--provision-listen",
        metavar="PLACE",
        help="Wait at PLACE (host:port) for the owner's secrets; see `avow provision`.",
    ),
    click.option(
        "--provision-owner",
        metavar="DIGEST",
        help="With --provision-listen: `sha256:` and the digest of the owner's key. It is part of "
        "the measured configuration.",
    ),
    click.option(
        "--timeout-s",
        "run_timeout_s",
        type=float,
        metavar="N",
        help="How long the program may run.",
    ),
    click.option(
        "--fuel", type=int, metavar="N", help="Roughly how many instructions the program may run."
    ),
    click.option(
        "--memory-max-bytes", type=int, metavar="N", help="The most linear memory that it may have."
    ),
    click.option(
        "--stack-max-bytes", type=int, metavar="N", help="The most stack that its calls may take."
    ),
)


@dataclass(frozen=True, slots=True)
class EffectiveApp:
    """File and command line, joined. `arguments`: all that the program sees, its name first.
    `provisioning`: where it waits for its owner, and who that is. `store`: what is measured of its
    keys and its anchor. `roots`: the files of its endorsements that hold roots and keys, by name,
    as they were read; None without a folder."""

    module: Path
    arguments: tuple[str, ...]
    grants: Grants
    limits: Limits
    provisioning: tuple[str, str] | None = None
    store: Mapping[str, str | None] | None = None
    roots: Mapping[str, bytes] | None = field(default=None, repr=False)

    @property
    def configuration(self) -> bytes:
        """The digest (32 bytes) of all this, but for the module."""
        return configuration_digest(
            self.arguments,
            self.grants,
            self.limits.measured(),
            owner=None if self.provisioning is None else self.provisioning[1],
            store=self.store,
            endorsements=None
            if self.roots is None
            else {
                name: f"sha256:{hashlib.sha256(content).hexdigest()}"
                for name, content in self.roots.items()
            },
        )


class ProgramCommand(click.Command):
    """A command whose arguments behind `--` are those of a program, whatever they look like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps them from click."""
        own, behind = args, list[str]()
        if "--" in args:
            at = args.index("--")
            own, behind = args[:at], args[at + 1 :]
        ctx.meta[_PROGRAM_ARGUMENTS] = tuple(behind)
        try:
            return super().parse_args(ctx, own)
        except click.UsageError as error:
            if "unexpected extra argument" in error.message:
                raise click.UsageError(
                    f"{error.message}; write the program's arguments after `--`", ctx
                ) from error
            raise

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Says that there can be some."""
        return [*super().collect_usage_pieces(ctx), "[-- ARGUMENT...]"]


def app_options(command: Command) -> Command:
    """Adds the options to a `ProgramCommand`; `effective_app` takes what they give."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def effective_app(given: dict[str, Any]) -> EffectiveApp:
    """What was given, joined: by `app_options`, `store_options` and `trust_options`.

    Raises an `AvowError`.
    """
    module, grants, limits = given["module"], Grants(), Limits()
    listen, owner = given["provision_listen"], given["provision_owner"]
    arguments: tuple[str, ...] = ()
    if given["app_file"] is not None:
        from avow.sandbox.app_file import load_app

        app = load_app(given["app_file"])
        arguments, grants, limits = app.arguments, app.grants, app.limits
        if app.provisioning is not None:
            listen, owner = listen or app.provisioning.listen, owner or app.provisioning.owner
        if module is not None and module.resolve() != app.module.resolve():
            raise MalformedError(
                f"expected one module, got {module} and that of {given['app_file']}; leave one "
                "out (write the program's arguments after `--`)"
            )
        module = app.module
    if module is None:
        raise click.UsageError("expected a module or --app, got neither; name one of them")
    grants = grants.joined(parse_grants(given["grants"], folder=Path.cwd()))
    if given["store_folder"] is not None and not grants.sealed:
        grants = replace(grants, sealed=(ALL_OF_THE_STORE,))
    if given["store_folder"] is None and grants.sealed:
        raise MalformedError(
            f"expected a store for the grant sealed:{grants.sealed[0].guest}, got none; name it "
            f"with --store"
        )
    if grants.provisioned and listen is None and owner is None:
        raise MalformedError(
            f"expected an owner for the grant provisioned:{grants.provisioned[0]}, which shows "
            "files of the owner's, got none; add --provision-listen and --provision-owner"
        )
    behind = click.get_current_context().meta[_PROGRAM_ARGUMENTS]
    limits = limits.overridden({name: given[name] for name in _LIMITS})
    return EffectiveApp(
        module,
        (module.name, *arguments, *behind),
        grants,
        limits,
        _provisioning(listen, owner),
        _store(given),
        None
        if given["endorsements"] is None
        else _roots(given["endorsements"], attest=given["attest"]),
    )


def _store(given: dict[str, Any]) -> dict[str, str | None] | None:
    folder, key, also = given["store_folder"], given["key"], given["also_key"]
    if folder is None:
        for name in ("key", "also_key", "anchor", "new_store", "accept_rollback"):
            if given[name] not in (None, False, NO_ANCHOR):
                raise MalformedError(
                    f"expected --store with --{name.replace('_', '-')}, got none; add it"
                )
        return None
    if key is None:
        quoted = shlex.quote(str(folder))
        raise MalformedError(
            "expected --key SOURCE with --store, got none; name the store's key, or make a "
            f"store and its key and run with them:\n  avow store init {quoted} --new-key "
            f"file:owner.key\n  avow run --store {quoted} --key file:owner.key PROGRAM"
        )
    for source in (key, also):
        if source is not None:
            check_source(source)
    check_anchor(given["anchor"])
    return {
        "key": measured_key(key),
        "also_key": None if also is None else measured_key(also),
        "anchor": measured_anchor(given["anchor"]),
    }


def _roots(folder: Path, *, attest: bool) -> dict[str, bytes]:
    if not attest:
        raise MalformedError(
            "expected --attest with --endorsements, got none; add it, or leave --endorsements "
            "out: only a program that judges others needs them"
        )
    from avow.broker.measured_configuration import anchor_files
    from avow.channel.named_files import read_named_file

    if not folder.is_dir():
        raise UnavailableError(
            f"expected a folder of endorsements at {folder}, got none; correct the path"
        )
    return {
        path.relative_to(folder).as_posix(): read_named_file(path, "root")
        for path in anchor_files(folder)
    }


def _provisioning(listen: str | None, owner: str | None) -> tuple[str, str] | None:
    if listen is None and owner is None:
        return None
    if listen is None or owner is None:
        raise MalformedError(
            "expected the place and the owner for provisioning, got only one of them; give "
            "both --provision-listen and --provision-owner, or both keys of [provisioning]"
        )
    from avow.channel.provisioning import parse_owner, parse_place

    parse_place(listen)
    parse_owner(owner)
    return listen, owner


def read_module(path: Path) -> bytes:
    """The bytes of a module, read once: these are measured, and these run.

    Raises `ModuleError` for what is no file or far too large, `UnavailableError` when it cannot be
    read.
    """
    try:
        if not path.is_file():
            raise ModuleError(f"expected a WebAssembly file at {path}, got none; correct the path")
        with path.open("rb") as file:
            content = file.read(MODULE_BYTES_MAX + 1)
    except OSError as error:
        raise UnavailableError(
            f"expected a readable module, got {error.strerror!r} for {path}; correct the path"
        ) from error
    if len(content) > MODULE_BYTES_MAX:
        raise ModuleError(
            f"expected a module of at most {MODULE_BYTES_MAX} bytes, got more in {path}"
        )
    return content
