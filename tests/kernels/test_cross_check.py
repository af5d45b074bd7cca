"""The kernels of ARM, portable and NEON, in emulation: for want of such a machine."""

import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
VARIANTS = {"portable": [], "neon": ["-march=armv8.2-a+dotprod"]}


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which(COMPILER) or not shutil.which(EMULATOR),
    reason=f"{COMPILER} and {EMULATOR} are not installed",
)
def test_the_kernels_of_arm_are_right_in_emulation(tmp_path) -> None:
    objects = []
    for isa, flags in VARIANTS.items():
        objects.append(str(tmp_path / f"{isa}.o"))
        subprocess.run(
            [COMPILER, *FLAGS, *flags, f"-DFOURBEE_ISA_NAME={isa}", "-c",
             str(ROOT / "csrc/kernels.cpp"), "-o", objects[-1]],
            check=True,
        )  # fmt: skip
    program = str(tmp_path / "cross_check")
    source = str(Path(__file__).with_name("cross_check.cpp"))
    subprocess.run(
        [COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", source, *objects, "-static", "-o", program],
        check=True,
    )
    done = subprocess.run([EMULATOR, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "neon" in done.stdout and "attention, int8" in done.stdout
