"""A sequence ends by its end tokens or its length, and knows what is left to compute."""

from fourbee.engine.request import Request
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.sequence import Sequence


def sequence(max_length: int) -> Sequence:
    return Sequence(Request("a", (1, 2, 3), SamplingParams()), max_length, {9}, seed=0)


def test_an_end_token_stops_and_is_not_part_of_the_answer() -> None:
    one = sequence(10)
    assert one.append(4) is None
    assert one.append(9) == "stop"
    assert one.generated_ids == [4]


def test_the_length_counts_prompt_and_answer() -> None:
    one = sequence(5)
    assert one.append(4) is None
    assert one.append(5) == "length"
    assert one.generated_ids == [4, 5]


def test_an_end_token_at_the_last_place_stops() -> None:
    one = sequence(4)
    assert one.append(9) == "stop"


def test_what_is_left_to_compute_is_all_at_first_and_one_token_later() -> None:
    one = sequence(10)
    assert (one.uncomputed, one.position) == (3, 3)
    one.computed = 3
    one.append(4)
    assert (one.uncomputed, one.position) == (1, 4)
