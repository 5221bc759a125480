# SPDX-License-Identifier: Apache-2.0
"""The training step of a GPT, and the loop, which knows nothing of what runs it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

import lnbp_onnx
from gpt import adamw
from gpt.sizes import sizes_of
from runtimes import Run, Tensors

JOINT_MODEL = Path(__file__).parent / "joint.onnx"


def joint_model(path: Path) -> ModelProto:
    """Read a model of the loss and its gradients that export_gpt.py wrote.

    Raises:
        InvalidModelError: Where it is another one.
    """
    try:
        model = onnx.load(path)
        sizes_of(model)
    except OSError:
        raise
    except Exception as error:  # protobuf's of a file that is no model, and those of one without the sizes
        raise lnbp_onnx.InvalidModelError(f"{path} is no model that export_gpt.py wrote ({error}).") from error
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    missing = {"tokens", "targets", "loss", *(f"{name}.grad" for name in defaults(model))} - names
    if missing:
        raise lnbp_onnx.InvalidModelError(
            f"{path} is no model that export_gpt.py wrote (it lacks {', '.join(sorted(missing))})."
        )
    return model


def training_step(model: ModelProto) -> ModelProto:
    """Return a joint model with a step of AdamW in the place of its gradients."""
    optimizer = lnbp_onnx.AdamW(
        lr=adamw.LEARNING_RATE,
        betas=adamw.BETAS,
        eps=adamw.EPSILON,
        weight_decay=adamw.WEIGHT_DECAY,
        no_weight_decay=[name for name, value in defaults(model).items() if not adamw.decays(value)],
    )
    return lnbp_onnx.training_step(model, optimizer=optimizer)


def defaults(model: ModelProto) -> Tensors:
    """Return the inputs that have a default: the parameters, and of a training step the optimizer's state, too."""
    inputs = {value.name for value in model.graph.input}
    return {each.name: numpy_helper.to_array(each).copy() for each in model.graph.initializer if each.name in inputs}


def context_of(model: ModelProto) -> int:
    """Return how many characters the model reads."""
    (shape,) = (value.type.tensor_type.shape for value in model.graph.input if value.name == "tokens")
    return int(shape.dim[1].dim_value)


def session_options(threads: int = 0) -> onnxruntime.SessionOptions:
    """Return options with this number of threads, by default one for each core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # it warns of each parameter that the input has a default
    return options


def run_of(session: onnxruntime.InferenceSession) -> Run:
    """Return what runs a session."""
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def train(run: Run, state: Tensors, batches: Iterable[Tensors]) -> Iterator[float]:
    """Run a training step for each batch and yield the loss before it; `state` begins as `defaults` and goes on."""
    for batch in batches:
        results = run(batch | state)
        state |= {name.removesuffix(".updated"): each for name, each in results.items() if name.endswith(".updated")}
        yield float(results["loss"])
