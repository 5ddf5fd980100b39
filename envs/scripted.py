"""Scripted hunters, each as exact action probabilities.

A game's strategies are data (`envs.game.Strategy`): in the stag hunt NS goes for the nearest stag, NH for the nearest
hare; in the snowdrift ND removes the nearest drift, FIX walks and never does; RANDOM is uniform over legal actions.
With probability `epsilon` a hunter plays uniformly over its legal actions instead; the probabilities returned include that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from envs import stag_hunt
from envs.core import TAKE, Board, Cells, GameRules, kind_slices, legal_cells, legal_of_codes
from envs.game import MAX_KINDS, STAY, Game, Strategy
from envs.grid import FAR, neighbours

STRATEGIES = tuple(stag_hunt.GAME.strategies)
DATA_EPSILON = 0.1  # of the recorded data, and wherever scripted co-players train or judge a policy


@lru_cache(maxsize=MAX_KINDS)
def _nth_legal(kinds: int) -> np.ndarray:
    """int8 [codes of legal actions, n]: (code, number below n) -> action; a uniform number picks uniformly.

    Code 0 does not occur.
    """
    legal = legal_of_codes(kinds)
    n = np.lcm.reduce(np.arange(1, legal.shape[1] + 1))  # a multiple of any number of legal actions
    table = np.full((len(legal), n), STAY, np.int8)
    for code in range(1, len(legal)):
        table[code] = np.resize(np.flatnonzero(legal[code]), n)
    return table


def strategy_probs(env: Board, names: Sequence[str], epsilon: float = 0.0) -> np.ndarray:
    """Exact action probabilities of each hunter under each strategy, in the boards' present state.

    A hunter that has left plays STAY.
    Args: names: strategies of the game, S of them; epsilon in [0, 1].
    Returns: float64 [B, A, S, 5 + k].
    Raises:
        ValueError: an unknown strategy, or epsilon outside [0, 1].
    """
    strategies = env.rules.game.strategies
    for name in names:
        if name not in strategies:
            raise ValueError(f"unknown strategy {name!r}: choose from {', '.join(strategies)}")
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon!r}")
    legal = _hunters_last(env.legal_actions())  # [5 + k, B, A]
    uniform = legal / legal.sum(0)
    pursuers = [name for name in names if not _is_random(strategies[name])]
    plans = _plans(env.distances(), env.hunters, legal, env.rules, pursuers) if pursuers else {}
    probs = np.empty((*legal.shape[1:], len(names), len(legal)))
    for s, name in enumerate(names):
        mixed = (1.0 - epsilon) * plans[name] + epsilon * uniform if name in plans else uniform
        probs[:, :, s] = np.moveaxis(mixed, 0, -1)
    return probs


def cells_probs(
    cells: Cells,
    names: Sequence[str],
    strategy_ids: np.ndarray,
    epsilon: float,
    distance: np.ndarray,
    blocks: np.ndarray,
    rules: GameRules,
) -> np.ndarray:
    """Exact action probabilities of each hunter on bare cells, as `strategy_probs` gives them on a core.

    Args:
        strategy_ids: int [B, A], each hunter's strategy, an index into `names`.
        distance: int16 [B, P, K], from each cell to where each prey stands or, if it is captured, stood.
        blocks: bool [B, K].
    Returns: float64 [B, A, 5 + k].
    """
    legal = _hunters_last(legal_cells(cells.hunters, cells.prey, blocks, rules))
    uniform = legal / legal.sum(0)  # [5 + k, B, A]
    captured = cells.prey == rules.cells
    pursuers = [name for name in names if not _is_random(rules.game.strategies[name])]
    plans = _plans(np.where(captured[..., None], FAR, distance), cells.hunters, legal, rules, pursuers)
    probs = uniform
    for index, name in enumerate(names):
        if name in plans:
            probs = np.where(strategy_ids == index, (1.0 - epsilon) * plans[name] + epsilon * uniform, probs)
    return np.ascontiguousarray(np.moveaxis(probs, 0, -1))


def _is_random(strategy: Strategy) -> bool:
    """Uniform over legal actions, whatever epsilon is."""
    return not strategy.chases and strategy.otherwise == "any"


def _hunters_last(values: np.ndarray) -> np.ndarray:
    """[B, A, n] -> [n, B, A], contiguous: NumPy is slow on short last axes."""
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def _plans(
    distance: np.ndarray, hunters: np.ndarray, legal: np.ndarray, rules: GameRules, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """`chase_probs` of hunters [B, A] on cells, K once they have left; distance: int16 [B, P, K].

    What is read for cell K plays no part: a move off the board is not legal, and a hunter that has left stays.
    """
    inside = rules.cells - 1
    own = np.minimum(hunters, inside)  # [B, A]
    around = np.minimum(neighbours(rules.height, rules.width)[hunters, :4], inside)  # [B, A, 4]
    first = (
        np.arange(distance.shape[0] * rules.prey) * rules.cells
    )  # where the map of each board's each prey begins
    first = _hunters_last(first.reshape(len(hunters), 1, rules.prey))  # [P, B, 1]
    own_distance = distance.reshape(-1).take(first + own)  # [P, B, A]
    neighbour_distance = distance.reshape(-1).take(first[:, None] + _hunters_last(around))  # [P, 4, B, A]
    return chase_probs(own_distance, neighbour_distance, legal, rules, names)


def chase_probs(
    own_distance: np.ndarray,
    neighbour_distance: np.ndarray,
    legal: np.ndarray,
    rules: GameRules,
    names: Sequence[str],
) -> dict[str, np.ndarray]:
    """Strategies without epsilon: the nearest prey of the first kind that is left, else `Strategy.otherwise`.

    Args: of hunters [..], such as [B, A], in the last axes.
        own_distance: int16 [P, ..], from each hunter to each prey, kind after kind; FAR: no way, or no prey.
        neighbour_distance: int16 [P, 4, ..], from the four cells around it.
        legal: bool [5 + k, ..]; a hunter that has left, or whose board has ended, may only STAY.
        names: of the strategies.
    Returns: float64 [5 + k, ..] of each strategy, by name.
    """
    toward = (neighbour_distance == own_distance[:, None] - 1) & legal[:4]
    toward = toward / np.maximum(toward.sum(1, keepdims=True), 1)  # [P, 4, ..]
    active = legal.sum(0) > 1
    chases = {}  # plane -> (is there one to go for? bool [..]; probabilities [5 + k, ..])
    for kind, part in enumerate(kind_slices(rules.prey_counts)):
        least = own_distance[part].min(0, initial=FAR)
        chosen = (own_distance[part] == least) & (least < FAR)
        weight = chosen / np.maximum(chosen.sum(0), 1)  # [p, ..]
        probs = np.zeros(legal.shape)
        probs[:4] = (weight[:, None] * toward[part]).sum(0)
        probs[:, least == 0] = np.eye(len(legal))[:, TAKE + kind, None]
        chases[rules.game.prey[kind]] = (least < FAR) & active, probs
    plans = {}
    for name in names:
        strategy = rules.game.strategies[name]
        plan = _otherwise(strategy, legal)
        for plane in reversed(strategy.chases):
            goes, probs = chases[plane]
            plan = np.where(goes, probs, plan)
        plans[name] = plan
    return plans


def _otherwise(strategy: Strategy, legal: np.ndarray) -> np.ndarray:
    """float64 [5 + k, ..]: what a hunter does that goes for nothing. legal: bool [5 + k, ..]."""
    if strategy.otherwise == "stay":
        staying = np.zeros(legal.shape)
        staying[STAY] = 1.0
        return staying
    allowed = legal.copy()
    if strategy.otherwise == "walk":
        allowed[TAKE:] = False
    return allowed / allowed.sum(0)


def sample_actions(probs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw actions by inversion. probs: float [..., 7]; uniform: float [...] in [0, 1). Returns: int8 [...]."""
    cumulative = np.cumsum(probs, -1)
    threshold = uniform[..., None] * cumulative[..., -1:]  # scaled: rounding cannot push past the last action
    return (threshold < cumulative).argmax(-1).astype(np.int8)


def random_actions(env: Board, rng: np.random.Generator) -> np.ndarray:
    """Uniform over each hunter's legal actions, without forming probabilities. Returns: int8 [B, A]."""
    codes = env.legal_codes()
    table = _nth_legal(env.rules.game.kinds)
    n = table.shape[1]
    numbers = rng.integers(0, n, codes.shape, dtype=np.uint16)
    return table.take(codes * np.intp(n) + numbers)


def parse_team(text: str, co_players: int, game: Game = stag_hunt.GAME) -> tuple[str, ...]:
    """`1NS2NH` -> ("NS", "NH", "NH"); `mixed` and `self` -> (). Raises: ValueError: another form, number or strategy."""
    if text in ("mixed", "self"):
        return ()
    parts = re.findall(r"(\d+)([A-Z]+)", text)
    is_whole = "".join(count + name for count, name in parts) == text
    names = tuple(name for count, name in parts for _ in range(min(int(count), 99)))
    if not is_whole or len(names) != co_players or not set(names) <= set(game.strategies):
        strategies = ", ".join(game.strategies)
        first = next(iter(game.strategies))
        raise ValueError(
            f"co-players: expected mixed, self, or {co_players} co-players of {strategies} "
            f"such as {co_players}{first}, got {text!r}"
        )
    return names
