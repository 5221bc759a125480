# SPDX-License-Identifier: Apache-2.0
"""Records what the package onnx-ad writes for the gradient of a LayerNormalization.

``python tests/record_onnx_ad.py`` writes `tests/data/onnx_ad`; that needs onnx-ad 0.3.0, for which an environment of
its own will do. The length of the seeds' axis stays symbolic.
"""

from pathlib import Path

import onnx
import onnx_ad

RECORDED = Path(__file__).parent / "data" / "onnx_ad"
NETWORKS = {
    "static": ("4, 3, 8", 18, -1, "8", "casadi"),
    "dynamic": ("B, T, 8", 20, -1, "8", "onnx"),
    "two_axes": ("B, 3, 8", 17, 1, "3, 8", "onnx"),
}
"""By name: the shape of x, the opset, the axis, the shape of gamma, and the layout of the seeds."""


def network(shape: str, opset: int, axis: int, norm: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""
<ir_version: 9, opset_import: ["" : {opset}]>
g (float[{shape}] x, float[{norm}] gamma, float[{norm}] beta) => (float[{shape}] y)
{{
    h = Tanh (x)
    n = LayerNormalization <axis = {axis}, epsilon = 1e-5> (h, gamma, beta)
    y = Sin (n)
}}""")


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    for name, (shape, opset, axis, norm, layout) in NETWORKS.items():
        onnx.save(onnx_ad.reverse(network(shape, opset, axis, norm), layout=layout), RECORDED / f"{name}.onnx")
