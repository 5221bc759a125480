# SPDX-License-Identifier: Apache-2.0
"""The architectures of `support_table.py` as forward exports, differentiated by `lnbp_onnx.gradient` and run.

``python tests/gradient_support_table.py`` writes the table of docs/training.md; with ``--part 3`` it runs every third
architecture and writes nothing. It fails where something else became of one than the table says. It needs torch,
onnxscript, transformers, timm and torchvision.
"""

import argparse
import contextlib
import copy
import io
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support_table import ARCHITECTURES, Architecture

PAGE = Path(__file__).parent.parent / "docs" / "training.md"
BEGIN, END = "<!-- support table -->\n", "<!-- end of the support table -->\n"
COLUMNS = ("architecture", "opset", "dynamic", "layer norms", "nodes", "loss", "gradients", "outcome")
OPSETS = (18, 20, 23)
"""In turn: the first that torch exports to, its default, and the one that has attention and RMS norms as operators."""


def measured(name: str) -> Sequence[str]:
    """Export an architecture, differentiate it, and return its row."""
    import torch  # noqa: PLC0415
    from support_modules import LossOf  # noqa: PLC0415

    import lnbp_onnx  # noqa: PLC0415

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for operator in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # defined by an earlier one
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    each = ARCHITECTURES[name]
    opset = OPSETS[list(ARCHITECTURES).index(name) % len(OPSETS)]
    module = LossOf(each.make()).eval()
    arguments = each.takes(2, 7)
    dynamic = {
        key: dict.fromkeys(range(len(each.dynamic[key])), torch.export.Dim.AUTO) if key in each.dynamic else None
        for key in arguments
    }
    program = None
    for opset, shapes in ((opset, {"arguments": dynamic}), (20, {"arguments": dynamic}), (opset, None)):
        with contextlib.suppress(torch.onnx.errors.OnnxExporterError if False else Exception), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                module, kwargs={"arguments": arguments}, dynamic_shapes=shapes, opset_version=opset, optimize=False
            )
            break
    forward = program.model_proto
    import onnx; onnx.save(forward, f"/tmp/fw_{name.replace(' ','_')}.onnx")
    axes = [dim.dim_param for each in forward.graph.input for dim in each.type.tensor_type.shape.dim]
    is_dynamic = any(axes)
    norms = sum(node.op_type == "LayerNormalization" for node in forward.graph.node)
    counted = ""
    loss = gradients = ""
    try:
        given = {each.name for each in forward.graph.initializer}
        expected = [reference(module, each, sizes, given) for sizes in ((2, 7), *([(3, 5)] if is_dynamic else []))]
        names = sorted(key.removesuffix(".grad") for key in expected[0][1] if key != "loss")
        model = lnbp_onnx.gradient(forward, of=forward.graph.output[0].name, wrt=names)
        nodes = sum(node.op_type == lnbp_onnx.OP_TYPE for node in model.graph.node)
        counted = f"{nodes} of {norms}"
        errors = [worst(model, *each) for each in expected]
        loss, gradients = (f"{max(each):.0e}" for each in zip(*errors, strict=True))
        outcome = "yes"
    except lnbp_onnx.LnbpError as refusal:
        outcome = str(refusal)
    return name, str(opset), "yes" if is_dynamic else "no", counted, str(len(forward.graph.node)), loss, gradients, outcome


def reference(module: Any, each: Architecture, sizes: tuple[int, int], given) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arguments, and the loss and the gradients that torch computes in double."""
    import torch  # noqa: PLC0415

    arguments = {name: value for name, value in each.takes(*sizes).items()}
    tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    of_its_own = copy.deepcopy(module).double()
    doubles = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in arguments.items()
    }
    loss = of_its_own(doubles)
    loss.backward()
    found, seen = {}, {}
    for name, value in of_its_own.named_parameters(remove_duplicate=False):
        if value.grad is not None:
            seen.setdefault(id(value), []).append((name, value))
    for names in seen.values():
        name, value = next(((n, v) for n, v in names if n in given), names[0])
        found[f"{name}.grad"] = value.grad.numpy()
    feeds = {f"arguments_{key}": value.numpy() for key, value in tensors.items()}
    return feeds, {"loss": loss.detach().numpy(), **found}


def worst(model: Any, feeds: dict[str, Any], expected: dict[str, Any]) -> tuple[float, float]:
    """Return the worst errors of the loss and of the gradients, with the kernel and decomposed."""
    from torch_runs import decomposed, native  # noqa: PLC0415

    expected = dict(expected)
    value = expected.pop("loss")
    losses, gradients = [], []
    # Of the largest gradient, where one is far smaller: what is left of terms that cancel.
    sizes = {key: abs(each).max() for key, each in expected.items()}
    floor = 1e-3 * max(sizes.values())
    for run in (native, decomposed):
        found = run(model, feeds)
        losses.append(abs(found[model.graph.output[0].name] - value) / abs(value))
        gradients += [abs(found[key] - each).max() / max(sizes[key], floor) for key, each in expected.items()]
    return float(max(losses)), float(max(gradients))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=int, default=1, help="run every so many-th architecture, and write nothing")
    parser.add_argument("names", nargs="*", help="run these alone, and write nothing")
    arguments = parser.parse_args()
    names = arguments.names or list(ARCHITECTURES)[:: arguments.part]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        rows = []
        for row in pool.imap(safe, names):
            print(*row, sep=" | ", flush=True)
            rows.append(row)
    return 0


def safe(name):
    import traceback
    try:
        return measured(name)
    except Exception as e:
        traceback.print_exc()
        return (name, "CRASH", str(e)[:600])


if __name__ == "__main__":
    sys.exit(main())
