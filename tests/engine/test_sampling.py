"""Every value out of range is one clear line; a checkpoint's recommendations are read."""

import json

import pytest

from fourbee.engine.sampling import SamplingDefaults, SamplingParams
from fourbee.foundation.errors import ModelFileError, UsageError

REFUSED = [
    ({"temperature": "hot"}, "temperature = 'hot': expected a number of at least 0"),
    ({"temperature": -0.1}, "temperature = -0.1: expected at least 0"),
    ({"temperature": float("nan")}, "temperature = nan: expected a number of at least 0"),
    ({"temperature": True}, "temperature = True: expected a number of at least 0"),
    ({"top_p": 0}, "top_p = 0: expected more than 0 and at most 1"),
    ({"top_p": 1.5}, "top_p = 1.5: expected more than 0 and at most 1"),
    ({"top_p": None}, "top_p = None: expected a number more than 0 and at most 1"),
    ({"min_p": 2}, "min_p = 2: expected from 0 to 1"),
    ({"top_k": -1}, "top_k = -1: expected at least 0"),
    ({"top_k": 1.5}, "top_k = 1.5: expected a whole number of at least 0"),
    ({"max_tokens": -1}, "max_tokens = -1: expected at least 1"),
    ({"max_tokens": 0}, "max_tokens = 0: expected at least 1"),
    ({"max_tokens": "9"}, "max_tokens = '9': expected a whole number of at least 1"),
    ({"logprobs": 21}, "logprobs = 21: expected from 0 to 20"),
    ({"logprobs": True}, "logprobs = True: expected a whole number from 0 to 20"),
    ({"presence_penalty": 3}, "presence_penalty = 3: expected from -2 to 2"),
    ({"frequency_penalty": "x"}, "frequency_penalty = 'x': expected a number from -2 to 2"),
    ({"stop": "end"}, "stop = 'end': expected a list of strings that are not empty"),
    ({"stop": [""]}, "stop = ['']: expected a list of strings that are not empty"),
    ({"stop_token_ids": (-1,)}, "stop_token_ids = (-1,): expected a list of token ids"),
    (
        {"logit_bias": {3: 101}},
        "logit_bias = {3: 101}: expected token ids with numbers from -100 to 100",
    ),
    (
        {"logit_bias": {"3": 1}},
        "logit_bias = {'3': 1}: expected token ids with numbers from -100 to 100",
    ),
    ({"ignore_eos": 1}, "ignore_eos = 1: expected true or false"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_a_value_out_of_range_is_refused_with_its_right_form(values, message) -> None:
    with pytest.raises(UsageError) as error:
        SamplingParams(**values)
    assert str(error.value) == message
    assert error.value.parameter == next(iter(values))


def test_a_seed_has_64_bits(error_of) -> None:
    message, parameter = error_of(SamplingParams, seed=2**64)
    assert message == (
        "seed = 18446744073709551616: expected from -9223372036854775808 to 18446744073709551615"
    )
    assert parameter == "seed"


def test_lists_and_mappings_become_tuples() -> None:
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[3], logit_bias={9: 1, 2: -100})
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (3,)
    assert params.logit_bias == ((2, -100.0), (9, 1.0))
    assert hash(params) == hash(SamplingParams(**vars(params)))


def test_choices_differ_by_their_seeds() -> None:
    seeded = SamplingParams(seed=2**64 - 1)
    assert [seeded.for_choice(i).seed for i in range(3)] == [2**64 - 1, 0, 1]
    assert SamplingParams().for_choice(2) == SamplingParams()


def write(folder, values) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


def test_defaults_come_from_the_checkpoint(tmp_path) -> None:
    write(
        tmp_path,
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "eos_token_id": [5, 6]},
    )
    defaults = SamplingDefaults.from_generation_config(tmp_path)
    assert defaults == SamplingDefaults(0.7, 20, 0.8, 0.0, (5, 6))
    assert defaults.params == SamplingParams(temperature=0.7, top_k=20, top_p=0.8)


def test_a_checkpoint_that_does_not_sample_is_greedy(tmp_path) -> None:
    write(tmp_path, {"do_sample": False, "temperature": 0.7, "eos_token_id": 5})
    defaults = SamplingDefaults.from_generation_config(tmp_path)
    assert defaults == SamplingDefaults(temperature=0.0, eos_token_ids=(5,))


def test_a_checkpoint_without_recommendations_has_plain_defaults(tmp_path) -> None:
    assert SamplingDefaults.from_generation_config(tmp_path) == SamplingDefaults()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"temperature": -1}', "temperature = -1: expected at least 0"),
        ('{"eos_token_id": "x"}', "eos_token_id = ('x',): expected a list of token ids"),
        ("[]", "expected a JSON object"),
        ("{", "not valid JSON: Expecting property name enclosed in double quotes"),
    ],
)
def test_damaged_recommendations_are_refused(tmp_path, text, message) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(text)
    with pytest.raises(ModelFileError) as error:
        SamplingDefaults.from_generation_config(tmp_path)
    assert str(error.value).startswith(f"{path}: {message}")
