"""How fast is the MOA while a game is played? `python -m benchmarks.online`

Boards with 4 hunters, played by the real game with NS and NH hunters; the game's own time is not counted.

(a) `OpponentTracker`: ticks a second, 3 co-players on each board.
(b) p(action | goal) of the 4 hunters: `TabularMOA.probs` and, in turn on the same states, `MOA.action_logprobs` of the
goals alone. What depends on blocks and prey alone is kept from tick to tick by both.
(c) The same, with `TabularMOA.update` and `MOA.prey_nearness` of all boards at each tick, as if all prey moved.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

import tracking
from benchmarks import machine
from envs import DATA_EPSILON, StagHunt, sample_actions, strategy_probs
from pretrain_vae import (
    MOA,
    TRACKER_CHUNK,
    VAE,
    BoardFeatures,
    OpponentTracker,
    TabularMOA,
    in_chunks,
    load_vae,
)


@dataclass
class Options:
    run: str = ""
    """folder of a run; empty: an untrained network, which costs the same"""
    boards: int = 1024
    ticks: int = 100
    torch_threads: tuple[int, ...] = (1, 2)


class Stopwatch:
    """with watch: adds the seconds of its block to `laps[-1]`."""

    def __init__(self):
        self.laps = [0.0]

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *error):
        self.laps[-1] += time.perf_counter() - self.start

    def median(self) -> float:
        return float(np.median([lap for lap in self.laps if lap]))


def play(env: StagHunt, strategies: np.ndarray) -> None:
    """One tick of NS and NH hunters. strategies: int [B, 4]."""
    probs = strategy_probs(env, ["NS", "NH"], DATA_EPSILON)
    own = probs[np.arange(len(probs))[:, None], np.arange(4), strategies]
    env.step(sample_actions(own, env.uniform(4)))


def goal_moa(model: VAE) -> MOA:
    """The MOA with its goals alone, so that no time is spent on the behaviours that z mixes."""
    moa = copy.deepcopy(model.moa)
    moa.code = nn.Parameter(moa.code[moa.first_goal :].clone())
    return moa


@torch.no_grad()
def direct_probs(moa: MOA, obs: torch.Tensor, tick: torch.Tensor, prey) -> torch.Tensor:
    """p(action | goal) by `action_logprobs`, float [B * A, G, 7]. obs: uint8 [B, A, 5, H, W]."""
    B, A = obs.shape[:2]
    planes = obs.flatten(3).flatten(0, 1).float()
    board = torch.arange(B).repeat_interleave(A)
    features = moa.encode_board(planes, board, prey, tick.repeat_interleave(A))
    return in_chunks(lambda *chunk: moa.action_logprobs(BoardFeatures(*chunk)).exp(), TRACKER_CHUNK, features)


def measure(model: VAE, boards: int, ticks: int) -> dict[str, Stopwatch]:
    """The time of each tick by what was measured; checks that both ways of (b) agree."""
    env = StagHunt(boards)
    obs = env.reset(seed=1)
    strategies = (env.uniform(4) * 2).astype(int)
    blocks, every = torch.as_tensor(env.blocks), torch.arange(boards)
    moa = goal_moa(model)
    tracker = OpponentTracker(model, boards, 3)
    table = TabularMOA(model, blocks, torch.as_tensor(env.prey), env.rules.prey_counts)
    names = ("tracker", "table", "direct", "table, moving", "direct, moving")
    watches = {name: Stopwatch() for name in names}
    for _ in range(ticks):
        for watch in watches.values():
            watch.laps.append(0.0)
        planes, tick = torch.as_tensor(obs), torch.as_tensor(env.tick).long()
        blocks, hunters, prey = (torch.as_tensor(part) for part in (env.blocks, env.hunters, env.prey))
        with watches["tracker"]:
            tracker.predict(planes[:, 1:], tick)
        with watches["table, moving"]:
            table.update(every, blocks, prey)
            table.probs(every, hunters, prey, tick)
        with watches["direct, moving"], torch.no_grad():
            maps = moa.prey_nearness(planes.flatten(3)[:, 0, 2:].float(), env.rules.prey)
            direct_probs(moa, planes, tick, maps)
        with watches["table"]:
            probs = table.probs(every, hunters, prey, tick)
        with watches["direct"]:
            expected = direct_probs(moa, planes, tick, maps)
        present = hunters < env.rules.cells
        torch.testing.assert_close(probs[present], expected.view_as(probs)[present], atol=1e-5, rtol=1e-4)
        play(env, strategies)
        obs, ended = env.obs, env.ended.copy()
        with watches["tracker"]:
            tracker.update(torch.as_tensor(env.effective_actions[:, 1:]))
            tracker.reset(torch.as_tensor(ended))
        if ended.any():
            obs = env.reset(boards=ended)
    return watches


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(
        f"{machine()}, PyTorch {torch.__version__}; medians of {options.ticks} ticks, {options.boards} boards"
    )
    model = load_vae(options.run)[0] if options.run else VAE(8, 8, 35)
    for threads in options.torch_threads:
        torch.set_num_threads(threads)
        seconds = {
            name: watch.median() for name, watch in measure(model, options.boards, options.ticks).items()
        }
        players = 3 * options.boards / seconds["tracker"]
        print(
            f"{threads} thread(s), (a) tracker: {1 / seconds['tracker']:.1f} ticks/s, {players:.0f} co-players/s"
        )
        for label, suffix in (("(b) boards that stand still", ""), ("(c) all prey move", ", moving")):
            table, direct = seconds["table" + suffix], seconds["direct" + suffix]
            print(
                f"{threads} thread(s), {label}: TabularMOA {1000 * table:.1f} ms, action_logprobs "
                f"{1000 * direct:.1f} ms, factor {direct / table:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    tracking.run(main, ValueError)
