"""One signature for many: every leaf has a path, and no path leads anything else to the root."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avow.errors import MalformedError
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.report_data import PATH_STEPS_MAX, ReportData, Step, batch, leaf, root_of

WORKLOAD = Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32)


def _request(number: int) -> tuple[Claims, bytes]:
    nonce = hashlib.sha256(b"nonce %d" % number).digest()
    claims = Claims(nonce, Role.SERVER, WORKLOAD, b"k" * 32, 1_790_000_000)
    return claims, hashlib.sha512(b"binder %d" % number).digest()


def test_one_leaf_is_the_formula_of_the_specification() -> None:
    claims, binder = _request(0)
    report_data, paths = batch([(claims, binder)])
    assert paths == [()]
    expected = hashlib.sha512(
        b"avow evidence v1" + hashlib.sha512(claims.encoded()).digest() + binder
    ).digest()
    assert report_data.content == expected


def test_three_leaves_by_hand() -> None:
    requests = [_request(number) for number in range(3)]
    first, second, third = (leaf(claims.encoded(), binder) for claims, binder in requests)
    joined = hashlib.sha512(b"avow evidence v1 tree" + first + second).digest()
    root = hashlib.sha512(b"avow evidence v1 tree" + joined + third).digest()
    report_data, paths = batch(requests)
    assert report_data.content == root
    assert paths[0] == (Step(second, False), Step(third, False))
    assert paths[1] == (Step(first, True), Step(third, False))
    assert paths[2] == (Step(joined, True),)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70))
def test_each_path_leads_to_the_root_and_to_no_other(count: int) -> None:
    requests = [_request(number) for number in range(count)]
    report_data, paths = batch(requests)
    leaves = [leaf(claims.encoded(), binder) for claims, binder in requests]
    for place, path in enumerate(paths):
        assert root_of(leaves[place], path) == report_data.content
        assert len(path) <= (count - 1).bit_length()
        other = leaves[(place + 1) % count]
        assert count == 1 or root_of(other, path) != report_data.content
        for step in range(len(path)):
            turned = Step(path[step].sibling, not path[step].sibling_is_left)
            wrong = (*path[:step], turned, *path[step + 1 :])
            assert root_of(leaves[place], wrong) != report_data.content
            assert root_of(leaves[place], path[:step]) != report_data.content


def test_a_path_of_another_batch_leads_elsewhere() -> None:
    first, first_paths = batch([_request(number) for number in range(5)])
    second, second_paths = batch([_request(number) for number in range(1, 6)])
    claims, binder = _request(2)
    mine = leaf(claims.encoded(), binder)
    assert root_of(mine, first_paths[2]) == first.content
    assert root_of(mine, second_paths[1]) == second.content
    assert root_of(mine, second_paths[2]) not in (first.content, second.content)


def test_an_inner_node_is_no_leaf() -> None:
    """The second preimage that trees without separated domains allow."""
    requests = [_request(number) for number in range(4)]
    report_data, paths = batch(requests)
    leaves = [leaf(claims.encoded(), binder) for claims, binder in requests]
    node = hashlib.sha512(b"avow evidence v1 tree" + leaves[0] + leaves[1]).digest()
    assert root_of(node, paths[0][1:]) == report_data.content
    # To use it, an attacker would need claims and a binder whose leaf is the node.
    assert leaf(leaves[0], leaves[1]) != node


def test_no_batch_is_empty_or_endless() -> None:
    with pytest.raises(MalformedError, match="1 to 65536"):
        batch([])
    claims, binder = _request(0)
    with pytest.raises(MalformedError, match="1 to 65536"):
        batch([(claims, binder)] * (2**PATH_STEPS_MAX + 1))


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_binder_has_one_size(size: int) -> None:
    with pytest.raises(MalformedError, match="binder of 64 bytes"):
        leaf(b"claims", bytes(size))


def test_nobody_else_makes_report_data() -> None:
    with pytest.raises(TypeError, match="made by avow"):
        ReportData(bytes(64), object())
