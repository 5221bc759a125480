# SPDX-License-Identifier: Apache-2.0
"""The page to look at: the nodes that were found, around each the graph before and after, in one file."""

import base64
import contextlib
import copy
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx import ModelProto

from lnbp_onnx import spec
from lnbp_onnx.cli import report, svg
from lnbp_onnx.cli.surroundings import Drawing, Places, drawing, region
from lnbp_onnx.cli.svg import text_of
from lnbp_onnx.cli.work import ASSUMED_LENGTH, Work, give_lengths, work_of
from lnbp_onnx.errors import LnbpError
from lnbp_onnx.files.new_files import replacing
from lnbp_onnx.graphs.edit import apply, apply_in_place, blamed_on_model
from lnbp_onnx.graphs.operators import OPERATOR_ID, Operator, is_operator
from lnbp_onnx.graphs.specialise import specialised_operators
from lnbp_onnx.node import format_shape
from lnbp_onnx.passes import DecomposePass, FusePass

_MOST_DRAWN = 40
_MOST_BOXES = 250
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_NAMES_OF_GAMMA = {"gamma", "scale", "weight"}

_KEYS = {
    "operator": spec.OP_TYPE,
    "node": "what replaces it",
    "neighbour": "the nodes around",
    "value": "inputs, initializers, outputs",
}


@dataclass(frozen=True)
class Subject:
    """What a page shows.

    Attributes:
        title: The model, and what became of it.
        before: The model as it was.
        after: The model as it became; None where there is none.
        operators_in_after: Whether the operator's nodes are those of `after`.
        results: What became of each node, by its name and place.
        missed: Near misses, as `report.outcomes` describes them.
        remarks: Sentences, such as warnings.
        sides: What the drawings of the two are called.
    """

    title: str
    before: ModelProto
    after: ModelProto | None
    operators_in_after: bool = False
    results: Mapping[tuple[str, str], str] | None = None
    missed: Sequence[Mapping[str, str]] = ()
    remarks: Sequence[str] = ()
    sides: tuple[str, str] = ("Before", "After")


def inspected(name: str, model: ModelProto, remarks: Sequence[str]) -> Subject:
    """Return what a page shows of a model: its nodes decomposed, or what fuse would find; and its near misses."""
    fused = copy.deepcopy(model)
    found = report.outcomes(apply_in_place(FusePass(), fused))
    operators = report.found_operators(model)
    told = [*remarks]
    if found["nodes"]:
        told.append(f"fuse would make {len(found['nodes'])} {spec.OP_TYPE} nodes of what is there.")
    if found["nodes"] and not operators:
        return Subject(name, model, fused, True, _results(found), found["missed"], told, ("As it is", "Fused"))
    if not operators:
        return Subject(name, model, None, missed=found["missed"], remarks=told)
    try:
        after = apply(model, DecomposePass())
    except LnbpError as error:
        after = None
        told.append(f"It cannot be decomposed: {error}")
    return Subject(name, model, after, missed=found["missed"], remarks=told, sides=("As it is", "Decomposed"))


def rewritten(name: str, before: ModelProto, after: ModelProto, data: Mapping[str, Any]) -> Subject:
    """Return what a page shows of a rewriting, of which `data` is what the command found."""
    output = "" if data["output"] is None else f" → {Path(data['output']).name}"
    return Subject(
        f"{name}{output}",
        before,
        after,
        operators_in_after="missed" in data,
        results=_results(data),
        missed=data.get("missed", ()),
        remarks=data["warnings"],
    )


def _results(data: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return what became of each node, by its name and place; nothing of those that share a name and differ in it."""
    results: dict[tuple[str, str], str] = {}
    for each in data["nodes"]:
        key = each["node"], each["place"]
        results[key] = each["result"] if results.get(key, each["result"]) == each["result"] else ""
    return results


def write(subject: Subject, path: Path) -> None:
    """Write the page of a subject; it takes its place whole or not at all."""
    with replacing(Path(os.path.realpath(path))) as replacement:
        replacement.write_model(render(subject).encode(), ())


def render(subject: Subject) -> str:
    """Return the page, which loads nothing; names are text in it, and no script but its own is run.

    Raises:
        InvalidModelError: Where a model cannot be read.
        InvalidNodeError: Where the specification refuses a node.
    """
    models = [model for model in (subject.before, subject.after) if model is not None]
    own = models[-1] if subject.operators_in_after else models[0]
    with blamed_on_model(own):
        found = _Found(own, next((model for model in models if model is not own), None), subject)
        rows = found.operators()
    sections = [
        f"<h1>{text_of(subject.title)}</h1>",
        f'<p>{spec.OP_TYPE} nodes: {len(rows)}. <span class="muted">lnbp-onnx {version("lnbp-onnx")}</span></p>',
        *(f"<p>{text_of(remark)}</p>" for remark in subject.remarks),
        _nodes_table(rows),
        _drawings(rows, subject),
        _work_table(rows, subject, found.assumed),
        _missed_table(subject.missed),
        _counts_table("Operators", subject.sides, [*map(report.operator_counts, models)], absent="0"),
        _needs_table(subject.sides, models),
    ]
    style, script = (resources.files(__package__).joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text_of(subject.title)}</title>\n<style>{style}</style>\n"
        f"<main>\n{chr(10).join(filter(None, sections))}\n</main>\n<script>{script}</script>\n</html>\n"
    )


@dataclass(frozen=True)
class _Row:
    """What the page tells of one node.

    Attributes:
        data: As `report.describe` gives it, and the module's path.
        own: The drawing of the node; without boxes where it is not drawn.
        other: That of what has its place in the other model.
        is_function: Whether this is the function that stands for the node.
        work: What the node has to do, and what has its place.
    """

    data: Mapping[str, Any]
    own: Drawing
    other: Drawing | None
    is_function: bool
    work: tuple[Work, Work] | None


@dataclass(frozen=True)
class _Region:
    """The nodes of one model that have the place of others.

    Attributes:
        nodes: The nodes, or those of the function that stands for them.
        function: That function, if there is one.
    """

    nodes: Sequence[ir.Node]
    function: ir.Function | None


class _Pair:
    """A model with the operator's nodes, and another one, in which others have their place."""

    def __init__(self, own: ir.Model, other: ir.Model | None) -> None:
        self.operators = specialised_operators(own)
        self._places = Places(own)
        self._other = other
        if other is not None:
            specialised_operators(other)
            self._other_places = Places(other)

    def own(self, place: str, names: Sequence[str]) -> list[ir.Node]:
        """Return the nodes that compute values which both models have."""
        shared = set() if self._other is None else self._other_places.names(place)
        return region(self._values(self._places, place, names), shared)

    def other(self, place: str, names: Sequence[str]) -> _Region | None:
        """Return what computes them in the other model, None where it has nothing there."""
        if self._other is None:
            return None
        nodes = region(self._values(self._other_places, place, names), self._places.names(place))
        function = self._other.functions.get(OPERATOR_ID)
        if function is not None and any(map(is_operator, nodes)):
            return _Region(list(function), function)
        return _Region(nodes, None) if nodes else None

    def _values(self, places: Places, place: str, names: Sequence[str]) -> list[ir.Value]:
        found = [places.value(place, name) for name in names]
        return [value for value in found if value is not None]


class _Found:
    """The operator's nodes of one model, and what has their place in another."""

    def __init__(self, own: ModelProto, other: ModelProto | None, subject: Subject) -> None:
        self._results = subject.results or {}
        self._is_alone = other is None
        self._drawn = _Pair(ir.from_proto(own), None if other is None else ir.from_proto(other))
        self._measured = None
        self.assumed: list[str] = []
        if other is not None:
            with contextlib.suppress(LnbpError):  # of nodes to which the lengths that are taken do not fit
                pair = ir.from_proto(own), ir.from_proto(other)
                self.assumed, _ = map(give_lengths, pair)
                self._measured = _Pair(*pair)

    def operators(self) -> list[_Row]:
        return [self._row(operator, index < _MOST_DRAWN) for index, operator in enumerate(self._drawn.operators)]

    def _row(self, operator: Operator, is_drawn: bool) -> _Row:
        data = report.describe(operator) | {"module": _module(operator.node)}
        result = self._results.get((data["node"], data["place"]))
        if result:
            data["result"] = result
        names = [output.name for output in operator.node.outputs if output.name]
        work = self._work(operator.place, names)
        if not is_drawn:
            return _Row(data, Drawing((), ()), None, False, work)
        nodes = [operator.node] if self._is_alone else self._drawn.own(operator.place, names)
        other = self._drawn.other(operator.place, names)
        if other is None:
            return _Row(data, drawing(nodes, names), None, False, work)
        results = names if other.function is None else [output.name for output in other.function.outputs]
        return _Row(data, drawing(nodes, names), drawing(other.nodes, results), other.function is not None, work)

    def _work(self, place: str, names: Sequence[str]) -> tuple[Work, Work] | None:
        if self._measured is None:
            return None
        other = self._measured.other(place, names)
        if other is None or other.function is not None:  # a function's values have no shapes of their own
            return None
        return work_of(self._measured.own(place, names)), work_of(other.nodes)


def _module(node: ir.Node) -> str:
    """Return the path of the module that a node comes from: as its exporter says, or as a gamma of its own is called.

    Exporters make one initializer of parameters that are equal, which is then called after one of them.
    """
    scopes = node.metadata_props.get(_SCOPES_KEY)
    if scopes:
        return scopes
    gamma = node.inputs[2] if len(node.inputs) > 2 else None
    if gamma is None or sum(is_operator(user) for user, _ in gamma.uses()) > 1:
        return ""
    path, _, name = (gamma.name or "").rpartition(".")
    return path if name in _NAMES_OF_GAMMA else ""


def _nodes_table(rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    columns = ["node", "place", "axis", "shape", "epsilon", "types", "statistics", "outputs"]
    optional = [name for name in ("module", "result") if any(row.data.get(name) for row in rows)]
    cells = []
    for index, row in enumerate(rows):
        data = row.data
        name = text_of(data["node"] or "(no name)")
        cells.append(
            [
                f'<a href="#node-{index}">{name}</a>' if row.own.boxes else name,
                text_of(data["place"]),
                str(data["begin_norm_axis"]),
                text_of("unknown" if data["shape"] is None else format_shape(data["shape"])),
                f"{data['epsilon']:.6g}",
                text_of(", ".join(f"{variable} {name}" for variable, name in data["types"].items())),
                data["statistics"],
                text_of(", ".join(data["outputs"])),
                *(text_of(data.get(name, "")) for name in optional),
            ]
        )
    return _table("Nodes", [*columns, *optional], cells)


def _drawings(rows: Sequence[_Row], subject: Subject) -> str:
    drawn = [(index, row) for index, row in enumerate(rows) if row.own.boxes]
    if not drawn:
        return ""
    keys = " ".join(f'<span class="key {kind}">{text_of(what)}</span>' for kind, what in _KEYS.items())
    parts = ["<h2>Before and after</h2>", f'<p class="muted">{keys}</p>']
    for index, row in drawn:
        before, after = (row.other, row.own) if subject.operators_in_after else (row.own, row.other)
        first, second = subject.sides
        if row.is_function:
            second = f"{second}: the function beside the node"
        is_first_larger = before is not None and (after is None or len(before.boxes) > len(after.boxes))
        name = text_of(row.data["node"] or "(no name)")
        parts.append(
            f'<details id="node-{index}"{" open" if index < 3 else ""}><summary>{name}</summary>'
            f'<div class="pair{" first" if is_first_larger else ""}">{_figure(first, before)}{_figure(second, after)}'
            "</div></details>"
        )
    if len(drawn) < len(rows):
        parts.append(f"<p>The first {len(drawn)} of {len(rows)} nodes are drawn.</p>")
    return "\n".join(parts)


def _figure(side: str, shown: Drawing | None) -> str:
    if shown is None:
        return f'<figure><h4>{side}</h4><p class="muted">Nothing has its place there.</p></figure>'
    if len(shown.boxes) > _MOST_BOXES:
        return (
            f'<figure><h4>{side}</h4><p class="muted">{len(shown.boxes)} boxes are too many to be drawn.</p></figure>'
        )
    buttons = "".join(
        f'<button type="button" data-zoom="{action}" aria-label="{label}">{sign}</button>'
        for action, label, sign in (("in", "Zoom in", "+"), ("out", "Zoom out", "-"), ("all", "Show all", "⤢"))
    )
    drawn = svg.to_svg(shown, f"{side}: {len(shown.boxes)} boxes")
    return (
        f'<figure class="zoomed"><h4>{side}</h4><div class="tools">{buttons}</div>'
        f'<div class="view">{drawn}</div></figure>'
    )


def _work_table(rows: Sequence[_Row], subject: Subject, assumed: Sequence[str]) -> str:
    measured = [(row, row.work[::-1] if subject.operators_in_after else row.work) for row in rows if row.work]
    if not measured:
        return ""
    columns = [f"{what}, {side.lower()}" for what in ("nodes", "bytes moved", "operations") for side in subject.sides]
    cells = []
    for row, works in measured:
        figures = zip(*map(_figures, works), strict=True)
        cells.append([text_of(row.data["node"] or "(no name)"), *(each for pair in figures for each in pair)])
    told = (
        "Bytes are what each operator reads and writes, one by one: a runtime that fuses operators moves less. "
        "Operations are those on numbers, for every element of a result, of the formula for the node itself."
    )
    if assumed:
        told += f" Lengths that the model leaves open were taken as {ASSUMED_LENGTH}: {', '.join(assumed)}."
    return f'{_table("Work", ["", *columns], cells, numbers=True)}<p class="muted">{text_of(told)}</p>'


def _figures(work: Work) -> list[str]:
    numbers = [work.nodes, work.bytes_moved, work.operations]
    return ["unknown" if number is None else f"{number:,}" for number in numbers]


def _needs_table(sides: Sequence[str], models: Sequence[ModelProto]) -> str:
    """Return the table of what a runtime must have for each model."""
    needs = [_needs(model) for model in models]
    rows = [[name, *(text_of(each[name]) for each in needs)] for name in needs[0]]
    return _table("What a runtime needs", ["", *(sides if len(models) > 1 else [""])], rows)


def _needs(model: ModelProto) -> dict[str, str]:
    counts = report.operator_counts(model)
    own = {f"{function.domain}::{function.name}" for function in model.functions}
    versions = {each.domain: each.version for each in model.opset_import}
    custom = [name for name in counts if "::" in name and name not in own]
    listed = {
        "IR version": str(model.ir_version),
        "opset": str(versions.get("", "none")),
        "kernels of other operators": ", ".join(custom),
        "functions of the model": ", ".join(sorted(own)),
        "control flow": ", ".join(name for name in ("If", "Loop", "Scan") if name in counts),
    }
    return {name: value or "none" for name, value in listed.items()}


def _missed_table(missed: Sequence[Mapping[str, str]]) -> str:
    if not missed:
        return ""
    rows = [[text_of(each["node"]), text_of(each["place"]), text_of(each["reason"])] for each in missed]
    return _table("Near misses", ["at", "place", "what stopped it"], rows)


def _counts_table(title: str, sides: Sequence[str], counts: Sequence[Mapping[str, int]], absent: str = "") -> str:
    names = sorted({name for each in counts for name in each})
    rows = [[text_of(name), *(str(each.get(name, absent)) for each in counts)] for name in names]
    return _table(title, ["", *(sides if len(counts) > 1 else [""])], rows, numbers=True)


def _table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """Return a table, whose cells are HTML already."""
    head = _cells("th", columns, numbers)
    lines = []
    for row in rows:
        changed = ' class="changed"' if numbers and len(row) > 2 and row[1] != row[2] else ""
        lines.append(f"<tr{changed}>{_cells('td', row, numbers)}</tr>")
    body = "\n".join(lines)
    return (
        f'<h2>{title}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
        "</div>"
    )


def _cells(tag: str, cells: Iterable[str], numbers: bool) -> str:
    """Return the cells of a row, of which all but the first may be numbers."""
    written = []
    for index, cell in enumerate(cells):
        kind = ' class="number"' if numbers and index else ""
        written.append(f"<{tag}{kind}>{cell}</{tag}>")
    return "".join(written)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
