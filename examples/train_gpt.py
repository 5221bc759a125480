# SPDX-License-Identifier: Apache-2.0
"""Train a small character GPT in ONNX Runtime, on this project's own documentation.

The model is what export_gpt.py exported once, the loss and its gradients, those of the layer norms as
LayerNormBackprop nodes, which the native kernel runs; `lnbp_onnx.training_step` puts AdamW behind them. The loop feeds
what a run gives to the next one. Where PyTorch is installed it trains the same model on the same batches, and its
losses are compared.

    python examples/train_gpt.py --steps 1000 --rows 32 --picture build/loss.png
    python examples/export_gpt.py build/larger.onnx --width 128 --layers 4
    python examples/train_gpt.py --model build/larger.onnx
"""

import importlib.util
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import onnx

import lnbp_onnx
import program
from gpt.arguments import training_parser
from gpt.text import Batch, batches
from gpt.training import context_of, defaults, joint_model, run_of, session_options, train, training_step

EVALUATED_ROWS = 64
STEPS_IN_TORCH = 20
TOLERANCE = 1e-4  # of a loss, in nats
PICTURES = (".png", ".svg", ".pdf")


def main() -> int:
    parser = training_parser(__doc__, steps=100, rows=16)
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    parser.add_argument(
        "--picture", type=program.output_file, help="where to write the losses as a picture; needs matplotlib"
    )
    options = parser.parse_args()
    if options.picture:
        if options.picture.suffix not in PICTURES:
            parser.error(f"--picture {options.picture} ends in none of {', '.join(PICTURES)}")
        program.require("matplotlib", "pip install matplotlib, or leave out --picture")
        program.make_folder_of(options.picture)

    joint = joint_model(options.model)
    model = training_step(joint)
    context = context_of(model)
    training_batches = list(islice(batches(options.rows, context, seed=options.seed), options.steps))
    held_out = next(batches(EVALUATED_ROWS, context, held_out=True))
    run = run_of(lnbp_onnx.inference_session(model, sess_options=session_options()))
    state = defaults(model)

    before = float(run(held_out | state)["loss"])
    start = time.perf_counter()
    losses = []
    print("  step    loss")
    for step, loss in enumerate(train(run, state, training_batches), 1):
        losses.append(loss)
        if step == 1 or step % max(1, options.steps // 10) == 0:
            print(f"{step:6}  {loss:.4f}")
    speed = options.steps / (time.perf_counter() - start)
    after = float(run(held_out | state)["loss"])
    print(f"held-out text: {before:.4f} before, {after:.4f} after; {speed:.0f} steps a second")

    if options.picture:
        draw(losses, options.picture)
    if importlib.util.find_spec("torch") is None:
        print("torch: not installed, losses not compared")
        return 0
    return compare_with_torch(joint, losses, training_batches[:STEPS_IN_TORCH])


def draw(losses: Sequence[float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats a character", title="A character GPT in ONNX Runtime")
    axes.plot(range(1, len(losses) + 1), losses)
    figure.savefig(path)
    print(f"picture: {path}")


def compare_with_torch(model: onnx.ModelProto, losses: Sequence[float], batches: Sequence[Batch]) -> int:
    import torch

    from gpt.model import train as train_in_torch
    from gpt.sizes import sizes_of

    expected = list(train_in_torch(sizes_of(model), defaults(model), batches))
    difference = max(abs(loss - other) for loss, other in zip(losses, expected, strict=False))
    print(f"torch {torch.__version__}: the first {len(expected)} losses differ by up to {difference:.1e}", end=", ")
    print(f"allowed: {TOLERANCE:.0e}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    program.run(main)
