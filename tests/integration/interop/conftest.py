"""One broker process with a listener of each kind, and a topic of its own for each test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.integration.interop.broker_process import BrokerProcess
from tests.integration.interop.endpoint import SCHEMES, Endpoint


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """`avow broker` as users start it, on free ports."""
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as process:
        yield process
        assert process.still_runs(), process.log()


@pytest.fixture(params=SCHEMES)
def endpoint(request: pytest.FixtureRequest, broker: BrokerProcess) -> Endpoint:
    """One of the broker's listeners."""
    assert broker.still_runs(), broker.log()
    return broker.endpoints[request.param]


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic that no other test uses."""
    return "interop/" + re.sub(r"\W+", "-", request.node.nodeid.split("interop/")[-1])
