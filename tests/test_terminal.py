# SPDX-License-Identifier: Apache-2.0
"""What reaches the terminal, and what becomes of errors, interrupts and streams that are closed or full."""

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import onnx
import pytest
import typer
from cases import Case
from command_line import command, shell
from onnx import TensorProto, helper

from lnbp_onnx.cli import commands as cli
from lnbp_onnx.cli import report, terminal

EVIL = {
    "title": "\x1b]0;title\x07",
    "clear": "\x1b[2J",
    "c1": "\x9b31m",
    "lines": "one\ntwo\rthree\u2028four",
    "bidi": "abc\u202egpj.\u2066exe",
    "markup": "[red]not red[/]",
    "null": "a\x00b\x7f",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(Case("cli", (4, 6)).model(), path)
    return path


def assert_harmless(text: str) -> None:
    unseen = {each for each in text if not each.isprintable()} - {"\n"}
    assert not unseen, (unseen, text)


@pytest.mark.parametrize("name", EVIL.values(), ids=EVIL)
def test_names_are_escaped_everywhere(tmp_path: Path, name: str) -> None:
    """As the name of a node, an input, an output, an operator, a function and a file."""
    model = Case("cli", (4, 6)).model()
    node = model.graph.node[0]
    node.name = name
    for values, names in ((model.graph.input, node.input), (model.graph.output, node.output)):
        values[0].name = names[0] = f"{name}{values[0].name}"
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    model.functions.append(helper.make_function(name, name, node.input, [], [inner], model.opset_import))
    model.opset_import.add(domain=name, version=1)
    model.graph.node.append(helper.make_node(name, node.input, [], name, domain=name))
    file_name = name.replace("\0", "").replace("/", "")
    path = tmp_path / f"{file_name}.onnx"
    path.write_bytes(model.SerializeToString())
    bad = tmp_path / f"{file_name}.bad"
    bad.write_bytes(model.SerializeToString()[:-9])
    for arguments in (
        ["inspect", path],
        ["decompose", path, tmp_path / "out.onnx", "--force", "-v"],
        ["embed", path, "-v"],
        ["fuse", path, "-v"],
        ["compare", path, path],
        ["decompose", path, "--check", "--input-shape", f"{name}:1"],
        ["inspect", bad],
        ["decompose", path, path],
        ["decompose", path, path, path],
        ["decompose", path, f"--{name}"],
        [name],
    ):
        run = command(*arguments)
        assert_harmless(run.stdout)
        assert_harmless(run.stderr)
        assert run.stderr.count("\n") <= 1
    if "\n" not in name:
        assert terminal.printable(path.name) in command("decompose", path, path).stderr
    found = json.loads(command("inspect", path, "--json").stdout)
    assert {each["node"] for each in found["nodes"]} == {name}


def test_onnxruntime_prints_no_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"], name="\x1b[2J")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    run = command("compare", tmp_path / "m.onnx", tmp_path / "m.onnx")
    assert run.returncode == 2
    assert r"\x1b[2J" in run.stderr
    assert capfd.readouterr().err == ""


def test_file_names_that_are_not_unicode(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "m\udcff.onnx"
    path.write_bytes(model.read_bytes())
    run = command("decompose", path, "--json")
    assert json.loads(run.stdout)["output"].endswith("m\udcff.decomposed.onnx")
    run = command("decompose", path)
    assert run.returncode == 0
    assert r"m\udcff.decomposed.onnx" in run.stdout


@pytest.mark.parametrize("text", ["plain", "naïve 模型 🙂", "a\\b"])
def test_what_can_be_seen_stays(text: str) -> None:
    assert terminal.printable(text) == text


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return what runs a command whose streams are terminals, and returns what they were sent."""

    def run(*arguments: str | Path, columns: int = 60, **environment: str) -> str:
        written = Terminal()
        for name, value in {"COLUMNS": str(columns), "TERM": "xterm", **environment}.items():
            monkeypatch.setenv(name, value)
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            assert cli.run(list(map(str, arguments))) in (0, 2)
        return written.getvalue()

    return run


def test_tables_fit_a_terminal_and_are_not_wrapped_elsewhere(tmp_path: Path, on_a_terminal: Callable[..., str]) -> None:
    name = "layer/" * 40
    model = Case("cli", (4, 6)).model()
    model.graph.node[0].name = name
    onnx.save(model, tmp_path / "m.onnx")
    assert name not in on_a_terminal("inspect", tmp_path / "m.onnx", NO_COLOR="1")
    assert max(map(len, on_a_terminal("inspect", tmp_path / "m.onnx", NO_COLOR="1").splitlines())) <= 60
    run = command("inspect", tmp_path / "m.onnx", columns=60)
    assert f" {name} " in run.stdout
    assert len(run.stdout.splitlines()) == 6


def test_no_color_is_plain_text(model: Path, on_a_terminal: Callable[..., str]) -> None:
    calls = ["decompose", model, "--check"], ["decompose"], ["--help"]
    assert "\x1b[1m" in on_a_terminal(*calls[0], NO_COLOR="")
    for call in calls:
        assert "\x1b" not in on_a_terminal(*call, NO_COLOR="1")


def test_what_takes_its_time_is_told_on_standard_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_SECONDS_BEFORE_PROGRESS", 0.0)
    monkeypatch.setenv("TERM", "xterm")

    def errors_of(*arguments: str, stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.run([arguments[0], str(model), *arguments[1:]]) == 0
        return stream.getvalue()

    told = errors_of("decompose", "--check", stream=Terminal())
    for task in ("Reading m.onnx", "Rewriting m.onnx", "Comparing m.onnx with", "Writing m.decomposed.onnx"):
        assert task in told
    assert "Reading m.onnx" in errors_of("inspect", stream=Terminal())
    assert "Comparing m.onnx with m.onnx" in errors_of("compare", str(model), stream=Terminal())
    assert "Reading" not in capsys.readouterr().out
    assert errors_of("decompose", "-q", stream=Terminal()) == errors_of("decompose", stream=io.StringIO()) == ""


def test_a_progress_bar_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_SECONDS_BEFORE_PROGRESS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with terminal.Printer(as_json=False).progress("Reading \x1b]0;title\x07") as progress:
        progress(1, 2)
    assert isinstance(sys.stderr, Terminal)
    written = sys.stderr.getvalue()
    assert "Reading" in written
    assert "\x1b]0;" not in written
    assert "\x07" not in written


def broken(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(_: Path) -> None:
        raise error

    monkeypatch.setattr(cli, "load_model", load_model)


@pytest.mark.parametrize("arguments", [["inspect"], ["decompose"], ["decompose", "--output-dir", "out"]])
def test_an_error_that_nobody_expected(
    model: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(KeyError("x"), monkeypatch)
    monkeypatch.chdir(model.parent)
    assert cli.run([*arguments, str(model)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("Internal error: KeyError: 'x'. This is a fault of lnbp-onnx; please report it")
    assert "Traceback" not in errors
    monkeypatch.setenv("LNBP_ONNX_TRACEBACK", "1")
    assert cli.run([*arguments, str(model)]) == 2
    assert "in load_model" in capsys.readouterr().err


def test_too_little_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(MemoryError(), monkeypatch)
    run = command("inspect", model)
    assert run.returncode == 2
    assert run.stderr == "Error: There is not enough memory for this.\n"


@pytest.mark.parametrize(
    ("arguments", "interrupt"),
    [
        (["inspect"], KeyboardInterrupt),
        (["decompose", "--output-dir", "out"], KeyboardInterrupt),
        (["inspect"], typer.Abort),
    ],
)
def test_an_interrupt(
    model: Path, arguments: list[str], interrupt: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(interrupt(), monkeypatch)
    run = command(*arguments, model, cwd=model.parent)
    assert run.returncode == 130
    assert run.stdout == run.stderr == ""


def test_warnings_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = report.environment

    def with_a_warning() -> dict[str, object]:
        warnings.simplefilter("always")
        warnings.warn("the node 'a\x1bb' is odd", stacklevel=1)
        return environment()

    monkeypatch.setattr(report, "environment", with_a_warning)
    assert command("info", "--json").stderr == "Warning: the node 'a\\x1bb' is odd\n"


def main(arguments: list[str], monkeypatch: pytest.MonkeyPatch, output: TextIO | None) -> tuple[str | int | None, str]:
    """Run the whole program with another standard output; returns the exit code and what it said of it."""
    errors = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["lnbp-onnx", *arguments])
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert sys.stdout is output
    if output is not None:
        output.close()  # what is left in a buffer would be an error here
    return end.value.code, errors.getvalue()


needs_a_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
COMMANDS = [["--help"], ["inspect", "m.onnx"], ["inspect", "m.onnx", "--json"], ["decompose", "m.onnx", "-", "-q"]]


@needs_a_full_device
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_output(model: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    code, errors = main(arguments, monkeypatch, Path("/dev/full").open("w"))  # noqa: SIM115
    assert code == 2
    assert errors == "Error: The output cannot be written: No space left on device.\n"


@needs_a_full_device
def test_a_model_that_is_lost_is_not_called_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, errors = main(["decompose", str(model), "-"], monkeypatch, Path("/dev/full").open("w"))  # noqa: SIM115
    assert code == 2
    assert "all nodes" in errors
    assert "Wrote" not in errors


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_closed_pipe(model: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    reading, writing = os.pipe()
    os.close(reading)
    assert main(arguments, monkeypatch, os.fdopen(writing, "w")) == (terminal.EXIT_CLOSED_PIPE, "")


def test_a_closed_output(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["inspect", str(model)], monkeypatch, None) == (0, "")
    code, errors = main(["decompose", str(model), "-"], monkeypatch, None)
    assert code == 2
    assert "which is closed" in errors


def test_what_is_opened_does_not_take_the_place_of_a_closed_stream() -> None:
    saved = os.dup(0)
    os.close(0)
    try:
        terminal._open_closed_descriptors()
        os.fstat(0)
    finally:
        os.dup2(saved, 0)
        os.close(saved)


@needs_a_full_device
def test_the_program_with_closed_and_with_full_streams(model: Path) -> None:
    """Python itself has nothing to add at its end."""
    script = "lnbp-onnx decompose m.onnx >&- 2>&- <&-; echo $?; lnbp-onnx inspect m.onnx > /dev/full; echo $?"
    run = shell(script, model.parent)
    assert run.stdout.split() == ["0", "2"]
    assert run.stderr == "Error: The output cannot be written: No space left on device.\n"
    result = onnx.load(model.with_name("m.decomposed.onnx"))
    assert {node.domain for node in result.graph.node} == {""}


def test_names_are_no_emoji(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "x:fire:.onnx"
    path.write_bytes(model.read_bytes())
    assert "x:fire:.decomposed.onnx" in command("decompose", path).stdout
    assert "x:fire:.onnx" in command("decompose", path, path).stderr
