# SPDX-License-Identifier: Apache-2.0
"""Run a transformer's training step with each kernel, and compare its gradients with those that torch computed.

The model is a two-layer encoder, its loss and all of its gradients, exported from torch with five LayerNormBackprop
nodes. The program ends with 1 where a gradient is further from torch's than 5e-6 of its largest element.
"""

from pathlib import Path

import numpy as np

import program
from lnbp_onnx.running.session import KERNELS, Kernel, inference_session

FOLDER = Path(__file__).parent
TOLERANCE = 5e-6


def largest_error(kernel: Kernel) -> float:
    """Return the largest relative error over all outputs of the model."""
    session = inference_session(FOLDER / "torch_encoder_training_lnbp.onnx", kernel=kernel)
    with np.load(FOLDER / "torch_encoder_training_reference.npz") as reference:
        feeds = {value.name: reference[value.name] for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        results = session.run(names, feeds)
        return max(
            float(np.abs(result - reference[name]).max() / np.abs(reference[name]).max())
            for name, result in zip(names, results, strict=True)
        )


def main() -> int:
    program.argument_parser(__doc__).parse_args()
    errors = {kernel: largest_error(kernel) for kernel in KERNELS}
    for kernel, error in errors.items():
        print(f"{kernel:10}  largest relative error {error:.1e}")
    return int(max(errors.values()) > TOLERANCE)


if __name__ == "__main__":
    program.run(main)
