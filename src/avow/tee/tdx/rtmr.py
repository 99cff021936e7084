"""What avow extends into RTMR3, and the log that explains the register's value.

An event is a name (module, runtime or configuration) and a SHA-256. Extended is
`SHA-384("avow rtmr3 v1" || name || 0x00 || digest)`, and the register becomes
`SHA-384(register || extended)`: Intel TDX Module ABI specification, TDG.MR.RTMR.EXTEND. It is zero
when the trust domain starts and never reset before its end, so the log starts there too: three
events, in this order, each time that something is measured. A register that something else has
extended cannot be explained, and then there is no log.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from avow.errors import Check, MalformedError
from avow.evidence import cbor
from avow.evidence.claims import DIGEST_BYTES, Workload
from avow.tee.intel.quote import malformed

REGISTER_BYTES: Final = 48
# 60 KiB of evidence have room for more; so many configurations are not tried between two boots.
EVENTS_MAX: Final = 192
NAMES: Final = ("module", "runtime", "configuration")
_DOMAIN: Final = b"avow rtmr3 v1"


@dataclass(frozen=True, slots=True)
class Event:
    """`digest` is 32 bytes."""

    name: str
    digest: bytes

    def extended(self) -> bytes:
        """The 48 bytes that are extended into the register."""
        return hashlib.sha384(_DOMAIN + self.name.encode() + b"\0" + self.digest).digest()


Log = tuple[Event, ...]


def events_of(workload: Workload) -> Log:
    """The three events that measure a workload."""
    digests = (workload.module, workload.runtime, workload.configuration)
    return tuple(Event(name, digest) for name, digest in zip(NAMES, digests, strict=True))


def missing(log: Sequence[Event], workload: Workload) -> Log:
    """What completes a measurement that was cut short; nothing after whole ones."""
    started = len(log) % len(NAMES)
    return events_of(workload)[started:] if started else ()


def replayed(log: Sequence[Event]) -> bytes:
    """The register's value (48 bytes) after all events."""
    register = bytes(REGISTER_BYTES)
    for event in log:
        register = hashlib.sha384(register + event.extended()).digest()
    return register


def explains(log: Sequence[Event], register: bytes) -> bool:
    """True when the events, and nothing else, have led to the register's value."""
    return hmac.compare_digest(replayed(log), register)


def ends_with(log: Sequence[Event], workload: Workload) -> bool:
    """True when the workload was measured last, after whole measurements only."""
    return len(log) % len(NAMES) == 0 and tuple(log[-len(NAMES) :]) == events_of(workload)


def measured(log: Log) -> Mapping[str, bytes]:
    """The digests of what was measured last, by name.

    Empty when the log is, and when another module or runtime was measured since the trust domain
    started: nothing says that it left no trace.
    """
    if not log:
        return {}
    last = {event.name: event.digest for event in log[-len(NAMES) :]}
    alike = all(
        event.name == "configuration" or hmac.compare_digest(event.digest, last[event.name])
        for event in log
    )
    return last if alike else {}


def log_value(log: Sequence[Event]) -> cbor.Value:
    """As CBOR: an array of [name, digest]."""
    return [[event.name, event.digest] for event in log]


def log_of_value(value: cbor.Value, check: Check) -> Log:
    """The log that a CBOR value is: whole measurements, in order. Raises `MalformedError`."""
    if not isinstance(value, list) or len(value) > EVENTS_MAX or len(value) % len(NAMES):
        raise malformed(check, f"a log of at most {EVENTS_MAX} events, by threes", "another")
    events: list[Event] = []
    for position, entry in enumerate(value):
        name = NAMES[position % len(NAMES)]
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != name:
            raise malformed(check, f"an event of the name {name}", "another")
        digest = entry[1]
        if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
            raise malformed(check, f"events with a digest of {DIGEST_BYTES} bytes", "others")
        events.append(Event(name, digest))
    return tuple(events)


def encode_log(log: Sequence[Event]) -> bytes:
    """The log as it is kept between two runs of avow: not by threes when a run was cut short."""
    return cbor.encode(log_value(log))


def decode_kept_log(content: bytes) -> Log | None:
    """What `encode_log` wrote; None for anything else: then the register stays unexplained."""
    try:
        value = cbor.decode(content, "log of RTMR3")
    except MalformedError:
        return None
    if not isinstance(value, list) or len(value) > EVENTS_MAX:
        return None
    events: list[Event] = []
    for entry in value:
        match entry:
            case [str(name), bytes(digest)] if name in NAMES and len(digest) == DIGEST_BYTES:
                events.append(Event(name, digest))
            case _:
                return None
    return tuple(events)
