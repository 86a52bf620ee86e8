"""DQN with prioritized 3-step replay from tianshou."""

import copy

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tianshou.algorithm.algorithm_base import Algorithm
from tianshou.data import (
    Batch,
    PrioritizedVectorReplayBuffer,
)

STEPS = 5_000
rng = np.random.default_rng(0)
np.random.seed(0)  # for the buffer's draws
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(4, 64),
    torch.nn.ReLU(),
    torch.nn.Linear(64, 2),
)
target_net = copy.deepcopy(net)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

envs = gymnasium.make_vec(
    "CartPole-v1",
    num_envs=2,
    vectorization_mode="sync",
    vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
)
buffer = PrioritizedVectorReplayBuffer(
    total_size=10_000,
    buffer_num=2,
    alpha=0.6,
    beta=0.4,
)


def target_q(replay, indices):
    obs = torch.as_tensor(replay[indices].obs_next)
    return target_net(obs).amax(1)


obs, _ = envs.reset(seed=0)
for step in range(STEPS):
    # Act
    with torch.no_grad():
        action = net(torch.as_tensor(obs)).argmax(1).numpy()
    is_random = rng.random(2) < max(1 - step / 1000, 0.05)
    action = np.where(
        is_random, rng.integers(2, size=2), action
    )
    last_obs = obs
    obs, reward, terminated, truncated, info = envs.step(action)
    next_obs = obs.copy()
    for i in np.flatnonzero(terminated | truncated):
        next_obs[i] = info["final_obs"][i]
    buffer.add(
        Batch(
            obs=last_obs,
            act=action,
            rew=reward,
            terminated=terminated,
            truncated=truncated,
            obs_next=next_obs,
        )
    )
    if step < 250:
        continue

    # Learn
    batch, indices = buffer.sample(64)
    weights = torch.as_tensor(batch.weight)
    batch = Algorithm.compute_nstep_return(
        batch, buffer, indices, target_q, gamma=0.99, n_step=3
    )
    target = torch.as_tensor(batch.returns).flatten()
    actions = torch.as_tensor(batch.act).unsqueeze(1)
    q = net(torch.as_tensor(batch.obs)).gather(1, actions)
    td_errors = target - q.squeeze(1)
    loss = (weights * td_errors.square()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    buffer.update_weight(indices, td_errors.detach())
    if step % 100 == 0:
        target_net.load_state_dict(net.state_dict())
