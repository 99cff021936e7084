"""The schema of avow.toml, what the command line overrides, and the words for what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from avow.broker.config import Configuration, schema_rows
from avow.broker.config_file import Overrides, load_configuration
from avow.broker.limits import Limits, setting_keys
from avow.errors import MalformedError, UnavailableError

ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path, text: str, overrides: Overrides | None = None) -> Configuration:
    path = folder / "avow.toml"
    path.write_text(text)
    return load_configuration(path, overrides or Overrides())


def test_without_a_file_only_this_machine_is_served() -> None:
    configuration = load_configuration(None, Overrides())
    assert [listener.url for listener in configuration.listeners] == ["mqtt://127.0.0.1:1883"]
    assert configuration.password_file is None
    assert configuration.acl is None
    assert configuration.metrics is None


def test_whole_file(tmp_path: Path) -> None:
    configuration = load(
        tmp_path,
        """
        password_file = "users"
        response_prefix = "replies/"
        idle_timeout_s = 300

        [[listeners]]
        url = "mqtts://[::1]:8883"
        cert = "/etc/avow/server.pem"
        key = "server.key"
        client_ca = "ca.pem"
        use_identity_as = "san"
        tls_minimum = "1.2"

        [[acl]]
        effect = "allow"
        access = "both"
        user = "alice"
        pattern = "home/%u/#"

        [limits]
        keep_alive_max_s = 60
        shared_available = false

        [metrics]
        port = 9464
        """,
    )
    listener = configuration.listeners[0]
    assert listener.cert == Path("/etc/avow/server.pem")
    assert listener.key == tmp_path / "server.key"
    assert (listener.address.host, listener.address.port) == ("::1", 8883)
    assert configuration.password_file == tmp_path / "users"
    assert configuration.idle_timeout_s == 300.0
    assert configuration.acl is not None
    assert configuration.acl[0].pattern == "home/%u/#"
    assert configuration.limits.settings()[4] == 60
    assert configuration.limits.settings()[19] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alow_anonymous = true", ["`alow_anonymous`", "did you mean `allow_anonymous`"]),
        (
            '[[listeners]]\nurl = "mqtt://127.0.0.1"\ncerts = "x"',
            ["`listeners[1].certs`", "did you mean `cert`"],
        ),
        ("[limits]\nmaximum_packet_byte = 9", ["did you mean `maximum_packet_bytes`"]),
        ("[login]\nzzz = 9", ["`login.zzz`", "the keys here are", "failure_delay_s"]),
        ("[limits]\nmaximum_qos = 3", ["`limits.maximum_qos`", "got 3"]),
        ('[limits]\nmaximum_qos = "1"', ["`limits.maximum_qos`", "got '1'"]),
        ("[limits]\nretain_available = 1", ["`limits.retain_available`", "got 1"]),
        ('allow_anonymous = "yes"', ["`allow_anonymous`", "got 'yes'"]),
        ("listeners = []", ["`listeners`", "at least 1"]),
        ('[[listeners]]\nurl = "tcp://127.0.0.1"', ["scheme 'tcp'", "`listeners[1].url`"]),
        ('[[listeners]]\nurl = "mqtt://127.0.0.1/x"', ["only scheme, host and port"]),
        ('[[listeners]]\nurl = "mqtts://127.0.0.1"', ["'cert'", "mqtts://127.0.0.1", "--cert"]),
        (
            '[[listeners]]\nurl = "mqtt://127.0.0.1"\nkey = "a"',
            ["'key' only with mqtts:// or wss://"],
        ),
        (
            '[[listeners]]\nurl = "mqtts://127.0.0.1"\ncert = "a"\nkey = "b"\ncrl = "c"',
            ["'client_ca' with 'crl'"],
        ),
        ('[[acl]]\neffect = "allow"\naccess = "both"', ["`acl[1].pattern`", "add it"]),
        (
            '[[acl]]\neffect = "allow"\naccess = "both"\npattern = "a/#/b"',
            ["# only as the last level"],
        ),
        (
            '[[acl]]\neffect = "allow"\naccess = "both"\npattern = "a+/b"',
            ["+ only as a whole level"],
        ),
        (
            '[[acl]]\neffect = "allow"\naccess = "both"\npattern = "#"\nuser="a"\nanonymous=true',
            ["'user' or 'anonymous', got both"],
        ),
        *(
            (f'[[listeners]]\nurl = "mqtts://127.0.0.1"\n{keys}', words)
            for keys, words in (
                ('psk_file = "p"\ncert = "a"', ["'key'", "--key"]),
                ('ra_tls = true\ncert = "a"', ["no 'cert' and 'key' with 'ra_tls'"]),
                ('ra_tls = true\ntls_minimum = "1.2"', ['tls_minimum = "1.3" with']),
                (
                    'ra_tls = true\nclient_ca = "a"\nevidence_for = "authorised"',
                    ['evidence_for = "anyone"', "'ra_tls'"],
                ),
                (
                    'cert = "a"\nkey = "b"\nevidence_for = "authorised"',
                    ["'client_ca' or 'psk_file'", "neither"],
                ),
                (
                    'cert = "a"\nkey = "b"\nrequire_client_evidence = true',
                    ["'client_policy' with", "--client-policy"],
                ),
                (
                    'cert = "a"\nkey = "b"\nclient_policy = "c"\nunattested_clients = true\n'
                    "require_client_evidence = true",
                    ["unattested_clients = false", "got true"],
                ),
            )
        ),
        *(
            (f'[[listeners]]\nurl = "mqtt://127.0.0.1"\n{key}', ["only with mqtts:// or wss://"])
            for key in (
                'psk_file = "p"',
                'client_policy = "p"',
                "ra_tls = true",
                "unattested_clients = false",
                "require_client_evidence = true",
                'evidence_for = "authorised"',
            )
        ),
        *(
            (f'[[acl]]\neffect = "allow"\naccess = "both"\npattern = "#"\n{key}', words)
            for key, words in (
                ('module = "sha256:00"', ["64 hexadecimal digits", "`acl[1].module`"]),
                (f'module = "{"00" * 32}"', ["sha256:", "avow measure"]),
                (f'module = "sha256:{"0A" * 32}"', ["64 hexadecimal digits"]),
                (f'module = "sha256:{"00" * 32}"', ["which no module can have"]),
                ('tier = "contraindicated"', ["`acl[1].tier`", "'affirming', 'warning' or 'none'"]),
            )
        ),
        ("[attestation]\nquotes_per_s = 0", ["`attestation.quotes_per_s`"]),
        ('[attestation]\ntee = "TPM"', ["`attestation.tee`"]),
        ("[metrics]", ["`metrics.port`"]),
        ("[limits]\nconnect_timeout_ms = 3000", ["failure_delay_max_s below"]),
        ("a = = b", ["expected TOML", "line 1"]),
    ],
)
def test_wrong_file_is_named_with_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(MalformedError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    for word in [*words, str(tmp_path / "avow.toml"), "expected"]:
        assert word in message
    assert "\n" not in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=re.escape(str(tmp_path / "none.toml"))):
        load_configuration(tmp_path / "none.toml", Overrides())


def test_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "avow.toml").write_bytes(b"response_prefix = '\xff'")
    with pytest.raises(MalformedError, match="UTF-8"):
        load_configuration(tmp_path / "avow.toml", Overrides())


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    text = """
        allow_anonymous = false
        password_file = "users"
        [[listeners]]
        url = "mqtt://127.0.0.1:1883"
        allow_anonymous = false
        [[listeners]]
        url = "mqtts://127.0.0.1:8883"
        cert = "old.pem"
        key = "old.key"
    """
    configuration = load(
        tmp_path,
        text,
        Overrides(
            cert=Path("/new.pem"), allow_anonymous=True, password_file=Path("/elsewhere/users")
        ),
    )
    plain, encrypted = configuration.listeners
    assert plain.allow_anonymous is None
    assert configuration.allow_anonymous is True
    assert plain.cert is None
    assert encrypted.cert == Path("/new.pem")
    assert encrypted.key == tmp_path / "old.key"
    assert configuration.password_file == Path("/elsewhere/users")


def test_listen_replaces_the_listeners_of_the_file(tmp_path: Path) -> None:
    text = '[[listeners]]\nurl = "mqtt://127.0.0.1:1"\n'
    configuration = load(tmp_path, text, Overrides(listen=["ws://127.0.0.1:2", "mqtt://[::1]:3"]))
    assert [entry.url for entry in configuration.listeners] == [
        "ws://127.0.0.1:2",
        "mqtt://[::1]:3",
    ]


def test_paths_of_the_command_line_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    overrides = Overrides(listen=["mqtts://127.0.0.1:0"], cert=Path("c.pem"), key=Path("k.pem"))
    listener = load(tmp_path, "", overrides).listeners[0]
    assert (listener.cert, listener.key) == (elsewhere / "c.pem", elsewhere / "k.pem")


def test_files_of_keys_are_where_other_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the file, or where the command line is; not where a service manager starts avow."""
    name = "000b" + "ab" * 32
    text = f'[store]\ndirectory = "state"\nkey = "tpm:k.tpm@0,7#{name}"\nalso_key = "file:/k"\n'
    monkeypatch.chdir("/")
    store = load(tmp_path, text).store
    assert store is not None
    assert store.key == f"tpm:{tmp_path / 'k.tpm'}@0,7#{name}"
    assert store.also_key == "file:/k"
    store = load(tmp_path, text, Overrides(store_key="file:k", also_key="provisioned")).store
    assert store is not None
    assert (store.key, store.also_key) == ("file:/k", "provisioned")
    for unknown in ("file:", "gramine:mrsigner", "nonsense", "tpm:"):
        store = load(tmp_path, "", Overrides(store=Path("state"), store_key=unknown)).store
        assert store is not None
        assert store.key == unknown


def test_certificate_without_a_tls_listener_is_an_error() -> None:
    with pytest.raises(MalformedError, match=r"--client-ca, got none; add --listen mqtts://"):
        load_configuration(None, Overrides(client_ca=Path("ca.pem")))


def test_a_store_without_anything_to_keep_is_an_error(tmp_path: Path) -> None:
    text = """
[store]
directory = "state"
key = "file:owner.key"
[limits]
persist_sessions = false
"""
    with pytest.raises(MalformedError, match=r"persist_sessions = true with the table \[store\]"):
        load(tmp_path, text)


def _documented_settings() -> dict[str, tuple[int, int]]:
    """Name to key and default, from the table in the core's ABI."""
    text = (ROOT / "docs/spec/core-abi.md").read_text()
    table = text.partition("Settings (u64 values):")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\d+) \|", table, re.MULTILINE)
    return {name: (int(key), int(default)) for key, name, default in rows}


def test_limits_are_the_settings_of_the_core() -> None:
    documented = _documented_settings()
    assert documented["maximum_packet_bytes"] == (1, 2097152)
    keys = setting_keys()
    defaults = Limits().settings()
    ours = {name: (key, defaults[key]) for name, key in keys.items()}
    assert ours == documented


def test_every_key_is_described() -> None:
    rows = schema_rows()
    assert {row.table for row in rows} == {
        "",
        "[[listeners]]",
        "[[acl]]",
        "[limits]",
        "[attestation]",
        "[provisioning]",
        "[login]",
        "[store]",
        "[log]",
        "[metrics]",
    }
    for row in rows:
        assert row.description.endswith("."), row
        assert row.type, row
        assert row.default, row
    by_name = {(row.table, row.key): row for row in rows}
    assert by_name["[[listeners]]", "url"].default == "required"
    assert by_name["[[listeners]]", "tls_minimum"].type == '"1.2" | "1.3"'
    assert by_name["[limits]", "maximum_qos"].bounds == "0 to 2"
    assert by_name["", "password_file"].type == "path"
