"""A run's log holds what the weights went through, wherever the run was killed."""

from __future__ import annotations

import json
import os

import pytest

from fourbee.foundation.errors import TrainingError
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


NO_RECORDS = [
    b"", b"half", b"[1]", b"3", b"{}", b"\xff", b'{"update": "2"}', b'{"validation": {}}',
    b'{"samples": 3}', b'{"samples": {"update": 2}}', b'{"samples": {"update": 2, "items": [{}]}}',
]  # fmt: skip


@pytest.mark.parametrize("line", NO_RECORDS)
def test_a_line_that_is_no_record_is_told_and_nothing_is_lost(tmp_path, line):
    path, good = tmp_path / LOG, json.dumps(RECORDS[0]).encode()
    path.write_bytes(b"\n".join([good, line, good, b""]))
    before = path.read_bytes()
    with pytest.raises(TrainingError) as error, open_log(tmp_path, 1):
        pass
    text = line.decode(errors="replace")
    assert str(error.value) == (
        f"{path}:2: {text!r}: expected a record as training writes it; "
        "with this line deleted the log can be read"
    )
    assert path.read_bytes() == before


def test_a_last_line_that_only_lacks_its_end_counts(tmp_path):
    (tmp_path / LOG).write_text("\n".join(map(json.dumps, RECORDS)))
    assert read_log(tmp_path / LOG) == RECORDS
