"""The Markov stag hunt: rules and a batched core that plays many boards at once, in NumPy.

All arrays are batched over boards first: B boards, A hunters, P prey (stags first, then hares), K = H * W cells.
A cell is a number, row * W + column; row 0 is the top. The rules stand in `docs/design.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from envs.grid import FAR, distance_fields, neighbours

UP, DOWN, LEFT, RIGHT, STAY, HUNT_STAG, HUNT_HARE = range(7)
ACTIONS = ("UP", "DOWN", "LEFT", "RIGHT", "STAY", "HUNT_STAG", "HUNT_HARE")
PLANES = ("SELF", "OTHERS", "BLOCKS", "STAGS", "HARES")
MAX_CELLS = 2**14  # no way is as long as FAR, and a cell's number fits 16 bits


@dataclass(frozen=True)
class Rules:
    """What a game is made of. The defaults are "4p5b 8x8": 4 hunters, 5 blocks, 1 stag, 4 hares.

    Raises:
        ValueError: a number is out of its range, or the board is too small for what stands on it.
    """

    hunters: int = 4
    stags: int = 1
    hares: int = 4
    blocks: int = 5
    height: int = 8
    width: int = 8
    horizon: int = 35
    """ticks after which a board is truncated"""
    stag_reward: float = 10.0
    """shared equally by the hunters that capture a stag"""
    hare_reward: float = 1.0
    """shared equally by the hunters that capture a hare"""
    hunters_needed: int = 2
    """hunters that must play HUNT_STAG on a stag's cell in the same tick"""
    prey_moves: float = 0.0
    """probability that a prey steps to a free neighbour cell after the hunts of a tick"""
    end_after_first_hunt: int | None = None
    """k: the board is terminated after the k-th tick that follows the tick of the first capture"""

    def __post_init__(self) -> None:
        least = dict(hunters=1, stags=0, hares=0, blocks=0, height=1, width=1, horizon=1, hunters_needed=1)
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < low:
                raise ValueError(f"rules: {name} must be a whole number of at least {low}, got {value!r}")
        if not 0.0 <= self.prey_moves <= 1.0:
            raise ValueError(f"rules: prey_moves must be in [0, 1], got {self.prey_moves!r}")
        if not (np.isfinite(self.stag_reward) and np.isfinite(self.hare_reward)):
            rewards = f"{self.stag_reward!r} and {self.hare_reward!r}"
            raise ValueError(f"rules: rewards must be finite, got {rewards}")
        k = self.end_after_first_hunt
        if k is not None and (not isinstance(k, (int, np.integer)) or k < 0):
            wanted = "None or a whole number of at least 0"
            raise ValueError(f"rules: end_after_first_hunt must be {wanted}, got {k!r}")
        board = f"{self.height}x{self.width}"
        if self.cells > MAX_CELLS:
            raise ValueError(f"rules: a board has at most {MAX_CELLS} cells, got {board}")
        things = self.blocks + self.prey + self.hunters
        if things > self.cells:
            raise ValueError(
                f"rules: {things} hunters, prey and blocks do not fit on {board} = {self.cells} cells"
            )

    @property
    def prey(self) -> int:
        """Stags and hares at the start."""
        return self.stags + self.hares

    @property
    def cells(self) -> int:
        return self.height * self.width


@dataclass
class State:
    """All that a batch of boards is; index it with `state[boards]` to pick, repeat or reorder boards."""

    blocks: np.ndarray
    """bool [B, K]"""
    hunters: np.ndarray
    """int16 [B, A], the cell of each hunter, -1 once it has left"""
    prey: np.ndarray
    """int16 [B, P], the cell of each prey (stags first), -1 once it is captured"""
    tick: np.ndarray
    """int32 [B], ticks played"""
    first_hunt: np.ndarray
    """int32 [B], the tick of the first capture, -1 before it"""
    ended: np.ndarray
    """bool [B], the board is over: it stands still until it is reset"""
    key: np.ndarray
    """uint64 [B], the board's random stream"""
    counter: np.ndarray
    """uint64 [B], numbers drawn from it so far"""

    def __getitem__(self, boards: np.ndarray) -> State:
        return State(*(getattr(self, f.name)[boards].copy() for f in fields(self)))


# ---- random numbers


def splitmix64(key: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """The `counter`-th number of the stream `key`: SplitMix64 (Steele, Lea & Flood 2014), random access.

    Args: key, counter: uint64, broadcast together. Returns: uint64, uniform over all 64-bit numbers.
    """
    with np.errstate(over="ignore"):  # wraps modulo 2**64, as the generator is defined
        z = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def stream_keys(seed: int, boards: np.ndarray) -> np.ndarray:
    """The stream of each board: a function of (seed, board) alone. uint64, shaped like `boards`."""
    base = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return splitmix64(base, np.asarray(boards, np.uint64))


# ---- the rules of a tick, each once


def legal_on(
    cells: np.ndarray, blocks: np.ndarray, on_stag: np.ndarray, on_hare: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """What a hunter may do on each of these cells; one that has left, cell K, may STAY.

    Args:
        cells: int [B, n]; blocks: bool [B, K] with K = rows * columns.
        on_stag, on_hare: bool [B, n], whether a stag or a hare stands on the cell.
    Returns: bool [B, n, 7].
    """
    B, K = blocks.shape
    closed = np.ones((B, K + 1), bool)  # off the board is as good as a block
    closed[:, :K] = blocks
    board = np.arange(B)[:, None] * (K + 1)  # where its row starts in closed
    table = neighbours(rows, columns)
    legal = np.ones((*cells.shape, 7), bool)
    for action in (UP, DOWN, LEFT, RIGHT):
        to = table[:, action].take(cells)
        legal[..., action] = ~closed.take(board + to)
    legal[..., HUNT_STAG] = on_stag
    legal[..., HUNT_HARE] = on_hare
    return legal


def legal_actions(planes: np.ndarray) -> np.ndarray:
    """What the hunter of each observation may do; without a SELF cell it has left and may STAY.

    Args: planes: uint8 or bool [..., 5, H, W]. Returns: bool [..., 7].
    """
    *batch, _, height, width = planes.shape
    K = height * width
    flat = planes.reshape(-1, 5, K).astype(bool)
    own, _, blocks, stags, hares = flat.swapaxes(0, 1)  # [B, K] each
    active = own.any(1)
    cell = own.argmax(1)
    row = np.arange(len(flat))
    on_stag = stags[row, cell] & active
    on_hare = hares[row, cell] & active
    cell = np.where(active, cell, K)
    legal = legal_on(cell[:, None], blocks, on_stag[:, None], on_hare[:, None], height, width)
    return legal.reshape(*batch, 7)


def effective_actions(actions: np.ndarray, legal: np.ndarray) -> np.ndarray:
    """An illegal action counts as STAY. actions: int [...], 0..6; legal: bool [..., 7]. Returns: int [...]."""
    is_legal = np.take_along_axis(legal, actions[..., None].astype(np.intp), -1)[..., 0]
    return np.where(is_legal, actions, STAY)


def resolve_hunts(
    cells: np.ndarray, actions: np.ndarray, rules: Rules, dtype: type = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Which hunters capture a prey in a tick, and what each earns. Prey of a kind never share a cell: hunters that
    play the same hunt on the same cell hunt the same prey.

    Args: cells: int [B, A], where the hunters stand; actions: int [B, A], their effective ones.
    Returns: captures: bool [B, A], the hunters that take part; rewards: [B, A] of `dtype`.
    """
    hunted = cells * len(ACTIONS) + actions  # the same number: the same action on the same cell
    team = (hunted[:, :, None] == hunted[:, None, :]).sum(2)  # [B, A]
    hunts_stag = actions == HUNT_STAG
    needed = np.where(hunts_stag, rules.hunters_needed, 1)
    captures = (actions >= HUNT_STAG) & (team >= needed)
    reward = np.where(hunts_stag, rules.stag_reward, rules.hare_reward)
    share = np.divide(reward.astype(dtype), team, dtype=dtype)
    return captures, np.where(captures, share, dtype(0))


def step_prey(prey: np.ndarray, blocks: np.ndarray, uniform: np.ndarray, rules: Rules) -> np.ndarray:
    """Prey step one after another, stags first: each sees the steps of the earlier ones.

    Args:
        prey: int [B, P], cells, K if captured; blocks: bool [B, K].
        uniform: float64 [B, P, 2] in [0, 1): of each prey, whether it steps, and to which of its free neighbour cells.
    Returns: int [B, P], the cells after.
    """
    B, K = blocks.shape
    around = neighbours(rules.height, rules.width)[:, :4].copy()  # [K+1, 4]
    prey = prey.copy()
    closed = np.ones((B, K + 1), bool)
    closed[:, :K] = blocks
    np.put_along_axis(closed, prey, True, 1)
    steps = (uniform[..., 0] < rules.prey_moves) & (prey != K)
    for slot in range(rules.prey):  # the rule is sequential; all boards go at once
        board = np.flatnonzero(steps[:, slot])
        cell = prey[board, slot]
        options = around.take(cell, 0)  # [n, 4]
        free = ~closed[board[:, None], options]
        number = free.sum(1)
        pick = (uniform[board, slot, 1] * number).astype(np.intp)
        way = (free.cumsum(1) > pick[:, None]).argmax(1)
        to = np.where(number > 0, options[np.arange(len(board)), way], cell)
        closed[board, cell] = False
        closed[board, to] = True
        prey[board, slot] = to
    return prey


def first_hunt_after(first_hunt: Any, tick: Any, before: Any, prey: Any, gone: int) -> Any:
    """int [B], the tick of the first capture on each board, -1 before it. NumPy arrays or tensors.

    Args:
        first_hunt: int [B], before the tick; tick: int [B], the tick just played.
        before, prey: int [B, P], cells before and after it, `gone` if captured.
    """
    captured = ((prey == gone) & (before != gone)).any(1)
    is_first = (first_hunt < 0) & captured
    return first_hunt * ~is_first + tick * is_first


def ended_by_rule(tick: Any, first_hunt: Any, active: Any, rules: Rules) -> Any:
    """bool [B], the boards that terminate with this tick. NumPy arrays or tensors.

    Args:
        tick: int [B], the tick just played.
        first_hunt: int [B]; active: bool [B, A], hunters on the board; both after the tick.
    """
    ended = ~active.any(1)
    if rules.end_after_first_hunt is not None:
        ended |= (first_hunt >= 0) & (tick - first_hunt >= rules.end_after_first_hunt)
    return ended


# ---- the game on cells, without planes


class Cells(NamedTuple):
    """What changes on B boards, as cells, without planes; K = H * W stands for off the board."""

    hunters: np.ndarray
    """int64 [B, A]"""
    prey: np.ndarray
    """int64 [B, P], stags first"""
    tick: np.ndarray
    """int64 [B]"""
    first_hunt: np.ndarray
    """int64 [B], the tick of the first capture, -1 before it"""


def legal_cells(hunters: np.ndarray, prey: np.ndarray, blocks: np.ndarray, rules: Rules) -> np.ndarray:
    """bool [B, n, 7]: what each hunter may do; one that has left may STAY.

    Args: hunters: int [B, n]; prey: int [B, P], stags first; blocks: bool [B, K]. Cells, K if gone.
    """
    active = hunters < rules.cells
    on_prey = (hunters[:, :, None] == prey[:, None, :]) & active[..., None]  # [B, n, P]
    on_stag = on_prey[..., : rules.stags].any(2)
    on_hare = on_prey[..., rules.stags :].any(2)
    return legal_on(hunters, blocks, on_stag, on_hare, rules.height, rules.width)


def step_cells(
    cells: Cells,
    actions: np.ndarray,
    blocks: np.ndarray,
    rules: Rules,
    rng: np.random.Generator | None = None,
) -> tuple[Cells, np.ndarray, np.ndarray]:
    """One tick on cells alone: what a search in the rules plays, many boards at once.

    Args: actions: integers [B, A], an illegal one counts as STAY; blocks: bool [B, K]; rng: for prey that move.
    Returns: the cells after, rewards float32 [B, A], over bool [B]: by the rules or at the horizon.
    Raises: ValueError: prey move, and there is no rng.
    """
    hunters, prey, tick, first_hunt = cells
    K = rules.cells
    legal = legal_cells(hunters, prey, blocks, rules)
    actions = effective_actions(actions, legal)
    captures, rewards = resolve_hunts(hunters, actions, rules)
    captured = ((hunters[:, :, None] == prey[:, None, :]) & captures[..., None]).any(1)  # [B, P]
    moved = neighbours(rules.height, rules.width)[hunters, actions]
    hunters_after = np.where(captures, K, moved)
    prey_after = np.where(captured, K, prey)
    first_hunt = first_hunt_after(first_hunt, tick, prey, prey_after, K)
    if rules.prey_moves > 0.0:
        if rng is None:
            raise ValueError("prey move at random: step_cells needs rng")
        uniform = rng.random((*prey.shape, 2))
        prey_after = step_prey(prey_after, blocks, uniform, rules)
    over = ended_by_rule(tick, first_hunt, hunters_after < K, rules)
    over |= tick + 1 >= rules.horizon
    return Cells(hunters_after, prey_after, tick + 1, first_hunt), rewards, over


# ---- the batched core. The actions that are legal on a cell are one byte, bit a for action a: tables over all 128
# bytes, made from the rules above, replace work on each action.

_BITS = (1 << np.arange(7)).astype(np.uint8)
_STAY_CODE = _BITS[STAY]
LEGAL = (np.arange(128)[:, None] & _BITS).astype(bool)  # [128, 7]
# [128 * 7]: code * 7 + action -> the action that happens
_EFFECTIVE = effective_actions(np.tile(np.arange(7), (128, 1)), LEGAL[:, None]).astype(np.int8).ravel()


class StagHunt:
    """B boards of the Markov stag hunt, played at once.

    `obs` (uint8 [B, A, 5, H, W]) is one buffer that `step` and `reset` update in place: copy what you keep.
    A board that has ended stands still (every action counts as STAY, rewards are 0) until it is reset.

    Example:
        >>> env = StagHunt(num_boards=1024)
        >>> obs = env.reset(seed=1)
        >>> obs, rewards, terminated, truncated = env.step(np.full((1024, 4), STAY))
    """

    def __init__(self, num_boards: int, rules: Rules | None = None):
        if num_boards < 1:
            raise ValueError(f"num_boards must be at least 1, got {num_boards!r}")
        self.num_boards = num_boards
        self.rules = r = rules or Rules()
        B, A, P, K = num_boards, r.hunters, r.prey, r.cells
        self.blocks = np.zeros((B, K), bool)
        self.tick = np.zeros(B, np.int32)
        self.first_hunt = np.full(B, -1, np.int32)
        self.ended = np.ones(B, bool)
        self.counter = np.zeros(B, np.uint64)
        self.effective_actions = np.full((B, A), STAY, np.int8)
        self.neighbours = neighbours(r.height, r.width)  # int64 [K+1, 7]
        self._key = np.zeros(B, np.uint64)
        self._seeded = False

        # Flat cells: those of all boards in one row, K + 1 a board. Cell K is where hunters and prey go that are gone.
        self._offset = np.arange(B, dtype=np.intp)[:, None] * (K + 1)  # [B, 1], of each board's cell 0
        self._hunter_at = np.zeros((B, A), np.intp)  # flat cell
        self._prey_at = np.zeros((B, P), np.intp)  # flat cell
        self._codes = np.zeros(B * (K + 1), np.uint8)  # what is legal on each flat cell
        self._prey_on = np.full(B * (K + 1), -1, np.int16)  # which prey stands on each flat cell, -1: none
        self._step_of = _cell_steps(self.neighbours)  # [7]
        self._hunt_code = np.repeat(_BITS[[HUNT_STAG, HUNT_HARE]], [r.stags, r.hares])  # [P]
        self._prey_plane = np.repeat(
            [PLANES.index("STAGS"), PLANES.index("HARES")], [r.stags, r.hares]
        )  # [P]
        self._distance = np.full((B, P, K), FAR, np.int16)
        self._stale = np.ones((B, P), bool)  # distances that are out of date

        # The planes are one flat buffer; its last byte is a bin for the planes of hunters that have left.
        self._flat = np.zeros(B * A * 5 * K + 1, np.uint8)
        self._bin = len(self._flat) - 1
        self.obs = self._flat[:-1].reshape(B, A, 5, r.height, r.width)
        self._planes = self._flat[:-1].reshape(B, A, 5, K)
        start = np.arange(B * A * 5).reshape(B, A, 5, 1) * K  # of each plane in the buffer
        is_self = np.eye(A, dtype=bool)  # [observer, hunter]
        start = np.where(is_self, start[:, :, 0], start[:, :, 1])  # SELF or OTHERS
        # Add a hunter's flat cell to get where it is in the planes of each observer.
        self._start = start - self._offset[..., None]  # [B, A, A]
        self._shift = self._start.copy()  # the same, but to the bin for hunters that have left
        self._shown = np.zeros((B, A, A), np.intp)  # where hunters are in the buffer now

    # ---- what a player can ask

    @property
    def active(self) -> np.ndarray:
        """bool [B, A]: hunters on the board."""
        return self._hunter_at != self._offset + self.rules.cells

    @property
    def hunters(self) -> np.ndarray:
        """int64 [B, A]: the cell of each hunter, K once it has left."""
        return self._hunter_at - self._offset

    @property
    def prey(self) -> np.ndarray:
        """int64 [B, P]: the cell of each prey, stags first, K once it is captured."""
        return self._prey_at - self._offset

    @property
    def ticks_left(self) -> np.ndarray:
        """int32 [B]: ticks still to be played once `end_after_first_hunt` counts down, -1 while it does not."""
        k = self.rules.end_after_first_hunt
        if k is None:
            return np.full(self.num_boards, -1, np.int32)
        last = np.minimum(self.first_hunt + k + 1, self.rules.horizon)
        left = np.where(self.ended, 0, last - self.tick)
        return np.where(self.first_hunt < 0, -1, left).astype(np.int32)

    def legal_actions(self) -> np.ndarray:
        """bool [B, A, 7]: what each hunter may do; one that has left, and each of an ended board, may STAY."""
        return LEGAL[self.legal_codes()]

    def legal_codes(self) -> np.ndarray:
        """uint8 [B, A]: `legal_actions` as bits, bit a for action a; `LEGAL[code]` is the row of 7."""
        self._need_boards()
        codes = self._codes.take(self._hunter_at)
        if self.ended.any():
            codes[self.ended] = _STAY_CODE
        return codes

    def distances(self) -> np.ndarray:
        """int16 [B, P, K]: shortest-path length around blocks from each cell to each prey; FAR if there is no way."""
        r = self.rules
        self._distance[self._stale] = FAR
        board, slot = np.nonzero(self._stale & (self.prey != r.cells))
        if len(board):
            source = np.zeros((len(board), r.cells), bool)
            source[np.arange(len(board)), self.prey[board, slot]] = True
            shape = (len(board), r.height, r.width)
            fields_ = distance_fields(self.blocks[board].reshape(shape), source.reshape(shape))
            self._distance[board, slot] = fields_.reshape(len(board), -1)
        self._stale[:] = False
        return self._distance

    def uniform(self, n: int) -> np.ndarray:
        """float64 [B, n] in [0, 1): the next n numbers of each board's own stream."""
        self._need_boards()
        return (self.draw(np.arange(self.num_boards), n) >> np.uint64(11)) * 2.0**-53

    def draw(self, boards: np.ndarray, n: int) -> np.ndarray:
        """uint64 [len(boards), n]: the next n numbers of these boards' streams."""
        counter = self.counter[boards, None] + np.arange(n, dtype=np.uint64)
        numbers = splitmix64(self._key[boards, None], counter)
        self.counter[boards] += np.uint64(n)
        return numbers

    def _need_boards(self) -> None:
        if not self._seeded:
            raise ValueError("no boards are set up yet: call reset() or set_state() first")

    # ---- state

    @property
    def state(self) -> State:
        """A copy of the whole state; `set_state` takes it back. Raises: ValueError: no boards are set up yet."""
        self._need_boards()
        hunters, prey, K = self.hunters, self.prey, self.rules.cells
        return State(
            blocks=self.blocks.copy(),
            hunters=np.where(hunters == K, -1, hunters).astype(np.int16),
            prey=np.where(prey == K, -1, prey).astype(np.int16),
            tick=self.tick.copy(),
            first_hunt=self.first_hunt.copy(),
            ended=self.ended.copy(),
            key=self._key.copy(),
            counter=self.counter.copy(),
        )

    def set_state(self, state: State) -> np.ndarray:
        """Put all boards into `state` (as many boards as this core has) and return `obs`.

        Raises:
            ValueError: an array's shape or dtype is not this core's, a cell is off the board or a block, or prey
                share one.
        """
        _check_state(state, self.num_boards, self.rules)
        self.tick = state.tick.copy()
        self.first_hunt = state.first_hunt.copy()
        self.ended = state.ended.copy()
        self.counter = state.counter.copy()
        self._key = state.key.copy()
        self._seeded = True
        self._place(np.arange(self.num_boards), state.blocks, state.hunters, state.prey)
        return self.obs

    def copy(self) -> StagHunt:
        """An independent core in the same state."""
        return _restore(self.num_boards, self.rules, self.state if self._seeded else None)

    def __reduce__(self) -> tuple:
        # `obs` is a view of `_flat`; copied field by field (pickle, deepcopy) the two would part.
        return _restore, (self.num_boards, self.rules, self.state if self._seeded else None)

    # ---- playing

    def reset(
        self, seed: int | None = None, boards: np.ndarray | None = None, first_board: int = 0
    ) -> np.ndarray:
        """Draw new boards: blocks, prey and hunters on distinct random cells, every free cell reachable.

        Args:
            seed: starts board i's stream at (seed, i), whatever the number of boards; None goes on in the streams.
            boards: bool [B] or int [n], the boards to reset; None resets all.
            first_board: with a seed, board i of this batch is board first_board + i of that seed.
        Returns: `obs`, uint8 [B, A, 5, H, W].
        Raises:
            ValueError: `seed` is given for some boards only or is negative; or no connected board comes up.
        """
        every = np.arange(self.num_boards)
        if boards is None:
            boards = every
            if seed is not None or not self._seeded:
                self._start_streams(seed, every + first_board)
        elif seed is not None:
            raise ValueError("a seed restarts all boards: reset some boards without one")
        elif not self._seeded:
            raise ValueError("reset all boards once before you reset some of them")
        else:
            boards = np.atleast_1d(every[boards])
        r = self.rules
        things = self._draw_cells(boards)
        blocks = np.zeros((len(boards), r.cells), bool)
        np.put_along_axis(blocks, things[:, : r.blocks], True, 1)
        prey = things[:, r.blocks : r.blocks + r.prey]
        hunters = things[:, r.blocks + r.prey :]
        self.tick[boards] = 0
        self.first_hunt[boards] = -1
        self.ended[boards] = False
        self._place(boards, blocks, hunters, prey)
        return self.obs

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Play one tick on all boards: moves, then hunts, then the prey's steps.

        What hunters did, illegal actions as STAY, is then in `effective_actions`, int8 [B, A].

        Args: actions: integers [B, A] in 0..6; one that is not legal counts as STAY.
        Returns:
            obs: uint8 [B, A, 5, H, W], the live buffer.
            rewards: float32 [B, A].
            terminated: bool [B, A], hunters whose game ended by the rules in this tick.
            truncated: bool [B, A], hunters that the horizon cut off in this tick.
        Raises:
            ValueError: wrong shape, or an action outside 0..6.
        """
        actions = np.asarray(actions)
        shape = (self.num_boards, self.rules.hunters)
        if actions.shape != shape or actions.dtype.kind not in "iu":
            got = f"{actions.dtype} {actions.shape}"
            raise ValueError(f"actions: expected integers of shape {shape}, got {got}")
        if actions.min() < 0 or actions.max() > HUNT_HARE:
            raise ValueError(f"actions: must be in 0..6, got {actions.min()} to {actions.max()}")
        live = ~self.ended
        rewards = np.zeros(shape, np.float32)
        terminated = np.zeros(shape, bool)
        code_and_action = self.legal_codes() * np.intp(7) + actions.astype(np.intp)
        self.effective_actions = _EFFECTIVE.take(code_and_action)
        self._hunter_at += self._step_of.take(self.effective_actions)
        hunting = np.flatnonzero((self.effective_actions >= HUNT_STAG).any(1))
        if len(hunting):
            self._hunt(hunting, rewards, terminated)
        self._show_hunters()
        if self.rules.prey_moves > 0.0:
            self._move_prey(np.flatnonzero(live))
        truncated = self._end(live, terminated)
        return self.obs, rewards, terminated, truncated

    # ---- the parts of a tick

    def _hunt(self, boards: np.ndarray, rewards: np.ndarray, terminated: np.ndarray) -> None:
        """Resolve the hunts on these boards (int [n]); fills rewards and terminated."""
        r = self.rules
        hunters = self._hunter_at[boards]  # [n, A]
        captures, rewards[boards] = resolve_hunts(hunters, self.effective_actions[boards], r)
        terminated[boards] = captures
        row, seat = np.nonzero(captures)
        if not len(row):
            return
        board = boards[row]
        slot = self._prey_on[hunters[row, seat]]
        before = self._prey_at[boards]
        self._take_off(board, slot)
        gone = self._offset[boards] + r.cells  # [n, 1]
        self._prey_at[board, slot] = gone[row, 0]
        self._hunter_at[board, seat] = gone[row, 0]
        self._shift[board, :, seat] = self._bin - gone[row]
        after = self._prey_at[boards]
        first_hunt = self.first_hunt[boards]
        self.first_hunt[boards] = first_hunt_after(first_hunt, self.tick[boards], before, after, gone)

    def _show_hunters(self) -> None:
        """Move the hunters in all planes SELF and OTHERS."""
        self._flat[self._shown] = 0
        np.add(self._shift, self._hunter_at[:, None, :], out=self._shown)
        self._flat[self._shown] = 1

    def _move_prey(self, boards: np.ndarray) -> None:
        """Let the prey of these boards (int [n]) step."""
        draws = self.draw(boards, self.rules.prey)  # high half: does it step? low half: where to?
        halves = np.stack([draws >> np.uint64(32), draws & np.uint64(0xFFFFFFFF)], -1)
        before = self.prey[boards]
        after = step_prey(before, self.blocks[boards], halves * 2.0**-32, self.rules)
        row, slot = np.nonzero(after != before)
        board = boards[row]
        self._take_off(board, slot)
        self._put_on(board, slot, after[row, slot])

    def _end(self, live: np.ndarray, terminated: np.ndarray) -> np.ndarray:
        """Count the tick and end boards: by rule, which goes into terminated, or at the horizon. Returns: truncated."""
        active = self.active
        over = ended_by_rule(self.tick, self.first_hunt, active, self.rules) & live
        terminated |= over[:, None] & active
        self.tick += live
        cut = live & ~over & (self.tick >= self.rules.horizon)
        self.ended |= over | cut
        return cut[:, None] & active

    # ---- prey on the board: their cells, planes, legal hunts

    def _take_off(self, board: np.ndarray, slot: np.ndarray) -> None:
        """Prey leave the cells on which they stand. board, slot: int [n]."""
        cell = self._prey_at[board, slot]
        self._codes[cell] &= ~self._hunt_code[slot]
        self._prey_on[cell] = -1
        self._planes[board, :, self._prey_plane[slot], cell - self._offset[board, 0]] = 0
        self._stale[board, slot] = True

    def _put_on(self, board: np.ndarray, slot: np.ndarray, cell: np.ndarray) -> None:
        """Prey stand on these cells from now on. board, slot, cell: int [n]."""
        self._planes[board, :, self._prey_plane[slot], cell] = 1
        cell = cell + self._offset[board, 0]
        self._prey_at[board, slot] = cell
        self._prey_on[cell] = slot
        self._codes[cell] |= self._hunt_code[slot]
        self._stale[board, slot] = True

    # ---- setting up boards

    def _start_streams(self, seed: int | None, boards: np.ndarray) -> None:
        """boards: int [B], their numbers under this seed; None: a seed of the operating system."""
        if seed is not None and seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        entropy = np.random.SeedSequence().entropy if seed is None else seed
        self._key = stream_keys(entropy, boards)
        self.counter = np.zeros(self.num_boards, np.uint64)
        self._seeded = True

    def _draw_cells(self, boards: np.ndarray) -> np.ndarray:
        """int [n, blocks + P + A]: distinct cells of the blocks, the prey and the hunters, every free cell reachable."""
        r = self.rules
        things = np.zeros((len(boards), r.blocks + r.prey + r.hunters), np.intp)
        todo = np.arange(len(boards))
        for _ in range(10_000):
            if not len(todo):
                return things
            order = np.argsort(self.draw(boards[todo], r.cells), axis=1)
            things[todo] = order[:, : things.shape[1]]
            todo = todo[~self._connected(order[:, : r.blocks])]
        board = f"{r.height}x{r.width} with {r.blocks} blocks"
        raise ValueError(f"no board of {board} came up connected in 10,000 draws")

    def _connected(self, blocks: np.ndarray) -> np.ndarray:
        """bool [n]: are all free cells one piece? blocks: int [n, b], cells."""
        n = len(blocks)
        shape = (n, self.rules.height, self.rules.width)
        is_block = np.zeros((n, self.rules.cells), bool)
        np.put_along_axis(is_block, blocks, True, 1)
        source = np.zeros_like(is_block)
        source[np.arange(n), (~is_block).argmax(1)] = True  # the first free cell
        reached = distance_fields(is_block.reshape(shape), source.reshape(shape)) < FAR
        return (reached.reshape(n, -1) | is_block).all(1)

    def _place(self, boards: np.ndarray, blocks: np.ndarray, hunters: np.ndarray, prey: np.ndarray) -> None:
        """Set these boards up. blocks: bool [n, K]; hunters [n, A] and prey [n, P]: cells, -1: gone."""
        r, B, n = self.rules, self.num_boards, len(boards)
        gone = self._offset[boards] + r.cells  # [n, 1]
        cells = np.broadcast_to(np.arange(r.cells + 1), (n, r.cells + 1))
        no_prey = np.zeros(cells.shape, bool)
        legal = legal_on(cells, blocks, no_prey, no_prey, r.height, r.width)  # [n, K+1, 7]
        self.blocks[boards] = blocks
        self._codes.reshape(B, -1)[boards] = legal @ _BITS
        self._prey_on.reshape(B, -1)[boards] = -1
        self._planes[boards] = 0
        self._planes[boards, :, PLANES.index("BLOCKS")] = blocks[:, None]
        self._prey_at[boards] = gone
        self._stale[boards] = True
        row, slot = np.nonzero(prey >= 0)
        self._put_on(boards[row], slot, prey[row, slot])
        has_left = hunters < 0
        self._hunter_at[boards] = np.where(has_left, gone, self._offset[boards] + hunters)
        to_bin = self._bin - gone[:, :, None]  # [n, 1, 1]
        self._shift[boards] = np.where(has_left[:, None, :], to_bin, self._start[boards])
        shown = self._shift[boards] + self._hunter_at[boards][:, None, :]
        self._shown[boards] = shown
        self._flat[shown] = 1


def _cell_steps(table: np.ndarray) -> np.ndarray:
    """int [7]: what each legal action adds to a cell's number. table: int [K+1, 7], the neighbours."""
    K = len(table) - 1
    cell = (table[:K] < K).argmax(0)  # [7], the first from which the action stays on the board
    return table[cell, np.arange(7)] - cell  # without such a cell the action is never legal


def _check_state(state: State, num_boards: int, rules: Rules) -> None:
    shapes = dict(
        blocks=(num_boards, rules.cells), hunters=(num_boards, rules.hunters), prey=(num_boards, rules.prey)
    )
    for field in fields(State):
        value = np.asarray(getattr(state, field.name))
        shape = shapes.get(field.name, (num_boards,))
        if value.shape != shape:
            raise ValueError(f"state.{field.name}: expected shape {shape}, got {value.shape}")
    if state.blocks.dtype != bool:
        raise ValueError(f"state.blocks: expected bool, got {state.blocks.dtype}")
    for name in ("hunters", "prey"):
        cells = getattr(state, name)
        if cells.dtype.kind not in "iu":
            raise ValueError(f"state.{name}: expected integers, got {cells.dtype}")
        if cells.size and (cells.min() < -1 or cells.max() >= rules.cells):
            limits = f"[-1, {rules.cells})"
            raise ValueError(f"state.{name}: cells must be in {limits}, got {cells.min()} to {cells.max()}")
        on_block = np.take_along_axis(state.blocks, cells.clip(0).astype(np.intp), 1)
        if (on_block & (cells >= 0)).any():
            raise ValueError(f"state.{name}: one stands on a block")
    ranked = np.sort(state.prey, 1)
    if ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)).any():
        raise ValueError("state.prey: two prey share a cell")


def _restore(num_boards: int, rules: Rules, state: State | None) -> StagHunt:
    env = StagHunt(num_boards, rules)
    if state is not None:
        env.set_state(state)
    return env
