"""Which games there are: by their id, in a file's metadata, on a command line."""

import gymnasium
import numpy as np
import pytest

from envs import GAMES, Rules, make_rules, rules_of, snowdrift, stag_hunt
from envs.game import Game, Strategy, game_of
from envs.games import REGISTERED
from envs.scripted import parse_team

DRIFTS = snowdrift.GAME.metadata()
RULES = "agents, drifts, blocks, height, width, horizon, reward, cost"


def test_what_is_registered_plays_by_the_rules_it_says():
    small = dict(hunters=4, stags=1, hares=4, end_after_first_hunt=5)
    expected = {
        "StagHunt-v0": Rules(),
        "StagHunt-4x4-v0": Rules(**small, blocks=0, height=4, width=4),
        "StagHunt-6x6-v0": Rules(**small, blocks=2, height=6, width=6),
        "Snowdrift-v0": snowdrift.Rules(),
        "Snowdrift-6x6-v0": snowdrift.Rules(height=6, width=6, horizon=25),
        "Snowdrift-4x4-v0": snowdrift.Rules(height=4, width=4, horizon=15),
    }
    for env_id, rules in expected.items():
        assert make_rules(env_id) == (rules, {})
    for env_id in REGISTERED:
        rules, settings = make_rules(env_id)
        env = gymnasium.make(env_id).unwrapped
        assert env.core.rules == rules and GAMES[rules.game.id] is type(rules)
        obs, info = env.reset(seed=1)
        assert obs.shape == (3 + rules.game.kinds, rules.height, rules.width)
        assert info["action_mask"].shape == (rules.game.num_actions,)
        assert settings.get("co_players") in (None, env.co_players)
        vector = gymnasium.make_vec(env_id, num_envs=2)
        assert vector.unwrapped.rules == rules and type(vector.unwrapped.rules) is type(rules)
    for env_id in ("StagHunt-hidden-v0", "Snowdrift-hidden-v0"):
        assert make_rules(env_id)[1] == dict(co_players="mixed", team_episodes=10)
    hidden = snowdrift.Rules(agents=2, drifts=3, height=4, width=4, horizon=12, cost=5.0)
    assert make_rules("Snowdrift-hidden-v0")[0] == hidden


def test_rules_are_replaced_by_name():
    rules, _ = make_rules("Snowdrift-4x4-v0", ["agents=3", "cost=2.5", "reward=7"])
    assert rules == snowdrift.Rules(agents=3, cost=2.5, reward=7.0, height=4, width=4, horizon=15)
    rules, _ = make_rules("StagHunt-4x4-v0", ["end_after_first_hunt=none", "prey_moves=0.5"])
    assert rules == Rules(blocks=0, height=4, width=4, prey_moves=0.5)
    assert make_rules("StagHunt-v0", ["end_after_first_hunt=3"])[0].end_after_first_hunt == 3
    env = gymnasium.make("Snowdrift-v0", drifts=3)
    assert env.unwrapped.core.rules == snowdrift.Rules(drifts=3)
    rules = snowdrift.Rules(agents=2)
    assert gymnasium.make("Snowdrift-v0", rules=rules).unwrapped.core.rules == rules


UNCONNECTED = "no board of 1x40 with 20 blocks came up connected in 10,000 draws"


@pytest.mark.parametrize(
    ("env_id", "env_args", "message"),
    [
        ("Chess-v0", [], f"unknown game 'Chess-v0': choose from {', '.join(REGISTERED)}"),
        ("Snowdrift-v0", ["stags=2"], f"unknown rule 'stags' of Snowdrift-v0: choose from {RULES}"),
        ("Snowdrift-v0", ["game=x"], f"unknown rule 'game' of Snowdrift-v0: choose from {RULES}"),
        ("Snowdrift-v0", ["cells=9"], f"unknown rule 'cells' of Snowdrift-v0: choose from {RULES}"),
        ("Snowdrift-v0", ["height"], "expected name=value such as height=4, got 'height'"),
        ("Snowdrift-v0", ["height=4.0"], "height: expected a whole number, got '4.0'"),
        ("Snowdrift-v0", ["cost=dear"], "cost: expected a number, got 'dear'"),
        ("Snowdrift-v0", ["cost=none"], "cost: expected a number, got 'none'"),
        ("StagHunt-v0", ["end_after_first_hunt=soon"], "end_after_first_hunt: expected a whole number, got 'soon'"),
        ("StagHunt-v0", ["height=1"], "rules: 14 hunters, prey and blocks do not fit on 1x8 = 8 cells"),
        ("StagHunt-v0", ["stags=56"], "rules: 69 hunters, prey and blocks do not fit on 8x8 = 64 cells"),
        ("Snowdrift-4x4-v0", ["blocks=3", "drifts=10"], "rules: 17 hunters, prey and blocks do not fit on 4x4 = 16 cells"),
        ("Snowdrift-4x4-v0", ["width=40", "height=1", "blocks=20"], UNCONNECTED),
        ("Snowdrift-4x4-v0", ["drifts=0"], "rules: drifts must be a whole number of at least 1, got 0"),
    ],
)  # fmt: skip
def test_wrong_games_and_rules_are_told_in_one_line(env_id, env_args, message):
    with pytest.raises(ValueError) as error:
        make_rules(env_id, env_args)
    assert str(error.value) == message


def test_rules_of_a_file():
    assert rules_of(dict(rules=dict(stags=2))) == Rules(stags=2)
    assert rules_of(dict(rules=dict(gravity=9.8))) == Rules(), "files of other programs hold more"
    assert rules_of(dict(game=DRIFTS, rules=dict(drifts=3))) == snowdrift.Rules(drifts=3)
    assert rules_of(dict(game=stag_hunt.GAME.metadata(), rules=dict(stags=2))) == Rules(stags=2)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (dict(), "rules: expected the rules of StagHunt-v0, got None"),
        (dict(game=DRIFTS), "rules: expected the rules of Snowdrift-v0, got None"),
        (dict(game=DRIFTS, rules=[1]), r"rules: expected the rules of Snowdrift-v0, got \[1\]"),
        (dict(game=DRIFTS, rules=dict(stags=2)), "unknown rule 'stags' of Snowdrift-v0"),
        (dict(game=DRIFTS, rules=dict(drifts="3")), "drifts must be a whole number"),
        (dict(game=DRIFTS, rules=dict(cost="3")), "rules: .*'cost': '3'"),
        (dict(game=DRIFTS | dict(id="Chess-v0"), rules={}), "game: expected one of .*, got 'Chess-v0'"),
        (dict(game=7, rules={}), "game: expected one of .*, got 7"),
        (dict(game=DRIFTS | dict(prey=["STAGS"]), rules={}), "strategy ND chases DRIFTS"),
        (
            dict(game=DRIFTS | dict(leaves=True), rules={}),
            "game: Snowdrift-v0 is described otherwise than here: leaves",
        ),
    ],
)
def test_files_that_this_code_cannot_play_are_refused(metadata, message):
    with pytest.raises(ValueError, match=message) as error:
        rules_of(metadata)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("game", [stag_hunt.GAME, snowdrift.GAME], ids=lambda game: game.name)
def test_a_game_is_read_back_from_its_metadata(game):
    assert game_of(game.metadata()) == game
    assert game.metadata()["planes"] == list(game.planes)
    for wrong in (None, [1, 2], "Snowdrift-v0", {}):
        with pytest.raises(ValueError, match="not a description of a game"):
            game_of(wrong)
    for part in set(game.metadata()) - {"planes", "actions"}:
        with pytest.raises(ValueError, match=f"not a description of a game: no '{part}'"):
            game_of({key: value for key, value in game.metadata().items() if key != part})


def test_planes_and_actions_of_a_file_are_those_of_its_game():
    with pytest.raises(ValueError, match=r"expected planes SELF, .*, DRIFTS, got \['SELF', 'HEAPS'\]"):
        game_of(DRIFTS | dict(planes=["SELF", "HEAPS"]))
    with pytest.raises(ValueError, match=r"expected actions UP, .*, REMOVE, got .*'JUMP'"):
        game_of(DRIFTS | dict(actions=[*DRIFTS["actions"], "JUMP"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(takes=()), "an action for each"),
        (dict(prey=tuple("abcd"), takes=tuple("efgh")), "1 to 3 kinds"),
        (dict(takes=("STAY",)), "different names"),
        (dict(goals=dict(remove="XY")), "goal remove names XY"),
        (dict(strategies=dict(ND=Strategy(("STAGS",)))), "ND chases STAGS"),
    ],
)
def test_games_whose_parts_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Game(**{**vars(snowdrift.GAME), **change})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("3ND", ("ND", "ND", "ND")),
        ("1ND2FIX", ("ND", "FIX", "FIX")),
        ("2ND1FIX", ("ND", "ND", "FIX")),
        ("1ND1FIX1RANDOM", ("ND", "FIX", "RANDOM")),
        ("mixed", ()),
        ("self", ()),
    ],
)
def test_teams_of_the_snowdrift(text, names):
    assert parse_team(text, 3, snowdrift.GAME) == names


def test_teams_with_random_play():
    assert parse_team("1NS1NH1RANDOM", 3) == ("NS", "NH", "RANDOM")
    assert parse_team("2NS1RANDOM", 3) == ("NS", "NS", "RANDOM")


@pytest.mark.parametrize("text", ["3NS", "2ND", "4ND", "ND", "3nd", "3ND ", "", "1ND2", "3XX", "99999999ND"])
def test_other_teams_are_told_in_one_line(text):
    with pytest.raises(ValueError) as error:
        parse_team(text, 3, snowdrift.GAME)
    wanted = "expected mixed, self, or 3 co-players of ND, FIX, RANDOM such as 3ND"
    assert str(error.value) == f"co-players: {wanted}, got {text!r}"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(game="Chess-v0"), "unknown game 'Chess-v0'"),
        (dict(rules=Rules()), "rules: expected those of Snowdrift-v0, got those of StagHunt-v0"),
        (dict(co_players="3NS"), "co-players of ND, FIX, RANDOM"),
        (dict(co_players=("ND", "NS", "ND")), "unknown strategy 'NS': choose from ND, FIX, RANDOM"),
        (dict(drifts=0), "drifts must be"),
    ],
)
def test_wrong_settings_of_a_view_are_told_in_one_line(keywords, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec("Snowdrift-v0", num_envs=2, **keywords)


def test_actions_beyond_those_of_the_game_are_refused():
    env = gymnasium.make_vec("Snowdrift-v0", num_envs=2)
    env.reset(seed=1)
    with pytest.raises(ValueError, match=r"must be in 0\.\.5, got 0 to 6"):
        env.step(np.array([0, 6]))
    single = gymnasium.make("Snowdrift-v0").unwrapped
    single.reset(seed=1)
    with pytest.raises(ValueError, match=r"action: must be in 0\.\.5, got 6"):
        single.step(6)
    with pytest.raises(ValueError, match=r"must be in 0\.\.5, got 4 to 6"):
        single.core.step(np.array([[4, 4, 4, 6]]))
