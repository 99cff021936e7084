"""avow on a TEE that takes its time: a stand-in for hardware that this machine does not have.

    python -m bench.attestation.slow_tee PLATFORM SECONDS broker --config avow.toml

Every quote of the platform takes at least SECONDS; all else is `avow`.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from avow.cli import main as avow
from avow.evidence.report_data import ReportData

_ATTESTERS: Final[Mapping[str, tuple[str, str]]] = {
    "simulated": ("avow.tee.simulated.attester", "SimulatedAttester"),
    "tpm": ("avow.tee.tpm.attester", "TpmAttester"),
}


def slowed(quote: Callable[[Any, ReportData], bytes], quote_s: float) -> Callable[..., bytes]:
    """The method `quote`, so that it lasts at least `quote_s`."""

    def slow(self: Any, report_data: ReportData) -> bytes:
        end_s = time.monotonic() + quote_s
        report = quote(self, report_data)
        time.sleep(max(0.0, end_s - time.monotonic()))
        return report

    return slow


def main() -> None:
    module, name = _ATTESTERS[sys.argv.pop(1)]
    attester: Any = getattr(importlib.import_module(module), name)
    attester.quote = slowed(attester.quote, float(sys.argv.pop(1)))
    # As hardware: whoever asks it waits.
    attester.answers_at_once = False
    avow()


if __name__ == "__main__":
    main()
