"""Every instruction set that this machine runs passes the tests of the kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

native = pytest.importorskip("fourbee.kernels._native", reason="native operations were not built")
TESTS = [
    Path(__file__).with_name(f"test_native_{name}.py") for name in ("kernels", "attention", "head")
] + [Path(__file__).parents[1] / "training" / f"test_{name}.py" for name in ("rows", "attention")]


@pytest.mark.slow
@pytest.mark.parametrize("isa", native.isas()[:-1])
def test_the_kernels_in_another_instruction_set(isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, TESTS)],
        env={**os.environ, "FOURBEE_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_unknown_instruction_set_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from fourbee.kernels.native_ops import open_native\n"
         "from fourbee.foundation.errors import UsageError\n"
         "try: open_native('float32')\nexcept UsageError as e: print(e)"],
        env={**os.environ, "FOURBEE_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.startswith("FOURBEE_ISA = 'mmx': this machine runs portable")
