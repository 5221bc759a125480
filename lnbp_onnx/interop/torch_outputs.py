# SPDX-License-Identifier: Apache-2.0
"""What a model of a torch module gives: what the module returns, and gradients.

Of what is not public interface of torch (`torch_call`) here is ``Tensor._post_accumulate_grad_hooks``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from lnbp_onnx.interop.torch_call import Call, NamedTensors, WithLoss, named_outputs
from lnbp_onnx.interop.torch_finite import TakenForFinite
from lnbp_onnx.interop.torch_gradients import WithExportableGradients

LOSS = "loss"


def forward_outputs(call: Call, tensors: NamedTensors, output_names: Sequence[str] | None) -> NamedTensors:
    """Return what the module returns, by name."""
    finite = TakenForFinite()
    with finite:
        outputs = _run(call, tensors, partial(named_outputs, call))
    return finite.marked(forward_names(call, outputs, output_names))


def forward_names(call: Call, outputs: NamedTensors, output_names: Sequence[str] | None) -> NamedTensors:
    """Return what a module returned under the names that the user gave, if any."""
    if not outputs:
        raise call.refusal("forward returns no tensor")
    if output_names is None:
        refuse_clashes(call, list(outputs))
        return outputs
    if len(output_names) != len(outputs):
        raise call.refusal(f"output_names has {len(output_names)} names and forward returns {len(outputs)} tensors")
    refuse_clashes(call, output_names)
    return dict(zip(output_names, outputs.values(), strict=True))


def joint_outputs(call: Call, tensors: NamedTensors, input_gradients: Sequence[str]) -> NamedTensors:
    """Return the loss, what else the module returns, and the gradients, by name."""
    for name in input_gradients:
        if name not in call.inputs or not call.inputs[name].is_floating_point():
            allowed = [name for name, each in call.inputs.items() if each.is_floating_point()]
            raise call.refusal(
                f"input_gradients names {name!r}; it may name the inputs of floating-point type: "
                f"{', '.join(map(repr, allowed)) or 'there are none'}"
            )
    wanted = {name: tensors[name].requires_grad_() for name in (*call.trainable, *input_gradients)}
    if not wanted:
        raise call.refusal(
            "no parameter requires a gradient, and no input_gradients are asked for",
            "call module.requires_grad_(), or name inputs",
        )

    def finish(result: Any) -> NamedTensors:
        loss, others = loss_and_outputs(call, result)
        refuse_clashes(call, [LOSS, *others])
        _backward(call, loss, tensors)
        return {LOSS: loss, **others}

    finite = TakenForFinite()
    with finite:
        outputs = _run(call, tensors, finish)
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in wanted.values()]
    for name, gradient in zip(wanted, gradients, strict=True):
        if gradient.layout != torch.strided:
            raise call.refusal(f"the gradient of {name!r} is sparse; it must be dense", "set sparse=False")
    named_gradients = {f"{name}.grad": each for name, each in zip(wanted, gradients, strict=True)}
    refuse_clashes(call, [*outputs, *named_gradients])
    return finite.marked({**outputs, **named_gradients})


def loss_and_outputs(call: Call, result: Any) -> tuple[Any, NamedTensors]:
    """Return the loss, which is among what a module returned or was computed from it, and the other tensors by name."""
    if isinstance(result, WithLoss):
        loss, outputs = result.loss, named_outputs(call, result.result)
        if not isinstance(loss, torch.Tensor):
            raise call.refusal(f"loss returns a {type(loss).__name__}; it must return a scalar tensor")
    else:
        outputs = named_outputs(call, result)
        leaves = pytree.tree_leaves(result)
        first = next(iter(outputs), "") if isinstance(next(iter(leaves), None), torch.Tensor) else ""
        loss = outputs.pop(LOSS if isinstance(result, Mapping) else first, None)
    if loss is None:
        raise call.refusal(
            "forward returns no loss: a tensor, the first element of a tuple, or 'loss' of a mapping",
            "or give the function that computes it, as loss",
        )
    if loss.dim() != 0:
        raise call.refusal(f"the loss has shape {list(loss.shape)}; it must be a scalar", "take its mean() or sum()")
    if not loss.requires_grad:
        raise call.refusal("the loss depends on nothing that requires a gradient", "do not detach it")
    return loss, outputs


def _backward(call: Call, loss: Any, tensors: NamedTensors) -> None:
    """Run the backward pass of the loss of the call with other `tensors`, which get their gradients."""
    hooked = sorted(
        name
        for name, each in call.trainable.items()
        if each._post_accumulate_grad_hooks or tensors[name]._post_accumulate_grad_hooks
    )
    if hooked:
        raise call.refusal(
            f"{', '.join(map(repr, hooked))} has a hook that runs after its gradient is there, which a model cannot do",
            "remove it before the export, or change the gradient in a hook of register_hook",
        )
    backward(loss, tensors.values())
    thawed = [name for name in call.frozen if tensors[name].grad is not None]
    if thawed:
        raise call.refusal(
            f"its forward makes {', '.join(map(repr, thawed))} require a gradient, which is a constant of the model",
            "call requires_grad_() before the export",
        )


def backward(loss: Any, leaves: Iterable[Any]) -> None:
    """Run the backward pass of the loss; of all that was there before it, `leaves` alone keep gradients."""
    own = set(leaves)
    gradients = [(leaf, leaf.grad) for leaf in _leaves(loss) if leaf not in own]
    try:
        for leaf, _ in gradients:
            leaf.grad = None
        # Of a tensor, backward() turns off the modes of functions, which a checkpoint's second forward pass needs too.
        torch.autograd.backward(get_gradient_edge(loss), torch.ones_like(loss))
    finally:
        for leaf, gradient in gradients:
            leaf.grad = gradient


def _leaves(tensor: Any) -> set[Any]:
    """Return the leaves of the graph that a tensor was computed by."""
    seen, pending, leaves = set(), [tensor.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [each for each, _ in node.next_functions]
        if type(node).__name__ == "AccumulateGrad":
            leaves.add(node.variable)
    return leaves


def refuse_clashes(call: Call, output_names: Sequence[str]) -> None:
    """Refuse names that two outputs have, or an output and another of the call's tensors."""
    clashes = sorted({name for name in output_names if name in call.tensors or output_names.count(name) > 1})
    if clashes:
        raise call.refusal(f"{', '.join(map(repr, clashes))} names an output and another value", "rename one")


def _run(call: Call, tensors: NamedTensors, finish: Callable[[Any], NamedTensors]) -> NamedTensors:
    # Fused attention and oneDNN's LSTM have backward operators that no exporter knows; NNPACK's convolutions are
    # chosen by the size of the batch, which would have to be known. Anomaly mode looks for NaN, of which a tensor
    # without data has none.
    onednn = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        with (
            torch.backends.nnpack.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            WithExportableGradients(),
            torch.autograd.set_detect_anomaly(False),
        ):
            return call.run(tensors, finish)
    finally:
        torch.backends.mkldnn.enabled = onednn
