"""Texts for `fourbee quantize --method gptq`, as token ids: samples of training, or plain text.

Not here: what is made of them (`model/calibrated.py`).
"""

from __future__ import annotations

import random
from pathlib import Path

from fourbee.foundation.errors import FourbeeError, UsageError
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.samples import encode_sample
from fourbee.training.sources import Source, read_samples

# More is not looked at: of a text its beginning.
_BYTES_A_TOKEN = 16


def calibration_sequences(path: Path, tokenizer: Tokenizer, tokens: int) -> list[list[int]]:
    """Sequences of about so many tokens in all, fewer where the file has fewer.

    Of a .jsonl (in our forms) samples in a fixed random order, as skills may be sorted; of a .txt
    its beginning. UsageError for another ending and for what is not of these forms.
    """
    if not path.is_file():
        raise UsageError(f"--calibration {path}: no such file", "calibration")
    if path.suffix == ".txt":
        with path.open("rb") as file:
            beginning = file.read(tokens * _BYTES_A_TOKEN)
        # The last character may be cut.
        text = beginning.decode("utf-8", errors="ignore")
        if len(text.encode()) < len(beginning) - 3:
            raise UsageError(f"--calibration {path}: not UTF-8 text", "calibration")
        return [tokenizer.encode(text, control_tokens=False)]
    if path.suffix != ".jsonl":
        raise UsageError(f"--calibration {path}: expected a .jsonl or a .txt file", "calibration")
    chat = ChatFormat(tokenizer)
    sequences: list[list[int]] = []
    total = 0
    try:
        lines = list(read_samples(Source(path)))
        random.Random(0).shuffle(lines)
        for _, sample in lines:
            if total >= tokens:
                break
            sequences.append(encode_sample(sample, tokenizer, chat)[0])
            total += len(sequences[-1])
    except FourbeeError as error:
        raise UsageError(f"--calibration {path}: {error}", "calibration") from None
    return sequences
