# SPDX-License-Identifier: Apache-2.0
"""What every contender is given, and what it must compute: inputs, references in double, tolerances."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Task: TypeAlias = Literal["gradient", "product", "product and copies", "sum of bits"]
Case: TypeAlias = Literal["plain", "unaligned", "computed"]

EPSILON = float(np.float32(1e-5))

TYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "double": np.dtype(np.float64),
}

# Errors are counted in the rms of the reference. The peers add up the parameter gradients in plain float, which costs
# 2e-5 at 65536 rows; a wrong formula or a skipped row costs 1e-2 and more.
_TOLERANCES = {"float": (1e-5, 1e-4), "double": (1e-12, 1e-12)}


@dataclass(frozen=True)
class Inaccuracy:
    """An output beyond its tolerance: a fault where no known property of the contender explains it."""

    text: str
    is_fault: bool


@dataclass(frozen=True)
class Problem:
    """One shape and element type: affine, all three outputs.

    In the case "unaligned" every array begins 16 bytes past a line, as NumPy's do. In the case "computed" the
    statistics are not given; in the others they are.

    Parameters and statistics of the half types are float: the one form that all peers know, and the fastest that torch
    has.
    """

    rows: int
    columns: int
    element_type: str
    case: Case = "plain"
    inputs: dict[str, Array] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(1)
        shape, t, p = (self.rows, self.columns), self.dtype, self.parameter_dtype
        x = self._stored(rng.standard_normal(shape, self.parameter_dtype.type) * 2 + 0.5, t)
        exact = x.astype(np.float64)
        mean, variance = exact.mean(axis=1, keepdims=True), exact.var(axis=1, keepdims=True)
        inputs = {
            "input_forward": x,
            "output_delta": self._stored(rng.standard_normal(shape, self.parameter_dtype.type), t),
            "gamma": self._stored(rng.uniform(0.5, 1.5, self.columns), p),
            "beta": self._stored(rng.uniform(-1, 1, self.columns), p),
            "mean": self._stored(mean, p),
            "variance": self._stored(variance, p),
        }
        inputs["rstd"] = self._stored(1 / np.sqrt(inputs["variance"].astype(np.float64) + EPSILON), p)
        object.__setattr__(self, "inputs", inputs)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the matrices."""
        return TYPES[self.element_type]

    @property
    def parameter_dtype(self) -> np.dtype[Any]:
        """The type of parameters and statistics."""
        return TYPES[self.parameter_type]

    @property
    def parameter_type(self) -> str:
        """The name of the type of parameters and statistics."""
        return "double" if self.element_type == "double" else "float"

    @property
    def traffic(self) -> int:
        """The bytes that must move: two matrices read, one written."""
        return 3 * self.rows * self.columns * self.dtype.itemsize

    def new_outputs(self) -> dict[str, Array]:
        """Return arrays for the gradient that hold NaN, so that one that is not written is found."""
        outputs = {
            "input_delta": self._empty((self.rows, self.columns), self.dtype),
            "gamma_delta": self._empty((self.columns,), self.parameter_dtype),
            "beta_delta": self._empty((self.columns,), self.parameter_dtype),
        }
        for output in outputs.values():
            output.fill(math.nan)
        return outputs

    def errors(
        self, task: Task, outputs: Mapping[str, Array], *, sums_in: np.dtype[Any] | None = None
    ) -> list[Inaccuracy]:
        """Return where a contender's outputs are less accurate than they must be.

        Args:
            task: What they must hold.
            outputs: By name.
            sums_in: The type that the contender is known to add up the parameter gradients in, where it is less than
                float: what that costs is no fault, but told.
        """
        expected = self._expected(task)
        if set(outputs) != set(expected):
            return [Inaccuracy(f"its outputs are {sorted(outputs)}; they must be {sorted(expected)}", is_fault=True)]
        found = (self._error(name, outputs[name], reference, sums_in) for name, reference in expected.items())
        return [error for error in found if error is not None]

    def _error(self, name: str, output: Array, reference: Array, sums_in: np.dtype[Any] | None) -> Inaccuracy | None:
        if output.shape != reference.shape:
            return Inaccuracy(f"{name} has shape {output.shape}; it must be {reference.shape}", is_fault=True)
        if reference.dtype.kind == "u":
            return None if np.array_equal(output, reference) else Inaccuracy(f"{name} differs", is_fault=True)
        is_parameter = name in ("gamma_delta", "beta_delta")
        tolerance = _TOLERANCES[self.parameter_type][is_parameter]
        rounding = 0.0 if is_parameter else _spacing(self.dtype)
        rms = float(np.sqrt(np.mean(np.square(reference)))) or 1.0
        # The difference in the output's type would round.
        error = np.abs(output.astype(np.float64) - reference)
        # The negation makes a NaN wrong.
        if not (~(error <= tolerance * rms + rounding * np.abs(reference))).any():
            return None
        worst = error.max() / rms
        text = f"{name} is off by {worst:.1e} of its rms"
        if not is_parameter or sums_in is None:
            return Inaccuracy(text, is_fault=True)
        # The errors of n roundings add up to about sqrt(n); those of an output of zeros have the rms of the reference.
        allowed = min(0.9, 2 * _spacing(sums_in) * math.sqrt(self.rows))
        typical = float(np.sqrt(np.mean(np.square(error)))) / rms
        return Inaccuracy(f"{text}, for it sums in {sums_in.name}", is_fault=not typical <= allowed)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return aligned_empty(shape, dtype, offset=16 if self.case == "unaligned" else 0)

    def _stored(self, values: Array, dtype: np.dtype[Any]) -> Array:
        array = self._empty(values.shape, dtype)
        array[...] = values
        return array

    def _expected(self, task: Task) -> dict[str, Array]:
        x, dy = self.inputs["input_forward"], self.inputs["output_delta"]
        if task == "gradient":
            return self._gradient
        if task == "sum of bits":
            return {"sum": bits(x) + bits(dy)}
        product = {"product": x.astype(np.float64) * dy.astype(np.float64)}
        if task == "product and copies":
            product |= {f"{name}_copy": self.inputs[name].astype(np.float64) for name in ("gamma", "beta")}
        return product

    @cached_property
    def _gradient(self) -> dict[str, Array]:
        exact = {name: array.astype(np.float64) for name, array in self.inputs.items() if name != "rstd"}
        dy = exact["output_delta"]
        rstd = 1 / np.sqrt(exact["variance"] + EPSILON)
        xhat = (exact["input_forward"] - exact["mean"]) * rstd
        g = dy * exact["gamma"]
        means = g.mean(axis=1, keepdims=True) + xhat * (g * xhat).mean(axis=1, keepdims=True)
        return {
            "input_delta": rstd * (g - means),
            "gamma_delta": (dy * xhat).sum(axis=0),
            "beta_delta": dy.sum(axis=0),
        }


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0) -> Array:
    """Return an array that starts at a page, or `offset` bytes past one, so that no contender is the lucky one."""
    page = 4096
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + page + offset, np.uint8)
    start = -memory.ctypes.data % page + offset
    return memory[start : start + size].view(dtype).reshape(shape)


def bits(array: Array) -> NDArray[np.uint16]:
    """Return an array's memory as numbers that have no special values."""
    return array.reshape(-1).view(np.uint16)


def _spacing(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number."""
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
