"""The `fourbee` command in processes of its own, as people start it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

import openai

PATIENCE = 240.0  # seconds; machines that run tests are often busy

COMMAND = (sys.executable, "-m", "fourbee")


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """That of the tests without the user's settings: no key, no pulled models."""
    kept = {name: value for name, value in os.environ.items() if name != "FOURBEE_API_KEY"}
    nowhere = os.path.join(tempfile.gettempdir(), "fourbee-has-no-home-in-tests")
    # On a busy machine two threads that wait for each other are slower than one.
    return kept | {"FOURBEE_HOME": nowhere, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}


def run(*arguments: str, typed: str = "") -> Ended:
    """Runs a command that has to end by itself."""
    ended = subprocess.run(
        [*COMMAND, *arguments],
        input=typed,
        capture_output=True,
        encoding="utf-8",
        env=environment(),
        timeout=PATIENCE,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServeProcess:
    """`fourbee serve` with these options; `lines` is what it has said on stderr."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--port", str(self.port), *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=environment(),
        )
        self.lines: list[str] = []
        self.ready_after: float | None = None  # seconds
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self.lines.append(line.rstrip("\n"))
                if line.startswith("ready: "):
                    self.ready_after = time.monotonic() - self.began

    def ready(self) -> float:
        """Waits until it serves; the seconds from its start to then."""
        while self.ready_after is None:
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < self.began + PATIENCE, self.lines
            time.sleep(0.02)
        return self.ready_after

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Sends a signal and waits: the exit code, and the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        try:
            code = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._reader.join()
        return code, time.monotonic() - began

    def client(self, key: str = "none") -> openai.OpenAI:
        """OpenAI's client as it comes, without its retries."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE
        )
