"""What an installation costs: sizes are added up, and the last line is one document."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def footprint(monkeypatch) -> ModuleType:
    """The tool, with environments and packages that are made up."""
    spec = importlib.util.spec_from_file_location("footprint", ROOT / "tools" / "footprint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Builder:
        def __init__(self, with_pip: bool) -> None:
            assert with_pip

        def create(self, target: Path) -> None:
            (target / "lib" / "python3.11" / "site-packages").mkdir(parents=True)

    monkeypatch.setattr(module.venv, "EnvBuilder", Builder)
    monkeypatch.setattr(module.sys, "argv", ["footprint.py"])
    return module


def installs(*names: str):
    """A pip that leaves files of 2 MB with these names."""

    def run(command: list[str], check: bool) -> None:
        assert check and command[-1] == str(ROOT)
        packages = Path(command[0]).parents[1] / "lib" / "python3.11" / "site-packages"
        for name in names:
            (packages / name).parent.mkdir(parents=True, exist_ok=True)
            (packages / name).write_bytes(bytes(2_000_000))

    return run


def test_sizes_are_added_up_and_links_count_nothing(footprint, tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(bytes(300_000))
    (tmp_path / "two").write_bytes(bytes(200_000))
    (tmp_path / "link").symlink_to(tmp_path / "two")
    assert footprint.megabytes(tmp_path) == pytest.approx(0.5)
    assert footprint.megabytes(tmp_path / "two") == pytest.approx(0.2)


def test_an_installation_is_told_in_one_document(footprint, monkeypatch, capsys) -> None:
    files = ("fourbee/kernels/_native.so", "numpy/core.so", "numpy/more.so")
    monkeypatch.setattr(footprint.subprocess, "run", installs(*files))
    assert footprint.main() == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["megabytes"], document["native"], document["torch"]) == (6.0, True, False)
    assert document["largest"] == {"numpy": 4.0, "fourbee": 2.0}


def test_torch_is_a_failure(footprint, monkeypatch, capsys) -> None:
    monkeypatch.setattr(footprint.subprocess, "run", installs("torch/lib.so"))
    assert footprint.main() == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["torch"] and not document["native"]
