# SPDX-License-Identifier: Apache-2.0
"""How much nodes have to do: the bytes that they move, and their operations on numbers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.graphs.inference import Functions, declare, infer, info_of
from lnbp_onnx.graphs.operators import is_operator, parse_node, scopes
from lnbp_onnx.graphs.specialise import specialise_functions
from lnbp_onnx.node import BackpropNode

ASSUMED_LENGTH = 128
"""What a length is taken as that the model leaves open."""

# Runtimes give their results the buffer of what they read, or know them before they run.
_MOVE_NOTHING = {"Constant", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"}
_COMPUTE_NOTHING = {"Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Pad", "Slice", "Split", "Transpose"}
_PRODUCTS = {"MatMul", "Gemm"}
_GRAPHS = {"If", "Loop", "Scan"}


@dataclass(frozen=True, slots=True)
class Work:
    """What some nodes have to do.

    Attributes:
        nodes: How many they are.
        bytes_moved: The sizes of what each of them reads and writes, together; None where a shape is not known.
        operations: Their operations on numbers; None where a shape is not known.
    """

    nodes: int
    bytes_moved: int | None
    operations: int | None


def give_lengths(model: ir.Model) -> list[str]:
    """Give the inputs of a model lengths in the place of names, in place, and infer the shapes of what follows.

    Returns:
        Which lengths were taken as `ASSUMED_LENGTH`: their names, or where they have none their inputs and axes.
    """
    names: dict[str, None] = {}
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            if not isinstance(dim, int):
                names[dim.value or f"{value.name}[{axis}]"] = None
        value.shape = ir.Shape([dim if isinstance(dim, int) else ASSUMED_LENGTH for dim in value.shape])
    specialise_functions(model)
    functions = Functions(model.functions.values())
    for scope in scopes(model):
        for value, info in infer(scope.graph, functions, scope.opset_imports).items():
            declare(value, info)
    return list(names)


def work_of(nodes: Sequence[ir.Node]) -> Work:
    """Return what nodes have to do, of which the values declare their types and shapes."""
    return Work(len(nodes), _sum(map(_bytes_moved, nodes)), _sum(map(_operations, nodes)))


def _sum(numbers: Iterable[int | None]) -> int | None:
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


def _bytes_moved(node: ir.Node) -> int | None:
    if node.op_type in _GRAPHS:
        return None
    if node.op_type in _MOVE_NOTHING:
        return 0
    read = [value for value in node.inputs if value is not None]
    if is_operator(node):
        named = zip(spec.INPUT_NAMES, parse_node(node, {}).inputs, node.inputs, strict=False)
        # Beta's value enters no gradient, and what the attributes make unused is not read either.
        read = [value for name, info, value in named if name != "beta" and info is not None and value is not None]
    return _sum(map(_size_in_bytes, {*read, *(output for output in node.outputs if output.name)}))


def _size_in_bytes(value: ir.Value) -> int | None:
    size = _size(value)
    return None if size is None or value.dtype is None else math.ceil(size * value.dtype.itemsize)


def _size(value: ir.Value) -> int | None:
    """Return how many elements a value has, where that is known."""
    shape = info_of(value).shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return math.prod(dim for dim in shape if isinstance(dim, int))


def _operations(node: ir.Node) -> int | None:
    if is_operator(node):
        return _of_operator(parse_node(node, {}), node)
    if node.op_type in _GRAPHS:
        return None
    if node.op_type in _MOVE_NOTHING | _COMPUTE_NOTHING:
        return 0
    results = _sum(_size(output) for output in node.outputs if output.name)
    if node.op_type in _PRODUCTS:
        first = node.inputs[0]
        shape = None if first is None else info_of(first).shape
        inner = None if not shape else shape[0 if node.attributes.get_int("transA", 0) else -1]
        return 2 * results * inner if isinstance(inner, int) and results is not None else None
    if node.op_type.startswith("Reduce"):
        return _sum(_size(value) for value in node.inputs[:1] if value is not None)
    return results


def _of_operator(parsed: BackpropNode, node: ir.Node) -> int | None:
    """Return the operations of the operator's formula on the elements of the input, each of them written once."""
    size = None if node.inputs[0] is None else _size(node.inputs[0])
    for_each_element = (
        (0 if parsed.use_stats else 4)  # the sums of x and of (x - mean)²
        + 2  # x̂ of x, mean and rstd
        + (1 if parsed.use_affine else 0)  # g of dy and gamma
        + 3  # the sums of g and of g · x̂
        + 4  # input_delta of g, x̂, rstd and these
        + (2 if parsed.outputs[1] else 0)
        + (1 if parsed.outputs[2] else 0)
    )
    return None if size is None else size * for_each_element
