# SPDX-License-Identifier: Apache-2.0
"""The table of cases that every way of running the operator is held to, with its oracle and its tolerance.

The oracle differentiates through the variance and the mean one after the other, in extended precision where the
machine has it; it shares neither the closed formula nor any code with what it checks.
"""

import functools
import itertools
import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

import lnbp_onnx

DTYPES = {
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
}
IN_DOUBLE = {"double", "int32", "uint32", "int64", "uint64"}
INPUTS = ("input_forward", "output_delta", "gamma", "beta", "mean", "variance")
OUTPUTS = ("input_delta", "gamma_delta", "beta_delta")


@dataclass(frozen=True)
class Case:
    """A configuration of the operator and what its inputs are like."""

    name: str
    shape: tuple[int, ...]
    axis: int = -1
    t: str = "float"
    p: str = ""
    u: str = ""
    affine: bool = True
    stats: bool = True
    epsilon: float = 1e-5
    gamma_shape: tuple[int, ...] | None = None
    beta_shape: tuple[int, ...] | None = None
    beta: bool = True
    mean_layout: str = "lead"
    variance_layout: str = "lead"
    outputs: tuple[bool, ...] = (True, True, True)
    mean: float = 0.0
    poison: tuple[tuple[str, int, float], ...] = field(default=())

    @property
    def norm(self) -> tuple[int, ...]:
        return self.shape[self.axis % len(self.shape) :]

    @property
    def lead(self) -> tuple[int, ...]:
        return self.shape[: self.axis % len(self.shape)]

    @property
    def wanted(self) -> tuple[bool, ...]:
        return self.outputs if self.affine else self.outputs[:1]

    def types(self) -> dict[str, str]:
        p, u = self.p or self.t, self.u or self.t
        return dict(zip(INPUTS, (self.t, self.t, p, p, u, u), strict=True))

    def arrays(self) -> dict[str, Any]:
        """Return the inputs by name, without those that are omitted; the same at every call, and read-only."""
        return dict(_arrays(self))

    def draw(self) -> dict[str, np.ndarray]:
        """Draw what `arrays` returns."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        types = self.types()
        values: dict[str, np.ndarray] = {
            "input_forward": self._draw(rng, self.t, self.shape, self.mean, 1.0),
            "output_delta": self._draw(rng, self.t, self.shape, 0.25, 1.0),
        }
        if self.affine:
            shape = self.norm if self.gamma_shape is None else self.gamma_shape
            values["gamma"] = self._draw(rng, types["gamma"], shape, 1.0, 0.5)
            if self.beta:
                shape = shape if self.beta_shape is None else self.beta_shape
                values["beta"] = self._draw(rng, types["beta"], shape, 0.0, 0.5)
        if self.stats:
            rows = math.prod(self.lead)
            x = values["input_forward"].astype(np.float64).reshape(rows, math.prod(self.norm))
            with np.errstate(all="ignore"):
                mean = x.sum(axis=1) / x.shape[1]
                variance = np.square(x - mean[:, None]).sum(axis=1) / x.shape[1]
            if x.shape[1] < 2:
                variance = np.ones(rows)
            for name, value, layout in (
                ("mean", mean, self.mean_layout),
                ("variance", variance, self.variance_layout),
            ):
                dtype = DTYPES[types[name]]
                defined = np.where(np.isnan(value), 1, value)
                rounded = np.ceil(defined) if dtype.kind in "iu" else defined
                values[name] = rounded.astype(dtype).reshape(self._layout(layout))
        for name, index, value in self.poison:
            values[name].reshape(-1)[index] = value
        return {name: values[name] for name in INPUTS if name in values}

    def _draw(self, rng: np.random.Generator, t: str, shape: tuple[int, ...], mean: float, std: float) -> np.ndarray:
        dtype = DTYPES[t]
        if dtype.kind in "iu":
            high = round(12 * std)
            return rng.integers(0 if dtype.kind == "u" else -high, high + 1, shape).astype(dtype)
        return np.asarray(rng.normal(mean, std, shape)).astype(dtype)

    def _layout(self, layout: str) -> tuple[int, ...]:
        return {
            "lead": self.lead,
            "kept": self.lead + (1,) * len(self.norm),
            "flat": (math.prod(self.lead),),
        }[layout]

    def make_node(self) -> onnx.NodeProto:
        present = self.arrays()
        return lnbp_onnx.make_node(
            "input_forward",
            "output_delta",
            **{name: name for name in INPUTS[2:] if name in present},
            outputs=[name if wanted else "" for name, wanted in zip(OUTPUTS, self.wanted, strict=False)],
            begin_norm_axis=self.axis,
            use_affine=self.affine,
            epsilon=self.epsilon,
            use_stats=self.stats,
            name="norm_grad",
        )

    def model(self, opset: int = 17, shapes: str = "static") -> onnx.ModelProto:
        """Return a model of one node. `shapes` is "static", "symbolic" or "unknown": of unknown rank to the node."""
        node = self.make_node()
        types = self.types()
        inputs, outputs, nodes = [], [], []
        for name, array in self.arrays().items():
            element_type = helper.np_dtype_to_tensor_dtype(DTYPES[types[name]])
            if shapes == "unknown":
                inputs.append(helper.make_tensor_value_info(f"{name}_in", element_type, [f"{name}_size"]))
                inputs.append(helper.make_tensor_value_info(f"{name}_shape", TensorProto.INT64, [f"{name}_rank"]))
                nodes.append(helper.make_node("Reshape", [f"{name}_in", f"{name}_shape"], [name]))
                if opset >= 14:
                    nodes[-1].attribute.append(helper.make_attribute("allowzero", 1))
            else:
                dims = array.shape if shapes == "static" else [f"{name}_{i}" for i in range(array.ndim)]
                inputs.append(helper.make_tensor_value_info(name, element_type, dims))
        for name, wanted in zip(OUTPUTS, self.wanted, strict=False):
            if wanted:
                source = {"input_delta": "input_forward", "gamma_delta": "gamma"}.get(
                    name, "beta" if self.beta else "gamma"
                )
                array = self.arrays()[source]
                dims = array.shape if shapes == "static" else [f"{name}_{i}" for i in range(array.ndim)]
                outputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims))
        graph = helper.make_graph([*nodes, node], "case", inputs, outputs)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(lnbp_onnx.DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def feeds(self, shapes: str = "static") -> dict[str, np.ndarray]:
        """Return what `model(shapes=shapes)` is fed with."""
        if shapes != "unknown":
            return self.arrays()
        feeds = {}
        for name, array in self.arrays().items():
            feeds[f"{name}_in"] = array.reshape(-1)
            feeds[f"{name}_shape"] = np.array(array.shape, np.int64)
        return feeds

    def oracle(self) -> tuple[dict[str, np.ndarray], float]:
        """Return the outputs in extended precision, and rms(rstd * g)."""
        return _oracle(self)

    def derive(self) -> tuple[dict[str, np.ndarray], float]:
        """Derive what `oracle` returns."""
        real = np.longdouble
        arrays = self.arrays()
        rows, columns = math.prod(self.lead), math.prod(self.norm)
        with np.errstate(all="ignore"):
            x = arrays["input_forward"].astype(real).reshape(rows, columns)
            dy = arrays["output_delta"].astype(real).reshape(rows, columns)
            if self.stats:
                mean = arrays["mean"].astype(real).reshape(rows, 1)
                variance = arrays["variance"].astype(real).reshape(rows, 1)
            else:
                mean = x.sum(axis=1, keepdims=True) / real(columns)
                variance = ((x - mean) ** 2).sum(axis=1, keepdims=True) / real(columns)
            std = np.sqrt(variance + real(np.float32(self.epsilon)))
            centred = x - mean
            gamma_index = _element_index(arrays["gamma"].shape, self.norm) if self.affine else None
            dxhat = dy
            if gamma_index is not None:
                dxhat = dy * arrays["gamma"].astype(real).reshape(-1)[gamma_index]
            # y = centred / std: through the variance, then through the mean, of which the variance is independent.
            dvariance = (dxhat * centred).sum(axis=1, keepdims=True) / (-2 * std**3)
            dmean = -(dxhat / std).sum(axis=1, keepdims=True)
            dx = dxhat / std + dvariance * 2 * centred / real(columns) + dmean / real(columns)
            results = {"input_delta": dx.reshape(self.shape)}
            if self.affine:
                for name, term, like in (
                    ("gamma_delta", dy * centred / std, "gamma"),
                    ("beta_delta", dy, "beta" if self.beta else "gamma"),
                ):
                    shape = arrays[like].shape
                    total = np.zeros(math.prod(shape), real)
                    np.add.at(total, _element_index(shape, self.norm), term.sum(axis=0))
                    results[name] = total.reshape(shape)
            scale = float(_rms(dxhat / std))
        wanted = dict(zip(OUTPUTS, self.wanted, strict=False))
        return {name: value for name, value in results.items() if wanted.get(name)}, scale

    def check(self, outputs: dict[str, np.ndarray]) -> None:
        """Compare a way's outputs with the oracle, each at its tolerance."""
        expected, scale = self.oracle()
        types = self.types()
        assert outputs.keys() == expected.keys()
        for name, oracle in expected.items():
            t = self.t if name == "input_delta" else types["gamma"]
            found = outputs[name]
            assert found.dtype == DTYPES[t], (name, found.dtype)
            assert found.shape == oracle.shape, (name, found.shape)
            if oracle.size == 0:
                continue
            # Rounding to the output's type comes on top of the error of the compute type.
            if name == "input_delta":
                bound = (1e-14 if self.t in IN_DOUBLE else 2e-6) * scale
            else:
                bound = (1e-13 if self.t in IN_DOUBLE else 1e-5) * float(_rms(oracle))
            _check_close(name, found, oracle, bound, t, rounds=t != ("double" if self.t in IN_DOUBLE else "float"))


# What runs one after the other is mostly of one case.
@functools.lru_cache(maxsize=4)
def _arrays(case: Case) -> dict[str, np.ndarray]:
    arrays = case.draw()
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


@functools.lru_cache(maxsize=4)
def _oracle(case: Case) -> tuple[dict[str, np.ndarray], float]:
    return case.derive()


def _element_index(shape: tuple[int, ...], norm: tuple[int, ...]) -> np.ndarray:
    """Return for each column which element of a parameter of `shape` it belongs to."""
    index = np.arange(math.prod(shape))
    if len(shape) == 1 and shape[0] == math.prod(norm):
        return index
    return np.broadcast_to(index.reshape(shape), norm).reshape(-1)


def _rms(values: np.ndarray) -> np.longdouble:
    return np.sqrt(np.mean(np.square(values))) if values.size else np.longdouble(0)


MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float": 23, "double": 52}
SMALLEST_EXPONENT = {"float16": -24, "bfloat16": -133, "float": -149, "double": -1074}


def _check_close(name: str, found: np.ndarray, oracle: np.ndarray, bound: float, t: str, rounds: bool) -> None:
    """Compare an output of type `t`; `rounds` says that it is narrower than the compute type."""
    exact = found.astype(np.longdouble)
    if found.dtype.kind in "iu":
        # What is out of range is undefined, and on which side of an integer a value lies is the error's to say.
        limits = np.iinfo(found.dtype)
        wanted = np.trunc(oracle)
        in_range = (wanted >= limits.min) & (wanted <= limits.max)
        near = np.abs(oracle - np.rint(oracle)) < 1e-3
        allowed = np.where(near, np.abs(exact - np.rint(oracle)) <= 1, exact == wanted)
        assert (allowed | ~in_range).all(), (name, found, oracle)
        return
    limit: np.ndarray | float = bound
    wanted = oracle
    if rounds:
        wanted = oracle.astype(found.dtype).astype(np.longdouble)
        exponent = np.floor(np.log2(np.maximum(np.abs(wanted), np.longdouble(2) ** -1074)))
        limit = bound + np.exp2(np.maximum(exponent - MANTISSA_BITS[t], SMALLEST_EXPONENT[t]))
    error = np.abs(exact - wanted)
    worst = np.unravel_index(np.argmax(error - limit), error.shape)
    assert (error <= limit).all(), (name, float(error[worst]), float(np.broadcast_to(limit, error.shape)[worst]))


def _types() -> list[Case]:
    cases = []
    for t in DTYPES:
        for p, u in itertools.product(dict.fromkeys((t, "float")), repeat=2):
            cases.append(Case(f"types-{t}-{p}-{u}", (5, 16), t=t, p=p, u=u))
        cases.append(Case(f"types-{t}-computed", (5, 16), t=t, stats=False))
        cases.append(Case(f"types-{t}-plain", (5, 16), t=t, affine=False))
    return cases


def _attributes() -> list[Case]:
    cases = []
    for affine, stats in itertools.product((True, False), repeat=2):
        for epsilon in (1e-5, 0.5) if not stats else (1e-5, 0.0):
            cases.append(
                Case(
                    f"attributes-{affine:d}{stats:d}-{epsilon}", (3, 4, 10), affine=affine, stats=stats, epsilon=epsilon
                )
            )
    for outputs in ((True,), (True, True), (True, False, True), (True, True, False), (True, False, False)):
        label = "".join(str(int(wanted)) for wanted in outputs)
        cases.append(Case(f"outputs-{label}", (3, 4, 10), outputs=outputs))
        cases.append(Case(f"outputs-{label}-computed", (3, 4, 10), outputs=outputs, stats=False, beta=False))
    cases.append(Case("outputs-plain-omitted", (3, 4, 10), affine=False, outputs=(True,)))
    return cases


def _axes() -> list[Case]:
    cases = []
    for shape in ((7,), (5, 6), (2, 3, 8), (2, 3, 2, 5), (2, 1, 3, 2, 2)):
        for axis in range(-len(shape), len(shape)):
            cases.append(Case(f"axes-{len(shape)}-{axis}", shape, axis=axis, stats=axis % 2 == 0))
    return cases


def _parameters() -> list[Case]:
    shapes = (
        (3, 4, 5),
        (60,),
        (4, 5),
        (5,),
        (1,),
        (),
        (1, 5),
        (4, 1),
        (3, 1, 1),
        (1, 4, 1),
        (1, 1, 1),
        (1, 1),
        (3, 1, 5),
    )
    cases = [Case(f"gamma-{'x'.join(map(str, s)) or 'scalar'}", (6, 3, 4, 5), axis=1, gamma_shape=s) for s in shapes]
    cases += [
        Case("gamma-beta-differ", (6, 3, 4, 5), axis=1, gamma_shape=(60,), beta_shape=(4, 1)),
        Case("gamma-broadcast-beta-flat", (6, 3, 4, 5), axis=1, gamma_shape=(5,), beta_shape=(60,)),
        Case("gamma-no-beta", (6, 3, 4, 5), axis=1, gamma_shape=(3, 1, 5), beta=False),
        Case("gamma-one-of-one-axis", (6, 9), gamma_shape=(1,)),
        Case("gamma-scalar-of-one-axis", (6, 9), gamma_shape=()),
        Case("gamma-flat-with-one-axes", (6, 1, 5, 1), axis=1, gamma_shape=(5,)),
        Case("gamma-broadcast-half", (6, 3, 4, 5), axis=1, gamma_shape=(4, 1), t="float16", p="float"),
        Case("gamma-broadcast-double", (6, 3, 4, 5), axis=1, gamma_shape=(1, 5), t="double", p="float"),
        Case("gamma-broadcast-int", (2, 3, 2, 2), axis=1, gamma_shape=(2, 1), t="int32"),
    ]
    return cases


def _statistics() -> list[Case]:
    cases = []
    for shape, axis in (((6, 5), 1), ((2, 3, 4, 5), 2), ((4, 5), 0), ((5,), 0), ((2, 3, 4), 1)):
        for mean, variance in itertools.product(("lead", "kept", "flat"), repeat=2):
            label = "x".join(map(str, shape))
            cases.append(
                Case(f"stats-{label}-{mean}-{variance}", shape, axis=axis, mean_layout=mean, variance_layout=variance)
            )
    return cases


def _sizes() -> list[Case]:
    cases = []
    for shape, axis in (
        ((0, 5), 1),
        ((5, 0), 1),
        ((0, 0), 1),
        ((0,), 0),
        ((2, 0, 3), 1),
        ((2, 0, 3), 2),
        ((2, 3, 0), 1),
    ):
        label = "x".join(map(str, shape))
        for stats in (True, False):
            cases.append(Case(f"empty-{label}-{axis}-{stats:d}", shape, axis=axis, stats=stats))
    cases += [
        Case("empty-columns-broadcast", (5, 0), gamma_shape=(1,)),
        Case("empty-columns-flat", (3, 0, 0), axis=1, gamma_shape=(0,)),
        Case("empty-columns-scalar", (5, 3, 0), axis=1, gamma_shape=(), beta_shape=(3, 1)),
        Case("empty-columns-last-axis", (5, 0, 3), axis=1, gamma_shape=(3,), t="float16"),
        Case("empty-rows-broadcast", (0, 4, 3), axis=1, gamma_shape=(4, 1), t="int8"),
        Case("ones-1x1", (1, 1)),
        Case("ones-5x1", (5, 1)),
        Case("ones-5x1-computed", (5, 1), stats=False),
        Case("ones-1x9", (1, 9)),
        Case("ones-1x1x7-computed", (1, 1, 7), axis=0, stats=False),
    ]
    for columns in (2, 3, 17, 63, 65, 127, 1000, 4097):
        cases.append(Case(f"columns-{columns}", (4, columns)))
        cases.append(Case(f"columns-{columns}-half", (4, columns), t="bfloat16", p="float", u="float"))
    for label, mean in (("", 0.0), ("-mean1e4", 1e4)):
        for stats in (True, False):
            way = "given" if stats else "computed"
            for t, u in (("float", ""), ("double", ""), ("bfloat16", "float"), ("float16", "float")):
                if t == "float16" and mean:
                    continue
                cases.append(Case(f"large-1024x768-{t}-{way}{label}", (1024, 768), t=t, u=u, stats=stats, mean=mean))
            cases.append(Case(f"large-4096x256-{way}{label}", (4, 1024, 256), stats=stats, mean=mean))
            cases.append(Case(f"large-16x20000-{way}{label}", (16, 20000), stats=stats, mean=mean))
    return cases


CASES = [*_types(), *_attributes(), *_axes(), *_parameters(), *_statistics(), *_sizes()]
SMALL_CASES = [case for case in CASES if not case.name.startswith("large")]
assert len({case.name for case in CASES}) == len(CASES)
