# SPDX-License-Identifier: Apache-2.0
"""Train the GPT of train_gpt.py in a browser, with a curve of the loss and a sample of what it writes as it learns.

A server on this machine hands out a page, the training step in standard operators, a model of the logits for the
samples, and the batches; ONNX Runtime Web (WebAssembly) does the rest in the tab. It needs node and

    npm install --no-save --no-package-lock onnxruntime-web

npm makes a folder node_modules where it runs; node looks for one beside this file, above it, and in NODE_PATH.
"""

import functools
import json
import shutil
import subprocess
import tempfile
import webbrowser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx.utils import Extractor

import program
from gpt.arguments import training_parser
from gpt.text import batches
from gpt.training import context_of, defaults, joint_model
from program import NotInstalledError
from runtimes import Tensors
from train_in_any_runtime import decomposed, without_defaults

PAGE = Path(__file__).parent / "browser"


class Handler(SimpleHTTPRequestHandler):
    """Serves files, without a line for each."""

    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    parser = training_parser(__doc__, steps=400, rows=8)
    parser.add_argument("--port", type=int, default=0, help="where to serve; by default one that is free")
    parser.add_argument("--no-open", action="store_true", help="open no browser")
    options = parser.parse_args()
    runtime = runtime_folder()
    joint = joint_model(options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "page"
        shutil.copytree(PAGE, folder)
        (folder / "onnxruntime-web").symlink_to(runtime)
        _, state = decomposed(joint, folder / "training_step.onnx")
        onnx.save(forward_model(joint), folder / "forward.onnx")
        context = context_of(joint)
        pairs = [
            np.stack([batch["tokens"], batch["targets"]])
            for batch in islice(batches(options.rows, context), options.steps)
        ]
        np.stack(pairs).astype("<i8").tofile(folder / "batches.bin")
        settings = {"steps": options.steps, "rows": options.rows, "context": context, "state": encoded(state)}
        (folder / "settings.json").write_text(json.dumps(settings))
        handler = functools.partial(Handler, directory=str(folder))
        with ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
            address = f"http://127.0.0.1:{server.server_port}/"
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            if not options.no_open:
                webbrowser.open(address)
            server.serve_forever()


def runtime_folder() -> Path:
    """Return where ONNX Runtime Web has its files for browsers."""
    node = shutil.which("node")
    if node is None:
        raise NotInstalledError("This needs node, which is not installed.")
    ask = [node, "-p", "require('path').dirname(require.resolve('onnxruntime-web'))"]
    found = subprocess.run(ask, cwd=PAGE.parent, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise NotInstalledError(
            "This needs the package onnxruntime-web (npm install --no-save --no-package-lock onnxruntime-web)."
        )
    return Path(found.stdout.strip())


def forward_model(joint: onnx.ModelProto) -> onnx.ModelProto:
    """Return the part of a joint model that computes the logits, with the parameters as inputs."""
    (softmax,) = (node for node in joint.graph.node if node.op_type == "LogSoftmax")
    model = onnx.shape_inference.infer_shapes(joint)
    inputs = [value.name for value in model.graph.input if value.name in {"tokens", *defaults(joint)}]
    return without_defaults(Extractor(model).extract_model(inputs, [softmax.input[0]]))


def encoded(state: Tensors) -> dict[str, dict[str, object]]:
    """Return tensors as JavaScript reads them; the numbers of int64 among them are small."""
    return {
        name: {"type": value.dtype.name, "dims": value.shape, "data": value.flatten().tolist()}
        for name, value in state.items()
    }


if __name__ == "__main__":
    program.run(main)
