"""A broker whose store's key is sealed by a TPM, and whose anchor is a counter in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from avow.cli.exit_codes import ExitCode
from avow.testing.swtpm import SoftwareTpm
from tests.integration.service_process import ServiceProcess, avow, service, write

pytestmark = pytest.mark.tpm

ANCHOR = "tpm:0x01800042"


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as started:
        monkeypatch.setenv("AVOW_TPM_TCTI", started.tcti)
        yield started


def arguments(folder: Path, *more: str, key: str = "") -> tuple[str, ...]:
    source = key or f"tpm:{folder / 'store.tpm'}@0,7"
    given = ("--store", str(folder / "state"), "--store-key", source, "--anchor", ANCHOR)
    return ("--listen", "mqtt://127.0.0.1:0", *given, *more)


def notes(running: ServiceProcess) -> str:
    """What the broker has made, once it listens."""
    return str(running.event("store")["note"])


def test_a_store_of_one_machine(tpm: SoftwareTpm, tmp_path: Path) -> None:
    with service(*arguments(tmp_path, "--new-store")) as running:
        pinned = notes(running).partition("use ")[2].partition(" as the source")[0]
    assert pinned.startswith(f"tpm:{tmp_path / 'store.tpm'}@0,7#000b")
    # With the name of the TPM's storage key, as printed.
    with service(*arguments(tmp_path, key=pinned)) as running:
        running.event("listening")
    # Another configuration has another PCR 23.
    refused = avow("broker", *arguments(tmp_path, "--durability", "interval"))
    assert refused.returncode == ExitCode.USAGE, refused.stderr
    assert b"expected the PCRs 0, 7, 23 as when the key was sealed" in refused.stderr
    # Carried off: container, sealed key and all, to another machine.
    tpm.stop()
    with SoftwareTpm() as other:
        environment = {"AVOW_TPM_TCTI": other.tcti}
        refused = avow("broker", *arguments(tmp_path), environment=environment)
    assert refused.returncode == ExitCode.USAGE, refused.stderr
    assert b"it comes from another machine" in refused.stderr


def test_no_platforms_key_under_simulation(tpm: SoftwareTpm, tmp_path: Path) -> None:
    refused = avow("broker", *arguments(tmp_path, "--tee", "simulated", "--new-store"))
    assert refused.returncode == ExitCode.USAGE, refused.stderr
    assert b"on the simulated platform" in refused.stderr
    assert not (tmp_path / "store.tpm").exists()


def test_a_broker_keeps_the_configuration_that_its_key_is_bound_to(
    tpm: SoftwareTpm, tmp_path: Path
) -> None:
    """Whoever writes the file could else open up a store that another start could not open."""
    text = (
        '[[listeners]]\nurl = "mqtt://127.0.0.1:0"\n'
        f'[store]\ndirectory = "state"\nkey = "tpm:{tmp_path / "store.tpm"}"\n'
    )
    config = write(tmp_path / "avow.toml", text)
    with service("--config", str(config)) as running:
        running.reload()
        running.event("reloaded")
        write(config, "allow_anonymous = true\n" + text)
        running.reload()
        reason = running.event("reload refused")["reason"]
    assert "to which the key of the store is bound" in reason
