# SPDX-License-Identifier: Apache-2.0
"""Record the losses and gradients that onnxruntime-training 1.19.2 computes for `ort_training_models.py`.

In an environment with ``onnxruntime-training-cpu==1.19.2 onnx==1.17.0 'numpy<2'``, from the tests' folder::

    python record_training_models.py data/ort_training_models.npz

The file holds ``<model>/loss`` and ``<model>/<parameter>.grad``; the inputs and parameters are the module's.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.capi._pybind_state import GradientGraphBuilder, get_optimized_model
from ort_training_models import GRAPHS, feeds_of, model_of, parameters_of

# Its rules read outputs of the forward nodes that it does not add.
_OUTPUTS = {"LayerNormalization": ["mean", "inv_std"], "SoftmaxCrossEntropyLoss": ["log_prob"]}


def main(path: str) -> None:
    recorded: dict[str, Any] = {}
    for name in GRAPHS:
        model, parameters = model_of(name), set(parameters_of(name))
        values = {each.name: each for each in model.graph.initializer if each.name in parameters}
        for each in values.values():
            model.graph.initializer.remove(each)
            model.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
        for node in model.graph.node:
            node.output.extend(f"{node.output[0]}_{output}" for output in _OUTPUTS.get(node.op_type, ()))
        options = onnxruntime.SessionOptions()
        optimized = get_optimized_model(model.SerializeToString(), parameters, options)
        builder = GradientGraphBuilder(optimized, {"loss"}, parameters, "loss")
        builder.build()
        session = onnxruntime.InferenceSession(builder.get_model(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        feeds = feeds_of(name) | {each: numpy_helper.to_array(value) for each, value in values.items()}
        for output, value in zip(names, session.run(names, feeds), strict=True):
            recorded[f"{name}/{output.replace('_grad', '.grad')}"] = value
    np.savez_compressed(path, **recorded)


if __name__ == "__main__":
    main(sys.argv[1])
