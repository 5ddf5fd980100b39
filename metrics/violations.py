"""Rule violations of predicted next joint states and rewards, by kind. What the game itself plays has none."""

from __future__ import annotations

import numpy as np

from envs.core import GameRules
from envs.game import Game
from envs.grid import neighbours
from metrics.laws import DeterministicStep, deterministic_step

OBJECT_KINDS = (
    "jump",
    "against_action",
    "into_block",
    "doubled",
    "lost",
    "prey_created",
    "prey_moved",
    "prey_lost",
    "block_changed",
)
KINDS = (
    *OBJECT_KINDS,
    "reward_without_capture",
    "capture_without_reward",
)  # where hunters leave with their prey
REMOVAL_KINDS = ("pay_without_removal", "wrong_pay", "wrong_share", "removal_without_effect")
TOLERANCE = 0.01  # a reward this near is right


def kinds_of(game: Game) -> tuple[str, ...]:
    """The kinds of violation of a game's rules: `KINDS` or, where nobody leaves, those of removals."""
    return KINDS if game.leaves else OBJECT_KINDS + REMOVAL_KINDS


def violations(
    before: np.ndarray, actions: np.ndarray, after: np.ndarray, rewards: np.ndarray, rules: GameRules
) -> dict[str, np.ndarray]:
    """Which of M predictions break the rules, and how: one array a kind, in the order of `kinds_of(rules.game)`.

    A mistake counts under the kind that names it; a prediction with several mistakes counts under several. Captures
    are those by the rules from `before` and `actions`: a prediction that captures where the rules do not has lost its
    hunters and its prey and pays without a capture; one that misses a capture is a `capture_without_reward`, and
    nothing else.

    Of a hunter that is on the board before and on one cell after:
    - `jump`: that cell is not where it was and not one of the four neighbour cells.
    - `into_block`: that cell is a block of `before`.
    - `against_action`: neither of these, and not the cell that its effective action leads to. Not asked of a hunter
      that a capture takes off the board.

    Of the other hunters:
    - `doubled`: on several cells after, wherever they are; or on the board after, though it had left before.
    - `lost`: on no cell after, though no capture takes it off the board.

    Of each kind of prey: the prey that remain after the captures are matched, as many as possible, with the cells
    after. A prey can go to its own cell, or where `prey_moves` is above 0 also to a neighbour cell without a block or
    prey of another kind (kinds go in order: later ones where they were, earlier ones where they are). That a prey stays
    where `prey_moves` is 1 is allowed. A cell of a captured prey is matched last; unmatched, the prey is still there. Then
    - `prey_moved`: both a prey and a cell are unmatched.
    - `prey_created`, `prey_lost`: more cells than prey are unmatched, or fewer. A stag that turns into a hare is both.

    - `block_changed`: BLOCKS differs from `before`.

    Where hunters leave with the prey that they capture:
    - `reward_without_capture`: a hunter that takes part in no capture is not paid 0, within 0.01.
    - `capture_without_reward`: a hunter that takes part in a capture is not paid its share, within 0.01, or is still
      on the board, or the captured prey is still there.

    Where nobody leaves, a removal pays all, and those who remove share its cost:
    - `pay_without_removal`: nothing is removed from the board, and a hunter is not paid 0, within 0.01.
    - `wrong_pay`: something is removed, and a hunter that took no part is not paid what all are.
    - `wrong_share`: a hunter that took part is not paid that, less its share of the cost.
    - `removal_without_effect`: a prey that is removed is still there.

    Args:
        before: uint8 or bool [M, A+1+k, H, W], joint states. In a rollout they may be impossible themselves: a hunter
            that is on several cells is judged from the first, and prey on a wrong cell may stay there.
        actions: integers [M, A], as chosen: illegal ones count as STAY.
        after: uint8 or bool [M, A+1+k, H, W], the predictions, any 0 or 1 in each cell.
        rewards: float [M, A]; NaN is never right.
        rules: what a capture needs and pays, and `prey_moves`, are used; the arrays give all sizes.
    Returns: kind -> bool [M].
    Raises: ValueError: a wrong shape or dtype, or an action that the game does not have.
    """
    step = deterministic_step(before, actions, rules)
    if after.shape != before.shape:
        raise ValueError(f"after: expected shape {before.shape}, got {after.shape}")
    if rewards.shape != actions.shape:
        raise ValueError(f"rewards: expected shape {actions.shape}, got {rewards.shape}")
    M, planes, H, W = before.shape
    kinds = rules.game.kinds
    A, K = planes - 1 - kinds, H * W
    new = after.reshape(M, planes, K).astype(bool)
    blocks = before[:, A].reshape(M, K).astype(bool)
    prey_after = new[:, A + 1 :]  # [M, k, K]
    by_kind = {kind: np.zeros(M, bool) for kind in kinds_of(rules.game)}
    by_kind |= _hunter_violations(step, new[:, :A], blocks, H, W)
    if rules.game.leaves:
        by_kind |= _reward_violations(step, new[:, :A], rewards)
        not_removed = by_kind["capture_without_reward"]
    else:
        by_kind |= _removal_violations(step, rewards)
        not_removed = by_kind["removal_without_effect"]
    table = neighbours(H, W)[:, :4] if rules.prey_moves > 0.0 else None
    for kind in range(kinds):
        remaining, captured = step.remaining_prey[:, kind], step.captured_prey[:, kind]
        earlier, later = prey_after[:, :kind], step.remaining_prey[:, kind + 1 :]
        closed = blocks | earlier.any(1) | later.any(1)
        prey, cells, still_there = count_unmatched(remaining, prey_after[:, kind], captured, closed, table)
        by_kind["prey_created"] |= cells > prey
        by_kind["prey_moved"] |= np.minimum(cells, prey) > 0
        by_kind["prey_lost"] |= cells < prey
        not_removed |= still_there > 0
    by_kind["block_changed"] = (new[:, A] != blocks).any(1)
    return by_kind


def _hunter_violations(
    step: DeterministicStep, new: np.ndarray, blocks: np.ndarray, height: int, width: int
) -> dict[str, np.ndarray]:
    """new: bool [M, A, K], the hunters after; blocks: bool [M, K]."""
    K = new.shape[2]
    cells = np.count_nonzero(new, axis=2)  # [M, A]
    cell = new.argmax(2)
    was_active = step.hunters < K
    on_one_cell = was_active & (cells == 1)
    reachable = neighbours(height, width)[step.hunters, :5]  # [M, A, 5]; STAY leads to where it is
    near = (reachable == cell[..., None]).any(2)
    on_block = np.take_along_axis(blocks, cell, 1)
    wrong_cell = near & ~on_block & (cell != step.destinations) & ~step.leaves
    return {
        "jump": (on_one_cell & ~near).any(1),
        "against_action": (on_one_cell & wrong_cell).any(1),
        "into_block": (on_one_cell & on_block).any(1),
        "doubled": ((cells > 1) | (~was_active & (cells > 0))).any(1),
        "lost": (was_active & (cells == 0) & ~step.leaves).any(1),
    }


def _reward_violations(
    step: DeterministicStep, new: np.ndarray, rewards: np.ndarray
) -> dict[str, np.ndarray]:
    """new: bool [M, A, K], the hunters after; rewards: float [M, A]."""
    right = np.abs(rewards - step.rewards) <= TOLERANCE
    still_there = new.any(2)
    return {
        "reward_without_capture": (~step.captures & ~right).any(1),
        "capture_without_reward": (step.captures & (~right | still_there)).any(1),
    }


def _removal_violations(step: DeterministicStep, rewards: np.ndarray) -> dict[str, np.ndarray]:
    """rewards: float [M, A]. `removal_without_effect` is filled in from the prey."""
    wrong = ~(np.abs(rewards - step.rewards) <= TOLERANCE)  # also NaN
    removal = step.captures.any(1)
    return {
        "pay_without_removal": ~removal & wrong.any(1),
        "wrong_pay": removal & (wrong & ~step.captures).any(1),
        "wrong_share": (wrong & step.captures).any(1),
        "removal_without_effect": np.zeros(len(rewards), bool),
    }


def counts(by_kind: dict[str, np.ndarray]) -> dict[str, float]:
    """Per 10,000 predictions: `total`, those with at least one violation; then those with one of each kind.

    Raises: ValueError: there are no predictions.
    """
    if not len(by_kind["jump"]):
        raise ValueError("no predictions to count violations of")
    total = np.any(list(by_kind.values()), axis=0)
    return {kind: float(10_000 * broken.mean()) for kind, broken in {"total": total, **by_kind}.items()}


def count_unmatched(
    remaining: np.ndarray,
    after: np.ndarray,
    captured: np.ndarray,
    closed: np.ndarray,
    table: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many prey and cells a largest matching of one kind's prey with its cells after leaves over.

    Args:
        remaining, after, captured: bool [M, K]: the prey that were not captured, the cells after, the captured prey.
        closed: bool [M, K], cells that no prey of the kind can go to.
        table: int [K+1, 4], the neighbour cells, or None: prey stand still.
    Returns: int [M] each: prey, cells, and cells of captured prey that are unmatched.
    """
    prey = remaining & ~after  # what is left over if each prey stays that can
    cells = after & ~remaining & ~captured
    still_there = after & captured
    if table is None:
        return prey.sum(1), cells.sum(1), still_there.sum(1)
    _match_neighbours(prey, cells, closed, table)
    counted = np.stack([prey.sum(1), cells.sum(1), still_there.sum(1)])  # [3, M]
    # That is a largest matching unless both prey and cells are left over: then one may make room for another.
    for row in np.flatnonzero(prey.any(1) & (cells.any(1) | still_there.any(1))):
        counted[:, row] = _exact_unmatched(remaining[row], after[row], captured[row], closed[row], table)
    return tuple(counted)


def _match_neighbours(prey: np.ndarray, cells: np.ndarray, closed: np.ndarray, table: np.ndarray) -> None:
    """In place: each prey that is left over goes to a cell beside it, if there is one."""
    changed = np.flatnonzero(prey.any(1) | cells.any(1))
    some_prey = prey[changed]
    some_cells = cells[changed]
    for direction in range(4):
        free = np.pad(some_cells & ~closed[changed], ((0, 0), (0, 1)))
        to = table[:-1, direction]  # [K]
        row, cell = np.nonzero(some_prey & free[:, to])
        some_prey[row, cell] = False
        some_cells[row, to[cell]] = False
    prey[changed] = some_prey
    cells[changed] = some_cells


def _exact_unmatched(
    remaining: np.ndarray,
    after: np.ndarray,
    captured: np.ndarray,
    closed: np.ndarray,
    table: np.ndarray,
) -> tuple[int, int, int]:
    """`count_unmatched` of one board by augmenting paths (Kuhn 1955); cells of captured prey are matched last."""
    match: dict[int, int] = {}  # cell after -> the prey that is matched with it

    def augment(prey: int, barred: set) -> bool:
        options = [to for to in table[prey].tolist() if to < len(after) and not closed[to]]
        for to in (prey, *options):
            if after[to] and to not in barred:
                barred.add(to)
                if to not in match or augment(match[to], barred):
                    match[to] = prey
                    return True
        return False

    last = set(np.flatnonzero(after & captured).tolist())
    unmatched = [prey for prey in np.flatnonzero(remaining).tolist() if not augment(prey, set(last))]
    unmatched = [prey for prey in unmatched if not augment(prey, set())]
    still_there = len(last - match.keys())
    return len(unmatched), int(after.sum()) - len(match) - still_there, still_there
