"""Breaks encoded things so that they stay nearly right: bytes, and the trees of CBOR and JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import cbor2

INTERESTING_BYTES = (0x00, 0x01, 0x02, 0x7F, 0x80, 0x81, 0xC0, 0xF6, 0xFE, 0xFF)
INTERESTING_NUMBERS = (
    *(-(2**64), -(2**63), -75000, -2, -1, 0, 1, 2, 3, 4, 23, 24, 255, 256, 65535),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 1e400, float("nan"), 0.5),
)
INTERESTING_TEXTS = ("", "0", "\0", "\x1b[2J", "\r\n", "ä€😀", "\ufeff", "\u202e", "x" * 3000)
_DEEPER = 0.85
# Written canonically, a map as the key of a map as the key of a map takes 2 ** depth steps. The
# product refuses such keys before it writes anything.
_DEPTH_MAX = 10


def _refuse(*_: object) -> NoReturn:
    raise ValueError("a tag that cbor2 would compute something for, for years perhaps")


_REFUSED: Any = dict.fromkeys((*range(6), *range(25, 62), 100, *range(256, 262), 1004), _refuse)


def mutated(content: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """`content` with one to four changes; pieces of `seeds` may be put into it."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        content = chance.choice([_as_cbor, _as_cbor, _as_json, _as_bytes])(content, seeds, chance)
    return content


def _as_bytes(content: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    data = bytearray(content)
    at = chance.randrange(len(data) + 1)
    count = chance.choice([1, 1, 2, 4, 8, 64])
    dice = chance.randrange(8)
    if dice <= 1 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif dice == 2 and at < len(data):
        data[at] = chance.choice(INTERESTING_BYTES)
    elif dice == 3:
        del data[at : at + count]
    elif dice == 4:
        data[at:at] = chance.randbytes(count)
    elif dice == 5:
        # Where a length or a number may stand.
        size = chance.choice([1, 2, 3, 4, 8])
        number = chance.choice([0, 1, len(data), len(data) - at, 2 ** (8 * size) - 1])
        order = chance.choice(["big", "little"])
        data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, order)
    elif dice == 6 and seeds:
        other = chance.choice(seeds)
        start = chance.randrange(len(other) + 1)
        data[at : at + count] = other[start : start + chance.choice([1, 8, 100, len(other)])]
    else:
        del data[at:]
    return bytes(data)


def _as_cbor(content: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    try:
        tree = cbor2.loads(content, semantic_decoders=_REFUSED, max_depth=_DEPTH_MAX)
        if not isinstance(tree, dict | list | cbor2.CBORTag):
            return _as_bytes(content, seeds, chance)
        return cbor2.dumps(_tree(tree, seeds, chance), canonical=chance.random() < 0.9)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        return _as_bytes(content, seeds, chance)


def _as_json(content: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    try:
        tree = json.loads(content)
        return json.dumps(_tree(tree, seeds, chance)).encode()
    except (ValueError, TypeError, RecursionError):
        return _as_bytes(content, seeds, chance)


def _tree(value: Any, seeds: Sequence[bytes], chance: random.Random) -> Any:
    """The tree with a change in one place."""
    if chance.random() > _DEEPER:
        return _other(value, seeds, chance)
    match value:
        case cbor2.CBORTag():
            return cbor2.CBORTag(value.tag, _tree(value.value, seeds, chance))
        case dict():
            return _map(dict(value), seeds, chance)
        case list() | tuple():
            return _array(list(value), seeds, chance)
        case bytes():
            change: Callable[..., bytes] = chance.choice([_as_cbor, _as_json, _as_bytes])
            return change(value, seeds, chance)
        case str():
            inner = chance.choice([_as_json, _as_bytes])
            return inner(value.encode(errors="replace"), seeds, chance).decode(errors="replace")
        case bool():
            return not value
        case int():
            return value + chance.choice([-1, 1, 256, -value, -2 * value])
    return _other(value, seeds, chance)


def _map(value: dict[Any, Any], seeds: Sequence[bytes], chance: random.Random) -> dict[Any, Any]:
    dice = chance.random()
    key = chance.choice([*value]) if value else None
    if key is None or dice < 0.1:
        value[_other("", seeds, chance)] = _other(None, seeds, chance)
    elif dice < 0.2:
        del value[key]
    elif dice < 0.25:
        value[_other(key, seeds, chance)] = value.pop(key)
    else:
        value[key] = _tree(value[key], seeds, chance)
    return value


def _array(value: list[Any], seeds: Sequence[bytes], chance: random.Random) -> list[Any]:
    dice = chance.random()
    if not value or dice < 0.1:
        value.insert(chance.randrange(len(value) + 1), _other(None, seeds, chance))
        return value
    at = chance.randrange(len(value))
    if dice < 0.2:
        del value[at]
    elif dice < 0.3:
        value[at:at] = [value[at]] * chance.choice([1, 1, 3, 300])
    elif dice < 0.4:
        chance.shuffle(value)
    else:
        value[at] = _tree(value[at], seeds, chance)
    return value


def _other(value: Any, seeds: Sequence[bytes], chance: random.Random) -> Any:
    """Something else, of the same type about every other time."""
    choices: list[Callable[[], Any]] = [
        lambda: chance.choice(INTERESTING_NUMBERS),
        lambda: chance.choice(INTERESTING_TEXTS),
        lambda: chance.randbytes(chance.choice([0, 1, 31, 32, 33, 48, 64, 65])),
    ]
    if value is not None and chance.random() < 0.5:
        kinds = {int: 0, str: 1, bytes: 2}
        return choices[kinds.get(type(value), chance.randrange(3))]()
    if value is None:
        choices += [
            lambda: None,
            lambda: chance.choice([True, False]),
            list,
            dict,
            lambda: cbor2.CBORTag(chance.choice([1, 2, 4, 18, 61, 399]), b""),
            lambda: chance.choice([*seeds, b""])[:4096],
        ]
    return chance.choice(choices)()
