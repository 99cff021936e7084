"""Keys sealed by a TPM and counters in it, on a real TPM in software: swtpm."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from avow.cli import store_keys
from avow.cli.anchors import open_anchor
from avow.cli.store_opening import StoreKeys, is_there, make_store, open_store
from avow.errors import (
    AvowError,
    DeniedError,
    MalformedError,
    RolledBackError,
    UnavailableError,
    UntrustedError,
    WrongKeyError,
)
from avow.evidence.claims import Workload
from avow.sealing.anchor import Step, begin_fresh, open_fresh
from avow.sealing.keys import KeyBinding, bind_key
from avow.sealing.store import Store
from avow.tee.tpm import event_log
from avow.tee.tpm.attester import Measuring
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.nv_counter import NvCounter
from avow.tee.tpm.sealing import SealedBlob, decode_blob, measured_pcr, pcr_policy, seal, unseal
from avow.tee.tpm.structures import ALG_SHA256
from avow.tee.tpm.templates import AK_ECC
from avow.testing.shared_tpm import SharedTpm
from avow.testing.swtpm import SoftwareTpm
from tests.unit.sealing.anchor_world import Disk
from tests.unit.sealing.identified_store import IdentifiedStore

pytestmark = pytest.mark.tpm

SECRET = bytes(range(32))
RUNS = Workload(b"m" * 32, b"r" * 32, b"c" * 32, bytes(32))
BINDING = KeyBinding(RUNS.module, RUNS.configuration, RUNS.runtime)
INDEX = 0x01800042


@pytest.fixture(scope="module")
def tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as started:
        yield started


@pytest.fixture
def device(tpm: SoftwareTpm) -> Iterator[TpmDevice]:
    opened = TpmDevice(tpm.tcti, 5)
    yield opened
    opened.close()


@pytest.fixture
def fresh_tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as started:
        yield started


@pytest.fixture
def machine_of_several(tpm: SoftwareTpm) -> Iterator[SharedTpm]:
    """The same TPM behind a resource manager."""
    with SharedTpm(tpm) as shared:
        yield shared


def test_a_secret_comes_back(device: TpmDevice) -> None:
    blob, _ = seal(device, SECRET, RUNS, (0, 7, 15))
    assert blob.pcrs == (0, 7, 15, 23)
    again = decode_blob(blob.encoded(), "blob")
    assert again == blob
    assert unseal(device, again, RUNS) == SECRET


def test_pcr_23_is_measured_where_it_was_not(device: TpmDevice) -> None:
    blob, _ = seal(device, SECRET, RUNS)
    device.reset_pcr(event_log.PCR)
    assert unseal(device, blob, RUNS) == SECRET
    assert device.read_pcrs([event_log.PCR])[event_log.PCR] == measured_pcr(RUNS)


def test_what_is_measured_already_is_left_alone(device: TpmDevice) -> None:
    """The attester's log must stay true."""
    blob, _ = seal(device, SECRET, RUNS)
    measuring = Measuring(device)
    measuring.measure(RUNS)
    assert unseal(device, blob, RUNS) == SECRET
    assert measuring.holds(device.read_pcrs([event_log.PCR]))


@pytest.mark.parametrize("part", ["module", "configuration", "runtime"])
def test_another_workload_is_denied(device: TpmDevice, part: str) -> None:
    blob, _ = seal(device, SECRET, RUNS)
    with pytest.raises(DeniedError, match="another module, configuration or version"):
        unseal(device, blob, replace(RUNS, **{part: b"\x09" * 32}))


def test_another_system_is_denied(fresh_tpm: SoftwareTpm) -> None:
    device = TpmDevice(fresh_tpm.tcti, 5)
    blob, _ = seal(device, SECRET, RUNS, (4,))
    without, _ = seal(device, SECRET, RUNS)
    device.extend_pcr(4, b"\x01" * 32)
    with pytest.raises(DeniedError, match="PCRs 4, 23"):
        unseal(device, blob, RUNS)
    assert unseal(device, without, RUNS) == SECRET
    device.close()


def test_policy_is_the_tpms(device: TpmDevice) -> None:
    """One that leaves out PCR 23 in the file, but not in the key, opens nothing."""
    blob, _ = seal(device, SECRET, RUNS, (7,))
    with pytest.raises(DeniedError):
        unseal(device, replace(blob, pcrs=(23,)), RUNS)
    digest = pcr_policy(device.read_pcrs([7]) | {23: measured_pcr(RUNS)})
    assert digest in blob.public


def test_survives_power_loss(fresh_tpm: SoftwareTpm) -> None:
    device = TpmDevice(fresh_tpm.tcti, 5)
    blob, _ = seal(device, SECRET, RUNS)
    counter = NvCounter(device, INDEX, SECRET)
    counter.begin()
    counter.increment()
    before = counter.read()
    device.close()
    fresh_tpm.stop()
    fresh_tpm.start()
    device = TpmDevice(fresh_tpm.tcti, 5)
    assert unseal(device, blob, RUNS) == SECRET
    assert NvCounter(device, INDEX, SECRET).read() == before
    device.close()


def test_of_another_machine(device: TpmDevice, fresh_tpm: SoftwareTpm) -> None:
    blob, _ = seal(device, SECRET, RUNS)
    other = TpmDevice(fresh_tpm.tcti, 5)
    with pytest.raises(DeniedError, match="from another machine"):
        unseal(other, blob, RUNS)
    other.close()


def test_a_changed_file(device: TpmDevice) -> None:
    blob, _ = seal(device, SECRET, RUNS)
    private = bytearray(blob.private)
    private[-1] ^= 1
    with pytest.raises(DeniedError, match="the file was changed"):
        unseal(device, SealedBlob(blob.pcrs, blob.public, bytes(private)), RUNS)


def test_many_times_over(device: TpmDevice) -> None:
    """Nothing stays behind in the TPM's few places for keys and sessions, also not on failures."""
    blob, _ = seal(device, SECRET, RUNS, (7,))
    for _ in range(5):
        assert unseal(device, blob, RUNS) == SECRET
        with pytest.raises(DeniedError):
            unseal(device, replace(blob, pcrs=(23,)), RUNS)
        with pytest.raises(UntrustedError):
            unseal(device, blob, RUNS, parent=bytes(34))


def test_a_refusal_says_what_to_do(fresh_tpm: SoftwareTpm) -> None:
    device = TpmDevice(fresh_tpm.tcti, 5)
    keys = [device.make_primary(AK_ECC) for _ in range(3)]
    with pytest.raises(UnavailableError, match=r"resource manager, such as device:/dev/tpmrm0"):
        seal(device, SECRET, RUNS)
    device.forget(keys[0])
    device.call(lambda esapi, tss: esapi.hierarchy_change_auth(tss.ESYS_TR.OWNER, b"password"))
    device.close()
    device = TpmDevice(fresh_tpm.tcti, 5)
    with pytest.raises(UnavailableError, match="a hierarchy has a password"):
        seal(device, SECRET, RUNS)
    device.close()


def test_wrong_guesses_lock_nobody_out(fresh_tpm: SoftwareTpm) -> None:
    """Nor do those of other programs lock out avow."""
    device = TpmDevice(fresh_tpm.tcti, 5)
    counter = NvCounter(device, INDEX, SECRET)
    before = counter.begin()
    blob, _ = seal(device, SECRET, RUNS)
    for _ in range(4):
        with pytest.raises(DeniedError):
            NvCounter(device, INDEX, b"\x01" * 32).read()

    def locked_out(esapi: Any, tss: Any) -> bool:
        _, found = esapi.get_capability(
            tss.TPM2_CAP.TPM_PROPERTIES,
            tss.TPM2_PT.PERMANENT,
            1,
        )
        (permanent,) = found.data.tpmProperties
        return bool(permanent.value & tss.TPMA_PERMANENT.INLOCKOUT)

    assert not device.call(locked_out)
    device.call(_guess_wrong)
    assert device.call(locked_out)
    assert unseal(device, blob, RUNS) == SECRET
    assert counter.increment() == before[0] + 1
    device.close()


def _guess_wrong(esapi: Any, tss: Any) -> None:
    """Of another program: an index that is protected from guessing, until the TPM locks."""
    attributes = tss.TPMA_NV.AUTHREAD | tss.TPMA_NV.AUTHWRITE
    public = tss.TPMS_NV_PUBLIC(
        nvIndex=INDEX + 64, nameAlg=ALG_SHA256, attributes=attributes, dataSize=8
    )
    area = tss.TPM2B_NV_PUBLIC(nvPublic=public)
    handle = esapi.nv_define_space(SECRET, area)
    esapi.tr_set_auth(handle, b"wrong")
    for _ in range(4):
        with pytest.raises(tss.TSS2_Exception):
            esapi.nv_write(handle, bytes(8), 0, auth_handle=handle)


def test_counter(fresh_tpm: SoftwareTpm) -> None:
    device = TpmDevice(fresh_tpm.tcti, 5)
    counter = NvCounter(device, INDEX, SECRET)
    assert counter.read() is None
    with pytest.raises(UnavailableError, match="got none"):
        counter.increment()
    first, branch = counter.begin()
    assert branch == sha256(bytes(64)).digest()
    assert counter.read() == (first, branch)
    step = Step(first + 1, branch, b"\x01" * 32)
    assert counter.extend(step.nonce) == step.branch
    assert [counter.increment(), counter.read()] == [first + 1, (first + 1, step.branch)]
    with pytest.raises(UnavailableError, match="in use already"):
        counter.begin()
    with pytest.raises(DeniedError, match="another authorisation"):
        NvCounter(device, INDEX, b"\x01" * 32).read()
    # Whoever may, deletes them; what comes after starts higher.
    for index in (INDEX + 1, INDEX):
        _remove(device, index)
        with pytest.raises(UnavailableError, match="got none"):
            counter.increment() if index == INDEX else counter.read()
    assert counter.read() is None
    assert counter.begin()[0] > first + 1
    device.close()


def _remove(device: TpmDevice, index: int) -> None:
    device.call(lambda esapi, library: esapi.nv_undefine_space(esapi.tr_from_tpmpublic(index)))


def test_a_counter_whose_making_was_cut_short(fresh_tpm: SoftwareTpm) -> None:
    device = TpmDevice(fresh_tpm.tcti, 5)
    counter = NvCounter(device, INDEX, SECRET)
    counter._define(counter._hash)
    assert counter.read() is None
    counter._define(counter._count)
    assert counter.read() is None
    counter.extend(bytes(32))
    assert counter.read() is None
    begun = counter.begin()
    assert counter.read() == begun
    device.close()


def test_an_index_that_is_no_counter(fresh_tpm: SoftwareTpm) -> None:
    device = TpmDevice(fresh_tpm.tcti, 5)

    def define(esapi: Any, library: Any) -> None:
        attributes = library.TPMA_NV.AUTHREAD | library.TPMA_NV.AUTHWRITE
        public = library.TPMS_NV_PUBLIC(
            nvIndex=INDEX,
            nameAlg=library.TPM2_ALG.SHA256,
            attributes=attributes,
            dataSize=8,
        )
        esapi.nv_define_space(SECRET, library.TPM2B_NV_PUBLIC(nvPublic=public))

    device.call(define)
    for doing in (NvCounter(device, INDEX, SECRET).read, NvCounter(device, INDEX, SECRET).begin):
        with pytest.raises(DeniedError, match="got something else"):
            doing()
    device.close()


def test_owner_keys_from_a_tpm(
    device: TpmDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.tpm"
    said: list[str] = []
    key = store_keys.new_owner_key(f"tpm:{path}@0,7", BINDING, device=device, say=said.append)
    assert store_keys.owner_key(f"tpm:{path}", BINDING, device=device) == key
    assert key not in path.read_bytes()
    (line,) = said
    pinned = line.split("use ")[1].removesuffix(" as the source of the key")
    assert store_keys.owner_key(pinned, BINDING, device=device) == key
    assert f"tpm:{path}@0,7#000b" in pinned
    with pytest.raises(DeniedError, match="sealed to the PCRs"):
        store_keys.owner_key(f"tpm:{path}@0", BINDING, device=device)
    with pytest.raises(UntrustedError):
        store_keys.owner_key(f"tpm:{path}#{'00' * 34}", BINDING, device=device)
    with pytest.raises(DeniedError):
        store_keys.owner_key(f"tpm:{path}", replace(BINDING, module=b"x" * 32), device=device)
    with pytest.raises(UnavailableError, match="expected no file at"):
        store_keys.new_owner_key(f"tpm:{path}", BINDING, device=device)
    # What the TPM gives is bound as well: the policy alone would not tell two stores apart.
    secret = unseal(device, decode_blob(path.read_bytes(), "x"), RUNS)
    assert key == bind_key(secret, BINDING) != secret


def test_owner_keys_from_the_tpm_of_the_environment(
    fresh_tpm: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVOW_TPM_TCTI", fresh_tpm.tcti)
    key = store_keys.new_owner_key(f"tpm:{tmp_path / 'k'}", BINDING)
    assert store_keys.owner_key(f"tpm:{tmp_path / 'k'}", BINDING) == key


@pytest.fixture
def folder(tpm: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a store and its keys go, on a machine with a TPM."""
    monkeypatch.setenv("AVOW_TPM_TCTI", tpm.tcti)
    return tmp_path


def keys_in(
    folder: Path, said: list[str], *, also: bool = True, binding: KeyBinding = BINDING
) -> StoreKeys:
    owned = f"file:{folder / 'owner.key'}" if also else None
    source = f"tpm:{folder / 'store.tpm'}"
    return StoreKeys(source, owned, lambda: binding, None, False, said.append)


def plant(folder: Path, device: TpmDevice) -> bytes:
    """The host's own key, sealed on this very machine to what will run: which key that is."""
    blob, _ = seal(device, SECRET, RUNS)
    (folder / "store.tpm").write_bytes(blob.encoded())
    return bind_key(SECRET, BINDING)


def test_an_update_seals_a_new_key_for_who_has_the_owners(folder: Path) -> None:
    updated = replace(BINDING, runtime=b"u" * 32)
    with make_store(folder / "store", keys_in(folder, [])) as store:
        store.make_file("/files/kept")
    before = (folder / "store.tpm").read_bytes()
    with pytest.raises(DeniedError, match="PCRs 23"):
        open_store(folder / "store", keys_in(folder, [], also=False, binding=updated))
    said: list[str] = []
    with open_store(folder / "store", keys_in(folder, said, binding=updated)) as store:
        assert store.exists("/files/kept")
    assert any("with the second and added the first" in line for line in said)
    with open_store(folder / "store", keys_in(folder, [], also=False, binding=updated)):
        pass
    # What the one before the update needs is kept.
    (old,) = folder.glob("store.tpm.*.old")
    assert old.read_bytes() == before
    old.replace(folder / "store.tpm")
    with open_store(folder / "store", keys_in(folder, [], also=False)):
        pass


def test_a_key_that_the_host_has_put_there_is_not_added(folder: Path, device: TpmDevice) -> None:
    with make_store(folder / "store", keys_in(folder, [])):
        pass
    theirs = plant(folder, device)
    with open_store(folder / "store", keys_in(folder, [])):
        pass
    with pytest.raises(WrongKeyError):
        Store.open(folder / "store", theirs)
    with open_store(folder / "store", keys_in(folder, [], also=False)):
        pass


def test_a_key_that_the_host_has_put_there_gets_no_new_store(
    folder: Path, device: TpmDevice
) -> None:
    plant(folder, device)
    with pytest.raises(UnavailableError, match="may know what is in it"):
        make_store(folder / "store", keys_in(folder, []))
    assert (folder / "store.tpm").exists()
    assert not is_there(folder / "store")


def test_a_store_that_could_not_be_made_leaves_no_sealed_key(folder: Path) -> None:
    (folder / "store").write_text("no folder")
    with pytest.raises(AvowError):
        make_store(folder / "store", keys_in(folder, []))
    assert not (folder / "store.tpm").exists()
    (folder / "store").unlink()
    with make_store(folder / "store", keys_in(folder, [])):
        pass


def test_a_store_with_eight_keys_gets_no_ninth(folder: Path) -> None:
    with make_store(folder / "store", keys_in(folder, [])) as store:
        for number in range(1, 7):
            store.add_key(bytes([number] * 32))
        store.commit()
    before = (folder / "store.tpm").read_bytes()
    updated = replace(BINDING, runtime=b"u" * 32)
    with pytest.raises(UnavailableError, match=r"avow store keys .* --remove ID"):
        open_store(folder / "store", keys_in(folder, [], binding=updated))
    assert (folder / "store.tpm").read_bytes() == before


def test_anchor_on_a_tpm(fresh_tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVOW_TPM_TCTI", fresh_tpm.tcti)
    disk = Disk()
    store = IdentifiedStore(disk)
    fresh = begin_fresh(store, open_anchor("tpm:0x01800042", store))
    old = store.root
    fresh.close()
    store = IdentifiedStore(disk)
    fresh = open_fresh(store, open_anchor("tpm:0x01800042", store))
    fresh.close()
    store = IdentifiedStore(disk, root=old)
    anchor = open_anchor("tpm:0x01800042", store)
    assert anchor is not None
    with pytest.raises(RolledBackError, match="the TPM's counter 0x01800042"):
        open_fresh(store, anchor)
    open_fresh(store, anchor, accept_rollback=old.sequence).close()
    # Another store cannot take the place.
    other = IdentifiedStore(Disk())
    other.root_id = b"\x01" * 16
    anchor = open_anchor("tpm:0x01800042", other)
    assert anchor is not None
    with pytest.raises(DeniedError, match="another store"):
        begin_fresh(other, anchor)
    anchor.close()


def public_area(attributes: int = 0x412, unique_bytes: int = 32) -> bytes:
    """As docs/spec/freshness.md has it: fixedTPM, fixedParent and noDA, and only a policy."""
    unique = struct.pack(">H", unique_bytes) + bytes(unique_bytes)
    return struct.pack(">HHIH32sH", 8, ALG_SHA256, attributes, 32, b"d" * 32, 0x10) + unique


def blob_of(pcrs: tuple[int, ...] = (23,), **area: int) -> SealedBlob:
    return SealedBlob(pcrs, public_area(**area), b"private")


def test_a_file_that_is_one() -> None:
    assert decode_blob(blob_of().encoded(), "store.tpm") == blob_of()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"AVOWTPMK",
        blob_of().encoded() + b"\0",
        blob_of().encoded()[:-1],
        SealedBlob((23,), b"", b"q").encoded(),
        SealedBlob((23,), public_area(), b"").encoded(),
        SealedBlob((23,), public_area()[:-1], b"q").encoded(),
        SealedBlob((23,), public_area() + b"\0", b"q").encoded(),
        SealedBlob((23,), public_area(), b"q" * 1025).encoded(),
        # userWithAuth: a password, and no policy, would open it.
        blob_of(attributes=0x452).encoded(),
        blob_of(attributes=0x402).encoded(),
        blob_of(unique_bytes=31).encoded(),
        blob_of((7,)).encoded(),
        blob_of((23, 24)).encoded(),
        b"AVOWTPML" + blob_of().encoded()[8:],
        blob_of().encoded()[:8] + b"\2" + blob_of().encoded()[9:],
    ],
)
def test_files_that_are_none(content: bytes) -> None:
    with pytest.raises(MalformedError, match="in store\\.tpm"):
        decode_blob(content, "store.tpm")


def test_whatever_is_changed_is_said_of_the_file(device: TpmDevice) -> None:
    """And not of the TPM, which works."""
    content = seal(device, SECRET, RUNS)[0].encoded()
    for offset in range(0, len(content), 3):
        changed = content[:offset] + bytes([content[offset] ^ 0x80]) + content[offset + 1 :]
        with pytest.raises((DeniedError, MalformedError)):
            unseal(device, decode_blob(changed, "store.tpm"), RUNS)


def test_several_programs_at_once(machine_of_several: SharedTpm) -> None:
    """Each measures itself into the one PCR 23, and each gets its own secret."""
    runs = [replace(RUNS, module=bytes([number]) * 32) for number in range(1, 5)]
    got: list[bytes] = []

    def start(workload: Workload) -> None:
        device = TpmDevice(machine_of_several.tcti, 30)
        secret = sha256(workload.module).digest()
        blob, _ = seal(device, secret, workload, (0,))
        for _ in range(5):
            assert unseal(device, blob, workload) == secret
        got.append(secret)
        device.close()

    threads = [threading.Thread(target=start, args=(workload,)) for workload in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(runs)
