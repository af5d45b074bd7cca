"""The one form in which settings are refused."""

from __future__ import annotations

import math

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
