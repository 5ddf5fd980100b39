"""Print the numbers of the dataset card, as markdown, from a trajectory file: `python -m data.card --help`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.trajectories import DEFAULT_DATA, DataError, Trajectories, default_or_fresh, load, split_episodes
from envs.game import MOVES, OWN_PLANES

Row = tuple  # of cells: anything that can be printed


@dataclass
class Args:
    data: str = DEFAULT_DATA
    """a trajectory file, `fresh` or `unmasked`"""


def block(trajectories: Trajectories, path: str | Path) -> str:
    """All numbers of the card, as markdown tables. Raises: DataError: fewer than 10 episodes, too few to split."""
    tables = (_file_table, _action_table, _strategy_table, _team_table, _split_table)
    return "\n\n".join(table(trajectories, Path(path)) for table in tables)


def _returns(t: Trajectories) -> np.ndarray:
    """float64 [E, A]"""
    starts = np.cumsum(t.episode_lengths) - t.episode_lengths
    return np.add.reduceat(t.rewards, starts).astype(np.float64)


def _stayed(t: Trajectories) -> np.ndarray:
    """bool [E, A]: on the board to the end."""
    last = np.cumsum(t.episode_lengths + 1) - 1
    return t.obs[last][:, :, 0].any((2, 3))


def _mean_and_deviation(values: np.ndarray, decimals: int) -> str:
    return f"mean {values.mean():.{decimals}f}, standard deviation {values.std():.{decimals}f}"


def _share(mask: np.ndarray) -> str:
    return f"{mask.sum():,} ({mask.mean():.2%})"


def _file_table(t: Trajectories, path: Path) -> str:
    lengths, truncated = t.episode_lengths, ~t.terminated
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    num_bytes = sum(array.nbytes for array in t.arrays().values())
    rules = t.metadata.get("rules") or {}
    rules = ", ".join(f"{key} {value}" for key, value in rules.items())
    quantiles = np.quantile(lengths, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1), method="nearest")
    return _table(
        ("What", "Value"),
        ("file", f"`{path.name}`, {path.stat().st_size:,} bytes"),
        ("SHA-256 of the file", f"`{digest}`"),
        ("content fingerprint", f"`{t.fingerprint}`"),
        ("bytes of all arrays", f"{num_bytes:,}"),
        ("seed", t.metadata.get("seed", "unknown")),
        ("epsilon", t.metadata.get("epsilon", "unknown")),
        ("rules", rules or "unknown"),
        ("episodes", f"{len(lengths):,}"),
        ("steps", f"{lengths.sum():,}"),
        ("active samples", f"{t.active.sum():,}"),
        ("steps an episode", _mean_and_deviation(lengths, 2)),
        ("the same, quantiles 0, 10, 25, 50, 75, 90, 100%", ", ".join(f"{q}" for q in quantiles)),
        ("episodes terminated", _share(t.terminated)),
        ("episodes truncated", _share(truncated)),
        *(_hunt_rows(t) if t.game.leaves else [_prey_row(t)]),
        *_attempted_rows(t),
        ("return a hunter", _mean_and_deviation(_returns(t), 4)),
    )


def _hunt_rows(t: Trajectories) -> list[Row]:
    """Of a game whose hunters leave with what they take."""
    truncated = ~t.terminated
    left = _stayed(t)[truncated].sum() / max(truncated.sum(), 1)
    played = np.bincount(t.actions[t.active], minlength=t.game.num_actions)
    rewarded = np.bincount(t.actions[t.rewards > 0], minlength=t.game.num_actions)
    takes = range(len(MOVES), t.game.num_actions)
    captures = [f"{t.game.actions[a]} {rewarded[a] / max(played[a], 1):.2%}" for a in takes]
    return [
        ("hunters left on truncated boards", f"mean {left:.2f}"),
        ("hunts that capture", ", ".join(captures)),
    ]


def _prey_row(t: Trajectories) -> Row:
    """Of a game whose agents never leave."""
    last = np.cumsum(t.episode_lengths + 1) - 1
    prey = t.obs[last[~t.terminated], 0, len(OWN_PLANES) :].sum(dtype=np.int64)
    left = prey / max((~t.terminated).sum(), 1)
    return f"{', '.join(t.game.prey).lower()} left on truncated boards", f"mean {left:.2f}"


def _attempted_rows(t: Trajectories) -> list[Row]:
    """The rows of a file that has `attempted`."""
    if t.attempted is None:
        return []
    illegal = int((t.attempted != t.actions).sum())
    share = f"{illegal / t.active.sum():.2%} of active samples"
    return [
        ("unmasked", f"{t.metadata.get('unmasked', 'unknown')}"),
        ("actions asked for that were not legal", f"{illegal:,} ({share})"),
    ]


def _action_table(t: Trajectories, path: Path) -> str:
    total = t.active.sum()
    played = np.bincount(t.actions[t.active], minlength=t.game.num_actions)
    all_rows = np.bincount(t.actions.ravel(), minlength=t.game.num_actions)
    rows = []
    for action, name in enumerate(t.game.actions):
        active, every = played[action], all_rows[action]
        shares = f"{active / total:.2%}", f"{every / t.active.size:.2%}"
        rows.append((name, f"{active:,}", shares[0], f"{every:,}", shares[1]))
    return _table(
        ("Action", "Active samples", "Share", "With hunters that have left", "Share"),
        *rows,
        ("all", f"{total:,}", "100%", f"{t.active.size:,}", "100%"),
    )


def _strategy_table(t: Trajectories, path: Path) -> str:
    returns, stayed = _returns(t), _stayed(t)
    starts = np.cumsum(t.episode_lengths) - t.episode_lengths
    takes = np.add.reduceat(t.actions >= len(MOVES), starts, dtype=np.int64)  # [E, A]
    strategies = t.strategies[t.episode]  # [N, A]
    rows = []
    for strategy, name in enumerate(t.strategy_names):
        mask = t.strategies == strategy  # [E, A]
        if not mask.any():
            continue
        samples = (t.active & (strategies == strategy)).sum()
        own_returns = returns[mask]
        rows.append(
            (
                name,
                f"{mask.sum():,}",
                f"{samples:,}",
                f"{samples / mask.sum():.2f}",
                f"{own_returns.mean():.4f}",
                f"{np.median(own_returns):.4f}",
                f"{(~stayed[mask]).mean():.2%}" if t.game.leaves else f"{takes[mask].mean():.2f}",
            )
        )
    counts = ("Hunters", "Active samples", "Samples a hunter")
    outcome = "Left the board" if t.game.leaves else f"{'/'.join(t.game.takes)} an agent"
    return _table(("Strategy", *counts, "Return: mean", "median", outcome), *rows)


def _team_table(t: Trajectories, path: Path) -> str:
    """How many hunters of an episode have the first strategy."""
    hunters = t.actions.shape[1]
    name = t.strategy_names[0]
    episodes = np.bincount((t.strategies == 0).sum(1), minlength=hunters + 1)
    head = [f"{count} {name}" for count in range(hunters + 1)]
    return _table((f"Of {hunters} hunters", *head), ("episodes", *(f"{n:,}" for n in episodes)))


def _split_table(t: Trajectories, path: Path) -> str:
    rows = []
    for part, episodes in split_episodes(len(t.episode_lengths)).items():
        samples = t.active[np.isin(t.episode, episodes)].sum()
        rows.append((part, f"{len(episodes):,}", f"{samples:,}"))
    return _table(("Split", "Episodes", "Active samples"), *rows)


def _table(head: Row, *rows: Row) -> str:
    lines = [head, ["-"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


if __name__ == "__main__":
    import tracking  # the command line alone needs it

    def main() -> None:
        path = default_or_fresh(tracking.parse_args(Args, __doc__.split("\n")[0]).data)
        print(block(load(path), path))

    tracking.run(main, DataError)
