"""Nonces and times on the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import click

from avow.errors import counted
from avow.evidence.claims import NONCE_BYTES

_EXAMPLE = "2026-11-21T09:30:00Z"


class NonceType(click.ParamType[bytes]):
    """32 bytes as hexadecimal digits."""

    name = "nonce"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        """The bytes; fails in a sentence."""
        if isinstance(value, bytes):
            return value
        text = str(value)
        if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * NONCE_BYTES}}}", text):
            self.fail(
                f"expected {2 * NONCE_BYTES} hexadecimal digits, got "
                f"{counted(len(text), 'character')}; `openssl rand -hex {NONCE_BYTES}` makes one",
                param,
                ctx,
            )
        return bytes.fromhex(text)


class TimeType(click.ParamType[datetime]):
    """An instant of ISO 8601, with its time zone."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """The instant in UTC; fails in a sentence."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
            instant = moment.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"expected an instant such as {_EXAMPLE}, got {value!r}", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"expected a time zone, as in {_EXAMPLE}, got {value!r}", param, ctx)
        return instant


NONCE = NonceType()
TIME = TimeType()
