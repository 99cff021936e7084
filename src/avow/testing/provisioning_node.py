"""A node that waits for its owner, in this process, on the simulated platform."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from avow.channel.attestation import ServerAttestation
from avow.channel.provisioning import (
    Offer,
    Provisioned,
    ProvisioningListener,
    ProvisioningSettings,
)
from avow.channel.provisioning_messages import Taken
from avow.channel.provisioning_owner import OwnerKey
from avow.evidence.claims import Workload
from avow.tee.simulated.attester import SimulatedAttester

PATIENCE_S = 20.0
NODE = Workload(b"\x11" * 32, b"\x22" * 32, b"\x33" * 32, b"\x44" * 32)
POLICY = f"""
version = 1
name = "the one node"
unsafe_simulated = true
platform = "simulated"
module = "{NODE.module.hex()}"
runtime = "{NODE.runtime.hex()}"
configuration = "{NODE.configuration.hex()}"
evidence_age_s = {{ min = -60, max = 60 }}
"""


@dataclass
class Node:
    """`offers` has what reached the node and passed its checks, `refusals` (peer, reason, check)
    of all others, `taken` the names that were acknowledged. `use` decides about offers."""

    listener: ProvisioningListener = field(init=False)
    attestation: ServerAttestation = field(init=False)
    offers: queue.SimpleQueue[Provisioned] = field(default_factory=queue.SimpleQueue)
    refusals: queue.SimpleQueue[tuple[str, str, str]] = field(default_factory=queue.SimpleQueue)
    taken: queue.SimpleQueue[Taken] = field(default_factory=queue.SimpleQueue)
    use: Callable[[Offer], None] = Offer.taken

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self.listener.port

    def refused(self, peer: str, reason: str, check: str) -> None:
        """See `avow.channel.provisioning.Observer`."""
        self.refusals.put((peer, reason, check))

    def provisioned(self, peer: str, taken: Taken) -> None:
        """See `avow.channel.provisioning.Observer`."""
        self.taken.put(taken)

    def refusal(self) -> tuple[str, str]:
        """The check and the reason of the next refusal."""
        _, reason, check = self.refusals.get(timeout=PATIENCE_S)
        return check, reason

    def offer(self, offer: Offer) -> None:
        """From the listener."""
        self.offers.put(offer.provisioned)
        # Not in the listener's thread: a real node does not answer there either.
        threading.Thread(target=self.use, args=(offer,), daemon=True).start()


@contextmanager
def provisioning_node(
    owner: OwnerKey,
    *,
    workload: Workload = NODE,
    use: Callable[[Offer], None] = Offer.taken,
    message_timeout_s: float = PATIENCE_S,
) -> Iterator[Node]:
    """A node that listens, and claims to run `workload`."""
    node = Node(use=use)
    node.attestation = ServerAttestation(
        SimulatedAttester(),
        module=workload.module,
        runtime=workload.runtime,
        quotes_per_s=1000.0,
        waiting_max=64,
        quote_timeout_s=8.0,
    )
    now = datetime.now(UTC)
    node.attestation.measure(workload.configuration, now)
    node.attestation.start()
    node.listener = ProvisioningListener(
        ProvisioningSettings("127.0.0.1", 0, owner.digest),
        node.attestation,
        offer=node.offer,
        observer=node,
        now=now,
        message_timeout_s=message_timeout_s,
    )
    node.listener.start()
    try:
        yield node
    finally:
        node.listener.stop()
        node.attestation.stop()
