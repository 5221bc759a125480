# SPDX-License-Identifier: Apache-2.0
"""Comparing two models by running both on the same random inputs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.model_io import has_external_data, load_model
from lnbp_onnx.protos import graph_nodes, model_nodes
from lnbp_onnx.runners import KernelRunner, PlainRunner, Runner, Tensors

AnyModel: TypeAlias = ModelProto | ir.Model | str | Path

SYMBOLIC_LENGTH = 2
"""The length of a symbolic dimension that no shape is given for."""

# What a variance may pass through on its way from a graph input to a node, its values unchanged.
_KEEPS_VALUES = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand"}


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output of both models.

    Attributes:
        name: The output.
        max_absolute_error: The largest difference.
        max_relative_error: The largest difference, as a fraction of the largest magnitude in the first model's output.
        ok: Whether every element is within the tolerance.
    """

    name: str
    max_absolute_error: float
    max_relative_error: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found: the worst of all runs for each output.

    Attributes:
        outputs: One entry for each output, in the first model's order.
        runtimes: What ran the two models.
        seconds: The shortest time that each of them took.
    """

    outputs: tuple[OutputComparison, ...]
    runtimes: tuple[str, str]
    seconds: tuple[float, float]

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(output.ok for output in self.outputs)


def compare(
    model_a: AnyModel,
    model_b: AnyModel,
    *,
    inputs: Tensors | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    runs: int = 1,
    seed: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> Comparison:
    """Run two models on the same inputs and compare their outputs.

    Each runs in plain ONNX Runtime, where an embedded function takes the operator's place; a model that holds the
    operator without such a function runs with the native kernel. Two elements agree
    when they differ by at most ``atol + rtol * |a|``; rtol is never taken finer than the output type's own spacing.

    Args:
        model_a: A ModelProto, an ``onnx_ir.Model``, or a path.
        model_b: The same; with inputs and outputs of the same names.
        inputs: The inputs by name. None draws them: standard normal; what feeds a node's variance, uniform in
            [0.5, 1.5]; integers and booleans, 0 or 1.
        input_shapes: Shapes by input name, for drawing; a symbolic dimension has the length that one of them gives
            it, or 2.
        runs: How often to draw and run.
        seed: Of the first draw; the others count up from it.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        InvalidModelError: Where a model cannot be read or run, or the two do not have the same inputs and outputs.
        ValueError: Where `runs` is less than 1.
    """
    if runs < 1:
        raise ValueError(f"runs is {runs}; it must be at least 1.")
    protos = [_proto(model) for model in (model_a, model_b)]
    _check_same_interface(*protos)
    runners = [_runner(model, proto) for model, proto in zip((model_a, model_b), protos, strict=True)]
    variances = {name for proto in protos for name in _variance_inputs(proto.graph)}
    names = [output.name for output in protos[0].graph.output]
    worst: dict[str, OutputComparison] = {}
    seconds = [float("inf"), float("inf")]
    for run in range(runs):
        feeds = inputs
        if feeds is None:
            feeds = _draw(protos[0].graph, input_shapes or {}, variances, np.random.default_rng(seed + run))
        results = []
        for index, runner in enumerate(runners):
            start = time.perf_counter()
            results.append(runner.run(feeds))
            seconds[index] = min(seconds[index], time.perf_counter() - start)
        for name in names:
            found = _compare_output(name, results[0][name], results[1][name], rtol, atol)
            worst[name] = _worse(worst.get(name, found), found)
    return Comparison(tuple(worst.values()), (runners[0].runtime, runners[1].runtime), (seconds[0], seconds[1]))


def _proto(model: AnyModel) -> ModelProto:
    if isinstance(model, ir.Model):
        return ir.to_proto(ir.external_data.load_to_model(model.clone()))
    return load_model(Path(model)) if isinstance(model, str | Path) else model


def _runner(model: AnyModel, proto: ModelProto) -> Runner:
    # By path, external data is found where it is and may be of any size; runtimes read no other formats by path.
    source = Path(model) if isinstance(model, str | Path) and has_external_data(proto) else proto
    return KernelRunner(source) if _needs_kernel(proto) else PlainRunner(source)


def _needs_kernel(proto: ModelProto) -> bool:
    """Return whether the model holds the operator and no function that stands for it."""
    if any((function.domain, function.name) == (spec.DOMAIN, spec.OP_TYPE) for function in proto.functions):
        return False
    return any(node.domain == spec.DOMAIN for node in model_nodes(proto))


def _check_same_interface(a: ModelProto, b: ModelProto) -> None:
    for kind, values_a, values_b in (
        ("inputs", _fed_inputs(a.graph), _fed_inputs(b.graph)),
        ("outputs", a.graph.output, b.graph.output),
    ):
        differing_names = {value.name for value in values_a} ^ {value.name for value in values_b}
        if differing_names:
            differing = ", ".join(map(repr, sorted(differing_names)))
            raise InvalidModelError(
                f"The two models have different {kind}: {differing} only in one of them (compare models whose "
                f"{kind} have the same names)."
            )


def _fed_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Return the graph inputs that have no default value."""
    initialized = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initialized]


def _variance_inputs(graph: GraphProto) -> set[str]:
    """Return the graph inputs that a node uses as a variance."""
    nodes = list(graph_nodes(graph.node))
    producers = {output: node for node in nodes for output in node.output}
    position = spec.INPUT_NAMES.index("variance")
    found = set()
    for node in nodes:
        if node.domain == spec.DOMAIN and len(node.input) > position:
            name = node.input[position]
            while name in producers and producers[name].op_type in _KEEPS_VALUES:
                name = producers[name].input[0]
            found.add(name)
    return found & {value.name for value in graph.input}


def _draw(
    graph: GraphProto,
    input_shapes: Mapping[str, Sequence[int]],
    variances: set[str],
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    fed = _fed_inputs(graph)
    unknown = sorted(set(input_shapes) - {value.name for value in fed})
    if unknown:
        raise InvalidModelError(
            f"A shape is given for {unknown[0]!r}, which is no input of the model; its inputs are "
            f"{', '.join(value.name for value in fed)}."
        )
    lengths: dict[str, int] = {}
    for value in fed:
        dims = value.type.tensor_type.shape.dim
        for dim, length in zip(dims, input_shapes.get(value.name, ()), strict=False):
            if dim.dim_param:
                lengths[dim.dim_param] = length
    return {
        value.name: _draw_one(value, _shape(value, input_shapes, lengths), value.name in variances, rng)
        for value in fed
    }


def _shape(
    value: ValueInfoProto, input_shapes: Mapping[str, Sequence[int]], lengths: Mapping[str, int]
) -> tuple[int, ...]:
    if value.name in input_shapes:
        return tuple(input_shapes[value.name])
    tensor_type = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise InvalidModelError(f"Input {value.name!r} is no tensor; only tensors can be drawn (pass the inputs).")
    if not tensor_type.HasField("shape"):
        raise InvalidModelError(
            f"Input {value.name!r} has no shape in the model; one is needed to draw it (give one, as in "
            f"--input-shape {value.name}:2,3)."
        )
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else lengths.get(dim.dim_param, SYMBOLIC_LENGTH)
        for dim in tensor_type.shape.dim
    )


def _draw_one(
    value: ValueInfoProto, shape: tuple[int, ...], is_variance: bool, rng: np.random.Generator
) -> NDArray[Any]:
    element_type = value.type.tensor_type.elem_type
    if element_type == TensorProto.STRING:
        raise InvalidModelError(f"Input {value.name!r} holds strings, which cannot be drawn (pass the inputs).")
    dtype = helper.tensor_dtype_to_np_dtype(element_type)
    if dtype.kind in "biu":
        drawn: NDArray[Any] = rng.integers(0, 2, shape)
    elif is_variance:
        drawn = rng.uniform(0.5, 1.5, shape)
    else:
        drawn = rng.standard_normal(shape)
    return np.asarray(drawn).astype(dtype)


def _compare_output(name: str, a: NDArray[Any], b: NDArray[Any], rtol: float, atol: float) -> OutputComparison:
    if a.dtype != b.dtype or a.shape != b.shape:
        raise InvalidModelError(
            f"Output {name!r} is {a.dtype} of shape {list(a.shape)} in one model and {b.dtype} of shape "
            f"{list(b.shape)} in the other; they cannot be compared."
        )
    if a.dtype.kind in "OUS":
        same = bool((a == b).all())
        return OutputComparison(name, 0.0 if same else np.inf, 0.0 if same else np.inf, same)
    rtol = max(rtol, _spacing(a.dtype))
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b = a.astype(wide), b.astype(wide)
    with np.errstate(all="ignore"):
        ok = bool(np.isclose(b, a, rtol=rtol, atol=atol, equal_nan=True).all())
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        differences = np.where(same, 0, np.abs(a - b))
        absolute = float(np.where(np.isnan(differences), np.inf, differences).max(initial=0))
        largest = float(np.abs(a)[np.isfinite(a)].max(initial=0))
    return OutputComparison(name, absolute, absolute / largest if largest else absolute, ok)


def _spacing(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number of a floating type, 0 for the others."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}.get(dtype.name, 0.0)


def _worse(a: OutputComparison, b: OutputComparison) -> OutputComparison:
    return OutputComparison(
        a.name,
        max(a.max_absolute_error, b.max_absolute_error),
        max(a.max_relative_error, b.max_relative_error),
        a.ok and b.ok,
    )
