"""Begins a measured process: `avow.start` runs it as a file.

    python -I -S -B -X pycache_prefix=/dev/null boot.py DESCRIPTOR MODULE ARGUMENT...

Until the finder below is in place this uses the modules inside the interpreter's binary and nothing
else. From then on a module is what the code image says, or is inside that binary, or is an
extension module that the image lists; there are no folders in which something is looked for.

DESCRIPTOR holds the caller's environment (see `avow.start`); `main` of MODULE goes on. Instead of
them, `--image DESCRIPTOR` makes a code image there.
"""

# Neither `typing` nor `__future__` is inside the binary, so annotations are quoted here.

import _imp
import marshal
import os
import sys
from _frozen_importlib import BuiltinImporter, FrozenImporter, ModuleSpec
from _frozen_importlib_external import (
    ExtensionFileLoader,
    SourceFileLoader,
    spec_from_file_location,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

MAGIC = b"avow code image 1\n"
LENGTH_BYTES = 8
FLAGS = ("-I", "-S", "-B", "-X", "pycache_prefix=/dev/null")
MAKE_IMAGE = "--image"
STANDARD_ERROR = 2
# OpenSSL reads a file at its first use that may name libraries to load (config(5)); nobody has
# measured it. Without a file it has its defaults.
OPENSSL_CONF = ("OPENSSL_CONF", "/dev/null")
# All that another process of this kind needs: it makes an image, or prints.
BARE_ENVIRONMENT = {"LANG": "C.UTF-8"}

CODE, EXTENSION, FOLDER = "code", "extension", "folder"


class BootError(Exception):
    """A measured process cannot begin; the message says why."""


class Image:
    """The compiled code of everything that can be imported, by module.

    `header` says of each module where it lies and the SHA-256 of its code; what is run is what was
    compared with that. The header need not be trusted: the digest over it is in the manifest.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        start = len(MAGIC) + LENGTH_BYTES
        beginning = os.pread(descriptor, start, 0)
        if beginning[: len(MAGIC)] != MAGIC:
            raise BootError("expected a code image, got other bytes")
        length = int.from_bytes(beginning[len(MAGIC) :], "little")
        self.header: dict[str, Any] = marshal.loads(os.pread(descriptor, length, start))
        self.modules: dict[str, tuple[str, str, bool, int, int, bytes, bytes]] = self.header[
            "modules"
        ]
        self._start = start + length
        self._sha256: Any = None

    def fresh(self, package: str) -> bool:
        """It was made by this Python for this package, of files that nobody has touched since."""
        return self.header["python"] == python_identity(package) and all(
            identity(path) == then for path, then in self.header["sources"]
        )

    def code(self, name: str) -> "CodeType":
        """The code of a module, compared with its digest. Raises BootError."""
        _, path, package, offset, length, digest, _ = self.modules[name]
        blob = os.pread(self._descriptor, length, self._start + offset)
        if self._hash()(blob).digest() != digest:
            raise BootError(f"expected the code of {name} as it was measured, got other bytes")
        stated, of_package, code = marshal.loads(blob)
        if (stated, of_package) != (name, package):
            raise BootError(f"expected the code of {name}, got that of {stated}")
        _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]
        return code  # type: ignore[no-any-return]

    def _hash(self) -> "Any":
        if self._sha256 is None:
            # By extension modules alone: none of the code that this is to check has run yet.
            for module, function in (
                ("_hashlib", "openssl_sha256"),
                ("_sha2", "sha256"),
                ("_sha256", "sha256"),
            ):
                try:
                    self._sha256 = getattr(__import__(module), function)
                    break
                except ImportError:
                    continue
        return self._sha256


class Finder:
    """Finds modules in an image. The only finder beside those of what is inside the binary."""

    def __init__(self, image: Image) -> None:
        self.image = image

    def find_spec(
        self, name: str, path: "object" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The import system's question."""
        entry = self.image.modules.get(name)
        if entry is None:
            return None
        kind, place, package = entry[:3]
        if kind == EXTENSION:
            return spec_from_file_location(name, place, loader=ExtensionFileLoader(name, place))
        if kind == FOLDER:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [place]
            return spec
        loader = Loader(self.image, name, place)
        where = [os.path.dirname(place)] if package else None
        return spec_from_file_location(
            name,
            place,
            loader=loader,  # type: ignore[arg-type]
            submodule_search_locations=where,
        )

    def find_distributions(self, context: "Any" = None) -> "Any":
        """Those that were measured, for importlib.metadata."""
        from importlib.metadata import DistributionFinder, MetadataPathFinder

        known = self.image.header["distributions"]
        wanted = None if context is None else context.name
        for name, folder in known:
            if wanted is None or name == wanted.replace("_", "-").replace(".", "-").lower():
                found = DistributionFinder.Context(name=name, path=[folder])
                yield from MetadataPathFinder.find_distributions(found)


class Loader:
    """Runs one module's code from the image."""

    def __init__(self, image: Image, name: str, path: str) -> None:
        self._image = image
        self.name = name
        self.path = path

    def create_module(self, spec: ModuleSpec) -> None:
        """None: an ordinary module."""

    def exec_module(self, module: "ModuleType") -> None:
        """Runs the code."""
        exec(self._image.code(self.name), module.__dict__)

    def get_code(self, name: str) -> "CodeType":
        """For runpy."""
        return self._image.code(name)

    def is_package(self, name: str) -> bool:
        """Whether it has modules inside."""
        return self._image.modules[name][2]

    def get_resource_reader(self, name: str) -> "Any":
        """For importlib.resources."""
        from importlib.readers import FileReader

        return FileReader(self)  # type: ignore[arg-type]


class SourceFinder:
    """Finds avow's own modules by their sources, for the process that compiles."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, name: str, path: "object" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The import system's question."""
        steps = name.split(".")
        if steps[0] != "avow":
            return None
        place = os.path.join(self._package, *steps[1:])
        if os.path.isdir(place):
            source = os.path.join(place, "__init__.py")
            loader = SourceFileLoader(name, source)
            return spec_from_file_location(
                name, source, loader=loader, submodule_search_locations=[place]
            )
        source = f"{place}.py"
        return spec_from_file_location(name, source, loader=SourceFileLoader(name, source))


def identity(path: str) -> "tuple[int, int, int, int] | None":
    """What changes with a file or folder: size, inode, time of content and time of anything."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def python_identity(package: str) -> "tuple[str, str, str, str]":
    """What a code image is good for."""
    return sys.version, sys.executable, stdlib_folder(), package


def stdlib_folder() -> str:
    """Where Python's own modules lie."""
    return sys._stdlib_dir  # type: ignore[attr-defined, no-any-return]


def image_path(package: str) -> str:
    """Beside the sources, so that what protects these protects it."""
    name = f"avow.{sys.implementation.cache_tag}.image"
    return os.path.join(package, "__pycache__", name)


def open_image(package: str) -> Image:
    """The image that is there, or a new one, kept where that is allowed. Raises BootError."""
    found = _kept(package)
    return found if found is not None else make_image(package, keep=True)


def _above_streams(descriptor: int) -> int:
    """The same file under a number that is none of standard input, output and error: where the
    caller has closed these they stay closed."""
    low = []
    while descriptor <= STANDARD_ERROR:
        low.append(descriptor)
        descriptor = os.dup(descriptor)
    for each in low:
        os.close(each)
    return descriptor


def _kept(package: str) -> "Image | None":
    path = image_path(package)
    try:
        descriptor = _above_streams(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        return None
    owner = os.fstat(descriptor)
    allowed = {0, os.stat(os.path.join(package, "__init__.py")).st_uid}
    try:
        if owner.st_uid in allowed and not owner.st_mode & 0o022:
            image = Image(descriptor)
            if image.fresh(package):
                return image
    except (BootError, ValueError, EOFError, TypeError, KeyError):
        # Of another version of avow, or cut off: a new one takes its place.
        pass
    os.close(descriptor)
    return None


def make_image(package: str, *, keep: bool) -> Image:
    """Compiles everything, in a process that does nothing else. Raises BootError."""
    if os.isatty(STANDARD_ERROR):
        os.write(
            STANDARD_ERROR, b"avow: compiling its Python code, which is kept for the next start\n"
        )
    try:
        # Before the folders are looked at: a new one in them would make the image an old one.
        os.makedirs(os.path.dirname(image_path(package)), exist_ok=True)
    except OSError:
        keep = False
    memory = _above_streams(os.memfd_create("avow-image", os.MFD_CLOEXEC))
    boot = os.path.abspath(__file__)
    command = [sys.executable, *FLAGS, "-W", "ignore", boot, MAKE_IMAGE, str(memory)]
    os.set_inheritable(memory, True)
    child = os.posix_spawn(sys.executable, command, BARE_ENVIRONMENT)
    os.set_inheritable(memory, False)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise BootError("expected avow's Python code to compile, got a failure; install avow again")
    if keep:
        _keep(memory, image_path(package))
    return Image(memory)


def _keep(memory: int, path: str) -> None:
    fresh = f"{path}.{os.getpid()}"
    try:
        written = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            size, done = os.fstat(memory).st_size, 0
            while done < size:
                done += os.sendfile(written, memory, done, size - done)
        finally:
            os.close(written)
        os.replace(fresh, path)
    except OSError:
        # A folder of somebody else: the image in memory does as well.
        try:  # noqa: SIM105 (contextlib is not inside the binary)
            os.unlink(fresh)
        except OSError:
            pass


def _make(descriptor: int, package: str) -> None:
    # For Python's own modules the ordinary finder is still there, and `/dev/null` holds no compiled
    # code. Of what lies beside avow's sources nothing is taken but these.
    sys.meta_path.insert(0, SourceFinder(package))
    from avow.runtime.image import write_image

    write_image(descriptor, package)


def _say(kind: "type[BaseException]", error: BaseException, traceback: "Any") -> None:
    """A sentence for what is no fault of avow."""
    if isinstance(error, BootError):
        os.write(STANDARD_ERROR, f"avow: {error}; install avow again\n".encode())
    else:
        sys.__excepthook__(kind, error, traceback)


def _environment(descriptor: int) -> "dict[str, str]":
    try:
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
    words = os.fsdecode(content).split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def main() -> None:
    """See the top."""
    os.environ.update([OPENSSL_CONF])
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.argv[1] == MAKE_IMAGE:
        _make(int(sys.argv[2]), package)
        return
    sys.excepthook = _say
    finder = Finder(open_image(package))
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, finder]

    from avow.runtime import sealed

    sealed.begin(finder, _environment(int(sys.argv[1])))
    module = sys.argv[2]
    sys.argv[:3] = ["avow"]
    __import__(module)
    sys.modules[module].main()


if __name__ == "__main__":
    main()
