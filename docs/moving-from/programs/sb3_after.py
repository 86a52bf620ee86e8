"""SAC with prioritized replay from replaykit."""

from replaykit import LinearSchedule
from replaykit.integrations.sb3 import PrioritizedSAC

STEPS = 5_000
model = PrioritizedSAC(
    "MlpPolicy",
    "Pendulum-v1",
    buffer_size=100_000,
    learning_starts=500,
    gamma=0.99,
    n_steps=3,
    replay_buffer_kwargs={
        "alpha": 0.6,
        "beta": LinearSchedule(0.4, 1.0, steps=STEPS),
    },
    seed=0,
)
model.learn(STEPS)
model.save("sac")
model.replay_buffer.save("sac-buffer")
