"""What the stages of training do to abacus, each with several seeds: numbers, whatever they say.

`grpo`: from examples to rewards. `reward`: learning from a reward model, watched by the truth.
`distill`: a teacher's distribution on the student's own answers, against its answers as examples.
`curriculum`: easy sums first, against all at once. `languages`: small languages given again, in
bits a byte. All recipes are in `recipes/`; seeds and folders are set here.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.foundation.errors import UsageError
from fourbee.foundation.settings import build, read_toml
from fourbee.training.generators.abacus import AbacusRecipe, write_abacus
from fourbee.training.pretrain import pretrain
from fourbee.training.run_log import LOG, read_log
from fourbee.training.stages import STAGES
from fourbee.training.text import TextRecipe
from fourbee.training.tokenizer import TokenizerRecipe, train_tokenizer
from fourbee.training.trainer import Reporter

Row = Mapping[str, Any]
Results = dict[str, Any]

# Student t for a 95% interval, by seeds less one.
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}


class Bench:
    """The data of abacus in a folder, and its recipes with what a bench changes in them."""

    def __init__(
        self,
        recipes: Path,
        folder: Path,
        threads: int,
        reporter: Reporter,
        texts: Mapping[str, Path] | None = None,  # by language
    ) -> None:
        self.recipes = recipes
        self.folder = folder
        self.threads = threads
        self.reporter = reporter
        self.texts = texts or {}
        self.shown: list[Path] = []  # the runs that a report of the experiment draws
        self.data = folder / "data"

    def prepare(self) -> None:
        """Writes data and tokenizer, once."""
        tokenizer = self.folder / "tokenizer"
        if (tokenizer / "tokenizer.json").is_file():
            return
        write_abacus(
            build(AbacusRecipe, read_toml(self.recipes / "data.toml") | {"output": str(self.data)})
        )
        table = read_toml(self.recipes / "tokenizer.toml")
        table |= {"output": str(tokenizer), "data": self.moved(table["data"])}
        train_tokenizer(build(TokenizerRecipe, table))

    def moved(self, paths: Sequence[str]) -> list[str]:
        """A recipe's files of data, where this bench has them."""
        return [str(self.data / Path(path).name) for path in paths]

    def run(self, recipe: str, name: str, seed: int, **changes: Any) -> Path:
        """Runs a recipe, or goes on with what an earlier call left; returns the model's folder.

        Recipes are named by their stage; what follows a dash tells several of one stage apart.
        """
        self.prepare()
        kind, train = STAGES[recipe.partition("-")[0]]
        table = read_toml(self.recipes / f"{recipe}.toml")
        output = self.folder / f"{name}-{seed}"
        for key in ("data", "tasks"):
            if key in table:
                table[key] = self.moved(table[key])
        [table["validation"]["path"]] = self.moved([table["validation"]["path"]])
        if "tokenizer" in table:
            table["tokenizer"] = str(self.folder / "tokenizer")
        table |= {"output": str(output), "seed": seed, "threads": self.threads}
        if "init_from" in changes:
            table.pop("model", None)
        for key, value in changes.items():
            table[key] = {**table.get(key, {}), **value} if isinstance(value, dict) else value
        return self.train(f"{name}, seed {seed}", train, build(kind, table))

    def train(self, told: str, train: Callable[..., Path], recipe: Any) -> Path:
        """The model's folder of a run, which is only written again if it is done.

        That is the trainer's to see: it refuses a folder that has another recipe's run.
        """
        self.reporter.preparing(told)
        return train(recipe, self.reporter)


def from_examples_to_rewards(bench: Bench, seeds: Sequence[int]) -> Results:
    """Exact answers to held-out sums after SFT and after GRPO."""
    before, after, seconds = [], [], []
    for seed in seeds:
        start = bench.run("sft", "sft", seed)
        end = bench.run("grpo", "grpo", seed, init_from=str(start))
        bench.shown += [start.parent, end.parent]
        seconds.append(_most(start.parent, "seconds") + _most(end.parent, "seconds"))
        before.append(last(start.parent, "exact"))
        after.append(last(end.parent, "exact"))
    return {"sft": spread(before), "grpo": spread(after), "seconds": spread(seconds)}


def from_a_reward_model(bench: Bench, seeds: Sequence[int]) -> Results:
    """Reward, truth and KL during GRPO on a judge, and on one that was trained too little."""
    # What judges has to know more than what is judged.
    master = str(bench.run("sft-master", "master", 0))
    judge = bench.run("reward", "judge", 0, init_from=master)
    hasty = bench.run("reward", "hasty-judge", 0, init_from=master, updates=100)
    results: Results = {"pairs told apart": last(judge.parent, "accuracy")}
    results["pairs told apart by the hasty judge"] = last(hasty.parent, "accuracy")
    before, after = [], []
    for seed in seeds:
        start = bench.run("sft", "sft", seed)
        end = bench.run(
            "grpo-on-reward", "judged", seed, init_from=str(start), reward_model=str(judge)
        )
        before.append(last(start.parent, "exact"))
        after.append(last(end.parent, "exact"))
    results |= {"exact before": spread(before), "exact after": spread(after)}
    start = bench.run("sft", "sft", 0)
    for name, model, weight in (
        ("judged", judge, None),
        ("judged-without-kl", judge, 0.0),
        ("hastily-judged", hasty, None),
        ("hastily-judged-without-kl", hasty, 0.0),
    ):
        changes = {} if weight is None else {"policy": {"kl_weight": weight}}
        end = bench.run(
            "grpo-on-reward", name, 0, init_from=str(start), reward_model=str(model), **changes
        )
        bench.shown.append(end.parent)
        results[name] = _hacking(end.parent)
    return results


def _hacking(run: Path) -> Sequence[Row]:
    """What the judge says of answers to held-out sums, and the truth, by update; the KL so far."""
    records, kl, found = read_log(run / LOG), 0.0, []
    for record in records:
        kl = record.get("reference_kl", kl)
        if "validation" in record:
            measured = record["validation"]["held_out"]
            kept = {key: measured[key] for key in ("reward_model", "exact", "share")}
            found.append({"update": record["validation"]["update"], **kept, "reference_kl": kl})
    return found


def from_a_teacher(bench: Bench, seeds: Sequence[int]) -> Results:
    """On-policy distillation against SFT on the teacher's answers: same start, same tokens.

    One teacher is in doubt (of its answers, sampled, half are right), one is certain.
    """
    results: Results = {}
    for name, changes in (
        ("doubtful", {"validation": {"enough": 0.6}, "validate_every": 10}),
        ("certain", {}),
    ):
        teacher = bench.run("sft-master", "master" if name == "certain" else name, 0, **changes)
        answers = bench.folder / f"{name}.jsonl"
        if not answers.is_file():
            _write_answers(teacher, bench.data / "tasks.jsonl", answers)
        starts, own, examples = [], [], []
        for seed in seeds:
            start = bench.run("sft", "student", seed, validation={"enough": 0.3})
            student = bench.run(
                "distill", f"{name}-distill", seed, init_from=str(start), teacher=str(teacher)
            )
            distill = read_toml(bench.recipes / "distill.toml")
            taught = bench.run(
                "sft", f"{name}-taught", seed, init_from=str(start), data=[str(answers)],
                updates=distill["updates"], optimizer=distill["optimizer"],
                tokens_per_update=math.ceil(_most(student.parent, "tokens") / distill["updates"]),
                validation={"enough": 0.0}, validate_every=50,
            )  # fmt: skip
            bench.shown += [student.parent, taught.parent]
            starts.append(last(start.parent, "exact"))
            own.append(last(student.parent, "exact"))
            examples.append(last(taught.parent, "exact"))
        gains = [one - other for one, other in zip(own, examples, strict=True)]
        results[f"{name} teacher"] = {
            "teacher": last(teacher.parent, "exact"),
            "start": spread(starts),
            "on-policy distillation": spread(own),
            "SFT on the teacher's answers": spread(examples),
            "difference": spread(gains),
        }
    return results


def _most(run: Path, key: str) -> float:
    """The last of a number that grows during a run."""
    return max(float(record.get(key, 0)) for record in read_log(run / LOG))


def with_a_curriculum(bench: Bench, seeds: Sequence[int]) -> Results:
    """Exact answers after the same tokens, easy sums first or all at once."""
    points = [{"at": 0.0, "difficulty": 0.3}, {"at": 0.6, "difficulty": 1.0}]
    results: dict[str, list[float]] = {"curriculum": [], "none": []}
    for seed in seeds:
        for name, curriculum in (("curriculum", points), ("none", [])):
            end = bench.run(
                "sft", f"order-{name}", seed, curriculum=curriculum, updates=320,
                tokens_per_update=768, validation={"enough": 0.0}, validate_every=80,
            )  # fmt: skip
            bench.shown.append(end.parent)
            results[name].append(last(end.parent, "exact"))
    gains = [one - other for one, other in zip(*results.values(), strict=True)]
    return {name: spread(values) for name, values in (results | {"difference": gains}).items()}


def small_languages(bench: Bench, seeds: Sequence[int]) -> Results:
    """Bits a byte of each language, its texts as they are or small ones given more often.

    Of the bench's file of plain text for each language the last tenth is held out. UsageError for
    fewer than two.
    """
    if len(bench.texts) < 2:
        raise UsageError("--text: expected LANGUAGE=FILE at least twice")
    texts, folder = bench.texts, bench.folder / "languages"
    folder.mkdir(parents=True, exist_ok=True)
    sources, held_out = [], []
    for language, path in texts.items():
        text = path.read_text(encoding="utf-8")
        cut = int(0.9 * len(text))
        (folder / f"{language}.txt").write_text(text[:cut], encoding="utf-8")
        sources.append({"path": str(folder / f"{language}.txt"), "language": language})
        held_out.append(json.dumps({"text": text[cut:], "skill": language}) + "\n")
    (folder / "held-out.jsonl").write_text("".join(held_out), encoding="utf-8")
    train_tokenizer(
        TokenizerRecipe(
            folder / "tokenizer", (folder / "held-out.jsonl",), vocab_size=265, han=False
        )
    )
    results: dict[str, dict[str, Any]] = {}
    for name, exponent in (("as they are", 1.0), ("exponent 0.3", 0.3)):
        bits: dict[str, list[float]] = {language: [] for language in texts}
        for seed in seeds:
            output = folder / f"run-{exponent}-{seed}"
            recipe = build(TextRecipe, dict(_LANGUAGES) | {
                "output": str(output), "data": sources, "seed": seed, "threads": bench.threads,
                "tokenizer": str(folder / "tokenizer"),
                "mixture": {"by": "language", "exponent": exponent},
                "validation": {"path": str(folder / "held-out.jsonl"), "samples": 10**6},
            })  # fmt: skip
            bench.train(f"{name}, seed {seed}", pretrain, recipe)
            bench.shown.append(output)
            measured = _validations(output)[-1]
            for language in texts:
                bits[language].append(measured[language]["loss"] / math.log(2))
        results[name] = {language: spread(values) for language, values in bits.items()}
    return results


_LANGUAGES: Mapping[str, Any] = {
    "updates": 400,
    "tokens_per_update": 2048,
    "tokens_per_pack": 2048,
    "precision": "float32",
    "validate_every": 400,
    "checkpoint_every": 400,
    "model": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 128,
    },
    "optimizer": {"matrices": "muon", "learning_rate": 4e-3, "decay_fraction": 0.5},
}


EXPERIMENTS: Mapping[str, Callable[[Bench, Sequence[int]], Results]] = {
    "grpo": from_examples_to_rewards,
    "reward": from_a_reward_model,
    "distill": from_a_teacher,
    "curriculum": with_a_curriculum,
    "languages": small_languages,
}


def spread(values: Sequence[float]) -> Row:
    """Mean, the half width of its 95% interval over seeds, and the values."""
    half = math.nan
    if len(values) > 1:
        half = _T95.get(len(values) - 1, 2.6) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "half_width_95": half, "values": list(values)}


def last(run: Path, measure: str) -> float:
    """A measure at the end of a run, the mean over what is held out."""
    held_out = [one for one in _validations(run)[-1].values() if isinstance(one, Mapping)]
    return float(statistics.mean(one[measure] for one in held_out))


def _validations(run: Path) -> list[dict[str, Any]]:
    return [record["validation"] for record in read_log(run / LOG) if "validation" in record]


def _write_answers(teacher: Path, tasks: Path, output: Path) -> None:
    """The teacher's sampled answers as conversations to learn from."""
    llm = LLM.load(teacher, backend="auto")
    samples = [json.loads(line) for line in tasks.read_text(encoding="utf-8").splitlines()]
    params = [
        SamplingParams(temperature=1.0, max_tokens=8, seed=number) for number in range(len(samples))
    ]
    prompts = [llm.chat_format.encode(sample["prompt"]) for sample in samples]
    answers = llm.generate(prompts, params)
    with output.open("w", encoding="utf-8") as file:
        for sample, answer in zip(samples, answers, strict=True):
            messages = [*sample["prompt"], {"role": "assistant", "content": answer.text}]
            print(json.dumps({"messages": messages, "skill": sample["skill"]}), file=file)
