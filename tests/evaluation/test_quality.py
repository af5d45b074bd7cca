"""What few bits cost: the measure means what it says, and the command tells it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fourbee.cli import run
from fourbee.cli.quality import _prompts, requirements, table
from fourbee.engine.checkpoint import open_checkpoint
from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.evaluation.quality import (
    MAX_TOKENS,
    Form,
    Quality,
    forms,
    gguf_rounding,
    measure,
    measure_served,
    reference,
    weight_errors,
)
from fourbee.model.gguf_checkpoint import open_source
from fourbee.model.packed_format import PackedFormat
from fourbee.model.packing import TABLES
from fourbee.model.quantize import quantize_model
from fourbee.model.weights import weights_tree


@pytest.fixture(scope="module")
def checkpoint(embedded_model):
    return open_checkpoint(embedded_model)


@pytest.fixture(scope="module")
def asked(checkpoint):
    return _prompts(checkpoint.tokenizer, None, 10, 0)


@pytest.fixture(scope="module")
def referred(checkpoint, asked):
    return reference(checkpoint, asked)


def noisy(name: str, matrix: np.ndarray) -> np.ndarray:
    """So coarse that some answers change."""
    step = np.float32(0.25 * matrix.std())
    return matrix if name in TABLES else np.rint(matrix / step) * step


def test_what_loses_nothing_is_equal(embedded_model, referred) -> None:
    network, answers = referred
    seen: list[int] = []
    exact = Form("exact", lambda _, matrix: matrix, 32)
    found = measure(network, open_source(embedded_model), exact, answers, lambda: seen.append(1))
    assert (found.greedy_equal, found.top1_equal) == (1.0, 1.0)
    assert found.weight_error == 0.0 and abs(found.mean_kl) < 1e-12
    assert len(seen) == found.prompts == len(answers)
    assert found.tokens == sum(len(one.tokens) + one.ended for one in answers)


def test_an_answer_counts_as_equal_where_the_form_itself_would_give_it(
    embedded_model, checkpoint, referred, asked, tmp_path
) -> None:
    network, answers = referred
    tensors = open_source(embedded_model)
    coarse = PackedFormat("int4", 128, False, "plain", "int4")
    quantize_model(embedded_model, tmp_path / "packed", coarse)
    packed = open_source(tmp_path / "packed")
    form = Form("coarse", lambda name, _: noisy(name, packed.dense(name)), 4.125)
    found = measure(network, tensors, form, answers)
    arrays = {}
    for name in tensors.shapes:
        array = tensors.dense(name)
        array = form.lossy(name, array) if array.ndim == 2 else array
        arrays[name] = network.ops.from_numpy(array, name in TABLES)
    weights = weights_tree(tensors.config, arrays)
    llm = LLM(weights, network.ops, checkpoint.tokenizer, checkpoint.defaults)
    given = llm.generate(asked, SamplingParams(temperature=0, max_tokens=MAX_TOKENS))
    equal = [one.token_ids == answer.tokens for one, answer in zip(given, answers, strict=True)]
    assert found.greedy_equal == sum(equal) / len(equal)
    assert 0 < found.greedy_equal < 1 and found.mean_kl > 1e-4


def test_the_divergence_is_the_mean_of_sums_of_p_log_p_over_q(embedded_model, referred) -> None:
    network, answers = referred
    found = measure_served(network, open_checkpoint(embedded_model), "int4", answers[:1])
    [answer] = answers[:1]
    tokens = [*answer.prompt, *answer.tokens]
    assert answer.ended and found.tokens == len(answer.tokens) + 1
    assert 0 < found.mean_kl < 0.01
    exact = network.logits(tokens, len(answer.prompt) - 1)
    assert (exact[:-1].argmax(-1) == answer.tokens).all()


def test_forms_have_the_bits_and_the_order_that_they_should(embedded_model) -> None:
    tensors = open_source(embedded_model)
    found = {form.name: form for form in forms(tensors)}
    bits = {name: form.bits_per_weight for name, form in found.items()}
    assert bits == {
        "int8": 8.25, "int4": 4.25, "int4, group 32": 4.5, "int4 symmetric": 4.25,
        "int4 search": 4.25, "int4 plain": 4.25,
        "GGUF Q8_0": 8.5, "GGUF Q4_0": 4.5,
    }  # fmt: skip
    matrix = tensors.dense("model.layers.0.mlp.up_proj.weight").astype(np.float32)
    error = {
        name: np.linalg.norm(form.lossy("model.layers.0.mlp.up_proj.weight", matrix) - matrix)
        for name, form in found.items()
    }
    order = ["int8", "int4, group 32", "int4", "int4 symmetric", "int4 plain"]
    assert sorted(order, key=lambda name: error[name]) == order


def test_gguf_rounding_is_llama_cpps() -> None:
    gguf = pytest.importorskip("gguf")
    matrix = np.random.default_rng(0).standard_t(4, (8, 64)).astype(np.float32)
    for name, kind in (("layer", "Q4_0"), (TABLES[0], "Q8_0")):
        of = gguf.GGMLQuantizationType[kind]
        theirs = gguf.quants.dequantize(gguf.quants.quantize(matrix, of), of)
        assert (gguf_rounding("Q4_0")(name, matrix) == theirs).all()


def test_errors_of_random_weights() -> None:
    """What docs/quality.md says, with the bounds that hold and those that do not."""
    found = weight_errors()
    q4_k = {"gaussian": 0.0712, "uniform": 0.0547, "heavy-tailed": 0.0866, "outliers": 0.0938}
    for distribution in ("gaussian", "heavy-tailed", "outliers"):
        assert found[distribution]["int4, group 32"] < found[distribution]["GGUF Q4_0"]
        assert found[distribution]["int4"] < found[distribution]["GGUF Q4_0"]
        assert found[distribution]["int4"] < found[distribution]["int4 symmetric"] - 0.006
    for distribution in ("heavy-tailed", "outliers"):
        assert found[distribution]["int4, group 32"] < q4_k[distribution]
    assert found["uniform"]["int4 search"] < found["uniform"]["GGUF Q4_0"]
    assert (
        found["gaussian"]["int4"] < 0.0817 and found["heavy-tailed"]["int4"] < q4_k["heavy-tailed"]
    )


def test_requirements_say_what_is_missed() -> None:
    good = Quality(4.25, 0.09, 0.96, 0.99, 1e-3, 2e-4, 100, 1000)
    found = {"int8": Quality(8.25, 0.01, 0.98, 1, 0, 0, 100, 1000), "int4": good, "GGUF Q4_0": good}
    errors = {"gaussian": {"int4": 0.1, "GGUF Q4_0": 0.09}}
    assert [(one["asked"], one["met"]) for one in requirements(found, errors)] == [
        (">= 0.99", False), (">= 0.95", True), ("<= 0.001", True), ("<= 0.09", False),
    ]  # fmt: skip
    assert "| int4 | 4.25 | 0.0900 | 96.0% | 99.00% | 1.00e-03 ± 2e-04 |" in table(found)


def test_the_command_prints_tables_and_one_document(tmp_path, capsys) -> None:
    lines = ['{"messages": [{"role": "user", "content": "What is 12 + 30?"}]}',
             '{"prompt": "The sun"}', '{"prompt": "left out"}']  # fmt: skip
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(lines))
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"What is {n} + {n + 3}? It is {2 * n + 3}.\n" for n in range(120)))
    words = ["--prompts", prompts, "--samples", 2, "--output", tmp_path / "out"]
    words += ["--calibration", texts]
    assert run(["bench", "quality", *map(str, words)]) == 0
    out = capsys.readouterr().out
    document = json.loads(out.splitlines()[-1])
    assert document["samples"] == 2 and document["forms"]["int8"]["prompts"] == 2
    assert {"int4", "int4 gptq", "GGUF Q4_0"} < set(document["forms"])
    written = (tmp_path / "out" / "quality-fourbee-mini.md").read_text()
    assert written in out and written.startswith("| weights | bits | weight error |")
    saved = (tmp_path / "out" / "quality-fourbee-mini.json").read_text()
    assert json.loads(saved) == document


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "--prompts {}: no such file"), ("", "--prompts {}: holds no samples"),
     ('{"text": "a"}', '{}:1: expected the key "messages" or "prompt"')],
)  # fmt: skip
def test_prompts_that_are_none_are_one_line(tmp_path, capsys, content, expected) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    assert run(["bench", "quality", "--prompts", str(path)]) == 2
    assert capsys.readouterr().err == f"fourbee: {expected.replace('{}', str(path), 1)}\n"
