# SPDX-License-Identifier: Apache-2.0
"""Drawings as SVG: Graphviz says where boxes and lines are, and is told of sizes alone, never of a name."""

import json
import math
from dataclasses import dataclass
from html import escape

import pygraphviz
from rich.cells import cell_len, set_cell_size

from lnbp_onnx.cli.surroundings import Box, Drawing, Edge
from lnbp_onnx.cli.terminal import printable

_POINTS_PER_INCH = 72
_CELL_WIDTH = 7.3
_LINE_HEIGHT = 16
_PADDING = 10
_MOST_CELLS = 34
_ARROW_WIDTH = 3.5

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Where a box is: the middle of it, and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is, in points from the top left corner.

    Attributes:
        width: The width of all.
        height: The height of all.
        rectangles: One for each box.
        lines: For each edge the points of its Bézier curves, and the tip of its arrow.
    """

    width: float
    height: float
    rectangles: tuple[Rectangle, ...]
    lines: tuple[tuple[tuple[Point, ...], Point], ...]


def lines_of(box: Box) -> list[str]:
    """Return what is written in a box."""
    return [_shortened(printable(text)) for text in (box.title, box.name) if text]


def layout(drawing: Drawing) -> Layout:
    """Return where the boxes and the lines of a drawing are."""
    graph = pygraphviz.AGraph(directed=True, strict=False)
    graph.graph_attr.update(nodesep="0.25", ranksep="0.35")
    graph.node_attr.update(shape="box", fixedsize="true", label="")
    for index, box in enumerate(drawing.boxes):
        width, height = _size(box)
        graph.add_node(str(index), width=str(width / _POINTS_PER_INCH), height=str(height / _POINTS_PER_INCH))
    for index, edge in enumerate(drawing.edges):
        graph.add_edge(str(edge.tail), str(edge.head), key=str(index), id=str(index))
    found = json.loads(graph.draw(format="json0", prog="dot"))
    _, _, width, height = map(float, found["bb"].split(","))

    def point(text: str) -> Point:
        x, y = map(float, text.split(","))
        return x, height - y  # Graphviz counts from the bottom

    rectangles: dict[int, Rectangle] = {}
    for each in found.get("objects", ()):
        box = drawing.boxes[int(each["name"])]
        rectangles[int(each["name"])] = Rectangle(*point(each["pos"]), *_size(box))
    lines: dict[int, tuple[tuple[Point, ...], Point]] = {}
    for each in found.get("edges", ()):
        tip, *points = each["pos"].split()
        lines[int(each["id"])] = tuple(map(point, points)), point(tip.removeprefix("e,"))
    return Layout(
        width,
        height,
        tuple(rectangles[index] for index in range(len(drawing.boxes))),
        tuple(lines[index] for index in range(len(drawing.edges))),
    )


def to_svg(drawing: Drawing, label: str) -> str:
    """Return a drawing as an SVG element; what is in it is plain text, whatever it is called."""
    placed = layout(drawing)
    view = f"-4 -4 {_number(placed.width + 8)} {_number(placed.height + 8)}"
    return "".join(
        [
            f'<svg viewBox="{view}" width="{_number(placed.width + 8)}" role="img" aria-label="{text_of(label)}">',
            *(_line(edge, *line) for edge, line in zip(drawing.edges, placed.lines, strict=True)),
            *(_rectangle(box, where) for box, where in zip(drawing.boxes, placed.rectangles, strict=True)),
            "</svg>",
        ]
    )


def text_of(text: str) -> str:
    """Return a text as HTML takes it, with every character to be seen."""
    return escape(printable(text))


def _size(box: Box) -> tuple[float, float]:
    lines = lines_of(box)
    return max(map(cell_len, lines)) * _CELL_WIDTH + 2 * _PADDING, len(lines) * _LINE_HEIGHT + _PADDING


def _shortened(text: str) -> str:
    """Return the end of a long text, which tells names apart that begin with the path of a module."""
    return text if cell_len(text) <= _MOST_CELLS else "…" + set_cell_size(text[::-1], _MOST_CELLS - 1)[::-1].strip()


def _rectangle(box: Box, where: Rectangle) -> str:
    lines = lines_of(box)
    left, top = where.x - where.width / 2, where.y - where.height / 2
    texts = [
        f'<text x="{_number(where.x)}" y="{_number(top + _PADDING / 2 + (index + 0.75) * _LINE_HEIGHT)}">'
        f"{escape(line)}</text>"
        for index, line in enumerate(lines)
    ]
    size = f'width="{_number(where.width)}" height="{_number(where.height)}"'
    return (
        f'<g class="box {box.kind}"><title>{text_of(f"{box.title} {box.name}")}</title>'
        f'<rect x="{_number(left)}" y="{_number(top)}" {size} rx="5"/>{"".join(texts)}</g>'
    )


def _line(edge: Edge, points: tuple[Point, ...], tip: Point) -> str:
    start, *rest = (f"{_number(x)},{_number(y)}" for x, y in points)
    (x, y), (tip_x, tip_y) = points[-1], tip
    length = math.hypot(tip_x - x, tip_y - y) or 1.0
    across = -(tip_y - y) / length * _ARROW_WIDTH, (tip_x - x) / length * _ARROW_WIDTH
    corners = (x + across[0], y + across[1]), tip, (x - across[0], y - across[1])
    arrow = " ".join(f"{_number(each[0])},{_number(each[1])}" for each in corners)
    return (
        f'<g class="edge"><title>{text_of(f"{edge.name} {edge.type}".strip())}</title>'
        f'<path d="M{start} C{" ".join(rest)}"/><polygon points="{arrow}"/></g>'
    )


def _number(number: float) -> str:
    return f"{number:.1f}"
