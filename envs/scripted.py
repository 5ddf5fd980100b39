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
    legal = env.legal_actions()
    uniform = legal / legal.sum(-1, keepdims=True)  # [B, A, 5 + k]
    probs = np.repeat(uniform[:, :, None], len(names), 2)
    is_random = [_is_random(strategies[name]) for name in names]
    if not all(is_random):
        plans = _plans(env.distances(), env.hunters, legal, env.rules)
        for s, name in enumerate(names):
            if not is_random[s]:
                probs[:, :, s] = (1.0 - epsilon) * plans[name] + epsilon * uniform
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
    legal = legal_cells(cells.hunters, cells.prey, blocks, rules)
    uniform = legal / legal.sum(-1, keepdims=True)
    captured = cells.prey == rules.cells
    plans = _plans(np.where(captured[..., None], FAR, distance), cells.hunters, legal, rules)
    probs = uniform.copy()
    for index, name in enumerate(names):
        if not _is_random(rules.game.strategies[name]):
            plays = (strategy_ids == index)[..., None]
            probs = np.where(plays, (1.0 - epsilon) * plans[name] + epsilon * uniform, probs)
    return probs


def _is_random(strategy: Strategy) -> bool:
    """Uniform over legal actions, whatever epsilon is."""
    return not strategy.chases and strategy.otherwise == "any"


def _plans(
    distance: np.ndarray, hunters: np.ndarray, legal: np.ndarray, rules: GameRules
) -> dict[str, np.ndarray]:
    """`chase_probs` of hunters [B, A] on cells, K once they have left; distance: int16 [B, P, K].

    What is read for cell K plays no part: a move off the board is not legal, and a hunter that has left stays.
    """
    board = np.arange(len(hunters))[:, None, None]
    prey = np.arange(rules.prey)
    inside = rules.cells - 1
    own = np.minimum(hunters, inside)
    around = np.minimum(neighbours(rules.height, rules.width)[hunters, :4], inside)  # [B, A, 4]
    own_distance = distance[board, prey, own[:, :, None]]  # [B, A, P]
    neighbour_distance = distance[board[..., None], prey[:, None], around[:, :, None, :]]  # [B, A, P, 4]
    return chase_probs(own_distance, neighbour_distance, legal, rules)


def chase_probs(
    own_distance: np.ndarray, neighbour_distance: np.ndarray, legal: np.ndarray, rules: GameRules
) -> dict[str, np.ndarray]:
    """The game's strategies without epsilon: the nearest prey of the first kind that is left, else `Strategy.otherwise`.

    Args:
        own_distance: int16 [B, A, P], from each hunter to each prey, kind after kind; FAR: no way, or no prey.
        neighbour_distance: int16 [B, A, P, 4], from the four cells around it.
        legal: bool [B, A, 5 + k]; a hunter that has left, or whose board has ended, may only STAY.
    Returns: float64 [B, A, 5 + k] of each strategy, by name.
    """
    one_hot = np.eye(legal.shape[-1])
    toward = (neighbour_distance == own_distance[..., None] - 1) & legal[:, :, None, :4]
    toward = toward / np.maximum(toward.sum(-1, keepdims=True), 1)  # [B, A, P, 4]
    active = legal.sum(-1, keepdims=True) > 1
    chases = {}  # plane -> (is there one to go for? bool [B, A, 1]; probabilities [B, A, 5 + k])
    for kind, part in enumerate(kind_slices(rules.prey_counts)):
        distance = own_distance[:, :, part]
        least = distance.min(-1, initial=FAR)[..., None]  # [B, A, 1]
        chosen = (distance == least) & (least < FAR)
        weight = chosen / np.maximum(chosen.sum(-1, keepdims=True), 1)
        probs = np.zeros(legal.shape)
        probs[..., :4] = (weight[..., None] * toward[:, :, part]).sum(2)
        probs[least[..., 0] == 0] = one_hot[TAKE + kind]
        chases[rules.game.prey[kind]] = (least < FAR) & active, probs
    plans = {}
    for name, strategy in rules.game.strategies.items():
        plans[name] = _otherwise(strategy, legal)
        for plane in reversed(strategy.chases):
            goes, probs = chases[plane]
            plans[name] = np.where(goes, probs, plans[name])
    return plans


def _otherwise(strategy: Strategy, legal: np.ndarray) -> np.ndarray:
    """float64, broadcasts to [B, A, 5 + k]: what a hunter does that goes for nothing. legal: bool [B, A, 5 + k]."""
    num_actions = legal.shape[-1]
    if strategy.otherwise == "stay":
        return np.eye(num_actions)[STAY]
    allowed = legal & (np.arange(num_actions) < TAKE) if strategy.otherwise == "walk" else legal
    return allowed / allowed.sum(-1, keepdims=True)


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
