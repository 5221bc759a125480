# SPDX-License-Identifier: Apache-2.0
"""Random inputs for a model, drawn after what it declares of them."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, TensorShapeProto, ValueInfoProto, helper

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError, written
from lnbp_onnx.graphs.protos import graph_nodes

SYMBOLIC_LENGTH = 2
"""The length of a symbolic dimension that no shape is given for."""

_MOST_AXES = 64
_MOST_BYTES = 2**63 - 1

_DRAWN_TYPES = (
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)

# What a variance may pass through on its way from a graph input to a node, its values unchanged.
_KEEPS_VALUES = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand"}


def fed_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Return the graph inputs that have no default value."""
    initialized = {tensor.name for tensor in graph.initializer}
    initialized |= {sparse.values.name for sparse in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in initialized]


def variance_inputs(graph: GraphProto) -> set[str]:
    """Return the graph inputs that a node uses as a variance."""
    nodes = list(graph_nodes(graph.node))
    producers = {output: node for node in nodes for output in node.output}
    position = spec.INPUT_NAMES.index("variance")
    found: set[str] = set()
    for node in nodes:
        if node.domain == spec.DOMAIN and len(node.input) > position:
            name = node.input[position]
            while name not in found:
                found.add(name)
                if name in producers and producers[name].op_type in _KEEPS_VALUES and producers[name].input:
                    name = producers[name].input[0]
    return found & {value.name for value in graph.input}


def draw(
    graph: GraphProto,
    input_shapes: Mapping[str, Sequence[int]],
    variances: set[str],
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """Return random values for the inputs that have no default.

    Args:
        graph: Declares them.
        input_shapes: Shapes by name; a symbolic dimension has the length that one of them gives it, or 2.
        variances: The names of those that are drawn as variances: uniform in [0.5, 1.5].
        rng: Draws the others: standard normal; integers and booleans, 0 or 1.

    Raises:
        InvalidModelError: Where one cannot be drawn, a shape is not what the model declares, or the memory is too small
            for all of them.
    """
    fed = fed_inputs(graph)
    names = [value.name for value in fed]
    for name in sorted(set(input_shapes).difference(names)):
        is_input = name in {value.name for value in graph.input}
        found = "has a default; the other inputs are" if is_input else "is no input of the model; its inputs are"
        raise InvalidModelError(f"A shape is given for {name!r}, which {found} {', '.join(names)}.")
    for value in fed:
        _check_type(value)
    lengths: dict[str, int] = {}
    for value in fed:
        if value.name in input_shapes:
            lengths |= _lengths(value, input_shapes[value.name])
    shapes = {value.name: _shape(value, input_shapes, lengths) for value in fed}
    _check_size(fed, shapes)
    return {value.name: _draw_one(value, shapes[value.name], value.name in variances, rng) for value in fed}


def free_inputs(graph: GraphProto) -> Iterator[tuple[str, str]]:
    """Yield the name and the declared shape of each input whose shape the model leaves open."""
    for value in fed_inputs(graph):
        tensor_type = value.type.tensor_type
        if not tensor_type.HasField("shape") or any(not _is_fixed(dim) for dim in tensor_type.shape.dim):
            yield value.name, _declared(value)


def assumed_lengths(graph: GraphProto, input_shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the symbolic lengths that no given shape says, with what they are drawn as.

    A length without a name is called after its input and axis: ``x[0]``.
    """
    fed = fed_inputs(graph)
    said = {name for value in fed if value.name in input_shapes for name in _lengths(value, input_shapes[value.name])}
    found = {
        dim.dim_param or f"{value.name}[{axis}]": SYMBOLIC_LENGTH
        for value in fed
        if value.name not in input_shapes
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if not _is_fixed(dim)
    }
    return {name: length for name, length in found.items() if name not in said}


def _check_type(value: ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        found = f"has type {kind.removesuffix('_type').replace('_', ' ')}" if kind else "has no type"
        raise InvalidModelError(f"Input {value.name!r} {found}; only tensors can be drawn (pass the inputs).")
    element_type = value.type.tensor_type.elem_type
    if element_type not in _DRAWN_TYPES:
        raise InvalidModelError(
            f"Input {value.name!r} has element type {spec.type_name(element_type)}, which cannot be drawn; these can: "
            f"{', '.join(map(spec.type_name, _DRAWN_TYPES))} (pass the inputs)."
        )


def _lengths(value: ValueInfoProto, given: Sequence[int]) -> dict[str, int]:
    """Return what a given shape makes of the symbolic dimensions.

    Raises:
        InvalidModelError: Where it is not what the model declares.
    """
    tensor_type = value.type.tensor_type
    if not tensor_type.HasField("shape"):
        return {}
    dims = tensor_type.shape.dim
    differs = len(given) != len(dims) or any(
        _is_fixed(dim) and dim.dim_value != length for dim, length in zip(dims, given, strict=True)
    )
    if differs:
        fitting = [dim.dim_value if _is_fixed(dim) else SYMBOLIC_LENGTH for dim in dims]
        raise InvalidModelError(
            f"The shape given for input {value.name!r} is {list(given)}; the model declares {_declared(value)} (give "
            f"one that fits, as in {as_input_shape(value.name, fitting)})."
        )
    return {dim.dim_param: length for dim, length in zip(dims, given, strict=True) if dim.dim_param}


def as_input_shape(name: str, lengths: Sequence[object]) -> str:
    """Return how the caller writes an input's shape."""
    written_lengths = [str(length) for length in lengths]
    return written(
        f"input_shapes={{{name!r}: [{', '.join(written_lengths)}]}}",
        f"--input-shape {name}:{','.join(written_lengths)}",
    )


def _is_fixed(dim: TensorShapeProto.Dimension) -> bool:
    """Return whether a dimension has a length: exporters write -1 for one that has none."""
    return dim.HasField("dim_value") and dim.dim_value >= 0


def _declared(value: ValueInfoProto) -> str:
    tensor_type = value.type.tensor_type
    if not tensor_type.HasField("shape"):
        return "no shape"
    dims = tensor_type.shape.dim
    return f"[{', '.join(str(dim.dim_value) if _is_fixed(dim) else dim.dim_param or '?' for dim in dims)}]"


def _shape(
    value: ValueInfoProto, input_shapes: Mapping[str, Sequence[int]], lengths: Mapping[str, int]
) -> tuple[int, ...]:
    if value.name in input_shapes:
        return tuple(input_shapes[value.name])
    tensor_type = value.type.tensor_type
    if not tensor_type.HasField("shape"):
        raise InvalidModelError(
            f"Input {value.name!r} has no shape in the model; one is needed to draw it (give one, as in "
            f"{as_input_shape(value.name, [2, 3])})."
        )
    return tuple(
        dim.dim_value if _is_fixed(dim) else lengths.get(dim.dim_param, SYMBOLIC_LENGTH)
        for dim in tensor_type.shape.dim
    )


def _check_size(fed: Sequence[ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse shapes that NumPy or the memory has no room for, before anything is allocated."""
    total, available = 0, _available_bytes()
    for value in fed:
        shape = shapes[value.name]
        if len(shape) > _MOST_AXES:
            raise InvalidModelError(
                f"Input {value.name!r} has {len(shape)} axes, too many to be drawn: NumPy's arrays have at most "
                f"{_MOST_AXES}."
            )
        # Drawn in double precision, and then converted.
        itemsize = 8 + helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize
        total += itemsize * math.prod(shape)
        # What models do with an input takes at least as much again.
        if 2 * total > available or itemsize * math.prod(filter(None, shape)) > _MOST_BYTES:
            raise InvalidModelError(
                f"Input {value.name!r} is to be drawn with shape {list(shape)}; that is more than the memory has room "
                f"for (give smaller lengths with {as_input_shape(value.name, ['...'])}, where the model leaves them "
                "open)."
            )


def _available_bytes() -> int:
    """Return how many bytes of memory are available, as far as the system tells."""
    found = [_MOST_BYTES]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):  # that of a container; the word "max" stands for none
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found)


def _draw_one(
    value: ValueInfoProto, shape: tuple[int, ...], is_variance: bool, rng: np.random.Generator
) -> NDArray[Any]:
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if dtype.kind in "biu":
        drawn: NDArray[Any] = rng.integers(0, 2, shape)
    elif is_variance:
        drawn = rng.uniform(0.5, 1.5, shape)
    else:
        drawn = rng.standard_normal(shape)
    return np.asarray(drawn).astype(dtype)
