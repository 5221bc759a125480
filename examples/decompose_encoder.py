# SPDX-License-Identifier: Apache-2.0
"""Decompose a PyTorch training graph, run it in plain ONNX Runtime, compare it with PyTorch's own gradients.

The graph is the loss and the 29 parameter gradients of a two-layer transformer encoder, exported by PyTorch with
five LayerNormBackprop nodes; the reference is what torch.autograd computed for the same weights and inputs.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import lnbp_onnx
import program

FOLDER = Path(__file__).parent
TOLERANCE = 5e-6


def main() -> int:
    program.argument_parser(__doc__).parse_args()
    model = onnx.load(FOLDER / "torch_encoder_training_lnbp.onnx")
    result = lnbp_onnx.decompose(model)

    for title, each in (("main graph before", model), ("after", result)):
        domains = Counter(node.domain or "ai.onnx" for node in each.graph.node)
        print(f"{title:17}", ", ".join(f"{count} nodes of {domain}" for domain, count in sorted(domains.items())))

    session = onnxruntime.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])
    reference = np.load(FOLDER / "torch_encoder_training_reference.npz")
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {"ids": reference["ids"], "tgt": reference["tgt"]})

    print(f"\n{'output in plain onnxruntime ' + onnxruntime.__version__:42} error relative to torch.autograd")
    errors = {}
    for name, output in zip(names, outputs, strict=True):
        expected = reference[name]
        errors[name] = float(np.abs(output - expected).max() / np.abs(expected).max())
        print(f"{name:42} {errors[name]:.1e}")
    worst = max(errors, key=errors.__getitem__)
    print(f"\nLargest of {len(errors)}: {errors[worst]:.1e} ({worst}); allowed: {TOLERANCE:.0e}")
    return 0 if errors[worst] <= TOLERANCE else 1


if __name__ == "__main__":
    program.run(main)
