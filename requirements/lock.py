"""Makes the lock files anew: `make lock`.

Each *.txt in this folder has exact versions and the SHA-256 of every file that may be installed,
for `pip install --require-hashes`, on every Python that avow is for. One resolution is behind all,
so that a version is the same wherever it stands.

- `build.txt`: what compiles and packs avow
- `runtime.txt`: what it depends on
- `tpm.txt`, `tpm-build.txt`: the same with the extra `tpm`, and what compiles that
- `dev.txt`: what the checks and tests need, with `build.txt` and `runtime.txt`
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent
PYTHON_MIN: Final = "3.11"
# tpm2-pytss comes as sources alone; its own list is in its pyproject.toml and setup.cfg.
TPM_BUILD: Final = ("setuptools", "wheel", "setuptools-scm[toml]", "pycparser", "pkgconfig", "cffi")


def wanted(pyproject: Path) -> Mapping[str, tuple[str, ...]]:
    """The requirements of each lock file, by its name without suffix."""
    content = tomllib.loads(pyproject.read_text())
    runtime = tuple(content["project"]["dependencies"])
    extras = content["project"]["optional-dependencies"]
    return {
        "build": tuple(content["build-system"]["requires"]),
        "runtime": runtime,
        "tpm": (*runtime, *extras["tpm"]),
        "tpm-build": TPM_BUILD,
        "dev": (*runtime, *extras["dev"]),
    }


def _compile(requirements: Sequence[str], out: Path, *options: str) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "-", "--output-file", str(out)),
            *("--quiet", "--universal", "--python-version", PYTHON_MIN),
            # Which index, is for whoever installs to say.
            *("--no-emit-index-url", "--no-emit-find-links", "--no-annotate"),
            *("--custom-compile-command", "make lock"),
            *options,
        ],
        input="\n".join(requirements).encode(),
        check=True,
    )


def main() -> None:
    """Writes all of them."""
    sets = wanted(FOLDER.parent / "pyproject.toml")
    with tempfile.TemporaryDirectory() as folder:
        together = Path(folder) / "all.txt"
        _compile([each for names in sets.values() for each in names], together)
        for name, requirements in sets.items():
            out = FOLDER / f"{name}.txt"
            out.unlink(missing_ok=True)
            _compile(requirements, out, "--generate-hashes", "--constraint", str(together))


if __name__ == "__main__":
    main()
