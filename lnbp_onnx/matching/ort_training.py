# SPDX-License-Identifier: Apache-2.0
"""The layer-norm gradients of ONNX Runtime training, by the operator."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx import AttributeProto

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidNodeError
from lnbp_onnx.matching.substitute import take_over
from lnbp_onnx.node import TensorInfo, attribute_protos, describe, parse

DOMAIN = "com.microsoft"
OP_TYPES = ("LayerNormalizationGrad", "InvertibleLayerNormalizationGrad")

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def is_gradient(node: ir.Node) -> bool:
    """Return whether the node is a layer-norm gradient of ONNX Runtime training."""
    return node.domain == DOMAIN and node.op_type in OP_TYPES


def replace(node: ir.Node, infos: dict[ir.Value, TensorInfo], unique_name: Callable[[str], str]) -> ir.Node:
    """Replace a node by the operator and what turns its inputs into the operator's; return the operator's node.

    ``LayerNormalizationGrad`` has (Y_grad, X, scale, mean, inv_std_var), ``InvertibleLayerNormalizationGrad``
    (Y_grad, Y, scale, bias, inv_std_var): it has the forward operator's output in the place of its input, and the
    operator gets (Y - bias) / scale / inv_std_var, whose mean is 0.

    Raises:
        InvalidNodeError: Where an input is missing, the axis is not known or the operator does not take the inputs.
    """
    return _Importer(node, infos, unique_name).replace()


class _Importer:
    def __init__(self, node: ir.Node, infos: dict[ir.Value, TensorInfo], unique_name: Callable[[str], str]) -> None:
        self._node = node
        self._infos = infos
        self._unique_name = unique_name
        self._label = node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type
        self._nodes: list[ir.Node] = []

    def replace(self) -> ir.Node:
        inputs = [value for value in self._node.inputs if value is not None]
        if len(inputs) != 5:
            raise InvalidNodeError(f"{self._node.op_type} has {len(inputs)} of its 5 inputs")
        attribute = self._node.attributes.get("axis")
        if attribute is not None and attribute.is_ref():
            raise InvalidNodeError("its axis is an attribute of the function, whose value is not known here")
        attributes = attribute_protos(-1 if attribute is None else attribute.as_int(), True, 0.0, True)
        dy, third, gamma, fourth, inv_std = inputs
        is_invertible = self._node.op_type == "InvertibleLayerNormalizationGrad"
        self._check(attributes, third, dy, gamma, inv_std if is_invertible else fourth, inv_std)
        if is_invertible:
            x, mean = self._input_of(third, gamma, fourth, inv_std), self._zeros_like(inv_std)
        else:
            # The variance is float; the operator's two statistics have one type.
            x, mean = third, self._in_float(fourth, "mean_cast")
        variance = self._variance(inv_std)
        outputs = []
        for old, name in zip(self._node.outputs, spec.OUTPUT_NAMES, strict=False):
            wanted = bool(old.name) or name == "input_delta"
            outputs.append(ir.Value(name=old.name or (self._unique_name(f"{self._label}/{name}") if wanted else "")))
        operator = ir.Node(
            spec.DOMAIN,
            spec.OP_TYPE,
            [x, dy, gamma, None, mean, variance],
            [ir.serde.deserialize_attribute(proto) for proto in attributes.values()],
            outputs=outputs,
            name=self._node.name or self._unique_name(f"{self._label}/{spec.OP_TYPE}"),
        )
        self._nodes.append(operator)
        self._substitute(operator)
        return operator

    def _check(self, attributes: Mapping[str, AttributeProto], *inputs: ir.Value) -> None:
        """Refuse what the operator would, given its x, dy, gamma, mean and variance, before anything is changed."""
        infos: list[TensorInfo | None] = [self._infos[value] for value in inputs]
        infos[3:] = [self._info_in_float(value) for value in inputs[3:]]
        infos.insert(3, None)
        try:
            parse(describe(self._label, []), attributes, infos, [True] * len(spec.OUTPUT_NAMES))
        except InvalidNodeError as error:
            raise InvalidNodeError(str(error).removesuffix(".")) from error

    def _substitute(self, operator: ir.Node) -> None:
        node, graph = self._node, self._node.graph
        assert isinstance(graph, ir.Graph)
        for each in self._nodes:
            each.metadata_props.update(node.metadata_props)
        graph.insert_after(node, self._nodes)
        for old, new in zip(node.outputs, operator.outputs, strict=False):
            if not old.name:
                continue
            take_over(old, new)
            self._infos[new] = self._infos.get(old, TensorInfo())
            for index, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[index] = new
        graph.remove(node, safe=True)

    def _variance(self, inv_std: ir.Value) -> ir.Value:
        inv_std = self._in_float(inv_std, "inv_std_cast")
        squared = self._step("Mul", [inv_std, inv_std], "inv_std_squared")
        return self._step("Reciprocal", [squared], "variance")

    def _input_of(self, y: ir.Value, gamma: ir.Value, beta: ir.Value, inv_std: ir.Value) -> ir.Value:
        """Return what the normalisation had for input, less its mean; half types are computed in float."""
        element_type = self._infos[y].element_type
        y, gamma, beta, inv_std = (self._in_float(value, "cast") for value in (y, gamma, beta, inv_std))
        if element_type == ir.DataType.DOUBLE:
            gamma, beta, inv_std = (self._in_double(value) for value in (gamma, beta, inv_std))
        value = self._step("Sub", [y, beta], "unshifted")
        value = self._step("Div", [value, gamma], "xhat")
        value = self._step("Div", [value, inv_std], "centred")
        if element_type is not None and ir.DataType(element_type) in _HALF:
            value = self._step("Cast", [value], "centred_cast", to=ir.DataType(element_type))
        return value

    def _zeros_like(self, inv_std: ir.Value) -> ir.Value:
        shape = self._step("Shape", [inv_std], "rows_shape", info=TensorInfo(ir.DataType.INT64))
        info = self._info_in_float(inv_std)
        dtype = ir.DataType(info.element_type or ir.DataType.FLOAT)
        zero = ir.AttrTensor("value", ir.tensor(np.zeros(1, dtype.numpy())))
        output = self._output("mean", info)
        self._nodes.append(ir.Node("", "ConstantOfShape", [shape], [zero], outputs=[output], name=output.name))
        return output

    def _in_float(self, value: ir.Value, name: str) -> ir.Value:
        """Return a value of a half type in float, any other one as it is."""
        if self._info_in_float(value) == self._infos[value]:
            return value
        return self._step("Cast", [value], name, to=ir.DataType.FLOAT)

    def _in_double(self, value: ir.Value) -> ir.Value:
        if self._infos[value].element_type == ir.DataType.DOUBLE:
            return value
        return self._step("Cast", [value], "cast", to=ir.DataType.DOUBLE)

    def _info_in_float(self, value: ir.Value) -> TensorInfo:
        info = self._infos[value]
        is_half = info.element_type is not None and ir.DataType(info.element_type) in _HALF
        return TensorInfo(ir.DataType.FLOAT, info.shape) if is_half else info

    def _step(
        self,
        op_type: str,
        inputs: list[ir.Value],
        name: str,
        *,
        to: ir.DataType | None = None,
        info: TensorInfo | None = None,
    ) -> ir.Value:
        info = info or self._infos[inputs[0]]
        attributes = []
        if to is not None:
            info = TensorInfo(to, info.shape)
            attributes.append(ir.AttrInt64("to", to))
        output = self._output(name, info)
        self._nodes.append(ir.Node("", op_type, inputs, attributes, outputs=[output], name=output.name))
        return output

    def _output(self, name: str, info: TensorInfo) -> ir.Value:
        value = ir.Value(name=self._unique_name(f"{self._label}/{name}"))
        value.type = None if info.element_type is None else ir.TensorType(ir.DataType(info.element_type))
        value.shape = None if info.shape is None else ir.Shape(info.shape)
        self._infos[value] = info
        return value
