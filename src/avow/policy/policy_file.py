"""Reads a policy from TOML. One that is silent about a claim that matters is refused here."""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from avow.errors import MalformedError, UnavailableError
from avow.policy.demands import check_branch, platform_of
from avow.policy.policy import PlatformBranch, Policy
from avow.policy.reading import KEYS, read_rule
from avow.policy.rules import branches_of

FILE_BYTES_MAX: Final = 1024 * 1024


class Head(BaseModel):
    """What a file says about itself; all its other keys are those of a rule."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: int = Field(ge=1, le=1, description="The version of this format: 1.")
    name: str = Field(
        min_length=1, max_length=200, description="What the policy is called in results."
    )
    unsafe_simulated: bool = Field(
        default=False,
        description='true: rules with `platform = "simulated"` accept evidence made by software. '
        "Nothing is protected then.",
    )


def load_policy(path: Path) -> Policy:
    """The policy of a file.

    Raises `UnavailableError` when it cannot be read and `MalformedError` for what is in it.
    """
    try:
        if not path.is_file():
            raise UnavailableError(
                f"expected a policy file at {path}, got no such file; make one with "
                f"`avow policy init --broker -o {path}`"
            )
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UnavailableError(
            f"expected a readable policy file, got {error.strerror!r} for {path}; correct the path"
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise MalformedError(
            f"expected a policy file of at most {FILE_BYTES_MAX} bytes, got more in {path}; "
            f"correct the path"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"expected UTF-8 in the policy file {path}, got invalid bytes at offset "
            f"{error.start}; save it as UTF-8"
        ) from error
    return parse_policy(text, name=str(path))


def parse_policy(text: str, *, name: str) -> Policy:
    """The policy that `text` is; `name` says in messages where it comes from.

    Raises `MalformedError` with the rule's path and the claim.
    """
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise MalformedError(f"expected TOML in {name}, got {error}; correct that line") from error
    try:
        return _policy(content, text)
    except MalformedError as error:
        raise MalformedError(f"{name}: {error}") from error


def _policy(content: dict[str, Any], text: str) -> Policy:
    head = _head({key: content.pop(key) for key in Head.model_fields if key in content}, content)
    branches: list[PlatformBranch] = []
    for branch in branches_of(read_rule(content)):
        platform = platform_of(branch)
        if platform is None:
            continue
        check_branch(branch, platform)
        branches.append(PlatformBranch(platform, branch))
    if not branches:
        raise MalformedError(
            "expected a platform that all rules allow, got rules that exclude each other; "
            "name the same `platform` in each"
        )
    simulated = any(each.platform == "simulated" for each in branches)
    if simulated and not head.unsafe_simulated:
        raise MalformedError(
            'expected `unsafe_simulated = true` at the top with platform = "simulated", '
            "got none; add it if you accept evidence that proves nothing"
        )
    if head.unsafe_simulated and not simulated:
        raise MalformedError(
            'expected a rule with platform = "simulated" with `unsafe_simulated = true`, '
            "got none; remove the key"
        )
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return Policy(head.name, f"sha256:{digest}", head.unsafe_simulated, tuple(branches))


def _head(own: dict[str, Any], rest: dict[str, Any]) -> Head:
    try:
        return Head.model_validate(own)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = str(first["loc"][0])
    if first["type"] != "missing":
        wanted = first["msg"].removeprefix("Input should be ")
        wanted = wanted[0].lower() + wanted[1:]
        if wanted.startswith(("less", "greater")):
            wanted = f"a value {wanted}"
        raise MalformedError(
            f"expected {wanted} for `{key}`, got {first['input']!r:.60}; correct the value"
        )
    near = difflib.get_close_matches(key, [k for k in rest if k not in KEYS], n=1, cutoff=0.7)
    advice = f"is `{near[0]}` a misspelling of it?" if near else "add it"
    raise MalformedError(f"expected the key `{key}`, got none; {advice}")
