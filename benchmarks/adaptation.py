"""Strangers: agents that learnt among their own kind alone meet teams that they never met, ten episodes and more.

    python -m benchmarks.adaptation --out adaptation.csv                     # StagHunt-v0
    python -m benchmarks.adaptation --env-id Snowdrift-v0 --gamma 1

Every agent has real boards of self-play alone, with rewards of its own. What it may do more, one at a time:

nothing      it knows nothing of the others
beliefs      beliefs over goals (`--om belief`)
latent       z and action probabilities (`--om latent`); gru, liam: what a GRU remembers of the others
planning     as `nothing`, and before it meets them a copy of it learns in imagination, which searches before each move
imagined     beliefs, and half of the boards are imagined, with co-players that act by the goal heads
both         as `imagined`, and the search
oracle       as `imagined`, but it knows who they are, in imagination and among the strangers
learning     as `imagined`, and PPO goes on among the strangers, on all of their boards at once
moa          as `imagined`, and its MOA goes on to learn there, on as many boards as with `--moa-update`; what a belief
             assumes of hunters without a goal stays
strict       as `imagined`, without an offline file: its world model learns from games of `nothing`, and its MOA, which
             starts with its first weights, from its own games; goals are what was captured

Beside them, with each team: `response`, PPO trained against this team, which knows who sits where, the best response; and
`script_told`, the script whose tick is chosen for this team. No script of `envs/` plays while the agents learn.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import hop_ppo
import tracking
from benchmarks import machine
from benchmarks.hop_ppo import SEARCHES, Flags, Rows, add, call, load, read_rows, run
from metrics.comparison import best_switch
from metrics.returns import half_width
from metrics.rivals import ScriptPolicy

Name = Literal[
    "nothing",
    "beliefs",
    "latent",
    "gru",
    "liam",
    "planning",
    "imagined",
    "both",
    "oracle",
    "learning",
    "moa",
    "strict",
]
IMAGINED = ("--real-ratio", 0.5, "--imagined-co-players", "goals")
AGENTS: dict[Name, Flags] = {
    "nothing": ("--om", "none"),
    "beliefs": ("--om", "belief"),
    "latent": ("--om", "latent"),
    "gru": ("--om", "gru"),
    "liam": ("--om", "liam"),
    "imagined": ("--om", "belief", *IMAGINED),
    "oracle": ("--om", "oracle", *IMAGINED),
    "strict": ("--om", "belief", "--moa-update", "empty", *IMAGINED),
}
GAMES = 4096  # of self-play, that a world model learns from
PLANNED: dict[Name, Name] = {"planning": "nothing", "both": "imagined"}  # who searches, and whose agent it is
# who goes on to learn, and as whose agent it begins
LEARNING: dict[Name, Name] = {"learning": "imagined", "moa": "imagined"}


@dataclass
class Args:
    env_id: str = "StagHunt-v0"
    """the game; it needs a VAE and a world model: --vae, --world-model"""
    vae: str = ""
    """folder of its VAE; the newest by default"""
    world_model: str = ""
    """folder of its world model; the newest by default"""
    gamma: float = 0.99
    """discount"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """of the agents"""
    updates: int = 150
    """of each agent"""
    response_updates: int = 60
    """of each best response"""
    boards: int = 512
    """of strangers, the same for all"""
    plan_boards: int = 128
    """of them, for those who search"""
    plan_fit: int = hop_ppo.Args().plan_fit
    """updates in imagination before a search"""
    episodes: int = 10
    """with the same strangers"""
    only: tuple[Name, ...] = ()
    """these rows alone"""
    responses: str = ""
    """CSV file of this command, with the same boards and episodes, whose best responses are not trained again"""
    out: str = ""
    """also write the rows to this CSV file"""


def strangers(rules: Any) -> list[str]:
    """Teams with each share of the two goals, and with hunters that have none."""
    n = rules.hunters - 1
    one, other = rules.game.goals.values()
    shares = [f"{n}{one}", *(f"{k}{one}{n - k}{other}" for k in range(n - 1, 0, -1)), f"{n}{other}"]
    random = [f"{n}RANDOM"]
    if n == 3 and rules.game.leaves:
        random += [f"1{one}1{other}1RANDOM", f"2{one}1RANDOM"]
    return shares + random


def flags_of(args: Args, seed: int, boards: int, updates: int, *flags: str | float) -> Flags:
    """Of a training of hop_ppo.py, on so many boards at once."""
    game = ("--env-id", args.env_id, "--team-episodes", 4, "--gamma", args.gamma)
    networks = [part for name in ("vae", "world_model") for part in named_flag(args, name)]
    steps = ("--num-envs", boards, "--total-timesteps", updates * boards * 16)
    return ("--seed", seed, *steps, *game, *networks, *flags)


def named_flag(args: Args, name: str) -> tuple[str, ...]:
    value = getattr(args, name)
    return (f"--{name.replace('_', '-')}", value) if value else ()


def learn_world(args: Args, seed: int) -> str:
    """A world model that has seen games of self-play alone. Returns: its folder."""
    folder = run(
        *flags_of(replace(args, vae="", world_model=""), seed, 512, args.updates, "--co-players", "self")
    )
    games = f"{folder}/games.npz"
    call("hop_ppo.py", "--evaluate", folder, "--record", games, "--eval-boards", GAMES)
    return call("train_world_model.py", "--data", games, "--seed", seed)


@functools.lru_cache(maxsize=1)
def load_once(folder: str, **settings: Any) -> tuple[hop_ppo.ActorCritic, hop_ppo.Evaluator]:
    """As `load`, for all teams that an agent meets: what it imagines before a search, it imagines once."""
    return load(folder, **settings)


def meet(args: Args, folder: str, team: str, search: bool) -> np.ndarray:
    """The learner's return, [episodes, B]."""
    settings: dict[str, Any] = dict(team_episodes=1, real_ratio=1.0, imagined_co_players="same")
    if search:
        search_settings = SEARCHES["gumbel"] | dict(plan_fit=args.plan_fit)
        settings |= dict(plan=True, vae=args.vae, world_model=args.world_model, **search_settings)
    agent, judge = load_once(folder, **settings)
    boards = args.plan_boards if search else args.boards
    plan = "learned" if search else ""
    return judge.play(agent, team, judge.final_seed, boards, args.episodes, plan=plan)["learner"]


class Recorder:
    """An environment that keeps the rewards of its rows, and where their episodes ended."""

    def __init__(self, envs: hop_ppo.Envs):
        self.envs = envs
        self.rewards: list[np.ndarray] = []
        self.ends: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.envs, name)

    def step(self, actions: np.ndarray) -> tuple:
        result = self.envs.step(actions)
        self.rewards.append(result[1].copy())
        self.ends.append(result[2] | result[3])
        return result

    def returns(self, episodes: int) -> np.ndarray:
        """[episodes, N], of the first ones of each row. Raises: ValueError: a row has not ended so many."""
        ends = np.stack(self.ends)  # [T, N]
        if ends.sum(0).min() < episodes:
            raise ValueError(f"expected {episodes} episodes of each row, found {ends.sum(0).min()}")
        episode = ends.cumsum(0) - ends  # [T, N]
        returns = np.zeros((episodes + 1, ends.shape[1]))
        rows = np.broadcast_to(np.arange(ends.shape[1]), ends.shape)
        np.add.at(returns, (episode.clip(max=episodes), rows), np.stack(self.rewards))
        return returns[:-1]


def learn(args: Args, folder: str, team: str, what: Name) -> np.ndarray:
    """As `meet`, of an agent that goes on to learn, a rollout and an update in turn.

    what: `learning`, its policy, by PPO with its first learning rate; `moa`, its MOA.
    """
    agent, judge = load(folder, team_episodes=10**6, real_ratio=1.0, imagined_co_players="same")
    settings = replace(judge.args, co_players=team, num_envs=args.boards)
    torch.manual_seed(judge.final_seed)
    envs = Recorder(hop_ppo.make_envs(judge.rules, args.boards, team, settings.team_episodes))
    collector = hop_ppo.Collector(envs, settings, judge.vae, judge.final_seed, agent.memory)
    moa = hop_ppo.MOALearner(judge.vae, collector, judge.final_seed) if what == "moa" else None
    optimizer = hop_ppo.make_optimizer(agent, settings)
    for _ in range(math.ceil(args.episodes * judge.rules.horizon / settings.num_steps)):
        batch = hop_ppo.rollout(agent, collector, settings, torch.zeros(3))
        if moa:
            moa.update(1.0, [collector])
        else:
            hop_ppo.update(agent, optimizer, batch, settings, 1.0)
    return envs.returns(args.episodes)


def script(args: Args, judge: hop_ppo.Evaluator, team: str) -> np.ndarray:
    """As `meet`, of the script whose tick is best with this team on other boards."""
    switch = best_switch(judge.play, judge.rules, team, hop_ppo.EVAL_SEED, args.boards)
    policy = ScriptPolicy(judge.rules, switch)
    return judge.play(policy, team, judge.final_seed, args.boards, args.episodes, om="none")["learner"]


def rows_of(name: str, seed: int, team: str, returns: np.ndarray, best: np.ndarray) -> Rows:
    """A row an episode. best: [episodes, B], of the best response; `share` compares the same boards."""
    rows: Rows = []
    for episode, (earned, bound) in enumerate(
        zip(returns, best[:, : returns.shape[1]], strict=True), start=1
    ):
        row = dict(name=name, seed=seed, team=team, episode=episode, learner=float(earned.mean()))
        row |= dict(learner_ci95=float(half_width(earned)), share=float(earned.mean() / bound.mean()))
        rows.append(row)
    return rows


def judge_seed(args: Args, seed: int, teams: list[str], best: dict[str, np.ndarray], rows: Rows) -> None:
    folders: dict[str, str] = {}
    wanted = args.only or (*AGENTS, *PLANNED, *LEARNING)
    for name in tqdm(wanted, unit=" agents", leave=False):
        whose = (PLANNED | LEARNING).get(name, name)
        if whose not in folders:
            networks = (
                replace(args, vae="", world_model=learn_world(args, seed)) if whose == "strict" else args
            )
            flags = flags_of(networks, seed, 512, args.updates, "--co-players", "self", *AGENTS[whose])
            folders[whose] = run(*flags)
        for team in ["self", *teams] if name in AGENTS else teams:
            if name in LEARNING:
                returns = learn(args, folders[whose], team, name)
            else:
                returns = meet(args, folders[whose], team, name in PLANNED)
            bound = best.get(team, returns)
            for row in rows_of(name, seed, team, returns, bound):
                add(rows, row | dict(run=folders[whose]), args)


def train_responses(args: Args, teams: list[str], best: dict[str, np.ndarray], rows: Rows) -> None:
    """PPO trained against each team, and the script for it, into `best` and `rows`."""
    for team in tqdm(teams, unit=" best responses"):
        flags = ("--co-players", team, "--om", "oracle")
        folder = run(*flags_of(args, args.seeds[0], 1024, args.response_updates, *flags))
        best[team] = meet(args, folder, team, search=False)
        judge = load(folder)[1]
        scripted = script(args, judge, team)
        for name, returns in dict(response=best[team], script_told=scripted).items():
            for row in rows_of(name, args.seeds[0], team, returns, best[team]):
                add(rows, row | dict(run=folder if name == "response" else ""), args)


def known_responses(args: Args, teams: list[str], best: dict[str, np.ndarray]) -> Rows:
    """The rows of these in --responses; their means go into `best`. Raises: tracking.UsageError: a team is missing."""
    columns = ("name", "seed", "team", "episode", "learner", "learner_ci95", "share", "run")
    known = read_rows("--responses", args.responses, columns)
    known = known[known.name.isin(("response", "script_told"))]
    for team in teams:
        by_episode = known[(known.name == "response") & (known.team == team)].sort_values("episode")
        if by_episode.episode.tolist() != list(range(1, args.episodes + 1)):
            raise tracking.UsageError(
                f"--responses {args.responses}: expected {args.episodes} episodes with {team}"
            )
        best[team] = by_episode.learner.to_numpy(float)[:, None]
    return known.to_dict("records")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Over seeds, by team, in the first episode and from the third on."""
    late = rows[rows.episode >= 3].groupby(["name", "team", "seed"], sort=False)[["learner", "share"]].mean()
    late = late.groupby(["name", "team"], sort=False).agg(["mean", "std"])
    first = rows[rows.episode == 1].groupby(["name", "team"], sort=False)["learner"].mean()
    late.columns = ["_".join(column) for column in late.columns]
    return late.assign(episode1=first)


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    check(args)
    torch.set_num_threads(1)
    rules, _ = hop_ppo.load_rules(hop_ppo.Args(env_id=args.env_id))
    args = replace(args, **trained_networks(args))
    rows: Rows = []
    best: dict[str, np.ndarray] = {}
    teams = strangers(rules)
    if args.responses:
        rows += known_responses(args, teams, best)
    else:
        train_responses(args, teams, best, rows)
    for seed in args.seeds:
        judge_seed(args, seed, teams, best, rows)
    print(machine())
    with pd.option_context("display.width", 250, "display.max_rows", 500):
        print(summary(pd.DataFrame(rows)).round(3))


def check(args: Args) -> None:
    """Raises: tracking.UsageError: a number is out of its range, or there is no seed."""
    least = dict(updates=1, response_updates=1, boards=2, plan_boards=2, plan_fit=0, episodes=3)
    tracking.check_least(args, least)
    if not args.seeds:
        raise tracking.UsageError("--seeds: name one or more")


def trained_networks(args: Args) -> dict[str, str]:
    """The folders of the networks; none for agents that need none. Raises: tracking.UsageError: there is no run."""
    if args.only and set(args.only) <= {"nothing", "strict"}:
        return {}
    scripts = dict(vae=("vae_ckpts", "pretrain_vae.py"), world_model=("wm_ckpts", "train_world_model.py"))
    return {
        name: tracking.network_run(getattr(args, name), *script, or_pretrained=True)
        for name, script in scripts.items()
    }


if __name__ == "__main__":
    tracking.run(main)
