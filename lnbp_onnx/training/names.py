# SPDX-License-Identifier: Apache-2.0
"""The losses and the optimizers, as users name them."""

import enum


class LossName(enum.StrEnum):
    """The losses."""

    MSE = "mse"
    CROSS_ENTROPY = "cross-entropy"
    BCE = "bce"
    L1 = "l1"


class OptimizerName(enum.StrEnum):
    """The optimizers."""

    ADAMW = "adamw"
    SGD = "sgd"
