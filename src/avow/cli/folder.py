"""A folder on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class Folder(click.Path):
    """A folder, which need not be there. An empty text is none.

    It would be the working directory: with a variable that is not set, a store would be begun there
    in place of the one that was meant.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """The path."""
        if not os.fspath(value):
            self.fail(
                "expected a folder, got an empty name; check whether a shell variable is unset",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)
