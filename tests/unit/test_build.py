"""The build: the same measurement from any folder, no needless work, complete packages."""

from __future__ import annotations

import platform
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

import hatch_build

ROOT = Path(hatch_build.__file__).resolve().parent

TINY = hatch_build.Artefact(
    name="tiny.wasm",
    sources=Path("tiny"),
    command=(
        *("build-exe", "tiny/main.zig", "-target", "wasm32-freestanding"),
        *("-O", "ReleaseSmall", "-fno-entry", "-rdynamic", "-fstrip", "-fno-compiler-rt"),
    ),
)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkout with one source file that compiles in a moment."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/main.zig").write_text("export fn one() u32 {\n    return 1;\n}\n")
    return tmp_path


def test_measurement_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    here = hatch_build.build(ROOT, hatch_build.core())
    elsewhere = tmp_path / "a folder of another name and depth"
    shutil.copytree(ROOT / "core", elsewhere / "core")
    there = hatch_build.build(elsewhere, hatch_build.core())
    assert there.read_bytes() == here.read_bytes()


def test_second_build_does_nothing(tiny: Path) -> None:
    result = hatch_build.build(tiny, TINY)
    before = result.stat()
    assert hatch_build.build(tiny, TINY) == result
    assert result.stat() == before


def test_forced_build_gives_the_same_bytes(tiny: Path) -> None:
    result = hatch_build.build(tiny, TINY)
    before, inode = result.read_bytes(), result.stat().st_ino
    hatch_build.build(tiny, TINY, force=True)
    assert result.stat().st_ino != inode
    assert result.read_bytes() == before


def test_changed_source_is_compiled_again(tiny: Path) -> None:
    before = hatch_build.build(tiny, TINY).read_bytes()
    (tiny / "tiny/main.zig").write_text("export fn two() u32 {\n    return 2;\n}\n")
    assert hatch_build.build(tiny, TINY).read_bytes() != before


def test_changed_command_is_compiled_again(tiny: Path) -> None:
    before = hatch_build.build(tiny, TINY).read_bytes()
    other = TINY._replace(command=(*TINY.command, "-mcpu", "generic+simd128"))
    assert hatch_build.source_digest(tiny, other) != hatch_build.source_digest(tiny, TINY)
    hatch_build.build(tiny, other)
    assert hatch_build.build(tiny, TINY).read_bytes() == before


def test_damaged_result_is_compiled_again(tiny: Path) -> None:
    result = hatch_build.build(tiny, TINY)
    before = result.read_bytes()
    result.write_bytes(before + b"\0")
    assert hatch_build.build(tiny, TINY).read_bytes() == before


def test_new_file_and_new_name_change_the_digest(tiny: Path) -> None:
    digests = {hatch_build.source_digest(tiny, TINY)}
    (tiny / "tiny/more.zig").write_text("")
    digests.add(hatch_build.source_digest(tiny, TINY))
    (tiny / "tiny/more.zig").rename(tiny / "tiny/other.zig")
    digests.add(hatch_build.source_digest(tiny, TINY))
    assert len(digests) == 3


def test_failure_shows_what_the_compiler_said(tiny: Path) -> None:
    (tiny / "tiny/main.zig").write_text("export fn one() u32 {\n    return missing;\n}\n")
    with pytest.raises(hatch_build.BuildError, match="undeclared identifier 'missing'"):
        hatch_build.build(tiny, TINY)
    assert not (tiny / hatch_build.NATIVE_FOLDER / TINY.name).exists()


def test_absent_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(hatch_build.BuildError, match=r"no Zig sources below .*tiny"):
        hatch_build.build(tmp_path, TINY)


def test_other_compiler_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hatch_build, "ZIG_VERSION", "0.0.1")
    with pytest.raises(hatch_build.BuildError, match=r"pip install ziglang==0\.0\.1"):
        hatch_build.build(tiny, TINY)


def test_other_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(hatch_build.BuildError, match="x86_64 or aarch64; this is linux on riscv64"):
        hatch_build.wheel_tag()


def test_program_prints_what_it_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert hatch_build.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        "src/avow/_native/broker.wasm",
        "src/avow/_native/libavow_pump.so",
        "src/avow/_native/libavow_vault.so",
    ]
    assert lines[0].split()[0] == hatch_build.sha256_of(ROOT / lines[0].split()[1])


def test_wheel_is_complete_and_fits_this_machine(tmp_path: Path) -> None:
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    *_, tags = parse_wheel_filename(Path(path).name)
    assert tags & set(sys_tags())
    assert all(tag.abi == "none" and tag.platform != "any" for tag in tags)
    with zipfile.ZipFile(path) as wheel:
        for name in ("broker.wasm", "libavow_pump.so", "libavow_vault.so"):
            built = ROOT / hatch_build.NATIVE_FOLDER / name
            assert wheel.read(f"avow/_native/{name}") == built.read_bytes()
        packed = set(wheel.namelist())
    modules = {
        path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/avow").rglob("*.py")
    }
    shipped = {name for name in modules if not name.startswith("avow/testing/")}
    assert {name for name in packed if name.endswith(".py")} == shipped
    assert "avow/py.typed" in packed


def test_sdist_holds_all_sources(tmp_path: Path) -> None:
    (path,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(path) as sdist:
        packed = {name.split("/", 1)[1] for name in sdist.getnames()}
    for artefact in (hatch_build.core(), hatch_build.pump()):
        sources = hatch_build.source_files(ROOT, artefact.sources)
        assert {source.as_posix() for source in sources} <= packed
    assert {"hatch_build.py", "pyproject.toml", "LICENSE", "Makefile"} <= packed
    assert not any(name.startswith("src/avow/_native") for name in packed)
