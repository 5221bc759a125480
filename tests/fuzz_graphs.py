# SPDX-License-Identifier: Apache-2.0
"""A fuzzer of the rewritings: ``python tests/fuzz_graphs.py --seconds 60``.

Damaged models go through `decompose`, `fuse`, `embed` and the command line. Allowed are a model that onnx's checker
takes, where it took the one that went in, and an `LnbpError`: one sentence, exit code 2. Where ONNX Runtime runs the
model, what comes out of a rewriting must compute the same. Each failing model is saved; ``--replay FILE`` runs it
again.
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from fuzz_mutations import damage_bytes, damage_fields, make_model

import lnbp_onnx
from lnbp_onnx import cli
from lnbp_onnx.protos import graph_nodes, model_nodes
from lnbp_onnx.runners import PlainRunner, Tensors, run_session

SECONDS_PER_CASE = 60
MEMORY = 8 * 2**30

_FLOATING = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

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
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        damage_fields(model, rng)
    content = model.SerializePartialToString()
    return damage_bytes(content, rng) if content and rng.random() < 0.2 else content


def check(content: bytes, runtime: "Runtime") -> str:
    """Put a model through everything; return what came of it in a word.

    Raises:
        Failure: Where something happened that is not allowed.
    """
    if runtime.ends_with(content):
        return "crashes onnx"
    way = random.Random(content).choice(list(WAYS))
    _check_command(content, way)
    try:
        model = onnx.load_from_string(content)
    except Exception:
        return "unreadable"
    outcome = "refused"
    results = {}
    for name, rewrite in WAYS.items():
        before = model.SerializeToString(deterministic=True)
        try:
            results[name] = rewrite(model)
            outcome = "rewritten"
        except lnbp_onnx.LnbpError as error:
            _check_sentence(str(error))
        if model.SerializeToString(deterministic=True) != before:
            raise Failure(f"{name} changed the model that it was given")
    if not results or not _is_valid(model):
        return outcome
    for name, result in results.items():
        onnx.checker.check_model(result, full_check=True)
        if name.startswith("decompose") and any(node.domain == lnbp_onnx.DOMAIN for node in model_nodes(result)):
            raise Failure(f"{name} left a node of domain {lnbp_onnx.DOMAIN!r}")
    if not _declares_the_truth(model):
        return "valid"
    return "same outputs" if runtime.check_outputs(model, results) else "valid"


def _is_valid(model: onnx.ModelProto) -> bool:
    """Return whether onnx takes the model, knows all of its operators, and gives no type to omitted inputs."""
    if any(not value.name for value in model.graph.value_info):
        return False
    try:
        onnx.checker.check_model(model, full_check=True)
        functions = {(function.domain, function.name) for function in model.functions}
        return all(
            (node.domain, node.op_type) in functions or onnx.defs.has(node.op_type, node.domain)
            for node in model_nodes(model)
        )
    except Exception:
        return False


def _declares_the_truth(model: onnx.ModelProto) -> bool:
    """Return whether the lengths that the model states of its values are those that follow from its inputs.

    The checker takes a symbolic length where another one is stated, and a rewriting believes what is stated.
    """
    bare = copy.deepcopy(model)
    bare.graph.ClearField("value_info")
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
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


def _check_command(content: bytes, way: str) -> None:
    """Run the command line on a file: a file appears whole, with exit code 0, or not at all, with exit code 2."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        source.write_bytes(content)
        arguments = ["lnbp-onnx", *way.split(), str(source), str(target)]
        output, errors = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(sys, "argv", arguments),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
        written = {path.name for path in Path(folder).iterdir()} - {"in.onnx"}
        if source.read_bytes() != content:
            raise Failure(f"{way} changed its input file")
        if code == 0 and written == {"out.onnx"}:
            onnx.load(target, load_external_data=False)
        elif code != cli.EXIT_UNUSABLE or written or not errors.getvalue().startswith("Error: "):
            raise Failure(f"{way}: exit code {code}, wrote {written}, said {output.getvalue()}{errors.getvalue()}")
        _check_sentence(errors.getvalue() or "nothing")


class Runtime:
    """ONNX and ONNX Runtime in a process of its own, which a broken model may end."""

    def __init__(self) -> None:
        self._pool = self._new_pool()

    def close(self) -> None:
        self._pool.shutdown()

    def ends_with(self, content: bytes) -> bool:
        """Return whether onnx alone ends its process with a model, which nothing that calls it can help."""
        return self._call(_infer, content) is _ENDED

    def check_outputs(self, model: onnx.ModelProto, results: dict[str, onnx.ModelProto]) -> bool:
        """Compare the outputs of a model with those of its rewritings; return whether the model runs at all.

        Raises:
            Failure: Where they differ, or a rewriting does not run.
        """
        # What an integer type cannot hold is undefined.
        if any(output.type.tensor_type.elem_type not in _FLOATING for output in model.graph.output):
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


def _infer(content: bytes) -> None:
    model = onnx.load_from_string(content)
    onnx.shape_inference.infer_shapes(model, data_prop=True)


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


def run(contents: Callable[[], tuple[str, bytes] | None], folder: Path) -> int:
    """Check one model after the other until there is none; return the number of different failures."""
    warnings.simplefilter("ignore")
    runtime = Runtime()
    outcomes: dict[str, int] = {}
    failures: dict[str, str] = {}
    current = folder / "current.onnx"
    while (case := contents()) is not None:
        name, content = case
        # A crash or a hang leaves the file there.
        current.write_bytes(content)
        faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True)
        try:
            outcome = check(content, runtime)
        except Exception as error:
            outcome = "failed"
            description = _describe(error)
            place = "".join(description.splitlines()[:-1])
            if place not in failures:
                failures[place] = name
                saved = folder / f"{name}.onnx"
                saved.write_bytes(content)
                print(f"\nCase {name} failed, saved as {saved}:\n{description}", flush=True)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        faulthandler.cancel_dump_traceback_later()
    runtime.close()
    current.unlink(missing_ok=True)
    print(f"{sum(outcomes.values())} models: {outcomes}; {len(failures)} different failures.")
    return len(failures)


def _describe(error: BaseException) -> str:
    """Return where an error comes from, without those that were raised in its wake."""
    while error.__cause__ is not None:
        error = error.__cause__
    return "".join(traceback.format_exception(error, chain=False)[-9:])


def main() -> None:
    """Fuzz for a time, or run one saved model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="of the first model")
    parser.add_argument("--replay", type=Path, help="a saved model")
    arguments = parser.parse_args()
    faulthandler.enable()
    _limit_memory()
    folder = Path(tempfile.mkdtemp(prefix="lnbp-fuzz-"))
    if arguments.replay:
        files = [arguments.replay]
        sys.exit(run(lambda: (files[0].stem, files.pop().read_bytes()) if files else None, folder) != 0)
    print(f"First seed {arguments.seed}; should the process end, {folder / 'current.onnx'} did it.", flush=True)
    end = time.monotonic() + arguments.seconds
    seeds = iter(range(arguments.seed, sys.maxsize))
    failed = run(lambda: (str(seed := next(seeds)), make_case(seed)) if time.monotonic() < end else None, folder)
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
