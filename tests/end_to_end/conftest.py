"""Checkpoints that are written once, and the test data of real models where it is there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .checkpoints import write_tiny
from .programs import ServeProcess

KEY = "sk-of-the-tests"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint; not to be changed."""
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def locked_server(tiny: Path) -> Iterator[ServeProcess]:
    """The tiny checkpoint behind an API key."""
    server = ServeProcess("--model", str(tiny), "--api-key", KEY)
    try:
        server.ready()
        yield server
    finally:
        code, _ = server.end()
    assert code == 0
