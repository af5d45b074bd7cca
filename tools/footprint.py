"""What an installation costs: seconds and MB of a fresh environment, and of clone to first answer.

    python3 tools/footprint.py            `pip install .` into a fresh virtual environment
    python3 tools/footprint.py --answer   and: git clone, `make serve`, the first answer of a chat

Standard library only. Nothing outside a folder for temporary files is touched, but for pip's cache.
The last line of standard output is one JSON document; the exit code is 1 when torch was installed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 10  # of the largest packages
QUESTION = {
    "model": "fourbee-mini",
    "messages": [{"role": "user", "content": "What is 347 + 285?"}],
    "temperature": 0,
}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fourbee-footprint-") as folder:
        found = installed(Path(folder) / "venv")
        if "--answer" in sys.argv[1:]:
            found |= first_answer(Path(folder))
    print(json.dumps(found))
    return 1 if found["torch"] else 0


def installed(target: Path) -> dict[str, object]:
    """A fresh environment with fourbee: how long it took, how large it is, and what is large."""
    started = time.monotonic()
    venv.EnvBuilder(with_pip=True).create(target)
    made = time.monotonic()
    pip = [str(target / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", str(ROOT)], check=True)
    done = time.monotonic()
    [packages] = target.glob("lib/python*/site-packages")
    sizes = {one.name: megabytes(one) for one in packages.iterdir()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:SHOWN]
    for name in largest:
        print(f"{sizes[name]:8.1f} MB  {name}")
    print(f"{megabytes(target):8.1f} MB  in all; {done - started:.0f} s")
    return {
        "megabytes": round(megabytes(target), 1),
        "venv_seconds": round(made - started, 1),
        "install_seconds": round(done - made, 1),
        "native": any((packages / "fourbee" / "kernels").glob("_native*.so")),
        "torch": (packages / "torch").exists(),
        "largest": {name: round(sizes[name], 1) for name in largest},
    }


def first_answer(folder: Path) -> dict[str, object]:
    """Seconds from `git clone` to the answer of a chat with the embedded model."""
    clone, started = folder / "clone", time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = os.environ | {"FOURBEE_VENV": str(folder / "clone-venv")}
    with subprocess.Popen(
        ["make", "serve", "ARGS=--port 0"], cwd=clone, env=environment, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stderr
            for line in process.stderr:
                print(line, end="", file=sys.stderr)
                if found := re.search(r"ready: (http://\S+)", line):
                    ready = time.monotonic()
                    text = ask(found[1])
                    seconds = time.monotonic() - started
                    return {
                        "clone_to_ready_seconds": round(ready - started, 1),
                        "clone_to_answer_seconds": round(seconds, 1),
                        "answer": text,
                    }
        finally:
            os.killpg(process.pid, signal.SIGTERM)
    raise SystemExit("make serve ended before it was ready")


def ask(url: str) -> str:
    """The embedded model's answer to one question."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(QUESTION).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def megabytes(path: Path) -> float:
    """Bytes of all files below a path, in millions; links count nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files if one.is_file() and not one.is_symlink()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
