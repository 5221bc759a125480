# SPDX-License-Identifier: Apache-2.0
"""Model files: read without their external data, written whole or not at all.

The data files of a model stay where they are as long as the model does. A model written to another folder gets its
data streamed into one file beside it, under its own name.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto
from onnx.serialization import registry

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.faults import text_fault_of

DEFAULT_SIZE_THRESHOLD = 1024
"""The size in bytes from which a tensor is external data by default."""

_LARGEST_PROTO = 2**31 - 1

Progress = Callable[[int, int], None]
"""Called with the bytes of external data written so far and in all."""


def load_model(path: Path) -> ModelProto:
    """Read a model without its external data.

    Raises:
        InvalidModelError: Where the file is missing or is no ONNX model, or names external data outside its folder.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "not there"
        raise InvalidModelError(f"{path}: expected an ONNX model, the file is {found} (check the path).")
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # each format has its own parser with its own exceptions
        raise InvalidModelError(f"{path}: is not an ONNX model ({error}).") from error
    if not model.HasField("graph"):
        raise InvalidModelError(f"{path}: is not an ONNX model (it holds no graph).")
    text_fault = text_fault_of(model)
    if text_fault is not None:
        raise InvalidModelError(f"{path}: is not an ONNX model ({text_fault}).")
    for tensor in _external_tensors(model):
        _data_file(tensor, path)
        _check_range(tensor, path)
    return model


def save_model(
    model: ModelProto,
    target: Path,
    source: Path,
    *,
    size_threshold: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model that was read from `source`; each file appears whole under its name or not at all.

    External data in `source`'s folder is left where it is when `target` is in the same folder, and streamed to one
    file named after `target` when it is in another. `model` is changed where its tensors become external.

    Args:
        model: The model; its external tensors are those of `source`.
        target: Where to write it.
        source: Where it was read from.
        size_threshold: Initializers of at least this many bytes become external data. None leaves them in the model,
            unless it is too large for one file (2 GB).
        progress: Told of the external data written.

    Raises:
        InvalidModelError: Where a file cannot be read or written.
    """
    try:
        target = Path(os.path.realpath(target))
        _externalise(model, target, source, size_threshold, progress)
        with _replaced(target) as temporary:
            serializer = registry.get(registry.get_format_from_file_extension(target.suffix) or "protobuf")
            temporary.write_bytes(serializer.serialize_proto(model))
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise InvalidModelError(f"{target}: cannot be written: {reason}.") from error
    except ValueError as error:  # onnx_ir refuses files with several hard links
        raise InvalidModelError(f"{target}: cannot be written: {error}") from error


@contextlib.contextmanager
def runnable(model: ModelProto, source: Path) -> Iterator[ModelProto | Path]:
    """Give what a runtime can load of a model that was read from `source`: itself, or a file beside its data.

    Raises:
        InvalidModelError: Where the file cannot be written.
    """
    if not has_external_data(model):
        yield model
        return
    try:
        handle, name = tempfile.mkstemp(prefix=f".{source.name}.", suffix=".onnx", dir=source.resolve().parent)
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString())
    except OSError as error:
        raise InvalidModelError(f"{error.filename}: cannot be written: {error.strerror or error}.") from error
    try:
        yield Path(name)
    finally:
        Path(name).unlink()


def check_model(model: ModelProto) -> None:
    """Check a model with onnx's checker and strict inference, where it is not too large for these.

    Raises:
        InvalidModelError: Where they refuse it.
    """
    if _byte_size(model) > _LARGEST_PROTO:
        return
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidModelError(f"onnx refuses the model: {error}") from error


def _byte_size(message: ModelProto | TensorProto) -> int:
    """Return the size in bytes of a message, or one that is too large where protobuf can neither write nor measure."""
    try:
        size: int = message.ByteSize()
    except Exception:  # protobuf's EncodeError is not in all of its versions
        return _LARGEST_PROTO + 1
    return size


def has_external_data(model: ModelProto) -> bool:
    """Return whether any tensor of the model is in a file of its own."""
    return any(_external_tensors(model))


def _externalise(
    model: ModelProto, target: Path, source: Path, size_threshold: int | None, progress: Progress | None
) -> None:
    if size_threshold is None and _byte_size(model) > _LARGEST_PROTO:
        size_threshold = DEFAULT_SIZE_THRESHOLD
    moved = []
    if source.resolve().parent != target.parent:
        moved = list(_external_tensors(model))
    if size_threshold is not None:
        # Not the tensors of attributes: a runtime needs those to infer shapes, and does not look for them in files.
        moved += [
            tensor
            for tensor in _initializers(model.graph)
            if tensor.data_location != TensorProto.EXTERNAL
            and tensor.data_type != TensorProto.STRING
            and _byte_size(tensor) >= size_threshold
        ]
    if not moved:
        return
    location = _unused_location(target, {_data_file(tensor, source) for tensor in _external_tensors(model)})
    tensors: dict[tuple[str, ...] | int, ir.TensorProtocol] = {}
    keys = [_identity(tensor) for tensor in moved]
    for key, tensor in zip(keys, moved, strict=True):
        if key not in tensors:
            tensors[key] = ir.serde.deserialize_tensor(tensor, base_path=source.resolve().parent)
    written = ir.external_data.convert_tensors_to_external(
        list(tensors.values()), target.parent, location, callback=_byte_counter(list(tensors.values()), progress)
    )
    placed = dict(zip(tensors, written, strict=True))
    for key, tensor in zip(keys, moved, strict=True):
        _refer(tensor, placed[key])


def _byte_counter(
    tensors: Sequence[ir.TensorProtocol], progress: Progress | None
) -> Callable[[ir.TensorProtocol, ir.external_data.CallbackInfo], None] | None:
    if progress is None:
        return None
    total, done = sum(tensor.nbytes for tensor in tensors), 0

    def count(tensor: ir.TensorProtocol, _: ir.external_data.CallbackInfo) -> None:
        nonlocal done
        progress(done, total)
        done += tensor.nbytes

    return count


def _identity(tensor: TensorProto) -> tuple[str, ...] | int:
    """Return a key that is equal for tensors that are the same bytes of the same file, so that they stay shared."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return id(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    kind = (str(tensor.data_type), *map(str, tensor.dims))
    return (entries["location"], entries.get("offset", "0"), entries.get("length", ""), *kind)


def _refer(tensor: TensorProto, written: ir.ExternalTensor) -> None:
    """Make a tensor refer to external data."""
    for field in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": written.location, "offset": written.offset, "length": written.length}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def _unused_location(target: Path, used: set[Path]) -> str:
    """Return a data file's name after `target` that is none of the files that the model's tensors are in."""
    location = f"{target.name}.data"
    count = 1
    while target.parent / location in used:
        count += 1
        location = f"{target.name}.{count}.data"
    return location


def _data_file(tensor: TensorProto, source: Path) -> Path:
    """Return the file of an external tensor.

    Raises:
        InvalidModelError: Where it is outside the model's folder.
    """
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    folder = source.resolve().parent
    path = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(folder):
        raise InvalidModelError(
            f"{source}: the external data of tensor {tensor.name!r} is at {location!r}; it must be in the model's "
            "folder or below, and not through a link that leaves it (move the file beside the model)."
        )
    return path


def _check_range(tensor: TensorProto, source: Path) -> None:
    for entry in tensor.external_data:
        if entry.key in ("offset", "length") and not entry.value.isdecimal():
            raise InvalidModelError(
                f"{source}: the external data of tensor {tensor.name!r} has {entry.key} {entry.value!r}; it must be a "
                "number of bytes (save the model again from where it came)."
            )


def _external_tensors(model: ModelProto) -> Iterator[TensorProto]:
    return (tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training_info in model.training_info:
        yield from _graph_tensors(training_info.initialization)
        yield from _graph_tensors(training_info.algorithm)


def _initializers(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _initializers(subgraph)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from _sparse_tensors(sparse)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Sequence[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        *attribute.sparse_tensors,
    ):
        yield from _sparse_tensors(sparse)
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from _graph_tensors(graph)


def _sparse_tensors(sparse: SparseTensorProto) -> Iterator[TensorProto]:
    yield sparse.values
    yield sparse.indices


@contextlib.contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`, which takes its place when the block ends well."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
