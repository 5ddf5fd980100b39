"""Scripted hunters, each as exact action probabilities.

NS goes for the nearest stag, NH for the nearest hare, RANDOM is uniform over legal actions. With probability
`epsilon` a hunter plays uniformly over its legal actions instead; the probabilities returned include that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from envs.grid import FAR, neighbours
from envs.stag_hunt import HUNT_HARE, HUNT_STAG, LEGAL, STAY, Cells, Rules, StagHunt, legal_cells

STRATEGIES = ("NS", "NH", "RANDOM")
DATA_EPSILON = 0.1  # of the recorded data, and wherever scripted co-players train or judge a policy
_LCM = 420  # of 1..7: a uniform number below it picks uniformly among any number of legal actions


def _nth_legal() -> np.ndarray:
    """int8 [128, 420]: (code of the legal actions, number) -> action; code 0 does not occur."""
    table = np.full((128, _LCM), STAY, np.int8)
    for code in range(1, 128):
        table[code] = np.resize(np.flatnonzero(LEGAL[code]), _LCM)
    return table


_NTH_LEGAL = _nth_legal()


def strategy_probs(env: StagHunt, names: Sequence[str], epsilon: float = 0.0) -> np.ndarray:
    """Exact action probabilities of each hunter under each strategy, in the boards' present state.

    A hunter that has left plays STAY.
    Args: names: strategies, S of them; epsilon in [0, 1].
    Returns: float64 [B, A, S, 7].
    Raises:
        ValueError: an unknown strategy, or epsilon outside [0, 1].
    """
    for name in names:
        if name not in STRATEGIES:
            raise ValueError(f"unknown strategy {name!r}: choose from {', '.join(STRATEGIES)}")
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon!r}")
    legal = env.legal_actions()
    uniform = legal / legal.sum(-1, keepdims=True)  # [B, A, 7]
    probs = np.repeat(uniform[:, :, None], len(names), 2)
    if set(names) & {"NS", "NH"}:
        chase = _chase(env.distances(), env.hunters, legal, env.rules)
        for s, name in enumerate(names):
            if name != "RANDOM":
                probs[:, :, s] = (1.0 - epsilon) * chase[name] + epsilon * uniform
    return probs


def cells_probs(
    cells: Cells,
    names: Sequence[str],
    strategy_ids: np.ndarray,
    epsilon: float,
    distance: np.ndarray,
    blocks: np.ndarray,
    rules: Rules,
) -> np.ndarray:
    """Exact action probabilities of each hunter on bare cells, as `strategy_probs` gives them on a core.

    Args:
        strategy_ids: int [B, A], each hunter's strategy, an index into `names`.
        distance: int16 [B, P, K], from each cell to where each prey stands or, if it is captured, stood.
        blocks: bool [B, K].
    Returns: float64 [B, A, 7].
    """
    legal = legal_cells(cells.hunters, cells.prey, blocks, rules)
    uniform = legal / legal.sum(-1, keepdims=True)
    captured = cells.prey == rules.cells
    chase = _chase(np.where(captured[..., None], FAR, distance), cells.hunters, legal, rules)
    probs = uniform.copy()
    for index, name in enumerate(names):
        if name != "RANDOM":
            plays = (strategy_ids == index)[..., None]
            probs = np.where(plays, (1.0 - epsilon) * chase[name] + epsilon * uniform, probs)
    return probs


def _chase(
    distance: np.ndarray, hunters: np.ndarray, legal: np.ndarray, rules: Rules
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
    return chase_probs(own_distance, neighbour_distance, legal, rules.stags)


def chase_probs(
    own_distance: np.ndarray, neighbour_distance: np.ndarray, legal: np.ndarray, stags: int
) -> dict[str, np.ndarray]:
    """NS and NH without epsilon: the nearest prey of the kind, else of the other kind, else STAY.

    Args:
        own_distance: int16 [B, A, P], from each hunter to each prey, stags first; FAR: no way, or no prey.
        neighbour_distance: int16 [B, A, P, 4], from the four cells around it.
        legal: bool [B, A, 7]; a hunter that has left, or whose board has ended, may only STAY.
    Returns: {"NS": float64 [B, A, 7], "NH": ...}.
    """
    toward = (neighbour_distance == own_distance[..., None] - 1) & legal[:, :, None, :4]
    toward = toward / np.maximum(toward.sum(-1, keepdims=True), 1)  # [B, A, P, 4]
    stay = np.eye(7)[STAY]

    def nearest(kind: slice, hunt: int, otherwise: np.ndarray) -> np.ndarray:
        distance = own_distance[:, :, kind]
        least = distance.min(-1, initial=FAR)[..., None]  # [B, A, 1]
        chosen = (distance == least) & (least < FAR)
        weight = chosen / np.maximum(chosen.sum(-1, keepdims=True), 1)
        probs = np.zeros(legal.shape)
        probs[..., :4] = (weight[..., None] * toward[:, :, kind]).sum(2)
        probs[least[..., 0] == 0] = np.eye(7)[hunt]
        return np.where(least < FAR, probs, otherwise)

    stag = slice(0, stags)
    hare = slice(stags, None)
    stag_else_stay = nearest(stag, HUNT_STAG, stay)
    hare_else_stay = nearest(hare, HUNT_HARE, stay)
    active = legal.sum(-1, keepdims=True) > 1
    return {
        "NS": np.where(active, nearest(stag, HUNT_STAG, hare_else_stay), stay),
        "NH": np.where(active, nearest(hare, HUNT_HARE, stag_else_stay), stay),
    }


def sample_actions(probs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw actions by inversion. probs: float [..., 7]; uniform: float [...] in [0, 1). Returns: int8 [...]."""
    cumulative = np.cumsum(probs, -1)
    threshold = uniform[..., None] * cumulative[..., -1:]  # scaled: rounding cannot push past the last action
    return (threshold < cumulative).argmax(-1).astype(np.int8)


def random_actions(env: StagHunt, rng: np.random.Generator) -> np.ndarray:
    """Uniform over each hunter's legal actions, without forming probabilities. Returns: int8 [B, A]."""
    codes = env.legal_codes()
    numbers = rng.integers(0, _LCM, codes.shape, dtype=np.uint16)
    return _NTH_LEGAL.take(codes * np.intp(_LCM) + numbers)


def parse_team(text: str, co_players: int) -> tuple[str, ...]:
    """`1NS2NH` -> ("NS", "NH", "NH"); `mixed` and `self` -> (). Raises: ValueError: another form or number."""
    if text in ("mixed", "self"):
        return ()
    parts = re.findall(r"(\d+)([A-Z]+)", text)
    is_whole = "".join(count + name for count, name in parts) == text
    names = tuple(name for count, name in parts for _ in range(min(int(count), 99)))
    if not is_whole or len(names) != co_players or not set(names) <= set(STRATEGIES):
        strategies = ", ".join(STRATEGIES)
        raise ValueError(
            f"co-players: expected mixed, self, or {co_players} co-players of {strategies} "
            f"such as {co_players}NS, got {text!r}"
        )
    return names
