"""DQN with prioritized 3-step replay from replaykit."""

import copy

import gymnasium
import numpy as np
import torch
from replaykit import PrioritizedBuffer, record

STEPS = 5_000
rng = np.random.default_rng(0)
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(4, 64),
    torch.nn.ReLU(),
    torch.nn.Linear(64, 2),
)
target_net = copy.deepcopy(net)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

envs = gymnasium.make_vec("CartPole-v1", num_envs=2)
buffer = PrioritizedBuffer.from_env(
    envs,
    10_000,
    n_step=3,
    gamma=0.99,
    alpha=0.6,
    beta=0.4,
    seed=0,
)
envs = record(envs, buffer)  # step() now also stores

obs, _ = envs.reset(seed=0)
for step in range(STEPS):
    # Act
    with torch.no_grad():
        action = net(torch.as_tensor(obs)).argmax(1).numpy()
    is_random = rng.random(2) < max(1 - step / 1000, 0.05)
    action = np.where(
        is_random, rng.integers(2, size=2), action
    )
    obs, reward, terminated, truncated, info = envs.step(action)
    if step < 250:
        continue

    # Learn
    batch = buffer.sample(64).to_torch()
    with torch.no_grad():
        q_next = target_net(batch.next_obs).amax(1)
        target = batch.reward + batch.discount * q_next
    actions = batch.action.unsqueeze(1)
    q = net(batch.obs).gather(1, actions)
    td_errors = target - q.squeeze(1)
    loss = (batch.weights * td_errors.square()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    buffer.update_priorities(batch.indices, td_errors)
    if step % 100 == 0:
        target_net.load_state_dict(net.state_dict())
