# SPDX-License-Identifier: Apache-2.0
"""Draws docs/images/node.svg: one node, and what `decompose` makes of it. It needs the extra ``html``."""

import re
from pathlib import Path

import onnx
import onnx_ir as ir

import lnbp_onnx
from lnbp_onnx.cli.surroundings import drawing
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
_MARGIN, _GAP = 16, 60


def main() -> None:
    """Write the picture."""
    model = onnx.parser.parse_model(_MODEL)
    sides = [ir.from_proto(each) for each in (model, lnbp_onnx.decompose(model))]
    drawings = [drawing(list(side.graph), {output.name for output in side.graph.outputs}) for side in sides]
    sizes = [layout(each) for each in drawings]
    height = max(each.height for each in sizes) + 2 * _MARGIN
    width = sum(each.width for each in sizes) + _GAP + 2 * _MARGIN
    parts, left = [], float(_MARGIN)
    for each, size in zip(drawings, sizes, strict=True):
        inner = re.sub(r"^<svg[^>]*>|</svg>$", "", to_svg(each, ""))
        parts.append(f'<g transform="translate({left:.1f} {(height - size.height) / 2:.1f})">{inner}</g>')
        left += size.width + _GAP
    label = "A LayerNormBackprop node, and the standard operators that decompose writes for it"
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height:.1f}" role="img" '
        f'aria-label="{label}"><style>{_STYLE}</style><rect width="100%" height="100%" style="fill: #ffffff; '
        f'stroke: none"/>{"".join(parts)}</svg>\n'
    )
    (Path(__file__).parent / "images" / "node.svg").write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
