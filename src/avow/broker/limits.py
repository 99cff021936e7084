"""The core's settings: their names, defaults, bounds and keys, once, for file, docs and command.

Defaults and keys are those of `docs/spec/core-abi.md`, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

U32_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class SettingKey:
    """The number of a setting in the core's SETTINGS command."""

    number: int


class Limits(BaseModel):
    """Bounds for clients and memory, and the features that are offered."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    maximum_packet_bytes: Annotated[int, SettingKey(1)] = Field(
        default=2_097_152,
        ge=64,
        le=268_435_460,
        description="The largest packet that is accepted; above 268435455: any that MQTT allows.",
    )
    receive_maximum: Annotated[int, SettingKey(2)] = Field(
        default=65_535,
        ge=1,
        le=65_535,
        description=(
            "How many QoS 2 publishes an MQTT 5 client may have open; the broker refuses "
            "further ones, and keeps the connection."
        ),
    )
    topic_alias_maximum: Annotated[int, SettingKey(3)] = Field(
        default=32, ge=0, le=65_535, description="Topic aliases a client may use; 0: none."
    )
    keep_alive_max_s: Annotated[int, SettingKey(4)] = Field(
        default=0,
        ge=0,
        le=65_535,
        description="The longest keep alive: it replaces a client's keep alive of 0 or of "
        "more than this; 0: the client decides.",
    )
    session_expiry_max_s: Annotated[int, SettingKey(5)] = Field(
        default=U32_MAX,
        ge=0,
        le=U32_MAX,
        description="The longest session expiry that is granted; 4294967295: forever.",
    )
    queued_bytes_max: Annotated[int, SettingKey(6)] = Field(
        default=16_777_216,
        ge=4096,
        le=U32_MAX,
        description="For each client: bytes that wait to be sent, including queued messages.",
    )
    queued_messages_max: Annotated[int, SettingKey(7)] = Field(
        default=100_000, ge=0, le=2**31, description="For each client: queued QoS 1 and 2 messages."
    )
    inflight_max: Annotated[int, SettingKey(8)] = Field(
        default=1024,
        ge=1,
        le=65_535,
        description="For each client: messages it has not acknowledged yet.",
    )
    subscriptions_max: Annotated[int, SettingKey(9)] = Field(
        default=10_000, ge=0, le=2**31, description="For each client: subscriptions."
    )
    topic_levels_max: Annotated[int, SettingKey(10)] = Field(
        default=128, ge=1, le=1024, description="Levels of a topic or a topic filter."
    )
    memory_budget_bytes: Annotated[int, SettingKey(11)] = Field(
        default=1_073_741_824,
        ge=8 * 2**20,
        le=3 * 2**30,
        description="The memory that the core may use for clients. `avow broker --check` "
        "prints what the process needs on top.",
    )
    retained_messages_max: Annotated[int, SettingKey(12)] = Field(
        default=1_000_000, ge=0, le=2**31, description="All retained messages."
    )
    sys_interval_ms: Annotated[int, SettingKey(13)] = Field(
        default=10_000,
        ge=0,
        le=86_400_000,
        description="How often the `$SYS` topics are published; 0: never.",
    )
    connect_timeout_ms: Annotated[int, SettingKey(14)] = Field(
        default=10_000,
        ge=100,
        le=3_600_000,
        description="The longest time from the opening of a connection to its complete "
        "CONNECT, and for each exchange of an authentication.",
    )
    maximum_qos: Annotated[int, SettingKey(15)] = Field(
        default=2, ge=0, le=2, description="The highest QoS that is offered."
    )
    retain_available: Annotated[bool, SettingKey(16)] = Field(
        default=True, description="Offer retained messages."
    )
    wildcard_available: Annotated[bool, SettingKey(17)] = Field(
        default=True, description="Offer wildcard subscriptions."
    )
    subscription_identifiers_available: Annotated[bool, SettingKey(18)] = Field(
        default=True, description="Offer subscription identifiers."
    )
    shared_available: Annotated[bool, SettingKey(19)] = Field(
        default=True, description="Offer shared subscriptions."
    )
    topic_alias_out_maximum: Annotated[int, SettingKey(20)] = Field(
        default=16,
        ge=0,
        le=65_535,
        description=(
            "Topic aliases that the broker uses towards a client, at most as many as the "
            "client allows."
        ),
    )
    persist_sessions: Annotated[bool, SettingKey(21)] = Field(
        default=True,
        description="Keep a journal of sessions and retained messages. It takes effect at the next "
        "start; `[store]` needs it.",
    )
    will_delay_max_s: Annotated[int, SettingKey(22)] = Field(
        default=U32_MAX, ge=0, le=U32_MAX, description="The longest will delay that is granted."
    )

    denials_explained: Annotated[bool, SettingKey(23)] = Field(
        default=True,
        description="Refuse a subscription that the rules deny with 0x87 (not authorized); "
        "false: with 0x80 (unspecified error), which tells the client less.",
    )

    def settings(self) -> dict[int, int]:
        """All values by the core's key, booleans as 0 and 1."""
        return {key: int(getattr(self, name)) for name, key in setting_keys().items()}


def setting_keys() -> dict[str, int]:
    """The core's key of each limit, by name."""
    return {
        name: mark.number
        for name, field in Limits.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, SettingKey)
    }
