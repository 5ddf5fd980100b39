"""Play scripted hunters and record trajectories: `python -m data.collect --help`.

Board i of a seed is episode i: which episodes a file holds does not depend on how many boards are played at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tyro.conf import Suppress

from data import memory
from data.trajectories import (
    OPTIONAL,
    SPEC,
    Trajectories,
    check_output,
    chunks,
    file_of,
    save_arrays,
    size_of,
)
from envs import (
    DATA_EPSILON,
    joint_to_planes,
    make_core,
    make_rules,
    sample_actions,
    strategy_probs,
)
from envs.core import GameRules
from envs.game import STAY
from envs.stag_hunt import GAME as STAG_HUNT

BOARDS = 2048  # played at once, or as many as
BATCH_BYTES = 2**28  # hold
LOGGED = ("actions", "attempted", "rewards", "active", "policy_probs", "playing")  # one entry a tick


@dataclass
class Args:
    env_id: str = STAG_HUNT.id
    """the game, as registered, such as Snowdrift-v0"""
    env_args: tuple[str, ...] = ()
    """rules that are other than its own, such as height=4 width=4 prey_moves=0.5"""
    out: str = ""
    """the .npz file to write; by default data/<game>_<size>.npz, such as data/snowdrift_4a6d_8x8.npz"""
    samples: int = 107_010
    """stop at the first whole episode that reaches this many active samples"""
    steps: int = 0
    """if above 0, stop at the first whole episode that reaches this many board steps instead"""
    seed: int = 1
    """episode i is board i of this seed"""
    epsilon: float = DATA_EPSILON
    """probability that a hunter plays uniformly over its legal actions"""
    unmasked: float = 0.0
    """probability that a hunter attempts an action uniformly over all, legal or not; above 0, what each hunter
    attempted is recorded as `attempted`"""
    strategies: tuple[str, ...] = ()
    """each hunter of each episode is one of these, equally likely, independently; by default those of the game's goals"""
    switch_tick: int = 0
    """if above 0: from this tick on each hunter plays the strategy after its own in `strategies`; recorded is its first"""
    rules: Suppress[GameRules | None] = None
    """instead of --env-id and --env-args"""

    def __post_init__(self) -> None:
        """Raises: ValueError: no such game, or a rule that is not of it."""
        if self.rules is None:
            self.rules, _ = make_rules(self.env_id, self.env_args)
        self.out = self.out or _relative(file_of(self.rules))
        self.strategies = self.strategies or tuple(self.rules.game.goals.values())


def collect(args: Args, progress: bool = False) -> Trajectories:
    """The first whole episodes that reach `args.samples` active samples (or `args.steps` board steps).

    Raises: ValueError: a setting is out of its range; MemoryError: this machine cannot hold them.
    """
    _check_args(args)
    target = args.steps or args.samples
    unit = "steps" if args.steps else "samples"
    _check_memory(args, args.steps or args.samples // args.rules.hunters)  # of all hunters in all steps
    boards = _boards_at_once(args)
    log: dict[str, _Rows] = {}
    reached, first = 0, 0
    with tqdm(total=target, unit=unit, disable=not progress, leave=False) as bar:
        while reached < target:
            part = _play(args, first, boards)
            samples = part.pop("samples")
            count = part["episode_lengths"] if args.steps else samples
            enough = np.flatnonzero(reached + np.cumsum(count, dtype=np.int64) >= target)
            if len(enough):
                part = _first_episodes(part, enough[0] + 1)
            reached += int(count[: len(part["episode_lengths"])].sum())
            for key, values in part.items():
                rows = log.setdefault(key, _Rows())
                rows.append(values, expected=int(1.05 * len(values) * target / reached))
            if first == 0:
                _check_memory(args, len(part["actions"]) * target // reached)
            first += boards
            bar.update(min(reached, target) - bar.n)
    columns = {key: log.pop(key).values for key in list(log)}
    blocks, hunters, prey = (columns.pop(key) for key in ("blocks", "hunters", "prey"))
    obs = draw_boards(blocks, hunters, prey, columns["episode_lengths"], args.rules)
    arrays = {key: obs if key == "obs" else columns[key] for key in SPEC}
    optional = {key: columns.get(key) for key in OPTIONAL}
    return Trajectories(**arrays, **optional, metadata=_metadata(args, arrays), path=args.out)


class _Rows:
    """Rows of an array that grows at its end: room is kept for those that are expected, and at no moment are there two
    copies of all. Room that is not used takes no memory."""

    def __init__(self) -> None:
        self.room = np.empty(0)
        self.count = 0

    def append(self, rows: np.ndarray, expected: int) -> None:
        """expected: how many rows there will be in all."""
        needed = self.count + len(rows)
        if needed > len(self.room):
            room = np.empty((max(needed, expected, int(1.5 * self.count)), *rows.shape[1:]), rows.dtype)
            if self.count:
                room[: self.count] = self.values
            self.room = room
        self.room[self.count : needed] = rows
        self.count = needed

    @property
    def values(self) -> np.ndarray:
        return self.room[: self.count]


def _check_args(args: Args) -> None:
    """Before anything is played. Raises: ValueError."""
    choices = args.rules.game.strategies
    for name in args.strategies:
        if name not in choices:
            raise ValueError(f"--strategies: unknown strategy {name!r}: choose from {', '.join(choices)}")
    for name in ("samples", "steps", "seed", "switch_tick"):
        value = getattr(args, name)
        if not 0 <= value < 2**31:
            raise ValueError(f"--{name.replace('_', '-')} must be in 0..2**31 - 1, got {str(value)[:20]}")
    for name in ("epsilon", "unmasked"):
        value = getattr(args, name)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"--{name} must be in [0, 1], got {value}")
    if (args.steps or args.samples) < 1:
        raise ValueError(f"--samples and --steps must be positive, got {args.samples} and {args.steps}")


def _check_memory(args: Args, steps: int) -> None:
    """Raises: MemoryError: this machine cannot hold so many board steps."""
    rules = args.rules
    of_hunter = len(rules.game.planes) * rules.cells + _logged_bytes(args)
    size = f"{rules.hunters} hunters on {rules.height}x{rules.width} cells"
    wanted = f"--steps {args.steps}" if args.steps else f"--samples {args.samples}"
    memory.require(memory.COLLECT_FACTOR * steps * rules.hunters * of_hunter, f"{wanted}, {size}")


def _logged_bytes(args: Args) -> int:
    """Of a hunter in a tick: probabilities, rewards, actions, whether it is active, its cell."""
    return 4 * args.rules.game.num_actions * len(args.strategies) + 12


def _boards_at_once(args: Args) -> int:
    """BOARDS, or fewer where boards are large or long. A tick is held three times while a batch is put together."""
    rules = args.rules
    ticks = min(rules.horizon, 2000)  # most boards end sooner
    of_ticks = 3 * ticks * (rules.hunters * _logged_bytes(args) + 2 * rules.prey)
    of_cells = (100 + 13 * rules.prey) * rules.cells  # distances, with their temporary copies
    return max(1, min(BOARDS, BATCH_BYTES // (of_ticks + of_cells)))


def _play(args: Args, first: int, boards: int) -> dict[str, np.ndarray]:
    """Play episodes first .. first + boards - 1. Observations are kept as cells, and drawn at the end."""
    rules = args.rules
    env = make_core(boards, rules)
    env.reset(seed=args.seed, first_board=first)
    num_strategies = len(args.strategies)
    strategies = (env.uniform(rules.hunters) * num_strategies).astype(np.int8)  # [B, A]
    board, seat = np.arange(boards)[:, None], np.arange(rules.hunters)
    log: dict[str, list] = {key: [] for key in LOGGED}
    states, cut_off = [env.state], np.zeros(boards, bool)
    tick = 0
    while not env.ended.all():
        probs = strategy_probs(env, args.strategies, args.epsilon)  # [B, A, S, n]
        switched = 0 < args.switch_tick <= tick
        own = probs[board, seat, (strategies + switched) % num_strategies]  # [B, A, n]
        effective = _effective_probs(probs, env.legal_actions(), args.unmasked)
        log["active"].append(env.active)
        log["playing"].append(~env.ended)
        log["policy_probs"].append(effective.astype(np.float32))
        own = (1.0 - args.unmasked) * own + args.unmasked / rules.game.num_actions
        attempted = sample_actions(own, env.uniform(rules.hunters))
        attempted = np.where(env.active, attempted, STAY).astype(np.int8)
        log["attempted"].append(attempted)
        _, rewards, _, truncated = env.step(attempted)
        log["actions"].append(env.effective_actions)
        log["rewards"].append(rewards)
        states.append(env.state)
        cut_off |= truncated.any(1)
        tick += 1
        if tick % 256 == 0:  # what is logged is held twice when the batch is put together
            logged = tick * boards * rules.hunters * _logged_bytes(args)
            memory.require(2 * logged, f"--env-args horizon={rules.horizon}")
    if not args.unmasked:
        del log["attempted"]  # every hunter attempted a legal action: `actions` says it all
    playing = np.stack(log.pop("playing"), 1)  # [B, T]
    active = np.stack(log["active"], 1)  # [B, T, A]
    part = {key: np.stack(values, 1)[playing] for key, values in log.items()}
    observed = np.pad(playing, ((0, 0), (1, 0)), constant_values=True)  # one observation more than steps
    for key in ("hunters", "prey"):
        part[key] = np.stack([getattr(state, key) for state in states], 1)[observed]
    return part | {
        "blocks": states[0].blocks,
        "strategies": strategies,
        "terminated": ~cut_off,
        "episode_lengths": playing.sum(1, dtype=np.int32),
        "samples": (active & playing[:, :, None]).sum((1, 2)),
    }


def _effective_probs(probs: np.ndarray, legal: np.ndarray, unmasked: float) -> np.ndarray:
    """Probabilities of what happens: with probability `unmasked` any action is attempted; an illegal one counts as STAY.

    Args: probs: float64 [B, A, S, n]; legal: bool [B, A, n], of n actions.
    """
    attempted = (1.0 - unmasked) * probs + unmasked / legal.shape[2]
    effective = np.where(legal[:, :, None], attempted, 0.0)
    effective[..., STAY] += (attempted - effective).sum(-1)
    return effective


def _first_episodes(part: dict[str, np.ndarray], episodes: int) -> dict[str, np.ndarray]:
    steps = int(part["episode_lengths"][:episodes].sum())
    rows = dict.fromkeys(part, steps)
    rows |= dict.fromkeys(("hunters", "prey"), steps + episodes)
    rows |= dict.fromkeys(("blocks", "strategies", "terminated", "episode_lengths"), episodes)
    return {key: value[: rows[key]] for key, value in part.items()}


def draw_boards(
    blocks: np.ndarray, hunters: np.ndarray, prey: np.ndarray, lengths: np.ndarray, rules: GameRules
) -> np.ndarray:
    """Cells, -1 for what has left, -> planes, uint8 [N+E, A, 3+k, H, W].

    Args: blocks: bool [E, K]; hunters: int [N+E, A]; prey: int [N+E, P]; lengths: int [E], in steps.
    """
    kinds = rules.game.kinds
    obs = np.empty((len(hunters), rules.hunters, 3 + kinds, rules.height, rules.width), np.uint8)
    episode = np.repeat(np.arange(len(lengths)), lengths + 1)
    of_prey = rules.hunters + 1 + np.repeat(np.arange(kinds), rules.prey_counts)
    planes = np.append(np.arange(rules.hunters), of_prey)  # of a joint board
    for part in chunks(obs):
        chunk = np.concatenate([hunters[part], prey[part]], 1).astype(np.intp)
        joint = np.zeros((len(chunk), rules.hunters + 1 + kinds, rules.cells), np.uint8)
        joint[:, rules.hunters] = blocks[episode[part]]
        row, column = np.nonzero(chunk >= 0)
        joint[row, planes[column], chunk[row, column]] = 1
        joint = joint.reshape(*joint.shape[:2], rules.height, rules.width)
        obs[part] = joint_to_planes(joint, kinds)
    return obs


def _metadata(args: Args, arrays: dict[str, np.ndarray]) -> dict:
    active, rules = arrays["active"], args.rules
    game = rules.game
    names = "/".join(args.strategies)
    return {
        "dataset_id": f"{game.name}/{size_of(rules).replace('_', '-')}/scripted-v0",
        "env_id": game.id,
        "algorithm_name": f"{names} scripted hunters, epsilon {args.epsilon:g}",
        "total_episodes": len(arrays["episode_lengths"]),
        "total_steps": len(arrays["actions"]),
        "active_samples": int(active.sum()),
        "seed": args.seed,
        "epsilon": args.epsilon,
        "strategies": list(args.strategies),
        "priors": [1.0 / len(args.strategies)] * len(args.strategies),
        **({"switch_tick": args.switch_tick} if args.switch_tick else {}),
        **({"unmasked": args.unmasked} if args.unmasked else {}),
        "rules": dict(vars(rules)),
        **({"game": game.metadata()} if game != STAG_HUNT else {}),
        "channels": list(game.planes),
        "actions": list(game.actions),
        "action_counts": np.bincount(arrays["actions"][active], minlength=game.num_actions).tolist(),
    }


def _relative(path: str | Path) -> str:
    """Relative to the working folder, where it lies below it."""
    full, here = Path(path).resolve(), Path.cwd()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else str(path)


def collect_to_file(args: Args) -> Trajectories:
    """Collect and write `args.out`, with one line before and one after."""
    check_output(args.out)
    start = time.perf_counter()
    wanted = f"{args.steps} board steps" if args.steps else f"{args.samples} active samples"
    print(f"[DATA] collecting {wanted} (seed {args.seed}) into {_relative(args.out)}", flush=True)
    trajectories = collect(args, progress=True)
    save_arrays(args.out, trajectories.arrays())
    seconds = time.perf_counter() - start
    metadata = trajectories.metadata
    counts = (
        f"{metadata['total_episodes']} episodes",
        f"{metadata['total_steps']} steps",
        f"{metadata['active_samples']} active samples",
    )
    print(f"[DATA] {', '.join(counts)} in {seconds:.1f} s", flush=True)
    return trajectories


if __name__ == "__main__":
    import tracking  # the command line alone needs it

    def main() -> None:
        collect_to_file(tracking.parse_args(Args, __doc__.split("\n")[0]))

    tracking.run(main, ValueError)
