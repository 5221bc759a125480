# SPDX-License-Identifier: Apache-2.0
"""Run a decomposed training graph in runtimes that know ONNX's standard operators alone.

The graph is the encoder of decompose_encoder.py, and the table says how far the loss and the gradients of each runtime
are from those that torch.autograd computed. OpenCV, tract and IREE do not run the gradient of the embedding table,
whose rows are added up in If and Loop; they get the graph without that output. A runtime that is not installed is
skipped:

    pip install openvino opencv-python-headless tract
    pip install iree-base-compiler iree-base-runtime
    npm install --no-save --no-package-lock onnxruntime-web

npm makes a folder node_modules where it runs; node looks for one beside this file, above it, and in NODE_PATH.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx.utils import Extractor

import lnbp_onnx
import program
from program import NotInstalledError
from runtimes import RUNTIMES

FOLDER = Path(__file__).parent
TOLERANCE = 5e-6
WITH_CONTROL_FLOW = {"grad.emb.weight"}
WITHOUT_CONTROL_FLOW = {"opencv", "tract", "iree"}
"""Runtimes that take no If or Loop, or not with what is in these."""


def write(model: onnx.ModelProto, folder: Path) -> tuple[Path, Path]:
    """Write a model, and what is left of it without the outputs that need control flow; return their paths."""
    whole, part = folder / "whole.onnx", folder / "part.onnx"
    onnx.save(model, whole)
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output if value.name not in WITH_CONTROL_FLOW]
    onnx.save(Extractor(model).extract_model(inputs, outputs), part)
    return whole, part


def main() -> int:
    program.argument_parser(__doc__).parse_args()
    model = lnbp_onnx.decompose(onnx.load(FOLDER / "torch_encoder_training_lnbp.onnx"))
    reference = dict(np.load(FOLDER / "torch_encoder_training_reference.npz"))
    feeds = {value.name: reference[value.name] for value in model.graph.input}
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        whole, part = write(model, Path(folder))
        print(f"{'runtime':24} {'outputs':>8} {'worst error':>12}")
        for name, open_runtime in RUNTIMES.items():
            try:
                with open_runtime(part if name in WITHOUT_CONTROL_FLOW else whole) as (version, run):
                    outputs = run(feeds)
            except NotInstalledError as reason:
                print(f"{name:24} not installed ({reason})")
                continue
            error = max(relative_error(value, reference[output]) for output, value in outputs.items())
            title = f"{name} {version}"
            print(f"{title:24} {f'{len(outputs)} of {len(model.graph.output)}':>8} {error:12.1e}")
            worst = max(worst, error)
    print(f"allowed: {TOLERANCE:.0e} of an output's largest element")
    return 0 if worst <= TOLERANCE else 1


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    # OpenCV gives a scalar as an array of one element.
    return float(np.abs(found.reshape(expected.shape) - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    program.run(main)
