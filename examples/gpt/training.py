# SPDX-License-Identifier: Apache-2.0
"""The training loop, which knows nothing of what computes the gradients."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

from gpt.adamw import AdamW
from gpt.sizes import sizes_of
from lnbp_onnx import InvalidModelError

TRAINING_STEP = Path(__file__).parent / "training_step.onnx"

Tensors = dict[str, np.ndarray]
# From a batch and the parameters to the loss and the gradients, each by its name in the model.
Run = Callable[[Tensors], Tensors]


def training_step(path: Path) -> ModelProto:
    """Read a model that export_gpt.py wrote.

    Raises:
        InvalidModelError: Where it is another one.
    """
    try:
        model = onnx.load(path)
        sizes_of(model)
    except OSError:
        raise
    except Exception as error:  # protobuf's of a file that is no model, and those of one without the sizes
        raise InvalidModelError(f"{path} is no model that export_gpt.py wrote ({error}).") from error
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    missing = {"tokens", "targets", "loss", *(f"{name}.grad" for name in initial_parameters(model))} - names
    if missing:
        raise InvalidModelError(f"{path} is no model that export_gpt.py wrote (it lacks {', '.join(sorted(missing))}).")
    return model


def initial_parameters(model: ModelProto) -> Tensors:
    """Return the inputs that have a default: the parameters."""
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


def train(run: Run, parameters: Tensors, batches: Iterable[Tensors]) -> Iterator[float]:
    """Take a step of AdamW for each batch and yield the loss before it; `parameters` are updated in place."""
    optimizer = AdamW(parameters)
    for batch in batches:
        results = run(batch | parameters)
        optimizer.step({name: results[f"{name}.grad"] for name in parameters})
        yield float(results["loss"])
