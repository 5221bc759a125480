# SPDX-License-Identifier: Apache-2.0
"""Export a small GPT from PyTorch: its loss and all of its gradients as one ONNX model.

The gradients of the layer norms are LayerNormBackprop nodes. The other examples train this model, without PyTorch;
examples/gpt/joint.onnx is what this program writes by default, to build/joint.onnx.

Needs `pip install torch==2.13.0 '.[torch]'`.
"""

from dataclasses import asdict, fields

import onnx

import program
from gpt.arguments import positive
from gpt.sizes import Sizes

INSTALL = "pip install torch==2.13.0 '.[torch]'"


def main() -> None:
    parser = program.argument_parser(__doc__)
    parser.add_argument("path", nargs="?", type=program.output_file, default=program.OUTPUT_FOLDER / "joint.onnx")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name}", type=positive, default=field.default)
    options = vars(parser.parse_args())
    path = options.pop("path")
    sizes = Sizes(**options)
    if sizes.width % sizes.heads:
        parser.error(f"the width, {sizes.width}, is not a multiple of the number of heads, {sizes.heads}")

    program.require("torch", INSTALL)
    program.require("onnxscript", INSTALL)
    program.make_folder_of(path)
    import torch

    from gpt.model import Gpt
    from lnbp_onnx.interop.torch import export_joint

    torch.manual_seed(0)
    module = Gpt(sizes)
    example = torch.zeros(2, sizes.context, dtype=torch.int64)
    rows = {0: "rows"}
    model = export_joint(module, (example, example), dynamic_shapes={"tokens": rows, "targets": rows})
    onnx.helper.set_model_props(model, {name: str(size) for name, size in asdict(sizes).items()})
    onnx.save(model, path)

    parameters = sum(parameter.numel() for parameter in module.parameters())
    gradients = sum(node.op_type == "LayerNormBackprop" for node in model.graph.node)
    print(f"{path}: {parameters} parameters, {len(model.graph.node)} nodes, {gradients} of them LayerNormBackprop")


if __name__ == "__main__":
    program.run(main)
