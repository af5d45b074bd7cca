"""Runs in the interpreter that has llama.cpp: one JSON document in, one out. Imports no fourbee."""

import ctypes
import json
import sys

import llama_cpp
import numpy as np

F32 = 0  # ggml's type of the keys and values that are kept


@llama_cpp.llama_log_callback
def silent(level, text, data) -> None:
    pass


def main() -> None:
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    asked = json.load(sys.stdin)
    model = llama_cpp.Llama(
        asked["path"], n_ctx=256, n_batch=256, logits_all=True, verbose=False, type_k=F32,
        type_v=F32, n_threads=2, n_threads_batch=2,
    )  # fmt: skip
    prompts = [tokens(model, text) for text in asked["texts"]]
    greedy, forced = [], []
    for prompt, answer in zip(asked["prompts"], asked["answers"], strict=True):
        greedy.append(generate(model, prompt, len(answer)))
        # What it would say at each place of the answer, were all before it that answer.
        model.reset()
        model.eval(prompt + answer[:-1])
        rows = model.scores[len(prompt) - 1 : len(prompt) + len(answer) - 1]
        forced.append(np.argmax(rows, axis=-1).tolist())
    json.dump(
        {
            "metadata": model.metadata,
            "tokens": prompts,
            "greedy": greedy,
            "forced": forced,
            "texts": [model.detokenize(ids).decode("utf-8", "replace") for ids in greedy],
            "eos": model.token_eos(),
            "rows": model.n_vocab(),
        },
        sys.stdout,
    )


def tokens(model, text: str) -> list[int]:
    return model.tokenize(text.encode(), add_bos=True, special=True)


def generate(model, prompt: list[int], count: int) -> list[int]:
    model.reset()
    model.eval(prompt)
    ids: list[int] = []
    while len(ids) < count:
        ids.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(ids[-1:])
    return ids


if __name__ == "__main__":
    main()
