"""fourbee: serve, adapt, measure and use Qwen3 models on your own machine.

The public surface; imported lazily, so that `fourbee --version` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourbee.engine.llm import LLM
    from fourbee.engine.sampling import SamplingParams
    from fourbee.text.tokenizer import Tokenizer
    from fourbee.training.preference_losses import dpo_loss

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "Tokenizer", "__version__", "dpo_loss"]

_HOMES = {
    "LLM": "fourbee.engine.llm",
    "SamplingParams": "fourbee.engine.sampling",
    "Tokenizer": "fourbee.text.tokenizer",
    "dpo_loss": "fourbee.training.preference_losses",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fourbee' has no attribute {name!r}")
    import importlib

    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from fourbee.foundation.errors import not_installed

        raise not_installed(f"fourbee.{name}", "torch", "train") from None
