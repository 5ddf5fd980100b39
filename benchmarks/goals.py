"""How many kinds of hunters are there? `python -m benchmarks.goals`: what `pretrain_vae.py --goals free` finds.

A population has 2 to 4 of these kinds, equally likely, on boards with rules of its own: NS and NH of the package, RANDOM,
and FOLLOW, which is no script of the package: it goes to the nearest other hunter, and stays with it. Its file does not
say who its hunters are.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import tracking
from benchmarks import machine
from data.datasets import Samples, load_samples
from data.trajectories import save_arrays
from envs import DATA_EPSILON, Rules, make_core, sample_actions, strategy_probs
from envs.core import Board
from envs.game import STAY
from envs.grid import FAR, distance_fields
from pretrain_vae import find_goals, likeliest_goals, make_batches

KINDS = ("NS", "NH", "FOLLOW", "RANDOM")
BOARDS = 128  # played at once


@dataclass
class Options:
    populations: int = 10
    """each of other rules; the first has two kinds, then three, four, two, .."""
    first: int = 7001
    """seed of the first one's rules and boards; the others follow"""
    samples: int = 60_000
    """active samples of a population, at least: whole episodes"""
    seed: int = 1
    """of the goals that are fitted first"""


def draw_population(seed: int, number: int) -> tuple[Rules, tuple[str, ...]]:
    """Its rules, and so many kinds of hunters."""
    rng = np.random.default_rng(seed)
    rules = Rules(
        hunters=int(rng.integers(3, 6)),
        stags=int(rng.integers(1, 3)),
        hares=int(rng.integers(3, 6)),
        blocks=int(rng.integers(0, 7)),
        height=int(rng.integers(6, 9)),
        width=int(rng.integers(6, 9)),
        horizon=int(rng.integers(25, 36)),
        prey_moves=float(rng.choice([0.0, 0.2])),
    )
    chosen = rng.permutation(len(KINDS))[:number]
    return rules, tuple(KINDS[kind] for kind in sorted(chosen))


def follow_probs(env: Board) -> np.ndarray:
    """Exact action probabilities of hunters that go to the nearest other hunter, uniform over the nearest ones and the first
    steps of shortest paths; STAY on its cell, or where nobody is left. float64 [B, A, 5 + k]."""
    rules, hunters, active, legal = env.rules, env.hunters, env.active, env.legal_actions()
    B, A = hunters.shape
    K = rules.cells
    sources = np.zeros((B, A, K + 1), bool)
    np.put_along_axis(sources, hunters[..., None], True, 2)
    shape = (B * A, rules.height, rules.width)
    blocks = np.repeat(env.blocks, A, 0).reshape(shape)
    distance = distance_fields(blocks, sources[..., :K].reshape(shape)).reshape(B, A, K)  # to hunter j
    distance = np.pad(distance, ((0, 0), (0, 0), (0, 1)), constant_values=FAR)
    board = np.arange(B)[:, None, None]
    target = np.arange(A)
    own = distance[board, target, hunters[:, :, None]]  # [B, A, A], from hunter i to hunter j
    other = active[:, None] & ~np.eye(A, dtype=bool)
    own = np.where(other, own, FAR)
    least = own.min(2, keepdims=True)
    nearest = (own == least) & (least < FAR)
    around = env.neighbours[hunters][..., :4]  # [B, A, 4]
    beside = distance[board[..., None], target[:, None], around[:, :, None]]  # [B, A, A, 4]
    nearer = (beside == own[..., None] - 1) & legal[:, :, None, :4]
    nearer = nearer / np.maximum(nearer.sum(3, keepdims=True), 1)
    weight = nearest / np.maximum(nearest.sum(2, keepdims=True), 1)
    probs = np.zeros(legal.shape)
    probs[..., :4] = (weight[..., None] * nearer).sum(2)
    stays = probs.sum(2) == 0
    probs[stays] = np.eye(legal.shape[2])[STAY]
    return probs


def population_probs(env: Board, kinds: tuple[str, ...]) -> np.ndarray:
    """Of each hunter under each kind, float64 [B, A, S, 5 + k]."""
    legal = env.legal_actions()
    uniform = legal / legal.sum(2, keepdims=True)
    scripted = [kind for kind in kinds if kind != "FOLLOW"]
    by_kind = dict(zip(scripted, np.moveaxis(strategy_probs(env, scripted, DATA_EPSILON), 2, 0), strict=True))
    if "FOLLOW" in kinds:
        by_kind["FOLLOW"] = (1 - DATA_EPSILON) * follow_probs(env) + DATA_EPSILON * uniform
    return np.stack([by_kind[kind] for kind in kinds], 2)


def play(
    rules: Rules, kinds: tuple[str, ...], seed: int, first_board: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """BOARDS episodes as a trajectory file has them, and who its hunters were, int64 [E, A]."""
    env = make_core(BOARDS, rules)
    env.reset(seed=seed, first_board=first_board)
    who = (env.uniform(rules.hunters) * len(kinds)).astype(np.int64)
    log: dict[str, list] = {key: [] for key in ("actions", "rewards", "active", "playing")}
    obs = [env.obs.copy()]
    cut_off = np.zeros(BOARDS, bool)
    while not env.ended.all():
        log["active"].append(env.active)
        log["playing"].append(~env.ended)
        probs = population_probs(env, kinds)
        own = np.take_along_axis(probs, who[:, :, None, None], 2)[:, :, 0]
        _, rewards, _, truncated = env.step(sample_actions(own, env.uniform(rules.hunters)))
        log["actions"].append(env.effective_actions)
        log["rewards"].append(rewards)
        obs.append(env.obs.copy())
        cut_off |= truncated.any(1)
    playing = np.stack(log.pop("playing"), 1)  # [B, T]
    arrays = {key: np.stack(values, 1)[playing] for key, values in log.items()}
    observed = np.pad(playing, ((0, 0), (1, 0)), constant_values=True)
    arrays |= dict(
        obs=np.stack(obs, 1)[observed],
        episode_lengths=playing.sum(1, dtype=np.int32),
        terminated=~cut_off,
    )
    return arrays, who


def collect(rules: Rules, kinds: tuple[str, ...], seed: int, samples: int, path: Path) -> np.ndarray:
    """Write a trajectory file that does not say who its hunters are. Returns: who they are, int64 [E, A]."""
    parts = []
    while sum(arrays["active"].sum() for arrays, _ in parts) < samples:
        parts.append(play(rules, kinds, seed, first_board=BOARDS * len(parts)))
    arrays = {key: np.concatenate([part[key] for part, _ in parts]) for key in parts[0][0]}
    who = np.concatenate([one for _, one in parts])
    metadata = dict(strategies=["unknown"], priors=[1.0], seed=seed, rules=dict(vars(rules)))
    arrays |= dict(strategies=np.zeros(who.shape, np.int8), metadata=np.array(json.dumps(metadata)))
    save_arrays(path, arrays)
    return who


def accuracy(goals: np.ndarray, kinds: np.ndarray) -> float:
    """Of hunters whose goal stands for the kind that most of those with this goal are. int64 [H] each."""
    pairs = np.zeros((goals.max() + 1, kinds.max() + 1), np.int64)
    np.add.at(pairs, (goals, kinds), 1)
    return float(pairs.max(1).sum() / len(goals))


def judge(samples: Samples, who: np.ndarray, seed: int) -> dict:
    """How many goals were found, and how well they tell the kinds apart. who: int64 [E, A]."""
    batches = make_batches(samples, torch.device("cpu"), "moa", "free")
    start = time.process_time()
    found = find_goals(samples, batches, seed)
    seconds = time.process_time() - start
    goals = likeliest_goals(found.mixture, samples, batches)
    _, first = np.unique(samples.hunters, return_index=True)
    kinds = who[samples.episodes[first], samples.seats[first]]
    return dict(
        found=len(found.mixture.share),
        accuracy=accuracy(goals[first], kinds),
        seconds=seconds,
        nll=" ".join(f"{value:.3f}" for value in found.nll.values()),
    )


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(f"{machine()}, PyTorch {torch.__version__}")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for population in range(options.populations):
            seed = options.first + population
            rules, kinds = draw_population(seed, 2 + population % 3)
            path = Path(folder) / f"{seed}.npz"
            who = collect(rules, kinds, seed, options.samples, path)
            row = dict(seed=seed, kinds=" ".join(kinds), number=len(kinds))
            rows.append(row | judge(load_samples(path), who, options.seed))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    right = (table.found == table.number).sum()
    print(
        f"the number is right in {right} of {len(table)} populations (`nll`: held-out, by number of goals, 1 to 8)"
    )


if __name__ == "__main__":
    tracking.run(main, ValueError)
