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
from boards import Real
from envs import Rules
from others import Told
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


def rules_of(size: int, stag_reward: float, hunters_needed: int, **rest) -> Rules:
    """stag_reward: for each hunter that is needed, in fifths of the default's: 10 pays 5 each, whoever many it takes."""
    blocks = {8: 5, 6: 3, 5: 2}[size]
    return Rules(height=size, width=size, blocks=blocks, hunters_needed=hunters_needed,
                 stag_reward=stag_reward * hunters_needed / 2, **rest)  # fmt: skip


def learn(rules: Rules, told: bool, args: Args) -> hop_ppo.Agent:
    """PPO with the settings that hop_ppo.py had when the game was chosen."""
    run = hop_ppo.Args(seed=args.seed, om="oracle" if told else "none", end_at_horizon=False)
    torch.manual_seed(args.seed)
    game = Real(run.num_envs, rules, "mixed", args.seed)
    others = Told(game, told)
    agent = hop_ppo.Agent(rules.stags, others.size)
    optimizer = torch.optim.Adam(agent.parameters(), lr=run.learning_rate, eps=1e-5)
    for now in range(args.updates):
        data = hop_ppo.rollout(agent, game, others, run, torch.zeros(3))
        hop_ppo.update(agent, optimizer, data, run, 1 - now / args.updates)
    return agent


def earn(agent, rules: Rules, told: bool, args: Args) -> np.ndarray:
    """The learner's return on each of the fresh boards."""
    torch.manual_seed(args.seed)
    game = Real(args.boards, rules, "mixed", CHOICE_SEED)
    return hop_ppo.judge(agent, game, Told(game, told))["learner"][0]


def main(args: Args) -> None:
    games = [dict(zip(SETTINGS, values, strict=True)) for values in itertools.product(*SETTINGS.values())]
    games = [game for game in games if game["hunters"] >= game["hunters_needed"]]
    games = [games[i] for i in np.random.default_rng(args.seed).permutation(len(games))[: args.settings]]
    if args.again:
        first = pd.read_csv(args.again).query("horizon == horizon.max()")
        best = first.nlargest(args.best, "worth")[list(SETTINGS)].astype(object)
        games = best.where(best.notna(), None).to_dict("records")
    rows = []
    for game in tqdm(games, unit=" games"):
        game = {key: int(v) if v is not None and key != "stag_reward" else v for key, v in game.items()}
        rules, start = rules_of(**game), time.perf_counter()
        none, oracle = (earn(learn(rules, told, args), rules, told, args) for told in (False, True))
        half = 1.96 * (oracle - none).std(ddof=1) / np.sqrt(args.boards)  # the same boards: paired
        rows.append(game | dict(none=none.mean(), oracle=oracle.mean(), gain=(oracle - none).mean(), gain_ci95=half,
                    worth=(oracle - none).mean() / max(none.mean(), 1e-9), seconds=time.perf_counter() - start))  # fmt: skip
        write_csv(args.out, sorted(rows, key=lambda row: row["worth"]))
    for row in sorted(rows, key=lambda row: -row["worth"])[:10]:
        print(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    args = tyro.cli(Args, description=__doc__)
    main(args)
