"""`avow inspect`: what a broker shows of itself, judged or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from avow.channel.address import Address, parse_server_address
from avow.channel.exchange import ClientSettings
from avow.channel.judge import Judge, Judged
from avow.cli.command_error import configuration_errors, judging_errors, operation_errors
from avow.cli.connection_options import (
    AttestationArguments,
    TlsArguments,
    require_encrypted,
    secure_options,
)
from avow.cli.exit_codes import ExitCode
from avow.cli.reports import (
    claims_json,
    claims_text,
    render_json,
    render_text,
)
from avow.client.attested_socket import Attestation
from avow.client.inspection import Inspected, inspect_server
from avow.errors import AvowError, MalformedError, counted
from avow.evidence.appraisal import AttestationResult, printable_claims
from avow.evidence.claims import decode_claims
from avow.evidence.envelope import decode_evidence
from avow.evidence.origin import Expectation, Verified
from avow.evidence.roles import Verifier
from avow.evidence.vocabulary import ClaimValue
from avow.policy import Policy, load_policy
from avow.policy.constraints import shown
from avow.tee.platforms import load_endorsements, verifiers
from avow.tee.simulated import NOTHING_IS_PROTECTED

NOBODY_VOUCHES: Final = (
    "NOT PROVEN: the server says this and nobody vouches for it; its maker could have written "
    "anything"
)


class Witness(Judge):
    """A judge that keeps what it saw, whatever came of it. For one connection."""

    def __init__(self, known: Mapping[str, Verifier], policy: Policy | None) -> None:
        super().__init__(known, None)
        self._policy_to_ask = policy
        self.evidence: bytes | None = None
        self.verified: Verified | None = None
        self.result: AttestationResult | None = None

    @property
    def has_policy(self) -> bool:
        """As of every judge."""
        return self._policy_to_ask is not None

    def judge(self, evidence: bytes, expectation: Expectation, now: datetime) -> Judged:
        """As of every judge."""
        self.evidence = evidence
        self.verified = super().judge(evidence, expectation, now).verified
        if self._policy_to_ask is not None:
            # Before it raises: all findings are worth showing, not the first alone.
            self.result = self._policy_to_ask.appraise(self.verified)
            self._policy_to_ask.require(self.verified)
        return Judged(self.verified, self.result)


@click.command()
@click.argument("url", metavar="URL")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the evidence to FILE as it came. It was made for this connection: it proves "
    "nothing to anybody else.",
)
@secure_options(tee=False)
def inspect(
    security: TlsArguments,
    attested: AttestationArguments,
    url: str,
    as_json: bool,
    output: Path | None,
) -> int:
    """Show the evidence that the broker at URL gives, its claims, and the TLS parameters.

    \b
    avow inspect mqtts://broker.example:8883
    avow inspect mqtts://broker.example:8883 --policy policy.toml --json

    Without --policy nothing is judged, and exit code 0 means only that hardware vouches for the
    claims. With it: 0 accepted, 3 refused, 4 could not be judged.
    """
    with configuration_errors():
        address = parse_server_address(url)
        require_encrypted(address, "inspection")
        tls = security.tls(address)
        policy = None if attested.policy is None else load_policy(attested.policy)
        folder = attested.endorsements
        witness = Witness(verifiers(None if folder is None else load_endorsements(folder)), policy)
    with operation_errors():
        inspected = inspect_server(address, tls, Attestation(ClientSettings(witness)))
    report = Report(address, security.unsafe_no_verify, inspected, witness)
    click.echo(report.json() if as_json else report.text(), nl=False)
    if output is not None and witness.evidence is not None:
        _write(output, witness.evidence)
    if witness.verified is not None and witness.verified.platform == "simulated":
        click.echo(f"avow: {NOTHING_IS_PROTECTED}", err=True)
    if inspected.failure is not None:
        with judging_errors():
            raise inspected.failure
    return ExitCode.OK


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to be shown."""

    address: Address
    unverified: bool
    inspected: Inspected
    witness: Witness

    def text(self) -> str:
        """For people."""
        return "".join(f"{line}\n" for line in self._lines()) + self._judgement_text()

    def json(self) -> str:
        """For programs. `judged` says whether a policy was asked, `vouched` whether a platform's
        verifier proved the origin of the claims."""
        inspected, witness = self.inspected, self.witness
        content: dict[str, Any] = {
            "url": str(self.address),
            "tls": {
                "version": inspected.tls_version,
                "cipher_suite": inspected.cipher_suite,
                "group": inspected.group,
            },
            "certificate": self._certificate(),
            "evidence": self._evidence(),
            "judged": witness.result is not None,
            "vouched": witness.verified is not None,
        }
        if witness.result is not None:
            content["result"] = json.loads(render_json(witness.result))
        elif witness.verified is not None:
            content["claims"] = json.loads(claims_json(witness.verified))["claims"]
        else:
            content["unproven_claims"] = printable_claims(self._said())
        if inspected.failure is not None:
            content["error"] = _failure(inspected.failure)
        return json.dumps(content, indent=2) + "\n"

    def _lines(self) -> Iterator[str]:
        inspected = self.inspected
        yield f"server       {self.address}"
        yield f"tls          {inspected.tls_version}, {inspected.cipher_suite}, {inspected.group}"
        certificate = self._certificate()
        if certificate is None:
            yield "certificate  none: a pre-shared key"
        else:
            for name in ("subject", "issuer", "names", "not_after", "sha256"):
                value = certificate[name]
                words = ", ".join(value) if isinstance(value, list) else value
                yield f"certificate  {name.replace('_', ' ')} {shown(str(words))}"
            if self.unverified:
                yield "certificate  NOT VERIFIED: anybody could have issued it"
        evidence = self._evidence()
        if evidence is None:
            yield "evidence     none"
        else:
            size = counted(evidence["bytes"], "byte")
            yield f"evidence     {size}, platform {evidence['platform']}"

    def _judgement_text(self) -> str:
        witness = self.witness
        if witness.result is not None:
            return render_text(witness.result)
        if witness.verified is not None:
            return claims_text(witness.verified)
        said = self._said()
        if not said:
            return ""
        lines = [NOBODY_VOUCHES, *(f"  {name:<15}  {shown(said[name])}" for name in sorted(said))]
        return "".join(f"{line}\n" for line in lines)

    def _certificate(self) -> dict[str, Any] | None:
        if self.inspected.certificate is None:
            return None
        certificate = x509.load_der_x509_certificate(self.inspected.certificate)
        return {
            "subject": certificate.subject.rfc4514_string(),
            "issuer": certificate.issuer.rfc4514_string(),
            "names": _names(certificate),
            "not_before": certificate.not_valid_before_utc.isoformat(),
            "not_after": certificate.not_valid_after_utc.isoformat(),
            "sha256": certificate.fingerprint(SHA256()).hex(),
            "verified": not self.unverified,
        }

    def _evidence(self) -> dict[str, Any] | None:
        if self.witness.evidence is None:
            return None
        return {"bytes": len(self.witness.evidence), "platform": self._platform()}

    def _platform(self) -> str:
        try:
            return decode_evidence(self.witness.evidence or b"").platform
        except MalformedError:
            return "unknown"

    def _said(self) -> dict[str, ClaimValue]:
        """avow's own claims in evidence that nobody has vouched for, as far as they can be read."""
        try:
            claims = decode_claims(decode_evidence(self.witness.evidence or b"").claims)
        except MalformedError:
            return {}
        return {
            "platform": self._platform(),
            "role": claims.role.name.lower(),
            "module": claims.workload.module,
            "runtime": claims.workload.runtime,
            "configuration": claims.workload.configuration,
            "boot_id": claims.workload.boot_id,
            "key": claims.key,
        }


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(each.value) for each in extension.value]


def _failure(error: AvowError) -> dict[str, Any]:
    finding = error.finding
    if finding is None:
        return {"message": str(error)}
    return {
        "check": finding.check.number,
        "title": finding.check.title,
        "expected": finding.expected,
        "actual": finding.actual,
        "advice": finding.advice,
    }


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise click.FileError(str(path), error.strerror or "cannot be written") from error
