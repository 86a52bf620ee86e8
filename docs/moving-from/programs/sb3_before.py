"""SAC with Stable-Baselines3's replay buffer."""

from stable_baselines3 import SAC

STEPS = 5_000
model = SAC(
    "MlpPolicy",
    "Pendulum-v1",
    buffer_size=100_000,
    learning_starts=500,
    gamma=0.99,
    n_steps=3,
    seed=0,
)
model.learn(STEPS)
model.save("sac")
model.save_replay_buffer("sac-buffer")
