"""What a configuration says about secrets that its owner provisions, and what of it is measured."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from avow.broker.config import Configuration
from avow.broker.config_file import Overrides, load_configuration
from avow.broker.measured_configuration import configuration_digest, measured_text
from avow.broker.prepared import prepare
from avow.broker.service import needs_restart
from avow.channel.provisioning import Provisioned
from avow.cli import cli
from avow.cli.command_error import CommandError
from avow.errors import MalformedError, UnavailableError

OWNER = "sha256:" + "0f" * 32
TABLE = f'[provisioning]\nlisten = "127.0.0.1:8899"\nowner = "{OWNER}"\n'
LISTENER = '[[listeners]]\nurl = "mqtts://127.0.0.1:0"\n'


def read(folder: Path, text: str, overrides: Overrides | None = None) -> Configuration:
    path = folder / "avow.toml"
    path.write_text(text)
    return load_configuration(path, overrides or Overrides())


def secret(folder: Path, *, key: str = "provisioned:k", table: str = TABLE) -> Configuration:
    """With one place that is provisioned or not."""
    return read(folder, f'{table}{LISTENER}cert = "provisioned:c"\nkey = "{key}"\n')


def test_names_stand_in_place_of_paths_wherever_the_file_lies(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        f'password_file = "provisioned:users"\n{TABLE}{LISTENER}cert = "provisioned:tls.crt"\n'
        f'key = "server.key"\nclient_ca = "ca.pem"\ncrl = "provisioned:crl"\n'
        f'psk_file = "provisioned:psk"\n',
    )
    listener = found.listeners[0]
    assert found.password_file == Path("provisioned:users")
    assert (listener.cert, listener.crl) == (Path("provisioned:tls.crt"), Path("provisioned:crl"))
    assert listener.psk_file == Path("provisioned:psk")
    assert listener.key == tmp_path / "server.key"
    assert found.provisioning is not None
    assert found.provisioning.owner == OWNER


def test_the_command_line_can_say_so(tmp_path: Path) -> None:
    overrides = Overrides(
        cert=Path("provisioned:c"), key=Path("k.pem"), password_file=Path("provisioned:u")
    )
    found = read(tmp_path, TABLE + LISTENER, overrides)
    assert found.listeners[0].cert == Path("provisioned:c")
    assert found.listeners[0].key == Path("k.pem").absolute()
    assert found.password_file == Path("provisioned:u")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{TABLE}{LISTENER}cert = "provisioned:a/b"\nkey = "k"\n', "letters, digits"),
        (f'{TABLE}{LISTENER}cert = "provisioned:"\nkey = "k"\n', "letters, digits"),
        (
            f'{TABLE}{LISTENER}cert = "c"\nkey = "k"\nclient_ca = "provisioned:ca"\n',
            "whose content is measured",
        ),
        (
            f'{TABLE}{LISTENER}cert = "c"\nkey = "k"\nclient_policy = "provisioned:p"\n',
            "whose content is measured",
        ),
        (
            f'[attestation]\nendorsements = "provisioned:e"\n{TABLE}',
            "whose content is measured",
        ),
        ('password_file = "provisioned:users"\n', "the table [provisioning]"),
        (f'{LISTENER}cert = "c"\nkey = "provisioned:k"\n', "the table [provisioning]"),
        (TABLE.replace("8899", "88990"), "host:port"),
        (TABLE.replace("sha256:", ""), "sha256: and 64"),
        (TABLE.replace("0f0f", "0F0F"), "sha256: and 64"),
        ('[provisioning]\nlisten = "127.0.0.1:0"\n', "provisioning.owner"),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(MalformedError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


def test_a_measured_file_cannot_be_provisioned_by_the_command_line_either(tmp_path: Path) -> None:
    overrides = Overrides(client_ca=Path("provisioned:ca"))
    with pytest.raises(MalformedError, match="whose content is measured"):
        read(tmp_path, f'{TABLE}{LISTENER}cert = "c"\nkey = "k"\n', overrides)


def test_the_digest_says_what_is_provisioned_by_whom_and_nothing_of_what(tmp_path: Path) -> None:
    """Otherwise who owns the disk could put a file of their own in place of the owner's."""
    digests = {
        name: configuration_digest(configuration)
        for name, configuration in {
            "provisioned": secret(tmp_path),
            "by another name": secret(tmp_path, key="provisioned:other"),
            "from the disk": secret(tmp_path, key="k.pem"),
            "by another owner": secret(tmp_path, table=TABLE.replace("0f0f", "1f1f", 1)),
        }.items()
    }
    assert len(set(digests.values())) == len(digests)
    text = measured_text(secret(tmp_path))
    assert '"key":"provisioned:k"' in text
    assert OWNER in text
    # Nothing has to be there to be measured: the evidence comes before the secrets.
    assert configuration_digest(secret(tmp_path)) == digests["provisioned"]


def test_another_owner_needs_a_restart(tmp_path: Path) -> None:
    other = secret(tmp_path, table=TABLE.replace("0f0f", "1f1f", 1))
    assert needs_restart(secret(tmp_path), other) == ["provisioning"]


def test_users_are_not_added_to_what_is_provisioned(tmp_path: Path) -> None:
    read(tmp_path, f'password_file = "provisioned:users"\n{TABLE}')
    configuration = str(tmp_path / "avow.toml")
    arguments = ["user", "add", "alice", "--config", configuration, "--password-stdin"]
    done = CliRunner().invoke(cli, arguments, input="x\n")
    assert isinstance(done.exception, CommandError)
    assert "avow provision" in done.exception.sentence
    assert not Path("provisioned:users").exists()


def test_a_file_of_that_name_is_not_read_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "provisioned:users").write_text("")
    found = read(tmp_path, f'password_file = "provisioned:users"\n{TABLE}')
    with pytest.raises(UnavailableError, match="the owner has provisioned"):
        prepare(found, datetime.now(UTC), read=Provisioned().reader())
