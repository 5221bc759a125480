# SPDX-License-Identifier: Apache-2.0
"""What is timed against what. Each contender computes on the same arrays into its own."""

import ctypes
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import compiled
import graphs
import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from compiled import MissingError
from onnx import helper
from problem import EPSILON, Array, Problem, Task, aligned_empty, bits

import lnbp_onnx

OURS = "lnbp"
DECOMPOSED = "decomposed"
PEERS = ("torch", "oneDNN")
GRAPHS = ("naive", "exporter")
LIMITS = ("triad", "triad, streaming")
PRODUCT = "Mul"
PRODUCT_AND_COPIES = "Mul and Identity"


class Run(Protocol):
    """Computes as many times as it is told; the loop is the contender's, so that a call costs it what it costs."""

    def __call__(self, count: int, /) -> None:
        """Compute."""


@dataclass(frozen=True)
class Contender:
    """Something to time.

    `outputs` gives what the last run computed; `sums_in` is the type that it adds up the parameter gradients in, where
    that is less than float.
    """

    name: str
    task: Task
    run: Run
    outputs: Callable[[], Mapping[str, Array]]
    note: str = ""
    sums_in: np.dtype[Any] | None = None


Builder = Callable[[Problem, int], Contender]


def kernel(problem: Problem, threads: int) -> Contender:
    """The operator in a session with the native kernel."""
    session = lnbp_onnx.inference_session(graphs.operator(problem), sess_options=_options(threads))
    return _session_contender(OURS, "gradient", session, problem)


def graph(name: str, build: Callable[[Problem], onnx.ModelProto]) -> Builder:
    """Return what makes a contender of a model in standard operators."""

    def build_contender(problem: Problem, threads: int) -> Contender:
        model = build(problem)
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), _options(threads))
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise MissingError(f"onnxruntime cannot load the model: {error}") from error
        return _session_contender(name, graphs.TASKS.get(model.graph.name, "gradient"), session, problem)

    return build_contender


def torch(problem: Problem, threads: int) -> Contender:
    """PyTorch's native_layer_norm_backward, eager; after native_layer_norm where the statistics are computed."""
    try:
        import torch  # noqa: PLC0415 (a peer that may be missing)
    except ImportError as error:
        raise MissingError(str(error)) from error
    torch.set_num_threads(threads)

    def tensor(name: str) -> Any:
        array = problem.inputs[name]
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    x, dy, gamma, beta, mean, rstd = map(tensor, ("input_forward", "output_delta", "gamma", "beta", "mean", "rstd"))
    backward = torch.ops.aten.native_layer_norm_backward.default
    forward = torch.ops.aten.native_layer_norm.default
    sizes = [problem.columns]
    computes = problem.case == "computed"
    results: tuple[Any, ...] = ()

    def run(count: int) -> None:
        nonlocal results
        with torch.inference_mode():
            for _ in itertools.repeat(None, count):
                statistics = forward(x, sizes, gamma, beta, EPSILON)[1:] if computes else (mean, rstd)
                results = backward(dy, x, sizes, *statistics, gamma, beta, [True, True, True])

    def outputs() -> dict[str, Array]:
        names = ("input_delta", "gamma_delta", "beta_delta")
        return {name: result.double().numpy() for name, result in zip(names, results, strict=True)}

    sums_in = problem.dtype if problem.dtype.itemsize < 4 else None
    return Contender("torch", "gradient", run, outputs, torch.__version__, sums_in)


def onednn(problem: Problem, threads: int) -> Contender:
    """OneDNN's layer_normalization_backward."""
    library = compiled.onednn()
    results = problem.new_outputs()
    names = ("input_forward", "output_delta", "gamma", "beta", "mean", "variance")
    arrays = [*(problem.inputs[name] for name in names), *results.values()]
    tensors = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    handle = library.BenchGradientCreate(
        problem.rows, problem.columns, problem.element_type.encode(), EPSILON, threads, tensors
    )
    if not handle:
        raise MissingError(f"oneDNN has no such primitive here: {library.BenchGradientError().decode()}")
    gradient = _Handle(handle, library.BenchGradientDestroy)

    def run(count: int) -> None:
        library.BenchGradientRun(gradient.value, count)

    note: str = library.BenchGradientDescription(handle).decode()
    return Contender("oneDNN", "gradient", run, lambda: results, note)


def triad(name: str, *, streaming: bool) -> Builder:
    """Return what makes the contender that moves as many bytes as the operator must."""

    def build(problem: Problem, threads: int) -> Contender:
        library = compiled.triad()
        a, b = bits(problem.inputs["input_forward"]), bits(problem.inputs["output_delta"])
        total = aligned_empty(a.shape, a.dtype)

        def run(count: int) -> None:
            library.BenchTriad(a.ctypes.data, b.ctypes.data, total.ctypes.data, a.size, streaming, threads, count)

        return Contender(name, "sum of bits", run, lambda: {"sum": total})

    return build


BUILDERS: dict[str, Builder] = {
    OURS: kernel,
    DECOMPOSED: graph(DECOMPOSED, graphs.decomposed),
    "naive": graph("naive", graphs.naive),
    "exporter": graph("exporter", graphs.exported),
    "torch": torch,
    "oneDNN": onednn,
    PRODUCT: graph(PRODUCT, graphs.product),
    "triad": triad("triad", streaming=False),
    "triad, streaming": triad("triad, streaming", streaming=True),
}
# Of the case "computed"; the others are told the statistics.
COMPUTING_BUILDERS = {name: BUILDERS[name] for name in (OURS, DECOMPOSED, "torch", *LIMITS)}
SMALL_BUILDERS: dict[str, Builder] = {
    **{name: BUILDERS[name] for name in (OURS, DECOMPOSED, "naive", "torch", "oneDNN")},
    PRODUCT_AND_COPIES: graph(PRODUCT_AND_COPIES, graphs.product_and_copies),
}


@dataclass(frozen=True)
class _Handle:
    value: int
    destroy: Callable[[int], None]

    def __del__(self) -> None:
        self.destroy(self.value)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def _session_contender(name: str, task: Task, session: onnxruntime.InferenceSession, problem: Problem) -> Contender:
    binding = session.io_binding()
    for wanted in session.get_inputs():
        binding.bind_ortvalue_input(wanted.name, _ort_value(problem.inputs[wanted.name]))
    gradients = problem.new_outputs()
    # The yardsticks have other outputs, of the same shapes.
    spare = dict(zip(("product", "gamma_copy", "beta_copy"), gradients.values(), strict=True))
    names = [output.name for output in session.get_outputs()]
    results = {name: (gradients | spare)[name] for name in names}
    for name_of_output, array in results.items():
        binding.bind_ortvalue_output(name_of_output, _ort_value(array))

    # Given RunOptions, onnxruntime takes ten times as long for a small model.
    run_once = session.run_with_iobinding

    def run(count: int) -> None:
        for _ in itertools.repeat(None, count):
            run_once(binding)

    return Contender(name, task, run, lambda: results, f"onnxruntime {onnxruntime.__version__}")


def _ort_value(array: Array) -> onnxruntime.OrtValue:
    """Return a value that points into the array."""
    if array.dtype == ml_dtypes.bfloat16:
        element_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element_type)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
