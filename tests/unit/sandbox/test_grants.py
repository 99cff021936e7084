"""What can be granted, how it is written, and the digest of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from avow.errors import MalformedError
from avow.sandbox.app_file import parse_app
from avow.sandbox.grants import (
    Endpoint,
    Grants,
    PlainFolder,
    SealedFolder,
    Variable,
    configuration_digest,
    parse_grants,
)
from avow.sandbox.limits import Limits

FOLDER = Path("/srv/app")


def granted(*texts: str) -> Grants:
    return parse_grants(texts, folder=FOLDER)


@pytest.mark.parametrize(
    ("text", "grants"),
    [
        ("sealed:/", Grants(sealed=(SealedFolder("/", "", False),))),
        ("sealed:/data", Grants(sealed=(SealedFolder("/data", "data", False),))),
        ("sealed:/data:ro", Grants(sealed=(SealedFolder("/data", "data", True),))),
        ("sealed:/data=a/b", Grants(sealed=(SealedFolder("/data", "a/b", False),))),
        ("sealed:/data=/a/b:ro", Grants(sealed=(SealedFolder("/data", "a/b", True),))),
        ("sealed:/data=/", Grants(sealed=(SealedFolder("/data", "", False),))),
        ("plain:/in=./host", Grants(plain=(PlainFolder("/in", FOLDER / "host"),))),
        ("plain:/in=/etc", Grants(plain=(PlainFolder("/in", Path("/etc")),))),
        ("env:HOME", Grants(variables=(Variable("HOME", None),))),
        ("env:A=b=c", Grants(variables=(Variable("A", "b=c"),))),
        ("env:A=", Grants(variables=(Variable("A", ""),))),
        ("clock:realtime", Grants(clocks=frozenset({"realtime"}))),
        ("clock:monotonic", Grants(clocks=frozenset({"monotonic"}))),
        ("tcp:db.example:5432", Grants(tcp=(Endpoint("db.example", 5432),))),
        ("tcp:[::1]:1", Grants(tcp=(Endpoint("::1", 1),))),
        ("listen:127.0.0.1:65535", Grants(listen=(Endpoint("127.0.0.1", 65535),))),
        ("evidence", Grants(evidence=True)),
    ],
)
def test_a_grant(text: str, grants: Grants) -> None:
    assert granted(text) == grants


@pytest.mark.parametrize(
    "text",
    [
        *("", "sealed", "sealed:", "sealed:data", "sealed:/a/../b", "sealed:/a//b", "sealed:/a/"),
        *("sealed:/a=../cache", "sealed:/a=b/../../cache", "sealed:/a=.", "sealed:/a\0b"),
        *("sealed:/a=b//c", "sealed:/" + "n" * 256),
        *("sealed:/a:RO", "sealed:/a:rw", "sealed:/a=b:Ro", "sealed:/a:ro:ro", "sealed:/\udcff"),
        *("plain:/a", "plain:/a=", "plain:a=/b", "plain:/../a=/b"),
        *("env:", "env:=x", "env", "clock:", "clock:cpu", "clock"),
        *("tcp:host", "tcp:host:", "tcp::80", "tcp:host:0", "tcp:host:65536", "tcp:host:8o"),
        *("tcp:::1:80", "tcp:a b:80", "tcp:a/../b:80", "tcp:*:80", "tcp:host:\u0668"),
        *("listen:80", "evidence:", "evidence:x", "Sealed:/a", "everything"),
    ],
)
def test_no_grant(text: str) -> None:
    with pytest.raises(MalformedError) as refused:
        granted(text)
    assert f"grant `{text}`: expected" in str(refused.value)


def test_near_misses_are_named() -> None:
    with pytest.raises(MalformedError, match="did you mean `sealed`"):
        granted("seled:/a")


def test_the_same_twice_is_once_and_two_for_one_name_are_refused() -> None:
    assert granted("sealed:/a", "sealed:/a", "env:A", "env:A") == granted("sealed:/a", "env:A")
    for pair in (
        ("sealed:/a", "sealed:/a:ro"),
        ("sealed:/a", "plain:/a=x"),
        ("env:A", "env:A=1"),
        ("env:A=1", "env:A=2"),
    ):
        with pytest.raises(MalformedError, match="two that differ"):
            granted(*pair)


def test_where_an_owners_files_are() -> None:
    assert granted("provisioned:/run/secrets").provisioned == ("/run/secrets",)
    assert granted("provisioned:/a", "provisioned:/a", "provisioned:/b").provisioned == ("/a", "/b")
    for text in ("provisioned", "provisioned:", "provisioned:a", "provisioned:/a/../b"):
        with pytest.raises(MalformedError):
            granted(text)
    for other in ("sealed:/a", "sealed:/a:ro", "plain:/a=x"):
        with pytest.raises(MalformedError, match="two that differ"):
            granted("provisioned:/a", other)
    # They are measured, and no file of the owner's is.
    assert len({digest(), digest("provisioned:/a"), digest("provisioned:/b")}) == 3


def digest(*texts: str, arguments: tuple[str, ...] = ("a",), **limits: Any) -> bytes:
    return configuration_digest(arguments, granted(*texts), Limits(**limits).measured())


def test_whatever_matters_changes_the_digest() -> None:
    plain = ("sealed:/a", "plain:/p=/x", "env:A=1", "tcp:h:1", "listen:h:1")
    digests = [
        digest(),
        digest(*plain),
        *(digest(*plain[:n], *plain[n + 1 :]) for n in range(len(plain))),
        digest("sealed:/a:ro", *plain[1:]),
        digest("sealed:/a=b", *plain[1:]),
        digest(*plain, "env:B"),
        digest(*plain, "env:B="),
        digest(*plain, "clock:realtime"),
        digest(*plain, "clock:monotonic"),
        digest(*plain, "evidence"),
        digest(arguments=("a", "b")),
        digest(arguments=("ab",)),
        digest(arguments=("b", "a")),
        digest(fuel=5),
        digest(run_timeout_s=5),
        digest(memory_max_bytes=1 << 20),
        digest(stack_max_bytes=1 << 20),
    ]
    assert len(set(digests)) == len(digests)


def test_what_says_the_same_has_one_digest() -> None:
    assert digest("env:A=1", "sealed:/a", "sealed:/b") == digest(
        "sealed:/b", "sealed:/a", "env:A=1"
    )
    assert digest("sealed:/a") == digest("sealed:/a=a")
    assert digest(run_timeout_s=60) == digest(run_timeout_s=60.0)
    # Where it lies on the host is the host's to say, and the digest is the same on all hosts.
    assert digest("plain:/p=/x") == digest("plain:/p=/y")


def test_the_digest_stays_what_it_is() -> None:
    """Policies hold it: a change of the format is a change of its label."""
    text = (
        b'avow app configuration v1\n{"args":["app.wasm","x"],"grants":{"clock":[],'
        b'"env":[["A","1"]],"evidence":false,"listen":[],"plain":[],"sealed":[["/","","rw"]],"tcp":["[::1]:1"]},'
        b'"limits":{"fuel":null,"memory_max_bytes":4294967296,"run_timeout_s":60,'
        b'"stack_max_bytes":8388608}}'
    )
    found = digest(
        "tcp:[::1]:1", "env:A=1", "sealed:/", arguments=("app.wasm", "x"), run_timeout_s=60
    )
    assert found == hashlib.sha256(text).digest()


APP = b"""
module = "app.wasm"
args = ["--serve"]
grants = ["sealed:/data", "plain:/in=input"]
[limits]
fuel = 1000
run_timeout_s = 2
"""


def test_an_app_file() -> None:
    app = parse_app(APP, folder=FOLDER, name="app.toml")
    assert app.module == FOLDER / "app.wasm"
    assert app.arguments == ("--serve",)
    assert app.grants == granted("sealed:/data", "plain:/in=input")
    assert app.limits == Limits(fuel=1000, run_timeout_s=2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected the key `module` in app.toml"),
        (b'module = ""', "`module`"),
        (b"module = 1", "expected a valid string for `module` in app.toml, got 1"),
        (b'module = "a"\ngrant = []', "got `grant`; did you mean `grants`?"),
        (b'module = "a"\n[limits]\nfule = 1', "got `limits.fule`; did you mean `fuel`?"),
        (b'module = "a"\ngrants = [1]', "for `grants[1]`"),
        (b'module = "a"\ngrants = ["x"]', "app.toml: grant `x`"),
        (b'module = "a"\nargs = ["x", 1]', "for `args[2]`"),
        (b'module = "a"\nargs = ["\\u0000"]', "`args[1]`"),
        (b'module = "a"\n[limits]\nfuel = 0', "app.toml: expected fuel from 1"),
        (b'module = "a"\n[limits]\nfuel = "1"', "for `limits.fuel`"),
        (b'module = "a"\n[limits]\nmemory_max_bytes = 4294967297', "memory_max_bytes"),
        (b"module = ", "expected TOML in app.toml"),
        (b'module = "\xff"', "expected TOML in app.toml"),
    ],
)
def test_an_app_file_that_is_wrong(content: bytes, said: str) -> None:
    with pytest.raises(MalformedError) as refused:
        parse_app(content, folder=FOLDER, name="app.toml")
    assert said in str(refused.value)
