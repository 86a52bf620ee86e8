"""A loop with a buffer of replaykit."""

import gymnasium
from replaykit import ReplayBuffer, record

STEPS = 1_000
env = gymnasium.make("Pendulum-v1")
env.action_space.seed(0)
buffer = ReplayBuffer.from_env(
    env,
    100_000,
    gamma=0.99,
    seed=0,
)
env = record(env, buffer)  # step() now also stores

obs, _ = env.reset(seed=0)
for step in range(STEPS):
    action = env.action_space.sample()
    obs, reward, terminated, truncated, info = env.step(action)
    if terminated or truncated:
        obs, _ = env.reset()

batch = buffer.sample(256).to_torch(column=True)
q_next = 0.0  # from your target network
target = batch.reward + batch.discount * q_next
