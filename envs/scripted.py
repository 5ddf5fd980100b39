"""Scripted hunters, each as exact action probabilities.

NS goes for the nearest stag, NH for the nearest hare, RANDOM is uniform over legal actions. With probability
`epsilon` a hunter plays uniformly over its legal actions instead; the probabilities returned include that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from envs.grid import FAR
from envs.stag_hunt import HUNT_HARE, HUNT_STAG, LEGAL, STAY, StagHunt

STRATEGIES = ("NS", "NH", "RANDOM")
DATA_EPSILON = 0.1  # of the recorded data, and wherever scripted co-players train or judge a policy
_LCM = 420  # of 1..7: a uniform number below it picks uniformly among any number of legal actions
_NTH_LEGAL = np.zeros((128, _LCM), np.int8)  # [code, number] -> action
for _code in range(128):
    _legal = np.flatnonzero(LEGAL[_code]) if _code else [STAY]
    _NTH_LEGAL[_code] = np.resize(_legal, _LCM)


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
        chase = _chase(env, legal)
        for s, name in enumerate(names):
            if name != "RANDOM":
                probs[:, :, s] = (1.0 - epsilon) * chase[name] + epsilon * uniform
    return probs


def _chase(env: StagHunt, legal: np.ndarray) -> dict[str, np.ndarray]:
    # One cell more than the board, FAR from everything: where hunters that have left stand.
    distance = np.pad(env.distances(), ((0, 0), (0, 0), (0, 1)), constant_values=FAR)
    neighbour = np.vstack([env.neighbours, np.full(4, env.rules.cells)])
    return chase(distance, env.hunters, neighbour, legal, env.rules.stags)


def chase(distance: np.ndarray, cell: np.ndarray, neighbour: np.ndarray, legal: np.ndarray, stags: int):
    """NS and NH without epsilon, each float64 [B, A, 7]: nearest prey of the kind, else of the other, else STAY.

    Args:
        distance: int16 [B, P, K+1], from each cell to each prey, stags first; FAR where there is no way or no prey.
        cell: [B, A], of each hunter, K once it has left; neighbour: [K+1, 4], K off the board; legal: bool [B, A, 7].
    """
    board, prey = np.arange(len(cell))[:, None, None], np.arange(distance.shape[1])
    here = distance[board, prey, cell[:, :, None]]  # [B, A, P]
    there = distance[board[..., None], prey[:, None], neighbour[cell][:, :, None, :]]  # [B, A, P, 4]
    toward = (there == here[..., None] - 1) & legal[:, :, None, :4]
    toward = toward / np.maximum(toward.sum(-1, keepdims=True), 1)

    stay = np.zeros(legal.shape)
    stay[..., STAY] = 1.0

    def nearest(kind: slice, hunt: int, otherwise: np.ndarray) -> np.ndarray:
        near = here[:, :, kind].min(-1, initial=FAR)  # [B, A]
        chosen = (here[:, :, kind] == near[..., None]) & (near < FAR)[..., None]
        weight = chosen / np.maximum(chosen.sum(-1, keepdims=True), 1)
        probs = np.zeros(legal.shape)
        probs[..., :4] = (weight[..., None] * toward[:, :, kind]).sum(2)
        probs[near == 0] = np.eye(7)[hunt]
        return np.where((near < FAR)[..., None], probs, otherwise)

    stag, hare = slice(0, stags), slice(stags, None)
    playing = (legal.sum(-1) > 1)[
        ..., None
    ]  # a hunter that has left, or whose board has ended, can only STAY
    stag_else_stay, hare_else_stay = nearest(stag, HUNT_STAG, stay), nearest(hare, HUNT_HARE, stay)
    return {
        "NS": np.where(playing, nearest(stag, HUNT_STAG, hare_else_stay), stay),
        "NH": np.where(playing, nearest(hare, HUNT_HARE, stag_else_stay), stay),
    }


def sample_actions(probs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw actions by inversion. probs: float [..., 7]; uniform: float [...] in [0, 1). Returns: int8 [...]."""
    cumulative = np.cumsum(probs, -1)
    below = (
        uniform[..., None] * cumulative[..., -1:] < cumulative
    )  # scaled: rounding cannot push past the last one
    return below.argmax(-1).astype(np.int8)


def random_actions(env: StagHunt, rng: np.random.Generator) -> np.ndarray:
    """Uniform over each hunter's legal actions, without forming probabilities. Returns: int8 [B, A]."""
    codes = env.legal_codes()
    return _NTH_LEGAL.take(codes * np.intp(_LCM) + rng.integers(0, _LCM, codes.shape, dtype=np.uint16))


def parse_team(text: str, co_players: int) -> tuple[str, ...]:
    """`1NS2NH` -> ("NS", "NH", "NH"); `mixed` and `self` -> (). Raises: ValueError: another form or number."""
    if text in ("mixed", "self"):
        return ()
    parts = re.findall(r"(\d+)([A-Z]+)", text)
    names = tuple(name for count, name in parts for _ in range(min(int(count), 99)))
    if "".join(map("".join, parts)) != text or len(names) != co_players or not set(names) <= set(STRATEGIES):
        raise ValueError(
            f"co-players: expected mixed, self, or {co_players} co-players of {', '.join(STRATEGIES)} "
            f"such as {co_players}NS, got {text!r}"
        )
    return names
