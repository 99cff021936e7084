"""`avow run`: a program in the sandbox, with nothing but what was granted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from avow.cli.app_options import (
    EffectiveApp,
    ProgramCommand,
    app_options,
    effective_app,
    read_module,
)
from avow.cli.command_error import configuration_errors, operation_errors, storage_errors
from avow.cli.program_store import NoStore, ProgramStore, open_program_store, store_options
from avow.cli.program_trust import ProgramTrust, program_trust, trust_options
from avow.cli.progress import progress
from avow.cli.supervision import end_at_once, native_signals, supervise
from avow.errors import AvowError, MalformedError, ModuleError, UntrustedError
from avow.runtime.sealed import callers_environment
from avow.sandbox.grants import Grants
from avow.sandbox.program import Program, Surroundings, check_imports, kind_of, load
from avow.sealing.store import Store


@click.command(cls=ProgramCommand)
@app_options
@store_options
@trust_options
def run(**given: Any) -> int:
    """Run the WebAssembly program MODULE with only what you grant.

    MODULE is a command of WASI preview 1, or a component of preview 2. Its arguments follow `--`.
    avow exits with the program's exit code. Signals end it as they end a native program.

    \b
    avow run app.wasm
    avow run app.wasm --store ./data --key file:owner.key --grant clock:realtime -- --verbose
    avow run --app app.toml --store ./data --key file:owner.key
    """
    native_signals()
    with configuration_errors(), storage_errors():
        app = effective_app(given)
        content = read_module(app.module)
        # Before a store is opened, or even made, for what is no program.
        kind_of(content)
    return _run(app, content, given)


def _run(app: EffectiveApp, content: bytes, given: dict[str, Any]) -> int:
    module = hashlib.sha256(content).digest()
    with (
        operation_errors(),
        storage_errors(),
        program_trust(app, module, given, _say) as trust,
        _store(app, module, given, trust) as store,
    ):
        with configuration_errors(), storage_errors():
            check_imports(content, app.grants, trust.imports)
        with progress(f"compiling {app.module.name}"):
            program = load(content, limits=app.limits, cache=store.cache)
        if program.sha256 != module:
            raise UntrustedError(
                f"expected to run the module {module.hex()} that was measured, got "
                f"{program.sha256.hex()}; report this"
            )
        with configuration_errors(), storage_errors():
            program.check(app.grants, trust.imports)
            _check_library(program, app)
            _prepare_folders(app.grants, store.store)
        surroundings = Surroundings(
            arguments=app.arguments,
            grants=app.grants,
            environment=trust.environment(callers_environment(), app.grants),
            store=store.store,
            denied=_say,
            extra_imports=trust.imports,
            keep_up=store.keep_up,
            provisioned=trust.files,
        )
        with store.anchored(lambda error: end_at_once(error, store)):
            return supervise(lambda: program.start(surroundings), app.limits, store)


def _check_library(program: Program, app: EffectiveApp) -> None:
    """A library looks like a program that worked: it ends with 0 and has said nothing."""
    if not program.is_library:
        return
    if len(app.arguments) > 1:
        raise ModuleError(
            f"expected a program, which exports `_start`, got the library {app.module.name} "
            f"(a reactor), which reads no arguments; build it as a command, or call its functions "
            f"from a program of yours"
        )
    _say(
        f"{app.module.name} is a library (a reactor): avow runs only its `_initialize`, and "
        "calls none of its functions"
    )


@contextmanager
def _store(
    app: EffectiveApp, module: bytes, given: dict[str, Any], trust: ProgramTrust
) -> Iterator[ProgramStore | NoStore]:
    """The program's store, kept at the end however the program ends."""
    store = open_program_store(
        given["store_folder"],
        module,
        app.configuration,
        given,
        _say,
        provisioned=trust.store_key,
    )
    try:
        yield store
    except AvowError:
        store.close()
        raise
    store.close()


def _prepare_folders(grants: Grants, store: Store | None) -> None:
    """Granted folders are there: sealed ones are made, so that a first run needs no preparation."""
    for each in grants.plain:
        if not each.host.is_dir():
            raise MalformedError(
                f"expected a folder {each.host} for the grant plain:{each.guest}, got none; "
                "create it, or correct the path"
            )
    for sealed in grants.sealed:
        path = f"/files/{sealed.folder}".rstrip("/")
        if store is None or store.exists(path):
            continue
        if sealed.read_only:
            raise MalformedError(
                f"expected {path} in the store for the grant sealed:{sealed.guest}:ro, got none; "
                f"fill it with `avow store put`"
            )
        store.make_directory(path, parents=True)


def _say(sentence: str) -> None:
    click.echo(f"avow: {sentence}", err=True)
