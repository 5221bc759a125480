# SPDX-License-Identifier: Apache-2.0
"""What the commands tell: plain data, for JSON and for tables."""

import importlib.metadata
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from rich import markup
from rich.table import Table

from lnbp_onnx import spec
from lnbp_onnx.cli.terminal import printable
from lnbp_onnx.errors import KernelError
from lnbp_onnx.graphs.edit import blamed_on_model
from lnbp_onnx.graphs.operators import Operator
from lnbp_onnx.graphs.protos import graph_nodes, model_nodes
from lnbp_onnx.graphs.specialise import specialised_operators
from lnbp_onnx.node import BackpropNode
from lnbp_onnx.passes import (
    FuseResult,
    GradientNodesResult,
    GradientResult,
    LossResult,
    OrtTrainingResult,
    ScatterResult,
    TrainingStepResult,
    held_training_ops,
)
from lnbp_onnx.running import native

if TYPE_CHECKING:
    from lnbp_onnx.running.compare import Comparison

_PACKAGES = ("lnbp-onnx", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-extensions", "numpy")
_MOST_NAMED = 6
_OUTCOMES = {"served": "kept, with the function", "decomposed": "decomposed"}


def outcomes(result: ir.passes.PassResult) -> dict[str, Any]:
    """Describe what a pass met: the operator's nodes with what became of each, near misses, training operators."""
    if isinstance(result, OrtTrainingResult):
        return {
            "training_ops": [
                {
                    "node": each.name,
                    "place": each.place,
                    "operator": each.op_type,
                    "updated": list(each.updated),
                }
                for each in result.rewritten
            ]
        }
    if isinstance(result, ScatterResult):
        return {
            "scattered": [
                {"node": each.name, "place": each.place, "reduction": each.reduction} for each in result.replaced
            ]
        }
    if isinstance(result, GradientNodesResult):
        return {"gradient_nodes": list(result.expanded)} if result.expanded else {}
    if isinstance(result, GradientResult):
        return {"nodes": [], "gradients": list(result.gradients)}
    if isinstance(result, LossResult):
        return {"label": result.label}
    if isinstance(result, TrainingStepResult):
        return {"nodes": [], "parameters": list(result.parameters), "states": list(result.states)}
    if isinstance(result, FuseResult):
        return {
            "nodes": [
                {"node": each.node.name or "", "place": each.place, "result": each.form} for each in result.fused
            ],
            "missed": [{"node": each.name, "place": each.place, "reason": each.reason} for each in result.missed],
        }
    return {
        "nodes": [
            describe(operator) | {"result": sentence}
            for field, sentence in _OUTCOMES.items()
            for operator in getattr(result, field, ())
        ]
    }


def fused_table(fused: list[dict[str, Any]], most: int | None = None) -> Table:
    """Return the table of the nodes that *fuse* made, `most` at most, and of the forms that they replace."""
    return _places(f"{spec.OP_TYPE} nodes fused: {len(fused)}", ("node", "place", "from"), fused[:most], "result")


def missed_table(missed: list[dict[str, Any]]) -> Table:
    """Return the table of what looks like a layer-norm gradient and is none, with the reason."""
    return _places(f"Near misses: {len(missed)}", ("at", "place", "what stopped it"), missed, "reason")


def training_ops_table(rewritten: list[dict[str, Any]]) -> Table:
    """Return the table of the training operators that were rewritten."""
    title = f"Training operators rewritten: {len(rewritten)}"
    return _places(title, ("node", "place", "operator"), rewritten, "operator")


def training_ops_sentence(rewritten: list[dict[str, Any]]) -> str:
    """Return what became of the training operators in a sentence or two."""
    counts = Counter(each["operator"] for each in rewritten)
    listed = ", ".join(f"{count} {op_type}" for op_type, count in sorted(counts.items()))
    updated = [name for each in rewritten for name in each["updated"]]
    sentence = f"Training operators rewritten: {len(rewritten)} ({listed})."
    if updated:
        sentence += f" What was changed in place is a graph output now: {len(updated)}, the first {updated[0]}."
    return sentence


def _cell(text: str) -> str:
    """Return a name as a table takes it, whatever is in it."""
    return markup.escape(printable(text))


def training_ops_warnings(model: onnx.ModelProto) -> list[str]:
    """Return a sentence of what to do about the operators of ONNX Runtime training in a model, if it has any."""
    listed = held_training_ops(model)
    if not listed:
        return []
    return [
        f"The model has operators of ONNX Runtime training, which no current runtime loads: {listed} (lnbp-onnx "
        "decompose --training-ops rewrites them)."
    ]


def scattered_table(replaced: list[dict[str, Any]]) -> Table:
    """Return the table of the ScatterND nodes that were rewritten."""
    title = f"ScatterND nodes with a reduction rewritten: {len(replaced)}"
    return _places(title, ("node", "place", "reduction"), replaced, "reduction")


def _places(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]], last: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(_cell(row["node"]), _cell(row["place"]), _cell(row[last]))
    return table


def found_operators(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Describe the operator's nodes of a model, those in functions once for each way the function is called.

    Raises:
        InvalidNodeError: Where the specification refuses one of them.
        InvalidModelError: Where the model cannot be read.
    """
    with blamed_on_model(model):
        return [describe(operator) for operator in specialised_operators(ir.from_proto(model))]


def describe(operator: Operator) -> dict[str, Any]:
    """Return what is known of a node as plain data."""
    parsed = operator.parsed
    return {
        "node": operator.node.name or "",
        "place": operator.place,
        "begin_norm_axis": parsed.begin_norm_axis,
        "shape": None if parsed.shape is None else list(parsed.shape),
        "types": {variable: name for variable in ("T", "P", "U") if (name := _type_name(parsed, variable)) is not None},
        "statistics": "given" if parsed.use_stats else "computed",
        "epsilon": parsed.epsilon,
        "outputs": [name for name, wanted in zip(spec.OUTPUT_NAMES, parsed.outputs, strict=True) if wanted],
    }


def _type_name(parsed: BackpropNode, variable: str) -> str | None:
    for parameter, info in zip(spec.INPUTS, parsed.inputs, strict=True):
        if parameter.type_variable == variable and info is not None and info.element_type is not None:
            return spec.type_name(info.element_type)
    return None


def operator_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Count the nodes of a model by operator, those of subgraphs and functions included."""
    counts = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model_nodes(model))
    return dict(sorted(counts.items()))


def counts(model: onnx.ModelProto) -> dict[str, Any]:
    """Return how many nodes a model has: of each operator, and how many of all are in functions."""
    in_functions = sum(1 for function in model.functions for _ in graph_nodes(function.node))
    return {"operators": operator_counts(model), "in_functions": in_functions}


def comparison_data(comparison: "Comparison") -> dict[str, Any]:
    """Return a comparison as plain data."""
    return {
        "ok": comparison.ok,
        "runtimes": list(comparison.runtimes),
        "seconds": list(comparison.seconds),
        "outputs": [
            {
                "name": output.name,
                "max_absolute_error": _finite(output.max_absolute_error),
                "max_relative_error": _finite(output.max_relative_error),
                "ok": output.ok,
                "rtol": output.rtol,
            }
            for output in comparison.outputs
        ],
        "inputs": [asdict(each) for each in comparison.inputs],
        "assumed_lengths": comparison.assumed_lengths,
    }


def _finite(error: float) -> float | None:
    """Return an error as JSON can hold it: None where one of two values is not a number or not finite."""
    return error if math.isfinite(error) else None


def _error(error: float | None) -> str:
    return "not finite" if error is None else f"{error:.2e}"


def operators_table(operators: list[dict[str, Any]], most: int | None = None) -> Table:
    """Return the table of the nodes that were found, `most` at most, and of what became of them where it is known."""
    table = Table(title=f"{spec.OP_TYPE} nodes: {len(operators)}", title_justify="left")
    for column in ("node", "place", "axis", "types", "statistics", "result"):
        if column != "result" or any(column in operator for operator in operators):
            table.add_column(column, overflow="fold")
    for operator in operators[:most]:
        types = operator["types"]
        table.add_row(
            _cell(operator["node"]) or "(no name)",
            _cell(operator["place"]),
            str(operator["begin_norm_axis"]),
            next(iter(types.values())) if len(set(types.values())) == 1 else _listed(types),
            operator["statistics"],
            *([operator["result"]] if "result" in operator else []),
        )
    return table


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join(f"{variable} {name}" for variable, name in types.items())


def change_table(
    before: Mapping[str, Any], after: Mapping[str, Any], check: Mapping[str, Any] | None, everything: bool
) -> Table:
    """Return the table of what changed: operator counts, file size, and the time of a run where there was one.

    Args:
        before: The model as it was.
        after: The model as it became.
        check: The comparison of the two, if there was one.
        everything: Whether to list also the operators whose count is the same.
    """
    table = Table(title="Before and after", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    counts_before, counts_after = before["operators"], after["operators"]
    for name in sorted({*counts_before, *counts_after}):
        counts = counts_before.get(name, 0), counts_after.get(name, 0)
        if everything or counts[0] != counts[1]:
            table.add_row(_cell(name), *map(str, counts))
    table.add_section()
    table.add_row("all nodes", str(sum(counts_before.values())), str(sum(counts_after.values())))
    if before["in_functions"] or after["in_functions"]:
        table.add_row("in functions", str(before["in_functions"]), str(after["in_functions"]))
    table.add_row("file size", _size(before["bytes"]), _size(after["bytes"]))
    if check is not None:
        table.add_row("one run", *(f"{seconds * 1e3:.2f} ms" for seconds in check["seconds"]))
        table.add_row("run in", *check["runtimes"])
    return table


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Return the table of the worst error of each output."""
    table = Table(title="Largest errors", title_justify="left")
    table.add_column("output", overflow="fold")
    for column in ("absolute", "relative"):
        table.add_column(column, justify="right")
    table.add_column("")
    for output in comparison["outputs"]:
        verdict = "[green]ok[/]" if output["ok"] else "[red]differs[/]"
        table.add_row(
            _cell(output["name"]), _error(output["max_absolute_error"]), _error(output["max_relative_error"]), verdict
        )
    return table


def inputs_table(comparison: Mapping[str, Any]) -> Table:
    """Return the table of what two models were compared on."""
    table = Table(title="Inputs", title_justify="left")
    table.add_column("input", overflow="fold")
    table.add_column("type")
    table.add_column("shape")
    for each in comparison["inputs"]:
        table.add_row(_cell(each["name"]), each["element_type"], markup.escape(str(list(each["shape"]))))
    return table


def verdict_sentence(comparison: Mapping[str, Any], atol: float) -> str:
    """Return in a sentence whether two models agree, within what, and on which lengths."""
    outputs = comparison["outputs"]
    differing = [output["rtol"] for output in outputs if not output["ok"]]
    count = f"{len(outputs)} output{'' if len(outputs) == 1 else 's'}"
    # The tolerance that is true of all of them, where they are of several types.
    rtol = min(differing) if differing else max(output["rtol"] for output in outputs)
    within = f"rtol {_short(rtol)} and atol {_short(atol)}"
    if differing:
        verdict = f"{len(differing)} of {count} differ{'s' if len(differing) == 1 else ''} by more than {within}"
    else:
        verdict = f"{count} agree{'s' if len(outputs) == 1 else ''} within {within}"
    by_length: dict[int, list[str]] = {}
    for name, length in comparison["assumed_lengths"].items():
        by_length.setdefault(length, []).append(name)
    lengths = [f"; symbolic lengths were taken as {length}: {_first(names)}" for length, names in by_length.items()]
    return f"{verdict}{''.join(lengths)}."


def _first(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _short(number: float) -> str:
    """Return a tolerance as people write it: 1e-5."""
    return f"{number:.3g}".replace("e-0", "e-")


def times_sentence(comparison: Mapping[str, Any]) -> str:
    """Return what a run of each of two models took."""
    times = [
        f"{seconds * 1e3:.2f} ms in {runtime}"
        for seconds, runtime in zip(comparison["seconds"], comparison["runtimes"], strict=True)
    ]
    return f"One run: A {times[0]}, B {times[1]}."


def environment() -> dict[str, Any]:
    """Return the versions of what takes part, where the kernel library is, and what is available."""
    import onnxruntime  # noqa: PLC0415 takes a while, and no other command needs it here

    from lnbp_onnx.running.session import IN_HOST_MEMORY  # noqa: PLC0415 imports it

    try:
        library: str | None = native.get_library_path()
    except KernelError:
        library = None
    has_extensions = _version("onnxruntime-extensions") is not None
    available = {"native": library is not None, "extensions": library is not None and has_extensions}
    available["python"] = has_extensions
    providers = onnxruntime.get_available_providers()
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "opset": onnx.defs.onnx_opset_version(),
        "library": library,
        "kernels": [name for name, is_available in available.items() if is_available],
        "providers": providers,
        "providers_with_copies": [provider for provider in providers if provider not in IN_HOST_MEMORY],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment_table(data: Mapping[str, Any]) -> Table:
    """Return the table of `environment`."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, version in data["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_section()
    table.add_row("newest opset known", str(data["opset"]))
    table.add_row("kernel library", _cell(data["library"] or "") or "not there: install the package to build it")
    table.add_row("kernels", ", ".join(data["kernels"]) or "none")
    table.add_row("execution providers", ", ".join(data["providers"]))
    copying = data["providers_with_copies"]
    if copying:
        table.add_row(
            "on the CPU between copies", f"the kernels with {', '.join(copying)}; what decompose writes is not"
        )
    return table


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} GB"
