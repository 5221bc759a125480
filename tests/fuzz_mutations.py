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
from lnbp_onnx.protos import model_nodes

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
