"""The one form in which settings of losses are refused."""

from __future__ import annotations

from fourbee.foundation.errors import UsageError


def expect(holds: bool, name: str, value: object, form: str) -> None:
    """Raises UsageError naming the key, its value and the right form unless `holds`."""
    if not holds:
        raise UsageError(f"{name} = {value}: expected {form}", name)
