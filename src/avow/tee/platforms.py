"""All platforms in one place: which are here, how to open one, who verifies them.

A platform's code is imported when it is used, so that what it needs matters to nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from avow.errors import UnavailableError
from avow.evidence.roles import Attester, Verifier

# In the order in which `auto` tries them: what protects most first, `simulated` never.
PLATFORMS: Final = ("azure", "tdx", "snp", "cca", "nitro", "sgx", "psa", "tpm", "simulated")


@dataclass(frozen=True, slots=True)
class Found:
    """One platform: here or not, and why."""

    platform: str
    present: bool
    reason: str


@dataclass(frozen=True, slots=True)
class AttesterOptions:
    """What a user may say about the attesting side; each platform takes what it knows."""

    # simulated: the signing key (PEM); without it a key that ends with the process.
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Endorsements:
    """What vendors and owners say about their hardware, for the verifying side."""


def load_endorsements(folder: Path) -> Endorsements:
    """The endorsements in a folder. Raises `UnavailableError` and `MalformedError`."""
    if not folder.is_dir():
        raise UnavailableError(
            f"expected a folder of endorsements at {folder}, got none; see docs/platforms/index.md"
        )
    return Endorsements()


def detect(root: Path = Path("/")) -> list[Found]:
    """Every platform, with why it is here or absent. Looks, and changes nothing."""
    return [
        Found("simulated", True, "always; accepted only by a policy that says unsafe_simulated")
    ]


def open_attester(name: str, options: AttesterOptions | None = None) -> Attester:
    """The attesting side of the platform `name`, or of the first one found for "auto".

    `auto` never means `simulated`. Raises `UnavailableError`, and `MalformedError` for a file in
    `options` that has the wrong form.
    """
    options = AttesterOptions() if options is None else options
    if name == "simulated":
        from avow.tee.simulated.attester import SimulatedAttester

        if options.key_file is not None:
            return SimulatedAttester.from_file(options.key_file)
        return SimulatedAttester()
    raise UnavailableError(
        f"expected a platform that this machine has, got {name}; `avow tee` lists what was found, "
        f"`--tee simulated` runs without any protection"
    )


def verifiers(endorsements: Endorsements | None = None) -> Mapping[str, Verifier]:
    """A verifier for every platform. One that lacks endorsements says so when it is asked."""
    from avow.tee.simulated.verifier import SimulatedVerifier

    return {"simulated": SimulatedVerifier()}
