"""A checkpoint's Jinja chat template, run in a sandbox exactly as transformers runs it.

It turns variables into text and errors into one line; which variables there are, and which part
of the text may become control tokens, is `chat_format.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fourbee.foundation.errors import ModelFileError, UsageError


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str) -> None:
        """Compile; ModelFileError names the line of a syntax error."""
        self.source = source
        try:
            self._template = _environment().from_string(source, globals=_functions())
        except TemplateSyntaxError as error:
            raise ModelFileError(f"chat template, line {error.lineno}: {error.message}") from None

    def render(self, variables: Mapping[str, object]) -> str:
        """The text for these variables.

        Raises UsageError when the template refuses or cannot render the messages, ModelFileError
        when it tries what the sandbox forbids.
        """
        try:
            return self._template.render(variables)
        except _Refusal as refusal:
            raise UsageError(f"chat template: {refusal}", parameter="messages") from None
        except SecurityError as error:
            raise ModelFileError(f"chat template: forbidden in the sandbox: {error}") from None
        except (TemplateError, *DATA_ERRORS) as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"messages: the chat template cannot render them: {reason}", parameter="messages"
            ) from None


# What a template's expressions raise on messages of an unexpected shape.
DATA_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _Refusal(TemplateError):
    """The template itself called raise_exception."""


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`, which transformers knows: its body as it is."""

    tags = {"generation"}  # noqa: RUF012  (typed as an instance variable by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    return environment


def _functions() -> dict[str, object]:
    """What templates may call."""
    return {"raise_exception": _raise_exception, "strftime_now": _strftime_now}


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
