# SPDX-License-Identifier: Apache-2.0
"""The command line: ``lnbp-onnx``."""

import contextlib
import io
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, NoReturn

import onnx_ir as ir
import typer
from onnx import ModelProto
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from lnbp_onnx import report, spec
from lnbp_onnx.edit import apply_in_place
from lnbp_onnx.errors import LnbpError
from lnbp_onnx.model_io import DEFAULT_SIZE_THRESHOLD, Progress, load_model, runnable, save_model
from lnbp_onnx.passes import DecomposePass, EmbedPass, FusePass, OrtTrainingPass
from lnbp_onnx.verify import compare as compare_models

EXIT_FAILED = 1
EXIT_UNUSABLE = 2

# A shorter task is over before a progress bar can be read.
_SECONDS_BEFORE_PROGRESS = 1.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LayerNormBackprop, the gradient of layer normalisation, in ONNX models.\n\n"
    "Exit codes: 0 done, or nothing to do; 1 a check failed; 2 bad usage or a bad model.",
)

Input = Annotated[Path, typer.Argument(metavar="IN", help="The model to read.", show_default=False)]
Target = Annotated[
    Path | None, typer.Argument(metavar="[OUT]", help="Where to write; by default a name after IN's, beside it.")
]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT", help="The same as OUT.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Write over IN.")]
Check = Annotated[
    int,
    typer.Option("--check", metavar="[N]", min=0, help="Compare IN and OUT on N random inputs, 1 without a number."),
]
Runs = Annotated[int, typer.Option("--runs", min=1, help="How many random inputs to compare on.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random inputs.")]
Rtol = Annotated[float, typer.Option("--rtol", min=0, help="Relative tolerance of the comparison.")]
Atol = Annotated[float, typer.Option("--atol", min=0, help="Absolute tolerance of the comparison.")]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME:1,3,8",
        help="An input's shape for the comparison; may be repeated. Symbolic dimensions are 2 unless given.",
    ),
]
External = Annotated[
    bool, typer.Option("--save-as-external-data", help="Write large tensors to a file of their own beside OUT.")
]
SizeThreshold = Annotated[
    int | None,
    typer.Option(
        "--size-threshold",
        min=0,
        metavar="BYTES",
        help=f"From which size on a tensor is large; {DEFAULT_SIZE_THRESHOLD} by default. It implies the option above.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors, and JSON where asked for.")]
TrainingOps = Annotated[
    bool,
    typer.Option("--training-ops", help="Rewrite the operators of ONNX Runtime training, such as GeluGrad, as well."),
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Print also what did not change, and near misses of fuse.")
]


def _add_rewriting(
    name: str,
    suffix: str,
    make_pass: Callable[[], ir.passes.InPlacePass],
    nothing: str,
    summary: str,
    *,
    takes_training_ops: bool = False,
) -> None:
    """Add a command that applies a pass: all of them take the same options, --training-ops but for one."""

    def command(
        model: Input,
        target: Target = None,
        output: Output = None,
        in_place: InPlace = False,
        check: Check = 0,
        rtol: Rtol = 1e-5,
        atol: Atol = 1e-6,
        input_shape: InputShapes = None,
        training_ops: TrainingOps = False,
        save_as_external_data: External = False,
        size_threshold: SizeThreshold = None,
        dry_run: DryRun = False,
        as_json: AsJson = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        if save_as_external_data and size_threshold is None:
            size_threshold = DEFAULT_SIZE_THRESHOLD
        if training_ops and check:
            raise typer.BadParameter("--check runs IN, and no inference runtime runs its training operators.")
        request = _Request(
            source=model,
            target=_target(model, target, output, in_place, suffix),
            check=check,
            rtol=rtol,
            atol=atol,
            input_shapes=_input_shapes(input_shape, check),
            size_threshold=size_threshold,
            dry_run=dry_run,
        )
        printer = _Printer(as_json, quiet, verbose)
        if training_ops:
            none = f"{nothing}, and no operator of ONNX Runtime training"
            _rewrite(request, [OrtTrainingPass(), make_pass()], none, printer)
        _rewrite(request, [make_pass()], nothing, printer)

    if not takes_training_ops:
        full = signature(command)
        kept = [each for each in full.parameters.values() if each.name != "training_ops"]
        command.__signature__ = full.replace(parameters=kept)  # type: ignore[attr-defined]
    app.command(name, help=summary)(command)


_add_rewriting(
    "decompose",
    "decomposed",
    DecomposePass,
    f"the model has no {spec.OP_TYPE} node",
    f"Rewrite every {spec.OP_TYPE} node in standard operators, which any runtime executes.",
    takes_training_ops=True,
)
_add_rewriting(
    "embed",
    "embedded",
    EmbedPass,
    f"the model has no {spec.OP_TYPE} node, or all of them have the function already",
    "Add a function in standard operators beside the nodes: fast where the kernel is, standard elsewhere.",
)
_add_rewriting(
    "fuse",
    "fused",
    FusePass,
    "no layer-norm gradient was found",
    f"Find layer-norm gradients in standard operators and make each one {spec.OP_TYPE} node.",
)


@app.command()
def compare(
    model_a: Annotated[Path, typer.Argument(metavar="A", help="A model.", show_default=False)],
    model_b: Annotated[Path, typer.Argument(metavar="B", help="A model with the same inputs and outputs.")],
    runs: Runs = 1,
    seed: Seed = 0,
    rtol: Rtol = 1e-5,
    atol: Atol = 1e-6,
    input_shape: InputShapes = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run two models on the same random inputs and compare every output."""
    shapes = _input_shapes(input_shape, runs)
    result = compare_models(model_a, model_b, input_shapes=shapes, runs=runs, seed=seed, rtol=rtol, atol=atol)
    data = report.comparison_data(result)
    printer = _Printer(as_json, quiet)
    printer.data(data)
    printer.show(report.comparison_table(data))
    _exit_of_check(result.ok)


@app.command()
def inspect(model: Input, as_json: AsJson = False) -> None:
    """List the LayerNormBackprop nodes of a model."""
    operators = report.found_operators(load_model(model))
    printer = _Printer(as_json)
    printer.data({"nodes": operators})
    printer.show(report.operators_table(operators))


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show versions, where the kernel library is, and what is available."""
    data = report.environment()
    printer = _Printer(as_json)
    printer.data(data)
    printer.show(report.environment_table(data))


def main() -> NoReturn:
    """Run the command line; an error that the package raises on purpose is a sentence, not a traceback."""
    # What onnx_ir has to say of a model, the errors say in words of the user's.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        app(args=_with_check_count(sys.argv[1:]), prog_name="lnbp-onnx")
    except LnbpError as error:
        _complain(str(error))
    except OSError as error:
        _complain(f"{error.filename or 'The output'}: {error.strerror or error}.")
    sys.exit(EXIT_UNUSABLE)


def _complain(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"Error: {sentence}", style="red", markup=False, highlight=False)


def _with_check_count(arguments: Sequence[str]) -> list[str]:
    """Give a bare ``--check`` its number, which the parser cannot make optional."""
    result = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        result.append(argument)
        if argument == "--check" and not following.isdecimal():
            result.append("1")
    return result


@dataclass(frozen=True, slots=True)
class _Request:
    """What a rewriting command was asked for; `size_threshold` is None where tensors stay where they are."""

    source: Path
    target: Path
    check: int
    rtol: float
    atol: float
    input_shapes: dict[str, tuple[int, ...]]
    size_threshold: int | None
    dry_run: bool

    @property
    def in_place(self) -> bool:
        return os.path.realpath(self.target) == os.path.realpath(self.source)


class _Printer:
    """Prints findings as tables, as JSON, or not at all."""

    def __init__(self, as_json: bool, quiet: bool = False, verbose: bool = False) -> None:
        self._as_json = as_json
        self._console = Console(quiet=quiet or as_json)
        self.verbose = verbose

    def data(self, data: dict[str, Any]) -> None:
        if self._as_json:
            print(json.dumps(data, indent=2))

    def show(self, content: Any) -> None:
        self._console.print(content, highlight=False)

    def say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, task: str) -> Iterator[Progress]:
        """Show a bar where the output is a terminal and the task takes its time."""
        columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        bar = ProgressBar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        identifier = bar.add_task(task, total=None)
        timer = threading.Timer(_SECONDS_BEFORE_PROGRESS, bar.start)
        timer.daemon = True
        timer.start()
        try:
            yield lambda done, total: bar.update(identifier, completed=done, total=total)
        finally:
            timer.cancel()
            bar.stop()


def _rewrite(
    request: _Request, rewritings: Sequence[ir.passes.InPlacePass], nothing: str, printer: _Printer
) -> NoReturn:
    """Read a model, apply passes, compare if asked, write, and tell; exits with the command's code."""
    start = time.perf_counter()
    with printer.progress(f"Rewriting {request.source.name}"):
        model = load_model(request.source)
        before: dict[str, Any] = {"operators": report.operator_counts(model), "bytes": request.source.stat().st_size}
        results = [apply_in_place(rewriting, model) for rewriting in rewritings]
        modified = any(result.modified for result in results)
        after: dict[str, Any] = {"operators": report.operator_counts(model), "bytes": model.ByteSize()}
    data: dict[str, Any] = {"before": before, "after": after}
    for result in results:
        data |= report.outcomes(result)
    ok = True
    if request.check:
        data["check"] = _check(request, model)
        ok = data["check"]["ok"]
    # A failed check must not cost the user the only model there is.
    written = not request.dry_run and (ok or not request.in_place)
    if written:
        with printer.progress(f"Writing {request.target.name}") as progress:
            save_model(model, request.target, request.source, size_threshold=request.size_threshold, progress=progress)
        after["bytes"] = request.target.stat().st_size
    data["output"] = str(request.target) if written else None
    data["seconds"] = time.perf_counter() - start

    printer.data(data)
    if data.get("training_ops"):
        if printer.verbose:
            printer.show(report.training_ops_table(data["training_ops"]))
        printer.say(report.training_ops_sentence(data["training_ops"]))
    if data["nodes"]:
        table = report.fused_table if "missed" in data else report.operators_table
        printer.show(table(data["nodes"]))
    if data.get("missed"):
        if printer.verbose:
            printer.show(report.missed_table(data["missed"]))
        else:
            printer.say(f"Near misses: {len(data['missed'])}; -v says what stopped them.")
    if modified:
        printer.show(report.change_table(before, after, data.get("check"), everything=printer.verbose))
    if request.check:
        printer.show(report.comparison_table(data["check"]))
    if not modified:
        printer.say(f"Nothing to do: {nothing}.")
    reasons = [] if ok else ["the check failed"]
    if request.dry_run:
        reasons.append("this is a dry run")
    if written:
        printer.say(f"Wrote {request.target} in {data['seconds']:.2f} s{'.' if ok else ', but the check failed.'}")
    else:
        printer.say(f"Wrote nothing: {', and '.join(reasons)}.")
    _exit_of_check(ok)


def _check(request: _Request, model: ModelProto) -> dict[str, Any]:
    with runnable(model, request.source) as result:
        return report.comparison_data(
            compare_models(
                request.source,
                result,
                input_shapes=request.input_shapes,
                runs=request.check,
                rtol=request.rtol,
                atol=request.atol,
            )
        )


def _exit_of_check(ok: bool) -> NoReturn:
    raise typer.Exit(0 if ok else EXIT_FAILED)


def _target(source: Path, argument: Path | None, option: Path | None, in_place: bool, suffix: str) -> Path:
    """Return where to write; the input only with ``--in-place``."""
    if argument is not None and option is not None:
        raise typer.BadParameter("OUT is given twice, as an argument and with -o; give it once.")
    target = argument or option
    if in_place:
        if target is not None:
            raise typer.BadParameter("--in-place writes over IN; leave OUT away, or leave --in-place away.")
        return source
    if target is None:
        return source.with_name(f"{source.stem}.{suffix}{source.suffix}")
    if target.exists() and not target.is_file():
        kind = "folder" if target.is_dir() else "device or pipe"
        raise typer.BadParameter(f"OUT is the {kind} {target}; give the name of a file.")
    if not target.parent.is_dir():
        raise typer.BadParameter(f"OUT is to be in {target.parent}, which is no folder; make it first.")
    if target.exists() and source.exists() and target.samefile(source):
        raise typer.BadParameter("OUT is IN; to write over it, use --in-place and no OUT.")
    return target


def _input_shapes(arguments: Sequence[str] | None, runs: int) -> dict[str, tuple[int, ...]]:
    if arguments and not runs:
        raise typer.BadParameter("--input-shape is for a comparison; add --check.")
    shapes = {}
    for argument in arguments or ():
        name, separator, dims = argument.rpartition(":")
        try:
            shape = tuple(int(dim) for dim in dims.split(",")) if dims else ()
        except ValueError:
            shape = (-1,)
        if not separator or not name or any(dim < 0 for dim in shape):
            raise typer.BadParameter(
                f"--input-shape {argument!r} is not of the form NAME:1,3,8 (a name, a colon, lengths of at least 0)."
            )
        shapes[name] = shape
    return shapes
