"""The core of any game of the family: many boards at once, in NumPy. What taking prey needs and pays is the game's `Rules`.

All arrays are batched over boards first: B boards, A hunters, P prey (kind after kind), k kinds, K = H * W cells.
A cell is a number, row * W + column; row 0 is the top. The rules stand in `docs/design.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from envs.game import DOWN, LEFT, MAX_KINDS, OWN_PLANES, RIGHT, STAY, UP, Game
from envs.grid import FAR, distance_fields, neighbours

TAKE = STAY + 1  # the action that takes prey of the first kind; those of further kinds follow
MAX_CELLS = 2**14  # no way is as long as FAR, and a cell's number fits 16 bits


class GameRules(Protocol):
    """What the core asks of a game: `envs.stag_hunt.Rules`, `envs.snowdrift.Rules`, or those of a third one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # `dataclasses.replace` and `asdict` take them
    game: ClassVar[Game]

    @property
    def hunters(self) -> int: ...

    @property
    def blocks(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def horizon(self) -> int:
        """Ticks after which a board is truncated."""

    @property
    def cells(self) -> int:
        """K, height * width."""

    @property
    def prey(self) -> int:
        """P, at the start."""

    @property
    def prey_counts(self) -> tuple[int, ...]:
        """Of each kind, at the start; they add up to P."""

    @property
    def prey_moves(self) -> float:
        """Probability that a prey steps to a free neighbour cell after the captures of a tick."""

    @property
    def end_after_first_hunt(self) -> int | None:
        """k: the board is terminated after the k-th tick that follows the tick of the first capture."""

    def resolve(
        self, hunters: np.ndarray, actions: np.ndarray, dtype: type = np.float32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which hunters take prey in a tick, and what each is paid.

        Prey of a kind never share a cell: hunters that play the same taking action on the same cell go for the same prey.
        Args: hunters: int [B, A], their cells; actions: int [B, A], their effective actions.
        Returns: captures: bool [B, A], hunters that take part; rewards: [B, A] of `dtype`.
        """

    def ended(self, tick: Any, first_hunt: Any, active: Any, prey: Any) -> Any:
        """bool [B], the boards that terminate with this tick. NumPy arrays or tensors.

        Args:
            tick: int [B], the tick just played.
            first_hunt: int [B]; active: bool [B, A]; prey: int [B, P], cells, K if gone; all after the tick.
        """


def check_rules(rules: GameRules, least: dict[str, int]) -> None:
    """Of any game: `least` holds the smallest value of each whole number.

    Raises: ValueError: a number is out of its range, or the board is too small for what stands on it.
    """
    for name, low in least.items():
        value = getattr(rules, name)
        if not isinstance(value, (int, np.integer)) or value < low:
            raise ValueError(f"rules: {name} must be a whole number of at least {low}, got {value!r}")
    board = f"{rules.height}x{rules.width}"
    if rules.cells > MAX_CELLS:
        raise ValueError(f"rules: a board has at most {MAX_CELLS} cells, got {board}")
    things = rules.blocks + rules.prey + rules.hunters
    if things > rules.cells:
        raise ValueError(
            f"rules: {things} hunters, prey and blocks do not fit on {board} = {rules.cells} cells"
        )


@dataclass
class State:
    """All that a batch of boards is; index it with `state[boards]` to pick, repeat or reorder boards."""

    blocks: np.ndarray
    """bool [B, K]"""
    hunters: np.ndarray
    """int16 [B, A], the cell of each hunter, -1 once it has left"""
    prey: np.ndarray
    """int16 [B, P], the cell of each prey (kind after kind), -1 once it is captured"""
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


def _keys_of(seed: int | None, boards: np.ndarray) -> np.ndarray:
    """`stream_keys`; None: a seed of the operating system. Raises: ValueError: the seed is negative."""
    if seed is not None and seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return stream_keys(np.random.SeedSequence().entropy if seed is None else seed, boards)


# ---- the rules of a tick, each once


def kind_slices(counts: Sequence[int]) -> list[slice]:
    """Where each kind's prey are among all. counts: how many there are of each kind, `rules.prey_counts`."""
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def legal_on(
    cells: np.ndarray, blocks: np.ndarray, on_prey: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """What a hunter may do on each of these cells; one that has left, cell K, may STAY.

    Args:
        cells: int [B, n]; blocks: bool [B, K] with K = rows * columns.
        on_prey: bool [B, n, k], whether a prey of each kind is on the cell.
    Returns: bool [B, n, 5 + k].
    """
    B, K = blocks.shape
    closed = np.ones((B, K + 1), bool)  # off the board is as good as a block
    closed[:, :K] = blocks
    board = np.arange(B)[:, None] * (K + 1)  # where its row starts in closed
    table = neighbours(rows, columns)
    legal = np.ones((*cells.shape, TAKE + on_prey.shape[2]), bool)
    for action in (UP, DOWN, LEFT, RIGHT):
        to = table[:, action].take(cells)
        legal[..., action] = ~closed.take(board + to)
    legal[..., TAKE:] = on_prey
    return legal


def legal_actions(planes: np.ndarray) -> np.ndarray:
    """What the hunter of each observation may do; without a SELF cell it has left and may STAY.

    Args: planes: uint8 or bool [..., 3 + k, H, W]. Returns: bool [..., 5 + k].
    """
    *batch, P, height, width = planes.shape
    K = height * width
    flat = planes.reshape(-1, P, K).astype(bool)
    own, _, blocks = flat[:, : len(OWN_PLANES)].swapaxes(0, 1)  # [B, K] each
    prey = flat[:, len(OWN_PLANES) :]  # [B, k, K]
    active = own.any(1)
    cell = own.argmax(1)
    on_prey = prey[np.arange(len(flat)), :, cell] & active[:, None]  # [B, k]
    cell = np.where(active, cell, K)
    legal = legal_on(cell[:, None], blocks, on_prey[:, None], height, width)
    return legal.reshape(*batch, legal.shape[-1])


def effective_actions(actions: np.ndarray, legal: np.ndarray) -> np.ndarray:
    """An illegal action counts as STAY. actions: int [...]; legal: bool [..., 5 + k]. Returns: int [...]."""
    is_legal = np.take_along_axis(legal, actions[..., None].astype(np.intp), -1)[..., 0]
    return np.where(is_legal, actions, STAY)


def step_prey(prey: np.ndarray, blocks: np.ndarray, uniform: np.ndarray, rules: GameRules) -> np.ndarray:
    """Prey step one after another, kind after kind: each sees the steps of the earlier ones.

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


# ---- the game on cells, without planes


class Cells(NamedTuple):
    """What changes on B boards, as cells, without planes; K = H * W stands for off the board."""

    hunters: np.ndarray
    """int64 [B, A]"""
    prey: np.ndarray
    """int64 [B, P], kind after kind"""
    tick: np.ndarray
    """int64 [B]"""
    first_hunt: np.ndarray
    """int64 [B], the tick of the first capture, -1 before it"""


def legal_cells(hunters: np.ndarray, prey: np.ndarray, blocks: np.ndarray, rules: GameRules) -> np.ndarray:
    """bool [B, n, 5 + k]: what each hunter may do; one that has left may STAY.

    Args: hunters: int [B, n]; prey: int [B, P], kind after kind; blocks: bool [B, K]. Cells, K if gone.
    """
    active = hunters < rules.cells
    on_prey = (hunters[:, :, None] == prey[:, None, :]) & active[..., None]  # [B, n, P]
    on_kind = [on_prey[..., kind].any(2) for kind in kind_slices(rules.prey_counts)]
    return legal_on(hunters, blocks, np.stack(on_kind, -1), rules.height, rules.width)


def step_cells(
    cells: Cells,
    actions: np.ndarray,
    blocks: np.ndarray,
    rules: GameRules,
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
    captures, rewards = rules.resolve(hunters, actions)
    captured = ((hunters[:, :, None] == prey[:, None, :]) & captures[..., None]).any(1)  # [B, P]
    moved = neighbours(rules.height, rules.width)[hunters, actions]
    hunters_after = np.where(captures, K, moved) if rules.game.leaves else moved
    prey_after = np.where(captured, K, prey)
    first_hunt = first_hunt_after(first_hunt, tick, prey, prey_after, K)
    if rules.prey_moves > 0.0:
        if rng is None:
            raise ValueError("prey move at random: step_cells needs rng")
        uniform = rng.random((*prey.shape, 2))
        prey_after = step_prey(prey_after, blocks, uniform, rules)
    over = rules.ended(tick, first_hunt, hunters_after < K, prey_after)
    over |= tick + 1 >= rules.horizon
    return Cells(hunters_after, prey_after, tick + 1, first_hunt), rewards, over


# ---- the batched core. The actions that are legal on a cell are one byte, bit a for action a: tables over all such
# bytes, made from the rules above, replace work on each action.


@lru_cache(maxsize=MAX_KINDS)
def legal_of_codes(kinds: int) -> np.ndarray:
    """bool [2 ** (5 + k), 5 + k]: row `code` says whether each action is legal where the legal ones are the byte `code`."""
    codes = np.arange(2 ** (TAKE + kinds))
    return (codes[:, None] >> np.arange(TAKE + kinds) & 1).astype(bool)


@lru_cache(maxsize=MAX_KINDS)
def _effective_of_codes(kinds: int) -> np.ndarray:
    """int8, at code * (5 + k) + action: the action that happens."""
    legal = legal_of_codes(kinds)
    actions = np.tile(np.arange(TAKE + kinds), (len(legal), 1))
    return effective_actions(actions, legal[:, None]).astype(np.int8).ravel()


_BITS = (1 << np.arange(TAKE + MAX_KINDS)).astype(np.uint8)
_STAY_CODE = _BITS[STAY]


class Board:
    """B boards of a game, played at once.

    `obs` (uint8 [B, A, 3 + k, H, W]) is one buffer that `step` and `reset` update in place: copy what you keep.
    A board that has ended stands still (every action counts as STAY, rewards are 0) until it is reset.

    Example:
        >>> env = Board(num_boards=1024, rules=envs.snowdrift.Rules())
        >>> obs = env.reset(seed=1)
        >>> obs, rewards, terminated, truncated = env.step(np.full((1024, 4), STAY))
    """

    def __init__(self, num_boards: int, rules: GameRules):
        if num_boards < 1:
            raise ValueError(f"num_boards must be at least 1, got {num_boards!r}")
        self.num_boards = num_boards
        self.rules = r = rules
        B, A, P, K = num_boards, r.hunters, r.prey, r.cells
        planes = len(r.game.planes)
        kinds = r.game.kinds
        self._num_actions = r.game.num_actions
        self.blocks = np.zeros((B, K), bool)
        self.tick = np.zeros(B, np.int32)
        self.first_hunt = np.full(B, -1, np.int32)
        self.ended = np.ones(B, bool)
        self.counter = np.zeros(B, np.uint64)
        self.effective_actions = np.full((B, A), STAY, np.int8)
        self.neighbours = neighbours(r.height, r.width)  # int64 [K+1, 8]
        self._key = np.zeros(B, np.uint64)
        self._seeded = False

        # Flat cells: those of all boards in one row, K + 1 a board. Cell K is where hunters and prey go that are gone.
        self._offset = np.arange(B, dtype=np.intp)[:, None] * (K + 1)  # [B, 1], of each board's cell 0
        self._hunter_at = np.zeros((B, A), np.intp)  # flat cell
        self._prey_cell = np.zeros((B, P), np.intp)  # on its board
        self._codes = np.zeros(B * (K + 1), np.uint8)  # what is legal on each flat cell
        self._prey_on = np.full(B * (K + 1), -1, np.int16)  # which prey stands on each flat cell, -1: none
        self._legal = legal_of_codes(kinds)
        self._effective = _effective_of_codes(kinds)
        self._step_of = _cell_steps(self.neighbours)  # [8]
        kind = np.repeat(np.arange(kinds), r.prey_counts)  # [P]
        self._take_code = _BITS[TAKE + kind]  # [P]
        self._prey_plane = len(OWN_PLANES) + kind  # [P]
        self._distance = np.full((B, P, K), FAR, np.int16)
        self._stale = np.ones((B, P), bool)  # distances that are out of date

        # The planes are one flat buffer; its last byte is a bin for the planes of hunters that have left.
        self._flat = np.zeros(B * A * planes * K + 1, np.uint8)
        self._bin = len(self._flat) - 1
        self.obs = self._flat[:-1].reshape(B, A, planes, r.height, r.width)
        self._planes = self._flat[:-1].reshape(B, A, planes, K)
        start = np.arange(B * A * planes).reshape(B, A, planes, 1) * K  # of each plane in the buffer
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
        """int64 [B, P]: the cell of each prey, kind after kind, K once it is captured."""
        return self._prey_cell.copy()

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
        """bool [B, A, 5 + k]: what each hunter may do; one that has left, and each of an ended board, may STAY."""
        return self._legal[self.legal_codes()]

    def legal_codes(self) -> np.ndarray:
        """uint8 [B, A]: `legal_actions` as bits, bit a for action a; `legal_of_codes` turns them back."""
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

    def copy(self) -> Board:
        """An independent core in the same state."""
        return _restore(type(self), self.num_boards, self.rules, self.state if self._seeded else None)

    def __reduce__(self) -> tuple:
        # `obs` is a view of `_flat`; copied field by field (pickle, deepcopy) the two would part.
        return _restore, (type(self), self.num_boards, self.rules, self.state if self._seeded else None)

    # ---- playing

    def reset(
        self,
        seed: int | Sequence[int | None] | None = None,
        boards: np.ndarray | None = None,
        first_board: int = 0,
    ) -> np.ndarray:
        """Draw new boards: blocks, prey and hunters on distinct random cells, every free cell reachable.

        Args:
            seed: starts board i's stream at (seed, i), whatever the number of boards; None goes on in the streams. A list
                has a seed for each board, whose stream starts at (seed, 0); None: any.
            boards: bool [B] or int [n], the boards to reset; None resets all.
            first_board: with a seed, board i of this batch is board first_board + i of that seed.
        Returns: `obs`, uint8 [B, A, 3 + k, H, W].
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
        """Play one tick on all boards: moves, then captures, then the prey's steps.

        What hunters did, illegal actions as STAY, is then in `effective_actions`, int8 [B, A].

        Args: actions: integers [B, A] in 0..4 + k; one that is not legal counts as STAY.
        Returns:
            obs: uint8 [B, A, 3 + k, H, W], the live buffer.
            rewards: float32 [B, A].
            terminated: bool [B, A], hunters whose game ended by the rules in this tick.
            truncated: bool [B, A], hunters that the horizon cut off in this tick.
        Raises:
            ValueError: wrong shape, or an action outside 0..4 + k.
        """
        actions = np.asarray(actions)
        shape = (self.num_boards, self.rules.hunters)
        if actions.shape != shape or actions.dtype.kind not in "iu":
            got = f"{actions.dtype} {actions.shape}"
            raise ValueError(f"actions: expected integers of shape {shape}, got {got}")
        if actions.min() < 0 or actions.max() >= self._num_actions:
            limits = f"0..{self._num_actions - 1}"
            raise ValueError(f"actions: must be in {limits}, got {actions.min()} to {actions.max()}")
        live = ~self.ended
        rewards = np.zeros(shape, np.float32)
        terminated = np.zeros(shape, bool)
        code_and_action = self.legal_codes() * np.intp(self._num_actions) + actions.astype(np.intp)
        self.effective_actions = self._effective.take(code_and_action)
        self._hunter_at += self._step_of.take(self.effective_actions)
        taking = np.flatnonzero((self.effective_actions >= TAKE).any(1))
        if len(taking):
            self._take(taking, rewards, terminated)
        self._show_hunters()
        if self.rules.prey_moves > 0.0:
            self._move_prey(np.flatnonzero(live))
        truncated = self._end(live, terminated)
        return self.obs, rewards, terminated, truncated

    # ---- the parts of a tick

    def _take(self, boards: np.ndarray, rewards: np.ndarray, terminated: np.ndarray) -> None:
        """Resolve the captures on these boards (int [n]); fills rewards and terminated."""
        r = self.rules
        gone = self._offset[boards] + r.cells  # [n, 1]
        hunters = self._hunter_at[boards]  # [n, A]
        captures, rewards[boards] = r.resolve(hunters - self._offset[boards], self.effective_actions[boards])
        row, seat = np.nonzero(captures)
        if not len(row):
            return
        board = boards[row]
        slot = self._prey_on[hunters[row, seat]]
        before = self._prey_cell[boards]
        self._take_off(board, slot)
        self._prey_cell[board, slot] = r.cells
        if r.game.leaves:
            terminated[boards] = captures
            self._hunter_at[board, seat] = gone[row, 0]
            self._shift[board, :, seat] = self._bin - gone[row]
        after = self._prey_cell[boards]
        first_hunt = self.first_hunt[boards]
        self.first_hunt[boards] = first_hunt_after(first_hunt, self.tick[boards], before, after, r.cells)

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
        over = self.rules.ended(self.tick, self.first_hunt, active, self._prey_cell) & live
        terminated |= over[:, None] & active
        self.tick += live
        cut = live & ~over & (self.tick >= self.rules.horizon)
        self.ended |= over | cut
        return cut[:, None] & active

    # ---- prey on the board: their cells, planes, the actions that take them

    def _take_off(self, board: np.ndarray, slot: np.ndarray) -> None:
        """Prey leave the cells on which they stand. board, slot: int [n]."""
        cell = self._prey_cell[board, slot]
        self._planes[board, :, self._prey_plane[slot], cell] = 0
        cell = cell + self._offset[board, 0]
        self._codes[cell] &= ~self._take_code[slot]
        self._prey_on[cell] = -1
        self._stale[board, slot] = True

    def _put_on(self, board: np.ndarray, slot: np.ndarray, cell: np.ndarray) -> None:
        """Prey stand on these cells from now on. board, slot, cell: int [n]."""
        self._planes[board, :, self._prey_plane[slot], cell] = 1
        self._prey_cell[board, slot] = cell
        cell = cell + self._offset[board, 0]
        self._prey_on[cell] = slot
        self._codes[cell] |= self._take_code[slot]
        self._stale[board, slot] = True

    # ---- setting up boards

    def _start_streams(self, seed: int | Sequence[int | None] | None, boards: np.ndarray) -> None:
        """boards: int [B], their numbers under this seed; None: a seed of the operating system."""
        if isinstance(seed, Sequence):
            self._key = np.concatenate([_keys_of(own, np.zeros(1, int)) for own in seed])
        else:
            self._key = _keys_of(seed, boards)
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
        no_prey = np.zeros((*cells.shape, r.game.kinds), bool)
        legal = legal_on(cells, blocks, no_prey, r.height, r.width)  # [n, K+1, 5 + k]
        self.blocks[boards] = blocks
        self._codes.reshape(B, -1)[boards] = legal @ _BITS[: legal.shape[2]]
        self._prey_on.reshape(B, -1)[boards] = -1
        self._planes[boards] = 0
        self._planes[boards, :, OWN_PLANES.index("BLOCKS")] = blocks[:, None]
        self._prey_cell[boards] = r.cells
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
    """int [8]: what each legal action adds to a cell's number. table: int [K+1, 8], the neighbours."""
    K = len(table) - 1
    cell = (table[:K] < K).argmax(0)  # [8], the first from which the action stays on the board
    return table[cell, np.arange(table.shape[1])] - cell  # without such a cell the action is never legal


def _check_state(state: State, num_boards: int, rules: GameRules) -> None:
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
    lowest = dict(hunters=-1 if rules.game.leaves else 0, prey=-1)
    for name, low in lowest.items():
        cells = getattr(state, name)
        if cells.dtype.kind not in "iu":
            raise ValueError(f"state.{name}: expected integers, got {cells.dtype}")
        if cells.size and (cells.min() < low or cells.max() >= rules.cells):
            limits = f"[{low}, {rules.cells})"
            raise ValueError(f"state.{name}: cells must be in {limits}, got {cells.min()} to {cells.max()}")
        on_block = np.take_along_axis(state.blocks, cells.clip(0).astype(np.intp), 1)
        if (on_block & (cells >= 0)).any():
            raise ValueError(f"state.{name}: one stands on a block")
    ranked = np.sort(state.prey, 1)
    if ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)).any():
        raise ValueError("state.prey: two prey share a cell")


def make_core(num_boards: int, rules: GameRules) -> Board:
    """The core of these rules, of any game."""
    return Board(num_boards, rules)


def _restore(core: type[Board], num_boards: int, rules: GameRules, state: State | None) -> Board:
    env = core(num_boards, rules)
    if state is not None:
        env.set_state(state)
    return env
