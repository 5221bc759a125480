# SPDX-License-Identifier: Apache-2.0
"""Layer-norm gradients as PyTorch's exporter writes them, without the operator.

``python tests/torch_exports.py`` records them anew in ``tests/data/torch_exports``; that needs torch and onnxscript.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

RECORDED = Path(__file__).parent / "data" / "torch_exports"
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


@dataclass(frozen=True)
class Export:
    """One export.

    Attributes:
        form: How the normalisation is written: "layer_norm" or one of the functions of `_forms`.
        shape: x's shape.
        norm: The lengths of the normalised axes.
        parameters: Those that there are.
        wanted: The inputs whose gradients are asked for.
        constants: The inputs that are constants of the model.
        dtype: The type of all of them.
        dynamic: Whether the first axis is symbolic.
        opset: The model's opset.
    """

    form: str = "layer_norm"
    shape: tuple[int, ...] = (4, 3, 10)
    norm: tuple[int, ...] = (10,)
    parameters: tuple[str, ...] = ("gamma", "beta")
    wanted: tuple[str, ...] = ("x", "gamma", "beta")
    constants: tuple[str, ...] = ()
    dtype: str = "float32"
    dynamic: bool = False
    opset: int = 20

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the values of x, dy and the parameters."""
        rng = np.random.default_rng(7)
        arrays = {
            "x": rng.normal(0.5, 1.5, self.shape),
            "dy": rng.normal(size=self.shape),
            "gamma": rng.normal(1, 0.5, self.norm),
            "beta": rng.normal(size=self.norm),
        }
        return {name: arrays[name].astype(DTYPES[self.dtype]) for name in ("x", "dy", *self.parameters)}

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The values of the model's inputs."""
        return {name: array for name, array in self.arrays().items() if name not in self.constants}


GAMMA_ONLY, X_ONLY = ("gamma",), ("x",)

EXPORTS = {
    "affine": Export(),
    "no_bias": Export(parameters=("gamma",)),
    "not_affine": Export(parameters=()),
    "two_axes": Export(norm=(3, 10)),
    "two_axes_not_affine": Export(norm=(3, 10), parameters=()),
    "all_axes": Export(norm=(4, 3, 10)),
    "rank_1": Export(shape=(8,), norm=(8,)),
    "rank_4": Export(shape=(2, 3, 4, 5), norm=(4, 5)),
    "one_row": Export(shape=(1, 8), norm=(8,)),
    "length_1": Export(shape=(3, 1, 6), norm=(1, 6)),
    "dynamic": Export(dynamic=True),
    "dynamic_not_affine": Export(dynamic=True, parameters=()),
    "dynamic_two_axes": Export(dynamic=True, norm=(3, 10)),
    "x_only": Export(wanted=X_ONLY),
    "gamma_only": Export(wanted=GAMMA_ONLY),
    "dynamic_gamma_only": Export(wanted=GAMMA_ONLY, dynamic=True),
    "gamma_and_beta": Export(wanted=("gamma", "beta")),
    "x_and_beta": Export(wanted=("x", "beta")),
    "dy_constant": Export(constants=("dy",)),
    "x_constant": Export(constants=("x",)),
    "gamma_constant": Export(constants=("gamma", "beta")),
    "gamma_constant_x_only": Export(constants=("gamma", "beta"), wanted=X_ONLY),
    "opset_18": Export(opset=18),
    "opset_23": Export(opset=23),
    "double": Export(dtype="float64"),
    "half": Export(dtype="float16"),
    "half_two_axes": Export(dtype="float16", norm=(3, 10)),
    "half_not_affine": Export(dtype="float16", parameters=()),
    "half_gamma_only": Export(dtype="float16", wanted=GAMMA_ONLY),
    "half_gamma_constant": Export(dtype="float16", constants=("gamma", "beta"), wanted=X_ONLY),
    "bfloat16": Export(dtype="bfloat16"),
    "bfloat16_dynamic": Export(dtype="bfloat16", dynamic=True),
    "written_out": Export("written_out"),
    "written_out_dynamic": Export("written_out", dynamic=True),
    "rsqrt": Export("rsqrt"),
    "var_mean": Export("var_mean"),
    "sum_and_power": Export("sum_and_power"),
    "mean_of_squares": Export("mean_of_squares"),
    "flattened": Export("flattened"),
    "flattened_dynamic": Export("flattened", dynamic=True),
    "transposed": Export("transposed"),
    "residual": Export("residual"),
    "written_out_residual": Export("written_out_residual"),
    "written_out_residual_dynamic": Export("written_out_residual", dynamic=True),
    "scaled_gamma": Export("scaled_gamma"),
    "expanded_gamma": Export("expanded_gamma"),
    "rows_of_columns": Export("rows_of_columns"),
}

EPSILON = 1e-5


def _forms() -> dict[str, Callable[..., Any]]:
    """Return ways to write the normalisation of the last axis of 10, and uses of it among other operators."""
    import torch  # noqa: PLC0415 - the table above is needed without it

    norm = torch.nn.functional.layer_norm

    def mean(x: Any) -> Any:
        return x.mean(-1, keepdim=True)

    def variance(x: Any) -> Any:
        return x.var(-1, unbiased=False, keepdim=True)

    def var_mean(x: Any, gamma: Any, beta: Any) -> Any:
        v, m = torch.var_mean(x, -1, unbiased=False, keepdim=True)
        return gamma * ((x - m) * (v + EPSILON).rsqrt()) + beta

    def sum_and_power(x: Any, gamma: Any, beta: Any) -> Any:
        d = x - mean(x)
        v = (d * d).sum(-1, keepdim=True) / x.shape[-1]
        return d / (v + EPSILON) ** 0.5 * gamma + beta

    def rows_of_columns(x: Any, gamma: Any, beta: Any) -> Any:
        rows = x.permute(1, 2, 0).reshape(3, 40)
        return norm(rows, (40,)).reshape(3, 10, 4).permute(2, 0, 1) * gamma + beta

    return {
        "written_out": lambda x, g, b: (x - mean(x)) / torch.sqrt(mean((x - mean(x)) ** 2) + EPSILON) * g + b,
        "rsqrt": lambda x, g, b: (x - mean(x)) * torch.rsqrt(variance(x) + EPSILON) * g + b,
        "var_mean": var_mean,
        "sum_and_power": sum_and_power,
        "mean_of_squares": lambda x, g, b: (x - mean(x)) * (mean(x * x) - mean(x) ** 2 + EPSILON).rsqrt() * g + b,
        "flattened": lambda x, g, b: norm(x.reshape(-1, 10), (10,), g, b).reshape(x.shape),
        "transposed": lambda x, g, b: norm(x.transpose(0, 1), (10,), g, b).transpose(0, 1),
        "residual": lambda x, g, b: x + norm(x.tanh(), (10,), g, b),
        "written_out_residual": lambda x, g, b: (
            x + ((x - mean(x)) * torch.rsqrt(mean((x - mean(x)).pow(2)) + EPSILON) * g + b)
        ),
        "scaled_gamma": lambda x, g, b: norm(x, (10,), 1 + 2 * g, b),
        "expanded_gamma": lambda x, g, b: norm(x, (3, 10), g.expand(3, 10), b.expand(3, 10)),
        "rows_of_columns": rows_of_columns,
    }


def export(wanted: Export) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Export a gradient; return the model and what torch's autograd computes, in float64, for its outputs."""
    import torch  # noqa: PLC0415
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415

    tensors = {
        name: torch.tensor(array.astype(np.float64)).to(getattr(torch, wanted.dtype))
        for name, array in wanted.arrays().items()
    }
    names = [name for name in tensors if name not in wanted.constants]
    sought = [name for name in wanted.wanted if name in tensors]

    def gradients(*arguments: Any) -> Any:
        values = {**tensors, **dict(zip(names, arguments, strict=True))}
        leaves = [values[name].detach().requires_grad_() if name not in names else values[name] for name in sought]
        values.update(zip(sought, leaves, strict=True))
        x, gamma, beta = values["x"], values.get("gamma"), values.get("beta")
        if wanted.form == "layer_norm":
            y = torch.nn.functional.layer_norm(x, wanted.norm, gamma, beta, EPSILON)
        else:
            y = _forms()[wanted.form](x, gamma, beta)
        return torch.autograd.grad(y, leaves, values["dy"])

    arguments = [tensors[name].clone().requires_grad_(name in sought) for name in names]
    mode = "symbolic" if wanted.dynamic else "real"
    traced = make_fx(gradients, tracing_mode=mode, _allow_non_fake_inputs=True)(*arguments)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    batch = {0: torch.export.Dim("B", min=2, max=1024)}
    program = torch.onnx.export(
        traced,
        tuple(argument.detach() for argument in arguments),
        dynamo=True,
        opset_version=wanted.opset,
        input_names=names,
        output_names=[f"{name}_grad" for name in sought],
        dynamic_shapes=tuple(batch if name in ("x", "dy") else None for name in names) if wanted.dynamic else None,
        verbose=False,
    )
    assert program is not None
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    exact = gradients(*(tensors[name].requires_grad_(name in sought) for name in names))
    outputs = {f"{name}_grad": value.detach().numpy() for name, value in zip(sought, exact, strict=True)}
    return _bare(program.model_proto), outputs


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what only people read."""
    graph = model.graph
    for each in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del each.metadata_props[:]
        each.ClearField("doc_string")
    return model


def recorded(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return what was recorded of an export."""
    with np.load(RECORDED / "torch.npz") as arrays:
        outputs = {key.partition("/")[2]: arrays[key] for key in arrays if key.partition("/")[0] == name}
    return onnx.load(RECORDED / f"{name}.onnx"), outputs


def record() -> None:
    """Write all exports, and what autograd computes for them, to `RECORDED`."""
    RECORDED.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {}
    for name, wanted in EXPORTS.items():
        model, outputs = export(wanted)
        onnx.save(model, RECORDED / f"{name}.onnx")
        arrays |= {f"{name}/{output}": array for output, array in outputs.items()}
    np.savez_compressed(RECORDED / "torch.npz", **arrays)


if __name__ == "__main__":
    record()
