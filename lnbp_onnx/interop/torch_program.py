# SPDX-License-Identifier: Apache-2.0
"""Torch modules as graphs of ATen operators in which gradients are ordinary nodes.

What is not public interface of torch is used here alone, and is only this (read off torch 2.13):

- ``torch.fx.experimental.proxy_tensor.make_fx`` traces below autograd, so that what ``torch.autograd.grad`` executes
  becomes nodes, which ``torch.export`` cannot do. Its ``shape_env.guards`` are what it assumed of symbolic sizes.
- ``OpOverload._schema`` says which arguments an operator writes to.
- ``node.meta["val"]`` and its ``fake_mode``: the tensors with symbolic sizes that ``torch.export`` made for an input.
- ``torch.utils._pytree``, with which ``torch.export`` takes arguments and results apart.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lnbp_onnx.errors import InvalidModelError

try:
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils import _pytree as pytree
except ImportError as error:
    raise ImportError(
        f"torch {torch.__version__} lacks what lnbp_onnx.interop.torch uses: {error} (install torch 2.13)."
    ) from error

LOSS = "loss"

DynamicShapes: TypeAlias = Mapping[str, Any] | Sequence[Any] | None
_NamedTensors: TypeAlias = dict[str, Any]


class Call:
    """A module with the arguments that it is called with, and all of their tensors by name."""

    def __init__(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> None:
        if not isinstance(module, torch.nn.Module):
            raise InvalidModelError(f"The module is of type {type(module).__name__}; it must be a torch.nn.Module.")
        self.label = type(module).__name__
        if not isinstance(args, tuple | list):
            raise self.refusal(f"args is of type {type(args).__name__}; it must be a tuple, (x,) for one argument")
        signature = inspect.signature(module.forward)
        try:
            bound = signature.bind(*args, **(kwargs or {}))
        except TypeError as error:
            raise self.refusal(f"the arguments do not fit forward{signature}: {error}") from error
        self.arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            variadic = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            self.arguments.update(value if variadic else {name: value})

        self._module = module
        # The same leaves in the same order as in `arguments`, in the form that the module is called with.
        self._leaves, self._structure = pytree.tree_flatten((bound.args, bound.kwargs))
        self._indices = [index for index, leaf in enumerate(self._leaves) if isinstance(leaf, torch.Tensor)]
        paths = [path for path, _ in pytree.tree_flatten_with_path(self.arguments)[0]]
        self.paths = [tuple(map(_key, paths[index])) for index in self._indices]
        self.inputs: _NamedTensors = {
            _joined(path): self._leaves[index] for path, index in zip(self.paths, self._indices, strict=True)
        }
        # A parameter that modules share is here once, under its first name; `run` puts it everywhere.
        parameters = dict(module.named_parameters())
        self.trainable: _NamedTensors = {name: each for name, each in parameters.items() if each.requires_grad}
        self.constants: _NamedTensors = {name: each for name, each in parameters.items() if not each.requires_grad}
        self.constants.update(module.named_buffers())
        first_names = {each: name for name, each in (*self.trainable.items(), *self.constants.items())}
        # By the names of all places that the module holds tensors in; a module with several names is there once.
        self._places = {
            name: first_names[each]
            for prefix, part in module.named_modules()
            for named in (part.named_parameters, part.named_buffers)
            for name, each in named(prefix, recurse=False, remove_duplicate=False)
        }
        clashes = self.inputs.keys() & (self.trainable.keys() | self.constants.keys())
        if clashes:
            raise self.refusal(
                f"{', '.join(map(repr, sorted(clashes)))} names both an argument of forward and a parameter or buffer",
                "rename one of the two",
            )
        if not self.tensors:
            raise self.refusal("there is no tensor among its arguments, parameters and buffers")

    @property
    def tensors(self) -> _NamedTensors:
        """What a traced graph takes, in its order."""
        return {**self.trainable, **self.constants, **self.inputs}

    def run(self, tensors: _NamedTensors) -> Any:
        """Call the module with other `tensors`, and leave it as it was."""
        leaves = list(self._leaves)
        for index, name in zip(self._indices, self.inputs, strict=True):
            leaves[index] = tensors[name]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        state = {name: tensors[first] for name, first in self._places.items()}
        before = [(vars(part), dict(vars(part))) for part in self._module.modules()]
        try:
            result = torch.func.functional_call(self._module, state, args, kwargs, tie_weights=False)
        finally:
            for attributes, values in before:  # for a module that keeps what it computed
                attributes.clear()
                attributes.update(values)
        # In `state` is now what the module has had in these places at the end.
        replaced = sorted(name for name, first in self._places.items() if state[name] is not tensors[first])
        if replaced:
            raise self.refusal(f"its forward replaces {', '.join(map(repr, replaced))}, which a model cannot do")
        return result

    def refusal(self, found: str, mend: str = "") -> InvalidModelError:
        """Return the error that says what was found and how to mend it."""
        return InvalidModelError(f"{self.label}: {found}{f' ({mend})' if mend else ''}.")


@dataclass(frozen=True)
class Program:
    """A traced module: an exported program that takes ``call.tensors`` and gives `output_names`, in their order."""

    call: Call
    exported: Any
    output_names: Sequence[str]
    dims: Mapping[str, str]
    """The names that the user gave to sizes, by the symbols that stand for them in the program."""


_Function: TypeAlias = Callable[[Call, _NamedTensors], _NamedTensors]


def trace(call: Call, function: _Function, dynamic_shapes: DynamicShapes) -> Program:
    """Trace a function of a call and of the tensors to call it with, which returns the outputs by name.

    Raises:
        InvalidModelError: Where that is not possible.
    """
    shapes = [None] * (len(call.tensors) - len(call.inputs)) + _specs(call, dynamic_shapes)
    try:
        with torch.inference_mode(False):  # what is made in that mode takes no part in autograd, ever
            tensors = tuple(tensor.detach() for tensor in call.tensors.values())
            graph, output_names = _trace_graph(call, function, _symbolic(tensors, shapes))
            exported = torch.export.export(graph, tensors, dynamic_shapes=tuple(shapes), strict=False)
    except InvalidModelError:
        raise
    except Exception as error:  # torch's exceptions have no common base but Exception
        reason = str(error).partition("\n\n")[0].rstrip(".")  # what follows is advice for those who debug torch
        raise call.refusal(f"torch {torch.__version__} cannot trace it: {reason}") from error
    dims = {}
    for node, shape in zip(_user_inputs(exported), shapes, strict=True):
        for axis, dim in (shape or {}).items():
            if isinstance(dim, torch.export.Dim):
                dims[str(node.meta["val"].shape[axis])] = dim.__name__
    return Program(call, exported, output_names, dims)


def forward_outputs(call: Call, tensors: _NamedTensors, output_names: Sequence[str] | None) -> _NamedTensors:
    """Return what the module returns, by name."""
    outputs = _named_outputs(call, _run(call, tensors))
    if not outputs:
        raise call.refusal("forward returns no tensor")
    if output_names is None:
        _refuse_clashes(call, list(outputs))
        return outputs
    if len(output_names) != len(outputs):
        raise call.refusal(f"output_names has {len(output_names)} names and forward returns {len(outputs)} tensors")
    _refuse_clashes(call, output_names)
    return dict(zip(output_names, outputs.values(), strict=True))


def joint_outputs(call: Call, tensors: _NamedTensors, input_gradients: Sequence[str]) -> _NamedTensors:
    """Return the loss, what else the module returns, and the gradients, by name."""
    for name in input_gradients:
        if name not in call.inputs or not call.inputs[name].is_floating_point():
            allowed = [name for name, each in call.inputs.items() if each.is_floating_point()]
            raise call.refusal(
                f"input_gradients names {name!r}; it may name the inputs of floating-point type: "
                f"{', '.join(map(repr, allowed)) or 'there are none'}"
            )
    wanted = {name: tensors[name].requires_grad_() for name in (*call.trainable, *input_gradients)}
    if not wanted:
        raise call.refusal(
            "no parameter requires a gradient, and no input_gradients are asked for",
            "call module.requires_grad_(), or name inputs",
        )
    result = _run(call, tensors)
    outputs = _named_outputs(call, result)
    loss = outputs.pop("loss" if isinstance(result, Mapping) else next(iter(outputs), ""), None)
    if loss is None:
        raise call.refusal("forward returns no loss: a tensor, the first element of a tuple, or 'loss' of a mapping")
    if loss.dim() != 0:
        raise call.refusal(f"the loss has shape {list(loss.shape)}; it must be a scalar", "take its mean() or sum()")
    if not loss.requires_grad:
        raise call.refusal("the loss depends on nothing that requires a gradient", "do not detach it")
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    for name, gradient in zip(wanted, gradients, strict=True):
        if gradient.layout != torch.strided:
            raise call.refusal(f"the gradient of {name!r} is sparse; it must be dense", "set sparse=False")
    named_gradients = {f"{name}.grad": each for name, each in zip(wanted, gradients, strict=True)}
    _refuse_clashes(call, [LOSS, *outputs, *named_gradients])
    return {LOSS: loss, **outputs, **named_gradients}


def _refuse_clashes(call: Call, output_names: Sequence[str]) -> None:
    clashes = sorted({name for name in output_names if name in call.tensors or output_names.count(name) > 1})
    if clashes:
        raise call.refusal(f"{', '.join(map(repr, clashes))} names an output and another value", "rename one")


def _run(call: Call, tensors: _NamedTensors) -> Any:
    # Fused attention and oneDNN's LSTM have backward operators that no exporter knows.
    onednn = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return call.run(tensors)
    finally:
        torch.backends.mkldnn.enabled = onednn


def _trace_graph(call: Call, function: _Function, symbolic: Sequence[Any]) -> tuple[Any, list[str]]:
    """Return the graph, which takes and gives tensors in order, and the names of its outputs."""
    output_names: list[str] = []

    def traced(*tensors: Any) -> list[Any]:
        named = {
            name: tensor.detach().requires_grad_(original.requires_grad)
            for (name, original), tensor in zip(call.tensors.items(), tensors, strict=True)
        }
        outputs = function(call, named)
        output_names[:] = outputs
        return [tensor.detach() for tensor in outputs.values()]

    # Before tracing, which replaces in them what it assumes.
    sizes = {
        str(size): f"{name}.shape[{axis}]"
        for name, tensor in reversed(list(zip(call.tensors, symbolic, strict=True)))
        for axis, size in enumerate(tensor.shape)
        if not isinstance(size, int)
    }
    shape_env = symbolic[0].fake_mode.shape_env
    assumed_before = len(shape_env.guards)
    with torch.enable_grad():
        graph = make_fx(traced, decomposition_table=_decompositions(), tracing_mode="symbolic")(*symbolic)
    assumed = shape_env.guards[assumed_before:]
    if assumed:
        conditions = {re.sub(r"\w+", lambda word: sizes.get(word[0], word[0]), str(each.expr)) for each in assumed}
        raise call.refusal(
            f"what it computes depends on sizes that are dynamic: {', '.join(sorted(conditions))} was assumed",
            "in dynamic_shapes, give sizes that are always equal one name, a size that has a limit a "
            "torch.export.Dim(name, max=...), and leave out sizes that decide something",
        )
    names = dict(zip(_placeholders(graph), call.tensors, strict=True))
    changed = sorted({names[node] for node in _written(graph) if node in names})
    if changed:
        raise call.refusal(
            f"its forward changes {', '.join(map(repr, changed))} in place, which a model cannot do",
            "for running statistics, put the normalisation in evaluation mode with eval()",
        )
    random = {str(node.target) for node in graph.graph.nodes if _is_random(node.target)}
    if random:
        raise call.refusal(
            f"it draws random numbers ({', '.join(sorted(random))}), and its gradients would not be reproducible",
            "call module.eval(), or set dropout to 0",
        )
    return graph, output_names


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what is decomposed while tracing: all that torch can, less the gradient of layer normalisation.

    The exporter decomposes too, but not what it translates itself, and some of its translations are wrong in a graph
    of gradients: nll_loss_forward gives a total weight that nll_loss_backward must not divide by, copy does not
    broadcast. The order of memory that empty_permuted adds to empty is nothing that ONNX knows.
    """
    aten = torch.ops.aten
    decompositions = dict(torch.export.default_decompositions().items())
    del decompositions[aten.native_layer_norm_backward.default]
    decompositions[aten.copy.default] = lambda self, src, _=False: src.to(self.dtype).expand(self.shape).clone()
    decompositions[aten.empty_permuted.default] = lambda size, _, **options: torch.empty(size, **options)
    return decompositions


def _is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


class _Identity(torch.nn.Module):  # type: ignore[misc]  # torch has no types where it is not installed
    def forward(self, *tensors: Any) -> list[Any]:
        return [tensor.clone() for tensor in tensors]


def _symbolic(tensors: Sequence[Any], shapes: Sequence[Any]) -> list[Any]:
    """Return the tensors that torch.export traces with: without data, with a symbol for each dynamic size."""
    exported = torch.export.export(_Identity(), tuple(tensors), dynamic_shapes={"tensors": tuple(shapes)}, strict=False)
    return [node.meta["val"] for node in _user_inputs(exported)]


def _user_inputs(exported: Any) -> list[Any]:
    """Return the nodes of the inputs, without those of the tensors that the graph holds itself."""
    inputs = set(exported.graph_signature.user_inputs)
    return [node for node in _placeholders(exported) if node.name in inputs]


def _placeholders(graph: Any) -> list[Any]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _written(graph: Any) -> set[Any]:
    """Return the nodes whose tensors other nodes write to, themselves or through views of them."""
    written: set[Any] = set()
    viewed: dict[Any, Any] = {}
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        named = {parameter.name: value for parameter, value in zip(schema.arguments, node.args, strict=False)}
        named.update(node.kwargs)
        for parameter in schema.arguments:
            value = named.get(parameter.name)
            if parameter.alias_info is None or not isinstance(value, torch.fx.Node):
                continue
            viewed[node] = viewed.get(value, value)
            if parameter.alias_info.is_write:
                written.add(viewed[node])
    return written


def _specs(call: Call, dynamic_shapes: DynamicShapes) -> list[dict[int, Any] | None]:
    """Return the dynamic axes of each of the call's input tensors."""
    if dynamic_shapes is None:
        return [None] * len(call.inputs)
    if isinstance(dynamic_shapes, Sequence):
        if len(dynamic_shapes) != len(call.arguments):
            raise call.refusal(
                f"dynamic_shapes has {len(dynamic_shapes)} entries; it must have one for each argument: "
                f"{', '.join(map(repr, call.arguments))}"
            )
        dynamic_shapes = dict(zip(call.arguments, dynamic_shapes, strict=True))
    elif not isinstance(dynamic_shapes, Mapping):
        raise call.refusal(
            f"dynamic_shapes is of type {type(dynamic_shapes).__name__}; it must be a dict by argument or a tuple"
        )
    unknown = dynamic_shapes.keys() - call.arguments.keys()
    if unknown:
        raise call.refusal(
            f"dynamic_shapes names {', '.join(map(repr, sorted(unknown)))}; the arguments are "
            f"{', '.join(map(repr, call.arguments))}"
        )
    dims: dict[str, Any] = {}
    specs = [_spec_at(call, dynamic_shapes, path, dims) for path in call.paths]
    for (name, tensor), spec in zip(call.inputs.items(), specs, strict=True):
        for axis, dim in (spec or {}).items():
            if not -tensor.dim() <= axis < tensor.dim():
                raise call.refusal(f"dynamic_shapes has axis {axis} for input {name!r}, which has {tensor.dim()} axes")
            if isinstance(dim, torch.export.Dim) and tensor.shape[axis] < 2:  # torch takes these sizes for special
                raise call.refusal(
                    f"axis {axis} of {name!r} is dynamic and has size {tensor.shape[axis]} in the example",
                    "give an example with a size of 2 or more; the model takes 1 too",
                )
    return specs


def _spec_at(call: Call, spec: Any, path: Sequence[Any], dims: dict[str, Any]) -> dict[int, Any] | None:
    """Return the axes at a path in nested dynamic shapes, with one Dim of `dims` for each name."""
    for key in path:
        if isinstance(spec, Mapping):
            spec = spec.get(key)
        elif isinstance(spec, tuple | list) and isinstance(key, int):
            spec = dict(enumerate(spec)).get(key)
    if spec is None:
        return None
    if isinstance(spec, tuple | list):
        spec = dict(enumerate(spec))
    if not isinstance(spec, Mapping) or not all(isinstance(axis, int) for axis in spec):
        raise call.refusal(
            f"dynamic_shapes has {spec!r} for input {_joined(path)!r}; it must be a dict from axes to names or Dims, "
            "or a tuple with one for each axis"
        )
    for dim in spec.values():
        if isinstance(dim, str) and not dim.isidentifier():
            raise call.refusal(f"dynamic_shapes has the name {dim!r}; it must be an identifier, as 'batch' is")
    return {
        axis: dims.setdefault(dim, torch.export.Dim(dim)) if isinstance(dim, str) else dim for axis, dim in spec.items()
    }


def _named_outputs(call: Call, result: Any) -> _NamedTensors:
    outputs = {}
    if isinstance(result, Mapping):
        result = dict(result)  # of a mapping's own type torch may know nothing
    for path, leaf in pytree.tree_flatten_with_path(result)[0]:
        keys = list(map(_key, path))
        if not isinstance(result, Mapping):
            keys.insert(0, "output")
        name = ".".join(map(str, keys))
        if isinstance(leaf, torch.Tensor):
            outputs[name] = leaf
        elif leaf is not None:
            raise call.refusal(f"forward returns a {type(leaf).__name__} as {name!r}; it must be a tensor")
    return outputs


def _key(entry: Any) -> Any:
    """Return what an entry of a pytree's path stands for: an index, a key or an attribute's name."""
    return next(getattr(entry, name) for name in ("idx", "key", "name") if hasattr(entry, name))


def _joined(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))
