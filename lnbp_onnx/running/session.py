# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime sessions for models that hold the operator."""

import contextlib
import functools
import mmap
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import onnx
import onnx_ir as ir
import onnxruntime
from onnx import ModelProto

from lnbp_onnx.errors import InvalidModelError, KernelError, LnbpError
from lnbp_onnx.files.model_io import STANDARD_STREAM, byte_size, can_be_read_again, data_warnings, is_protobuf, runnable
from lnbp_onnx.files.model_like import ModelLike, read_model
from lnbp_onnx.files.new_files import LARGEST_PROTO
from lnbp_onnx.graphs.edit import apply_in_place
from lnbp_onnx.graphs.specialise import specialised_operators
from lnbp_onnx.passes import held_training_ops, scatter_reductions
from lnbp_onnx.running import extensions, native, python
from lnbp_onnx.running.drawing import fed_inputs

Kernel: TypeAlias = Literal["native", "extensions", "python"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

_Preparation: TypeAlias = Callable[[ModelProto], object]

IN_HOST_MEMORY = {
    "CPUExecutionProvider",
    "AzureExecutionProvider",
    "DnnlExecutionProvider",
    "XnnpackExecutionProvider",
}
"""The execution providers whose tensors a kernel on the CPU can use where they are."""

_ERRORS = 3
"""The severity from which on ONNX Runtime logs no warnings."""

_SCATTER = "ScatterND"
_REGISTERED_TWICE = ("Domain already set in registry", "Conflicting with a registered kernel")

_lock = threading.Lock()
_kernels_of_options: "weakref.WeakKeyDictionary[onnxruntime.SessionOptions, set[Kernel]]" = weakref.WeakKeyDictionary()


def inference_session(
    model: ModelLike,
    *,
    kernel: Kernel = "native",
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
) -> onnxruntime.InferenceSession:
    """Make a session that runs LayerNormBackprop nodes with one of the package's kernels.

    Args:
        model: A ModelProto, an ``onnx_ir.Model``, a path, or a serialised model. It is left as it was. External data
            stays in its file: a path's and an ``onnx_ir.Model``'s is found where it is, that of a ModelProto or bytes
            in the current folder.
        kernel: "native", the package's own library; "extensions", the same library through onnxruntime-extensions;
            "python", the reference through onnxruntime-extensions, for comparison and not for speed. The last two need
            the package onnxruntime-extensions.
        sess_options: Gets the kernel's library registered, once; it may be used again with the same kernel. None makes
            some. ONNX Runtime warns of each input that has a default, and has no way to leave out one kind of warning:
            where the model has such inputs, those that None makes are silent below errors.
        providers: As for ``onnxruntime.InferenceSession``. The operator runs on the CPU beside any provider; a
            warning says so where its tensors are copied for that.

    Returns:
        An ``onnxruntime.InferenceSession``; with "python", one whose runs raise what went wrong in the kernel.

    Raises:
        InvalidNodeError: Where the specification refuses a node.
        InvalidModelError: Where the model cannot be loaded.
        KernelError: Where the kernel is unknown or not available, or `sess_options` has its library already.

    Example:
        >>> import numpy as np
        >>> import onnx, lnbp_onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17, "lnbp": 1]>
        ...     step (float[n, 64] x, float[n, 64] dy, float[64] gamma) => (float[n, 64] dx)
        ...     { dx = lnbp.LayerNormBackprop <use_stats = 0> (x, dy, gamma) }
        ... ''')
        >>> session = lnbp_onnx.inference_session(model)
        >>> rows = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
        >>> (dx,) = session.run(None, {"x": rows[0], "dy": rows[1], "gamma": np.ones(64, np.float32)})
        >>> dx.shape
        (3, 64)
    """
    prepare: _Preparation | None = None
    session_type = onnxruntime.InferenceSession
    if kernel == "native":
        library = native.get_library_path()
    elif kernel == "extensions":
        with _lock:
            library = extensions.get_library_path()
        prepare = extensions.use_contrib_domain
    elif kernel == "python":
        with _lock:
            library = python.get_library_path()
        token = uuid.uuid4().hex
        prepare = functools.partial(apply_in_place, python.PythonKernelPass(token))
        session_type = functools.partial(python.PythonKernelSession, token)
    else:
        allowed = ", ".join(map(repr, KERNELS))
        raise KernelError(f"The kernel is {kernel!r}; it must be one of {allowed} ('native' is the fastest).")

    options = _registered(sess_options, kernel, library)
    if sess_options is None and _has_defaults(model):
        options.log_severity_level = _ERRORS
    try:
        with _loadable(model, prepare) as source:
            session = session_type(source, options, providers=providers)
    except LnbpError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base but Exception
        if any(sign in str(error) for sign in _REGISTERED_TWICE):
            raise KernelError(
                f"sess_options had {library} registered before, and a second time is an error of onnxruntime's "
                "(give SessionOptions without it: inference_session registers it)."
            ) from error
        raise load_error(model, error) from error
    _warn_of_copies(session.get_providers())
    if options.intra_op_num_threads != 1:
        _warn_of_lost_updates(model)
    return session


def _registered(
    sess_options: onnxruntime.SessionOptions | None, kernel: Kernel, library: str
) -> onnxruntime.SessionOptions:
    """Return the options with the library registered; a second time on the same options would be an error."""
    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    with _lock:
        kernels = _kernels_of_options.setdefault(options, set())
        others = kernels - {kernel, "native"}
        if kernel != "native" and others:
            raise KernelError(
                f"sess_options was used with kernel={others.pop()!r} before, and has the library of "
                f"onnxruntime-extensions registered without kernel={kernel!r} (make other SessionOptions)."
            )
        if kernel not in kernels:
            options.register_custom_ops_library(library)
            kernels.add(kernel)
    return options


@contextlib.contextmanager
def _loadable(model: ModelLike, prepare: _Preparation | None) -> Iterator[str | bytes]:
    """Give the model, prepared, as a path or as bytes; a path may be that of a file which is there only for now."""
    if prepare is None and isinstance(model, str | Path) and is_protobuf(Path(model)):
        yield str(model)
    elif prepare is None and isinstance(model, bytes):
        yield model
    else:
        proto, source = read_model(model)
        if prepare is not None:
            prepare(proto)
        if source is None:
            yield serialised(proto)
            return
        with runnable(proto, source) as loadable:
            yield str(loadable) if isinstance(loadable, Path) else serialised(loadable)


def serialised(proto: ModelProto) -> bytes:
    """Return a model as bytes.

    Raises:
        InvalidModelError: Where it is too large for that.
    """
    if byte_size(proto) > LARGEST_PROTO:
        raise InvalidModelError(
            "The model has more than 2 GB, which no runtime takes at once (save it with external data, and give its "
            "path)."
        )
    content: bytes = proto.SerializeToString()
    return content


def load_error(model: ModelLike, error: Exception) -> LnbpError:
    """Return the error that says why ONNX Runtime cannot load a model, which is more than its own `error` says."""
    try:
        read, source = read_model(model)
        faults = data_warnings(read, STANDARD_STREAM if source is None else source)
        if faults:
            return InvalidModelError(" ".join(faults))
        listed = held_training_ops(read)
        if listed:
            return InvalidModelError(
                f"onnxruntime cannot load the model, which has operators of ONNX Runtime training: {listed} "
                "(lnbp_onnx.decompose(model, training_ops=True), lnbp-onnx decompose --training-ops, rewrites them)."
            )
        specialised_operators(ir.from_proto(read))
    except LnbpError as reason:
        return reason
    except Exception:  # onnx_ir cannot read it either: onnxruntime's reason is as good
        pass
    return InvalidModelError(f"onnxruntime cannot load the model: {error}")


def _has_defaults(model: ModelLike) -> bool:
    """Return whether an input of the model has a default; of what cannot be read ONNX Runtime says what is wrong."""
    if isinstance(model, ir.Model):
        return any(value.name in model.graph.initializers for value in model.graph.inputs)
    if isinstance(model, str | Path) and not can_be_read_again(Path(model)):
        return False
    try:
        # Without the checks of read_model, which take most of its time.
        if isinstance(model, bytes):
            model = onnx.load_model_from_string(model)
        elif not isinstance(model, ModelProto):
            model = onnx.load_model(model, load_external_data=False)
    except Exception:  # each format has its own exceptions
        return False
    return len(fed_inputs(model.graph)) < len(model.graph.input)


def _warn_of_lost_updates(model: ModelLike) -> None:
    names = scatter_reductions_of(model)
    if names:
        warnings.warn(
            f"The model has ScatterND nodes with a reduction ({len(names)}, the first {names[0]!r}): with several "
            "threads ONNX Runtime loses some of their updates where indices repeat. lnbp_onnx.decompose(model, "
            "scatter_reductions=True) or lnbp-onnx decompose --scatter-reductions gives a model that is right; or set "
            "sess_options.intra_op_num_threads = 1.",
            stacklevel=3,
        )


def scatter_reductions_of(model: ModelLike) -> list[str]:
    """Return the names of the ScatterND nodes with a reduction; what has none is not parsed for it."""
    if isinstance(model, ir.Model):
        graphs = [model.graph, *(function.graph for function in model.functions.values())]
        if not any(node.op_type == _SCATTER for graph in graphs for node in graph.all_nodes()):
            return []
    elif isinstance(model, str | Path):
        if not can_be_read_again(Path(model)):
            return []
        with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_SCATTER.encode()) < 0:
                return []
    elif isinstance(model, bytes) and _SCATTER.encode() not in model:
        return []
    try:
        return scatter_reductions(model if isinstance(model, ModelProto) else read_model(model)[0])
    except InvalidModelError:  # a model in ONNX Runtime's own format
        return []


def _warn_of_copies(providers: Sequence[str]) -> None:
    others = [provider for provider in providers if provider not in IN_HOST_MEMORY]
    if others:
        warnings.warn(
            f"LayerNormBackprop has a kernel for the CPU only: with {', '.join(others)} its inputs and outputs are "
            "copied from and to the device (lnbp_onnx.decompose gives a model that runs on the device).",
            stacklevel=3,
        )
