"""The user name that a verified client certificate stands for."""

from __future__ import annotations

from typing import Literal

from cryptography import x509

from avow.errors import DeniedError

IdentitySource = Literal["cn", "san", "none"]

# An MQTT string holds at most 65,535 bytes [MQTT-1.5.4-1]; a user name is one.
_IDENTITY_BYTES_MAX = 65_535


def identity_of(certificate: x509.Certificate, source: IdentitySource) -> str | None:
    """The name in `certificate`, exactly as written there; None when the source is "none".

    The certificate must have been verified already. Raises `DeniedError` when there is not exactly
    one name: to choose among several would let the order inside a certificate decide who somebody
    is.
    """
    if source == "none":
        return None
    try:
        names = _common_names(certificate) if source == "cn" else _alternative_names(certificate)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise DeniedError(
            "expected well-formed names in the client certificate, got damaged ones; issue it again"
        ) from error
    if len(names) != 1:
        raise DeniedError(
            f"expected exactly one {source.upper()} in the client certificate, got {len(names)}; "
            f"issue one with a single name"
        )
    name = names[0]
    # A NUL or a control character has been used to make two programs read two different names.
    if not name or not name.isprintable() or len(name.encode()) > _IDENTITY_BYTES_MAX:
        raise DeniedError(
            f"expected a printable {source.upper()} in the client certificate, got "
            f"{name[:40]!r}; issue one with a plain name"
        )
    return name


def _common_names(certificate: x509.Certificate) -> list[str]:
    attributes = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return [_text(attribute.value) for attribute in attributes]


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    kinds = (x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier)
    return [name.value for name in extension.value if isinstance(name, kinds)]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", errors="replace")
