# SPDX-License-Identifier: Apache-2.0
"""The operator with a function in standard operators beside it."""

import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from lnbp_onnx import spec
from lnbp_onnx.body import block_size, build_body, is_whole
from lnbp_onnx.graphs.inference import Functions
from lnbp_onnx.graphs.names import unique_names
from lnbp_onnx.graphs.operators import OPERATOR_ID, Operator, Scope, find_operators, scopes
from lnbp_onnx.graphs.opsets import check_version, import_default_domain
from lnbp_onnx.graphs.specialise import specialise_functions
from lnbp_onnx.node import BackpropNode, Dim, TensorInfo
from lnbp_onnx.passes.expand import expand

_FUNCTIONS_IR_VERSION = 8

# The first opset in which a Constant can refer to a function's attribute.
_REFERENCE_OPSET = 12

_DOC = "The gradient of layer normalisation in standard operators, for runtimes without a kernel of it."


@dataclass
class EmbedResult(ir.passes.PassResult):
    """What became of the nodes.

    Attributes:
        served: The nodes that stay, which the function computes where there is no kernel.
        decomposed: Those of other configurations, as they were: they are standard operators now.
    """

    served: tuple[Operator, ...]
    decomposed: tuple[Operator, ...]


class EmbedPass(ir.passes.InPlacePass):
    """Add a model-local function that computes LayerNormBackprop in standard operators; the nodes stay.

    A runtime with a kernel for the operator runs the kernel, another one the function. A function of one name has one
    body (older runtimes ignore overloads and run the wrong one), and a body cannot branch on what a node has. So it
    serves one configuration, the one that most nodes share (the first of several), and the other nodes are decomposed.
    Two nodes share a configuration that agree in

    - use_affine, use_stats, which outputs are wanted, the element types of the inputs that enter the result;
    - the number of normalised axes, where the rank is known, otherwise begin_norm_axis as written;
    - the ranks of gamma, and of beta where its gradient is wanted and it is not gamma's twin.

    Epsilon, the shape of the rows, the layout of the statistics and inputs without influence may differ (epsilon from
    opset 12 on, where a body can refer to it); and so may the lengths of the normalised axes, unless gamma or beta is
    broadcast or not known not to be, or the variance is computed over so many columns that it is summed in blocks of a
    fixed length: these need equal lengths and rank. A node without rows or columns shares only with its equals.

    Taken: what `DecomposePass` takes, in the same places. A function of an earlier run, or any other that stands for
    the operator, is replaced, and dropped where no node is left to call it.

    Refused: what `DecomposePass` refuses; the function is written in the model's version of the default domain.

    The served nodes get the form that runtimes can call a function with: all six inputs, "" for an omitted one, as
    many outputs as the function has (it ends with the last one that is wanted), and epsilon where it was left to its
    default. Nothing else changes. ``ir_version`` becomes at least 8, the first with functions.
    """

    def call(self, model: ir.Model) -> EmbedResult:
        """Rewrite the model in place."""
        check_version(model)
        former = model.functions.pop(OPERATOR_ID, None)
        functions = list(model.functions.values())
        specialise_functions(model)
        modified = functions != list(model.functions.values())
        called = Functions(model.functions.values())
        found = [(scope, find_operators(scope, called)) for scope in scopes(model)]
        if not any(operators for _, operators in found):
            return EmbedResult(model, modified or former is not None, (), ())

        opset = import_default_domain(model.graph, model)
        configuration, served, others = _share(found, opset)
        function = _function(configuration, served[0].parsed.description, opset)
        for scope, operators in others:
            expand(operators, scope, model)
        for operator in served:
            modified |= _fit(operator.node, function)
        modified |= bool(others)
        if former is None or ir.serde.serialize_function(former) != ir.serde.serialize_function(function):
            modified = True
        _add(function, model)
        return EmbedResult(
            model, modified, tuple(served), tuple(operator for _, operators in others for operator in operators)
        )


@dataclass(frozen=True, slots=True)
class _Configuration:
    """What the body depends on.

    Attributes:
        node: A node of which nothing else is known.
        whole: Which of its parameters have one element for each column.
    """

    node: BackpropNode
    whole: frozenset[str]


def _share(
    found: list[tuple[Scope, list[Operator]]], opset: int
) -> tuple[_Configuration, list[Operator], list[tuple[Scope, list[Operator]]]]:
    """Return the most frequent configuration, its operators, and the others by scope."""
    configurations = {
        id(operator): _configuration(operator.parsed, opset) for _, operators in found for operator in operators
    }
    [(frequent, _)] = Counter(configurations.values()).most_common(1)
    served = [operator for _, operators in found for operator in operators if configurations[id(operator)] == frequent]
    others = [
        (scope, [operator for operator in operators if configurations[id(operator)] != frequent])
        for scope, operators in found
    ]
    return frequent, served, [(scope, operators) for scope, operators in others if operators]


def _configuration(node: BackpropNode, opset: int) -> _Configuration:
    """Return the configuration of a node."""
    epsilon = node.epsilon if opset < _REFERENCE_OPSET else 0.0
    if 0 in (node.num_rows, node.norm_size):
        return _Configuration(dataclasses.replace(node, description="", epsilon=epsilon), frozenset())
    present = {name: info for name, info in zip(spec.INPUT_NAMES, node.inputs, strict=True) if info is not None}
    whole = frozenset(name for name in ("gamma", "beta") if is_whole(node, name))
    twins = whole == {"gamma", "beta"} and _rank(present["gamma"]) == _rank(present["beta"])
    if twins or not node.outputs[2]:
        present.pop("beta", None)
    summed_in_blocks = not node.use_stats and block_size(node.norm_size or 1) > 1
    lengths_matter = summed_in_blocks or not whole.issuperset(present.keys() & {"gamma", "beta"})
    shape: tuple[Dim, ...] | None = None
    axis = node.begin_norm_axis
    if node.shape is not None and lengths_matter:
        shape = (None,) * axis + _without_symbols(node.shape[axis:])
    elif node.shape is not None:
        axis -= len(node.shape)
    inputs = {}
    for name, info in present.items():
        if name in ("gamma", "beta"):
            inputs[name] = TensorInfo(node.parameter_type, _parameter_shape(info.shape, lengths_matter))
        else:
            inputs[name] = TensorInfo(info.element_type if name in ("mean", "variance") else node.element_type)
    weakened = dataclasses.replace(
        node,
        description="",
        begin_norm_axis=axis,
        epsilon=epsilon,
        inputs=tuple(inputs.get(name) for name in spec.INPUT_NAMES),
        shape=shape,
    )
    return _Configuration(weakened, whole.intersection(present))


def _rank(info: TensorInfo) -> int | None:
    return None if info.shape is None else len(info.shape)


def _parameter_shape(shape: tuple[Dim, ...] | None, lengths_matter: bool) -> tuple[Dim, ...] | None:
    if shape is None:
        return None
    return _without_symbols(shape) if lengths_matter else (None,) * len(shape)


def _without_symbols(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(dim if isinstance(dim, int) else None for dim in dims)


def _function(configuration: _Configuration, description: str, opset: int) -> ir.Function:
    """Write the function that serves a configuration; `description` is how messages name a node of it."""
    node = dataclasses.replace(configuration.node, description=description)
    inputs = [ir.Value(name=name) for name in spec.INPUT_NAMES]
    by_reference = opset >= _REFERENCE_OPSET
    body = build_body(
        node,
        inputs,
        opset,
        unique_names({*spec.INPUT_NAMES, *spec.OUTPUT_NAMES}),
        whole=configuration.whole,
        epsilon_attribute=spec.EPSILON.name if by_reference else "",
    )
    nodes, outputs = list(body.nodes), []
    for name, computed in zip(spec.OUTPUT_NAMES[: _count(node.outputs)], body.outputs, strict=False):
        value = computed
        if value is None:
            # A function has to produce what stands before its last output.
            value = ir.Value()
            nothing = np.zeros(0, helper.tensor_dtype_to_np_dtype(node.parameter_type or TensorProto.FLOAT))
            attributes = [ir.AttrTensor("value", ir.Tensor(nothing))]
            nodes.append(ir.Node("", "Constant", [], attributes, outputs=[value], name=name))
        value.name = name
        outputs.append(value)
    for each in nodes:
        for value in each.outputs:
            # They would be written for some IR versions and not for others, and a runtime infers them at each call.
            value.type = value.shape = None
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": opset}, doc_string=_DOC, name=spec.OP_TYPE)
    attributes = [ir.Attr(spec.EPSILON.name, ir.AttributeType.FLOAT, None)] if by_reference else []
    return ir.Function(spec.DOMAIN, spec.OP_TYPE, graph=graph, attributes=attributes)


def _count(outputs: tuple[bool, ...]) -> int:
    """Return how many outputs are left without the omitted ones at the end."""
    return max(index for index, wanted in enumerate(outputs, 1) if wanted)


def _fit(node: ir.Node, function: ir.Function) -> bool:
    """Give a served node the form of the function's calls; return whether it had another."""
    modified = False
    if len(node.inputs) != len(function.inputs):
        node.resize_inputs(len(function.inputs))
        modified = True
    if len(node.outputs) != len(function.outputs):
        node.resize_outputs(len(function.outputs))
        modified = True
    if spec.EPSILON.name in function.attributes and spec.EPSILON.name not in node.attributes:
        node.attributes[spec.EPSILON.name] = ir.AttrFloat32(spec.EPSILON.name, spec.EPSILON.default)
        modified = True
    return modified


def _add(function: ir.Function, model: ir.Model) -> None:
    # onnx's reference evaluator wants a function before those that call it.
    others = list(model.functions.values())
    model.functions.clear()
    for each in (function, *others):
        model.functions[each.identifier()] = each
    model.opset_imports.setdefault(spec.DOMAIN, spec.OP_VERSION)
    model.ir_version = max(model.ir_version or 0, _FUNCTIONS_IR_VERSION)
