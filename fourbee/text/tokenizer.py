"""Token ids <-> text, for byte-level BPE tokenizers such as Qwen's.

Read once from a checkpoint's folder: tokenizer.json, and beside it, when present,
tokenizer_config.json, generation_config.json and chat_template.jinja. Here are also the names of
the control tokens and the template's text; what a conversation looks like is `chat_format.py`,
token by token output is `detokenizer.py`, training a tokenizer is `bpe.py`.

Control tokens are all tokens added beside the BPE vocabulary, in two kinds. *Special* ones
(`<|im_start|>`, `<|im_end|>`) make the turns and are never shown. *Markup* ones (`<think>`,
`<tool_call>`) are words of the assistant: decoded text keeps them, for a parser to read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.foundation.json_files import read_json_object

NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """A checkpoint's tokenizer. Immutable after construction and safe to share by threads."""

    def __init__(
        self,
        backend: Backend,
        *,
        chat_template: str | None = None,
        eos_token_ids: Sequence[int] = (),
        named_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """Wrap a `tokenizers` tokenizer; its truncation and padding are switched off.

        Raises ModelFileError when it is not byte-level BPE or its added tokens are not exact text.
        """
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._text_backend = _without_added_tokens(backend)
        self._pieces: dict[int, bytes] = {}
        self.chat_template = chat_template
        self.eos_token_ids = tuple(eos_token_ids)
        self.named_tokens = dict(named_tokens or {})
        self.control_tokens: Mapping[str, int] = {t.content: i for i, t in sorted(added.items())}
        self.control_token_ids = frozenset(added)
        self.special_token_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self._refuse_unsupported()

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a checkpoint folder; ModelFileError says what is missing or bad."""
        source = Path(folder)
        backend = _read_backend(source / "tokenizer.json")
        config = _read_json(source / "tokenizer_config.json")
        named = _named_tokens(config)
        eos = _read_json(source / "generation_config.json").get("eos_token_id")
        if eos is None:
            eos = backend.token_to_id(named.get("eos_token", ""))
        return cls(
            backend,
            chat_template=_chat_template(source, config),
            eos_token_ids=_id_list(eos, source / "generation_config.json"),
            named_tokens=named,
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; not the ids that end a text."""
        self._backend.save(str(folder / "tokenizer.json"), pretty=False)
        config = {**self.named_tokens, "chat_template": self.chat_template}
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def to_json(self) -> str:
        """What tokenizer.json says."""
        return self._backend.to_str()

    def encode(self, text: str, control_tokens: bool) -> list[int]:
        """The token ids of `text`; nothing is added before or after it.

        With `control_tokens` the strings of control tokens become these tokens. Without, they are
        text like any other: no id of `control_token_ids` ever comes out, whatever the text is.
        """
        backend = self._backend if control_tokens else self._text_backend
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except TypeError:  # what the library says of a string that UTF-8 cannot write
            raise UsageError("text holds half of a surrogate pair; give valid Unicode") from None

    def decode(self, ids: Iterable[int], skip_control_tokens: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, as in every decoder.

        `skip_control_tokens` leaves the special ones out and keeps markup such as `<think>`.
        """
        hidden = self.special_token_ids if skip_control_tokens else frozenset[int]()
        return b"".join(self.piece(i) for i in ids if i not in hidden).decode("utf-8", "replace")

    def token_id(self, token: str) -> int:
        """The id of a token given as the vocabulary writes it; UsageError when there is none."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise UsageError(
                f"token {token!r} is not in the vocabulary of {self.vocab_size} tokens"
            )
        return found

    def tokens(self) -> dict[int, str]:
        """Every id's token as the vocabulary writes it."""
        return {id: token for token, id in self._backend.get_vocab(True).items()}

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for, perhaps part of a character.

        Empty for ids outside the vocabulary: the rows that pad a model's embedding.
        """
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if token_id in self.control_token_ids:
            return token.encode()
        table = byte_of_letter()
        return bytes(table[letter] for letter in token)

    def _refuse_unsupported(self) -> None:
        if not isinstance(self._backend.decoder, decoders.ByteLevel):
            raise ModelFileError("tokenizer.json: the decoder must be ByteLevel (byte-level BPE)")
        for token_id, token in self._backend.get_added_tokens_decoder().items():
            if token.lstrip or token.rstrip or token.single_word:
                raise ModelFileError(
                    f"tokenizer.json: added token {token.content!r} uses lstrip, rstrip or "
                    "single_word; only exact text is supported"
                )
            if token_id in self.encode(token.content, control_tokens=False):
                raise ModelFileError(
                    f"tokenizer.json: added token {token.content!r} is a word of the BPE "
                    "vocabulary too, so text could forge it"
                )


@cache
def byte_of_letter() -> dict[str, int]:
    """Which byte each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def _without_added_tokens(backend: Backend) -> Backend:
    """The same tokenizer as if no token had been added; it shares the vocabulary in memory."""
    plain = Backend(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain


def _read_backend(path: Path) -> Backend:
    if not path.is_file():
        raise ModelFileError(
            f"{path.parent}: tokenizer.json is missing; "
            "copy it from the checkpoint that the weights come from"
        )
    try:
        return Backend.from_buffer(path.read_bytes())
    except BaseException as error:  # the library raises nothing more precise, or it panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFileError(f"{path}: not a tokenizer: {_one_line(error)}") from error


def _read_json(path: Path) -> Mapping[str, object]:
    """The object in a JSON file, empty when there is no such file."""
    return read_json_object(path) if path.is_file() else {}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _named_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """The tokens that templates know by name, such as eos_token, where the config has them."""
    named: dict[str, str] = {}
    for name in NAMED_TOKENS:
        value = config.get(name)
        if isinstance(value, Mapping):
            value = cast("Mapping[str, object]", value).get("content")
        if isinstance(value, str):
            named[name] = value
    return named


def _id_list(value: object, path: Path) -> list[int]:
    """One id, a list of ids or nothing, as a list."""
    several = cast("list[object]", value) if isinstance(value, list) else [value]
    values = [item for item in several if item is not None]
    ids = [item for item in values if isinstance(item, int)]
    if len(ids) != len(values):
        raise ModelFileError(f"{path}: eos_token_id is {value!r}; expected an id or a list of ids")
    return ids


def _chat_template(folder: Path, config: Mapping[str, object]) -> str | None:
    """The text of chat_template.jinja, else the config's template, of several the default one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except ValueError:
            raise ModelFileError(f"{file}: not UTF-8 text") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = (item for item in template if isinstance(item, dict))
        template = next((i.get("template") for i in named if i.get("name") == "default"), None)
    return template if isinstance(template, str) else None
