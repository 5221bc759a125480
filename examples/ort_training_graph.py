# SPDX-License-Identifier: Apache-2.0
"""Bring a training graph of ONNX Runtime training to a current ONNX Runtime, and train with it.

The graph is what onnxruntime-training 1.19.2, the last of its kind, wrote for a two-layer GPT: loss and gradients in
operators that no later package has. It is run in standard operators, and with the kernel of LayerNormBackprop; loss and
gradients are compared with what torch.autograd gave, then AdamW, in NumPy, takes a few steps.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import lnbp_onnx
import program

DATA = Path(__file__).parents[1] / "tests" / "data"
TOLERANCE = 2e-6
STEPS = 8
RATE, BETA1, BETA2, EPSILON, DECAY = 1e-2, 0.9, 0.999, 1e-8, 1e-2

Arrays = dict[str, np.ndarray]
LOSS = "onnx::loss::2"


def gradient_output(parameter: str) -> str:
    """Return the output with a parameter's gradient: what the graph's accumulator left in its buffer."""
    return f"{parameter}_grad.accumulation.buffer.updated"


class TrainingSession:
    """Loss and gradients of a training graph for parameters and a batch."""

    def __init__(self, session: onnxruntime.InferenceSession, batch: Arrays) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        # The accumulators add to their buffers unless they are told to start anew.
        self._constant = batch | {"lazy_reset_grad": np.array([True])}
        for each in session.get_inputs():
            if each.name.endswith(".accumulation.buffer"):
                self._constant[each.name] = np.zeros(each.shape, np.float32)

    def run(self, parameters: Arrays) -> tuple[float, Arrays]:
        """Return the loss and the gradient of each parameter."""
        outputs = dict(zip(self._names, self._session.run(self._names, self._constant | parameters), strict=True))
        return float(outputs[LOSS]), {name: outputs[gradient_output(name)] for name in parameters}


def largest_error(session: TrainingSession, parameters: Arrays, loss: float, gradients: Arrays) -> float:
    """Return the largest error of loss and gradients, each relative to the reference's largest element."""
    computed_loss, computed = session.run(parameters)
    errors = [abs(computed_loss - loss) / abs(loss)]
    errors += [float(np.abs(computed[name] - each).max() / np.abs(each).max()) for name, each in gradients.items()]
    return max(errors)


def train(session: TrainingSession, parameters: Arrays) -> list[float]:
    """Return the loss before each of a few steps of AdamW."""
    parameters = dict(parameters)
    first, second = ({name: np.zeros_like(value) for name, value in parameters.items()} for _ in range(2))
    losses = []
    for step in range(1, STEPS + 1):
        loss, gradients = session.run(parameters)
        losses.append(loss)
        for name, gradient in gradients.items():
            first[name] = BETA1 * first[name] + (1 - BETA1) * gradient
            second[name] = BETA2 * second[name] + (1 - BETA2) * gradient**2
            direction = first[name] / (1 - BETA1**step) / (np.sqrt(second[name] / (1 - BETA2**step)) + EPSILON)
            parameters[name] = parameters[name] - np.float32(RATE) * (direction + DECAY * parameters[name])
    return losses


def describe(title: str, model: onnx.ModelProto) -> None:
    domains = Counter(node.domain or "ai.onnx" for node in model.graph.node)
    print(f"{title:20}", ", ".join(f"{count} nodes of {domain}" for domain, count in sorted(domains.items())))


def main() -> int:
    program.argument_parser(__doc__).parse_args()
    original = onnx.load(DATA / "ort_training_gpt.onnx")
    standard = lnbp_onnx.decompose(original, training_ops=True)
    fused = lnbp_onnx.fuse(standard)
    describe("as it was", original)
    describe("standard operators", standard)
    describe("with the operator", fused)

    reference = np.load(DATA / "ort_training_gpt_reference.npz")
    batch = {"ids": reference["ids"], "labels": reference["tgt"]}
    parameters = {key[2:]: value for key, value in reference.items() if key.startswith("p.")}
    gradients = {key[2:]: value for key, value in reference.items() if key.startswith("g.")}
    providers = ["CPUExecutionProvider"]
    sessions = {
        "standard operators": onnxruntime.InferenceSession(standard.SerializeToString(), providers=providers),
        "native kernel": lnbp_onnx.inference_session(fused, providers=providers),
    }
    print(f"\nonnxruntime {onnxruntime.__version__}: the loss in {STEPS} steps of AdamW; error against torch.autograd")
    succeeded = True
    for title, runtime_session in sessions.items():
        session = TrainingSession(runtime_session, batch)
        error = largest_error(session, parameters, float(reference["loss"]), gradients)
        losses = train(session, parameters)
        print(f"{title:20}", " ".join(f"{loss:.4f}" for loss in losses), f" error {error:.1e}")
        succeeded &= error <= TOLERANCE and losses[-1] < losses[0]
    return 0 if succeeded else 1


if __name__ == "__main__":
    program.run(main)
