"""A run's log holds what the weights went through, wherever the run was killed."""

from __future__ import annotations

import json
import os

import pytest

from fourbee.training.run_log import LOG, open_log, read_log

RECORDS = [{"update": 1}, {"update": 2}, {"validation": {"update": 2}}, {"update": 3}]


@pytest.fixture
def run_folder(tmp_path):
    """Of a run that was killed as it wrote its fifth line."""
    lines = [json.dumps(one) + "\n" for one in RECORDS]
    (tmp_path / LOG).write_text("".join(lines) + '{"upda')
    return tmp_path


def test_lines_of_lost_updates_are_removed_and_half_a_line_is(run_folder):
    assert read_log(run_folder / LOG) == RECORDS
    with open_log(run_folder, 2) as log:
        log({"update": 3, "loss": 1.0})
    assert read_log(run_folder / LOG) == [*RECORDS[:3], {"update": 3, "loss": 1.0}]


def test_a_kill_as_they_are_removed_loses_none(run_folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt), open_log(run_folder, 2):
        pass
    assert read_log(run_folder / LOG) == RECORDS
