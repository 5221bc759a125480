# SPDX-License-Identifier: Apache-2.0
"""Calls of a torch module with other tensors than its own.

What is not public interface of torch is used here, in `torch_program` and in `torch_outputs` alone. Here it is this
(read off torch 2.13):

- ``Tensor._backward_hooks`` are the hooks that are registered on a tensor, ``torch.nn.modules.module._global_*_hooks``
  those on all modules; ``Module._buffers`` are a module's own buffers.
- ``torch.utils._pytree``, with which ``torch.export`` takes arguments and results apart.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils import _pytree as pytree

from lnbp_onnx.errors import InvalidModelError

NamedTensors: TypeAlias = dict[str, Any]

_GLOBAL_HOOKS = (
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
)
_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


class WithLoss(NamedTuple):
    """What a module returned, and the loss that was computed from it."""

    loss: Any
    result: Any


class Call:
    """A module with the arguments that it is called with, and all of their tensors by name.

    A `loss` is called with what the module returns and with `loss_inputs`, which count as arguments.
    """

    def __init__(
        self,
        module: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        loss: Callable[..., Any] | None = None,
        loss_inputs: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise InvalidModelError(f"The module is of type {type(module).__name__}; it must be a torch.nn.Module.")
        self.label = type(module).__name__
        self.left_out: dict[str, str] = {}
        """The types of what the module has returned that is no tensor, by name."""
        self.rebound: NamedTensors = {}
        """The tensors, by name, that the module has had in attributes in which it has put others."""
        for name, part in module.named_modules():
            if isinstance(part, _WRAPPERS):
                raise self.refusal(
                    f"{name or 'it'} is a {type(part).__name__}, which spreads a module over devices or processes",
                    "export the module that it wraps, .module",
                )
        if any(getattr(torch.nn.modules.module, name) for name in _GLOBAL_HOOKS):
            raise self.refusal(
                "hooks on all modules are registered, and would run on the exporter's modules too",
                "remove them for the export, or register them on the modules concerned",
            )
        if not isinstance(args, tuple | list):
            raise self.refusal(f"args is of type {type(args).__name__}; it must be a tuple, (x,) for one argument")
        signature = inspect.signature(module.forward)
        try:
            bound = signature.bind(*args, **(kwargs or {}))
        except TypeError as error:
            raise self.refusal(f"the arguments do not fit forward{signature}: {error}") from error
        self.arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            variadic = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            self.arguments.update(value if variadic else {name: value})
        loss_inputs = self._loss_inputs(loss, loss_inputs)
        self.arguments.update(loss_inputs)

        self._module, self._loss = module, loss
        # The same leaves in the same order as in `arguments`, in the form that the module is called with.
        self._leaves, self._structure = pytree.tree_flatten((bound.args, bound.kwargs, loss_inputs))
        self._indices = [index for index, leaf in enumerate(self._leaves) if isinstance(leaf, torch.Tensor)]
        paths = [path for path, _ in pytree.tree_flatten_with_path(self.arguments)[0]]
        self.paths = [tuple(map(_key, paths[index])) for index in self._indices]
        self.inputs: NamedTensors = {
            joined(path): self._leaves[index] for path, index in zip(self.paths, self._indices, strict=True)
        }
        # A parameter that modules share is here once, under its first name; `run` puts it everywhere.
        parameters = dict(module.named_parameters())
        self.trainable: NamedTensors = {name: each for name, each in parameters.items() if each.requires_grad}
        self.frozen: NamedTensors = {name: each for name, each in parameters.items() if not each.requires_grad}
        self.buffers: NamedTensors = dict(module.named_buffers())
        self.constants: NamedTensors = {**self.frozen, **self.buffers}
        first_names = {each: name for name, each in (*self.trainable.items(), *self.constants.items())}
        # By the names of all places that the module holds tensors in; a module with several names is there once.
        self._places = {
            name: first_names[each]
            for prefix, part in module.named_modules()
            for named in (part.named_parameters, part.named_buffers)
            for name, each in named(prefix, recurse=False, remove_duplicate=False)
        }
        clashes = self.inputs.keys() & (self.trainable.keys() | self.constants.keys())
        if clashes:
            raise self.refusal(
                f"{', '.join(map(repr, sorted(clashes)))} names both an argument of forward and a parameter or buffer",
                "rename one of the two",
            )
        if not self.tensors:
            raise self.refusal("there is no tensor among its arguments, parameters and buffers")

    def _loss_inputs(self, loss: Any, loss_inputs: Any) -> dict[str, Any]:
        """Return the inputs of a loss; what makes no sense is refused."""
        if loss is None:
            if loss_inputs is not None:
                raise self.refusal("loss_inputs are given and no loss", "give the function that takes them as loss")
            return {}
        if not callable(loss):
            raise self.refusal(f"loss is of type {type(loss).__name__}; it must be a function")
        if isinstance(loss, torch.nn.Module) and any(each.requires_grad for each in loss.parameters()):
            raise self.refusal(
                f"loss is a {type(loss).__name__} with parameters that require gradients",
                "make it a part of the module, or call loss.requires_grad_(False)",
            )
        if not isinstance(loss_inputs, Mapping | None):
            raise self.refusal(f"loss_inputs is of type {type(loss_inputs).__name__}; it must be a dict by name")
        clashes = sorted(self.arguments.keys() & (loss_inputs or {}).keys())
        if clashes:
            raise self.refusal(
                f"loss_inputs names {', '.join(map(repr, clashes))}, which is an argument of forward", "rename it"
            )
        return dict(loss_inputs or {})

    def _with_loss(self, result: Any, loss_inputs: Mapping[str, Any]) -> Any:
        return result if self._loss is None else WithLoss(self._loss(result, **loss_inputs), result)

    @property
    def tensors(self) -> NamedTensors:
        """What a traced graph takes, in its order."""
        return {**self.trainable, **self.constants, **self.inputs}

    def run(self, tensors: NamedTensors, finish: Callable[[Any], NamedTensors]) -> NamedTensors:
        """Call the module with other `tensors`, return what `finish` makes of the result, and leave it as it was.

        Until `finish` is done the module has these tensors: in a backward pass checkpoints and hooks use them. What it
        has in a buffer's place at the end is in `tensors` then.
        """
        state = {f"module.{name}": tensors[first] for name, first in self._places.items()}
        for name, original in self.tensors.items():
            for hook in (original._backward_hooks or {}).values() if tensors[name].requires_grad else ():
                tensors[name].register_hook(hook)
        args, kwargs, loss_inputs = self._arguments_with(tensors)
        step = _Step(self._module, lambda result: finish(self._with_loss(result, loss_inputs)))
        with self.left_as_it_was():
            outputs: NamedTensors = torch.func.functional_call(step, state, args, kwargs, tie_weights=False)
        # In `state` is now what the module has had in these places at the end.
        for name, first in self._places.items():
            if (replacement := state[f"module.{name}"]) is not tensors[first]:
                self._refuse_replacement(name, first, tensors[first], replacement)
                tensors[first] = replacement
        return outputs

    def _refuse_replacement(self, name: str, first: str, tensor: Any, replacement: Any) -> None:
        """Refuse what a forward puts in a tensor's place, unless that is the buffer's new value."""
        if first not in self.buffers:
            raise self.refusal(f"its forward replaces {name!r}, a parameter, which a model cannot do")
        if list(self._places.values()).count(first) > 1:
            raise self.refusal(
                f"its forward replaces {name!r}, which the module holds in several places, in one of them",
                "change it in place, with copy_()",
            )
        kind, kind_before = (
            f"tensor of shape {list(each.shape)} and type {each.dtype}"
            if isinstance(each, torch.Tensor)
            else type(each).__name__
            for each in (replacement, tensor)
        )
        if kind != kind_before:
            raise self.refusal(
                f"its forward replaces {name!r}, a {kind_before}, by a {kind}", "let a buffer keep its shape and type"
            )

    def at_end(self, names: Iterable[str]) -> NamedTensors:
        """Return the new values of buffers of these names, after a call of `run_itself`."""
        return new_values({name: self._module.get_buffer(name) for name in names})

    def run_itself(self, inputs: NamedTensors) -> Any:
        """Call the module with its own parameters and buffers, and with other `inputs`."""
        args, kwargs, loss_inputs = self._arguments_with(inputs)
        return self._with_loss(self._module(*args, **kwargs), loss_inputs)

    @contextlib.contextmanager
    def left_as_it_was(self) -> Iterator[None]:
        """Give a module whose parameters have no gradients; at the end it has its own, and its attributes and hooks."""
        before = [
            (prefix, attributes, dict(attributes))
            for prefix, part in self._module.named_modules()
            for attributes in (part._buffers, *_hooks(part), vars(part))
        ]
        parameters = [
            (each, each.grad, each.requires_grad, set(each._backward_hooks or ()))
            for each in (*self.trainable.values(), *self.frozen.values())
        ]
        try:
            for parameter, *_ in parameters:
                parameter.grad = None
            yield
        finally:
            for prefix, attributes, values in before:  # of a module that keeps what it computed
                self.rebound |= {
                    f"{prefix}.{name}".lstrip("."): value
                    for name, value in values.items()
                    if isinstance(value, torch.Tensor) and attributes.get(name) is not value
                }
                attributes.clear()
                attributes.update(values)
            for parameter, gradient, requires_grad, hooks in parameters:
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
                for added in set(parameter._backward_hooks or ()) - hooks:
                    del parameter._backward_hooks[added]

    def _arguments_with(self, inputs: NamedTensors) -> tuple[Any, Any, Any]:
        leaves = list(self._leaves)
        for index, name in zip(self._indices, self.inputs, strict=True):
            leaves[index] = inputs[name]
        args, kwargs, loss_inputs = pytree.tree_unflatten(leaves, self._structure)
        return args, kwargs, loss_inputs

    def refusal(self, found: str, remedy: str = "") -> InvalidModelError:
        """Return the error that says what was found and how to fix it."""
        return InvalidModelError(f"{self.label}: {found}{f' ({remedy})' if remedy else ''}.")


class _Step(torch.nn.Module):  # type: ignore[misc]  # torch has no types where it is not installed
    """A module, and what is done with its result while it has other tensors."""

    def __init__(self, module: Any, finish: Callable[[Any], NamedTensors]) -> None:
        super().__init__()
        self.module = module
        self.finish = finish

    def forward(self, *args: Any, **kwargs: Any) -> NamedTensors:
        return self.finish(self.module(*args, **kwargs))


def named_outputs(call: Call, result: Any) -> NamedTensors:
    """Return the tensors of what a module returned, by the names of the model's outputs."""
    outputs = {}
    if isinstance(result, Mapping):
        result = dict(result)  # of a mapping's own type torch may know nothing
    for path, leaf in pytree.tree_flatten_with_path(result)[0]:
        keys = list(map(_key, path))
        if not isinstance(result, Mapping):
            keys.insert(0, "output")
        name = ".".join(map(str, keys))
        if isinstance(leaf, torch.Tensor):
            outputs[name] = leaf
        elif leaf is not None:
            call.left_out[name] = type(leaf).__name__
    return outputs


def new_values(buffers: NamedTensors) -> NamedTensors:
    """Return buffers at the end of a call by the names of the model's outputs."""
    return {f"{name}.updated": value for name, value in buffers.items()}


def _hooks(module: Any) -> Iterator[dict[Any, Any]]:
    """Return the tables of a module's own hooks, which it may register itself when it is first called."""
    return (each for name, each in vars(module).items() if "_hooks" in name and isinstance(each, dict))


def _key(entry: Any) -> Any:
    """Return what an entry of a pytree's path stands for: an index, a key or an attribute's name."""
    return next(getattr(entry, name) for name in ("idx", "key", "name") if hasattr(entry, name))


def joined(path: Sequence[Any]) -> str:
    """Return the name of what is at a path."""
    return ".".join(map(str, path))
