"""The games that there are: their rules by name, and what is registered with Gymnasium.

A third game of the family is one module such as `envs/snowdrift.py` and its lines here: see CONTRIBUTING.md.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from envs import snowdrift, stag_hunt
from envs.core import GameRules, make_core
from envs.game import Game, any_game_of, game_of

GAMES: dict[str, type[Any]] = {
    stag_hunt.GAME.id: stag_hunt.Rules,
    snowdrift.GAME.id: snowdrift.Rules,
}

DEFAULT_GAME = stag_hunt.GAME.id

_SMALL_HUNT = dict(game=stag_hunt.GAME.id, hunters=4, stags=1, hares=4, end_after_first_hunt=5)

# Id -> the keyword arguments of its environments: `game`, rules, and settings of `envs.vector_env.BoardVectorEnv`.
REGISTERED: dict[str, dict[str, Any]] = {
    "StagHunt-v0": dict(game=stag_hunt.GAME.id),
    # Of the games that were tried on boards of this size, the one where knowing the co-players is worth
    # most: a stag takes all three and pays each 5, and a tick after the first capture all is over.
    # See docs/hop_ppo.md.
    "StagHunt-hidden-v0": dict(
        game=stag_hunt.GAME.id,
        hunters=3,
        stags=2,
        hares=2,
        hunters_needed=3,
        stag_reward=15.0,
        end_after_first_hunt=1,
        co_players="mixed",
        team_episodes=10,
    ),
    "StagHunt-4x4-v0": dict(**_SMALL_HUNT, blocks=0, height=4, width=4),
    "StagHunt-6x6-v0": dict(**_SMALL_HUNT, blocks=2, height=6, width=6),
    "Snowdrift-v0": dict(game=snowdrift.GAME.id),
    # Of the settings that `python -m benchmarks.worth --sweep` drew, the one where knowing the co-player is worth most: to
    # remove a drift alone pays 6 - 5, to wait for the other 6, and there are twelve ticks. See docs/hop_ppo.md.
    "Snowdrift-hidden-v0": dict(
        game=snowdrift.GAME.id,
        agents=2,
        drifts=3,
        height=4,
        width=4,
        horizon=12,
        cost=5.0,
        co_players="mixed",
        team_episodes=10,
    ),
    "Snowdrift-6x6-v0": dict(game=snowdrift.GAME.id, height=6, width=6, horizon=25),
    "Snowdrift-4x4-v0": dict(game=snowdrift.GAME.id, height=4, width=4, horizon=15),
}


def rules_of(metadata: dict[str, Any]) -> GameRules:
    """The rules that a file's metadata holds: `rules`, of the game `game`; without `game`, the stag hunt's.

    Raises: ValueError: no game that this code can play, no rules, or some that are not the game's or out of range.
    """
    described = metadata.get("game")
    game_id = DEFAULT_GAME if described is None else _id_of(described)
    rules_class = GAMES[game_id]
    values = metadata.get("rules")
    if not isinstance(values, dict):
        raise ValueError(f"rules: expected the rules of {game_id}, got {values!r}")
    if described is None:  # files of other programs may hold more
        values = {name: value for name, value in values.items() if name in _names(rules_class)}
    _check_names(values, rules_class, game_id)
    return _make(rules_class, values)


def make_rules(env_id: str, env_args: Sequence[str] = ()) -> tuple[GameRules, dict[str, Any]]:
    """The rules of a registered game, some of them replaced, and its other settings (co_players, team_episodes).

    Args: env_args: such as `height=4`; `none` is None.
    Raises: ValueError: an unknown game or rule, a value that is not of its type or out of range, or rules by which no
    board can be drawn.
    """
    if env_id not in REGISTERED:
        raise ValueError(f"unknown game {env_id!r}: choose from {', '.join(REGISTERED)}")
    keywords = dict(REGISTERED[env_id])
    rules_class = GAMES[keywords.pop("game")]
    names = _names(rules_class)
    values = {name: value for name, value in keywords.items() if name in names}
    settings = {name: value for name, value in keywords.items() if name not in names}
    hints = typing.get_type_hints(rules_class)
    for text in env_args:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"expected name=value such as height=4, got {text!r}")
        _check_names([name], rules_class, env_id)
        values[name] = _parse(name, value, hints[name])
    rules = _make(rules_class, values)
    if (
        env_args
    ):  # blocks that all but surely cut a board in pieces are found here, not in the middle of a run
        make_core(1, rules).reset(seed=0)
    return rules, settings


def game_of_env(env_id: str, keywords: dict[str, Any]) -> Game | None:
    """The game that an environment of this package plays, by its registered id and keyword arguments; else None."""
    if env_id not in REGISTERED:
        return None
    rules_class = GAMES.get(keywords.get("game") or REGISTERED[env_id]["game"])
    return None if rules_class is None else rules_class.game


def env_id_of(rules: GameRules) -> str:
    """The registered id of these rules; of others, the id of their game."""
    for env_id in REGISTERED:
        if make_rules(env_id)[0] == rules:
            return env_id
    return rules.game.id


def is_as_here(game: Any) -> bool:
    """Whether a game of one of our ids is the one that this version plays; those of other ids are what they are."""
    return game.id not in GAMES or game == GAMES[game.id].game


def is_of_network(described: Any, saved: dict) -> bool:
    """Whether it is the metadata of a game as this version knows it, and of what a network's `saved["sizes"]` say."""
    try:
        game = any_game_of(described)
    except ValueError:
        return False
    sizes = {name: saved["sizes"].get(name, getattr(game, name)) for name in ("kinds", "goal_kinds")}
    fits = sizes == dict(kinds=game.kinds, goal_kinds=game.goal_kinds)
    return described == game.metadata() and fits and is_as_here(game)


def _id_of(described: Any) -> str:
    """Of `metadata.game`. Raises: ValueError: it does not describe one of GAMES as this code knows it."""
    game_id = described.get("id") if isinstance(described, dict) else described
    if not isinstance(game_id, str) or game_id not in GAMES:
        raise ValueError(f"game: expected one of {', '.join(GAMES)}, got {game_id!r}")
    game = game_of(described)
    ours = GAMES[game_id].game
    different = [
        field.name for field in fields(Game) if getattr(game, field.name) != getattr(ours, field.name)
    ]
    if different:
        raise ValueError(f"game: {game_id} is described otherwise than here: {', '.join(different)}")
    return game_id


def _names(rules_class: type) -> list[str]:
    """Of its rules."""
    return [field.name for field in fields(rules_class)]


def _check_names(names: Sequence[str] | dict[str, Any], rules_class: type, game_id: str) -> None:
    """Raises: ValueError: one is no rule of the game."""
    for name in names:
        if name not in _names(rules_class):
            raise ValueError(
                f"unknown rule {name!r} of {game_id}: choose from {', '.join(_names(rules_class))}"
            )


def _make(rules_class: type, values: dict[str, Any]) -> GameRules:
    """Raises: ValueError: a value is of a wrong type or out of range."""
    try:
        return rules_class(**values)
    except TypeError as error:  # of values that cannot be compared, such as a text
        raise ValueError(f"rules: {error}, got {values}") from None


def _parse(name: str, text: str, wanted: Any) -> Any:
    """A rule's value. wanted: int, float, or one of them or None."""
    choices = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if type(None) in choices and text.lower() == "none":
        return None
    number = float if float in choices else int
    try:
        return number(text)
    except ValueError:
        expected = "a number" if number is float else "a whole number"
        raise ValueError(f"{name}: expected {expected}, got {text!r}") from None
