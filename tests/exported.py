# SPDX-License-Identifier: Apache-2.0
"""What holds for every export of a layer-norm gradient, before and after simplifiers."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto
from torch_exports import DTYPES, EPSILON, Export

from lnbp_onnx.graphs.edit import apply_in_place
from lnbp_onnx.passes.fuse import FusePass, FuseResult
from lnbp_onnx.running.runners import PlainRunner, ReferenceRunner

_ULP = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def optimised(model: ModelProto, level: str) -> ModelProto:
    """Return the model as ONNX Runtime's optimiser writes it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def is_runnable(model: ModelProto) -> bool:
    """Return whether the exporter's types are consistent; those of half and double gradients of x are not."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def assert_fused(export: Export, model: ModelProto, expected: dict[str, np.ndarray]) -> None:
    """Fuse an export: the one gradient is found, and the outputs are autograd's and what they were before."""
    fused = ModelProto()
    fused.CopyFrom(model)
    outcome = apply_in_place(FusePass(), fused)
    assert isinstance(outcome, FuseResult)
    assert len(outcome.fused) == 1
    assert outcome.missed == ()
    onnx.checker.check_model(fused)
    if export.form == "layer_norm":
        assert not {node.op_type for node in fused.graph.node} & {"Sub", "ReduceSum", "ReduceMean"}
    if export.dtype in _ULP:
        # ONNX's evaluator rounds the forward operator's statistics to half, ONNX Runtime has no bfloat16 for it.
        fused, values = without_forward(fused, export)
        assert_near(export.dtype, expected, ReferenceRunner(fused).run(values))
        return
    names = {value.name for value in model.graph.input}
    values = {name: array for name, array in export.inputs.items() if name in names}
    found = ReferenceRunner(fused).run(values)
    assert_near(export.dtype, expected, found)
    if is_runnable(model):
        assert_near(export.dtype, PlainRunner(model).run(values), found)


def without_forward(fused: ModelProto, export: Export) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Return a fused model with the forward operator's statistics as inputs, and values for its inputs."""
    [forward] = [node for node in fused.graph.node if node.op_type == "LayerNormalization"]
    x = export.arrays()["x"].astype(np.float64)
    axes = tuple(range(-len(export.norm), 0))
    statistics = (x.mean(axes, keepdims=True), 1 / np.sqrt(x.var(axes, keepdims=True) + EPSILON))
    values = dict(zip(forward.output[1:], (array.astype(np.float32) for array in statistics), strict=True))
    values |= {value.name: export.inputs[value.name] for value in fused.graph.input}
    outputs = [value.name for value in fused.graph.output]
    extracted = onnx.utils.Extractor(fused).extract_model(list(values), outputs)
    return extracted, {value.name: values[value.name] for value in extracted.graph.input}


def assert_near(dtype: str, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    """Compare outputs: to 2e-6 of the largest, in half types to one unit in the last place beside it."""
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        wide, result = array.astype(np.float64), found[name].astype(np.float64)
        assert found[name].dtype == DTYPES[dtype], name
        assert result.shape == wide.shape, name
        allowed = np.full(wide.shape, (1e-12 if dtype == "float64" else 2e-6) * np.abs(wide).max())
        if dtype in _ULP:
            allowed += 2.0 ** np.floor(np.log2(np.maximum(np.abs(wide), 2.0**-14))) * _ULP[dtype]
        assert (np.abs(result - wide) <= allowed).all(), (name, np.abs(result - wide).max())
