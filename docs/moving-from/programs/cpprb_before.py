"""DQN with prioritized 3-step replay from cpprb."""

import copy

import gymnasium
import numpy as np
import torch
from cpprb import PrioritizedReplayBuffer

STEPS = 10_000
rng = np.random.default_rng(0)
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(4, 64),
    torch.nn.ReLU(),
    torch.nn.Linear(64, 2),
)
target_net = copy.deepcopy(net)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

env = gymnasium.make("CartPole-v1")
buffer = PrioritizedReplayBuffer(
    10_000,
    {
        "obs": {"shape": 4},
        "act": {"dtype": np.int64},
        "rew": {},
        "next_obs": {"shape": 4},
        "done": {},
    },
    Nstep={
        "size": 3,
        "gamma": 0.99,
        "rew": "rew",
        "next": "next_obs",
    },
    alpha=0.6,
)

obs, _ = env.reset(seed=0)
for step in range(STEPS):
    # Act
    with torch.no_grad():
        action = int(net(torch.as_tensor(obs)).argmax())
    if rng.random() < max(1 - step / 2000, 0.05):
        action = int(rng.integers(2))
    last_obs = obs
    obs, reward, terminated, truncated, _ = env.step(action)
    buffer.add(
        obs=last_obs,
        act=action,
        rew=reward,
        next_obs=obs,
        done=terminated,
    )
    if terminated or truncated:
        buffer.on_episode_end()
        obs, _ = env.reset()
    if step < 500:
        continue

    # Learn
    batch = buffer.sample(64, beta=0.4)
    indices = batch.pop("indexes")
    batch = {k: torch.as_tensor(v) for k, v in batch.items()}
    with torch.no_grad():
        q_next = target_net(batch["next_obs"]).amax(1)
        target = batch["rew"].squeeze(1) + (
            0.99**3 * (1 - batch["done"].squeeze(1)) * q_next
        )
    q = net(batch["obs"]).gather(1, batch["act"]).squeeze(1)
    td_errors = target - q
    loss = (batch["weights"] * td_errors.square()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    buffer.update_priorities(
        indices, td_errors.detach().abs().numpy()
    )
    if step % 200 == 0:
        target_net.load_state_dict(net.state_dict())
