"""A quote that a keylime agent's TPM made, in the files that tpm2-tools writes.

`quote.out` is TPMS_ATTEST, `quotesig.out` TPMT_SIGNATURE, `quotepcr.out` TPML_PCR_SELECTION and the
values as C structures of tpm2-tss, little-endian: a count, 16 selections of 8 bytes (hash, size,
bits), a count of lists, and lists of a count and 8 digests (size and 64 bytes).
"""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from avow.errors import MalformedError, UntrustedError
from avow.tee.tpm.quote import SignedQuote, check_quote
from avow.tee.tpm.structures import ALG_RSASSA, ALG_SHA256, parse_quote, parse_signature
from tests.vectors.evidence_files import flips, vector

pytestmark = pytest.mark.vectors


def pcrs() -> dict[int, bytes]:
    content = vector("tpm/quotepcr.out")
    (count,) = struct.unpack_from("<I", content)
    assert count == 1
    bank, size, bits = struct.unpack_from("<HB3s", content, 4)
    assert (bank, size) == (ALG_SHA256, 3)
    selected = int.from_bytes(bits, "little")
    numbers = [number for number in range(24) if selected >> number & 1]
    lists = struct.unpack_from("<I", content, 4 + 16 * 8)
    assert lists == (1,)
    start = 4 + 16 * 8 + 4
    (digests,) = struct.unpack_from("<I", content, start)
    assert digests == len(numbers)
    values = {}
    for index, number in enumerate(numbers):
        length, digest = struct.unpack_from("<H64s", content, start + 4 + index * 66)
        values[number] = digest[:length]
    return values


def key() -> rsa.RSAPublicKey:
    loaded = load_pem_public_key(vector("tpm/akpub.pem"))
    assert isinstance(loaded, rsa.RSAPublicKey)
    return loaded


def signed() -> SignedQuote:
    return SignedQuote(vector("tpm/quote.out"), vector("tpm/quotesig.out"), pcrs(), ())


def test_the_quote_is_read_to_the_last_byte() -> None:
    quote = parse_quote(vector("tpm/quote.out"))
    assert quote.pcrs == (15, 16, 22)
    assert quote.extra_data.hex() == "db1db298db6d60e6385b7231743e9c3056a18003"
    assert quote.firmware_version == 0x2016051100162800
    assert quote.clock_safe is True
    signature = parse_signature(vector("tpm/quotesig.out"))
    assert (signature.algorithm, signature.hash_algorithm) == (ALG_RSASSA, ALG_SHA256)


def test_the_signature_and_the_registers_are_good() -> None:
    """Only the size of what it was made over is not avow's."""
    with pytest.raises(UntrustedError, match=r"TPM6.*20 bytes"):
        check_quote(signed(), key())


@pytest.mark.parametrize("part", ["quote", "signature"])
def test_no_flipped_bit_is_accepted(part: str) -> None:
    good = signed()
    for flipped in flips(getattr(good, part)):
        quote = flipped if part == "quote" else good.quote
        signature = flipped if part == "signature" else good.signature
        altered = SignedQuote(quote, signature, good.pcrs, ())
        with pytest.raises((UntrustedError, MalformedError)) as caught:
            check_quote(altered, key())
        assert "TPM6" not in str(caught.value)


def test_other_registers_are_refused() -> None:
    good = signed()
    other = {**good.pcrs, 16: b"\1" * 32}
    with pytest.raises(UntrustedError) as caught:
        check_quote(SignedQuote(good.quote, good.signature, other, ()), key())
    assert caught.value.finding is not None
    assert caught.value.finding.check.number == "TPM7"
