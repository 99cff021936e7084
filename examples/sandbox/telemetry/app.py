"""A component in Python: reads telemetry, refuses what is nonsense, and writes a summary.

    telemetry /readings/today.jsonl /kept/summary.json

A line of the file is `{"sensor": "s1", "time_s": 1, "value": 20.5}`. It is made into a WebAssembly
component (WASI preview 2) by componentize-py, with CPython and this file inside.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any


def summary(lines: list[str]) -> dict[str, Any]:
    """Count, mean, extremes and jumps for each sensor, and how many lines were no readings."""
    values: dict[str, list[float]] = {}
    refused = 0
    for line in lines:
        try:
            reading = json.loads(line)
            sensor, value = str(reading["sensor"]), float(reading["value"])
        except (ValueError, KeyError, TypeError):
            refused += 1
            continue
        if not math.isfinite(value):
            refused += 1
            continue
        values.setdefault(sensor, []).append(value)
    sensors = {
        name: {
            "count": len(found),
            "mean": round(statistics.fmean(found), 6),
            "least": min(found),
            "most": max(found),
        }
        for name, found in sorted(values.items())
    }
    return {"sensors": sensors, "refused": refused}


class Run:
    """What `wasi:cli/run` asks for."""

    def run(self) -> None:
        """Raises SystemExit with 2 when the two files are not named."""
        if len(sys.argv) != 3:
            print("usage: telemetry READINGS SUMMARY", file=sys.stderr)
            raise SystemExit(2)
        found = summary(Path(sys.argv[1]).read_text().splitlines())
        kept = Path(sys.argv[2])
        # Whoever reads it finds the old one or the new one, never a part.
        fresh = kept.with_name(f"{kept.name}.new")
        fresh.write_text(json.dumps(found, indent=1) + "\n")
        fresh.replace(kept)
        print(f"sensors: {len(found['sensors'])}, lines refused: {found['refused']}")
