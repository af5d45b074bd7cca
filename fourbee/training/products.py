"""Products of float32 matrices on a CPU by oneDNN, where torch would ask another library.

torch multiplies float32 by MKL, which on processors that are not Intel's uses half of their vector
width; oneDNN, which torch has for the other types, uses all of it. Other types and devices are
torch's own products.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Not of torch's public interface, though what it compiles calls it: what has none goes without.
_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product(x_TD: Tensor, weight_ND: Tensor) -> Tensor:
    """`x W^T`, without gradients; either may be a transposed view."""
    if _LINEAR is None or x_TD.dtype != torch.float32 or x_TD.device.type != "cpu":
        return x_TD @ weight_ND.T
    result: Tensor = _LINEAR(x_TD, weight_ND, None, "none", [], "")
    return result
