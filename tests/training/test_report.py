"""Reports: what a log holds is what the page shows, and nothing in it is taken for markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fourbee.foundation.errors import TrainingError
from fourbee.training.report import read_run, write_curves, write_report
from fourbee.training.svg_plot import is_noisy, line_plot, running_mean


class Page(HTMLParser):
    """Elements by name, and the rows of all tables as texts of their cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.titles: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "title":
            self.titles.append("")
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("td", "th", "span") and self.rows:
            self.rows[-1][-1] += data
        elif self._open == "title":
            self.titles[-1] += data

    def plots(self) -> list[str | None]:
        return [attrs["aria-label"] for tag, attrs in self.elements if tag == "svg"]


def write_run(folder: Path, updates: int = 20, **settings: Any) -> Path:
    """A folder as a run leaves it: loss falls, accuracy rises, `cut` stays 0."""
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    for update in range(1, updates + 1):
        records.append(
            {
                "update": update, "tokens": 100 * update, "loss": 4 / update, "cut": 0.0,
                "tokens_per_second": 900 + update % 2, "seconds": 1.5 * update,
                "note": "text", "broken": float("nan"), "seconds_of_update": 1.5,
            }
        )  # fmt: skip
    held_out = {"loss": 0.5, "exact": 0.25}
    records.insert(10, {"validation": {"update": 10, "sums": held_out}})
    records.append({"validation": {"update": updates, "sums": {"loss": 0.4, "exact": 0.75}}})
    items = [{"prompt": "<b>2 & 2</b>", "text": "4</table><script>", "finished": True}]
    records.append({"samples": {"update": updates, "items": items}})
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    recipe = {"output": str(folder), "seed": 1, "data[0].path": "a<b>.jsonl"} | settings
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "threads": 1}))
    return folder


def report(tmp_path: Path, *runs: Path) -> Page:
    return Page(write_report(runs, tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_all_that_is_logged_is_shown(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run"))
    # What never moves has no curve, and what is no number neither.
    expected = {"loss", "tokens_per_second", "sums: loss", "sums: exact"}
    assert set(page.plots()) == expected
    assert page.plots()[0] == "loss"
    assert ["run", "20", "2,000", "30", "0.2"] in page.rows
    assert ["cut", "0"] in page.rows
    assert ["sums: exact", "0.75"] in page.rows
    assert ["data[0].path", '"a<b>.jsonl"'] in page.rows
    assert ["torch", '"2.13.0"'] in page.rows
    assert "update 10: 0.25" in page.titles
    assert "update 1: 4" in page.titles


def test_texts_of_the_model_are_texts(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "<i>run"))
    assert page.rows[1][0] == "<i>run"
    assert ["<b>2 & 2</b>", "4</table><script>"] in page.rows
    assert not {"script", "b", "i"} & {tag for tag, _ in page.elements}


def test_the_page_fetches_nothing(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run"))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href"} & set(attributes)


def test_several_runs_are_drawn_over_each_other(tmp_path):
    runs = [write_run(tmp_path / name, seed=seed) for name, seed in (("one", 1), ("two", 2))]
    page = report(tmp_path, *runs)
    assert page.plots().count("loss") == 1
    lines = [attrs["stroke"] for tag, attrs in page.elements if tag == "polyline"]
    assert len(set(lines)) == 2
    assert ["cut", "0", "0"] in page.rows
    assert ["", "one", "two"] in page.rows
    differing = page.rows.index(["seed", "1", "2"])
    assert page.rows[differing - 1][0] == "output"


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path):
    runs = [write_run(tmp_path / name / "run") for name in ("a", "b")]
    heads = report(tmp_path, *runs).rows
    assert ["", *map(str, runs)] in heads


def test_an_unfinished_run_with_one_cut_line_is_shown(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"update": 1, "loss": 2.0, "tokens": 5}\n{"update": 2, "lo')
    assert read_run(folder, "run").curves == {"loss": [(1.0, 2.0)]}
    assert ["run", "1", "5", "0", "2"] in report(tmp_path, folder).rows


def test_a_folder_without_a_log_is_one_line(tmp_path):
    with pytest.raises(TrainingError) as error:
        write_report([tmp_path], tmp_path / "report.html")
    assert str(error.value) == (
        f"{tmp_path}: no log.jsonl; expected the output folder of a training run"
    )
    assert not (tmp_path / "report.html").exists()


def test_a_log_with_a_damaged_line_is_not_shown_up_to_there(tmp_path):
    log = write_run(tmp_path / "run") / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:3], "{}\n", *lines[3:]]))
    with pytest.raises(TrainingError, match=r"log\.jsonl:4: '{}': expected a record"):
        read_run(log.parent, "run")


def test_numbers_that_are_none_are_not_summed_up(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"update": 1, "loss": null, "tokens": "many"}\n')
    assert ["run", "1", "0", "0", "nan"] in report(tmp_path, folder).rows


# ---- plots


def coordinates(svg: str) -> list[list[tuple[float, float]]]:
    lines = Page(svg).elements
    return [
        [(float(x), float(y)) for x, y in (one.split(",") for one in attrs["points"].split())]
        for tag, attrs in lines
        if tag == "polyline" and attrs["points"]
    ]


def test_points_lie_where_their_numbers_say():
    (line,) = coordinates(line_plot("x", {0: [(0.0, 1.0), (5.0, 2.0), (10.0, 3.0)]}, 10))
    (left, low), (middle, half), (right, high) = line[:3]
    assert left < middle < right
    assert low > half > high  # down is more in SVG
    assert middle - left == pytest.approx(right - middle, abs=0.11)
    assert low - half == pytest.approx(half - high, abs=0.11)


def test_a_noisy_curve_has_its_running_mean_and_a_smooth_one_has_not():
    noisy = [(float(x), float(x % 2)) for x in range(100)]
    smooth = [(float(x), x / 100) for x in range(100)]
    assert (is_noisy(noisy), is_noisy(smooth)) == (True, False)
    assert len(coordinates(line_plot("x", {0: noisy}, 100))) == 2
    assert len(coordinates(line_plot("x", {0: smooth}, 100))) == 1


def test_the_running_mean_is_that_of_the_last_values():
    points = [(float(x), float(y)) for x, y in enumerate([3, 1, 5, 7, 2])]
    assert [y for _, y in running_mean(points, 3)] == [3, 2, 3, 13 / 3, 14 / 3]


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-12, 2e-12], [-3e8, 7e8], [1.0] * 2000])
def test_any_numbers_have_axes_and_stay_inside(values):
    points = [(float(x), y) for x, y in enumerate(values)]
    svg = line_plot("x", {0: points}, len(values))
    found = Page(svg)
    assert sum(tag == "line" for tag, _ in found.elements) >= 2
    for line in coordinates(svg):
        assert all(0 <= x <= 460 and 0 <= y <= 240 for x, y in line)


def test_a_page_of_two_curves_names_both(tmp_path):
    page = tmp_path / "curves.html"
    write_curves("loss <by> seconds", {"one": [(0.0, 2.0), (9.0, 1.0)], "b<c": [(1.0, 3.0)]}, page)
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "loss &lt;by&gt; seconds" in text
    assert "b&lt;c" in text
    assert text.count("<circle") >= 3
