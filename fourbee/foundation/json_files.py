"""JSON that others wrote: whatever is wrong with it is a ValueError or one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import ModelFileError


def parse_json(text: str | bytes) -> Any:
    """What the text says; JSONDecodeError also for what is too deep or too long for Python."""
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise
        raise json.JSONDecodeError("a number of too many digits", "", 0) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; FileNotFoundError where there is none, else ModelFileError."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelFileError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: expected a JSON object")
    return values
