"""Beyond the family of games: Level-Based Foraging (Papoudakis et al. 2021). `python -m benchmarks.foraging`

Three agents of levels 1 and 2 gather three fruits on 8x8 cells; a fruit is gathered if the levels of those that load it
from the cells beside it add up to its own. Each agent is one of the package's heuristics, drawn for each episode: H1 goes
to the closest fruit, H3 to the closest one of at most its own level (and is random where there is none). `lbforaging`
(requirements-dev.txt) plays; the file is collected once, then `pretrain_vae.py --network plain` and `train_world_model.py
--model cells` are trained on it.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tracking
from benchmarks import machine
from benchmarks.results import ROOT, run, train
from data.trajectories import save_arrays
from envs.game import OtherGame
from metrics.reports import ROWS

SIZE = 8
AGENTS = 3
FRUITS = 3
HORIZON = 50
LEVELS = (1, 2)  # of agents
FRUIT_LEVELS = range(1, AGENTS * max(LEVELS) + 1)
HEURISTICS = ("H1", "H3")
GAME = OtherGame(
    id=f"Foraging-{SIZE}x{SIZE}-{AGENTS}p-{FRUITS}f-v3",
    planes=(
        *(f"SELF_{level}" for level in LEVELS),
        *(f"OTHERS_{level}" for level in LEVELS),
        *(f"FOOD_{level}" for level in FRUIT_LEVELS),
    ),
    actions=("NONE", "NORTH", "SOUTH", "WEST", "EAST", "LOAD"),
)


@dataclass
class Options:
    steps: int = 20_000
    """of the game, at least: whole episodes"""
    seed: int = 1
    """of the episodes, and of the training"""
    epochs: int = 5
    """of the network that predicts actions"""
    world_model_epochs: int = 4
    out: str = "data/foraging.npz"
    """the file; collected if it is not there"""


def import_package() -> tuple[Any, Any]:
    """The modules of `lbforaging` with the game and with its heuristic agents.

    Raises: tracking.UsageError: the package is not there.
    """
    if importlib.util.find_spec("lbforaging") is None:
        raise tracking.UsageError("no package lbforaging: `python -m pip install -r requirements-dev.txt`")
    import lbforaging.foraging.environment as environment

    # Its agents know the game by an older name, and import others that need more packages.
    sys.modules.setdefault("foraging", sys.modules["lbforaging.foraging"])
    sys.modules.setdefault("foraging.environment", environment)
    agents = types.ModuleType("lbforaging.agents")
    agents.__path__ = [str(Path(environment.__file__).parents[1] / "agents")]
    sys.modules.setdefault("lbforaging.agents", agents)
    return environment, importlib.import_module("lbforaging.agents.heuristic_agent")


def make_env(environment: Any) -> Any:
    """The registered game of this name, in which the order of agents does not depend on where they lie in memory."""

    class Player(environment.Player):
        def __init__(self, seat: int):
            super().__init__()
            self.seat = seat

        def __hash__(self) -> int:
            return self.seat

    env = environment.ForagingEnv(
        players=AGENTS,
        min_player_level=min(LEVELS),
        max_player_level=max(LEVELS),
        min_food_level=1,
        max_food_level=None,
        field_size=(SIZE, SIZE),
        max_num_food=FRUITS,
        sight=SIZE,
        max_episode_steps=HORIZON,
        force_coop=False,
    )
    env.players = [Player(seat) for seat in range(AGENTS)]
    return env


def observe(env: Any) -> np.ndarray:
    """What each agent sees: uint8 [A, P, H, W], the planes of `GAME`."""
    planes = np.zeros((AGENTS, len(GAME.planes), SIZE, SIZE), np.uint8)
    for seat, player in enumerate(env.players):
        plane = player.level - min(LEVELS)
        planes[:, len(LEVELS) + plane, *player.position] = 1
        planes[seat, len(LEVELS) + plane, *player.position] = 0
        planes[seat, plane, *player.position] = 1
    for row, column in np.argwhere(env.field):
        planes[:, 2 * len(LEVELS) + env.field[row, column] - 1, row, column] = 1
    return planes


def views(env: Any) -> list[Any]:
    """What the package's heuristics look at, of each agent; all of them see the whole field."""
    legal = zip(*env.get_valid_actions(), strict=True)  # of each agent, in all joint actions
    found = []
    for own, actions in zip(env.players, legal, strict=True):
        players = [
            env.PlayerObservation(
                position=player.position,
                level=player.level,
                history=player.history,
                reward=None,
                is_self=player is own,
            )
            for player in env.players
        ]
        found.append(
            env.Observation(
                field=env.field.copy(),
                actions=list(dict.fromkeys(actions)),
                players=players,
                game_over=env.game_over,
                sight=env.sight,
                current_step=env.current_step,
            )
        )
    return found


def collect(steps: int, seed: int) -> dict[str, np.ndarray]:
    """Whole episodes of at least so many steps, as a trajectory file has them."""
    environment, heuristics = import_package()
    env = make_env(environment)
    rng = np.random.default_rng(seed)
    random.seed(seed)  # of the heuristics
    env.reset(seed=seed)
    log: dict[str, list] = {key: [] for key in ("obs", "actions", "rewards")}
    lengths, terminated, strategies = [], [], []
    while sum(lengths) < steps:
        env.reset()
        team = rng.integers(len(HEURISTICS), size=AGENTS)
        for player, heuristic in zip(env.players, team, strict=True):
            player.set_controller(getattr(heuristics, HEURISTICS[heuristic])(player))
        log["obs"].append(observe(env))
        length = 0
        while not env.game_over:
            actions = [player.step(seen).value for player, seen in zip(env.players, views(env), strict=True)]
            rewards = env.step(actions)[1]
            log["obs"].append(observe(env))
            log["actions"].append(actions)
            log["rewards"].append(rewards)
            length += 1
        lengths.append(length)
        terminated.append(env.field.sum() == 0)
        strategies.append(team)
    metadata = dict(
        game=GAME.metadata(),
        strategies=list(HEURISTICS),
        priors=[1 / len(HEURISTICS)] * len(HEURISTICS),
        seed=seed,
    )
    return dict(
        obs=np.array(log["obs"], np.uint8),
        actions=np.array(log["actions"], np.int8),
        rewards=np.array(log["rewards"], np.float32),
        active=np.ones((sum(lengths), AGENTS), bool),
        episode_lengths=np.array(lengths, np.int32),
        terminated=np.array(terminated, bool),
        strategies=np.array(strategies, np.int8),
        metadata=np.array(json.dumps(metadata)),
    )


def train_world_model(*flags: str) -> tuple[str, dict]:
    """Returns: the run's folder and its metrics.json."""
    log = run("train_world_model.py", "--model", "cells", *flags)
    folder = next(line.split(": ")[1] for line in log.splitlines() if line.startswith("[WM] model saved to"))
    return folder, json.loads((ROOT / folder / "metrics.json").read_text())


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    print(machine())
    import_package()
    path = ROOT / options.out
    if not path.exists():
        print(f"collecting {options.out} ..", flush=True)
        save_arrays(path, collect(options.steps, options.seed))
    common = ("--data", str(path), "--seed", str(options.seed))
    folder, report = train(*common, "--network", "plain", "--epochs", str(options.epochs))
    print(f"{folder}: {report['samples']}, {report['seconds']:.0f} s; the test split:")
    print("| | top-1 | top-3 | NLL |\n|---|---|---|---|")
    for name in ("majority", "last", "after_last", "test"):
        row = report[name]
        label = ROWS[name] if name != "test" else "plain"
        print(f"| {label} | {row['top1']:.4f} | {row['top3']:.4f} | {row['nll']:.4f} |")
    epochs = str(options.world_model_epochs)
    rates = ("--batch-size", "64", "--learning-rate", "1e-2")
    folder, report = train_world_model(*common, *rates, "--epochs", epochs)
    print(f"{folder}: {report['transitions']}, {report['seconds']:.0f} s; the test split:")
    print("| | all views exact | MSE of the planes | MSE of the rewards |\n|---|---|---|---|")
    for label, row in {"nothing moves": report["nothing_moves"], "cells": report["test"]}.items():
        planes, rewards = row["obs_mse"], row["reward_mse"]
        print(f"| {label} | {row['exact_transitions']:.2%} | {planes:.6f} | {rewards:.6f} |")


if __name__ == "__main__":
    tracking.run(main, ValueError)
