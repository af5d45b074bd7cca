"""Reads damaged models for a while: each must load or be refused in one line that names the file.

    python tools/fuzz_readers.py --seconds 600

A case is a small valid model (safetensors in all packings, GGUF; see `fuzz_models.py`) with one to
three defects: flipped bits, cut files, sizes that are huge or negative, places that overlap, other
types, odd names. It is loaded as `fourbee generate` does and writes two tokens, so that what was
not refused reaches the kernels. A finding is any other exception than fourbee's own errors, a
message of more than one line or that names no file, a crash, a hang, or more memory than allowed.
Findings are kept with the damaged files and the traceback; `--seed N --cases 1` repeats case N.

Readers run in a process of their own, so that a crash is seen and the next case goes on. For a
build with sanitizers see CONTRIBUTING.md; pass `--memory 0`, as these reserve terabytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

LOADED, REFUSED, FINDING = "loaded", "refused", "FINDING"
# The memory that a case may take beyond what the process has before; a model here has 1 MB.
MEGABYTES = 256
CASE_SECONDS = 20
_STARTED = 120  # seconds: imports, and under sanitizers these are slow
_BACKENDS = (("native", "none"), ("native", "none"), ("native", "int8"), ("native", "int4"),
             ("numpy", "none"))  # fmt: skip


@dataclass
class Outcome:
    """What became of a case, in a word, and the error's text."""

    kind: str
    text: str


def main() -> int:
    options = _options()
    if options.worker:
        return _work(options)
    ended = _Run(options).go()
    return 1 if ended else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long (default 60)")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="at most so many cases")
    parser.add_argument("--seed", type=int, default=0, help="the first case's (default 0)")
    parser.add_argument("--only", default="", help="formats whose names begin so, such as gguf")
    parser.add_argument("--memory", type=int, default=MEGABYTES, metavar="MB",
                        help=f"a case may take (default {MEGABYTES}; 0 = no limit)")  # fmt: skip
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), metavar="FOLDER",
                        help="where findings are kept (default fuzz-findings)")  # fmt: skip
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- the process that watches ---------------------------------------------------------------------


@dataclass
class _Run:
    """Starts readers, one after the other, and counts what they say."""

    options: argparse.Namespace
    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def go(self) -> int:
        """The number of findings."""
        begin = told = time.monotonic()
        seed, last = self.options.seed, self.options.seed + self.options.cases
        while seed < last and time.monotonic() - begin < self.options.seconds:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
                for done in self._one_reader(seed, Path(scratch)):
                    seed, now = done + 1, time.monotonic()
                    if now - told > 10:
                        told = now
                        self._tell(f"{now - begin:.0f} s, case {seed}")
                    if seed >= last or now - begin >= self.options.seconds:
                        break
        self._tell(f"done in {time.monotonic() - begin:.0f} s")
        for kind, count in self.kinds.most_common():
            print(f"{count:6} x {kind}")
        return self.counts[FINDING]

    def _one_reader(self, seed: int, scratch: Path) -> Iterator[int]:
        """Yields the seed of each case that is done; ends when the reader has."""
        errors = scratch / "stderr"
        command = [sys.executable, __file__, "--worker", "--seed", str(seed), "--only",
                   self.options.only, "--memory", str(self.options.memory), "--findings",
                   str(scratch)]  # fmt: skip
        with (
            errors.open("ab") as log,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            ) as reader,
        ):
            try:
                ready = _line(reader, _STARTED)
                while ready and (line := _line(reader, CASE_SECONDS)):
                    outcome = Outcome(**json.loads(line))
                    self._count(seed, outcome, scratch)
                    yield seed
                    seed += 1
                if ready and line == b"":  # it has ended, or is about to
                    reader.wait(CASE_SECONDS)
            finally:
                reader.kill()
        hung = reader.returncode == -9
        said = errors.read_text(errors="replace")[:6_000]
        if not ready:
            raise SystemExit(f"the reader did not start:\n{said}")
        text = f"HANG: no answer in {CASE_SECONDS} s" if hung else f"CRASH {reader.returncode}"
        self._count(seed, Outcome(FINDING, f"{text}\n{said}"), scratch)
        yield seed

    def _count(self, seed: int, outcome: Outcome, scratch: Path) -> None:
        self.counts[outcome.kind] += 1
        if outcome.kind != FINDING:
            return
        kind = outcome.text.strip().splitlines()[0][:160]
        self.kinds[kind] += 1
        kept = self.options.findings / str(seed)
        if self.kinds[kind] <= 3:  # of a kind, some are enough
            shutil.copytree(scratch, kept, dirs_exist_ok=True)
            (kept / "finding.txt").write_text(f"seed {seed}\n{outcome.text}\n", errors="replace")
            print(f"finding, seed {seed}: {kind} ({kept})", flush=True)

    def _tell(self, when: str) -> None:
        print(f"{when}: {self.counts[LOADED]} loaded, {self.counts[REFUSED]} refused, "
              f"{self.counts[FINDING]} findings", flush=True)  # fmt: skip


def _line(reader: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """Lets the reader take its next step, and what it says of that.

    None when it says nothing for so long, and nothing but b"" when it has ended.
    """
    assert reader.stdin and reader.stdout
    with contextlib.suppress(BrokenPipeError):
        reader.stdin.write(b"\n")
        reader.stdin.flush()
    if not select.select([reader.stdout], [], [], seconds)[0]:
        return None
    return reader.stdout.readline()


# --- the process that reads -----------------------------------------------------------------------


def _work(options: argparse.Namespace) -> int:
    """Reads cases from a seed on, and says a line for each, until it is killed."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    out = os.fdopen(os.dup(1), "w")
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from fuzz_models import GGUF_NAME, damage, make_models

    with tempfile.TemporaryDirectory(prefix="fuzz-models-") as folder:
        models = make_models(Path(folder))
    names = sorted(name for name in models if name.startswith(options.only))
    drawn = [name for name in names for _ in range(4 if name == "gguf" else 1)]
    scratch = options.findings
    for name in names:  # what is imported and kept on first use; and they are valid
        _write(scratch, models[name])
        read(_place(scratch, GGUF_NAME), random.Random(0))
    if options.memory:
        _limit_memory(options.memory << 20)
    sys.stdin.readline()
    out.write("ready\n")
    out.flush()
    seed = options.seed
    while sys.stdin.readline() == "\n":
        os.ftruncate(2, 0)  # what is said from here on is of this case
        chance = random.Random(seed)
        name = chance.choice(drawn)
        files, told = damage(models[name], chance)
        _write(scratch, files)
        outcome = judge(_place(scratch, GGUF_NAME), chance, read)
        if outcome.kind == FINDING:
            outcome.text = f"{outcome.text}\n{name}: {'; '.join(told)}"
        out.write(json.dumps(vars(outcome)) + "\n")
        out.flush()
        seed += 1


def judge(
    path: Path, chance: random.Random, reader: Callable[[Path, random.Random], None]
) -> Outcome:
    """Runs a reader over a model: what it did, as a finding where it is not what it should be."""
    from fourbee.foundation.errors import FourbeeError

    try:
        reader(path, chance)
    except FourbeeError as error:
        wrong = _wrong_with(str(error), path)
        if wrong:
            return Outcome(FINDING, f"{wrong}: {_where(error)}\n{_trace(error)}")
        return Outcome(REFUSED, str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return Outcome(FINDING, f"{_where(error)}\n{_trace(error)}")
    return Outcome(LOADED, "")


def _wrong_with(message: str, path: Path) -> str | None:
    """What a refusal's line is not; None for a good one."""
    if not message.isprintable():
        return "not one printable line"
    if len(message) > 1_000:
        return "a long message"
    # A template may be in any of three places: its line is what helps.
    names = [file.name for file in ([path, *path.iterdir()] if path.is_dir() else [path])]
    return None if any(name in message for name in [*names, "chat template"]) else "names no file"


def read(path: Path, chance: random.Random) -> None:
    """Loads a model and lets it write, as a person would."""
    from fourbee.engine.llm import LLM
    from fourbee.engine.sampling import SamplingParams
    from fourbee.kernels.backends import native_built
    from fourbee.text.chat_format import ChatFormat

    backend, quantize = chance.choice(_BACKENDS) if native_built() else ("numpy", "none")
    llm = LLM.load(path, backend=backend, quantize=quantize)
    if backend == "native":
        from fourbee.kernels import _native

        _native.set_threads(1)  # a thread's stack counts as memory
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    for answer in llm.generate(["The model <|im_end|> 中国", [0, 1]], params):
        assert answer.finish_reason in ("length", "error"), answer.finish_reason
    ChatFormat(llm.tokenizer).render([{"role": "user", "content": "Hello"}])
    llm.tokenizer.decode(range(min(llm.tokenizer.vocab_size, 2_000)))


def _write(scratch: Path, files: dict[str, bytes]) -> None:
    """The case's files, and no other's."""
    folder = scratch / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _place(scratch: Path, gguf: str) -> Path:
    file = scratch / "model" / gguf
    return file if file.exists() else file.parent


def _limit_memory(size: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _where(error: BaseException) -> str:
    """The error and the line of fourbee that it left last: what findings are counted by."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/fourbee/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {place}"


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6_000:]


if __name__ == "__main__":
    sys.exit(main())
