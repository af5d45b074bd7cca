"""A checkpoint of Qwen3-0.6B's shape, vocabulary and tokenizer: served text is transformers'."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from .checkpoints import write_qwen
from .programs import ServeProcess

NAME = "Qwen3-0.6B-shape"
TOKENS = 32
PROMPT = "请解释量子纠缠的基本原理。"
MESSAGES = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "What is 2 + 2? 🙂"},
]


class Oracle:
    """transformers with the same folder, in float32."""

    def __init__(self, folder: Path) -> None:
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        transformers = pytest.importorskip("transformers")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._tensor = torch.tensor

    def continued(self, prompt_ids: list[int]) -> str:
        """The greedy text after a prompt."""
        tensor = self._tensor([prompt_ids])
        ids = self._model.generate(
            tensor,
            attention_mask=self._tensor([[1] * len(prompt_ids)]),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=TOKENS,
        )
        return self.tokenizer.decode(ids[0, len(prompt_ids) :], skip_special_tokens=True)


@dataclass(frozen=True)
class Both:
    """The same checkpoint served and in transformers."""

    server: ServeProcess
    oracle: Oracle


SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=[2, pytest.param(28, marks=SLOW)], ids="{}-layers".format)
def both(request, test_data: Path) -> Iterator[Both]:
    with TemporaryDirectory() as parent:
        folder = write_qwen(Path(parent) / NAME, test_data, num_layers=request.param)
        server = ServeProcess("--model", str(folder), "--dtype", "float32")
        try:
            oracle = Oracle(folder)
            print(f"ready after {server.ready():.1f} s")
            yield Both(server, oracle)
        finally:
            code, _ = server.end()
    assert code == 0


def at_once(create: Callable[..., Any], options: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The whole answer, and the events of its stream, computed in one batch."""
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(create, **options)
        events = list(create(**options, stream=True))
        return whole.result(), events


def test_greedy_completions_are_those_of_transformers(both):
    client = both.server.client()
    options: dict[str, Any] = {
        "model": NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": TOKENS
    }  # fmt: skip
    prompt_ids = both.oracle.tokenizer(PROMPT)["input_ids"]
    expected = both.oracle.continued(prompt_ids)
    answer, events = at_once(client.completions.create, options)
    assert answer.choices[0].text == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(prompt_ids)
    assert answer.usage.completion_tokens == TOKENS
    assert "".join(event.choices[0].text for event in events) == expected
    assert [e.choices[0].finish_reason for e in events if e.choices[0].finish_reason] == ["length"]


def test_greedy_chat_is_that_of_transformers(both):
    client = both.server.client()
    options: dict[str, Any] = {
        "model": NAME, "messages": MESSAGES, "temperature": 0, "max_tokens": TOKENS
    }  # fmt: skip
    prompt_ids = both.oracle.tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    expected = both.oracle.continued(prompt_ids)
    answer, events = at_once(client.chat.completions.create, options)
    assert answer.choices[0].message.content == expected
    assert answer.usage.prompt_tokens == len(prompt_ids)
    assert "".join(event.choices[0].delta.content or "" for event in events) == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_example_of_the_description_runs_unchanged(both):
    body = {"prompt": PROMPT, "temperature": 0.7, "max_tokens": 512, "stream": False}
    url = f"{both.server.url}/v1/completions"
    answer = httpx.post(url, json=body, timeout=1500, trust_env=False)
    assert answer.status_code == 200
    assert isinstance(answer.json()["choices"][0]["text"], str)
    assert answer.json()["usage"]["completion_tokens"] <= 512
