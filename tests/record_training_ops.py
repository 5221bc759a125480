# SPDX-License-Identifier: Apache-2.0
"""Record what onnxruntime-training 1.19.2 computes for the cases of `training_op_cases.py`.

In an environment with ``onnxruntime-training-cpu==1.19.2 onnx==1.17.0 'numpy<2'``, from the tests' folder::

    python record_training_ops.py data/ort_training_ops.npz

The file holds ``<case>/<output>`` for every case that has a kernel on the CPU there; the inputs are the table's.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime
from training_op_cases import CASES


def main(path: str) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    recorded: dict[str, Any] = {}
    for case in CASES:
        try:
            session = onnxruntime.InferenceSession(
                case.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            names = [output.name for output in session.get_outputs()]
            outputs = session.run(names, {name: value.copy() for name, value in case.feeds().items()})
        except Exception as error:  # what the runtime raises has no narrower type
            print(f"{case.name}: {error}")
            continue
        recorded |= {f"{case.name}/{name}": output for name, output in zip(names, outputs, strict=True)}
    np.savez_compressed(path, **recorded)


if __name__ == "__main__":
    main(sys.argv[1])
