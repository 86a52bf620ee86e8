"""A loop with Stable-Baselines3's replay buffer."""

import gymnasium
import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

STEPS = 1_000
env = gymnasium.make("Pendulum-v1")
env.action_space.seed(0)
np.random.seed(0)  # for the buffer's draws
buffer = ReplayBuffer(
    100_000,
    env.observation_space,
    env.action_space,
    device="cpu",
    n_envs=1,
    handle_timeout_termination=True,
)

obs, _ = env.reset(seed=0)
for step in range(STEPS):
    action = env.action_space.sample()
    last_obs = obs
    obs, reward, terminated, truncated, info = env.step(action)
    info["TimeLimit.truncated"] = truncated and not terminated
    buffer.add(
        last_obs[None],
        obs[None],
        action[None],
        np.array([reward]),
        np.array([terminated or truncated]),
        [info],
    )
    if terminated or truncated:
        obs, _ = env.reset()

batch = buffer.sample(256)
q_next = 0.0  # from your target network
target = batch.rewards + 0.99 * (1 - batch.dones) * q_next
