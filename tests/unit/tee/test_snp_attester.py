"""The attesting side of SEV-SNP: configfs-tsm, /dev/sev-guest, and the host's certificates."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import MalformedError, UnavailableError
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.report_data import ReportData, batch
from avow.tee.configfs_tsm import REPORTS, TsmReports
from avow.tee.snp.attester import (
    DeviceSource,
    SnpAttester,
    TsmSource,
    find_chain,
    parse_certificate_table,
)
from avow.tee.snp.report import decode_evidence, parse_report
from avow.tee.snp.verifier import TURIN
from avow.testing.amd_pki import CHIP_ID, NOW, AmdPki, SnpSigner, public_key
from avow.testing.tsm_directory import TsmDirectory

# GHCB (AMD 56421), section 4.1.8.1.
VCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
VLEK = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
ASK = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
ARK = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
CRL = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"
WORKLOAD = Workload(*[bytes(32)] * 4)


@pytest.fixture(scope="module")
def pki() -> AmdPki:
    return AmdPki()


@pytest.fixture(scope="module")
def report_data() -> ReportData:
    claims = Claims(bytes(32), Role.DOCUMENT, WORKLOAD, b"", 0)
    return batch([(claims, bytes(64))])[0]


def table(*entries: tuple[str, bytes]) -> bytes:
    """As a host lays it out: the entries, one of zeros, and what they point to."""
    offset = 24 * (len(entries) + 1)
    head = contents = b""
    for name, content in entries:
        head += struct.pack("<16sII", uuid.UUID(name).bytes, offset + len(contents), len(content))
        contents += content
    return (head + bytes(24) + contents).ljust(0x4000, b"\0")


Driver = Callable[[bytes, int], tuple[bytes, bytes]]


def tsm(driver: Driver) -> TsmSource:
    return TsmSource(TsmReports(REPORTS, TsmDirectory(REPORTS, driver, "sev_guest")))


def answering(signer: SnpSigner, certificates: bytes) -> Driver:
    return lambda inblob, privlevel: (signer.report(inblob, vmpl=privlevel), certificates)


def always(answer: tuple[bytes, bytes]) -> Driver:
    return lambda inblob, privlevel: answer


class SevGuest:
    """The kernel's side of /dev/sev-guest: drivers/virt/coco/sev-guest/sev-guest.c."""

    def __init__(self, signer: SnpSigner, certificates: bytes, status: int = 0) -> None:
        self.signer, self.certificates, self.status = signer, certificates, status
        self.size: int | None = None
        self.vmpls: list[int] = []

    def ioctl(self, descriptor: int, request: int, argument: bytearray) -> int:
        """SNP_GET_EXT_REPORT."""
        if request != 0xC0205302:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        version, asked, into, _ = struct.unpack("<B7xQQQ", argument)
        content = ctypes.string_at(asked, 112)
        data, vmpl, rest, address, length = struct.unpack("<64sI28sQI4x", content)
        if version != 1 or any(rest) or length > 0x4000 or length % 4096:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if len(self.certificates) > length:
            struct.pack_into("<Q", argument, 24, 1 << 32)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.vmpls.append(vmpl)
        report = self.signer.report(data, vmpl=vmpl)
        ctypes.memmove(address, self.certificates, len(self.certificates))
        answer = struct.pack("<II24x", self.status, self.size or len(report)) + report
        ctypes.memmove(into, answer, len(answer))
        return 0


@pytest.mark.parametrize("vmpl", [None, 0, 2])
def test_through_configfs(pki: AmdPki, report_data: ReportData, vmpl: int | None) -> None:
    chip = pki.chip()
    certificates = table((VCEK, chip.chain[0]), (ASK, pki.ask), (ARK, pki.ark))
    attester = SnpAttester(tsm(answering(chip, certificates)), vmpl=vmpl)
    attester.measure(WORKLOAD)
    assert attester.platform == "snp"
    proven = pki.verifier().authenticate(attester.quote(report_data), NOW)
    assert proven.bound == report_data.content
    assert proven.claims["snp.vmpl"] == (vmpl or 0)


@pytest.mark.parametrize("vmpl", [None, 3])
def test_through_the_device(
    pki: AmdPki, report_data: ReportData, tmp_path: Path, vmpl: int | None
) -> None:
    device = tmp_path / "sev-guest"
    device.touch()
    cloud = pki.cloud()
    guest = SevGuest(cloud, table((VLEK, cloud.chain[0]), (ASK, pki.asvk), (ARK, pki.ark)))
    attester = SnpAttester(DeviceSource(device, guest.ioctl), vmpl=vmpl)
    proven = pki.verifier().authenticate(attester.quote(report_data), NOW)
    assert proven.bound == report_data.content
    assert proven.claims["snp.signer"] == "vlek"
    assert guest.vmpls == [vmpl or 0]


def test_certificates_from_files(pki: AmdPki, report_data: ReportData) -> None:
    """What the host leaves out, among others that are not for this chip."""
    chip, other = pki.chip(), pki.chip()
    weak = pki.chip(public_key=public_key(pki.ask_key)).chain[0]
    files = [b"no certificate", weak, pki.asvk, other.chain[0], pki.ark, chip.chain[0], pki.ask]
    for given_by_host in (b"", bytes(0x4000), table((VCEK, chip.chain[0]))):
        source = tsm(answering(chip, given_by_host))
        quote = SnpAttester(source, certificates=files).quote(report_data)
        assert decode_evidence(quote).chain == chip.chain
        assert pki.verifier().authenticate(quote, NOW)


def test_a_list_is_sent_along(pki: AmdPki, report_data: ReportData) -> None:
    chip, crl, own = pki.chip(), pki.crl(), pki.crl([(None, 7)])
    given_by_host = table(*zip((VCEK, ASK, ARK), chip.chain, strict=True), (CRL, crl))
    source = tsm(answering(chip, given_by_host))
    assert decode_evidence(SnpAttester(source).quote(report_data)).crl == crl
    assert decode_evidence(SnpAttester(source, crl=own).quote(report_data)).crl == own


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_certificates_that_are_missing(pki: AmdPki, report_data: ReportData, missing: int) -> None:
    chip = pki.chip()
    files = [each for place, each in enumerate(chip.chain) if place != missing]
    source = tsm(answering(chip, b""))
    with pytest.raises(UnavailableError, match=r"https://kdsintf\.amd\.com"):
        SnpAttester(source, certificates=files).quote(report_data)


def test_the_address_at_amd(pki: AmdPki, report_data: ReportData) -> None:
    """AMD 57230, chapter 4: Turin's hardware id has 8 bytes, and its TCB a level of the FMC."""
    turin = AmdPki(TURIN).chip()
    for signer, fields, words in (
        (pki.chip(), {}, f"/vcek/v1/Milan/{CHIP_ID.hex()}?blSPL=04&teeSPL=01&snpSPL=24&ucodeSPL="),
        (turin, {}, f"/vcek/v1/Turin/{CHIP_ID[:8].hex()}?fmcSPL=00&blSPL=04&teeSPL=01&snpSPL=24&"),
        (turin, {}, "https://kdsintf.amd.com/vcek/v1/Turin/cert_chain"),
        (pki.chip(), {"version": 2}, "(PRODUCT is Milan or Genoa)"),
        (pki.chip(), {"chip_id": bytes(64)}, "ask its operator for the VCEK"),
        (pki.cloud(), {}, "ask the operator of the cloud for the VLEK"),
    ):
        report = parse_report(signer.report(report_data.content, **fields))
        with pytest.raises(UnavailableError) as caught:
            find_chain(report, ())
        assert words in str(caught.value)


def test_a_driver_that_answers_otherwise(pki: AmdPki, report_data: ReportData) -> None:
    chip = pki.chip()
    answers: Sequence[tuple[bytes, bytes]] = (
        (chip.report(bytes(64)), table()),
        (chip.report(report_data.content)[:-1], table()),
        (b"no report", table()),
        (chip.report(report_data.content), b"no table" * 9),
    )
    for answer in answers:
        attester = SnpAttester(tsm(always(answer)), certificates=chip.chain)
        with pytest.raises(UnavailableError):
            attester.quote(report_data)


def test_a_device_that_fails(pki: AmdPki, report_data: ReportData, tmp_path: Path) -> None:
    device = tmp_path / "sev-guest"
    with pytest.raises(UnavailableError, match="run as root in a SEV-SNP guest"):
        SnpAttester(DeviceSource(device)).quote(report_data)
    device.touch()
    chip = pki.chip()
    guests = [SevGuest(chip, bytes(0x5000)), SevGuest(chip, b"", status=0x16)]
    for size in (1183, 1185, 4000):
        guests.append(SevGuest(chip, b""))
        guests[-1].size = size
    for guest in guests:
        attester = SnpAttester(DeviceSource(device, guest.ioctl), certificates=chip.chain)
        with pytest.raises(UnavailableError):
            attester.quote(report_data)
    with pytest.raises(UnavailableError):
        SnpAttester(DeviceSource(device)).quote(report_data)


def test_tables() -> None:
    assert parse_certificate_table(b"") == {}
    assert parse_certificate_table(bytes(0x4000)) == {}
    assert parse_certificate_table(table((VCEK, b"a"), (ASK, b""))) == {
        uuid.UUID(VCEK): b"a",
        uuid.UUID(ASK): b"",
    }
    head = struct.pack("<16sII", uuid.UUID(VCEK).bytes, 48, 4)
    for bad in (
        b"\1",
        head,
        head + bytes(24) + b"abc",
        head + head + bytes(24) + bytes(8),
        2 * struct.pack("<16sII", uuid.UUID(VCEK).bytes, 72, 4) + bytes(100),
        struct.pack("<16sII", uuid.UUID(VCEK).bytes, 0, 4) + bytes(100),
        struct.pack("<16sII", uuid.UUID(VCEK).bytes, 47, 4) + bytes(100),
        struct.pack("<16sII", uuid.UUID(VCEK).bytes, 2**32 - 1, 2**32 - 1) + bytes(100),
    ):
        with pytest.raises(MalformedError):
            parse_certificate_table(bad)


@given(content=st.binary(max_size=300))
def test_any_bytes_as_table(content: bytes) -> None:
    try:
        entries = parse_certificate_table(content)
    except MalformedError:
        return
    assert sum(map(len, entries.values())) <= len(content) * max(1, len(entries))
