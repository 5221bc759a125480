# SPDX-License-Identifier: Apache-2.0
"""Gradients of recurrent layers, which become loops: the loops against ONNX Runtime's layers, gradients in double."""

from typing import Any

import numpy as np
import onnx
import pytest
from finite_differences import run_in_onnxruntime
from onnx import ModelProto, helper

import lnbp_onnx

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTH, BATCH, WIDTH, SIZE = 4, 3, 2, 3
STATES = {"LSTM": "Y Y_h Y_c", "GRU": "Y Y_h", "RNN": "Y Y_h"}


def drawn(op_type: str, inputs: str, directions: int) -> dict[str, Any]:
    gates = GATES[op_type]
    shapes: dict[str, tuple[int, ...]] = {
        "X": (LENGTH, BATCH, WIDTH),
        "W": (directions, gates * SIZE, WIDTH),
        "R": (directions, gates * SIZE, SIZE),
        "B": (directions, 2 * gates * SIZE),
        "h": (directions, BATCH, SIZE),
        "c": (directions, BATCH, SIZE),
        "P": (directions, 3 * SIZE),
    }
    rng = np.random.default_rng(5)
    lengths = np.array([4, 1, 2], np.int32)
    return {name: lengths if name == "lengths" else rng.normal(size=shapes[name]) for name in inputs.split()}


def model_of(
    op_type: str, inputs: str, given: dict[str, Any], dtype: Any, settings: dict[str, Any], outputs: str
) -> ModelProto:
    """A model whose loss is the sum of the squares of what the layer gives."""
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = outputs.split()
    nodes = [
        helper.make_node(op_type, inputs.split(" "), outputs.split(" "), hidden_size=SIZE, **settings),
        *(helper.make_node("ReduceSumSquare", [name], [f"{name}_s"], keepdims=0) for name in names),
        helper.make_node("Sum", [f"{name}_s" for name in names], ["loss"]),
    ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [
            helper.make_tensor_value_info(
                name, onnx.TensorProto.INT32 if name == "lengths" else element_type, value.shape
            )
            for name, value in given.items()
        ],
        [helper.make_tensor_value_info("loss", element_type, [])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LSTM": ("LSTM", "X W R", {}),
    "LSTM with everything": ("LSTM", "X W R B lengths h c P", {"direction": "bidirectional"}),
    "LSTM backwards": ("LSTM", "X W R B  h c", {"direction": "reverse"}),
    "LSTM of other activations": ("LSTM", "X W R B", {"activations": ["Tanh", "Relu", "Sigmoid"]}),
    "GRU": ("GRU", "X W R B", {}),
    "GRU of torch": ("GRU", "X W R B lengths h", {"direction": "bidirectional", "linear_before_reset": 1}),
    "GRU without biases": ("GRU", "X W R", {"linear_before_reset": 1}),
    "GRU backwards": ("GRU", "X W R  lengths", {"direction": "reverse"}),
    "RNN": ("RNN", "X W R B  h", {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}),
}


def cast(given: dict[str, Any], dtype: Any) -> dict[str, Any]:
    return {name: value if value.dtype == np.int32 else value.astype(dtype) for name, value in given.items()}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    op_type, inputs, settings = CASES[name]
    directions = 1 + (settings.get("direction") == "bidirectional")
    given = drawn(op_type, inputs, directions)
    sources = [each for each in given if each != "lengths"]

    floats = cast(given, np.float32)
    model = model_of(op_type, inputs, floats, np.float32, settings, STATES[op_type])
    result = lnbp_onnx.gradient(model, of="loss", wrt=sources)
    onnx.checker.check_model(result, full_check=True)
    of_layer, of_loop = (run_in_onnxruntime(each, floats) for each in (model, result))
    np.testing.assert_allclose(of_loop["loss"], of_layer["loss"], rtol=1e-5)

    in_double = lnbp_onnx.gradient(
        model_of(op_type, inputs, given, np.float64, settings, STATES[op_type]), of="loss", wrt=sources
    )
    session = lnbp_onnx.inference_session(in_double)
    names = [output.name for output in session.get_outputs()]
    gradients = dict(zip(names, session.run(names, given), strict=True))
    rng = np.random.default_rng(1)
    for source in sources:
        direction = rng.normal(size=given[source].shape)
        high, low = (
            session.run(["loss"], {**given, source: given[source] + step * direction})[0] for step in (1e-6, -1e-6)
        )
        found = np.sum(gradients[f"{source}.grad"] * direction)
        np.testing.assert_allclose(found, (high - low) / 2e-6, rtol=1e-5, atol=1e-7, err_msg=source)
        largest = abs(gradients[f"{source}.grad"]).max()
        np.testing.assert_allclose(of_loop[f"{source}.grad"], gradients[f"{source}.grad"], atol=1e-5 * largest)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_batch_first_and_one_output(op_type: str) -> None:
    """ONNX Runtime has no layout of 1: the same numbers as with the axes in the other order."""
    given = drawn(op_type, "X W R h", 1)
    turned = {**given, "X": given["X"].transpose(1, 0, 2), "h": given["h"].transpose(1, 0, 2)}
    found = []
    for feeds, layout in ((given, 0), (turned, 1)):
        model = model_of(op_type, "X W R   h", feeds, np.float64, {"layout": layout}, " Y_h")
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        result = lnbp_onnx.gradient(model, of="loss", wrt=["X", "W", "R", "h"])
        found.append(run_in_onnxruntime(result, feeds))
    found[1]["X.grad"], found[1]["h.grad"] = (found[1][name].transpose(1, 0, 2) for name in ("X.grad", "h.grad"))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("op_type", GATES)
def test_a_sequence_without_steps(op_type: str, direction: str) -> None:
    """Its last states are 0 in ONNX Runtime, whatever they begin with."""
    inputs = "X W R B lengths h" + (" c" if op_type == "LSTM" else "")
    given = {**cast(drawn(op_type, inputs, 1), np.float32), "lengths": np.array([4, 0, 2], np.int32)}
    model = model_of(op_type, inputs, given, np.float32, {"direction": direction}, STATES[op_type])
    result = lnbp_onnx.gradient(model, of="loss", wrt=["X", "h"])
    of_layer, of_loop = (run_in_onnxruntime(each, given) for each in (model, result))
    np.testing.assert_allclose(of_loop["loss"], of_layer["loss"], rtol=1e-5)
    assert not of_loop["h.grad"][0, 1].any()
    assert of_loop["h.grad"][0, [0, 2]].all()


REFUSED: dict[str, dict[str, Any]] = {
    "its attribute clip": {"clip": 1.0},
    "its attribute input_forget": {"input_forget": 1},
    "its attribute direction is 'both'": {"direction": "both"},
    "it has 2 activations, and needs 3": {"activations": ["Sigmoid", "Tanh"]},
    "its activation Affine": {"activations": ["Affine", "Tanh", "Tanh"]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_covered(message: str) -> None:
    model = model_of("LSTM", "X W R", drawn("LSTM", "X W R", 1), np.float64, REFUSED[message], "Y")
    with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
        lnbp_onnx.gradient(model, of="loss", wrt=["X"])


@pytest.mark.parametrize("op_type", GATES)
def test_gradients_are_torchs(op_type: str) -> None:
    torch = pytest.importorskip("torch")
    given = drawn(op_type, "X W R B", 2)
    layer = getattr(torch.nn, op_type)(WIDTH, SIZE, bidirectional=True).double()
    # Of i, o, f, c torch has the order i, f, c, o; of z, r, h r, z, h.
    order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[op_type]

    def reordered(value: Any) -> Any:
        return np.concatenate([value[place * SIZE : (place + 1) * SIZE] for place in order])

    for place, suffix in enumerate(("", "_reverse")):
        parts = {"weight_ih_l0": given["W"][place], "weight_hh_l0": given["R"][place]}
        parts["bias_ih_l0"], parts["bias_hh_l0"] = np.split(given["B"][place], 2)
        for key, value in parts.items():
            getattr(layer, key + suffix).data = torch.tensor(reordered(value))
    x = torch.tensor(given["X"], requires_grad=True)
    whole, states = layer(x)
    (sum(each.square().sum() for each in (whole, *(states if op_type == "LSTM" else [states])))).backward()

    settings = {"direction": "bidirectional", **({"linear_before_reset": 1} if op_type == "GRU" else {})}
    model = model_of(op_type, "X W R B", given, np.float64, settings, STATES[op_type])
    found = run_in_onnxruntime(lnbp_onnx.gradient(model, of="loss", wrt=["X", "W", "R", "B"]), given)
    np.testing.assert_allclose(found["X.grad"], x.grad.numpy(), rtol=1e-10)
    for place, suffix in enumerate(("", "_reverse")):
        for key, value in (("weight_ih_l0", found["W.grad"]), ("weight_hh_l0", found["R.grad"])):
            expected = getattr(layer, key + suffix).grad.numpy()
            np.testing.assert_allclose(reordered(value[place]), expected, rtol=1e-10, atol=1e-12)
