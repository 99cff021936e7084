"""What of a broker's store is in the digest of its configuration."""

from __future__ import annotations

import pytest

from avow.broker.config import Configuration
from avow.broker.measured_configuration import configuration_digest
from avow.cli.broker_store import check_store
from avow.errors import MalformedError
from avow.sealing.measured_sources import measured_key


def digest(**changed: object) -> bytes:
    store = {"directory": "state", "key": "tpm:k", "anchor": "witness:a:1#KEY", **changed}
    return configuration_digest(Configuration.model_validate({"store": store}))


@pytest.mark.parametrize(
    "changed",
    [
        {"anchor": "none"},
        {"anchor": "tpm:0x01800042"},
        {"anchor": "witness:a:1#OTHER"},
        {"anchor_interval_s": 99.0},
        {"key": "snp"},
        {"key": "file:k"},
        {"key": "tpm:k@0,7"},
        {"also_key": "file:k"},
        {"durability": "none"},
    ],
)
def test_what_decides_is_measured(changed: dict[str, object]) -> None:
    """A host cannot put a witness of its own in the place of the owner's, nor leave it out."""
    assert digest(**changed) != digest()


@pytest.mark.parametrize(
    "changed",
    [{"directory": "elsewhere"}, {"key": "tpm:other#000b"}, {"anchor": "witness:b:2#KEY"}],
)
def test_where_it_lies_is_not(changed: dict[str, object]) -> None:
    assert digest(**changed) == digest()


@pytest.mark.parametrize(
    ("source", "measured"),
    [
        ("file:/k@1", "file"),
        ("tpm:k#000b", "tpm"),
        ("tpm:k@7,0,7#000b", "tpm@0,7"),
        ("gramine", "gramine"),
        ("gramine:mrsigner", "gramine:mrsigner"),
        ("snp", "snp"),
        ("provisioned", "provisioned"),
    ],
)
def test_what_is_measured_of_a_key(source: str, measured: str) -> None:
    assert measured_key(source) == measured


@pytest.mark.parametrize("changed", [{"key": "owner.key"}, {"anchor": "witness:a:1#KEY"}])
def test_texts_are_checked_before_anything_starts(changed: dict[str, str]) -> None:
    store = {"directory": "state", "key": "file:k", "anchor": "none"}
    check_store(Configuration.model_validate({"store": store}))
    with pytest.raises(MalformedError):
        check_store(Configuration.model_validate({"store": store | changed}))


def test_the_tpm_that_is_named_is_measured() -> None:
    named = [digest(anchor=f"tpm:0x01800042{name}") for name in ("", "#000b", "#000c")]
    assert len(set(named)) == 3
    assert digest(anchor="tpm:0x01800044#000b") == named[1]
