"""Print the numbers of the dataset card, as markdown, from a trajectory file: `python -m data.card --help`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.trajectories import DEFAULT_DATA, DataError, Trajectories, default_or_fresh, load, split_episodes
from envs import ACTIONS


@dataclass
class Args:
    data: str = DEFAULT_DATA
    """a trajectory file, `fresh` or `unmasked`"""


def block(trajectories: Trajectories, path: str | Path) -> str:
    """All numbers of the card, as markdown tables. Raises: DataError: fewer than 10 episodes, too few to split."""
    t, active, seats = trajectories, trajectories.active, trajectories.actions.shape[1]
    returns = np.add.reduceat(t.rewards, np.cumsum(t.episode_lengths) - t.episode_lengths).astype(
        np.float64
    )  # [E, A]
    last = np.cumsum(t.episode_lengths + 1) - 1
    stayed = t.obs[last][:, :, 0].any((2, 3))  # [E, A], on the board to the end
    lengths, total, names = t.episode_lengths, active.sum(), t.strategy_names
    who = t.strategies[t.episode]  # [N, A]
    played, all_rows = (
        np.bincount(t.actions[active], minlength=7),
        np.bincount(t.actions.ravel(), minlength=7),
    )
    hits = np.bincount(t.actions[t.rewards > 0], minlength=7)
    rules = t.metadata.get("rules") or {}
    quantiles = np.quantile(lengths, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1), method="nearest")
    return "\n\n".join(
        [
            _table(
                ("What", "Value"),
                ("file", f"`{Path(path).name}`, {Path(path).stat().st_size:,} bytes"),
                ("SHA-256 of the file", f"`{hashlib.sha256(Path(path).read_bytes()).hexdigest()}`"),
                ("content fingerprint", f"`{t.fingerprint}`"),
                ("bytes of all arrays", f"{sum(array.nbytes for array in t.arrays().values()):,}"),
                ("seed", t.metadata.get("seed", "unknown")),
                ("epsilon", t.metadata.get("epsilon", "unknown")),
                ("rules", ", ".join(f"{key} {value}" for key, value in rules.items()) or "unknown"),
                ("episodes", f"{len(lengths):,}"),
                ("steps", f"{lengths.sum():,}"),
                ("active samples", f"{total:,}"),
                ("steps an episode", f"mean {lengths.mean():.2f}, standard deviation {lengths.std():.2f}"),
                ("the same, quantiles 0, 10, 25, 50, 75, 90, 100%", ", ".join(f"{q}" for q in quantiles)),
                ("episodes terminated", f"{t.terminated.sum():,} ({t.terminated.mean():.2%})"),
                ("episodes truncated", f"{(~t.terminated).sum():,} ({(~t.terminated).mean():.2%})"),
                (
                    "hunters left on truncated boards",
                    f"mean {stayed[~t.terminated].sum() / max((~t.terminated).sum(), 1):.2f}",
                ),
                (
                    "hunts that capture",
                    ", ".join(f"{ACTIONS[a]} {hits[a] / max(played[a], 1):.2%}" for a in (5, 6)),
                ),
                *_attempted(t),
                ("return a hunter", f"mean {returns.mean():.4f}, standard deviation {returns.std():.4f}"),
            ),
            _table(
                ("Action", "Active samples", "Share", "With hunters that have left", "Share"),
                *(
                    (
                        name,
                        f"{played[a]:,}",
                        f"{played[a] / total:.2%}",
                        f"{all_rows[a]:,}",
                        f"{all_rows[a] / active.size:.2%}",
                    )
                    for a, name in enumerate(ACTIONS)
                ),
                ("all", f"{total:,}", "100%", f"{active.size:,}", "100%"),
            ),
            _table(
                (
                    "Strategy",
                    "Hunters",
                    "Active samples",
                    "Samples a hunter",
                    "Return: mean",
                    "median",
                    "Left the board",
                ),
                *(
                    (
                        names[s],
                        f"{own.sum():,}",
                        f"{(active & (who == s)).sum():,}",
                        f"{(active & (who == s)).sum() / own.sum():.2f}",
                        f"{returns[own].mean():.4f}",
                        f"{np.median(returns[own]):.4f}",
                        f"{(~stayed[own]).mean():.2%}",
                    )
                    for s in range(len(names))
                    if (own := t.strategies == s).any()
                ),
            ),
            _table(
                (f"Of {seats} hunters", *(f"{k} {names[0]}" for k in range(seats + 1))),
                (
                    "episodes",
                    *(f"{n:,}" for n in np.bincount((t.strategies == 0).sum(1), minlength=seats + 1)),
                ),
            ),
            _table(
                ("Split", "Episodes", "Active samples"),
                *(
                    (part, f"{len(episodes):,}", f"{active[np.isin(t.episode, episodes)].sum():,}")
                    for part, episodes in split_episodes(len(lengths)).items()
                ),
            ),
        ]
    )


def _attempted(t: Trajectories) -> list[tuple[str, str]]:
    """The rows of a file that says what was asked for."""
    if t.attempted is None:
        return []
    illegal = int((t.attempted != t.actions).sum())
    return [
        ("unmasked", f"{t.metadata.get('unmasked', 'unknown')}"),
        (
            "actions asked for that were not legal",
            f"{illegal:,} ({illegal / t.active.sum():.2%} of active samples)",
        ),
    ]


def _table(head: tuple, *rows: tuple) -> str:
    lines = [head, ["-"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


if __name__ == "__main__":
    import tracking  # the command line alone needs it

    def main() -> None:
        path = default_or_fresh(tracking.parse_args(Args, __doc__.split("\n")[0]).data)
        print(block(load(path), path))

    tracking.run(main, DataError)
