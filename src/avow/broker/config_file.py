"""Reads `avow.toml`, lets the command line override it, and says in one sentence what is wrong."""

from __future__ import annotations

import difflib
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from avow.broker.config import Configuration, table_of
from avow.channel.address import parse_listen_address
from avow.channel.named_files import read_named_text
from avow.channel.provisioning import provisioned_name
from avow.errors import AvowError, MalformedError
from avow.sealing.keys import source_in


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says; None and empty mean that it says nothing.

    `listen` replaces the file's listeners; `cert`, `key`, `client_ca`, `psk_file` and
    `client_policy` go to every TLS listener; `tee` goes to the table [attestation]; `store`,
    `store_key`, `also_key`, `durability` and `anchor` to the table [store]. Paths are
    relative to the working directory, unlike those in the file.
    """

    listen: Sequence[str] = ()
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    psk_file: Path | None = None
    client_policy: Path | None = None
    tee: str | None = None
    allow_anonymous: bool | None = None
    password_file: Path | None = None
    store: Path | None = None
    store_key: str | None = None
    also_key: str | None = None
    durability: str | None = None
    anchor: str | None = None
    files: Mapping[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        named = {
            "cert": self.cert,
            "key": self.key,
            "client_ca": self.client_ca,
            "psk_file": self.psk_file,
            "client_policy": self.client_policy,
        }
        given = {name: _absolute(path) for name, path in named.items() if path is not None}
        object.__setattr__(self, "files", given)


def load_configuration(path: Path | None, overrides: Overrides) -> Configuration:
    """The configuration of a file (None: the defaults) under `overrides`.

    Raises `UnavailableError` when the file cannot be read, `MalformedError` for what is in it.
    """
    source = "the command line" if path is None else str(path)
    content = {} if path is None else _parse_toml(path)
    _override(content, overrides)
    folder = Path() if path is None else path.absolute().parent
    try:
        return Configuration.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        raise MalformedError(_sentence(error.errors(include_url=False), source)) from error


def _parse_toml(path: Path) -> dict[str, Any]:
    text = read_named_text(path, "configuration")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MalformedError(f"expected TOML in {path}, got {error}; correct that line") from error


def _override(content: dict[str, Any], overrides: Overrides) -> None:
    if overrides.listen:
        content["listeners"] = [{"url": url} for url in overrides.listen]
    if overrides.files:
        encrypted = [entry for entry in _listener_tables(content) if _is_encrypted(entry)]
        if not encrypted:
            names = ", ".join("--" + name.replace("_", "-") for name in overrides.files)
            raise MalformedError(
                f"expected a listener with TLS for {names}, got none; "
                f"add --listen mqtts://127.0.0.1:8883"
            )
        for entry in encrypted:
            entry.update(overrides.files)
    if overrides.allow_anonymous is not None:
        content["allow_anonymous"] = overrides.allow_anonymous
        for entry in _listener_tables(content):
            entry.pop("allow_anonymous", None)
    if overrides.tee is not None:
        table = content.setdefault("attestation", {})
        if isinstance(table, dict):
            table["tee"] = overrides.tee
    _override_store(content, overrides)
    if overrides.password_file is not None:
        content["password_file"] = _absolute(overrides.password_file)


def _absolute(path: Path) -> Path:
    """`provisioned:NAME` is no path."""
    return path if provisioned_name(path) is not None else path.absolute()


def _absolute_source(source: str | None) -> str | None:
    return None if source is None else source_in(Path.cwd(), source)


_STORE_OPTIONS: Final = {
    "directory": "--store",
    "key": "--store-key",
    "also_key": "--also-key",
    "durability": "--durability",
    "anchor": "--anchor",
}


def _override_store(content: dict[str, Any], overrides: Overrides) -> None:
    said = {
        "directory": None if overrides.store is None else str(overrides.store.absolute()),
        "key": _absolute_source(overrides.store_key),
        "also_key": _absolute_source(overrides.also_key),
        "durability": overrides.durability,
        "anchor": overrides.anchor,
    }
    given = {name: value for name, value in said.items() if value is not None}
    if not given:
        return
    table = content.setdefault("store", {})
    if isinstance(table, dict):
        table.update(given)
        if "directory" not in table:
            names = ", ".join(_STORE_OPTIONS[name] for name in given)
            raise MalformedError(f"expected --store DIR with {names}, got none; add it")
        if "key" not in table:
            folder = shlex.quote(str(table["directory"]))
            raise MalformedError(
                "expected --store-key SOURCE with --store, got none; name the store's key, "
                "or make a store and its key and start with them:\n"
                f"  avow store init {folder} --new-key file:owner.key\n"
                f"  avow broker --store {folder} --store-key file:owner.key"
            )


def _listener_tables(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The listeners of a file that has not been validated yet."""
    listeners = content.get("listeners")
    if not isinstance(listeners, list):
        return []
    return [entry for entry in listeners if isinstance(entry, dict)]


def _is_encrypted(entry: Mapping[str, Any]) -> bool:
    url = entry.get("url")
    if not isinstance(url, str):
        return False
    try:
        return parse_listen_address(url).scheme.encrypted
    except AvowError:
        return False


def _sentence(errors: Sequence[ErrorDetails], source: str) -> str:
    """All problems, a line each, unknown keys before all others: they often explain them."""
    in_order = sorted(errors, key=lambda error: error["type"] != "extra_forbidden")
    return "\n".join(dict.fromkeys(_problem(error, source) for error in in_order))


def _problem(error: ErrorDetails, source: str) -> str:
    place = _place(error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown_key(error["loc"], source)
    if error["type"] == "missing":
        return f"expected the key `{place}` in {source}, got none; add it"
    if error["type"] == "value_error":
        # These sentences are our own, from the validators of the schema.
        own = error["msg"].removeprefix("Value error, ")
        return f"{own} (`{place}` in {source})" if place else f"{own} (in {source})"
    wanted = error["msg"].removeprefix("Input should be ")
    wanted = wanted[0].lower() + wanted[1:]
    if wanted.startswith(("greater", "less")):
        wanted = f"a value {wanted}"
    return (
        f"expected {wanted} for `{place}` in {source}, got {_shown(error['input'])}; "
        f"correct the value"
    )


def _shown(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            text = repr(value)
            return text if len(text) <= 60 else text[:57] + "..."


def _place(location: Sequence[int | str]) -> str:
    """`listeners[2].cert`: tables of a list counted from 1, as people do."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += f".{part}" if text else part
    return text


def _unknown_key(location: Sequence[int | str], source: str) -> str:
    known = sorted(_keys_beside(location))
    name = str(location[-1])
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean `{near[0]}`?" if near else f"the keys here are {', '.join(known)}"
    return f"expected a known key in {source}, got `{_place(location)}`; {advice}"


def _keys_beside(location: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Configuration
    for part in location[:-1]:
        if isinstance(part, str):
            inner, _ = table_of(model.model_fields[part].annotation)
            if inner is None:
                break
            model = inner
    return list(model.model_fields)
