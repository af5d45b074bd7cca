"""The test runner counts skips by their reason and passes pytest's exit code on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TESTS = """
import os
import pytest

@pytest.fixture
def data():
    pytest.skip("set FOURBEE_TEST_DATA")

def test_one(data): pass
def test_two(data): pass

@pytest.mark.skipif(True, reason="no browser")
def test_three(): pass

def test_surroundings():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "2"
"""


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(text)
    command = [sys.executable, ROOT / "tools" / "run_tests.py", "-q", "-p", "no:cacheprovider"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(
        [*command, "--rootdir", folder, folder], cwd=folder, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip


def test_skips_are_told_by_reason_after_all_else(tmp_path):
    outcome = run(tmp_path, TESTS)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.splitlines()[-2:] == [
        "2 skipped: set FOURBEE_TEST_DATA", "1 skipped: no browser",
    ]  # fmt: skip


def test_a_failure_is_the_exit_code(tmp_path):
    outcome = run(tmp_path, "def test_no(): assert False\n")
    assert outcome.returncode == 1
    assert "skipped:" not in outcome.stdout
