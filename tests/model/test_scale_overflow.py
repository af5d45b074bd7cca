"""Weights too large for their scales are an error of one line that names the tensor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fourbee.foundation.errors import UsageError
from fourbee.kernels.backends import native_built, open_operations
from fourbee.model.checkpoint_files import load_weights

from .conftest import CONFIG, random_tensors, write_folder

pytestmark = pytest.mark.skipif(not native_built(), reason="native kernels were not built")
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(("quantize", "weight"), [("int4", 3e38), ("int8", 1e8)])
def test_scales_that_cannot_be_kept_are_refused(tmp_path, quantize: str, weight: float) -> None:
    config = replace(CONFIG, hidden_size=128, intermediate_size=256, head_dim=32)
    tensors = random_tensors(config)
    tensors[UP] = tensors[UP].astype(np.float32)
    tensors[UP][3, 5:7] = weight, -weight
    folder = write_folder(tmp_path / "source", config, tensors)
    with pytest.raises(UsageError) as told:
        load_weights(folder, open_operations("native", quantize=quantize))
    assert str(told.value) == (
        f"{folder}: {UP}: a matrix with weights too large for their scales cannot be packed"
    )


@pytest.mark.parametrize("quantize", ["int4", "int8"])
@pytest.mark.parametrize("weight", [np.nan, -np.inf])
def test_what_whole_numbers_would_hide_is_refused(tmp_path, quantize: str, weight: float) -> None:
    config = replace(CONFIG, hidden_size=128, intermediate_size=256, head_dim=32)
    tensors = random_tensors(config)
    tensors[UP][3, 5] = weight
    folder = write_folder(tmp_path / "source", config, tensors)
    with pytest.raises(UsageError) as told:
        load_weights(folder, open_operations("native", quantize=quantize))
    assert str(told.value) == f"{folder}: {UP}: a matrix with NaN or infinity cannot be packed"
