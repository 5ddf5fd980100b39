"""metrics/returns.py, rivals.py, comparison.py: returns of policies and of those they are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hop_ppo
from envs import Rules, make_core, snowdrift, strategy_probs
from envs.game import RIGHT, STAY
from envs.grid import FAR
from metrics import returns
from metrics.comparison import adapt, best_switch, standard_teams
from metrics.rivals import ScriptPolicy, uniform_policy

SMALL = Rules(height=5, width=5, blocks=3, hares=3, horizon=14)


def fake_results(learner: float, team: float) -> dict[str, np.ndarray]:
    """One episode of four boards that all return the same."""
    values = dict(learner=learner, team=team, length=0.0, stags=0.0, hares=0.0)
    return {key: np.full((1, 4), value) for key, value in values.items()}


# ---- returns


def test_summarize_by_hand():
    """Two episodes of three boards; the interval is of the boards' means, here 2, 4 and 9: standard deviation 13 ** 0.5."""
    learner = np.array([[1.0, 4.0, 8.0], [3.0, 4.0, 10.0]])
    episodes = dict(
        learner=learner,
        team=2 * learner,
        length=learner + 1,
        stags=learner > 3,
        hares=learner * 0,
    )
    half = 1.96 * 13**0.5 / 3**0.5
    expected = dict(learner=5.0, learner_ci95=half, team=10.0, team_ci95=2 * half)
    expected |= dict(episodes=6, length=6.0, stags=4 / 6, hares=0.0)
    assert returns.summarize(episodes) == pytest.approx(expected)


def test_rows_of_a_table_keep_the_name_of_the_team():
    figures = dict(learner=1.0, learner_ci95=0.1, team=2.0, team_ci95=0.2, episodes=8)
    rows = returns.table_rows({"teams": {"3NS": figures, "3NH": figures}, "random": {"3NS": figures}})
    names = [(row.pop("policy"), row.pop("team")) for row in rows]
    assert names == [("teams", "3NS"), ("teams", "3NH"), ("random", "3NS")]
    renamed = dict(learner=1.0, learner_ci95=0.1, team_return=2.0, team_return_ci95=0.2, episodes=8)
    assert rows == [renamed] * 3


def test_lines_show_ticks_returns_and_adaptation():
    figures = dict(learner=1.0, learner_ci95=0.25, team=2.0, team_ci95=0.5, episodes=8)
    results = {"teams": {"self": figures, "3NS": figures}}
    results["script"] = {"self": figures | {"tick": None}, "3NS": figures | {"tick": 4}}
    results["script_told"] = results["script"]
    results["plan"] = {"3NS": figures | {"episodes": 4}}  # does not play with `self`
    adaptation = {"3NS": [dict(episode=1, learner=0.5), dict(episode=2, learner=0.75)]}
    lines = returns.lines(results, adaptation, "NS until a tick, then NH", 2001, 3001)
    assert lines[0] == "script: NS until a tick, chosen on boards of seed 2001, then NH: self never, 3NS 4"
    assert lines[2].startswith("returns on fresh boards of seed 3001") and lines[2].endswith(": 8, plan 4")
    assert lines[3].split() == ["teams", "script", "script_told", "plan"]
    assert lines[4].split() == ["self", "learner"] + ["1.000", "±", "0.250"] * 3
    assert lines[5].split() == ["team"] + ["2.000", "±", "0.500"] * 3
    assert lines[6].split() == ["3NS", "learner"] + ["1.000", "±", "0.250"] * 4
    assert lines[-1] == "3NS, the same co-players for 2 episodes: 0.50 0.75"


# ---- rivals


def boards_at_tick_4():
    """24 boards of self-play after random actions. Returns: the environment, its infos, what each hunter sees."""
    envs = hop_ppo.make_envs(SMALL, 24, "self")
    infos = hop_ppo.to_tensors(envs.reset(seed=3)[1])
    torch.manual_seed(3)
    for _ in range(4):
        actions = hop_ppo.sample((infos["action_mask"].float() + 1e-9).log())
        infos = hop_ppo.to_tensors(envs.step(actions.numpy())[-1])
    return envs, infos, hop_ppo.observe_envs(infos, SMALL)


@pytest.mark.parametrize(("switch", "name"), [(0, "NH"), (4, "NH"), (5, "NS"), (None, "NS")])
def test_script_policy_plays_the_strategies_exactly(switch, name):
    """On boards at tick 4, beside the strategies of the game; None: never."""
    envs, infos, obs = boards_at_tick_4()
    expected = strategy_probs(envs.core, [name])[:, :, 0]
    live = (infos["active"][::4] & ~torch.as_tensor(envs.core.ended)[:, None]).numpy()  # [24, 4]
    probs = ScriptPolicy(SMALL, switch)(obs)[0].exp().view(24, 4, 7)
    np.testing.assert_allclose(probs[live], expected[live], atol=1e-12)


def test_the_script_of_the_snowdrift_waits_on_a_drift():
    """Two drifts in a row of five cells, the agent on the first. Until its tick it stays; then it removes; where its drift
    has gone, it goes on to the next."""
    rules = snowdrift.Rules(agents=1, drifts=2, height=1, width=5, horizon=10)
    policy = ScriptPolicy(rules, 4)

    def most_likely(cell: int, drifts: list[int], tick: int) -> int:
        infos = hop_ppo.to_tensors(hop_ppo.make_envs(rules, 1, "self").reset(seed=1)[1])
        fields = (
            np.abs(np.arange(5) - np.array(drifts)[:, None])
            + np.where(np.array(drifts) == 5, FAR, 0)[:, None]
        )
        there = dict(hunters=[[cell]], prey=[drifts], tick=[tick], distances=fields[None])
        infos |= {key: torch.tensor(np.array(value)) for key, value in there.items()}
        probs = policy(hop_ppo.observe_envs(infos, rules))[0].exp()
        assert probs.max() == probs.sum() == 1.0
        return int(probs.argmax())

    assert most_likely(0, [0, 3], 3) == STAY
    assert most_likely(0, [0, 3], 4) == snowdrift.REMOVE
    assert most_likely(0, [5, 3], 3) == most_likely(0, [5, 3], 4) == RIGHT
    assert most_likely(0, [5, 5], 9) == STAY


def test_uniform_policy_is_uniform_over_legal_actions():
    *_, obs = boards_at_tick_4()
    logprobs, value = uniform_policy(obs)
    assert value is None
    num_legal = obs.action_mask.sum(1, keepdim=True)
    torch.testing.assert_close(logprobs.exp(), obs.action_mask / num_legal)


# ---- comparison


def test_standard_teams_begin_with_the_co_players_of_the_training():
    teams = ["3NS", "1NS2NH", "2NS1NH", "3NH", "3RANDOM", "mixed"]
    assert standard_teams("3RANDOM", Rules()) == ["3RANDOM", *teams[:4], "mixed"]
    assert standard_teams("self", Rules()) == ["self", *teams]
    assert standard_teams("mixed", Rules(hunters=2)) == ["mixed", "1NS", "1NH", "1RANDOM"]
    assert standard_teams("mixed", Rules(hunters=3)) == ["mixed", "2NS", "1NS1NH", "2NH", "2RANDOM"]
    drifts = ["3ND", "1ND2FIX", "2ND1FIX", "3FIX", "3RANDOM", "mixed"]
    assert standard_teams("self", snowdrift.Rules()) == ["self", *drifts]


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [
        (35, [*range(0, 33, 4), 35]),
        (33, [*range(0, 33, 4), 33]),
        (32, [*range(0, 29, 4), 32]),
        (3, [0, 3]),
    ],
)
def test_switch_ticks_stop_at_the_horizon(horizon, expected):
    tried = []

    def play(policy, team, seed, boards, episodes, om):
        assert (team, seed, boards, episodes, om) == ("mixed", 2001, 7, 1, "none")
        tried.append(policy.switch)
        return fake_results(learner=float(policy.switch == horizon), team=-1.0)

    assert best_switch(play, Rules(horizon=horizon), "mixed", 2001, 7) is None
    assert tried == expected


def test_self_play_chooses_the_switch_tick_by_the_return_of_the_team():
    by_switch = {
        0: (1.0, 2.0),
        4: (3.0, 1.0),
        8: (2.0, 3.0),
        9: (0.0, 0.0),
    }  # learner (seat 0), team; 9: never

    def play(policy, team, seed, **how):
        return fake_results(*by_switch[policy.switch])

    assert best_switch(play, Rules(horizon=9), "self", 2001, 7) == 8
    assert best_switch(play, Rules(horizon=9), "3NS", 2001, 7) == 4


def test_adaptation_by_hand():
    """Two episodes of three boards: means 2 and 5, standard deviations 1 and 3. Not with `self`."""
    plays, learner = [], np.array([[1.0, 2.0, 3.0], [2.0, 5.0, 8.0]])

    def play(*args, **how):
        plays.append((*args, how))
        return dict(learner=learner)

    adaptation = adapt(play, "agent", ["self", "3NH"], 3001, 3)
    assert plays == [("agent", "3NH", 3001, dict(boards=3, episodes=10))]
    assert list(adaptation) == ["3NH"]
    for i, (mean, deviation) in enumerate([(2.0, 1.0), (5.0, 3.0)]):
        half = 1.96 * deviation / 3**0.5
        assert adaptation["3NH"][i] == pytest.approx(dict(episode=i + 1, learner=mean, learner_ci95=half))


def test_returns_tell_who_removes():
    """Beside a count of the removals on 40 boards, each shared one by halves or less."""
    rules = snowdrift.Rules(height=3, width=3, drifts=4, horizon=20)
    env, rng = make_core(40, rules), np.random.default_rng(1)
    env.reset(seed=3)
    paid, own, removed = np.zeros((40, 4)), np.zeros(40), np.zeros(40)
    for _ in range(20):
        cell = env.hunters.copy()
        before = (env.prey >= rules.cells).sum(1)
        _, rewards, _, _ = env.step(rng.integers(0, 6, (40, 4)))
        paid += rewards
        removes = env.effective_actions == snowdrift.REMOVE
        together = (removes & (cell == cell[:, :1])).sum(1)
        own += np.where(removes[:, 0], 1 / together.clip(1), 0)
        removed += (env.prey >= rules.cells).sum(1) - before
    figures = dict(learner=paid[:, 0].mean(), team=paid.mean(), drifts=removed.mean())
    found = returns.removals(figures, rules)
    assert 0.5 < own.mean() < 2.0
    assert found == pytest.approx(
        dict(removed=removed.mean(), by_learner=own.mean(), share=own.mean() / removed.mean())
    )
    with pytest.raises(ValueError, match="removals: expected the snowdrift with a cost"):
        returns.removals(figures, snowdrift.Rules(cost=0.0))
