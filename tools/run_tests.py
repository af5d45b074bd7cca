"""Runs pytest and says plainly which tests could not run for want of data or programs."""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest


class SkipCounter:
    """Counts skipped tests by their reason."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1


def main() -> int:
    # Two threads at most: more only fight each other on small machines.
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    # Nothing in the tests may reach the network beyond this machine.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    counter = SkipCounter()
    code = pytest.main(sys.argv[1:], plugins=[counter])
    for reason, count in counter.reasons.most_common():
        print(f"{count} skipped: {reason}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
