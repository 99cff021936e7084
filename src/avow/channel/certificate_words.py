"""What to do about certificates that OpenSSL refuses, by its codes (openssl/x509_vfy.h)."""

from __future__ import annotations

from typing import Final

SET_THE_CLOCK: Final = "set this machine's clock, which is behind"
# Of a certificate, and of a revocation list; the rest of the codes need no words of their own.
_NOT_YET_VALID: Final = frozenset({9, 11})
_EXPIRED: Final = frozenset({10, 12})
_NAME_MISMATCHES: Final = frozenset({62, 64})


def certificate_advice(code: int) -> str:
    """What to do about a server's certificate that OpenSSL refuses with this X509_V_ERR."""
    if code in _NOT_YET_VALID:
        return SET_THE_CLOCK
    if code in _EXPIRED:
        return "have the server's operator renew it, or set this machine's clock"
    if code in _NAME_MISMATCHES:
        return "connect by the name that the certificate has"
    return "name the file of the authority that issued it (cafile=, --cafile)"


def is_not_yet_valid(code: int) -> bool:
    """Whether what was refused holds from a later time on."""
    return code in _NOT_YET_VALID
