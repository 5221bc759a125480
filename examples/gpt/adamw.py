# SPDX-License-Identifier: Apache-2.0
"""AdamW in NumPy: Loshchilov and Hutter, Decoupled Weight Decay Regularization, algorithm 2."""

from collections.abc import Mapping

import numpy as np

LEARNING_RATE = 3e-3
BETAS = (0.9, 0.95)
EPSILON = 1e-8
WEIGHT_DECAY = 0.1


def decays(parameter: np.ndarray) -> bool:
    """Whether a parameter decays: matrices do, biases and the parameters of layer norms do not."""
    return parameter.ndim > 1


class AdamW:
    """Updates parameters in place."""

    def __init__(self, parameters: Mapping[str, np.ndarray]) -> None:
        self.parameters = parameters
        self._means = {name: np.zeros_like(value) for name, value in parameters.items()}
        self._squares = {name: np.zeros_like(value) for name, value in parameters.items()}
        self._steps = 0

    def step(self, gradients: Mapping[str, np.ndarray]) -> None:
        """Update each parameter with its gradient, which has the parameter's name."""
        self._steps += 1
        beta1, beta2 = BETAS
        for name, parameter in self.parameters.items():
            gradient, mean, square = gradients[name], self._means[name], self._squares[name]
            mean += (1 - beta1) * (gradient - mean)
            square += (1 - beta2) * (gradient * gradient - square)
            unbiased_mean = mean / (1 - beta1**self._steps)
            unbiased_square = square / (1 - beta2**self._steps)
            decay = WEIGHT_DECAY if decays(parameter) else 0.0
            update = unbiased_mean / (np.sqrt(unbiased_square) + EPSILON) + decay * parameter
            parameter[...] -= LEARNING_RATE * update
