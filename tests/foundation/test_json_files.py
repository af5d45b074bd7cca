"""What is wrong with a JSON file is one clear line, however deep it is."""

import pytest

from fourbee.foundation.errors import FourbeeError, ModelFileError
from fourbee.foundation.json_files import read_json_object


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "not valid JSON: nested too deeply: line 1 column 1 (char 0)"),
        ("1" * 5_000, "not valid JSON: a number of too many digits: line 1 column 1 (char 0)"),
        ("{", "not valid JSON: Expecting property name enclosed in double quotes: "
         "line 1 column 2 (char 1)"),
        ("[]", "expected a JSON object"),
    ],
)  # fmt: skip
def test_what_is_no_object_is_refused(tmp_path, text: str, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelFileError) as told:
        read_json_object(path)
    assert str(told.value) == f"{path}: {reason}"


def test_a_message_is_one_printable_line_of_a_bearable_length() -> None:
    assert str(FourbeeError("name \x1b[31m\na\ud800中")) == "name \\x1b[31m\\na\\ud800中"
    long = str(FourbeeError("a" * 5_000 + "b" * 5_000))
    assert len(long) < 1_000 and long.startswith("aa") and long.endswith("bb")
