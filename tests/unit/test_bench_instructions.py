"""`python -m bench instructions`: figures that a loaded machine does not change."""

from bench import instructions


def test_every_scenario_gives_the_same_figure_each_time() -> None:
    first = dict(instructions.count(None))
    assert dict(instructions.count(None)) == first
    assert set(first) == set(instructions._SCENARIOS)


def test_a_receiver_more_costs_less_than_a_message_more() -> None:
    counted = dict(instructions.count(None))
    one = counted["QoS 0, 1:1, in one piece"]
    assert counted["QoS 0, 1:200"] < counted["QoS 0, 1:20"] < one / 2
