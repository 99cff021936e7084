"""A module that passes a caller's arguments on to `avow_evidence` and `avow_verify`.

So a test can be any program, honest or not: it writes the module's memory and chooses every number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from wasmtime import Func, Linker, Memory, Module, Store, wat2wasm

from avow.channel.attestation import ServerAttestation
from avow.cli.program_attestation import evidence_import, verify_import
from avow.evidence.roles import Attester
from avow.sandbox.engine_settings import engine_for, program_settings
from avow.sandbox.extra_imports import ExtraImport
from avow.sandbox.limits import Limits
from avow.tee.simulated.verifier import SimulatedVerifier

TEXT: Final = """
(module
  (import "avow_evidence" "attest"
    (func $attest (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "avow_verify" "verify"
    (func $verify (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 8 8)
  (func (export "attest") (param i32 i32 i32 i32 i32 i32) (result i32)
    (call $attest (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)
      (local.get 5)))
  (func (export "verify") (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (call $verify (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)
      (local.get 5) (local.get 6) (local.get 7))))
"""

MEMORY_BYTES: Final = 8 * 65536
# Where an honest guest keeps its things.
NONCE_AT: Final = 0
USER_DATA_AT: Final = 64
LENGTH_AT: Final = 4096
EVIDENCE_AT: Final = 8192
POLICY_AT: Final = 131072
OUT_AT: Final = 262144
OUT_BYTES: Final = 65536

RUNTIME: Final = b"\x22" * 32
CONFIGURATION: Final = b"\x33" * 32
KNOWN: Final = {"simulated": SimulatedVerifier()}


def module_bytes() -> bytes:
    """The module."""
    return bytes(wat2wasm(TEXT))


MODULE: Final = hashlib.sha256(module_bytes()).digest()


def policy_for(role: str = "program") -> str:
    """A policy that accepts the guest, in this role."""
    return f"""
version = 1
name = "the guest"
unsafe_simulated = true
platform = "simulated"
role = "{role}"
module = "{MODULE.hex()}"
runtime = "{RUNTIME.hex()}"
configuration = "{CONFIGURATION.hex()}"
evidence_age_s = {{ min = -60, max = 60 }}
"""


@contextmanager
def attesting(attester: Attester) -> Iterator[ServerAttestation]:
    """Evidence of the guest, by an attester."""
    attestation = ServerAttestation(
        attester,
        module=MODULE,
        runtime=RUNTIME,
        quotes_per_s=1000.0,
        waiting_max=16,
        quote_timeout_s=8.0,
    )
    attestation.measure(CONFIGURATION, datetime.now(UTC))
    attestation.start()
    try:
        yield attestation
    finally:
        attestation.stop()


def guest_of(
    attestation: ServerAttestation, say: Callable[[str], None] = lambda sentence: None
) -> Guest:
    """The guest with the functions that `avow run --attest` gives."""

    def now() -> datetime:
        return datetime.now(UTC)

    return Guest(
        [evidence_import(attestation, say=say, clock=now), verify_import(KNOWN, clock=now)]
    )


class Guest:
    """An instance of the module with these functions."""

    def __init__(self, imports: Sequence[ExtraImport]) -> None:
        engine = engine_for(program_settings(Limits(), component=False))
        self._store = Store(engine)
        linker = Linker(engine)
        for each in imports:
            each.define(linker)
        self._instance = linker.instantiate(self._store, Module(engine, module_bytes()))
        memory = self._instance.exports(self._store)["memory"]
        assert isinstance(memory, Memory)
        self._memory = memory

    def write(self, address: int, content: bytes) -> None:
        """Into its memory."""
        self._memory.write(self._store, content, address)

    def read(self, address: int, length: int) -> bytes:
        """Out of its memory."""
        return bytes(self._memory.read(self._store, address, address + length))

    def call(self, name: str, *arguments: int) -> int:
        """A function as it is, with any numbers (signed, as WebAssembly has them outside)."""
        function = self._instance.exports(self._store)[name]
        assert isinstance(function, Func)
        result = function(self._store, *arguments)
        assert isinstance(result, int)
        return result

    def attest(self, nonce: bytes, user_data: bytes = b"") -> tuple[int, bytes]:
        """The errno, and what was written."""
        self.write(NONCE_AT, nonce)
        self.write(USER_DATA_AT, user_data)
        code = self.call(
            "attest", USER_DATA_AT, len(user_data), NONCE_AT, OUT_AT, OUT_BYTES, LENGTH_AT
        )
        return code, self._written()

    def verify(self, evidence: bytes, nonce: bytes, policy: bytes) -> tuple[int, bytes]:
        """The errno, and what was written."""
        self.write(NONCE_AT, nonce)
        self.write(EVIDENCE_AT, evidence)
        self.write(POLICY_AT, policy)
        code = self.call(
            "verify",
            *(EVIDENCE_AT, len(evidence), NONCE_AT, POLICY_AT, len(policy)),
            *(OUT_AT, OUT_BYTES, LENGTH_AT),
        )
        return code, self._written()

    def _written(self) -> bytes:
        return self.read(OUT_AT, int.from_bytes(self.read(LENGTH_AT, 4), "little"))
