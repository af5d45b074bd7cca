"""The server over the real engine in its process, loaded as `fourbee serve` loads it.

The checkpoint is tiny and random.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from fourbee.model.checkpoint_files import save_weights
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import tensor_shapes, weights_tree
from fourbee.server.engine_link import spawn_process
from fourbee.server.serve import ServeSettings, load_text
from fourbee.text.bpe import train_bpe

from .fakes import CHATML, FakeModel, LiveServer, eventually, openai_client

CONTEXT = 160


def write_checkpoint(folder) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from fourbee.kernels.torch_ops import TorchOperations

    ops = TorchOperations("cpu", torch.float32)
    backend = train_bpe(["say hello to the world, 量子纠缠 🙂"] * 8, 300)
    config = Qwen3Config(
        vocab_size=backend.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        torch_dtype="float32",
    )
    random = np.random.default_rng(7)
    tensors = {
        name: ops.from_numpy(
            (random.normal(0, 0.15, shape) if len(shape) == 2 else np.ones(shape)).astype("f4")
        )
        for name, shape in tensor_shapes(config).items()
    }
    save_weights(folder, weights_tree(config, tensors), ops)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True})
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-qwen3"
    folder.mkdir()
    write_checkpoint(folder)
    settings = ServeSettings(model=str(folder), device="cpu")
    text = load_text(settings)
    model = FakeModel(
        None, text.tokenizer, text.chat_format, "tiny-qwen3", text.defaults, embedded=False
    )
    server = LiveServer(model, spawn_process, settings.of_model)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def ask(real):
    with openai_client(real.url) as client:
        yield client


def test_the_folder_s_name_sizes_and_defaults_are_served(ask):
    model = ask.models.retrieve("tiny-qwen3")
    assert model.fourbee["embedded"] is False
    assert model.fourbee["max_context"] == CONTEXT
    assert model.fourbee["defaults"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


def test_a_greedy_answer_scored_again_is_greedy_at_every_token(ask, real):
    """What an evaluation harness does: prompt and continuation as ids, scored with echo."""
    prompt = real.model.tokenizer.encode("say hello to", True)
    options = {"model": "tiny-qwen3", "temperature": 0, "logprobs": 1}
    answer = ask.completions.create(prompt=prompt, max_tokens=8, **options).choices[0]
    vocabulary = {real.model.tokenizer.piece(i): i for i in range(real.model.tokenizer.vocab_size)}
    ids = [vocabulary[spelled(token)] for token in answer.logprobs.tokens]
    assert len(ids) == 8

    other = [*prompt, 5, 6, 7]
    answers = ask.completions.create(
        prompt=[[*prompt, *ids], other], max_tokens=1, echo=True, **options
    ).choices
    scores = [choice.logprobs for choice in answers]
    continued = slice(len(prompt), -1)
    assert scores[0].token_logprobs[continued] == pytest.approx(
        answer.logprobs.token_logprobs, abs=1e-4
    )
    assert [len(s.tokens) for s in scores] == [len(prompt) + 9, len(other) + 1]
    assert is_greedy(scores[0], continued) and not is_greedy(scores[1], continued)


def spelled(token: str) -> bytes:
    if token.startswith("bytes:"):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode()


def is_greedy(scores, part: slice) -> bool:
    pairs = zip(scores.token_logprobs[part], scores.top_logprobs[part], strict=True)
    return all(logprob == max(top.values()) for logprob, top in pairs)


def test_the_same_seed_gives_the_same_text_alone_and_in_a_crowd(ask):
    def say(seed: int) -> str:
        answer = ask.chat.completions.create(
            model="tiny-qwen3",
            messages=[{"role": "user", "content": "hello"}],
            seed=seed,
            temperature=1.5,
            max_tokens=12,
        )
        return answer.choices[0].message.content

    alone = [say(seed) for seed in range(4)]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(say, [0, 1, 2, 3] * 3)) == alone * 3


@pytest.mark.parametrize("prompt", ["say hello", "请解释量子纠缠的基本原理。"])
def test_a_stream_gives_the_same_as_a_whole_answer(ask, prompt):
    options = {"model": "tiny-qwen3", "prompt": prompt, "seed": 3, "max_tokens": 24}
    whole = ask.completions.create(**options)
    chunks = ask.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.usage.completion_tokens == 24


def test_an_answer_fills_the_context_and_no_more(ask):
    answer = ask.chat.completions.create(
        model="tiny-qwen3",
        messages=[{"role": "user", "content": "hello"}],
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert answer.usage.total_tokens == CONTEXT
    assert answer.choices[0].finish_reason == "length"


def test_a_prompt_alone_is_scored(ask):
    choice = ask.completions.create(
        model="tiny-qwen3", prompt="say hello", max_tokens=0, echo=True, logprobs=2
    ).choices[0]
    assert choice.text == "say hello"
    assert choice.logprobs.token_logprobs[0] is None
    assert all(logprob < 0 for logprob in choice.logprobs.token_logprobs[1:])
    assert all(len(top) in (2, 3) for top in choice.logprobs.top_logprobs[1:])


def test_a_client_that_leaves_frees_the_engine(ask, real):
    with ask.completions.create(
        model="tiny-qwen3", prompt="say", max_tokens=140, stream=True
    ) as chunks:
        next(iter(chunks))
    assert eventually(lambda: real.client.num_living == 0)
    # There is room for as many as before.
    answers = ask.completions.create(model="tiny-qwen3", prompt=["say"] * 16, max_tokens=4)
    assert len(answers.choices) == 16


def test_a_conversation_goes_on_from_what_was_read(ask):
    text = "say hello to the world, hello world, the world " * 4

    def said_of(prompt: str, **more):
        answer = ask.completions.create(
            model="tiny-qwen3", prompt=prompt, max_tokens=8, temperature=0, extra_body=more
        )
        return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens

    said, cached = said_of(text, context_id="mine")
    assert cached == 0
    again, cached = said_of(text + said + " hello", context_id="mine")
    assert cached > 0
    # The same without a context, as all of it is in memory.
    assert said_of(text + said + " hello")[0] == again


def test_context_and_priority_are_checked(ask):
    for wrong, message in (
        ({"context_id": ""}, 'context_id = "": expected a name of 1 to 200 characters'),
        ({"context_id": "x" * 201}, "expected a name of 1 to 200 characters"),
        ({"priority": 101}, "priority = 101: expected a whole number from -100 to 100"),
        ({"context_id": "x", "n": 2}, 'context_id = "x": expected one prompt and n = 1'),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            ask.completions.create(model="tiny-qwen3", prompt="say", extra_body=wrong)
        assert message in str(error.value)
