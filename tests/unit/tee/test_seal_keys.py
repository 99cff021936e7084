"""Keys that platforms derive: Gramine's seal keys, and SEV-SNP's derived key."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from avow.errors import UnavailableError
from avow.tee.sgx.attester import ATTESTATION
from avow.tee.sgx.seal_key import read_seal_key
from avow.tee.snp.derived_key import read_derived_key
from avow.testing.gramine_directory import GramineDirectory

SEAL_KEY = bytes(range(16))
DERIVED = bytes(range(32))


def gramine(**keys: bytes) -> GramineDirectory:
    return GramineDirectory(ATTESTATION, lambda content: b"", keys=keys)


def test_seal_keys_by_their_names() -> None:
    files = gramine(_sgx_mrenclave=SEAL_KEY, _sgx_mrsigner=SEAL_KEY[::-1])
    assert read_seal_key(files) == SEAL_KEY
    assert read_seal_key(files, of_signer=True) == SEAL_KEY[::-1]
    with pytest.raises(UnavailableError, match="keys/_sgx_mrsigner"):
        read_seal_key(gramine(_sgx_mrenclave=SEAL_KEY), of_signer=True)


@pytest.mark.parametrize("key", [b"", SEAL_KEY[:15], SEAL_KEY + b"\0", bytes(16), SEAL_KEY * 2])
def test_seal_keys_that_are_none(key: bytes) -> None:
    with pytest.raises(UnavailableError, match="seal key of 16 bytes, not all zero"):
        read_seal_key(gramine(_sgx_mrenclave=key))


def test_outside_of_gramine(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="run in Gramine with SGX"):
        read_seal_key(gramine())


@dataclass
class SevGuest:
    """The kernel's side of SNP_GET_DERIVED_KEY: drivers/virt/coco/sev-guest/sev-guest.c."""

    status: int = 0
    key: bytes = DERIVED
    failure: int = 0
    asked: list[tuple[int, ...]] = field(default_factory=list)
    response_at: int = 0

    def ioctl(self, descriptor: int, request: int, argument: bytearray) -> int:
        if request != 0xC0205301 or len(argument) != 32:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        version, asked, self.response_at, _ = struct.unpack("<B7xQQQ", argument)
        if version != 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        # struct snp_derived_key_req: root_key_select, rsvd, guest_field_select, vmpl, guest_svn,
        # tcb_version.
        self.asked.append(struct.unpack("<IIQIIQ", ctypes.string_at(asked, 32)))
        if self.failure:
            struct.pack_into("<Q", argument, 24, 0x16)
            raise OSError(self.failure, os.strerror(self.failure))
        response = struct.pack("<I28x32s", self.status, self.key)
        ctypes.memmove(self.response_at, response, len(response))
        return 0


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "sev-guest"
    path.touch()
    return path


def test_derived_key(device: Path) -> None:
    guest = SevGuest()
    assert read_derived_key(device, guest.ioctl) == DERIVED
    # VCEK; guest policy (bit 0) and measurement (bit 3); VMPL 0.
    assert guest.asked == [(0, 0, 0b1001, 0, 0, 0)]


@pytest.mark.parametrize(
    ("guest", "message"),
    [
        (SevGuest(status=0x16), "status 0x16"),
        (SevGuest(key=bytes(32)), "status 0x0"),
        (SevGuest(failure=errno.EIO), "exitinfo2 0x16"),
    ],
)
def test_derived_key_that_is_none(device: Path, guest: SevGuest, message: str) -> None:
    with pytest.raises(UnavailableError, match=message) as caught:
        read_derived_key(device, guest.ioctl)
    assert DERIVED.hex() not in str(caught.value)


def test_outside_of_a_guest(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="run as root in a SEV-SNP guest"):
        read_derived_key(tmp_path / "absent", SevGuest().ioctl)
