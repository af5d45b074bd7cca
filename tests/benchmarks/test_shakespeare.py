"""The bench of two loops: whose interruption ends what."""

from __future__ import annotations

from typing import Any

import pytest

from fourbee.benchmarks import shakespeare
from fourbee.benchmarks.shakespeare import _Curve, _until_stopped


@pytest.mark.parametrize("stopped", [False, True])
def test_only_the_interruption_that_the_curve_asked_for_is_its_own(monkeypatch, stopped):
    def interrupted(recipe: Any, curve: _Curve) -> None:
        curve.stopped = stopped
        raise KeyboardInterrupt

    monkeypatch.setattr(shakespeare, "pretrain", interrupted)
    curve = _Curve(0.0, 1.0)
    if stopped:
        _until_stopped(None, curve)
    else:
        with pytest.raises(KeyboardInterrupt):
            _until_stopped(None, curve)
