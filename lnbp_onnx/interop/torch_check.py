# SPDX-License-Identifier: Apache-2.0
"""Exported models against the modules that they came from, on the arguments of the export.

What the module computes itself, with ``loss.backward()``, is the measure: tracing is done on a copy of its parameters,
and hooks, checkpoints and state outside the module may tell the two apart.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from torch.utils._python_dispatch import TorchDispatchMode

from lnbp_onnx.errors import InvalidModelError, LnbpError
from lnbp_onnx.interop.torch_call import Call, NamedTensors, named_outputs, new_values
from lnbp_onnx.interop.torch_outputs import LOSS, backward, forward_names, loss_and_outputs
from lnbp_onnx.interop.torch_program import Function, Program
from lnbp_onnx.interop.torch_random import ONNX_OPS, Draws, random_decompositions
from lnbp_onnx.running.differences import differences, largest_magnitude, spacing
from lnbp_onnx.running.runners import KernelRunner, ReferenceRunner, Runner

_Arrays = Mapping[str, NDArray[Any]]

_SPACINGS: dict[int, float] = {
    element_type: spacing(helper.tensor_dtype_to_np_dtype(element_type))
    for element_type in (TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
}
"""What each floating type that modules compute in can tell apart."""

# What two correct programs may differ by, relative to the largest element of an output and in spacings of the
# narrowest type that they compute in. Half types are summed up in a wider one, so that only the steps between
# operators round; the sums of the others are rounded at each of up to millions of terms, which walk that far.
_SPACINGS_ALLOWED = 2**10
_SPACINGS_ALLOWED_HALF = 2**3

# Where terms of the largest gradient's size cancel to nothing, their rounding is left, as in a bias before a softmax.
_SPACINGS_OF_LARGEST = 2**2

# What each of rounding and cancelled terms may explain, relative to the largest element, unless the whole output is
# rounding. A module that gives something else each time looks as if it rounded a great deal, and beside one gradient
# that is much larger all others look as if they were rounding.
_MOST_ALLOWED = 2.0**-2
_NOTHING_BUT_ROUNDING = 2.0**10

# ONNX's evaluator multiplies half types element by element.
_LARGEST_FOR_EVALUATOR = 2**20

_NUM_NAMED = 5


_Numbers = tuple[Any, NDArray[Any]]
"""The kind of numbers that were drawn, and the numbers."""


class _Rounding(NamedTuple):
    """What rounding does to each element of an output, and the largest element without it."""

    elements: NDArray[np.float64]
    largest: float


def joint_results(call: Call, input_gradients: Sequence[str]) -> NamedTensors:
    """Return what `torch_program.joint_outputs` stands for, by the module's own backward pass."""
    inputs = _inputs(call)
    sources = {**call.trainable, **{name: inputs[name].requires_grad_() for name in input_gradients}}
    loss, outputs = loss_and_outputs(call, call.run_itself(inputs))
    backward(loss, (*call.trainable.values(), *call.frozen.values(), *inputs.values()))
    gradients = {
        f"{name}.grad": torch.zeros_like(each) if each.grad is None else each.grad for name, each in sources.items()
    }
    return {LOSS: loss, **outputs, **gradients}


def forward_results(call: Call, output_names: Sequence[str] | None) -> NamedTensors:
    """Return what `torch_program.forward_outputs` stands for, by a call of the module itself."""
    return forward_names(call, named_outputs(call, call.run_itself(_inputs(call))), output_names)


def check(program: Program, model: ModelProto, results: Callable[[Call], NamedTensors], function: Function) -> None:
    """Compare a program's model on the call's arguments with the module's own `results` and the buffers it updates.

    `function` is what was traced. Where the two differ by more than rounding is sure to explain, it is run in the
    module's type and in float64, and rounding is what these two differ by. Where the comparison cannot be made, a
    warning says why.

    Raises:
        InvalidModelError: Where they differ.
    """
    call, updated = program.call, program.updated
    try:
        shown, kinds = _with_numbers(program, model)
        runtime, found = _run(call, shown)
        numbers = [(kind, found[name]) for name, kind in kinds.items()]
        with _undisturbed(call), _drawing(program, numbers):
            expected = _arrays({**results(call), **call.at_end(updated)})
    except Exception as error:  # torch's exceptions have no common base but Exception
        reason = str(error).partition("\n\n")[0].rstrip(".")
        warnings.warn(f"{call.label}: the model was not compared with the module: {reason}.", stacklevel=5)
        return
    type_spacing = max((_SPACINGS.get(each, 0.0) for each in _element_types(model)), default=0.0)
    differing = _differences(found, expected, {}, type_spacing, strict=True)
    if differing:
        differing = _differences(found, expected, _rounding(program, function, numbers), type_spacing)
    if not differing:
        return
    named = "; ".join(differing[:_NUM_NAMED])
    more = f"; and {len(differing) - _NUM_NAMED} more" if len(differing) > _NUM_NAMED else ""
    raise call.refusal(
        f"the model computes in {runtime} something else than the module does: {named}{more}",
        "look for what forward, or a hook, takes from outside of the module and its arguments: numbers drawn in "
        "Python, counters, hooks on nodes of the graph; check=False exports the model as it is",
    )


def _inputs(call: Call) -> NamedTensors:
    return {
        name: each.detach().clone().requires_grad_(each.requires_grad and each.is_floating_point())
        for name, each in call.inputs.items()
    }


@contextlib.contextmanager
def _undisturbed(call: Call) -> Iterator[None]:
    """Let the module run with gradients and leave it, and torch's random numbers, as they were."""
    own = [*call.trainable.values(), *call.constants.values()]
    values = [each.detach().clone() for each in own]
    devices = {each.device for each in call.tensors.values() if each.is_cuda}
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices), call.left_as_it_was():
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(own, values, strict=True):
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)


def _with_numbers(program: Program, model: ModelProto) -> tuple[ModelProto, dict[str, Any]]:
    """Return a model that gives what its nodes draw, too, and the kinds of these outputs, in the order of the draws."""
    nodes = [node for node in model.graph.node if node.op_type in ONNX_OPS]
    if len(nodes) != sum(program.draws):
        raise InvalidModelError("it draws other random numbers than were traced")
    outputs = {each.name for each in model.graph.output}
    hidden = [node for node in nodes if node.output[0] not in outputs]
    if hidden:
        shown = ModelProto()
        shown.CopyFrom(model)
        shown.graph.output.extend(
            helper.make_tensor_value_info(node.output[0], helper.get_node_attr_value(node, "dtype"), None)
            for node in hidden
        )
        model = shown
    return model, {node.output[0]: ONNX_OPS[node.op_type] for node in nodes}


class _Drawing(TorchDispatchMode):  # type: ignore[misc]  # torch has no types where it is not installed
    """Lets torch draw the given numbers, in the order of the draws; others where nothing depends on them."""

    def __init__(self, program: Program, numbers: Sequence[_Numbers]) -> None:
        super().__init__()
        given = iter(numbers)
        self._numbers = (next(given) if needed else None for needed in program.draws)
        self.draws = Draws(self._draw)
        self._decompositions = random_decompositions(self.draws)

    def _draw(self, kind: Any, size: Sequence[int], dtype: Any, device: Any) -> Any:
        given = next(self._numbers, (None, np.empty(0)))
        if given is None:
            return kind(size, dtype=dtype, device=device)
        if given[0] is not kind or given[1].shape != tuple(size):
            raise InvalidModelError("it draws other random numbers than the model does")
        return torch.from_numpy(given[1]).to(device, dtype)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        return self._decompositions.get(function, function)(*args, **(kwargs or {}))


@contextlib.contextmanager
def _drawing(program: Program, numbers: Sequence[_Numbers]) -> Iterator[None]:
    mode = _Drawing(program, numbers)
    with mode.draws.from_the_first(), mode:
        yield


def _rounding(program: Program, function: Function, numbers: Sequence[_Numbers]) -> dict[str, _Rounding]:
    """Return what rounding does to each element, or nothing where the module computes in no type but its own."""
    call = program.call

    def of_type(convert: Callable[[Any], Any]) -> _Arrays:
        copies = {
            name: convert(each.detach()) if each.is_floating_point() else each.detach().clone()
            for name, each in call.tensors.items()
        }
        tensors = {name: copies[name].requires_grad_(each.requires_grad) for name, each in call.tensors.items()}
        with _drawing(program, numbers):
            outputs = function(call, tensors)
            return _arrays({**outputs, **new_values({name: tensors[name] for name in program.updated})})

    try:
        with _undisturbed(call):
            rounded, exact = of_type(torch.Tensor.clone), of_type(torch.Tensor.double)
    except Exception:  # torch's exceptions have no common base but Exception
        return {}
    return {
        name: _Rounding(differences(each, exact[name]), largest_magnitude(exact[name]))
        for name, each in rounded.items()
    }


def _arrays(tensors: NamedTensors) -> dict[str, NDArray[Any]]:
    return {name: ir.tensor_adapters.TorchTensor(_on_host(each)).numpy().copy() for name, each in tensors.items()}


def _on_host(tensor: Any) -> Any:
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _run(call: Call, model: ModelProto) -> tuple[str, _Arrays]:
    """Run the model in ONNX Runtime, or where that cannot, in ONNX's evaluator."""
    feeds = _arrays(call.inputs)
    try:
        runner: Runner = KernelRunner(model)
        return runner.runtime, runner.run(feeds)
    except LnbpError as error:
        size = sum(each.numel() for each in call.tensors.values())
        if size > _LARGEST_FOR_EVALUATOR:
            raise InvalidModelError(f"{error} It is too large for ONNX's evaluator, which would take hours") from error
        runner = ReferenceRunner(model)
        return runner.runtime, runner.run(feeds)


def _element_types(model: ModelProto) -> set[int]:
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    types: set[int] = {each.type.tensor_type.elem_type for each in values}
    return types | {each.data_type for each in model.graph.initializer}


def _differences(
    found: _Arrays,
    expected: _Arrays,
    rounding: Mapping[str, _Rounding],
    type_spacing: float,
    *,
    strict: bool = False,
) -> list[str]:
    """Say which outputs differ, by more than the type's spacing and `rounding` explain, the most different first.

    Of an output whose rounding is not known, `strict` allows nothing for terms that cancel.
    """
    gradients = [largest_magnitude(each) for name, each in expected.items() if name == LOSS or name.endswith(".grad")]
    floor = _SPACINGS_OF_LARGEST * type_spacing * max(gradients, default=0.0)
    double = type_spacing < _SPACINGS[TensorProto.FLOAT]  # of which no wider type shows the rounding
    allowance = type_spacing * (
        _SPACINGS_ALLOWED if type_spacing <= _SPACINGS[TensorProto.FLOAT] else _SPACINGS_ALLOWED_HALF
    )
    texts = {}
    for name, each in expected.items():
        other = found[name]
        if each.shape != other.shape:
            texts[f"{name!r} has shape {list(other.shape)} in place of {list(each.shape)}"] = np.inf
        elif each.dtype.kind in "biu":
            differs = (each != other) & (rounding[name].elements == 0 if name in rounding else True)
            if differs.any():
                texts[f"{name!r} differs in {differs.sum()} of {differs.size} elements"] = np.inf
        else:
            difference = differences(other, each)
            largest = largest_magnitude(each)
            allowed = allowance * largest
            if name in rounding:
                # Both may round as far, to either side, and of few elements each may be right by chance.
                rounded = largest_magnitude(rounding[name].elements)
                explained = (4 + 32 / max(each.size, 1)) * rounded
                cancelled = floor
                if rounding[name].largest * _NOTHING_BUT_ROUNDING > max(rounded, floor) and not double:
                    explained, cancelled = (min(term, _MOST_ALLOWED * largest) for term in (explained, cancelled))
                allowed += explained + cancelled
            elif not strict:
                allowed += floor
            worst = difference.max(initial=0.0)
            if worst > allowed:
                text = (
                    f"{name!r} differs by {worst:.2g}, its largest element is {largest:.2g}, allowed is {allowed:.1g}"
                )
                texts[text] = worst / largest if largest else np.inf
    return sorted(texts, key=lambda text: -texts[text])
