# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime sessions for models that hold the operator."""

import contextlib
import functools
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import onnx_ir as ir
import onnxruntime
from onnx import ModelProto

from lnbp_onnx.edit import apply_in_place
from lnbp_onnx.errors import InvalidModelError, KernelError, LnbpError
from lnbp_onnx.kernels import extensions, native, python
from lnbp_onnx.model_io import load_model, runnable
from lnbp_onnx.specialise import specialised_operators

AnyModel: TypeAlias = ModelProto | ir.Model | str | Path | bytes
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

_lock = threading.Lock()
_kernels_of_options: "weakref.WeakKeyDictionary[onnxruntime.SessionOptions, set[Kernel]]" = weakref.WeakKeyDictionary()


def inference_session(
    model: AnyModel,
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
        sess_options: Gets the kernel's library registered, once; it may be used again with the same kernel.
        providers: As for ``onnxruntime.InferenceSession``. The operator runs on the CPU beside any provider; a
            warning says so where its tensors are copied for that.

    Returns:
        An ``onnxruntime.InferenceSession``; with "python", one whose runs raise what went wrong in the kernel.

    Raises:
        InvalidNodeError: Where the specification refuses a node.
        InvalidModelError: Where the model cannot be loaded.
        KernelError: Where the kernel is unknown or cannot be had, or `sess_options` has its library already.
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
    try:
        with _loadable(model, prepare) as source:
            session = session_type(source, options, providers=providers)
    except LnbpError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base but Exception
        raise _explained(model, error, library) from error
    _warn_of_copies(session.get_providers())
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
def _loadable(model: AnyModel, prepare: _Preparation | None) -> Iterator[str | bytes]:
    """Give the model, prepared, as a path or as bytes; a path may be that of a file which is there only for now."""
    if prepare is None and isinstance(model, str | Path):
        yield str(model)
    elif prepare is None and isinstance(model, bytes):
        yield model
    else:
        proto, source = _read(model)
        if prepare is not None:
            prepare(proto)
        if source is None:
            yield _serialised(proto)
            return
        with runnable(proto, source) as loadable:
            yield str(loadable) if isinstance(loadable, Path) else loadable.SerializeToString()


def _read(model: AnyModel) -> tuple[ModelProto, Path | None]:
    """Return a ModelProto that may be changed, and a path in the folder of its external data where it has one."""
    if isinstance(model, str | Path):
        return load_model(Path(model)), Path(model)
    if isinstance(model, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(model)
        return copy, None
    if isinstance(model, ir.Model):
        return ir.to_proto(model), _source_of_tensors(model)
    if isinstance(model, bytes):
        try:
            return ModelProto.FromString(model), None
        except Exception as error:  # protobuf's DecodeError has moved between its versions
            raise InvalidModelError(f"The {len(model)} bytes are not an ONNX model: {error}.") from error
    raise InvalidModelError(
        f"The model is of type {type(model).__name__}; it must be an onnx.ModelProto, an onnx_ir.Model, a path, "
        "or bytes."
    )


def _source_of_tensors(model: ir.Model) -> Path | None:
    """Return a path in the folder that the model's external tensors are relative to, or None where there are none."""
    outer = [model.graph, *(function.graph for function in model.functions.values())]
    graphs = [each for graph in outer for each in (graph, *graph.subgraphs())]
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values()]
    tensors += [attribute.value for graph in graphs for node in graph for attribute in node.attributes.values()]
    folders = {Path(tensor.base_dir).resolve() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    if len(folders) > 1:
        raise InvalidModelError(
            f"The model's external data is in {len(folders)} folders: {', '.join(map(str, sorted(folders)))}; "
            "it must be in one (save the model with onnx_ir.save, and give its path)."
        )
    return folders.pop() / "model.onnx" if folders else None


def _serialised(proto: ModelProto) -> bytes:
    try:
        serialised: bytes = proto.SerializeToString()
    except Exception as error:  # its type depends on protobuf's implementation
        raise InvalidModelError(
            f"The model cannot be serialised: {error} (where it has 2 GB or more, save it with external data, and give "
            "its path)."
        ) from error
    return serialised


def _explained(model: AnyModel, error: Exception, library: str) -> LnbpError:
    """Return the error that says why no session could be made."""
    if any(sign in str(error) for sign in ("Domain already set in registry", "Conflicting with a registered kernel")):
        return KernelError(
            f"sess_options had {library} registered before, and a second time is an error of onnxruntime's "
            "(give SessionOptions without it: inference_session registers it)."
        )
    try:
        read, _ = _read(model)
        specialised_operators(ir.from_proto(read))
    except LnbpError as reason:
        return reason
    except Exception:  # onnx_ir cannot read it either: onnxruntime's reason is as good
        pass
    return InvalidModelError(f"onnxruntime cannot load the model: {error}")


def _warn_of_copies(providers: Sequence[str]) -> None:
    others = [provider for provider in providers if provider not in IN_HOST_MEMORY]
    if others:
        warnings.warn(
            f"LayerNormBackprop has a kernel for the CPU only: with {', '.join(others)} its inputs and outputs are "
            "copied from and to the device (lnbp_onnx.decompose gives a model that runs on the device).",
            stacklevel=3,
        )
