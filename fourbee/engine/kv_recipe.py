"""What keys and values were made by, and the names of pages that follow from it.

Pages are reused only where everything that decides their bytes is the same. A recipe says all of
it; its digest is the root of the chain of page keys, in memory and on disk, so that a page of other
weights, another adapter or another owner has another name and is simply not found.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from fourbee.kernels.attention_pattern import PAGE_KEYS

KEY_BYTES = 32
_OF_PAGE = 1  # the lowest bit of the first byte: set in keys of pages, not in digests of recipes


@dataclass(frozen=True)
class KvLayout:
    """How the bytes of a page are laid out."""

    page_bytes: int
    layers: int
    kv_heads: int
    head_dim: int
    page_keys: int  # tokens of a page


@dataclass(frozen=True)
class KvRecipe:
    """Everything that decides the bytes of a page, besides its tokens and those before them.

    No field has a default: one that is forgotten would give two things one name.
    """

    weights: str  # digest of the weights
    packing: str  # how they are packed, and the version of the arithmetic
    adapter: tuple[str, float] | None  # digest and scale
    rotary: tuple[float, ...]  # the effective frequencies, and factors beside them
    attention: str  # the mode, with what it was set to
    kv_type: str
    layout: KvLayout
    tokenizer: str  # digest of the tokenizer
    namespace: str  # the owner

    def digest(self) -> bytes:
        """The root of this recipe's keys: equal if and only if all fields are."""
        # JSON writes floats so that they read back the same, and text so that it cannot be mistaken
        # for a neighbouring field.
        named = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        digest = _hash(named.encode(), b"fourbee recipe 1")
        return bytes([digest[0] & ~_OF_PAGE]) + digest[1:]


def page_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of the page of these tokens after the page `parent`, or after a recipe's digest."""
    assert len(parent) == KEY_BYTES
    key = _hash(parent + packed_ids(token_ids), b"fourbee page 1")
    return bytes([key[0] | _OF_PAGE]) + key[1:]


def is_root(key: bytes) -> bool:
    """Whether it is a recipe's digest, where the key of a page could be too."""
    return not key[0] & _OF_PAGE


def page_keys(root: bytes, token_ids: Sequence[int]) -> Iterator[bytes]:
    """The keys of the whole pages of a text, from its first page on; `root`: a recipe's digest."""
    for start in range(0, len(token_ids) - PAGE_KEYS + 1, PAGE_KEYS):
        root = page_key(root, token_ids[start : start + PAGE_KEYS])
        yield root


def packed_ids(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def _hash(content: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES, person=purpose).digest()
