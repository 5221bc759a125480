# SPDX-License-Identifier: Apache-2.0
"""What writing a model makes, replaces, keeps and removes."""

import io
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from command_line import names_in
from onnx import ModelProto, TensorProto
from weighted_models import external, weighted_model, weights

import lnbp_onnx
from lnbp_onnx.files.model_io import STANDARD_STREAM, load_model, runnable, save_model
from lnbp_onnx.files.new_files import replacing


def model_with(seed: int) -> ModelProto:
    return weighted_model(onnx.numpy_helper.from_array(weights(seed), "gamma"))


def save_with_data(seed: int, path: Path) -> None:
    """Write a model whose weights are external data, as the command line does."""
    save_model(model_with(seed), path, path, size_threshold=0)


def gamma(path: Path) -> np.ndarray:
    (tensor,) = [each for each in onnx.load(path).graph.initializer if each.name == "gamma"]
    return onnx.numpy_helper.to_array(tensor)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model in a folder of its own, with external data."""
    path = tmp_path / "source" / "m.onnx"
    path.parent.mkdir()
    path.with_name("m.onnx.data").write_bytes(weights(0).tobytes())
    path.write_bytes(weighted_model(external("gamma", [64], "m.onnx.data", 0, 256)).SerializeToString())
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "m.onnx"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize("kind", ["link", "hard link", "dangling link", "folder", "pipe"])
def test_what_has_the_name_of_the_data_file_stays(source: Path, out: Path, kind: str) -> None:
    data, place = source.with_name("m.onnx.data"), out.with_name("m.onnx.data")
    if kind == "link":
        place.symlink_to("../source/m.onnx.data")
    elif kind == "hard link":
        other = source.with_name("other")
        other.write_bytes(b"precious")
        os.link(other, place)
    elif kind == "dangling link":
        place.symlink_to("../source/new")
    elif kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    before, status = names_in(source.parent), place.lstat()
    save_model(load_model(source), out, source)
    assert names_in(source.parent) == before
    assert data.read_bytes() == weights(0).tobytes()
    after = place.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (status.st_ino, status.st_mode, status.st_mtime_ns)
    assert out.with_name("m.onnx.2.data").read_bytes() == weights(0).tobytes()
    np.testing.assert_array_equal(gamma(out), weights(0))


def test_links_to_the_data_in_one_folder(source: Path) -> None:
    """The name that the data of OUT would have is a link to IN's."""
    model = weighted_model(
        external("gamma", [64], "m.onnx.data", 0, 256), onnx.numpy_helper.from_array(weights(1), "inside")
    )
    source.write_bytes(model.SerializeToString())
    target = source.with_name("new.onnx")
    source.with_name("new.onnx.data").symlink_to("m.onnx.data")
    save_model(load_model(source), target, source, size_threshold=0)
    assert source.with_name("m.onnx.data").read_bytes() == weights(0).tobytes()
    np.testing.assert_array_equal(gamma(target), weights(0))


def test_ten_runs_leave_one_data_file(out: Path) -> None:
    for seed in (0, 0, *range(1, 8), 7):
        save_with_data(seed, out)
        assert len(names_in(out.parent)) == 2
        np.testing.assert_array_equal(gamma(out), weights(seed))


def test_the_same_data_is_not_written_again(out: Path) -> None:
    save_with_data(0, out)
    status = out.with_name("m.onnx.data").stat()
    save_with_data(0, out)
    after = out.with_name("m.onnx.data").stat()
    assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    save_with_data(1, out)
    assert names_in(out.parent) == ["m.onnx", "m.onnx.2.data"]


@pytest.mark.parametrize("kind", ["model", "text", "linked model", "link"])
def test_data_that_another_file_refers_to_stays(out: Path, tmp_path: Path, kind: str) -> None:
    save_with_data(0, out)
    other = out.with_name("other.onnx")
    if kind == "model":
        other.write_bytes(out.read_bytes())
    elif kind == "text":
        onnx.save(onnx.load(out, load_external_data=False), out.with_name("other.textproto"))
    elif kind == "linked model":
        (tmp_path / "elsewhere.onnx").write_bytes(out.read_bytes())
        other.symlink_to(tmp_path / "elsewhere.onnx")
    else:
        out.with_name("alias.bin").symlink_to("m.onnx.data")
    save_with_data(1, out)
    assert out.with_name("m.onnx.data").read_bytes() == weights(0).tobytes()
    np.testing.assert_array_equal(gamma(out), weights(1))


def test_data_of_another_name_stays(out: Path) -> None:
    out.with_name("weights.bin").write_bytes(weights(0).tobytes())
    out.write_bytes(weighted_model(external("gamma", [64], "weights.bin", 0, 256)).SerializeToString())
    save_model(model_with(1), out, out)
    assert names_in(out.parent) == ["m.onnx", "weights.bin"]


@pytest.mark.parametrize("name", ["n" * 250 + ".onnx", "é" * 125 + ".onnx", "\udcff.onnx", "\nm.onnx"])
def test_names_of_any_kind(out: Path, name: str) -> None:
    """As long as a name can be, and with bytes that are not UTF-8, which no location in a model can have."""
    target = out.with_name(name)
    for seed in (0, 1):
        save_with_data(seed, target)
        assert len(names_in(out.parent)) == 2
        np.testing.assert_array_equal(
            np.frombuffer(next(out.parent.glob("*.data")).read_bytes(), np.float32), weights(seed)
        )
    with runnable(load_model(target), target) as path:
        assert isinstance(path, Path)
        assert path.is_file()
    assert len(names_in(out.parent)) == 2


@pytest.mark.usefixtures("umask")
def test_permissions(out: Path) -> None:
    save_with_data(0, out)
    assert [oct(path.stat().st_mode & 0o777) for path in out.parent.iterdir()] == ["0o640", "0o640"]
    out.chmod(0o600)
    save_with_data(1, out)
    assert [oct(path.stat().st_mode & 0o777) for path in out.parent.iterdir()] == ["0o600", "0o600"]
    out.chmod(0o666)
    if os.geteuid() == 0:
        os.chown(out, 12345, 54321)
    owner = out.stat().st_uid, out.stat().st_gid
    save_with_data(2, out)
    for path in out.parent.iterdir():
        status = path.stat()
        assert (oct(status.st_mode & 0o777), status.st_uid, status.st_gid) == ("0o666", *owner)


def test_a_read_only_target_is_refused(out: Path) -> None:
    save_with_data(0, out)
    out.chmod(0o444)
    content = out.read_bytes()
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"m\.onnx is read-only; make it writable"):
        save_with_data(1, out)
    assert out.read_bytes() == content
    assert names_in(out.parent) == ["m.onnx", "m.onnx.data"]


def test_a_read_only_file_system_is_named(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_with_data(0, out)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(lnbp_onnx.InvalidModelError, match="read-only as its file system is; give OUT elsewhere"):
        save_with_data(1, out)


def test_a_target_that_is_a_link(out: Path, tmp_path: Path) -> None:
    """What it leads to is replaced; external data would be beside one of both names only."""
    link, near, loop = tmp_path / "link.onnx", out.with_name("near.onnx"), tmp_path / "loop.onnx"
    link.symlink_to(out)
    save_model(model_with(0), link, link)
    assert link.is_symlink()
    np.testing.assert_array_equal(gamma(out), weights(0))
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"link\.onnx is a link to .*m\.onnx: external data cannot"):
        save_with_data(1, link)
    np.testing.assert_array_equal(gamma(out), weights(0))
    assert names_in(out.parent) == ["m.onnx"]
    near.symlink_to("m.onnx")
    save_with_data(1, near)
    np.testing.assert_array_equal(gamma(near), weights(1))
    assert names_in(out.parent) == ["m.onnx", "m.onnx.data", "near.onnx"]
    loop.symlink_to(loop)
    with pytest.raises(lnbp_onnx.InvalidModelError, match="Too many levels of symbolic links"):
        save_with_data(0, loop)


def test_a_model_that_is_a_link(tmp_path: Path, out: Path) -> None:
    """As in a cache of downloads: its data is what is beside the link, a link too; results have files of their own."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "1").write_bytes(weighted_model(external("gamma", [64], "w.bin", 0, 256)).SerializeToString())
    (blobs / "2").write_bytes(weights(0).tobytes())
    (blobs / "w.bin").write_bytes(weights(1).tobytes())
    source = snapshot / "m.onnx"
    source.symlink_to("../blobs/1")
    (snapshot / "w.bin").symlink_to("../blobs/2")
    for target in (out, snapshot / "new.onnx"):
        save_model(load_model(source), target, source)
        np.testing.assert_array_equal(gamma(target), weights(0))
    assert names_in(blobs) == ["1", "2", "w.bin"]
    assert names_in(snapshot) == ["m.onnx", "new.onnx", "new.onnx.data", "w.bin"]


def test_targets_that_no_file_can_have(out: Path) -> None:
    os.mkfifo(out)
    unusable = {out: "is a pipe", out.parent: "is a folder", Path("/dev/null"): "is a device"}
    unusable |= {out.with_name("a\0b"): "null byte", out.with_name("n" * 256): "File name too long"}
    for target, message in unusable.items():
        with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
            save_with_data(0, target)
    assert names_in(out.parent) == ["m.onnx"]
    assert out.is_fifo()


def test_a_folder_that_cannot_be_written_to(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root can write to every folder, so that the system's answer is given here."""
    opened = os.open

    def refused(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(lnbp_onnx.InvalidModelError) as error:
        save_with_data(0, out)
    assert str(error.value) == f"{out.parent} cannot be written to: Permission denied (give OUT elsewhere)."


def said_with_limit(limit: int, soft: int, path: Path) -> str:
    """Write a model with 64 MB of weights in a process with a limit, and return what it says."""
    program = (
        "import resource, sys, numpy, onnx, lnbp_onnx\n"
        "from pathlib import Path\n"
        "from weighted_models import weighted_model\n"
        "from lnbp_onnx.files.model_io import save_model\n"
        "big = onnx.numpy_helper.from_array(numpy.ones(2**24, numpy.float32), 'big')\n"
        "model = weighted_model(big, onnx.numpy_helper.from_array(numpy.ones(64, numpy.float32), 'gamma'))\n"
        "limit, soft, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])\n"
        "if limit == resource.RLIMIT_AS:\n"
        "    status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "    soft += 1024 * int(status['VmSize'].split()[0])\n"
        "resource.setrlimit(limit, (soft, resource.RLIM_INFINITY))\n"
        "for size_threshold in (None, 0):\n"
        "    try:\n"
        "        save_model(model, path, path, size_threshold=size_threshold)\n"
        "    except lnbp_onnx.InvalidModelError as error:\n"
        "        print(error)\n"
    )
    arguments = [str(limit), str(soft), str(path)]
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("limit", "soft", "reason"),
    [(resource.RLIMIT_FSIZE, 2**20, "File too large"), (resource.RLIMIT_AS, 2**24, "too little memory")],
    ids=["disk", "memory"],
)
def test_too_little_room(out: Path, limit: int, soft: int, reason: str) -> None:
    save_with_data(0, out)
    said = said_with_limit(limit, soft, out).splitlines()
    assert said
    assert all("m.onnx: cannot be written: " in line and reason in line for line in said), said
    if len(said) == 2:
        assert names_in(out.parent) == ["m.onnx", "m.onnx.data"]
        np.testing.assert_array_equal(gamma(out), weights(0))
    else:  # what other threads leave may be room for one of the two, which then is written whole
        assert limit == resource.RLIMIT_AS
        np.testing.assert_array_equal(gamma(out), np.ones(64, np.float32))


def test_too_little_memory_once_it_is_written(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is in place; of the old data it is not known whether anything refers to it."""

    def looked_for(*_: object) -> bool:
        raise MemoryError

    save_with_data(0, out)
    monkeypatch.setattr("lnbp_onnx.files.new_files.Replacement._is_used", looked_for)
    save_with_data(1, out)
    assert names_in(out.parent) == ["m.onnx", "m.onnx.2.data", "m.onnx.data"]
    np.testing.assert_array_equal(gamma(out), weights(1))


def test_too_little_memory_to_parse(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What protobuf says then does not make the file one that is no model."""

    class Parser:
        def deserialize_proto(self, _content: bytes, _model: ModelProto) -> ModelProto:
            raise ValueError("Error parsing message with type 'onnx.ModelProto': Arena alloc failed")

    save_with_data(0, out)
    monkeypatch.setattr("lnbp_onnx.files.model_io._serializer", lambda _path: Parser())
    with pytest.raises(lnbp_onnx.InvalidModelError, match="cannot be read: there is too little memory for it"):
        load_model(out)


@pytest.mark.parametrize("unreadable", ["folder", "target"])
def test_what_can_be_written_but_not_read(out: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str) -> None:
    """The old data stays then; root can read everything, so that the system's answer is given here."""
    save_with_data(0, out)
    listed, opened = os.scandir, Path.open

    def scandir(path: Path) -> object:
        if unreadable == "folder":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    def open_(path: Path, mode: str = "r") -> object:
        if unreadable == "target" and path == out:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        patch.setattr(Path, "open", open_)
        save_with_data(1, out)
    np.testing.assert_array_equal(gamma(out), weights(1))
    assert names_in(out.parent) == ["m.onnx", "m.onnx.2.data", "m.onnx.data"]


def test_a_full_disk_while_a_model_is_made_runnable(source: Path) -> None:
    model = load_model(source)
    model.doc_string = "x" * 100_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with (
            pytest.raises(lnbp_onnx.InvalidModelError, match=r"source cannot be written to: File too large"),
            runnable(model, source),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_in(source.parent) == ["m.onnx", "m.onnx.data"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_model_is_made_runnable(source: Path, number: int) -> None:
    """The file is removed, and the process ends as it would have."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from lnbp_onnx.files.model_io import STANDARD_STREAM, load_model, runnable\n"
        "source = Path(sys.argv[1])\n"
        "with runnable(load_model(source), source) as path:\n"
        "    print(path.exists(), flush=True)\n"
        "    signal.raise_signal(int(sys.argv[2]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, source, str(int(number))],
        capture_output=True,
        text=True,
        check=False,
        # A shell has what runs in its background ignore SIGINT.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert run.stdout == "True\n"
    assert run.returncode == -number, run.stderr
    assert names_in(source.parent) == ["m.onnx", "m.onnx.data"]


def test_signals_are_handled_as_before(out: Path) -> None:
    """A handler of the program's own is called while the files are written, and the writing goes on if it returns."""
    called = []
    before = signal.signal(signal.SIGTERM, lambda number, _: called.append(number))
    try:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        model = model_with(0)
        save_model(
            model, out, out, size_threshold=0, progress=lambda _done, _total: signal.raise_signal(signal.SIGTERM)
        )
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [signal.SIGTERM]
    assert names_in(out.parent) == ["m.onnx", "m.onnx.data"]


def test_a_process_that_outlives_a_signal(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first process of a container does where it does not handle it: the writing stops all the same."""
    monkeypatch.setattr(signal, "raise_signal", lambda _number: None)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit, match="143"):
            save_model(
                model_with(0), out, out, size_threshold=0, progress=lambda *_: os.kill(os.getpid(), signal.SIGTERM)
            )
        with pytest.raises(SystemExit, match="143"), runnable(load_model(source), source):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert names_in(out.parent) == []
    assert names_in(source.parent) == ["m.onnx", "m.onnx.data"]


def test_another_thread_writes(out: Path) -> None:
    """Only the main thread can have handlers of signals."""
    thread = threading.Thread(target=save_with_data, args=(0, out))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(gamma(out), weights(0))


def test_a_pass_takes_a_model_past_the_limit(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no ONNX file can hold becomes external data; what cannot is refused."""
    big = onnx.numpy_helper.from_array(weights(1, 10_000), "big")
    model = weighted_model(big, onnx.numpy_helper.from_array(weights(0), "gamma"))
    monkeypatch.setattr("lnbp_onnx.files.model_io.LARGEST_PROTO", model.ByteSize())
    save_model(model, out, out)
    assert names_in(out.parent) == ["m.onnx"]
    source = out.with_name("source.onnx")
    source.write_bytes(out.read_bytes())
    save_model(lnbp_onnx.decompose(load_model(source)), out, source)
    assert names_in(out.parent) == ["m.onnx", "m.onnx.data", "source.onnx"]
    assert lnbp_onnx.compare(source, out).ok
    content = out.read_bytes()
    model.doc_string = "x" * 50_000
    with pytest.raises(lnbp_onnx.InvalidModelError, match="more than 2 GB beside its initializers"):
        save_model(model, out, out)
    assert out.read_bytes() == content
    assert names_in(out.parent) == ["m.onnx", "m.onnx.data", "source.onnx"]


def test_checksums_go_where_the_bytes_do_not(source: Path, out: Path) -> None:
    """A checksum is of the whole file: it stays where the file does, and is left away with a copy."""
    model = onnx.load(source, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="checksum", value="0" * 40)
    source.write_bytes(model.SerializeToString())
    entries = []
    for target in (source.with_name("new.onnx"), out):
        save_model(load_model(source), target, source)
        written = onnx.load(target, load_external_data=False)
        entries.append({entry.key for entry in written.graph.initializer[0].external_data})
    assert entries == [{"location", "offset", "length", "checksum"}, {"location", "offset", "length"}]


def test_tensors_of_all_kinds_are_copied(source: Path, out: Path) -> None:
    """Four-bit types, no elements, no length, and a function's default value."""
    source.with_name("m.onnx.data").write_bytes(bytes(range(256)))
    tensors = [
        TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        for name, kind, dims in (
            ("int4", TensorProto.INT4, [7]),
            ("none", TensorProto.FLOAT, [0, 5]),
            ("all", TensorProto.UINT8, [256]),
        )
    ]
    for tensor in tensors:
        tensor.external_data.add(key="location", value="m.onnx.data")
    model = weighted_model(external("gamma", [64], "m.onnx.data", 0, 256))
    model.graph.initializer.extend(tensors[:2])
    attribute = onnx.helper.make_attribute("value", tensors[2])
    model.functions.append(
        onnx.FunctionProto(name="f", domain="d", attribute_proto=[attribute], opset_import=model.opset_import)
    )
    source.write_bytes(model.SerializeToString())
    save_model(load_model(source), out, source)
    written = onnx.load(out, load_external_data=False)
    content = out.with_name("m.onnx.data").read_bytes()
    found = {}
    for tensor in (*written.graph.initializer, written.functions[0].attribute_proto[0].t):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(entries["offset"]), int(entries["length"])
        found[tensor.name] = content[offset : offset + length]
    whole = bytes(range(256))
    assert found == {"gamma": whole, "int4": whole[:4], "none": b"", "all": whole}


def test_a_socket_and_other_inputs_that_are_no_files(tmp_path: Path) -> None:
    loop, place = tmp_path / "loop.onnx", tmp_path / "socket"
    loop.symlink_to(loop)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        unusable = {
            place: "is a socket",
            loop: "Too many levels of symbolic links",
            Path(""): "is a folder",
            Path("/"): "is a folder",
            Path("/dev/null"): "is a device",
            tmp_path / "n" / "m.onnx": "is not there",
            tmp_path / "a\0b": "is not the name of a file",
            tmp_path / ("n" * 300): "File name too long",
        }
        if sys.platform == "linux":
            unusable[Path("/proc/self/mem")] = "cannot be read: Input/output error"
        for path, message in unusable.items():
            with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
                load_model(path)


def stream(content: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content))


def test_standard_streams(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with external data, which is relative to the current folder."""
    content = source.read_bytes()
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr(sys, "stdin", stream(content))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    save_model(load_model(STANDARD_STREAM), STANDARD_STREAM, STANDARD_STREAM)
    assert written.getvalue() == content
    assert names_in(source.parent) == ["m.onnx", "m.onnx.data"]
    monkeypatch.setattr(sys, "stdin", stream())
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"Standard input: is not .*\. It is empty"):
        load_model(STANDARD_STREAM)
    monkeypatch.chdir(tmp_path)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    with pytest.raises(lnbp_onnx.InvalidModelError, match="The model has external data in"):
        save_model(load_model(source), STANDARD_STREAM, source)
    assert written.getvalue() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
def test_standard_output_that_is_full(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(lnbp_onnx.InvalidModelError) as error:
            save_model(load_model(source), STANDARD_STREAM, source)
    assert str(error.value) == "Standard output: cannot be written: No space left on device."


def test_a_pipe_is_read(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    pipe = out.with_name("pipe")
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(source.read_bytes(),))
    writer.start()
    model = load_model(pipe)
    writer.join()
    save_model(model, out, pipe)
    np.testing.assert_array_equal(gamma(out), weights(0))


@pytest.mark.parametrize("place", ["../top.onnx", "../../top.textproto"])
def test_data_that_a_model_of_a_folder_above_refers_to_stays(tmp_path: Path, place: str) -> None:
    target = tmp_path / "a" / "b" / "m.onnx"
    target.parent.mkdir(parents=True)
    save_with_data(0, target)
    above = target.parent / place
    location = os.path.relpath(target.with_name("m.onnx.data"), above.parent.resolve())
    onnx.save(weighted_model(external("gamma", [64], location, 0, 256)), above)
    save_with_data(1, target)
    np.testing.assert_array_equal(gamma(above), weights(0))
    np.testing.assert_array_equal(gamma(target), weights(1))
    above.unlink()
    save_with_data(2, target)
    save_with_data(3, target)
    assert len(names_in(target.parent)) == 3


@pytest.mark.parametrize("name", ["it's.onnx", 'a"b.onnx', "a\\b.onnx"])
def test_data_that_a_text_refers_to_by_an_escaped_name_stays(out: Path, name: str) -> None:
    target = out.with_name(name)
    save_with_data(0, target)
    other = out.with_name("other.textproto")
    onnx.save(onnx.load(target, load_external_data=False), other)
    save_with_data(1, target)
    np.testing.assert_array_equal(gamma(other), weights(0))


def test_data_stays_whose_name_the_new_text_escapes(out: Path) -> None:
    """The old text, which another program wrote, does not."""
    target = out.with_name("é.json")
    save_with_data(0, target)
    target.write_text(target.read_text().replace(r"\u00e9", "é"))
    save_model(load_model(target), target, target)
    assert r"\u00e9" in target.read_text()
    np.testing.assert_array_equal(gamma(target), weights(0))


def test_data_stays_that_in_refers_to_through_links(source: Path, out: Path) -> None:
    """As a cache of downloads does; OUT is in the folder that the links lead to."""
    save_with_data(0, out)
    out.with_name("blob").write_bytes(
        weighted_model(external("gamma", [32], "w.bin", 128, 128), columns=32).SerializeToString()
    )
    link = source.with_name("link.onnx")
    link.symlink_to("../out/blob")
    source.with_name("w.bin").symlink_to("../out/m.onnx.data")
    save_model(load_model(link), out, link)
    assert source.with_name("w.bin").read_bytes() == weights(0).tobytes()
    np.testing.assert_array_equal(gamma(out), weights(0)[32:])


def test_a_text_that_leaves_something_out_is_refused(out: Path) -> None:
    """What onnx writes as .onnxtxt has no sparse initializers, and says nothing of it."""
    model = model_with(0)
    sparse = onnx.helper.make_sparse_tensor(
        onnx.helper.make_tensor("s", TensorProto.FLOAT, [1], [1.5]),
        onnx.helper.make_tensor("i", TensorProto.INT64, [1], [2]),
        [5],
    )
    model.graph.sparse_initializer.append(sparse)
    target = out.with_name("m.onnxtxt")
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"leaves out GraphProto\.sparse_initializer"):
        save_model(model, target, target)
    assert names_in(out.parent) == []


def test_two_programs_replace_a_model_at_once(out: Path) -> None:
    """One finds its data there already, the other replaces model and data before the first one's are in place."""
    data = weights(0).tobytes()
    save_with_data(0, out)
    before = out.read_bytes()

    def chunks() -> Generator[bytes, None, None]:
        yield data

    def replace_too_late() -> None:
        with replacing(out) as first:
            assert first.write_data(chunks) == "m.onnx.data"
            save_with_data(1, out)
            first.write_model(before, {out.with_name("m.onnx.data")})

    with pytest.raises(lnbp_onnx.InvalidModelError, match="another program replaced it"):
        replace_too_late()
    np.testing.assert_array_equal(gamma(out), weights(1))
    assert names_in(out.parent) == ["m.onnx", "m.onnx.2.data"]


def test_data_stays_of_a_model_that_another_program_puts_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_with_data(0, out)
    before = out.read_bytes()
    with replacing(out) as replacement:
        replacement.write_model(model_with(1).SerializeToString(), set())
        put_in_place = replacement.put_in_place

        def put_in_place_and_back() -> None:
            put_in_place()
            out.write_bytes(before)

        monkeypatch.setattr(replacement, "put_in_place", put_in_place_and_back)
    np.testing.assert_array_equal(gamma(out), weights(0))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes always block there")
def test_pipes_that_do_not_block() -> None:
    """As those that Node.js gives a program: the writer is late, and the reader slower than the program."""
    model = model_with(0)
    model.doc_string = "x" * 2**20
    content = model.SerializeToString()
    read, given = os.pipe()
    taken, written = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(written, False)
    program = (
        "from pathlib import Path; from lnbp_onnx.files.model_io import load_model, save_model; import os;"
        "os.write(2, b'ready'); save_model(load_model(Path('-')), Path('-'), Path('-'))"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdin=read, stdout=written, stderr=subprocess.PIPE)
    os.close(read)
    os.close(written)
    assert run.stderr is not None
    assert run.stderr.read(5) == b"ready"
    time.sleep(0.3)
    with open(given, "wb") as stream:
        stream.write(content)
    time.sleep(0.3)
    with open(taken, "rb") as stream:
        assert onnx.load_from_string(stream.read()) == model
    assert run.communicate()[1] == b""
    assert run.returncode == 0
