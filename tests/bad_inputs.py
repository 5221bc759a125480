# SPDX-License-Identifier: Apache-2.0
"""The table of what every way of running the operator refuses, with the sentence that says so.

As a program (``python bad_inputs.py KERNEL...``) it runs the table through the kernels and prints what came of each
entry, a line of JSON each: a test can see which entry ended the process.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper

from lnbp_onnx import spec
from lnbp_onnx.running import native
from lnbp_onnx.running.session import inference_session

INPUTS = {
    "input_forward": (TensorProto.FLOAT, (3, 4)),
    "output_delta": (TensorProto.FLOAT, (3, 4)),
    "gamma": (TensorProto.FLOAT, (4,)),
    "beta": (TensorProto.FLOAT, (4,)),
    "mean": (TensorProto.FLOAT, (3,)),
    "variance": (TensorProto.FLOAT, (3,)),
}


@dataclass(frozen=True)
class BadInput:
    """A node that differs from a good one.

    Attributes:
        sentence: What every message says after the node's name, to the last word: the same in Python and in C++.
        attributes: The node's; those left out take their defaults.
        inputs: Element type and shape of those that differ from `INPUTS`; None for one that is omitted.
        outputs: The node's.
        other: What the messages of some ways hold instead; None for a way that takes the node.
    """

    name: str
    sentence: str
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, tuple[int, tuple[int, ...]] | None] = field(default_factory=dict)
    outputs: tuple[str, ...] = spec.OUTPUT_NAMES
    other: dict[str, str | None] = field(default_factory=dict)

    @property
    def present(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {name: value for name, value in {**INPUTS, **self.inputs}.items() if value is not None}

    @property
    def is_for_make_node(self) -> bool:
        """Whether what is wrong can be told from the arguments of ``make_node``, which has no types and shapes."""
        known = {attribute.name for attribute in spec.ATTRIBUTES}
        refused_as_node = set(self.attributes) <= known and not any(self.inputs.values())
        return refused_as_node and not self.name.endswith("-type") and not self.name.startswith("axis-")

    def node(self) -> NodeProto:
        names = [name if name in self.present else "" for name in INPUTS]
        return helper.make_node(
            spec.OP_TYPE, names, self.outputs, name="norm_grad", domain=spec.DOMAIN, **self.attributes
        )

    def model(self, shapes_known: bool = True) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, element_type, shape if shapes_known else None)
            for name, (element_type, shape) in self.present.items()
        ]
        sources = {**INPUTS, **self.present}
        outputs = [
            helper.make_tensor_value_info(output, sources[like][0], [f"{output}_{axis}" for axis in sources[like][1]])
            for output, like in zip(self.outputs, ("input_forward", "gamma", "gamma"), strict=False)
            if output
        ]
        graph = helper.make_graph([self.node()], "bad", inputs, outputs)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(spec.DOMAIN, spec.OP_VERSION)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def feeds(self) -> dict[str, np.ndarray]:
        return {
            name: np.ones(shape, helper.tensor_dtype_to_np_dtype(element_type))
            for name, (element_type, shape) in self.present.items()
        }

    def expected(self, way: str) -> str | None:
        """Return what a way's message must hold, or None where it takes the node."""
        return self.other.get(way, f"{spec.OP_TYPE} node 'norm_grad': {self.sentence}")


def _attributes() -> Iterator[BadInput]:
    for axis in (-3, 2, 2**40):
        yield BadInput(
            f"axis-{axis}",
            f"attribute 'begin_norm_axis' is {axis}; with input_forward of rank 2 it must be in [-2, 1] "
            "(the last axis is -1).",
            {"begin_norm_axis": axis},
        )
    for epsilon in (-1.0, float("inf"), float("nan")):
        yield BadInput(
            f"epsilon-{epsilon}",
            f"attribute 'epsilon' is {epsilon:g}; it must be finite and at least 0 (the usual value is 1e-5).",
            {"epsilon": epsilon},
        )
    yield BadInput(
        "epsilon-0-computed",
        "attribute 'epsilon' is 0; it must be finite and greater than 0, since use_stats is 0 "
        "(the usual value is 1e-5).",
        {"epsilon": 0.0, "use_stats": 0},
    )
    for name in ("use_affine", "use_stats"):
        for value in (2, -1):
            yield BadInput(
                f"{name}-{value}",
                f"attribute '{name}' is {value}; it must be 0 or 1 (set one of them).",
                {name: value},
            )
    integer, real = "it must be INT (write it as an integer).", "it must be FLOAT (write it as a float)."
    of_other_types: dict[str, tuple[Any, str, str]] = {
        "begin_norm_axis": (1.0, "FLOAT", integer),
        "use_affine": ("yes", "STRING", integer),
        "use_stats": ([1], "INTS", integer),
        "epsilon": (1, "INT", real),
    }
    for name, (given, found, wanted) in of_other_types.items():
        yield BadInput(
            f"{name}-type",
            f"attribute '{name}' has type {found}; {wanted}",
            {name: given},
            other={"checker": "Mismatched attribute"},
        )
    yield BadInput(
        "unknown-attribute",
        "attribute 'momentum' is not one of the operator's, which are begin_norm_axis, epsilon, use_affine, use_stats "
        "(remove it).",
        {"momentum": 0.9},
        # ONNX Runtime hides it from the kernel.
        other={"checker": "Unrecognized attribute: momentum", "native": None, "plain": None, "extensions": None},
    )


def _presence() -> Iterator[BadInput]:
    checker: dict[str, str | None] = {"checker": "is marked single but has an empty string"}
    computed = " with use_stats=1 (connect it, or set use_stats=0 to have it computed)."
    for name, required in (
        ("input_forward", " (connect it)."),
        ("output_delta", " (connect it)."),
        ("gamma", " with use_affine=1 (connect it, or set use_affine=0)."),
        ("mean", computed),
        ("variance", computed),
    ):
        yield BadInput(
            f"no-{name}",
            f"input '{name}' is missing; it is required{required}",
            inputs={name: None},
            other=checker if name in ("input_forward", "output_delta") else {},
        )
    yield BadInput(
        "no-input_delta",
        "output 'input_delta' is omitted; it is required (give it a name, used or not).",
        outputs=("", "g", "b"),
        other=checker,
    )
    for outputs in (("d", "g"), ("d", "", "b")):
        name = spec.OUTPUT_NAMES[len(outputs) - 1]
        yield BadInput(
            f"{name}-plain",
            f"output '{name}' is requested with use_affine=0; it exists only with use_affine=1 "
            "(leave it out, or set use_affine=1 and connect gamma).",
            {"use_affine": 0},
            outputs=outputs,
        )


def _types() -> Iterator[BadInput]:
    double, half, integer = TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32
    # ONNX Runtime finds no kernel; what inference_session raises names the culprit.
    other: dict[str, str | None] = {"plain": "norm_grad"}
    one_type = "the two must have one type (cast one of them)."
    yield BadInput(
        "output_delta-type",
        f"input 'output_delta' has type double and 'input_forward' has float; {one_type}",
        inputs={"output_delta": (double, (3, 4))},
        other=other,
    )
    yield BadInput(
        "beta-type",
        f"input 'beta' has type float16 and 'gamma' has float; {one_type}",
        inputs={"beta": (half, (4,))},
        other=other,
    )
    yield BadInput(
        "variance-type",
        f"input 'variance' has type int32 and 'mean' has float; {one_type}",
        inputs={"variance": (integer, (3,))},
        other=other,
    )
    yield BadInput(
        "gamma-and-beta-type",
        "input 'gamma' has type double; it must be float (cast it).",
        inputs={"gamma": (double, (4,)), "beta": (double, (4,))},
        other=other,
    )
    yield BadInput(
        "statistics-type",
        "input 'mean' has type float16; it must be float (cast it).",
        inputs={"mean": (half, (3,)), "variance": (half, (3,))},
        other=other,
    )
    boolean = TensorProto.BOOL
    yield BadInput(
        "boolean",
        f"input 'input_forward' has type bool; it must be one of {', '.join(map(spec.type_name, spec.ELEMENT_TYPES))} "
        "(cast it).",
        inputs={"input_forward": (boolean, (3, 4)), "output_delta": (boolean, (3, 4))},
        other=other,
    )


def _shapes() -> Iterator[BadInput]:
    number = TensorProto.FLOAT
    yield BadInput(
        "scalar",
        "input 'input_forward' is a scalar; it must have at least one axis (reshape it to [1]).",
        inputs=dict.fromkeys(INPUTS, (number, ())),
    )
    delta = (
        " and input_forward [3, 4]; the two must be equal (connect the gradient with respect to the normalised output)."
    )
    parameter = (
        "; it must broadcast to the normalised axes [4], or be 1-D with as many elements as they have "
        "(reshape it, or move begin_norm_axis)."
    )
    statistic = "; it must be [3], [3, 1], or 1-D with one element for each row (reshape it, or move begin_norm_axis)."
    for name, shape, wanted in (
        ("output_delta", (4, 3), delta),
        ("output_delta", (12,), delta),
        ("output_delta", (1, 3, 4), delta),
        ("gamma", (3,), parameter),
        ("gamma", (1, 1, 4), parameter),
        ("gamma", (3, 4), parameter),
        ("gamma", (0,), parameter),
        ("beta", (5,), parameter),
        ("mean", (4,), statistic),
        ("mean", (), statistic),
        ("mean", (1, 3), statistic),
        ("variance", (3, 4), statistic),
        ("variance", (3, 1, 1), statistic),
        ("variance", (1,), statistic),
    ):
        label = "x".join(map(str, shape)) or "scalar"
        found = f"[{', '.join(map(str, shape))}]"
        yield BadInput(f"{name}-{label}", f"input '{name}' has shape {found}{wanted}", inputs={name: (number, shape)})


BAD_INPUTS = [*_attributes(), *_presence(), *_types(), *_shapes()]
GOOD_INPUT = BadInput("good", "")
assert len({bad.name for bad in BAD_INPUTS}) == len(BAD_INPUTS)


def outcome(bad: BadInput, kernel: Any, shapes_known: bool) -> str | None:
    """Return how a kernel's refusal reads, with the exception's name, or None where it takes the node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model = bad.model(shapes_known)
    try:
        if kernel == "plain":
            options.register_custom_ops_library(native.get_library_path())
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        else:
            session = inference_session(model, kernel=kernel, sess_options=options)
        session.run(None, bad.feeds())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    for kernel, shapes_known in itertools.product(sys.argv[1:], (True, False)):
        for entry in (*BAD_INPUTS, GOOD_INPUT):
            result = outcome(entry, kernel, shapes_known)
            print(json.dumps([kernel, entry.name, shapes_known, result]), flush=True)
