"""The one tree of errors that fourbee raises for people; `assert` is for ourselves.

A message is one line that names the key, the value and the right form. The command line prints it
and exits 2 (usage) or 3 (everything else); the server maps it to a status and OpenAI's envelope.
"""

from __future__ import annotations

_LONGEST = 900  # characters of a message


class FourbeeError(Exception):
    """Base of every error that is somebody's to read; `str(error)` is one clear line."""

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class UsageError(FourbeeError):
    """What was asked for is not possible as asked: a setting, an option, a field of a request."""

    exit_code = 2

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        # The field or option at fault, for OpenAI's `error.param`.
        self.parameter = parameter


def not_installed(what: str, package: str, extra: str) -> UsageError:
    """What needs a package that is not there, and how to get it."""
    return UsageError(
        f"{what} needs {package}, which is not installed: pip install 'fourbee[{extra}]'"
    )


class ModelFileError(FourbeeError):
    """A checkpoint, tokenizer or data file is missing, damaged, or not what it should be."""


class CapacityError(FourbeeError):
    """The request is well-formed, but memory, context length or queue cannot hold it."""


class TrainingError(FourbeeError):
    """A training run cannot start, go on or be resumed."""


def _one_line(message: str) -> str:
    """The message as any terminal can show it: it quotes what files say of themselves.

    What cannot be printed is escaped, and of a very long message the middle is left out.
    """
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
