# SPDX-License-Identifier: Apache-2.0
"""What the command line reads and where it writes: no file is lost, and ``-`` is no file."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import Case
from command_line import Result, command, names_in, shell
from onnx import TensorProto, helper

import lnbp_onnx
from lnbp_onnx.cli import commands as cli

PLAIN = helper.make_model(
    helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    ),
    opset_imports=[helper.make_opsetid("", 17)],
    ir_version=8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models and a file that is none."""
    for name in ("a", "b"):
        onnx.save(Case("cli", (4, 6)).model(shapes="symbolic"), tmp_path / f"{name}.onnx")
    (tmp_path / "no.onnx").write_text("no model")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def is_decomposed(content: bytes) -> bool:
    return {node.domain for node in onnx.load_from_string(content).graph.node} == {""}


def refused(folder: Path, *arguments: str, stdin: bytes = b"") -> Result:
    """Run a command that is refused and changes nothing."""
    before = contents(folder)
    run = command(*arguments, cwd=folder, stdin=stdin)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("Error: ")
    assert contents(folder) == before
    return run


@pytest.mark.parametrize("name", ["decompose", "embed", "fuse"])
def test_a_model_that_exists_is_not_taken_for_out(folder: Path, name: str) -> None:
    run = refused(folder, name, "a.onnx", "b.onnx")
    assert "--force" in run.stderr
    assert "--output-dir" in run.stderr
    assert "--force" in refused(folder, name, "a.onnx", "-o", "b.onnx").stderr


def test_force_replaces(folder: Path) -> None:
    assert command("decompose", "a.onnx", "b.onnx", "--force", cwd=folder).returncode == 0
    assert is_decomposed((folder / "b.onnx").read_bytes())


def test_the_name_that_the_command_makes_is_replaced(folder: Path) -> None:
    (folder / "a.decomposed.onnx").write_text("old")
    assert command("decompose", "a.onnx", cwd=folder).returncode == 0
    assert is_decomposed((folder / "a.decomposed.onnx").read_bytes())


def test_several_models(folder: Path) -> None:
    """One that fails does not stop the others."""
    run = command("decompose", "a.onnx", "no.onnx", "b.onnx", "--output-dir", "new/out", "--json", cwd=folder)
    assert run.returncode == 2
    assert "no.onnx" in run.stderr
    first, second, third = json.loads(run.stdout)
    assert first["output"] == "new/out/a.onnx"
    assert second["output"] is None
    assert second["error"] in run.stderr
    assert third["output"] == "new/out/b.onnx"
    assert names_in(folder / "new/out") == ["a.onnx", "b.onnx"]
    assert all(map(is_decomposed, contents(folder / "new/out").values()))


def test_an_output_that_exists_does_not_stop_the_others(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "part/a.onnx").write_text("old")
    run = command("decompose", "a.onnx", "b.onnx", "--output-dir", "part", cwd=folder)
    assert run.returncode == 2
    assert run.stderr == "Error: OUT is part/a.onnx, which exists; give --force to replace it.\n"
    assert run.stdout.startswith("b.onnx:\n")
    assert (folder / "part/a.onnx").read_text() == "old"
    assert is_decomposed((folder / "part/b.onnx").read_bytes())
    assert command("decompose", "a.onnx", "b.onnx", "--output-dir", "part", "--force", cwd=folder).returncode == 0
    assert is_decomposed((folder / "part/a.onnx").read_bytes())


def test_a_failed_check_among_several_is_the_exit_code(folder: Path) -> None:
    model = onnx.load(folder / "a.onnx")
    # Integers agree when they are equal: these random ones are not.
    model.graph.node.append(helper.make_node("RandomUniform", [], ["random"], shape=[64]))
    model.graph.node.append(helper.make_node("Cast", ["bits"], ["integers"], to=TensorProto.INT64))
    scale = helper.make_node("Constant", [], ["scale"], value_float=1e9)
    model.graph.node.insert(1, scale)
    model.graph.node.insert(3, helper.make_node("Mul", ["random", "scale"], ["bits"]))
    model.graph.output.append(helper.make_tensor_value_info("integers", TensorProto.INT64, [64]))
    onnx.save(model, folder / "a.onnx")
    run = command("decompose", "a.onnx", "b.onnx", "--output-dir", "out", "--check", "--json", cwd=folder)
    assert run.returncode == 1
    assert [each["check"]["ok"] for each in json.loads(run.stdout)] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.onnx", "b.onnx", "no.onnx"], "give --output-dir DIR"),
        (["a.onnx", "sub/a.onnx", "--output-dir", "out"], "have the same name"),
        (["a.onnx", "--output-dir", "sub"], "OUT is sub/a.onnx, which exists; give --force"),
        (["a.onnx", "b.onnx", "--output-dir", "."], "--output-dir is ., the folder of a.onnx"),
        (["a.onnx", ".", "--output-dir", "out"], "IN is ., which is a folder"),
        (["a.onnx", "--output-dir", ""], "it must be a path"),
        (["a.onnx", "b.onnx", "--in-place"], "takes one model, but 2 paths are given"),
        (["a.onnx", "b.onnx", "no.onnx", "--in-place"], "takes one model, but 3 paths are given"),
        (["a.onnx", "--output-dir", "b.onnx"], "which is no folder"),
        (["a.onnx", "--output-dir", "-"], "which is no folder"),
        (["-", "--output-dir", "out"], "leave out --output-dir"),
        (["a.onnx", "--output-dir", "out", "--in-place"], "leave out -o and --in-place"),
        (["a.onnx", "--output-dir", "out", "-o", "c.onnx"], "leave out -o and --in-place"),
        (["-", "--in-place"], "standard input is no file"),
        (["/dev/stdin", "--in-place"], "is no file"),
        (["a.onnx", "-", "--save-as-external-data"], "no folder for external data"),
    ],
)
def test_what_does_not_go_together(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/a.onnx").write_bytes((folder / "a.onnx").read_bytes())
    assert message in refused(folder, "decompose", *arguments).stderr
    assert not (folder / "out").exists()


@pytest.mark.parametrize("path", [".", "..", "/", "", "nowhere.onnx", "a.onnx/b", "/dev/null", "n" * 300])
def test_paths_that_are_no_model_file(folder: Path, path: str) -> None:
    for name in ("decompose", "embed", "fuse", "inspect"):
        refused(folder, name, path)
    refused(folder, "decompose", path, "--in-place")
    refused(folder, "compare", path, "a.onnx")
    refused(folder, "compare", "a.onnx", path)
    if path != "nowhere.onnx":
        refused(folder, "decompose", "a.onnx", path)
        refused(folder, "decompose", "a.onnx", "-o", path)
    if path not in ("nowhere.onnx", "..", "/"):
        refused(folder, "decompose", "a.onnx", "--output-dir", path)


def test_standard_input_and_output(folder: Path) -> None:
    model = (folder / "a.onnx").read_bytes()
    before = contents(folder)
    for arguments in (["-"], ["-", "-"], ["-", "-o", "-"], ["a.onnx", "-"], ["-", "--check"]):
        run = command("decompose", *arguments, cwd=folder, stdin=model)
        assert run.returncode == 0, run.stderr
        assert is_decomposed(run.output)
        assert "Wrote to standard output" in run.stderr
    assert "Largest errors" in run.stderr
    assert contents(folder) == before
    run = command("decompose", "-", "--json", "-q", cwd=folder, stdin=model)
    assert is_decomposed(run.output)
    assert json.loads(run.stderr)["output"] == "-"


def test_nothing_to_do_is_a_copy_on_standard_output(tmp_path: Path) -> None:
    run = command("decompose", "-", cwd=tmp_path, stdin=PLAIN.SerializeToString())
    assert onnx.load_from_string(run.output) == PLAIN


def test_standard_input_of_the_other_commands(folder: Path) -> None:
    model = (folder / "a.onnx").read_bytes()
    assert "norm_grad" in command("inspect", "-", cwd=folder, stdin=model).stdout
    assert command("compare", "-", "a.onnx", cwd=folder, stdin=model).returncode == 0
    assert command("compare", "a.onnx", "-", cwd=folder, stdin=model).returncode == 0
    assert "can be read once" in refused(folder, "compare", "-", "-", stdin=model).stderr


def test_a_file_can_be_called_like_a_stream(folder: Path) -> None:
    (folder / "-").write_bytes((folder / "a.onnx").read_bytes())
    run = command("decompose", "./-", "out.onnx", cwd=folder, stdin=b"not this")
    assert run.returncode == 0
    assert is_decomposed((folder / "out.onnx").read_bytes())
    run = command("decompose", "a.onnx", "./-", "--force", cwd=folder)
    assert run.output.startswith(b"LayerNormBackprop nodes")
    model = (folder / "a.onnx").read_bytes()
    assert is_decomposed(command("decompose", "-", "--check", "-q", cwd=folder, stdin=model).output)
    assert command("decompose", "-", "./-", "--force", cwd=folder, stdin=model).returncode == 0
    assert is_decomposed((folder / "-").read_bytes())


def test_external_data_of_standard_input_is_in_the_current_folder(folder: Path) -> None:
    """Where a file is called like the stream, too."""
    model = Case("cli", (4, 6)).model()
    gamma = next(each for each in model.graph.input if each.name == "gamma")
    model.graph.input.remove(gamma)
    weight = model.graph.initializer.add(name="gamma", data_type=TensorProto.FLOAT, dims=[6], data_location=1)
    weight.external_data.add(key="location", value="gamma.bin")
    np.arange(6, dtype=np.float32).tofile(folder / "gamma.bin")
    (folder / "-").write_text("no model")
    run = command("decompose", "-", "--check", "-q", cwd=folder, stdin=model.SerializeToString())
    assert is_decomposed(run.output)
    (folder / "out.onnx").write_bytes(run.output)
    assert command("compare", "-", "out.onnx", cwd=folder, stdin=model.SerializeToString()).returncode == 0


def test_pipes(folder: Path) -> None:
    run = shell("cat a.onnx | lnbp-onnx decompose /dev/stdin - --check -q > out.onnx", folder)
    assert run.returncode == 0, run.stderr
    assert is_decomposed((folder / "out.onnx").read_bytes())


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_no_model_is_written_to_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(written))
    assert cli.run(["decompose", str(folder / "a.onnx"), "-"]) == 2
    assert "which is a terminal" in capsys.readouterr().err
    assert written.getvalue() == b""


def test_nothing_to_do_in_place_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    # A field that no reader knows and an order that no writer has: it would not come out again as it was.
    path.write_bytes(PLAIN.SerializeToString()[2:] + PLAIN.SerializeToString()[:2])
    before, status = path.read_bytes(), path.stat()
    for name in ("decompose", "embed", "fuse"):
        run = command(name, path, "--in-place", "--json")
        assert run.returncode == 0
        assert json.loads(run.stdout)["output"] is None
        run = command(name, path, "--in-place")
        assert "Nothing to do" in run.stdout
        assert f"{path} stays as it is" in run.stdout
    assert path.read_bytes() == before
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (status.st_mtime_ns, status.st_ino)
    run = command("decompose", path, tmp_path / "out.onnx")
    assert re.search(r"^Wrote \S+, a copy of IN, in [\d.]+ s\.$", run.stdout, re.MULTILINE)
    assert onnx.load(tmp_path / "out.onnx") == PLAIN


def test_nothing_to_do_in_place_still_moves_tensors_where_asked(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(PLAIN)
    model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[64], raw_data=bytes(256))
    onnx.save(model, tmp_path / "m.onnx")
    assert command("decompose", tmp_path / "m.onnx", "--in-place", "--size-threshold", "100").returncode == 0
    written = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert written.graph.initializer[0].data_location == TensorProto.EXTERNAL


def test_data_that_is_missing_is_warned_of(tmp_path: Path) -> None:
    model = Case("cli", (4, 6)).model()
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[64], data_location=1)
    weight.external_data.add(key="location", value="weights.bin")
    onnx.save(model, tmp_path / "m.onnx")
    run = command("decompose", tmp_path / "m.onnx", "-q")
    assert run.returncode == 0
    assert run.stderr.startswith("Warning: ")
    assert "'w'" in run.stderr
    assert "weights.bin" in run.stderr
    run = command("embed", tmp_path / "m.onnx", "--json")
    assert "weights.bin" in json.loads(run.stdout)["warnings"][0]
    run = command("decompose", "-", cwd=tmp_path, stdin=model.SerializeToString())
    assert "is missing (put the file into the current folder)" in run.stderr


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is in 'weights.bin', which is missing"),
        (b"1234", "is at bytes 0 to 24 of 'weights.bin', which has only 4"),
    ],
)
def test_data_that_is_missing_is_what_running_a_model_tells(tmp_path: Path, content: bytes | None, fault: str) -> None:
    model = Case("cli", (4, 6)).model()
    model.graph.input.remove(next(each for each in model.graph.input if each.name == "gamma"))
    weight = model.graph.initializer.add(name="gamma", data_type=TensorProto.FLOAT, dims=[6], data_location=1)
    weight.external_data.add(key="location", value="weights.bin")
    onnx.save(model, tmp_path / "kernel.onnx")
    onnx.save(lnbp_onnx.embed(model), tmp_path / "plain.onnx")
    if content is not None:
        (tmp_path / "weights.bin").write_bytes(content)
    sentence = f"The external data of tensor 'gamma' {fault}"
    for arguments in (["decompose", "kernel.onnx", "--check"], ["compare", "plain.onnx", "plain.onnx"]):
        run = command(*arguments, cwd=tmp_path)
        assert run.returncode == 2
        assert run.stderr.startswith(f"Error: {sentence}")
    for kernel in ("native", "python"):
        with pytest.raises(lnbp_onnx.InvalidModelError, match=f"^{sentence}"):
            lnbp_onnx.inference_session(tmp_path / "kernel.onnx", kernel=kernel)


def test_no_name_is_made_beside_a_pipe(folder: Path) -> None:
    script = "cat a.onnx | lnbp-onnx decompose /dev/stdin; lnbp-onnx decompose /dev/stdin < a.onnx"
    run = shell(script, folder)
    assert run.returncode == 2
    assert run.stderr.count("give OUT, or - for standard output") == 2
    assert not Path("/dev/stdin.decomposed").exists()
