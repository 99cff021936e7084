"""One broker process with a listener of each kind, and a topic of its own for each test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from avow.testing.pki import Authority
from tests.integration.interop.endpoint import SCHEMES, Endpoint
from tests.integration.service_process import service


@pytest.fixture(scope="session")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Endpoint]]:
    """`avow broker` as users start it, on free ports; it has to end in order at the end."""
    folder = tmp_path_factory.mktemp("broker")
    authority = Authority()
    ca = authority.write(folder / "ca.pem")
    cert, key = authority.issue_server().write(folder, "server")
    listen = [word for scheme in SCHEMES for word in ("--listen", f"{scheme}://127.0.0.1:0")]
    files = ("--cert", str(cert), "--key", str(key))
    with service("--allow-anonymous", *listen, *files) as running:
        yield {
            scheme: Endpoint(scheme, "127.0.0.1", running.port(scheme), ca) for scheme in SCHEMES
        }


@pytest.fixture(params=SCHEMES)
def endpoint(request: pytest.FixtureRequest, endpoints: dict[str, Endpoint]) -> Endpoint:
    """One of the broker's listeners."""
    return endpoints[request.param]


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic that no other test uses."""
    return "interop/" + re.sub(r"\W+", "-", request.node.nodeid.split("interop/")[-1])
