"""What a game of this family is made of, as data: what lies on its boards, what agents can do, who they can be.

Agents walk on a board with blocks. Things lie on its cells, of one or more kinds (stags and hares, or snowdrifts), and for
each kind there is one action that takes a thing of it, from its own cell. Throughout the code agents are called hunters
and things prey, whatever the game. What happens when prey is taken is the game's own: `rules.resolve` in its module.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

UP, DOWN, LEFT, RIGHT, STAY = range(5)
MOVES = ("UP", "DOWN", "LEFT", "RIGHT", "STAY")
OWN_PLANES = ("SELF", "OTHERS", "BLOCKS")
MAX_NAMES = 127  # actions are int8
MAX_KINDS = 3  # the actions that are legal on a cell fit one byte


@dataclass(frozen=True)
class Strategy:
    """A scripted policy: go for the nearest prey of the first kind that is left, and take it; where none is left,
    do as `otherwise` says."""

    chases: tuple[str, ...] = ()
    """planes of the kinds of prey, in this order"""
    otherwise: Literal["stay", "walk", "any"] = "stay"
    """STAY; uniform over legal moves and STAY; uniform over all legal actions"""


@dataclass(frozen=True)
class Game:
    """A game of the family, as `metadata.game` of a trajectory file holds it.

    Raises:
        ValueError: the parts do not fit one another.
    """

    id: str
    """of its environment, such as `StagHunt-v0`"""
    name: str
    """in the names of files, such as `stag_hunt`"""
    prey: tuple[str, ...]
    """the plane of each kind of prey"""
    takes: tuple[str, ...]
    """for each kind the action that takes it: legal where such a prey is on the hunter's cell"""
    leaves: bool
    """whether hunters that take a prey leave the board with it"""
    strategies: dict[str, Strategy]
    """the scripted policies by name"""
    goals: dict[str, str]
    """goal -> the strategy that pursues it"""

    def __post_init__(self) -> None:
        if not 1 <= len(self.prey) <= MAX_KINDS or len(self.prey) != len(self.takes):
            raise ValueError(f"game: expected 1 to {MAX_KINDS} kinds of prey and an action for each")
        names = [*self.planes, *self.actions]
        if len(set(names)) != len(names):
            raise ValueError(f"game: planes and actions must have different names, got {', '.join(names)}")
        for name, strategy in self.strategies.items():
            unknown = set(strategy.chases) - set(self.prey)
            if unknown:
                raise ValueError(f"game: strategy {name} chases {min(unknown)}, which is no kind of prey")
        for goal, name in self.goals.items():
            if name not in self.strategies:
                raise ValueError(f"game: goal {goal} names {name}, which is no strategy")

    @property
    def kinds(self) -> int:
        """Kinds of prey."""
        return len(self.prey)

    @property
    def planes(self) -> tuple[str, ...]:
        """Of an observation: SELF, OTHERS, BLOCKS and each kind of prey."""
        return OWN_PLANES + self.prey

    @property
    def actions(self) -> tuple[str, ...]:
        return MOVES + self.takes

    @property
    def num_actions(self) -> int:
        return len(self.actions)

    @property
    def goal_kinds(self) -> tuple[int, ...]:
        """For each goal the kind of prey that it pursues first, -1: none."""
        chases = [self.strategies[name].chases for name in self.goals.values()]
        return tuple(self.prey.index(planes[0]) if planes else -1 for planes in chases)

    def metadata(self) -> dict[str, Any]:
        """Plain values for `metadata.game`; `game_of` reads them back."""
        return asdict(self) | dict(planes=list(self.planes), actions=list(self.actions))


@dataclass(frozen=True)
class OtherGame:
    """A game outside the family, of which a file says no more than what its planes and actions are called.

    Raises:
        ValueError: names are missing, or not different.
    """

    id: str
    planes: tuple[str, ...]
    """of an observation, which is an agent's own view"""
    actions: tuple[str, ...]
    kinds: ClassVar[int] = 0
    leaves: ClassVar[bool] = False
    goals: ClassVar[dict[str, str]] = {}
    goal_kinds: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        for names in (self.planes, self.actions):
            if not 1 <= len(names) <= MAX_NAMES or len(set(names)) != len(names):
                raise ValueError(f"game: expected 1 to {MAX_NAMES} planes and actions, of different names")

    @property
    def num_actions(self) -> int:
        return len(self.actions)

    def metadata(self) -> dict[str, Any]:
        """Plain values for `metadata.game`; `any_game_of` reads them back."""
        return dict(id=self.id, planes=list(self.planes), actions=list(self.actions))


def any_game_of(metadata: Any) -> Game | OtherGame:
    """As `game_of`; a description without `prey`, but with `planes` and `actions`, is of a game outside the family.

    Raises:
        ValueError: a part is missing, of a wrong type, or does not fit the others.
    """
    if not isinstance(metadata, dict) or "prey" in metadata or not {"planes", "actions"} <= metadata.keys():
        return game_of(metadata)
    planes, actions = metadata["planes"], metadata["actions"]
    if not all(isinstance(names, (list, tuple)) for names in (planes, actions)):
        raise ValueError("game: expected `planes` and `actions` as lists of names")
    return OtherGame(str(metadata.get("id", "")), tuple(map(str, planes)), tuple(map(str, actions)))


def game_of(metadata: dict[str, Any]) -> Game:
    """The game that `Game.metadata()` describes, whether or not this version of the code can play it.

    Raises:
        ValueError: a part is missing, of a wrong type, or does not fit the others.
    """
    try:
        strategies = {
            str(name): Strategy(tuple(map(str, values["chases"])), values["otherwise"])
            for name, values in metadata["strategies"].items()
        }
        game = Game(
            id=str(metadata["id"]),
            name=str(metadata["name"]),
            prey=tuple(map(str, metadata["prey"])),
            takes=tuple(map(str, metadata["takes"])),
            leaves=bool(metadata["leaves"]),
            strategies=strategies,
            goals={str(goal): str(name) for goal, name in metadata["goals"].items()},
        )
    except KeyError as error:
        raise ValueError(f"game: not a description of a game: no {error}") from None
    except (TypeError, AttributeError):
        raise ValueError(f"game: not a description of a game: {str(metadata)[:100]}") from None
    for part, names in dict(planes=list(game.planes), actions=list(game.actions)).items():
        found = metadata.get(part, names)  # they follow from the others
        if found != names:
            raise ValueError(f"game: expected {part} {', '.join(names)}, got {found}")
    return game
