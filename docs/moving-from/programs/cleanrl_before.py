"""DQN in CleanRL's style, with its replay buffer."""

import copy
import random

import gymnasium as gym
import numpy as np
import torch
from cleanrl_utils.buffers import ReplayBuffer

STEPS = 10_000
random.seed(1)
np.random.seed(1)  # for the buffer's draws
torch.manual_seed(1)
device = torch.device("cpu")
envs = gym.vector.SyncVectorEnv(
    [lambda: gym.make("CartPole-v1")],
    autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
)
q_network = torch.nn.Sequential(
    torch.nn.Linear(4, 120),
    torch.nn.ReLU(),
    torch.nn.Linear(120, 2),
)
target_network = copy.deepcopy(q_network)
optimizer = torch.optim.Adam(q_network.parameters(), lr=1e-3)
rb = ReplayBuffer(
    10_000,
    envs.single_observation_space,
    envs.single_action_space,
    device,
    handle_timeout_termination=False,
)

obs, _ = envs.reset(seed=1)
for global_step in range(STEPS):
    # Act
    with torch.no_grad():
        q_values = q_network(torch.Tensor(obs).to(device))
    actions = q_values.argmax(1).cpu().numpy()
    if random.random() < max(1 - global_step / 5000, 0.05):
        actions = np.array([random.randrange(2)])
    next_obs, rewards, terminations, truncations, infos = (
        envs.step(actions)
    )
    real_next_obs = next_obs.copy()
    for idx, trunc in enumerate(truncations):
        if trunc:
            real_next_obs[idx] = infos["final_obs"][idx]
    rb.add(
        obs,
        real_next_obs,
        actions,
        rewards,
        terminations,
        infos,
    )
    obs = next_obs
    if global_step < 1_000 or global_step % 4:
        continue

    # Learn
    data = rb.sample(128)
    with torch.no_grad():
        target_max = target_network(
            data.next_observations
        ).amax(1)
        td_target = (
            data.rewards.flatten()
            + 0.99 * target_max * (1 - data.dones.flatten())
        )
    old_val = (
        q_network(data.observations)
        .gather(1, data.actions)
        .squeeze(1)
    )
    loss = torch.nn.functional.mse_loss(td_target, old_val)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if global_step % 500 == 0:
        target_network.load_state_dict(q_network.state_dict())
