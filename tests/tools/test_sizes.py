"""The size ratchet: it measures what it says, and names what outgrows it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sizes():
    spec = importlib.util.spec_from_file_location("sizes", ROOT / "tools" / "sizes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(sizes, tmp_path, monkeypatch) -> Path:
    """A place for a package of the test's own."""
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    (tmp_path / "fourbee" / "inner").mkdir(parents=True)
    return tmp_path / "fourbee"


def test_everything_is_measured(sizes, package):
    (package / "a.py").write_text(
        '"""A."""\nimport os\nif os:\n    x = 1\nfor x in []:\n    pass\n'
    )
    (package / "inner" / "b.py").write_text(
        "def short(a, b: int, *, c): pass\n\n\nasync def long(self) -> None:\n    x = 1\n    y = 2"
        "\n"
    )
    measured, worst = dict.fromkeys(sizes.LIMITS, 0), {}
    for path in sorted(package.rglob("*.py")):
        sizes.measure(path, measured, worst)
    assert measured == {
        "lines in all of fourbee/": 12,
        "lines of the biggest file": 6,
        "lines of the longest function": 3,
        "statements at the level of a module": 3,
        "parameters without a type": 2,
        "modules without a docstring": 1,
    }
    assert worst["lines of the longest function"] == "fourbee/inner/b.py:4"
    assert worst["statements at the level of a module"] == "fourbee/a.py"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('"""A."""\n' + "x = 1\n" * 450, "lines of the biggest file"),
        ('"""A."""\ndef f():\n' + "    x = 1\n" * 60, "lines of the longest function"),
        ("x = 1\n", "modules without a docstring"),
        ('"""A."""\ndef f(x): pass\n', "parameters without a type"),
    ],
)
def test_what_outgrows_a_limit_fails_and_is_named(sizes, package, capsys, text, name):
    (package / "a.py").write_text(text)
    assert sizes.main() == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "TOO MUCH" in line]
    assert [line.startswith(name) for line in failed] == [True]
    assert "fourbee/a.py" in failed[0]
