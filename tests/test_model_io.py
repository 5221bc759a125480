# SPDX-License-Identifier: Apache-2.0
"""Model files: external data stays where it is or is streamed, and no file is ever half written."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import command
from onnx import TensorProto
from weighted_models import external, weighted_model

import lnbp_onnx
from lnbp_onnx.files.model_io import data_warnings, load_model, save_model

FLOAT = TensorProto.FLOAT


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """A model with two tensors in one data file, two that share bytes, and one in another file."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "model"
    (folder / "parts").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(rng.normal(size=192).astype(np.float32).tobytes())
    (folder / "parts" / "gamma.bin").write_bytes(rng.normal(size=64).astype(np.float32).tobytes())
    model = weighted_model(
        external("a", [64], "weights.bin", 0, 256),
        external("b", [128], "weights.bin", 256, 512),
        external("shared", [64], "weights.bin", 0, 256),
        external("gamma", [64], "parts/gamma.bin", 0),
    )
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def locations(path: Path) -> dict[str, dict[str, str]]:
    model = onnx.load(path, load_external_data=False)
    return {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}


def test_same_folder_refers_to_the_same_data(model_path: Path) -> None:
    before = snapshot(model_path.parent)
    run = command("decompose", model_path, "--check")
    assert run.returncode == 0, run.stderr
    after = snapshot(model_path.parent)
    assert set(after) - set(before) == {"model.decomposed.onnx"}
    assert {name: after[name] for name in before} == before
    assert locations(model_path.with_name("model.decomposed.onnx")) == locations(model_path)


def test_other_folder_gets_a_copy_under_its_own_name(model_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    target = other / "result.onnx"
    run = command("decompose", model_path, target)
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in other.iterdir()) == ["result.onnx", "result.onnx.data"]
    assert {entries["location"] for entries in locations(target).values()} == {"result.onnx.data"}
    # What was shared stays shared.
    assert (other / "result.onnx.data").stat().st_size == 4 * (64 + 128 + 64)
    first, second = (onnx.load(path) for path in (model_path, target))
    for a, b in zip(first.graph.initializer, second.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))
    assert command("compare", model_path, target).returncode == 0
    # Writing again replaces, it does not append.
    size = (other / "result.onnx.data").stat().st_size
    assert command("decompose", model_path, target, "--force").returncode == 0
    assert (other / "result.onnx.data").stat().st_size == size


def test_in_place(model_path: Path) -> None:
    before = snapshot(model_path.parent)
    run = command("decompose", model_path, "--in-place", "--check", "2")
    assert run.returncode == 0, run.stderr
    after = snapshot(model_path.parent)
    changed = {name for name in after if after[name] != before.get(name)}
    assert set(after) == set(before)
    assert changed == {"model.onnx"}


def test_failed_check_leaves_the_only_model_alone(model_path: Path) -> None:
    before = snapshot(model_path.parent)
    run = command("decompose", model_path, "--in-place", "--check", "--rtol", "0", "--atol", "0")
    assert run.returncode == 1
    assert "Wrote nothing: the check failed." in run.stdout
    assert snapshot(model_path.parent) == before


def test_save_as_external_data(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=64).astype(np.float32)
    small = onnx.numpy_helper.from_array(weights[:8], "small")
    model = weighted_model(small, onnx.numpy_helper.from_array(weights, "gamma"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    run = command("decompose", path, "--save-as-external-data", "--size-threshold", "200", "--check")
    assert run.returncode == 0, run.stderr
    target = tmp_path / "m.decomposed.onnx"
    assert locations(target) == {
        "small": {},
        "gamma": {"location": "m.decomposed.onnx.data", "offset": "0", "length": "256"},
    }
    assert command("compare", path, target).returncode == 0
    # A second time in place: the file that the model's own tensors are in is not written over.
    run = command("decompose", target, "--in-place", "--save-as-external-data", "--size-threshold", "0")
    assert run.returncode == 0, run.stderr
    assert locations(target)["gamma"]["location"] == "m.decomposed.onnx.data"
    assert locations(target)["small"]["location"] == "m.decomposed.onnx.2.data"
    assert command("compare", path, target).returncode == 0


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(256))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = folder / "m.onnx"
    path.write_bytes(weighted_model(external("gamma", [64], location, 0, 256)).SerializeToString())
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"tensor 'gamma' is at .* must be in the model's folder"):
        load_model(path)
    for name, *others in (("decompose",), ("inspect",), ("compare", path)):
        run = command(name, path, *others)
        assert run.returncode == 2
    assert sorted(each.name for each in folder.iterdir()) == ["link.bin", "m.onnx"]


@pytest.mark.parametrize("missing", [True, False])
def test_data_that_is_missing_or_too_short(tmp_path: Path, missing: bool) -> None:
    """Only a copy needs the bytes: it fails with a sentence and leaves nothing behind."""
    folder, other = tmp_path / "model", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    if not missing:
        (folder / "gamma.bin").write_bytes(bytes(100))
    path = folder / "m.onnx"
    path.write_bytes(weighted_model(external("gamma", [64], "gamma.bin", 0, 256)).SerializeToString())
    run = command("decompose", path, other / "m.onnx")
    assert run.returncode == 2
    assert run.stderr.startswith("Error: ")
    assert "gamma" in run.stderr
    assert list(other.iterdir()) == []
    assert command("decompose", path).returncode == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no graph"), (b"\xff\xff not a model", "is not an ONNX model"), (None, "the file is not there")],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    run = command("decompose", path)
    assert run.returncode == 2
    assert message in run.stderr
    assert not (tmp_path / "m.decomposed.onnx").exists()


def test_interrupted_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    model = weighted_model(onnx.numpy_helper.from_array(np.ones(64, np.float32), "gamma"))
    onnx.save(model, path)
    content = path.read_bytes()

    def interrupt(_source: str, _target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(lnbp_onnx.decompose(model), path, path)
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(weighted_model(onnx.numpy_helper.from_array(np.ones(64, np.float32), "gamma")), path)
    with pytest.raises(lnbp_onnx.InvalidModelError, match="cannot be written"):
        save_model(load_model(path), tmp_path / "nowhere" / "m.onnx", path)


@pytest.mark.filterwarnings("ignore:The onnxtxt format is experimental")
@pytest.mark.parametrize("suffix", [".json", ".textproto", ".onnxtxt"])
def test_text_formats(tmp_path: Path, suffix: str) -> None:
    path = (tmp_path / "m").with_suffix(suffix)
    onnx.save(weighted_model(onnx.numpy_helper.from_array(np.ones(64, np.float32), "gamma")), path)
    run = command("decompose", path)
    assert run.returncode == 0, run.stderr
    result = onnx.load(tmp_path / f"m.decomposed{suffix}")
    assert {node.domain for node in result.graph.node} == {""}


def test_a_format_that_cannot_hold_the_model(tmp_path: Path) -> None:
    """onnx writes complex numbers as text that it cannot read."""
    numbers = onnx.numpy_helper.from_array(np.ones(3, np.complex64), "numbers")
    model = weighted_model(numbers, onnx.numpy_helper.from_array(np.ones(64, np.float32), "gamma"))
    target = tmp_path / "m.onnxtxt"
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"\.onnxtxt stands for cannot hold this model"):
        save_model(model, target, target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("command", ["decompose -q", "gradient --of max_huge -q"])
def test_large_model_needs_little_memory(tmp_path: Path, command: str) -> None:
    """5 GB of external data: not read where the result is in the same folder."""
    gigabytes = 5
    length = gigabytes * 2**30
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(length + 256)
    path = tmp_path / "m.onnx"
    path.write_bytes(
        weighted_model(
            external("huge", [length // 4], "weights.bin", 0, length),
            external("gamma", [64], "weights.bin", length, 256),
        ).SerializeToString()
    )
    stat = (tmp_path / "weights.bin").stat()
    # getrusage would count what this process has at the fork.
    program = (
        "import atexit, lnbp_onnx.cli.commands\n"
        "atexit.register(lambda: print([line for line in open('/proc/self/status') if 'VmHWM' in line][0]))\n"
        "lnbp_onnx.cli.main()"
    )
    target = tmp_path / "result.onnx"
    run = subprocess.run(
        [sys.executable, "-c", program, *command.split(), path, target], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    label, peak, unit = run.stdout.split()
    assert (label, unit) == ("VmHWM:", "kB")
    assert int(peak) * 1024 < 500e6
    after = (tmp_path / "weights.bin").stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    assert locations(target) == locations(path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external("w", [64], "w.bin", 0, "abc"), "has length 'abc'; it must be a number of bytes, below 2**63"),
        (external("w", [64], "w.bin", -5, 256), "has offset '-5'; it must be a number of bytes"),
        (external("w", [64], "w.bin", 2**64, 256), "has offset '18446744073709551616'; it must be a number of bytes"),
        (external("w", [64], "w.bin", "1" * 5000, 256), "it must be a number of bytes"),
        (external("w", [64], "w.bin", "\u0663", 256), "it must be a number of bytes"),
        (external("w", [64], "a\0b", 0, 256), r"is at 'a\x00b'; it must be in the model's folder or below"),
        (external("w", [64], "loop", 0, 256), "is at 'loop', which names no file (Too many levels of symbolic links)"),
        (external("w", [64], "n" * 300, 0, 256), "which names no file (File name too long)"),
        (external("w", [64], ".", 0, 256), "is at '.', which is a folder; it must be a file"),
        (external("w", [64], "pipe", 0, 256), "is at 'pipe', which is a pipe; it must be a file"),
        (external("w", [64], "link to a pipe", 0, 256), "is at 'link to a pipe', which is a pipe; it must be a file"),
        (external("w", [64], "socket", 0, 256), "is at 'socket', which is a socket; it must be a file"),
        (external("w", [-1], "w.bin", 0), "has the shape [-1]; no length may be negative"),
        (external("w", [2], "w.bin", 0, 8, TensorProto.STRING), "is of type string, which ONNX does not allow"),
        (external("w", [2], "w.bin", 0, 8, TensorProto.UNDEFINED), "is of type undefined, which ONNX does not allow"),
        (external("w", [2], "w.bin", 0, 8, 1000), "is of type 1000, which ONNX does not allow"),
    ],
    ids=lambda value: value.split(";")[0][:30] if isinstance(value, str) else "",
)
def test_external_data_that_cannot_be(tmp_path: Path, tensor: TensorProto, message: str) -> None:
    """Refused without opening anything, which a pipe would wait for."""
    (tmp_path / "w.bin").write_bytes(bytes(256))
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe").symlink_to("pipe")
    path = tmp_path / "m.onnx"
    path.write_bytes(weighted_model(tensor, external("gamma", [64], "w.bin", 0, 256)).SerializeToString())
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(lnbp_onnx.InvalidModelError) as error:
            load_model(path)
    assert str(error.value).startswith(f"{path}: the external data of tensor 'w' ")
    assert message in str(error.value)


def test_warnings_of_missing_data(tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(bytes(300))
    (tmp_path / "w.bin").write_bytes(bytes(600))
    path = tmp_path / "m.onnx"
    path.write_bytes(
        weighted_model(
            external("here", [64], "w.bin", 0, 256),
            external("no length", [64], "w.bin", 0),
            external("a", [64], "gone.bin", 0, 256),
            external("b", [64], "gone.bin", 256, 256),
            external("c", [64], "short.bin", 0, 256),
            external("d", [64], "short.bin", 256, 256),
            external("e", [2**40, 2**40], "w.bin", 0),
            external("f", [64], "w.bin", 0, 8),
            external("gamma", [64], "w.bin", 344, 256),
        ).SerializeToString()
    )
    assert data_warnings(load_model(path), path) == [
        "The external data of tensor 'a' (and 1 more of the same file) is in 'gone.bin', which is missing "
        "(put the file into the model's folder).",
        "The external data of tensor 'd' is at bytes 256 to 512 of 'short.bin', which has only 300 "
        "(copy the file again).",
        f"The external data of tensor 'e' is at bytes 0 to {2**65 - 4} of 'w.bin', which has only 600 "
        "(copy the file again).",
        "The external data of tensor 'f' has 8 bytes of 'w.bin', and its shape needs 256 "
        "(save the model again from where it came).",
    ]


def test_data_file_with_several_links(model_path: Path, tmp_path: Path) -> None:
    """onnx does not read it, and it is not copied: a sentence, and nothing left behind."""
    os.link(model_path.with_name("weights.bin"), tmp_path / "link.bin")
    other = tmp_path / "other"
    other.mkdir()
    run = command("decompose", model_path, other / "m.onnx")
    assert run.returncode == 2
    assert run.stderr.startswith("Error: ")
    assert list(other.iterdir()) == []


@pytest.mark.parametrize("name", ["pipe", "n" * 300])
def test_targets_that_are_no_files(model_path: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    if name == "pipe":
        os.mkfifo(target)
    run = command("decompose", model_path, target)
    assert run.returncode == 2
    if name == "pipe":
        assert target.is_fifo()


def test_compare_takes_onnx_ir_models_with_external_data(model_path: Path) -> None:
    model = ir.load(model_path)
    assert lnbp_onnx.compare(model, lnbp_onnx.decompose(model)).ok
