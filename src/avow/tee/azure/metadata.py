"""Azure's instance metadata service, as far as confidential VMs need it.

Azure documents "THIM" (Trusted Hardware Identity Management) for AMD's certificates, and the
exchange of a TDREPORT for a quote: GET /metadata/THIM/amd/certification and POST /acc/tdquote.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import urllib.request
from typing import Any, Final

from avow.errors import UnavailableError
from avow.tee.azure.hcl import decode_base64url

ADDRESS: Final = "http://169.254.169.254"

_CERTIFICATES: Final = "/metadata/THIM/amd/certification"
_TD_QUOTE: Final = "/acc/tdquote"
_ANSWER_BYTES_MAX: Final = 64 * 1024
_TIMEOUT_S: Final = 5.0
_PEM: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----"
)


class MetadataService:
    """Speaks to the service at `address`, which is not on the network but in the host."""

    def __init__(self, address: str = ADDRESS, timeout_s: float = _TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s

    def amd_certificates(self) -> tuple[bytes, ...]:
        """VCEK, ASK and ARK in DER. Raises `UnavailableError`."""
        answer = self._ask(_CERTIFICATES, None)
        texts = (answer.get("vcekCert"), answer.get("certificateChain"))
        if not all(isinstance(text, str) for text in texts):
            raise self._unavailable(_CERTIFICATES, "no certificates")
        try:
            # Not by an X.509 parser: a VCEK has the serial number zero, which some refuse.
            return tuple(
                base64.b64decode("".join(match.split()), validate=True)
                for text in texts
                for match in _PEM.findall(text or "")
            )
        except binascii.Error as error:
            raise self._unavailable(_CERTIFICATES, "no PEM") from error

    def td_quote(self, td_report: bytes) -> bytes:
        """The quote for a TDREPORT (1,024 bytes), maybe with zeros after it. Raises
        `UnavailableError`."""
        text = base64.urlsafe_b64encode(td_report).rstrip(b"=").decode()
        quote = self._ask(_TD_QUOTE, {"report": text}).get("quote")
        try:
            return decode_base64url(quote if isinstance(quote, str) else "?")
        except ValueError as error:
            raise self._unavailable(_TD_QUOTE, "no quote") from error

    def _ask(self, path: str, body: dict[str, str] | None) -> dict[str, Any]:
        # The address is the host's: no proxy has anything to do with it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(
            self._address + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Metadata": "true", "Content-Type": "application/json"},
        )
        try:
            with opener.open(request, timeout=self._timeout_s) as response:
                content = response.read(_ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(path, str(error)) from error
        try:
            answer = json.loads(content) if len(content) <= _ANSWER_BYTES_MAX else None
        except (ValueError, RecursionError) as error:
            raise self._unavailable(path, "no JSON") from error
        if not isinstance(answer, dict):
            raise self._unavailable(path, "no JSON object")
        return answer

    def _unavailable(self, path: str, actual: str) -> UnavailableError:
        return UnavailableError(
            f"expected an answer from Azure's metadata service at {self._address}{path}, got: "
            f"{actual}; run in a confidential VM of Azure, where nothing blocks this address"
        )
