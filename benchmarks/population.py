"""Partners that learned, and were held out: a population of policies, cross-play, and what each method earns with strangers.

    python -m benchmarks.population --what train      # 16 policies of the hidden game, into population/
    python -m benchmarks.population --what cross      # what each earns among copies of each other
    python -m benchmarks.population --what methods    # who adapts to the policies that were held out

The policies know nothing of the others (`--om none`). Of each kind two seeds are to train with and two are held out:

self         with three of their own kind, rewards of their own
team         the same, the team's mean reward
mixed        among scripted co-players with one of two goals each
one          among scripted co-players that all have one goal: the first in seeds 1 and 3, the second in 2 and 4

Methods learn with `--co-players population` and meet each held-out policy, in all seats but theirs, ten episodes in a row.
latent and belief have a VAE of games of the policies to train with, whose goals are found without labels.
`share` is that of the best response: PPO trained with this partner alone, on the same boards.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import hop_ppo
import tracking
from benchmarks import machine
from benchmarks.hop_ppo import Flags, Rows, add, call, load, run
from data.trajectories import save_arrays
from metrics.comparison import best_switch
from metrics.returns import half_width
from metrics.rivals import ScriptPolicy
from tracking import figures, fit

Method = Literal["none", "latent", "belief", "gru", "liam"]
METHODS: tuple[Method, ...] = get_args(Method)
GAMES = 4096  # of the policies to train with, that a VAE learns from


@dataclass
class Args:
    what: Literal["train", "cross", "methods"]
    """the population, its cross-play, or the methods among its held-out policies"""
    env_id: str = "StagHunt-hidden-v0"
    """the game"""
    folder: str = "population"
    """of the population"""
    steps: int = 500_000
    """of a policy of the population, and of a best response"""
    method_steps: int = 1_000_000
    """of a method"""
    gamma: float = 0.99
    """discount"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """of the methods"""
    only: tuple[Method, ...] = ()
    """these methods alone"""
    vae: str = ""
    """folder of the VAE of latent and belief; by default a new one, of games of the population"""
    boards: int = 512
    """of each pair of policies, the same for all"""
    episodes: int = 10
    """with the same partners"""
    out: str = ""
    """writes the rows to this CSV file, by default <what>.csv in the folder of the population; beside it a figure"""


def kinds(rules: hop_ppo.GameRules) -> dict[str, list[Flags]]:
    """Flags of each kind's four seeds."""
    n = rules.hunters - 1
    first, second = (("--co-players", f"{n}{name}") for name in rules.game.goals.values())
    return {
        "self": [("--co-players", "self")] * 4,
        "team": [("--co-players", "self", "--team-reward")] * 4,
        "mixed": [("--co-players", "mixed")] * 4,
        "one": [first, second] * 2,
    }


def game_flags(args: Args, seed: int, steps: int) -> Flags:
    return ("--env-id", args.env_id, "--gamma", args.gamma, "--seed", seed, "--total-timesteps", steps)


def policies_of(rules: hop_ppo.GameRules) -> list[tuple[str, int]]:
    """Kind and seed of each."""
    return [(kind, seed) for kind, all_ in kinds(rules).items() for seed in range(1, len(all_) + 1)]


def name_population(args: Args, rules: hop_ppo.GameRules) -> dict[str, list[str]]:
    """Writes population.json. Returns: names to train with, `train`, and `held_out`. Raises: tracking.UsageError: one of
    another game is there."""
    path = Path(args.folder) / "population.json"
    if path.exists():
        fit.read_population(args.folder, args.env_id, ())
    names: dict[str, list[str]] = {"train": [], "held_out": []}
    for kind, seed in policies_of(rules):
        names["train" if seed <= 2 else "held_out"].append(f"{kind}{seed}")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dict(game=dict(id=args.env_id, args=[])) | names
    tracking.write_json(path, content)
    return names


def train_policy(args: Args, rules: hop_ppo.GameRules, kind: str, seed: int) -> None:
    """What is there already is kept."""
    path = Path(args.folder) / f"{kind}{seed}" / "best.pt"
    if path.exists():
        return
    flags = kinds(rules)[kind][seed - 1]
    boards = 1024 // (rules.hunters if "self" in flags else 1)
    trained = Path(run(*game_flags(args, seed, args.steps), "--num-envs", boards, *flags))
    path.parent.mkdir(exist_ok=True)
    tracking.write_bytes(path, (trained / "best.pt").read_bytes())


def train_population(args: Args, rules: hop_ppo.GameRules) -> None:
    """A command that was stopped goes on."""
    name_population(args, rules)
    for kind, seed in tqdm(policies_of(rules), unit=" policies"):
        train_policy(args, rules, kind, seed)


def record_games(args: Args, rules: hop_ppo.GameRules) -> Path:
    """Games of the policies to train with, in teams as `--co-players population` draws them, the first one in the seat of
    the learner. What is there already is kept."""
    path = Path(args.folder) / "games.npz"
    if not path.exists():
        policy = hop_ppo.load_population(args.folder, args.env_id, ())["population"][0]
        team = dict(co_players="population", population=args.folder)
        settings = hop_ppo.Args(env_id=args.env_id, eval_boards=GAMES, **team)
        save_arrays(path, hop_ppo.record_games(policy, settings, rules, None).arrays())
    return path


def learn_goals(args: Args, rules: hop_ppo.GameRules) -> str:
    """A VAE + MOA whose goals are what the policies to train with do, found without labels. Returns: its folder."""
    return call("pretrain_vae.py", "--data", record_games(args, rules).resolve(), "--goals", "free")


def evaluator(args: Args) -> hop_ppo.Evaluator:
    """Of policies that know nothing, in this game, with the population."""
    settings = hop_ppo.Args(env_id=args.env_id, population=args.folder)
    rules, team_episodes = hop_ppo.load_rules(settings)
    return hop_ppo.Evaluator(replace(settings, team_episodes=team_episodes), rules, None, None)


def cross_play(args: Args) -> Rows:
    """A row a pair: what a policy earns with copies of a partner in all other seats."""
    judge = evaluator(args)
    policies = hop_ppo.load_population(args.folder, args.env_id, ())
    names = json.loads((Path(args.folder) / "population.json").read_text(encoding="utf-8"))
    teams = [
        (split, number, name)
        for split, key in (("population", "train"), ("held-out", "held_out"))
        for number, name in enumerate(names[key])
    ]
    rows: Rows = []
    for partner_split, partner, partner_name in tqdm(teams, unit=" partners"):
        for split, number, name in teams:
            agent = policies[split][number]
            team = f"{partner_split}/{partner}"
            returns = judge.play(agent, team, judge.final_seed, args.boards, 1)["learner"]
            row = dict(policy=name, partner=partner_name, learner=float(returns.mean()))
            rows.append(row | dict(learner_ci95=float(half_width(returns[0])), boards=args.boards))
    return rows


def draw_matrix(rows: pd.DataFrame, path: Path) -> None:
    """Rows: the policy; columns: its partners; the mean return in each cell."""
    names = list(dict.fromkeys(rows.policy))
    matrix = rows.pivot(index="policy", columns="partner", values="learner").loc[names, names]
    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix, cmap="viridis")
    axis.set_xticks(range(len(names)), names, rotation=60)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("partners, in all other seats")
    axis.set_ylabel("policy")
    middle = (matrix.to_numpy().min() + matrix.to_numpy().max()) / 2
    for (row, column), value in np.ndenumerate(matrix.to_numpy()):
        color = "black" if value > middle else "white"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, label=f"mean return of {rows.boards.iloc[0]} boards")
    figures.save(figure, path)


def methods(args: Args, out: Path) -> Rows:
    """A row a method, seed, partner and episode."""
    args_of_rows = replace(args, out=out.as_posix())
    judge = evaluator(args)
    number = len(hop_ppo.load_population(args.folder, args.env_id, ())["held-out"])
    partners = [f"held-out/{k}" for k in range(number)]
    rows: Rows = []
    best: dict[str, np.ndarray] = {}

    def meet(
        name: str, seed: int, policy: hop_ppo.ActorCritic, judge: hop_ppo.Evaluator, partner: str
    ) -> None:
        om = "none" if name in ("best response", "script_told") else ""
        played = judge.play(policy, partner, judge.final_seed, args.boards, args.episodes, om=om)["learner"]
        bound = best.setdefault(partner, played)
        for episode, (earned, response) in enumerate(zip(played, bound, strict=True), start=1):
            row = dict(name=name, seed=seed, partner=partner, episode=episode, learner=float(earned.mean()))
            share = float(earned.mean() / response.mean())
            add(rows, row | dict(learner_ci95=float(half_width(earned)), share=share), args_of_rows)

    for partner in tqdm(partners, unit=" best responses"):
        team = ("--co-players", partner, "--population", args.folder)
        folder = run(*game_flags(args, args.seeds[0], args.steps), *team)
        meet("best response", args.seeds[0], hop_ppo.load_agent(folder)[0], judge, partner)
        switch = best_switch(judge.play, judge.rules, partner, hop_ppo.EVAL_SEED, args.boards)
        meet("script_told", args.seeds[0], ScriptPolicy(judge.rules, switch), judge, partner)
    wanted = args.only or METHODS
    vae: Flags = ()
    if {"latent", "belief"} & set(wanted):
        vae = ("--vae", args.vae or learn_goals(args, judge.rules))
    for seed in args.seeds:
        for om in wanted:
            team = ("--co-players", "population", "--population", args.folder)
            folder = run(*game_flags(args, seed, args.method_steps), *team, "--om", om, *vae)
            agent, own_judge = load(folder)
            for partner in partners:
                meet(om, seed, agent, own_judge, partner)
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Over partners: return and share of the best response in the first episode and from the second on, by seed."""
    late = rows[rows.episode >= 2].groupby(["name", "seed"], sort=False)[["learner", "share"]].mean()
    first = rows[rows.episode == 1].groupby(["name", "seed"], sort=False)[["learner", "share"]].mean()
    return late.join(first, rsuffix="_episode1")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    torch.set_num_threads(1)
    rules, _ = hop_ppo.load_rules(hop_ppo.Args(env_id=args.env_id))
    if args.what == "train":
        train_population(args, rules)
        print(machine())
        return
    out = Path(args.out or Path(args.folder) / f"{args.what}.csv")
    rows = pd.DataFrame(cross_play(args) if args.what == "cross" else methods(args, out))
    rows.to_csv(out, index=False)
    print(machine())
    with pd.option_context("display.width", 250, "display.max_rows", 500):
        if args.what == "cross":
            draw_matrix(rows, out.with_suffix(".png"))
            print(rows.pivot(index="policy", columns="partner", values="learner").round(2))
        else:
            print(summary(rows).round(3))


if __name__ == "__main__":
    tracking.run(main, ValueError)
