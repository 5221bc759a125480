# SPDX-License-Identifier: Apache-2.0
"""How far two arrays are from each other, and what the type of an array can tell apart."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

RTOL, ATOL = 1e-5, 1e-6
"""The tolerances of a comparison by default."""


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in the widest type of its kind: complex128 or float64."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def differences(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the absolute difference of each two elements, of the arrays' shape.

    It is 0 where both are the same infinity or NaN, and infinite where one alone is. Integers of more than 53 bits are
    rounded; `largest_difference_of_integers` is exact.
    """
    a, b = widened(a), widened(b)
    with np.errstate(all="ignore"):
        found = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return np.asarray(np.where(np.isnan(found), np.inf, found), np.float64)


def largest_difference_of_integers(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the largest difference of two arrays of one integer type or of booleans, found without rounding."""
    # The difference of any two integers of 64 bits, the larger minus the smaller, is right modulo 2**64.
    larger, smaller = (select(a, b).astype(np.uint64) for select in (np.maximum, np.minimum))
    return float((larger - smaller).max(initial=0))


def largest_magnitude(array: NDArray[Any]) -> float:
    """Return the largest finite absolute value, 0 where there is none."""
    magnitudes = np.abs(widened(array))
    return float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))


def spacing(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number of a floating or complex type, 0 for the others."""
    try:
        return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    except ValueError:
        return 0.0
