"""What of the sources of a store's keys, and of its anchor, a configuration is measured by.

Not where bytes lie: that says nothing about what is done with them. But who else can open the
store, and who says how new it is.
"""

from __future__ import annotations

import re
from typing import Final

_TPM: Final = "tpm"
_SIGNER: Final = "gramine:mrsigner"


def measured_key(source: str) -> str:
    """Of the source of a key: its kind, the PCRs that it names, and whether the enclave's signer
    has the key or the enclave itself. `file` says that whoever has the file has the key."""
    kind, _, rest = source.partition(":")
    if source == _SIGNER:
        return source
    pcrs = re.findall("[0-9]+", rest.partition("#")[0].partition("@")[2])
    if kind != _TPM or not pcrs:
        return kind
    return f"{kind}@{','.join(sorted(set(pcrs), key=int))}"


def measured_anchor(anchor: str) -> str:
    """Of an anchor: its kind, and behind a `#` whose answers are believed."""
    kind, _, rest = anchor.partition(":")
    answers = rest.partition("#")[2]
    return f"{kind}#{answers}" if answers else kind
