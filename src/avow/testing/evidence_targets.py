"""The targets of the fuzzer, with seeds from mock vendors and from real evidence where it is."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from avow.channel import provisioning_messages
from avow.channel.authenticator import (
    Request,
    decode_request,
    encode_request,
    make_authenticator,
    open_authenticator,
)
from avow.channel.exchange import (
    AskClients,
    ClientExchange,
    ClientSettings,
    ServerExchange,
    ServerSettings,
)
from avow.channel.messages import Accepted, Category, Refused, decode_body, decode_header, encode
from avow.channel.provisioning_file import load_secrets
from avow.channel.provisioning_messages import NotTaken, Secrets, Taken
from avow.channel.psk import parse_pre_shared_keys
from avow.channel.ra_tls import CMW_EXTENSION, evidence_in
from avow.errors import MalformedError
from avow.evidence import cbor
from avow.evidence.claims import Claims, Role, decode_claims
from avow.evidence.envelope import Evidence, decode_evidence
from avow.evidence.origin import Expectation, verify_evidence
from avow.evidence.report_data import batch
from avow.evidence.roles import Verifier
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.policy.policy_file import parse_policy
from avow.tee.azure.hcl import parse_hcl_report, parse_runtime_data
from avow.tee.azure.report import Report as AzureReport
from avow.tee.azure.verifier import AzureVerifier
from avow.tee.cose import parse_sign1
from avow.tee.intel.collateral import parse_collateral
from avow.tee.intel.quote import without_padding
from avow.tee.intel.vouching import Roots
from avow.tee.nitro.verifier import NitroVerifier
from avow.tee.sgx.report import FORMAT as SGX_FORMAT
from avow.tee.sgx.report import encode_report as encode_sgx
from avow.tee.sgx.verifier import SgxVerifier
from avow.tee.simulated.attester import SimulatedAttester
from avow.tee.simulated.verifier import SimulatedVerifier
from avow.tee.snp.attester import parse_certificate_table
from avow.tee.snp.certificates import parse_certificate, parse_crl
from avow.tee.snp.report import SnpEvidence
from avow.tee.snp.verifier import SnpVerifier
from avow.tee.tdx import rtmr
from avow.tee.tdx.report import encode_report as encode_tdx
from avow.tee.tdx.verifier import TdxVerifier
from avow.tee.tpm import enrolment, event_log
from avow.tee.tpm.credential import Credential
from avow.tee.tpm.structures import parse_public, parse_quote, parse_signature
from avow.tee.tpm.verifier import TpmVerifier
from avow.testing import amd_pki, arm_keys, azure_vm, nitro_pki
from avow.testing.attested_channel import (
    CLIENT_CONTEXT,
    NOW,
    SERVER_CONTEXT,
    WORKLOAD,
    PromptPlatform,
    conversation,
    facts_pair,
    identity,
    judge,
)
from avow.testing.cose_signer import ES384, sign1
from avow.testing.evidence_fuzzing import ANY_ERROR, JUDGED, Target
from avow.testing.intel_pki import IntelPki, SgxBody, TdxBody
from avow.testing.tpm_forge import ForgedKey

DATA = bytes(range(64))
POLICY = f"""
version = 1
name = "a policy"
unsafe_simulated = true
platform = "simulated"
module = "{"01" * 32}"
runtime = "any"
evidence_age_s = {{ min = -60, max = 60 }}
any = [
    {{ configuration = "{"02" * 32}" }},
    {{ configuration = "{"03" * 32}", not = {{ user_data = ["00", "ff"] }} }},
]
"""
KEYS = "# keys\ndevice-7:6464646464646464646464646464646464\nger\u00e4t:" + "ab" * 32 + "\n"


def targets(vectors: Path | None) -> dict[str, Target]:
    """All targets by name. `vectors` is the folder of real evidence."""
    found = [
        *_formats(),
        *_channel(),
        *_provisioning(),
        *_tpm(),
        *_amd(),
        *_intel(),
        *_signed_tokens(),
        *_azure(),
        *_files(),
    ]
    real = {} if vectors is None else _real_seeds(vectors)
    return {
        target.name: Target(
            target.name,
            target.parse,
            [*target.seeds, *real.get(target.name, ())],
            target.allowed,
            target.one_line,
        )
        for target in found
    }


@dataclass(frozen=True)
class _Judging:
    """A verifier at a time; what it accepts has to be in the vocabulary."""

    verifier: Verifier
    now: datetime = NOW

    def __call__(self, content: bytes) -> None:
        authenticated = self.verifier.authenticate(content, self.now)
        assert authenticated.platform == self.verifier.platform
        for name, value in authenticated.claims.items():
            kind = kind_of(name)
            assert kind is not None, name
            assert is_value_of(kind, value), (name, value)


def _formats() -> Iterator[Target]:
    claims = Claims(CLIENT_CONTEXT, Role.SERVER, WORKLOAD, bytes(32), 1, b"said by the program")
    neighbours = [Claims(bytes([n]) * 32, Role.SERVER, WORKLOAD, bytes(32), 1) for n in range(4)]
    report_data, paths = batch([(each, bytes(64)) for each in (claims, *neighbours)])
    report = SimulatedAttester().quote(report_data)
    evidence = Evidence("simulated", report, claims.encoded(), paths[0]).encoded()
    expectation = Expectation(CLIENT_CONTEXT, Role.SERVER, bytes(32), bytes(64))
    verifiers = {"simulated": SimulatedVerifier()}
    values = [cbor.encode({1: [b"", {"a": None}], "x": [True, -(2**64), "ä"]}), evidence]
    yield Target("cbor", lambda content: cbor.decode(content, "value"), values)
    yield Target("cbor-foreign", lambda content: cbor.decode_foreign(content, "value"), values)
    yield Target("claims", decode_claims, [claims.encoded()])
    yield Target("envelope", decode_evidence, [evidence])
    yield Target(
        "evidence",
        lambda content: verify_evidence(content, expectation, verifiers, NOW),
        [evidence],
        JUDGED,
    )
    simulated = _Judging(SimulatedVerifier())
    yield Target("simulated", simulated, [report], JUDGED)


def _channel() -> Iterator[Target]:
    client, server = facts_pair()
    asking = ClientSettings(judge=judge(), identity=identity())
    asked = ServerSettings(identity=identity(), ask_clients=AskClients.ALWAYS, judge=judge())
    talk = conversation(asking, asked, (client, server)).run()
    frames = [frame for _, frame in talk.sent]
    refused = encode(Refused(Category.DENIED, "P4", "expected that it is another"))
    yield Target(
        "frame", _read_frame, [*(frame[:5000] for frame in frames), *frames, refused], ANY_ERROR
    )
    requests = [encode_request(role, Request(CLIENT_CONTEXT, ("snp", "tpm"))) for role in _PEERS]
    for role, request in zip(_PEERS, requests, strict=True):
        name = f"request-of-{role.name.lower()}"
        yield Target(name, _reading_request(role), [request], (MalformedError, *JUDGED[1:2]))
    own = identity()
    sent = make_authenticator(
        Role.SERVER,
        facts=server,
        request=requests[1],
        context=CLIENT_CONTEXT,
        certificate=own.certificate,
        evidence=b"evidence",
        sign=own.sign,
    )
    yield Target(
        "authenticator",
        lambda content: open_authenticator(
            Role.SERVER, content, facts=client, request=requests[1], context=CLIENT_CONTEXT
        ),
        [sent],
        JUDGED[:2],
    )
    to_server = b"".join(frame for sender, frame in talk.sent if sender == "client")
    to_client = b"".join(frame for sender, frame in talk.sent if sender == "server")
    yield Target(
        "exchange-server",
        lambda content: _converse(
            ServerExchange(server, asked, authorised=False, context=SERVER_CONTEXT, now=NOW),
            content,
        ),
        [to_server, encode(Accepted()), refused],
        ANY_ERROR,
    )
    yield Target(
        "exchange-client",
        lambda content: _converse(
            ClientExchange(client, asking, context=CLIENT_CONTEXT, now=NOW), content
        ),
        [to_client, encode(Accepted()), refused],
        ANY_ERROR,
    )
    yield Target(
        "ra-tls",
        _certificate_reader(),
        [b"\x04\x02\xa0\xa0", b"\x04\x81\x80" + bytes(128)],
        JUDGED[:2],
    )


def _provisioning() -> Iterator[Target]:
    messages: list[Secrets | Taken | NotTaken] = [
        Secrets({"store": bytes(range(32))}, {"tls.crt": b"certificate", "users": b""}),
        Taken(("store",), ("users",)),
        NotTaken(Category.DENIED, "PR3", "expected another"),
    ]
    frames = [provisioning_messages.encode(each) for each in messages]
    every = tuple(provisioning_messages.FrameType)
    yield Target(
        "provisioning-message",
        # Most inputs are short; the rest of a block is zeros.
        lambda content: provisioning_messages.decode(content.ljust(4096, b"\0"), every),
        [frame.rstrip(b"\0") for frame in frames],
        (MalformedError,),
    )
    text = 'version = 1\n[keys]\nstore = "hex:{}"\n[files]\nusers = "text:a"\n'
    yield Target(
        "secrets-file",
        lambda content: load_secrets(Path("secrets.toml"), read=lambda path, what: content),
        [
            text.format("00" * 32).encode(),
            b'version = 1\nowner_key = "o"\n[files]\n"a.b" = "file:x"\n',
        ],
        (MalformedError,),
    )


_PEERS = (Role.SERVER, Role.CLIENT)


def _read_frame(content: bytes) -> None:
    kind, length = decode_header(content[:4])
    decode_body(kind, content[4 : 4 + length].ljust(length, b"\0"))


def _reading_request(role: Role) -> Callable[[bytes], object]:
    return lambda content: decode_request(role, content)


def _converse(end: ServerExchange | ClientExchange, content: bytes) -> None:
    """Gives `content` to one end, as much at once as it wants."""
    platform = PromptPlatform()
    while end.outcome is None:
        wanted = end.quote_wanted
        if wanted is not None:
            end.quoted(platform.quote(wanted.claims, wanted.binder))
        elif end.needed and content:
            piece, content = content[: end.needed], content[end.needed :]
            end.receive(piece)
        else:
            end.closed()


def _certificate_reader() -> Callable[[bytes], object]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
    )

    def read(content: bytes) -> None:
        extension = x509.UnrecognizedExtension(CMW_EXTENSION, content)
        evidence_in(builder.add_extension(extension, critical=False).sign(key, SHA256()))

    return read


def _tpm() -> Iterator[Target]:
    keys = [ForgedKey(), ForgedKey("rsassa"), ForgedKey("rsapss")]
    log = event_log.start(WORKLOAD)
    reports = [key.report(bytes(32), log=log) for key in keys]
    certified = keys[0].report(bytes(32), log=log, certificates=(identity().certificate,))
    judging = _Judging(TpmVerifier())
    yield Target("tpm", judging, [each.encoded() for each in (*reports, certified)], JUDGED)
    quote = keys[0].attest(bytes(32), reports[0].pcrs).encoded()

    def signed(content: bytes) -> None:
        report = keys[0].report(bytes(32), log=log)
        judging(
            type(report)(
                content,
                keys[0].sign(content),
                report.ak,
                report.parent,
                report.pcrs,
                report.log,
                report.certificates,
            ).encoded()
        )

    yield Target("tpm-signed", signed, [quote], JUDGED)
    yield Target("tpm-quote", parse_quote, [quote])
    yield Target("tpm-signature", parse_signature, [key.sign(quote) for key in keys])
    yield Target("tpm-public", parse_public, [key.public for key in keys])
    yield Target(
        "tpm-log",
        lambda content: event_log.decode(cbor.decode(content, "log")),
        [cbor.encode(event_log.encode(log))],
    )
    request = enrolment.Request(keys[0].public, keys[0].public, (identity().certificate,))
    yield Target("tpm-enrolment-request", enrolment.decode_request, [request.encoded()])
    credential = Credential(b"i" * 50, b"s" * 50)
    yield Target(
        "tpm-enrolment-credential",
        enrolment.decode_credential,
        [enrolment.encode_credential(credential)],
    )
    kept = enrolment.Kept(parse_public(keys[0].public), bytes(32), bytes(32))
    yield Target("tpm-enrolment-kept", enrolment.decode_kept, [kept.encoded()])


def _amd() -> Iterator[Target]:
    amd, now = _amd_pki(), amd_pki.NOW
    chip = amd.chip()
    evidence = [
        chip.evidence(DATA).encoded(),
        chip.evidence(DATA, crl=amd.crl()).encoded(),
        amd.cloud().evidence(DATA).encoded(),
    ]
    judging = _Judging(amd.verifier([amd.crl()]), now)
    real = _Judging(SnpVerifier(), now)
    yield Target("snp", _first_then(judging, real), evidence, JUDGED)

    def signed(content: bytes) -> None:
        judging(SnpEvidence(chip.sign(content), chip.chain).encoded())

    yield Target("snp-signed", signed, [chip.report(DATA)[:672]], JUDGED)
    yield Target(
        "snp-certificate",
        lambda content: parse_certificate(content, "certificate"),
        [*chip.chain, amd.asvk],
    )
    yield Target("snp-crl", parse_crl, [amd.crl(), amd.crl([("SEV-Milan", 0), (None, 5)])])
    vcek = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes
    entry = vcek + (48).to_bytes(4, "little") + (5).to_bytes(4, "little")
    yield Target("snp-table", parse_certificate_table, [entry + bytes(24) + b"a VEK" + bytes(9)])


@cache
def _amd_pki() -> amd_pki.AmdPki:
    return amd_pki.AmdPki()


def _first_then(*judging: _Judging) -> Callable[[bytes], None]:
    """Bytes that the first one refuses are given to the next."""

    def judge_all(content: bytes) -> None:
        for each in judging[:-1]:
            try:
                return each(content)
            except JUDGED:
                continue
        return judging[-1](content)

    return judge_all


INTEL_MOCK_NOW = amd_pki.NOW
# Inside of the validity of the collateral that the vectors have.
INTEL_REAL_NOW = datetime(2025, 6, 25, tzinfo=UTC)


@cache
def _intel_pki() -> IntelPki:
    return IntelPki(INTEL_MOCK_NOW)


def _intel() -> Iterator[Target]:
    intel = _intel_pki()
    roots = Roots(root_der=intel.root_der)
    log = rtmr.events_of(WORKLOAD)
    collateral = {tee: intel.collateral(tee).encode() for tee in ("sgx", "tdx")}
    parsed = {tee: parse_collateral(content, "mock") for tee, content in collateral.items()}
    sgx = intel.sgx_quote(SgxBody(report_data=DATA))
    yield Target(
        "sgx",
        _first_then(
            _Judging(SgxVerifier(roots), INTEL_MOCK_NOW), _Judging(SgxVerifier(), INTEL_REAL_NOW)
        ),
        [encode_sgx(sgx, parsed["sgx"]), encode_sgx(sgx, None)],
        JUDGED,
    )
    unused = bytes(48)
    body = replace(TdxBody(DATA), rtmrs=(unused, unused, unused, rtmr.replayed(log)))
    tdx = [intel.tdx_quote(body, version=version) for version in (4, 5)]
    yield Target(
        "tdx",
        _first_then(
            _Judging(TdxVerifier(roots), INTEL_MOCK_NOW), _Judging(TdxVerifier(), INTEL_REAL_NOW)
        ),
        [encode_tdx(quote, parsed["tdx"], log) for quote in tdx] + [encode_tdx(tdx[0], None, None)],
        JUDGED,
    )
    yield Target(
        "intel-collateral",
        lambda content: parse_collateral(content, "a file"),
        list(collateral.values()),
        one_line=False,
    )
    yield Target("tdx-log", rtmr.decode_kept_log, [rtmr.encode_log(log)])


def _signed_tokens() -> Iterator[Target]:
    """What is a CBOR map, signed as COSE_Sign1."""
    aws = nitro_pki.NitroPki()
    nitro = _Judging(aws.verifier(), nitro_pki.NOW)
    document = aws.document(DATA)
    yield Target(
        "nitro", _first_then(nitro, _Judging(NitroVerifier(), NITRO_REAL_NOW)), [document], JUDGED
    )
    payload = nitro_pki.payload_of(DATA, [each.der for each in aws.chain], nitro_pki.PCRS)
    enclave = aws.chain[-1].key
    yield Target(
        "nitro-signed",
        lambda content: nitro(sign1(content, enclave, ES384, tagged=False)),
        [cbor2.dumps(payload)],
        JUDGED,
    )
    device = arm_keys.PsaDevice()
    psa = _Judging(device.verifier())
    claims = [device.claims(DATA), device.old_claims(DATA)]
    yield Target("psa", psa, [device.token(each) for each in claims], JUDGED)
    yield Target(
        "psa-signed",
        lambda content: psa(sign1(content, device.key, device.algorithm)),
        [cbor2.dumps(each) for each in claims],
        JUDGED,
    )
    realm = arm_keys.CcaPlatform()
    cca = _Judging(realm.verifier())
    yield Target(
        "cca", cca, [realm.plain_token(DATA), realm.plain_token(DATA, legacy=True)], JUDGED
    )
    parts = [
        cbor2.dumps(
            [
                cbor2.dumps(realm.platform_claims(legacy=legacy)),
                cbor2.dumps(realm.realm_claims(DATA, legacy=legacy)),
            ]
        )
        for legacy in (False, True)
    ]
    yield Target("cca-signed", lambda content: cca(_signed_cca(realm, content)), parts, JUDGED)
    yield Target(
        "cose", lambda content: parse_sign1(content, "token"), [device.token(claims[0]), document]
    )


NITRO_REAL_NOW = datetime(2021, 3, 17, 22, 30, tzinfo=UTC)


def _signed_cca(realm: arm_keys.CcaPlatform, content: bytes) -> bytes:
    """The token over the claims in an array of two byte strings; anything else is no token."""
    match cbor.decode_foreign(content, "pair of claims"):
        case [bytes(platform_claims), bytes(realm_claims)]:
            return arm_keys.collection(
                sign1(platform_claims, realm.key, ES384),
                sign1(realm_claims, realm.realm_key, ES384),
            )
    raise MalformedError("expected two parts")


def _azure() -> Iterator[Target]:
    amd, intel, ak = _amd_pki(), _intel_pki(), ForgedKey("rsassa")
    runtime = azure_vm.runtime_data(ak.key.public_key())  # type: ignore[arg-type]
    log = event_log.start(WORKLOAD)
    tpm = ak.report(bytes(32), log=log)
    bound = azure_vm.report_data(runtime)
    chip = amd.chip()
    collateral = parse_collateral(intel.collateral("tdx").encode(), "mock")
    hardware: Mapping[Any, bytes] = {
        "snp": chip.evidence(bound).encoded(),
        "tdx": encode_tdx(intel.tdx_quote(TdxBody(bound)), collateral, None),
    }
    reports = [
        AzureReport(kind, content, runtime, tpm.quote, tpm.signature, tpm.pcrs, log).encoded()
        for kind, content in hardware.items()
    ]
    verifiers: dict[str, Verifier] = {
        "snp": amd.verifier(),
        "tdx": TdxVerifier(Roots(root_der=intel.root_der)),
    }
    yield Target("azure", _Judging(AzureVerifier(verifiers), amd_pki.NOW), reports, JUDGED)
    areas = [
        azure_vm.hcl_report("snp", chip.report(bound), runtime),
        azure_vm.hcl_report("tdx", azure_vm.td_report(bound), runtime),
    ]
    yield Target("azure-hcl", parse_hcl_report, areas)
    yield Target("azure-runtime", parse_runtime_data, [runtime])


def _files() -> Iterator[Target]:
    """What the user writes, and so may hold whatever a hand slips on."""
    yield Target(
        "policy",
        lambda content: parse_policy(content.decode(errors="replace"), name="a file"),
        [POLICY.encode()],
        one_line=False,
    )
    yield Target(
        "psk-file",
        lambda content: parse_pre_shared_keys(content.decode(errors="replace"), name="a file"),
        [KEYS.encode()],
        one_line=False,
    )


def _real_seeds(folder: Path) -> dict[str, Sequence[bytes]]:
    """Real evidence by target, in the form in which avow sends it."""

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    def chain(name: str) -> list[bytes]:
        return [
            each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(read(name))
        ]

    ask, ark = chain("snp/milan_ask_ark.pem")
    asvk, _ = chain("snp/milan_asvk_ark.pem")
    milan = SnpEvidence(read("snp/report_milan.bin"), (read("snp/vcek_milan.der"), ask, ark))
    cloud = SnpEvidence(read("snp/report_vlek.bin"), (read("snp/vlek.der"), asvk, ark))
    azure = json.loads(read("azure/snp_vtpm_evidence.json"))
    intel = {
        name: parse_collateral(read(f"{name}.collateral.json"), name)
        for name in ("sgx/quote_v3", "tdx/quote_v4", "tdx/quote_outdated")
    }
    return {
        "snp": [milan.encoded(), cloud.encoded()],
        "snp-certificate": [milan.chain[0], cloud.chain[0], read("snp/vcek_invalid.der"), ask],
        "sgx": [
            encode_sgx(without_padding(read("sgx/quote_v3.bin"), SGX_FORMAT), intel["sgx/quote_v3"])
        ],
        "tdx": [
            encode_tdx(without_padding(read(f"{name}.bin"), SGX_FORMAT), intel[name], None)
            for name in ("tdx/quote_v4", "tdx/quote_outdated")
        ],
        "intel-collateral": [read("sgx/quote_v3.collateral.json")],
        "nitro": [read("nitro/document_production.bin"), read("nitro/document_debug.bin")],
        "psa": [read("psa/psa-2_0_0_sign1.bin"), read("psa/psa-iot-1_sign1.bin")],
        "cca": [read("cca/cca_token.cbor")],
        "tpm-quote": [read("tpm/quote.out")],
        "tpm-signature": [read("tpm/quotesig.out")],
        "azure-hcl": [_unpadded(azure["hcl_report"])],
    }


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
