"""How many ticks a second the online MOA reads: `python -m benchmarks.online`

1,024 boards with 3 co-players each, played by the real game with NS/NH hunters; what the game costs is not counted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

import tracking
from benchmarks import machine
from envs import DATA_EPSILON, StagHunt, sample_actions, strategy_probs
from pretrain_vae import VAE, OpponentTracker, load_vae


@dataclass
class Options:
    run: str = ""
    """folder of a run; empty: an untrained network, which costs the same"""
    boards: int = 1024
    ticks: int = 100
    torch_threads: tuple[int, ...] = (1, 2)


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(f"{machine()}, PyTorch {torch.__version__}")
    model = load_vae(options.run)[0] if options.run else VAE(8, 8, 35)
    for threads in options.torch_threads:
        torch.set_num_threads(threads)
        env = StagHunt(options.boards)
        online, obs, seconds = OpponentTracker(model, options.boards, 3), env.reset(seed=1), []
        strategies = (env.uniform(4) * 2).astype(int)
        for _ in range(options.ticks):
            start = time.perf_counter()
            online.predict(torch.as_tensor(obs[:, 1:]), torch.as_tensor(env.tick, dtype=torch.int64))
            used = time.perf_counter() - start
            probs = strategy_probs(env, ["NS", "NH"], DATA_EPSILON)
            own = probs[np.arange(options.boards)[:, None], np.arange(4), strategies]
            env.step(sample_actions(own, env.uniform(4)))
            actions, ended = torch.as_tensor(env.effective_actions[:, 1:]), env.ended
            start = time.perf_counter()
            online.update(actions)
            online.reset(torch.as_tensor(ended))
            seconds.append(used + time.perf_counter() - start)
            if ended.any():
                env.reset(boards=ended)
        median = float(np.median(seconds))
        print(f"{threads} thread(s): {1 / median:.1f} ticks/s on {options.boards} boards x 3 co-players, "
              f"{3 * options.boards / median:.0f} co-players/s (median of {options.ticks} ticks)", flush=True)  # fmt: skip


if __name__ == "__main__":
    tracking.run(main, ValueError)
