"""Stable-Baselines3: buffers for `replay_buffer_class`, and DQN, SAC and TD3 with prioritized replay.

    model = SAC("MlpPolicy", env, replay_buffer_class=SB3ReplayBuffer)

To import this package, install Stable-Baselines3: ``pip install "replaykit-rl[sb3]"``. The modules, in reading order:
`spaces` defines the fields of a transition, `options` checks arguments, and `buffers` has the buffer. `hindsight`
relabels goals, `prioritized` weights the losses of the algorithms, and `saving` writes a buffer to a file.
"""

try:
    from replaykit.integrations.sb3.buffers import SB3ReplayBuffer
    from replaykit.integrations.sb3.hindsight import SB3HindsightBuffer
    from replaykit.integrations.sb3.prioritized import PrioritizedDQN, PrioritizedSAC, PrioritizedTD3
    from replaykit.integrations.sb3.saving import save_replay_buffer
except ImportError as error:
    remedy = "replaykit.integrations.sb3 needs Stable-Baselines3: pip install 'replaykit-rl[sb3]'"
    raise ImportError(f"{error}; {remedy}") from error

__all__ = [
    "PrioritizedDQN",
    "PrioritizedSAC",
    "PrioritizedTD3",
    "SB3HindsightBuffer",
    "SB3ReplayBuffer",
    "save_replay_buffer",
]
