"""Where the compiled parts of avow lie inside the package."""

from __future__ import annotations

from pathlib import Path

from avow.errors import UnavailableError

CORE_NAME = "broker.wasm"
PUMP_NAME = "libavow_pump.so"
VAULT_NAME = "libavow_vault.so"

_NATIVE_DIRECTORY = Path(__file__).resolve().parent / "_native"


def core_path() -> Path:
    """The broker's core, a WebAssembly module. Raises UnavailableError when it was not built."""
    return _existing(CORE_NAME)


def pump_path() -> Path:
    """The pump, a native shared library. Raises UnavailableError when it was not built."""
    return _existing(PUMP_NAME)


def vault_path() -> Path:
    """Sealed storage and WASI, a native shared library. Raises UnavailableError when not built."""
    return _existing(VAULT_NAME)


def _existing(name: str) -> Path:
    path = _NATIVE_DIRECTORY / name
    if not path.is_file():
        raise UnavailableError(
            f"expected {path}, got no such file; build it with `make build` in a checkout, "
            "or with `pip install .`"
        )
    return path
