#!/usr/bin/env bash
# cryptography refuses a certificate whose RDN has its two attributes out of DER's order; OpenSSL reads it.
# X.690, section 11.6: DER sorts the members of a SET OF; 8.12.3 (BER): their order is the sender's choice. RFC 5280,
# section 4.1, asks for DER where the signature is made, so the refusal is right by the letter: the surprise is that
# a peer's certificate which one library takes is none for the other, and its signature is right all the same.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check cryptography==50.0.2
"$folder/venv/bin/python" - <<'PYTHON'
import datetime
import ssl
import sys
from importlib.metadata import version

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
key = ec.generate_private_key(ec.SECP256R1())
attributes = [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "b")]
name = x509.Name([x509.RelativeDistinguishedName(attributes)])
start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
sorted_one = (
    x509.CertificateBuilder(name, name, key.public_key(), 1, start, start.replace(year=2036))
    .add_extension(x509.BasicConstraints(True, None), True)
    .sign(key, hashes.SHA256())
)
# One RDN is SET { SEQUENCE { OID, UTF8String }, … }; both members are ten octets long, so they trade places.
members = name.public_bytes()[4:]
first, second = members[: len(members) // 2], members[len(members) // 2 :]
tbs = sorted_one.tbs_certificate_bytes.replace(first + second, second + first)
assert tbs != sorted_one.tbs_certificate_bytes
signature = b"\x00" + key.sign(tbs, ec.ECDSA(hashes.SHA256()))
body = tbs + ECDSA_WITH_SHA256 + bytes((0x03, len(signature))) + signature
swapped = b"\x30\x82" + len(body).to_bytes(2, "big") + body


def read_by_openssl(der: bytes) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=der)
    return str(context.get_ca_certs()[0]["subject"])


def read_by_cryptography(der: bytes) -> str:
    try:
        return x509.load_der_x509_certificate(der).subject.rfc4514_string()
    except ValueError as error:
        return str(error)


print("cryptography", version("cryptography"), "and", ssl.OPENSSL_VERSION)
print("expected: both read it, or both refuse it")
seen = read_by_cryptography(swapped)
print("OpenSSL:     ", read_by_openssl(swapped))
print("cryptography:", seen)
sys.exit(0 if "InvalidSetOrdering" in seen else 1)
PYTHON
