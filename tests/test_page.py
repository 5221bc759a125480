# SPDX-License-Identifier: Apache-2.0
"""The page to look at: its drawings are those of the model, and what is in it is text."""

import itertools
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import onnx
import onnx_ir as ir
import pytest
from browsers import drive
from cases import Case
from command_line import command
from onnx import ModelProto, NodeProto, helper
from onnx.reference import ReferenceEvaluator

import lnbp_onnx

pytest.importorskip("pygraphviz")

from lnbp_onnx.cli import page, surroundings, svg
from lnbp_onnx.cli.terminal import printable

ROOT = Path(__file__).parents[1]
ENCODER = ROOT / "examples/torch_encoder_training_lnbp.onnx"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title></svg>",
    "&lt;b&gt; ]]>",
    "javascript:alert(1)",
    "\x1b]0;title\x07\u202egpj",
    "模型 🙂" * 9,
]


class Content(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.open: list[str] = []
        self.text = ""
        self.values: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(each) for each in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def titles(drawn: ElementTree.Element, kind: str) -> list[str]:
    return [next(each.itertext()) for each in drawn.iter("g") if each.get("class", "").split()[-1] == kind]


def region_of(model: ModelProto, results: list[str], boundary: set[str]) -> dict[str, NodeProto]:
    """Return the nodes between values of the main graph, by name, from the protos alone."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, NodeProto] = {}
    pending = list(results)
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            pending += set(node.input) - boundary
    return found


def values_of(model: ModelProto) -> set[str]:
    graph = model.graph
    named = [*graph.input, *graph.initializer]
    return {each.name for each in named} | {output for node in graph.node for output in node.output}


def test_the_drawings_are_those_of_the_model() -> None:
    before = onnx.load(ENCODER)
    after = lnbp_onnx.decompose(before)
    operators = [node for node in before.graph.node if node.domain == "lnbp"]
    drawn = drawings(page.render(page.Subject("m", before, after)))
    assert len(drawn) == 2 * len(operators) == 10
    for operator, (first, second) in zip(operators, zip(drawn[::2], drawn[1::2], strict=True), strict=True):
        (box,) = titles(first, "operator")
        assert box == f"lnbp::LayerNormBackprop {operator.name}"
        assert sorted(title.split()[0] for title in titles(first, "edge")) == sorted(
            [*operator.input, *(name for name in operator.output for _ in users(before, name))]
        )
        nodes = region_of(after, list(operator.output), values_of(before))
        names = [title.split(" ", 1)[1] for title in titles(second, "node") if not title.startswith("Constant")]
        assert sorted(names) == sorted(name for name, node in nodes.items() if node.op_type != "Constant")
        assert len(titles(second, "node")) == len(nodes)
        assert sorted(title.split()[0] for title in titles(second, "edge")) == sorted(
            [
                *(name for node in nodes.values() for name in set(node.input)),
                *(name for name in operator.output for _ in users(after, name)),
            ]
        )


def users(model: ModelProto, name: str) -> list[str]:
    """Return what uses a value: nodes, and the graph's outputs."""
    nodes = [node.name for node in model.graph.node if name in node.input]
    return [*nodes, *(output.name for output in model.graph.output if output.name == name)]


def test_work_is_that_of_a_run() -> None:
    """Bytes by what ONNX's evaluator computes at each node; operations of the formula for the node itself."""
    rows, columns = 4, 6
    model = Case("page", (rows, columns)).model()
    standard = lnbp_onnx.decompose(model)
    watched = ModelProto()
    watched.CopyFrom(standard)
    names = [name for node in watched.graph.node for name in node.output]
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = Case("page", (rows, columns)).feeds()
    values = feeds | dict(zip(names, ReferenceEvaluator(watched).run(None, feeds), strict=True))
    views = {"Constant", "Flatten", "Reshape", "Shape", "Squeeze", "Unsqueeze"}
    moved = sum(
        values[name].nbytes
        for node in standard.graph.node
        if node.op_type not in views
        for name in {*node.input, *node.output}
    )
    shown = cells("Work", page.render(page.Subject("m", model, standard)))[0]
    elements = rows * columns
    once = sum(values[name].nbytes for name in {*model.graph.node[0].input, *model.graph.node[0].output} - {"beta"})
    assert shown[1:5] == ["1", str(len(standard.graph.node)), f"{once:,}", f"{moved:,}"]
    assert shown[5] == f"{13 * elements:,}"


def cells(title: str, text: str) -> list[list[str]]:
    """Return the texts of a table's body."""
    (body,) = re.findall(rf"<h2>{title}</h2>.*?<tbody>(.*?)</tbody>", text, re.DOTALL)
    rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.DOTALL)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row)] for row in rows]


def test_work_at_lengths_that_the_model_leaves_open() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "lnbp": 1]>
        g (float[n, 4, 32] x, float[n, 4, 32] dy, float[32] gamma) => (float[n, 4, 32] dx)
        { [node] dx = lnbp.LayerNormBackprop <use_stats = 0> (x, dy, gamma) }""")
    text = page.render(page.Subject("m", model, lnbp_onnx.decompose(model)))
    ((_, _, _, moved, _, operations, _),) = cells("Work", text)
    assert (moved, operations) == (f"{4 * (3 * 128 * 4 * 32 + 32):,}", f"{14 * 128 * 4 * 32:,}")
    assert "taken as 128: n." in text


def test_no_work_at_lengths_that_do_not_fit() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "lnbp": 1]>
        g (float[n, columns] x, float[n, columns] dy, float[32] gamma) => (float[n, columns] dx)
        { [node] dx = lnbp.LayerNormBackprop <use_stats = 0> (x, dy, gamma) }""")
    text = page.render(page.Subject("m", model, lnbp_onnx.decompose(model)))
    assert len(drawings(text)) == 2
    assert "<h2>Work</h2>" not in text


def test_what_a_runtime_needs() -> None:
    model = onnx.load(ENCODER)
    text = page.render(page.Subject("m", model, lnbp_onnx.embed(model)))
    needs = {name: sides for name, *sides in cells("What a runtime needs", text)}
    assert needs["opset"] == ["20", "20"]
    assert needs["control flow"] == ["If, Loop", "If, Loop"]
    assert needs["kernels of other operators"] == ["lnbp::LayerNormBackprop", "none"]
    assert needs["functions of the model"] == ["none", "lnbp::LayerNormBackprop"]


@pytest.mark.parametrize("path", [ENCODER, ROOT / "tests/data/jax_layernorm_vjp.onnx"], ids=lambda path: path.stem)
def test_nothing_overlaps_and_lines_end_at_their_boxes(path: Path) -> None:
    model = ir.load(path)
    nodes = list(model.graph)[:60]
    drawing = surroundings.drawing(nodes, [output.name for node in nodes for output in node.outputs])
    assert len(drawing.boxes) > 60
    placed = svg.layout(drawing)
    for a, b in itertools.combinations(placed.rectangles, 2):
        assert abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2
    for edge, (points, tip) in zip(drawing.edges, placed.lines, strict=True):
        for (x, y), index in ((points[0], edge.tail), (tip, edge.head)):
            box = placed.rectangles[index]
            assert abs(x - box.x) <= box.width / 2 + 2
            assert abs(y - box.y) <= box.height / 2 + 2
    for box in placed.rectangles:
        assert 0 <= box.x - box.width / 2 <= box.x + box.width / 2 <= placed.width
        assert 0 <= box.y - box.height / 2 <= box.y + box.height / 2 <= placed.height


def named(name: str) -> ModelProto:
    """Return a model in which everything is called after a name."""
    model = Case("page", (4, 6)).model()
    node = model.graph.node[0]
    node.name = name
    for kind, values, names in (("x", model.graph.input, node.input), ("y", model.graph.output, node.output)):
        for index, value in enumerate(values):
            value.name = names[index] = f"{name}{kind}{index}"
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=name)
    inner = NodeProto()
    inner.CopyFrom(node)
    model.functions.append(helper.make_function(name, name, node.input, [], [inner], model.opset_import))
    model.graph.node.append(helper.make_node(name, node.input, [], name=name, domain=name))
    model.opset_import.add(domain=name, version=1)
    return model


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(name: str) -> None:
    def shown(name: str) -> Content:
        missed = [{"node": name, "place": name, "reason": name}]
        return Content(page.render(page.Subject(name, named(name), None, missed=missed, remarks=[name])))

    plain, hostile = shown("name"), shown(name)
    assert hostile.tags == plain.tags
    assert hostile.open == []
    assert not [each for each in hostile.text + "".join(hostile.values) if not each.isprintable() and each != "\n"]
    seen = printable(name)
    assert hostile.text.count(seen) >= 10


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert command("inspect", ENCODER, "--html", path).returncode == 0
    text = path.read_text("utf-8")
    content = Content(text)
    assert content.open == []
    attributes = {name for _, names in content.tags for name in names}
    assert not attributes & {"src", "srcset", "style", "xlink:href"}
    assert not [name for name in attributes if name.startswith("on")]
    assert {value for value in content.values if "//" in value} == set()
    assert re.findall(r"url\(|@import|fetch\(|https?:", text) == []
    assert set(re.findall(r'href="(.)', text)) == {"#"}
    assert "default-src 'none'" in text


def test_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert command("inspect", ENCODER, "--html", path).returncode == 0
    found = drive("drive_page.mjs", path)
    drawn = drawings(path.read_text("utf-8"))
    boxes = [len(list(each.iter("rect"))) for each in drawn]
    lines = [len(list(each.iter("path"))) for each in drawn]
    assert found["faults"] == []
    for view in found["views"].values():
        assert [each["boxes"] for each in view["drawings"]] == boxes
        assert [each["lines"] for each in view["drawings"]] == lines
        assert all(each["isZoomed"] and each["overlaps"] == 0 for each in view["drawings"])
        assert view["overflow"] == 0
    backgrounds = {name: view["background"] for name, view in found["views"].items()}
    assert len(set(backgrounds.values())) == 2
    assert backgrounds["light 390"] == backgrounds["light 1200"]


def test_pages_of_the_commands(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(Case("page", (4, 6)).model(), model)
    run = command("embed", model, "--html", "e.html", cwd=tmp_path)
    assert run.stdout.endswith("Wrote e.html.\n")
    assert "After: the function beside the node" in (tmp_path / "e.html").read_text("utf-8")
    assert command("decompose", model, "--html", "d.html", cwd=tmp_path).returncode == 0
    assert command("fuse", "m.decomposed.onnx", "--html", "f.html", "--dry-run", cwd=tmp_path).returncode == 0
    pair = [drawings((tmp_path / name).read_text("utf-8")) for name in ("d.html", "f.html")]
    (standard, _), (_, standard_again) = pair[0][::-1], pair[1][::-1]
    assert sorted(titles(standard, "node")) == sorted(titles(standard_again, "node"))
    assert titles(pair[1][1], "operator")[0].startswith("lnbp::LayerNormBackprop")


def test_inspect_shows_what_fuse_would_find(tmp_path: Path) -> None:
    """And near misses, which nothing is made of."""
    standard = lnbp_onnx.decompose(Case("page", (4, 6)).model())
    onnx.save(standard, tmp_path / "m.onnx")
    assert command("inspect", "m.onnx", "--html", "p.html", cwd=tmp_path).returncode == 0
    text = (tmp_path / "p.html").read_text("utf-8")
    before, after = drawings(text)
    assert len(titles(before, "node")) == len(standard.graph.node)
    assert titles(after, "operator")
    near = onnx.load(ROOT / "tests/data/torch_layernorm_affine_decomposed.onnx")
    next(node for node in near.graph.node if node.op_type == "Div").op_type = "Mul"
    onnx.save(near, tmp_path / "m.onnx")
    assert command("inspect", "m.onnx", "--html", "p.html", "--force", cwd=tmp_path).returncode == 0
    text = (tmp_path / "p.html").read_text("utf-8")
    assert "Near misses" in text
    assert drawings(text) == []


def test_near_misses_have_their_reasons() -> None:
    near = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]> g (float[4, 6] x, float[4, 6] dy) => (float[4, 6] y)
        { y = Add(x, dy) }""")
    missed = [{"node": "a", "place": "graph", "reason": "epsilon is added twice"}]
    content = Content(page.render(page.Subject("m", near, near, missed=missed)))
    assert "epsilon is added twice" in content.text
    assert "svg" not in {tag for tag, _ in content.tags}


def test_a_model_that_cannot_be_decomposed_is_drawn_as_it_is(tmp_path: Path) -> None:
    model = Case("page", (4, 6)).model()
    model.opset_import[0].version = 9
    onnx.save(model, tmp_path / "m.onnx")
    assert command("inspect", "m.onnx", "--html", "p.html", cwd=tmp_path).returncode == 0
    text = (tmp_path / "p.html").read_text("utf-8")
    assert len(drawings(text)) == 1
    assert "It cannot be decomposed" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "m.onnx", "--html", "m.onnx", "--force"], "which is a model of this command"),
        (["decompose", "m.onnx", "o.onnx", "--html", "o.onnx"], "which is a model of this command"),
        (["inspect", "m.onnx", "--html", "old.html"], "which exists; give --force"),
        (["inspect", "m.onnx", "--html", "-"], "standard output, which is no file"),
        (["inspect", "m.onnx", "--html", "nowhere/p.html"], "which is no folder"),
        (["decompose", "m.onnx", "old.html", "--output-dir", "o", "--html", "p.html"], "is a page of one model"),
    ],
)
def test_no_file_is_replaced_unasked(tmp_path: Path, arguments: list[str], message: str) -> None:
    onnx.save(Case("page", (4, 6)).model(), tmp_path / "m.onnx")
    (tmp_path / "old.html").write_text("old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = command(*arguments, cwd=tmp_path)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert message in run.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert command("inspect", "m.onnx", "--html", "old.html", "--force", cwd=tmp_path).returncode == 0


def test_without_what_it_draws_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(Case("page", (4, 6)).model(), tmp_path / "m.onnx")
    for name in ("lnbp_onnx.cli.page", "lnbp_onnx.cli.svg"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    run = command("inspect", "m.onnx", "--html", "p.html", cwd=tmp_path)
    assert run.returncode == 2
    assert "pip install 'lnbp-onnx[html]'" in run.stderr
