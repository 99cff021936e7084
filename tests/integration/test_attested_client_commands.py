"""`avow pub`, `sub` and `inspect` with evidence: what they say, and their exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from avow.channel.exchange import Outcome
from avow.evidence.envelope import decode_evidence
from avow.tee.simulated import NOTHING_IS_PROTECTED
from avow.testing.attested_peer import (
    MODULE,
    RESET,
    forward_to,
    server_context,
    stripped_answer,
)
from avow.testing.pki import Authority
from tests.integration.attested_endpoint import AttestedEndpoint, attested_endpoint
from tests.integration.service_process import ServiceProcess, avow, service

PATIENCE_S = 20.0
OTHER_MODULE = bytes(32)


@dataclass(frozen=True)
class Attested:
    """A real broker on the simulated platform, and the policy that `avow policy init` wrote."""

    url: str
    options: list[str]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attested]:
    folder = tmp_path_factory.mktemp("broker")
    authority = Authority()
    ca = authority.write(folder / "ca.pem")
    cert, key = authority.issue_server().write(folder, "server")
    policy = folder / "policy.toml"
    configured = ["--cert", str(cert), "--key", str(key), "--allow-anonymous"]
    made = avow(
        *("policy", "init", "--broker", "--platform", "simulated", "-o", str(policy)),
        *("--listen", "mqtts://127.0.0.1:0", *configured),
    )
    assert made.returncode == 0, made.stderr
    with service("--tee", "simulated", "--listen", "mqtts://127.0.0.1:0", *configured) as running:
        yield Attested(
            f"mqtts://localhost:{running.port('mqtts')}",
            ["--cafile", str(ca), "--policy", str(policy)],
        )


@pytest.fixture(scope="module")
def plain() -> Iterator[ServiceProcess]:
    with service("--listen", "mqtt://127.0.0.1:0") as running:
        yield running


@pytest.fixture
def endpoint(plain: ServiceProcess, tmp_path: Path) -> Iterator[AttestedEndpoint]:
    with attested_endpoint(tmp_path, forward_to(plain.port())) as endpoint:
        yield endpoint


def lines(output: bytes) -> list[str]:
    return output.decode().splitlines()


def publish(url: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return avow("pub", url, "-t", "a/b", "-m", "hello", "-q", "1", "-r", *options)


def test_publish_and_subscribe(broker: Attested) -> None:
    done = publish(broker.url, *broker.options)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = avow("sub", broker.url, "-t", "a/#", "-C", "1", "-W", "10", *broker.options)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


def test_a_client_in_a_tee_says_what_that_is_worth(broker: Attested) -> None:
    done = publish(broker.url, *broker.options, "--tee", "simulated")
    assert done.returncode == 0
    assert lines(done.stderr)
    assert all(NOTHING_IS_PROTECTED in line for line in lines(done.stderr))
    done = publish("mqtts://localhost:1", *broker.options, "--tee", "simulated")
    assert done.returncode == 1
    assert len(lines(done.stderr)) == 2
    assert all(NOTHING_IS_PROTECTED in line for line in lines(done.stderr))


def test_refused_by_the_policy(endpoint: AttestedEndpoint) -> None:
    endpoint.peer.run(OTHER_MODULE)
    for command in (["pub", "-t", "a", "-m", "b"], ["sub", "-t", "a"]):
        done = avow(*command, endpoint.url, *endpoint.options)
        assert (done.returncode, done.stdout) == (3, b"")
        (line,) = lines(done.stderr)
        assert line.startswith("avow: check P4 (")
        assert MODULE.hex() in line
        assert OTHER_MODULE.hex() in line


@pytest.mark.parametrize(
    ("first_word", "code", "check"),
    [(stripped_answer(), 3, "C11"), (b"", 4, "C22"), (b"\x20\x02\x00\x00", 4, "C3")],
    ids=["stripped", "closed", "mqtt"],
)
def test_stripped_evidence(
    endpoint: AttestedEndpoint, first_word: bytes, code: int, check: str
) -> None:
    endpoint.peer.change(first_word=first_word)
    for done in (
        publish(endpoint.url, *endpoint.options),
        avow("inspect", endpoint.url, *endpoint.options),
    ):
        assert done.returncode == code, done
        assert f"check {check} (" in done.stderr.decode()


def test_a_plain_broker_is_no_attested_one(plain: ServiceProcess, tmp_path: Path) -> None:
    """avow's own, without a TEE."""
    folder = tmp_path / "plain"
    folder.mkdir()
    authority = Authority()
    ca = authority.write(folder / "ca.pem")
    cert, key = authority.issue_server().write(folder, "server")
    with (
        attested_endpoint(tmp_path) as other,
        service(
            *("--listen", "mqtts://127.0.0.1:0", "--allow-anonymous"),
            *("--cert", str(cert), "--key", str(key)),
        ) as running,
    ):
        url = f"mqtts://localhost:{running.port('mqtts')}"
        done = publish(url, "--cafile", str(ca), "--policy", str(other.policy))
        assert done.returncode in (3, 4)
        assert b"check C" in done.stderr


def test_a_certificate_of_another_authority(endpoint: AttestedEndpoint) -> None:
    endpoint.peer.change(context=server_context(Authority().issue_server()))
    done = publish(endpoint.url, *endpoint.options)
    assert done.returncode == 3
    assert b"check C23" in done.stderr
    assert b"trusted authority" in done.stderr


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("mqtt://localhost:1", ["--policy", "P"], "mqtts:// or wss:// for --policy"),
        ("ws://localhost:1", ["--policy", "P"], "mqtts:// or wss:// for --policy"),
        ("mqtts://localhost:1", ["--tee", "simulated"], "--policy with --tee"),
        ("mqtts://localhost:1", ["--endorsements", "."], "--policy with --endorsements"),
        ("mqtts://localhost:1", ["--psk", "P"], "--policy with --psk"),
        ("mqtts://localhost:1", ["--policy", "P", "--tee", "abacus"], "abacus"),
        ("mqtts://localhost:1", ["--policy", "absent.toml"], "no such file"),
    ],
)
def test_wrong_usage(endpoint: AttestedEndpoint, url: str, options: list[str], words: str) -> None:
    done = publish(url, *(str(endpoint.policy) if each == "P" else each for each in options))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.decode()


def test_a_subscriber_judges_anew_and_leaves(endpoint: AttestedEndpoint) -> None:
    """The broker goes away and comes back as another module: exit 3, with the check."""
    with subprocess.Popen(
        [sys.executable, "-m", "avow", "sub", endpoint.url, "-t", "a/#", "-v", *endpoint.options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as subscriber:
        wait_for_subscriber(endpoint, subscriber)
        endpoint.peer.run(OTHER_MODULE)
        endpoint.peer.drop_all()
        _, said = subscriber.communicate(timeout=PATIENCE_S)
        assert subscriber.returncode == 3
        first, second = lines(said)
        assert "coming back" in first
        assert "check P4" in second


@pytest.mark.parametrize("how", ["in order", "by a reset"])
def test_a_subscriber_whose_exchange_is_cut_tries_again(
    endpoint: AttestedEndpoint, how: str
) -> None:
    """Nobody has answered, so nobody was refused; it is the same broker that comes back."""
    with subprocess.Popen(
        [sys.executable, "-m", "avow", "sub", endpoint.url, "-t", "a/#", "-v", *endpoint.options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as subscriber:
        wait_for_subscriber(endpoint, subscriber)
        while not endpoint.peer.outcomes.empty():
            endpoint.peer.outcomes.get()
        endpoint.peer.change(first_word=b"" if how == "in order" else RESET)
        endpoint.peer.drop_all()
        # Whatever ended before, the next that comes is the cut.
        while endpoint.peer.outcome() is not None:
            pass
        endpoint.peer.change(first_word=None)
        assert isinstance(endpoint.peer.outcome(), Outcome)
        subscriber.terminate()
        _, said = subscriber.communicate(timeout=PATIENCE_S)
        assert subscriber.returncode == 0, said
        assert b"check C22" in said
        assert b"trying again" in said


@pytest.mark.parametrize("first_word", [b"", stripped_answer()[:2000]], ids=["nothing", "a part"])
@pytest.mark.parametrize("how", ["in order", "by a reset"])
def test_a_cut_in_the_exchange_is_no_refusal(
    endpoint: AttestedEndpoint, first_word: bytes, how: str
) -> None:
    endpoint.peer.change(first_word=first_word + (b"" if how == "in order" else RESET))
    for done in (
        publish(endpoint.url, *endpoint.options),
        avow("inspect", endpoint.url, *endpoint.options),
        avow("sub", "-t", "a", endpoint.url, *endpoint.options),
    ):
        assert done.returncode == 4, done
        assert b"check C22 (" in done.stderr


@pytest.mark.parametrize("options", ["attested", "ordinary"])
def test_a_clock_that_is_behind_is_named(endpoint: AttestedEndpoint, options: str) -> None:
    """A device without a battery for its clock, after power-on."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    future = endpoint.authority.issue_server(
        valid_from=tomorrow, valid_until=tomorrow + timedelta(days=1)
    )
    endpoint.peer.change(context=server_context(future))
    trusted = endpoint.options if options == "attested" else endpoint.options[:2]
    done = publish(endpoint.url, *trusted)
    assert done.returncode != 0
    assert b"not yet valid" in done.stderr
    assert done.stderr.strip().endswith(b"; set this machine's clock, which is behind")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_subscription(endpoint: AttestedEndpoint, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "avow", "sub", endpoint.url, "-t", "a/#", "-v", *endpoint.options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as subscriber:
        wait_for_subscriber(endpoint, subscriber)
        subscriber.send_signal(number)
        _, said = subscriber.communicate(timeout=PATIENCE_S)
        assert (subscriber.returncode, said) == (0, b"")


def wait_for_subscriber(endpoint: AttestedEndpoint, subscriber: subprocess.Popen[bytes]) -> None:
    """Returns when a message has come through: a retained one needs no moment."""
    done = publish(endpoint.url, *endpoint.options)
    assert done.returncode == 0, done.stderr
    assert subscriber.stdout is not None
    assert subscriber.stdout.readline() == b"a/b hello\n"


def inspect(url: str, *options: str) -> tuple[int, dict[str, Any], list[str]]:
    done = avow("inspect", url, "--json", *options)
    return done.returncode, json.loads(done.stdout), lines(done.stderr)


def test_inspect_without_a_policy(broker: Attested, tmp_path: Path) -> None:
    ca = broker.options[:2]
    written = tmp_path / "evidence.cmw"
    code, report, said = inspect(broker.url, *ca, "-o", str(written))
    assert code == 0
    assert (report["judged"], report["vouched"]) == (False, True)
    assert report["claims"]["role"] == "server"
    assert "result" not in report
    assert report["tls"]["version"] == "TLSv1.3"
    assert report["certificate"]["verified"] is True
    assert "localhost" in report["certificate"]["names"]
    assert decode_evidence(written.read_bytes()).platform == report["evidence"]["platform"]
    assert any(NOTHING_IS_PROTECTED in line for line in said)
    text = avow("inspect", broker.url, *ca).stdout.decode()
    assert "not judged: no policy was given" in text
    assert report["claims"]["module"] in text


def test_inspect_with_a_policy(broker: Attested) -> None:
    code, report, _ = inspect(broker.url, *broker.options)
    assert (code, report["judged"], report["vouched"]) == (0, True, True)
    assert report["result"]["submods"]["simulated"]["avow.findings"] == []
    assert avow("inspect", broker.url, *broker.options).stdout.decode().count("accepted: ") == 1


def test_inspect_shows_what_a_policy_refuses(endpoint: AttestedEndpoint) -> None:
    endpoint.peer.run(OTHER_MODULE)
    code, report, said = inspect(endpoint.url, *endpoint.options)
    assert (code, report["judged"], report["vouched"]) == (3, True, True)
    result = report["result"]["submods"]["simulated"]
    assert [each["check"] for each in result["avow.findings"]] == ["P4"]
    assert result["avow.claims"]["module"] == OTHER_MODULE.hex()
    assert report["error"]["check"] == "P4"
    assert any("check P4" in line for line in said)
    assert "REFUSED" in avow("inspect", endpoint.url, *endpoint.options).stdout.decode()


def test_inspect_says_when_nobody_vouches(
    endpoint: AttestedEndpoint,
) -> None:
    """The simulated platform's signature is over something else: its verifier does not vouch."""
    endpoint.peer.issuer._attester = _Forger()
    code, report, _ = inspect(endpoint.url, "--cafile", str(endpoint.ca))
    assert (code, report["judged"], report["vouched"]) == (3, False, False)
    assert "claims" not in report
    assert report["unproven_claims"]["module"] == MODULE.hex()
    text = avow("inspect", endpoint.url, "--cafile", str(endpoint.ca)).stdout.decode()
    assert "NOT PROVEN" in text
    assert "not judged" not in text


class _Forger:
    """A platform whose reports carry a signature that is none."""

    platform = "simulated"

    def measure(self, workload: object) -> None:
        """Nothing."""

    def quote(self, report_data: Any) -> bytes:
        """A report of the right form."""
        from avow.tee.simulated.attester import SimulatedAttester

        report = bytearray(SimulatedAttester().quote(report_data))
        at = report.index(b"signature") + len(b"signature") + 10
        report[at] ^= 1
        return bytes(report)


def test_inspect_a_certificate_that_is_not_verified(endpoint: AttestedEndpoint) -> None:
    done = avow("inspect", endpoint.url)
    assert done.returncode == 3
    assert b"trusted authority" in done.stderr
    code, report, _ = inspect(endpoint.url, "--unsafe-no-verify")
    assert (code, report["certificate"]["verified"]) == (0, False)
    text = avow("inspect", endpoint.url, "--unsafe-no-verify").stdout.decode()
    assert "NOT VERIFIED" in text


def test_inspect_wrong_usage(endpoint: AttestedEndpoint) -> None:
    assert avow("inspect", "mqtt://localhost:1").returncode == 2
    assert avow("inspect", "mqtts://localhost:1", "--tee", "simulated").returncode == 2
    assert avow("inspect", "mqtts://localhost:1").returncode == 1


def test_a_plain_publish_loads_no_verifier() -> None:
    """`avow pub` in a loop of a shell is quick."""
    script = (
        "import sys\nimport avow.cli.pub\nimport avow.cli.sub\nimport avow.client\n"
        "names = ('avow.tee', 'avow.policy', 'OpenSSL', 'dcap_qvl', 'wasmtime', 'cbor2')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout == b"[]\n"
