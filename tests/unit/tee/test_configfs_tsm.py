"""The reader of configfs-tsm against a directory that answers as the kernel does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from avow.errors import UnavailableError
from avow.tee.configfs_tsm import KernelFiles, TsmReports
from avow.testing.tsm_directory import TsmDirectory

ROOT = Path("/sys/kernel/config/tsm/report")


def _driver(inblob: bytes, privlevel: int) -> tuple[bytes, bytes]:
    return b"report %d " % privlevel + inblob, b"certificates"


def _directory(provider: str | None = "tdx_guest") -> TsmDirectory:
    return TsmDirectory(ROOT, _driver, provider)


def test_report() -> None:
    directory = _directory()
    report = TsmReports(ROOT, directory).report("tdx_guest", bytes(64))
    assert report.provider == "tdx_guest"
    assert report.outblob == b"report 0 " + bytes(64)
    assert report.auxblob == b"certificates"
    assert directory.made == 1
    assert not directory.entries


def test_privilege_level() -> None:
    directory = _directory("sev_guest")
    reports = TsmReports(ROOT, directory)
    assert reports.report("sev_guest", b"x", privlevel=2).outblob == b"report 2 x"
    directory.privlevel_floor = 3
    with pytest.raises(UnavailableError, match="refused"):
        reports.report("sev_guest", b"x", privlevel=2)
    assert not directory.entries


@pytest.mark.parametrize("level", [-1, 4])
def test_privilege_level_out_of_range(level: int) -> None:
    with pytest.raises(UnavailableError, match="privilege level"):
        TsmReports(ROOT, _directory()).report("tdx_guest", b"x", privlevel=level)


def test_no_auxblob() -> None:
    directory = _directory()
    directory.hidden = frozenset({"auxblob"})
    assert TsmReports(ROOT, directory).report("tdx_guest", b"x").auxblob == b""


def test_another_provider() -> None:
    directory = _directory("sev_guest")
    with pytest.raises(UnavailableError, match="expected the report driver tdx_guest"):
        TsmReports(ROOT, directory).report("tdx_guest", b"x")
    assert not directory.entries


def test_no_provider() -> None:
    with pytest.raises(UnavailableError, match="load the guest's TSM driver"):
        TsmReports(ROOT, _directory(None)).report("tdx_guest", b"x")


@pytest.mark.parametrize("size", [0, 65])
def test_size(size: int) -> None:
    with pytest.raises(UnavailableError, match="1 to 64 bytes"):
        TsmReports(ROOT, _directory()).report("tdx_guest", bytes(size))


@pytest.mark.parametrize("moment", ["outblob", "auxblob"])
def test_another_writer(moment: str) -> None:
    """Somebody who writes to our entry between write and read does not have us quote their data."""
    directory = _directory()

    def write(entry: Path, name: str) -> None:
        if name == moment:
            directory.write(entry / "inblob", b"somebody else's")

    directory.before_read = write
    with pytest.raises(UnavailableError, match="generation"):
        TsmReports(ROOT, directory).report("tdx_guest", b"ours")
    assert not directory.entries


def test_a_write_that_the_kernel_swallowed() -> None:
    """configfs does not say when a driver refuses a blob; `generation` does."""

    class Deaf(TsmDirectory):
        def write(self, path: Path, content: bytes) -> None:
            pass

    with pytest.raises(UnavailableError, match="generation"):
        TsmReports(ROOT, Deaf(ROOT, _driver, "tdx_guest")).report("tdx_guest", b"x")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ETIMEDOUT, "quote generation service"),
        (errno.EFBIG, "update the kernel"),
        (errno.EBUSY, "try again"),
        (errno.EBADMSG, "kernel's log"),
    ],
)
def test_driver_fails(code: int, advice: str) -> None:
    def fail(inblob: bytes, privlevel: int) -> tuple[bytes, bytes]:
        raise OSError(code, os.strerror(code))

    directory = TsmDirectory(ROOT, fail, "tdx_guest")
    with pytest.raises(UnavailableError, match=advice):
        TsmReports(ROOT, directory).report("tdx_guest", b"x")
    assert not directory.entries


@pytest.mark.parametrize(("blob", "match"), [(b"", "nothing"), (bytes(65537), "at most 65536")])
def test_size_of_the_report(blob: bytes, match: str) -> None:
    directory = TsmDirectory(ROOT, lambda *_: (blob, b""), "tdx_guest")
    with pytest.raises(UnavailableError, match=match):
        TsmReports(ROOT, directory).report("tdx_guest", b"x")


def test_generation_that_is_no_number() -> None:
    class Odd(TsmDirectory):
        def read(self, path: Path) -> bytes:
            return "²\n".encode() if path.name == "generation" else super().read(path)

    with pytest.raises(UnavailableError, match="expected a number"):
        TsmReports(ROOT, Odd(ROOT, _driver, "tdx_guest")).report("tdx_guest", b"x")


def test_no_interface(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"Linux 6\.7"):
        TsmReports(tmp_path / "report").report("tdx_guest", b"x")


def test_an_ordinary_folder_is_no_interface(tmp_path: Path) -> None:
    """A directory in which nothing answers, through the real file operations."""
    with pytest.raises(UnavailableError):
        TsmReports(tmp_path).report("tdx_guest", b"x")
    assert not list(tmp_path.iterdir())


def test_kernel_files(tmp_path: Path) -> None:
    files = KernelFiles()
    folder = tmp_path / "entry"
    files.make_folder(folder)
    with pytest.raises(FileNotFoundError):
        files.write(folder / "inblob", b"x")
    (folder / "inblob").write_bytes(b"")
    files.write(folder / "inblob", bytes(range(64)))
    assert files.read(folder / "inblob") == bytes(range(64))
    (folder / "outblob").write_bytes(bytes(100_000))
    assert len(files.read(folder / "outblob")) == 65537
    (folder / "inblob").unlink()
    (folder / "outblob").unlink()
    files.remove_folder(folder)
    assert not folder.exists()
