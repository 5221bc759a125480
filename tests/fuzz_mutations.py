# SPDX-License-Identifier: Apache-2.0
"""Random models, and random damage to them: field by field, or byte by byte."""

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from cases import DTYPES, SMALL_CASES
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from layer_norm_graphs import FORMS, Style, Writer
from onnx import helper
from training_op_cases import CASES as TRAINING_CASES

import lnbp_onnx
from lnbp_onnx.graphs.protos import model_nodes

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("tests/data/*.onnx"), *ROOT.glob("examples/*.onnx")])

_INTEGERS = (0, 1, -1, 2, 3, 11, 13, 17, 127, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-5, 1e-45, 3e38, float("inf"), float("nan"))
_STRINGS = ("", "x", "lnbp", "ai.onnx", "com.microsoft", "LayerNormBackprop", "a\nb", "\0", "é" * 300)


def make_model(rng: random.Random) -> onnx.ModelProto:
    """Return one of the project's models: a file, a case of the operator, a written-out gradient, a training one."""
    kind = rng.randrange(6)
    if kind == 0:
        return onnx.load(rng.choice(FILES), load_external_data=False)
    if kind == 1:
        return _gradient(rng)
    if kind == 2:
        return rng.choice(TRAINING_CASES).model(opset=rng.choice((13, 17, 21)), dynamic=rng.random() < 0.3)
    case = dataclasses.replace(rng.choice(SMALL_CASES), t=rng.choice(list(DTYPES)), epsilon=rng.choice((1e-5, 0.5)))
    model = case.model(rng.choice((11, 13, 17, 21)), rng.choice(("static", "symbolic", "unknown")))
    for wrap in rng.choices((_into_function, _into_branches), k=rng.choice((0, 0, 1, 2))):
        wrap(model, rng)
    if rng.random() < 0.1:
        with contextlib.suppress(lnbp_onnx.LnbpError):
            return lnbp_onnx.embed(model)
    return model


def _gradient(rng: random.Random) -> onnx.ModelProto:
    style = Style(
        shape=tuple(rng.choices((3, 4, 5), k=rng.choice((2, 3)))),
        form=rng.choice(FORMS),
        affine=rng.random() < 0.7,
        stats=rng.choice(("computed", "variance", "rstd", "forward")),
        choices=tuple(rng.choices(range(12), k=5)),
        taps=tuple(rng.choices(range(60), k=rng.choice((0, 0, 2)))),
        dynamic=rng.random() < 0.3,
    )
    return Writer(style).write()


def _into_function(model: onnx.ModelProto, rng: random.Random) -> None:
    """Replace a node by the call of a function that holds it."""
    index = rng.randrange(len(model.graph.node))
    node = model.graph.node[index]
    name = f"function_{len(model.functions)}"
    inputs = list(dict.fromkeys(filter(None, node.input)))
    outputs = list(filter(None, node.output))
    function = helper.make_function("local", name, inputs, outputs, [node], list(model.opset_import))
    model.functions.append(function)
    model.graph.node[index].CopyFrom(helper.make_node(name, inputs, outputs, domain="local"))
    if all(opset.domain != "local" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("local", 1))


def _into_branches(model: onnx.ModelProto, rng: random.Random) -> None:
    """Replace a node by an If that holds it in both branches."""
    index = rng.randrange(len(model.graph.node))
    node = model.graph.node[index]
    count = len(model.graph.node)
    outputs = list(filter(None, node.output))
    branches = []
    for branch in ("then", "else"):
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        del copy.output[:]
        copy.output.extend(f"{branch}_{count}_{name}" if name else "" for name in node.output)
        infos = [helper.make_empty_tensor_value_info(name) for name in copy.output if name]
        branches.append(helper.make_graph([copy], branch, [], infos))
    condition = helper.make_tensor("", onnx.TensorProto.BOOL, [], [rng.random() < 0.5])
    wrapped = helper.make_node("If", [f"condition_{count}"], outputs, then_branch=branches[0], else_branch=branches[1])
    model.graph.node[index].CopyFrom(wrapped)
    constant = helper.make_node("Constant", [], [f"condition_{count}"], value=condition)
    model.graph.node.insert(0, constant)


def damage_fields(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change one field somewhere in the model: drop, repeat, swap, rename, replace."""
    message, field = rng.choice(list(_fields(model)))
    if field.is_repeated:
        _damage_list(getattr(message, field.name), field, model, rng)
    # Without its number an attribute passes onnx's checker, and is another one to each runtime.
    elif field.name not in ("f", "i") and rng.random() < 0.2:
        message.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(message, field.name).CopyFrom(_like(getattr(message, field.name), model, rng))
    else:
        setattr(message, field.name, _scalar(getattr(message, field.name), field, model, rng))


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change, drop or repeat some bytes, or cut the end off."""
    at = rng.randrange(len(content))
    length = rng.choice((1, 1, 2, 8, 64))
    return rng.choice(
        (
            content[:at],
            content[:at] + content[at + length :],
            content[: at + length] + content[at:],
            content[:at] + rng.randbytes(length) + content[at + length :],
            content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
        )
    )


def damage_wire(model: onnx.ModelProto, rng: random.Random) -> bytes:
    """Write a field of the model twice: readers merge what comes again, or take the last."""
    again = onnx.ModelProto()
    field, value = rng.choice(model.ListFields())
    if field.message_type is not None and not field.is_repeated:
        part = rng.choice(list(_messages(value)))
        if type(part) is type(value):
            getattr(again, field.name).CopyFrom(part)
        kept, _ = rng.choice(value.ListFields())
        for other, _ in value.ListFields():
            if other.name != kept.name:
                getattr(again, field.name).ClearField(other.name)
    elif field.is_repeated:
        getattr(again, field.name).append(rng.choice(value))
    else:
        setattr(again, field.name, _scalar(value, field, model, rng))
    first, second = model.SerializePartialToString(), again.SerializePartialToString()
    return second + first if rng.random() < 0.3 else first + second


def damage_meaning(model: onnx.ModelProto, rng: random.Random) -> None:
    """Connect, name, call or declare something else, so that the model may stay valid."""
    nodes = list(model_nodes(model))
    node = rng.choice(nodes) if nodes else None
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    change = rng.choice(("edge", "operator", "length", "type", "function", "attribute", "many"))
    if change == "edge" and node is not None and node.input:
        names = [name for each in nodes for name in (*each.input, *each.output)]
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif change == "operator" and node is not None:
        node.op_type = rng.choice([each.op_type for each in nodes])
    elif change == "length" and values:
        dims = rng.choice(values).type.tensor_type.shape.dim
        if dims:
            rng.choice(dims).dim_value = rng.choice((*_INTEGERS, 512, 2**20, 2**33))
    elif change == "type" and values:
        rng.choice(values).type.tensor_type.elem_type = rng.choice((1, 6, 7, 9, 10, 11, 16))
    elif change == "function" and model.functions:
        function = rng.choice(model.functions)
        name, domain = rng.choice([(each.op_type, each.domain) for each in nodes])
        for each in nodes:
            if (each.domain, each.op_type) == (function.domain, function.name):
                each.domain, each.op_type = domain, name
        function.domain, function.name = domain, name
    elif change == "attribute" and node is not None:
        name, value = rng.choice(("axis", "epsilon", "keepdims", "to", "perm")), rng.choice(_INTEGERS)
        node.attribute.append(helper.make_attribute(name, rng.choice((value, [value] * 3, float(value % 7)))))
    elif change == "many" and node is not None:
        node.input.extend(list(node.input[:1]) * rng.choice((1, 7, 300)))


def damage_external_data(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change where a tensor says that its data is."""
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    if not entries:
        return
    entry = rng.choice(entries)
    entry.value = rng.choice(("", ".", "..", "/dev/zero", "../x", "a\0b", "-1", "0", str(2**63), "1e3", "9" * 40, "x"))


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                yield from _messages(each)


def _fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    return ((each, field) for each in _messages(message) for field, _ in each.ListFields())


def _damage_list(values: Any, field: FieldDescriptor, model: onnx.ModelProto, rng: random.Random) -> None:
    index, other = rng.randrange(len(values)), rng.randrange(len(values))
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    change = rng.choice(("drop", "repeat", "swap", "replace", "move"))
    kept = list(values)
    if change == "drop":
        del kept[index]
    elif change == "repeat":
        kept.append(kept[index])
    elif change == "swap":
        kept[index], kept[other] = kept[other], kept[index]
    elif change == "move":
        kept.insert(other, kept.pop(index))
    else:
        kept[index] = _like(kept[index], model, rng) if is_message else _scalar(kept[index], field, model, rng)
    kept = [_copy(value) for value in kept] if is_message else kept
    del values[:]
    values.extend(kept)


def _like(message: Message, model: onnx.ModelProto, rng: random.Random) -> Message:
    """Return a copy of another message of the same type from the model."""
    return _copy(rng.choice([each for each in _messages(model) if type(each) is type(message)]))


def _copy(message: Message) -> Message:
    return type(message).FromString(message.SerializePartialToString())


def _scalar(value: Any, field: FieldDescriptor, model: onnx.ModelProto, rng: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice((*_STRINGS, *_strings(model)))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return damage_bytes(value, rng) if value else b"x"
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number))
    if isinstance(value, float):
        return rng.choice((*_FLOATS, -value, 2 * value))
    low, high = _RANGES[field.type]
    return min(max(rng.choice((*_INTEGERS, value + 1, value - 1, -value)), low), high)


_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def _strings(model: onnx.ModelProto) -> list[str]:
    """Return the names of values, domains, operators and attributes."""
    names: list[str] = []
    for node in model_nodes(model):
        names += [*node.input, *node.output, node.op_type, node.domain, *(each.name for each in node.attribute)]
    return names
