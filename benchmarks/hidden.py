"""In which game is it worth most to know who the others are? A sweep over the game's own settings.

    python -m benchmarks.hidden --out hidden.csv
    python -m benchmarks.hidden --again hidden.csv --best 16 --updates 48 --out hidden_again.csv

Each game is learnt twice by PPO among `mixed` co-players, told nothing and told who they are, on the same boards and for
the same number of steps; both are judged on the same fresh boards. `worth` is what the told one earns more, as a share.
"""

import itertools
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import tyro
from tqdm import tqdm

import hop_ppo
from envs import Rules
from tracking import write_csv


@dataclass
class Args:
    settings: int = 120
    """games, drawn without repetition from the product of SETTINGS"""
    updates: int = 12
    """of 1,024 boards x 16 ticks, each time"""
    boards: int = 4096
    """fresh ones, to judge on"""
    seed: int = 1
    """of the draw and of the training"""
    again: str = ""
    """a CSV file of an earlier sweep: instead of a draw, its games with the largest `worth` and the longest horizon. Where
    the horizon ends most episodes, PPO, which bootstraps there, waits for a value that an evaluation never pays."""
    best: int = 16
    """with --again: how many"""
    out: str = "hidden.csv"
    """one row a game, the best last"""


CHOICE_SEED = 3001  # a game chosen on these boards is reported on others: see hop_ppo.HIDDEN_FINAL_SEED
SETTINGS = dict(
    size=(8, 6, 5),
    hunters=(2, 3, 4),
    hares=(1, 2, 4),
    stags=(1, 2),
    hunters_needed=(2, 3),
    stag_reward=(4.0, 6.0, 10.0),
    horizon=(35, 12, 8),
    end_after_first_hunt=(None, 0, 1, 3),
)


def make_rules(size: int, stag_reward: float, hunters_needed: int, **rest) -> Rules:
    """stag_reward: for each hunter that is needed, in fifths of the default's: 10 pays 5 each, whoever many it takes."""
    return Rules(
        height=size,
        width=size,
        blocks={8: 5, 6: 3, 5: 2}[size],
        hunters_needed=hunters_needed,
        stag_reward=stag_reward * hunters_needed / 2,
        **rest,
    )


def run_args(om: str, args: Args) -> hop_ppo.Args:
    """The settings that hop_ppo.py had when the game was chosen."""
    return hop_ppo.Args(seed=args.seed, om=om, end_at_horizon=False)


def learn(rules: Rules, om: str, args: Args) -> hop_ppo.Agent:
    """om: none or oracle."""
    settings = run_args(om, args)
    torch.manual_seed(args.seed)
    envs = hop_ppo.make_envs(rules, settings.num_envs, "mixed")
    collector = hop_ppo.Collector(envs, settings, None, args.seed)
    agent = hop_ppo.Agent(rules.stags, collector.opponents.info_size)
    optimizer = torch.optim.Adam(agent.parameters(), lr=settings.learning_rate, eps=1e-5)
    for now in range(args.updates):
        batch = hop_ppo.rollout(agent, collector, settings, torch.zeros(3))
        hop_ppo.update(agent, optimizer, batch, settings, 1 - now / args.updates)
    return agent


def earn(agent: hop_ppo.Agent, rules: Rules, om: str, args: Args) -> np.ndarray:
    """The learner's return on each of the fresh boards."""
    torch.manual_seed(args.seed)
    envs = hop_ppo.make_envs(rules, args.boards, "mixed", episode="board")
    infos = hop_ppo.to_tensors(envs.reset(seed=CHOICE_SEED)[1])
    opponents = hop_ppo.make_opponents(run_args(om, args), envs, infos, None)
    return hop_ppo.evaluate(agent, envs, infos, opponents)["learner"][0]


def draw_games(args: Args) -> list[dict]:
    games = [dict(zip(SETTINGS, values, strict=True)) for values in itertools.product(*SETTINGS.values())]
    games = [game for game in games if game["hunters"] >= game["hunters_needed"]]
    order = np.random.default_rng(args.seed).permutation(len(games))
    return [games[i] for i in order[: args.settings]]


def best_games(args: Args) -> list[dict]:
    """Those of an earlier sweep."""
    sweep = pd.read_csv(args.again).query("horizon == horizon.max()")
    best = sweep.nlargest(args.best, "worth")[list(SETTINGS)].astype(object)
    return best.where(best.notna(), None).to_dict("records")


def whole_number(key: str, value: float | None) -> float | None:
    """A setting as `Rules` wants it: a CSV file makes floats of whole numbers that may be missing."""
    return value if value is None or key == "stag_reward" else int(value)


def judge_game(game: dict, args: Args) -> dict:
    """A row of the table."""
    start = time.perf_counter()
    rules = make_rules(**game)
    earned = {om: earn(learn(rules, om, args), rules, om, args) for om in ("none", "oracle")}
    none = earned["none"].mean()
    gain = earned["oracle"] - earned["none"]  # the same boards: paired
    row = dict(none=none, oracle=earned["oracle"].mean(), gain=gain.mean())
    row["gain_ci95"] = 1.96 * gain.std(ddof=1) / np.sqrt(args.boards)
    row["worth"] = gain.mean() / max(none, 1e-9)
    return game | row | dict(seconds=time.perf_counter() - start)


def main(args: Args) -> None:
    rows: list[dict] = []
    games = best_games(args) if args.again else draw_games(args)
    for game in tqdm(games, unit=" games"):
        game = {key: whole_number(key, value) for key, value in game.items()}
        rows.append(judge_game(game, args))
        write_csv(args.out, sorted(rows, key=lambda row: row["worth"]))
    for row in sorted(rows, key=lambda row: -row["worth"])[:10]:
        print(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args, description=__doc__))
