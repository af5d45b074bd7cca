"""The Jinja sandbox: the functions that templates expect, and one line for each failure."""

import json
from datetime import datetime

import pytest

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.text.chat_template import ChatTemplate


def test_json_is_written_as_transformers_writes_it() -> None:
    value = {"é": ["<b>", 1.5, None, True], "a": '"'}
    text = ChatTemplate("{{ value | tojson }}").render({"value": value})
    assert text == json.dumps(value, ensure_ascii=False)
    indented = ChatTemplate("{{ value | tojson(indent=2) }}").render({"value": value})
    assert indented == json.dumps(value, ensure_ascii=False, indent=2)


def test_blocks_are_trimmed_and_loops_can_break() -> None:
    source = (
        "{% for i in [1, 2, 3] %}\n    {% if i == 2 %}{% break %}{% endif %}\n{{ i }}\n{% endfor %}"
    )
    assert ChatTemplate(source).render({}) == "1\n"


def test_a_generation_block_is_its_body() -> None:
    source = "a{% generation %}{{ b }}{% endgeneration %}c"
    assert ChatTemplate(source).render({"b": "b"}) == "abc"


def test_the_date_is_there() -> None:
    year = ChatTemplate("{{ strftime_now('%Y') }}").render({})
    assert abs(int(year) - datetime.now().year) <= 1


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(ModelFileError, match="chat template, line 2: ") as error:
        ChatTemplate("a\n{% if %}")
    assert "\n" not in str(error.value)


def test_a_refusal_of_the_template_is_the_users_to_read() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError) as error:
        template.render({})
    assert str(error.value) == "chat template: roles must alternate"
    assert error.value.parameter == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[1].content }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{{ missing() }}",
        "{{ missing | tojson }}",
    ],
)
def test_what_cannot_be_rendered_is_one_line(source: str) -> None:
    with pytest.raises(UsageError) as error:
        ChatTemplate(source).render({"messages": [{"content": "a"}]})
    assert str(error.value).startswith("messages: the chat template cannot render them: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
    ],
)
def test_the_sandbox_keeps_templates_in(source: str) -> None:
    with pytest.raises((ModelFileError, UsageError)):
        ChatTemplate(source).render({"messages": []})
