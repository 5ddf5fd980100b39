"""The Markov stag hunt: rules and a batched core that plays many boards at once, in NumPy.

All arrays are batched over boards first: B boards, A hunters, P prey (stags first, then hares), K = H * W cells.
A cell is a number, row * W + column; row 0 is the top. The rules stand in `docs/design.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from envs.grid import FAR, distance_fields, neighbours

UP, DOWN, LEFT, RIGHT, STAY, HUNT_STAG, HUNT_HARE = range(7)
ACTIONS = ("UP", "DOWN", "LEFT", "RIGHT", "STAY", "HUNT_STAG", "HUNT_HARE")
PLANES = ("SELF", "OTHERS", "BLOCKS", "STAGS", "HARES")
MAX_CELLS = 2**14  # no way is as long as FAR, and a cell's number fits 16 bits

# What is legal on a cell is one byte, bit a for action a. Tables over all 128 bytes replace per-action work.
_BITS = (1 << np.arange(7)).astype(np.uint8)
_STAY_BIT, _STAG_BIT, _HARE_BIT = _BITS[STAY], _BITS[HUNT_STAG], _BITS[HUNT_HARE]
LEGAL = (np.arange(128)[:, None] & _BITS).astype(bool)  # [128, 7]
# [128 * 8]: (byte, action) -> the action that happens; an illegal one counts as STAY
_EFFECTIVE = (
    np.pad(np.where(LEGAL, np.arange(7), STAY), ((0, 0), (0, 1)), constant_values=STAY)
    .astype(np.int8)
    .ravel()
)


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

    def __post_init__(self):
        least = dict(hunters=1, stags=0, hares=0, blocks=0, height=1, width=1, horizon=1, hunters_needed=1)
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < low:
                raise ValueError(f"rules: {name} must be a whole number of at least {low}, got {value!r}")
        if not 0.0 <= self.prey_moves <= 1.0:
            raise ValueError(f"rules: prey_moves must be in [0, 1], got {self.prey_moves!r}")
        if not (np.isfinite(self.stag_reward) and np.isfinite(self.hare_reward)):
            raise ValueError(
                f"rules: rewards must be finite, got {self.stag_reward!r} and {self.hare_reward!r}"
            )
        k = self.end_after_first_hunt
        if k is not None and (not isinstance(k, (int, np.integer)) or k < 0):
            raise ValueError(
                f"rules: end_after_first_hunt must be None or a whole number of at least 0, got {k!r}"
            )
        if self.cells > MAX_CELLS:
            raise ValueError(f"rules: a board has at most {MAX_CELLS} cells, got {self.height}x{self.width}")
        things = self.blocks + self.stags + self.hares + self.hunters
        if things > self.height * self.width:
            raise ValueError(
                f"rules: {things} hunters, prey and blocks do not fit on {self.height}x{self.width} = "
                f"{self.height * self.width} cells"
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

    def __getitem__(self, boards) -> State:
        return State(*(getattr(self, f.name)[boards].copy() for f in fields(self)))


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


def hunt_actions(rules: Rules) -> np.ndarray:
    """int64 [P]: the action that hunts each prey, stags first."""
    return np.repeat([HUNT_STAG, HUNT_HARE], [rules.stags, rules.hares])


def legal_on(
    cells: np.ndarray, blocks: np.ndarray, on_stag: np.ndarray, on_hare: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """What a hunter may do on each of these cells; one that has left, cell K, may STAY.

    Args:
        cells: int [B, n]; blocks: bool [B, K] with K = rows * columns.
        on_stag, on_hare: bool [B, n], whether a stag or a hare stands on the cell.
    Returns: bool [B, n, 7].
    """
    closed = np.pad(blocks, ((0, 0), (0, 1)), constant_values=True)  # off the board is as good as a block
    board = np.arange(len(cells))[:, None, None]
    around = neighbours(rows, columns)[cells, :4]  # [B, n, 4]
    legal = np.ones((*cells.shape, 7), bool)
    legal[..., :4] = ~closed[board, around]
    legal[..., HUNT_STAG] = on_stag
    legal[..., HUNT_HARE] = on_hare
    return legal


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
    same_cell = cells[:, :, None] == cells[:, None, :]
    same_action = actions[:, :, None] == actions[:, None, :]
    team = (same_cell & same_action).sum(2)  # [B, A], hunters on its prey
    hunts_stag = actions == HUNT_STAG
    needed = np.where(hunts_stag, rules.hunters_needed, 1)
    captures = (actions >= HUNT_STAG) & (team >= needed)
    reward = np.where(hunts_stag, dtype(rules.stag_reward), dtype(rules.hare_reward))
    return captures, np.where(captures, reward / team.astype(dtype), dtype(0))


def step_prey(prey: np.ndarray, blocks: np.ndarray, uniform: np.ndarray, rules: Rules) -> np.ndarray:
    """Prey step one after another, stags first: each sees the steps of the earlier ones.

    Args:
        prey: int [B, P], cells, K if captured; blocks: bool [B, K].
        uniform: float64 [B, P, 2] in [0, 1): of each prey, whether it steps, and to which of its free neighbour cells.
    Returns: int [B, P], the cells after.
    """
    table, K = neighbours(rules.height, rules.width)[:, :4], rules.cells
    prey = prey.copy()
    steps = (uniform[..., 0] < rules.prey_moves) & (prey != K)
    for slot in range(rules.prey):  # the rule is sequential; all boards go at once
        board = np.flatnonzero(steps[:, slot])
        around = table[prey[board, slot]]  # [n, 4]
        inside = np.minimum(around, K - 1)
        free = (around < K) & ~blocks[board[:, None], inside]
        free &= (around[:, :, None] != prey[board][:, None, :]).all(2)
        number = free.sum(1)
        pick = (uniform[board, slot, 1] * number).astype(np.intp)
        way = (np.cumsum(free, 1) > pick[:, None]).argmax(1)
        goes = number > 0
        prey[board[goes], slot] = around[goes, way[goes]]
    return prey


def first_hunt_after(first_hunt, tick, before, prey, gone: int):
    """The tick of the first capture on each board, -1 before it, once `tick` has been played. NumPy arrays or tensors.

    Args:
        first_hunt, tick: int [B], before the tick.
        before, prey: int [B, P], cells before and after it, `gone` if captured.
    """
    captured = ((prey == gone) & (before != gone)).any(1)
    is_first = (first_hunt < 0) & captured
    return first_hunt * ~is_first + tick * is_first


def ended_by_rule(tick, first_hunt, active, rules: Rules):
    """Which boards terminate with this tick, bool [B]. NumPy arrays or tensors.

    Args: tick: int [B], the one just played; first_hunt: int [B], active: bool [B, A], hunters on the board, both after it.
    """
    ended = ~active.any(1)
    if rules.end_after_first_hunt is not None:
        ended |= (first_hunt >= 0) & (tick - first_hunt >= rules.end_after_first_hunt)
    return ended


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
        self.num_boards, self.rules = num_boards, rules or Rules()
        r, B = self.rules, num_boards
        A, P, K = r.hunters, r.prey, r.cells
        # Every board has one cell more than the board, number K: where hunters and prey go that have left.
        self._base = (np.arange(B, dtype=np.intp) * (K + 1))[
            :, None
        ]  # [B, 1], a board's first cell in flat arrays
        self._delta = np.array([-r.width, r.width, -1, 1, 0, 0, 0], np.intp)
        row, col = np.divmod(np.arange(K), r.width)
        inside = np.stack([row > 0, row < r.height - 1, col > 0, col < r.width - 1], -1)  # [K, 4]
        self.neighbours = np.where(
            inside, np.arange(K)[:, None] + self._delta[:4], K
        )  # [K, 4], K: off the board
        # The planes live in one flat buffer; its last byte is a bin for the planes of hunters that have left.
        self._flat = np.zeros(B * A * 5 * K + 1, np.uint8)
        self.obs = self._flat[:-1].reshape(B, A, 5, r.height, r.width)
        self._planes = self._flat[:-1].reshape(B, A, 5, K)
        start = np.arange(B * A * 5).reshape(B, A, 5) * K  # where each plane starts
        own = np.eye(A, dtype=bool)  # [observer, hunter]
        self._start = (
            np.where(own, start[:, :, 0, None], start[:, :, 1, None]) - self._base[..., None]
        )  # [B, A, A]
        self._bin = len(self._flat) - 1
        self._where = np.zeros((B, A, A), np.intp)  # flat position of hunter j in the planes of observer i
        self._shift = self._start.copy()  # add a hunter's flat cell to get `_where`
        self._at = np.zeros((B, A), np.intp)  # flat cell of each hunter
        self._prey = np.zeros((B, P), np.intp)  # flat cell of each prey
        self._codes = np.zeros(B * (K + 1), np.uint8)  # what is legal on each cell
        self._prey_on = np.full(B * (K + 1), -1, np.int16)  # which prey stands on each cell, -1: none
        self._crowd = np.zeros(B * (K + 1), np.int16)  # scratch: hunters that hunt on each cell
        self._distance = np.full((B, P, K), FAR, np.int16)
        self._stale = np.ones((B, P), bool)  # distance fields to draw anew
        self.blocks = np.zeros((B, K), bool)
        self.tick = np.zeros(B, np.int32)
        self.first_hunt = np.full(B, -1, np.int32)
        self.ended = np.ones(B, bool)
        self._key = np.zeros(B, np.uint64)
        self.counter = np.zeros(B, np.uint64)
        self._seeded = False

    # ---- what a player can ask

    @property
    def active(self) -> np.ndarray:
        """bool [B, A]: hunters on the board."""
        return self._at != self._base + self.rules.cells

    @property
    def hunters(self) -> np.ndarray:
        """int64 [B, A]: the cell of each hunter, K once it has left."""
        return self._at - self._base

    @property
    def prey(self) -> np.ndarray:
        """int64 [B, P]: the cell of each prey, stags first, K once it is captured."""
        return self._prey - self._base

    @property
    def ticks_left(self) -> np.ndarray:
        """int32 [B]: ticks still to be played once `end_after_first_hunt` counts down, -1 while it does not."""
        k = self.rules.end_after_first_hunt
        if k is None:
            return np.full(self.num_boards, -1, np.int32)
        left = np.minimum(self.first_hunt + k + 1, self.rules.horizon) - self.tick
        return np.where(self.first_hunt < 0, -1, np.where(self.ended, 0, left)).astype(np.int32)

    def legal_actions(self) -> np.ndarray:
        """bool [B, A, 7]: what each hunter may do; a hunter that has left, and every one of an ended board, may STAY."""
        return LEGAL[self.legal_codes()]

    def legal_codes(self) -> np.ndarray:
        self._need_boards()
        codes = self._codes.take(self._at)
        if self.ended.any():
            codes[self.ended] = _STAY_BIT
        return codes

    def distances(self) -> np.ndarray:
        """int16 [B, P, K]: shortest-path length around blocks from each cell to each prey; FAR if there is no way."""
        stale = self._stale & (self._prey != self._base + self.rules.cells)
        self._distance[self._stale] = FAR
        board, slot = np.nonzero(stale)
        if len(board):
            shape = (len(board), self.rules.height, self.rules.width)
            source = np.zeros((len(board), self.rules.cells), bool)
            source[np.arange(len(board)), self._prey[board, slot] - self._base[board, 0]] = True
            fields_ = distance_fields(self.blocks[board].reshape(shape), source.reshape(shape))
            self._distance[board, slot] = fields_.reshape(len(board), -1)
        self._stale[:] = False
        return self._distance

    def _need_boards(self) -> None:
        if not self._seeded:
            raise ValueError("no boards are set up yet: call reset() or set_state() first")

    def uniform(self, n: int) -> np.ndarray:
        """float64 [B, n] in [0, 1): the next n numbers of each board's own stream."""
        self._need_boards()
        return (self.draw(np.arange(self.num_boards), n) >> np.uint64(11)) * 2.0**-53

    # ---- state

    @property
    def state(self) -> State:
        """A copy of the whole state; `set_state` takes it back. Raises: ValueError: no boards are set up yet."""
        self._need_boards()
        K, hunters, prey = self.rules.cells, self.hunters, self.prey
        return State(
            self.blocks.copy(),
            np.where(hunters == K, -1, hunters).astype(np.int16),
            np.where(prey == K, -1, prey).astype(np.int16),
            self.tick.copy(), self.first_hunt.copy(), self.ended.copy(), self._key.copy(), self.counter.copy(),
        )  # fmt: skip

    def set_state(self, state: State) -> np.ndarray:
        """Put all boards into `state` (as many boards as this core has) and return `obs`.

        Raises:
            ValueError: an array's shape or dtype is not this core's, a cell is off the board or a block, or prey share one.
        """
        r, B = self.rules, self.num_boards
        shapes = dict(blocks=(B, r.cells), hunters=(B, r.hunters), prey=(B, r.prey))
        for f in fields(State):
            value, shape = np.asarray(getattr(state, f.name)), shapes.get(f.name, (B,))
            if value.shape != shape:
                raise ValueError(f"state.{f.name}: expected shape {shape}, got {value.shape}")
        if state.blocks.dtype != bool:
            raise ValueError(f"state.blocks: expected bool, got {state.blocks.dtype}")
        for name in ("hunters", "prey"):
            cells = getattr(state, name)
            if cells.dtype.kind not in "iu":
                raise ValueError(f"state.{name}: expected integers, got {cells.dtype}")
            if cells.size and (cells.min() < -1 or cells.max() >= r.cells):
                raise ValueError(
                    f"state.{name}: cells must be in [-1, {r.cells}), got {cells.min()} to {cells.max()}"
                )
            if (np.take_along_axis(state.blocks, cells.clip(0).astype(np.intp), 1) & (cells >= 0)).any():
                raise ValueError(f"state.{name}: one stands on a block")
        ranked = np.sort(state.prey, 1)
        if ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)).any():
            raise ValueError("state.prey: two prey share a cell")
        self.tick, self.first_hunt, self.ended = (
            state.tick.copy(),
            state.first_hunt.copy(),
            state.ended.copy(),
        )
        self._key, self.counter, self._seeded = state.key.copy(), state.counter.copy(), True
        self._place(np.arange(B), state.blocks, state.hunters, state.prey)
        return self.obs

    def copy(self) -> StagHunt:
        """An independent core in the same state."""
        return _restore(self.num_boards, self.rules, self.state if self._seeded else None)

    def __reduce__(self):
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
        if boards is None:
            boards = np.arange(self.num_boards)
            if seed is not None or not self._seeded:
                if seed is not None and seed < 0:
                    raise ValueError(f"seed must not be negative, got {seed}")
                self._key = stream_keys(
                    np.random.SeedSequence().entropy if seed is None else seed, boards + first_board
                )
                self.counter = np.zeros(self.num_boards, np.uint64)
                self._seeded = True
        elif seed is not None:
            raise ValueError("a seed starts all boards anew: reset some boards without one")
        elif not self._seeded:
            raise ValueError("reset all boards once before you reset some of them")
        else:
            boards = np.atleast_1d(np.arange(self.num_boards)[boards])
        r = self.rules
        things = np.zeros((len(boards), r.blocks + r.prey + r.hunters), np.intp)
        todo = np.arange(len(boards))
        for _ in range(10_000):
            if not len(todo):
                break
            order = np.argsort(self.draw(boards[todo], r.cells), axis=1)
            things[todo] = order[:, : things.shape[1]]
            todo = todo[~self._connected(order[:, : r.blocks])]
        else:
            raise ValueError(
                f"no board of {r.height}x{r.width} with {r.blocks} blocks came up connected in 10,000 draws"
            )
        blocks = np.zeros((len(boards), r.cells), bool)
        np.put_along_axis(blocks, things[:, : r.blocks], True, 1)
        self.tick[boards], self.first_hunt[boards], self.ended[boards] = 0, -1, False
        self._place(boards, blocks, things[:, r.blocks + r.prey :], things[:, r.blocks : r.blocks + r.prey])
        return self.obs

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Play one tick on all boards: moves, then hunts, then the prey's steps.

        Args: actions: integers [B, A] in 0..6; one that is not legal counts as STAY.
        Returns:
            obs: uint8 [B, A, 5, H, W], the live buffer.
            rewards: float32 [B, A].
            terminated: bool [B, A], hunters whose game ended by the rules in this tick.
            truncated: bool [B, A], hunters that the horizon cut off in this tick.
        Raises:
            ValueError: wrong shape, or an action outside 0..6.
        """
        actions, r = np.asarray(actions), self.rules
        if actions.shape != (self.num_boards, r.hunters) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions: expected integers of shape {(self.num_boards, r.hunters)}, got {actions.dtype} {actions.shape}"
            )
        if actions.min() < 0 or actions.max() > HUNT_HARE:
            raise ValueError(f"actions: must be in 0..6, got {actions.min()} to {actions.max()}")
        live = ~self.ended
        code_and_action = self.legal_codes() * np.intp(8) + actions.astype(np.intp)
        self.effective_actions = effective = _EFFECTIVE.take(code_and_action)  # int8 [B, A]
        self._at += self._delta.take(effective)
        rewards = np.zeros(actions.shape, np.float32)
        terminated, truncated = np.zeros((2, *actions.shape), bool)
        hunting = np.flatnonzero(effective >= HUNT_STAG)
        if len(hunting):
            self._hunt(hunting, effective, rewards, terminated)
        self._show_hunters()
        if r.prey_moves > 0.0:
            self._move_prey(live)
        self._end(live, terminated, truncated)
        return self.obs, rewards, terminated, truncated

    # ---- the parts of a tick

    def _hunt(self, who, effective, rewards, terminated):
        """Resolve the hunts of the hunters `who` (flat indices [n] into [B, A])."""
        r, cell = self.rules, self._at.ravel()[who]
        stag = effective.ravel()[who] == HUNT_STAG
        np.add.at(self._crowd, cell, 1)  # prey never share a cell: all who hunt on a cell hunt the same prey
        crowd = self._crowd[cell]
        self._crowd[cell] = 0
        caught = ~stag | (crowd >= r.hunters_needed)
        if not caught.any():
            return
        who, cell, stag, crowd = who[caught], cell[caught], stag[caught], crowd[caught]
        board, seat = np.divmod(who, r.hunters)
        rewards.ravel()[who] = np.where(stag, np.float32(r.stag_reward), np.float32(r.hare_reward)) / crowd
        terminated.ravel()[who] = True
        off = self._base[board, 0] + r.cells
        slot = self._prey_on[cell]
        self._prey[board, slot] = off
        self._prey_on[cell] = -1
        self._stale[board, slot] = True
        self._codes[cell] &= ~(_STAG_BIT | _HARE_BIT)
        self._planes[board, :, np.where(stag, 3, 4), cell - self._base[board, 0]] = 0
        self._at.ravel()[who] = off
        self._shift[board, :, seat] = (self._bin - off)[:, None]
        self.first_hunt[board] = np.where(
            self.first_hunt[board] < 0, self.tick[board], self.first_hunt[board]
        )

    def _show_hunters(self):
        """Move the hunters in all planes SELF and OTHERS."""
        self._flat[self._where] = 0
        np.add(self._shift, self._at[:, None, :], out=self._where)
        self._flat[self._where] = 1

    def _move_prey(self, live):
        """Let each prey of the boards `live` (bool [B]) step, one after another: each sees the earlier ones' moves."""
        r = self.rules
        draws = self.draw(np.flatnonzero(live), r.prey)  # high half: does it step? low half: where to?
        steps = (draws >> np.uint64(32)).astype(np.float64) < r.prey_moves * 2.0**32
        for slot in range(r.prey):  # the rule itself is sequential; all boards go at once
            prey_here = self._prey[live, slot] != self._base[live, 0] + r.cells
            row = np.flatnonzero(steps[:, slot] & prey_here)
            board = np.flatnonzero(live)[row]
            cell = self._prey[board, slot]
            to = self._base[board] + self.neighbours[cell - self._base[board, 0]]  # [n, 4]
            free = LEGAL[self._codes[cell], :4] & (self._prey_on[to] < 0)
            ways = free.sum(1)
            pick = ((draws[row, slot] & np.uint64(0xFFFFFFFF)) * ways.astype(np.uint64)) >> np.uint64(32)
            move = (np.cumsum(free, 1) > pick[:, None]).argmax(1)
            go = ways > 0
            board, cell, to = board[go], cell[go], to[go, move[go]]
            bit, plane = (_STAG_BIT, 3) if slot < r.stags else (_HARE_BIT, 4)
            self._codes[cell] &= ~bit
            self._codes[to] |= bit
            self._prey_on[cell], self._prey_on[to] = -1, slot
            self._prey[board, slot] = to
            self._planes[board, :, plane, cell - self._base[board, 0]] = 0
            self._planes[board, :, plane, to - self._base[board, 0]] = 1
            self._stale[board, slot] = True

    def _end(self, live, terminated, truncated):
        """Count the tick; end the boards that are over by rule, by an empty board, or by the horizon."""
        r, active = self.rules, self.active
        over = ended_by_rule(self.tick, self.first_hunt, active, r) & live
        terminated |= over[:, None] & active
        self.tick += live
        cut = live & ~over & (self.tick >= r.horizon)
        truncated |= cut[:, None] & active
        self.ended |= over | cut

    # ---- setting up boards

    def draw(self, boards: np.ndarray, n: int) -> np.ndarray:
        """uint64 [len(boards), n]: the next n numbers of these boards' streams."""
        numbers = splitmix64(
            self._key[boards, None], self.counter[boards, None] + np.arange(n, dtype=np.uint64)
        )
        self.counter[boards] += np.uint64(n)
        return numbers

    def _connected(self, blocks: np.ndarray) -> np.ndarray:
        """Are all free cells one piece? blocks: int [n, b], cells. Returns: bool [n]."""
        r, n = self.rules, len(blocks)
        wall = np.zeros((n, r.cells), bool)
        np.put_along_axis(wall, blocks, True, 1)
        first = np.zeros_like(wall)
        first[np.arange(n), (~wall).argmax(1)] = True
        shape = (n, r.height, r.width)
        reached = distance_fields(wall.reshape(shape), first.reshape(shape)) < FAR
        return (reached.reshape(n, -1) | wall).all(1)

    def _place(self, boards, blocks, hunters, prey):
        """Set these boards up. blocks: bool [n, K]; hunters [n, A] and prey [n, P]: cells, -1: gone."""
        r, n = self.rules, len(boards)
        base, off = self._base[boards], self._base[boards] + r.cells
        self.blocks[boards] = blocks
        self._at[boards] = np.where(hunters < 0, off, base + hunters)
        self._prey[boards] = np.where(prey < 0, off, base + prey)
        self._stale[boards] = True
        padded = np.pad(blocks, ((0, 0), (0, 1)), constant_values=True)  # off the board is as good as a block
        codes = np.zeros((n, r.cells + 1), np.uint8)
        codes[:, :-1] = _STAY_BIT + (~padded[:, self.neighbours] @ _BITS[:4].astype(np.uint8))
        codes[:, -1] = _STAY_BIT
        prey_on = np.full((n, r.cells + 1), -1, np.int16)
        planes = np.zeros((n, 5, r.cells), np.uint8)
        planes[:, 2] = blocks
        row, slot = np.nonzero(prey >= 0)
        cell = prey[row, slot]
        prey_on[row, cell] = slot
        codes[row, cell] |= np.where(slot < r.stags, _STAG_BIT, _HARE_BIT)
        planes[row, np.where(slot < r.stags, 3, 4), cell] = 1
        self._codes.reshape(self.num_boards, -1)[boards] = codes
        self._prey_on.reshape(self.num_boards, -1)[boards] = prey_on
        self._planes[boards] = planes[:, None]
        gone = self._bin - off[:, :, None]  # [n, 1, 1]
        self._shift[boards] = np.where((hunters < 0)[:, None, :], gone, self._start[boards])
        self._where[boards] = self._shift[boards] + self._at[boards][:, None, :]
        self._flat[self._where[boards]] = 1


def _restore(num_boards: int, rules: Rules, state: State | None) -> StagHunt:
    env = StagHunt(num_boards, rules)
    if state is not None:
        env.set_state(state)
    return env
