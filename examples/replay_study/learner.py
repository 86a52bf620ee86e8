"""A Q-network in NumPy. A learning step is about twenty calls, and at this size torch's overhead exceeds the work.

Shapes: B batch, D features of an observation, A actions.
"""

from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]


class Network:
    """ReLU layers and a linear layer. All parameters are in one vector; weights and biases are views of it.

    `sizes` are the numbers of features, hidden units and actions. Weights and biases of a layer with n inputs are drawn
    uniformly from ±1/sqrt(n), as in torch.
    """

    def __init__(self, sizes: tuple[int, ...], rng: np.random.Generator) -> None:
        shapes = list(pairwise(sizes))
        bounds = [np.full((fan_in + 1) * fan_out, fan_in**-0.5) for fan_in, fan_out in shapes]
        bound = np.concatenate(bounds)
        self.sizes = sizes
        self.parameters: Floats = (bound * rng.uniform(-1.0, 1.0, bound.size)).astype(np.float32)
        self.gradient: Floats = np.zeros_like(self.parameters)
        self.layers = self._views(self.parameters)
        self._gradients = self._views(self.gradient)

    def _views(self, vector: Floats) -> list[tuple[Floats, Floats]]:
        """Weights (n, m) and biases (m,) of each layer, as parts of a vector."""
        views, start = [], 0
        for fan_in, fan_out in pairwise(self.sizes):
            stop = start + fan_in * fan_out
            views.append((vector[start:stop].reshape(fan_in, fan_out), vector[stop : stop + fan_out]))
            start = stop + fan_out
        return views

    def copy(self) -> "Network":
        """Another network with the same parameters."""
        twin = Network(self.sizes, np.random.default_rng(0))
        twin.parameters[:] = self.parameters
        return twin

    def activations(self, features: Floats) -> list[Floats]:
        """The input of each layer and the output of the last: (..., D), ..., (..., A)."""
        values = [features]
        for weights, biases in self.layers[:-1]:
            hidden = values[-1] @ weights
            hidden += biases
            values.append(np.maximum(hidden, 0.0, out=hidden))
        weights, biases = self.layers[-1]
        values.append(values[-1] @ weights + biases)
        return values

    def __call__(self, features: Floats) -> Floats:
        """The value of each action: (..., D) -> (..., A)."""
        return self.activations(features)[-1]

    def backward(self, values: list[Floats], slope: Floats) -> Floats:
        """The gradient of all parameters, from the activations and the derivative of the loss by each output (B, A)."""
        for layer in reversed(range(len(self.layers))):
            weights, biases = self._gradients[layer]
            np.matmul(values[layer].T, slope, out=weights)
            np.add.reduce(slope, axis=0, out=biases)
            if layer:
                slope = slope @ self.layers[layer][0].T
                slope *= values[layer] > 0.0
        return self.gradient


class Adam:
    """Kingma and Ba (2015), with their defaults except for the learning rate."""

    def __init__(self, network: Network, learning_rate: float) -> None:
        self.network, self.learning_rate = network, learning_rate
        self.mean = np.zeros_like(network.parameters)
        self.square = np.zeros_like(network.parameters)
        self.steps = 0

    def step(self, gradient: Floats) -> None:
        """Move the parameters against `gradient`."""
        self.steps += 1
        self.mean += 0.1 * (gradient - self.mean)
        self.square += 0.001 * (gradient * gradient - self.square)
        rate = self.learning_rate * (1.0 - 0.999**self.steps) ** 0.5 / (1.0 - 0.9**self.steps)
        self.network.parameters -= np.float32(rate) * self.mean / (np.sqrt(self.square) + np.float32(1e-8))


def targets(network: Network, target: Network, batch: Any, next_features: Floats, double: bool) -> Floats:
    """``reward + discount * q_next`` of each transition: (B,)."""
    next_values = target(next_features)
    if double:
        q_next = next_values[np.arange(len(next_values)), network(next_features).argmax(-1)]
    else:
        q_next = next_values.max(-1)
    wanted: Floats = batch.reward + batch.discount * q_next
    return wanted


def learn(optimizer: Adam, features: Floats, action: Any, wanted: Floats, weights: Floats, huber: bool) -> Floats:
    """One step on the weighted mean of the Huber or the squared loss. Returns the TD errors before it: (B,)."""
    network = optimizer.network
    values = network.activations(features)
    rows = np.arange(len(action))
    td_errors: Floats = wanted - values[-1][rows, action]
    slope = np.zeros_like(values[-1])
    each = np.clip(td_errors, -1.0, 1.0) if huber else 2.0 * td_errors
    slope[rows, action] = weights * each / -np.float32(len(action))
    optimizer.step(network.backward(values, slope))
    return td_errors
