"""No setting of the engine weakens a check, and none can be added by accident."""

from __future__ import annotations

from typing import Any

import pytest
from wasmtime import Config

from avow.errors import DeniedError, MalformedError
from avow.sandbox import engine, engine_settings
from avow.sandbox.engine_settings import CORE_SETTINGS, configured, program_settings
from avow.sandbox.limits import Limits
from avow.sandbox.program import load

MODULE = b"\0asm\x01\0\0\0"


@pytest.fixture
def settings_made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All that is set on wasmtime's configurations, by whomever."""
    made: list[dict[str, Any]] = []

    class Spy(Config):
        def __init__(self) -> None:
            made.append({})
            super().__init__()

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_"):
                made[-1][name] = value
            super().__setattr__(name, value)

    monkeypatch.setattr(engine_settings, "Config", Spy)
    return made


def test_of_a_program(settings_made: list[dict[str, Any]]) -> None:
    load(MODULE, limits=Limits(fuel=7, stack_max_bytes=1 << 20))
    assert settings_made == [
        {
            "cranelift_opt_level": "speed",
            "wasm_threads": True,
            "shared_memory": False,
            "wasm_memory64": False,
            "wasm_multi_memory": False,
            "wasm_simd": True,
            "wasm_relaxed_simd_deterministic": True,
            "wasm_exceptions": True,
            "wasm_stack_switching": False,
            "wasm_component_model": False,
            "consume_fuel": True,
            "max_wasm_stack": 1 << 20,
        }
    ]


def test_of_the_core(settings_made: list[dict[str, Any]]) -> None:
    with pytest.raises(MalformedError, match="memory"):
        engine.load(MODULE)
    assert settings_made == [dict(CORE_SETTINGS)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signals_based_traps", False),
        ("memory_guard_size", 0),
        ("memory_reservation", 0),
        ("memory_may_move", True),
        ("cache", True),
        ("target", "pulley64"),
        ("shared_memory", True),
        ("wasm_memory64", True),
        ("cranelift_opt_level", "none"),
        ("profiler", "perfmap"),
        ("epoch_interruption", True),
        ("max_wasm_stack", 1 << 31),
        ("max_wasm_stack", 1048576.0),
        ("strategy", "auto"),
    ],
)
def test_others_are_refused(name: str, value: Any) -> None:
    settings = program_settings(Limits(), component=False)
    configured(settings)
    with pytest.raises(DeniedError, match=name):
        configured({**settings, name: value})
