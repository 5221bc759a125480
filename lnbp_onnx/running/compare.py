# SPDX-License-Identifier: Apache-2.0
"""Comparing two models by running both on the same random inputs."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.files.model_io import can_be_read_again, has_external_data, is_protobuf, runnable
from lnbp_onnx.files.model_like import ModelLike, read_model
from lnbp_onnx.graphs.edit import blamed_on_model
from lnbp_onnx.graphs.protos import model_nodes
from lnbp_onnx.running.differences import (
    ATOL,
    RTOL,
    differences,
    largest_difference_of_integers,
    largest_magnitude,
    spacing,
    widened,
)
from lnbp_onnx.running.drawing import as_input_shape, assumed_lengths, draw, fed_inputs, free_inputs, variance_inputs
from lnbp_onnx.running.runners import KernelRunner, PlainRunner, Runner, Tensors

# How long to measure, and how often at least.
_SECONDS = 0.2
_ROUNDS = 5
# A slow model is not run again and again.
_MOST_SECONDS = 2.0

_MOST_NAMED = 6


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output of both models.

    Attributes:
        name: The output.
        max_absolute_error: The largest difference.
        max_relative_error: The largest difference, as a fraction of the largest magnitude in the first model's output.
        ok: Whether every element is within the tolerance.
        rtol: The relative tolerance: what was asked for, the type's own spacing where that is more, 0 for integers.
    """

    name: str
    max_absolute_error: float
    max_relative_error: float
    ok: bool
    rtol: float


@dataclass(frozen=True, slots=True)
class ComparedInput:
    """One input that both models were given.

    Attributes:
        name: The input.
        element_type: The name of its element type.
        shape: Its shape.
    """

    name: str
    element_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found: the worst of all runs for each output.

    Attributes:
        outputs: One entry for each output, in the first model's order.
        runtimes: What ran the two models.
        seconds: The median time of a run of each, warm, the two run in turn.
        inputs: What the two were given.
        assumed_lengths: The symbolic lengths that no shape was given for, with what they were taken as.
    """

    outputs: tuple[OutputComparison, ...]
    runtimes: tuple[str, str]
    seconds: tuple[float, float]
    inputs: tuple[ComparedInput, ...]
    assumed_lengths: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(output.ok for output in self.outputs)


def compare(
    model_a: ModelLike,
    model_b: ModelLike,
    *,
    inputs: Tensors | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    runs: int = 1,
    seed: int = 0,
    rtol: float = RTOL,
    atol: float = ATOL,
) -> Comparison:
    """Run two models on the same inputs and compare their outputs.

    Each runs in plain ONNX Runtime, where an embedded function takes the operator's place; a model that holds the
    operator without such a function runs with the native kernel. Two elements agree when they differ by at most
    ``atol + rtol * |a|``, or are both NaN; rtol is never taken finer than the output type's own spacing.
    Integers, booleans and strings agree when they are equal.

    Args:
        model_a: A ModelProto, an ``onnx_ir.Model``, a path, or a serialised model.
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
        ValueError: Where `runs` is less than 1, `seed` or a length negative, or a tolerance negative or not finite.

    Example:
        >>> import onnx, lnbp_onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17, "lnbp": 1]>
        ...     step (float[n, 64] x, float[n, 64] dy, float[64] gamma) => (float[n, 64] dx)
        ...     { dx = lnbp.LayerNormBackprop <use_stats = 0> (x, dy, gamma) }
        ... ''')
        >>> found = lnbp_onnx.compare(model, lnbp_onnx.decompose(model), input_shapes={"x": [3, 64]})
        >>> found.ok, [output.name for output in found.outputs], found.assumed_lengths
        (True, ['dx'], {})
    """
    for name, number, least in (("runs", runs, 1), ("seed", seed, 0)):
        if number < least:
            raise ValueError(f"{name} is {number}; it must be at least {least}.")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"{name} is {tolerance}; it must be finite and not negative.")
    for name, shape in (input_shapes or {}).items():
        if any(length < 0 for length in shape):
            raise ValueError(f"input_shapes[{name!r}] is {list(shape)}; its lengths must be at least 0.")
    protos = [_proto(model) for model in (model_a, model_b)]
    _check_same_interface(*protos)
    runners = [_runner(model, proto) for model, proto in zip((model_a, model_b), protos, strict=True)]
    variances = {name for proto in protos for name in variance_inputs(proto.graph)}
    names = [output.name for output in protos[0].graph.output]
    worst: dict[str, OutputComparison] = {}
    for run in range(runs):
        rng = np.random.default_rng(seed + run)
        feeds = draw(protos[0].graph, input_shapes or {}, variances, rng) if inputs is None else inputs
        try:
            results, seconds = zip(*(_timed(runner, feeds) for runner in runners), strict=True)
        except InvalidModelError as error:
            hint = "" if inputs is not None else _shape_hint(protos[0].graph, feeds)
            raise InvalidModelError(f"{error}{hint}") from error
        for name in names:
            found = _compare_output(name, results[0][name], results[1][name], rtol, atol)
            worst[name] = _worse(worst.get(name, found), found)
    return Comparison(
        outputs=tuple(worst.values()),
        runtimes=(runners[0].runtime, runners[1].runtime),
        seconds=_median_seconds(runners, feeds, seconds),
        inputs=tuple(ComparedInput(name, str(value.dtype), value.shape) for name, value in feeds.items()),
        assumed_lengths=assumed_lengths(protos[0].graph, input_shapes or {}) if inputs is None else {},
    )


def _median_seconds(runners: Sequence[Runner], feeds: Tensors, cold: tuple[float, float]) -> tuple[float, float]:
    """Return the median time of a run of each of two runners, or that of their cold runs where these were long."""
    times: list[tuple[float, ...]] = []
    elapsed = 0.0
    while (len(times) < _ROUNDS or elapsed < _SECONDS) and sum(cold) + elapsed < _MOST_SECONDS:
        times.append(tuple(_timed(runner, feeds)[1] for runner in runners))
        elapsed += sum(times[-1])
    first, second = (statistics.median(each) for each in zip(*(times or [cold]), strict=True))
    return first, second


def _timed(runner: Runner, feeds: Tensors) -> tuple[dict[str, NDArray[Any]], float]:
    start = time.perf_counter()
    outputs = runner.run(feeds)
    return outputs, time.perf_counter() - start


def _shape_hint(graph: GraphProto, feeds: Tensors) -> str:
    """Return what may help where a model cannot be run on what was drawn for it."""
    drawn = [(name, list(feeds[name].shape), declared) for name, declared in free_inputs(graph)]
    if not drawn:
        return ""
    listed = [f"{name!r} {shape} (declared {declared})" for name, shape, declared in drawn[:_MOST_NAMED]]
    if len(drawn) > _MOST_NAMED:
        listed.append(f"{len(drawn) - _MOST_NAMED} more")
    name, shape, _ = drawn[0]
    return (
        f" The inputs whose shapes the model leaves open were drawn as {', '.join(listed)}; where these do not fit, "
        f"give shapes that do, as in {as_input_shape(name, shape)}."
    )


def _proto(model: ModelLike) -> ModelProto:
    if isinstance(model, ir.Model):
        with blamed_on_model(model):
            return ir.to_proto(ir.external_data.load_to_model(model.clone()))
    return model if isinstance(model, ModelProto) else read_model(model)[0]


def _runner(model: ModelLike, proto: ModelProto) -> Runner:
    make = KernelRunner if _needs_kernel(proto) else PlainRunner
    if not isinstance(model, str | Path) or not has_external_data(proto):
        return make(proto)
    # By path, external data is found where it is and may be of any size; runtimes read no other formats by path.
    if can_be_read_again(Path(model)) and is_protobuf(Path(model)):
        return make(Path(model))
    with runnable(proto, Path(model)) as source:
        return make(source)


def _needs_kernel(proto: ModelProto) -> bool:
    """Return whether the model holds the operator and no function that stands for it."""
    if any((function.domain, function.name) == (spec.DOMAIN, spec.OP_TYPE) for function in proto.functions):
        return False
    return any(node.domain == spec.DOMAIN for node in model_nodes(proto))


def _check_same_interface(a: ModelProto, b: ModelProto) -> None:
    if not a.graph.output:
        raise InvalidModelError("The model has no outputs, so that there is nothing to compare.")
    for kind, values_a, values_b in (
        ("inputs", fed_inputs(a.graph), fed_inputs(b.graph)),
        ("outputs", a.graph.output, b.graph.output),
    ):
        differing_names = {value.name for value in values_a} ^ {value.name for value in values_b}
        if differing_names:
            differing = ", ".join(map(repr, sorted(differing_names)))
            raise InvalidModelError(
                f"The two models have different {kind}: {differing} only in one of them (compare models whose "
                f"{kind} have the same names)."
            )


def _compare_output(name: str, a: NDArray[Any], b: NDArray[Any], rtol: float, atol: float) -> OutputComparison:
    if a.dtype != b.dtype or a.shape != b.shape:
        raise InvalidModelError(
            f"Output {name!r} is {a.dtype} of shape {list(a.shape)} in one model and {b.dtype} of shape "
            f"{list(b.shape)} in the other; they cannot be compared."
        )
    if a.dtype.kind in "OUS":
        same = bool((a == b).all())
        return OutputComparison(name, 0.0 if same else np.inf, 0.0 if same else np.inf, same, 0.0)
    if a.dtype.kind == "V" and ir.DataType.from_numpy(a.dtype).is_integer():  # those of fewer than 8 bits
        a, b = a.astype(np.int64), b.astype(np.int64)
    if a.dtype.kind in "biu":
        absolute = largest_difference_of_integers(a, b)
        return OutputComparison(name, absolute, _relative(absolute, a), absolute == 0, 0.0)
    rtol = max(rtol, spacing(a.dtype))
    a, b = widened(a), widened(b)
    with np.errstate(all="ignore"):
        ok = bool(np.isclose(b, a, rtol=rtol, atol=atol, equal_nan=True).all())
    absolute = float(differences(a, b).max(initial=0))
    return OutputComparison(name, absolute, _relative(absolute, a), ok, rtol)


def _relative(absolute: float, a: NDArray[Any]) -> float:
    largest = largest_magnitude(a)
    return absolute / largest if largest else absolute


def _worse(a: OutputComparison, b: OutputComparison) -> OutputComparison:
    return OutputComparison(
        a.name,
        max(a.max_absolute_error, b.max_absolute_error),
        max(a.max_relative_error, b.max_relative_error),
        a.ok and b.ok,
        a.rtol,
    )
