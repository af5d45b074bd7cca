"""Where a run ran, `environment.json`: versions, processor, threads, the code's commit."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import fourbee
from fourbee.foundation.runtime import processor_facts

ENVIRONMENT = "environment.json"


def write_environment(folder: Path, device: str) -> None:
    """Writes it down for this session of a run, in place of an earlier one's."""
    text = json.dumps(environment(device), indent=2) + "\n"
    (folder / ENVIRONMENT).write_text(text, encoding="utf-8")


def environment(device: str) -> Mapping[str, Any]:
    """What training here depends on beside its recipe."""
    cuda = device != "cpu"
    name = processor_facts().get("model name", platform.machine())
    return {
        "fourbee": fourbee.__version__,
        "commit": _commit() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": torch.cuda.get_device_name(device) if cuda else name,
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    """The commit of a checkout that the code lies in, marked where files differ; else nothing."""
    root = Path(fourbee.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
