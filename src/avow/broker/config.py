"""The schema of `avow.toml`: every key, its default, its bounds and what it means.

`docs/reference/configuration.md` is generated from here (`schema_rows`), so descriptions are
written for readers. Reading the file and the words for what is wrong with it are in `config_file`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo

from avow.broker.limits import Limits
from avow.channel.address import Address, parse_listen_address
from avow.channel.issuer import QUOTE_TIMEOUT_S, QUOTES_PER_S, WAITING_MAX
from avow.channel.provisioning import PREFIX, parse_owner, parse_place
from avow.channel.provisioning_messages import check_name
from avow.errors import AvowError
from avow.sealing.keys import source_in

DEFAULT_URL = "mqtt://127.0.0.1:1883"


def _beside_the_file(value: object, info: ValidationInfo) -> object:
    """A relative path in the file is relative to the file, wherever avow is started."""
    if not isinstance(value, str | Path):
        return value
    if str(value).startswith(PREFIX):
        raise ValueError(
            "expected a file on this machine, whose content is measured, got "
            f"{str(value)!r}; only certificates, keys, revocation lists, users and "
            "pre-shared keys can be provisioned"
        )
    folder = (info.context or {}).get("folder", Path())
    return Path(folder) / value


def _provisioned_or_beside_the_file(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str | Path) or not str(value).startswith(PREFIX):
        return _beside_the_file(value, info)
    try:
        check_name(str(value).removeprefix(PREFIX))
    except AvowError as error:
        raise ValueError(str(error)) from error
    return Path(value)


def _listen_url(value: str) -> str:
    try:
        parse_listen_address(value)
    except AvowError as error:
        raise ValueError(str(error)) from error
    return value


def _topic_pattern(value: str) -> str:
    """[MQTT-4.7.1-1], [MQTT-4.7.1-2] and [MQTT-4.7.3-1] for a pattern."""
    levels = value.split("/")
    if not value or "\0" in value:
        raise ValueError("expected a topic filter, got an empty one or one with a NUL")
    if any("#" in level and level != "#" for level in levels) or "#" in levels[:-1]:
        raise ValueError(f"expected # only as the last level, got {value!r}")
    if any("+" in level and level != "+" for level in levels):
        raise ValueError(f"expected + only as a whole level, got {value!r}")
    return value


def _place(value: str) -> str:
    try:
        parse_place(value)
    except AvowError as error:
        raise ValueError(str(error)) from error
    return value


def _owner(value: str) -> str:
    try:
        parse_owner(value)
    except AvowError as error:
        raise ValueError(str(error)) from error
    return value


def _module_digest(value: str) -> str:
    if re.fullmatch(r"sha256:[0-9a-f]{64}", value) is None:
        raise ValueError(
            f"expected sha256: and 64 hexadecimal digits, got {value!r}; copy what `avow measure` "
            f"prints"
        )
    if not value.removeprefix("sha256:").strip("0"):
        raise ValueError(
            f"expected the digest of a module, got {value!r}, which no module "
            "can have; copy what `avow measure` prints"
        )
    return value


def _source_beside_the_file(value: str, info: ValidationInfo) -> str:
    """The source of a store's key: its file, if it has one, is beside the file as well."""
    return source_in((info.context or {}).get("folder", Path()), value)


def _web_origin(value: str) -> str:
    """As a browser writes it (RFC 6454, section 6.2), so that it can be compared byte by byte."""
    if (
        re.fullmatch(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", value)
        is None
    ):
        raise ValueError(
            f"expected the origin of a web page such as https://panel.example, in lower case and "
            f"without a path, got {value!r}"
        )
    return value


def _web_host(value: str) -> str:
    """As `Host` has it (RFC 9112, section 3.2), without its port."""
    if re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", value) is None:
        raise ValueError(
            f"expected a name of this server such as broker.example, in lower case and without a "
            f"port, got {value!r}"
        )
    return value


FilePath = Annotated[Path, BeforeValidator(_beside_the_file)]
KeySource = Annotated[str, AfterValidator(_source_beside_the_file)]
# A file, or `provisioned:NAME`. The digest of the configuration says which, and not what is in it.
SecretPath = Annotated[Path, BeforeValidator(_provisioned_or_beside_the_file)]
ListenUrl = Annotated[str, AfterValidator(_listen_url)]
WebOrigin = Annotated[str, AfterValidator(_web_origin)]
WebHost = Annotated[str, AfterValidator(_web_host)]
TopicPattern = Annotated[str, AfterValidator(_topic_pattern)]
ModuleDigest = Annotated[str, AfterValidator(_module_digest)]


class Table(BaseModel):
    """A table of the file: nothing is converted, nothing unknown is let through."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Listener(Table):
    """One address where clients come in."""

    url: ListenUrl = Field(
        description="Scheme (mqtt, mqtts, ws or wss), address and port; port 0 takes a free one. "
        "`mqtt://[::1]:1883` is IPv6."
    )
    cert: SecretPath | None = Field(
        default=None,
        description="PEM file: the server's certificate, then its intermediates. For mqtts "
        "and wss. `provisioned:NAME` is the file that the owner hands over by this name. "
        "The same goes for `key`, `crl`, `psk_file` and `password_file`.",
    )
    key: SecretPath | None = Field(
        default=None, description="PEM file: the certificate's private key, without a passphrase."
    )
    client_ca: FilePath | None = Field(
        default=None,
        description="PEM file: the authorities that may issue client certificates. Without "
        "it clients are not asked for a certificate.",
    )
    require_certificate: bool = Field(
        default=True,
        description="Refuse clients without a certificate. Only matters with `client_ca`.",
    )
    use_identity_as: Literal["cn", "san", "none"] = Field(
        default="cn",
        description="What becomes the user name of a client with a certificate: its common "
        "name, its only DNS, e-mail or URI alternative name, or nothing.",
    )
    crl: SecretPath | None = Field(
        default=None,
        description="PEM file: a current revocation list of every authority in client_ca.",
    )
    tls_minimum: Literal["1.2", "1.3"] = Field(
        default="1.3", description="The oldest version of TLS that is accepted."
    )
    allow_anonymous: bool | None = Field(
        default=None,
        description="Admit clients without a user name. Without this key the top-level key counts.",
    )
    psk_file: SecretPath | None = Field(
        default=None,
        description="Lines `identity:key`, the key in hexadecimal digits: clients with such a "
        "pre-shared key need no certificate, over TLS 1.3. The identity becomes the user "
        'name unless `use_identity_as` is "none". With it `cert` and `key` may be left out.',
    )
    evidence_for: Literal["anyone", "authorised"] = Field(
        default="anyone",
        description="Who gets the broker's evidence: anyone who asks, or only clients with an "
        "accepted certificate (`client_ca`) or pre-shared key (`psk_file`).",
    )
    unattested_clients: bool = Field(
        default=True,
        description="Admit clients that do not ask for the broker's evidence. With false, a broker "
        "that has evidence refuses them.",
    )
    client_policy: FilePath | None = Field(
        default=None,
        description="The policy (see `avow policy`) that the evidence of clients has to satisfy. "
        "Clients that offer evidence are asked for it.",
    )
    require_client_evidence: bool = Field(
        default=False,
        description="Refuse clients without evidence that satisfies `client_policy`.",
    )
    ra_tls: bool = Field(
        default=False,
        description="Make key and certificate at the start, with the evidence in the "
        "certificate, for clients that cannot do the exchange. This promises less: see the "
        "page on RA-TLS.",
    )

    @property
    def address(self) -> Address:
        """The parsed URL."""
        return parse_listen_address(self.url)

    @model_validator(mode="after")
    def _keys_that_need_others(self) -> Listener:
        if not self.address.scheme.encrypted:
            for name in sorted(self.model_fields_set & _TLS_KEYS):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"expected {name!r} only with mqtts:// or wss://, got it for {self.url}; "
                        f"remove it or change the scheme"
                    )
            return self
        if self.ra_tls and (self.cert is not None or self.key is not None):
            raise self._wrong("no 'cert' and 'key' with 'ra_tls'", "one", "remove it")
        by_itself = self.ra_tls or (
            self.psk_file is not None and self.cert is None and self.key is None
        )
        for name in ("cert", "key"):
            if getattr(self, name) is None and not by_itself:
                raise self._wrong(
                    f"the key {name!r}",
                    "none",
                    f"name a PEM file (--{name} on the command line)",
                )
        if self.crl is not None and self.client_ca is None:
            raise self._wrong("'client_ca' with 'crl'", "none", "name the file of the authorities")
        return self

    @model_validator(mode="after")
    def _attestation_keys_that_need_others(self) -> Listener:
        if self.evidence_for == "authorised" and self.client_ca is None and self.psk_file is None:
            raise self._wrong(
                "'client_ca' or 'psk_file' with evidence_for = \"authorised\"",
                "neither",
                "say how clients are authorised",
            )
        # A certificate is shown to all who connect, and with TLS 1.2 to all who listen.
        if self.ra_tls and (self.evidence_for != "anyone" or self.tls_minimum != "1.3"):
            raise self._wrong(
                'evidence_for = "anyone" and tls_minimum = "1.3" with \'ra_tls\'',
                "another value",
                "remove that key, or 'ra_tls'",
            )
        if self.require_client_evidence and self.client_policy is None:
            raise self._wrong(
                "'client_policy' with 'require_client_evidence'",
                "none",
                "name the file of a policy (--client-policy)",
            )
        if (
            self.require_client_evidence
            and self.unattested_clients
            and "unattested_clients" in self.model_fields_set
        ):
            raise self._wrong(
                "unattested_clients = false with 'require_client_evidence'",
                "true",
                "remove one of them",
            )
        return self

    def _wrong(self, expected: str, actual: str, advice: str) -> ValueError:
        return ValueError(
            f"expected {expected} for the listener {self.url}, got {actual}; {advice}"
        )


# Keys that say nothing without TLS.
_TLS_KEYS = {
    "cert",
    "key",
    "client_ca",
    "psk_file",
    "evidence_for",
    "unattested_clients",
    "client_policy",
    "require_client_evidence",
    "ra_tls",
}


class AclRule(Table):
    """One access rule. The first rule that fits decides; what no rule fits is denied."""

    effect: Literal["allow", "deny"] = Field(description="What happens when the rule matches.")
    access: Literal["publish", "subscribe", "both"] = Field(
        description=(
            "The action that the rule is about. Delivery of retained messages counts as subscribe."
        )
    )
    user: str | None = Field(
        default=None,
        min_length=1,
        description="The user that the rule is for; without this key, everybody.",
    )
    anonymous: bool = Field(
        default=False,
        description="true: only clients without a user name. Not together with `user`.",
    )
    pattern: TopicPattern = Field(
        description="A topic filter. `%c` stands for the client identifier, `%u` for the user name."
    )
    module: ModuleDigest | None = Field(
        default=None,
        description="`sha256:` and the digest of a module: the rule matches only evidence of "
        "the role program, which avow's runtime makes for the module that it has measured "
        "and runs. It never matches what a client says about itself. `avow measure` prints "
        "the digest.",
    )
    tier: Literal["affirming", "warning", "none"] | None = Field(
        default=None,
        description="The rule matches only clients whose evidence reached at least this tier "
        "under the listener's `client_policy`.",
    )

    @model_validator(mode="after")
    def _one_principal(self) -> AclRule:
        if self.anonymous and self.user is not None:
            raise ValueError("expected 'user' or 'anonymous', got both; write two rules")
        return self


class Attestation(Table):
    """How the broker makes evidence. Clients are asked for theirs by the keys of a listener."""

    tee: str | None = Field(
        default=None,
        pattern="^[a-z]{2,16}$",
        description="The platform that vouches for the broker: `auto`, or a name that `avow tee` "
        "lists. Without it the broker has no evidence.",
    )
    quotes_per_s: float = Field(
        default=QUOTES_PER_S,
        gt=0,
        le=10_000,
        description="How often the platform is asked at most; one quote serves all that wait.",
    )
    waiting_max: int = Field(
        default=WAITING_MAX,
        ge=1,
        le=65_536,
        description="How many clients may wait for evidence; further ones are refused.",
    )
    quote_timeout_s: float = Field(
        default=QUOTE_TIMEOUT_S,
        gt=0,
        le=10,
        description="How long a quote may take before the clients that wait for it are refused.",
    )
    endorsements: FilePath | None = Field(
        default=None,
        description="Folder with what vendors and owners publish about the hardware of "
        "clients, for `client_policy`; the pages on platforms say what belongs there.",
    )
    certificate_renewal_s: float = Field(
        default=3600.0,
        ge=1,
        le=86400.0 * 30,
        description="How often a listener with `ra_tls` makes a new certificate. Each is valid for "
        "twice as long.",
    )


class Provisioning(Table):
    """Who may hand secrets to the broker, and where. With this table it waits for them."""

    listen: Annotated[str, AfterValidator(_place)] = Field(
        description="Address and port where the broker listens for its owner, such as "
        "`0.0.0.0:8899`; port 0 takes a free one."
    )
    owner: Annotated[str, AfterValidator(_owner)] = Field(
        description="`sha256:` and the SHA-256 of the owner's public key "
        "(SubjectPublicKeyInfo, DER); `avow provision --new-owner-key` prints it. Nobody "
        "else gets evidence at this port, and the broker takes nobody else's secrets."
    )


class Login(Table):
    """How passwords are checked."""

    failure_delay_s: float = Field(
        default=0.5,
        ge=0,
        le=60,
        description="How long the refusal of a user's or an address's first failed login is "
        "delayed; each further one takes twice as long.",
    )
    failure_delay_max_s: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="The longest delay. Keep it below `limits.connect_timeout_ms`.",
    )
    pending_max: int = Field(
        default=512,
        ge=1,
        le=1_000_000,
        description="How many logins may wait to be checked; further ones are refused with 0x89 "
        "(server busy).",
    )
    workers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Threads that check passwords. Each needs 19 MiB while it checks one.",
    )


class Log(Table):
    """What is written to standard error."""

    format: Literal["auto", "human", "json"] = Field(
        default="auto", description="auto: text on a terminal, JSON lines otherwise."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important level that is written."
    )


class Metrics(Table):
    """Figures for Prometheus over HTTP."""

    host: str = Field(default="127.0.0.1", min_length=1, description="The address to listen on.")
    port: int = Field(ge=0, le=65535, description="The port; 0 takes a free one.")


class Storage(Table):
    """Where the broker keeps what shall outlive it: sessions, queued and retained messages."""

    directory: FilePath = Field(
        description="The folder of the sealed store. The broker makes it if it does not exist."
    )
    key: KeySource = Field(
        min_length=1,
        description="Where the store's key comes from: `file:PATH`, `tpm:PATH`, `gramine`, `snp` "
        "or `provisioned`.",
    )
    also_key: KeySource | None = Field(
        default=None,
        description="The owner's key of the store. A new store opens with both keys. When `key` no "
        "longer opens the store, because avow was updated or runs on another machine, this "
        "one does, and avow adds `key` again.",
    )
    durability: Literal["commit", "interval", "none"] = Field(
        default="commit",
        description="When acknowledged changes are on the disk: before the acknowledgement "
        "(commit), at most `interval_ms` after it (interval), or after an orderly stop "
        "(none).",
    )
    interval_ms: int = Field(
        default=1000, ge=1, le=3_600_000, description='The longest wait with "interval".'
    )
    anchor: str = Field(
        default="none",
        min_length=1,
        description="What makes an older copy of the store detectable: `tpm:0x01800042`, "
        "`witness:host:port#KEY` or `none`.",
    )
    anchor_interval_s: float = Field(
        default=10.0,
        ge=0,
        le=86400,
        description="How often changes update the anchor; 0: with every commit. A copy that "
        "was made after the last update is not detected.",
    )


class Configuration(Table):
    """The whole file."""

    allow_anonymous: bool | None = Field(
        default=None,
        description="Admit clients without a user name. Without this key only listeners that "
        "other machines cannot reach admit them, and only while there is no other way to "
        "log in.",
    )
    password_file: SecretPath | None = Field(
        default=None, description="The users' file; `avow user add` writes it."
    )
    response_prefix: str = Field(
        default="",
        max_length=1024,
        description="The response information that MQTT 5 clients get if they ask; empty: none.",
    )
    web_origins: list[WebOrigin] = Field(
        default=[],
        max_length=100,
        description="Web pages that may connect over ws:// and wss://, by their origin, such as "
        "`https://panel.example`. Others are refused, except pages that were loaded from the very "
        "address and port that they connect to (an IP address, `localhost` or one of `web_hosts`). "
        "Programs other than browsers send no origin, and are not asked for one.",
    )
    web_hosts: list[WebHost] = Field(
        default=[],
        max_length=100,
        description="Names that clients of ws:// listeners know this server by, such as "
        "`broker.example`, besides addresses, `localhost` and the names in the listeners' URLs. "
        "Requests for other names are refused: they may be a web page's own, which means this "
        "machine for a moment. Clients of wss:// are not asked, as TLS has shown them whose name "
        "it is, and neither are pages of `web_origins`.",
    )
    idle_timeout_s: float = Field(
        default=0.0,
        ge=0,
        le=86400.0 * 365,
        description="A connection that is silent for this long is closed, whatever its keep "
        "alive; 0: never.",
    )
    handshake_timeout_s: float = Field(
        default=10.0, gt=0, le=3600, description="How long a TLS handshake may take."
    )
    drain_timeout_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long a stopping broker waits for its output to be flushed.",
    )
    listeners: list[Listener] = Field(
        default=[Listener(url=DEFAULT_URL)],
        min_length=1,
        description="The addresses to listen on.",
    )
    acl: list[AclRule] | None = Field(
        default=None,
        description="The access rules, in order; without this key everything is allowed.",
    )
    limits: Limits = Field(default=Limits(), description="Bounds for clients and memory.")
    attestation: Attestation = Field(
        default=Attestation(), description="How the broker makes evidence."
    )
    provisioning: Provisioning | None = Field(
        default=None,
        description="Where secrets come from if not from files; see `avow provision`.",
    )
    login: Login = Field(default=Login(), description="How passwords are checked.")
    store: Storage | None = Field(
        default=None,
        description="Where state is kept; without this table the broker loses it when it stops.",
    )
    log: Log = Field(default=Log(), description="What is written to standard error.")
    metrics: Metrics | None = Field(
        default=None,
        description="Metrics for Prometheus; without this table the broker serves none.",
    )

    @model_validator(mode="after")
    def _refusals_come_in_time(self) -> Configuration:
        if self.login.failure_delay_max_s * 1000 >= self.limits.connect_timeout_ms:
            raise ValueError(
                f"expected login.failure_delay_max_s below limits.connect_timeout_ms, got "
                f"{self.login.failure_delay_max_s} s and {self.limits.connect_timeout_ms} ms; "
                f"lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _something_is_stored(self) -> Configuration:
        if self.store is not None and not self.limits.persist_sessions:
            raise ValueError(
                "expected limits.persist_sessions = true with the table [store], got "
                "false, with which nothing would be kept; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _somebody_provisions(self) -> Configuration:
        named = [self.password_file]
        for listener in self.listeners:
            named += [listener.cert, listener.key, listener.crl, listener.psk_file]
        texts = [str(path) for path in named if path is not None]
        if self.store is not None:
            texts.append(self.store.key)
        wanted = [text for text in texts if text.partition(":")[0] == PREFIX.rstrip(":")]
        if wanted and self.provisioning is None:
            raise ValueError(
                f"expected the table [provisioning] with {wanted[0]!r}, got none; add it: "
                "it says who may provision the broker, and where"
            )
        return self


@dataclass(frozen=True, slots=True)
class SchemaRow:
    """One key for the reference: `table` is "" at the top, "[[acl]]" or "[limits]" otherwise."""

    table: str
    key: str
    type: str
    default: str
    bounds: str
    description: str


def schema_rows() -> list[SchemaRow]:
    """Every key of the file in the order of the schema, tables after the top-level keys."""
    return list(_rows(Configuration, ""))


def _rows(model: type[BaseModel], table: str) -> Iterator[SchemaRow]:
    below: list[tuple[type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        inner, repeated = table_of(field.annotation)
        if inner is None:
            yield SchemaRow(
                table,
                name,
                _type_text(field.annotation),
                _default_text(field),
                _bounds_text(field),
                field.description or "",
            )
        else:
            below.append((inner, f"[[{name}]]" if repeated else f"[{name}]"))
    for inner, inner_table in below:
        yield from _rows(inner, inner_table)


def table_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model behind an annotation, if it is a table, and whether it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    repeated = get_origin(annotation) is list
    for argument in get_args(annotation):
        inner, inner_repeated = table_of(argument)
        if inner is not None:
            return inner, repeated or inner_repeated
    return None, False


_TYPE_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", Path: "path"}


def _type_text(annotation: Any) -> str:
    if get_origin(annotation) is list:
        return f"list of {_type_text(get_args(annotation)[0])}s"
    if get_origin(annotation) is Literal:
        return " | ".join(f'"{choice}"' for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _type_text(get_args(annotation)[0])
    if annotation in _TYPE_NAMES:
        return _TYPE_NAMES[annotation]
    choices = [_type_text(choice) for choice in get_args(annotation) if choice is not type(None)]
    return " | ".join(choices)


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f'"{field.default}"' if isinstance(field.default, str) else str(field.default)


def _bounds_text(field: FieldInfo) -> str:
    bounds: dict[str, Any] = {}
    for constraint in field.metadata:
        for kind in ("ge", "gt", "le", "lt"):
            if getattr(constraint, kind, None) is not None:
                bounds[kind] = getattr(constraint, kind)
    low = f"{bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}" if "gt" in bounds else ""
    high = f"{bounds['le']}" if "le" in bounds else ""
    return f"{low} to {high}" if low and high else low or high
