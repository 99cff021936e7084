"""Evidence on the wire and in files: a collection of RFC 9999 (CMW) in CBOR.

    { "__cmwc_t": "tag:avow.example,2026:cmw-1",
      "claims":   ["application/eat-ucs+cbor",                 claims,  4],
      "path":     ["application/vnd.avow.path+cbor",           path,    4],
      "report":   ["application/vnd.avow.report.PLATFORM+cbor", report, 4] }

4 is the indicator "evidence". `claims` is as in `avow.evidence.claims`, `path` an array of
[sibling, sibling is left], `report` what the platform's `report.py` says. Specified in
docs/spec/evidence.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from avow.errors import MalformedError
from avow.evidence import cbor
from avow.evidence.report_data import PATH_STEPS_MAX, REPORT_DATA_BYTES, Path, Step

COLLECTION_TYPE: Final = "tag:avow.example,2026:cmw-1"
CLAIMS_TYPE: Final = "application/eat-ucs+cbor"
PATH_TYPE: Final = "application/vnd.avow.path+cbor"
EVIDENCE_INDICATOR: Final = 4
# The largest that is parsed at all; the channel sends less (docs/spec/attested-channel.md).
EVIDENCE_BYTES_MAX: Final = 60 * 1024

_REPORT_TYPE = re.compile(r"application/vnd\.avow\.report\.([a-z]{2,16})\+cbor")


@dataclass(frozen=True, slots=True)
class Evidence:
    """`platform` says whose `report` (1 byte to 60 KiB) it is; `claims` are still encoded."""

    platform: str
    report: bytes
    claims: bytes
    path: Path = ()

    def encoded(self) -> bytes:
        """The collection as bytes. Raises `MalformedError` when it would be too large."""
        path: list[cbor.Value] = [[step.sibling, step.sibling_is_left] for step in self.path]
        content = cbor.encode(
            {
                "__cmwc_t": COLLECTION_TYPE,
                "claims": [CLAIMS_TYPE, self.claims, EVIDENCE_INDICATOR],
                "path": [PATH_TYPE, cbor.encode(path), EVIDENCE_INDICATOR],
                "report": [report_type(self.platform), self.report, EVIDENCE_INDICATOR],
            }
        )
        if len(content) > EVIDENCE_BYTES_MAX:
            raise MalformedError(
                f"expected evidence of at most {EVIDENCE_BYTES_MAX} bytes, got "
                f"{len(content)}; use fewer certificates or less collateral"
            )
        return content


def report_type(platform: str) -> str:
    """The media type of a platform's report."""
    return f"application/vnd.avow.report.{platform}+cbor"


def decode_evidence(content: bytes) -> Evidence:
    """The evidence that `content` is. Raises `MalformedError`; nothing is verified."""
    if len(content) > EVIDENCE_BYTES_MAX:
        raise _malformed(f"at most {EVIDENCE_BYTES_MAX} bytes", f"{len(content)}")
    collection = cbor.decode(content, "evidence")
    if not isinstance(collection, dict) or set(collection) != {
        "__cmwc_t",
        "claims",
        "path",
        "report",
    }:
        raise _malformed("a collection of claims, path and report", "something else")
    if collection["__cmwc_t"] != COLLECTION_TYPE:
        raise _malformed(f"a collection of type {COLLECTION_TYPE}", "another type")
    claims_type, claims = _record(collection["claims"])
    path_type, path = _record(collection["path"])
    type_of_report, report = _record(collection["report"])
    if claims_type != CLAIMS_TYPE or path_type != PATH_TYPE:
        raise _malformed("the media types of claims and path", "others")
    match = _REPORT_TYPE.fullmatch(type_of_report)
    if match is None or not report:
        raise _malformed("the media type of a report", repr(type_of_report[:80]))
    return Evidence(match[1], report, claims, _decode_path(path))


def _record(value: cbor.Value) -> tuple[str, bytes]:
    if not isinstance(value, list) or len(value) != 3:
        raise _malformed("records of type, value and indicator", "something else")
    media_type, content, indicator = value
    if not isinstance(media_type, str) or not isinstance(content, bytes):
        raise _malformed("records of a text and bytes", "something else")
    if indicator is True or indicator != EVIDENCE_INDICATOR:
        raise _malformed("records with the indicator 4 (evidence)", "another")
    return media_type, content


def _decode_path(content: bytes) -> Path:
    steps = cbor.decode(content, "inclusion path")
    if not isinstance(steps, list) or len(steps) > PATH_STEPS_MAX:
        raise _malformed(f"an inclusion path of at most {PATH_STEPS_MAX} steps", "something else")
    path: list[Step] = []
    for step in steps:
        if not isinstance(step, list) or len(step) != 2:
            raise _malformed("steps of a sibling and a side", "something else")
        sibling, is_left = step
        if not isinstance(sibling, bytes) or len(sibling) != REPORT_DATA_BYTES:
            raise _malformed(f"siblings of {REPORT_DATA_BYTES} bytes", "something else")
        if not isinstance(is_left, bool):
            raise _malformed("a side that is true or false", "something else")
        path.append(Step(sibling, is_left))
    return tuple(path)


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError(f"expected {expected} in the evidence, got {actual}; fetch it again")
