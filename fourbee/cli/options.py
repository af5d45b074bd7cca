"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A checkpoint folder, a GGUF file, or the id of a pulled model such as "
        "Qwen/Qwen3-4B-Instruct-2507. Default: the embedded fourbee-mini.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="auto, native (C++, on the CPU), torch (GPUs) or numpy (slow, needs nothing). auto: "
        "the fastest that is installed."
    ),
]
Quantize = Annotated[
    str,
    typer.Option(
        help="none, int8 or int4 (4.25 bits a weight; embedding and head int8): packs the weights "
        "on the first start and keeps them in ~/.cache/fourbee/packed (or $FOURBEE_HOME/packed), "
        "where later starts find them. Native backend only."
    ),
]
KvType = Annotated[
    str,
    typer.Option(
        help="What keys and values are kept in: auto (int8 beside quantised weights, else "
        "the compute type), float32, bfloat16, int8 or int4. Native backend only."
    ),
]
MaxContext = Annotated[
    str,
    typer.Option(
        metavar="auto|TOKENS",
        help="Tokens of a request, its answer included. auto: what the model has and the memory "
        "holds (`fourbee plan` tells); a number is the most.",
    ),
]
ContextStore = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep what was read of texts in this folder, so that conversations and documents go "
        "on after a restart without being read again.",
        show_default=False,
    ),
]
ContextStoreSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="At most so much of it, the oldest goes first. Default: 20GB.",
        show_default=False,
    ),
]  # fmt: skip
Temperature = Annotated[
    float | None,
    typer.Option(help="0 = always the likeliest token. Default: the model's own."),
]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens of this mass.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the likeliest tokens; 0 = all.")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Longest answer in tokens. Default: what the context leaves.")
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a key of the recipe, as in --set optimizer.clip=0.5."),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Print every setting and where it came from, then stop.")
]
Format = Annotated[
    str,
    typer.Option(help="Whose form: auto (ours), alpaca, dolly, sharegpt, hh, kto, gsm8k, ..."),
]
Recipe = Annotated[Path, typer.Argument(help="The recipe, a TOML file.")]
