"""What avow extends into PCR 23, and the log that says so.

PCR 23 is for applications and can be reset without a password (TCG "PC Client Platform TPM Profile
Specification for TPM 2.0", version 1.05, "PCR Initial and Reset Values"): a reset sets
it to zeros. An event is a name and a digest of 32 bytes; its record is the deterministic CBOR of
`["avow event v1", name, digest]`; the PCR's new value is `SHA-256(old value || SHA-256(record))`
(TPM 2.0 Library, Part 3, section 22.2, TPM2_PCR_Extend).

A log begins with `runtime`, `configuration` and `module`, one each and in this order, before the
module runs. After that only `configuration` may follow, once for each reloading; the last counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from avow.errors import MalformedError
from avow.evidence import cbor
from avow.evidence.claims import DIGEST_BYTES, Workload

PCR: Final = 23
RESET_VALUE: Final = bytes(32)
START: Final = ("runtime", "configuration", "module")
AGAIN: Final = "configuration"
# A log of this size begins anew (with a reset) at the next event, so that evidence stays small.
EVENTS_MAX: Final = 64

_RECORD: Final = "avow event v1"


@dataclass(frozen=True, slots=True)
class Event:
    """`digest` has 32 bytes."""

    name: str
    digest: bytes

    @property
    def extended(self) -> bytes:
        """What is extended (32 bytes): the SHA-256 of the record."""
        return sha256(cbor.encode([_RECORD, self.name, self.digest])).digest()


Log = tuple[Event, ...]


def start(workload: Workload) -> Log:
    """The events before the module runs."""
    digests = {
        "runtime": workload.runtime,
        "configuration": workload.configuration,
        "module": workload.module,
    }
    return tuple(Event(name, digests[name]) for name in START)


def replay(log: Iterable[Event]) -> bytes:
    """The value (32 bytes) that PCR 23 has after a reset and these events."""
    value = RESET_VALUE
    for event in log:
        value = sha256(value + event.extended).digest()
    return value


def measured(log: Log) -> dict[str, bytes]:
    """The last digest of each name; nothing for an empty log."""
    return {event.name: event.digest for event in log}


def check_order(log: Log) -> None:
    """Raises `MalformedError` for a log that avow would not write."""
    names = tuple(event.name for event in log)
    if not names:
        return
    if names[: len(START)] != START or any(name != AGAIN for name in names[len(START) :]):
        raise MalformedError(
            f"expected the events {', '.join(START)} and then only {AGAIN} in the event "
            f"log, got {', '.join(map(ascii, names))[:200]}; start the program with avow"
        )


def encode(log: Log) -> list[cbor.Value]:
    """For the report: an array of [name, digest]."""
    return [[event.name, event.digest] for event in log]


def decode(value: cbor.Value) -> Log:
    """The log that `encode` made. Raises `MalformedError`, also for an order avow never has."""
    if not isinstance(value, list) or len(value) > EVENTS_MAX:
        raise _malformed(f"an array of at most {EVENTS_MAX} events")
    events: list[Event] = []
    for item in value:
        if not isinstance(item, list) or len(item) != 2:
            raise _malformed("events of a name and a digest")
        name, digest = item
        if not isinstance(name, str) or not isinstance(digest, bytes):
            raise _malformed("events of a text and bytes")
        if len(digest) != DIGEST_BYTES:
            raise _malformed(f"digests of {DIGEST_BYTES} bytes")
        events.append(Event(name, digest))
    log = tuple(events)
    check_order(log)
    return log


def _malformed(expected: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in the event log, got something else; fetch the evidence again"
    )
