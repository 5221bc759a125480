# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md quotes what is said: others' messages are provoked, the package's sought in its sources."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import lnbp_onnx
from program import NotInstalledError
from runtimes import RUNTIMES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
OF_OTHERS, OF_OTHER_RUNTIMES, OF_THE_PACKAGE = (
    re.findall(r"^### `(.*)`$", part, re.MULTILINE) for part in PAGE.split("\n## ")[1:]
)
# No model of a few nodes was found that shows it with every runtime that the tests run on.
NOT_PROVOKED = {"type inference failed"}


def model(op_type: str = "LayerNormBackprop", element_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    is_ours = op_type == lnbp_onnx.OP_TYPE
    domain, inputs = (lnbp_onnx.DOMAIN, ["x", "dy", "gamma"]) if is_ours else ("", ["x", "dy"])
    node = helper.make_node(op_type, inputs, ["dx"], domain=domain)
    if is_ours:
        node.attribute.append(helper.make_attribute("use_stats", 0))
    shapes = {"x": [2, 4], "dy": [2, 4], "gamma": [4]}
    infos = [helper.make_tensor_value_info(name, element_type, shapes[name]) for name in inputs]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("dx", element_type, [2, 4])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(lnbp_onnx.DOMAIN, lnbp_onnx.OP_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def load(loaded: onnx.ModelProto, options: onnxruntime.SessionOptions | None = None) -> None:
    onnxruntime.InferenceSession(loaded.SerializeToString(), options, providers=["CPUExecutionProvider"])


def with_library() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(lnbp_onnx.get_library_path())
    return options


def registered_twice() -> None:
    options = with_library()
    options.register_custom_ops_library(lnbp_onnx.get_library_path())
    load(model(), options)


def without_import() -> None:
    spoilt = model()
    del spoilt.opset_import[1]
    onnx.checker.check_model(spoilt)


def with_mixed_types() -> None:
    spoilt = model()
    spoilt.graph.input[2].type.tensor_type.elem_type = TensorProto.DOUBLE
    load(spoilt, with_library())


def from_the_future() -> None:
    spoilt = model("Add")
    spoilt.ir_version = 99
    load(spoilt)


PROVOKED: dict[str, Callable[[], object]] = {
    "lnbp:LayerNormBackprop": lambda: load(model()),
    "com.microsoft:": lambda: load(onnx.load(ROOT / "tests/data/ort_training_gpt.onnx")),
    "Node type": lambda: ReferenceEvaluator(model()),
    "No opset import": without_import,
    "Failed to load library": lambda: with_library().register_custom_ops_library(str(ROOT / "nowhere.so")),
    "Domain already set": registered_twice,
    "no kernel def": with_mixed_types,
    "Could not find": lambda: load(model("Mul", TensorProto.BFLOAT16)),
    "Unsupported model IR": from_the_future,
}


def pattern(quoted: str) -> str:
    return ".*".join(map(re.escape, quoted.split("…")))


@pytest.mark.parametrize("beginning", PROVOKED)
def test_a_message_of_others_is_quoted(beginning: str) -> None:
    (quoted,) = (each for each in OF_OTHERS if each.startswith(beginning))
    with pytest.raises(Exception, match=pattern(quoted)):
        PROVOKED[beginning]()


def test_a_warning_of_others_is_quoted(tmp_path: Path) -> None:
    (quoted,) = (each for each in OF_OTHERS if each.startswith("Initializer"))
    with_default = model("Add")
    with_default.graph.initializer.append(numpy_helper.from_array(np.ones((2, 4), np.float32), "dy"))
    onnx.save(with_default, tmp_path / "m.onnx")
    # In a process of its own: where a test took standard error away, ONNX Runtime writes nothing to it ever after.
    program = "import onnxruntime; onnxruntime.InferenceSession('m.onnx', providers=['CPUExecutionProvider'])"
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(pattern(quoted), run.stderr)


@pytest.mark.parametrize(
    ("runtime", "beginning"),
    [("openvino", "No conversion"), ("opencv", "Can't"), ("tract", "Unimplemented"), ("iree", "failed to")],
)
def test_a_message_of_another_runtime_is_quoted(runtime: str, beginning: str, tmp_path: Path) -> None:
    (quoted,) = (each for each in OF_OTHER_RUNTIMES if each.startswith(beginning))
    onnx.save(model(), tmp_path / "m.onnx")
    try:
        with RUNTIMES[runtime](tmp_path / "m.onnx"):
            pytest.fail("it takes the operator")
    except NotInstalledError as reason:
        pytest.skip(f"{runtime} is not installed ({reason})")
    except Exception as error:
        said = f"{error}\n{error.stderr.decode()}" if isinstance(error, subprocess.CalledProcessError) else str(error)
    assert re.search(pattern(quoted), said)


def test_every_message_of_others_is_provoked() -> None:
    known = {*PROVOKED, "Initializer", *NOT_PROVOKED}
    assert [each for each in OF_OTHERS if not any(each.startswith(beginning) for beginning in known)] == []


@pytest.mark.parametrize("quoted", OF_THE_PACKAGE)
def test_a_message_of_the_package_is_quoted(quoted: str) -> None:
    # Strings that stand side by side in the sources are one message, and what is in braces differs.
    sources = "".join(file.read_text("utf-8") for file in sorted((ROOT / "lnbp_onnx").rglob("*.py")))
    said = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\s*\n\s*f?"', "", sources))
    assert re.search(pattern(quoted), said, re.IGNORECASE)
