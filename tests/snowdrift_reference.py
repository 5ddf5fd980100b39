"""The snowdrift a second time, slow and obvious: what the fast core in `envs/` is held to.

It plays one board, a cell is (row, column), a drift that is removed is None. It is written from the rules in
`docs/design.md` and takes only the `Rules` and `State` records from `envs/`, and the random stream, the ways on a board
and its moves from the stag hunt's reference.
"""

import numpy as np
from hypothesis import strategies as st
from reference import MOVES, STAY, distances, neighbour, splitmix

from envs import State
from envs.snowdrift import Rules

REMOVE = 5
ACTIONS = range(6)


class SnowReference:
    """One board of the Markov snowdrift."""

    def __init__(self, rules: Rules, seed: int = 0, board: int = 0):
        self.rules = rules
        self.counter = 0
        self.key = splitmix(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]), board)
        self.cells = [(row, col) for row in range(rules.height) for col in range(rules.width)]
        self.reset()

    @classmethod
    def from_state(cls, rules: Rules, state: State, board: int) -> "SnowReference":
        """The board number `board` of a state of the fast core."""
        self = cls(rules)
        self.free = frozenset(
            c for c, block in zip(self.cells, state.blocks[board], strict=True) if not block
        )
        self.agents = [self.cells[number] for number in state.hunters[board]]
        self.drifts = [None if number < 0 else self.cells[number] for number in state.prey[board]]
        self.tick = int(state.tick[board])
        self.ended = bool(state.ended[board])
        self.first_removal = int(state.first_hunt[board])
        return self

    def reset(self):
        """Shuffle the cells until the first ones, as blocks, leave the others connected; then place the rest."""
        connected = False
        while not connected:
            numbers = [splitmix(self.key, self.counter + i) for i in range(len(self.cells))]
            self.counter += len(self.cells)
            shuffled = [cell for _, cell in sorted(zip(numbers, self.cells, strict=True))]
            self.free = frozenset(shuffled[self.rules.blocks :])
            connected = len(distances(self.free, shuffled[-1])) == len(self.free)
        things = iter(shuffled[self.rules.blocks :])
        self.drifts = [next(things) for _ in range(self.rules.drifts)]
        self.agents = [next(things) for _ in range(self.rules.agents)]
        self.tick = 0
        self.first_removal = -1
        self.ended = False

    def legal(self, seat: int) -> list[int]:
        """What this agent may do."""
        if self.ended:
            return [STAY]
        here = self.agents[seat]
        moves = [move for move in MOVES if neighbour(here, move) in self.free]
        return [*moves, STAY, *[REMOVE] * (here in self.drifts)]

    def step(self, actions):
        """Play one tick. Returns: rewards by seat, whether all are terminated, whether all are truncated."""
        rewards = {seat: 0.0 for seat in range(self.rules.agents)}
        if self.ended:
            return list(rewards.values()), False, False
        played = {seat: a if a in self.legal(seat) else STAY for seat, a in enumerate(actions)}
        for seat, action in played.items():
            if action in MOVES:
                self.agents[seat] = neighbour(self.agents[seat], action)
        for slot, cell in enumerate(self.drifts):
            removers = [
                seat for seat, action in played.items() if action == REMOVE and self.agents[seat] == cell
            ]
            if not removers:
                continue
            self.drifts[slot] = None
            for seat in rewards:
                rewards[seat] += self.rules.reward
            for seat in removers:
                rewards[seat] -= self.rules.cost / len(removers)
            if self.first_removal < 0:
                self.first_removal = self.tick
        self.tick += 1
        terminated = not any(self.drifts)
        truncated = not terminated and self.tick == self.rules.horizon
        self.ended = terminated or truncated
        return list(rewards.values()), terminated, truncated

    def obs(self) -> list:
        """[A][4][H][W], each 0 or 1: SELF, OTHERS, BLOCKS, DRIFTS."""
        blocks = set(self.cells) - self.free
        return [
            [
                self._plane([own]),
                self._plane(self._others(seat)),
                self._plane(blocks),
                self._plane(self.drifts),
            ]
            for seat, own in enumerate(self.agents)
        ]

    def _others(self, seat: int) -> list:
        return [cell for other, cell in enumerate(self.agents) if other != seat]

    def _plane(self, things) -> list:
        return [
            [int((row, col) in things) for col in range(self.rules.width)] for row in range(self.rules.height)
        ]

    def probs(self, seat: int, name: str, epsilon: float = 0.0) -> list[float]:
        """The probability of each action under ND, FIX or RANDOM; for ND every walk on the board is tried out."""
        legal = self.legal(seat)
        uniform = {action: 1 / len(legal) for action in legal}
        walk = [action for action in legal if action != REMOVE]
        plans = {
            "ND": self._nearest(seat),
            "FIX": {action: 1 / len(walk) for action in walk},
            "RANDOM": uniform,
        }
        return [(1 - epsilon) * plans[name].get(a, 0) + epsilon * uniform.get(a, 0) for a in ACTIONS]

    def _nearest(self, seat: int) -> dict:
        """Walks of 0, 1, 2, .. moves from the agent's cell, all of them, until some end on a drift."""
        if self.ended or not any(self.drifts):
            return {STAY: 1.0}
        here = self.agents[seat]
        if here in self.drifts:
            return {REMOVE: 1.0}
        walks = {(move, neighbour(here, move)) for move in MOVES if neighbour(here, move) in self.free}
        for _ in self.cells:
            nearest = {cell for _, cell in walks if cell in self.drifts}
            if nearest:
                break
            walks = {(first, neighbour(at, move)) for first, at in walks for move in MOVES}
            walks = {(first, at) for first, at in walks if at in self.free}
        else:
            return {STAY: 1.0}  # shut in
        plan = {}
        for drift in nearest:
            firsts = [first for first, cell in walks if cell == drift]
            for move in firsts:
                plan[move] = plan.get(move, 0) + 1 / len(nearest) / len(firsts)
        return plan


@st.composite
def positions(draw) -> tuple[Rules, State, np.ndarray]:
    """Rules of a small, crowded board, one live board of them, and a joint action [1, A]."""
    height, width = draw(st.tuples(st.integers(1, 4), st.integers(2, 4)))
    cells = height * width
    agents = draw(st.integers(1, min(4, cells - 1)))
    drifts = draw(st.integers(1, min(4, cells - agents)))
    rules = Rules(
        agents=agents,
        drifts=drifts,
        blocks=draw(st.integers(0, min(3, cells - agents - drifts))),
        height=height,
        width=width,
        horizon=draw(st.integers(1, 6)),
        reward=draw(st.sampled_from([6.0, 1.5])),
        cost=draw(st.sampled_from([4.0, 7.0])),
    )
    free = draw(st.permutations(range(cells)))
    blocks = np.zeros((1, cells), bool)  # they may part the board: the rules of a tick hold all the same
    blocks[0, free[: rules.blocks]] = True
    free = free[rules.blocks :]
    prey = [-1 if draw(st.sampled_from([False, False, True])) else cell for cell in free[:drifts]]
    prey[0] = free[0]  # the board is played while a drift is left
    lying = [cell for cell in prey if cell >= 0]
    at = st.one_of(st.sampled_from(lying), st.sampled_from(lying), st.sampled_from(free))
    hunters = [draw(at) for _ in range(agents)]
    tick = draw(st.integers(0, rules.horizon - 1))
    state = State(
        blocks,
        np.array([hunters], np.int16),
        np.array([prey], np.int16),
        np.array([tick], np.int32),
        np.array([tick - 1 if len(lying) < drifts and tick else -1], np.int32),
        np.array([False]),
        np.array([draw(st.integers(0, 2**64 - 1))], np.uint64),
        np.array([0], np.uint64),
    )
    actions = [draw(st.sampled_from([REMOVE] * 5 + list(ACTIONS))) for _ in range(agents)]
    return rules, state, np.array([actions])
