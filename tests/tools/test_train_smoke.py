"""`make train-smoke`: every stage of training moves its number, and the engine serves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_stage_moves_its_number(tmp_path):
    shown = subprocess.run(
        [sys.executable, ROOT / "tools" / "train_smoke.py", tmp_path / "runs"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stdout[-2000:] + shown.stderr[-2000:]
    assert shown.stdout.count(" ok") == 6
    assert "<svg" in (tmp_path / "runs" / "report.html").read_text()
