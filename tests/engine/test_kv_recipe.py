"""Recipes and page keys: whatever decides the bytes of a page gives it another name."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourbee.engine.kv_recipe import KvLayout, KvRecipe, is_root, page_key, page_keys
from fourbee.kernels.attention_pattern import PAGE_KEYS

LAYOUT = KvLayout(page_bytes=262_144, layers=4, kv_heads=2, head_dim=128, page_keys=PAGE_KEYS)
RECIPE = KvRecipe(
    weights="00ff", packing="int4c 64, packer 3, native 2", adapter=("aa11", 2.0),
    rotary=(1.0, 0.1, 0.01), attention="dense", kv_type="int8", layout=LAYOUT, tokenizer="77",
    namespace="alice",
)  # fmt: skip
# One change of each field, and of each thing within it.
CHANGED = {
    "weights": "00fe",
    "packing": "int4c 64, packer 4, native 2",
    "adapter digest": ("aa12", 2.0),
    "adapter scale": ("aa11", 2.0000000000000004),
    "adapter": None,
    "rotary": (1.0, 0.1, 0.010000000000000002),
    "rotary count": (1.0, 0.1),
    "attention": "dual-chunk",
    "kv_type": "int4",
    "layout page_bytes": replace(LAYOUT, page_bytes=262_208),
    "layout layers": replace(LAYOUT, layers=5),
    "layout kv_heads": replace(LAYOUT, kv_heads=4),
    "layout head_dim": replace(LAYOUT, head_dim=64),
    "layout page_keys": replace(LAYOUT, page_keys=32),
    "tokenizer": "78",
    "namespace": "bob",
}


def test_every_field_is_changed_below() -> None:
    assert {name.split()[0] for name in CHANGED} == {field.name for field in fields(KvRecipe)}
    layout = {name.split()[1] for name in CHANGED if name.startswith("layout")}
    assert layout == {field.name for field in fields(KvLayout)}


@pytest.mark.parametrize("name", CHANGED)
def test_a_recipe_that_differs_in_one_thing_has_another_root_and_other_pages(name) -> None:
    other = replace(RECIPE, **{name.split()[0]: CHANGED[name]})
    assert other.digest() != RECIPE.digest()
    text = list(range(3 * PAGE_KEYS))
    assert not set(page_keys(other.digest(), text)) & set(page_keys(RECIPE.digest(), text))


def test_digests_and_keys_outlive_the_program() -> None:
    # Written down: what these become names other files, and every stored page would be lost.
    assert RECIPE.digest().hex() == (
        "0805960607f695ec00a2ce215a955b8795f82aa8727e13cff2c320d6fbde14a9"
    )
    assert page_key(RECIPE.digest(), range(PAGE_KEYS)).hex() == (
        "7f946c2a9ff87d3eb5623eaf230d4c464be94ea2ead52a881f50f7901a7b9d04"
    )


def test_neighbouring_fields_do_not_run_together() -> None:
    first = replace(RECIPE, weights='a", "packing": "b', packing="c")
    second = replace(RECIPE, weights="a", packing='b", "packing": "c')
    assert first.digest() != second.digest()
    assert replace(RECIPE, namespace="\ud800").digest() != replace(RECIPE, namespace="?").digest()


@given(st.lists(st.integers(0, 2**32 - 1), max_size=3 * PAGE_KEYS + 1))
def test_keys_are_a_chain_over_whole_pages(token_ids) -> None:
    root = RECIPE.digest()
    keys = list(page_keys(root, token_ids))
    assert len(keys) == len(token_ids) // PAGE_KEYS
    assert is_root(root) and not any(map(is_root, keys))
    for index, key in enumerate(keys):
        page = token_ids[index * PAGE_KEYS : (index + 1) * PAGE_KEYS]
        assert key == page_key(root, page)
        root = key


@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=4), st.lists(st.integers(0, 2**32 - 1), max_size=4)
)
def test_other_tokens_or_another_page_before_give_another_key(first, second) -> None:
    root = RECIPE.digest()
    assert (page_key(root, first) == page_key(root, second)) == (first == second)
    assert page_key(page_key(root, first), second) != page_key(root, first + second)
