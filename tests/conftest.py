"""What all tests share: one thread a library, no network, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before any library reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "fourbee" / "models" / "fourbee-mini"


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of fourbee-mini, which is part of the package."""
    assert (EMBEDDED / "model.safetensors").is_file()
    return EMBEDDED


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is not named."""
    folder = os.environ.get("FOURBEE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set FOURBEE_TEST_DATA")
    return Path(folder)
