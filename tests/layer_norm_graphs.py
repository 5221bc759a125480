# SPDX-License-Identifier: Apache-2.0
"""Layer-norm gradients written out in many ways, right and subtly wrong."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from cases import DTYPES
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper

FORMS = ("normalised", "torch", "chain")
MISTAKES = (
    "axis",
    "size",
    "epsilon",
    "swap",
    "other x",
    "sign",
    "missing mean",
    "missing projection",
    "power",
    "offset",
    "other dy",
    "other mean",
    "variance",
    "truncated",
    "mean size",
)
OPSETS = (11, 13, 18, 21)


@dataclass(frozen=True)
class Style:
    """How a gradient is written.

    Attributes:
        shape: x's shape; the last `norm_rank` axes are normalised.
        norm_rank: How many axes are normalised.
        form: "normalised" is the definition, "torch" PyTorch's, "chain" goes through the variance and the mean.
        affine: Whether gamma enters.
        stats: "computed", "variance", "rstd" or "forward": a LayerNormalization node.
        epsilon: Added to the variance.
        t: The element type; half types are computed in float.
        choices: What decides between ways to write a step, one number after the other.
        outputs: Which of dx, dgamma and dbeta there are.
        taps: Inner values, by number, that become outputs as well.
        mistake: One of `MISTAKES`.
        dynamic: Whether the first axis is symbolic.
        opset: The model's opset.
        is_amid: Whether x, dy and gamma are computed by other nodes, and dx is used by one.
    """

    shape: tuple[int, ...] = (4, 3, 10)
    norm_rank: int = 1
    form: str = "normalised"
    affine: bool = True
    stats: str = "computed"
    epsilon: float = 1e-5
    t: str = "float"
    choices: tuple[int, ...] = (0,)
    outputs: tuple[bool, ...] = (True, True, True)
    taps: tuple[int, ...] = ()
    mistake: str = ""
    dynamic: bool = False
    opset: int = 18
    is_amid: bool = False


@dataclass
class Writer:
    """Writes a style's graph; `inner` are the values that others might use."""

    style: Style
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inner: list[str] = field(default_factory=list)
    made: int = 0

    def choose(self, count: int) -> int:
        self.made += 1
        return self.style.choices[self.made % len(self.style.choices)] % count

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        self.inner.append(name)
        return name

    def constant(self, values: Any, dtype: Any = None) -> str:
        dtype = dtype or (np.float64 if self.style.t == "double" else np.float32)
        array = np.array(values, dtype)
        name = f"c{len(self.nodes)}_{len(self.initializers)}"
        if self.choose(2):
            self.initializers.append(onnx.numpy_helper.from_array(array, name))
            return name
        self.nodes.append(helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array)))
        return name

    def mul(self, a: str, b: str) -> str:
        return self.op("Mul", *((a, b) if self.choose(2) else (b, a)))

    def add(self, a: str, b: str) -> str:
        return self.op(("Add", "Sum")[self.choose(2)], *((a, b) if self.choose(2) else (b, a)))

    def sub(self, a: str, b: str) -> str:
        if self.choose(3) == 0:
            return self.op("Add", a, self.op("Neg", b))
        return self.op("Sub", a, b)

    def mean_of_squares(self, a: str) -> str:
        if self.choose(4):
            return self.mean(self.square(a))
        size = float(np.prod(self.style.shape[-self.style.norm_rank :]))
        total = self.with_axes("ReduceSumSquare", a, self.norm_axes, 18, keepdims=1)
        return self.op("Div", total, self.constant(size))

    def square(self, a: str) -> str:
        return self.op("Pow", a, self.constant(2.0)) if self.choose(2) else self.op("Mul", a, a)

    def reciprocal(self, a: str) -> str:
        way = self.choose(3)
        if way == 0:
            return self.op("Reciprocal", a)
        return self.op("Div", self.constant(1.0), a) if way == 1 else self.op("Pow", a, self.constant(-1.0))

    def with_axes(self, op_type: str, a: str, axes: list[int], since: int, **attributes: Any) -> str:
        """Write an operator that has its axes as an input since an opset, and had them as an attribute before."""
        if self.style.opset < since:
            return self.op(op_type, a, axes=axes, **attributes)
        return self.op(op_type, a, self.constant(axes, np.int64), **attributes)

    def total(self, a: str, axes: list[int], keepdims: int = 1) -> str:
        return self.with_axes("ReduceSum", a, axes, 13, keepdims=keepdims)

    def root(self, a: str) -> str:
        return self.op("Sqrt", a) if self.choose(3) else self.op("Pow", a, self.constant(0.5))

    def mean(self, a: str) -> str:
        axes, size = self.norm_axes, float(np.prod(self.style.shape[-self.style.norm_rank :]))
        way = self.choose(4)
        if way == 0:
            return self.with_axes("ReduceMean", a, axes, 18, keepdims=1)
        total = self.total(a, axes)
        if way == 1:
            flat = self.total(a, axes, keepdims=0)
            # ONNX's evaluator inserts negative axes one after the other before opset 13.
            total = self.with_axes("Unsqueeze", flat, [axis % len(self.style.shape) for axis in axes], 13)
        return self.mul(total, self.constant(1 / size)) if way == 2 else self.op("Div", total, self.constant(size))

    @property
    def norm_axes(self) -> list[int]:
        rank = len(self.style.shape)
        axes = list(range(rank - self.style.norm_rank, rank))
        return [axis - rank for axis in axes] if self.choose(2) else axes

    def write(self) -> onnx.ModelProto:
        style = self.style
        rank, lead = len(style.shape), list(range(len(style.shape) - style.norm_rank))
        size = float(np.prod(style.shape[-style.norm_rank :]))
        half = style.t in ("float16", "bfloat16")
        x, dy, gamma = "x", "dy", "gamma"
        if style.is_amid:
            x, dy = self.op("Abs", x), self.op("Sin" if style.t == "float" else "Abs", dy)
            gamma = self.op("Abs", gamma) if style.affine else gamma
        if half:
            x, dy = self.op("Cast", x, to=TensorProto.FLOAT), self.op("Cast", dy, to=TensorProto.FLOAT)
            gamma = self.op("Cast", gamma, to=TensorProto.FLOAT) if style.affine else gamma
        if style.stats == "forward":
            scale = self.constant(np.ones(style.shape[-style.norm_rank :]))
            self.nodes.append(
                helper.make_node(
                    "LayerNormalization",
                    [x, scale],
                    ["y", "mean", "rstd"],
                    axis=-style.norm_rank,
                    epsilon=style.epsilon,
                )
            )
        mean = "mean" if style.stats != "computed" else self.mean(x)
        if style.mistake == "mean size":
            mean = self.mul(mean, self.constant(size / (size + 1)))
        d = self.sub(x, mean)
        if style.stats in ("computed", "variance"):
            variance = "variance" if style.stats == "variance" else self.mean_of_squares(d)
            if style.mistake == "variance":
                variance = self.mul(variance, self.constant(size / (size - 1)))
            shifted = self.add(variance, self.constant(style.epsilon)) if style.epsilon else variance
            if self.choose(3) == 0:
                rstd = self.op("Pow", shifted, self.constant(-0.5))
            else:
                rstd = self.reciprocal(self.root(shifted))
        else:
            rstd = "rstd"
        other = rstd
        if style.mistake == "epsilon":
            base = variance if style.stats in ("computed", "variance") else self.reciprocal(self.square(rstd))
            other = self.reciprocal(self.op("Sqrt", self.add(base, self.constant(0.125))))
        if style.mistake == "power":
            other = self.square(rstd)
        xhat = self.mul(d, rstd)
        wrong_d = self.sub("x2", mean) if style.mistake == "other x" else d
        if style.mistake == "other mean":
            wrong_d = self.sub(x, self.op("Neg", mean))
        if style.mistake == "truncated":
            wide = TensorProto.DOUBLE if style.t == "double" else TensorProto.FLOAT
            integers = self.op("Cast", d, to=TensorProto.INT64)
            self.inner.remove(integers)
            wrong_d = self.op("Cast", integers, to=wide)
        wrong = self.mul(wrong_d, other)
        g = self.mul(dy, gamma) if style.affine else dy
        mean_axes = self.norm_axes
        if style.mistake == "axis":
            mean_g = self.with_axes("ReduceMean", g, [0], 18, keepdims=1)
        elif style.mistake == "size":
            mean_g = self.op("Div", self.total(g, mean_axes), self.constant(size + 1))
        else:
            mean_g = self.mean(g)
        if style.mistake == "other dy":
            mean_g = self.mean("x2")
        magnitude = self.op("Sqrt", self.op("Mul", g, g)) if style.mistake == "magnitude" else g
        mean_gx = self.mean(self.mul(magnitude, xhat))
        if style.mistake == "offset":
            mean_gx = self.add(mean_gx, self.constant(0.25))
        if style.mistake == "missing projection":
            dx = self.mul(rstd, self.sub(g, mean_g))
        elif style.mistake in ("swap", "sign", "missing mean") or style.form == "normalised":
            centred = g if style.mistake == "missing mean" else self.sub(g, mean_g)
            if style.mistake == "swap":
                centred = self.sub(mean_g, g)
            combine = self.add if style.mistake == "sign" else self.sub
            dx = self.mul(rstd, combine(centred, self.mul(wrong, mean_gx)))
        elif style.form == "torch":
            scaled = self.mul(g, self.constant(size))
            total_g = self.mul(mean_g, self.constant(size))
            total_gx = self.mul(mean_gx, self.constant(size))
            inner = self.sub(self.sub(scaled, total_g), self.mul(wrong, total_gx))
            dx = self.mul(self.op("Div", rstd, self.constant(size)), inner)
        else:
            gr = self.mul(g, rstd)
            dvariance = self.mul(self.mul(mean_gx, self.square(rstd)), self.constant(-0.5))
            dmean = self.op("Neg", self.mul(mean_g, rstd))
            twice = self.mul(self.op("Div", wrong, rstd), self.constant(2.0))
            dx = self.add(self.add(gr, self.mul(twice, dvariance)), dmean)
        results = {"dx": dx}
        if style.affine:
            if style.outputs[1]:
                results["dgamma"] = self.total(self.mul(dy, xhat), lead, keepdims=0)
            if style.outputs[2]:
                results["dbeta"] = self.total(dy, lead, keepdims=0)
        taps = {f"tap{index}": self.inner[number % len(self.inner)] for index, number in enumerate(style.taps)}
        for name, value in results.items():
            final = self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(DTYPES[style.t])) if half else value
            final = self.op("Neg", final) if style.is_amid and name == "dx" else final
            self.nodes.append(helper.make_node("Identity", [final], [name]))
        for name, value in taps.items():
            self.nodes.append(helper.make_node(("Exp", "Identity")[self.choose(2)], [value], [name]))
        return self.model(rank, results, taps)

    def model(self, rank: int, results: dict[str, str], taps: dict[str, str]) -> onnx.ModelProto:
        style = self.style
        real = helper.np_dtype_to_tensor_dtype(DTYPES[style.t])
        wide = TensorProto.DOUBLE if style.t == "double" else TensorProto.FLOAT
        dims: list[Any] = ["B" if style.dynamic and rank > style.norm_rank else style.shape[0], *style.shape[1:]]
        info = helper.make_tensor_value_info
        inputs = [info("x", real, dims), info("dy", real, dims)]
        kept = [*dims[: rank - style.norm_rank], *([1] * style.norm_rank)]
        if style.affine:
            inputs.append(info("gamma", real, list(style.shape[-style.norm_rank :])))
        if style.stats in ("variance", "rstd"):
            inputs += [info("mean", wide, kept), info(style.stats, wide, kept)]
        if style.mistake in ("other x", "other dy"):
            inputs.append(info("x2", wide, dims))
        outputs = [info(name, real, None) for name in results]
        outputs += [helper.make_empty_tensor_value_info(name) for name in taps]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", style.opset)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def feeds(style: Style, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    wide = np.float64 if style.t == "double" else np.float32
    rank = len(style.shape)
    kept = [*style.shape[: rank - style.norm_rank], *([1] * style.norm_rank)]
    values = {
        "x": rng.normal(0.5, 1.5, style.shape).astype(DTYPES[style.t]),
        "dy": rng.normal(size=style.shape).astype(DTYPES[style.t]),
    }
    if style.affine:
        values["gamma"] = rng.normal(1, 0.5, style.shape[-style.norm_rank :]).astype(DTYPES[style.t])
    if style.stats in ("variance", "rstd"):
        values["mean"] = rng.normal(size=kept).astype(wide)
        values[style.stats] = rng.uniform(0.5, 1.5, kept).astype(wide)
    if style.mistake in ("other x", "other dy"):
        values["x2"] = rng.normal(size=style.shape).astype(wide)
    return values


@st.composite
def styles(draw: st.DrawFn, mistaken: bool = False) -> Style:
    norm_rank = draw(st.integers(1, 2))
    lead = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3 - norm_rank))
    norm = draw(st.lists(st.integers(3, 5), min_size=norm_rank, max_size=norm_rank))
    opset = draw(st.sampled_from(OPSETS))
    types = ["float"] if mistaken else ["float", "float", "double", "float16", "bfloat16"]
    t = draw(st.sampled_from([t for t in types if opset > 11 or t != "bfloat16"]))
    # LayerNormalization is there since opset 17, and its statistics are float.
    sources = ["computed", "variance", "rstd"] + ([] if t == "double" or opset < 17 else ["forward"])
    mistake = draw(st.sampled_from(MISTAKES)) if mistaken else ""
    if mistaken:
        # Any column may be a given variance.
        sources = ["computed"] if mistake in ("variance", "mean size") else ["computed", "variance"]
    return Style(
        shape=(*lead, *norm),
        norm_rank=norm_rank,
        form=draw(st.sampled_from(FORMS)),
        affine=draw(st.booleans()),
        stats=draw(st.sampled_from(sources)),
        epsilon=draw(st.sampled_from([1e-5, 0.25, 0.0])),
        t=t,
        choices=tuple(draw(st.lists(st.integers(0, 11), min_size=3, max_size=9))),
        outputs=(True, draw(st.booleans()), draw(st.booleans())),
        taps=tuple(draw(st.lists(st.integers(0, 60), max_size=3))),
        mistake=mistake,
        dynamic=draw(st.booleans()),
        opset=opset,
        is_amid=draw(st.booleans()),
    )
