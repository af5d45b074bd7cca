"""The installer: says what it will do, does it once, and leaves no stamp of half a job."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def install(tmp_path, monkeypatch) -> ModuleType:
    """The installer, with a place of its own for the environment and nothing run for real."""
    spec = importlib.util.spec_from_file_location("install_tool", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "venv").mkdir()
    monkeypatch.setattr(module, "VENV", tmp_path / "venv")
    monkeypatch.setattr(module, "base_torch", lambda: None)
    monkeypatch.setattr(module, "run_quietly", lambda command: True)
    monkeypatch.setattr(module, "create_environment", lambda system_packages: None)
    return module


@pytest.fixture
def commands(install, monkeypatch) -> list[list[str]]:
    """What would be run."""
    noted: list[list[str]] = []
    monkeypatch.setattr(install.subprocess, "run", lambda command, **_: noted.append(command))
    return noted


def run(install, monkeypatch, *words: str) -> int:
    monkeypatch.setattr(install.sys, "argv", ["install.py", *words])
    return install.main()


def test_it_says_what_it_downloads_and_how_large_before_it_does(
    install, commands, monkeypatch, capsys
):
    assert run(install, monkeypatch, "train") == 0
    said = capsys.readouterr().err
    assert "setting up venv with fourbee[train]" in said
    assert "about 200 MB as a CPU build, about 3 GB with CUDA" in said
    assert f"everything else: about {install.SIZES['train']} MB" in said
    assert said.index("about 200 MB") < said.index("installing torch")
    torch, rest = commands
    assert torch[-1] == "torch"
    assert rest[-2:] == ["--editable", f"{install.ROOT}[train]"]
    assert str(install.VENV / "constraints.txt") in rest


def test_a_second_run_does_nothing_and_says_nothing(install, commands, monkeypatch, capsys):
    run(install, monkeypatch, "dev")
    commands.clear()
    capsys.readouterr()
    for extra in ("dev", "train", "serve"):  # each holds all of the next
        assert run(install, monkeypatch, extra) == 0
    assert (commands, capsys.readouterr().err) == ([], "")


def test_serving_installs_no_torch(install, commands, monkeypatch, capsys):
    assert run(install, monkeypatch, "serve") == 0
    assert "no torch: serving on a CPU needs none" in capsys.readouterr().err
    assert [command[-1] for command in commands] == [str(install.ROOT)]


def test_kernels_that_were_not_built_are_told_with_what_they_cost(
    install, commands, monkeypatch, capsys
):
    monkeypatch.setattr(install, "run_quietly", lambda command: "_native" not in command[-1])
    assert run(install, monkeypatch, "serve") == 0
    said = capsys.readouterr().err
    assert "the native kernels were NOT built: a C++17 compiler" in said
    assert "several times slower" in said


def test_train_alone_is_not_enough_for_dev(install, commands, monkeypatch):
    run(install, monkeypatch, "train")
    commands.clear()
    run(install, monkeypatch, "dev")
    assert len(commands) == 2


def test_changed_requirements_are_installed(install, commands, monkeypatch):
    run(install, monkeypatch, "train")
    commands.clear()
    monkeypatch.setattr(install, "fingerprint", lambda: "another")
    run(install, monkeypatch, "train")
    assert len(commands) == 2


def test_a_torch_that_is_there_is_used_as_it_is(install, commands, monkeypatch, capsys):
    monkeypatch.setattr(install, "base_torch", lambda: "2.9.1")
    created: list[bool] = []
    monkeypatch.setattr(install, "create_environment", lambda system_packages: created.append(
        system_packages))  # fmt: skip
    assert run(install, monkeypatch, "train") == 0
    assert "torch 2.9.1 of your Python is used as it is" in capsys.readouterr().err
    assert created == [True]
    assert len(commands) == 1
    constraints = (install.VENV / "constraints.txt").read_text()
    assert not any(line.startswith("torch==") for line in constraints.splitlines())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (subprocess.CalledProcessError(1, ["/x/python", "-m", "pip", "install", "torch"]), 1,
         "'python -m pip install ...' failed (above); mend it and run the same command again"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on where this one stopped"),
    ],
)  # fmt: skip
def test_what_did_not_end_well_leaves_no_stamp(install, monkeypatch, capsys, error, code, said):
    def fails(command, **_):
        raise error

    monkeypatch.setattr(install.subprocess, "run", fails)
    assert run(install, monkeypatch, "train") == code
    assert capsys.readouterr().err.splitlines()[-1] == f"fourbee: {said}"
    assert not install.stamp_path("train").exists()


def test_an_unknown_extra_is_refused(install, monkeypatch, capsys):
    assert run(install, monkeypatch, "all") == 1
    said = capsys.readouterr().err
    assert said == "fourbee: tools/install.py all: expected one of serve, train, dev\n"


def test_an_old_python_is_refused_with_what_to_type(install, monkeypatch, capsys):
    monkeypatch.setattr(install.sys, "version_info", (3, 9, 2))
    assert run(install, monkeypatch, "train") == 1
    said = capsys.readouterr().err
    assert said == (
        "fourbee: Python 3.9.2 found, 3.11 or newer needed: make PYTHON=python3.12 serve\n"
    )
