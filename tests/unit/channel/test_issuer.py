"""One quote for all who wait: the rule without threads, then the threads without waiting."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.channel.issuer import Batches, Counters, Issuer, Waiting
from avow.errors import AvowError, MalformedError, UnavailableError
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.envelope import Evidence
from avow.evidence.report_data import ReportData, leaf, root_of
from avow.testing.attested_channel import CLIENT_CONTEXT, WORKLOAD

PATIENCE_S = 20.0
CLAIMS = Claims(CLIENT_CONTEXT, Role.SERVER, WORKLOAD, bytes(32), 1_700_000_000)


def nobody(_: Evidence | AvowError) -> None:
    """Does not listen."""


def waiting(since_s: float, done: Callable[[Evidence | AvowError], None] = nobody) -> Waiting:
    return Waiting(CLAIMS, bytes(64), done, since_s)


def batches(**settings: float) -> Batches:
    defaults: dict[str, float] = {"quotes_per_s": 5, "waiting_max": 10, "quote_timeout_s": 8}
    return Batches(**{**defaults, **settings})  # type: ignore[arg-type]


def test_everybody_who_waits_goes_into_the_next_quote() -> None:
    rule = batches()
    first = waiting(0)
    rule.add(first)
    assert rule.start(0) == [first]
    later = [waiting(0.01), waiting(0.02)]
    for each in later:
        assert rule.add(each) is None
    # One quote is under way.
    assert rule.start(0.05) == []
    assert rule.end() == [first]
    # Too early for five a second.
    assert rule.start(0.1) == []
    assert rule.until_start_s(0.1) == pytest.approx(0.1)
    assert rule.start(0.2) == later


def test_first_quote_does_not_wait() -> None:
    rule = batches(quotes_per_s=0.001)
    rule.add(waiting(100))
    assert rule.until_start_s(100) == 0
    assert rule.start(100)


def test_places_are_bounded_with_those_under_way() -> None:
    rule = batches(waiting_max=2)
    rule.add(waiting(0))
    rule.start(0)
    assert rule.add(waiting(0)) is None
    refusal = rule.add(waiting(0))
    assert isinstance(refusal, UnavailableError)
    assert "busy" in str(refusal)
    assert rule.waiting == 2


def test_hanging_quote_fails_those_who_wait_and_those_who_come() -> None:
    rule = batches()
    first, second = waiting(0), waiting(1)
    rule.add(first)
    rule.start(0)
    rule.add(second)
    assert rule.give_up(7.9) == []
    assert rule.until_hanging_s(7) == pytest.approx(1)
    assert rule.give_up(8) == [first, second]
    assert isinstance(rule.add(waiting(9)), UnavailableError)
    assert rule.until_hanging_s(9) is None
    assert rule.until_start_s(9) is None
    # It comes back after all: nobody waits for it, and the next one is asked.
    assert rule.end() == []
    assert rule.add(waiting(20)) is None
    assert len(rule.start(20)) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"quotes_per_s": 0},
        {"quotes_per_s": float("nan")},
        {"waiting_max": 0},
        {"waiting_max": 65_537},
        {"quote_timeout_s": 0},
    ],
)
def test_impossible_settings(settings: dict[str, float]) -> None:
    with pytest.raises(MalformedError):
        batches(**settings)


@given(
    rate=st.floats(0.5, 50),
    steps=st.lists(
        st.tuples(st.floats(0, 2), st.sampled_from(["add", "start", "end", "give up"])),
        max_size=60,
    ),
)
def test_nobody_is_lost_or_served_twice(rate: float, steps: list[tuple[float, str]]) -> None:
    rule = batches(quotes_per_s=rate, quote_timeout_s=1)
    now_s = 0.0
    inside: list[Waiting] = []
    left: list[Waiting] = []
    starts: list[float] = []
    for passed_s, step in steps:
        now_s += passed_s
        if step == "add":
            request = waiting(now_s)
            if rule.add(request) is None:
                inside.append(request)
        elif step == "start":
            if rule.start(now_s):
                starts.append(now_s)
        elif step == "end":
            left += rule.end()
        else:
            left += rule.give_up(now_s)
        for left_s in (rule.until_start_s(now_s), rule.until_hanging_s(now_s)):
            assert left_s is None or left_s >= 0
    left += rule.clear()
    assert sorted(map(id, left)) == sorted(map(id, inside))
    assert rule.waiting == 0
    assert all(late - early >= 1 / rate - 1e-9 for early, late in itertools.pairwise(starts))


@dataclass
class StepByStep:
    """An attester that answers when the test says so."""

    platform: str = "simulated"
    asked: queue.SimpleQueue[ReportData] = field(default_factory=queue.SimpleQueue)
    answers: queue.SimpleQueue[bytes | AvowError] = field(default_factory=queue.SimpleQueue)
    threads: set[int] = field(default_factory=set)

    def measure(self, workload: Workload) -> None:
        """Nothing."""

    def quote(self, report_data: ReportData) -> bytes:
        self.threads.add(threading.get_ident())
        self.asked.put(report_data)
        answer = self.answers.get(timeout=PATIENCE_S)
        if isinstance(answer, AvowError):
            raise answer
        return answer


@contextmanager
def running(attester: StepByStep, **settings: float) -> Iterator[Issuer]:
    issuer = Issuer(attester, **{"quotes_per_s": 1000, **settings})  # type: ignore[arg-type]
    issuer.start()
    try:
        yield issuer
    finally:
        attester.answers.put(b"the last one")
        issuer.stop()


Answers = queue.SimpleQueue[Evidence | AvowError]


def ask(issuer: Issuer, number: int = 0) -> Answers:
    answers: Answers = queue.SimpleQueue()
    issuer.request(replace(CLAIMS, user_data=bytes([number])), bytes([number]) * 64, answers.put)
    return answers


def evidence(answers: Answers) -> Evidence:
    answer = answers.get(timeout=PATIENCE_S)
    assert isinstance(answer, Evidence)
    return answer


def refusal(answers: Answers) -> UnavailableError:
    answer = answers.get(timeout=PATIENCE_S)
    assert isinstance(answer, UnavailableError)
    return answer


def test_one_quote_serves_all_who_came_meanwhile() -> None:
    attester = StepByStep()
    with running(attester) as issuer:
        first = ask(issuer)
        alone = attester.asked.get(timeout=PATIENCE_S)
        crowd = [ask(issuer, number) for number in range(1, 101)]
        attester.answers.put(b"report 1")
        assert evidence(first).path == ()
        together = attester.asked.get(timeout=PATIENCE_S)
        attester.answers.put(b"report 2")
        for number, answers in enumerate(crowd, 1):
            proof = evidence(answers)
            assert proof.report == b"report 2"
            root = root_of(leaf(proof.claims, bytes([number]) * 64), proof.path)
            assert root == together.content
        assert alone.content != together.content
        counters = issuer.counters
    assert counters.quotes == 2
    assert counters.requests == counters.served == 101
    assert counters.failures == counters.busy == counters.waiting == 0
    assert len(attester.threads) == 1


def test_attester_that_fails_fails_its_batch_only() -> None:
    attester = StepByStep()
    with running(attester) as issuer:
        first = ask(issuer)
        attester.asked.get(timeout=PATIENCE_S)
        second = ask(issuer)
        attester.answers.put(UnavailableError("expected a device, got none"))
        assert "device" in str(refusal(first))
        attester.asked.get(timeout=PATIENCE_S)
        attester.answers.put(b"report")
        assert evidence(second).report == b"report"
        assert issuer.counters.failures == 1


def test_attester_that_hangs() -> None:
    attester = StepByStep()
    with running(attester, quote_timeout_s=0.05) as issuer:
        first = ask(issuer)
        assert "0.05 s" in str(refusal(first))
        # Others need not wait for what does not come.
        assert "0.05 s" in str(refusal(ask(issuer)))
        attester.answers.put(b"too late")
        # It lives again: sooner or later a request finds it so.
        attester.answers.put(b"report")
        for _ in range(100_000):
            answer = ask(issuer).get(timeout=PATIENCE_S)
            if isinstance(answer, Evidence):
                break
        assert isinstance(answer, Evidence)
        assert answer.report == b"report"


def test_attester_that_hangs_after_many_quotes() -> None:
    """The watching thread looks at the quote that is under way, not at the first one."""
    attester = StepByStep()
    with running(attester, quote_timeout_s=0.05) as issuer:
        for _ in range(3):
            answers = ask(issuer)
            attester.answers.put(b"report")
            assert evidence(answers).report == b"report"
        for _ in range(3):
            assert "0.05 s" in str(refusal(ask(issuer)))


def test_no_place_left() -> None:
    attester = StepByStep()
    with running(attester, waiting_max=1) as issuer:
        first = ask(issuer)
        assert "busy" in str(refusal(ask(issuer)))
        assert issuer.counters.busy == 1
        attester.answers.put(b"report")
        evidence(first)


def test_stop_tells_all_who_wait() -> None:
    attester = StepByStep()
    with running(attester) as issuer:
        under_way = ask(issuer)
        attester.asked.get(timeout=PATIENCE_S)
        behind = ask(issuer)
        stopping = threading.Thread(target=issuer.stop)
        stopping.start()
        assert "stopped" in str(refusal(under_way))
        assert "stopped" in str(refusal(behind))
        attester.answers.put(b"nobody's")
        stopping.join(PATIENCE_S)
        assert not stopping.is_alive()
        assert "stopped" in str(refusal(ask(issuer)))


def test_before_the_start_there_is_nothing() -> None:
    issuer = Issuer(StepByStep())
    assert "stopped" in str(refusal(ask(issuer)))
    issuer.stop()
    assert issuer.counters == Counters(requests=1, busy=1)
    assert issuer.platform == "simulated"


def test_claims_that_cannot_be_encoded_fail_the_batch() -> None:
    attester = StepByStep()
    with running(attester) as issuer:
        answers: Answers = queue.SimpleQueue()
        issuer.request(replace(CLAIMS, nonce=b"short"), bytes(64), answers.put)
        assert isinstance(answers.get(timeout=PATIENCE_S), MalformedError)


def test_two_hundred_connections_a_second_on_five_quotes() -> None:
    """The rule on a simulated clock: nobody refused, nobody waits for more than two quotes."""
    rule = batches(waiting_max=4096)
    served: list[float] = []
    now_s, next_request_s, ends_s = 0.0, 0.0, -1.0
    while now_s < 10:
        now_s += 0.001
        if ends_s > 0 and now_s >= ends_s:
            served += [now_s - each.since_s for each in rule.end()]
            ends_s = -1.0
        while next_request_s <= now_s:
            assert rule.add(waiting(now_s)) is None
            next_request_s += 1 / 200
        if rule.start(now_s):
            ends_s = now_s + 0.2
    assert len(served) >= 9.5 * 200
    assert max(served) <= 0.42
