# SPDX-License-Identifier: Apache-2.0
"""Training steps against torch's optimizers, and against the module that a model was exported from."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from training_models import OPTIMIZERS, assert_updated, batches, parameters_of, regression, trained

import lnbp_onnx
from lnbp_onnx import AdamW

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from lnbp_onnx.interop.torch import export_joint  # noqa: E402

# Of torch's own code, once it has been imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def in_torch(optimizer: Any, parameters: Any) -> Any:
    """The same optimizer of torch, with the groups that no_weight_decay makes."""
    settings = dataclasses.asdict(optimizer)
    settings["lr"] = float(np.float32(optimizer.lr))
    del settings["no_weight_decay"]
    groups = [
        {"params": [value], "weight_decay": optimizer.weight_decay if optimizer.decays(name) else 0.0}
        for name, value in parameters
    ]
    return getattr(torch.optim, type(optimizer).__name__)(groups, **settings)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_torch_s(name: str) -> None:
    optimizer, model = OPTIMIZERS[name], regression(np.float64)
    step = lnbp_onnx.training_step(model, of="loss", optimizer=optimizer, clip_norm=0.75, accumulation_steps=2)
    parameters = {each: torch.tensor(value).requires_grad_() for each, value in parameters_of(model).items()}
    expected = in_torch(optimizer, parameters.items())
    for run, (results, batch) in enumerate(zip(trained(step, 7), batches(np.float64), strict=False), 1):
        x, y = (torch.tensor(batch[each]) for each in ("x", "y"))
        loss = torch.nn.functional.mse_loss(x @ parameters["w"] + parameters["bias"], y)
        np.testing.assert_allclose(results["loss"], loss.item(), rtol=1e-12)
        (loss / 2).backward()
        if run % 2 == 0:
            torch.nn.utils.clip_grad_norm_(parameters.values(), 0.75)
            expected.step()
            expected.zero_grad()
        assert_updated(results, {each: value.detach().numpy() for each, value in parameters.items()})


def test_joint_export_trains_as_its_module() -> None:
    torch.manual_seed(0)

    def mean_square(output: Any, y: Any) -> Any:
        return nn.functional.mse_loss(output, y)

    class Network(nn.Sequential):
        def forward(self, x: Any) -> Any:
            return super().forward(x)

    module = Network(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 2))
    example = next(batches())
    model = export_joint(
        module,
        (torch.tensor(example["x"]),),
        loss=mean_square,
        check=False,
        loss_inputs={"y": torch.tensor(example["y"])},
    )
    optimizer = AdamW(lr=0.01, no_weight_decay=["*.bias"])
    step = lnbp_onnx.training_step(model, optimizer=optimizer)
    assert sum(each.op_type == lnbp_onnx.OP_TYPE for each in step.graph.node) == 1
    expected = in_torch(optimizer, module.named_parameters())
    for results, batch in zip(trained(step), batches(), strict=False):
        expected.zero_grad()
        loss = mean_square(module(torch.tensor(batch["x"])), torch.tensor(batch["y"]))
        loss.backward()
        expected.step()
        np.testing.assert_allclose(results["loss"], loss.item(), rtol=1e-5)
        for name, value in [*module.named_parameters(), ("1.running_mean", module[1].running_mean)]:
            np.testing.assert_allclose(results[f"{name}.updated"], value.detach(), rtol=1e-4, atol=2e-5, err_msg=name)
