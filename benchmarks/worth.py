"""What is it worth to know who the others are? Asked of a game before any opponent model is trained for it.

    python -m benchmarks.worth --out worth.csv                           # every registered game
    python -m benchmarks.worth --env-id Snowdrift-v0 --env-args cost=5   # one game
    python -m benchmarks.worth --sweep --env-id Snowdrift-v0             # where would it be worth most?

PPO is trained on each game twice, without information on its co-players and as an oracle that knows who they are, with the
same boards and number of steps.
Both, and the best scripts (see `metrics.rivals.ScriptPolicy`), are judged on the same fresh boards: `script` with one
tick for all teams, `script_told` with a tick for each number of co-players that pursue the first goal.
`worth` is what the oracle earns more, as a share. One core, at most 5 minutes a game.
"""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import hop_ppo
import tracking
from benchmarks import machine
from envs import REGISTERED
from envs.core import GameRules
from metrics.comparison import switches
from metrics.returns import half_width
from metrics.rivals import ScriptPolicy

FINAL_SEED = 4001  # a game that was chosen on boards of EVAL_SEED is reported on these


@dataclass
class Args:
    env_id: str = ""
    """a registered game; by default all of them, or with --sweep the snowdrift"""
    env_args: tuple[str, ...] = ()
    """rules that are other than registered, such as height=4"""
    co_players: str = "mixed"
    """a team; mixed: each has one of the game's goals"""
    updates: int = 48
    """of 1,024 boards x 16 ticks, each time"""
    boards: int = 2048
    """fresh ones, to judge on"""
    seed: int = 1
    """of the training, and of the draw of a sweep"""
    gamma: float = 1.0
    """discount; returns are judged without one, and in the snowdrift it pays to wait"""
    sweep: bool = False
    """draw games from SWEEPS, then train on the best of them again, for longer"""
    games: int = 40
    """with --sweep: so many are drawn"""
    first_updates: int = 12
    """with --sweep: of each, before the best are chosen"""
    best: int = 3
    """with --sweep: so many are trained on again with --updates, and reported on other boards"""
    out: str = "worth.csv"
    """one row a game"""


# Of each game: rules as --env-args has them, and co-players, to draw from.
SIZES = [f"height={size} width={size}" for size in (4, 6, 8)]
SWEEPS: dict[str, list[list[str]]] = {
    "StagHunt-v0": [
        [f"{size} blocks=0" for size in SIZES],
        ["hunters=3", "hunters=4"],
        ["hares=1", "hares=2", "hares=4"],
        ["stags=1", "stags=2"],
        [
            "hunters_needed=2 stag_reward=10",
            "hunters_needed=3 stag_reward=15",
            "hunters_needed=2 stag_reward=6",
        ],
        ["horizon=35", "horizon=12"],
        ["end_after_first_hunt=none", "end_after_first_hunt=1", "end_after_first_hunt=5"],
    ],
    "Snowdrift-v0": [
        SIZES,
        ["horizon=8", "horizon=12", "horizon=25", "horizon=50"],
        ["agents=2", "agents=3", "agents=4"],
        ["drifts=1", "drifts=3", "drifts=6"],
        ["cost=2", "cost=3", "cost=4", "cost=5"],
    ],
}


@dataclass
class Trial:
    """A game to be judged, and who plays it."""

    rules: GameRules
    co_players: str
    args: Args

    def settings(self, om: str) -> hop_ppo.Args:
        return hop_ppo.Args(
            seed=self.args.seed,
            om=om,
            team_episodes=1,
            eval_boards=self.args.boards,
            co_players=self.co_players,
            gamma=self.args.gamma,
        )

    def learn(self, om: str, updates: int) -> hop_ppo.ActorCritic:
        """om: none or oracle."""
        settings = self.settings(om)
        torch.manual_seed(settings.seed)
        envs = hop_ppo.make_envs(self.rules, settings.num_envs, self.co_players)
        collector = hop_ppo.Collector(envs, settings, None, settings.seed)
        agent = hop_ppo.make_agent("objects", self.rules, collector.opponents.info_size)
        optimizer = hop_ppo.make_optimizer(agent, settings)
        for now in range(updates):
            batch = hop_ppo.rollout(agent, collector, settings, torch.zeros(3))
            hop_ppo.update(agent, optimizer, batch, settings, 1 - now / updates)
        return agent

    def earn(self, policy, seed: int, om: str = "none") -> np.ndarray:
        """The learner's return on each fresh board, [B]."""
        judge = hop_ppo.Evaluator(self.settings(om), self.rules, None, None)
        return judge.play(policy, self.co_players, seed)["learner"][0]

    def pursuers(self, seed: int) -> np.ndarray:
        """int [B], how many co-players pursue the first goal on each fresh board."""
        envs = hop_ppo.make_envs(self.rules, self.args.boards, self.co_players, episode="board")
        envs.reset(seed=seed)
        return (envs.strategy_ids == hop_ppo.FIRST).sum(1)

    def scripts(self, seed: int) -> dict[str, np.ndarray]:
        """What the script earns on the boards of `seed`, with one tick and with one for each number of pursuers; the ticks
        are chosen on the boards of EVAL_SEED."""
        policies = [ScriptPolicy(self.rules, switch) for switch in switches(self.rules)]
        chosen_on = np.stack([self.earn(policy, hop_ppo.EVAL_SEED) for policy in policies])  # [ticks, B]
        pursuers = self.pursuers(hop_ppo.EVAL_SEED)
        best = int(chosen_on.mean(1).argmax())
        by_pursuers = {n: int(chosen_on[:, pursuers == n].mean(1).argmax()) for n in np.unique(pursuers)}
        needed = sorted({best, *by_pursuers.values()})
        earned = {index: self.earn(policies[index], seed) for index in needed}
        tick_of_board = np.array([by_pursuers.get(n, best) for n in self.pursuers(seed)])
        script_told = np.choose(np.searchsorted(needed, tick_of_board), list(earned.values()))
        return dict(script=earned[best], script_told=script_told)


def mean_and_half(values: np.ndarray, name: str) -> dict[str, float]:
    """The mean over boards, and half of its 95% interval."""
    return {name: float(values.mean()), f"{name}_ci95": float(half_width(values))}


def judge_game(trial: Trial, seed: int, updates: int, scripts: bool = True) -> dict:
    """A row of the table. Differences are paired: the same boards."""
    start = time.perf_counter()
    earned = {om: trial.earn(trial.learn(om, updates), seed, om) for om in ("none", "oracle")}
    if scripts:
        earned |= trial.scripts(seed)
    row: dict = {}
    for name, values in earned.items():
        row |= mean_and_half(values, name)
    row |= mean_and_half(earned["oracle"] - earned["none"], "gain")
    if scripts:
        row |= mean_and_half(earned["none"] - earned["script"], "none_over_script")
        row |= mean_and_half(earned["oracle"] - earned["script_told"], "oracle_over_script_told")
    row["worth"] = row["gain"] / max(abs(row["none"]), 1e-9)
    return row | dict(seconds=time.perf_counter() - start)


def make_trial(env_id: str, env_args: tuple[str, ...], co_players: str, args: Args) -> Trial:
    rules, _ = hop_ppo.load_rules(hop_ppo.Args(env_id=env_id, env_args=env_args))
    return Trial(rules, co_players, args)


def teams_of(rules: GameRules) -> list[str]:
    """Co-players to draw from: `mixed`, all but one of the first goal, all but one of the second; seats are drawn."""
    one, other = rules.game.goals.values()
    others = rules.hunters - 1
    if others < 2:
        return ["mixed"]
    return list(dict.fromkeys(["mixed", f"{others - 1}{one}1{other}", f"1{one}{others - 1}{other}"]))


def draw_games(env_id: str, args: Args) -> list[dict]:
    """Rows with env_args and co_players; games that the rules refuse are drawn again."""
    draws = np.random.default_rng(args.seed)
    games: dict[tuple, dict] = {}
    for _ in range(100 * args.games):
        if len(games) == args.games:
            break
        env_args = tuple(" ".join(draws.choice(choice) for choice in SWEEPS[env_id]).split())
        try:
            rules = make_trial(env_id, env_args, "mixed", args).rules
        except tracking.UsageError:
            continue
        team = str(draws.choice(teams_of(rules)))
        games[env_args, team] = dict(env_id=env_id, env_args=" ".join(env_args), co_players=team)
    return list(games.values())


def judge_rows(
    games: list[dict], seed: int, updates: int, args: Args, scripts: bool, stage: str
) -> list[dict]:
    rows = []
    for game in tqdm(games, unit=" games"):
        trial = make_trial(game["env_id"], tuple(game["env_args"].split()), game["co_players"], args)
        rows.append(game | dict(stage=stage, seed=seed) | judge_game(trial, seed, updates, scripts))
        print(rows[-1], flush=True)
    return rows


def sweep(args: Args) -> list[dict]:
    """Games drawn, judged on EVAL_SEED after a short training, the best last; then the best trained again, on FINAL_SEED."""
    env_id = args.env_id or "Snowdrift-v0"
    if env_id not in SWEEPS:
        raise ValueError(f"--sweep: no settings to draw from for {env_id}: choose from {', '.join(SWEEPS)}")
    games = draw_games(env_id, args)
    drawn = judge_rows(games, hop_ppo.EVAL_SEED, args.first_updates, args, False, "drawn")
    drawn.sort(key=lambda row: row["worth"])
    best = [{key: row[key] for key in ("env_id", "env_args", "co_players")} for row in drawn[-args.best :]]
    return drawn + judge_rows(best, FINAL_SEED, args.updates, args, True, "chosen")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    torch.set_num_threads(1)
    if args.sweep:
        rows = sweep(args)
    else:
        env_ids = [args.env_id] if args.env_id else list(REGISTERED)
        games = [
            dict(env_id=env_id, env_args=" ".join(args.env_args), co_players=args.co_players)
            for env_id in env_ids
        ]
        rows = judge_rows(games, FINAL_SEED, args.updates, args, True, "registered")
    tracking.write_csv(args.out, rows)
    print(machine())
    with pd.option_context("display.width", 250, "display.max_columns", 50):
        print(pd.DataFrame(rows).round(3))


if __name__ == "__main__":
    tracking.run(main, ValueError)
