# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # A tour
#
# What lnbp-onnx does, on a model of three nodes. This notebook is made of `docs/tour.py`, and runs in seconds;
# `pip install lnbp-onnx` is all that it needs.

# %%
import numpy as np
import onnx
import onnxruntime

import lnbp_onnx

# %% [markdown]
# ## A model, and its gradient
#
# A layer normalisation, and the mean of its squares as a loss.

# %%
model = onnx.parser.parse_model("""
<ir_version: 8, opset_import: ["": 17]>
norm (float[rows, 64] x, float[64] gamma, float[64] beta) => (float loss)
{
  y = LayerNormalization<axis = -1>(x, gamma, beta)
  squares = Mul(y, y)
  loss = ReduceMean<keepdims = 0>(squares)
}
""")
with_gradients = lnbp_onnx.gradient(model, of="loss", wrt=["x", "gamma", "beta"])
print([output.name for output in with_gradients.graph.output])
print({node.op_type for node in with_gradients.graph.node if node.domain == lnbp_onnx.DOMAIN})

# %% [markdown]
# The gradient of the normalisation is one node, `LayerNormBackprop`, which a runtime does not know by itself:

# %%
try:
    onnxruntime.InferenceSession(with_gradients.SerializeToString())
except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
    print(str(error).rpartition("lnbp:")[-1])

# %% [markdown]
# ## Run it with the kernel
#
# A library of this package has a kernel for ONNX Runtime, from any of its languages. In Python it is one call.

# %%
generator = np.random.default_rng(0)
shapes = {"x": (3, 64), "gamma": (64,), "beta": (64,)}
feeds = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
session = lnbp_onnx.inference_session(with_gradients)
loss, *gradients = session.run(None, feeds)
print(f"loss {loss:.4f}, gradients of shapes {[gradient.shape for gradient in gradients]}")

# %% [markdown]
# Is that the gradient? A small step along a direction changes the loss by what the gradient says. Double precision, so
# that the difference of two losses has digits left, comes from ONNX's own evaluator.

# %%
direction = {name: generator.normal(size=shape) for name, shape in shapes.items()}
exact = onnx.parser.parse_model(onnx.printer.to_text(model).replace("float", "double"))
evaluator = onnx.reference.ReferenceEvaluator(exact)


def loss_at(step):
    return evaluator.run(None, {name: feeds[name] + step * direction[name] for name in shapes})[0]


measured = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
predicted = sum(np.vdot(gradient, direction[name]) for gradient, name in zip(gradients, shapes, strict=True))
print(f"measured {measured:.4f}, predicted {predicted:.4f}")

# %% [markdown]
# ## Run it anywhere
#
# `decompose` writes the node in standard operators. The result needs nothing of this package.

# %%
standard = lnbp_onnx.decompose(with_gradients)
print({node.domain or "ai.onnx" for node in standard.graph.node})
comparison = lnbp_onnx.compare(with_gradients, standard, input_shapes=shapes)
print({output.name: output.ok for output in comparison.outputs})

# %% [markdown]
# `embed` does both at once: the node stays, for runtimes that have the kernel, and a function in standard operators is
# beside it for those that have not.

# %%
both = lnbp_onnx.embed(with_gradients)
print([function.name for function in both.functions])
plain = onnxruntime.InferenceSession(both.SerializeToString())
print(all(np.allclose(a, b, atol=1e-5) for a, b in zip(plain.run(None, feeds), session.run(None, feeds), strict=True)))

# %% [markdown]
# ## The way back
#
# `fuse` finds the gradients of layer normalisation in standard operators, whoever wrote them, by what they compute.

# %%
fused = lnbp_onnx.fuse(standard)
print(len(standard.graph.node), "nodes become", len(fused.graph.node))
print([node.op_type for node in fused.graph.node if node.domain == lnbp_onnx.DOMAIN])

# %% [markdown]
# ## A training step
#
# Of a model with parameters `training_step` makes a step of an optimizer: a batch, the parameters and the optimizer's
# state in; the loss, and what these become, out. A small network learns sin(x).

# %%
network = onnx.parser.parse_model("""
<ir_version: 8, opset_import: ["": 17]>
net (float[rows, 1] x) => (float[rows, 1] y)
{
  scaled = MatMul(x, weight)
  shifted = Add(scaled, bias)
  normed = LayerNormalization<axis = -1>(shifted, gamma, beta)
  hidden = Tanh(normed)
  y = MatMul(hidden, head)
}
""")
sizes = {"weight": (1, 32), "bias": (32,), "gamma": (32,), "beta": (32,), "head": (32, 1)}
for name, shape in sizes.items():
    value = generator.normal(size=shape).astype(np.float32)
    network.graph.initializer.append(onnx.numpy_helper.from_array(value, name))

optimizer = lnbp_onnx.AdamW(lr=0.03)
step = lnbp_onnx.training_step(network, of="y", loss="mse", label="target", optimizer=optimizer)
session = lnbp_onnx.inference_session(step)
names = [output.name for output in session.get_outputs()]
x = np.linspace(-3, 3, 64, dtype=np.float32)[:, np.newaxis]
state = {}
for index in range(1001):
    results = dict(zip(names, session.run(None, {"x": x, "target": np.sin(x), **state}), strict=True))
    state = {name.removesuffix(".updated"): value for name, value in results.items() if name.endswith(".updated")}
    if index % 200 == 0:
        print(f"step {index}: loss {results['loss']:.2g}")

# %% [markdown]
# `save_parameters` puts what was learned into the network. Decomposed, such a step also trains in OpenVINO, or in a
# browser: see the [examples](examples.md).

# %%
trained = lnbp_onnx.save_parameters(network, {name: state[name] for name in sizes})
(y,) = onnxruntime.InferenceSession(trained.SerializeToString()).run(None, {"x": x})
print(f"largest error {np.abs(y - np.sin(x)).max():.2g}")
