# SPDX-License-Identifier: Apache-2.0
"""Draws in docs/images what `decompose`, `embed` and `fuse` make of a model each. It needs the extra ``html``."""

import re
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

import lnbp_onnx
from lnbp_onnx.cli.surroundings import Drawing, drawing
from lnbp_onnx.cli.svg import layout, to_svg

_MODEL = f"""
<ir_version: 8, opset_import: ["": 17, "{lnbp_onnx.DOMAIN}": {lnbp_onnx.OP_VERSION}]>
norm (float[rows, 768] x, float[rows, 768] dy, float[768] gamma, float[rows] mean, float[rows] variance)
  => (float[rows, 768] dx, float[768] dgamma)
{{
  dx, dgamma = {lnbp_onnx.DOMAIN}.{lnbp_onnx.OP_TYPE}(x, dy, gamma, , mean, variance)
}}
"""
_STYLE = """
text {font: 12px ui-monospace, monospace; text-anchor: middle; fill: #1c2733}
rect {fill: #ffffff; stroke: #8a97a6}
.operator rect {fill: #d7f2e3; stroke: #1d8a56}
.value rect {fill: #eef2f7; stroke: #c3ccd6}
path {fill: none; stroke: #8a97a6}
polygon {fill: #8a97a6}
"""
_FOLDER = Path(__file__).parent
_EXPORTED = _FOLDER.parent / "tests/data/torch_layernorm_affine_decomposed.onnx"
_MARGIN, _GAP = 16, 60


def picture(sides: Sequence[Drawing], label: str) -> str:
    """Return drawings side by side."""
    sizes = [layout(each) for each in sides]
    height = max(each.height for each in sizes) + 2 * _MARGIN
    width = sum(each.width for each in sizes) + _GAP * (len(sides) - 1) + 2 * _MARGIN
    parts, left = [], float(_MARGIN)
    for each, size in zip(sides, sizes, strict=True):
        inner = re.sub(r"^<svg[^>]*>|</svg>$", "", to_svg(each, ""))
        parts.append(f'<g transform="translate({left:.1f} {(height - size.height) / 2:.1f})">{inner}</g>')
        left += size.width + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height:.1f}" role="img" '
        f'aria-label="{label}"><style>{_STYLE}</style><rect width="100%" height="100%" style="fill: #ffffff; '
        f'stroke: none"/>{"".join(parts)}</svg>\n'
    )


def whole(model: onnx.ModelProto) -> Drawing:
    """Return the drawing of all of a graph."""
    graph = ir.from_proto(model).graph
    return drawing(list(graph), {output.name for output in graph.outputs})


def function(model: onnx.ModelProto) -> Drawing:
    """Return the drawing of the one function of a model."""
    (found,) = ir.from_proto(model).functions.values()
    return drawing(list(found), {output.name for output in found.outputs})


def main() -> None:
    """Write the pictures."""
    model, exported = onnx.parser.parse_model(_MODEL), onnx.load(_EXPORTED)
    embedded = lnbp_onnx.embed(model)
    pictures = {
        "node": (
            [whole(model), whole(lnbp_onnx.decompose(model))],
            "A LayerNormBackprop node, and the standard operators that decompose writes for it",
        ),
        "embed": ([whole(embedded), function(embedded)], "A LayerNormBackprop node, and the function that embed adds"),
        "fuse": (
            [whole(exported), whole(lnbp_onnx.fuse(exported))],
            "A gradient of layer normalisation as PyTorch exports it, and the node that fuse makes of it",
        ),
    }
    for name, (sides, label) in pictures.items():
        (_FOLDER / "images" / f"{name}.svg").write_text(picture(sides, label), "utf-8")


if __name__ == "__main__":
    main()
