"""A guest that asks for a quote over data of its choosing, and what else could sign for a stranger.

The hardware signs 64 bytes of report data. If anybody could choose them, they could be the binder
of somebody else's connection. So there is one way to make them, from claims, and nothing that asks
a platform for a quote takes anything else.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import avow
from avow.channel.issuer import Issuer
from avow.errors import MalformedError, UntrustedError
from avow.evidence.claims import Claims, Role, Workload, decode_claims
from avow.evidence.envelope import Evidence
from avow.evidence.origin import Expectation, verify_evidence
from avow.evidence.report_data import ReportData, batch, leaf
from avow.tee.simulated.attester import SimulatedAttester
from avow.tee.simulated.verifier import SimulatedVerifier
from tests.adversary.scene import CLIENT_CONTEXT, GENUINE, NOW

SOURCE = Path(avow.__file__).parent
GUEST = Claims(CLIENT_CONTEXT, Role.SERVER, GENUINE, bytes(32), int(NOW.timestamp()))
BINDER = bytes(range(64))

# What the rest of avow takes out of the room of the platforms: attesters as a whole, verifiers, and
# what enrolment needs. Below them are functions that give a device any bytes; none is here.
TAKEN_FROM_TEE = {
    "avow.tee.platforms": {
        *("Endorsements", "Machine", "detect", "load_endorsements", "open_attester", "verifiers"),
    },
    "avow.tee.simulated": {"NOTHING_IS_PROTECTED"},
    "avow.tee.tpm": {"enrolment"},
    # Where keys and anchors come from: none of these signs what a caller says.
    "avow.tee.configfs_tsm": {"KernelFiles"},
    "avow.tee.sgx.seal_key": {"read_seal_key"},
    "avow.tee.snp.derived_key": {"read_derived_key"},
    "avow.tee.tpm.device": {"TpmDevice", "TpmKey"},
    "avow.tee.tpm.event_log": {"PCR"},
    "avow.tee.tpm.nv_counter": {"INDICES", "NvCounter", "counter_authorisation"},
    "avow.tee.tpm.sealing": {"decode_blob", "seal", "unseal"},
    "avow.tee.tpm.attester": {"TpmAttester", "TpmSettings", "load_certificates"},
    "avow.tee.tpm.certificates": {
        *("certificates_in", "in_order", "read_certificate", "read_pem"),
    },
    "avow.tee.tpm.chain": {"Anchors"},
    "avow.tee.tpm.templates": {"EK_ECC", "EK_RSA"},
}


def modules() -> Iterator[ModuleType]:
    """All that is shipped."""
    for found in pkgutil.walk_packages([str(SOURCE)], "avow."):
        if not found.name.startswith("avow.testing") and found.name != "avow.__main__":
            yield importlib.import_module(found.name)


def classes() -> Iterator[type]:
    for module in modules():
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                yield value


def attesters() -> list[type]:
    """Everything that has the two methods of an attester."""
    return [
        each
        for each in classes()
        if callable(getattr(each, "quote", None)) and callable(getattr(each, "measure", None))
    ]


def quoted_types(attester: type) -> dict[str, Any]:
    hints = typing.get_type_hints(attester.quote)  # type: ignore[attr-defined]
    hints.pop("return", None)
    return hints


def test_attesters_take_report_data_and_nothing_else() -> None:
    found = {each.__name__: each for each in attesters()}
    assert {
        "Attester",
        "AzureAttester",
        "CcaAttester",
        "NitroAttester",
        "PsaAttester",
        "SgxAttester",
        "SimulatedAttester",
        "SnpAttester",
        "TdxAttester",
        "TpmAttester",
    } <= set(found)
    # The server's own: it puts whole requests, claims and binder, into its issuer.
    assert set(quoted_types(found.pop("ServerAttestation"))) == {"wanted", "done"}
    for name, attester in found.items():
        assert quoted_types(attester) == {"report_data": ReportData}, name
        parameters = inspect.signature(attester.quote).parameters  # type: ignore[attr-defined]
        assert list(parameters) == ["self", "report_data"], name


def test_the_check_of_signatures_can_fail() -> None:
    class Oracle:
        def measure(self, workload: Workload) -> None: ...

        def quote(self, report_data: bytes) -> bytes:
            return report_data

    assert quoted_types(Oracle) != {"report_data": ReportData}


def test_report_data_is_made_in_one_place() -> None:
    for making in (None, object(), "_MAKING"):
        with pytest.raises(TypeError):
            ReportData(bytes(64), making)
    for path in SOURCE.rglob("*.py"):
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name != "report_data.py" and isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                assert name != "_MAKING", path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert path.name == "report_data.py" or node.func.id != "ReportData", path


def test_bytes_reach_the_hardware_through_attesters_alone() -> None:
    for path in SOURCE.rglob("*.py"):
        if {"tee", "testing"} & set(path.relative_to(SOURCE).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(each.name.startswith("avow.tee") for each in node.names), path
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("avow.tee"):
                taken = {each.name for each in node.names}
                assert taken <= TAKEN_FROM_TEE.get(str(node.module), set()), (path, node.module)


def test_no_function_outside_the_platforms_takes_report_data_as_bytes() -> None:
    found = set()
    for module in modules():
        # A witness and the stores it knows sign with keys of their own, and no hardware.
        if module.__name__.startswith(("avow.tee.", "avow.sealing.witness")):
            continue
        for function in functions_of(module):
            for name, hint in hints_of(function).items():
                if hint is bytes and name in {"report_data", "data_to_sign", "challenge"}:
                    found.add((module.__name__, function.__qualname__))
    assert not found


def functions_of(module: ModuleType) -> Iterator[Any]:
    for value in vars(module).values():
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            yield value
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            yield from (each for each in vars(value).values() if inspect.isfunction(each))


def hints_of(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:
        # A type that is imported for the type checker alone; it is not bytes.
        return {}


@pytest.mark.parametrize("given_", [BINDER, bytearray(64), "x" * 64, None])
def test_an_attester_signs_no_bytes(given_: Any) -> None:
    with pytest.raises((AttributeError, TypeError)):
        SimulatedAttester().quote(given_)


@given(st.binary(max_size=1024))
def test_a_guests_data_lands_in_its_own_claim(said: bytes) -> None:
    """Whatever it says: the other claims stay what they are, and the report data is a hash."""
    claims = dataclasses.replace(GUEST, user_data=said)
    read = decode_claims(claims.encoded())
    assert read.user_data == said
    assert dataclasses.replace(read, user_data=b"") == GUEST
    report_data, _ = batch([(claims, BINDER)])
    assert report_data.content == leaf(claims.encoded(), BINDER)
    assert report_data.content != said[:64].ljust(64, b"\0")


def test_a_guest_cannot_say_another_guests_claims() -> None:
    """User data that holds the whole encoding of other claims is still user data."""
    other = dataclasses.replace(GUEST, workload=Workload(*[b"\xee" * 32] * 4))
    claims = dataclasses.replace(GUEST, user_data=other.encoded())
    report_data, (path,) = batch([(claims, BINDER)])
    report = SimulatedAttester().quote(report_data)
    expectation = Expectation(CLIENT_CONTEXT, Role.SERVER, bytes(32), BINDER)
    verifiers = {"simulated": SimulatedVerifier()}
    genuine = Evidence("simulated", report, claims.encoded(), path).encoded()
    verified = verify_evidence(genuine, expectation, verifiers, NOW)
    assert verified.claims["module"] == GUEST.workload.module
    assert verified.claims["user_data"] == other.encoded()
    swapped = Evidence("simulated", report, other.encoded(), path).encoded()
    with pytest.raises(UntrustedError, match="E7"):
        verify_evidence(swapped, expectation, verifiers, NOW)


def test_more_than_its_place_is_refused() -> None:
    too_much = dataclasses.replace(GUEST, user_data=bytes(1025))
    with pytest.raises(MalformedError, match="1024"):
        too_much.encoded()


def test_the_issuer_takes_claims_and_a_binder() -> None:
    hints = typing.get_type_hints(Issuer.request)
    assert hints["claims"] is Claims
    assert set(hints) == {"claims", "binder", "done", "return"}


@given(st.binary(min_size=64, max_size=64), st.binary(max_size=100))
def test_a_binder_of_ones_choosing_chooses_no_report_data(binder: bytes, said: bytes) -> None:
    """The one who asks may choose the binder; it is hashed with claims that name the workload."""
    claims = dataclasses.replace(GUEST, user_data=said)
    report_data, _ = batch([(claims, binder)])
    assert report_data.content != binder
