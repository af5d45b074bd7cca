"""Sets up .venv for the Makefile: says what it will download, installs once, repeats for nothing.

    python3 tools/install.py serve        what `make serve` needs: no torch
    python3 tools/install.py train        what `make mini` needs
    python3 tools/install.py dev          what `make test` needs

Standard library only. Uses venv and pip with the user's own pip settings; a torch that the base
Python already has is taken as it is. Safe to interrupt: the stamp is written last.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("FOURBEE_VENV", ROOT / ".venv"))
CONSTRAINTS = ROOT / "constraints.txt"
# Megabytes to download, measured on Linux x86-64 with Python 3.11.
SIZES = {"serve": 40, "train": 40, "dev": 150}
TORCH_SIZES = (
    "about 200 MB as a CPU build, about 3 GB with CUDA (what pip takes by default on Linux)"
)
# An extra that holds everything another one does.
INCLUDES = {"serve": ("serve", "train", "dev"), "train": ("train", "dev"), "dev": ("dev",)}


def main() -> int:
    extra = sys.argv[1] if len(sys.argv) > 1 else "serve"
    if extra not in SIZES:
        return fail(f"tools/install.py {extra}: expected one of {', '.join(SIZES)}")
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        return fail(f"Python {found} found, 3.11 or newer needed: make PYTHON=python3.12 serve")
    stamp = fingerprint()
    if any(
        stamp_path(name).is_file() and stamp_path(name).read_text() == stamp
        for name in INCLUDES[extra]
    ):
        return 0
    torch = base_torch()
    announce(extra, torch)
    started = time.monotonic()
    try:
        create_environment(system_packages=torch is not None)
        install(extra, torch)
    except subprocess.CalledProcessError as error:
        return fail(
            f"'{Path(error.cmd[0]).name} {' '.join(error.cmd[1:4])} ...' failed (above); "
            "mend it and run the same command again"
        )
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on where this one stopped", 130)
    if not native_built():
        say(
            "the native kernels were NOT built: a C++17 compiler (g++ or clang++) is missing or "
            "failed; models run several times slower until it is there (then: make install)"
        )
    stamp_path(extra).write_text(stamp)
    say(f"done in {time.monotonic() - started:.0f} s")
    return 0


def announce(extra: str, torch: str | None) -> None:
    say(f"setting up {VENV.name} with fourbee{'' if extra == 'serve' else f'[{extra}]'}")
    say(f"  1/3 a virtual environment (Python {sys.version_info[0]}.{sys.version_info[1]})")
    wanted = re.search(r"^torch==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    if extra == "serve":
        say("  2/3 no torch: serving on a CPU needs none")
    elif torch:
        say(f"  2/3 torch {torch} of your Python is used as it is")
    else:
        say(f"  2/3 torch {wanted[1] if wanted else ''}: {TORCH_SIZES};")
        say(
            "      for the CPU build point pip at PyTorch's CPU index (pip config set "
            "global.extra-index-url ...)"
        )
    say(f"  3/3 everything else: about {SIZES[extra]} MB; nothing is downloaded after this")


def create_environment(system_packages: bool) -> None:
    python = VENV / "bin" / "python"
    usable = python.exists() and run_quietly([str(python), "-m", "pip", "--version"])
    if not usable:
        say("1/3 creating the virtual environment")
        builder = venv.EnvBuilder(
            with_pip=True, clear=VENV.exists(), system_site_packages=system_packages
        )
        builder.create(VENV)


def install(extra: str, torch: str | None) -> None:
    constraints = CONSTRAINTS.read_text()
    if torch:
        constraints = re.sub(r"^torch==.*$", "", constraints, flags=re.MULTILINE)
    path = VENV / "constraints.txt"
    path.write_text(constraints)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    quiet = ["--quiet", "--progress-bar", "on"] if sys.stderr.isatty() else ["--quiet"]
    if extra != "serve" and not torch:
        say("2/3 installing torch (the long one)")
        subprocess.run([*pip, *quiet, "-c", str(path), "torch"], check=True)
    say("3/3 installing fourbee, its native kernels (compiled) and the rest")
    wanted = str(ROOT) if extra == "serve" else f"{ROOT}[{extra}]"
    subprocess.run([*pip, *quiet, "-c", str(path), "--editable", wanted], check=True)


def native_built() -> bool:
    """Whether the compiled kernels can be imported."""
    return run_quietly([str(VENV / "bin" / "python"), "-c", "import fourbee.kernels._native"])


def base_torch() -> str | None:
    """The version of torch that the base Python has."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def fingerprint() -> str:
    """Changes when what is to be installed changes."""
    compilers = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    digest = hashlib.sha256(f"{sys.version} {compilers}".encode())
    sources = [ROOT / name for name in ("pyproject.toml", "constraints.txt", "CMakeLists.txt")]
    for path in [*sources, *sorted((ROOT / "csrc").iterdir())]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stamp_path(extra: str) -> Path:
    return VENV / f"installed-{extra}"


def run_quietly(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def say(line: str) -> None:
    print(f"fourbee: {line}", file=sys.stderr, flush=True)


def fail(line: str, code: int = 1) -> int:
    say(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
