"""Does Intel vouch for a quote? The chain, the revocation lists, the QE and the TCB level.

The signatures and the matching of levels are dcap-qvl's, against Intel's root, which is inside of
it, or against a root that a test gives. Steps: Intel SGX ECDSA Quote Library Reference for DCAP
(API), section 4, and Intel's documentation of TCB levels in the PCS API, version 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import dcap_qvl  # type: ignore[import-untyped]

from avow.errors import Check, UnavailableError, UntrustedError
from avow.evidence.vocabulary import ClaimValue
from avow.tee.intel.collateral import Collateral

__all__ = ["IntelChecks", "Roots", "Voucher", "dcap_qvl"]

_AGAIN: Final = "ask again; if it stays so, somebody changed the evidence on its way"


@dataclass(frozen=True, slots=True)
class IntelChecks:
    """The platform's own checks, for what is found wrong here."""

    collateral: Check
    current: Check
    vouched: Check
    tcb_level: Check
    production: Check


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
        self, quote: bytes, stapled: Collateral | None, now: datetime
    ) -> Mapping[str, ClaimValue]:
        """The claims `tcb.*` and `collateral.*` of a quote that Intel vouches for.

        The verifier's own collateral goes before what came with the evidence. Raises
        `UnavailableError` without current collateral, else `UntrustedError`.
        """
        collateral = self._choose(self._fmspc(quote), stapled, now)
        now_s = int(now.timestamp())
        verified = self._verified(quote, collateral, now_s)
        try:
            tcb = verified["tcb"]
            qe = verified["qe"]
            qe_date = datetime.fromisoformat(qe["tcb_level"]["tcbDate"].replace("Z", "+00:00"))
            level_date_s = min(int(verified["platform"]["tcb_date_tag"]), int(qe_date.timestamp()))
            evaluation_number = min(int(tcb["eval_data_number"]), int(qe["tcb_eval_data_number"]))
            status, advisories = str(tcb["status"]), tuple(map(str, tcb["advisory_ids"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self._untrusted("a result as dcap-qvl 0.7 gives it", repr(error)) from error
        return {
            "tcb.status": status,
            "tcb.advisories": advisories,
            "tcb.evaluation_number": evaluation_number,
            "tcb.date_age_s": now_s - level_date_s,
            "collateral.age_s": now_s - int(collateral.issued_at.timestamp()),
            "collateral.crl_checked": True,
        }

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
                advice="fetch it and put it into the folder intel of the endorsements",
            )
        first = offered[0]
        said = f"valid from {_iso(first.valid_from)} to {_iso(first.valid_until)}"
        raise UnavailableError.at(
            self._checks.current,
            expected=f"{name} that is valid at {_iso(now)}",
            actual=f"collateral that is out of date: {said}",
            advice="fetch it anew, and see that the clock is right",
        )

    def _verified(self, quote: bytes, collateral: Collateral, now_s: int) -> Any:
        try:
            policy = dcap_qvl.QuotePolicy.claims_only(now_s)
            return json.loads(
                self._contained(
                    lambda: self._verifier.verify_with_policy(
                        quote, collateral.parsed, now_s, policy
                    ).to_json()
                )
            )
        except (ValueError, OverflowError) as error:
            raise self._refused(str(error)) from error

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
        reason = reason.removeprefix("Verification failed: ")
        if reason.startswith(("No matching TCB level", "TCB status is invalid")):
            return UntrustedError.at(
                self._checks.tcb_level,
                expected="a TCB level that Intel lists and has not revoked",
                actual=f"a refusal by dcap-qvl: {reason}",
                advice="update the platform's firmware and microcode",
            )
        if reason.startswith(_NOT_IN_PRODUCTION):
            return UntrustedError.at(
                self._checks.production,
                expected="a platform in production mode that nobody else can look into",
                actual=f"a refusal by dcap-qvl: {reason}",
                advice="start it without debugging and migration",
            )
        return self._untrusted("a quote that Intel vouches for", f"a refusal by dcap-qvl: {reason}")

    def _untrusted(self, expected: str, actual: str) -> UntrustedError:
        return UntrustedError.at(
            self._checks.vouched, expected=expected, actual=actual, advice=_AGAIN
        )


_NOT_IN_PRODUCTION: Final = (
    "Debug mode",
    "SEPT_VE_DISABLE",
    "TD migration",
    "Reserved bits in TD attributes",
    "Invalid MR service TD",
)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
