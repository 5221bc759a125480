# SPDX-License-Identifier: Apache-2.0
"""The reference as a kernel in Python, through onnxruntime-extensions' PyOp.

A PyOp has a fixed number of inputs and outputs, all of them there; it is not safe with half types and inexact with
64-bit integers and with float attributes; and an exception in it ends the process. So a model is prepared for it
(`PythonKernelPass`): every operand is cast to the compute type, and the node itself, serialised, is an attribute. What
goes wrong is kept until the run is over, and raised by the session (`PythonKernelSession`).
"""

import base64
import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError, InvalidNodeError, KernelError, LnbpError
from lnbp_onnx.graphs.inference import Functions
from lnbp_onnx.graphs.operators import OPERATOR_ID, Operator, find_operators, scopes
from lnbp_onnx.graphs.opsets import DEFAULT_OPSET
from lnbp_onnx.graphs.replace import Replacement, replace_nodes
from lnbp_onnx.graphs.specialise import specialise_functions
from lnbp_onnx.graphs.writer import Writer
from lnbp_onnx.reference import LayerNormBackprop
from lnbp_onnx.running.extensions import import_package

PYTHON_DOMAIN = "lnbp.python"

_failures: dict[str, BaseException] = {}
"""What went wrong in the run that a session is in, by the session's token."""


@functools.cache
def get_library_path() -> str:
    """Return the path of onnxruntime-extensions' library, to which this process's first call adds the operator.

    Raises:
        KernelError: Where onnxruntime-extensions is missing.
    """
    package = import_package("python")
    definition = package.PyCustomOpDef
    # Both at once: another PyOp in a domain that a session has already crashes that session.
    for element_type in (definition.dt_float, definition.dt_double):
        package.onnx_op(
            op_type=f"{PYTHON_DOMAIN}::{spec.OP_TYPE}",
            inputs=[element_type] * len(spec.INPUTS),
            outputs=[element_type] * len(spec.OUTPUTS),
            attrs={"node": definition.dt_string, "token": definition.dt_string},
        )(_compute)
    path: str = package.get_library_path()
    return path


def _compute(*arrays: NDArray[Any], node: str, token: str) -> tuple[NDArray[Any], ...]:
    """Compute a node; nothing may be raised here, not even at an interrupt."""
    try:
        proto = NodeProto.FromString(base64.b64decode(node))
        try:
            feeds = {name: array for name, array in zip(proto.input, arrays, strict=False) if name}
            results = ReferenceEvaluator(proto, new_ops=[LayerNormBackprop]).run(None, feeds)
        except LnbpError:
            raise
        except Exception as error:
            message = f"{spec.OP_TYPE} node {proto.name!r}: the Python kernel failed: {type(error).__name__}: {error}"
            raise KernelError(message) from error
        unwanted = np.zeros(0, arrays[0].dtype)
        return (*results, *[unwanted] * (len(spec.OUTPUTS) - len(results)))
    except BaseException as error:
        _failures.setdefault(token, error)
        # Nobody sees these. They have the shapes that the nodes after this one expect.
        gamma, beta = arrays[2:4]
        return arrays[0], gamma, beta if beta.size else gamma


class PythonKernelSession(onnxruntime.InferenceSession):  # type: ignore[misc] # onnxruntime has no type hints
    """An InferenceSession that raises what went wrong in the Python kernel. One run at a time; others wait.

    Args:
        token: That of the `PythonKernelPass` which prepared the model.
        source: The prepared model, as a path or bytes.
        sess_options: With the library of `get_library_path` registered.
        providers: As for ``onnxruntime.InferenceSession``.

    Raises:
        InvalidNodeError: From a run whose inputs the specification refuses.
        KernelError: From a run in which the kernel failed in another way.
    """

    def __init__(
        self, token: str, source: str | bytes, sess_options: onnxruntime.SessionOptions, providers: Any
    ) -> None:
        self._token = token
        self._running = threading.Lock()
        # Nodes whose inputs are all constants run here already.
        with self._failure_raised():
            super().__init__(source, sess_options, providers=providers)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """As InferenceSession's."""
        with self._failure_raised():
            return super().run(*args, **kwargs)

    def run_with_ort_values(self, *args: Any, **kwargs: Any) -> Any:
        """As InferenceSession's."""
        with self._failure_raised():
            return super().run_with_ort_values(*args, **kwargs)

    def run_with_ortvaluevector(self, *args: Any, **kwargs: Any) -> Any:
        """As InferenceSession's."""
        with self._failure_raised():
            return super().run_with_ortvaluevector(*args, **kwargs)

    def run_with_iobinding(self, *args: Any, **kwargs: Any) -> Any:
        """As InferenceSession's."""
        with self._failure_raised():
            return super().run_with_iobinding(*args, **kwargs)

    def run_async(self, *_: Any, **__: Any) -> None:
        """Refuse: nobody waits for the end of the run, where errors are raised."""
        raise KernelError("run_async is not available with kernel='python' (call run in a thread of your own).")

    @contextlib.contextmanager
    def _failure_raised(self) -> Iterator[None]:
        with self._running:
            try:
                yield
            finally:
                failure = _failures.pop(self._token, None)
                if failure is not None:
                    raise failure


class PythonKernelPass(ir.passes.InPlacePass):
    """Replace every LayerNormBackprop node by the PyOp and the casts that it needs.

    Taken: what *decompose* takes. Refused: a node that the specification refuses; one with an operand whose type is
    not known; bfloat16 before opset 13.

    Args:
        token: Names the session that the model is prepared for; no two have the same.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._numbers = itertools.count()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass.

        Raises:
            InvalidNodeError: Where a node is refused.
            InvalidModelError: Where the opset is too old.
        """
        specialise_functions(model)
        functions = Functions(model.functions.values())
        modified = model.functions.pop(OPERATOR_ID, None) is not None
        for scope in scopes(model):
            operators = find_operators(scope, functions)
            if not operators:
                continue
            opset = scope.opset_imports.setdefault("", model.opset_imports.get("", DEFAULT_OPSET))
            for imports in (scope.opset_imports, model.opset_imports):
                imports[PYTHON_DOMAIN] = spec.OP_VERSION
            replace_nodes([self._replacement(operator, opset) for operator in operators])
            modified = True
        return ir.passes.PassResult(model, modified)

    def _replacement(self, operator: Operator, opset: int) -> Replacement:
        node, parsed = operator.node, operator.parsed
        compute_type = spec.compute_type(parsed.element_type or TensorProto.FLOAT)
        writer = Writer(
            parsed.description,
            opset,
            lambda _: f"{self._token}_{next(self._numbers)}",
            {value: info for value, info in zip(node.inputs, parsed.inputs, strict=False) if value and info},
            error=InvalidModelError,
            newer_opset="convert the model with onnx.version_converter, or use kernel='native'",
        )
        names, operands = [], []
        values = [*node.inputs, *[None] * (len(spec.INPUTS) - len(node.inputs))]
        for parameter, value, info in zip(spec.INPUTS, values, parsed.inputs, strict=True):
            if value is None or info is None:
                names.append("")
                operands.append(writer.constant([], compute_type))
                continue
            if info.element_type is None:
                raise InvalidNodeError(
                    f"{parsed.description}: the type of input {parameter.name!r} is not known, and the Python kernel "
                    f"needs it for a cast (state it in the graph's value_info, or use kernel='native')."
                )
            names.append(value.name or "")
            operands.append(writer.cast(value, compute_type))

        proto = ir.to_proto(node)
        proto.ClearField("input")
        proto.input.extend(names)
        attributes = {"node": base64.b64encode(proto.SerializeToString()).decode(), "token": self._token}
        results = writer.ops(
            spec.OP_TYPE,
            *operands,
            outputs=len(spec.OUTPUTS),
            element_type=compute_type,
            domain=PYTHON_DOMAIN,
            **attributes,
        )
        writer.nodes[-1].name = node.name
        outputs: list[ir.Value | None] = []
        for parameter, old, new in zip(spec.OUTPUTS, node.outputs, results, strict=False):
            if old.name:
                element_type = parsed.element_type if parameter.type_variable == "T" else parsed.parameter_type
                assert element_type is not None
                outputs.append(writer.cast(new, element_type))
            else:
                outputs.append(None)
        return Replacement(node, writer.nodes, outputs)
