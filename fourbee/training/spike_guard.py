"""SpikeGuard: which updates are left out, as their gradients are not finite or far too large.

One bad batch or a number that overflowed would otherwise stay in the weights and in the optimizer's
moments. What is usual is the median norm of the last updates; the guard's state is saved with the
run, so that a resumed run judges as the whole one did.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from fourbee.foundation.errors import TrainingError
from fourbee.training.recipe import Guard

# Norms that an update's is compared with, and the fewest that tell what is usual.
_NORMS, _FEWEST = 64, 16


class SpikeGuard:
    """Judges the gradient norm of each update of a run, in order."""

    def __init__(self, settings: Guard) -> None:
        self.settings = settings
        self.left_out = 0  # in the whole run
        self._in_a_row = 0  # left out
        self._not_finite = 0  # of those the last ones
        self._norms: deque[float] = deque(maxlen=_NORMS)

    def refuses(self, norm: float, update: int, loss: float) -> bool:
        """Whether the update is to be left out; TrainingError after too many not finite."""
        if norm == 0:
            return False  # nothing to learn is no measure of what is usual
        finite = math.isfinite(norm)
        self._not_finite = 0 if finite else self._not_finite + 1
        if finite and self._in_a_row >= self.settings.patience:
            self._norms.clear()  # so many large ones in a row are no accident: they are usual now
        if finite and not self._is_spike(norm):
            self._norms.append(norm)
            self._in_a_row = 0
            return False
        self.left_out += 1
        self._in_a_row += 1
        if self._not_finite >= self.settings.patience:
            raise TrainingError(
                f"update {update}: gradient norm {norm:.3g}, loss {loss:.3g}; "
                f"{self._not_finite} updates in a row were left out for such gradients, so the run "
                "ends; the weights are as before them; expected a lower optimizer.learning_rate, "
                "in another output"
            )
        return True

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {
            "left_out": self.left_out,
            "in_a_row": self._in_a_row,
            "not_finite": self._not_finite,
            "norms": list(self._norms),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The guard of the run that was saved; a new one for an empty state."""
        self.left_out = state.get("left_out", 0)
        self._in_a_row = state.get("in_a_row", 0)
        self._not_finite = state.get("not_finite", 0)
        self._norms = deque(state.get("norms", ()), maxlen=_NORMS)

    def _is_spike(self, norm: float) -> bool:
        usual = statistics.median(self._norms) if len(self._norms) >= _FEWEST else math.inf
        return bool(self.settings.spike) and norm > self.settings.spike * usual
