"""Where samples come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A file of samples. In a recipe a plain string stands for its path."""

    path: Path
    language: str = ""
    domain: str = ""
    weight: float = 1.0  # how often its tokens count in a mixture
    format: str = "auto"

    @classmethod
    def from_text(cls, text: str) -> Source:
        """What a plain string in a recipe means."""
        return cls(Path(text))

    @property
    def name(self) -> str:
        """The file's name up to its first dot."""
        return self.path.name.partition(".")[0] or self.path.name
