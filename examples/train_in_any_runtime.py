# SPDX-License-Identifier: Apache-2.0
"""Train the GPT of train_gpt.py in runtimes that do not know LayerNormBackprop.

The training step, AdamW in it, is decomposed to ONNX's standard operators. From there on nothing of lnbp-onnx is used:
ONNX Runtime, OpenVINO and ONNX Runtime Web (WebAssembly in node) run it, and what a run gives is fed to the next. The
losses of all must agree. A runtime that is not installed is skipped:

    pip install openvino
    npm install --no-save --no-package-lock onnxruntime-web

npm makes a folder node_modules where it runs; node looks for one beside this file, above it, and in NODE_PATH.
"""

import tempfile
import time
from collections import Counter
from copy import deepcopy
from itertools import islice
from pathlib import Path

import onnx

import lnbp_onnx
import program
import runtimes
from gpt.arguments import training_parser
from gpt.text import batches
from gpt.training import context_of, defaults, joint_model, train, training_step
from program import NotInstalledError
from runtimes import Tensors

TOLERANCE = 1e-4  # of a loss, in nats


RUNTIMES = {name: runtimes.RUNTIMES[name] for name in ("onnxruntime", "openvino", "onnxruntime-web")}


def decomposed(joint: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, Tensors]:
    """Write a joint model's training step in standard operators to `path`; return it, and what it begins with."""
    model = lnbp_onnx.decompose(training_step(joint))
    state = defaults(model)
    onnx.save(without_defaults(model), path)
    return model, state


def without_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take the defaults of inputs out: OpenVINO and ONNX Runtime Web cannot be fed an input that has one."""
    names = defaults(model).keys()
    constants = [each for each in model.graph.initializer if each.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return model


def main() -> int:
    options = training_parser(__doc__, steps=20, rows=8).parse_args()
    joint = joint_model(options.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training_step.onnx"
        model, initial = decomposed(joint, path)
        domains = Counter(node.domain or "ai.onnx" for node in model.graph.node)
        print("decomposed:", ", ".join(f"{count} nodes of {domain}" for domain, count in domains.items()))
        print(f"{'runtime':24} {'first loss':>10} {'last loss':>10} {'difference':>10} {'steps/s':>8}")

        expected: list[float] = []
        differences = []
        for name, open_runtime in RUNTIMES.items():
            try:
                with open_runtime(path) as (version, run):
                    data = islice(batches(options.rows, context_of(model)), options.steps)
                    start = time.perf_counter()
                    losses = list(train(run, deepcopy(initial), data))
                    speed = options.steps / (time.perf_counter() - start)
            except NotInstalledError as reason:
                print(f"{name:24} not installed ({reason})")
                continue
            expected = expected or losses
            differences.append(max(abs(loss - other) for loss, other in zip(losses, expected, strict=True)))
            title = f"{name} {version}"
            print(f"{title:24} {losses[0]:10.6f} {losses[-1]:10.6f} {differences[-1]:10.1e} {speed:8.1f}")
    print(f"allowed difference of a loss from onnxruntime's: {TOLERANCE:.0e}")
    return 0 if max(differences) <= TOLERANCE else 1


if __name__ == "__main__":
    program.run(main)
