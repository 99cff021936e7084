"""Puts together what a client needs to attest and to be attested.

The one file outside cli that knows every room it does (docs/decisions/0009): verifiers of all
platforms, the policy, an attester and what it measures. It decides nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from avow.channel.attestation import OneAtATime, try_platform
from avow.channel.attested_identity import make_identity
from avow.channel.exchange import ClientSettings
from avow.channel.issuer import Issuer
from avow.channel.judge import Judge
from avow.client.attested_socket import Attestation
from avow.evidence.claims import Workload
from avow.policy.policy import Policy
from avow.policy.policy_file import load_policy
from avow.runtime.manifest import runtime_manifest
from avow.tee.platforms import load_endorsements, open_attester, verifiers


@dataclass(frozen=True, slots=True)
class AttestationFiles:
    """What a user names: the policy for servers, and what there is besides.

    `tee` is the platform that this program runs on and is attested by ("auto": the first that is
    found), None to show nothing. `endorsements` is a folder of what vendors and owners say about
    their hardware.
    """

    policy: Path
    tee: str | None = None
    endorsements: Path | None = None


def attestation_of(files: AttestationFiles) -> Attestation:
    """Ready to be used: an issuer's threads run, if there is one.

    Raises `MalformedError` or `UnavailableError` for files and platforms that will not do.
    """
    policy = load_policy(files.policy)
    judge = judge_of(policy, files.endorsements)
    if files.tee is None:
        return Attestation(ClientSettings(judge))
    workload = _own_workload(policy)
    attester = OneAtATime(open_attester(files.tee))
    now = datetime.now(UTC)
    attester.measure(workload)
    try_platform(attester, workload, now)
    identity = make_identity(attester.platform, workload, now)
    issuer = Issuer(attester)
    issuer.start()
    return Attestation(ClientSettings(judge, identity), issuer, attester)


def attestation_again(before: Attestation, files: AttestationFiles) -> Attestation:
    """`before` with what the files say now: the policy, the endorsements, and this program's own
    evidence for that policy, with the key and the platform that it has.

    Raises as `attestation_of`; then `before` is as it was.
    """
    policy = load_policy(files.policy)
    judge = judge_of(policy, files.endorsements)
    identity = before.settings.identity
    if identity is None or before.attester is None:
        return Attestation(ClientSettings(judge))
    # What runs is what was measured when it started, whatever its files are by now.
    workload = replace(identity.workload, configuration=_configuration(policy))
    before.attester.measure(workload)
    settings = ClientSettings(judge, identity.with_workload(workload))
    return Attestation(settings, before.issuer, before.attester)


def judge_of(policy: Policy | None, endorsements: Path | None) -> Judge:
    """Verifiers of all platforms, and a policy; without one evidence is verified, not judged."""
    return Judge(
        verifiers(None if endorsements is None else load_endorsements(endorsements)), policy
    )


def _own_workload(policy: Policy) -> Workload:
    """What this program says that it is.

    A client is a native program, and nothing here measures the rest of it: its module is the
    runtime that it is made of. Its configuration is its policy, which decides whom it gives its
    messages to.
    """
    runtime = runtime_manifest().digest
    return Workload(
        module=runtime,
        runtime=runtime,
        configuration=_configuration(policy),
        boot_id=os.urandom(32),
    )


def _configuration(policy: Policy) -> bytes:
    """The digest (32 bytes) of a client's configuration."""
    return bytes.fromhex(policy.policy_id.removeprefix("sha256:"))
