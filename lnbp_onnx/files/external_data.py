# SPDX-License-Identifier: Apache-2.0
"""The tensors of a model whose bytes are in files of their own: where these are, and copying them."""

import contextlib
import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.files.new_files import CHUNK, kind_of
from lnbp_onnx.spec import type_name

_LARGEST_END = 2**63 - 1

# So that a runtime can map a large tensor's part of the file: what a mapping may start at on all systems.
_ALIGNMENT = 2**16
_ALIGNED_FROM = 2**20

Progress = Callable[[int, int], None]
"""Called with the bytes of external data written so far and in all."""


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where the bytes of an external tensor are.

    Attributes:
        tensor: The tensor's name.
        location: The file as the model names it, relative to the model's folder.
        path: The same file, links resolved; it may be missing.
        offset: Where the bytes begin in it.
        length: How many there are, as the model says or, where it does not, as the tensor's shape needs.
        needed: How many the tensor's shape needs.
    """

    tensor: str
    location: str
    path: Path
    offset: int
    length: int
    needed: int


@dataclass(frozen=True, slots=True)
class Part:
    """What is to be a part of a data file: the bytes of a tensor in the model, or those of another data file."""

    content: TensorProto | ExternalData
    offset: int
    length: int


def external_data(tensors: Iterable[TensorProto], folders: Sequence[Path], source: str) -> list[ExternalData]:
    """Return where the bytes of each of a model's `external_tensors` are; the files may be missing, and are not opened.

    Args:
        tensors: The tensors.
        folders: The model's folder, links resolved, and others that links in it may lead to.
        source: What messages call the model.

    Raises:
        InvalidModelError: Where a tensor cannot be external data, or its file is no file or outside of the folders.
    """
    paths: dict[str, Path] = {}
    found = []
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            if location not in paths:
                paths[location] = _data_file(location, folders)
            needed = _needed_bytes(tensor)
            offset, length = _number(entries, "offset", 0), _number(entries, "length", needed)
        except ValueError as error:
            raise InvalidModelError(f"{source}: the external data of tensor {tensor.name!r} {error}.") from error
        found.append(ExternalData(tensor.name, location, paths[location], offset, length, needed))
    return found


def missing_data(found: Iterable[ExternalData], folder: str) -> list[str]:
    """Return a sentence for each data file that is missing, too short, or has not what the shape of a tensor needs.

    Args:
        found: Where the bytes of tensors are.
        folder: What messages call the folder that a missing file belongs in.
    """
    sizes: dict[Path, int | str] = {}
    faults: dict[tuple[Path, str], list[tuple[str, str]]] = {}
    for data in found:
        if data.path not in sizes:
            sizes[data.path] = _size(data.path, folder)
        kind, fault = _fault(data, sizes[data.path])
        if fault:
            faults.setdefault((data.path, kind), []).append((data.tensor, fault))
    sentences = []
    for (tensor, fault), *others in faults.values():
        also = f" (and {len(others)} more of the same file)" if others else ""
        sentences.append(f"The external data of tensor {tensor!r}{also} {fault}.")
    return sentences


def laid_out(contents: Iterable[TensorProto | ExternalData]) -> list[Part]:
    """Return where tensors are in a data file that holds them one after the other.

    Raises:
        InvalidModelError: Where a tensor cannot be read.
    """
    parts = []
    position = 0
    for content in contents:
        length = content.length if isinstance(content, ExternalData) else len(_content(content))
        if length >= _ALIGNED_FROM:
            position = -(-position // _ALIGNMENT) * _ALIGNMENT
        parts.append(Part(content, position, length))
        position += length
    return parts


def chunks_of(parts: Sequence[Part], progress: Progress | None) -> Generator[bytes | memoryview, None, None]:
    """Yield the bytes of a data file.

    Raises:
        InvalidModelError: Where a tensor cannot be read.
    """
    total = sum(part.length for part in parts)
    position = done = 0
    for part in parts:
        yield bytes(part.offset - position)
        with contextlib.closing(_bytes_of(part.content)) as chunks:
            for chunk in chunks:
                yield chunk
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        position = part.offset + part.length


def take_in(tensor: TensorProto, data: ExternalData) -> None:
    """Put the bytes of an external tensor into the model.

    Raises:
        InvalidModelError: Where they cannot be read.
    """
    content = b"".join(_read(data))
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = content


def refer(tensor: TensorProto, location: str, part: Part) -> None:
    """Make a tensor refer to a part of a data file."""
    for field in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": part.offset, "length": part.length}.items():
        tensor.external_data.add(key=key, value=str(value))


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """Return the tensors whose bytes are in files of their own."""
    return [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]


def _data_file(location: str, folders: Sequence[Path]) -> Path:
    """Return the file of a location.

    Raises:
        ValueError: Where it is no file, or outside the folders; a part of a sentence.
    """
    outside = (
        f"is at {location!r}; it must be in the model's folder or below, and not through a link that leaves it (move "
        "the file beside the model)"
    )
    if not location or "\0" in location or Path(location).is_absolute():
        raise ValueError(outside)
    try:
        path = Path(os.path.realpath(folders[0] / location))
        if not any(path.is_relative_to(folder) for folder in folders):
            raise ValueError(outside)
        kind = kind_of(path.stat())
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise ValueError(f"is at {location!r}, which names no file ({error.strerror})") from error
        return path
    except UnicodeEncodeError as error:
        raise ValueError(f"is at {location!r}, which the file system cannot name ({error.reason})") from error
    if kind is not None:
        raise ValueError(f"is at {location!r}, which is {kind}; it must be a file")
    return path


def _needed_bytes(tensor: TensorProto) -> int:
    """Return how many bytes a tensor of its type and shape has.

    Raises:
        ValueError: Where it cannot have bytes in a file; a part of a sentence.
    """
    kind = tensor.data_type
    if kind not in TensorProto.DataType.values() or kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise ValueError(f"is of type {type_name(kind)}, which ONNX does not allow in a file (export the model again)")
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError(f"has the shape {list(tensor.dims)}; no length may be negative (export the model again)")
    elements = 0 if 0 in tensor.dims else 1
    for dim in tensor.dims:
        elements = min(elements * dim, _LARGEST_END)  # a product of many lengths takes its time
    return -(-elements * ir.DataType(kind).bitwidth // 8)


def _number(entries: dict[str, str], key: str, default: int) -> int:
    value = entries.get(key)
    if value is None:
        return default
    if not (value.isascii() and value.isdecimal()) or len(value) > len(str(_LARGEST_END)) or int(value) > _LARGEST_END:
        raise ValueError(
            f"has {key} {value!r}; it must be a number of bytes, below 2**63 (save the model again from where it came)"
        )
    return int(value)


def _size(path: Path, folder: str) -> int | str:
    """Return a file's size, or what is wrong with the file."""
    try:
        return path.stat().st_size if os.access(path, os.R_OK) or not path.exists() else "cannot be read (chmod u+r)"
    except OSError:
        return f"is missing (put the file into {folder})"


def _fault(data: ExternalData, size: int | str) -> tuple[str, str]:
    """Return what is wrong with a tensor's data, as a kind and as the end of a sentence; both are empty for nothing."""
    if isinstance(size, str):
        return "file", f"is in {data.location!r}, which {size}"
    end = data.offset + data.length
    if end > size:
        range_ = f"is at bytes {data.offset} to {end} of {data.location!r}"
        return "end", f"{range_}, which has only {size} (copy the file again)"
    if data.length != data.needed:
        needs = f"its shape needs {data.needed} (save the model again from where it came)"
        return "length", f"has {data.length} bytes of {data.location!r}, and {needs}"
    return "", ""


def _read(data: ExternalData) -> Iterator[bytes]:
    place = f"The external data of tensor {data.tensor!r} in {data.location!r}"
    try:
        # A pipe that has taken the file's place since it was looked at must not block.
        descriptor = os.open(data.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if kind_of(status) is not None or status.st_nlink > 1:
                reason = "is no file" if kind_of(status) else "has several hard links, which onnx does not read"
                raise InvalidModelError(f"{place} cannot be copied: it {reason} (put a copy in its place).")
            file.seek(data.offset)
            left = data.length
            while left:
                chunk = file.read(min(left, CHUNK))
                if not chunk:
                    raise InvalidModelError(f"{place} cannot be copied: the file ends before it does.")
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise InvalidModelError(f"{place} cannot be read: {error.strerror or error}.") from error


def _content(tensor: TensorProto) -> bytes:
    """Return the bytes of a tensor in the model, as they are in a file."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    try:
        return ir.serde.deserialize_tensor(tensor).tobytes()
    except Exception as error:  # what NumPy raises for the wrong number of elements or an unknown type
        raise InvalidModelError(f"The tensor {tensor.name!r} cannot be read: {error}.") from error


def _bytes_of(content: TensorProto | ExternalData) -> Generator[bytes | memoryview, None, None]:
    if isinstance(content, ExternalData):
        yield from _read(content)
        return
    view = memoryview(_content(content))
    for start in range(0, len(view), CHUNK):
        yield view[start : start + CHUNK]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
    for training_info in model.training_info:
        yield from _graph_tensors(training_info.initialization)
        yield from _graph_tensors(training_info.algorithm)


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
