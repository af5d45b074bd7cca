"""What is timed: work in tokens, and systems that do it, each in a process of its own.

A system is a program that answers lines of JSON: a work comes in, `{"seconds": ...}` goes out, or
`{"error": ...}` before it ends. One works at a time, so that the threads of one do not spin beside
another. Nothing here knows a model.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fourbee.foundation.errors import FourbeeError, UsageError

ROUNDS = 3
# Tokens before a decoding step where no depth is asked for.
SHORT = 16
# What a work may ask for: the context of the published models, and sequences side by side.
MOST_POSITIONS, MOST_SEQUENCES = 262_144, 1024
_DECODED = 16  # tokens of each sequence
_FORM = re.compile(r"(prefill|decode):([0-9]{1,15})(?:@([0-9]{1,15}))?")


@dataclass(frozen=True)
class Work:
    """`tokens` are read (prefill) or written by each of `batch` sequences, `depth` tokens in."""

    kind: Literal["prefill", "decode"]
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def name(self) -> str:
        where = f", depth {self.depth}" if self.depth > SHORT else ""
        if self.kind == "prefill":
            return f"prefill {self.tokens}{where}"
        return f"decode, batch {self.batch}{where}"

    @property
    def positions(self) -> int:
        """Of each sequence, when the work is done."""
        return self.depth + self.tokens

    @classmethod
    def parse(cls, text: str) -> Work:
        """From `prefill:1024`, `prefill:1024@4096`, `decode:8` (a batch) or `decode:1@4096`."""
        found = _FORM.fullmatch(text)
        number, depth = (int(found[2]), int(found[3] or 0)) if found else (0, 0)
        if not found or not number:
            raise UsageError(
                f"work = {text!r}: expected prefill:TOKENS[@DEPTH] or decode:BATCH[@DEPTH], as in "
                "prefill:1024 or decode:1@4096",
                "work",
            )
        if found[1] == "prefill":
            work = cls("prefill", number, depth)
        else:
            work = cls("decode", _DECODED, depth or SHORT, number)
        if work.positions > MOST_POSITIONS or work.batch > MOST_SEQUENCES:
            raise UsageError(
                f"work = {text!r}: expected at most {MOST_POSITIONS:,} tokens with the depth, and "
                f"a batch of at most {MOST_SEQUENCES:,}",
                "work",
            )
        return work


@dataclass(frozen=True)
class Rate:
    """Tokens a second over the rounds."""

    median: float
    low: float
    high: float


class System:
    """A running program that does works."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.about = self._answer("start")
        except BaseException:
            self.close()
            raise

    def seconds(self, work: Work) -> float:
        """How long it took; FourbeeError when the program ended instead, with what it said."""
        return float(self.ask(json.dumps(asdict(work)), work.name)["seconds"])

    def ask(self, line: str, what: str) -> dict[str, Any]:
        """The answer to a line; errors as of `seconds`, which name what was asked."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer(what)

    def _answer(self, what: str) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        if "error" in answer:
            kind = UsageError if self._process.wait() == UsageError.exit_code else FourbeeError
            raise kind(answer["error"])
        if not answer:
            raise FourbeeError(f"{self.name} ended with code {self._process.wait()} at: {what}")
        return answer

    def close(self) -> None:
        self._process.kill()
        with self._process:  # closes its pipes and waits for it
            pass


@contextmanager
def running(commands: Mapping[str, Sequence[str]]) -> Iterator[list[System]]:
    """The systems, started one after the other and ended whatever happens."""
    with ExitStack() as stack:
        systems = []
        for name, command in commands.items():
            system = System(name, command)
            stack.callback(system.close)
            systems.append(system)
        yield systems


def measure(
    systems: Sequence[System], work: Work, rounds: int = ROUNDS,
    between: Callable[[Work], None] = lambda work: None,
) -> dict[str, Rate]:  # fmt: skip
    """Rates by system: one round to warm up, then rounds of all systems in turn.

    `between` is called after each of these rounds, while no system works.
    """
    tokens = work.tokens * work.batch
    rates: dict[str, list[float]] = {system.name: [] for system in systems}
    for number in range(rounds + 1):
        for system in systems:
            seconds = system.seconds(work)
            if number:
                rates[system.name].append(tokens / seconds)
        between(work)
    return {name: Rate(statistics.median(r), min(r), max(r)) for name, r in rates.items()}
