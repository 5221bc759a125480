# SPDX-License-Identifier: Apache-2.0
"""The command line, as a user calls it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from cases import Case
from command_line import command
from onnx import ModelProto, TensorProto, helper

import lnbp_onnx

ENCODER = Path(__file__).parents[1] / "examples" / "torch_encoder_training_lnbp.onnx"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(Case("cli", (4, 6)).model(shapes="symbolic"), path)
    return path


def test_default_name_and_tables(model: Path) -> None:
    run = command("decompose", model)
    assert run.returncode == 0
    result = onnx.load(model.with_name("m.decomposed.onnx"))
    assert {node.domain for node in result.graph.node} == {""}
    for part in ("norm_grad", "graph", "float", "given", "lnbp::LayerNormBackprop", "all nodes", "file size", "Wrote"):
        assert part in run.stdout


def test_without_arguments() -> None:
    run = command()
    assert run.returncode == 2
    assert "decompose" in run.stdout + run.stderr


def test_help() -> None:
    module = [sys.executable, "-m", "lnbp_onnx", "--help"]
    assert command("-h").stdout == command("--help").stdout
    assert command("decompose", "-h").stdout == command("decompose", "--help").stdout
    assert "'decompose'? See lnbp-onnx --help." in command("decompos").stderr
    for run in (command("--help"), subprocess.run(module, capture_output=True, text=True, check=True)):
        for name in ("decompose", "embed", "fuse", "gradient", "compare", "inspect", "info"):
            assert name in run.stdout


@pytest.mark.parametrize(("arguments", "needed"), [(["--help"], set()), (["decompose", "m.onnx"], {"onnx_ir._core"})])
def test_a_command_imports_what_it_needs(model: Path, arguments: list[str], needed: set[str]) -> None:
    """The rest takes most of the time of a short command; shapes are symbolic here."""
    program = """
import sys
from lnbp_onnx.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, *{"onnx_ir._core", "onnxruntime", "sympy.core"} & set(sys.modules))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=model.parent, capture_output=True, text=True, check=True
    )
    code, *imported = run.stdout.splitlines()[-1].split()
    assert code == "0"
    assert set(imported) == needed


@pytest.mark.parametrize("arguments", [["out.onnx"], ["-o", "out.onnx"], ["out.onnx", "-q"]])
def test_output_by_argument_and_option(model: Path, arguments: list[str]) -> None:
    run = command("decompose", model, *arguments, cwd=model.parent)
    assert run.returncode == 0
    assert (model.parent / "out.onnx").is_file()
    assert bool(run.stdout) == ("-q" not in arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.onnx", "-o", "other.onnx"], "OUT is given twice"),
        (["out.onnx", "--in-place"], "--in-place writes over IN"),
        (["m.onnx"], "OUT is IN"),
        (["."], "OUT is the folder ."),
        (["nowhere/out.onnx"], "which is no folder"),
        (["--check=-1"], "Invalid value"),
        (["--check", "--input-shape", "x"], "NAME:1,3,8"),
        (["--check", "--input-shape", "x:1,b"], "NAME:1,3,8"),
        (["--check", "--input-shape", "nothing:1,2"], "no input of the model; its inputs are input_forward"),
        (["--check", "--input-shape", "x:1", "--input-shape", "x:2"], "given twice for 'x'"),
        (["--check", "--rtol", "inf"], "A tolerance is not finite"),
        (["--rtol", "1e-3"], "--rtol is for a comparison; add --check"),
        (["--atol", "0"], "--atol is for a comparison; add --check"),
        (["--input-shape", "x:1"], "--input-shape is for a comparison; add --check"),
        (["--check=x"], "Invalid value for '--check': it must be a valid integer. See"),
        (["--frobnicate"], "No such option"),
    ],
)
def test_bad_usage(model: Path, arguments: list[str], message: str) -> None:
    before = model.read_bytes()
    run = command("decompose", model, *arguments, cwd=model.parent)
    assert run.returncode == 2
    assert message in run.stderr
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]
    assert model.read_bytes() == before


def test_nothing_to_do_writes_all_the_same(model: Path) -> None:
    assert command("decompose", model, "plain.onnx", cwd=model.parent).returncode == 0
    run = command("decompose", "plain.onnx", "again.onnx", cwd=model.parent)
    assert run.returncode == 0
    assert "Nothing to do: the model has no LayerNormBackprop node, and no Gradient node." in run.stdout
    assert (model.parent / "again.onnx").read_bytes() == (model.parent / "plain.onnx").read_bytes()


def test_dry_run_writes_nothing(model: Path) -> None:
    run = command("decompose", model, "--dry-run", "--check")
    assert run.returncode == 0
    assert "Wrote nothing: this is a dry run." in run.stdout
    assert "Largest errors" in run.stdout
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]


def test_json(model: Path) -> None:
    run = command("decompose", model, "--json", "--check", "3")
    assert run.returncode == 0
    found = json.loads(run.stdout)
    [node] = found["nodes"]
    assert node["node"] == "norm_grad"
    assert node["place"] == "graph"
    assert node["begin_norm_axis"] == 1
    assert node["types"] == {"T": "float", "P": "float", "U": "float"}
    assert node["statistics"] == "given"
    assert found["before"]["operators"] == {"lnbp::LayerNormBackprop": 1}
    assert found["after"]["bytes"] == model.with_name("m.decomposed.onnx").stat().st_size
    assert found["check"]["ok"]
    assert found["check"]["runtimes"] == ["onnxruntime with the native kernel", "onnxruntime"]
    assert [output["name"] for output in found["check"]["outputs"]] == ["input_delta", "gamma_delta", "beta_delta"]


def test_check_with_shapes(model: Path) -> None:
    shapes = ("input_forward:5,7", "output_delta:5,7", "gamma:7", "beta:7", "mean:5", "variance:5")
    options = [word for shape in shapes for word in ("--input-shape", shape)]
    assert command("decompose", model, "--check", *options).returncode == 0
    wrong = command("decompose", model, "--check", "--input-shape", "gamma:3")
    assert wrong.returncode == 2
    assert "gamma" in wrong.stderr


def test_failed_check(model: Path) -> None:
    run = command("decompose", model, "--check", "--rtol", "0", "--atol", "0", "--json")
    found = json.loads(run.stdout)
    # Equal to the last bit or not: a tolerance of 0 is never below the spacing of the type.
    assert run.returncode == (0 if found["check"]["ok"] else 1)
    other = onnx.load(model)
    next(attribute for attribute in other.graph.node[0].attribute if attribute.name == "epsilon").f = 0.5
    onnx.save(other, model.with_name("other.onnx"))
    run = command("compare", model, model.with_name("other.onnx"))
    assert run.returncode == 1
    assert "differs" in run.stdout
    assert "One run: A " in run.stdout


def test_compare_ends_with_a_sentence(model: Path) -> None:
    command("decompose", model)
    decomposed = model.with_name("m.decomposed.onnx")
    run = command("compare", model, decomposed, "-v")
    lengths = "symbolic lengths were taken as 2: input_forward_0, input_forward_1, output_delta_0, output_delta_1"
    assert run.stdout.endswith(
        f"\n3 outputs agree within rtol 1e-5 and atol 1e-6; {lengths}, gamma_0, beta_0 and 2 more.\n"
    )
    assert re.search(r"input_forward +│ float32 │ \[2, 2\]", run.stdout)
    given = ("input_forward:3,2", "output_delta:3,2", "gamma:2", "beta:2", "mean:3", "variance:3")
    shapes = [word for shape in given for word in ("--input-shape", shape)]
    assert "[3, 2]" in command("compare", model, decomposed, "-v", *shapes).stdout
    assert "symbolic lengths" not in command("compare", model, decomposed, *shapes).stdout
    assert "Inputs" not in command("compare", model, decomposed, *shapes).stdout
    assert command("compare", model, decomposed, "-q").stdout == ""
    assert command("inspect", model, "-q").stdout == ""


@pytest.mark.parametrize(
    ("element_type", "factor", "sentence"),
    [
        (TensorProto.FLOAT16, 1.0, "1 output agrees within rtol 0.000977 and atol 1e-6."),
        (TensorProto.FLOAT, 1.0, "1 output agrees within rtol 1e-5 and atol 1e-6."),
        (TensorProto.FLOAT, 2.0, "1 of 1 output differs by more than rtol 1e-5 and atol 1e-6."),
    ],
)
def test_a_comparison_says_the_tolerance_that_it_held_to(
    tmp_path: Path, element_type: int, factor: float, sentence: str
) -> None:
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path, scale in zip(paths, (1.0, factor), strict=True):
        x, y = (helper.make_tensor_value_info(name, element_type, [3]) for name in "xy")
        scales = helper.make_tensor("scale", element_type, [1], [scale])
        graph = helper.make_graph([helper.make_node("Mul", ["x", "scale"], ["y"])], "g", [x], [y], [scales])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert command("compare", *paths).stdout.splitlines()[-1] == sentence


def test_compare_needs_the_same_interface(model: Path) -> None:
    other = onnx.load(model)
    other.graph.output[1].name = "renamed"
    other.graph.node[0].output[1] = "renamed"
    onnx.save(other, model.with_name("other.onnx"))
    run = command("compare", model, model.with_name("other.onnx"))
    assert run.returncode == 2
    assert "different outputs: 'gamma_delta', 'renamed'" in run.stderr


def test_original_that_cannot_run(tmp_path: Path) -> None:
    node = lnbp_onnx.make_node("x", "dy", use_affine=False, use_stats=False, outputs=["dx"])
    strange = helper.make_node("Mystery", ["x"], ["dy"], domain="odd")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "dx", "dy")]
    graph = helper.make_graph([strange, node], "g", values[:1], values[1:2], value_info=values[2:])
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 17), ("lnbp", 1), ("odd", 1))]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    run = command("decompose", path, "--check")
    assert run.returncode == 2
    assert "Mystery" in run.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_bad_node_is_named(model: Path) -> None:
    bad = onnx.load(model)
    next(attribute for attribute in bad.graph.node[0].attribute if attribute.name == "begin_norm_axis").i = 5
    onnx.save(bad, model)
    for name in ("decompose", "embed", "inspect"):
        run = command(name, model)
        assert run.returncode == 2
        assert "'norm_grad': attribute 'begin_norm_axis' is 5" in run.stderr
        assert "must be in [-2, 1]" in run.stderr


def test_embed(model: Path) -> None:
    run = command("embed", model, "--check", "--json")
    assert run.returncode == 0
    found = json.loads(run.stdout)
    assert found["nodes"][0]["result"] == "kept, with the function"
    # Plain ONNX Runtime has no kernel: what was checked is the function.
    assert found["check"]["runtimes"] == ["onnxruntime with the native kernel", "onnxruntime"]
    result = onnx.load(model.with_name("m.embedded.onnx"))
    assert [function.name for function in result.functions] == ["LayerNormBackprop"]
    assert [node.op_type for node in result.graph.node] == ["LayerNormBackprop"]


def test_inspect_on_a_real_graph() -> None:
    run = command("inspect", ENCODER, "--json")
    assert run.returncode == 0
    nodes = json.loads(run.stdout)["nodes"]
    assert len(nodes) == 5
    assert {(node["place"], node["begin_norm_axis"], node["statistics"]) for node in nodes} == {("graph", 2, "given")}
    assert "LayerNormBackprop nodes: 5" in command("inspect", ENCODER).stdout


def test_what_a_newcomer_would_ask(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    run = command("inspect", tmp_path / "m.onnx")
    assert run.stdout.startswith("LayerNormBackprop nodes: none. lnbp-onnx fuse looks for")
    embedded = command("embed", ENCODER, tmp_path / "e.onnx").stdout
    body = onnx.load(tmp_path / "e.onnx").functions[0].node
    assert re.search(rf"│ in functions +│ +0 │ +{len(body)} │", embedded)
    assert "in functions" not in command("decompose", ENCODER, tmp_path / "d.onnx").stdout


def test_info() -> None:
    found = json.loads(command("info", "--json").stdout)
    assert found["versions"]["onnx"] == onnx.__version__
    assert "CPUExecutionProvider" in found["providers"]
    assert found["kernels"] == ["native", "extensions", "python"]
    assert found["library"] == lnbp_onnx.get_library_path()
    assert "onnxruntime" in command("info").stdout


def test_names_are_not_markup(tmp_path: Path) -> None:
    model = Case("cli", (4, 6)).model()
    model.graph.node[0].name = "[bold]n[/bold][/]"
    path = tmp_path / "[red]m[-].onnx"
    onnx.save(model, path)
    run = command("decompose", path, "--check")
    assert run.returncode == 0
    assert "[bold]n[/bold][/]" in run.stdout
    assert "[red]m[-].decomposed.onnx" in run.stdout


def test_fuse_goes_back(tmp_path: Path) -> None:
    path = Path(__file__).parent / "data" / "torch_encoder_training_decomposed.onnx"
    run = command("fuse", path, tmp_path / "fused.onnx", "--check", "--json")
    assert run.returncode == 0
    found = json.loads(run.stdout)
    assert [node["result"] for node in found["nodes"]] == ["formula"] * 5
    assert found["after"]["operators"]["lnbp::LayerNormBackprop"] == 5
    assert found["check"]["runtimes"] == ["onnxruntime", "onnxruntime with the native kernel"]
    run = command("fuse", tmp_path / "fused.onnx", "-v")
    assert "Nothing to do: no layer-norm gradient was found (docs/matching.md has" in run.stdout


def test_near_misses_are_told(tmp_path: Path) -> None:
    path = Path(__file__).parent / "data" / "torch_layernorm_affine_decomposed.onnx"
    model = onnx.load(path)
    division = next(node for node in model.graph.node if node.op_type == "Div")
    division.op_type = "Mul"
    onnx.save(model, tmp_path / "m.onnx")
    quiet, verbose = (command("fuse", tmp_path / "m.onnx", "--dry-run", *more) for more in ((), ("-v",)))
    assert "-v says what stopped them" in quiet.stdout
    assert "what stopped it" in verbose.stdout


def test_of_many_nodes_the_first_are_listed(tmp_path: Path) -> None:
    nodes = [
        lnbp_onnx.make_node("x", "dy", use_affine=False, use_stats=False, outputs=[f"dx_{i}"], name=f"norm_{i}")
        for i in range(102)
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "dy")]
    outputs = [helper.make_tensor_value_info("dx_101", TensorProto.FLOAT, [4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("lnbp", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    short, whole = (command("decompose", tmp_path / "m.onnx", "--dry-run", *more) for more in ((), ("-v",)))
    assert "norm_99 " in short.stdout
    assert "norm_100 " not in short.stdout
    assert "These are the first 100; -v lists all." in short.stdout
    assert "norm_101 " in whole.stdout
    assert "-v lists all" not in whole.stdout


def bad_tensor(model: ModelProto) -> None:
    model.graph.initializer.add(name="a", data_type=99, dims=[1], raw_data=b"x")


def no_attribute_type(model: ModelProto) -> None:
    model.graph.node[0].attribute[0].ClearField("type")


def circle(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Neg", ["z"], ["z"], name="circle"))


def input_without_tensor(model: ModelProto) -> None:
    model.graph.input.add(name="u").type.map_type.SetInParent()


@pytest.mark.parametrize("change", [bad_tensor, no_attribute_type, circle, input_without_tensor])
def test_inspect_of_a_bad_model(tmp_path: Path, change: Callable[[ModelProto], None]) -> None:
    bad = Case("cli", (4, 6)).model()
    change(bad)
    (tmp_path / "m.onnx").write_bytes(bad.SerializeToString())
    run = command("inspect", tmp_path / "m.onnx")
    assert run.returncode == 2
    assert run.stderr.startswith("Error: The ")
    assert run.stderr.count("\n") == 1
