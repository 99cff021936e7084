"""What the vault's AES-256-GCM alone reaches on blocks of a sealed store."""

from __future__ import annotations

import ctypes
import time

from avow.artefacts import vault_path

_MIB = 1 << 20


def cipher_mb_s(mib: int) -> float:
    """Megabytes a second: so many MiB sealed in one call, so that the call costs nothing."""
    library = ctypes.CDLL(str(vault_path()))
    seal = library.avow_vault_xaes_seal
    seal.restype = None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    seal.argtypes = [pointer, pointer, pointer, size, pointer, size, pointer]
    plain = ctypes.create_string_buffer(_MIB)
    sealed = ctypes.create_string_buffer(_MIB + 16)
    key, nonce = bytes(32), bytes(24)
    start_s = time.perf_counter()
    for _ in range(mib):
        seal(key, nonce, plain, _MIB, b"", 0, sealed)
    return mib * _MIB / 1e6 / (time.perf_counter() - start_s)
