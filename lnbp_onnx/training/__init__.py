# SPDX-License-Identifier: Apache-2.0
"""What turns a model with gradients into a training step: losses and optimizers, in standard operators."""
