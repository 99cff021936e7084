"""Logins that wait: who is next, and who has to go."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avow.broker.login_queue import WAITING_PER_SOURCE_MAX, LoginQueue


def taken(queue: LoginQueue[str]) -> list[str]:
    found = []
    while (login := queue.take()) is not None:
        found.append(login)
    assert len(queue) == 0
    return found


def test_who_has_not_failed_comes_before_who_has() -> None:
    queue: LoginQueue[str] = LoginQueue(1000)
    for number in range(500):
        assert queue.put(f"flood {number}", f"source {number}", tries=1 + number % 9) == []
    queue.put("good", "elsewhere", tries=0)
    assert queue.take() == "good"


def test_fewer_tries_come_before_more() -> None:
    queue: LoginQueue[str] = LoginQueue(10)
    for tries in (200, 1, 20, 5):
        queue.put(str(tries), f"s{tries}", tries)
    assert taken(queue) == ["1", "5", "20", "200"]


def test_the_newest_of_new_sources_comes_first() -> None:
    queue: LoginQueue[str] = LoginQueue(10)
    for name in "abc":
        queue.put(name, name, tries=0)
    assert taken(queue) == ["c", "b", "a"]


def test_sources_of_a_lane_take_turns() -> None:
    queue: LoginQueue[str] = LoginQueue(100)
    for number in range(3):
        queue.put(f"a{number}", "a", tries=4)
    queue.put("b0", "b", tries=4)
    assert taken(queue) == ["a0", "b0", "a1", "a2"]


def test_a_source_that_sends_many_at_once_is_no_new_one() -> None:
    queue: LoginQueue[str] = LoginQueue(1000)
    for number in range(40):
        queue.put(f"a{number}", "a", tries=0)
    queue.put("b", "b", tries=0)
    queue.put("c", "c", tries=0)
    assert [queue.take() for _ in range(3)] == ["c", "b", "a0"]


def test_one_source_does_not_fill_the_queue() -> None:
    queue: LoginQueue[str] = LoginQueue(1000)
    shed = [queue.put(f"a{number}", "a", tries=0) for number in range(WAITING_PER_SOURCE_MAX + 2)]
    assert shed[-2:] == [[f"a{WAITING_PER_SOURCE_MAX}"], [f"a{WAITING_PER_SOURCE_MAX + 1}"]]
    assert not any(shed[:-2])
    assert queue.put("b", "b", tries=0) == []


def test_a_full_queue_gives_the_worst_away_and_not_the_new() -> None:
    queue: LoginQueue[str] = LoginQueue(2)
    queue.put("often", "a", tries=100)
    queue.put("twice", "b", tries=2)
    assert queue.put("never", "c", tries=0) == ["often"]
    assert queue.put("never either", "d", tries=0) == ["twice"]
    # Among those that are new the one that waits longest goes.
    assert queue.put("third", "e", tries=0) == ["never"]
    assert queue.put("often", "a", tries=100) == ["often"]


# Drawing lists is slow on a machine that has other things to do.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 1000), st.booleans()), max_size=200
    ),
    st.integers(1, 20),
)
def test_nobody_is_lost_and_nobody_is_served_twice(
    steps: list[tuple[str, int, bool]], waiting_max: int
) -> None:
    queue: LoginQueue[int] = LoginQueue(waiting_max)
    seen: list[int] = []
    for number, (source, tries, take) in enumerate(steps):
        seen += queue.put(number, source, tries)
        assert len(queue) <= waiting_max
        if take and (login := queue.take()) is not None:
            seen.append(login)
    while (login := queue.take()) is not None:
        seen.append(login)
    assert sorted(seen) == list(range(len(steps)))
