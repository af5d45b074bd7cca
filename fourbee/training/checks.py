"""The one form in which settings are refused."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from fourbee.foundation.errors import UsageError


def expect(holds: bool, name: str, value: object, form: str) -> None:
    """Raises UsageError naming the key, its value and the right form unless `holds`."""
    if not holds:
        raise UsageError(f"{name} = {value}: expected {form}", name)


def at_least(least: int, settings: object, *names: str) -> None:
    """UsageError for the first of these settings that is less, or not finite."""
    for name in names:
        value = getattr(settings, name)
        expect(least <= value < math.inf, name, value, f"at least {least}")


def read_only_with(settings: Any, key: str, readers: tuple[str, ...], *names: str) -> None:
    """UsageError for the first of these settings that is given for nothing.

    That is one which is not its default, where the setting `key` is none of the `readers`.
    """
    if getattr(settings, key) in readers:
        return
    chosen = " or ".join(f'{key} = "{reader}"' for reader in readers)
    defaults = {field.name: field.default for field in fields(settings)}
    for name in names:
        value, default = getattr(settings, name), defaults[name]
        expect(value == default, name, value, f"{default}, as only {chosen} reads it")
