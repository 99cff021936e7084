"""Code that runs is code that was measured: each way to bring in other code, tried on an avow that
is installed.

What an attacker's code does is seen by the version that the process shows. Of ways that the process
does not take at all a test shows first that they work without the defence.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import marshal
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from avow.runtime.boot import FLAGS, LENGTH_BYTES, MAGIC
from avow.start import KEPT
from tests.adversary.altered_installation import (
    EVIL,
    NONCE,
    VERSION,
    Installed,
    added,
    changed,
    install,
    record,
    run,
)

TAG = sys.implementation.cache_tag
# A module that every command imports after avow itself.
VICTIM = "avow/errors.py"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("installed") / "environment")


@pytest.fixture(scope="module")
def runtime(installed: Installed) -> str:
    """What it is measured as before anybody alters it."""
    assert installed.version() == VERSION
    assert installed.avow("measure", "runtime").stderr == ""
    assert installed.attest().returncode == 0
    return installed.runtime()


def evil(installed: Installed) -> bytes:
    """The source of the victim with the attacker's code behind it."""
    return (installed.site / VICTIM).read_bytes() + b"\n" + EVIL.encode()


def forged_pyc(installed: Installed, *, hashed: bool) -> bytes:
    """A compiled file that Python takes for that of the victim: time and size agree, or a hash
    that nobody is to check (PEP 552)."""
    path = installed.site / VICTIM
    code = marshal.dumps(compile(evil(installed), str(path), "exec", dont_inherit=True))
    if hashed:
        return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + code
    found = path.stat()
    times = int(found.st_mtime).to_bytes(4, "little") + found.st_size.to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + bytes(4) + times + code


@pytest.mark.parametrize("hashed", [False, True], ids=["times agree", "unchecked hash"])
def test_forged_pyc(installed: Installed, runtime: str, hashed: bool) -> None:
    pyc = installed.site / "avow/__pycache__" / f"errors.{TAG}.pyc"
    pyc.unlink(missing_ok=True)
    with added({pyc: forged_pyc(installed, hashed=hashed)}):
        assert installed.version(measured=False) == "EVIL"
        assert installed.version() == VERSION
        assert installed.runtime() == runtime
        assert installed.attest().returncode == 0


def test_pycache_prefix(installed: Installed, runtime: str, tmp_path: Path) -> None:
    folder = tmp_path / str(installed.site / "avow").lstrip("/")
    prefix = {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    with added({folder / f"errors.{TAG}.pyc": forged_pyc(installed, hashed=True)}):
        assert installed.version(prefix, measured=False) == "EVIL"
        assert installed.version(prefix) == VERSION
        assert installed.runtime(prefix) == runtime


@pytest.mark.parametrize(
    ("name", "content"),
    [("sitecustomize.py", EVIL), ("evil.pth", EVIL.replace("\n", ";").rstrip(";") + "\n")],
)
def test_what_site_runs(installed: Installed, runtime: str, name: str, content: str) -> None:
    # Debian's Python has a module of this name, which comes first.
    hidden = Path(os.__file__).with_name(name).exists()
    with added({installed.site / name: content}):
        assert installed.version(measured=False) == (VERSION if hidden else "EVIL")
        assert installed.version() == VERSION
        assert installed.runtime() == runtime


def test_python_path(installed: Installed, runtime: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(EVIL)
    path = {"PYTHONPATH": str(tmp_path)}
    assert installed.version(path, measured=False) == "EVIL"
    assert installed.version(path) == VERSION
    assert installed.runtime(path) == runtime


def test_command_behind_the_end_of_the_options(
    installed: Installed, runtime: str, tmp_path: Path
) -> None:
    """`avow -- broker` is `avow broker`, also in who begins again."""
    (tmp_path / "sitecustomize.py").write_text(EVIL)
    done = installed.avow(
        *("--", "measure", "broker", "--json"), environment={"PYTHONPATH": str(tmp_path)}
    )
    assert json.loads(done.stdout)["version"] == VERSION


def test_user_folder(installed: Installed, runtime: str, tmp_path: Path) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    user = tmp_path / "lib" / version / "site-packages"
    user.mkdir(parents=True)
    (user / "usercustomize.py").write_text(EVIL)
    assert installed.version({"PYTHONUSERBASE": str(tmp_path)}) == VERSION
    assert installed.runtime({"PYTHONUSERBASE": str(tmp_path)}) == runtime


def test_python_home(installed: Installed, runtime: str, tmp_path: Path) -> None:
    """Another folder of Python's own modules."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    standard = Path(os.__file__).parent
    home = tmp_path / "lib" / version
    home.mkdir(parents=True)
    for each in standard.iterdir():
        if each.name != "json":
            (home / each.name).symlink_to(each)
    shutil.copytree(standard / "json", home / "json")
    with (home / "json/__init__.py").open("a") as file:
        file.write(EVIL)
    if (standard / "lib-dynload").is_dir():
        assert (home / "lib-dynload").is_dir()
    environment = {"PYTHONHOME": str(tmp_path), "PYTHONPATH": str(installed.site)}
    assert installed.version(environment, measured=False) == "EVIL"
    assert installed.version(environment) == VERSION
    assert installed.runtime(environment) == runtime


# Nothing is to be found at these, so that the process that is not measured yet begins at all.
VARIABLES = {
    "GCONV_PATH": "/nowhere",
    "GLIBC_TUNABLES": "glibc.malloc.check=0",
    "LD_AUDIT": "",
    "LD_LIBRARY_PATH": "/nowhere",
    "LD_PRELOAD": "",
    "LOCPATH": "/nowhere",
    "OPENSSL_CONF": "/nowhere",
    "OPENSSL_ENGINES": "/nowhere",
    "OPENSSL_MODULES": "/nowhere",
    "PYTHONBREAKPOINT": "evil.main",
    "PYTHONINSPECT": "",
    "PYTHONPATH": "/nowhere",
    "PYTHONPYCACHEPREFIX": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "PYTHONUSERBASE": "/nowhere",
    "SSLKEYLOGFILE": "/nowhere",
    "SSL_CERT_DIR": "/nowhere",
    "SSL_CERT_FILE": "/nowhere",
}


def test_variables_do_not_reach_the_process(installed: Installed) -> None:
    """Seen where the kernel shows it, since a process could say anything."""
    shown = environment_of_a_broker(installed, {**VARIABLES, "AVOW_KEPT": "1"})
    assert "AVOW_KEPT" in shown
    assert not shown & set(VARIABLES)
    assert shown <= KEPT | {"AVOW_KEPT", "LC_CTYPE"}


def test_another_name_for_the_interpreter(installed: Installed) -> None:
    """PYTHONEXECUTABLE says who Python is, and with that whom it would begin again."""
    path = {"PYTHONEXECUTABLE": "/nowhere", "PYTHONPATH": str(installed.site)}
    assert installed.version(path) == VERSION


def environment_of_a_broker(installed: Installed, environment: dict[str, str]) -> set[str]:
    with RunningBroker(installed, environment) as broker:
        words = Path(f"/proc/{broker.pid}/environ").read_bytes().split(b"\0")
        return {word.partition(b"=")[0].decode() for word in words if word}


class RunningBroker:
    """A broker that listens, ended when it is left."""

    def __init__(self, installed: Installed, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [str(installed.python), "-m", "avow", "broker", "--listen", "mqtt://127.0.0.1:0"],
            env={"PATH": os.environ["PATH"], **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> subprocess.Popen[str]:
        assert self._process.stderr is not None
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            if "listening" in line:
                return self._process
        raise AssertionError(lines)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


def other_library() -> str:
    """A library that avow has no use for, on every system with a C library of GNU."""
    (found,) = {os.path.realpath(path) for path in _candidates() if os.path.exists(path)}
    return found


def _candidates() -> Iterator[str]:
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"):
        yield f"{folder}/libanl.so.1"


def test_preloaded_library(installed: Installed, runtime: str) -> None:
    library = other_library()
    environment = {"LD_PRELOAD": library}
    with RunningBroker(installed, environment) as broker:
        assert os.path.basename(library) not in Path(f"/proc/{broker.pid}/maps").read_text()
    assert installed.runtime(environment) == runtime


def test_library_that_nobody_can_keep_out(installed: Installed, runtime: str) -> None:
    """As by /etc/ld.so.preload, which no process can leave out: there is no evidence then."""
    boot = installed.site / "avow/runtime/boot.py"
    attest = ("attest", "--tee", "simulated", "--nonce", NONCE, "-o", "evidence.cmw")
    command = [str(installed.python), *FLAGS, str(boot), "0", "avow.cli", *attest]
    for preload, code in (("", 0), (other_library(), 1)):
        done = run(
            command,
            env={"LD_PRELOAD": preload},
            stdin=subprocess.DEVNULL,
            cwd=installed.libraries,
        )
        assert done.returncode == code, done.stderr
    assert f"{other_library()} (mapped)" in done.stderr


UNLISTED = (
    "avow/broker/evil/__init__.py",
    "avow/errors.abi3.so",
    "avow/_native/libevil.so",
    "pydantic/evil.py",
    "structlog/evil/module.py",
)


# A library that leaves a trace as soon as it is loaded.
LOADED = """
const linux = @import("std").os.linux;
fn loaded() callconv(.c) void {
    _ = linux.open("TRACE", .{ .CREAT = true, .ACCMODE = .WRONLY }, 0o600);
}
export const hook: *const fn () callconv(.c) void linksection(".init_array") = loaded;
"""


def traced(folder: Path) -> tuple[Path, Path]:
    """Such a library, and its trace, which is not there yet."""
    source, library, trace = (folder / name for name in ("evil.zig", "evil.so", "trace"))
    source.write_text(LOADED.replace("TRACE", str(trace)))
    compiler = [sys.executable, "-m", "ziglang", "build-lib", "-dynamic", "-O", "ReleaseSmall"]
    compiled = run([*compiler, f"-femit-bin={library}", str(source)], cwd=folder)
    assert compiled.returncode == 0, compiled.stderr
    return library, trace


CONFIGURATION = """\
openssl_conf = all
[all]
providers = providers
[providers]
evil = evil
[evil]
module = LIBRARY
activate = 1
"""


def test_library_by_the_configuration_of_openssl(
    installed: Installed, runtime: str, tmp_path: Path
) -> None:
    """As by the system's file, which a variable stands for here."""
    library, trace = traced(tmp_path)
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(CONFIGURATION.replace("LIBRARY", str(library)))
    environment = {"OPENSSL_CONF": str(configuration)}
    run([str(installed.python), "-c", "import _hashlib"], env=environment)
    assert trace.exists()
    trace.unlink()
    boot = installed.site / "avow/runtime/boot.py"
    done = run(
        [str(installed.python), *FLAGS, str(boot), "0", "avow.cli", "measure", "--reference"],
        env=environment,
        stdin=subprocess.DEVNULL,
        cwd=installed.libraries,
    )
    assert done.returncode == 0, done.stderr
    assert not trace.exists()


@pytest.mark.parametrize("before", ["", "pcap:"])
def test_library_as_the_way_to_a_tpm(installed: Installed, before: str, tmp_path: Path) -> None:
    """libtss2 loads a library by its path, and lets go of one that is no transport: its code has
    run then, and nothing shows it any more."""
    library, trace = traced(tmp_path)
    ctypes.CDLL(str(library))
    assert trace.exists()
    trace.unlink()
    done = installed.avow(
        *("attest", "--tee", "tpm", "--nonce", NONCE, "-o", "evidence.cmw"),
        environment={"AVOW_TPM_TCTI": f"{before}{library}"},
    )
    assert done.returncode == 2
    assert not trace.exists()
    assert "expected device, swtpm, mssim or cmd" in done.stderr


def test_unlisted_files_beside_modules(installed: Installed, runtime: str) -> None:
    with added({installed.site / name: EVIL for name in UNLISTED}):
        assert installed.version() == VERSION
        done = installed.attest()
        assert done.returncode == 2
        assert "expected no such file in" in done.stderr
        assert "avow measure runtime" in done.stderr
        listed = installed.avow("measure", "runtime")
        assert listed.returncode == 1
        for name in UNLISTED:
            assert f"{installed.site / name}: expected no such file" in listed.stderr
    assert installed.runtime() == runtime


def test_linked_folders(installed: Installed, runtime: str, tmp_path: Path) -> None:
    names = ("structlog", "avow/broker", "typing_extensions.py")
    for name in names:
        elsewhere = tmp_path / Path(name).name
        shutil.move(installed.site / name, elsewhere)
        (installed.site / name).symlink_to(elsewhere)
    try:
        done = installed.attest()
        assert done.returncode == 2
        for name in names:
            assert f"{installed.site / name}: expected a file or folder of" in done.stderr
        assert "got a symbolic link" in done.stderr
    finally:
        for name in names:
            (installed.site / name).unlink()
            shutil.move(tmp_path / Path(name).name, installed.site / name)
    assert installed.runtime() == runtime


def test_altered_source_is_named(installed: Installed, runtime: str) -> None:
    path = installed.site / VICTIM
    with changed(path, evil(installed)):
        done = installed.avow("measure", "runtime")
        assert done.returncode == 1
        assert f"{path}: expected sha256:" in done.stderr
        assert "got sha256:" in done.stderr
        assert installed.attest().returncode == 2
        # Whoever writes the installer's list anew is another runtime.
        listed = installed.site / f"avow-{VERSION}.dist-info/RECORD"
        before = listed.read_bytes()
        record(installed.site)
        try:
            assert installed.runtime() != runtime
        finally:
            listed.write_bytes(before)
    assert installed.runtime() == runtime


def forged_image(installed: Installed, *, honest_header: bool) -> bytes:
    """The code image with the attacker's code in place of the victim's, which is as long: with its
    digest in the header, or that of the code that was there."""
    content = installed.image.read_bytes()
    start = len(MAGIC) + LENGTH_BYTES
    length = int.from_bytes(content[len(MAGIC) : start], "little")
    header = marshal.loads(content[start : start + length])
    kind, path, package, _, _, digest, source = header["modules"]["avow.errors"]
    code = compile(evil(installed), "<avow>/errors.py", "exec", dont_inherit=True)
    blob = marshal.dumps(("avow.errors", package, code), 2)
    if honest_header:
        digest = hashlib.sha256(blob).digest()
    blobs = content[start + length :]
    entry = (kind, path, package, len(blobs), len(blob), digest, source)
    header["modules"]["avow.errors"] = entry
    packed = marshal.dumps(header, 2)
    return MAGIC + len(packed).to_bytes(LENGTH_BYTES, "little") + packed + blobs + blob


def test_exchanged_code_is_another_runtime(installed: Installed, runtime: str) -> None:
    with changed(installed.image, forged_image(installed, honest_header=True)):
        # It runs, and says so.
        assert installed.version() == "EVIL"
        assert installed.runtime() != runtime
        listed = installed.avow("measure", "runtime")
        assert listed.returncode == 1
        assert "expected the code of avow.errors as its source gives it" in listed.stderr
    assert installed.runtime() == runtime


def test_code_other_than_the_header_says_does_not_run(installed: Installed, runtime: str) -> None:
    with changed(installed.image, forged_image(installed, honest_header=False)):
        done = installed.avow("measure", "broker")
        assert done.returncode == 1
        assert "expected the code of avow.errors as it was measured" in done.stderr
    assert installed.runtime() == runtime


def test_image_that_others_can_write_is_made_again(installed: Installed, runtime: str) -> None:
    with changed(installed.image, forged_image(installed, honest_header=True)):
        installed.image.chmod(0o666)
        assert installed.version() == VERSION
    assert installed.runtime() == runtime
