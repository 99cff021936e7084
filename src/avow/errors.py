"""The one small tree of errors. Each message says what was expected, what came, and what to do."""

from __future__ import annotations


class AvowError(Exception):
    """Base of every error that avow raises on purpose."""


class MalformedError(AvowError):
    """Bytes, a file or a configuration do not have the form that their format demands."""


class UntrustedError(AvowError):
    """Something is well-formed but its origin or integrity could not be proven."""


class DeniedError(AvowError):
    """A policy, a credential or an access rule says no."""


class UnavailableError(AvowError):
    """A resource that is needed is absent, occupied, exhausted or has stopped."""
