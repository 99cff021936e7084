"""Gramine's seal keys: 16 bytes that one CPU gives to one enclave, or to one signer's enclaves.

Gramine's documentation, "Manifest syntax", section "Encrypted files", and "Attestation and Secret
Provisioning": EGETKEY with the policy MRENCLAVE or MRSIGNER, as pseudo-files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from avow.errors import UnavailableError, counted
from avow.tee.sgx.attester import ATTESTATION, PseudoFiles

SEAL_KEY_BYTES: Final = 16
_NAMES: Final = {False: "_sgx_mrenclave", True: "_sgx_mrsigner"}


def read_seal_key(
    files: PseudoFiles, *, of_signer: bool = False, root: Path = ATTESTATION
) -> bytes:
    """The enclave's seal key (16 bytes), or its signer's. Raises `UnavailableError`."""
    path = root / "keys" / _NAMES[of_signer]
    try:
        key = files.read(path)
    except OSError as error:
        raise UnavailableError(
            f"expected Gramine's seal key in {path}, got {error.strerror or error}; run in Gramine "
            f"with SGX (gramine-sgx), of a version that has that file"
        ) from error
    if len(key) != SEAL_KEY_BYTES or not any(key):
        raise UnavailableError(
            f"expected a seal key of {SEAL_KEY_BYTES} bytes, not all zero, in {path}, got "
            f"{counted(len(key), 'byte')}{'' if any(key) else ', all zero'}; see Gramine's log"
        )
    return key
