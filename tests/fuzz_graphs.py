# SPDX-License-Identifier: Apache-2.0
"""A fuzzer of the rewritings and of all that reads a model: ``python tests/fuzz_graphs.py --seconds 60``.

Damaged models, some with external data, go through the functions of the API as both kinds of models, and through the
command line. Allowed are a model that onnx's checker takes, where it took the one that went in, and an `LnbpError`:
one sentence, exit code 2. Where ONNX Runtime runs the model, what comes out of a rewriting must compute the same. All
runs in a child process with a limit on memory and time: one that ends or hangs has failed, too.

The cases follow from their seeds: ``--case SEED`` runs one again. Each kind of failure is saved once, made smaller, as
``SEED.onnx`` and the exit code is 1; ``--replay FILE`` runs a saved model.
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import itertools
import json
import multiprocessing
import operator
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from fuzz_mutations import (
    damage_bytes,
    damage_external_data,
    damage_fields,
    damage_meaning,
    damage_wire,
    make_model,
)

import lnbp_onnx
from lnbp_onnx.cli import commands as cli
from lnbp_onnx.files.model_io import has_external_data
from lnbp_onnx.graphs import onnx_calls
from lnbp_onnx.graphs.faults import text_fault_of
from lnbp_onnx.graphs.protos import graph_nodes, model_nodes
from lnbp_onnx.running.runners import PlainRunner, Tensors, run_session

SECONDS_PER_CASE = 120
SECONDS_TO_REDUCE = 30
MEMORY = 3 * 2**30

_FLOATING = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

DATA_FILE = "weights.bin"
LARGEST_TO_RUN = 2**20
REWRITING_COMMANDS = (
    "decompose -q",
    "decompose --training-ops -q",
    "embed",
    "fuse -v",
    "decompose --check -q",
    "embed --save-as-external-data --size-threshold 64 -q",
)
READING_COMMANDS = ("inspect", "inspect --json", "compare")

WAYS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "decompose": lnbp_onnx.decompose,
    "decompose --training-ops": partial(lnbp_onnx.decompose, training_ops=True),
    "embed": lnbp_onnx.embed,
    "fuse": lnbp_onnx.fuse,
}


_ENDED = object()


class Failure(Exception):
    """What is not allowed."""


def make_case(seed: int) -> bytes:
    """Return a damaged model as a file has it."""
    rng = random.Random(seed)
    model = make_model(rng)
    if rng.random() < 0.15:
        _move_data_out(model)
        damage_external_data(model, rng)
    damage = rng.choice((damage_fields, damage_fields, damage_meaning))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        damage(model, rng)
    if rng.random() < 0.1:
        return damage_wire(model, rng)
    content = model.SerializePartialToString()
    return damage_bytes(content, rng) if content and rng.random() < 0.2 else content


def _move_data_out(model: onnx.ModelProto) -> None:
    """Make the initializers external, in one file."""
    at = 0
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data"):
            onnx.external_data_helper.set_external_data(tensor, DATA_FILE, at, len(tensor.raw_data))
            at += len(tensor.raw_data)
            tensor.ClearField("raw_data")


def check(content: bytes, runtime: "Runtime") -> str:
    """Put a model through everything; return what came of it in a word.

    Raises:
        Failure: Where something happened that is not allowed.
    """
    rng = random.Random(content)
    _check_command(content, rng.choice(REWRITING_COMMANDS))
    _check_command(content, rng.choice(READING_COMMANDS))
    try:
        model = onnx.load_from_string(content)
    except Exception:
        return "unreadable"
    outcome = "refused"
    results: dict[str, onnx.ModelProto] = {}
    for name, rewrite in WAYS.items():
        result = _outcome(rewrite, model, name)
        if result is not None:
            results[name] = result
            outcome = "rewritten"
    way = rng.choice(list(WAYS))
    is_taken = _takes_other_kind(model, way)
    if model.ByteSize() < LARGEST_TO_RUN:
        for read in (lnbp_onnx.inference_session, lambda each: lnbp_onnx.compare(each, each)):
            with contextlib.suppress(lnbp_onnx.LnbpError):
                read(model)
    if not _knows_all_operators(model) or not runtime.is_valid(model):
        return outcome
    if is_taken not in (None, way in results):
        raise Failure(f"{way} takes one kind of the model and refuses the other")
    for name, result in results.items():
        if not runtime.is_valid(result):
            raise Failure(f"the result of {name} is invalid: {runtime.refusal(result)}")
        if name.startswith("decompose") and any(node.domain == lnbp_onnx.DOMAIN for node in model_nodes(result)):
            raise Failure(f"{name} left a node of domain {lnbp_onnx.DOMAIN!r}")
    if has_external_data(model) or not _declares_the_truth(model):
        return "valid"
    return "same outputs" if runtime.check_outputs(model, results) else "valid"


def _outcome(rewrite: Callable[[Any], Any], model: Any, name: str) -> Any:
    """Return what a rewriting gives, None where it refuses; the model stays as it was."""
    before = model.SerializeToString(deterministic=True) if isinstance(model, onnx.ModelProto) else None
    result = None
    try:
        result = rewrite(model)
    except lnbp_onnx.LnbpError as error:
        _check_sentence(str(error))
        if "this is one of lnbp-onnx" in str(error):
            raise
    if before is not None and model.SerializeToString(deterministic=True) != before:
        raise Failure(f"{name} changed the model that it was given")
    return result


def _takes_other_kind(model: onnx.ModelProto, way: str) -> bool | None:
    """Return whether a rewriting takes the model as an ``onnx_ir.Model``, None where it cannot be one."""
    try:
        same = ir.from_proto(model)
    except Exception:
        return None
    return _outcome(WAYS[way], same, way) is not None


def _knows_all_operators(model: onnx.ModelProto) -> bool:
    """Return whether onnx knows all of the model's operators, and it gives no type to omitted inputs."""
    if text_fault_of(model) is not None or any(not value.name for value in model.graph.value_info):
        return False
    functions = {(function.domain, function.name) for function in model.functions}
    return all(
        (node.domain, node.op_type) in functions or onnx.defs.has(node.op_type, node.domain)
        for node in model_nodes(model)
    )


def _declares_the_truth(model: onnx.ModelProto) -> bool:
    """Return whether the lengths that the model states of its values are those that follow from its inputs.

    The checker takes a symbolic length where another one is stated, and a rewriting believes what is stated.
    """
    bare = copy.deepcopy(model)
    bare.graph.ClearField("value_info")
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx_calls.infer_shapes(bare).graph
    except Exception:
        return False
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*inferred.value_info, *inferred.output)}
    return all(
        stated.WhichOneof("value") == found.WhichOneof("value") and stated.dim_value == found.dim_value
        for value in (*model.graph.value_info, *model.graph.output)
        for stated, found in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False)
        if stated.WhichOneof("value") and found.WhichOneof("value")
    )


def _check_sentence(message: str) -> None:
    if not message.strip() or "Traceback" in message:
        raise Failure(f"The message is {message!r}")


def _check_command(content: bytes, command: str) -> None:
    """Run the command line on a file: a file appears whole, with exit code 0, or not at all, with exit code 2."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "sub" / "out.onnx"
        target.parent.mkdir()
        source.write_bytes(content)
        (Path(folder) / DATA_FILE).write_bytes(bytes(2048))
        name, *options = command.split()
        operands = {"inspect": [str(source)], "compare": [str(source), str(source)]}.get(
            name, [str(source), str(target)]
        )
        output, errors = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(sys, "argv", ["lnbp-onnx", name, *options, *operands]),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
        written = {path.name for path in target.parent.iterdir()}
        if source.read_bytes() != content or {path.name for path in Path(folder).iterdir()} != {
            "in.onnx",
            "sub",
            DATA_FILE,
        }:
            raise Failure(f"{command} changed its input file or its folder")
        said = output.getvalue() + errors.getvalue()
        if code == 0 and name not in ("inspect", "compare"):
            if "out.onnx" not in written or written - {"out.onnx", "out.onnx.data"}:
                raise Failure(f"{command}: exit code 0, wrote {written}, said {said}")
            onnx.load(target, load_external_data=False)
        elif code == 1 and (name == "compare" or "--check" in options):
            # Code 1 says that outputs differ, which a model with floating outputs must not after a rewriting.
            if name != "compare" and _has_floating_outputs(onnx.load_from_string(content)):
                raise Failure(f"{command}: exit code {code}, said {said}")
        elif code not in (0, cli.EXIT_UNUSABLE):
            raise Failure(f"{command}: exit code {code}, said {said}")
        elif code == cli.EXIT_UNUSABLE and (written or not errors.getvalue().startswith("Error: ")):
            raise Failure(f"{command}: exit code {code}, wrote {written}, said {said}")
        _check_sentence(errors.getvalue() or "nothing")


def _has_floating_outputs(model: onnx.ModelProto) -> bool:
    """Return whether all outputs have floating types: what an integer type cannot hold is undefined."""
    return all(output.type.tensor_type.elem_type in _FLOATING for output in model.graph.output)


class Runtime:
    """ONNX and ONNX Runtime in a process of its own, which a broken model may end."""

    def __init__(self) -> None:
        self._pool = self._new_pool()

    def close(self) -> None:
        self._pool.shutdown()

    def is_valid(self, model: onnx.ModelProto) -> bool:
        """Return whether onnx's checker takes a model."""
        return self.refusal(model) is None

    def refusal(self, model: onnx.ModelProto) -> object:
        """Return what onnx's checker says against a model, None where it takes it."""
        return self._call(_refusal, model.SerializeToString())

    def check_outputs(self, model: onnx.ModelProto, results: dict[str, onnx.ModelProto]) -> bool:
        """Compare the outputs of a model with those of its rewritings; return whether the model runs at all.

        Raises:
            Failure: Where they differ, or a rewriting does not run.
        """
        if not _has_floating_outputs(model):
            return False
        # An embedded function that was damaged is not the operator, and takes shapes that the operator does not.
        if any(function.domain == lnbp_onnx.DOMAIN for function in model.functions):
            return False
        if self._call(_is_well_conditioned, model) is not True:
            return False
        for name, result in results.items():
            # ONNX Runtime does not load some of these, whatever the kernel.
            if any(node.domain == lnbp_onnx.DOMAIN for each in result.functions for node in graph_nodes(each.node)):
                continue
            self._compare(model, result, name)
        return True

    def _compare(self, model: onnx.ModelProto, result: onnx.ModelProto, name: str) -> None:
        differing = self._call(_differing_outputs, model, result)
        if not isinstance(differing, list):
            reason = "it ends the process" if differing is _ENDED else differing
            raise Failure(f"the result of {name} does not run: {reason}")
        if differing:
            raise Failure(f"the result of {name} computes something else: {differing}")

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns there, the error that it raises, or `_ENDED`."""
        try:
            return self._pool.submit(function, *arguments).result(timeout=SECONDS_PER_CASE / 2)
        except (BrokenProcessPool, TimeoutError):
            for process in list(self._pool._processes.values()):
                process.kill()
            self._pool = self._new_pool()
            return _ENDED
        except Exception as error:
            return error

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_worker)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _start_worker() -> None:
    _limit_memory()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where ONNX Runtime writes what it raises as well


def _refusal(content: bytes) -> str | None:
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:
        return str(error)
    return None


def _run(model: onnx.ModelProto, feeds: Tensors) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # The optimiser drops values that are still in use where an Identity of them is a graph output.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if any(function.domain == lnbp_onnx.DOMAIN for function in model.functions):
        outputs = PlainRunner(model, options).run(feeds)
    else:
        outputs = run_session(lnbp_onnx.inference_session(model, sess_options=options), feeds)
    return {name: output.astype(np.float64) for name, output in outputs.items()}


def _is_well_conditioned(model: onnx.ModelProto) -> bool:
    """Return whether a model runs, on numbers of a size, and gives nearly the same for nearly the same inputs.

    Where a damaged weight is huge, sums that cancel it are nothing but rounding.
    """
    rng = np.random.default_rng(1)
    feeds = _draw(model.graph)
    moved = {}
    for name, value in feeds.items():
        factors = 1 if value.dtype.kind in "biu" else rng.uniform(1 - 1e-6, 1 + 1e-6, value.shape)
        moved[name] = np.asarray(value * factors).astype(value.dtype)
    outputs, others = _run(model, feeds), _run(model, moved)
    is_large = any(not np.abs(output).max(initial=0) < 1e6 for output in outputs.values())
    return not is_large and not any(_differ(output, others[name]) for name, output in outputs.items())


def _differing_outputs(model: onnx.ModelProto, result: onnx.ModelProto) -> list[str]:
    feeds = _draw(model.graph)
    outputs, others = _run(model, feeds), _run(result, feeds)
    return [name for name, output in outputs.items() if _differ(output, others[name])]


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two outputs differ by more than rounding in float and the half types makes of them."""
    return a.shape != b.shape or not np.abs(a - b).max(initial=0) <= 1e-4 + 0.01 * np.abs(a).max(initial=0)


def _draw(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return inputs away from 0 and of one sign, for whichever of them is a variance or 1/std."""
    rng = np.random.default_rng(0)
    initialized = {tensor.name for tensor in graph.initializer}
    feeds = {}
    for value in graph.input:
        if value.name not in initialized:
            tensor_type = value.type.tensor_type
            shape = [dim.dim_value if dim.HasField("dim_value") else 2 for dim in tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
            drawn = rng.integers(0, 2, shape) if dtype.kind in "biu" else rng.uniform(0.5, 1.5, shape)
            feeds[value.name] = np.asarray(drawn).astype(dtype)
    return feeds


def work(cases: Iterable[tuple[str, bytes]]) -> None:
    """Check one model after the other; print its name before, and what came of it after."""
    warnings.simplefilter("ignore")
    faulthandler.enable()
    _limit_memory()
    with os.fdopen(os.dup(1), "w", buffering=1) as reports:
        # What else is written there is not for the parent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        runtime = Runtime()
        for name, content in cases:
            print(json.dumps([name, "started", "", ""]), file=reports)
            try:
                outcome, place, description = check(content, runtime), "", ""
            except Exception as error:
                outcome, (place, description) = "failed", _describe(error)
            print(json.dumps([name, outcome, place, description]), file=reports)
        runtime.close()


def _describe(error: BaseException) -> tuple[str, str]:
    """Return where an error comes from, and all of it, without those that were raised in its wake."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    place = " ".join(f"{Path(frame.filename).name}:{frame.name}" for frame in frames[-3:])
    if isinstance(error, Failure):
        place += str(error)[:60]
    return f"{type(error).__name__} {place}", "".join(traceback.format_exception(error, chain=False)[-9:])


class Worker:
    """A child process that checks cases, and is replaced where one ends it."""

    def __init__(self, *arguments: str) -> None:
        program = [sys.executable, "-W", "ignore", __file__, *arguments]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=True
        )

    def outcomes(self, seconds: float) -> Iterator[tuple[str, str, str, str]]:
        """Yield for each case its name, the outcome, the place of a failure and its description."""
        assert self._process.stdout is not None
        current = None
        end = time.monotonic() + seconds
        timer = threading.Timer(SECONDS_PER_CASE, self._kill)
        timer.start()
        try:
            for line in self._process.stdout:
                name, outcome, place, description = json.loads(line)
                timer.cancel()
                timer = threading.Timer(SECONDS_PER_CASE, self._kill)
                timer.start()
                current = name if outcome == "started" else None
                if current is None:
                    yield name, outcome, place, description
                    if time.monotonic() > end:
                        return
            if current is not None:
                self._errors.seek(0)
                yield current, "failed", f"the process ends with {self._process.wait()}", self._errors.read()[-1500:]
        finally:
            timer.cancel()
            self._kill()
            self._process.wait()
            self._process.stdout.close()
            self._errors.close()

    def _kill(self) -> None:
        """End the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def fuzz(first: int, seconds: float, folder: Path) -> int:
    """Check the cases from a seed on for a time; return the number of different failures."""
    outcomes: dict[str, int] = {}
    failures: dict[str, str] = {}
    end = time.monotonic() + seconds
    seed = first
    while time.monotonic() < end:
        for name, outcome, place, description in Worker("--work", str(seed)).outcomes(end - time.monotonic()):
            seed = int(name) + 1
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if outcome == "failed" and place not in failures:
                failures[place] = name
                print(f"\nCase {name} failed, {place}:\n{description}", flush=True)
                saved = folder / f"{name}.onnx"
                saved.write_bytes(make_case(int(name)))
                _reduce(saved, place)
                print(f"saved as {saved} ({saved.stat().st_size} bytes)", flush=True)
    print(f"{sum(outcomes.values())} models from {first} on: {outcomes}; {len(failures)} different failures.")
    return len(failures)


def _failure_of(content: bytes, folder: Path) -> str | None:
    """Return the place of a model's failure."""
    path = folder / "candidate.onnx"
    path.write_bytes(content)
    return next((item[2] for item in Worker("--work-file", str(path)).outcomes(SECONDS_PER_CASE) if item[2]), None)


def _reduce(saved: Path, place: str) -> None:
    """Leave out of a saved model what its failure does not need, for some seconds."""
    end = time.monotonic() + SECONDS_TO_REDUCE
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
        model = onnx.load_from_string(saved.read_bytes())
        for field in (
            "functions",
            "graph.node",
            "graph.value_info",
            "graph.initializer",
            "graph.output",
            "graph.input",
        ):
            count = len(operator.attrgetter(field)(model))
            parts = count
            while parts and time.monotonic() < end:
                for at in range(0, len(operator.attrgetter(field)(model)), parts):
                    smaller = copy.deepcopy(model)
                    del operator.attrgetter(field)(smaller)[at : at + parts]
                    content = smaller.SerializePartialToString()
                    if time.monotonic() < end and _failure_of(content, Path(folder)) == place:
                        model = smaller
                        saved.write_bytes(content)
                        break
                else:
                    parts //= 2


def main() -> None:
    """Fuzz for a time, or run one case or saved model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="of the first model")
    parser.add_argument("--case", type=int, help="the seed of the only model")
    parser.add_argument("--replay", type=Path, help="a saved model")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work-file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work((str(seed), make_case(seed)) for seed in itertools.count(arguments.work))
        return
    if arguments.work_file is not None:
        work([(arguments.work_file.stem, arguments.work_file.read_bytes())])
        return
    folder = Path(tempfile.mkdtemp(prefix="lnbp-fuzz-"))
    if arguments.case is None and arguments.replay is None:
        sys.exit(fuzz(arguments.seed, arguments.seconds, folder) != 0)
    path = arguments.replay or folder / f"{arguments.case}.onnx"
    if arguments.replay is None:
        path.write_bytes(make_case(arguments.case))
    failed = False
    for _, outcome, place, description in Worker("--work-file", str(path)).outcomes(SECONDS_PER_CASE):
        print(f"{path}: {outcome} {place}\n{description}")
        failed |= outcome == "failed"
    sys.exit(failed)


if __name__ == "__main__":
    main()
