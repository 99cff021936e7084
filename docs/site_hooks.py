"""What the site needs beside its pages: the program that draws Mermaid, from its pinned package.

Readers' browsers load everything from the site, and nothing from anybody else's server.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from examples.sandbox.registry import Package, fetch, member

PACKAGES = Path(__file__).resolve().parents[1] / "build/site"
MERMAID = Package(
    "mermaid",
    "12.3.0",
    "mermaid/-/mermaid-12.3.0.tgz",
    "4113TdXeLAsMruJ79OpFL5O8+LTFXhQqZ260rF3tgUmiNAtRm4Uume04I+65PRN6yZ69J4f8rVYWW8zRk65UYw==",
)
MERMAID_FILES = {
    "mermaid.min.js": "package/dist/mermaid.min.js",
    "mermaid.LICENSE.txt": "package/LICENSE",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs calls it before it builds. Raises `UnavailableError` and `MalformedError`."""
    archive = fetch(MERMAID, PACKAGES)
    for name, inside in MERMAID_FILES.items():
        files.append(File.generated(config, name, content=member(archive, inside)))
    return files
