"""A tokenizer from the metadata of a GGUF file, as if read from tokenizer.json, and the way back.

A GGUF file keeps the vocabulary, the merges and the kind of each token, but only names what cuts
and normalises a text (`tokenizer.ggml.pre`). Known here is "qwen2", with NFC as in Qwen's own files
(llama.cpp leaves that out). A tokenizer that cuts otherwise is kept whole beside it, under the
format's own key for that, which llama.cpp does not read. Files are `model/gguf_file.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from tokenizers import Tokenizer as Backend

from fourbee.foundation.errors import ModelFileError
from fourbee.text.tokenizer import Tokenizer, byte_of_letter

# A whole tokenizer.json, for what the other keys cannot say.
_WHOLE = "tokenizer.huggingface.json"
# Kinds of tokens (tokenizer.ggml.token_type).
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
# These end a text wherever the vocabulary has them, as in llama.cpp: a file names one end, and
# Qwen's generation_config.json both.
_ENDS = ("<|im_end|>", "<|endoftext|>")
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
               "use_regex": False}  # fmt: skip


def gguf_tokenizer(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer; ModelFileError, which begins with `source`, for one that is not Qwen's kind.

    Values as `GgufFile.metadata` has them: arrays of numbers are NumPy's, others are lists.
    """
    reading = _Reading(metadata, source)
    reading.expect("model", "gpt2")
    if _WHOLE not in metadata:
        reading.expect("pre", "qwen2")
    reading.refuse_added_ends()
    tokens = reading.strings("tokens")
    kinds = reading.kinds(len(tokens))
    if len(set(tokens)) < len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        reading.refuse("tokens", f"has {_short(twice)} twice")
    whole = metadata.get(_WHOLE)
    if whole is None:
        backend = _backend(reading, tokens, kinds)
    else:
        backend = _whole_backend(source, whole, tokens)
    named = {
        f"{name}_token": tokens[token_id]
        for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items()
        if (token_id := reading.token_id(f"{key}_token_id", len(tokens))) is not None
    }
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ModelFileError(f"{source}: tokenizer.chat_template: expected a string")
    try:
        return Tokenizer(
            backend,
            chat_template=template,
            eos_token_ids=_ends(tokens, kinds, named.get("eos_token")),
            named_tokens=named,
        )
    except ModelFileError as error:
        raise ModelFileError(str(error).replace("tokenizer.json", source, 1)) from None


def vocabulary_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """What a GGUF file says of a tokenizer, filled up to `rows` with unused tokens.

    ModelFileError where it is not byte-level BPE or has more tokens than the model has rows.
    """
    text = tokenizer.to_json()
    layout = json.loads(text)
    if layout["model"]["type"] != "BPE":
        raise ModelFileError(f"tokenizer.json: {layout['model']['type']}: expected BPE")
    ids = {**layout["model"]["vocab"], **{t["content"]: t["id"] for t in layout["added_tokens"]}}
    if max(ids.values()) >= rows:
        raise ModelFileError(
            f"tokenizer.json: token {max(ids.values())}: expected less than the model's {rows} rows"
        )
    tokens = [f"[PAD{token_id}]" for token_id in range(rows)]
    kinds = np.full(rows, _UNUSED, dtype=np.int32)
    for token, token_id in ids.items():
        tokens[token_id], kinds[token_id] = token, _NORMAL
    for added in layout["added_tokens"]:
        kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    # The library writes pairs; older files have strings.
    merges = [m if isinstance(m, str) else " ".join(m) for m in layout["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
        **_named_ids(tokenizer, ids),
    }
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata if cuts_like_qwen(tokenizer) else {**metadata, _WHOLE: text}


def cuts_like_qwen(tokenizer: Tokenizer) -> bool:
    """Whether "qwen2" says how this tokenizer cuts and normalises a text before its merges."""
    ours, qwen = json.loads(tokenizer.to_json()), _layout({}, [], [])
    flags = ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
    return all(ours[key] == qwen[key] for key in ("normalizer", "pre_tokenizer")) and not any(
        ours["model"].get(flag) for flag in flags
    )


def _named_ids(tokenizer: Tokenizer, ids: Mapping[str, int]) -> dict[str, int]:
    """The ids of the beginning, the end and the padding, where the tokenizer has them.

    llama.cpp takes 11, a comma in Qwen, for a beginning that is not named: Qwen's files name
    <|endoftext|>, which is never added all the same.
    """
    named = {"bos_token": _ENDS[-1], **tokenizer.named_tokens}
    keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    found = {
        f"tokenizer.ggml.{key}_token_id": ids[token]
        for name, key in keys.items()
        if (token := named.get(name)) is not None and token in ids
    }
    if tokenizer.eos_token_ids:
        found.setdefault("tokenizer.ggml.eos_token_id", tokenizer.eos_token_ids[0])
    return found


class _Reading:
    """The `tokenizer.ggml.` keys of a file, checked as they are read."""

    def __init__(self, metadata: Mapping[str, Any], source: str) -> None:
        self._metadata = metadata
        self._source = source

    def error(self, key: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self._source}: tokenizer.ggml.{key} {problem}")

    def refuse(self, key: str, problem: str) -> NoReturn:
        raise self.error(key, problem)

    def value(self, key: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def expect(self, key: str, expected: str) -> None:
        value = self.value(key)
        if not isinstance(value, str) or value != expected:
            found = _short(value) if isinstance(value, str) else "no string"
            self.refuse(key, f"is {found}: expected {expected!r}, as Qwen3's files have it")

    def refuse_added_ends(self) -> None:
        for key in ("add_bos_token", "add_eos_token"):
            if self.value(key) is not None and self.value(key) is not False:
                self.refuse(key, "is not false: expected text with nothing added, as in Qwen3")

    def strings(self, key: str) -> list[str]:
        values = self.value(key)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self.refuse(key, "is no array of strings")
        return values

    def kinds(self, count: int) -> list[int]:
        values = self.value("token_type")
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
            self.refuse("token_type", "is no array of whole numbers")
        if len(values) != count:
            self.refuse("token_type", f"has {len(values)} entries, expected {count}, one a token")
        kinds: list[int] = values.tolist()
        known = (_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED)
        for token_id, kind in enumerate(kinds):
            if kind not in known:
                self.refuse(
                    "token_type",
                    f"has {kind} for token {token_id}: expected 1 (normal), 3 (control), "
                    "4 (user-defined) or 5 (unused)",
                )
        return kinds

    def token_id(self, key: str, count: int) -> int | None:
        value = self.value(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < count:
            self.refuse(key, f"is no token id: expected from 0 to {count - 1}")
        return int(value)


def _backend(reading: _Reading, tokens: Sequence[str], kinds: Sequence[int]) -> Backend:
    vocabulary = {tokens[i]: i for i, kind in enumerate(kinds) if kind == _NORMAL}
    _check_bytes(reading, vocabulary)
    added = [
        {
            "id": token_id,
            "content": tokens[token_id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for token_id, kind in enumerate(kinds)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    layout = _layout(vocabulary, _merges(reading, vocabulary), added)
    try:
        backend = Backend.from_str(json.dumps(layout))
    except Exception as error:  # the library raises nothing more precise
        raise reading.error("tokens", f"are not a vocabulary: {_short(str(error))}") from error
    for token in added:
        # The library numbers added tokens itself: from the end of the vocabulary, without gaps.
        if backend.token_to_id(str(token["content"])) != token["id"]:
            reading.refuse(
                "tokens",
                f"has {_short(str(token['content']))} at {token['id']}: expected control tokens "
                "side by side after all others",
            )
    return backend


def _whole_backend(source: str, text: object, tokens: Sequence[str]) -> Backend:
    """The tokenizer of the key for a whole one, which must have the file's own tokens."""
    if not isinstance(text, str):
        raise ModelFileError(f"{source}: {_WHOLE}: expected a string")
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        problem = _short(str(error))
        raise ModelFileError(f"{source}: {_WHOLE}: not a tokenizer: {problem}") from error
    for token, token_id in backend.get_vocab(with_added_tokens=True).items():
        if token_id >= len(tokens) or tokens[token_id] != token:
            raise ModelFileError(
                f"{source}: {_WHOLE} has {_short(token)} at {token_id}: expected the token that "
                "tokenizer.ggml.tokens has there"
            )
    return backend


def _layout(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Sequence[object]
) -> dict[str, object]:
    """Qwen's tokenizer.json, around a vocabulary."""
    split = {
        "type": "Split",
        "pattern": {"Regex": _QWEN_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
        "post_processor": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _check_bytes(reading: _Reading, vocabulary: Mapping[str, int]) -> None:
    """Every token is made of letters that stand for bytes, and every byte has one."""
    letters = byte_of_letter()
    for token, token_id in vocabulary.items():
        if not token or not all(letter in letters for letter in token):
            reading.refuse(
                "tokens",
                f"has {_short(token)} at {token_id}: expected letters that stand for bytes",
            )
    absent = [byte for letter, byte in letters.items() if letter not in vocabulary]
    if absent:
        reading.refuse("tokens", f"has no token for byte {min(absent)}: expected all 256")


def _merges(reading: _Reading, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for index, merge in enumerate(reading.strings("merges")):
        left, _, right = merge.partition(" ")
        if not all(part in vocabulary for part in (left, right, left + right)):
            reading.refuse(
                "merges",
                f"has {_short(merge)} at {index}: expected two tokens that make a third",
            )
        merges.append((left, right))
    return merges


def _ends(tokens: Sequence[str], kinds: Sequence[int], named: str | None) -> list[int]:
    """The tokens that end a text: the one that the file names, first, and Qwen's own."""
    ends = [] if named is None else [tokens.index(named)]
    for token in _ENDS:
        if token in tokens:
            token_id = tokens.index(token)
            if kinds[token_id] == _CONTROL and token_id not in ends:
                ends.append(token_id)
    return ends


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
