# SPDX-License-Identifier: Apache-2.0
"""Which model a command reads and where it writes it: no file of the user's is replaced unasked."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lnbp_onnx.errors import LnbpError
from lnbp_onnx.files.model_io import STANDARD_STREAM


class UsageError(LnbpError):
    """Arguments of the command line that do not go together."""


@dataclass(frozen=True, slots=True)
class Job:
    """A model to read and the place to write it to."""

    source: Path
    target: Path

    @property
    def in_place(self) -> bool:
        """Whether the model is written over."""
        streams = STANDARD_STREAM in (self.source, self.target)
        return not streams and os.path.realpath(self.target) == os.path.realpath(self.source)


def path_of(argument: str) -> Path:
    """Return an argument as a path: `STANDARD_STREAM` for ``-`` alone, a file of that name for ``./-``."""
    if not argument:
        raise UsageError("An argument is empty; it must be a path (is a variable of the shell unset?).")
    path = Path(argument)
    return Path.cwd() / path if path == STANDARD_STREAM and argument != "-" else path


def jobs(
    models: Sequence[Path],
    output: Path | None,
    output_dir: Path | None,
    *,
    in_place: bool,
    force: bool,
    suffix: str,
) -> list[Job]:
    """Return what to read and where to write it.

    Args:
        models: IN, IN and OUT, or with `output_dir` any number of IN.
        output: What ``-o`` gives.
        output_dir: The folder for the results, which get the names of their IN.
        in_place: Whether to write over IN.
        force: Whether files that are there may be replaced; those in `output_dir` are left to `check_unused`, so that
            one which is there does not stop the others.
        suffix: What the name of an OUT that nothing names has before its extension.

    Raises:
        UsageError: Where the arguments contradict each other, or a file would be replaced that should not be.
    """
    if output_dir is not None:
        if output is not None or in_place:
            raise UsageError("--output-dir says where to write; leave out -o and --in-place.")
        return _jobs_into(models, output_dir)
    job = _job(models, output, in_place, suffix)
    if job.target == STANDARD_STREAM:
        _check_standard_output()
    elif not in_place and job.source != STANDARD_STREAM and _are_same(job.source, job.target):
        raise UsageError(f"OUT is IN, {job.source}; to write over it, use --in-place and no OUT.")
    if (output is not None or len(models) > 1) and not force:
        check_unused(job, both_may_be_in=output is None)
    return [job]


def check_unused(job: Job, *, both_may_be_in: bool = False) -> None:
    """Check that no file has the name of a target.

    Args:
        job: The target and its source.
        both_may_be_in: Whether the target may have been meant as a second model to read.

    Raises:
        UsageError: Where there is one.
    """
    if job.target != STANDARD_STREAM and job.target.exists():
        way_out = "give --force to replace it"
        if both_may_be_in:
            way_out += f", or --output-dir DIR if {job.source} and {job.target} are both models to read"
        raise UsageError(f"OUT is {job.target}, which exists; {way_out}.")


def check_page(html: Path | None, planned: Sequence[Job], *, force: bool) -> None:
    """Check that a page can be written beside what is planned.

    Raises:
        UsageError: Where it cannot, or would take the place of a model or, without `force`, of another file.
    """
    if html is None:
        return
    if len(planned) != 1:
        raise UsageError(f"--html is a page of one model, and {len(planned)} are given; call it once for each.")
    if html == STANDARD_STREAM or (html.exists() and not html.is_file()):
        raise UsageError(f"--html is {_named_page(html)}, which is no file; give the name of a file.")
    if not html.parent.is_dir():
        raise UsageError(f"--html is to be in {html.parent}, which is no folder; make it first.")
    if os.path.realpath(html) in {os.path.realpath(path) for job in planned for path in (job.source, job.target)}:
        raise UsageError(f"--html is {html}, which is a model of this command; give another name.")
    if html.exists() and not force:
        raise UsageError(f"--html is {html}, which exists; give --force to replace it.")
    pages()


def pages() -> ModuleType:
    """Return the module that writes pages; what it draws with is an extra of the package.

    Raises:
        UsageError: Where it is not installed.
    """
    try:
        return importlib.import_module("lnbp_onnx.cli.page")
    except ModuleNotFoundError as error:
        if error.name != "pygraphviz":
            raise
        raise UsageError(
            "--html draws with pygraphviz, which is not installed (run pip install 'lnbp-onnx[html]')."
        ) from error


def _named_page(html: Path) -> str:
    return "standard output" if html == STANDARD_STREAM else str(html)


def _jobs_into(models: Sequence[Path], folder: Path) -> list[Job]:
    if folder == STANDARD_STREAM or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"--output-dir is {folder}, which is no folder.")
    sources: dict[str, Path] = {}
    for source in models:
        if source == STANDARD_STREAM:
            raise UsageError(
                f"IN is standard input, which has no name to write it under in {folder}; give OUT and leave out "
                "--output-dir."
            )
        if source.is_dir():
            raise UsageError(f"IN is {source}, which is a folder; give the models in it by name.")
        if source.name in sources:
            raise UsageError(
                f"{sources[source.name]} and {source} have the same name, so that one would replace the other in "
                f"{folder}; give them folders of their own."
            )
        if _are_same(source, folder / source.name):
            raise UsageError(
                f"--output-dir is {folder}, the folder of {source}, which would be written over; give another folder, "
                "or one model at a time with --in-place."
            )
        sources[source.name] = source
    return [Job(source, folder / name) for name, source in sources.items()]


def _job(models: Sequence[Path], output: Path | None, in_place: bool, suffix: str) -> Job:
    if in_place and len(models) > 1:
        raise UsageError(
            f"--in-place writes over IN and takes one model, but {len(models)} paths are given; leave out OUT, or call "
            "it once for each model."
        )
    if len(models) > 2:
        raise UsageError(f"{len(models)} models are given; with several, give --output-dir DIR for the results.")
    source, *rest = models
    if rest and output is not None:
        raise UsageError("OUT is given twice, as an argument and with -o; give it once.")
    target = rest[0] if rest else output
    if in_place:
        if target is not None:
            raise UsageError("--in-place writes over IN; leave out -o, or leave out --in-place.")
        if source == STANDARD_STREAM or (source.exists() and not source.is_file()):
            raise UsageError(
                f"--in-place writes over IN, and {_named(source)} is no file; give a file, or leave out --in-place."
            )
        return Job(source, source)
    if target is None:
        if source == STANDARD_STREAM:
            return Job(source, STANDARD_STREAM)
        if _is_no_place_for_files(source):
            raise UsageError(f"IN is {source}, beside which no file belongs; give OUT, or - for standard output.")
        return Job(source, source.parent / f"{source.stem}.{suffix}{source.suffix}")
    if target != STANDARD_STREAM:
        if target.exists() and not target.is_file():
            kind = f"folder {target}" if target.is_dir() else f"device or pipe {target}"
            raise UsageError(f"OUT is the {kind}; give the name of a file, or - for standard output.")
        if not target.parent.is_dir():
            raise UsageError(f"OUT is to be in {target.parent}, which is no folder; make it first.")
    return Job(source, target)


def _is_no_place_for_files(source: Path) -> bool:
    """Return whether a path is that of a pipe or device, or of an open file such as /dev/stdin."""
    folder = Path(os.path.realpath(source.parent))
    among_devices = folder == Path("/dev") or folder.parts[1:2] == ("proc",)
    return source.exists() and not source.is_dir() and (among_devices or not source.is_file())


def _are_same(source: Path, target: Path) -> bool:
    return source.exists() and target.exists() and target.samefile(source)


def _named(path: Path) -> str:
    return "standard input" if path == STANDARD_STREAM else str(path)


def _check_standard_output() -> None:
    if sys.stdout is None:
        raise UsageError("OUT is standard output, which is closed; give the name of a file.")
    if sys.stdout.isatty():
        raise UsageError(
            "OUT is standard output, which is a terminal, and a model is no text; send it to a file or a program, or "
            "give OUT."
        )
