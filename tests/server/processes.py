"""Servers and engines in processes of their own, with an engine that fails as it is asked to."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from fourbee.engine.request import Event
from fourbee.server.engine_loop import LoadedModel
from fourbee.server.engine_messages import ModelSettings
from fourbee.server.engine_process import main

from .fakes import FakeEngine, eventually, make_model, make_tokenizer

TESTS = Path(__file__).resolve().parents[1]

# A server whose engine is `FaultyEngine`, in a process as always.
SERVER = """
import sys
from functools import partial

sys.path.insert(0, {tests!r})
from server.fakes import make_model, make_tokenizer
from fourbee.server import serve as module
from fourbee.server.engine_link import spawn_process

module.GRACE_SECONDS = {grace}

def load_text(settings):
    model = make_model(make_tokenizer())
    return module.ModelText(model.tokenizer, model.chat_format, model.defaults)

child = ("-c", "from server.processes import run_faulty; run_faulty()")
module.serve(module.ServeSettings(port=0), partial(spawn_process, child), load_text)
"""


class FaultyEngine(FakeEngine):
    """Does what a prompt says in its next step: "say deadlock", "say crash", "say abort"."""

    def result(self) -> list[Event]:
        for request in self._requests.values():
            prompt = self.tokenizer.decode(request.prompt_ids)
            if "deadlock" in prompt:
                threading.Event().wait()
            if "crash" in prompt:
                raise RuntimeError("broken")
            if "abort" in prompt:
                os.abort()
        return super().result()

    def idle(self) -> bool:
        return False

    def close(self) -> None:
        time.sleep(float(os.environ.get("CLOSE_SECONDS", "0")))
        if "CLOSE_FAILS" in os.environ:
            raise RuntimeError("the disk is gone")
        if kept := os.environ.get("KEPT"):
            Path(kept).write_text("everything")


def run_faulty() -> None:
    """The program of an engine's process."""

    def load(settings: ModelSettings) -> LoadedModel:
        time.sleep(float(os.environ.get("LOADING_SECONDS", "0")))
        model = make_model(make_tokenizer(), engine=FaultyEngine(make_tokenizer()))
        model.engine.step_seconds = 0.01
        return model.load(settings)

    main(load)


class ServerProcess:
    """A server in a process; `lines` is what it said on stderr so far."""

    def __init__(self, program: str | None = None, grace: float = 0.3, **environment) -> None:
        program = program or SERVER.format(tests=str(TESTS), grace=grace)
        values = {name: str(value) for name, value in environment.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | values,
            process_group=0,  # as a shell gives one to each command
        )
        self.engine_pids: set[int] = set()
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_) -> None:
        """Nothing is left behind, however the test has ended."""
        self.process.kill()
        self.process.wait()
        assert eventually(lambda: all(map(is_gone, self.engine_pids)), 40)
        self._reader.join(10)
        self.process.stderr.close()

    def says(self, word: str) -> bool:
        return eventually(lambda: any(word in line for line in self.lines), 30)

    @property
    def url(self) -> str:
        assert self.says("ready: "), self.lines
        return next(re.match(r"ready: (\S+)", one)[1] for one in self.lines if "ready: " in one)

    @property
    def engine_pid(self) -> int:
        """The process of the engine."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        assert eventually(lambda: len(path.read_text().split()) == 1)
        self.engine_pids.add(int(path.read_text()))
        return int(path.read_text())

    def health(self) -> str:
        return httpx.get(f"{self.url}/health", trust_env=False).json()["status"]

    def ask(self, prompt: str, **options) -> httpx.Response:
        body = {"prompt": prompt, "max_tokens": 400, **options}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=60, trust_env=False)

    def interrupt(self) -> None:
        """Ctrl-C: what a terminal sends to its foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self) -> int:
        code = self.process.wait(40)
        self._reader.join(10)
        return code


def is_gone(pid: int) -> bool:
    """Whether a process has ended, for the system too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state.rpartition(")")[2].split()[0] == "Z"
