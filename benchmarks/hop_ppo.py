"""The results of docs/hop_ppo.md, each table by one command: python -m benchmarks.hop_ppo --what teams

Each run is `python hop_ppo.py ...` of its own, with seeds 1, 2, 3; its figures are read from its metrics.json. `latent`, `belief`,
`imagine` and planning need a VAE and a world model: python pretrain_vae.py, python train_world_model.py.
"""

import json
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

import hop_ppo
from benchmarks import machine

TEAMS = ("3NS", "1NS2NH", "2NS1NH", "3NH", "3RANDOM", "mixed")
HIDDEN = ("--env-id", "StagHunt-hidden-v0", "--eval-boards", "20000")


@dataclass
class Args:
    what: Literal["om", "hidden", "self", "teams", "imagine", "search", "plan", "speed", "cleanrl", "overhead"]
    """which table"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """one run each"""
    steps: int = 1_500_000
    """of a run"""
    out: str = ""
    """also write the rows to this CSV file"""
    seconds: float = 600.0
    """cleanrl: how long the plain loop trains"""
    agent: str = ""
    """search, plan, speed: the run whose agent plays; search: one trained with --om oracle"""
    boards: int = 256
    """search, plan, speed"""


def run(*flags: str) -> dict:
    """One training. Returns its metrics.json, with the learning curve under `evaluations`."""
    command = [sys.executable, "hop_ppo.py", "--oracle-simulations", "0", *map(str, flags)]
    print("$ python", *command[1:], file=sys.stderr, flush=True)
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    folder = Path(re.search(r"model saved to: (\S+)", said)[1])
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics | {"evaluations": pd.read_csv(folder / "evaluations.csv").to_dict("records"), "folder": folder.as_posix()}


def grid(args: Args, settings: dict[str, tuple], teams: tuple[str, ...] = ()) -> list[dict]:
    """A row a setting, seed and team: who earned what."""
    rows = []
    for name, flags in settings.items():
        for seed in args.seeds:
            found = run("--seed", seed, "--total-timesteps", args.steps, *flags)
            for team in teams or found["teams"]:
                for policy in ("teams", "random", "rush"):
                    if team in found.get(policy, {}):
                        one = {key: found[policy][team][key] for key in ("learner", "team", "length")}
                        ran = dict(real_steps=found["real_steps"], seconds=found["seconds"], sps=found["sps"], run=found["run"])
                        rows.append(dict(setting=name, policy=policy, team=team, seed=seed) | one | ran)
            if args.out:
                pd.DataFrame(rows).to_csv(args.out, index=False)
    return rows


def om(args: Args) -> list[dict]:
    return grid(args, {om: ("--om", om) for om in ("none", "latent", "belief", "oracle")})


def hidden(args: Args) -> list[dict]:
    return grid(args, {om: ("--om", om, *HIDDEN) for om in ("none", "latent", "belief", "oracle")}, ("mixed",))


def self(args: Args) -> list[dict]:
    few = ("--co-players", "self", "--num-envs", "512")
    return grid(args, {"own": few, "team": (*few, "--team-reward")}, ("self",))


def teams(args: Args) -> list[dict]:
    """A policy trained with each team, told nothing and told who they are, judged with that team."""
    rows = []
    for team in TEAMS:
        settings = {om: ("--om", om, "--co-players", team, "--eval-boards", "4096") for om in ("none", "oracle")}
        rows += grid(replace(args, out=""), settings, (team,))
        if args.out:
            pd.DataFrame(rows).to_csv(args.out, index=False)
    return rows


def imagine(args: Args) -> list[dict]:
    return grid(args, {f"real {ratio}": ("--real-ratio", ratio, "--eval-boards", "4096") for ratio in (1.0, 0.5, 0.0)}, ("mixed",))


def referee(args: Args, **settings) -> tuple[hop_ppo.Agent, hop_ppo.Referee]:
    agent, checkpoint = hop_ppo.load_agent(args.agent)
    known = {key: value for key, value in checkpoint["args"].items() if key in hop_ppo.Args.__dataclass_fields__}
    run_args = replace(hop_ppo.Args(**known), plan=True, **settings)
    rules, _ = hop_ppo.rules_of(run_args.env_id)
    return agent, hop_ppo.Referee(run_args, rules, *hop_ppo.load_networks(run_args, rules))


def search(args: Args) -> list[dict]:
    """The oracle: search in the real rules, told who they are, beside its own policy."""
    rows = []
    for team in TEAMS:
        for simulations in (0, 200, 800, 3200):
            agent, judge = referee(args, oracle_simulations=simulations)
            start = time.perf_counter()
            found = judge.play(agent, team, hop_ppo.FINAL_SEED, args.boards, 1, "oracle", "oracle" if simulations else "")
            one = hop_ppo.brief(found)
            rows.append(dict(team=team, simulations=simulations, learner=one["learner"], learner_ci95=one["learner_ci95"],
                             seconds=time.perf_counter() - start))  # fmt: skip
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
    torch.set_num_threads(1)
    main(tyro.cli(Args, description=__doc__))
