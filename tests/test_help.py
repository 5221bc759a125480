# SPDX-License-Identifier: Apache-2.0
"""What the command line says of itself: help, examples, version, completion."""

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from command_line import command
from onnx import TensorProto, helper, numpy_helper

import lnbp_onnx
from lnbp_onnx.cli import commands as cli

PROGRAM = typer.main.get_command(cli.app)
COMMANDS = sorted(PROGRAM.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_and_names_every_option_whole(name: str, columns: int) -> None:
    text = command(*filter(None, [name]), "--help", columns=columns).stdout
    assert max(map(len, text.splitlines())) <= columns
    assert "..." not in text.replace("[ARGS]...", "")
    described = PROGRAM.commands[name] if name else PROGRAM  # type: ignore[attr-defined]
    for parameter in described.params:
        for option in filter(lambda option: option.startswith("--"), parameter.opts):
            takes = r"  |$" if getattr(parameter, "is_flag", False) else r" \S"
            assert re.search(rf"^ .*{option}({takes})", text, re.MULTILINE), option


def test_the_list_of_commands_has_their_help_whole() -> None:
    listed = " ".join(command("--help").stdout.split())
    for name in COMMANDS:
        _, _, said = command(name, "--help").stdout.partition("\n\n")
        assert f"{name} {' '.join(said.partition(chr(10) * 2)[0].split())}" in listed


def test_examples_run(tmp_path: Path) -> None:
    forward = helper.make_node("LayerNormalization", ["x", "encoder.weight"], ["y", "mean", "rstd"], name="norm")
    total = helper.make_node("ReduceSum", ["y"], ["loss"], keepdims=0)
    nodes = [forward, total, *lnbp_onnx.gradient_nodes(forward, "dy", outputs=["dx", "", ""])]
    x, dy, dx = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 128]) for name in ("x", "dy", "dx"))
    loss = helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])
    weight = numpy_helper.from_array(np.ones(128, np.float32), "encoder.weight")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(lnbp_onnx.DOMAIN, lnbp_onnx.OP_VERSION)]
    graph = helper.make_graph(nodes, "g", [x, dy], [loss, dx], [weight])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    for name in ("model", "a", "b"):
        onnx.save(model, tmp_path / f"{name}.onnx")
    onnx.save(lnbp_onnx.gradient(model, of="loss"), tmp_path / "joint.onnx")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 128])
    graph = helper.make_graph([forward], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=opsets[:1], ir_version=8), tmp_path / "m.onnx")
    for name in ("", *COMMANDS):
        _, _, examples = command(*filter(None, [name]), "--help").stdout.partition("Example")
        assert examples
        for line in examples.splitlines()[1:]:
            program, *arguments = shlex.split(line)
            assert program == "lnbp-onnx"
            if name:
                assert arguments[0] == name
            expanded = [
                [path.name for path in tmp_path.glob(each)] if "*.onnx" in each else [each] for each in arguments
            ]
            run = command(*(each for part in expanded for each in part), cwd=tmp_path)
            assert (run.returncode, run.stderr) == (0, "")


def test_version() -> None:
    assert command("--version").stdout == f"lnbp-onnx {lnbp_onnx.__version__}\n"


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("bash", {"COMP_WORDS": "lnbp-onnx decompose --s", "COMP_CWORD": "2"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "lnbp-onnx decompose --s"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "lnbp-onnx decompose --s", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_completion(
    shell: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_LNBP_ONNX_COMPLETE", f"source_{shell}")
    with pytest.raises(SystemExit):
        cli.run([])
    assert "_LNBP_ONNX_COMPLETE" in capsys.readouterr().out
    monkeypatch.setenv("_LNBP_ONNX_COMPLETE", f"complete_{shell}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.run([])
    found = re.findall(r"--[a-z-]+", capsys.readouterr().out)
    assert {"--save-as-external-data", "--scatter-reductions", "--size-threshold"} == set(found)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("decompose", " IN [OUT]"), ("gradient", " IN [OUT]"), ("compare", " A B"), ("inspect", " IN"), ("info", "")],
)
def test_usage(name: str, arguments: str) -> None:
    assert command(name, "--help").stdout.startswith(f"Usage: lnbp-onnx {name} [OPTIONS]{arguments}\n")
