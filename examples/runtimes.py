# SPDX-License-Identifier: Apache-2.0
"""Runtimes that do not know LayerNormBackprop, each as a function from the path of a model to what runs it.

What is opened gives the runtime's version and a function from inputs to outputs, both by name.
"""

import base64
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx

from program import NotInstalledError

Tensors = dict[str, np.ndarray]
# From inputs to outputs, each by its name in the model.
Run = Callable[[Tensors], Tensors]

SERVER = Path(__file__).with_suffix(".mjs")


@contextmanager
def in_onnxruntime(path: Path) -> Iterator[tuple[str, Run]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    yield onnxruntime.__version__, lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


@contextmanager
def in_reference_evaluator(path: Path) -> Iterator[tuple[str, Run]]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load(path))
    names = evaluator.output_names
    yield onnx.__version__, lambda feeds: dict(zip(names, evaluator.run(names, feeds), strict=True))


@contextmanager
def in_openvino(path: Path) -> Iterator[tuple[str, Run]]:
    try:
        import openvino
    except ImportError as error:
        raise NotInstalledError("pip install openvino") from error

    # By default it computes in bfloat16 where the processor can.
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feeds: Tensors) -> Tensors:
        return {output.any_name: value for output, value in model(feeds).items()}

    yield openvino.__version__.split("-")[0], run


@contextmanager
def in_opencv(path: Path) -> Iterator[tuple[str, Run]]:
    try:
        import cv2
    except ImportError as error:
        raise NotInstalledError("pip install opencv-python-headless") from error

    net = cv2.dnn.readNetFromONNX(str(path))
    names = [output.name for output in onnx.load(path).graph.output]

    def run(feeds: Tensors) -> Tensors:
        for name, value in feeds.items():
            net.setInput(value, name)
        return dict(zip(names, net.forward(names), strict=True))

    yield cv2.__version__, run


@contextmanager
def in_tract(path: Path) -> Iterator[tuple[str, Run]]:
    try:
        import tract
    except ImportError as error:
        raise NotInstalledError("pip install tract") from error

    graph = onnx.load(path).graph
    model = tract.onnx().load(str(path))
    for index, value in enumerate(graph.input):
        # It does not take the element type from the model.
        tensor = value.type.tensor_type
        lengths = [str(dim.dim_value) for dim in tensor.shape.dim]
        model.set_input_fact(index, ",".join([*lengths, _tract_type(tensor.elem_type)]))
    runnable = model.into_model().into_runnable()
    names = [output.name for output in graph.output]

    def run(feeds: Tensors) -> Tensors:
        results = runnable.run([feeds[value.name] for value in graph.input])
        return {name: result.to_numpy() for name, result in zip(names, results, strict=True)}

    yield metadata.version("tract"), run


def _tract_type(element_type: int) -> str:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    return f"{dtype.kind}{8 * dtype.itemsize}"


@contextmanager
def in_iree(path: Path) -> Iterator[tuple[str, Run]]:
    try:
        import iree.compiler
        import iree.runtime
    except ImportError as error:
        raise NotInstalledError("pip install iree-base-compiler iree-base-runtime") from error

    with tempfile.TemporaryDirectory() as folder:
        imported, compiled = Path(folder) / "model.mlir", Path(folder) / "model.vmfb"
        target = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
        for tool, *arguments in (
            ["import_onnx", path, "-o", imported],
            ["scripts.iree_compile", imported, "-o", compiled, *target, "--iree-llvmcpu-target-cpu=host"],
        ):
            command = [sys.executable, "-m", f"iree.compiler.tools.{tool}", *arguments]
            subprocess.run(command, capture_output=True, check=True)
        module = iree.runtime.load_vm_flatbuffer(compiled.read_bytes(), driver="local-task")
    graph = onnx.load(path).graph
    function = module[graph.name]
    names = [output.name for output in graph.output]

    def run(feeds: Tensors) -> Tensors:
        results = function(*(feeds[value.name] for value in graph.input))
        return {name: result.to_host() for name, result in zip(names, results, strict=True)}

    yield metadata.version("iree-base-compiler"), run


@contextmanager
def in_onnxruntime_web(path: Path) -> Iterator[tuple[str, Run]]:
    node = shutil.which("node")
    if node is None:
        raise NotInstalledError("node is missing")
    ask = [node, "-p", "require('onnxruntime-web').env.versions.web"]
    version = subprocess.run(ask, cwd=SERVER.parent, capture_output=True, text=True, check=False)
    if version.returncode != 0:
        raise NotInstalledError("npm install --no-save --no-package-lock onnxruntime-web")

    with subprocess.Popen([node, SERVER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def run(feeds: Tensors) -> Tensors:
            print(json.dumps({name: encode(value) for name, value in feeds.items()}), file=server.stdin, flush=True)
            return {name: decode(value) for name, value in json.loads(server.stdout.readline()).items()}

        yield version.stdout.strip(), run


def encode(array: np.ndarray) -> dict[str, object]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"type": array.dtype.name, "dims": array.shape, "data": data}


def decode(tensor: dict[str, object]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(tensor["data"]), tensor["type"]).reshape(tensor["dims"])


RUNTIMES: dict[str, Callable[[Path], AbstractContextManager[tuple[str, Run]]]] = {
    "onnxruntime": in_onnxruntime,
    "onnxruntime-web": in_onnxruntime_web,
    "onnx.reference": in_reference_evaluator,
    "openvino": in_openvino,
    "opencv": in_opencv,
    "tract": in_tract,
    "iree": in_iree,
}
