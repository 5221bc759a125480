# SPDX-License-Identifier: Apache-2.0
"""The commands: what each takes, does and says."""

import contextlib
import copy
import itertools
import logging
import math
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from onnx import ModelProto
from typer.core import TyperArgument, TyperCommand

from lnbp_onnx import api, passes, spec
from lnbp_onnx.cli import EXIT_INTERRUPTED, report
from lnbp_onnx.cli.targets import Job, UsageError, check_page, check_unused, jobs, pages, path_of
from lnbp_onnx.cli.terminal import (
    EXIT_CLOSED_PIPE,
    Printer,
    complain,
    printable,
    standard_output_failed,
    standard_streams,
    warn,
)
from lnbp_onnx.errors import LnbpError, on_command_line
from lnbp_onnx.files.model_io import (
    DEFAULT_SIZE_THRESHOLD,
    STANDARD_STREAM,
    byte_size,
    can_be_read_again,
    data_warnings,
    load_model,
    runnable,
    save_model,
)
from lnbp_onnx.graphs import edit
from lnbp_onnx.running.differences import ATOL, RTOL
from lnbp_onnx.training import optimizers
from lnbp_onnx.training.names import LossName, OptimizerName

if TYPE_CHECKING:
    import onnx_ir as ir

EXIT_FAILED = 1
EXIT_UNUSABLE = 2

TRACEBACK_VARIABLE = "LNBP_ONNX_TRACEBACK"
"""The environment variable that, set to anything, shows where in the program an error comes from."""

# Nodes that a rewriting lists: more are seldom read, and take as long as rewriting them.
_MOST_ROWS = 100

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    # In a table of rich's the names of options are cut off where the terminal is narrow.
    rich_markup_mode=None,
)


class _Command(TyperCommand):
    """A command whose help calls its arguments as its words do: IN and OUT, without types."""

    def collect_usage_pieces(self, _: Any) -> list[str]:
        """Return what follows the command's name in its usage."""
        arguments = [(each.metavar or "", each.required) for each in self._arguments()]
        return ["[OPTIONS]", *(name if required else f"[{name}]" for name, required in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of arguments and of options."""
        arguments = self._arguments()
        options = [each.get_help_record(ctx) for each in self.get_params(ctx) if each not in arguments]
        described = [(each.metavar or "", each.help or "") for each in arguments]
        for title, rows in (("Arguments", described), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _arguments(self) -> list[TyperArgument]:
        return [each for each in self.params if isinstance(each, TyperArgument)]


def _examples(*arguments: str) -> str:
    """Return the end of a help: calls that can be copied."""
    lines = [f"  lnbp-onnx {each}" for each in arguments]
    # Without \\b the lines would be filled as those of a paragraph.
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *lines])


def _command(name: str, *examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function as a command, whose docstring is its help and stands whole in the list of the commands."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        app.command(name, cls=_Command, short_help=function.__doc__, epilog=_examples(*examples))(function)
        return function

    return add


def _print_version(wanted: bool) -> None:
    if wanted:
        Printer(as_json=False).say(f"lnbp-onnx {version('lnbp-onnx')}")
        raise typer.Exit


@app.callback(
    help="LayerNormBackprop, the gradient of layer normalisation, in ONNX models.\n\n"
    "Exit codes: 0 done, or nothing to do; 1 a check failed; 2 bad usage, a bad model, or an output that cannot be "
    "written; of several models the highest. 130 interrupted; 141 the reader of the output closed it.",
    epilog=_examples("inspect model.onnx", "decompose model.onnx", "decompose --help"),
)
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Take what is no command's."""


Input = Annotated[Path, typer.Argument(metavar="IN", help="The model to read; - is standard input.", parser=path_of)]


def _target(suffix: str, more: str = "") -> Any:
    """Return the argument OUT of a command whose results are called after IN, with a suffix."""
    help_text = f"Where to write it, by default IN.{suffix}.onnx beside IN; - is standard output.{more}"
    return typer.Argument(metavar="OUT", help=help_text, parser=path_of)


Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT", help="The same as OUT.", parser=path_of)]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir", metavar="DIR", help="Write each IN into this folder, under its own name.", parser=path_of
    ),
]
InPlace = Annotated[bool, typer.Option("--in-place", help="Write over IN.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an OUT that exists.")]
ForcePage = Annotated[bool, typer.Option("--force", help="Replace a FILE that exists.")]
Check = Annotated[
    int,
    typer.Option(
        "--check",
        metavar="[N]",
        min=0,
        show_default=False,
        help="Compare IN and OUT on N random inputs, 1 without a number.",
    ),
]
Runs = Annotated[int, typer.Option("--runs", min=1, metavar="N", help="How many random inputs to compare on.")]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the random inputs.")]
Rtol = Annotated[
    float | None,
    typer.Option("--rtol", min=0, metavar="NUMBER", help=f"Relative tolerance of the comparison; {RTOL} by default."),
]
Atol = Annotated[
    float | None,
    typer.Option("--atol", min=0, metavar="NUMBER", help=f"Absolute tolerance of the comparison; {ATOL} by default."),
]
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
        help=f"From which size on a tensor is large; {DEFAULT_SIZE_THRESHOLD} by default. Large ones "
        "go to a file of their own.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and write no model.")]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write a page to look at: the nodes, and a drawing of the graph around each, before and after.",
        parser=path_of,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print nothing but errors, warnings, and JSON where asked for.")
]
TrainingOps = Annotated[
    bool,
    typer.Option("--training-ops", help="Rewrite the operators of ONNX Runtime training, such as GeluGrad, as well."),
]
ScatterReductions = Annotated[
    bool,
    typer.Option(
        "--scatter-reductions",
        help="Rewrite every ScatterND with a reduction as well: with more than one thread ONNX Runtime loses some of "
        "its updates where indices repeat.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Print also what did not change, near misses of fuse, and all of many nodes."),
]


def _size_threshold(save_as_external_data: bool, size_threshold: int | None) -> int | None:
    """Return from which size on a tensor goes to a file of its own, None where none does."""
    return DEFAULT_SIZE_THRESHOLD if save_as_external_data and size_threshold is None else size_threshold


def _is_to_stdout(planned: Sequence[Job], size_threshold: int | None) -> bool:
    """Return whether a model goes to standard output; one with external data is refused there."""
    is_to_stdout = any(job.target == STANDARD_STREAM for job in planned)
    if is_to_stdout and size_threshold is not None:
        raise UsageError("OUT is standard output, which has no folder for external data; give the name of a file.")
    return is_to_stdout


def _add_rewriting(
    name: str,
    suffix: str,
    get_passes: Callable[[], Sequence["type[ir.passes.InPlacePass]"]],
    nothing: str,
    summary: str,
    *examples: str,
    takes_training_ops: bool = False,
) -> None:
    """Add a command that applies passes: all take the same options, but for the two of decompose."""

    def command(
        model: Input,
        others: Annotated[
            list[Path] | None, _target(suffix, " With --output-dir any number of further models to read.")
        ] = None,
        output: Output = None,
        output_dir: OutputDir = None,
        in_place: InPlace = False,
        force: Force = False,
        check: Check = 0,
        rtol: Rtol = None,
        atol: Atol = None,
        input_shape: InputShapes = None,
        training_ops: TrainingOps = False,
        scatter_reductions: ScatterReductions = False,
        save_as_external_data: External = False,
        size_threshold: SizeThreshold = None,
        dry_run: DryRun = False,
        html: Html = None,
        as_json: AsJson = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        size_threshold = _size_threshold(save_as_external_data, size_threshold)
        if training_ops and check:
            raise UsageError("--check runs IN, and no inference runtime runs its training operators; leave one out.")
        if not check:
            for option, value in (("--rtol", rtol), ("--atol", atol), ("--input-shape", input_shape or None)):
                if value is not None:
                    raise UsageError(f"{option} is for a comparison; add --check.")
        rtol, atol = _tolerances(rtol, atol)
        models = [model, *(others or ())]
        request = _Request(
            check=check,
            rtol=rtol,
            atol=atol,
            input_shapes=_input_shapes(input_shape),
            size_threshold=size_threshold,
            dry_run=dry_run,
            several=output_dir is not None and len(models) > 1,
            html=html,
        )
        planned = jobs(models, output, output_dir, in_place=in_place, force=force, suffix=suffix)
        check_page(html, planned, force=force)
        to_stderr = _is_to_stdout(planned, size_threshold)
        printer = Printer(as_json, quiet, verbose, to_stderr=to_stderr)
        kinds, none = list(get_passes()), nothing
        if scatter_reductions:
            kinds, none = [passes.ScatterPass, *kinds], f"{none}, and no ScatterND with a reduction"
        if training_ops:
            kinds, none = [passes.OrtTrainingPass, *kinds], f"{none}, and no operator of ONNX Runtime training"

        def rewrite(job: Job) -> dict[str, Any]:
            if output_dir is not None and not force:
                check_unused(job)
            return _rewrite(job, request, [kind() for kind in kinds], none, printer)

        if output_dir is None:
            data = rewrite(planned[0])
            printer.data(data)
            _exit_of_check(_is_ok(data))
        if not dry_run:
            output_dir.mkdir(parents=True, exist_ok=True)
        _exit_of_several([_attempt(rewrite, job) for job in planned], printer)

    if not takes_training_ops:
        full = signature(command)
        kept = [each for each in full.parameters.values() if each.name not in ("training_ops", "scatter_reductions")]
        command.__signature__ = full.replace(parameters=kept)  # type: ignore[attr-defined]
    command.__doc__ = summary
    _command(name, *examples)(command)


_add_rewriting(
    "decompose",
    "decomposed",
    lambda: (passes.GradientNodesPass, passes.DecomposePass),
    f"the model has no {spec.OP_TYPE} node, and no Gradient node",
    f"Rewrite every {spec.OP_TYPE} node in standard operators, which any runtime executes.",
    "decompose model.onnx",
    "decompose model.onnx other.onnx --check 3",
    "decompose *.onnx --output-dir out",
    takes_training_ops=True,
)
_add_rewriting(
    "embed",
    "embedded",
    lambda: (passes.EmbedPass,),
    f"the model has no {spec.OP_TYPE} node, or all of them have the function already",
    "Add a function in standard operators beside the nodes: fast where the kernel is, standard elsewhere.",
    "embed model.onnx",
    "embed model.onnx both.onnx --check",
)
_add_rewriting(
    "fuse",
    "fused",
    lambda: (passes.FusePass,),
    "no layer-norm gradient was found (docs/matching.md has what is recognised)",
    f"Find layer-norm gradients in standard operators and make each one {spec.OP_TYPE} node.",
    "fuse model.onnx",
    "fuse model.onnx fused.onnx --dry-run -v",
)


def _given(model: Path, target: Path | None) -> list[Path]:
    return [model] if target is None else [model, target]


Wrt = Annotated[
    list[str] | None,
    typer.Option(
        "--wrt",
        metavar="PATTERN",
        help="Inputs and initializers to differentiate by, as the shell's patterns; may be repeated. By default every "
        "initializer of a floating type that NAME depends on.",
    ),
]

Loss = Annotated[
    LossName | None,
    typer.Option("--loss", help="Differentiate the mean of this loss of NAME and a label; it becomes the output loss."),
]
Label = Annotated[
    str | None, typer.Option("--label", metavar="NAME", help="A further input: what the loss compares with.")
]
ClassAxis = Annotated[
    int, typer.Option("--class-axis", help="The axis of the classes, for cross-entropy: 1 or the last one.")
]
Recompute = Annotated[
    list[str] | None,
    typer.Option(
        "--recompute",
        metavar="PATTERN",
        help="Forward values to compute again for the gradients instead of keeping them; may be repeated.",
    ),
]


@_command("gradient", "gradient model.onnx --of loss", "gradient model.onnx --of loss --wrt '*.weight'")
def gradient(
    model: Input,
    of: Annotated[str, typer.Option("--of", metavar="NAME", help="The value to differentiate.")],
    wrt: Wrt = None,
    seed: Annotated[
        str | None,
        typer.Option("--seed", metavar="NAME", help="A further input that the gradients are multiplied by."),
    ] = None,
    loss: Loss = None,
    label: Label = None,
    class_axis: ClassAxis = 1,
    recompute: Recompute = None,
    target: Annotated[Path | None, _target("gradient")] = None,
    output: Output = None,
    in_place: InPlace = False,
    force: Force = False,
    save_as_external_data: External = False,
    size_threshold: SizeThreshold = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Add the gradients of a value to a model, as outputs NAME.grad."""
    with _usage_errors():
        rewritings = api.differentiation(
            of,
            wrt=wrt,
            seed=seed,
            loss=loss,
            label=label,
            class_axis=class_axis,
            recompute=recompute or (),
            patterns=True,
        )
    size_threshold = _size_threshold(save_as_external_data, size_threshold)
    (job,) = jobs(_given(model, target), output, None, in_place=in_place, force=force, suffix="gradient")
    printer = Printer(as_json, quiet, to_stderr=_is_to_stdout([job], size_threshold))
    request = _Request(0, RTOL, ATOL, {}, size_threshold, dry_run, several=False)
    printer.data(_rewrite(job, request, rewritings, "", printer))


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Make what functions say of their arguments errors of usage."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


@_command(
    "train-step",
    "train-step joint.onnx --optimizer sgd --lr 0.1",
    "train-step m.onnx --of y --loss mse --label t",
)
def train_step(
    model: Input,
    target: Annotated[Path | None, _target("training")] = None,
    of: Annotated[
        str | None,
        typer.Option(
            "--of",
            metavar="NAME",
            help="The loss, or with --loss what it is put on. By default the gradients that the model has are taken.",
        ),
    ] = None,
    wrt: Wrt = None,
    loss: Loss = None,
    label: Label = None,
    class_axis: ClassAxis = 1,
    recompute: Recompute = None,
    optimizer: Annotated[OptimizerName, typer.Option("--optimizer", help="As torch.optim.AdamW or SGD.")] = (
        OptimizerName.ADAMW
    ),
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="NUMBER", help="The default of the input learning_rate; 0.001 where not given."),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", metavar="NUMBER", help="By default 0.01 of adamw, 0 of sgd.")
    ] = None,
    no_weight_decay: Annotated[
        list[str] | None,
        typer.Option("--no-weight-decay", metavar="PATTERN", help="Parameters that do not decay; may be repeated."),
    ] = None,
    betas: Annotated[
        tuple[float, float] | None,
        typer.Option("--betas", metavar="NUMBER NUMBER", help="Of adamw; 0.9 0.999 by default."),
    ] = None,
    eps: Annotated[float | None, typer.Option("--eps", metavar="NUMBER", help="Of adamw; 1e-8 by default.")] = None,
    momentum: Annotated[
        float | None, typer.Option("--momentum", metavar="NUMBER", help="Of sgd; 0 by default.")
    ] = None,
    dampening: Annotated[
        float | None, typer.Option("--dampening", metavar="NUMBER", help="Of sgd; 0 by default.")
    ] = None,
    nesterov: Annotated[bool | None, typer.Option("--nesterov", help="Of sgd.", show_default=False)] = None,
    clip_norm: Annotated[
        float | None, typer.Option("--clip-norm", metavar="NUMBER", help="The largest norm of all gradients together.")
    ] = None,
    accumulation_steps: Annotated[
        int,
        typer.Option("--accumulation-steps", metavar="N", help="From the gradients of how many runs a step is taken."),
    ] = 1,
    output: Output = None,
    in_place: InPlace = False,
    force: Force = False,
    save_as_external_data: External = False,
    size_threshold: SizeThreshold = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model a step of training: a batch, parameters and state in, the loss and NAME.updated of each out."""
    settings: dict[str, Any] = {
        name: value
        for name, value in {
            "lr": lr,
            "weight_decay": weight_decay,
            "no_weight_decay": no_weight_decay,
            "betas": betas,
            "eps": eps,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
        }.items()
        if value is not None
    }
    kind = optimizers.KINDS[optimizer]
    for name in settings.keys() - {field.name for field in fields(kind)}:
        raise UsageError(f"--{name.replace('_', '-')} is no setting of {optimizer}; leave it out.")
    with _usage_errors():
        rewritings = api.differentiation(
            of, wrt=wrt, loss=loss, label=label, class_axis=class_axis, recompute=recompute or (), patterns=True
        )
        step = passes.TrainingStepPass(
            kind(**settings),
            loss=of if loss is None else passes.LOSS,
            clip_norm=clip_norm,
            accumulation_steps=accumulation_steps,
        )
    size_threshold = _size_threshold(save_as_external_data, size_threshold)
    (job,) = jobs(_given(model, target), output, None, in_place=in_place, force=force, suffix="training")
    printer = Printer(as_json, quiet, to_stderr=_is_to_stdout([job], size_threshold))
    request = _Request(0, RTOL, ATOL, {}, size_threshold, dry_run, several=False)
    printer.data(_rewrite(job, request, [*rewritings, step], "", printer))


@_command(
    "compare",
    "compare model.onnx model.decomposed.onnx",
    "compare a.onnx b.onnx --input-shape x:4,128",
)
def compare(
    model_a: Annotated[Path, typer.Argument(metavar="A", help="A model; - is standard input.", parser=path_of)],
    model_b: Annotated[
        Path, typer.Argument(metavar="B", help="A model with the same inputs and outputs.", parser=path_of)
    ],
    runs: Runs = 1,
    seed: Seed = 0,
    rtol: Rtol = None,
    atol: Atol = None,
    input_shape: InputShapes = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Print also the types and shapes of the random inputs.")
    ] = False,
) -> None:
    """Run two models on the same random inputs and compare every output."""
    if model_a == model_b == STANDARD_STREAM:
        raise UsageError("A and B are both standard input, which can be read once; give the name of a file.")
    from lnbp_onnx.running.compare import compare as compare_models  # noqa: PLC0415 imports ONNX Runtime

    shapes = _input_shapes(input_shape)
    rtol, atol = _tolerances(rtol, atol)
    printer = Printer(as_json, quiet, verbose)
    with printer.working(f"Comparing {model_a.name} with {model_b.name}"):
        result = compare_models(model_a, model_b, input_shapes=shapes, runs=runs, seed=seed, rtol=rtol, atol=atol)
    data = report.comparison_data(result)
    printer.data(data)
    if printer.verbose:
        printer.show(report.inputs_table(data))
    printer.show(report.comparison_table(data))
    printer.say(report.times_sentence(data))
    printer.say(report.verdict_sentence(data, atol))
    _exit_of_check(result.ok)


@_command("inspect", "inspect model.onnx", "inspect model.onnx --html model.html")
def inspect(
    model: Input, html: Html = None, force: ForcePage = False, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """List the LayerNormBackprop nodes of a model."""
    check_page(html, [Job(model, model)], force=force)
    printer = Printer(as_json, quiet)
    with printer.working(f"Reading {model.name}"):
        loaded = load_model(model)
        operators, doubts = report.found_operators(loaded), report.training_ops_warnings(loaded)
    if html is not None:
        with printer.working(f"Drawing {model.name}"):
            pages().write(pages().inspected(model.name, loaded, doubts), html)
    printer.data({"nodes": operators, "warnings": doubts})
    for doubt in doubts:
        warn(doubt)
    if operators:
        printer.show(report.operators_table(operators))
    else:
        printer.say(f"{spec.OP_TYPE} nodes: none. lnbp-onnx fuse looks for their arithmetic in standard operators.")
    if html is not None:
        printer.say(f"Wrote {html}.")


@_command("info", "info")
def info(as_json: AsJson = False) -> None:
    """Show versions, where the kernel library is, and what is available."""
    data = report.environment()
    printer = Printer(as_json)
    printer.data(data)
    printer.show(report.environment_table(data))


def main() -> NoReturn:
    """Run the command line as a program."""
    with standard_streams() as output:
        code = run(sys.argv[1:])
        error = output.error()
        if isinstance(error, BrokenPipeError):
            code = EXIT_CLOSED_PIPE
        elif error is not None:
            complain(f"The output cannot be written: {error.strerror or error}.")
            code = EXIT_UNUSABLE
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; whatever goes wrong is a sentence on standard error."""
    # What onnx_ir has to say of a model, the errors say in words of the user's.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    with warnings.catch_warnings(), on_command_line():
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        try:
            given = _with_check_count(arguments) or ["--help"]
            code: int | None = app(args=given, prog_name="lnbp-onnx", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):  # what the second is in some versions of typer
            return EXIT_INTERRUPTED
        except Exception as error:
            _tell(error)
            return EXIT_UNUSABLE
    return (code or 0) if arguments else EXIT_UNUSABLE


def _tell(error: Exception) -> str:
    """Print what is wrong, in a sentence that is returned."""
    if TRACEBACK_VARIABLE in os.environ:
        traceback.print_exception(error)
    kind = "Error"
    if isinstance(error, LnbpError):
        sentence = str(error)
    elif isinstance(error, OSError):
        sentence = f"{error.filename or 'A file'}: {error.strerror or error}."
    elif isinstance(error, MemoryError):
        sentence = "There is not enough memory for this."
    elif hasattr(error, "format_message"):  # typer's errors of usage have no public base in all of its versions
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "lnbp-onnx"
        message = re.sub("Value error, |, unable to parse .*", "", error.format_message())
        message = message.replace("Input should be", "it must be")
        sentence = f"{message}{'' if message.endswith(('.', '?')) else '.'} See {name} --help."
    else:
        kind = "Internal error"
        sentence = (
            f"{type(error).__name__}: {error}. This is a fault of lnbp-onnx; please report it with the model, and with "
            f"what is printed where {TRACEBACK_VARIABLE}=1 is set."
        )
    complain(sentence, kind)
    return sentence


def _with_check_count(arguments: Sequence[str]) -> list[str]:
    """Give a bare ``--check`` its number, which the parser cannot make optional."""
    result = []
    # What follows "--" is no option.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for argument, following in itertools.zip_longest(arguments[:end], arguments[1:end], fillvalue=""):
        result.append(argument)
        if argument == "--check" and not following.isdecimal():
            result.append("1")
    return [*result, *arguments[end:]]


@dataclass(frozen=True, slots=True)
class _Request:
    """What a rewriting command was asked for.

    Attributes:
        check: On how many random inputs to compare; 0 for no comparison.
        rtol: Relative tolerance of the comparison.
        atol: Absolute tolerance of the comparison.
        input_shapes: Shapes by input name, for the comparison.
        size_threshold: From which size on tensors become external data; None where they stay where they are.
        dry_run: Whether to write nothing.
        several: Whether there are other models, so that what is told needs the name of this one.
        html: Where to write a page; None for no page.
    """

    check: int
    rtol: float
    atol: float
    input_shapes: dict[str, tuple[int, ...]]
    size_threshold: int | None
    dry_run: bool
    several: bool
    html: Path | None = None


def _rewrite(
    job: Job, request: _Request, rewritings: Sequence["ir.passes.InPlacePass"], nothing: str, printer: Printer
) -> dict[str, Any]:
    """Read a model, apply passes, compare if asked, write, and tell; returns what was found."""
    start = time.perf_counter()
    with printer.working(f"Reading {job.source.name}"):
        model = load_model(job.source)
    with printer.working(f"Rewriting {job.source.name}"):
        doubts = data_warnings(model, job.source)
        untouched = None if request.html is None else copy.deepcopy(model)
        original = None if can_be_read_again(job.source) or not request.check else copy.deepcopy(model)
        before = report.counts(model) | {"bytes": _bytes_of(job.source, model)}
        rewritten = edit.apply_in_place(passes.InTurn(*rewritings), model)
        assert isinstance(rewritten, passes.InTurnResult)
        modified = rewritten.modified
        after = report.counts(model)
        doubts += report.training_ops_warnings(model)
    data: dict[str, Any] = {"input": str(job.source), "warnings": doubts, "before": before, "after": after}
    for result in rewritten.results:
        data |= report.outcomes(result)
    if request.check:
        with printer.working(f"Comparing {job.source.name} with what became of it"):
            data["check"] = _check(job, request, original, model)
    ok = _is_ok(data)
    # A failed check must not cost the user the only model there is.
    left_alone = job.in_place and (not ok or (not modified and request.size_threshold is None))
    written = not request.dry_run and not left_alone
    if written:
        with printer.progress(f"Writing {job.target.name}") as progress:
            save_model(model, job.target, job.source, size_threshold=request.size_threshold, progress=progress)
    after["bytes"] = _bytes_of(job.target if written else STANDARD_STREAM, model)
    lost = written and job.target == STANDARD_STREAM and standard_output_failed()
    data["output"] = str(job.target) if written and not lost else None
    data["seconds"] = time.perf_counter() - start
    if request.html is not None and untouched is not None:
        with printer.working(f"Drawing {job.source.name}"):
            pages().write(pages().rewritten(job.source.name, untouched, model, data), request.html)

    if request.several:
        printer.say(f"{job.source}:")
    for doubt in doubts:
        warn(f"{job.source}: {doubt}" if request.several else doubt)
    if data.get("training_ops"):
        if printer.verbose:
            printer.show(report.training_ops_table(data["training_ops"]))
        printer.say(report.training_ops_sentence(data["training_ops"]))
    if data.get("scattered"):
        if printer.verbose:
            printer.show(report.scattered_table(data["scattered"]))
        printer.say(f"ScatterND nodes with a reduction rewritten: {len(data['scattered'])}.")
    if data.get("gradient_nodes"):
        printer.say(f"Gradient nodes expanded: {', '.join(map(printable, data['gradient_nodes']))}.")
    if data.get("parameters"):
        printer.say(f"Parameters that are trained: {', '.join(map(printable, data['parameters']))}.")
    elif data.get("gradients"):
        printer.say(f"Gradients: {', '.join(map(printable, data['gradients']))}.")
    if data["nodes"]:
        table = report.fused_table if "missed" in data else report.operators_table
        printer.show(table(data["nodes"], None if printer.verbose else _MOST_ROWS))
        if len(data["nodes"]) > _MOST_ROWS and not printer.verbose:
            printer.say(f"These are the first {_MOST_ROWS}; -v lists all.")
    if data.get("missed"):
        if printer.verbose:
            printer.show(report.missed_table(data["missed"]))
        else:
            printer.say(f"Near misses: {len(data['missed'])}; -v says what stopped them.")
    if modified:
        printer.show(report.change_table(before, after, data.get("check"), everything=printer.verbose))
    if request.check:
        printer.show(report.comparison_table(data["check"]))
        printer.say(report.verdict_sentence(data["check"], request.atol))
    if not modified:
        printer.say(f"Nothing to do: {nothing}.")
    if written and not lost:  # `main` says why it is lost
        copied = "" if modified else ", a copy of IN,"
        done = f"Wrote {_named(job.target)}{copied} in {data['seconds']:.2f} s"
        printer.say(f"{done}{'.' if ok else ', but the check failed.'}")
    elif not written:
        reasons = [] if ok else ["the check failed"]
        if request.dry_run:
            reasons.append("this is a dry run")
        elif ok:
            reasons.append(f"{job.source} stays as it is")
        printer.say(f"Wrote nothing: {', and '.join(reasons)}.")
    if request.html is not None:
        printer.say(f"Wrote {request.html}.")
    return data


def _named(target: Path) -> str:
    return "to standard output" if target == STANDARD_STREAM else str(target)


def _bytes_of(path: Path, model: ModelProto) -> int:
    """Return the size of a model's file, or of the model where it has none."""
    return path.stat().st_size if can_be_read_again(path) else byte_size(model)


def _check(job: Job, request: _Request, original: ModelProto | None, model: ModelProto) -> dict[str, Any]:
    """Compare IN, or what was read from it where it can be read once, with the result."""
    from lnbp_onnx.running.compare import compare as compare_models  # noqa: PLC0415 imports ONNX Runtime

    with contextlib.ExitStack() as stack:
        first = job.source if original is None else stack.enter_context(runnable(original, job.source))
        return report.comparison_data(
            compare_models(
                first,
                stack.enter_context(runnable(model, job.source)),
                input_shapes=request.input_shapes,
                runs=request.check,
                rtol=request.rtol,
                atol=request.atol,
            )
        )


def _is_ok(data: dict[str, Any]) -> bool:
    return "check" not in data or bool(data["check"]["ok"])


def _exit_of_check(ok: bool) -> NoReturn:
    raise typer.Exit(0 if ok else EXIT_FAILED)


def _attempt(rewrite: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """Rewrite one model of several: what is wrong with it must not stop the others."""
    try:
        return rewrite(job)
    except Exception as error:
        return {"input": str(job.source), "output": None, "error": _tell(error)}


def _exit_of_several(found: Sequence[dict[str, Any]], printer: Printer) -> NoReturn:
    printer.data(found)
    if any("error" in each for each in found):
        raise typer.Exit(EXIT_UNUSABLE)
    _exit_of_check(all(map(_is_ok, found)))


def _tolerances(rtol: float | None, atol: float | None) -> tuple[float, float]:
    tolerances = RTOL if rtol is None else rtol, ATOL if atol is None else atol
    if not all(map(math.isfinite, tolerances)):
        raise UsageError("A tolerance is not finite; --rtol and --atol must be.")
    return tolerances


def _input_shapes(arguments: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for argument in arguments or ():
        name, separator, dims = argument.rpartition(":")
        try:
            shape = tuple(int(dim) for dim in dims.split(",")) if dims else ()
        except ValueError:
            shape = (-1,)
        if not separator or not name or any(dim < 0 for dim in shape):
            raise UsageError(
                f"--input-shape {argument!r} is not of the form NAME:1,3,8 (a name, a colon, lengths of at least 0)."
            )
        if name in shapes:
            raise UsageError(f"--input-shape is given twice for {name!r}; give it once.")
        shapes[name] = shape
    return shapes
