"""What a right broker's evidence has to say, computed from this installation."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from avow import artefacts
from avow.broker.config import Configuration
from avow.broker.measured_configuration import configuration_digest
from avow.evidence.claims import BOOT_ID_BYTES, Workload
from avow.runtime.manifest import runtime_manifest


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """SHA-256 (32 bytes each) of the module, the runtime's manifest and the configuration."""

    module: bytes
    runtime: bytes
    configuration: bytes

    def printable(self) -> dict[str, str]:
        """By claim, as a policy spells them."""
        return {
            "module": f"sha256:{self.module.hex()}",
            "runtime": f"sha256:{self.runtime.hex()}",
            "configuration": f"sha256:{self.configuration.hex()}",
        }

    def workload(self) -> Workload:
        """As claims about a process that starts now."""
        boot_id = secrets.token_bytes(BOOT_ID_BYTES)
        return Workload(self.module, self.runtime, self.configuration, boot_id)


def broker_references(configuration: Configuration) -> ReferenceValues:
    """The values of this release's broker. Raises `UnavailableError`."""
    module = hashlib.sha256(artefacts.core_path().read_bytes()).digest()
    return ReferenceValues(module, runtime_manifest().digest, configuration_digest(configuration))
