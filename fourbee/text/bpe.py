"""Train a byte-level BPE tokenizer for a small model, and save it as a checkpoint's tokenizer.

Every space, punctuation mark, digit and Han character is a piece of its own and only runs of
letters merge (an ending such as -ed apart), so a word has the same tokens after a space, after a
quote and at the start of a line. The text is not normalised: decoding gives back the very
characters that were encoded.

It is not the tokenizer that runs a model: that is `tokenizer.py`, which loads what this saves.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from fourbee.foundation.errors import UsageError

# Letters (Han apart) with the marks on them stay together, but for an English ending, so that a
# stem has the same tokens in "teach" and "teaches"; all else is cut into single characters.
_LETTER = r"(?!\p{Han})[\p{L}\p{M}]"
_ENDING = rf"(?:ed|ing|(?<=ch|sh|ss|x)es|(?<!s)s)(?!{_LETTER})"
PIECE_PATTERN = (
    rf"(?!\p{{Han}})\p{{L}}(?:{_LETTER}){{2,}}?(?={_ENDING})"
    rf"|(?!\p{{Han}})\p{{L}}(?:{_LETTER})*|\s|\S"
)

# Merges learned beyond the budget, so that unreachable ones can be dropped without a shortfall.
SPARE_MERGES = 512

Merge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that text never merges into; `special` ones are left out of decoded answers."""

    text: str
    special: bool


QWEN_CONTROL_TOKENS: tuple[ControlToken, ...] = (
    ControlToken("<|endoftext|>", special=True),
    ControlToken("<|im_start|>", special=True),
    ControlToken("<|im_end|>", special=True),
    ControlToken("<tool_call>", special=False),
    ControlToken("</tool_call>", special=False),
    ControlToken("<tool_response>", special=False),
    ControlToken("</tool_response>", special=False),
    ControlToken("<think>", special=False),
    ControlToken("</think>", special=False),
)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    control_tokens: Sequence[ControlToken] = QWEN_CONTROL_TOKENS,
    guaranteed: Iterable[str] = (),
) -> Tokenizer:
    """Learn a tokenizer of at most `vocab_size` tokens, control tokens included.

    Ids are, in this order: the 256 bytes, the guaranteed characters with the byte prefixes they
    are built from, the learned merges by rank, the control tokens as given. Each character of
    `guaranteed` becomes one token wherever it stands; letters other than Han cannot be guaranteed.

    Raises UsageError when `vocab_size` has no room for them or a guarantee cannot be kept.
    """
    characters = sorted(set(guaranteed))
    _refuse_unkeepable(characters)
    chain = _byte_chains(characters)
    room = vocab_size - 256 - len(chain) - len(control_tokens)
    if room < 0:
        raise UsageError(
            f"vocab_size {vocab_size} is too small: 256 bytes, {len(chain)} tokens for the "
            f"guaranteed characters and {len(control_tokens)} control tokens need "
            f"{vocab_size - room}"
        )
    learned = _learn_merges(texts, frozenset(characters), room)
    merges = _fit_merges(chain, learned, room)
    return _assemble(merges, control_tokens)


def save_tokenizer(
    folder: str | Path,
    tokenizer: Tokenizer,
    chat_template: str,
    *,
    end_of_turn: str = "<|im_end|>",
    padding: str = "<|endoftext|>",
    context_length: int = 4096,
) -> None:
    """Write tokenizer.json and tokenizer_config.json, for fourbee and transformers alike.

    `context_length` is in tokens. Raises UsageError when `end_of_turn` or `padding` is unknown.
    """
    for role, text in (("end_of_turn", end_of_turn), ("padding", padding)):
        if tokenizer.token_to_id(text) is None:
            raise UsageError(f"{role} {text!r} is not a token of this tokenizer")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"), pretty=False)
    added = tokenizer.get_added_tokens_decoder()
    settings = {
        "added_tokens_decoder": {str(i): _token_settings(added[i]) for i in sorted(added)},
        "additional_special_tokens": [t.content for _, t in sorted(added.items()) if t.special],
        "bos_token": None,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": end_of_turn,
        "model_max_length": context_length,
        "pad_token": padding,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    text = json.dumps(settings, ensure_ascii=False, indent=2) + "\n"
    (target / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _token_settings(token: AddedToken) -> dict[str, str | bool]:
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def _pieces() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _refuse_unkeepable(characters: Sequence[str]) -> None:
    pieces = _pieces()
    for character in characters:
        if len(character) != 1:
            raise UsageError(f"guaranteed holds {character!r}; give single characters")
        # A run of two is cut in two exactly where the pre-tokenizer isolates the character.
        if not character.isascii() and len(pieces.pre_tokenize_str(character * 2)) != 2:
            raise UsageError(
                f"guaranteed holds {character!r}, a letter that merges into words; "
                "give Han characters, punctuation or symbols"
            )


def _byte_letters(text: str) -> str:
    """The text's UTF-8 bytes in the letters that byte-level BPE writes them with."""
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in to_letters.pre_tokenize_str(text))


def _byte_chains(characters: Iterable[str]) -> list[Merge]:
    """The merges that build each character from its bytes, left to right, none twice.

    Placed before all learned merges they always win: a lead byte takes its continuation
    before two continuation bytes can join.
    """
    chain: dict[Merge, None] = {}
    for character in characters:
        letters = _byte_letters(character)
        for end in range(1, len(letters)):
            chain[letters[:end], letters[end]] = None
    return list(chain)


def _learn_merges(texts: Iterable[str], known: frozenset[str], room: int) -> list[Merge]:
    """Merges by rank from the texts; `known` characters are blanked, their merges exist."""
    if room == 0:
        return []
    blank = {ord(character): " " for character in known if not character.isascii()}
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pieces()
    trainer = BpeTrainer(
        vocab_size=256 + room + SPARE_MERGES,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learner.train_from_iterator((text.translate(blank) for text in texts), trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def _fit_merges(chain: list[Merge], learned: list[Merge], room: int) -> list[Merge]:
    """The chain and as many learned merges as fit, without those the chain makes unreachable.

    A learned isolated character (a Han character nobody guaranteed) is rebuilt as a chain, as
    its learned byte order may be one that the chain never lets happen.
    """
    limit = len(chain) + room
    chained = dict.fromkeys(chain)
    words: list[Merge] = []
    for merge in learned:
        rebuilt = _isolated_chain(merge)
        new = [step for step in rebuilt if step not in chained]
        if len(chained) + len(words) + max(len(new), not rebuilt) > limit:
            break
        chained.update(dict.fromkeys(new))
        if not rebuilt:
            words.append(merge)
    words = [merge for merge in words if merge not in chained]
    return [*chained, *_reachable(list(chained), words)]


def _isolated_chain(merge: Merge) -> list[Merge]:
    """The byte chain of the one isolated character that this merge completes, else nothing."""
    character = decoders.ByteLevel().decode(["".join(merge)])
    if len(character) != 1 or character.isascii() or character == "\N{REPLACEMENT CHARACTER}":
        return []
    isolated = len(_pieces().pre_tokenize_str(character * 2)) == 2
    return _byte_chains([character]) if isolated else []


def _reachable(chain: list[Merge], words: list[Merge]) -> Iterator[Merge]:
    """Those of `words` whose token the model does produce from the token's own bytes."""
    model = _bpe_model([*chain, *words])
    for merge in words:
        token = "".join(merge)
        if [piece.value for piece in model.tokenize(token)] == [token]:
            yield merge


def _bpe_model(merges: Sequence[Merge]) -> models.BPE:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*letters, *("".join(merge) for merge in merges)])
    return models.BPE({token: rank for rank, token in enumerate(tokens)}, list(merges))


def _assemble(merges: Sequence[Merge], control_tokens: Sequence[ControlToken]) -> Tokenizer:
    tokenizer = Tokenizer(_bpe_model(merges))
    tokenizer.pre_tokenizer = _pieces()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    # One call each: a batch would number the special tokens before the others.
    for control in control_tokens:
        token = AddedToken(control.text, special=control.special, normalized=False)
        tokenizer.add_tokens([token])  # pyright: ignore[reportUnknownMemberType]
    return tokenizer
