"""`app.toml`: a program, its arguments, grants and limits (docs/reference/grants.md).

Relative paths in it are below the folder that it lies in.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from avow.errors import MalformedError, UnavailableError
from avow.sandbox.grants import Grants, parse_grants
from avow.sandbox.limits import Limits

FILE_BYTES_MAX: Final = 1 << 20


class LimitsTable(BaseModel):
    """The table [limits]; what it does not name is as without it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    memory_max_bytes: int | None = Field(
        default=None,
        description="The most linear memory. Without it 4 GiB, the most that WebAssembly has.",
    )
    stack_max_bytes: int | None = Field(
        default=None, description="The most stack for nested calls. Without it 8 MiB."
    )
    run_timeout_s: float | None = Field(
        default=None, description="The longest run, in seconds. Without it no bound."
    )
    fuel: int | None = Field(
        default=None,
        description=(
            "The most fuel: about one unit an instruction, and the same number for the same "
            "input. It costs speed."
        ),
    )


class ProvisioningTable(BaseModel):
    """The table [provisioning]: with it, the program waits for secrets before it starts."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    listen: str = Field(
        min_length=1, description="Where the program waits for its owner: host:port."
    )
    owner: str = Field(
        min_length=1, description="`sha256:` and the digest of the owner's key. It is measured."
    )


class AppFile(BaseModel):
    """The keys of the file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    module: str = Field(min_length=1, description="The .wasm file: a module or a component.")
    args: list[str] = Field(
        default=[], description="Arguments; those of the command line come after them."
    )
    grants: list[str] = Field(
        default=[], description="What the program may use, written as for `--grant`."
    )
    limits: LimitsTable = Field(default=LimitsTable(), description="The table [limits].")
    provisioning: ProvisioningTable | None = Field(
        default=None, description="The table [provisioning]."
    )


_TABLES: Final[dict[str, type[BaseModel]]] = {
    "limits": LimitsTable,
    "provisioning": ProvisioningTable,
}


@dataclass(frozen=True, slots=True)
class App:
    """What is in the file, with paths made absolute."""

    module: Path
    arguments: tuple[str, ...]
    grants: Grants
    limits: Limits
    provisioning: ProvisioningTable | None = None


def load_app(path: Path) -> App:
    """The app of a file.

    Raises `UnavailableError` when it cannot be read and `MalformedError` for what is in it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UnavailableError(
            f"expected a readable file for --app, got {error.strerror!r} for {path}; correct the "
            f"path"
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise MalformedError(
            f"expected at most {FILE_BYTES_MAX} bytes, got more in {path}; correct the path"
        )
    return parse_app(content, folder=path.absolute().parent, name=str(path))


def parse_app(content: bytes, *, folder: Path, name: str) -> App:
    """The app that `content` is; `name` says in messages where it comes from.

    Raises `MalformedError` with the key that is wrong.
    """
    try:
        table = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise MalformedError(f"expected TOML in {name}, got {error}; correct that line") from error
    try:
        read = AppFile.model_validate(table)
    except ValidationError as error:
        raise MalformedError(_sentence(error.errors(include_url=False), name)) from error
    try:
        grants = parse_grants(read.grants, folder=folder)
        limits = Limits().overridden(read.limits.model_dump())
    except MalformedError as error:
        raise MalformedError(f"{name}: {error}") from error
    _check_arguments(read.args, name)
    return App(folder / read.module, tuple(read.args), grants, limits, read.provisioning)


def _check_arguments(arguments: Sequence[str], name: str) -> None:
    for number, text in enumerate(arguments, 1):
        if "\0" in text:
            raise MalformedError(
                f"expected no zero byte in `args[{number}]` of {name}, got one; remove it"
            )


def _sentence(errors: Sequence[ErrorDetails], name: str) -> str:
    """The first problem, an unknown key before all others: it often explains them."""
    unknown = [each for each in errors if each["type"] == "extra_forbidden"]
    first = (unknown or list(errors))[0]
    key = "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in first["loc"])[1:]
    if unknown:
        table = _TABLES.get(str(first["loc"][0]), AppFile) if len(first["loc"]) > 1 else AppFile
        near = difflib.get_close_matches(str(first["loc"][-1]), table.model_fields, n=1)
        known = ", ".join(table.model_fields)
        advice = f"did you mean `{near[0]}`?" if near else f"the keys here are {known}"
        return f"expected a known key in {name}, got `{key}`; {advice}"
    if first["type"] == "missing":
        return f"expected the key `{key}` in {name}, got none; add it"
    wanted = first["msg"].removeprefix("Input should be ")
    return (
        f"expected {wanted[:1].lower()}{wanted[1:]} for `{key}` in {name}, got "
        f"{first['input']!r:.60}; correct the value"
    )
