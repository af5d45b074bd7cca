"""Messages -> token ids, by the checkpoint's own chat template, for serving and for training.

Messages and tools are dictionaries in OpenAI's form. Text in them never becomes control tokens:
`<|im_start|>` in a message, a tool's description or an argument is encoded as the characters it
is. One exception: markup (`<think>`, `<tool_call>`) in an assistant's own content is the token it
was when the assistant wrote it; it opens no turn, so no role can be forged with it.

It does not look for tool calls in answers: that is `tool_calls.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import cast

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.text.chat_template import ChatTemplate
from fourbee.text.content_marks import ContentMarks, ControlStrings, strings_in
from fourbee.text.tokenizer import Tokenizer

Message = Mapping[str, object]
Tool = Mapping[str, object]

ROLES = ("system", "user", "assistant", "tool")

# The fields of an assistant's message that hold its own words, with markup.
ASSISTANT_WORDS = frozenset({"content", "reasoning_content"})


class ChatFormat:
    """A tokenizer together with its chat template. Immutable, safe to share by threads."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        """`chat_template` replaces the checkpoint's own; ModelFileError when there is neither."""
        source = tokenizer.chat_template if chat_template is None else chat_template
        if source is None:
            raise ModelFileError(
                "this checkpoint has no chat template: neither chat_template.jinja nor "
                "chat_template in tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._template = ChatTemplate(source)
        self._controls = ControlStrings(tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: object,
    ) -> str:
        """The conversation as the template writes it, for people to read.

        Encode with `encode`, not from this text: here forged and real control tokens look alike.
        Raises UsageError when the messages are not of the right form or the template refuses them.
        """
        _check_messages(messages)
        variables = {
            # The tokenizer's names (eos_token, ...), as transformers gives them to templates.
            **self._tokenizer.named_tokens,
            **template_kwargs,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._template.render(variables)

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: object,
    ) -> list[int]:
        """The token ids of what `render` gives; only the template's text makes control tokens.

        Raises UsageError as `render` does.
        """
        marks, marked = self._render_marked(messages, tools, add_generation_prompt, template_kwargs)
        return self._encode_marked(marks, marked)

    def encode_with_mask(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        **template_kwargs: object,
    ) -> tuple[list[int], list[bool]]:
        """Token ids and, for each, whether the assistant has to learn it.

        Learned are the words and tool calls of all assistant turns and the token that ends each
        turn. The role header before them is cut off as it is in generation, where it is part of
        the prompt. Raises UsageError when no turn is to be learned or a turn has no end.
        """
        marks, marked = self._render_marked(messages, tools, False, template_kwargs)
        header, *turns = marked.split(self.assistant_header)
        expected = sum(message["role"] == "assistant" for message in messages)
        if not turns or len(turns) != expected:
            raise UsageError(
                f"messages: {expected} assistant turns, but the chat template writes {len(turns)}; "
                "training needs at least one, and each under its header"
            )
        ids = self._encode_marked(marks, header + self.assistant_header)
        mask = [False] * len(ids)
        for number, turn in enumerate(turns, start=1):
            following = self.assistant_header if number < len(turns) else ""
            turn_ids = self._encode_marked(marks, turn + following)
            learned = self._length_with_end(turn_ids)
            ids += turn_ids
            mask += [True] * learned + [False] * (len(turn_ids) - learned)
        return ids, mask

    @cached_property
    def assistant_header(self) -> str:
        """What the template writes before an assistant's words, as `<|im_start|>assistant\\n`.

        It is the generation prompt as far as finished turns begin with it too.
        """
        question: Message = {"role": "user", "content": "?"}
        answer: Message = {"role": "assistant", "content": "answer"}
        before = self.render([question], add_generation_prompt=False)
        prompt = self.render([question], add_generation_prompt=True)
        history = self.render([question, answer, question], add_generation_prompt=False)
        header = _shared_start(prompt, history)[len(before) :]
        if not header or not prompt.startswith(before):
            raise ModelFileError(
                "chat template: add_generation_prompt adds no assistant header after the messages"
            )
        return header

    def _render_marked(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, object],
    ) -> tuple[ContentMarks, str]:
        """The rendered text with the marks of `content_marks.py`, its words the same as unmarked.

        A template that decides by control strings inside of the text might write other words when
        they are marked: UsageError then, as wrong text or forgeable tokens are no alternative.
        """
        plain = self.render(messages, tools, add_generation_prompt, **template_kwargs)
        outside = list(strings_in([messages, tools, template_kwargs]))
        marks = ContentMarks(self._controls, [self._template.source, plain, *outside])
        if not self._controls.in_any(outside):
            return marks, plain
        marked = self.render(
            [_marked_message(marks, message) for message in messages],
            [marks.mark_object(tool) for tool in tools] if tools is not None else None,
            add_generation_prompt,
            **marks.mark_object(template_kwargs),
        )
        if marks.unmark(marked) != plain:
            found = [t for t in self._controls.tokens if any(t in text for text in outside)]
            raise UsageError(
                f"messages: the chat template rewrites text that holds {', '.join(found) or '<'}, "
                "so it cannot be kept apart from control tokens; leave it out",
                parameter="messages",
            )
        return marks, marked

    def _encode_marked(self, marks: ContentMarks, marked: str) -> list[int]:
        return list(self._tokens(marks, marked))

    def _tokens(self, marks: ContentMarks, marked: str) -> Iterator[int]:
        for part in marks.split(marked):
            if isinstance(part, int):
                yield part
            else:
                yield from self._tokenizer.encode(part, control_tokens=False)

    def _length_with_end(self, turn_ids: Sequence[int]) -> int:
        """How many tokens a turn has up to and with the one that ends it."""
        ends = self._tokenizer.eos_token_ids
        for index, token_id in enumerate(turn_ids):
            if token_id in ends:
                return index + 1
        raise UsageError(
            "messages: the chat template closes an assistant turn with none of the end tokens "
            f"{list(ends)}, so its end cannot be learned"
        )


def _marked_message(marks: ContentMarks, message: Message) -> dict[str, object]:
    speaks = message["role"] == "assistant"
    return {
        key: marks.mark(value, assistant_words=speaks and key in ASSISTANT_WORDS)
        for key, value in message.items()
    }


def _shared_start(first: str, second: str) -> str:
    """The longest text that both begin with."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return first[:index]
    return first[: len(second)]


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError("messages: expected a list of at least one message", parameter="messages")
    for index, message in enumerate(cast("list[object]", messages)):
        if not isinstance(message, Mapping):
            raise UsageError(f"messages[{index}]: expected an object", parameter="messages")
        role = cast("Message", message).get("role")
        if role not in ROLES:
            raise UsageError(
                f"messages[{index}].role is {role!r}; expected one of {', '.join(ROLES)}",
                parameter="messages",
            )
