"""Does Intel vouch for a quote? The chain, the revocation lists, the QE and the TCB level.

The signatures and the matching of levels are dcap-qvl's, against Intel's root, which is inside of
it, or against a root that a test gives. What it wants of attributes beyond that is left to the
policy: `avow.tee.intel.levels`. Steps: Intel SGX ECDSA Quote Library Reference for DCAP
(API), section 4, and Intel's documentation of TCB levels in the PCS API, version 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import dcap_qvl  # type: ignore[import-untyped]
from cryptography import x509

from avow.errors import Check, UnavailableError, UntrustedError
from avow.evidence.validity import advice_at
from avow.evidence.vocabulary import ClaimValue
from avow.tee.intel.collateral import ISSUER_CHAINS, Collateral
from avow.tee.intel.levels import (
    REVOKED,
    Level,
    Platform,
    TdxModule,
    UnlistedError,
    find_level,
)
from avow.tee.intel.quote import Quote

__all__ = ["IntelChecks", "Roots", "Voucher", "dcap_qvl"]

_AGAIN: Final = "ask again; if this persists, somebody changes the evidence on its way"


@dataclass(frozen=True, slots=True)
class IntelChecks:
    """The platform's own checks, for what is found wrong here."""

    collateral: Check
    current: Check
    vouched: Check
    tcb_level: Check


@dataclass(frozen=True, slots=True)
class Roots:
    """Whom to believe: the verifier's own collateral, and the root: None for Intel's."""

    collaterals: Iterable[Collateral] = ()
    root_der: bytes | None = None


class Voucher:
    """Verifies the quotes of one TEE ("SGX" or "TDX")."""

    def __init__(self, tee: str, roots: Roots, checks: IntelChecks) -> None:
        self._tee = tee
        self._checks = checks
        self._verifier = dcap_qvl.QuoteVerifier(roots.root_der)
        self._own: dict[bytes, Collateral] = {}
        for collateral in roots.collaterals:
            known = self._own.get(collateral.fmspc)
            newer = known is None or known.issued_at < collateral.issued_at
            if collateral.tee == tee and newer:
                self._own[collateral.fmspc] = collateral

    def vouch(
        self, quote: Quote, module: TdxModule | None, stapled: Collateral | None, now: datetime
    ) -> Mapping[str, ClaimValue]:
        """The claims `tcb.*` and `collateral.*` of a quote that Intel vouches for.

        `module` is what a TD report says of the TDX module, None for SGX. What the quote says of
        debugging, migration and the like is not judged here, but by a policy. The verifier's own
        collateral goes before what came with the evidence. Raises `UnavailableError` without
        current collateral, else `UntrustedError`.
        """
        collateral = self._choose(self._fmspc(quote.content), stapled, now)
        self._check_validity(quote, collateral, now)
        now_s = int(now.timestamp())
        try:
            level, evaluation_number = self._level(quote, module, collateral, now_s)
        except (KeyError, TypeError, ValueError) as error:
            raise self._untrusted("a result as dcap-qvl 0.7 gives it", repr(error)) from error
        return {
            "tcb.status": level.status,
            "tcb.advisories": level.advisories,
            "tcb.evaluation_number": evaluation_number,
            "tcb.date_age_s": now_s - int(level.date.timestamp()),
            "collateral.age_s": now_s - int(collateral.issued_at.timestamp()),
            "collateral.crl_checked": True,
        }

    def _level(
        self, quote: Quote, module: TdxModule | None, collateral: Collateral, now_s: int
    ) -> tuple[Level, int]:
        """The level, and the number of the evaluation that it is from."""
        policy = dcap_qvl.QuotePolicy.claims_only(now_s)
        try:
            verified = json.loads(
                self._contained(
                    lambda: self._verifier.verify_with_policy(
                        quote.content, collateral.parsed, now_s, policy
                    ).to_json()
                )
            )
        except (ValueError, OverflowError) as error:
            reason = str(error).removeprefix(_PREFIX)
            if is_last_step(reason):
                return self._own_level(quote, module, collateral)
            if reason.startswith(_NO_MODULE):
                # The same refusal, in words that tell an old module from an unknown one.
                self._own_level(quote, module, collateral)
            raise self._refused(reason) from error
        tcb, qe = verified["tcb"], verified["qe"]
        level = Level(
            str(tcb["status"]),
            tuple(map(str, tcb["advisory_ids"])),
            min(
                datetime.fromtimestamp(int(verified["platform"]["tcb_date_tag"]), UTC),
                datetime.fromisoformat(qe["tcb_level"]["tcbDate"].replace("Z", "+00:00")),
            ),
        )
        return level, min(int(tcb["eval_data_number"]), int(qe["tcb_eval_data_number"]))

    def _own_level(
        self, quote: Quote, module: TdxModule | None, collateral: Collateral
    ) -> tuple[Level, int]:
        """The level of a quote that dcap-qvl found genuine and refused for its attributes."""
        extension = dcap_qvl.parse_quote(quote.content).pck_extension()
        if extension is None:
            raise self._untrusted("a PCK certificate with Intel's extensions", "another")
        platform = Platform(bytes(extension.cpu_svn), int(extension.pce_svn), quote.qe_isv_svn)
        tcb_info = json.loads(collateral.texts["tcb_info"])
        qe_identity = json.loads(collateral.texts["qe_identity"])
        try:
            level = find_level(tcb_info, qe_identity, platform, module)
            if level.status == REVOKED:
                raise UnlistedError("the TCB status Revoked")
        except UnlistedError as error:
            raise self._unlisted(error) from error
        return level, min(
            int(tcb_info["tcbEvaluationDataNumber"]), int(qe_identity["tcbEvaluationDataNumber"])
        )

    def _check_validity(self, quote: Quote, collateral: Collateral, now: datetime) -> None:
        """Says which certificate is out of its time, so that nobody looks for an attacker when a
        clock is wrong. Only refuses: what counts is what dcap-qvl verifies afterwards."""
        texts = collateral.texts
        chains = [quote.chain] + [texts[name].encode() for name in ISSUER_CHAINS]
        for chain in chains:
            for certificate in self._certificates(chain):
                begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
                if begin <= now <= end:
                    continue
                raise UntrustedError.at(
                    self._checks.vouched,
                    expected=f"Intel's certificates to be valid at {_iso(now)}",
                    actual=f"one of {certificate.subject.rfc4514_string()} that is valid from "
                    f"{_iso(begin)} to {_iso(end)}",
                    advice=(
                        "set this machine's clock; if it is right, have the platform provisioned "
                        "again, and fetch the collateral again"
                    ),
                )

    def _certificates(self, chain: bytes) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(chain.rstrip(b"\0"))
        except (ValueError, x509.InvalidVersion) as error:
            raise self._untrusted("Intel's certificates as PEM", "something else") from error

    def _fmspc(self, quote: bytes) -> bytes:
        try:
            return bytes.fromhex(self._contained(lambda: dcap_qvl.parse_quote(quote).fmspc()))
        except ValueError as error:
            raise self._untrusted("a PCK certificate with Intel's extensions", "another") from error

    def _choose(self, fmspc: bytes, stapled: Collateral | None, now: datetime) -> Collateral:
        own = self._own.get(fmspc)
        offered = [each for each in (own, stapled) if each is not None]
        for collateral in offered:
            if collateral.is_current(now):
                return collateral
        name = f"Intel's {self._tee} collateral for FMSPC {fmspc.hex().upper()}"
        if not offered:
            raise UnavailableError.at(
                self._checks.collateral,
                expected=name,
                actual="none, neither in the endorsements nor with the evidence",
                advice="fetch it, and put it into the folder intel of the endorsements",
            )
        first = offered[0]
        state = "out of date" if now >= first.valid_from else "not valid yet"
        said = f"valid from {_iso(first.valid_from)} to {_iso(first.valid_until)}"
        raise UnavailableError.at(
            self._checks.current,
            expected=f"{name} that is valid at {_iso(now)}",
            actual=f"collateral that is {state}: {said}",
            advice=advice_at(now, first.valid_from, "fetch it again"),
        )

    def _contained(self, call: Any) -> str:
        """What `call` returns. A panic in Rust would come out as a `BaseException` that no caller
        expects; nothing is shared with the next call, so it is a refusal like any other."""
        try:
            return str(call())
        except BaseException as error:
            if type(error).__module__ == "pyo3_runtime":
                raise self._untrusted("a quote that dcap-qvl can judge", "a panic in it") from error
            raise

    def _refused(self, reason: str) -> UntrustedError:
        """dcap-qvl says in words what was wrong; the words only choose the check that is named."""
        if reason.startswith(("No matching TCB level", "TCB status is invalid", _NO_MODULE)):
            return self._unlisted(UnlistedError(f"a refusal by dcap-qvl: {reason}"))
        return self._untrusted("a quote that Intel vouches for", f"a refusal by dcap-qvl: {reason}")

    def _unlisted(self, error: UnlistedError) -> UntrustedError:
        return UntrustedError.at(
            self._checks.tcb_level,
            expected="a TCB level that Intel lists and has not revoked",
            actual=error.reason,
            advice=error.advice,
        )

    def _untrusted(self, expected: str, actual: str) -> UntrustedError:
        return UntrustedError.at(
            self._checks.vouched, expected=expected, actual=actual, advice=_AGAIN
        )


def is_last_step(reason: str) -> bool:
    """True for a refusal by which dcap-qvl says that all else is good.

    dcap-qvl looks at attributes after every signature, chain, revocation and level. That order is
    nobody's promise, so it counts for the one release only for which tests/adversary has tried it:
    an earlier fault is always told first.
    """
    return dcap_qvl.__version__ == _ORDER_TRIED and reason in _LAST_STEP


_ORDER_TRIED: Final = "0.7.0"
_PREFIX: Final = "Verification failed: "
_NO_MODULE: Final = "TDX module TCB level check"
_LAST_STEP: Final = (
    "Debug mode is enabled",
    "TD profiling is enabled",
    "SEPT_VE_DISABLE is not enabled",
    "TD migration is enabled",
    "SERVTD_EXT is enabled",
    "Reserved bits in TD attributes are set",
    "Invalid MR service TD",
)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
