"""What the attested channel checks, C1 to C23; the numbers are those of the specification."""

from __future__ import annotations

from typing import Final

from avow.errors import Check

_SPEC: Final = "docs/spec/attested-channel.md"

TLS_1_3: Final = Check("C1", "the connection is TLS 1.3", _SPEC)
NOT_RESUMED: Final = Check("C2", "the TLS session is not resumed", _SPEC)
FRAME: Final = Check("C3", "the message is well-formed", _SPEC)
ORDER: Final = Check("C4", "the message is in its place", _SPEC)
VERSION: Final = Check("C5", "both sides speak the same version", _SPEC)
REQUEST: Final = Check("C6", "the request for evidence is well-formed", _SPEC)
CONTEXT: Final = Check("C7", "the request's context is the requester's own and fresh", _SPEC)
OFFERED: Final = Check("C8", "evidence is asked of a side that has some", _SPEC)
AUTHORISED: Final = Check("C9", "the peer may see evidence", _SPEC)
PLATFORM: Final = Check("C10", "the requester knows the platform", _SPEC)
PRESENT: Final = Check("C11", "the evidence that was asked for came", _SPEC)
AUTHENTICATOR: Final = Check("C12", "the authenticator is well-formed", _SPEC)
ANSWERS: Final = Check("C13", "the authenticator answers this request", _SPEC)
KEY: Final = Check("C14", "the authenticator's key is a P-256 key", _SPEC)
FINISHED: Final = Check("C15", "the authenticator belongs to this connection", _SPEC)
SIGNATURE: Final = Check("C16", "the peer holds the key that the evidence names", _SPEC)
REQUIRED: Final = Check("C17", "clients show evidence here", _SPEC)
ASKED: Final = Check("C18", "clients ask for evidence here", _SPEC)
QUOTE: Final = Check("C19", "the platform makes evidence in time", _SPEC)
DEADLINE: Final = Check("C20", "the exchange ends in time", _SPEC)
ACCEPTED: Final = Check("C21", "the peer accepts", _SPEC)
STAYED: Final = Check("C22", "the peer stays until the exchange has ended", _SPEC)
SERVER: Final = Check("C23", "TLS authenticates the server", _SPEC)

CHECKS: Final = (
    TLS_1_3, NOT_RESUMED, FRAME, ORDER, VERSION, REQUEST, CONTEXT, OFFERED, AUTHORISED, PLATFORM,
    PRESENT, AUTHENTICATOR, ANSWERS, KEY, FINISHED, SIGNATURE, REQUIRED, ASKED, QUOTE, DEADLINE,
    ACCEPTED, STAYED, SERVER,
)  # fmt: skip
