"""The same C sources, compiled by the same compiler for this machine and for WASI."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.sandbox.programs import ROOT, made, zig

SOURCES = Path(__file__).resolve().parent

# 128-bit vectors on both sides: SSE4.2 here, SIMD there. Multiply and add are not contracted, so
# that both compute the same numbers.
OPTIMISED = ("-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
NATIVE = ("-target", "x86_64-linux-gnu", "-mcpu=x86_64_v2")
WASI = ("-target", "wasm32-wasi", "-mcpu=generic+bulk_memory+sign_ext+nontrapping_fptoint+simd128")
TARGETS: Mapping[str, tuple[str, ...]] = {"native": NATIVE, "wasm": WASI}


def compiled(
    name: str, target: str, sources: Sequence[Path], flags: Sequence[str], links: Sequence[str] = ()
) -> Path:
    """An executable for `target` ("native" or "wasm"); compiled again only after a change."""
    result = f"bench-{name}.wasm" if target == "wasm" else f"bench-{name}"
    files = [path.relative_to(ROOT).as_posix() for path in sources]
    command = ["cc", *TARGETS[target], *flags, *files, *links]
    headers = sorted(SOURCES.rglob("*.h"))
    inputs: list[str | bytes] = [
        *command,
        *(hashlib.sha256(path.read_bytes()).digest() for path in sources),
    ]
    inputs += [path.read_bytes() for path in headers]
    return made(result, inputs, lambda fresh: zig([*command, "-o", fresh]))
