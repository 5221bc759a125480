# SPDX-License-Identifier: Apache-2.0
"""The architectures of `support_table.py`, exported forwards by torch, differentiated by `lnbp_onnx.gradient` and run.

``python tests/gradient_support_table.py`` writes the table of docs/training.md; with ``--part 3`` it runs every third
architecture and writes nothing. It fails where something else became of one than the table says. It needs torch,
onnxscript, transformers, timm and torchvision.
"""

import contextlib
import copy
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from architecture_tables import Table, prepare_torch
from support_table import ARCHITECTURES, Architecture

TABLE = Table(
    Path(__file__).parent.parent / "docs" / "training.md",
    "table of forward exports",
    (
        "architecture",
        "opset",
        "sizes",
        "nodes",
        "layer norms",
        "loss",
        "gradients",
        "torch's own",
        "differentiated",
    ),
)

OPSETS = (18, 20, 23)
"""In turn: the first that torch exports to, its default, and the first with attention and RMS norms as operators."""

TRACED, OTHERS = (2, 7), (3, 5)


def measured(name: str) -> Sequence[str]:
    """Export an architecture, differentiate it, and return its row."""
    import torch  # noqa: PLC0415
    from support_modules import LossOf  # noqa: PLC0415

    import lnbp_onnx  # noqa: PLC0415

    prepare_torch()
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    module = LossOf(architecture.make()).eval()
    forward = exported(module, architecture, OPSETS[list(ARCHITECTURES).index(name) % len(OPSETS)])
    if forward is None:
        return name, *[""] * (len(TABLE.columns) - 2), "torch does not export it"
    (opset,) = (each.version for each in forward.opset_import if each.domain == "")
    loss = forward.graph.output[0].name
    batches = []
    for sizes in (TRACED, OTHERS):
        feeds, expected, own = references(
            module, architecture, sizes, {each.name for each in forward.graph.initializer}
        )
        # Of what the exporter took for a constant nothing is to be told here.
        with contextlib.suppress(lnbp_onnx.LnbpError):
            if abs(plain(forward, feeds)[loss] - expected["loss"]) <= 1e-5 * abs(expected["loss"]):
                batches.append((feeds, expected, own))
    described = name, str(opset), ("none", "as traced", "any")[len(batches)]
    if not batches:
        return *described, *[""] * (len(TABLE.columns) - 4), "ONNX Runtime does not run the forward export"
    sources = [key.removesuffix(".grad") for key in batches[0][1] if key != "loss"]
    model = lnbp_onnx.gradient(forward, of=loss, wrt=sources)
    norms = [
        sum(node.op_type == op_type for node in graph.node)
        for graph, op_type in ((model.graph, lnbp_onnx.OP_TYPE), (forward.graph, "LayerNormalization"))
    ]
    nodes = f"{len(forward.graph.node)}, {len(model.graph.node)}"
    errors = [each for batch in batches for each in worst(model, loss, *batch)]
    numbers = (f"{max(each):.0e}" for each in zip(*errors, strict=True))
    return *described, nodes, f"{norms[0]} of {norms[1]}", *numbers, "yes"


def exported(module: Any, architecture: Architecture, opset: int) -> Any:
    """Return a module as a model, in the first way in which torch exports it; None where there is none."""
    import torch  # noqa: PLC0415

    arguments = architecture.takes(*TRACED)
    dynamic = {
        key: dict.fromkeys(range(len(architecture.dynamic.get(key, ()))), torch.export.Dim.AUTO) or None
        for key in arguments
    }

    for attention, version in ((None, opset), (None, OPSETS[1]), ("eager", opset)):
        if attention is not None and hasattr(module.module, "set_attn_implementation"):
            module.module.set_attn_implementation(attention)
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], contextlib.suppress(torch.onnx.errors.OnnxExporterError, RuntimeError):
            # Optimised, it names the transposed weights otherwise, and has one for equal ones.
            program = torch.onnx.export(
                module,
                kwargs={"arguments": arguments},
                dynamic_shapes={"arguments": dynamic},
                opset_version=version,
                optimize=False,
            )
            assert program is not None
            return program.model_proto
    return None


def references(
    module: Any, architecture: Architecture, sizes: tuple[int, int], names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return arguments, and the loss and gradients that torch computes of them, in double and in float."""
    import torch  # noqa: PLC0415

    arguments = architecture.takes(*sizes)
    tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    in_double = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
    results = []
    for of_its_own, given in ((copy.deepcopy(module).double(), in_double), (copy.deepcopy(module), tensors)):
        loss = of_its_own({**arguments, **given})
        loss.backward()
        gradients = {
            f"{name}.grad": value.grad.numpy()
            for name, value in parameters(of_its_own, names)
            if value.grad is not None
        }
        results.append({"loss": loss.detach().numpy(), **gradients})
    expected, own = results
    return {f"arguments_{key}": value.numpy() for key, value in tensors.items()}, expected, own


def parameters(module: Any, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the parameters, each with that of its names that is among `names`."""
    seen = set()
    for name, value in module.named_parameters(remove_duplicate=False):
        if name in names and id(value) not in seen:
            seen.add(id(value))
            yield name, value


def plain(model: Any, feeds: Mapping[str, Any]) -> dict[str, Any]:
    from lnbp_onnx.running.runners import PlainRunner  # noqa: PLC0415

    return PlainRunner(model).run(feeds)


def worst(
    model: Any, loss: str, feeds: Mapping[str, Any], expected: Mapping[str, Any], own: Mapping[str, Any]
) -> Iterator[tuple[float, float, float]]:
    """Yield the errors of the loss and the worst of the gradients, with the kernel and decomposed, beside torch's."""
    from torch_runs import decomposed, native  # noqa: PLC0415

    sizes = {key: abs(each).max() for key, each in expected.items()}
    # Of the largest gradient, where one is far smaller: what is left of terms that cancel.
    floor = 1e-3 * max(size for key, size in sizes.items() if key != "loss")
    for run in (native, decomposed):
        found = run(model, feeds)
        errors = [
            max(
                abs(results[key] - each).max() / max(sizes[key], floor)
                for key, each in expected.items()
                if key != "loss"
            )
            for results in (found, own)
        ]
        yield float(abs(found[loss] - expected["loss"]) / sizes["loss"]), float(errors[0]), float(errors[1])


def row_of(name: str) -> Sequence[str]:
    try:
        return measured(name)
    except Exception as error:  # of whatever library: the row says so
        said = " ".join(str(error).split()).replace("|", "/")
        return name, *[""] * (len(TABLE.columns) - 2), f"{type(error).__name__}: {said}"[:200]


if __name__ == "__main__":
    sys.exit(TABLE.run(__doc__, list(ARCHITECTURES), row_of))
