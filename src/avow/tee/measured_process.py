"""An attester that vouches for a measured process only while that runs what was measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.evidence.roles import Attester, answers_at_once
from avow.runtime.process import ProcessCheck

# Quotes can be a thousand a second; code does not come that often.
CHECK_EVERY_S: Final = 1.0


class OfMeasuredProcess:
    """`attester`, asked only after `check`, which refuses for good once it has refused."""

    def __init__(
        self,
        attester: Attester,
        check: ProcessCheck,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.platform = attester.platform
        self.answers_at_once = answers_at_once(attester)
        self._attester = attester
        self._check = check
        self._clock = clock
        self._next_s = clock()
        self._turn = threading.Lock()

    def measure(self, workload: Workload) -> None:
        """As of `Attester`. Raises `UntrustedError` as well, of `ProcessCheck`."""
        self._check.files()
        self._attester.measure(workload)

    def quote(self, report_data: ReportData) -> bytes:
        """As of `Attester`. Raises `UntrustedError` as well, of `ProcessCheck`."""
        with self._turn:
            if self._clock() >= self._next_s:
                self._check.files()
                self._next_s = self._clock() + CHECK_EVERY_S
        return self._attester.quote(report_data)
