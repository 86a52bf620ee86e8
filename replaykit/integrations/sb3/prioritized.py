"""DQN, SAC and TD3 of Stable-Baselines3 with prioritized replay: weighted losses, and priorities from TD errors."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN, SAC, TD3
from torch.nn import functional

from replaykit.buffers import PrioritizedBuffer
from replaykit.integrations.sb3.buffers import SB3ReplayBuffer
from replaykit.integrations.sb3.saving import save_replay_buffer

Array = npt.NDArray[Any]


class WeightedLoss:
    """Weights the mean losses of the buffer's last batch within a `with` block, and sets priorities from its TD errors.

    A loss is weighted if it is computed by a known function, has the shape (B, 1), and its targets are computed from
    the rewards of the batch. With several critics, each has a loss. The mean absolute TD error sets the priority.
    """

    def __init__(self, buffer: SB3ReplayBuffer) -> None:
        self.losses = 0
        self._buffer, self._batch = buffer, buffer.batch
        self._errors: list[Array] = []

    def __enter__(self) -> "WeightedLoss":
        self._buffer.mark_rewards = self.targets
        return self

    def __exit__(self, *_: Any) -> None:
        self._buffer.mark_rewards = None

    def targets(self, rewards: Any) -> "_Targets":
        """Mark the rewards of a batch, so that losses whose targets are computed from them are recognized."""
        return _targets(rewards, self)

    def mean(self, losses: Any, td_errors: Any) -> Any:
        """Return the weighted mean of the losses of a batch, and update its priorities."""
        batch = self._buffer.batch
        if batch is None or losses.shape != (len(batch), 1):
            return losses.mean()
        if batch is not self._batch:
            self._batch, self._errors = batch, []
        self.losses += 1
        self._errors.append(td_errors.detach().reshape(-1).abs().cpu().numpy())
        self._buffer.update_priorities(np.mean(self._errors, axis=0))
        return (torch.from_numpy(batch.weights).to(losses.device).reshape(-1, 1) * losses).mean()


class _Targets(torch.Tensor):
    """The rewards of a batch, or a tensor computed from them. `loss` weights the mean losses of such tensors."""

    loss: WeightedLoss

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        loss = next((getattr(each, "loss", None) for each in (*args, *options.values()) if isinstance(each, cls)), None)
        with torch._C.DisableTorchFunctionSubclass():
            if loss and function in _LOSSES and len(args) == 2 and options.get("reduction", "mean") == "mean":
                return loss.mean(function(*args, **options | {"reduction": "none"}), args[1] - args[0])
            result = function(*args, **options)
        return _targets(result, loss) if loss and type(result) is torch.Tensor else result


def _targets(tensor: Any, loss: WeightedLoss) -> _Targets:
    targets = tensor.as_subclass(_Targets)
    targets.loss = loss
    return targets  # type: ignore[no-any-return]


_LOSSES = (functional.smooth_l1_loss, functional.mse_loss)
"""The critic losses of Stable-Baselines3: the first in `DQN.train`, the second in `SAC.train` and `TD3.train`."""


class _Prioritized:
    """An off-policy algorithm of Stable-Baselines3 with a weighted loss, whose TD errors set the priorities.

    The algorithm's own `train` runs unchanged. During `train`, ``F.smooth_l1_loss(current_q_values,
    target_q_values)``, or ``F.mse_loss(current_q, target_q_values)`` for each critic, returns the weighted mean.
    """

    replay_buffer: Any
    replay_buffer_class: Any
    replay_buffer_kwargs: Any
    observation_space: Any
    n_steps: int
    gamma: float

    def _setup_model(self) -> None:
        self.replay_buffer_class = self.replay_buffer_class or SB3ReplayBuffer
        if not issubclass(self.replay_buffer_class, SB3ReplayBuffer):
            wanted = "expected SB3ReplayBuffer or SB3HindsightBuffer, whose batches have weights"
            raise TypeError(f"replay_buffer_class is {self.replay_buffer_class.__name__}; {wanted}")
        given, n_steps = self.replay_buffer_kwargs, self.n_steps
        self.replay_buffer_kwargs = self._options()
        self.n_steps = 1  # for any other value, Stable-Baselines3 warns that it is ignored
        try:
            super()._setup_model()  # type: ignore[misc]
        finally:
            self.replay_buffer_kwargs, self.n_steps = given, n_steps

    def _options(self) -> dict[str, Any]:
        """`replay_buffer_kwargs` with `PrioritizedBuffer` as default, and the model's `n_steps` and `gamma`."""
        of_model = {"n_steps": self.n_steps, "gamma": self.gamma}
        options: dict[str, Any] = {"buffer_class": PrioritizedBuffer} | self.replay_buffer_kwargs
        for name, value in of_model.items():
            is_default = name == "n_steps" and value == 1
            if options.setdefault(name, value) != value and not is_default:
                got = f"replay_buffer_kwargs has {name}={options[name]!r}"
                raise ValueError(
                    f"{got}; expected {value!r}, the value of the model; leave it out of replay_buffer_kwargs"
                )
        return options

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Run `train` of the algorithm with a weighted loss."""
        with WeightedLoss(self.replay_buffer) as weighted:
            super().train(gradient_steps, batch_size)  # type: ignore[misc]
        if gradient_steps and not weighted.losses:
            wanted = "expected one of smooth_l1_loss or mse_loss, of values and targets of shape (B, 1)"
            raise RuntimeError(f"train of {type(self).__name__} computed no loss that can be weighted; {wanted}")

    def save_replay_buffer(self, path: Any) -> None:
        """Write the replay buffer to a file; see `save_replay_buffer`. If the save crashes, the old file is kept."""
        save_replay_buffer(self, path)


class PrioritizedDQN(_Prioritized, DQN):  # type: ignore[misc]
    """`DQN` of Stable-Baselines3 with prioritized replay.

    The arguments are those of `DQN`. `replay_buffer_class` is `SB3ReplayBuffer` by default, and can be
    `SB3HindsightBuffer`. `replay_buffer_kwargs` can have options of `PrioritizedBuffer`, such as `alpha` and `beta`.
    """


class PrioritizedSAC(_Prioritized, SAC):  # type: ignore[misc]
    """`SAC` of Stable-Baselines3 with prioritized replay. The arguments are those of `SAC`; see `PrioritizedDQN`."""


class PrioritizedTD3(_Prioritized, TD3):  # type: ignore[misc]
    """`TD3` of Stable-Baselines3 with prioritized replay. The arguments are those of `TD3`; see `PrioritizedDQN`."""
