"""How good predictions of co-players are while a game is played."""

from __future__ import annotations

from collections.abc import Callable

import torch

ACCURACY = "belief_accuracy_tick"  # and the tick: the names of these figures
SHOWN_TICKS = (0, 2, 5, 10)  # of which TensorBoard gets the accuracy while training goes on


class PredictionStats:
    """Sums over the co-players of the boards just played; hunters that learn themselves are left out."""

    def __init__(self, horizon: int):
        self.sums = torch.zeros(4)  # actions, right, among the first three, NLL
        self.by_tick = torch.zeros(horizon + 1, 2)  # co-players with a goal, of which the belief was right

    def add(
        self,
        probs: torch.Tensor,
        actions: torch.Tensor,
        playing: torch.Tensor,
        tick: torch.Tensor,
        strategy_ids: torch.Tensor,
        belief: torch.Tensor | None = None,
    ) -> None:
        """One tick of B boards with A hunters.

        Args:
            probs: float [B, A, n], predicted. actions: int64 [B, A], taken. playing: bool [B, A], who took one.
            tick: int64 [B]. strategy_ids: int64 [B, A], 0 and 1 pursue the first and the second goal, 2 none, -1 a learner.
            belief: float [B, A], P(first goal); None: not judged.
        """
        rows = playing & (strategy_ids >= 0)
        taken = probs.gather(2, actions[..., None])  # [B, A, 1]
        rank = (probs > taken).sum(2)[rows]
        self.sums += torch.stack([rows.sum(), (rank < 1).sum(), (rank < 3).sum(), -taken[rows].log().sum()])
        if belief is None:
            return
        rows &= strategy_ids <= 1
        right = ((belief > 0.5) == (strategy_ids == 0)) & rows
        self.by_tick.index_add_(0, tick, torch.stack([rows.sum(1), right.sum(1)], 1).float())

    def summarize(self, add_up: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> dict[str, float]:
        """moa_top1, moa_top3, moa_nll, belief_accuracy_tick<t> since the last call; what was not counted is left out.

        Args: add_up: adds a tensor up over the processes that play together.
        """
        count, *sums = add_up(self.sums).tolist()
        figures = {}
        if count:
            names = ("moa_top1", "moa_top3", "moa_nll")
            figures = {name: value / count for name, value in zip(names, sums, strict=True)}
        for tick, (goals, right) in enumerate(add_up(self.by_tick).tolist()):
            if goals:
                figures[f"{ACCURACY}{tick}"] = right / goals
        self.sums.zero_()
        self.by_tick.zero_()
        return figures


def is_shown(name: str) -> bool:
    """While training goes on, in TensorBoard."""
    return not name.startswith(ACCURACY) or int(name.removeprefix(ACCURACY)) in SHOWN_TICKS


def accuracy_by_tick(history: list[dict]) -> dict[int, float]:
    """Of the beliefs, the mean over these updates at each tick."""
    by_tick: dict[int, list[float]] = {}
    for row in history:
        for name, value in row.items():
            if name.startswith(ACCURACY):
                by_tick.setdefault(int(name.removeprefix(ACCURACY)), []).append(value)
    return {tick: sum(values) / len(values) for tick, values in sorted(by_tick.items())}
