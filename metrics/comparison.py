"""Who earns what with whom: a policy beside its rivals, with each team, on the same boards.

`play(policy, team, seed, **how)` plays whole boards and returns arrays [episodes, B], see `metrics.returns.summarize`; `how`
may hold boards, episodes, om (what the policy knows of the others) and plan (how it searches).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from envs.core import GameRules
from metrics import returns
from metrics.rivals import ScriptPolicy

Play = Callable[..., dict[str, np.ndarray]]


def standard_teams(co_players: str, rules: GameRules) -> list[str]:
    """What a policy is judged with: the co-players of its training first."""
    n = rules.hunters - 1
    one, other = rules.game.goals.values()
    named = [f"{n}{one}", f"1{one}{n - 1}{other}", f"{n - 1}{one}1{other}", f"{n}{other}"]
    if n < 2:
        named = [f"{n}{one}", f"{n}{other}"]
    return list(dict.fromkeys([co_players, *named, f"{n}RANDOM", "mixed"]))


def play_script(play: Play, rules: GameRules, team: str, seed: int, switch: int | None, **how: int) -> dict:
    """What `ScriptPolicy` earns with a team, and its `tick`, None for never."""
    results = play(ScriptPolicy(rules, switch), team, seed, om="none", **how)
    return returns.summarize(results) | {"tick": switch}


def switches(rules: GameRules) -> list[int | None]:
    """Ticks for a script to choose from: 0, 4, .. below the horizon, and never."""
    return [*range(0, rules.horizon, 4), None]


def best_switch(play: Play, rules: GameRules, team: str, seed: int, boards: int) -> int | None:
    """The one of `switches` with which `ScriptPolicy` earns most with a team.

    It remembers nothing, so one episode of each team will do.
    """
    key = "team" if team == "self" else "learner"
    how = dict(boards=boards, episodes=1)
    return max(switches(rules), key=lambda switch: play_script(play, rules, team, seed, switch, **how)[key])


def compare(
    play: Play,
    players: dict[str, dict[str, Any]],
    rules: GameRules,
    teams: list[str],
    seed: int,
    script_seed: int,
    script_boards: int,
) -> returns.Results:
    """Results of each player, and of two scripts, with each team on the same boards of `seed`.

    Args:
        players: name -> keywords of `play`, of which `policy` is one. `scripted_only`: not in self-play.
        script_seed, script_boards: of the boards on which the ticks of the scripts are chosen: `script` switches at the tick
            that is best with `mixed` co-players, `script_told` at the one that is best with each team.
    """
    names = dict.fromkeys(["mixed", *teams])
    switches = {team: best_switch(play, rules, team, script_seed, script_boards) for team in names}
    results: returns.Results = {}
    for team in teams:
        for name, how in players.items():
            if team == "self" and how.get("scripted_only"):
                continue
            keywords = {key: value for key, value in how.items() if key != "scripted_only"}
            summary = returns.summarize(play(team=team, seed=seed, **keywords))
            results.setdefault(name, {})[team] = summary
        ticks = {"script": switches["mixed"], "script_told": switches[team]}
        earned = {
            switch: play_script(play, rules, team, seed, switch) for switch in dict.fromkeys(ticks.values())
        }
        for name, switch in ticks.items():
            results.setdefault(name, {})[team] = earned[switch]
    order = dict.fromkeys([next(iter(players)), "script", "script_told", *players])
    return {name: results[name] for name in order if name in results}


def adapt(play: Play, policy: Any, teams: list[str], seed: int, boards: int, episodes: int = 10) -> dict:
    """Unknown co-players that stay in their seats: the learner's return by episode, team -> rows."""
    teams = [team for team in teams if team != "self"]
    played = {team: play(policy, team, seed, boards=boards, episodes=episodes) for team in teams}
    return {team: returns.by_episode(results["learner"]) for team, results in played.items()}
