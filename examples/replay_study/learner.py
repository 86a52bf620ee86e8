"""A Q-network in NumPy, compiled with Numba. At this size, the overhead of separate calls would exceed the work.

Shapes: B batch, D features of an observation, A actions.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
jit: Callable[[Callable[..., Any]], Any] = numba.njit(cache=True, error_model="numpy")


@jit
def layers_of(parameters: Floats, sizes: tuple[int, ...]) -> list[tuple[Floats, Floats]]:
    """Weights (n, m) and biases (m,) of each layer, as views of the vector of all parameters."""
    layers, start = [], 0
    for layer in range(len(sizes) - 1):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        stop = start + fan_in * fan_out
        layers.append((parameters[start:stop].reshape(fan_in, fan_out), parameters[stop : stop + fan_out]))
        start = stop + fan_out
    return layers


@jit
def activations(parameters: Floats, sizes: tuple[int, ...], features: Floats) -> list[Floats]:
    """The input of each layer and the output of the last: (..., D), ..., (..., A)."""
    values = [features]
    layers = layers_of(parameters, sizes)
    for weights, biases in layers[:-1]:
        values.append(np.maximum(np.dot(values[-1], weights) + biases, np.float32(0.0)))
    weights, biases = layers[-1]
    values.append(np.dot(values[-1], weights) + biases)
    return values


@jit
def action_values(parameters: Floats, sizes: tuple[int, ...], features: Floats) -> Floats:
    """The value of each action: (..., D) -> (..., A)."""
    values: Floats = activations(parameters, sizes, features)[-1]
    return values


@jit
def best_values(chooser: Floats, target: Floats, sizes: tuple[int, ...], features: Floats) -> Floats:
    """The target network's value of the action that the chooser prefers: (B,)."""
    chosen, values = action_values(chooser, sizes, features), action_values(target, sizes, features)
    best = np.empty(len(values), np.float32)
    for row in range(len(values)):
        best[row] = values[row, chosen[row].argmax()]
    return best


@jit
def gradient_of(
    parameters: Floats, sizes: tuple[int, ...], features: Floats, action: Any, wanted: Floats, weights: Floats,
    huber: bool,
) -> tuple[Floats, Floats]:  # fmt: skip
    """The gradient of the weighted mean loss, and the TD errors (B,)."""
    values = activations(parameters, sizes, features)
    slope = np.zeros_like(values[-1])  # the derivative of the loss by each output of a layer
    td_errors = np.empty(len(action), np.float32)
    limit = np.float32(1.0 if huber else np.inf)
    factor = np.float32(1.0 if huber else 2.0)
    for row in range(len(action)):
        td_errors[row] = wanted[row] - values[-1][row, action[row]]
        each = factor * min(max(td_errors[row], -limit), limit)
        slope[row, action[row]] = weights[row] * each / -np.float32(len(action))
    gradient = np.empty_like(parameters)
    layers, gradients = layers_of(parameters, sizes), layers_of(gradient, sizes)
    for layer in range(len(layers) - 1, -1, -1):
        of_weights, of_biases = gradients[layer]
        of_weights[:] = np.dot(values[layer].T, slope)
        of_biases[:] = 0.0
        for row in range(len(slope)):
            of_biases += slope[row]
        if layer:
            slope = np.dot(slope, layers[layer][0].T) * (values[layer] > np.float32(0.0))
    return gradient, td_errors


@jit
def adam_step(parameters: Floats, gradient: Floats, mean: Floats, square: Floats, rate: Any) -> None:
    """Move the parameters against the gradient, in place."""
    for entry in range(parameters.size):
        slope = gradient[entry]
        mean[entry] += np.float32(0.1) * (slope - mean[entry])
        square[entry] += np.float32(0.001) * (slope * slope - square[entry])
        parameters[entry] -= rate * mean[entry] / (np.sqrt(square[entry]) + np.float32(1e-8))


@jit
def approach(parameters: Floats, others: Floats, rate: Any) -> None:
    """Move the parameters towards the others, in place."""
    for entry in range(parameters.size):
        parameters[entry] += rate * (others[entry] - parameters[entry])


class Network:
    """ReLU layers and a linear layer. All parameters are in one vector.

    `sizes` are the numbers of features, hidden units and actions. Weights and biases of a layer with n inputs are drawn
    uniformly from ±1/sqrt(n), as in torch.
    """

    def __init__(self, sizes: tuple[int, ...], rng: np.random.Generator) -> None:
        shapes = list(pairwise(sizes))
        bounds = [np.full((fan_in + 1) * fan_out, fan_in**-0.5) for fan_in, fan_out in shapes]
        bound = np.concatenate(bounds)
        self.sizes = sizes
        self.parameters: Floats = (bound * rng.uniform(-1.0, 1.0, bound.size)).astype(np.float32)

    def copy(self) -> "Network":
        """Another network with the same parameters."""
        twin = Network(self.sizes, np.random.default_rng(0))
        twin.parameters[:] = self.parameters
        return twin

    def __call__(self, features: Floats) -> Floats:
        """The value of each action: (..., D) -> (..., A)."""
        values: Floats = action_values(self.parameters, self.sizes, np.ascontiguousarray(features))
        return values

    def approach(self, network: "Network", rate: float) -> None:
        """Move the parameters towards those of another network. A rate of 1 copies them."""
        approach(self.parameters, network.parameters, np.float32(rate))


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
        rate = self.learning_rate * (1.0 - 0.999**self.steps) ** 0.5 / (1.0 - 0.9**self.steps)
        adam_step(self.network.parameters, gradient, self.mean, self.square, np.float32(rate))


def targets(network: Network, target: Network, batch: Any, next_features: Floats, double: bool) -> Floats:
    """``reward + discount * q_next`` of each transition: (B,)."""
    chooser = network if double else target
    best = best_values(chooser.parameters, target.parameters, network.sizes, np.ascontiguousarray(next_features))
    wanted: Floats = batch.reward + batch.discount * best
    return wanted


def learn(optimizer: Adam, features: Floats, action: Any, wanted: Floats, weights: Floats, huber: bool) -> Floats:
    """One step on the weighted mean of the Huber or the squared loss. Returns the TD errors before it: (B,)."""
    network = optimizer.network
    td_errors: Floats
    gradient, td_errors = gradient_of(
        network.parameters, network.sizes, np.ascontiguousarray(features), action, wanted, weights, huber
    )
    optimizer.step(gradient)
    return td_errors
