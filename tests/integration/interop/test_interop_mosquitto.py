"""mosquitto_pub and mosquitto_sub against the broker, over TCP and TLS.

They come from the system (`apt-get install mosquitto-clients`); version 2.0 has no WebSocket.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.interop.endpoint import Endpoint

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.parametrize("endpoint", ["mqtt", "mqtts"], indirect=True),
]
VERSIONS = pytest.mark.parametrize("version", ["311", "5"])
WAIT_S = 20


def command(program: str, endpoint: Endpoint, *arguments: str) -> list[str]:
    """A command line of one of the two programs."""
    path = shutil.which(program)
    assert path is not None, f"{program} is not installed: apt-get install mosquitto-clients"
    tls = ["--cafile", str(endpoint.ca)] if endpoint.encrypted else []
    return [path, "-h", endpoint.host, "-p", str(endpoint.port), *tls, *arguments]


def publish(endpoint: Endpoint, *arguments: str, lines: str | None = None) -> None:
    """Runs mosquitto_pub to its end."""
    done = subprocess.run(
        command("mosquitto_pub", endpoint, *arguments),
        input=lines,
        text=True,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def subscribed(endpoint: Endpoint, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Runs mosquitto_sub; the block begins when its SUBACK has come.

    `-d` makes it say so, and stdbuf makes it say so at once.
    """
    own = command("mosquitto_sub", endpoint, "-d", "-W", str(WAIT_S), *arguments)
    with subprocess.Popen(
        ["stdbuf", "-oL", *own],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Subscribed"):
                break
        else:
            pytest.fail(f"mosquitto_sub did not subscribe: {''.join(said)}")
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def messages(process: subprocess.Popen[str]) -> list[str]:
    """What a subscriber with `-C` printed besides its debug lines."""
    assert process.stdout is not None
    output = list(process.stdout)
    assert process.wait(WAIT_S) == 0, "".join(output)
    return [line[2:].rstrip("\n") for line in output if line.startswith("> ")]


@VERSIONS
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_lines_arrive_in_order(endpoint: Endpoint, topic: str, version: str, qos: str) -> None:
    lines = [f"line {number}" for number in range(50)]
    shape = ["-V", version, "-q", qos, "-t", topic]
    with subscribed(endpoint, *shape, "-C", str(len(lines)), "-F", "> %q %t %p") as subscriber:
        publish(endpoint, *shape, "-l", lines="\n".join(lines) + "\n")
        assert messages(subscriber) == [f"{qos} {topic} {line}" for line in lines]


@VERSIONS
def test_retained_message(endpoint: Endpoint, topic: str, version: str) -> None:
    publish(endpoint, "-V", version, "-q", "1", "-r", "-t", topic, "-m", "kept")
    with subscribed(endpoint, "-V", version, "-t", topic, "-C", "1", "-F", "> %r %p") as late:
        assert messages(late) == ["1 kept"]
    publish(endpoint, "-V", version, "-q", "1", "-r", "-t", topic, "-n")
    with subscribed(endpoint, "-V", version, "-t", topic, "-C", "1", "-F", "> %r %p") as later:
        publish(endpoint, "-V", version, "-t", topic, "-m", "live")
        assert messages(later) == ["0 live"]


def test_properties(endpoint: Endpoint, topic: str) -> None:
    shape = "> %C %R %P %p"
    with subscribed(endpoint, "-V", "5", "-t", topic, "-C", "1", "-F", shape) as subscriber:
        publish(
            *(endpoint, "-V", "5", "-t", topic, "-m", "payload"),
            *("-D", "publish", "content-type", "text/plain"),
            *("-D", "publish", "response-topic", "answers/here"),
            *("-D", "publish", "user-property", "colour", "blue"),
        )
        assert messages(subscriber) == ["text/plain answers/here colour:blue payload"]


def test_shared_subscription(endpoint: Endpoint, topic: str) -> None:
    shape = ["-V", "5", "-q", "1", "-t", f"$share/group/{topic}", "-C", "10", "-F", "> %p"]
    with subscribed(endpoint, *shape) as first, subscribed(endpoint, *shape) as second:
        lines = [str(number) for number in range(20)]
        publish(endpoint, "-V", "5", "-q", "1", "-t", topic, "-l", lines="\n".join(lines) + "\n")
        both = messages(first) + messages(second)
    assert sorted(both, key=int) == lines


def test_will(endpoint: Endpoint, topic: str) -> None:
    with (
        subscribed(endpoint, "-t", topic, "-C", "1", "-F", "> %p") as watcher,
        subscribed(
            *(endpoint, "-t", f"{topic}/other"),
            *("--will-topic", topic, "--will-payload", "gone", "--will-qos", "1"),
        ) as victim,
    ):
        victim.kill()
        assert messages(watcher) == ["gone"]
