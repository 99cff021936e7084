"""The attesting side of TPM 2.0."""

from __future__ import annotations

import hmac
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from avow.errors import MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.tpm import event_log, templates
from avow.tee.tpm.credential import Credential
from avow.tee.tpm.device import TpmDevice, TpmKey
from avow.tee.tpm.quote import PCR_VALUES, SignedQuote, check_quote
from avow.tee.tpm.report import Report
from avow.tee.tpm.structures import Public, parse_public
from avow.tee.tpm.templates import EndorsementKey
from avow.tee.tpm.verifier import check_attributes

DEFAULT_TCTI: Final = "device:/dev/tpmrm0"
# What may come before the colon. libtss2 takes the file of a library there as well, whose code then
# runs in this process before anybody can compare it with what was measured; so it does by `pcap:`.
# `cmd:` starts a program, but that is a process of its own, as the other end of a socket is.
TRANSPORTS: Final = ("device", "swtpm", "mssim", "cmd")
# All that firmware, boot loader and systemd measure into (0 to 9, 11 to 15), and avow's own. PCR 10
# changes with every file that the kernel's IMA measures.
DEFAULT_PCRS: Final = (*range(10), *range(11, 16), event_log.PCR)

# PCRs can change between reading and quoting them.
ATTEMPTS: Final = 32
_WAIT_S: Final = 0.01
_WAIT_MAX_S: Final = 0.2
_DEADLINE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class TpmSettings:
    """Where the TPM is, and what attests.

    `tcti` as in tpm2-tools. `ak_handle` is that of a persistent attestation key; without it avow
    makes one, the same each time, of the kind `ak_kind`. `certificates` is a PEM file: the AK's
    certificate by an enrolment authority, and those between it and the root. `pcrs` are quoted.
    """

    tcti: str = DEFAULT_TCTI
    ak_handle: int | None = None
    ak_kind: Literal["ecc", "rsa"] = "ecc"
    certificates: Path | None = None
    pcrs: tuple[int, ...] = DEFAULT_PCRS
    timeout_s: float = _DEADLINE_S

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> TpmSettings:
        """From AVOW_TPM_TCTI, AVOW_TPM_AK_HANDLE (hexadecimal) and AVOW_TPM_CERTIFICATES.

        Raises `MalformedError`.
        """
        tcti = environment.get("AVOW_TPM_TCTI") or DEFAULT_TCTI
        if tcti.partition(":")[0] not in TRANSPORTS:
            raise MalformedError(
                f"expected {', '.join(TRANSPORTS[:-1])} or {TRANSPORTS[-1]}, maybe with a colon "
                f"and where it is, in AVOW_TPM_TCTI, got {tcti!r}; {DEFAULT_TCTI} is Linux's own "
                f"way to the TPM"
            )
        handle = environment.get("AVOW_TPM_AK_HANDLE", "")
        certificates = environment.get("AVOW_TPM_CERTIFICATES", "")
        try:
            ak_handle = int(handle, 16) if handle else None
        except ValueError as error:
            raise MalformedError(
                f"expected a handle such as 0x81010002 in AVOW_TPM_AK_HANDLE, got {handle!r}; "
                f"`tpm2_getcap handles-persistent` lists them"
            ) from error
        return cls(
            tcti=tcti,
            ak_handle=ak_handle,
            certificates=Path(certificates) if certificates else None,
        )


class Measuring:
    """PCR 23 of one TPM, and the log of what this program extended into it."""

    def __init__(self, device: TpmDevice) -> None:
        self._device = device
        self._generation = device.generation
        self.log: event_log.Log = ()

    def measure(self, workload: Workload) -> None:
        """A reset and three events at the start; one event for another configuration later.

        Tries once more when the TPM failed or was restarted. When it fails again, the log stays as
        it was, and the next quote measures it again.
        """
        self._device.retried(lambda: self._measure(event_log.start(workload)))

    def _measure(self, wanted: event_log.Log) -> None:
        known = event_log.measured(self.log)
        changed = tuple(event for event in wanted if known.get(event.name) != event.digest)
        if not changed:
            return
        only_again = {event.name for event in changed} == {event_log.AGAIN}
        if only_again and self.log and len(self.log) < event_log.EVENTS_MAX:
            with self._device.undisturbed():
                self.again_if_reopened()
                self._extend(changed)
            self.log = (*self.log, *changed)
            return
        self._measure_anew(wanted)
        self.log = wanted

    def holds(self, pcrs: Mapping[int, bytes]) -> bool:
        """True when PCR 23 in `pcrs` is what the log says, or nothing was measured."""
        return not self.log or hmac.compare_digest(pcrs[event_log.PCR], event_log.replay(self.log))

    def again(self) -> None:
        """Measures all of the log once more, after another program used the register."""
        self._measure_anew(self.log)

    def again_if_reopened(self) -> None:
        """Measures all of the log once more if the TPM was opened anew since: nobody knows what
        happened to its registers meanwhile, whatever they hold."""
        if self.log and self._device.generation != self._generation:
            self.again()

    def _measure_anew(self, events: event_log.Log) -> None:
        with self._device.undisturbed():
            self._device.reset_pcr(event_log.PCR)
            self._extend(events)
            self._generation = self._device.generation

    def _extend(self, events: Iterable[event_log.Event]) -> None:
        for event in events:
            self._device.extend_pcr(event_log.PCR, event.extended)


def give_way(attempt: int) -> None:
    """Waits for a random while, longer after more attempts: another program uses PCR 23 too, and
    two that try again at once disturb each other for ever."""
    threading.Event().wait(random.uniform(0, min(_WAIT_MAX_S, _WAIT_S * 2**attempt)))


class QuotingKey:
    """An attestation key that is loaded. It quotes report data and nothing else."""

    def __init__(
        self,
        device: TpmDevice,
        load: Callable[[], TpmKey],
        pcrs: tuple[int, ...],
        measuring: Measuring,
    ) -> None:
        """`load` makes or opens the key, once for every time that the TPM is opened."""
        self._device = device
        self._load = load
        self._pcrs = pcrs
        self._measuring = measuring
        self.key = device.retried(load)
        self.public: Public = parse_public(self.key.public)

    def quote(self, report_data: ReportData) -> SignedQuote:
        """A quote over the SHA-256 of `report_data`, with the values of the PCRs that it covers.

        Tries once more at once when the TPM failed or was restarted, with a new connection, the key
        loaded and PCR 23 measured anew. Raises `UnavailableError`.
        """
        data = sha256(report_data.content).digest()
        return self._device.retried(lambda: self._quote(data))

    def _quote(self, data: bytes) -> SignedQuote:
        with self._device.undisturbed():
            self.load_again_if_reopened()
            self._measuring.again_if_reopened()
            for attempt in range(ATTEMPTS):
                if attempt:
                    give_way(attempt)
                signed = self._attempt(data)
                if signed is not None:
                    return signed
        raise UnavailableError(
            "expected PCRs that stay the same while they are quoted, got others in "
            f"{ATTEMPTS} attempts; quote fewer, or check what else uses PCR {event_log.PCR}"
        )

    def _attempt(self, data: bytes) -> SignedQuote | None:
        """None when the PCRs changed meanwhile."""
        pcrs = self._device.read_pcrs(self._pcrs)
        if not self._measuring.holds(pcrs):
            # Several attested programs may share a TPM; each puts right what it quotes.
            self._measuring.again()
            pcrs = self._device.read_pcrs(self._pcrs)
            if not self._measuring.holds(pcrs):
                return None
        quote, signature = self._device.quote(self.key, self._pcrs, data)
        signed = SignedQuote(quote, signature, pcrs, self._measuring.log)
        try:
            check_quote(signed, self.public.key, self.public)
        except UntrustedError as error:
            if error.finding is not None and error.finding.check is PCR_VALUES:
                return None
            raise UnavailableError(f"this TPM makes quotes that do not hold: {error}") from error
        return signed

    def load_again_if_reopened(self) -> None:
        """To be called where the connection stays the same. Raises `UnavailableError`."""
        if self.key.generation == self._device.generation:
            return
        key = self._load()
        if not hmac.compare_digest(key.public, self.key.public):
            raise UnavailableError(
                "expected the attestation key that this TPM had before, got another: the "
                "TPM was replaced or cleared; start the program again"
            )
        self.key = key


class TpmAttester:
    """Quotes with an attestation key of this machine's TPM."""

    platform = "tpm"

    def __init__(self, settings: TpmSettings | None = None) -> None:
        """Opens the TPM. Raises `UnavailableError`, and `MalformedError` for a certificate file
        that is none."""
        settings = TpmSettings() if settings is None else settings
        self._certificates = load_certificates(settings.certificates)
        self._device = TpmDevice(settings.tcti, settings.timeout_s)
        try:
            self._measuring = Measuring(self._device)
            pcrs = tuple(sorted({*settings.pcrs, event_log.PCR}))
            load = partial(self._open_key, settings)
            self._quoting = QuotingKey(self._device, load, pcrs, self._measuring)
            self._parent = self._device.retried(lambda: self._device.parent_of(self.key))
            check_attributes(self._quoting.public)
        except UntrustedError as error:
            self._device.close()
            raise UnavailableError(f"this attestation key cannot be used: {error}") from error
        except UnavailableError:
            self._device.close()
            raise

    @property
    def device(self) -> TpmDevice:
        """The TPM, for enrolment."""
        return self._device

    @property
    def key(self) -> TpmKey:
        """The attestation key, for enrolment."""
        return self._quoting.key

    def measure(self, workload: Workload) -> None:
        """See `avow.evidence.roles.Attester`: into PCR 23."""
        self._measuring.measure(workload)

    def quote(self, report_data: ReportData) -> bytes:
        """See `avow.evidence.roles.Attester`."""
        signed = self._quoting.quote(report_data)
        return Report(
            quote=signed.quote,
            signature=signed.signature,
            ak=self._quoting.key.public,
            parent=self._parent,
            pcrs=signed.pcrs,
            log=signed.log,
            certificates=self._certificates,
        ).encoded()

    def activate(self, kind: EndorsementKey, credential: Credential) -> bytes:
        """See `TpmDevice.activate`, for the attestation key. Tries once more as `quote` does."""

        def activate() -> bytes:
            with self._device.undisturbed():
                self._quoting.load_again_if_reopened()
                return self._device.activate(self.key, kind, credential)

        return self._device.retried(activate)

    def close(self) -> None:
        """Lets go of the TPM."""
        self._device.close()

    def _open_key(self, settings: TpmSettings) -> TpmKey:
        if settings.ak_handle is not None:
            return self._device.open_persistent(settings.ak_handle)
        template = templates.AK_ECC if settings.ak_kind == "ecc" else templates.AK_RSA
        return self._device.make_primary(template)


def load_certificates(path: Path | None) -> tuple[bytes, ...]:
    """The certificates of a PEM file, in DER; none without a file."""
    if path is None:
        return ()
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise UnavailableError(
            f"expected certificates in {path}, got {error.strerror}; have them issued with "
            "`avow enrol`"
        ) from error
    except (ValueError, x509.InvalidVersion) as error:
        raise MalformedError(
            f"expected certificates as PEM in {path}, got something else; have them issued again"
        ) from error
    return tuple(each.public_bytes(Encoding.DER) for each in found)
