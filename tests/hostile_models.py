# SPDX-License-Identifier: Apache-2.0
"""Small models that ask for much: time, memory, depth; none is larger than a megabyte.

``python tests/hostile_models.py`` puts each through everything, in 1 GB beyond what the imports take, and prints a line
for each: its name, what came of it, the seconds.
"""

import itertools
import json
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

import lnbp_onnx
from lnbp_onnx.files.model_io import check_model

SECONDS = 10
MEMORY = 2**30
LARGEST = 2**20

_OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid(lnbp_onnx.DOMAIN, 1), helper.make_opsetid("local", 1)]


def _info(name: str, shape: Sequence[int | str] | None, element_type: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)


def _operator(x: str = "x", shape_of: str = "dx", **attributes: Any) -> NodeProto:
    return lnbp_onnx.make_node(x, "dy", use_affine=False, use_stats=False, outputs=[shape_of, "", ""], **attributes)


def _model(
    nodes: Sequence[NodeProto],
    shape: Sequence[int | str] = (4, 64),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    functions: Sequence[FunctionProto] = (),
    initializers: Sequence[TensorProto] = (),
    operator: NodeProto | None = None,
) -> ModelProto:
    """Return a model of these nodes beside one of the operator."""
    nodes = [*nodes, operator or _operator()]
    graph = helper.make_graph(
        nodes, "hostile", [_info("x", shape), _info("dy", shape), *inputs], [_info("dx", shape)], initializers
    )
    return helper.make_model(graph, opset_imports=_OPSETS, ir_version=8, functions=list(functions))


def _function(name: str, nodes: Sequence[NodeProto], attributes: Sequence[str] = ()) -> FunctionProto:
    return helper.make_function("local", name, ["x", "dy"], ["dx"], nodes, _OPSETS, attributes)


def _calls(number: int, *, per_function: int = 1) -> ModelProto:
    """Functions of which each calls the next one, so and so many times."""
    functions = [_function("f0", [_operator()])]
    for index in range(1, number):
        values = ["x", *(f"v{call}" for call in range(per_function - 1)), "dx"]
        steps = itertools.pairwise(values)
        nodes = [helper.make_node(f"f{index - 1}", [a, "dy"], [b], domain="local") for a, b in steps]
        functions.append(_function(f"f{index}", nodes))
    call = helper.make_node(f"f{number - 1}", ["x", "dy"], ["dx"], domain="local")
    return _model([], functions=functions[::-1], operator=call)


def _calls_of_one_that_calls_many(callers: int, called: int) -> ModelProto:
    nodes = [helper.make_node("Add", ["x", "dy"], ["dx"])]
    functions = [_function(f"f{index}", nodes) for index in range(called)]
    steps = itertools.pairwise(["x", *(f"v{index}" for index in range(called - 1)), "dx"])
    calls = [helper.make_node(f"f{index}", [a, "dy"], [b], domain="local") for index, (a, b) in enumerate(steps)]
    functions.append(_function("all", calls))
    call = helper.make_node("all", ["x", "dy"], ["dx"], domain="local")
    functions += [_function(f"c{index}", [call]) for index in range(callers)]
    nodes = [helper.make_node(f"c{index}", ["x", "dy"], [f"d{index}"], domain="local") for index in range(callers)]
    return _model(nodes, functions=functions)


def _in_many_ways() -> ModelProto:
    """Functions that are each called in two ways by each way of calling the one before."""
    names = [f"a{index}" for index in range(12)]
    functions = []
    for level, name in enumerate(names):
        if level == 0:
            epsilon = onnx.AttributeProto(name="epsilon", type=onnx.AttributeProto.FLOAT, ref_attr_name=names[0])
            node = _operator()
            del node.attribute[:]
            node.attribute.extend([epsilon, *(helper.make_attribute(flag, 0) for flag in ("use_affine", "use_stats"))])
            nodes = [node]
        else:
            nodes = []
            for way, source, target in ((0, "x", "v"), (1, "v", "dx")):
                call = helper.make_node(f"f{level - 1}", [source, "dy"], [target], domain="local")
                call.attribute.extend(
                    onnx.AttributeProto(name=each, type=onnx.AttributeProto.FLOAT, ref_attr_name=each)
                    for each in names
                    if each != name
                )
                call.attribute.append(helper.make_attribute(name, float(way + 1)))
                nodes.append(call)
        functions.append(_function(f"f{level}", nodes, names))
    call = helper.make_node("f11", ["x", "dy"], ["dx"], domain="local")
    call.attribute.extend(helper.make_attribute(name, 1.0) for name in names)
    return _model([], functions=functions[::-1], operator=call)


def _nested(depth: int) -> ModelProto:
    node = _operator()
    for level in range(depth):
        other = helper.make_node("Neg", ["dy"], [f"other{level}"])
        branches = [helper.make_graph([each], "branch", [], [_info(each.output[0], (4, 64))]) for each in (node, other)]
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=branches[0], else_branch=branches[1])
    node.output[0] = "dx"
    return _model([], inputs=[_info("c", [], TensorProto.BOOL)], operator=node)


def _chain(op_type: str, number: int, first: str = "x", *, twice: bool = False, other: str = "") -> list[NodeProto]:
    values = [first, *(f"{op_type}{index}" for index in range(number))]
    return [
        helper.make_node(op_type, [a, a] if twice else [a, other] if other else [a], [b])
        for a, b in itertools.pairwise(values)
    ]


def _difference() -> list[NodeProto]:
    """What the search for gradients begins with: x less its mean."""
    mean = helper.make_node("ReduceMean", ["x", "last"], ["mean"], keepdims=1)
    return [mean, helper.make_node("Sub", ["x", "mean"], ["d"])]


def _searched(nodes: Sequence[NodeProto]) -> ModelProto:
    constants = [
        helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("many", TensorProto.FLOAT, [], [63.0]),
        helper.make_tensor("tiny", TensorProto.FLOAT, [], [1e-38]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    return _model([*_difference(), *nodes], initializers=constants)


def _fractions(number: int) -> list[NodeProto]:
    """Each is one over a sum in which the one before comes twice."""
    nodes = []
    value = "d"
    for index in range(number):
        nodes += [
            helper.make_node("Mul", [value, "dy"], [f"a{index}"]),
            helper.make_node("Add", [f"a{index}", value], [f"b{index}"]),
            helper.make_node("Add", [f"b{index}", "one"], [f"c{index}"]),
            helper.make_node("Reciprocal", [f"c{index}"], [f"e{index}"]),
        ]
        value = f"e{index}"
    return nodes


def _roots(number: int) -> list[NodeProto]:
    """As many reciprocal roots as there are, each with what the operator's body has around it."""
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Flatten", ["dy"], ["dy_flat"])]
    nodes += [
        helper.make_node("ReduceMean", ["flat", "last"], ["m"], keepdims=1),
        helper.make_node("Sub", ["flat", "m"], ["c"]),
        helper.make_node("Mul", ["c", "c"], ["cc"]),
        helper.make_node("ReduceMean", ["cc", "last"], ["v"], keepdims=1),
        helper.make_node("Sqrt", ["v"], ["s"]),
        helper.make_node("Reciprocal", ["s"], ["r"]),
        helper.make_node("Mul", ["dy_flat", "c"], ["q"]),
        helper.make_node("ReduceMean", ["q", "last"], ["p"], keepdims=1),
    ]
    for index in range(number):
        nodes += [
            helper.make_node("Mul", ["r", "p"], [f"i{index}"]),
            helper.make_node("Mul", ["r", f"i{index}"], [f"j{index}"]),
            helper.make_node("Mul", ["c", f"j{index}"], [f"k{index}"]),
        ]
    return nodes


def _doubled(op_type: str) -> ModelProto:
    """A vector that is made longer and longer."""
    nodes = [
        helper.make_node("Concat", [a, a], [b], axis=0)
        for a, b in zip(["v", *(f"v{index}" for index in range(39))], [f"v{index}" for index in range(40)], strict=True)
    ]
    return _model([*nodes, helper.make_node(op_type, ["v39", "v39"], ["end"])], inputs=[_info("v", [64])])


def _gather_nd_grad() -> ModelProto:
    inputs = [_info("shape", None, TensorProto.INT64), _info("indices", [4, 2**40], TensorProto.INT64)]
    node = helper.make_node("GatherNDGrad", ["shape", "indices", "dy"], ["picked"], domain="com.microsoft")
    model = _model([node], inputs=inputs)
    model.opset_import.add(domain="com.microsoft", version=1)
    return model


def _training_ops(number: int) -> ModelProto:
    """Operators of which each becomes many."""
    inputs = [_info(name, [2], TensorProto.INT64) for name in ("shape", "indices")]
    nodes = [
        helper.make_node("GatherGrad", ["shape", "indices", "dy"], [f"g{i}"], domain="com.microsoft")
        for i in range(number)
    ]
    model = _model(nodes, inputs=inputs)
    model.opset_import.add(domain="com.microsoft", version=1)
    return model


def _scatters(number: int) -> ModelProto:
    steps = itertools.pairwise(["x", *(f"s{index}" for index in range(number))])
    nodes = [helper.make_node("ScatterND", [a, "indices", "u"], [b], reduction="add") for a, b in steps]
    return _model(nodes, inputs=[_info("indices", [9, 1], TensorProto.INT64), _info("u", [9, 64])])


def _small_functions(number: int) -> ModelProto:
    functions = []
    for index in range(number):
        function = FunctionProto(name=f"{index:x}", domain="local", input=["x"], output=["y"])
        function.opset_import.add(version=20)
        function.node.append(NodeProto(op_type="Neg", input=["x"], output=["y"]))
        functions.append(function)
    return _model([helper.make_node("0", ["x"], ["y"], domain="local")], functions=functions)


def _onnx_ends(op_type: str, **attributes: Any) -> ModelProto:
    return _model([helper.make_node(op_type, ["x"], ["end"], **attributes)])


def _repeated() -> ModelProto:
    model = _model(_chain("Neg", 2000))
    for node in model.graph.node[:-1]:
        node.output[0] = "same"
    return model


MODELS: dict[str, Callable[[], ModelProto]] = {
    "a node reads itself": lambda: _model([helper.make_node("Neg", ["n"], ["n"])]),
    "nodes read each other": lambda: _model([*_chain("Neg", 9, "end"), helper.make_node("Neg", ["Neg8"], ["end"])]),
    "many columns": lambda: _model([], (2, 2**62)),
    "a prime number of columns": lambda: _model([], (2, 2**61 - 1)),
    "more elements than there are numbers": lambda: _model([], (2**62, 2**62)),
    "no rows of many columns": lambda: _model([], (0, 2**40)),
    "a vector": lambda: _model(
        [helper.make_node("Add", ["v", "w"], ["u"])], inputs=[_info("v", [2**33]), _info("w", [2**33])]
    ),
    "a vector that is doubled": lambda: _doubled("Add"),
    "a vector that is a shape": lambda: _doubled("Expand"),
    "many integers": lambda: _model(
        _chain("Add", 1000, "many", other="many"),
        initializers=[helper.make_tensor("many", TensorProto.INT64, [90000], b"\0" * 720000, raw=True)],
    ),
    "an attribute of many integers": lambda: _model(
        [helper.make_node("Constant", [], ["many"], value_ints=[7] * 300000), *_chain("Cast", 1, "many")],
    ),
    "calls in a line": lambda: _calls(1000),
    "calls that double": lambda: _calls(60, per_function=2),
    "calls of one that calls many": lambda: _calls_of_one_that_calls_many(50, 900),
    "calls in many ways": _in_many_ways,
    "calls in a circle": lambda: _model(
        [], functions=[_function("f", [helper.make_node("f", ["x", "dy"], ["dx"], domain="local")])]
    ),
    "branches in branches": lambda: _nested(24),
    "many nodes": lambda: _model(_chain("Neg", 3000)),
    "many axes": lambda: _model([], [f"d{axis}" for axis in range(3000)]),
    "names that repeat": _repeated,
    "powers": lambda: _searched(_chain("Pow", 16, "tiny", other="many")),
    "squares": lambda: _searched(_chain("Mul", 1000, "d", twice=True)),
    "squares of a constant": lambda: _searched(_chain("Mul", 60, "tiny", twice=True)),
    "sums of sums": lambda: _searched(_chain("Add", 2000, "d", other="dy")),
    "fractions": lambda: _searched(_fractions(300)),
    "roots": lambda: _searched(_roots(1000)),
    "differences": lambda: _searched([helper.make_node("Sub", ["x", "mean"], [f"e{i}"], f"{i}") for i in range(1500)]),
    "differences in a line": lambda: _searched(
        [
            each
            for i in range(1000)
            for each in (
                helper.make_node("Mul", ["d" if not i else f"e{i - 1}", "dy"], [f"e{i}"]),
                helper.make_node("Sub", [f"e{i}", "mean"], [f"f{i}"]),
            )
        ]
    ),
    "small functions": lambda: _small_functions(10000),
    "too many functions": lambda: _small_functions(10001),
    "training operators": lambda: _training_ops(3000),
    "scatterings": lambda: _scatters(3000),
    "index tuples": _gather_nd_grad,
    "Split into many": lambda: _onnx_ends("Split", num_outputs=2**31 - 1),
    "DepthToSpace by 0": lambda: _onnx_ends("DepthToSpace", blocksize=0),
    "EyeLike of nothing": lambda: _model([helper.make_node("EyeLike", [""], ["end"], dtype=1)]),
    "RegexFullMatch of nothing": lambda: _model([helper.make_node("RegexFullMatch", [""], ["end"], pattern="a")]),
    "GatherND before the batch": lambda: _model(
        [helper.make_node("GatherND", ["x", "indices"], ["end"], batch_dims=-3)],
        inputs=[_info("indices", ["n", 4, -1], TensorProto.INT64)],
    ),
}

REWRITINGS: dict[str, Callable[[Any], Any]] = {
    "decompose": lambda model: lnbp_onnx.decompose(model, training_ops=True, scatter_reductions=True),
    "embed": lnbp_onnx.embed,
    "fuse": lnbp_onnx.fuse,
}
WAYS: dict[str, Callable[[Any], Any]] = {
    **REWRITINGS,
    "check": check_model,
    "gradient": lambda model: lnbp_onnx.gradient(model, of="dx", seed="dx.seed"),
}


def outcome(model: ModelProto | ir.Model, way: str) -> str:
    """Return what came of a model, or the kind of an error that is none of the package's own."""
    try:
        WAYS[way](model)
    except lnbp_onnx.LnbpError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return "rewritten"


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


if __name__ == "__main__":
    lnbp_onnx.fuse(_searched([]))  # what is imported at first use
    _limit_memory()
    for name in sys.argv[1:] or MODELS:
        made = MODELS[name]()
        assert made.ByteSize() < LARGEST, (name, made.ByteSize())
        for way in WAYS:
            print(json.dumps([name, way, "started", 0]), flush=True)
            start = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            result = outcome(made, way)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps([name, way, result, round(time.process_time() - start, 2)]), flush=True)
