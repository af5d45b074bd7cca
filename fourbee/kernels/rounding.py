"""Groups of numbers as whole numbers of few bits: which scales, which zero points, which numbers.

`[rows, groups, columns of a group]` in float32, one rounding an operation and sums in the order of
the kernels (`csrc/packing.inl`), so that these give the same bytes. Not here: how they lie in
memory (`packed.py`).
"""

from __future__ import annotations

import itertools

import numpy as np

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import FloatArray

TOO_LARGE = "a matrix with weights too large for their scales cannot be packed"
# What the value furthest from zero becomes in the scales that are tried: from finer steps with that
# value cut to coarser ones, and of both signs, as -8 has no opposite.
_CANDIDATES = (-9.5, -9.0, -8.5, -8.0, -7.5, -7.0, -6.5, -6.0, 8.5, 8.0, 7.5, 7.0, 6.5, 6.0)
# What is left of the least and of the greatest of a group in the ranges of int4c that are tried.
_SHRUNK = (1.0, 0.93, 0.86)
# Scales of int4c below this are 0: the inverse of a code's scale stays far from infinity.
_LEAST_SCALE = np.float32(2.0**-100)


def plain_int8(values_RGD: FloatArray) -> tuple[FloatArray, FloatArray]:
    largest: FloatArray = np.abs(_extremes(values_RGD))
    scales = stored_scales(np.divide(largest, 127, dtype=np.float32))
    return _rounded(values_RGD, scales, -127, 127), scales


def plain_int4(values_RGD: FloatArray) -> tuple[FloatArray, FloatArray]:
    """As llama.cpp's Q4_0: the value furthest from zero, whatever its sign, becomes -8."""
    scales = stored_scales(_extremes(values_RGD) / np.float32(-8))
    return _rounded(values_RGD, scales, -8, 7), scales


def searched_int4(values_RGD: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The scale of least squared error among candidates of both signs, each fitted to its numbers.

    For numbers q the best scale is `Wq / qq`, and the error that it leaves `WW - (Wq)^2 / qq`.
    """
    extremes = _extremes(values_RGD)
    best_gain = np.zeros_like(extremes)
    best = extremes / np.float32(-8)
    for extreme_becomes in _CANDIDATES:
        trial = extremes / np.float32(extreme_becomes)
        fitted, gain = _fitted(values_RGD, _rounded(values_RGD, trial, -8, 7))
        better = gain > best_gain
        best[better], best_gain[better] = fitted[better], gain[better]
    # Numbers for the fitted scale, a scale for these numbers, and numbers for that as it is stored.
    scales = stored_scales(_fitted(values_RGD, _rounded(values_RGD, best, -8, 7))[0])
    return _rounded(values_RGD, scales, -8, 7), scales


def _fitted(values_RGD: FloatArray, numbers_RGD: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The best scale for these numbers, and by how much it lowers the squared error."""
    products = _summed(values_RGD * numbers_RGD)
    squares: FloatArray = np.maximum(_summed(numbers_RGD * numbers_RGD), np.float32(1))
    scales = products / squares
    return scales, products * scales


def compact_int4(
    values_RGD: FloatArray, searched: bool
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Numbers, codes of scales, codes of zero points `[R, G]` and bases `[R]` of int4c."""
    with np.errstate(over="ignore", invalid="ignore"):
        scales_RG, zeros_RG = _searched_compact(values_RGD, searched)
        largest = scales_RG.max(axis=1)
        bases = np.where(largest >= _LEAST_SCALE, largest / np.float32(255), np.float32(0))
    if not np.isfinite(bases).all():
        raise UsageError(TOO_LARGE)
    codes_RG = np.rint(
        np.divide(scales_RG, bases[:, None], out=np.zeros_like(scales_RG), where=bases[:, None] > 0)
    )
    numbers = _rounded_from(values_RGD, bases[:, None] * codes_RG, zeros_RG)
    return numbers, codes_RG, zeros_RG, bases


def _searched_compact(values_RGD: FloatArray, searched: bool) -> tuple[FloatArray, FloatArray]:
    """Scales and codes of zero points: of least squared error among the ranges that are tried."""
    low = np.minimum(values_RGD.min(axis=2), np.float32(0))
    high = np.maximum(values_RGD.max(axis=2), np.float32(0))
    best, best_zeros = _compact_range(low, high)
    if not searched:
        return best, best_zeros
    totals, best_gain = _summed(values_RGD), np.zeros_like(low)
    # At last the best one once more, for the numbers that it gives.
    for shrunk in (*itertools.product(_SHRUNK, _SHRUNK), None):
        trial = (best, best_zeros) if shrunk is None else (
            _compact_range(low * np.float32(shrunk[0]), high * np.float32(shrunk[1]))
        )  # fmt: skip
        fitted, fitted_zeros, gain = _fitted_compact(values_RGD, totals, *trial)
        better = (gain > best_gain) & (fitted > 0)
        best, best_zeros = (
            np.where(better, fitted, best),
            np.where(better, fitted_zeros, best_zeros),
        )
        best_gain = np.where(better, gain, best_gain)
    return best, best_zeros


def _compact_range(low_RG: FloatArray, high_RG: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The scale and the zero point for which low is 0 and high is 15."""
    scales = (high_RG - low_RG) / np.float32(15)
    return scales, _sixteenths(-low_RG * _inverse(scales))


def _fitted_compact(
    values_RGD: FloatArray, totals_RG: FloatArray, scales_RG: FloatArray, zeros_RG: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The scale and the zero point for the numbers that these give, and what they gain.

    The line of least squares through (q, W) has its zero at `mean(q) - mean(W) var(q) / cov(W, q)`;
    for the zero point as it is stored, the best scale is that of `q - zero` (`_fitted`).
    """
    group = np.float32(values_RGD.shape[2])
    numbers = _rounded_from(values_RGD, scales_RG, zeros_RG)
    sums, squares = _summed(numbers), _summed(numbers * numbers)
    products = _summed(values_RGD * numbers)
    variance = group * squares - sums * sums
    covariance = group * products - totals_RG * sums
    sloped = (variance > 0) & (covariance > 0)
    slope = np.divide(variance, covariance, out=np.zeros_like(sums), where=sloped)
    zeros = np.where(sloped, _sixteenths((sums - totals_RG * slope) / group), zeros_RG)
    zero = zeros * np.float32(1 / 16)
    dot = products - zero * totals_RG
    about_zero = squares - (zero + zero) * sums + group * (zero * zero)
    scales = dot / np.maximum(about_zero, np.float32(1 / 256))
    return scales, zeros, dot * scales


def _sixteenths(zeros_RG: FloatArray) -> FloatArray:
    codes: FloatArray = np.clip(np.rint(zeros_RG * np.float32(16)), np.float32(0), np.float32(255))
    return codes


def _summed(terms_RGD: FloatArray) -> FloatArray:
    """The sums of groups, in the order of the kernels: 16 lanes, then pairs of them."""
    lanes = terms_RGD.reshape(*terms_RGD.shape[:2], -1, 16)
    total = np.zeros_like(lanes[..., 0, :])
    for line in range(lanes.shape[2]):
        total += lanes[..., line, :]
    for half in (8, 4, 2, 1):
        total = total[..., :half] + total[..., half : 2 * half]
    return total[..., 0]


def _extremes(values_RGD: FloatArray) -> FloatArray:
    """Of each group the value furthest from zero, with its sign."""
    high, low = values_RGD.max(axis=2), values_RGD.min(axis=2)
    extremes: FloatArray = np.where(high > -low, high, low) + np.float32(0)  # never -0
    return extremes


def stored_scales(scales: FloatArray) -> FloatArray:
    """The scales as float16 has them; 0 for one that is too small for it."""
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    if not np.isfinite(halves).all():
        raise UsageError(TOO_LARGE)
    return halves.astype(np.float32)


def _inverse(scales_RG: FloatArray) -> FloatArray:
    return np.divide(1, scales_RG, out=np.zeros_like(scales_RG), where=scales_RG != 0)


def _rounded_from(
    values_RGD: FloatArray, scales_RG: FloatArray, zeros_RG: FloatArray
) -> FloatArray:
    """The whole numbers q from 0 to 15 that come closest, zero points being in sixteenths."""
    numbers = values_RGD * _inverse(scales_RG)[..., None]
    numbers += (zeros_RG * np.float32(1 / 16))[..., None]
    np.rint(numbers, out=numbers)
    return np.clip(numbers, np.float32(0), np.float32(15), out=numbers)


def _rounded(values_RGD: FloatArray, scales_RG: FloatArray, low: int, high: int) -> FloatArray:
    """The whole numbers q within the bounds that come closest; 0 where the scale is 0."""
    numbers = values_RGD * _inverse(scales_RG)[..., None]
    np.rint(numbers, out=numbers)
    return np.clip(numbers, np.float32(low), np.float32(high), out=numbers)
