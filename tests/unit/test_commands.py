"""Commands for the core, to the byte."""

from __future__ import annotations

import struct

import pytest

from avow.broker.commands import (
    AuthOutcome,
    ReasonCode,
    auth_result_command,
    disconnect_command,
    drain_command,
    response_prefix_command,
    settings_command,
    version_text_command,
)
from avow.errors import MalformedError


def test_settings() -> None:
    assert settings_command({1: 2, 21: 2**40}) == b"\x01" + struct.pack("<HQHQ", 1, 2, 21, 2**40)


def test_auth_result() -> None:
    blob = auth_result_command(
        7, 9, AuthOutcome.REFUSE, code=ReasonCode.SERVER_BUSY, user="u", data=b"\0d", reason="why"
    )
    assert blob == (
        b"\x03" + struct.pack("<II", 7, 9) + b"\x02\x89" + b"\x01\x00u\x02\x00\0d\x03\x00why"
    )


def test_short_commands() -> None:
    assert disconnect_command(3, ReasonCode.NOT_AUTHORIZED) == b"\x04\x03\0\0\0\x87"
    assert drain_command() == b"\x05"
    assert response_prefix_command("r/") == b"\x06\x02\x00r/"
    assert version_text_command("v") == b"\x07\x01\x00v"


def test_string_that_is_too_long_is_refused() -> None:
    assert len(version_text_command("x" * 65_535)) == 3 + 65_535
    with pytest.raises(MalformedError, match="65536"):
        version_text_command("x" * 65_536)
