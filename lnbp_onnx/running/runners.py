# SPDX-License-Identifier: Apache-2.0
"""Running models on arrays: in ONNX Runtime, with and without the kernel, and in ONNX's reference evaluator."""

import ctypes
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError, LnbpError
from lnbp_onnx.graphs.operators import OPERATOR_ID
from lnbp_onnx.reference import LayerNormBackprop
from lnbp_onnx.running.session import inference_session, load_error, scatter_reductions_of, serialised

Tensors = Mapping[str, NDArray[Any]]

_NUMPY_TYPES = {
    f"tensor({name})"
    for name in (
        *("float16", "float", "double", "bool", "string"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}


class Runner(Protocol):
    """A model made ready to run."""

    runtime: str

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return the graph's outputs by name."""


class PlainRunner:
    """A model in ONNX Runtime on the CPU, without any kernel of this package.

    Args:
        model: A model, or the path of one.
        sess_options: By default ONNX Runtime's own, with its messages silenced, and one thread for a model that more
            threads would compute wrongly.

    Raises:
        InvalidModelError: Where ONNX Runtime cannot load the model; also from `run`, where it cannot run it.
    """

    runtime = "onnxruntime"

    def __init__(self, model: onnx.ModelProto | Path, sess_options: onnxruntime.SessionOptions | None = None) -> None:
        source = str(model) if isinstance(model, Path) else serialised(model)
        options = sess_options or _quiet_options(model)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise load_error(model, error) from error

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return the graph's outputs by name."""
        return run_session(self._session, feeds)


class KernelRunner:
    """A model in ONNX Runtime on the CPU, with the native kernel.

    Raises:
        InvalidModelError: Where ONNX Runtime cannot load the model; also from `run`, where it cannot run it.
        InvalidNodeError: Where the specification refuses a node.
        KernelError: Where the native library is not available.
    """

    runtime = "onnxruntime with the native kernel"

    def __init__(self, model: onnx.ModelProto | Path) -> None:
        options = _quiet_options(model)
        self._session = inference_session(model, sess_options=options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return the graph's outputs by name."""
        return run_session(self._session, feeds)


def _quiet_options(model: onnx.ModelProto | Path) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print of an error, the exception says as well
    if scatter_reductions_of(model):
        # On several threads two runs of one model would differ.
        options.intra_op_num_threads = 1
    return options


def run_session(session: onnxruntime.InferenceSession, feeds: Tensors) -> dict[str, NDArray[Any]]:
    """Run a session on arrays, bfloat16 going in and out as ``ml_dtypes.bfloat16``.

    Raises:
        InvalidModelError: Where ONNX Runtime cannot run the model on them.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        arrays = {name: np.asarray(array, order="C") for name, array in feeds.items()}
        # An OrtValue made from an array points into it: `arrays` keeps them alive.
        values = {name: _to_ort_value(array) for name, array in arrays.items()}
        results = session.run_with_ort_values(names, values)
        return {name: _to_array(name, value) for name, value in zip(names, results, strict=True)}
    except LnbpError:
        raise
    except Exception as error:
        raise InvalidModelError(f"onnxruntime cannot run the model: {error}") from error


def _to_ort_value(array: NDArray[Any]) -> onnxruntime.OrtValue:
    element_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    if element_type == TensorProto.BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element_type)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _to_array(name: str, value: onnxruntime.OrtValue) -> NDArray[Any]:
    if not value.has_value():  # is_tensor() and numpy() would end the process or make something up
        raise InvalidModelError(f"Output {name!r} is an optional without a value; it must be a tensor (give it one).")
    if not value.is_tensor():
        raise InvalidModelError(
            f"Output {name!r} is of {value.data_type()}; it must be a tensor (make it one in the model)."
        )
    if value.data_type() in _NUMPY_TYPES:
        array: NDArray[Any] = value.numpy()
        return array
    # OrtValue.numpy() refuses the other types, or takes them for unsigned integers, one a byte.
    size = -(-math.prod(value.shape()) * ir.DataType(value.element_type()).bitwidth // 8)
    content = ctypes.string_at(value.data_ptr(), size)
    tensor = TensorProto(data_type=value.element_type(), dims=value.shape(), raw_data=content)
    return np.array(ir.serde.deserialize_tensor(tensor).numpy())


class ReferenceRunner:
    """A model in ``onnx.reference.ReferenceEvaluator``, which knows the operator from here.

    Raises:
        InvalidModelError: Where the evaluator cannot load the model; also from `run`, where it cannot run it.
    """

    runtime = "onnx.reference"

    def __init__(self, model: onnx.ModelProto | Path) -> None:
        try:
            loaded = onnx.load(model) if isinstance(model, Path) else model
            self._evaluator = ReferenceEvaluator(_without_functions(loaded), new_ops=[LayerNormBackprop])
        except Exception as error:  # the evaluator raises what its operators happen to raise
            raise InvalidModelError(f"ONNX's reference evaluator cannot load the model: {error}") from error

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return the graph's outputs by name."""
        try:
            with np.errstate(all="ignore"):
                results = self._evaluator.run(None, dict(feeds))
        except LnbpError:
            raise
        except Exception as error:
            raise InvalidModelError(f"ONNX's reference evaluator cannot run the model: {error}") from error
        return dict(zip(self._evaluator.output_names, results, strict=True))


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline the model's functions: the evaluator does not pass ``new_ops`` on to them.

    ``onnx.inliner`` would not do: it forgets the default values of a function's attributes.
    """
    if not model.functions:
        return model
    inlined = ir.from_proto(model)
    InlinePass(criteria=lambda function: function.identifier() != OPERATOR_ID)(inlined)
    inlined.opset_imports.setdefault(spec.DOMAIN, spec.OP_VERSION)
    return ir.to_proto(inlined)
