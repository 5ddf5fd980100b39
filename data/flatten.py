"""Play scripted hunters and write a flat file in the HOP layout: `python -m data.flatten --help`.

A row is a step of the game as one hunter sees it, drawn at random among those on the board: a file of the kind that older
code wrote, small enough to try things on. With `--all-observers` there is a row for each of them.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np
from tyro.conf import Suppress

from data import collect, memory
from data.trajectories import Trajectories, check_output, chunks, save_arrays
from envs import DATA_EPSILON, joint_to_hop, make_rules, planes_to_joint
from envs.core import GameRules
from envs.stag_hunt import GAME as STAG_HUNT

SMALL = ("hares=2", "blocks=0", "height=4", "width=4")


@dataclass
class Args:
    out: str
    """the .npz file to write"""
    rows: int = 50_000
    """board steps, a row each; with --all-observers the fewest rows, of whole episodes"""
    seed: int = 1
    """episode i is board i of this seed; it draws the observers, too"""
    own_actions: bool = False
    """write the observer's own actions [N] instead of everyone's [N, A]"""
    all_observers: bool = False
    """write a row of each hunter on the board: an episode as one hunter sees it, then as the next one does"""
    epsilon: float = DATA_EPSILON
    """probability that a hunter plays uniformly over its legal actions"""
    strategies: tuple[str, ...] = ()
    """each hunter of each episode is one of these, equally likely, independently; by default those of the game's goals"""
    env_id: str = ""
    """the game, as registered; by default a stag hunt on 4x4 with 2 hares and no blocks"""
    env_args: tuple[str, ...] = ()
    """rules that are other than its own, such as hunters=2 prey_moves=0.5"""
    rules: Suppress[GameRules | None] = None
    """instead of --env-id and --env-args"""

    def __post_init__(self) -> None:
        """Raises: ValueError: no such game, or a rule that is not of it."""
        if self.rules is None:
            small = () if self.env_id else SMALL
            self.rules, _ = make_rules(self.env_id or STAG_HUNT.id, (*small, *self.env_args))


def flatten(args: Args, progress: bool = False) -> dict[str, np.ndarray]:
    """Rows of the episodes that `collect` plays with these settings: its first `args.rows` steps, as a hunter sees each, or
    whole episodes of at least so many rows, as every hunter sees them.

    Returns: `obs` and `next_obs` uint8 [N, H, W, A+1+k], both as `observer` int8 [N] sees them; `actions` int8 [N, A] in
    seat order, or [N], the observer's; `times` int64 [N]; `rewards` float32 [N, A] in seat order. The `metadata` of other
    games than the stag hunt say which it is.
    Raises: ValueError: a setting is out of its range; MemoryError: this machine cannot hold the rows.
    """
    if not 0 < args.rows < 2**31:
        raise ValueError(f"--rows must be in 1..2**31 - 1, got {str(args.rows)[:20]}")
    kinds = args.rules.game.kinds
    channels = args.rules.hunters + 1 + kinds
    observed = (3 + kinds) * args.rules.hunters
    planes = observed + 2 * channels  # of the game's observations, and of both of a row
    memory.require(args.rows * planes * args.rules.cells, f"--rows {args.rows}")
    settings = collect.Args(
        seed=args.seed,
        epsilon=args.epsilon,
        strategies=args.strategies,
        rules=args.rules,
        samples=args.rows,
        steps=0 if args.all_observers else args.rows,
    )
    played = collect.collect(settings, progress)
    step, observer = _every_hunter(played) if args.all_observers else _drawn_hunters(played, args)
    states = np.empty((len(played.obs), channels, *played.obs.shape[3:]), np.uint8)
    for part in chunks(played.obs):  # once, though several rows share a state
        states[part] = planes_to_joint(played.obs[part])
    obs = np.empty((len(step), args.rules.height, args.rules.width, channels), np.uint8)
    next_obs = np.empty_like(obs)
    for part in chunks(obs):
        row = played.obs_row[step[part]]
        obs[part] = joint_to_hop(states[row], observer[part], kinds)
        next_obs[part] = joint_to_hop(states[row + 1], observer[part], kinds)
    actions = played.actions[step]
    game = args.rules.game
    described = {} if game == STAG_HUNT else {"metadata": np.array(json.dumps({"game": game.metadata()}))}
    return described | {
        "obs": obs,
        "actions": actions[np.arange(len(step)), observer] if args.own_actions else actions,
        "times": played.tick[step],
        "observer": observer.astype(np.int8),
        "rewards": played.rewards[step],
        "next_obs": next_obs,
    }


def _every_hunter(played: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N], the step and the observer of each row: all of one hunter of an episode, then of the next hunter."""
    step, observer = np.nonzero(played.active)
    order = np.lexsort((step, observer, played.episode[step]))
    return step[order], observer[order]


def _drawn_hunters(played: Trajectories, args: Args) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N], the first steps, and one hunter of each, drawn from those on the board.

    A step is played only while somebody is on the board, so each row has an observer.
    """
    draws = np.random.default_rng(args.seed).random((args.rows, args.rules.hunters))
    return np.arange(args.rows), np.where(played.active[: args.rows], draws, -1.0).argmax(1)


def flatten_to_file(args: Args) -> dict[str, np.ndarray]:
    """Play and write `args.out`, with one line before and one after."""
    check_output(args.out)
    start = time.perf_counter()
    rows = f"at least {args.rows}" if args.all_observers else f"{args.rows}"
    print(f"[DATA] playing {rows} rows (seed {args.seed}) into {args.out}", flush=True)
    arrays = flatten(args, progress=True)
    save_arrays(args.out, arrays)
    count, shape = len(arrays["obs"]), arrays["obs"].shape[1:]
    of = "views of episodes" if args.all_observers else "episodes"
    episodes = f"{(arrays['times'] == 0).sum()} {of}"
    seconds = time.perf_counter() - start
    print(f"[DATA] {count} rows {shape} of {episodes} in {seconds:.1f} s", flush=True)
    return arrays


if __name__ == "__main__":
    import tracking  # the command line alone needs it

    def main() -> None:
        flatten_to_file(tracking.parse_args(Args, __doc__.split("\n")[0]))

    tracking.run(main, ValueError)
