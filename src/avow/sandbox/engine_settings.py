"""How modules are compiled, in one place: for the broker's core and for programs.

Memory checks stay on: wasmtime makes them with guard pages behind a reservation of 4 GiB, which
costs nothing. A setting that could weaken a check, or take compiled code from elsewhere, cannot
even be written here: only the names and values of `_ALLOWED` reach wasmtime's configuration.

There is no interruption by epochs: it made a loop over memory 2.0 times as slow where it was
measured (bench/start.py repeats it). A program that has to be stopped from outside is stopped by
ending its process, which the sealed store survives at any moment.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from wasmtime import Config, Engine, Store
from wasmtime import _ffi as wasmtime_ffi

from avow.errors import DeniedError
from avow.sandbox.limits import (
    COMPONENT_TABLES_MAX,
    HOST_STACK_BYTES,
    STACK_BYTES_MAX,
    STACK_BYTES_MIN,
    TABLE_ELEMENTS_MAX,
    Limits,
)

Settings = Mapping[str, Any]

CORE_SETTINGS: Final[Settings] = {
    "cranelift_opt_level": "speed",
    "wasm_threads": False,
    "wasm_memory64": False,
    "wasm_multi_memory": False,
}

# Atomic instructions on a memory of its own are an ordinary program's (compilers emit them for
# one that has no thread); what makes a thread possible is a shared memory, and there is none.
# Relaxed SIMD may give other results on other machines; like this it gives the same.
_PROGRAM_SETTINGS: Final[Settings] = {
    **CORE_SETTINGS,
    "wasm_threads": True,
    "shared_memory": False,
    "wasm_simd": True,
    "wasm_relaxed_simd_deterministic": True,
    "wasm_exceptions": True,
    "wasm_stack_switching": False,
}

# Everything that may be said, and how. Not here and so never set: guard pages and reservations of
# memory, traps without signals, foreign targets and flags, wasmtime's own cache on the disk.
_ALLOWED: Final[Mapping[str, tuple[Any, ...] | range]] = {
    "cranelift_opt_level": ("speed",),
    "wasm_threads": (False, True),
    "shared_memory": (False,),
    "wasm_memory64": (False,),
    "wasm_multi_memory": (False,),
    "wasm_simd": (True,),
    "wasm_relaxed_simd_deterministic": (True,),
    "wasm_exceptions": (True,),
    "wasm_stack_switching": (False,),
    "wasm_component_model": (False, True),
    "concurrency_support": (False,),
    "consume_fuel": (False, True),
    "max_wasm_stack": range(STACK_BYTES_MIN, STACK_BYTES_MAX + 1),
}

# What wasmtime's C interface can set and `Config` has no property for.
_WITHOUT_PROPERTY: Final[Mapping[str, Callable[[Any, Any], None]]] = {
    "concurrency_support": wasmtime_ffi.wasmtime_config_concurrency_support_set,
}


def program_settings(limits: Limits, *, component: bool) -> Settings:
    """The settings for one program."""
    return {
        **_PROGRAM_SETTINGS,
        "wasm_component_model": component,
        # WASI 0.2 is not asynchronous. Were this on, wasmtime 50 would stop a component that lends
        # two handles in one call to the host, as it has to for renaming a file.
        **({"concurrency_support": False} if component else {}),
        "consume_fuel": limits.fuel is not None,
        "max_wasm_stack": limits.stack_max_bytes,
    }


def configured(settings: Settings) -> Config:
    """wasmtime's configuration. Raises `DeniedError` for anything that is not allowed here."""
    for name, value in settings.items():
        allowed = _ALLOWED.get(name)
        if allowed is None or isinstance(value, float) or value not in allowed:
            raise DeniedError(
                f"expected a setting of the engine that weakens nothing, got {name} = {value!r}; "
                f"add it to the allowed ones if it is harmless"
            )
    config = Config()
    stack = settings.get("max_wasm_stack")
    if stack is not None:
        # wasmtime wants the stacks of asynchronous calls, which nothing here uses, to be larger.
        wasmtime_ffi.wasmtime_config_async_stack_size_set(config.ptr(), stack + HOST_STACK_BYTES)
    for name, value in settings.items():
        if name in _WITHOUT_PROPERTY:
            _WITHOUT_PROPERTY[name](config.ptr(), value)
        else:
            setattr(config, name, value)
    return config


def engine_for(settings: Settings) -> Engine:
    """An engine with exactly these settings. Raises `DeniedError` as `configured`."""
    return Engine(configured(settings))


def limited_store(
    engine: Engine,
    limits: Limits,
    *,
    instances: int,
    memories: int,
    tables: int = COMPONENT_TABLES_MAX,
) -> Store:
    """Where one program runs, module or component, and takes no more than it may."""
    store = Store(engine)
    store.set_limits(
        memory_size=limits.memory_max_bytes,
        table_elements=TABLE_ELEMENTS_MAX,
        instances=instances,
        tables=tables,
        memories=memories,
    )
    if limits.fuel is not None:
        store.set_fuel(limits.fuel)
    return store


def fingerprint(settings: Settings) -> bytes:
    """All that decides what code a module becomes, as 32 bytes: code is used for the same one only.

    That is the settings (all of them, which is simpler than to know which matter), wasmtime's
    version, and the processor's features.
    """
    content = {
        "settings": dict(settings),
        "wasmtime": importlib.metadata.version("wasmtime"),
        "machine": platform.machine(),
        "features": _processor_features(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


def _processor_features() -> str:
    """What Linux says that the first processor can do; empty where it does not say."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return value.strip()
    except OSError:
        return ""
    return ""
