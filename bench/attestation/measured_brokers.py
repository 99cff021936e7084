"""The broker of this checkout with attestation, on a TEE that is as fast or as slow as one says."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.brokers import ROOT, Avow, Certificate


@dataclass(frozen=True, slots=True)
class Tee:
    """What the broker attests itself by.

    With `quote_s` every quote takes at least that long, and no two are made at once: hardware that
    is slow. `environment` says where the TEE is.
    """

    name: str
    quote_s: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)


# As it comes.
SIMULATED = Tee("simulated")
QUOTES_PER_S = 5.0


@contextlib.contextmanager
def slow_tees() -> Iterator[list[tuple[str, Tee]]]:
    """TEEs of five quotes a second: a stand-in, and a TPM in software where swtpm is installed."""
    quote_s = 1 / QUOTES_PER_S
    found = [("simulated, 5 quotes a second", Tee("simulated", quote_s))]
    if shutil.which("swtpm") is None or importlib.util.find_spec("tpm2_pytss") is None:
        yield found
        return
    from avow.testing.swtpm import SoftwareTpm

    with SoftwareTpm() as tpm:
        tee = Tee("tpm", quote_s, {"AVOW_TPM_TCTI": tpm.tcti})
        yield [*found, ("swtpm, 5 quotes a second", tee)]


class AttestedAvow(Avow):
    """avow with `--tee`; everything else is as in the comparison with other brokers."""

    def __init__(self, tee: Tee = SIMULATED, *, name: str = "avow") -> None:
        super().__init__()
        self.name = name
        self.tee = tee

    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **self.tee.environment}

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        command = super().command(folder, port, tls_port, certificate)
        with Path(command[-1]).open("a") as config:
            config.write(f'\n[attestation]\ntee = "{self.tee.name}"\n')
        if not self.tee.quote_s:
            return command
        slow = [sys.executable, "-m", "bench.attestation.slow_tee", self.tee.name]
        return [*slow, str(self.tee.quote_s), *command[3:]]
