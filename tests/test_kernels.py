# SPDX-License-Identifier: Apache-2.0
"""The three kernels in ONNX Runtime: what they compute, which one ran, and how sessions are made."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cases import CASES, OUTPUTS, SMALL_CASES, Case
from onnx import TensorProto, helper, numpy_helper
from sessions import session_options

import lnbp_onnx
from lnbp_onnx.running import extensions, native, python
from lnbp_onnx.running.runners import run_session
from lnbp_onnx.running.session import KERNELS, Kernel, inference_session

Outputs = dict[str, np.ndarray]

DOMAINS = {"native": "lnbp", "extensions": "ai.onnx.contrib", "python": "lnbp.python"}
LARGE_CASES = [case for case in CASES if case not in SMALL_CASES]
CASE = next(case for case in SMALL_CASES if case.name == "columns-65")


def plain_session(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Make a session as one does without inference_session."""
    options.register_custom_ops_library(native.get_library_path())
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def operator_domains(model: onnx.ModelProto) -> list[str]:
    """Return the domains of the operator's nodes, wherever they are."""
    found, stack = [], [model.graph.node, *(function.node for function in model.functions)]
    while stack:
        for node in stack.pop():
            if node.op_type == "LayerNormBackprop":
                found.append(node.domain)
            stack += [graph.node for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return found


def varied_cases() -> list[Case]:
    families = ("axes", "gamma", "stats", "empty", "outputs", "types")
    return [case for case in SMALL_CASES if case.name.split("-")[0] in families]


@pytest.mark.product
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shapes", ["symbolic", "unknown"])
@pytest.mark.parametrize("case", varied_cases(), ids=lambda case: case.name)
def test_shapes_known_only_at_run_time(case: Case, kernel: Kernel, shapes: str) -> None:
    session = inference_session(case.model(shapes=shapes), kernel=kernel, sess_options=session_options())
    case.check(run_session(session, case.feeds(shapes)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_profiling_shows_the_node(kernel: Kernel, tmp_path: Path) -> None:
    options = session_options(enable_profiling=True, profile_file_prefix=str(tmp_path / "profile"))
    session = inference_session(CASE.model(), kernel=kernel, sess_options=options)
    run_session(session, CASE.arrays())
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    nodes = {(arguments["op_name"], arguments["provider"]) for arguments in ran}
    assert nodes == {("LayerNormBackprop", "CPUExecutionProvider")}


@pytest.mark.parametrize("kernel", ["native", "extensions"])
def test_parameter_gradients_over_many_rows(kernel: Kernel) -> None:
    case = Case("tall", (100_000, 64))
    found = run_session(inference_session(case.model(), kernel=kernel), case.arrays())
    for name, exact in case.oracle()[0].items():
        if name != "input_delta":
            assert np.abs(found[name] - exact).max() <= 3e-6 * np.sqrt(np.mean(exact**2))


# The same bits, however it is run.


def assert_same_bits(found: Outputs, expected: Outputs) -> None:
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in expected.items()
    }


@pytest.mark.product
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_threads_do_not_change_a_bit(case: Case, threads: int) -> None:
    one, more = (
        run_session(
            inference_session(case.model(), sess_options=session_options(intra_op_num_threads=count)), case.arrays()
        )
        for count in (1, threads)
    )
    assert_same_bits(more, one)


@pytest.mark.product
def test_sessions_at_once_do_not_change_a_bit(share: str) -> None:
    cases = [*(LARGE_CASES if share == "whole" else LARGE_CASES[::4]), *SMALL_CASES[::5]]
    feeds = [case.arrays() for case in cases]
    models = [case.model() for case in cases]

    def run_all(count: int) -> list[Outputs]:
        options = session_options(intra_op_num_threads=count)
        return [
            run_session(inference_session(model, sess_options=options), arrays)
            for model, arrays in zip(models, feeds, strict=True)
        ]

    expected = run_all(1)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for results in pool.map(run_all, [1, 2, 3, 7, 1, 2, 3, 7]):
            for result, wanted in zip(results, expected, strict=True):
                assert_same_bits(result, wanted)


def test_repetitions_do_not_change_a_bit() -> None:
    case = Case("repeated", (256, 192), stats=False)
    session = inference_session(case.model(), sess_options=session_options(intra_op_num_threads=3))
    expected = run_session(session, case.arrays())
    feeds = case.arrays()
    for _ in range(1000):
        assert_same_bits(run_session(session, feeds), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_session_in_many_threads(kernel: Kernel) -> None:
    session = inference_session(CASE.model(), kernel=kernel)
    expected = run_session(session, CASE.arrays())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: run_session(session, CASE.arrays()), range(64)):
            assert_same_bits(result, expected)


def test_all_kernels_at_once() -> None:
    def run_one(number: int) -> None:
        case = SMALL_CASES[number]
        session = inference_session(case.model(), kernel=KERNELS[number % 3])
        case.check(run_session(session, case.arrays()))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(run_one, range(48)))


# Buffers of the caller's own, and sessions that come and go.


def bound_outputs(case: Case, odd_bytes: int, **places: tuple[str, int]) -> Outputs:
    """Run a case with its buffers so many bytes past a line; `places` lays an output over an input, shifted."""
    session = inference_session(case.model(), sess_options=session_options())
    binding = session.io_binding()
    memory: dict[str, np.ndarray] = {}

    def reserve(name: str, size: int) -> None:
        raw = np.zeros(size + 256, np.uint8)
        memory[name] = raw[64 - raw.ctypes.data % 64 + odd_bytes :]

    arrays = case.arrays()
    for name, array in arrays.items():
        reserve(name, array.nbytes)
        memory[name][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, memory[name].ctypes.data)
    likes = {name: arrays[like] for name, like in zip(OUTPUTS, ("input_forward", "gamma", "gamma"), strict=True)}
    for name, like in likes.items():
        if name in places:
            place, shift = places[name]
            memory[name] = memory[place][shift:]
        else:
            reserve(name, like.nbytes)
        binding.bind_output(name, "cpu", 0, like.dtype.type, like.shape, memory[name].ctypes.data)
    session.run_with_iobinding(binding)
    return {
        name: np.frombuffer(memory[name][: like.nbytes].tobytes(), like.dtype).reshape(like.shape)
        for name, like in likes.items()
    }


@pytest.mark.parametrize(
    ("case", "odd_bytes", "places"),
    [
        (Case("past-the-cache", (800, 4096)), 1, {}),
        (Case("past-the-cache-double", (400, 4096), t="double"), 4, {}),
        (Case("by-columns", (3, 9000), t="float16"), 1, {}),
        (Case("over-input", (70, 300)), 2, {"input_delta": ("input_forward", 0), "gamma_delta": ("gamma", 0)}),
        (Case("in-place", (70, 300), t="float16", stats=False), 3, {"input_delta": ("output_delta", 0)}),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_buffers_at_any_address(case: Case, odd_bytes: int, places: dict[str, tuple[str, int]]) -> None:
    case.check(bound_outputs(case, odd_bytes, **places))


@pytest.mark.parametrize("shift", [1, 4])
def test_an_output_that_overlaps_an_input(shift: int) -> None:
    message = "output 'input_delta' overlaps that of input 'output_delta'; it must be memory of its own"
    with pytest.raises(Exception, match=message):
        bound_outputs(CASE, 0, input_delta=("output_delta", shift))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_in_turn_do_not_grow() -> None:
    program = Path(__file__).with_name("growth.py")
    process = subprocess.run([sys.executable, program, "1000"], capture_output=True, text=True, check=True)
    first, last = (int(line.split()[1]) for line in process.stdout.splitlines())
    assert last <= 1.02 * first, process.stdout


# Where the node is.


def model_of(
    nodes: list[onnx.NodeProto], types: Mapping[str, int], functions: list[onnx.FunctionProto], **kwargs: Any
) -> onnx.ModelProto:
    """Return a model with (5, 16) inputs x and dy, (16,) gamma, (5,) mean and variance of each type, and outputs dx."""
    shapes = {"x": [5, 16], "dy": [5, 16], "gamma": [16], "mean": [5], "variance": [5]}
    inputs = [
        helper.make_tensor_value_info(f"{name}{suffix}", element_type, shape)
        for suffix, element_type in types.items()
        for name, shape in shapes.items()
    ]
    inputs += kwargs.get("inputs", [])
    outputs = [
        helper.make_tensor_value_info(f"dx{suffix}", element_type, [5, 16]) for suffix, element_type in types.items()
    ]
    graph = helper.make_graph(nodes, "model", inputs, outputs)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 17), ("lnbp", 1), ("test", 1))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def draw(suffixes: dict[str, np.dtype]) -> Outputs:
    arrays: Outputs = {}
    for suffix, dtype in suffixes.items():
        case = Case(f"drawn{suffix}", (5, 16), t={"float32": "float", "float64": "double"}.get(dtype.name, dtype.name))
        names = {"input_forward": "x", "output_delta": "dy"}
        arrays |= {f"{names.get(name, name)}{suffix}": value for name, value in case.arrays().items() if name != "beta"}
    return arrays


def expected_dx(feeds: Outputs, suffix: str = "", **attributes: Any) -> np.ndarray:
    x, dy, gamma, mean, variance = (feeds[f"{name}{suffix}"] for name in ("x", "dy", "gamma", "mean", "variance"))
    return lnbp_onnx.layer_norm_backprop(x, dy, gamma, None, mean, variance, **attributes)[0]


def operator(suffix: str = "", output: str = "dx", **attributes: Any) -> onnx.NodeProto:
    return lnbp_onnx.make_node(
        f"x{suffix}",
        f"dy{suffix}",
        gamma=f"gamma{suffix}",
        mean=f"mean{suffix}",
        variance=f"variance{suffix}",
        outputs=[f"{output}{suffix}"],
        **attributes,
    )


FLOAT = np.dtype(np.float32)


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_a_subgraph(kernel: Kernel, tmp_path: Path) -> None:
    output = helper.make_tensor_value_info("taken", TensorProto.FLOAT, [5, 16])
    branches = {
        "then_branch": helper.make_graph([operator(output="taken")], "then", [], [output]),
        "else_branch": helper.make_graph([operator(output="taken", epsilon=0.5)], "else", [], [output]),
    }
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    node = helper.make_node("If", ["condition"], ["dx"], **branches)
    model = model_of([node], {"": TensorProto.FLOAT}, [], inputs=[condition])
    options = session_options(optimized_model_filepath=str(tmp_path / "optimized.onnx"))
    session = inference_session(model, kernel=kernel, sess_options=options)
    feeds = draw({"": FLOAT})
    for taken, epsilon in ((True, 1e-5), (False, 0.5)):
        found = session.run(None, {**feeds, "condition": np.array(taken)})[0]
        np.testing.assert_allclose(found, expected_dx(feeds, epsilon=epsilon), rtol=1e-5, atol=1e-6)
    assert operator_domains(onnx.load(tmp_path / "optimized.onnx")) == [DOMAINS[kernel]] * 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_a_function_of_several_types(kernel: Kernel) -> None:
    body = operator()
    del body.attribute[:]
    reference = helper.make_attribute("epsilon", 0.0)
    reference.ClearField("f")
    reference.ref_attr_name = "eps"
    body.attribute.append(reference)
    names = ["x", "dy", "gamma", "mean", "variance"]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1)]
    function = helper.make_function("test", "Grad", names, ["dx"], [body], imports, attributes=["eps"])
    types = {"_f": TensorProto.FLOAT, "_d": TensorProto.DOUBLE, "_h": TensorProto.FLOAT16}
    calls = [
        helper.make_node("Grad", [f"{name}{suffix}" for name in names], [f"dx{suffix}"], domain="test", eps=epsilon)
        for suffix, epsilon in zip(types, (1e-3, 0.5, 0.25), strict=True)
    ]
    session = inference_session(model_of(calls, types, [function]), kernel=kernel)
    feeds = draw({suffix: helper.tensor_dtype_to_np_dtype(element_type) for suffix, element_type in types.items()})
    for suffix, found, epsilon in zip(types, session.run(None, feeds), (1e-3, 0.5, 0.25), strict=True):
        tolerance = {"_f": 1e-5, "_d": 1e-12, "_h": 2e-3}[suffix]
        expected = expected_dx(feeds, suffix, epsilon=epsilon)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def function_of_the_operator() -> onnx.FunctionProto:
    """Return a model-local function that stands for the operator, and gives zeros."""
    names = [parameter.name for parameter in lnbp_onnx.spec.INPUTS]
    body = [helper.make_node("Sub", ["input_forward", "input_forward"], ["input_delta"])]
    return helper.make_function(
        "lnbp", "LayerNormBackprop", names, ["input_delta"], body, [helper.make_opsetid("", 17)]
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_comes_before_a_function_of_its_name(kernel: Kernel) -> None:
    model = model_of([operator()], {"": TensorProto.FLOAT}, [function_of_the_operator()])
    feeds = draw({"": FLOAT})
    found = inference_session(model, kernel=kernel).run(None, feeds)[0]
    np.testing.assert_allclose(found, expected_dx(feeds), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_model_without_the_operator(kernel: Kernel) -> None:
    model = model_of([helper.make_node("Add", ["x", "dy"], ["dx"])], {"": TensorProto.FLOAT}, [])
    feeds = draw({"": FLOAT})
    np.testing.assert_array_equal(inference_session(model, kernel=kernel).run(None, feeds)[0], feeds["x"] + feeds["dy"])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_model_that_imports_the_operators_domain_alone(kernel: Kernel) -> None:
    model = Case("alone", (5, 16), t="int8").model()
    del model.opset_import[0]
    case = Case("alone", (5, 16), t="int8")
    case.check(run_session(inference_session(model, kernel=kernel), case.arrays()))


def test_unused_inputs_of_other_types() -> None:
    """The Python kernel ignores them; to ONNX Runtime they are part of the C++ kernel's signature."""
    node = operator(use_affine=False)
    node.input[2] = "text"
    text = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    model = model_of([node], {"": TensorProto.FLOAT}, [], inputs=[text])
    feeds = {**draw({"": FLOAT}), "text": np.array(["unused"])}
    found = inference_session(model, kernel="python").run(None, feeds)[0]
    np.testing.assert_allclose(found, expected_dx(feeds, use_affine=False), rtol=1e-5, atol=1e-6)
    for kernel in ("native", "extensions"):
        with pytest.raises(lnbp_onnx.InvalidModelError, match="text"):
            inference_session(model, kernel=kernel, sess_options=session_options())


# What a session is made of.


def as_ir(model: onnx.ModelProto, _: Path) -> ir.Model:
    return ir.from_proto(model)


def as_path(model: onnx.ModelProto, folder: Path, suffix: str = ".onnx") -> Path:
    path = folder / f"model{suffix}"
    onnx.save(model, path)
    return path


FORMS: dict[str, Callable[[onnx.ModelProto, Path], Any]] = {
    "proto": lambda model, _: model,
    "ir": as_ir,
    "path": as_path,
    "str": lambda model, folder: str(as_path(model, folder)),
    "text": lambda model, folder: as_path(model, folder, ".textproto"),
    "bytes": lambda model, _: model.SerializeToString(),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_model(form: str, kernel: Kernel, tmp_path: Path) -> None:
    model = FORMS[form](CASE.model(), tmp_path)
    CASE.check(run_session(inference_session(model, kernel=kernel), CASE.arrays()))
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    if isinstance(model, onnx.ModelProto):
        assert model.SerializeToString(deterministic=True) == CASE.model().SerializeToString(deterministic=True)
    assert {path.name for path in tmp_path.iterdir()} <= {"model.onnx", "model.textproto"}


def with_external_gamma(folder: Path) -> tuple[Path, Outputs]:
    model, feeds = CASE.model(), CASE.arrays()
    gamma = feeds.pop("gamma")
    model.graph.initializer.append(numpy_helper.from_array(gamma, "gamma"))
    model.graph.input.remove(next(value for value in model.graph.input if value.name == "gamma"))
    path = folder / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path, feeds


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("load", [str, Path, ir.load], ids=["str", "Path", "ir"])
def test_external_data_is_found_where_it_is(kernel: Kernel, load: Callable[[Path], Any], tmp_path: Path) -> None:
    path, feeds = with_external_gamma(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for session in pool.map(lambda _: inference_session(load(path), kernel=kernel), range(8)):
            CASE.check(run_session(session, feeds))
    assert {each.name for each in tmp_path.iterdir()} == {"model.onnx", "weights.bin"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_external_data_of_a_proto_is_in_the_current_folder(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, feeds = with_external_gamma(tmp_path)
    monkeypatch.chdir(tmp_path)
    CASE.check(run_session(inference_session(onnx.load(path, load_external_data=False), kernel=kernel), feeds))


@pytest.mark.parametrize("kernel", KERNELS)
def test_external_data_in_two_folders(kernel: Kernel, tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    models = []
    for folder in folders:
        folder.mkdir()
        models.append(ir.load(with_external_gamma(folder)[0]))
    other = models[1].graph.initializers["gamma"]
    other.name = "other"
    models[0].graph.initializers["other"] = ir.Value(name="other", const_value=other.const_value)
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"in 2 folders: .*save the model"):
        inference_session(models[0], kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_options_are_used_again(kernel: Kernel) -> None:
    options = session_options(intra_op_num_threads=2)
    for case in SMALL_CASES[:3]:
        session = inference_session(case.model(), kernel=kernel, sess_options=options)
        case.check(run_session(session, case.arrays()))
        assert session.get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize("kernel", ["extensions", "python"])
def test_options_of_native_are_used_again(kernel: Kernel) -> None:
    options = session_options()
    for each in ("native", kernel, "native"):
        CASE.check(run_session(inference_session(CASE.model(), kernel=each, sess_options=options), CASE.arrays()))


def test_options_of_extensions_are_not_for_python() -> None:
    options = session_options()
    inference_session(CASE.model(), kernel="extensions", sess_options=options)
    with pytest.raises(lnbp_onnx.KernelError, match=r"kernel='extensions' before.*make other SessionOptions"):
        inference_session(CASE.model(), kernel="python", sess_options=options)


@pytest.mark.parametrize("kernel", KERNELS)
def test_options_that_have_the_library_already(kernel: Kernel) -> None:
    module = {"native": native, "extensions": extensions, "python": python}[kernel]
    options = session_options()
    options.register_custom_ops_library(module.get_library_path())
    with pytest.raises(lnbp_onnx.KernelError, match=r"registered before.*give SessionOptions without it"):
        inference_session(CASE.model(), kernel=kernel, sess_options=options)


# What is not available.


def test_unknown_kernel() -> None:
    kernel: Any = "cuda"
    with pytest.raises(lnbp_onnx.KernelError, match="'cuda'; it must be one of 'native', 'extensions', 'python'"):
        inference_session(CASE.model(), kernel=kernel)


def test_library_path() -> None:
    path = Path(native.get_library_path())
    assert path.is_absolute()
    assert path.is_file()


@pytest.mark.parametrize("kernel", ["extensions", "python"])
def test_missing_package(kernel: Kernel) -> None:
    program = (
        "import sys; sys.modules['onnxruntime_extensions'] = None\n"
        "from onnx import ModelProto\n"
        "from lnbp_onnx.running.session import inference_session\n"
        f"inference_session(ModelProto(), kernel={kernel!r})\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("lnbp_onnx.errors.KernelError")
    assert f"kernel={kernel!r} needs the package onnxruntime-extensions" in last
    assert "pip install onnxruntime-extensions" in last


@pytest.mark.parametrize("kernel", KERNELS)
def test_bad_models(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    models: list[tuple[Any, str]] = [
        (tmp_path / "absent.onnx", "absent.onnx: expected an ONNX model, the file is not there"),
        (str(tmp_path), "the file is a folder"),
        ("x" * 5000, "File name too long"),
        (tmp_path / "text.onnx", "is not an ONNX model"),
        (b"no model", "The 8 bytes are not an ONNX model"),
        (42, "The model is of type int; it must be an onnx.ModelProto"),
        (model_of([helper.make_node("Nonsense", ["x"], ["dx"])], {"": TensorProto.FLOAT}, []), "Nonsense"),
    ]
    for model, message in models:
        for options in (session_options(), None):
            with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
                inference_session(model, kernel=kernel, sess_options=options)


def test_an_operand_of_unknown_type() -> None:
    model = model_of(
        [helper.make_node("Foreign", ["x"], ["y"], domain="test"), operator()], {"": TensorProto.FLOAT}, []
    )
    model.graph.node[1].input[0] = "y"
    with pytest.raises(lnbp_onnx.InvalidNodeError, match=r"the type of input 'input_forward' is not known.*value_info"):
        inference_session(model, kernel="python")


def test_bfloat16_in_an_old_opset() -> None:
    case = Case("old", (5, 16), t="bfloat16")
    with pytest.raises(
        lnbp_onnx.InvalidModelError, match=r"bfloat16, .* from opset 13 on; the model's is 12 \(.*kernel='native'\)"
    ):
        inference_session(case.model(opset=12), kernel="python")


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_warning_of_copies(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnxruntime.InferenceSession,
        "get_providers",
        lambda _: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    with pytest.warns(UserWarning, match=r"with CUDAExecutionProvider .* copied") as warned:
        inference_session(CASE.model(), kernel=kernel)
    assert warned[0].filename == __file__


# The Python kernel's sessions.


def bad_feeds() -> Outputs:
    feeds = CASE.arrays()
    feeds["mean"] = np.zeros(7, np.float32)
    return feeds


def python_session(case: Case = CASE) -> onnxruntime.InferenceSession:
    return inference_session(case.model(shapes="symbolic"), kernel="python", sess_options=session_options())


def test_is_an_inference_session() -> None:
    session = python_session()
    assert isinstance(session, onnxruntime.InferenceSession)
    assert [value.name for value in session.get_inputs()] == list(CASE.arrays())
    assert [value.name for value in session.get_outputs()] == list(lnbp_onnx.spec.OUTPUT_NAMES)


def test_every_way_to_run_raises() -> None:
    session = python_session()
    names = [output.name for output in session.get_outputs()]
    for feeds, succeeds in ((CASE.arrays(), True), (bad_feeds(), False), (CASE.arrays(), True)):
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name)

        def run_bound(binding: onnxruntime.IOBinding = binding) -> list[np.ndarray]:
            session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()

        def run_values(values: dict[str, onnxruntime.OrtValue] = values) -> list[np.ndarray]:
            return [value.numpy() for value in session.run_with_ort_values(names, values)]

        for way in (lambda feeds=feeds: session.run(None, feeds), run_values, run_bound):
            if succeeds:
                CASE.check(dict(zip(names, way(), strict=True)))
            else:
                with pytest.raises(lnbp_onnx.InvalidNodeError, match=r"'norm_grad': input 'mean' has shape \[7\]"):
                    way()
    with pytest.raises(lnbp_onnx.KernelError, match="run_async is not available"):
        session.run_async(None, CASE.arrays(), print, None)


def test_threads_get_their_own_errors() -> None:
    session = python_session()

    def run_one(number: int) -> bool:
        try:
            CASE.check(run_session(session, bad_feeds() if number % 3 == 0 else CASE.arrays()))
        except lnbp_onnx.InvalidNodeError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run_one, range(60))) == [number % 3 != 0 for number in range(60)]


def test_errors_of_nodes_that_run_at_once() -> None:
    nodes = [operator(output=f"dx{number}", name=f"node{number}") for number in range(8)]
    model = model_of(
        [*nodes, helper.make_node("Sum", [f"dx{number}" for number in range(8)], ["dx"])], {"": TensorProto.FLOAT}, []
    )
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{axis}"
    options = session_options(execution_mode=onnxruntime.ExecutionMode.ORT_PARALLEL, inter_op_num_threads=4)
    session = inference_session(model, kernel="python", sess_options=options)
    feeds = draw({"": FLOAT})
    for _ in range(10):
        np.testing.assert_allclose(session.run(None, feeds)[0], 8 * expected_dx(feeds), rtol=1e-5, atol=1e-5)
        with pytest.raises(lnbp_onnx.InvalidNodeError, match="input 'mean' has shape"):
            session.run(None, {**feeds, "mean": np.zeros(7, np.float32)})


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyboardInterrupt(), SystemExit(3)])
def test_what_python_raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    session = python_session()
    with monkeypatch.context() as patch:
        patch.setattr(lnbp_onnx.LayerNormBackprop, "_run", fail)
        if isinstance(error, Exception):
            with pytest.raises(
                lnbp_onnx.KernelError, match="'norm_grad': the Python kernel failed: MemoryError: no room"
            ):
                run_session(session, CASE.arrays())
        else:
            with pytest.raises(type(error)):
                run_session(session, CASE.arrays())
    CASE.check(run_session(session, CASE.arrays()))


def test_the_first_error_is_raised_where_others_follow() -> None:
    model = CASE.model(shapes="symbolic")
    model.graph.node.append(helper.make_node("Add", ["input_delta", "wrong"], ["sum"]))
    model.graph.input.append(helper.make_tensor_value_info("wrong", TensorProto.FLOAT, ["n"]))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))
    session = inference_session(model, kernel="python", sess_options=session_options())
    with pytest.raises(lnbp_onnx.InvalidNodeError, match="input 'mean' has shape"):
        session.run(None, {**bad_feeds(), "wrong": np.zeros(3, np.float32)})
    with pytest.raises(Exception, match="running Add node"):
        session.run(None, {**CASE.arrays(), "wrong": np.zeros(3, np.float32)})


def test_an_error_while_constants_are_folded() -> None:
    model = CASE.model(shapes="unknown")
    for name, array in bad_feeds().items():
        model.graph.initializer.append(numpy_helper.from_array(array.reshape(-1), f"{name}_in"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(array.shape), f"{name}_shape"))
    del model.graph.input[:]
    options = session_options()

    def make_and_run() -> None:
        inference_session(model, kernel="python", sess_options=options).run(None, {})

    with pytest.raises(lnbp_onnx.InvalidNodeError, match=r"input 'mean' has shape \[7\]"):
        make_and_run()


def test_beside_operators_of_others(tmp_path: Path) -> None:
    """A process that used onnxruntime-extensions before, with a PyOp of its own."""
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy as np, onnx, onnxruntime, onnxruntime_extensions as extensions\n"
        "from onnx import TensorProto, helper\n"
        "@extensions.onnx_op(op_type='Twice', inputs=[extensions.PyCustomOpDef.dt_float])\n"
        "def twice(x): return 2 * x\n"
        "values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in 'xy']\n"
        "node = helper.make_node('Twice', ['x'], ['y'], domain='ai.onnx.contrib')\n"
        "opsets = [helper.make_opsetid('ai.onnx.contrib', 1)]\n"
        "model = helper.make_model(helper.make_graph([node], 'g', values[:1], values[1:]),\n"
        "                          opset_imports=opsets, ir_version=8).SerializeToString()\n"
        "def run_session():\n"
        "    options = onnxruntime.SessionOptions()\n"
        "    options.register_custom_ops_library(extensions.get_library_path())\n"
        "    session = onnxruntime.InferenceSession(model, options)\n"
        "    assert session.run(None, {'x': np.ones(2, np.float32)})[0].tolist() == [2, 2]\n"
        "    return session\n"
        "sessions = [run_session()]\n"
        "from cases import SMALL_CASES\n"
        "from lnbp_onnx.running.session import inference_session\n"
        "for kernel in ('python', 'extensions', 'native', 'python', 'extensions'):\n"
        "    case = SMALL_CASES[-1]\n"
        "    session = inference_session(SMALL_CASES[50].model(), kernel=kernel)\n"
        "    names = [output.name for output in session.get_outputs()]\n"
        "    results = session.run(names, SMALL_CASES[50].arrays())\n"
        "    SMALL_CASES[50].check(dict(zip(names, results)))\n"
        "    sessions += [session, run_session()]\n"
        "    assert sessions[0].run(None, {'x': np.ones(2, np.float32)})[0].tolist() == [2, 2]\n"
        "print('done')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, env=environment
    )
    assert process.stdout.strip() == "done", process.stderr


def test_example() -> None:
    example = Path(__file__).parents[1] / "examples" / "run_with_kernels.py"
    process = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert [line.split()[0] for line in process.stdout.splitlines()] == list(KERNELS)


def test_the_library_runs_from_another_folder(tmp_path: Path) -> None:
    path = shutil.copy(native.get_library_path(), tmp_path)
    options = session_options()
    options.register_custom_ops_library(path)
    CASE.check(run_session(onnxruntime.InferenceSession(CASE.model().SerializeToString(), options), CASE.arrays()))


def test_inputs_with_defaults_are_no_reason_to_warn(tmp_path: Path) -> None:
    """ONNX Runtime's own warning of each; what is given as SessionOptions logs as it says."""
    proto = Case("defaults", (4, 6)).model()
    session = lnbp_onnx.inference_session(proto)
    assert session.get_session_options().log_severity_level < 3
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(6, np.float32), "gamma"))
    onnx.save(proto, tmp_path / "m.onnx")
    # In a process of its own: where a test took standard error away, ONNX Runtime writes nothing to it ever after.
    program = """
import sys
from pathlib import Path
import onnx, onnx_ir, onnxruntime, lnbp_onnx
path = Path("m.onnx")
for model in (onnx.load(path), path.read_bytes(), path, onnx_ir.load(path)):
    session = lnbp_onnx.inference_session(model)
    assert [value.name for value in session.get_overridable_initializers()] == ["gamma"]
print("given", file=sys.stderr, flush=True)
lnbp_onnx.inference_session(path, sess_options=onnxruntime.SessionOptions())
"""
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    before, after = run.stderr.split("given\n")
    assert before == ""
    assert "appears in graph inputs" in after
