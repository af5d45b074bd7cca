"""Damaged models are read as they should be, and the fuzzer sees what is not right."""

import importlib
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fourbee.foundation.errors import ModelFileError

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def fuzz(request):
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.syspath_prepend(str(TOOLS))
    return importlib.import_module("fuzz_readers")


def test_damaged_models_load_or_are_refused_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOLS / "fuzz_readers.py"), "--cases", "300", "--seconds", "200",
         "--findings", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) loaded, (\d+) refused, 0 findings\n$", done.stdout)
    assert counts and int(counts[1]) > 30 and int(counts[2]) > 150, done.stdout


def raiser(error: BaseException):
    def read(path: Path, chance: random.Random) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("shape"), "KeyError at "),
        (MemoryError(), "MemoryError at "),
        (ModelFileError("it is damaged"), "names no file"),
    ],
)
def test_what_is_no_good_refusal_is_a_finding(fuzz, tmp_path, error, words) -> None:
    outcome = fuzz.judge(tmp_path, random.Random(0), raiser(error))
    assert outcome.kind == fuzz.FINDING and outcome.text.startswith(words)


def test_a_line_that_names_the_file_is_a_refusal(fuzz, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refusal = ModelFileError("config.json: no model")
    assert fuzz.judge(tmp_path, random.Random(0), raiser(refusal)).kind == fuzz.REFUSED
    assert fuzz.judge(tmp_path, random.Random(0), lambda path, chance: None).kind == fuzz.LOADED


@pytest.mark.parametrize(
    ("code", "words"),
    [("os.abort()", "CRASH -6"), ("time.sleep(60)", "HANG"), ("bytes(1 << 40)", "MemoryError")],
)
def test_a_reader_that_dies_hangs_or_takes_memory_is_found(tmp_path, code, words) -> None:
    script = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(TOOLS)!r})\n"
        "import fuzz_readers as fuzz\n"
        "fuzz.CASE_SECONDS = 2\n"
        "fuzz.__file__ = sys.argv[0]\n"  # the readers are this script too
        f"warm = []\n"
        "def read(path, chance):\n"
        "    warm.append(1)\n"
        f"    if len(warm) > 1: {code}\n"
        "fuzz.read = read\n"
        "sys.exit(fuzz.main())\n"
    )
    (tmp_path / "broken.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "broken.py"), "--cases", "1", "--only", "packed_bf16",
         "--findings", str(tmp_path / "found")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert words in done.stdout
    assert list((tmp_path / "found").glob("*/finding.txt"))
