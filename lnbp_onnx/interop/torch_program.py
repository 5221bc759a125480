# SPDX-License-Identifier: Apache-2.0
"""Torch modules as graphs of ATen operators in which gradients are ordinary nodes.

What is not public interface of torch is used in these modules alone, and is here only this (read off torch 2.13):

- ``torch.fx.experimental.proxy_tensor.make_fx`` traces below autograd, so that what a backward pass executes
  becomes nodes, which ``torch.export`` cannot do. Its ``shape_env.guards`` are what it assumed of symbolic sizes.
  ``decompose`` says what it decomposes.
- ``torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode`` is what it raises where a number is asked for.
- ``torch.fx.experimental._config.backed_size_oblivious`` lets it ask whether a size is 0 or 1, for the order of
  elements in memory and the like, without an assumption; torch's exporter sets it too.
- ``OpOverload._schema`` says which arguments an operator writes to.
- ``SymNode._expr``, ``ShapeEnv.replace``, ``create_symboolnode`` and ``statically_known_true`` compare what two traces
  assumed.
- ``node.meta["val"]`` and its ``fake_mode``: the tensors with symbolic sizes that ``torch.export`` made for an input.
- ``torch.export.ExportedProgram`` and ``torch.export.graph_signature`` are public, making such a program is not.
- ``torch.compiler._is_compiling_flag`` and ``_is_exporting_flag`` are what ``torch.compiler.is_exporting()`` tells.
- ``torch.utils._sympy.functions.Min`` is in what it assumed, too. ``value_ranges.bound_sympy`` tells what follows of
  the ranges of sizes, ``ShapeEnv.var_to_range``.
- ``torch.onnx._internal.exporter``: what the exporter translates. ``torch._ops.OpOverload`` are operators.
- ``torch._decomp.get_decompositions``: more of torch's decompositions than ``torch.export`` has.
"""

import builtins
import contextlib
import functools
import itertools
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

import sympy  # type: ignore[import-untyped]
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.interop.torch_call import Call, NamedTensors, joined, new_values
from lnbp_onnx.interop.torch_gradients import gradient_decompositions
from lnbp_onnx.interop.torch_outputs import refuse_clashes
from lnbp_onnx.interop.torch_random import NORMAL, UNIFORM, Draws, random_decompositions
from lnbp_onnx.interop.torch_terminal import quiet
from lnbp_onnx.interop.torch_translations import gradient_translations

try:
    from torch.fx.experimental import _config as fx_config
    from torch.fx.experimental.proxy_tensor import decompose, make_fx
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, statically_known_true
    from torch.onnx._internal.exporter._decomp import get_onnx_implemented_overloads
    from torch.onnx._internal.exporter._registration import ONNXRegistry
    from torch.utils._sympy.functions import Min
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy
except ImportError as error:
    raise ImportError(
        f"torch {torch.__version__} lacks what lnbp_onnx.interop.torch uses: {error} (install torch 2.13)."
    ) from error

_NOT_THE_USERS = (Path(torch.__file__).parent, Path(__file__).parent, Path(contextlib.__file__))
"""Where an error passes through on its way from a module."""

DynamicShapes: TypeAlias = Mapping[str, Any] | Sequence[Any] | None

_OF_NO_ACCOUNT = (
    "_meta_registrations.py:calc_conv_nd_return_shape",
    "_meta_registrations.py:meta_copy_",
    "_meta_registrations.py:pool2d_shape_check",
    "_meta_registrations.py:pool3d_shape_check",
    "fake_impls.py:convert",
)
"""Functions of torch that ask for sizes only to refuse some, or for the order of elements in memory."""


@dataclass(frozen=True)
class Program:
    """A traced module: an exported program that takes ``call.tensors`` and gives `output_names`, in their order."""

    call: Call
    exported: Any
    output_names: Sequence[str]
    variable: NamedTensors
    """The tensors whose values are not those of the module alone: inputs of the model, not constants."""
    updated: Sequence[str]
    """The buffers that the module updates; their new values are the last of the outputs."""
    draws: Sequence[bool]
    """Of each draw of random numbers, in their order, whether outputs depend on it."""
    dims: Mapping[str, str]
    """The names that the user gave to sizes, by the symbols that stand for them in the program."""


Function: TypeAlias = Callable[[Call, NamedTensors], NamedTensors]


def trace(call: Call, function: Function, variable: NamedTensors, dynamic_shapes: DynamicShapes) -> Program:
    """Trace a function of a call and of the tensors to call it with, which returns the outputs by name.

    Of the call's parameters, `variable` are those that the program must not take for constants; the buffers that the
    module updates are added to them.

    Raises:
        InvalidModelError: Where that is not possible.
    """
    shapes = [None] * (len(call.tensors) - len(call.inputs)) + _specs(call, dynamic_shapes)
    try:
        # What is made in inference mode takes no part in autograd, ever.
        with torch.inference_mode(False), fx_config.patch(backed_size_oblivious=True):
            tensors = tuple(tensor.detach() for tensor in call.tensors.values())
            symbolic = _symbolic(tensors, shapes)
            graph, output_names, updated = _trace_graph(call, function, symbolic)
            variable = {**variable, **{name: call.buffers[name] for name in updated}}
            _refuse_constants(call, graph, variable)
            # Where something is to be rewritten torch traces it twice more.
            final = not _written(graph) and all(map(_is_known_to_exporter, graph.graph.nodes))
            exported = _as_exported(graph) if final else _to_be_rewritten(call, graph, symbolic, shapes)
    except InvalidModelError:
        raise
    except Exception as error:  # torch's exceptions have no common base but Exception
        raise _untraceable(call, error) from error
    if call.left_out:
        left_out = ", ".join(f"{name!r} of type {kind}" for name, kind in call.left_out.items())
        warnings.warn(
            f"{call.label}: forward returns {left_out}, which is no tensor, and no output of the model.", stacklevel=4
        )
    dims = {}
    for node, shape in zip(_user_inputs(exported), shapes, strict=True):
        for axis, dim in (shape or {}).items():
            if isinstance(dim, torch.export.Dim):
                dims[str(node.meta["val"].shape[axis])] = dim.__name__
    return Program(call, exported, output_names, variable, updated, _draws(exported.graph), dims)


@functools.cache
def _known_to_exporter() -> set[Any]:
    with quiet():
        registered = set(get_onnx_implemented_overloads(ONNXRegistry.from_torchlib()))
    return registered | {torch.ops.aten.native_layer_norm_backward.default, *gradient_translations()}


def _is_known_to_exporter(node: Any) -> bool:
    return not isinstance(node.target, torch._ops.OpOverload) or node.target in _known_to_exporter()


class _Exported(torch.export.ExportedProgram):  # type: ignore[misc]  # torch has no types where it is not installed
    """A traced graph, which the exporter need not trace once more: it is decomposed and functional already."""

    def run_decompositions(self, decomp_table: Any = None, decompose_custom_triton_ops: bool = False) -> Any:
        del decomp_table, decompose_custom_triton_ops
        return self


def _as_exported(graph: Any) -> Any:
    """Return a graph as what the exporter takes, the tensors that it holds as constants among its inputs."""
    nodes = graph.graph
    first = next(iter(nodes.nodes))
    fake_mode = first.meta["val"].fake_mode
    constants, lifted = {}, {}
    for node in nodes.find_nodes(op="get_attr"):
        name = node.target
        if name not in constants:
            constants[name] = attrgetter(name)(graph).detach()
            with nodes.inserting_before(first):
                lifted[name] = nodes.placeholder(node.name)
            lifted[name].meta["val"] = fake_mode.from_tensor(constants[name], static_shapes=True)
        node.replace_all_uses_with(lifted[name])
        nodes.erase_node(node)
    nodes.eliminate_dead_code()
    for node in nodes.nodes:
        node.meta.setdefault("nn_module_stack", {})  # which the exporter misses
    (output,) = nodes.find_nodes(op="output")
    inputs = _placeholders(graph)
    kinds = [*[InputKind.CONSTANT_TENSOR] * len(lifted), *[InputKind.USER_INPUT] * (len(inputs) - len(lifted))]
    return _Exported(
        graph,
        nodes,
        ExportGraphSignature(
            [
                InputSpec(kind, TensorArgument(node.name), target)
                for kind, node, target in itertools.zip_longest(kinds, inputs, lifted)
            ],
            [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in output.args[0]],
        ),
        state_dict={},
        range_constraints={},
        module_call_graph=[],
        constants=constants,
    )


def _to_be_rewritten(call: Call, graph: Any, symbolic: Sequence[Any], shapes: Sequence[Any]) -> Any:
    """Return as a program what the exporter makes one of that writes to no tensor and has operators it knows."""
    tensors = tuple(tensor.detach() for tensor in call.tensors.values())
    # With no limits of the sizes, which torch would take for a promise to serve all of them.
    with quiet():
        exported = torch.export.export(graph, tensors, dynamic_shapes=tuple(map(_dynamic, shapes)), strict=False)
    _refuse_new_assumptions(call, exported, symbolic)
    return exported


def _dynamic(shape: dict[int, Any] | None) -> dict[int, Any] | None:
    return shape and {
        axis: torch.export.Dim.DYNAMIC if isinstance(dim, torch.export.Dim) else dim for axis, dim in shape.items()
    }


def _untraceable(call: Call, error: Exception) -> InvalidModelError:
    """Return the refusal of what raised an error while it was traced, with the place outside of torch."""
    files = [(each.filename, each.lineno) for each in traceback.extract_tb(error.__traceback__)]
    own = [each for each in files if not any(Path(each[0]).is_relative_to(place) for place in _NOT_THE_USERS)]
    place = f", at {own[-1][0]}:{own[-1][1]}" if own else ""
    if isinstance(error, GuardOnDataDependentSymNode):
        return call.refusal(
            f"Python takes a number from a tensor, with .item(), float() or if{place}, on which the result depends",
            "use tensor operations in their place, such as torch.where, clamp and minimum, in forward and in hooks",
        )
    reason = str(error).partition("\n\n")[0].rstrip(".")  # what follows is advice for those who debug torch
    return call.refusal(
        f"torch {torch.__version__} cannot trace it{place}: {type(error).__name__}: {reason}",
        "see whether loss.backward() works with these arguments; if it does, let forward and hooks use the tensors "
        "in torch operations alone, for while it is traced they have no data",
    )


def _trace_graph(call: Call, function: Function, symbolic: Sequence[Any]) -> tuple[Any, list[str], list[str]]:
    """Return the graph, which takes and gives tensors in order, the names of its outputs, and the updated buffers."""
    output_names: list[str] = []

    def traced(*tensors: Any) -> list[Any]:
        named = {
            name: (tensor.clone() if name in call.buffers else tensor.detach()).requires_grad_(original.requires_grad)
            for (name, original), tensor in zip(call.tensors.items(), tensors, strict=True)
        }
        outputs = function(call, named)
        output_names[:] = outputs
        buffers = (named[name] for name in call.buffers)  # themselves, where they still are what they were
        return [
            *(tensor.detach() for tensor in outputs.values()),
            *(tensor.detach() if tensor.requires_grad else tensor for tensor in buffers),
        ]

    sizes = _named_sizes(call, symbolic)  # before tracing, which replaces in them what it assumes
    shape_env = symbolic[0].fake_mode.shape_env
    limits = dict(shape_env.var_to_range)  # which tracing narrows by what it assumes
    assumed_before = len(shape_env.guards)
    draws = Draws(_draw)
    decompositions = {**_decompositions(), **random_decompositions(draws)}
    with torch.enable_grad(), _as_torch_exports(), draws.from_the_first():
        graph = make_fx(traced, decomposition_table=decompositions, tracing_mode="symbolic")(*symbolic)
    _refuse_assumptions(call, shape_env.guards[assumed_before:], sizes, limits)
    written = _written(graph)
    names = dict(zip(_placeholders(graph), call.tensors, strict=True))
    changed = sorted({names[node] for node in written if node in names})
    if changed:
        raise call.refusal(
            f"its forward changes {', '.join(map(repr, changed))} in place, which a model cannot do",
            "let forward change a copy, clone()",
        )
    if any(node.op == "get_attr" for node in written):
        raise _refused_state(call, "a tensor in place")
    random = {node.target for node in graph.graph.nodes if _is_random(node.target)} - {UNIFORM, NORMAL}
    if random:
        raise call.refusal(
            f"it draws random numbers with {', '.join(sorted(map(str, random)))}, of which ONNX has none",
            "draw with rand, randn, randint, randperm, bernoulli, normal, exponential_ or dropout, without generator=, "
            "or call module.eval()",
        )
    updated = _keep_updated(call, graph, written)
    refuse_clashes(call, [*output_names, *new_values(dict.fromkeys(updated))])
    _restore_determinants(graph)
    return graph, [*output_names, *new_values(dict.fromkeys(updated))], updated


def _keep_updated(call: Call, graph: Any, written: set[Any]) -> list[str]:
    """Leave those buffers among a graph's outputs that it updates, and only of these the copies that it works on."""
    (output,) = graph.graph.find_nodes(op="output")
    results = list(output.args[0])
    first = len(results) - len(call.buffers)
    placeholders = dict(zip(call.tensors, _placeholders(graph), strict=True))
    updated = {}
    for name, node in zip(call.buffers, results[first:], strict=True):
        (copy,) = placeholders[name].users
        if node is not copy or copy in written:
            updated[name] = node
        else:
            copy.replace_all_uses_with(placeholders[name])
            graph.graph.erase_node(copy)
    output.args = ([*results[:first], *updated.values()],)
    return list(updated)


def _restore_determinants(graph: Any) -> None:
    """Take determinants for what they are, of which tracing makes a factorisation too; its gradient alone needs it."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten._linalg_det.default and not any(
            user.users for user in node.users if user.args[1] != 0
        ):
            with graph.graph.inserting_before(node):
                determinant = graph.graph.call_function(torch.ops.aten.linalg_det.default, node.args)
            determinant.meta["val"] = node.meta["val"][0]
            for user in list(node.users):
                user.replace_all_uses_with(determinant)
                graph.graph.erase_node(user)
            graph.graph.erase_node(node)
    graph.recompile()


def _named_sizes(call: Call, symbolic: Sequence[Any]) -> dict[str, str]:
    """Return what the user knows the symbols by, such as ``x.shape[0]``."""
    return {
        str(size): f"{name}.shape[{axis}]"
        for name, tensor in reversed(list(zip(call.tensors, symbolic, strict=True)))
        for axis, size in enumerate(tensor.shape)
        if not isinstance(size, int)
    }


def _refuse_assumptions(call: Call, guards: Iterable[Any], sizes: Mapping[str, str], limits: Mapping[Any, Any]) -> None:
    assumed = [guard for guard in guards if not _is_of_no_account(guard, limits)]
    if assumed:
        conditions = {
            re.sub(r"\w+", lambda word: sizes.get(word[0], word[0]), str(_plainly(each.expr))) for each in assumed
        }
        raise call.refusal(
            f"what it computes depends on sizes that are dynamic: {', '.join(sorted(conditions))} was assumed",
            "in dynamic_shapes, give sizes that are always equal one name, a size that has limits a "
            "torch.export.Dim(name, min=..., max=...), and leave out sizes that decide something",
        )


def _refuse_new_assumptions(call: Call, exported: Any, symbolic: Sequence[Any]) -> None:
    """Refuse what was assumed in the export of sizes and does not follow from what the user said of them."""
    known, env = (each.fake_mode.shape_env for each in (symbolic[0], _user_inputs(exported)[0].meta["val"]))
    # Of sizes that turned out to be equal one is left, under which each may appear; two names are not taken for one.
    sizes: dict[Any, set[Any]] = {}
    for node, old in zip(_user_inputs(exported), symbolic, strict=True):
        for one, other in zip(node.meta["val"].shape, old.shape, strict=True):
            if not isinstance(one, int) and not isinstance(other, int):
                for size in (one.node._expr, env.replace(one.node._expr)):
                    sizes.setdefault(size, set()).add(known.replace(other.node._expr))
    same = {size: next(iter(others)) for size, others in sizes.items() if len(others) == 1}
    guards = [guard._replace(expr=_plainly(guard.expr.xreplace(same))) for guard in env.guards]
    unknown = [each for each in guards if not _is_known(known, each.expr)]
    _refuse_assumptions(call, unknown, _named_sizes(call, symbolic), known.var_to_range)


def _is_known(shape_env: Any, condition: Any) -> bool:
    """Return whether a condition holds for all sizes that there may be, as torch can tell of each of alternatives."""
    alternatives = condition.args if isinstance(condition, sympy.Or) else (condition,)
    return any(statically_known_true(shape_env.create_symboolnode(each)) for each in alternatives)


def _is_of_no_account(guard: Any, limits: Mapping[Any, Any]) -> bool:
    """Return whether what torch assumed of sizes changes nothing in what is computed.

    That is so of some places, and of what holds within the `limits` of the sizes for all but 0 and 1, which torch takes
    for special where it need not: what it does for the others is right for these too.
    """
    place = guard.sloc.framework_loc
    if isinstance(place, traceback.FrameSummary) and f"{Path(place.filename).name}:{place.name}" in _OF_NO_ACCOUNT:
        return True
    ranges = {size: limits[size] & ValueRanges(2, int_oo) for size in guard.expr.free_symbols if size in limits}
    if bound_sympy(guard.expr, ranges) == ValueRanges.wrap(sympy.true):
        return True
    sizes = {size: sympy.Symbol(size.name, integer=True, nonnegative=True) + 2 for size in guard.expr.free_symbols}
    condition = guard.expr.xreplace(sizes)
    if isinstance(condition, sympy.core.relational.Relational):
        condition = condition.func(sympy.expand(condition.lhs - condition.rhs), 0)  # whose sign sympy can tell
    return bool(condition == sympy.true)


@contextlib.contextmanager
def _as_torch_exports() -> Iterator[None]:
    """Let ``torch.compiler.is_exporting()`` say so, by which modules leave out what is for eager runs, as caches.

    What ``torch.compile`` made is taken as it was before.
    """
    flags = ("_is_compiling_flag", "_is_exporting_flag")
    before = [getattr(torch.compiler, flag) for flag in flags]
    try:
        for flag in flags:
            setattr(torch.compiler, flag, True)
        with torch.compiler.set_stance("force_eager"), _symbolic_lengths():
            yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            setattr(torch.compiler, flag, value)


@contextlib.contextmanager
def _symbolic_lengths() -> Iterator[None]:
    """Let ``len`` of a tensor be its symbolic size, which Python's own turns into the number that it is."""
    own = builtins.len

    def length(of: Any, /) -> Any:
        return of.shape[0] if isinstance(of, torch.Tensor) and of.ndim else own(of)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = own


def _plainly(condition: Any) -> Any:
    """Return ``x <= 9`` for ``x == min(9, x)``."""
    if isinstance(condition, sympy.Or):
        return sympy.Or(*map(_plainly, condition.args))
    for size, least in itertools.permutations(condition.args) if isinstance(condition, sympy.Eq) else ():
        if isinstance(least, Min) and size in least.args:
            return sympy.And(*(size <= each for each in least.args if each != size))
    return condition


def _refuse_constants(call: Call, graph: Any, variable: NamedTensors) -> None:
    """Refuse a graph that has taken parameters which its inputs stand for for constants."""
    names = {each.untyped_storage().data_ptr(): name for name, each in variable.items() if each.numel()}
    constants = [attrgetter(node.target)(graph) for node in graph.graph.nodes if node.op == "get_attr"]
    tensors = [each for each in constants if isinstance(each, torch.Tensor)]
    for tensor in tensors:
        if isinstance(tensor.grad, FakeTensor):  # of a leaf that only a checkpoint or another backward pass has met
            tensor.grad = None
    used = sorted({names[pointer] for each in tensors if (pointer := each.untyped_storage().data_ptr()) in names})
    for name, tensor in call.rebound.items():
        if any(tensor.untyped_storage().data_ptr() == each.untyped_storage().data_ptr() for each in tensors):
            raise _refused_state(call, repr(name))
    if used:
        raise call.refusal(
            f"it uses {', '.join(map(repr, used))} past the attribute of that name, which the model's input stands for",
            "in forward, take parameters from their modules, not from a list, a closure or another object",
        )


def _refused_state(call: Call, found: str) -> InvalidModelError:
    return call.refusal(
        f"its forward changes {found}, which is no buffer, and a model would forget",
        "make what the module remembers a buffer, with register_buffer()",
    )


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what is decomposed while tracing: all that torch can, less the gradient of layer normalisation.

    The exporter decomposes too, but not what it translates itself, and some of its translations are wrong in a graph
    of gradients: nll_loss_forward gives a total weight that nll_loss_backward must not divide by, copy does not
    broadcast, batch normalisation does not update its running statistics. The order of memory that empty_permuted adds
    to empty is nothing that ONNX knows.
    """
    aten = torch.ops.aten
    decompositions = dict(torch.export.default_decompositions().items())
    del decompositions[aten.native_layer_norm_backward.default]
    decompositions.update(torch._decomp.get_decompositions([aten._native_batch_norm_legit]))
    decompositions[aten.copy.default] = lambda self, src, _=False: src.to(self.dtype).expand(self.shape).clone()
    decompositions[aten.empty_permuted.default] = lambda size, _, **options: torch.empty(size, **options)
    decompositions.update(gradient_decompositions())
    return decompositions


def _is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _draw(kind: Any, size: Sequence[Any], dtype: Any, device: Any) -> Any:
    """Make the node that draws."""
    with decompose({}):
        return kind(size, dtype=dtype, device=device)


def _draws(graph: Any) -> list[bool]:
    """Return of each draw whether the outputs of the graph depend on it."""
    needed = set(graph.find_nodes(op="output"))
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node in needed for node in graph.nodes if node.target in (UNIFORM, NORMAL)]


class _Identity(torch.nn.Module):  # type: ignore[misc]  # torch has no types where it is not installed
    def forward(self, *tensors: Any) -> list[Any]:
        return [tensor.clone() for tensor in tensors]


def _symbolic(tensors: Sequence[Any], shapes: Sequence[Any]) -> list[Any]:
    """Return the tensors that torch.export traces with: without data, with a symbol for each dynamic size."""
    dynamic_shapes = {"tensors": tuple(shapes)}
    with quiet():
        exported = torch.export.export(_Identity(), tuple(tensors), dynamic_shapes=dynamic_shapes, strict=False)
    return [node.meta["val"] for node in _placeholders(exported)]


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
            f"dynamic_shapes has {spec!r} for input {joined(path)!r}; it must be a dict from axes to names or Dims, "
            "or a tuple with one for each axis"
        )
    for dim in spec.values():
        if isinstance(dim, str) and not dim.isidentifier():
            raise call.refusal(f"dynamic_shapes has the name {dim!r}; it must be an identifier, as 'batch' is")
    return {
        axis: dims.setdefault(dim, torch.export.Dim(dim)) if isinstance(dim, str) else dim for axis, dim in spec.items()
    }
