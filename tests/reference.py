"""A second implementation of the game, slow and obvious: what the fast core in `envs/` is held to.

It plays one board, a cell is (row, column), and what has left is None. It is written from the rules in
`docs/design.md` and takes only the `Rules` and `State` records from `envs/`; even the random stream is spelt out again.
"""

from collections import deque
from functools import lru_cache

import numpy as np
from hypothesis import strategies as st

from envs import Rules, State

UP, DOWN, LEFT, RIGHT, STAY, HUNT_STAG, HUNT_HARE = range(7)
MOVES = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}


def splitmix(key: int, counter: int) -> int:
    """The `counter`-th 64-bit number of the stream `key` (Steele, Lea & Flood 2014)."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def neighbour(cell, move):
    """The cell one step away; it may lie off the board."""
    return cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]


@lru_cache(maxsize=4096)
def distances(free: frozenset, source) -> dict:
    """Steps from each reachable free cell to `source`, by breadth-first search."""
    steps, queue = {source: 0}, deque([source])
    while queue:
        cell = queue.popleft()
        for move in MOVES:
            to = neighbour(cell, move)
            if to in free and to not in steps:
                steps[to] = steps[cell] + 1
                queue.append(to)
    return steps


class Reference:
    """One board of the Markov stag hunt."""

    def __init__(self, rules: Rules, seed: int = 0, board: int = 0):
        self.rules, self.counter = rules, 0
        self.key = splitmix(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]), board)
        self.cells = [(row, col) for row in range(rules.height) for col in range(rules.width)]
        self.reset()

    @classmethod
    def from_state(cls, rules: Rules, state: State, board: int) -> "Reference":
        """The board number `board` of a state of the fast core."""
        self = cls(rules)
        cell = lambda number: None if number < 0 else self.cells[number]  # noqa: E731
        self.free = frozenset(
            c for c, block in zip(self.cells, state.blocks[board], strict=True) if not block
        )
        self.hunters = [cell(number) for number in state.hunters[board]]
        prey = [cell(number) for number in state.prey[board]]
        self.stags, self.hares = prey[: rules.stags], prey[rules.stags :]
        self.tick, self.ended = int(state.tick[board]), bool(state.ended[board])
        self.first_hunt = None if state.first_hunt[board] < 0 else int(state.first_hunt[board])
        self.key, self.counter = int(state.key[board]), int(state.counter[board])
        return self

    def draw(self, n: int) -> list[int]:
        """The next n numbers of the board's stream."""
        self.counter += n
        return [splitmix(self.key, counter) for counter in range(self.counter - n, self.counter)]

    def reset(self):
        """Shuffle the cells until the first ones, as blocks, leave the others connected; then place the rest."""
        r, connected = self.rules, False
        while not connected:
            shuffled = [cell for _, cell in sorted(zip(self.draw(len(self.cells)), self.cells, strict=True))]
            self.free = frozenset(shuffled[r.blocks :])
            connected = len(distances(self.free, shuffled[-1])) == len(self.free)
        things = iter(shuffled[r.blocks :])
        self.stags = [next(things) for _ in range(r.stags)]
        self.hares = [next(things) for _ in range(r.hares)]
        self.hunters = [next(things) for _ in range(r.hunters)]
        self.tick, self.first_hunt, self.ended = 0, None, False

    def legal(self, seat: int) -> list[int]:
        """The actions that are not the same as STAY, and STAY."""
        here = self.hunters[seat]
        if here is None or self.ended:
            return [STAY]
        hunts = [HUNT_STAG] * (here in self.stags) + [HUNT_HARE] * (here in self.hares)
        return [move for move in MOVES if neighbour(here, move) in self.free] + [STAY, *hunts]

    def step(self, actions):
        """Play one tick. Returns: rewards, terminated, truncated: a list each, by seat."""
        seats = range(self.rules.hunters)
        self.effective = [
            action if action in self.legal(seat) else STAY for seat, action in enumerate(actions)
        ]
        rewards, terminated, truncated = [0.0] * len(seats), [False] * len(seats), [False] * len(seats)
        if self.ended:
            return rewards, terminated, truncated
        for seat in seats:
            if self.effective[seat] in MOVES:
                self.hunters[seat] = neighbour(self.hunters[seat], self.effective[seat])
        self._hunt(
            self.stags, HUNT_STAG, self.rules.hunters_needed, self.rules.stag_reward, rewards, terminated
        )
        self._hunt(self.hares, HUNT_HARE, 1, self.rules.hare_reward, rewards, terminated)
        if self.rules.prey_moves > 0:
            self._move_prey()
        self._end(terminated, truncated)
        return rewards, terminated, truncated

    def _hunt(self, herd, hunt, needed, reward, rewards, terminated):
        """Let every prey of the herd be captured that enough hunters hunt; prey and hunters leave."""
        for slot, cell in enumerate(herd):
            team = [s for s, at in enumerate(self.hunters) if at == cell and self.effective[s] == hunt]
            if cell is None or len(team) < needed:
                continue
            herd[slot] = None
            for seat in team:
                rewards[seat], terminated[seat], self.hunters[seat] = reward / len(team), True, None
            if self.first_hunt is None:
                self.first_hunt = self.tick

    def _move_prey(self):
        """One number for each prey, also for those gone: the high half says whether, the low half where to."""
        numbers = iter(self.draw(self.rules.prey))
        for herd in (self.stags, self.hares):
            for slot, cell in enumerate(herd):
                high, low = divmod(next(numbers), 2**32)
                if cell is None or high >= self.rules.prey_moves * 2**32:
                    continue
                around = [neighbour(cell, move) for move in MOVES]
                ways = [to for to in around if to in self.free and to not in self.stags + self.hares]
                if ways:
                    herd[slot] = ways[low * len(ways) >> 32]

    def _end(self, terminated, truncated):
        """End the board: nobody left, enough ticks since the first capture, or the horizon."""
        left = [seat for seat, cell in enumerate(self.hunters) if cell is not None]
        k, over = self.rules.end_after_first_hunt, False
        if k is not None and self.first_hunt is not None:
            over = self.tick - self.first_hunt >= k  # this tick is the k-th after that of the first capture
        self.tick += 1
        for seat in left:
            terminated[seat] = over
            truncated[seat] = not over and self.tick == self.rules.horizon
        self.ended = over or not left or self.tick == self.rules.horizon

    def ticks_left(self) -> int:
        """Ticks still to be played once the first capture has started the countdown, else -1."""
        if self.rules.end_after_first_hunt is None or self.first_hunt is None:
            return -1
        last = min(self.first_hunt + self.rules.end_after_first_hunt, self.rules.horizon - 1)
        return 0 if self.ended else last + 1 - self.tick

    def obs(self) -> list:
        """[A][5][H][W], each 0 or 1: SELF, OTHERS, BLOCKS, STAGS, HARES."""
        shared = [self._plane(set(self.cells) - self.free), self._plane(self.stags), self._plane(self.hares)]
        own = [self._plane([cell]) for cell in self.hunters]
        rest = [
            self._plane(self.hunters[:seat] + self.hunters[seat + 1 :]) for seat in range(self.rules.hunters)
        ]
        return [[own[seat], rest[seat], *shared] for seat in range(self.rules.hunters)]

    def _plane(self, things) -> list:
        plane = [[0] * self.rules.width for _ in range(self.rules.height)]
        for row, col in filter(None, things):
            plane[row][col] = 1
        return plane

    def probs(self, seat: int, name: str, epsilon: float = 0.0) -> list[float]:
        """The probability of each action of this hunter under the strategy NS, NH or RANDOM."""
        legal = self.legal(seat)
        uniform = {action: 1 / len(legal) for action in legal}
        stag, hare = self._chase(seat, self.stags, HUNT_STAG), self._chase(seat, self.hares, HUNT_HARE)
        plan = {"NS": stag or hare or {STAY: 1}, "NH": hare or stag or {STAY: 1}, "RANDOM": uniform}[name]
        return [(1 - epsilon) * plan.get(a, 0) + epsilon * uniform.get(a, 0) for a in range(7)]

    def _chase(self, seat, herd, hunt) -> dict:
        """Action -> probability of going for the nearest of the herd; empty if there is none to go for."""
        here = self.hunters[seat]
        if here is None or self.ended:
            return {}
        far = {prey: distances(self.free, prey) for prey in herd if prey is not None}
        nearest = [prey for prey in far if far[prey][here] == min(steps[here] for steps in far.values())]
        if here in nearest:
            return {hunt: 1.0}
        plan = {}
        for prey in nearest:
            closer = [m for m in MOVES if far[prey].get(neighbour(here, m), 1e9) < far[prey][here]]
            for move in closer:
                plan[move] = plan.get(move, 0) + 1 / len(nearest) / len(closer)
        return plan


# ---- states to test on


def place(rules: Rules, hunters, prey=(), blocks=(), tick=0, first_hunt=-1, key=0) -> State:
    """One board with things on these (row, column) cells, None for what has left."""
    number = lambda cell: -1 if cell is None else cell[0] * rules.width + cell[1]  # noqa: E731
    walls = np.zeros((1, rules.cells), bool)
    walls[0, [number(cell) for cell in blocks]] = True
    return State(
        walls,
        np.array([[number(cell) for cell in hunters]], np.int16).reshape(1, rules.hunters),
        np.array([[number(cell) for cell in prey]], np.int16).reshape(1, rules.prey),
        np.array([tick], np.int32),
        np.array([first_hunt], np.int32),
        np.array([False]),
        np.array([key], np.uint64),
        np.array([0], np.uint64),
    )


def repeat(state: State, n: int) -> State:
    """n boards, each a copy of the one board of `state`."""
    return state[np.zeros(n, int)]


@st.composite
def some_rules(draw, prey_moves=(0.0, 0.5, 1.0)) -> Rules:
    """Rules of small boards, crowded, so that captures, bumps and ends are frequent."""
    height, width = draw(st.tuples(st.integers(1, 5), st.integers(2, 5)))
    hunters = draw(st.integers(1, min(4, height * width)))
    stags = draw(st.integers(0, min(2, height * width - hunters)))
    hares = draw(st.integers(0, min(3, height * width - hunters - stags)))
    return Rules(
        hunters=hunters,
        stags=stags,
        hares=hares,
        blocks=draw(st.integers(0, min(3, height * width - hunters - stags - hares))),
        height=height,
        width=width,
        horizon=draw(st.integers(1, 8)),
        hunters_needed=draw(st.integers(1, 3)),
        prey_moves=draw(st.sampled_from(prey_moves)),
        end_after_first_hunt=draw(st.sampled_from([None, 0, 1, 3])),
    )


@st.composite
def positions(draw, prey_moves=(0.0, 0.5, 1.0)) -> tuple[Rules, State, np.ndarray]:
    """Rules, one live board of them (any that play or `set_state` can reach) and a joint action [1, A]."""
    rules = draw(some_rules(prey_moves))
    cells = draw(st.permutations([(row, col) for row in range(rules.height) for col in range(rules.width)]))
    free, blocks = list(cells), []
    for cell in cells[: rules.blocks]:  # a cell becomes a block where that leaves the others connected
        rest = frozenset(free) - {cell}
        if len(distances(rest, free[-1])) == len(rest):
            free.remove(cell)
            blocks.append(cell)
    gone = st.sampled_from([False, False, False, True])
    prey = [None if draw(gone) else cell for cell in free[: rules.prey]]
    standing = [cell for cell in prey if cell] or free
    at = st.one_of(st.sampled_from(standing), st.sampled_from(standing), st.sampled_from(free), st.none())
    hunters = [draw(at) for _ in range(rules.hunters)]
    tick = draw(st.integers(0, rules.horizon - 1))
    k = rules.end_after_first_hunt
    earliest = (
        0 if k is None else max(0, tick - k)
    )  # had the first capture been earlier, the board would have ended
    first_hunt = draw(st.one_of(st.just(-1), st.integers(earliest, tick - 1))) if earliest < tick else -1
    hunt = [HUNT_STAG if cell in prey[: rules.stags] else HUNT_HARE for cell in hunters]
    actions = np.array(
        [[draw(st.sampled_from([hunt[seat]] * 5 + list(range(7)))) for seat in range(rules.hunters)]]
    )
    return (
        rules,
        place(rules, hunters, prey, blocks, tick, first_hunt, draw(st.integers(0, 2**64 - 1))),
        actions,
    )
