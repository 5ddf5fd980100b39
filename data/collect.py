"""Play scripted hunters and record trajectories: `python -m data.collect --help`.

Board i of a seed is episode i: which episodes a file holds does not depend on how many boards are played at once.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.trajectories import CHUNK, DEFAULT_DATA, OPTIONAL, SPEC, Trajectories, save_arrays
from envs import (
    ACTIONS,
    DATA_EPSILON,
    PLANES,
    Rules,
    StagHunt,
    joint_to_planes,
    sample_actions,
    strategy_probs,
)
from envs.stag_hunt import STAY

BOARDS = 2048  # played at once


@dataclass
class Args:
    out: str = DEFAULT_DATA
    """the .npz file to write"""
    samples: int = 107_010
    """stop at the first whole episode that reaches this many active samples"""
    steps: int = 0
    """if above 0, stop at the first whole episode that reaches this many board steps instead"""
    seed: int = 1
    """episode i is board i of this seed"""
    epsilon: float = DATA_EPSILON
    """probability that a hunter plays uniformly over its legal actions"""
    unmasked: float = 0.0
    """probability that a hunter asks for an action uniformly over all seven, legal or not; above 0, what each hunter asked
    for is recorded as `attempted`"""
    strategies: tuple[str, ...] = ("NS", "NH")
    """each hunter of each episode is one of these, equally likely, independently"""
    switch_tick: int = 0
    """if above 0: from this tick on each hunter plays the strategy after its own in `strategies`; recorded is its first"""
    rules: Rules = field(default_factory=Rules)
    """the game, `prey_moves` included"""


def collect(args: Args, progress: bool = False) -> Trajectories:
    """The first whole episodes that reach `args.samples` active samples (or `args.steps` board steps).

    Raises: ValueError: a setting is out of its range.
    """
    if not args.strategies:
        raise ValueError("--strategies must name at least one strategy")
    target = args.steps or args.samples
    if args.switch_tick < 0:
        raise ValueError(f"--switch-tick must be at least 0, got {args.switch_tick}")
    if not 0.0 <= args.unmasked <= 1.0:
        raise ValueError(f"--unmasked must be in [0, 1], got {args.unmasked}")
    if args.steps < 0 or target < 1:
        raise ValueError(f"--samples and --steps must be positive, got {args.samples} and {args.steps}")
    parts, reached, first = [], 0, 0
    with tqdm(
        total=target, unit="steps" if args.steps else "samples", disable=not progress, leave=False
    ) as bar:
        while reached < target:
            part = _play(args, first)
            count = part["episode_lengths"] if args.steps else part.pop("samples")
            part.pop("samples", None)
            enough = np.flatnonzero(reached + np.cumsum(count, dtype=np.int64) >= target)
            if len(enough):
                part = _first_episodes(part, enough[0] + 1)
            parts.append(part)
            reached += int(count[: len(part["episode_lengths"])].sum())
            first += BOARDS
            bar.update(min(reached, target) - bar.n)
    # One key at a time, dropping what was joined: at no moment are there two copies of everything.
    log = {key: np.concatenate([part.pop(key) for part in parts]) for key in list(parts[0])}
    obs = _draw(log.pop("blocks"), log.pop("hunters"), log.pop("prey"), log["episode_lengths"], args.rules)
    arrays = {key: obs if key == "obs" else log[key] for key in SPEC}
    optional = {key: log.get(key) for key in OPTIONAL}
    return Trajectories(**arrays, **optional, metadata=_metadata(args, arrays), path=args.out)


def _play(args: Args, first: int) -> dict[str, np.ndarray]:
    """Play episodes first .. first + BOARDS - 1. Observations are kept as cells, and drawn at the end."""
    rules, boards = args.rules, np.arange(BOARDS)
    env = StagHunt(BOARDS, rules)
    env.reset(seed=args.seed, first_board=first)
    strategies = (env.uniform(rules.hunters) * len(args.strategies)).astype(np.int8)
    log = {key: [] for key in ("actions", "attempted", "rewards", "active", "policy_probs", "playing")}
    states, cut = [env.state], np.zeros(BOARDS, bool)
    while not env.ended.all():
        probs = strategy_probs(env, args.strategies, args.epsilon)  # [B, A, S, 7]
        switched = 0 < args.switch_tick <= len(states) - 1
        own = probs[boards[:, None], np.arange(rules.hunters), (strategies + switched) % len(args.strategies)]
        log["active"].append(env.active)
        log["playing"].append(~env.ended)
        log["policy_probs"].append(
            _effective_probs(probs, env.legal_actions(), args.unmasked).astype(np.float32)
        )
        asked = (1.0 - args.unmasked) * own + args.unmasked / len(ACTIONS)  # [B, A, 7]
        attempted = np.where(env.active, sample_actions(asked, env.uniform(rules.hunters)), STAY).astype(
            np.int8
        )
        log["attempted"].append(attempted)
        _, rewards, _, truncated = env.step(attempted)
        log["actions"].append(env.effective_actions)
        log["rewards"].append(rewards)
        states.append(env.state)
        cut |= truncated.any(1)
    if not args.unmasked:
        del log["attempted"]  # every hunter asked for a legal action: `actions` says it all
    playing = np.stack(log.pop("playing"), 1)  # [B, T]
    part = {key: np.stack(values, 1)[playing] for key, values in log.items()}
    seen = np.pad(playing, ((0, 0), (1, 0)), constant_values=True)  # one observation more than steps
    part |= {key: np.stack([getattr(state, key) for state in states], 1)[seen] for key in ("hunters", "prey")}
    part |= {"blocks": states[0].blocks, "strategies": strategies, "terminated": ~cut}
    part["episode_lengths"] = playing.sum(1, dtype=np.int32)
    part["samples"] = (np.stack(log["active"], 1) & playing[:, :, None]).sum((1, 2))
    return part


def _effective_probs(probs: np.ndarray, legal: np.ndarray, unmasked: float) -> np.ndarray:
    """The law of what happens: with probability `unmasked` any action is asked for, and an illegal one counts as STAY.

    Args: probs: float64 [B, A, S, 7]; legal: bool [B, A, 7].
    """
    asked = (1.0 - unmasked) * probs + unmasked / len(ACTIONS)
    possible = np.where(legal[:, :, None], asked, 0.0)
    possible[..., STAY] += (asked - possible).sum(-1)
    return possible


def _first_episodes(part: dict[str, np.ndarray], episodes: int) -> dict[str, np.ndarray]:
    steps = int(part["episode_lengths"][:episodes].sum())
    rows = dict.fromkeys(part, steps) | dict.fromkeys(("hunters", "prey"), steps + episodes)
    rows |= dict.fromkeys(("blocks", "strategies", "terminated", "episode_lengths"), episodes)
    return {key: value[: rows[key]] for key, value in part.items()}


def _draw(blocks, hunters, prey, lengths, rules: Rules) -> np.ndarray:
    """Cells -> planes: uint8 [N+E, A, 5, H, W]."""
    obs = np.empty((len(hunters), rules.hunters, 5, rules.height, rules.width), np.uint8)
    episode = np.repeat(np.arange(len(lengths)), lengths + 1)
    things = np.concatenate([hunters, prey], 1).astype(np.intp)
    planes = [*range(rules.hunters), *[rules.hunters + 1] * rules.stags, *[rules.hunters + 2] * rules.hares]
    for start in range(0, len(obs), CHUNK):
        part = things[start : start + CHUNK]
        joint = np.zeros((len(part), rules.hunters + 3, rules.cells), np.uint8)
        joint[:, rules.hunters] = blocks[episode[start : start + CHUNK]]
        row, thing = np.nonzero(part >= 0)
        joint[row, np.array(planes)[thing], part[row, thing]] = 1
        obs[start : start + CHUNK] = joint_to_planes(
            joint.reshape(*joint.shape[:2], rules.height, rules.width)
        )
    return obs


def _metadata(args: Args, arrays: dict[str, np.ndarray]) -> dict:
    active, rules = arrays["active"], args.rules
    return {
        "dataset_id": f"stag_hunt/{rules.hunters}p{rules.blocks}b-{rules.height}x{rules.width}/scripted-v0",
        "env_id": "StagHunt-v0",
        "algorithm_name": f"{'/'.join(args.strategies)} scripted hunters, epsilon {args.epsilon:g}",
        "total_episodes": len(arrays["episode_lengths"]),
        "total_steps": len(arrays["actions"]),
        "active_samples": int(active.sum()),
        "seed": args.seed,
        "epsilon": args.epsilon,
        "strategies": list(args.strategies),
        "priors": [1.0 / len(args.strategies)] * len(args.strategies),
        **({"switch_tick": args.switch_tick} if args.switch_tick else {}),
        **({"unmasked": args.unmasked} if args.unmasked else {}),
        "rules": asdict(rules),
        "channels": list(PLANES),
        "actions": list(ACTIONS),
        "action_counts": np.bincount(arrays["actions"][active], minlength=len(ACTIONS)).tolist(),
    }


def _short(path: str) -> str:
    """Relative to the working folder, where it lies below it."""
    full, here = Path(path).resolve(), Path.cwd()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else str(path)


def collect_to_file(args: Args) -> Trajectories:
    """Collect and write `args.out`, with one line before and one after."""
    start = time.perf_counter()
    wanted = f"{args.steps} board steps" if args.steps else f"{args.samples} active samples"
    print(f"[DATA] collecting {wanted} (seed {args.seed}) into {_short(args.out)}", flush=True)
    trajectories = collect(args, progress=True)
    save_arrays(args.out, trajectories.arrays())
    meta = trajectories.metadata
    print(
        f"[DATA] {meta['total_episodes']} episodes, {meta['total_steps']} steps, {meta['active_samples']} active samples "
        f"in {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    return trajectories


if __name__ == "__main__":
    import tracking  # the command line alone needs it

    def main() -> None:
        collect_to_file(tracking.parse_args(Args, __doc__.split("\n")[0]))

    tracking.run(main, ValueError)
