"""The results of docs/hop_ppo.md, each table by one command: python -m benchmarks.hop_ppo --what teams

Each run is `python hop_ppo.py ...` of its own, with seeds 1, 2, 3; its figures are read from its metrics.json. `latent`,
`belief`, `imagine` and planning need a VAE and a world model: python pretrain_vae.py, python train_world_model.py.
"""

import itertools
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import hop_ppo
import tracking
from benchmarks import cleanrl_ppo, machine
from envs import Rules, snowdrift
from metrics.comparison import best_switch, play_script, standard_teams
from metrics.returns import half_width, removals, summarize, table_rows
from metrics.rivals import uniform_policy
from tracking import figures

TEAMS = ("mixed", "3NS", "1NS2NH", "2NS1NH", "3NH", "3RANDOM")
OPPONENT_MODELS = ("none", "latent", "belief", "gru", "liam", "oracle")


@dataclass
class Args:
    what: Literal[
        "om",
        "hidden",
        "adapt",
        "self",
        "teams",
        "imagine",
        "search",
        "plan",
        "speed",
        "ladder",
        "untrained",
        "overhead",
        "imagination",
        "removals",
    ]
    """which table"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """one run each"""
    only: tuple[str, ...] = ()
    """om, hidden, imagine, self, teams, ladder, plan, speed: these settings alone; adapt: searches to play with, too"""
    steps: int = 1_500_000
    """of a run"""
    out: str = ""
    """also write the rows to this CSV file"""
    seconds: float = 600.0
    """ladder: how long each loop trains"""
    agent: str = ""
    """search, plan, speed: the run whose agent plays; search: one trained with --om oracle"""
    runs: str = ""
    """adapt: the CSV file of `--what hidden` or `om`, whose runs are judged; removals: the folder of the runs"""
    vae: str = ""
    """plan, speed, adapt --only: instead of the one that the run was trained with"""
    world_model: str = ""
    """plan, speed, adapt --only: the same"""
    boards: int = 256
    """fresh ones to judge on"""
    threads: int = 1
    """of PyTorch"""


Rows = list[dict]
Flags = tuple[str | float, ...]


def save(rows: Rows, args: Args) -> None:
    if args.out:
        pd.DataFrame(rows).to_csv(args.out, index=False)


def wanted(args: Args, names: Iterable[str]) -> Iterable[str]:
    """Those of --only, or all. Raises: tracking.UsageError: it names another."""
    unknown = sorted(set(args.only).difference(names))
    if unknown:
        raise tracking.UsageError(
            f"--only {unknown[0]}: --what {args.what} has {', '.join(map(repr, names))}"
        )
    return args.only or names


def read_rows(flag: str, path: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """These columns of a CSV file. Raises: tracking.UsageError: it has not all of them."""
    table = pd.read_csv(path, keep_default_na=False)
    missing = [name for name in columns if name not in table]
    if missing:
        raise tracking.UsageError(f"{flag} {path}: expected a column {missing[0]!r}, found {list(table)}")
    return table[list(columns)]


def add(rows: Rows, row: dict, args: Args) -> None:
    """Print and keep a row of a table."""
    rows.append(row)
    print(row, flush=True)
    save(rows, args)


# ---- runs of the script, and who judges them


def run(*flags: str | float) -> str:
    """One training, judged little by the script itself. Returns: its folder. Raises: tracking.UsageError: it failed."""
    few = ("--eval-boards", "256", "--plan-boards", "16", "--eval-every", "1000000")
    return call("hop_ppo.py", *few, *flags)


def call(script: str, *flags: str | float) -> str:
    """A script of this repository. Returns: the folder of its run, "" if it saves none.

    Raises: tracking.UsageError: it failed; with its last line.
    """
    command = [sys.executable, script, *map(str, flags)]
    print("$ python", *command[1:], file=sys.stderr, flush=True)
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        errors = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise tracking.UsageError(f"{' '.join(command[1:])}: {errors[-1]}")
    saved = re.search(r"model saved to: (\S+)", done.stdout)
    return saved[1] if saved else ""


def load(folder: str, **settings) -> tuple[hop_ppo.ActorCritic, hop_ppo.Evaluator]:
    """The agent of a run, and who judges it. settings: other than the run's own."""
    agent, checkpoint = hop_ppo.load_agent(folder)
    run_args = replace(hop_ppo.Args(**checkpoint["args"]), **settings)
    run_args = hop_ppo.with_own_moa(run_args, folder, checkpoint)
    rules, _ = hop_ppo.load_rules(run_args)
    vae, world_model = hop_ppo.load_networks(run_args, rules)
    hop_ppo.check_info_size(agent, run_args, rules, vae)
    return agent, hop_ppo.Evaluator(run_args, rules, vae, world_model)


def default_evaluator(**settings) -> hop_ppo.Evaluator:
    """Judges who knows nothing of the others, in the default game."""
    return hop_ppo.Evaluator(hop_ppo.Args(team_episodes=1, **settings), Rules(), None, None)


def grid(args: Args, settings: dict[str, Flags], teams: tuple[str, ...]) -> Rows:
    """A row a setting, seed and team: what the last policy of the run earns on --boards fresh boards."""
    rows: Rows = []
    first = next(iter(settings))
    for name in wanted(args, settings):
        for seed in args.seeds:
            folder = run("--seed", seed, "--total-timesteps", args.steps, *settings[name])
            for row in judge_run(folder, teams, args.boards, name == first, seed == args.seeds[0]):
                rows.append(dict(setting=name, seed=seed) | row)
            save(rows, args)
    return rows


def judge_run(folder: str, teams: tuple[str, ...], boards: int, first: bool, first_seed: bool) -> Rows:
    """first: of the settings; beside it untrained networks are judged, and with the first seed those that do not learn."""
    metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    costs = {key: metrics[key] for key in ("real_steps", "seconds", "sps", "run")}
    agent, judge = load(folder)
    judge.args.team_episodes = hop_ppo.load_rules(judge.args)[1]  # as the game has it, however it was trained
    judge.args.eval_boards = boards * judge.args.team_episodes
    rows: Rows = []
    for team in teams:
        results = {"policy": {team: play(judge, agent, team)}}
        if first:
            results["untrained"] = {team: play(judge, judge.untrained(agent), team)}
        if first and first_seed:
            results |= rivals(judge, team)
        rows += [row | costs for row in table_rows(results)]
    return rows


def play(judge: hop_ppo.Evaluator, policy: Callable, team: str, boards: int = 0, om: str = "") -> dict:
    """What a policy earns on the boards of the final evaluation, as `summarize` has it."""
    return summarize(judge.play(policy, team, judge.final_seed, boards, om=om))


def rivals(judge: hop_ppo.Evaluator, team: str) -> dict[str, dict[str, dict]]:
    """Random play and the scripts, whose ticks are chosen on the boards of EVAL_SEED."""
    results = {"random": {team: play(judge, uniform_policy, team, om="none")}}
    boards = judge.args.eval_boards
    for kind, choice in (("script", "mixed"), ("script_told", team)):
        switch = best_switch(judge.play, judge.rules, choice, hop_ppo.EVAL_SEED, boards)
        results[kind] = {team: play_script(judge.play, judge.rules, team, judge.final_seed, switch)}
    return results


# ---- tables of runs


def om_table(args: Args) -> Rows:
    return grid(args, {om: ("--om", om) for om in OPPONENT_MODELS}, TEAMS)


def hidden_table(args: Args) -> Rows:
    """--boards: each with 10 episodes in a row. belief2: half of what it learns from are first episodes."""
    flags = ("--env-id", "StagHunt-hidden-v0")
    settings = {om: ("--om", om, *flags) for om in OPPONENT_MODELS}
    settings["belief2"] = (*settings["belief"], "--team-episodes", 2)
    return grid(args, settings, ("mixed",))


def self_table(args: Args) -> Rows:
    flags = ("--co-players", "self", "--num-envs", "512")
    return grid(args, {"own": flags, "team": (*flags, "--team-reward")}, ("self",))


def teams_table(args: Args) -> Rows:
    """A policy trained with each team, told nothing and who they are, judged with that team; `cut`: --no-end-at-horizon."""
    rows: Rows = []
    settings: dict[str, Flags] = {om: ("--om", om) for om in ("none", "oracle")}
    settings |= {f"{om}, cut": (*flags, "--no-end-at-horizon") for om, flags in settings.items()}
    for team in TEAMS[1:]:
        with_team = {name: (*flags, "--co-players", team) for name, flags in settings.items()}
        rows += grid(replace(args, out=""), with_team, (team,))
        save(rows, args)
    return rows


def imagine_table(args: Args) -> Rows:
    return grid(args, {f"real {ratio}": ("--real-ratio", ratio) for ratio in (1.0, 0.5, 0.0)}, ("mixed",))


# ---- what a trained run does


def adapt_table(args: Args) -> Rows:
    """Unknown co-players, `mixed`, in fixed seats: the learner's return by episode; --boards: teams. Beside it the share of
    oracle - none, the first run of each, that is recovered on these teams: in the first episode, and in those after it.
    --only: also with these searches before each move, in the world model, but for none, oracle, gru and liam."""
    rows: Rows = []
    ends: dict[str, np.ndarray] = {}
    searches = ("", *(wanted(args, SEARCHES) if args.only else ()))
    runs = read_rows("--runs", args.runs, ("setting", "seed", "run")).drop_duplicates()
    runs = runs.sort_values("setting", key=lambda names: ~names.isin(["none", "oracle"]), kind="stable")
    for (name, seed, run_name), search in itertools.product(runs.itertuples(index=False), searches):
        if search and name in ("none", "gru", "liam", "oracle"):
            continue
        how = dict(plan=True, **networks(args), **SEARCHES[search]) if search else {}
        agent, judge = load(f"ppo_ckpts/{run_name}", **how)
        plan = "learned" if search else ""
        learner = judge.play(agent, "mixed", judge.final_seed, args.boards, 10, plan=plan)["learner"]
        if name in ("none", "oracle"):
            ends.setdefault(name, learner)
        row: dict = dict(setting=f"{name} {search}".strip(), seed=seed)
        row |= {f"episode{i}": value for i, value in enumerate(learner.mean(1), start=1)}
        if len(ends) == 2:
            for part, episodes in dict(first=slice(0, 1), later=slice(1, None)).items():
                parts = [returns[episodes].mean(0) for returns in (learner, ends["none"], ends["oracle"])]
                row[part], row[f"{part}_ci95"] = recovered(*parts)
        add(rows, row, args)
        if args.out:
            draw_adaptation(rows, Path(args.out).with_suffix(".png"))
    return rows


def recovered(learner: np.ndarray, none: np.ndarray, oracle: np.ndarray) -> tuple[float, float]:
    """The share of oracle - none, and half the width of its 95% interval by the delta method. float [B] each, of the same
    boards. NaN where the interval of oracle - none holds 0."""
    gap = (oracle - none).mean()
    if abs(gap) <= half_width(oracle - none):
        return math.nan, math.nan
    share = (learner - none).mean() / gap
    return float(share), float(half_width((learner - none - share * (oracle - none)) / gap))


def draw_adaptation(rows: Rows, path: Path) -> None:
    by_setting = pd.DataFrame(rows).set_index("setting").filter(like="episode").groupby("setting", sort=False)
    panel = {"return of the learner, mean of the seeds": by_setting.mean().T.to_dict("list")}
    spread = by_setting.std().dropna().T.to_dict("list")  # none of a single seed
    half_widths = {name: spread for name in panel} if spread else None
    figures.save(figures.curves(panel, {}, "episode with the same co-players", half_widths), path)


def search_table(args: Args) -> Rows:
    """Search in the real rules, told who they are, beside its own policy; gain: over a quarter of it, paired."""
    rows: Rows = []
    before: dict[str, np.ndarray] = {}
    for simulations, team in itertools.product((0, 200, 800, 3200), TEAMS):
        agent, judge = load(args.agent, oracle_simulations=simulations)
        plan = "oracle" if simulations else ""
        start = time.perf_counter()
        results = judge.play(agent, team, judge.final_seed, args.boards, 1, "oracle", plan)
        seconds = time.perf_counter() - start
        summary = summarize(results)
        learner = results["learner"].mean(0)
        gain = learner - before.get(team, learner)
        before[team] = learner
        row = dict(team=team, simulations=simulations)
        row |= {key: summary[key] for key in ("learner", "learner_ci95")}
        row |= dict(gain=gain.mean(), gain_ci95=half_width(gain), seconds=seconds)
        add(rows, row, args)
    return rows


IMAGINED = dict(plan_search="gumbel", plan_fit=hop_ppo.Args().plan_fit)
SEARCHES = {  # of one decision, over all its goal samples
    "puct": dict(plan_search="puct", plan_simulations=200, plan_samples=5, plan_fit=0),
    "gumbel": dict(plan_simulations=16, plan_samples=4, **IMAGINED),
    "gumbel8": dict(plan_simulations=8, plan_samples=2, **IMAGINED),
}
KINDS = dict.fromkeys(SEARCHES, ("learned", "rules"))


def choices(args: Args, kinds: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """The searches that are asked for, each in each kind of model."""
    return [(name, kind) for name in wanted(args, kinds) for kind in kinds[name]]


def networks(args: Args) -> dict[str, str]:
    """Those that are named: instead of those of a run."""
    return {name: getattr(args, name) for name in ("vae", "world_model") if getattr(args, name)}


def load_planner(args: Args) -> tuple[hop_ppo.ActorCritic, hop_ppo.Evaluator]:
    return load(args.agent, plan=True, **networks(args))


def plan_table(args: Args) -> Rows:
    """The policy alone, what it imagined alone, and each search, in the world model and in the rules, on the same boards.
    --only: these searches alone; none: what was imagined, without a search."""
    rows: Rows = []
    agent, judge = load_planner(args)
    teams = standard_teams("mixed", judge.rules) if judge.rules.hunters == 4 else ["mixed"]
    played = choices(args, dict(none=("learned",)) | KINDS)
    for team in teams:
        alone = judge.play(agent, team, judge.final_seed, args.boards)["learner"].mean(0)
        for name, kind in played:
            judge.args = replace(judge.args, **SEARCHES.get(name, IMAGINED))
            player = dict(policy=agent, plan=kind)
            if name == "none":
                player = dict(policy=judge.imagine(agent), om="belief")
            results = judge.play(team=team, seed=judge.final_seed, boards=args.boards, **player)
            planned = results["learner"].mean(0)
            gain = planned - alone
            row = dict(kind=kind, search=name, team=team, seed=judge.args.seed)
            row |= dict(policy=alone.mean(), planned=planned.mean())
            add(rows, row | dict(gain=gain.mean(), gain_ci95=half_width(gain)), args)
    return rows


def speed_table(args: Args) -> Rows:
    """Decisions a second by each search: boards that are reset as soon as their learner has left. --only: these."""
    rows: Rows = []
    agent, judge = load_planner(args)
    with_oracle = dict(puct=("learned", "rules", "oracle"))  # whose search is PUCT
    for name, kind in choices(args, KINDS | with_oracle):
        simulations = SEARCHES[name]["plan_simulations"]
        judge.args = replace(judge.args, **SEARCHES[name], oracle_simulations=simulations)
        planner = plan_ticks(agent, judge, kind, args.boards)
        row = dict(kind=kind, search=name, seed=1, simulations=simulations)
        row |= dict(decisions=planner.decisions, per_second=planner.decisions / planner.seconds)
        add(rows, row, args)
    return rows


@torch.no_grad()
def plan_ticks(
    agent: hop_ppo.ActorCritic, judge: hop_ppo.Evaluator, kind: str, boards: int, ticks: int = 14
) -> hop_ppo.Planner:
    """The planner, after so many ticks of a game; it counts its decisions and seconds, but for the first two."""
    torch.manual_seed(1)
    envs = hop_ppo.make_envs(judge.rules, boards, "mixed")
    infos = hop_ppo.to_tensors(envs.reset(seed=1)[1])
    opponents = hop_ppo.make_opponents(judge.args, envs, infos, judge.vae)
    networks = (judge.vae, judge.world_model)
    imagined = judge.imagine(agent) if kind == "learned" and judge.args.plan_fit else None
    planner = hop_ppo.Planner(agent, envs, opponents, judge.args, *networks, kind, imagined)
    for tick in range(ticks):
        if tick == 2:  # the first warm up
            planner.decisions = 0
            planner.seconds = 0.0
        opponent_info = opponents.features()
        actions, _ = planner(hop_ppo.observe_envs(infos, judge.rules), opponent_info, infos)
        _, _, terminated, truncated, infos = envs.step(actions.numpy())
        infos = hop_ppo.to_tensors(infos)
        for tracker in (opponents, planner):
            tracker.update(infos)
        ended = terminated | truncated
        infos = hop_ppo.to_tensors(envs.reset(options={"reset_mask": ended})[1])
        for tracker in (opponents, planner):
            tracker.reset(torch.as_tensor(ended), infos)
    return planner


# ---- networks and loops


def first_weights(seed: int, network: str, **sizes) -> hop_ppo.ActorCritic:
    """A network that is told nothing; sizes: of it, if not the usual ones."""
    torch.manual_seed(seed)
    return hop_ppo.make_agent(network, Rules(), 0, **sizes)


def untrained_table(args: Args) -> Rows:
    """What networks earn with their first weights, with each team, on --boards fresh boards: what is built in is worth."""
    kinds = {
        "cnn": dict(network="cnn"),
        "objects, no bias": dict(network="objects", hunt_bias=0.0),
        "objects": dict(network="objects"),
    }
    judge = default_evaluator(eval_boards=args.boards)
    rows: Rows = []
    for kind, seed, team in itertools.product(kinds, args.seeds, TEAMS):
        summary = play(judge, first_weights(seed, **kinds[kind]), team, om="none")
        row = dict(kind=kind, team=team, seed=seed)
        rows.append(row | {key: summary[key] for key in ("learner", "learner_ci95")})
    return rows


class OurLoop:
    """hop_ppo.py's loop, told nothing among `mixed`."""

    def __init__(self, agent: hop_ppo.ActorCritic, seed: int):
        self.agent = agent
        self.args = hop_ppo.Args(seed=seed)
        envs = hop_ppo.make_envs(Rules(), self.args.num_envs, "mixed")
        self.collector = hop_ppo.Collector(envs, self.args, None, seed)
        self.optimizer = hop_ppo.make_optimizer(agent, self.args)

    def update(self, frac: float) -> tuple[hop_ppo.Batch, torch.Tensor]:
        """A rollout and an update. Returns: its samples and episode_stats."""
        episode_stats = torch.zeros(3)
        batch = hop_ppo.rollout(self.agent, self.collector, self.args, episode_stats)
        hop_ppo.update(self.agent, self.optimizer, batch, self.args, frac)
        return batch, episode_stats


def train_ours(
    seconds: float, seed: int, network: str, **sizes
) -> tuple[list[cleanrl_ppo.Row], hop_ppo.ActorCritic]:
    """Returns: as `cleanrl_ppo.train`."""
    agent = first_weights(seed, network, **sizes)
    loop = OurLoop(agent, seed)
    num_envs, num_steps = loop.args.num_envs, loop.args.num_steps
    rows: list[cleanrl_ppo.Row] = []
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        _, (episodes, returns, _) = loop.update(1 - elapsed / seconds)
        ticks = (len(rows) + 1) * num_steps
        early = ticks < 2 * Rules().horizon  # the episodes that have ended are the short ones
        mean_return = math.nan if early else float(returns / episodes)
        rows.append((time.perf_counter() - start, ticks * num_envs, mean_return))
    return rows, agent


RUNGS = {
    "plain loop, slow game": partial(cleanrl_ppo.train, cleanrl_ppo.plain_envs),
    "plain loop, our game": partial(cleanrl_ppo.train, cleanrl_ppo.fast_envs),
    "our loop, cnn": partial(train_ours, network="cnn"),
    "our loop, objects, no bias": partial(train_ours, network="objects", hunt_bias=0.0),
    "our loop, objects": partial(train_ours, network="objects"),
}


def ladder_table(args: Args) -> Rows:
    """From CleanRL's loop to hop_ppo.py, one change at a time, each trained for --seconds: what the learner then earns on
    --boards fresh boards among `mixed`, and when the episodes of training first paid as much as the first rung's at best
    (means of 5 updates). One rung after the other, on the same machine with the same threads."""
    rows: Rows = []
    curves: list[pd.DataFrame] = []
    judge = default_evaluator()
    for seed in args.seeds:
        best = None
        for kind in wanted(args, RUNGS):
            trained, policy = RUNGS[kind](args.seconds, seed)
            curve = pd.DataFrame(trained, columns=["seconds", "steps", "learner"])
            curve = curve.assign(kind=kind, seed=seed)
            best = smooth(curve).max() if best is None else best
            summary = play(judge, policy, "mixed", args.boards, om="none")
            add(rows, rung(curve, summary, float(best)), args)
            curves.append(curve)
            if args.out:
                draw_ladder(pd.concat(curves), Path(args.out).with_suffix(".png"))
    return rows


def smooth(curve: pd.DataFrame) -> pd.Series:
    return curve["learner"].rolling(5, min_periods=1).mean()


def rung(curve: pd.DataFrame, summary: dict, best: float) -> dict:
    """A row of `ladder`. best: the mean return that the first rung reached."""
    reached = curve[smooth(curve) >= best].head(1)
    seconds = float(curve["seconds"].iloc[-1])
    steps = float(curve["steps"].iloc[-1])
    row = dict(kind=curve["kind"].iloc[0], seed=int(curve["seed"].iloc[0]))
    row |= dict(steps=steps, per_second=steps / seconds)
    row |= {key: summary[key] for key in ("learner", "learner_ci95")}
    row["best"] = best
    row["steps_to_best"] = float(reached["steps"].min())
    row["seconds_to_best"] = float(reached["seconds"].min())
    return row


def draw_ladder(curves: pd.DataFrame, path: Path) -> None:
    """Learning curves of `ladder`: return over seconds."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    by_kind = curves.groupby("kind", sort=False)
    for colour, (kind, by_seed) in zip(figures.COLOURS, by_kind, strict=False):
        for i, (_, curve) in enumerate(by_seed.groupby("seed", sort=False)):
            label = kind if i == 0 else None
            axis.plot(curve["seconds"], curve["learner"], color=colour, lw=1.2, label=label)
    axis.set(xscale="log", xlabel="seconds on one core", ylabel="return of the learner among `mixed`")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figures.save(figure, path)


def overhead_table(args: Args) -> Rows:
    """The loop's time beside that of the network alone: the same batches forward, and forward and backward, nothing else."""
    rows: Rows = []
    for seed in args.seeds:
        torch.manual_seed(seed)
        agent = hop_ppo.make_agent("objects", Rules(), 0)
        loop = OurLoop(agent, seed)
        seconds = {"loop": 0.0, "bare network": 0.0}
        for now in range(12):
            start = time.perf_counter()
            batch, _ = loop.update(1.0)
            middle = time.perf_counter()
            pass_bare(agent, batch, loop.args)
            if now:
                seconds["loop"] += middle - start
                seconds["bare network"] += time.perf_counter() - middle
        share = 1 - seconds["bare network"] / seconds["loop"]
        rows.append(dict(kind="none", seed=seed, **seconds, overhead=share))
        print(rows[-1], flush=True)
    return rows


def pass_bare(agent: hop_ppo.ActorCritic, batch: hop_ppo.Batch, run_args: hop_ppo.Args) -> None:
    """Every forward and backward pass that the update made, on the same samples."""
    with torch.no_grad():
        for obs, info in split(batch, run_args.num_envs):
            agent(obs, info)
    parts = split(batch, math.ceil(len(batch.actions) / run_args.num_minibatches))
    for _ in range(run_args.update_epochs):
        for obs, info in parts:
            logprobs, values = agent(obs, info)
            agent.zero_grad()
            (logprobs[:, 0].sum() + values.sum()).backward()
    agent.zero_grad()


def split(batch: hop_ppo.Batch, size: int) -> list[tuple[hop_ppo.Observation, torch.Tensor]]:
    slices = [slice(start, start + size) for start in range(0, len(batch.actions), size)]
    return [(batch.obs[rows], batch.opponent_info[rows]) for rows in slices]


def imagination_table(args: Args) -> Rows:
    """Imagined board-steps a second of processor time, of a policy that costs nothing: any legal action. With co-players by
    the goal heads, and in self-play, without; the newest networks, boards that begin as those of the default file."""
    rows: Rows = []
    for seed, kind, boards in itertools.product(args.seeds, ("mixed", "self"), (256, 4096, 16384)):
        torch.manual_seed(seed)
        run_args = hop_ppo.Args(co_players=kind, real_ratio=0.0, team_episodes=1)
        rules, _ = hop_ppo.load_rules(run_args)
        vae, world_model = hop_ppo.load_networks(run_args, rules)
        starts = hop_ppo.offline_starts(run_args, rules)
        envs = hop_ppo.make_world_model_envs(run_args, rules, boards, starts, world_model, vae)
        play_any(envs, 100)  # fills what is computed once
        ticks = max(20, 2**17 // boards)
        start = time.process_time()
        play_any(envs, ticks)
        seconds = time.process_time() - start
        row = dict(kind=kind, seed=seed, boards=boards)
        add(rows, row | dict(per_second=boards * ticks / seconds), args)
    return rows


def play_any(envs: hop_ppo.Envs, ticks: int) -> None:
    """So many ticks of legal actions drawn at random; boards that end begin again."""
    _, infos = envs.reset()
    for _ in range(ticks):
        mask = infos["action_mask"]
        actions = (mask * torch.rand(mask.shape)).argmax(1)
        _, _, terminated, truncated, _ = envs.step(actions)
        ended = terminated | truncated
        _, infos = envs.reset(options={"reset_mask": ended})


def removals_table(args: Args) -> Rows:
    """Who removes drifts: of each run in the folder --runs with the team that it was trained with, by its metrics.json."""
    rows: Rows = []
    for path in sorted(Path(args.runs).glob("*/metrics.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(hop_ppo.Args)}
        run_args = hop_ppo.Args(**{key: value for key, value in metrics["args"].items() if key in known})
        rules, _ = hop_ppo.load_rules(run_args)
        if rules.game != snowdrift.GAME:
            continue
        team = run_args.co_players
        setting = f"{run_args.env_id} {team}{' team reward' * run_args.team_reward} --om {run_args.om}"
        figures = metrics["teams"][team]
        row = dict(
            setting=setting, seed=run_args.seed, learner=figures["learner"], team_return=figures["team"]
        )
        add(rows, row | removals(figures, rules), args)
    if not rows:
        raise tracking.UsageError(f"--runs {args.runs}: no run of the snowdrift there")
    return rows


# ---- the command line

TABLES: dict[str, Callable[[Args], Rows]] = {
    "om": om_table,
    "hidden": hidden_table,
    "adapt": adapt_table,
    "self": self_table,
    "teams": teams_table,
    "imagine": imagine_table,
    "search": search_table,
    "plan": plan_table,
    "speed": speed_table,
    "ladder": ladder_table,
    "untrained": untrained_table,
    "overhead": overhead_table,
    "imagination": imagination_table,
    "removals": removals_table,
}


def check(args: Args) -> None:
    """Raises: tracking.UsageError: a table needs what was not named."""
    if args.what in ("search", "plan", "speed") and not args.agent:
        raise tracking.UsageError(f"--what {args.what} needs --agent, the folder of a run")
    if args.what in ("adapt", "removals") and not args.runs:
        raise tracking.UsageError(f"--what {args.what} needs --runs, see --help")
    if args.what in ("search", "untrained", "overhead", "imagination", "removals") and args.only:
        raise tracking.UsageError(f"--what {args.what} takes no --only")
    if not args.seeds:
        raise tracking.UsageError("--seeds: name one or more")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    check(args)
    torch.set_num_threads(args.threads)
    rows = pd.DataFrame(TABLES[args.what](args))
    print(machine())
    print(f"python -m benchmarks.hop_ppo {' '.join(sys.argv[1:])}")
    order = ("setting", "policy", "team", "search", "simulations", "kind", "boards")
    keys = [key for key in order if key in rows]
    numbers = [key for key in rows.select_dtypes("number") if key not in ("seed", *keys)]
    table = rows.groupby(keys, sort=False)[numbers].agg(["mean", "std"])
    table.columns = ["_".join(column) for column in table.columns]
    with pd.option_context("display.width", 250, "display.max_columns", 50):
        print(table.round(4))


if __name__ == "__main__":
    tracking.run(main)
