"""Play scripted hunters and write a flat file in the HOP layout: `python -m data.flatten --help`.

A row is a step of the game as one hunter sees it, drawn at random among those on the board: a file of the kind that older
code wrote, small enough to try things on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from data import collect, memory
from data.trajectories import check_output, chunks, save_arrays
from envs import DATA_EPSILON, Rules, joint_to_hop, planes_to_joint


@dataclass
class Args:
    out: str
    """the .npz file to write"""
    rows: int = 50_000
    """board steps, a row each"""
    seed: int = 1
    """episode i is board i of this seed; it draws the observers, too"""
    own_actions: bool = False
    """write the observer's own actions [N] instead of everyone's [N, A]"""
    epsilon: float = DATA_EPSILON
    """probability that a hunter plays uniformly over its legal actions"""
    strategies: tuple[str, ...] = ("NS", "NH")
    """each hunter of each episode is one of these, equally likely, independently"""
    rules: Rules = field(default_factory=lambda: Rules(stags=1, hares=2, blocks=0, height=4, width=4))
    """the game, `prey_moves` included"""


def flatten(args: Args, progress: bool = False) -> dict[str, np.ndarray]:
    """The first `args.rows` steps of the episodes that `collect` plays with these settings.

    Returns: `obs` and `next_obs` uint8 [N, H, W, A+3], both as `observer` int8 [N] sees them; `actions` int8 [N, A] in seat
    order, or [N], the observer's; `times` int64 [N]; `rewards` float32 [N, A] in seat order.
    Raises: ValueError: a setting is out of its range; MemoryError: this machine cannot hold the rows.
    """
    if not 0 < args.rows < 2**31:
        raise ValueError(f"--rows must be in 1..2**31 - 1, got {str(args.rows)[:20]}")
    planes = 7 * args.rules.hunters + 6  # of the game's observations, and of both of a row
    memory.require(args.rows * planes * args.rules.cells, f"--rows {args.rows}")
    settings = collect.Args(
        steps=args.rows,
        seed=args.seed,
        epsilon=args.epsilon,
        strategies=args.strategies,
        rules=args.rules,
    )
    played = collect.collect(settings, progress)
    rows, seats = args.rows, args.rules.hunters
    # A step is played only while somebody is on the board, so each row has an observer.
    draws = np.random.default_rng(args.seed).random((rows, seats))
    observer = np.where(played.active[:rows], draws, -1.0).argmax(1)
    obs = np.empty((rows, args.rules.height, args.rules.width, seats + 3), np.uint8)
    next_obs = np.empty_like(obs)
    for part in chunks(obs):
        row = played.obs_row[part]
        obs[part] = joint_to_hop(planes_to_joint(played.obs[row]), observer[part])
        next_obs[part] = joint_to_hop(planes_to_joint(played.obs[row + 1]), observer[part])
    actions = played.actions[:rows]
    return {
        "obs": obs,
        "actions": actions[np.arange(rows), observer] if args.own_actions else actions,
        "times": played.tick[:rows],
        "observer": observer.astype(np.int8),
        "rewards": played.rewards[:rows],
        "next_obs": next_obs,
    }


def flatten_to_file(args: Args) -> dict[str, np.ndarray]:
    """Play and write `args.out`, with one line before and one after."""
    check_output(args.out)
    start = time.perf_counter()
    print(f"[DATA] playing {args.rows} rows (seed {args.seed}) into {args.out}", flush=True)
    arrays = flatten(args, progress=True)
    save_arrays(args.out, arrays)
    episodes, shape = (arrays["times"] == 0).sum(), arrays["obs"].shape[1:]
    seconds = time.perf_counter() - start
    print(f"[DATA] {args.rows} rows {shape} of {episodes} episodes in {seconds:.1f} s", flush=True)
    return arrays


if __name__ == "__main__":
    import tracking  # the command line alone needs it

    def main() -> None:
        flatten_to_file(tracking.parse_args(Args, __doc__.split("\n")[0]))

    tracking.run(main, ValueError)
