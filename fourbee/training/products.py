"""Products of float32 matrices on a CPU, by the quicker of two libraries.

torch multiplies float32 by MKL, which on AMD's processors uses no vectors of 512 bits; oneDNN,
which torch has for the other types, does. Where both use 256 bits, MKL is quicker: by a tenth, and
by half for transposed matrices, which oneDNN copies first. Other types and devices are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fourbee.foundation.runtime import processor_facts


def _by_onednn() -> Any:
    """oneDNN's product where it is the quicker one; None elsewhere."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    if processor_facts().get("vendor_id", "GenuineIntel") == "GenuineIntel":
        return None
    # Not of torch's public interface, though what it compiles calls it: what has none goes without.
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_LINEAR = _by_onednn()


def product(x_TD: Tensor, weight_ND: Tensor) -> Tensor:
    """`x W^T`, without gradients; either may be a transposed view."""
    if _LINEAR is None or x_TD.dtype != torch.float32 or x_TD.device.type != "cpu":
        return x_TD @ weight_ND.T
    result: Tensor = _LINEAR(x_TD, weight_ND, None, "none", [], "")
    return result
