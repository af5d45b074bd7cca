"""Settings: typed, frozen, and nothing is ignored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from fourbee.foundation.errors import UsageError
from fourbee.foundation.settings import build, explain, read_toml, with_overrides


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    steps: int = 3

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UsageError(f"steps = {self.steps}: expected 0 or more", "steps")


@dataclass(frozen=True)
class Outer:
    name: str
    paths: tuple[Path, ...] = ()
    mode: Literal["fast", "exact"] = "fast"
    inner: Inner = field(default_factory=Inner)
    limit: int | None = None
    parts: tuple[Inner, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    verbose: bool = False


def test_nested_tables_become_frozen_settings():
    table = {
        "name": "a", "paths": ["x", "y"], "inner": {"rate": 1}, "parts": [{"steps": 5}],
        "weights": {"copy": 2}, "limit": 7,
    }  # fmt: skip
    assert build(Outer, table) == Outer(
        name="a", paths=(Path("x"), Path("y")), inner=Inner(rate=1.0), parts=(Inner(steps=5),),
        weights={"copy": 2.0}, limit=7,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "a", "inner": {"rates": 1}},
         "unknown key 'inner.rates' (did you mean 'rate'?); known: rate, steps"),
        ({}, "missing key 'name'"),
        ({"name": 3}, "name = 3: expected a string"),
        ({"name": "a", "inner": 3}, "inner = 3: expected a table [inner]"),
        ({"name": "a", "inner": {"steps": 1.5}}, "inner.steps = 1.5: expected a whole number"),
        ({"name": "a", "inner": {"steps": True}}, "inner.steps = True: expected a whole number"),
        ({"name": "a", "mode": "exakt"},
         "mode = 'exakt': expected one of fast, exact (did you mean 'exact'?)"),
        ({"name": "a", "paths": "x"}, "paths = 'x': expected a list"),
        ({"name": "a", "verbose": 1}, "verbose = 1: expected true or false"),
        ({"name": "a", "parts": [{"step": 1}]},
         "unknown key 'parts[0].step' (did you mean 'steps'?); known: rate, steps"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_in_one_line(table, message):
    with pytest.raises(UsageError) as caught:
        build(Outer, table)
    assert str(caught.value) == message


def test_what_a_table_refuses_itself_is_named_by_its_path():
    for table, path in (
        ({"inner": {"steps": -1}}, "inner"),
        ({"parts": [{"steps": -1}]}, "parts[0]"),
    ):
        with pytest.raises(UsageError) as error:
            build(Outer, {"name": "a"} | table)
        assert str(error.value) == f"{path}.steps = -1: expected 0 or more"
        assert error.value.parameter == f"{path}.steps"


def test_set_assignments_are_read_as_toml_and_leave_the_table_alone():
    table = {"name": "a", "inner": {"rate": 0.5}}
    changed = with_overrides(table, ["inner.rate=2e-3", "name=b c", "paths=['p']", "verbose=true"])
    assert build(Outer, changed) == Outer("b c", (Path("p"),), inner=Inner(0.002), verbose=True)
    assert table == {"name": "a", "inner": {"rate": 0.5}}


def test_a_set_without_equals_sign_names_the_right_form():
    with pytest.raises(UsageError, match=r"--set rate: expected key=value, such as optimizer.clip"):
        with_overrides({}, ["rate"])


def test_explain_names_the_source_of_each_value():
    table = {"name": "a", "inner": {"rate": 0.5}}
    lines = explain(build(Outer, table), table)
    assert "name = 'a'  (recipe)" in lines
    assert "inner.rate = 0.5  (recipe)" in lines
    assert "inner.steps = 3  (default)" in lines
    table = with_overrides(table, ["inner.rate=0.25"])
    lines = explain(build(Outer, table), table, ["inner.rate=0.25"])
    assert "name = 'a'  (recipe)" in lines
    assert "inner.rate = 0.25  (--set)" in lines
    table = with_overrides({"name": "a"}, ["inner={rate = 0.25}"])
    assert "inner.rate = 0.25  (--set)" in explain(
        build(Outer, table), table, ["inner={rate = 0.25}"]
    )


def test_a_missing_or_broken_recipe_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(UsageError, match="not valid TOML") as caught:
        read_toml(tmp_path / "bad.toml")
    assert "\n" not in str(caught.value)
