"""Rule violations of predicted next joint states and rewards, by kind. On what the game itself plays every count is zero."""

from __future__ import annotations

import numpy as np

from envs.grid import neighbours
from envs.stag_hunt import Rules
from metrics.laws import resolve

KINDS = (
    "jump", "against_action", "into_block", "doubled", "lost", "prey_created", "prey_moved", "prey_lost", "block_changed",
    "reward_without_capture", "capture_without_reward",
)  # fmt: skip
TOLERANCE = 0.01  # a reward this near is right


def violations(
    before: np.ndarray, actions: np.ndarray, after: np.ndarray, rewards: np.ndarray, rules: Rules
) -> dict[str, np.ndarray]:
    """Which of M predictions break the rules, and how: one array a kind, in the order of `KINDS`.

    A mistake counts under the kind that names it; a prediction with several mistakes counts under several. Captures are
    those by the rules from `before` and `actions`: a prediction that captures where the rules do not has lost its hunters
    and its prey and pays without a capture; one that overlooks a capture is a `capture_without_reward`, and nothing else.

    Of a hunter that is on the board before and on one cell after:
    - `jump`: that cell is not where it was and not one of the four neighbour cells.
    - `into_block`: that cell is a block of `before`.
    - `against_action`: neither of these, and not the cell that its effective action leads to. Not asked of a hunter that
      a capture takes off the board.

    Of the other hunters:
    - `doubled`: on several cells after, wherever they are; or on the board after, though it had left before.
    - `lost`: on no cell after, though no capture takes it off the board.

    Of each kind of prey, among the cells after: prey that are left after the captures are matched, as many as can be, with
    cells after that one prey each can have gone to: its own, or where `prey_moves` is above 0 also a neighbour cell without
    a block or prey of the other kind (stags go first: hares where they were, stags where they are). That a prey stays where
    `prey_moves` is 1 is let pass. A cell of a captured prey is matched last; unmatched, the prey is still there. Then
    - `prey_moved`: both a prey and a cell are unmatched.
    - `prey_created`, `prey_lost`: more cells than prey are unmatched, or fewer. A stag that turns into a hare is both.

    - `block_changed`: BLOCKS differs from `before`.
    - `reward_without_capture`: a hunter that takes part in no capture is not paid 0, within 0.01.
    - `capture_without_reward`: a hunter that takes part in a capture is not paid its share, within 0.01, or is still on the
      board, or the captured prey is still there.

    Args:
        before: uint8 or bool [M, A+3, H, W], joint states. In a rollout they may be impossible themselves: a hunter that is
            on several cells is judged from the first, and prey on a wrong cell may stay there.
        actions: integers [M, A], as chosen: illegal ones count as STAY.
        after: uint8 or bool [M, A+3, H, W], the predictions, any 0 or 1 in each cell.
        rewards: float [M, A]; NaN is never right.
        rules: `hunters_needed`, `stag_reward`, `hare_reward`, `prey_moves` are used; the arrays say all sizes.
    Returns: kind -> bool [M].
    Raises: ValueError: a wrong shape or dtype, or an action outside 0..6.
    """
    tick, (M, planes, H, W) = resolve(before, actions, rules), before.shape
    for name, array, shape in (("after", after, before.shape), ("rewards", rewards, actions.shape)):
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    A, K = planes - 3, H * W
    new, blocks = after.reshape(M, planes, K).astype(bool), before[:, A].reshape(M, K).astype(bool)
    found = {kind: np.zeros(M, bool) for kind in KINDS}

    cells, on_board = np.count_nonzero(new[:, :A], axis=2), tick.here < K  # [M, A]
    one, at = on_board & (cells == 1), new[:, :A].argmax(2)
    near = (neighbours(H, W)[tick.here, :5] == at[..., None]).any(2)  # STAY leads to where it is
    block = blocks[np.arange(M)[:, None], at]
    found["jump"] = (one & ~near).any(1)
    found["against_action"] = (one & near & ~block & (at != tick.to) & ~tick.caught).any(1)
    found["into_block"] = (one & block).any(1)
    found["doubled"] = ((cells > 1) | (~on_board & (cells > 0))).any(1)
    found["lost"] = (on_board & (cells == 0) & ~tick.caught).any(1)

    right = np.abs(rewards - tick.paid) <= TOLERANCE
    found["reward_without_capture"] = (~tick.caught & ~right).any(1)
    found["capture_without_reward"] = (tick.caught & (~right | (cells > 0))).any(1)

    stags, hares = new[:, A + 1], new[:, A + 2]
    for kind, now, closed in ((0, stags, blocks | tick.left[:, 1]), (1, hares, blocks | stags)):
        ways = neighbours(H, W)[:, :4] if rules.prey_moves > 0.0 else None
        prey, cell, still = _unmatched(tick.left[:, kind], now, tick.captured[:, kind], closed, ways)
        found["prey_created"] |= cell > prey
        found["prey_moved"] |= np.minimum(cell, prey) > 0
        found["prey_lost"] |= cell < prey
        found["capture_without_reward"] |= still > 0
    found["block_changed"] = (new[:, A] != blocks).any(1)
    return found


def counts(found: dict[str, np.ndarray]) -> dict[str, float]:
    """Per 10,000 predictions: `total`, those with at least one violation; then those with one of each kind.

    Raises: ValueError: there are no predictions.
    """
    if not len(found["jump"]):
        raise ValueError("no predictions to count violations of")
    total = np.any(list(found.values()), axis=0)
    return {kind: float(10_000 * broken.mean()) for kind, broken in {"total": total, **found}.items()}


def _unmatched(left, now, captured, closed, ways) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prey that are left, cells after, and captured prey's cells after that a largest matching leaves over: int [M] each.

    All but `ways` are bool [M, K]; ways: int [K+1, 4], the neighbour cells, or None: prey stand still.
    """
    prey, cell = left & ~now, now & ~left & ~captured  # what is left over when all stay that can
    still = now & captured
    if ways is None:
        return prey.sum(1), cell.sum(1), still.sum(1)
    changed = np.flatnonzero(prey.any(1) | cell.any(1))
    p, c = prey[changed], cell[changed]
    for d in range(4):  # then each prey that is left over goes to a cell beside it, if there is one
        free = np.pad(c & ~closed[changed], ((0, 0), (0, 1)))
        row, where = np.nonzero(p & free[:, ways[:-1, d]])
        p[row, where] = c[row, ways[where, d]] = False
    prey[changed], cell[changed] = p, c
    counted = [x.sum(1) for x in (prey, cell, still)]
    # That is a largest matching unless prey are left over, and cells too: then one may have made room for another.
    for row in np.flatnonzero(prey.any(1) & (cell.any(1) | still.any(1))):
        for x, value in zip(
            counted, _exact(left[row], now[row], captured[row], closed[row], ways), strict=True
        ):
            x[row] = value
    return tuple(counted)


def _exact(left, now, captured, closed, ways) -> tuple[int, int, int]:
    """The same for one board, by augmenting paths (Kuhn 1955), captured prey's cells last: what is matched stays so."""
    from_cell = {}  # cell after -> the prey that is matched with it

    def place(prey: int, barred: set) -> bool:
        for to in (prey, *(to for to in ways[prey].tolist() if to < len(now) and not closed[to])):
            if now[to] and to not in barred:
                barred.add(to)
                if to not in from_cell or place(from_cell[to], barred):
                    from_cell[to] = prey
                    return True
        return False

    prey, last = np.flatnonzero(left).tolist(), set(np.flatnonzero(now & captured).tolist())
    waiting = [one for one in prey if not place(one, set(last))]
    waiting = [one for one in waiting if not place(one, set())]
    still = len(last - from_cell.keys())
    return len(waiting), int(now.sum()) - len(from_cell) - still, still
