"""The Gymnasium and PettingZoo views: what they return, when they reset, whose seat is whose."""

import importlib.util
import subprocess
import sys
import types
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import DictInfoToList
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

import envs
from envs import Rules, StagHunt, sample_actions, strategy_probs
from envs.stag_hunt import DOWN, HUNT_HARE, LEFT, RIGHT, STAY, UP
from envs.vector_env import StagHuntEnv, StagHuntVectorEnv

SMALL = dict(height=4, width=4, blocks=2, hares=2, horizon=9)
MOVES = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}
KEYS = (
    *(
        "action_mask",
        "seat",
        "tick",
        "ticks_left",
        "first_hunt",
        "active",
        "new_team",
        "joint_actions",
        "joint_rewards",
    ),
    *("hunters", "prey", "blocks", "distances", "strategy_ids"),
)


def make_vec(num_envs, env_id="StagHunt-v0", **keywords) -> StagHuntVectorEnv:
    return gymnasium.make_vec(env_id, num_envs=num_envs, **keywords)


def play(env, steps, seed=0, actions=None):
    """Reset with `seed`, then step with `actions` [steps, N] (random ones if None).

    A list of (obs, rewards, terminated, truncated, infos), None for what `reset` does not return.
    """
    if actions is None:
        actions = np.random.default_rng(5).integers(0, 7, (steps, env.num_envs))
    obs, infos = env.reset(seed=seed)
    return [(obs, None, None, None, infos), *(env.step(a) for a in actions)]


def nearest_prey(core, seats, name, rng):
    """What learners that play a strategy would do: int8 [N]."""
    probs = strategy_probs(core, [name], 0.1)[np.arange(core.num_boards), seats, 0]
    return sample_actions(probs, rng.random(core.num_boards))


# ---- Gymnasium: the contract


@pytest.mark.parametrize("render_mode", [None, "rgb_array", "ansi"])
def test_gymnasiums_own_checks_pass_without_a_warning(render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("StagHunt-v0", render_mode=render_mode).unwrapped)
        check_env(gymnasium.make("StagHunt-v0", **SMALL, prey_moves=0.5).unwrapped)
        for env_id in ("StagHunt-4x4-v0", "Snowdrift-v0"):
            check_env(gymnasium.make(env_id, render_mode=render_mode).unwrapped)


def test_make_vec_takes_the_batched_view_by_default():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_vec(8)
    assert type(env.unwrapped) is StagHuntVectorEnv and env.num_envs == env.unwrapped.core.num_boards == 8
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert StagHuntVectorEnv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    obs, infos = env.reset(seed=1)
    assert (
        obs in env.observation_space and env.observation_space.shape == (8, 5, 8, 8) and obs.dtype == np.uint8
    )
    actions = env.action_space.sample()
    assert actions in env.action_space
    obs, rewards, terminated, truncated, infos = env.step(actions)
    assert (
        obs in env.observation_space
        and infos["action_mask"].shape == (8, 7)
        and infos["action_mask"].dtype == np.int8
    )
    assert rewards.dtype == np.float32 and terminated.dtype == truncated.dtype == bool
    assert (
        rewards.shape
        == terminated.shape
        == truncated.shape
        == infos["seat"].shape
        == infos["tick"].shape
        == (8,)
    )


def test_the_mask_samples_legal_actions():
    env = gymnasium.make("StagHunt-v0", **SMALL)
    _, info = env.reset(seed=1)
    env.action_space.seed(1)
    for _ in range(200):
        action = env.action_space.sample(info["action_mask"])
        _, _, terminated, truncated, info = env.step(action)
        assert env.unwrapped.core.effective_actions[0, info["seat"]] == action
        if terminated or truncated:
            _, info = env.reset()


def test_the_mask_is_legality_as_the_observation_shows_it():
    for obs, *_, infos in play(make_vec(64, **SMALL), 30):
        for planes, mask in zip(obs, infos["action_mask"], strict=True):
            (row,), (col,) = np.nonzero(planes[0])  # the learner is on the board: its episode is running
            walls = np.pad(planes[2], 1, constant_values=1)
            free = {a: not walls[row + 1 + dr, col + 1 + dc] for a, (dr, dc) in MOVES.items()}
            expected = [*free.values(), True, planes[3, row, col], planes[4, row, col]]
            assert mask.tolist() == [int(x) for x in expected]


# ---- seeds


@pytest.mark.parametrize(
    "rules", [{}, {**SMALL, "prey_moves": 0.3, "end_after_first_hunt": 2}, dict(env_id="Snowdrift-4x4-v0")]
)
def test_a_board_does_not_depend_on_how_many_there_are(rules):
    env = make_vec(40, **rules)
    actions = np.random.default_rng(2).integers(0, env.single_action_space.n, (100, 40))
    many = play(env, 100, seed=7, actions=actions)
    few = play(make_vec(3, **rules), 100, seed=7, actions=actions[:, :3])
    np.testing.assert_array_equal(few[0][0], many[0][0][:3])
    ends = 0
    for a, b in zip(few[1:], many[1:], strict=True):
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y[:3])
        for key in KEYS:
            np.testing.assert_array_equal(a[4][key], b[4][key][:3])
        ends += int((a[2] | a[3]).sum())
    assert ends > 5


def test_the_same_seed_plays_the_same_and_another_does_not():
    env = make_vec(16)
    first, again, other = (play(env, 40, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first[1:], again[1:], strict=True):
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
    assert any((a[0] != b[0]).any() for a, b in zip(first, other, strict=True))


def test_without_a_seed_boards_are_fresh_and_go_on_in_their_streams():
    a, b = make_vec(4), make_vec(4)
    assert (a.reset()[0] != b.reset()[0]).any()
    a.reset(seed=1), b.reset(seed=1)
    first, second = a.reset()[0], b.reset()[0]
    np.testing.assert_array_equal(first, second)
    assert (first != a.reset()[0]).any()


@pytest.mark.parametrize(
    "rules", [{}, {**SMALL, "end_after_first_hunt": 1}, dict(env_id="Snowdrift-v0", layout="hop", horizon=9)]
)
def test_it_returns_what_gymnasiums_sync_vector_env_returns(rules):
    """One single view in Gymnasium's own SAME_STEP loop, and the batched view: keys, masks, shapes and values agree."""
    ours = make_vec(1, **rules)
    rules = {"id": rules.get("env_id", "StagHunt-v0")} | {k: v for k, v in rules.items() if k != "env_id"}
    theirs = SyncVectorEnv([lambda: gymnasium.make(**rules)], autoreset_mode="SameStep")
    actions = np.random.default_rng(3).integers(0, ours.single_action_space.n, (300, 1))
    ends = 0
    for a, b in zip(play(ours, 300, 9, actions), play(theirs, 300, 9, actions), strict=True):
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        if "final_obs" in a[4]:  # theirs are the new episode's, STAY
            for key in ("joint_actions", "joint_rewards"):
                b[4][key] = b[4]["final_info"][key]
            ends += 1
        same_infos(a[4], b[4])
    assert ends > 7


def same_infos(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, dict):
            same_infos(value, b[key])
        else:
            assert value.shape == b[key].shape and (value.dtype.kind == b[key].dtype.kind), key
            if value.dtype == object:
                assert [x is None for x in value] == [x is None for x in b[key]]
                value, other = np.stack(value[a["_" + key]]), np.stack(b[key][b["_" + key]])
                np.testing.assert_array_equal(value, other)
            else:
                np.testing.assert_array_equal(value, b[key], err_msg=key)


# ---- seats and co-players


def test_the_learners_seat_is_drawn_evenly_in_each_episode():
    env = make_vec(4000)
    _, infos = env.reset(seed=1)
    assert np.bincount(infos["seat"], minlength=4).tolist() == pytest.approx([1000] * 4, abs=4 * 27.4)
    one = StagHuntEnv(horizon=1)
    assert {one.reset(seed=1 if i == 0 else None)[1]["seat"] for i in range(40)} == {0, 1, 2, 3}


def test_the_observation_is_the_learners():
    env = make_vec(32)
    env.reset(seed=1)
    for action in np.random.default_rng(0).integers(0, 7, (20, 32)):
        obs, *_, infos = env.step(action)
        core = env.unwrapped.core
        np.testing.assert_array_equal(obs, [core.obs[i, seat] for i, seat in enumerate(infos["seat"])])
        assert (obs[:, 0].sum((1, 2)) == 1).all()


def co_player_probs(env, names, rotation):
    """For each board the exact probability of what each co-player then does under names[j], seats turned by rotation."""
    core, seats = env.unwrapped.core, env.unwrapped.seats.copy()
    probs, active, N = strategy_probs(core, names), core.active, env.num_envs
    env.step(np.full(N, STAY))
    rows = []
    for j in range(len(names)):
        seat = (seats + 1 + j + rotation) % core.rules.hunters
        p = probs[np.arange(N), seat, j, core.effective_actions[np.arange(N), seat]]
        rows.append(p[active[np.arange(N), seat] & (seat != seats)])
    return np.concatenate(rows)


def test_co_player_j_sits_j_plus_one_seats_after_the_learner():
    names = ("NS", "NH", "RANDOM")
    env = make_vec(200, co_players=names, epsilon=0.0)
    env.reset(seed=2)
    assert min(co_player_probs(env, names, 0).min() for _ in range(30)) > 0
    assert (co_player_probs(env, names, 1) == 0).mean() > 0.2  # one seat off would be noticed


def test_epsilon_is_how_often_co_players_stray():
    for epsilon, low, high in [(0.1, 0.03, 0.1), (1.0, 0.5, 0.9)]:
        env = make_vec(300, co_players=("NS",) * 3, epsilon=epsilon)
        env.reset(seed=2)
        strayed = np.concatenate([co_player_probs(env, ("NS",) * 3, 0) == 0 for _ in range(10)]).mean()
        assert low < strayed < high
    assert make_vec(1).unwrapped.epsilon == envs.DATA_EPSILON == 0.1


def test_the_default_co_players_fit_any_number_of_hunters():
    for hunters, names in [
        (1, ()),
        (2, ("NS",)),
        (4, ("NS", "NS", "NH")),
        (6, ("NS", "NS", "NH", "NS", "NS")),
    ]:
        env = make_vec(3, hunters=hunters, horizon=6)
        assert env.unwrapped.co_players == names
        play(env, 20)


def test_a_lone_learner_catches_its_hare():
    env = gymnasium.make("StagHunt-v0", hunters=1, stags=0, hares=1, blocks=0, height=1, width=2)
    obs, info = env.reset(seed=1)
    env.step(RIGHT if obs[0, 0, 0] else LEFT)
    obs, reward, terminated, truncated, info = env.step(HUNT_HARE)
    assert (reward, terminated, truncated, info["tick"]) == (1.0, True, False, 2)
    assert obs[0].sum() == 0 and info["action_mask"].tolist() == [0, 0, 0, 0, 1, 0, 0]


# ---- the end of an episode


def test_the_episode_ends_with_the_learner_and_the_last_observation_is_kept():
    env, rng = make_vec(64, co_players=("NS",) * 3), np.random.default_rng(0)
    env.reset(seed=4)
    core, kinds = env.unwrapped.core, set()
    for _ in range(150):
        seats = env.unwrapped.seats.copy()
        before = core.copy()
        _, rewards, terminated, truncated, infos = env.step(nearest_prey(core, seats, "NS", rng))
        done = terminated | truncated
        assert not (terminated & truncated).any() and (rewards[truncated] == 0).all()
        assert ("final_obs" in infos) == done.any()
        assert (infos["tick"][done] == 0).all() and (infos["tick"][~done] == before.tick[~done] + 1).all()
        if not done.any():
            continue
        before.step(core.effective_actions)  # the boards as they were before the reset
        np.testing.assert_array_equal(infos["_final_obs"], done)
        np.testing.assert_array_equal(infos["_final_info"], done)
        for i in range(64):
            if done[i]:
                np.testing.assert_array_equal(infos["final_obs"][i], before.obs[i, seats[i]])
                assert (
                    infos["final_info"]["tick"][i] == before.tick[i]
                    and infos["final_info"]["seat"][i] == seats[i]
                )
                assert infos["final_obs"][i][0].sum() == (0 if terminated[i] else 1)
                kinds.add((bool(terminated[i]), float(rewards[i])))
            else:
                assert infos["final_obs"][i] is None and not infos["final_info"]["_tick"][i]
        assert (before.tick[truncated] == 35).all()
    assert {(True, 5.0), (True, 1.0)} <= kinds


def test_a_learner_that_never_hunts_is_truncated_at_the_horizon():
    env = make_vec(50, horizon=6)
    steps = play(env, 12, actions=np.full((12, 50), STAY))
    for tick, (_, rewards, terminated, truncated, infos) in enumerate(steps[1:], 1):
        assert (
            not terminated.any()
            and truncated.all() == truncated.any() == (tick % 6 == 0)
            and not rewards.any()
        )
        if truncated.any():
            assert (infos["final_info"]["tick"] == 6).all() and (infos["tick"] == 0).all()


def test_a_board_ended_by_the_first_hunt_is_terminated_and_counts_down():
    env = gymnasium.make("StagHunt-v0", co_players=("NH",) * 3, epsilon=0.0, end_after_first_hunt=2)
    counts = []
    for episode in range(10):
        _, info = env.reset(seed=episode)
        assert info["ticks_left"] == -1
        terminated, left = False, []
        while not terminated:
            _, reward, terminated, truncated, info = env.step(STAY)
            assert not truncated and reward == 0.0
            left.append(info["ticks_left"])
        counts.append(left[-3:])
    assert counts == [[2, 1, 0]] * 10


def test_boards_can_be_reset_by_hand():
    env, rng = StagHuntVectorEnv(20, autoreset_mode="Disabled", **SMALL), np.random.default_rng(1)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(20, int))
    auto = make_vec(20, **SMALL)
    env.reset(seed=1), auto.reset(seed=1)
    for _ in range(40):
        actions = rng.integers(0, 7, 20)
        obs, rewards, terminated, truncated, infos = env.step(actions)
        expected = auto.step(actions)
        done = terminated | truncated
        np.testing.assert_array_equal(rewards, expected[1])
        if done.any():
            with pytest.raises(ResetNeeded):
                env.step(actions)
            np.testing.assert_array_equal(obs[done], np.stack(expected[4]["final_obs"][done]))
            obs, infos = env.reset(options={"reset_mask": done})
        np.testing.assert_array_equal(obs, expected[0])
        np.testing.assert_array_equal(infos["seat"], expected[4]["seat"])


def test_what_is_returned_is_not_changed_by_later_steps():
    env = make_vec(16, **SMALL)
    env.reset(seed=1)
    steps, copies = [], []
    for action in np.random.default_rng(0).integers(0, 7, (40, 16)):
        *arrays, infos = env.step(action)
        flat = [*arrays, *(infos[key] for key in KEYS)]
        steps.append(flat), copies.append([x.copy() for x in flat])
    for kept, copied in zip(steps, copies, strict=True):
        for x, y in zip(kept, copied, strict=True):
            np.testing.assert_array_equal(x, y)


# ---- RecordEpisodeStatistics tells the truth


def test_vector_statistics_are_the_true_returns_and_lengths():
    env, rng = RecordVectorStatistics(make_vec(32), buffer_length=10_000), np.random.default_rng(0)
    env.reset(seed=1)
    returns, lengths, by_hand = np.zeros(32), np.zeros(32, int), []
    for _ in range(300):
        core, seats = env.unwrapped.core, env.unwrapped.seats
        _, rewards, terminated, truncated, infos = env.step(nearest_prey(core, seats, "NS", rng))
        returns, lengths = returns + rewards, lengths + 1
        done = terminated | truncated
        assert ("episode" in infos) == done.any()
        if done.any():
            np.testing.assert_array_equal(infos["_episode"], done)
            np.testing.assert_array_equal(infos["episode"]["r"][done], returns[done])
            np.testing.assert_array_equal(infos["episode"]["l"][done], lengths[done])
            np.testing.assert_array_equal(infos["final_info"]["tick"][done], lengths[done])
            by_hand += zip(returns[done], lengths[done], strict=True)
            returns[done] = lengths[done] = 0
    assert list(zip(env.return_queue, env.length_queue, strict=True)) == by_hand and len(by_hand) > 500
    assert {5.0, 1.0} <= {float(r) for r, _ in by_hand} and len({length for _, length in by_hand}) > 5


def test_single_statistics_are_the_true_returns_and_lengths():
    env, rng = RecordEpisodeStatistics(gymnasium.make("StagHunt-v0")), np.random.default_rng(0)
    by_hand = []
    for episode in range(50):
        env.reset(seed=episode)
        total, length, over = 0.0, 0, False
        while not over:
            core = env.unwrapped.core
            seat = env.unwrapped._batch.seats
            _, reward, terminated, truncated, info = env.step(nearest_prey(core, seat, "NH", rng)[0])
            total, length, over = total + reward, length + 1, terminated or truncated
        assert (info["episode"]["r"], info["episode"]["l"]) == (total, length)
        by_hand.append(total)
    assert list(env.return_queue) == by_hand and max(by_hand) > 0


def test_infos_convert_to_a_list():
    env = DictInfoToList(make_vec(3, **SMALL))
    _, infos = env.reset(seed=1)
    assert [set(info) for info in infos] == [set(KEYS)] * 3


# ---- errors


@pytest.mark.parametrize(
    "keywords, message",
    [
        (dict(co_players=("NS",)), "co_players: expected 3 names for 4 hunters"),
        (
            dict(co_players="NS"),
            "co-players: expected mixed, self, or 3 co-players of NS, NH, RANDOM such as 3NS",
        ),
        (dict(co_players=("NS", "NS", "XX")), "co_players: unknown strategy 'XX'"),
        (dict(epsilon=1.5), "epsilon must be in"),
        (dict(rules=Rules(), hunters=3), "not both: hunters"),
        (dict(hunters=0), "rules: hunters"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(keywords, message):
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(ValueError, match=message) as caught:
            make("StagHunt-v0", **keywords)
        assert "\n" not in str(caught.value)


def test_an_unknown_render_mode_is_an_error():
    for make in (StagHuntEnv, StagHuntVectorEnv):
        with pytest.raises(ValueError, match="unknown render_mode 'vhs': choose from rgb_array, ansi"):
            make(render_mode="vhs")
    with pytest.raises(ValueError, match="NEXT_STEP"):
        StagHuntVectorEnv(2, autoreset_mode="NextStep")


def test_rules_are_taken_whole_or_by_keyword():
    rules = Rules(**SMALL)
    for env in (
        StagHuntEnv(rules),
        StagHuntEnv(**SMALL),
        gymnasium.make("StagHunt-v0", rules=rules).unwrapped,
    ):
        assert env.core.rules == rules


@pytest.mark.parametrize("action", [7, -1, 260])
def test_an_action_out_of_range_is_an_error_and_changes_nothing(action):
    env, vector = StagHuntEnv(), make_vec(2)
    env.reset(seed=1), vector.reset(seed=1)
    before = env.core.state
    with pytest.raises(ValueError, match=r"must be in 0\.\.6"):
        env.step(action)
    with pytest.raises(ValueError, match=r"must be in 0\.\.6"):
        vector.step(np.array([0, action]))
    assert env.core.state.counter == before.counter and env.core.state.tick == 0


def test_actions_of_another_kind_are_an_error():
    env, vector = StagHuntEnv(), make_vec(2)
    env.reset(seed=1), vector.reset(seed=1)
    for action in (1.5, None, [1, 2], 1 + 0j, "1", np.array([1])):
        with pytest.raises(ValueError, match=r"action: expected a whole number in 0\.\.6, got "):
            env.step(action)
    for actions in (np.zeros(3, int), np.zeros(2), 0, np.zeros(2, complex), [[1], [1, 2]]):
        with pytest.raises(ValueError, match="expected integers of shape"):
            vector.step(actions)


def test_a_step_needs_a_running_episode():
    env = StagHuntEnv(horizon=1)
    for wrong in (
        lambda: env.step(STAY),
        StagHuntEnv(render_mode="ansi").render,
        lambda: make_vec(2).step(np.zeros(2, int)),
    ):
        with pytest.raises(ResetNeeded, match="call reset"):
            wrong()
    env.reset(seed=1)
    assert env.step(STAY)[3]
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(STAY)
    env.reset()
    env.step(STAY)


def test_wrong_seeds_and_masks_are_errors():
    env = make_vec(2)
    for seed in ([1], [1, -2], 1.5, -1):
        with pytest.raises(ValueError, match="seed"):
            env.reset(seed=seed)
    with pytest.raises(ValueError, match="reset all boards once"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(seed=1)
    for mask in (np.array([True]), np.array([1, 0])):
        with pytest.raises(ValueError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="seed"):
        env.reset(seed=1, options={"reset_mask": np.array([True, False])})


# ---- rendering of the views


def test_views_render():
    pictures = make_vec(3, render_mode="rgb_array")
    pictures.reset(seed=1)
    frames = pictures.render()
    assert isinstance(frames, tuple) and [f.shape for f in frames] == [frames[0].shape] * 3
    one = gymnasium.make("StagHunt-v0", render_mode="rgb_array")
    one.reset(seed=1)
    np.testing.assert_array_equal(one.render(), frames[0])
    letters = make_vec(2, render_mode="ansi")
    _, infos = letters.reset(seed=1)
    assert all(f"{seat}*" in board for board, seat in zip(letters.render(), infos["seat"], strict=True))
    assert make_vec(2).render() is None and StagHuntEnv().render() is None


# ---- PettingZoo


@pytest.fixture
def zoo():
    return pytest.importorskip("pettingzoo.test")


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {**SMALL, "prey_moves": 0.5},
        {"end_after_first_hunt": 2, "layout": "hop"},
        dict(game="Snowdrift-v0"),
        dict(rules=envs.make_rules("StagHunt-4x4-v0")[0]),
    ],
)
def test_pettingzoos_own_checks_pass_without_a_warning(zoo, rules):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.parallel_api_test(envs.parallel_env(**rules), num_cycles=200)
        zoo.parallel_seed_test(lambda: envs.parallel_env(**rules), num_cycles=100)


def test_the_parallel_view_plays_the_core_and_agents_leave_with_their_hunters(zoo):
    env, core, rng, gone = envs.parallel_env(), StagHunt(1), np.random.default_rng(0), 0
    assert env.possible_agents == ["hunter_0", "hunter_1", "hunter_2", "hunter_3"] and env.agents == []
    for seed in range(20):
        obs, infos = env.reset(seed=seed)
        core.reset(seed=seed)
        while env.agents:
            players = list(env.agents)
            assert players == [f"hunter_{seat}" for seat in np.flatnonzero(core.active[0])]
            assert set(players) <= set(obs)
            joint = sample_actions(strategy_probs(core, ["NS"], 0.1)[0, :, 0], rng.random(4))
            legal = core.legal_actions()[0]
            for agent in players:
                assert infos[agent]["action_mask"].tolist() == legal[int(agent[-1])].astype(int).tolist()
            obs, rewards, terminated, truncated, infos = env.step({a: joint[int(a[-1])] for a in players})
            planes, r, over, cut = core.step(joint[None])
            for result, expected in ((obs, planes), (rewards, r), (terminated, over), (truncated, cut)):
                assert list(result) == players
                for agent in players:
                    np.testing.assert_array_equal(result[agent], expected[0, int(agent[-1])])
            np.testing.assert_array_equal(env.state(), [*planes[0, :, 0], *planes[0, 0, 2:]])
            gone += sum(terminated.values())
        assert core.ended[0]
    assert gone > 40


@pytest.mark.parametrize("game", ["StagHunt-v0", "Snowdrift-v0"])
def test_parallel_observations_in_hop_layout_have_the_observer_first(zoo, game):
    plain, hop = envs.parallel_env(game=game), envs.parallel_env(game=game, layout="hop")
    plain.reset(seed=4)
    obs, _ = hop.reset(seed=4)
    for seat, agent in enumerate(hop.agents):
        assert obs[agent] in hop.observation_space(agent)
        seats = (seat + np.arange(4)) % 4
        expected = np.concatenate([plain.state()[seats], plain.state()[4:]])  # [A+1+k, H, W]
        np.testing.assert_array_equal(np.moveaxis(obs[agent], -1, 0), expected)
    with pytest.raises(ValueError, match="unknown layout 'rows'"):
        envs.parallel_env(layout="rows")


def test_agents_of_the_snowdrift_stay_to_the_end(zoo):
    env = envs.parallel_env(game="Snowdrift-v0", height=4, width=4, horizon=60)
    assert env.metadata["name"] == "snowdrift_v0"
    env.reset(seed=1)
    total = dict.fromkeys(env.agents, 0.0)
    while env.agents:
        assert env.agents == env.possible_agents
        joint = strategy_probs(env.core, ["ND"])[0, :, 0].argmax(1)
        _, rewards, terminated, _, _ = env.step(dict(zip(env.agents, joint, strict=True)))
        total = {agent: total[agent] + reward for agent, reward in rewards.items()}
    assert all(terminated.values()) and np.mean(list(total.values())) == pytest.approx(30.0)


def test_parallel_observations_are_copies(zoo):
    env = envs.parallel_env()
    obs, _ = env.reset(seed=1)
    kept = {agent: planes.copy() for agent, planes in obs.items()}
    for _ in range(5):
        env.step({agent: UP for agent in env.agents})
    assert all((obs[agent] == kept[agent]).all() for agent in obs)


def test_parallel_errors(zoo):
    env = envs.parallel_env(horizon=1)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step({})
    env.reset(seed=1)
    good = {agent: STAY for agent in env.agents}
    for wrong, message in [
        ({**good, "hunter_9": STAY}, "no such agent: hunter_9"),
        ({"hunter_0": STAY}, "none for hunter_1, hunter_2, hunter_3"),
        ({**good, "hunter_1": 7}, r"hunter_1: must be in 0\.\.6, got 7"),
        ({**good, "hunter_1": 1 + 0j}, r"hunter_1: expected a whole number in 0\.\.6, got \(1\+0j\)"),
        ({**good, "hunter_2": 1.0}, r"hunter_2: expected a whole number in 0\.\.6, got 1\.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            env.step(wrong)
    assert env.core.tick[0] == 0
    good["hunter_3"] = np.array(STAY)  # as a policy of one agent returns it
    assert all(env.step(good)[3].values()) and env.agents == []
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step({})
    with pytest.raises(ValueError, match="unknown render_mode"):
        envs.parallel_env(render_mode="vhs")


def test_the_parallel_view_renders(zoo):
    env = envs.parallel_env(render_mode="ansi")
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(seed=1)
    assert "tick 0/35" in env.render()
    env = envs.parallel_env(render_mode="rgb_array")
    env.reset(seed=1)
    assert env.render().dtype == np.uint8 and envs.parallel_env().render() is None


def test_without_pettingzoo_only_parallel_env_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    with pytest.raises(ImportError, match="pip install pettingzoo"):
        envs.parallel_env()


def test_importing_envs_needs_neither_pettingzoo_nor_torch():
    code = "import sys, envs; sys.exit(bool({'pettingzoo', 'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_stag_is_shared_through_the_vector_view():
    """Two hunters on a board of three cells: a learner and an NS take the stag together, 5 each."""
    env, rng = (
        make_vec(20, hunters=2, hares=0, blocks=0, height=1, width=3, epsilon=0.0),
        np.random.default_rng(0),
    )
    env.reset(seed=1)
    rewards = np.zeros(20)
    for _ in range(12):
        seats, core = env.unwrapped.seats, env.unwrapped.core
        _, reward, terminated, _, _ = env.step(nearest_prey(core, seats, "NS", rng))
        rewards = np.maximum(rewards, reward)
        assert (reward[terminated] == 5.0).all() and not reward[~terminated].any()
    assert (rewards == 5.0).all()


# ---- habits from Gymnasium and PettingZoo


def test_a_list_of_seeds_has_one_for_each_row():
    """Each row then plays what the single environment plays under its seed."""
    seeds = [7, 3, 7]
    vector = make_vec(3, co_players="mixed")
    obs, _ = vector.reset(seed=seeds)
    actions = np.array([UP, LEFT, UP])
    after = vector.step(actions)[0]
    for row, seed in enumerate(seeds):
        one = StagHuntEnv(co_players="mixed")
        np.testing.assert_array_equal(one.reset(seed=seed)[0], obs[row])
        np.testing.assert_array_equal(one.step(actions[row])[0], after[row])
    np.testing.assert_array_equal(obs[0], obs[2])
    np.testing.assert_array_equal(vector.reset(seed=np.array(seeds))[0], obs)
    mixed = vector.reset(seed=[7, None, None])[0]
    np.testing.assert_array_equal(mixed[0], obs[0])
    assert (mixed[1] != mixed[2]).any()


def test_in_self_play_the_rows_of_a_board_have_the_same_seed():
    vector = make_vec(8, co_players="self", episode="board")
    obs, _ = vector.reset(seed=[5] * 4 + [6] * 4)
    np.testing.assert_array_equal(obs[:4], make_vec(4, co_players="self", episode="board").reset(seed=5)[0])
    with pytest.raises(ValueError, match="the rows of a board must have the same"):
        vector.reset(seed=[5] * 3 + [6] * 5)


@pytest.mark.parametrize("seeds", [[1], [1, 2.0], "ab", [1, "2"], 1.5, [[1], [2]]])
def test_wrong_seeds_are_refused_and_change_nothing(seeds):
    vector = make_vec(2)
    before, _ = vector.reset(seed=1)
    with pytest.raises(ValueError, match="for each of 2 rows"):
        vector.reset(seed=seeds)
    np.testing.assert_array_equal(vector.reset(options={"reset_mask": np.zeros(2, bool)})[0], before)


class FakePygame(types.SimpleNamespace):
    """As much of pygame as a window needs; `shown` are the pictures, [h, w, 3]."""

    def __init__(self):
        self.shown, self.closed, self.fps = [], 0, []
        screen = types.SimpleNamespace(blit=lambda surface, at: self.shown.append(surface.swapaxes(0, 1)))
        self.display = types.SimpleNamespace(init=lambda: None, set_caption=lambda title: None, flip=lambda: None,
                                             set_mode=self.open, quit=self.close)  # fmt: skip
        self.surfarray = types.SimpleNamespace(make_surface=lambda array: array)
        self.event = types.SimpleNamespace(pump=lambda: None)
        self.time = types.SimpleNamespace(Clock=lambda: types.SimpleNamespace(tick=self.fps.append))
        self.screen = screen

    def open(self, size):
        self.size = size
        return self.screen

    def close(self):
        self.closed += 1


def test_a_board_is_shown_in_a_window(monkeypatch):
    pygame = FakePygame()
    monkeypatch.setitem(sys.modules, "pygame", pygame)
    env = StagHuntEnv(render_mode="human", height=6)
    pictures = StagHuntEnv(render_mode="rgb_array", height=6)
    for one in (env, pictures):
        one.reset(seed=1)
    first = pictures.render()
    for one in (env, pictures):
        one.step(UP)
    assert env.render() is None and len(pygame.shown) == 2 and pygame.fps == [4, 4]
    np.testing.assert_array_equal(pygame.shown[0], first)
    np.testing.assert_array_equal(pygame.shown[1], pictures.render())
    assert pygame.size == first.shape[1::-1]
    env.close()
    env.close()
    assert pygame.closed == 1


def test_the_window_is_declared_where_there_is_pygame(zoo):
    """Gymnasium's checks try what is declared."""
    there = importlib.util.find_spec("pygame") is not None
    for view in (StagHuntEnv, envs.parallel_env()):
        assert ("human" in view.metadata["render_modes"]) == there
    assert "human" not in StagHuntVectorEnv.metadata["render_modes"]


def test_without_pygame_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)  # as if it were not installed
    with pytest.raises(
        DependencyNotInstalled, match=r"^render_mode=.human. needs pygame: pip install pygame$"
    ):
        StagHuntEnv(render_mode="human")


def test_the_parallel_view_is_shown_in_a_window(zoo, monkeypatch):
    pygame = FakePygame()
    monkeypatch.setitem(sys.modules, "pygame", pygame)
    env = envs.parallel_env(render_mode="human")
    env.reset(seed=1)
    env.step(dict.fromkeys(env.agents, STAY))
    env.close()
    assert len(pygame.shown) == 2 and env.render() is None and pygame.closed == 1


def test_the_games_are_registered_with_pettingzoo(zoo):
    pettingzoo = pytest.importorskip("pettingzoo", "1.27")
    import envs.pettingzoo_env

    assert set(envs.REGISTERED) <= set(pettingzoo.parallel_registry)
    env = pettingzoo.make("parallel", "StagHunt-hidden-v0", hares=1, render_mode="ansi")
    obs, _ = env.reset(seed=4)
    assert env.core.rules == envs.make_rules("StagHunt-hidden-v0", ["hares=1"])[0] and len(obs) == 3
    pettingzoo.register("parallel", "mine-v0", entry_point="envs:parallel_env", kwargs=dict(hunters=2))
    assert len(pettingzoo.make("parallel", "mine-v0").possible_agents) == 2
