"""`avow pub` and `avow sub` against the real broker, over every transport."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from avow.broker.users import add_user, new_user
from avow.testing.pki import Authority
from tests.integration.service_process import (
    PATIENCE_S,
    ServiceProcess,
    avow,
    service,
    write,
)

SCHEMES = ("mqtt", "mqtts", "ws", "wss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ServiceProcess]:
    """Open to anybody, except for the topics below `closed`."""
    authority = Authority()
    authority.write(folder / "ca.pem")
    certificate, key = authority.issue_server().write(folder, "server")
    config = write(
        folder / "avow.toml",
        """
        allow_anonymous = true
        [[acl]]
        effect = "deny"
        access = "both"
        pattern = "closed/#"
        [[acl]]
        effect = "allow"
        access = "both"
        pattern = "#"
        """,
    )
    listen = [word for scheme in SCHEMES for word in ("--listen", f"{scheme}://127.0.0.1:0")]
    arguments = ["--config", str(config), "--cert", str(certificate), "--key", str(key), *listen]
    with service(*arguments) as process:
        yield process


@pytest.fixture(params=SCHEMES)
def there(request: pytest.FixtureRequest, running: ServiceProcess, folder: Path) -> list[str]:
    """The arguments that reach the broker by one transport."""
    url = running.url(request.param)
    trust = ["--cafile", str(folder / "ca.pem")] if request.param in ("mqtts", "wss") else []
    return [*trust, url]


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return "test/" + "".join(c if c.isalnum() else "-" for c in request.node.name)


@contextmanager
def subscriber(topic: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`avow sub` that has its subscription: a retained message has come and was printed."""
    published(f"{topic}/ready", "-m", "ready", "-r", "-q", "1", arguments[-1])
    process = subprocess.Popen(
        [sys.executable, "-m", "avow", "sub", "-t", f"{topic}/ready", "-t", topic, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def published(topic: str, *arguments: str, stdin: bytes = b"") -> None:
    done = avow("pub", "-t", topic, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")


def retained(topic: str, *arguments: str) -> bytes:
    """What a subscriber gets at once."""
    done = avow("sub", "-t", topic, "-C", "1", "-W", "20", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize("version", ["5", "311"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_round_trip(there: list[str], topic: str, version: str, qos: str) -> None:
    published(topic, "-m", "grüße", "-r", "-q", qos, "-V", version, *there)
    shown = retained(topic, "-q", qos, "-V", version, "-F", "%t|%p|%q|%r", *there)
    assert shown.decode() == f"{topic}|grüße|{qos}|1\n"


def test_sources_of_a_message(running: ServiceProcess, topic: str, tmp_path: Path) -> None:
    url = running.url()
    payload = bytes(range(256)) * 300
    (tmp_path / "file").write_bytes(payload)
    published(topic, "-f", str(tmp_path / "file"), "-r", "-q", "1", url)
    assert retained(topic, "-N", url) == payload
    published(topic, "-s", "-r", "-q", "1", url, stdin=b"whole\ninput\n")
    assert retained(topic, "-N", url) == b"whole\ninput\n"
    published(topic, "-n", "-r", "-q", "1", url)
    done = avow("sub", "-t", topic, "-C", "1", "-W", "0.5", url)
    assert done.returncode == 1
    assert b"expected 1 message within 0.5 s, got 0" in done.stderr


def test_lines_come_in_order(running: ServiceProcess, topic: str) -> None:
    url = running.url()
    count = 3000
    lines = b"".join(b"line %d\n" % number for number in range(count))
    with subscriber(topic, "-q", "1", "-C", str(count + 1), "-W", "60", url) as sub:
        published(topic, "-l", "-q", "1", url, stdin=lines)
        out, err = sub.communicate(timeout=PATIENCE_S * 2)
    assert (sub.returncode, err) == (0, b"")
    assert out == lines


def test_repeat(running: ServiceProcess, topic: str) -> None:
    url = running.url()
    with subscriber(topic, "-C", "4", "-W", "20", url) as sub:
        published(topic, "-m", "x", "--repeat", "3", "--repeat-delay", "0.01", url)
        assert sub.communicate(timeout=PATIENCE_S)[0] == b"x\nx\nx\n"
    assert sub.returncode == 0


def test_properties_and_json(running: ServiceProcess, topic: str) -> None:
    url = running.url()
    published(
        topic,
        *("-m", '{"t": 21}', "-r", "-q", "1"),
        *("-D", "content-type=application/json", "-D", "user-property=unit=celsius"),
        *("-D", "response-topic=reply", "-D", "correlation-data=7"),
        *("-D", "message-expiry-interval=1000"),
        url,
    )
    message = json.loads(retained(topic, "--json", "--subscription-identifier", "5", url))
    assert message["topic"] == topic
    assert message["payload"] == '{"t": 21}'
    assert message["retain"] is True
    properties = message["properties"]
    assert properties["content-type"] == "application/json"
    assert properties["user-property"] == [{"unit": "celsius"}]
    assert properties["response-topic"] == "reply"
    assert properties["correlation-data"] == "Nw=="
    assert properties["subscription-identifier"] == [5]
    assert 900 < properties["message-expiry-interval"] <= 1000
    parsed = retained(topic, "-F", "%J", url)
    assert json.loads(parsed)["payload"] == {"t": 21}


def test_choice_of_messages(running: ServiceProcess, topic: str) -> None:
    url = running.url()
    for name in ("a", "b"):
        published(f"{topic}/{name}", "-m", name, "-r", "-q", "1", url)
    everything = ["sub", "-t", f"{topic}/#", "-W", "0.7", "-F", "%p"]
    assert sorted(avow(*everything, url).stdout.split()) == [b"a", b"b"]
    assert avow(*everything, "-T", f"{topic}/a", url).stdout == b"b\n"
    assert avow(*everything, "-R", url).stdout == b""
    kept = avow(*everything, "--retained-only", "-C", "2", url)
    assert sorted(kept.stdout.split()) == [b"a", b"b"]


def test_session_that_lasts(running: ServiceProcess, topic: str) -> None:
    url = running.url()
    stay = ["sub", "-t", topic, "-q", "1", "-c", "--id", "keeper", "-C", "2"]
    assert avow(*stay, "-W", "0.5", url).returncode == 1
    published(topic, "-m", "one", "-q", "1", url)
    published(topic, "-m", "two", "-q", "1", url)
    done = avow(*stay, "-W", "20", url)
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\n")
    # What was acknowledged does not come again.
    assert avow(*stay, "-W", "0.5", url).stdout == b""


def test_will(running: ServiceProcess, topic: str) -> None:
    url = running.url()
    with subscriber(f"{topic}/will", "-q", "1", "-C", "2", "-W", "20", url) as watcher:
        will = ["--will-topic", f"{topic}/will", "--will-payload", "lost", "--will-qos", "1"]
        with subscriber(f"{topic}/other", *will, url) as lost:
            lost.kill()
            lost.wait(PATIENCE_S)
            assert watcher.communicate(timeout=PATIENCE_S)[0] == b"lost\n"


def test_what_is_forbidden_is_3(running: ServiceProcess) -> None:
    url = running.url()
    for qos in ("1", "2"):
        done = avow("pub", "-t", "closed/a", "-m", "x", "-q", qos, url)
        assert done.returncode == 3
        assert b"closed/a" in done.stderr
    for version, words in (("5", b"Not authorized"), ("311", b"closed/a")):
        done = avow("sub", "-t", "closed/a", "-V", version, url)
        assert done.returncode == 3
        assert words in done.stderr
    done = avow("sub", "-t", "closed/a", "-t", "open", "-W", "0.5", url)
    assert done.returncode == 0
    assert b"some subscriptions were refused" in done.stderr


def test_certificate_that_is_not_trusted(running: ServiceProcess, tmp_path: Path) -> None:
    url = running.url("mqtts")
    other = Authority("other").write(tmp_path / "other.pem")
    for trust in ([], ["--cafile", str(other)]):
        done = avow("pub", "-t", "a", "-m", "x", *trust, url)
        assert done.returncode == 1
        assert b"--cafile" in done.stderr
        assert b"Traceback" not in done.stderr
    published("a", "-m", "x", "--unsafe-no-verify", url)


def test_wrong_transport_is_no_traceback(running: ServiceProcess) -> None:
    for scheme, wrong in (("mqtt", "mqtts"), ("mqtt", "ws")):
        url = f"{wrong}://127.0.0.1:{running.port(scheme)}"
        done = (
            avow("pub", "-t", "a", "-m", "x", "--unsafe-no-verify", url)
            if wrong == "mqtts"
            else (avow("pub", "-t", "a", "-m", "x", url))
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith(b"avow: expected")
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_subscriber_is_stopped_cleanly(
    running: ServiceProcess, topic: str, number: signal.Signals
) -> None:
    with subscriber(topic, "--id", topic, running.url()) as sub:
        sub.send_signal(number)
        out, err = sub.communicate(timeout=PATIENCE_S)
        assert (sub.returncode, out, err) == (0, b"", b"")
    line = running.event("client disconnected", matches=lambda entry: entry["client"] == topic)
    assert line["by"] == "client"


def test_reader_that_has_enough_is_no_error(running: ServiceProcess, topic: str) -> None:
    with subscriber(topic, running.url()) as sub:
        assert sub.stdout is not None
        sub.stdout.close()
        published(topic, "-m", "x", running.url())
        assert sub.wait(PATIENCE_S) == 0
        assert sub.stderr is not None
        assert sub.stderr.read() == b""


def test_subscriber_comes_back_to_a_restarted_broker(topic: str) -> None:
    with service("--listen", "mqtt://127.0.0.1:0") as first:
        url = first.url()
        with subscriber(topic, "-C", "2", "-W", "60", url) as sub:
            assert first.stop() == 0
            with service("--listen", url) as second:
                second.event("client connected")
                # Retained, because its subscription may come later than this.
                published(topic, "-m", "again", "-r", "-q", "1", url)
                out, err = sub.communicate(timeout=PATIENCE_S)
    assert (sub.returncode, out) == (0, b"again\n")
    assert b"coming back" in err


def test_password_from_everywhere_but_the_arguments(tmp_path: Path) -> None:
    path = tmp_path / "users"
    add_user(path, new_user("alice", "secret"))
    secret = write(tmp_path / "secret", "secret\n")
    with service("--password-file", str(path), "--listen", "mqtt://127.0.0.1:0") as running:
        url = running.url()
        pub = ["pub", "-t", "a", "-m", "x"]
        assert avow(*pub, "-u", "alice", "--password-stdin", url, stdin=b"secret\n").returncode == 0
        assert avow(*pub, "-u", "alice", "--password-file", str(secret), url).returncode == 0
        named = url.replace("://", "://alice@")
        assert avow(*pub, named, environment={"AVOW_PASSWORD": "secret"}).returncode == 0
        for arguments in (["-u", "alice", url], [url]):
            done = avow(*pub, *arguments)
            assert done.returncode == 3
            assert b"to accept the connection" in done.stderr
