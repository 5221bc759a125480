# SPDX-License-Identifier: Apache-2.0
"""Reading a LayerNormBackprop node, refusing a bad one, and making a good one.

`parse` is the only place that knows what the specification allows. It takes what is known, which may be
little: element types, ranks and dimensions may each be unknown, and are then not checked.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from onnx import AttributeProto, NodeProto, TensorProto, TypeProto, helper

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidNodeError

Dim: TypeAlias = int | str | None
"""A dimension: its length, its symbol, or nothing known."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor: its element type, and its shape (None where the rank is unknown)."""

    element_type: int | None = None
    shape: tuple[Dim, ...] | None = None

    @classmethod
    def from_type_proto(cls, type_proto: TypeProto) -> "TensorInfo":
        """Read a tensor's type; a type of another kind gives an unknown tensor."""
        if not type_proto.HasField("tensor_type"):
            return cls()
        tensor_type = type_proto.tensor_type
        shape: tuple[Dim, ...] | None = None
        if tensor_type.HasField("shape"):
            shape = tuple(
                d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor_type.shape.dim
            )
        return cls(tensor_type.elem_type or None, shape)

    @property
    def is_complete(self) -> bool:
        """Whether its element type, its rank and all of its lengths are known."""
        return self.element_type is not None and self.shape is not None and all(isinstance(d, int) for d in self.shape)


def static_size(dims: Iterable[Dim]) -> int | None:
    """Return the product of `dims`, or None where one is not known (and none is 0)."""
    size: int | None = 1
    for dim in dims:
        if dim == 0:
            return 0
        size = size * dim if isinstance(dim, int) and size is not None else None
    return size


def _merge_dim(a: Dim, b: Dim) -> Dim:
    return a if isinstance(a, int) or b is None else b


def _may_equal(a: Dim, b: Dim) -> bool:
    return not (isinstance(a, int) and isinstance(b, int) and a != b)


def may_match(shape: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
    """Return whether two shapes are not known to differ."""
    return len(shape) == len(wanted) and all(map(_may_equal, shape, wanted))


@dataclass(frozen=True, slots=True)
class BackpropNode:
    """A LayerNormBackprop node that the specification accepts, as far as it is known.

    Attributes:
        description: How messages name the node.
        begin_norm_axis: Counted from the left where the rank is known, as written otherwise.
        use_affine: Whether gamma enters.
        epsilon: A float32 number.
        use_stats: Whether mean and variance are given.
        inputs: For each input of the specification what is known of it; None where it is omitted or unused.
        outputs: For each output whether it is wanted.
        element_type: T, or None.
        parameter_type: P, or None where it is unknown or has no input.
        shape: `input_forward`'s shape, or None where its rank is unknown.
    """

    description: str
    begin_norm_axis: int
    use_affine: bool
    epsilon: float
    use_stats: bool
    inputs: tuple[TensorInfo | None, ...]
    outputs: tuple[bool, ...]
    element_type: int | None
    parameter_type: int | None
    shape: tuple[Dim, ...] | None

    @property
    def lead(self) -> tuple[Dim, ...] | None:
        """The shape of the rows, or None where the rank is unknown."""
        return None if self.shape is None else self.shape[: self.begin_norm_axis]

    @property
    def norm(self) -> tuple[Dim, ...] | None:
        """The shape of the normalised axes, or None where the rank is unknown."""
        return None if self.shape is None else self.shape[self.begin_norm_axis :]

    @property
    def num_rows(self) -> int | None:
        """M, or None where it is not known."""
        return None if self.lead is None else static_size(self.lead)

    @property
    def norm_size(self) -> int | None:
        """N, or None where it is not known."""
        return None if self.norm is None else static_size(self.norm)

    def input(self, name: str) -> TensorInfo | None:
        """Return what is known of the named input, or None where it is omitted or unused."""
        return self.inputs[spec.INPUT_NAMES.index(name)]

    def output_info(self, name: str) -> TensorInfo:
        """Return what is known of the named output."""
        if name == "input_delta":
            return TensorInfo(self.element_type, self.shape)
        source = self.input("gamma")
        if name == "beta_delta":
            source = self.input("beta") or source
        return TensorInfo(self.parameter_type, None if source is None else source.shape)


def parse(
    description: str,
    attributes: Mapping[str, AttributeProto],
    inputs: Sequence[TensorInfo | None],
    outputs: Sequence[bool],
) -> BackpropNode:
    """Read a node.

    Args:
        description: How messages name the node; `describe` makes it.
        attributes: The node's attributes by name; those left out take their defaults.
        inputs: What is known of each input, None for one that is omitted.
        outputs: For each output whether it is wanted.

    Raises:
        InvalidNodeError: Where the specification refuses the node.
    """
    values = tuple(_Reader(description).attributes(attributes).values())
    operands, wanted = tuple(inputs), tuple(outputs)
    try:
        accepted = _accepted("", values, operands, wanted)
    except InvalidNodeError:
        return _parse(description, values, operands, wanted)
    return dataclasses.replace(accepted, description=description)


def _parse(
    description: str,
    attributes: tuple[float, ...],
    inputs: tuple[TensorInfo | None, ...],
    outputs: tuple[bool, ...],
) -> BackpropNode:
    reader = _Reader(description)
    begin_norm_axis, use_affine, epsilon, use_stats = attributes
    use_affine, use_stats = bool(use_affine), bool(use_stats)
    if not (math.isfinite(epsilon) and (epsilon > 0 or (epsilon == 0 and use_stats))):
        allowed = "finite and at least 0" if use_stats else "finite and greater than 0, since use_stats is 0"
        reader.refuse(f"attribute 'epsilon' is {epsilon:g}; it must be {allowed}", "the usual value is 1e-5")

    present = reader.inputs(inputs, use_affine, use_stats)
    wanted = reader.outputs(outputs, use_affine)
    element_type, parameter_type = reader.types(present)
    shape = reader.shape(present)

    axis = int(begin_norm_axis)
    if shape is not None:
        rank = len(shape)
        if rank == 0:
            reader.refuse("input 'input_forward' is a scalar; it must have at least one axis", "reshape it to [1]")
        if not -rank <= axis < rank:
            reader.refuse(
                f"attribute 'begin_norm_axis' is {axis}; with input_forward of rank {rank} "
                f"it must be in [{-rank}, {rank - 1}]",
                "the last axis is -1",
            )
        axis %= rank
        for name in ("gamma", "beta"):
            reader.parameter_shape(name, present[name], shape[axis:])
        for name in ("mean", "variance"):
            reader.statistics_shape(name, present[name], shape[:axis], rank)
    return BackpropNode(
        description=description,
        begin_norm_axis=axis,
        use_affine=use_affine,
        epsilon=float(epsilon),
        use_stats=use_stats,
        inputs=tuple(present.values()),
        outputs=wanted,
        element_type=element_type,
        parameter_type=parameter_type,
        shape=shape,
    )


# Large models have thousands of nodes of which the same is known.
_accepted = functools.lru_cache(maxsize=256)(_parse)


def describe(name: str, outputs: Iterable[str]) -> str:
    """Return how messages name a node: by its name, or by the first output that has one."""
    if name:
        return f"{spec.OP_TYPE} node {name!r}"
    output = next(filter(None, outputs), None)
    return f"{spec.OP_TYPE} node with output {output!r}" if output else spec.OP_TYPE


def format_shape(shape: Sequence[Dim]) -> str:
    """Return a shape for a person to read."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


class _Reader:
    """The checks of one node; each refuses with an error that begins with the node's description."""

    def __init__(self, description: str) -> None:
        self._description = description

    def refuse(self, found: str, remedy: str) -> None:
        raise InvalidNodeError(f"{self._description}: {found} ({remedy}).")

    def attributes(self, attributes: Mapping[str, AttributeProto]) -> dict[str, float]:
        known = {attribute.name for attribute in spec.ATTRIBUTES}
        for name in attributes:
            if name not in known:
                self.refuse(
                    f"attribute {name!r} is not one of the operator's, which are {', '.join(sorted(known))}",
                    "remove it",
                )
        values: dict[str, float] = {}
        for attribute in spec.ATTRIBUTES:
            proto = attributes.get(attribute.name)
            if proto is None:
                values[attribute.name] = _to_float32(attribute.default)
                continue
            integer = isinstance(attribute.default, int)
            wanted = AttributeProto.INT if integer else AttributeProto.FLOAT
            if proto.ref_attr_name:
                self.refuse(
                    f"attribute {attribute.name!r} refers to {proto.ref_attr_name!r} of a function, "
                    "whose value is not known here; it must have a value",
                    "set the function's attribute where it is called",
                )
            if proto.type != wanted:
                self.refuse(
                    f"attribute {attribute.name!r} has type {AttributeProto.AttributeType.Name(proto.type)}; "
                    f"it must be {AttributeProto.AttributeType.Name(wanted)}",
                    f"write it as {'an integer' if integer else 'a float'}",
                )
            value = proto.i if integer else proto.f
            if attribute.boolean and value not in (0, 1):
                self.refuse(f"attribute {attribute.name!r} is {value}; it must be 0 or 1", "set one of them")
            values[attribute.name] = value
        return values

    def inputs(
        self, inputs: Sequence[TensorInfo | None], use_affine: bool, use_stats: bool
    ) -> dict[str, TensorInfo | None]:
        """Return what is known of each input by name, None for one that is omitted or unused."""
        if len(inputs) > len(spec.INPUTS):
            self.refuse(
                f"it has {len(inputs)} inputs; at most {len(spec.INPUTS)} are allowed: {', '.join(spec.INPUT_NAMES)}",
                "remove the rest",
            )
        present: dict[str, TensorInfo | None] = dict.fromkeys(spec.INPUT_NAMES)
        present.update(zip(spec.INPUT_NAMES, inputs, strict=False))
        reasons = {
            "input_forward": ("", ""),
            "output_delta": ("", ""),
            "gamma": (" with use_affine=1", ", or set use_affine=0"),
            "mean": (" with use_stats=1", ", or set use_stats=0 to have it computed"),
            "variance": (" with use_stats=1", ", or set use_stats=0 to have it computed"),
        }
        unused = set() if use_affine else {"gamma", "beta"}
        if not use_stats:
            unused |= {"mean", "variance"}
        for name in unused:
            present[name] = None
        for name, (condition, alternative) in reasons.items():
            if present[name] is None and name not in unused:
                self.refuse(f"input {name!r} is missing; it is required{condition}", f"connect it{alternative}")
        return present

    def outputs(self, outputs: Sequence[bool], use_affine: bool) -> tuple[bool, ...]:
        count = len(spec.OUTPUTS)
        if len(outputs) > count:
            self.refuse(
                f"it has {len(outputs)} outputs; at most {count} are allowed: {', '.join(spec.OUTPUT_NAMES)}",
                "remove the rest",
            )
        wanted = tuple(outputs) + (False,) * (count - len(outputs))
        if not wanted[0]:
            self.refuse("output 'input_delta' is omitted; it is required", "give it a name, used or not")
        for name, is_wanted in zip(spec.OUTPUT_NAMES[1:], wanted[1:], strict=True):
            if is_wanted and not use_affine:
                self.refuse(
                    f"output {name!r} is requested with use_affine=0; it exists only with use_affine=1",
                    "leave it out, or set use_affine=1 and connect gamma",
                )
        return wanted

    def types(self, present: Mapping[str, TensorInfo | None]) -> tuple[int | None, int | None]:
        """Return T and P, each None where it is not known."""
        found: dict[str, tuple[str, int]] = {}
        for parameter in spec.INPUTS:
            info = present[parameter.name]
            if info is None or info.element_type is None:
                continue
            first, element_type = found.setdefault(parameter.type_variable, (parameter.name, info.element_type))
            if info.element_type != element_type:
                self.refuse(
                    f"input {parameter.name!r} has type {spec.type_name(info.element_type)} and {first!r} has "
                    f"{spec.type_name(element_type)}; the two must have one type",
                    "cast one of them",
                )
        for name, element_type in found.values():
            if element_type not in spec.ELEMENT_TYPES:
                allowed = ", ".join(map(spec.type_name, spec.ELEMENT_TYPES))
                self.refuse(
                    f"input {name!r} has type {spec.type_name(element_type)}; it must be one of {allowed}", "cast it"
                )
        t = found["T"][1] if "T" in found else None
        for variable in ("P", "U"):
            name, element_type = found.get(variable, ("", TensorProto.FLOAT))
            if element_type == TensorProto.FLOAT:
                continue
            if t is None:
                t = element_type
            if element_type != t:
                allowed = "float" if t == TensorProto.FLOAT else f"{spec.type_name(t)}, as input_forward, or float"
                self.refuse(f"input {name!r} has type {spec.type_name(element_type)}; it must be {allowed}", "cast it")
        return t, found["P"][1] if "P" in found else None

    def shape(self, present: Mapping[str, TensorInfo | None]) -> tuple[Dim, ...] | None:
        """Return input_forward's shape with what output_delta's, which is the same, adds to it."""
        forward, delta = (
            None if info is None else info.shape for info in (present["input_forward"], present["output_delta"])
        )
        if forward is None or delta is None:
            return delta if forward is None else forward
        if not may_match(forward, delta):
            self.refuse(
                f"input 'output_delta' has shape {format_shape(delta)} and input_forward {format_shape(forward)}; "
                "the two must be equal",
                "connect the gradient with respect to the normalised output",
            )
        return tuple(map(_merge_dim, forward, delta))

    def parameter_shape(self, name: str, info: TensorInfo | None, norm: tuple[Dim, ...]) -> None:
        if info is None or info.shape is None:
            return
        shape = info.shape
        tail = norm[len(norm) - len(shape) :] if len(shape) <= len(norm) else ()
        broadcasts = len(shape) <= len(norm) and all(
            dim == 1 or _may_equal(dim, n) for dim, n in zip(shape, tail, strict=True)
        )
        if not broadcasts and not may_match(shape, (static_size(norm),)):
            self.refuse(
                f"input {name!r} has shape {format_shape(shape)}; it must broadcast to the normalised axes "
                f"{format_shape(norm)}, or be 1-D with as many elements as they have",
                "reshape it, or move begin_norm_axis",
            )

    def statistics_shape(self, name: str, info: TensorInfo | None, lead: tuple[Dim, ...], rank: int) -> None:
        if info is None or info.shape is None:
            return
        kept = lead + (1,) * (rank - len(lead))
        if not any(may_match(info.shape, wanted) for wanted in (lead, kept, (static_size(lead),))):
            self.refuse(
                f"input {name!r} has shape {format_shape(info.shape)}; it must be {format_shape(lead)}, "
                f"{format_shape(kept)}, or 1-D with one element for each row",
                "reshape it, or move begin_norm_axis",
            )


def _to_float32(value: float) -> float:
    """Round to float32, as a FLOAT attribute is."""
    attribute: float = helper.make_attribute("", value).f if isinstance(value, float) else value
    return attribute


def attribute_protos(
    begin_norm_axis: int, use_affine: bool, epsilon: float, use_stats: bool
) -> dict[str, AttributeProto]:
    """Return the operator's attributes as they stand in a node, by name.

    Raises:
        InvalidNodeError: Where a value cannot be an attribute's.
    """
    protos = {}
    for attribute, value in zip(spec.ATTRIBUTES, (begin_norm_axis, use_affine, epsilon, use_stats), strict=True):
        kind = type(attribute.default)
        try:
            converted = kind(value)
            if kind is int and converted != value:
                raise ValueError("not an integer")
            protos[attribute.name] = helper.make_attribute(attribute.name, converted)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidNodeError(
                f"{spec.OP_TYPE}: attribute {attribute.name!r} is {value!r}; it must be "
                f"{'an integer of 64 bits' if kind is int else 'a number'}."
            ) from error
    return protos


def make_node(
    input_forward: str,
    output_delta: str,
    *,
    gamma: str = "",
    beta: str = "",
    mean: str = "",
    variance: str = "",
    outputs: Sequence[str] | None = None,
    begin_norm_axis: int = -1,
    use_affine: bool = True,
    epsilon: float = 1e-5,
    use_stats: bool = True,
    name: str = "",
) -> NodeProto:
    """Make a LayerNormBackprop node.

    Args:
        input_forward: Name of the forward operator's input.
        output_delta: Name of the gradient with respect to the forward operator's output.
        gamma: Name of the scale; required with `use_affine`.
        beta: Name of the shift.
        mean: Name of the rows' means; required with `use_stats`.
        variance: Name of the rows' variances; required with `use_stats`.
        outputs: Names of input_delta, gamma_delta and beta_delta, "" for one that is not wanted. None gives them
            the specification's names, the parameter gradients only with `use_affine`.
        begin_norm_axis: The first normalised axis; negative values count from the back.
        use_affine: Whether the forward operator scaled by gamma.
        epsilon: Added to the variance; rounded to float32.
        use_stats: Whether mean and variance are given.
        name: The node's name.

    Raises:
        InvalidNodeError: Where the specification refuses the node.

    Example:
        >>> import lnbp_onnx
        >>> node = lnbp_onnx.make_node("x", "dy", gamma="gamma", use_stats=False, outputs=["dx", "dgamma", ""])
        >>> node.op_type, list(node.input), list(node.output)
        ('LayerNormBackprop', ['x', 'dy', 'gamma'], ['dx', 'dgamma', ''])
    """
    inputs = [input_forward, output_delta, gamma, beta, mean, variance]
    if outputs is None:
        outputs = spec.OUTPUT_NAMES if use_affine else spec.OUTPUT_NAMES[:1]
    named = [output for output in outputs if output]
    if isinstance(outputs, str) or len(set(named)) < len(named):
        raise InvalidNodeError(
            f"{describe(name, ())}: outputs is {outputs!r}; it must be a list of different names, '' where one is not "
            "wanted."
        )
    attributes = attribute_protos(begin_norm_axis, use_affine, epsilon, use_stats)
    parse(
        describe(name, outputs),
        attributes,
        [TensorInfo() if value else None for value in inputs],
        [bool(output) for output in outputs],
    )
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(spec.OP_TYPE, inputs, list(outputs), name=name, domain=spec.DOMAIN)
    node.attribute.extend(attributes.values())
    return node


def gradient_nodes(
    layer_normalization: NodeProto, output_delta: str, *, outputs: Sequence[str] | None = None
) -> list[NodeProto]:
    """Make the nodes that compute the gradient of an ONNX LayerNormalization node.

    The statistics are the node's own outputs Mean and InvStdDev: variance = 1 / (InvStdDev * InvStdDev), and
    epsilon = 0, for InvStdDev holds it already.

    Args:
        layer_normalization: A LayerNormalization node of the default domain with its outputs Mean and InvStdDev.
        output_delta: Name of the gradient with respect to the node's output Y.
        outputs: As for `make_node`.

    Returns:
        Two nodes that turn InvStdDev into a variance, and the LayerNormBackprop node, in topological order. The
        values between them are named after InvStdDev.

    Raises:
        InvalidNodeError: Where the node is another one or lacks the two outputs.

    Example:
        >>> from onnx import helper
        >>> import lnbp_onnx
        >>> forward = helper.make_node("LayerNormalization", ["x", "scale"], ["y", "mean", "rstd"])
        >>> [node.op_type for node in lnbp_onnx.gradient_nodes(forward, "dy", outputs=["dx", "dscale", ""])]
        ['Mul', 'Reciprocal', 'LayerNormBackprop']
    """
    forward = layer_normalization
    label = f"{forward.op_type} node {forward.name or next(iter(forward.output), '')!r}"
    if forward.op_type != "LayerNormalization" or forward.domain not in ("", "ai.onnx"):
        raise InvalidNodeError(
            f"{label}: the gradient of a LayerNormalization node of the default domain was asked for, "
            f"and this is {forward.domain or 'ai.onnx'}::{forward.op_type} (pass the LayerNormalization node)."
        )
    if len(forward.input) < 2:
        raise InvalidNodeError(f"{label}: input 1 'Scale' is missing; the gradient needs it (connect it).")
    names = list(forward.output) + [""] * (3 - len(forward.output))
    for index, output in ((1, "Mean"), (2, "InvStdDev")):
        if not names[index]:
            raise InvalidNodeError(
                f"{label}: output {index} {output!r} is omitted; the gradient needs it (give it a name)."
            )
    mean, inv_std_dev = names[1:3]
    axis = next((attribute for attribute in forward.attribute if attribute.name == "axis"), None)
    if axis is not None and axis.ref_attr_name:
        raise InvalidNodeError(
            f"{label}: attribute 'axis' refers to {axis.ref_attr_name!r} of a function; the gradient needs its value "
            "(write it in the node)."
        )
    squared, variance = f"{inv_std_dev}_squared", f"{inv_std_dev}_variance"
    name = f"{forward.name}_grad" if forward.name else ""
    return [
        helper.make_node("Mul", [inv_std_dev, inv_std_dev], [squared], name=f"{name}_squared" if name else ""),
        helper.make_node("Reciprocal", [squared], [variance], name=f"{name}_variance" if name else ""),
        make_node(
            forward.input[0],
            output_delta,
            gamma=forward.input[1],
            beta=forward.input[2] if len(forward.input) > 2 else "",
            mean=mean,
            variance=variance,
            outputs=outputs,
            begin_norm_axis=-1 if axis is None else axis.i,
            epsilon=0.0,
            name=name,
        ),
    ]
