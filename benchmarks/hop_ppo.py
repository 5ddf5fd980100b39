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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure

import hop_ppo
from benchmarks import cleanrl_ppo, machine
from tracking import figures

TEAMS = ("mixed", "3NS", "1NS2NH", "2NS1NH", "3NH", "3RANDOM")


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
    ]
    """which table"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """one run each"""
    only: tuple[str, ...] = ()
    """om, hidden, imagine, teams, ladder: these settings alone"""
    steps: int = 1_500_000
    """of a run"""
    out: str = ""
    """also write the rows to this CSV file"""
    seconds: float = 600.0
    """ladder: how long each loop trains"""
    agent: str = ""
    """search, plan, speed: the run whose agent plays; search: one trained with --om oracle"""
    runs: str = ""
    """adapt: the CSV file of `--what hidden` or `om`, whose runs are judged"""
    boards: int = 256
    """fresh ones to judge on"""
    threads: int = 1
    """of PyTorch"""


def run(*flags: str) -> str:
    """One training, judged little by the script itself. Returns: its folder."""
    command = [sys.executable, "hop_ppo.py", "--eval-boards", "256", "--plan-boards", "16", "--eval-every", "1000000",
               *map(str, flags)]  # fmt: skip
    print("$ python", *command[1:], file=sys.stderr, flush=True)
    said = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout
    return re.search(r"model saved to: (\S+)", said)[1]


def grid(args: Args, settings: dict[str, tuple], teams: tuple[str, ...]) -> list[dict]:
    """A row a setting, seed and team: what the last policy of the run earns on --boards fresh boards."""
    rows = []
    for name, flags in settings.items():
        if args.only and name not in args.only:
            continue
        for seed in args.seeds:
            folder = run("--seed", seed, "--total-timesteps", args.steps, *flags)
            metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
            agent, judge = referee(replace(args, agent=folder))
            judge.args.eval_boards = args.boards * judge.args.team_episodes
            for team in teams:
                ran = {key: metrics[key] for key in ("real_steps", "seconds", "sps", "run")}
                found = {"policy": {team: hop_ppo.summarize(judge.play(agent, team, judge.final_seed))}}
                if name == next(iter(settings)):
                    untrained = judge.play(judge.untrained(agent), team, judge.final_seed)
                    found["untrained"] = {team: hop_ppo.summarize(untrained)}
                if name == next(iter(settings)) and seed == args.seeds[0]:
                    found |= rivals(judge, team)
                rows += [dict(setting=name, seed=seed) | row | ran for row in hop_ppo.table_rows(found)]
            if args.out:
                pd.DataFrame(rows).to_csv(args.out, index=False)
    return rows


def rivals(judge: hop_ppo.Evaluator, team: str) -> dict[str, dict[str, dict]]:
    """Random play and the scripts, whose ticks are chosen on the boards of EVAL_SEED."""
    random = hop_ppo.summarize(judge.play(hop_ppo.uniform, team, judge.final_seed, om="none"))
    scripts = {kind: judge.script(team, judge.final_seed, judge.best_switch(its))
               for kind, its in (("script", "mixed"), ("script_told", team))}  # fmt: skip
    return {kind: {team: one} for kind, one in ({"random": random} | scripts).items()}


def om(args: Args) -> list[dict]:
    return grid(args, {om: ("--om", om) for om in ("none", "latent", "belief", "oracle")}, TEAMS)


def hidden(args: Args) -> list[dict]:
    """--boards: each with 10 episodes in a row."""
    flags = ("--env-id", "StagHunt-hidden-v0")
    return grid(args, {om: ("--om", om, *flags) for om in ("none", "latent", "belief", "oracle")}, ("mixed",))


def adapt(args: Args) -> list[dict]:
    """Unknown co-players, `mixed`, in fixed seats: the learner's return by episode; --boards: teams."""
    rows = []
    for name, seed, run_name in (
        pd.read_csv(args.runs)[["setting", "seed", "run"]].drop_duplicates().itertuples(index=False)
    ):
        agent, judge = referee(replace(args, agent=f"ppo_ckpts/{run_name}"))
        found = judge.play(agent, "mixed", judge.final_seed, args.boards, 10)["learner"].mean(1)
        rows.append(
            dict(setting=name, seed=seed) | {f"episode{i + 1}": value for i, value in enumerate(found)}
        )
        print(rows[-1], flush=True)
        if args.out:
            pd.DataFrame(rows).to_csv(args.out, index=False)
            curves = (
                pd.DataFrame(rows)
                .drop(columns="seed")
                .groupby("setting", sort=False)
                .mean()
                .T.to_dict("list")
            )
            panel = {"return of the learner, mean of the seeds": curves}
            figures.save(
                figures.curves(panel, {}, "episode, the same co-players"), Path(args.out).with_suffix(".png")
            )
    return rows


def self(args: Args) -> list[dict]:
    few = ("--co-players", "self", "--num-envs", "512")
    return grid(args, {"own": few, "team": (*few, "--team-reward")}, ("self",))


def teams(args: Args) -> list[dict]:
    """A policy trained with each team, told nothing and who they are, judged with that team; `cut`: --no-end-at-horizon."""
    rows = []
    settings = {om: ("--om", om) for om in ("none", "oracle")}
    settings |= {f"{om}, cut": (*flags, "--no-end-at-horizon") for om, flags in settings.items()}
    for team in TEAMS[1:]:
        rows += grid(
            replace(args, out=""), {key: (*it, "--co-players", team) for key, it in settings.items()}, (team,)
        )
        if args.out:
            pd.DataFrame(rows).to_csv(args.out, index=False)
    return rows


def imagine(args: Args) -> list[dict]:
    return grid(args, {f"real {ratio}": ("--real-ratio", ratio) for ratio in (1.0, 0.5, 0.0)}, ("mixed",))


def referee(args: Args, **settings) -> tuple[hop_ppo.Agent, hop_ppo.Evaluator]:
    agent, checkpoint = hop_ppo.load_agent(args.agent)
    known = {
        key: value for key, value in checkpoint["args"].items() if key in hop_ppo.Args.__dataclass_fields__
    }
    run_args = replace(hop_ppo.Args(**known), **settings)
    rules, _ = hop_ppo.rules_of(run_args.env_id)
    return agent, hop_ppo.Evaluator(run_args, rules, *hop_ppo.load_networks(run_args, rules))


def search(args: Args) -> list[dict]:
    """Search in the real rules, told who they are, beside its own policy; gain: over a quarter of it, paired."""
    rows, before = [], {}
    for simulations in (0, 200, 800, 3200):
        for team in TEAMS:
            agent, judge = referee(args, oracle_simulations=simulations)
            start = time.perf_counter()
            found = judge.play(
                agent, team, judge.final_seed, args.boards, 1, "oracle", "oracle" if simulations else ""
            )
            one, learner = hop_ppo.summarize(found), found["learner"].mean(0)
            gain = learner - before.get(team, learner)
            before[team] = learner
            rows.append(dict(team=team, simulations=simulations, learner=one["learner"], learner_ci95=one["learner_ci95"],
                             gain=gain.mean(), gain_ci95=1.96 * gain.std(ddof=1) / len(gain) ** 0.5,
                             seconds=time.perf_counter() - start))  # fmt: skip
            print(rows[-1], flush=True)
            if args.out:
                pd.DataFrame(rows).to_csv(args.out, index=False)
    return rows


def first_weights(seed: int, network: str, **sizes) -> hop_ppo.Agent | hop_ppo.ConvAgent:
    """A network that is told nothing; sizes: of it, if not the usual ones."""
    torch.manual_seed(seed)
    usual = hop_ppo.new_agent(network, hop_ppo.Rules(), 0).sizes
    torch.manual_seed(seed)
    return hop_ppo.build_agent(**(usual | sizes))


def untrained(args: Args) -> list[dict]:
    """What networks earn with their first weights, with each team, on --boards fresh boards: what is built in is worth."""
    kinds = {
        "cnn": ("cnn", {}),
        "objects, no bias": ("objects", dict(hunt_bias=0.0)),
        "objects": ("objects", {}),
    }
    judge = hop_ppo.Evaluator(
        hop_ppo.Args(team_episodes=1, eval_boards=args.boards), hop_ppo.Rules(), None, None
    )
    rows = []
    for kind, (network, sizes) in kinds.items():
        for seed, team in itertools.product(args.seeds, TEAMS):
            found = hop_ppo.summarize(
                judge.play(first_weights(seed, network, **sizes), team, judge.final_seed, om="none")
            )
            rows.append(
                dict(
                    kind=kind,
                    team=team,
                    seed=seed,
                    learner=found["learner"],
                    learner_ci95=found["learner_ci95"],
                )
            )
    return rows


def our_loop(seconds: float, seed: int, network: str, **sizes):
    """hop_ppo.py's loop, told nothing among `mixed`. Returns: as `cleanrl_ppo.train`."""
    run_args, rules, agent = hop_ppo.Args(seed=seed), hop_ppo.Rules(), first_weights(seed, network, **sizes)
    game = hop_ppo.Real(run_args.num_envs, rules, "mixed", seed)
    others = hop_ppo.Told(game, False)
    optimizer = torch.optim.Adam(agent.parameters(), lr=run_args.learning_rate, eps=1e-5)
    batch, rows, start = run_args.num_envs * run_args.num_steps, [], time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        tally = torch.zeros(3)
        data = hop_ppo.rollout(agent, game, others, run_args, tally)
        hop_ppo.update(agent, optimizer, data, run_args, 1 - elapsed / seconds)
        early = (
            len(rows) + 1
        ) * run_args.num_steps < 2 * rules.horizon  # the episodes that have ended are the short ones
        returns = math.nan if early else float(tally[1] / tally[0])
        rows.append((time.perf_counter() - start, (len(rows) + 1) * batch, returns))
    return rows, agent


RUNGS = {
    "plain loop, slow game": lambda *args: cleanrl_ppo.train(cleanrl_ppo.plain_envs, *args),
    "plain loop, our game": lambda *args: cleanrl_ppo.train(cleanrl_ppo.FastEnvs, *args),
    "our loop, cnn": lambda *args: our_loop(*args, "cnn"),
    "our loop, objects, no bias": lambda *args: our_loop(*args, "objects", hunt_bias=0.0),
    "our loop, objects": lambda *args: our_loop(*args, "objects"),
}


def ladder(args: Args) -> list[dict]:
    """From CleanRL's loop to hop_ppo.py, one change at a time, each trained for --seconds: what the learner then earns on
    --boards fresh boards among `mixed`, and when the episodes of training first paid as much as the first rung's at best
    (means of 5 updates). One rung after the other, on the same machine with the same threads."""
    rows, curves, judge = (
        [],
        [],
        hop_ppo.Evaluator(hop_ppo.Args(team_episodes=1), hop_ppo.Rules(), None, None),
    )
    for seed in args.seeds:
        best = None
        for kind, train in RUNGS.items():
            if args.only and kind not in args.only:
                continue
            curve, policy = train(args.seconds, seed)
            curve = pd.DataFrame(curve, columns=["seconds", "steps", "learner"]).assign(kind=kind, seed=seed)
            smooth = curve["learner"].rolling(5, min_periods=1).mean()
            best = smooth.max() if best is None else best
            there = curve[smooth >= best].head(1)
            found = hop_ppo.summarize(judge.play(policy, "mixed", judge.final_seed, args.boards, om="none"))
            seconds, steps = (float(curve[key].iloc[-1]) for key in ("seconds", "steps"))
            rows.append(dict(kind=kind, seed=seed, steps=steps, per_second=steps / seconds, learner=found["learner"],
                             learner_ci95=found["learner_ci95"], best=float(best), steps_to_best=float(there["steps"].min()),
                             seconds_to_best=float(there["seconds"].min())))  # fmt: skip
            print(rows[-1], flush=True)
            curves.append(curve)
            if args.out:
                pd.DataFrame(rows).to_csv(args.out, index=False)
                draw(pd.concat(curves), Path(args.out).with_suffix(".png"))
    return rows


def draw(curves: pd.DataFrame, path: Path) -> None:
    """Learning curves of `ladder`: return over seconds."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    for colour, (kind, by_seed) in zip(figures.COLOURS, curves.groupby("kind", sort=False), strict=False):
        for i, (_, curve) in enumerate(by_seed.groupby("seed", sort=False)):
            axis.plot(
                curve["seconds"], curve["learner"], color=colour, lw=1.2, label=kind if i == 0 else None
            )
    axis.set(xscale="log", xlabel="seconds on one core", ylabel="return of the learner among `mixed`")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figures.save(figure, path)


def overhead(args: Args) -> list[dict]:
    """The loop's time beside that of the network alone: the same batches forward, and forward and backward, nothing else."""
    rows = []
    for seed in args.seeds:
        run_args = hop_ppo.Args(seed=seed)
        torch.manual_seed(seed)
        game = hop_ppo.Real(run_args.num_envs, hop_ppo.Rules(), "mixed", seed)
        others, agent = hop_ppo.Told(game, False), hop_ppo.Agent(1, 0)
        optimizer = torch.optim.Adam(agent.parameters(), lr=run_args.learning_rate, eps=1e-5)
        seconds = {"loop": 0.0, "bare network": 0.0}
        for now in range(12):
            start = time.perf_counter()
            data = hop_ppo.rollout(agent, game, others, run_args, torch.zeros(3))
            hop_ppo.update(agent, optimizer, data, run_args, 1.0)
            loop, start = time.perf_counter() - start, time.perf_counter()
            bare(agent, data, run_args)
            if now:
                seconds["loop"] += loop
                seconds["bare network"] += time.perf_counter() - start
        share = 1 - seconds["bare network"] / seconds["loop"]
        rows.append(dict(kind="none", seed=seed, **seconds, overhead=share))
        print(rows[-1], flush=True)
    return rows


def bare(agent: hop_ppo.Agent, data: hop_ppo.Rollout, run_args: hop_ppo.Args) -> None:
    """Every forward and backward pass that the update made, on the same samples."""
    parts = [
        hop_ppo.Observation(*part)
        for part in zip(*(array.split(run_args.num_envs) for array in data.seen), strict=True)
    ]
    with torch.no_grad():
        for part in parts:
            agent(part)
    size = -(-len(data.actions) // run_args.num_minibatches)
    parts = [
        hop_ppo.Observation(*part) for part in zip(*(array.split(size) for array in data.seen), strict=True)
    ]
    for _ in range(run_args.update_epochs):
        for part in parts:
            log_probs, values = agent(part)
            agent.zero_grad()
            (log_probs[:, 0].sum() + values.sum()).backward()
    agent.zero_grad()


def speed(args: Args) -> list[dict]:
    """Decisions a second: 256 boards, dealt anew as soon as their learner has left, each decision by a search."""
    rows = []
    agent, judge = referee(args, plan=True, plan_simulations=200, plan_samples=5, oracle_simulations=200)
    for kind in ("learned", "rules", "oracle"):
        torch.manual_seed(1)
        game = hop_ppo.Real(args.boards, judge.rules, "mixed", 1)
        others = hop_ppo.others_of(judge.args, game, judge.vae)
        planner = hop_ppo.Planner(agent, game, others, judge.args, judge.vae, judge.world, kind)
        for tick in range(14):
            if tick == 2:  # the first warm up
                planner.decisions, planner.seconds = 0, 0.0
            with torch.no_grad():
                told = others.look()
                game.step(planner(told, hop_ppo.sights(game, told)[1]))
            over = game.ended | (game.hunters.gather(1, game.seats[:, None])[:, 0] == judge.rules.cells)
            for one in (others, planner):
                one.observe()
            new = game.deal(over)
            for one in (others, planner):
                one.deal(over, new)
        rate = planner.decisions / planner.seconds
        rows.append(dict(kind=kind, seed=1, simulations=200, decisions=planner.decisions, per_second=rate))
        print(rows[-1], flush=True)
    return rows


def plan(args: Args) -> list[dict]:
    """The policy alone and with planning, in the world model and in the rules, on the same boards."""
    rows = []
    agent, judge = referee(args, plan=True)
    for team in TEAMS if judge.rules.hunters == 4 else ("mixed",):
        alone = judge.play(agent, team, judge.final_seed, args.boards)["learner"].mean(0)
        for kind in ("learned", "rules"):
            found = judge.play(agent, team, judge.final_seed, args.boards, plan=kind)["learner"].mean(0)
            better = found - alone
            rows.append(dict(kind=kind, team=team, seed=judge.args.seed, policy=alone.mean(), planned=found.mean(),
                             gain=better.mean(), gain_ci95=1.96 * better.std(ddof=1) / len(better) ** 0.5))  # fmt: skip
            print(rows[-1], flush=True)
            if args.out:
                pd.DataFrame(rows).to_csv(args.out, index=False)
    return rows


def main(args: Args) -> None:
    rows = pd.DataFrame(globals()[args.what](args))
    print(machine())
    print(f"python -m benchmarks.hop_ppo {' '.join(sys.argv[1:])}")
    keys = [key for key in ("setting", "policy", "team", "simulations", "kind") if key in rows]
    numbers = [key for key in rows.select_dtypes("number") if key not in ("seed", *keys)]
    table = rows.groupby(keys, sort=False)[numbers].agg(["mean", "std"])
    table.columns = ["_".join(column) for column in table.columns]
    with pd.option_context("display.width", 250, "display.max_columns", 50):
        print(table.round(4))


if __name__ == "__main__":
    settings = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(settings.threads)
    main(settings)
