"""Sizes and spans of time: what people write, and one clear line for what cannot be meant."""

from __future__ import annotations

import pytest

from fourbee.foundation.errors import UsageError
from fourbee.foundation.sizes import parse_size, parse_span, show_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("4096", 4096), ("7B", 7), ("1K", 1000), ("1kb", 1000), ("1KiB", 1024),
        ("20GB", 20 * 10**9), ("20 GiB", 20 * 2**30), (" 1.5mb ", 1_500_000), ("2T", 2 * 10**12),
        ("0.1GB", 10**8), ("1.9999", 1), ("3TiB", 3 * 2**40), ("999999999999999999", 10**18 - 1),
    ],
)  # fmt: skip
def test_sizes_are_read_exactly(text, expected) -> None:
    assert parse_size(text, "--memory") == expected


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1GB", "1e9", "20 G B", "20QB", "5Ki", "1iB", "1,5GB", "inf", "٣GB", "9" * 19],
)
def test_what_is_no_size_is_one_line(text) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--memory")
    expected = "expected a size such as 20GB, 512MiB or a number of bytes"
    assert str(caught.value) == f"--memory {text}: {expected}"
    assert caught.value.parameter == "--memory"


def test_sizes_are_shown_with_one_decimal_and_read_back() -> None:
    shown = {
        0: "0 B", 999: "999 B", 1000: "1.0 KB", 3_800_000: "3.8 MB", 999_949: "999.9 KB",
        999_999: "1.0 MB", 20 * 10**9: "20.0 GB", 5 * 10**15: "5000.0 TB",
    }  # fmt: skip
    assert {count: show_size(count) for count in shown} == shown
    for count in shown:
        assert parse_size(show_size(count), "--to") == pytest.approx(count, rel=0.05)


def test_spans_of_time() -> None:
    texts = ["90s", "15m", "12h", "30d", "2w", "1.5 D"]
    assert [parse_span(text, "--older-than") for text in texts] == [
        90, 900, 43_200, 2_592_000, 1_209_600, 129_600,
    ]  # fmt: skip
    for text in ["", "30", "d", "-1d", "1 month", "1y"]:
        with pytest.raises(UsageError, match=r"^--older-than .*: expected a span of time such as"):
            parse_span(text, "--older-than")
