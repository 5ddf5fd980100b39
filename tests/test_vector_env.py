"""The vector environment: teams, whole boards, self-play, layouts, and going on after a stop."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from envs import STRATEGIES, Rules, StagHunt, joint_to_hop, planes_to_joint, sample_actions, strategy_probs
from envs.stag_hunt import HUNT_HARE, STAY
from envs.vector_env import LEARNER, StagHuntVectorEnv

SMALL = Rules(height=4, width=4, blocks=2, hares=2, horizon=9)
MOVING = Rules(height=5, width=5, prey_moves=0.3, end_after_first_hunt=1, horizon=12)
BOARDS, TICKS = 12, 50
INFOS = ("tick", "first_hunt", "active", "hunters", "prey", "blocks", "distances", "ticks_left")


def make(num_envs, **keywords) -> StagHuntVectorEnv:
    return gymnasium.make_vec("StagHunt-v0", num_envs=num_envs, **keywords)


def look(env):
    """Obs and infos, without a reset."""
    return env.reset(options={"reset_mask": np.zeros(env.num_envs, bool)})


# ---- a slow reference: one board at a time


class OneBoard:
    """Board `index` of `reset(seed)`, one core of one board, its draws written out."""

    def __init__(self, index, rules, team, team_episodes, seed):
        self.core, self.team, self.team_episodes = StagHunt(1, rules), team, team_episodes
        self.core.reset(seed=seed, first_board=index)
        self.strategies = [LEARNER] * rules.hunters
        self.seat = 0
        self.seat_team()

    def seat_team(self):
        self.episodes = 1
        if self.team == "self":
            return
        hunters = self.core.rules.hunters
        first, *rest = self.core.uniform(hunters)[0]
        self.seat = int(first * hunters)
        self.strategies = [LEARNER] * hunters
        if self.team == "mixed":
            names = ["NH" if draw < 0.5 else "NS" for draw in rest]
        elif isinstance(self.team, tuple):
            names = self.team
        else:  # "1NS2NH": the smallest draw's place is given the first of them
            count = {name: int(self.team.split(name)[0][-1]) for name in STRATEGIES if name in self.team}
            names = [name for name, number in count.items() for _ in range(number)]
            names = [names[k] for k in np.argsort(rest)]
        for j, name in enumerate(names):
            self.strategies[(self.seat + 1 + j) % hunters] = STRATEGIES.index(name)

    def step(self, actions):
        """actions: the learner's, or all. Returns: rewards, terminated, truncated, each [A], and what was done."""
        joint = list(actions)
        if self.team != "self":
            probs = strategy_probs(self.core, STRATEGIES, 0.1)[0]
            probs = np.stack([probs[k, max(self.strategies[k], 0)] for k in range(len(probs))])
            joint = sample_actions(probs, self.core.uniform(len(probs))[0])
            joint[self.seat] = actions[0]
        _, *results = self.core.step(np.array([joint]))
        return *(result[0] for result in results), self.core.effective_actions[0]

    def reset(self) -> bool:
        """A new episode, from the next multiple of 2**32 in the stream. Returns: is the team new?"""
        self.core.counter[:] = (int(self.core.counter[0]) // 2**32 + 1) * 2**32
        self.core.reset(boards=np.array([True]))
        if self.episodes < self.team_episodes:
            self.episodes += 1
            return False
        self.seat_team()
        return True


CASES = [
    ("mixed", "learner", 3),
    ("mixed", "board", 1),
    ("3NS", "learner", 2),
    ("1NS2NH", "board", 3),
    ("2NS1RANDOM", "learner", 1),
    (("NS", "NH", "RANDOM"), "learner", 2),
    ("self", "board", 1),
]


@pytest.mark.parametrize("rules", [SMALL, MOVING])
@pytest.mark.parametrize(("team", "episode", "team_episodes"), CASES)
def test_vector_env_plays_as_one_board_at_a_time(rules, team, episode, team_episodes):
    """Both autoreset modes, tick by tick: rewards, ends, seats, strategies and boards."""
    rows = rules.hunters if team == "self" else 1
    keywords = dict(rules=rules, co_players=team, episode=episode, team_episodes=team_episodes)
    manual = make(BOARDS * rows, autoreset_mode="Disabled", **keywords)
    auto = make(BOARDS * rows, **keywords)
    manual.reset(seed=7), auto.reset(seed=7)
    boards = [OneBoard(i, rules, team, team_episodes, 7) for i in range(BOARDS)]
    ends = 0
    for actions in np.random.default_rng(1).integers(0, 7, (TICKS, BOARDS, rows)):
        expected, done = [], []
        for board, chosen in zip(boards, actions, strict=True):
            rewards, terminated, truncated, joint = board.step(chosen)
            done.append(board.core.ended[0])
            if episode == "learner":
                done[-1] = terminated[board.seat] | truncated[board.seat]
                ended_by = terminated[board.seat], truncated[board.seat]
            else:
                ended_by = done[-1] & ~truncated.any(), truncated.any()
            learners = slice(None) if team == "self" else slice(board.seat, board.seat + 1)
            expected += [(reward, *ended_by, *joint) for reward in rewards[learners]]
        new_teams = [bool(over and board.reset()) for board, over in zip(boards, done, strict=True)]
        mask = np.repeat(done, rows)
        ends += mask.sum()
        for env in (manual, auto):
            obs, *results, infos = env.step(actions.ravel())
            found = np.column_stack([*results, infos["joint_actions"]])
            np.testing.assert_array_equal(found, np.array(expected))
            if env is manual:
                assert not infos["new_team"].any()
                obs, infos = env.reset(options={"reset_mask": mask})
            seats = [s for board in boards for s in (range(rows) if rows > 1 else [board.seat])]
            np.testing.assert_array_equal(infos["seat"], seats)
            np.testing.assert_array_equal(infos["new_team"], np.repeat(new_teams, rows))
            strategies = np.repeat([board.strategies for board in boards], rows, 0)
            np.testing.assert_array_equal(infos["strategy_ids"], strategies)
            planes = np.concatenate([board.core.obs for board in boards])
            np.testing.assert_array_equal(env.planes(), planes)
            np.testing.assert_array_equal(obs, planes.repeat(rows, 0)[np.arange(len(seats)), seats])
            legal = np.concatenate([board.core.legal_actions() for board in boards])
            legal = legal.repeat(rows, 0)[np.arange(len(seats)), seats]
            np.testing.assert_array_equal(infos["action_mask"], legal)
            for key in INFOS:
                values = [getattr(board.core, key) for board in boards]
                values = [value() if key == "distances" else value for value in values]
                np.testing.assert_array_equal(infos[key], np.concatenate(values).repeat(rows, 0), err_msg=key)
    assert ends > 2 * BOARDS


def test_infos_have_documented_shapes_and_dtypes():
    for team, rows, episode in (("mixed", 1, "learner"), ("self", 4, "board")):
        env = make(8, rules=SMALL, co_players=team, episode=episode)
        assert (env.num_boards, env.rows_per_board, env.seats.shape) == (8 // rows, rows, (8,))
        _, infos = env.reset(seed=1)
        assert (infos["joint_actions"] == STAY).all() and infos["new_team"].all()
        for _ in range(12):
            arrays = {key: value for key, value in infos.items() if not key.lstrip("_").startswith("final")}
            masks = {key: arrays.pop(key) for key in list(arrays) if key[0] == "_"}
            found = {key: (value.dtype.name, value.shape) for key, value in arrays.items()}
            assert found == {
                "action_mask": ("int8", (8, 7)),
                "seat": ("int64", (8,)),
                "tick": ("int64", (8,)),
                "ticks_left": ("int64", (8,)),
                "first_hunt": ("int64", (8,)),
                "active": ("bool", (8, 4)),
                "new_team": ("bool", (8,)),
                "joint_actions": ("int8", (8, 4)),
                "joint_rewards": ("float32", (8, 4)),
                "hunters": ("int64", (8, 4)),
                "prey": ("int64", (8, 3)),
                "blocks": ("bool", (8, 16)),
                "distances": ("int16", (8, 3, 16)),
                "strategy_ids": ("int64", (8, 4)),
            }
            assert masks.keys() == {f"_{key}" for key in found}
            assert all(mask.tolist() == [True] * 8 for mask in masks.values())
            *_, infos = env.step(np.full(8, HUNT_HARE))


# ---- whole boards


def test_ended_boards_stand_still_until_they_are_reset():
    env = make(40, rules=MOVING, co_players="3NH", episode="board", autoreset_mode="Disabled")
    env.reset(seed=1)
    last = None
    for _ in range(MOVING.horizon + 3):
        _, rewards, terminated, truncated, infos = env.step(np.full(40, STAY))
        over = terminated | truncated
        assert not (terminated & truncated).any()
        if last is not None:
            ended = last.over
            assert not rewards[ended].any()
            np.testing.assert_array_equal(terminated[ended], last.terminated[ended])
            np.testing.assert_array_equal(truncated[ended], last.truncated[ended])
            for key in ("tick", "hunters", "prey"):
                np.testing.assert_array_equal(infos[key][ended], last.infos[key][ended])
            assert (infos["joint_actions"][ended] == STAY).all()
            assert (infos["action_mask"][ended] == np.eye(7)[STAY]).all()
        last = SimpleNamespace(over=over, terminated=terminated, truncated=truncated, infos=infos)
    assert last.over.all() and last.terminated.any()
    half = np.arange(40) < 20
    _, infos = env.reset(options={"reset_mask": half})
    assert (infos["tick"][half] == 0).all() and (infos["tick"][~half] == last.infos["tick"][~half]).all()
    _, _, terminated, truncated, infos = env.step(np.full(40, STAY))
    over = terminated | truncated
    assert over[~half].all() and not over[half].all() and (infos["tick"][half] == 1).all()


def test_a_learner_that_has_left_stays_and_earns_nothing_until_the_board_ends():
    rules = Rules(hunters=2, stags=0, hares=2, blocks=0, height=2, width=2, horizon=8)
    env = make(60, rules=rules, co_players=("RANDOM",), episode="board")
    env.reset(seed=1)
    rng, rows, after_leaving = np.random.default_rng(0), np.arange(60), 0
    active = np.ones(60, bool)
    for _ in range(60):
        seats = env.seats.copy()
        actions = np.where(active, rng.integers(0, 7, 60), 0)  # one that has left asks to walk
        _, rewards, terminated, truncated, infos = env.step(actions)
        assert not rewards[~active].any()
        assert (infos["joint_actions"][rows, seats][~active] == STAY).all()
        after_leaving += (~active & ~terminated & ~truncated).sum()
        active = infos["active"][rows, infos["seat"]]
    assert after_leaving > 30


def test_the_learners_end_needs_a_reset_where_whole_boards_do_not():
    rules = Rules(hunters=1, stags=0, hares=1, blocks=0, height=1, width=2, horizon=1)
    for episode in ("learner", "board"):
        env = make(3, rules=rules, episode=episode, autoreset_mode="Disabled")
        with pytest.raises(ResetNeeded):
            env.step(np.full(3, STAY))
        env.reset(seed=1)
        assert env.step(np.full(3, STAY))[3].all()
        if episode == "learner":
            with pytest.raises(ResetNeeded):
                env.step(np.full(3, STAY))
        else:
            assert env.step(np.full(3, STAY))[3].all() and (env.core.tick == 1).all()


# ---- self-play


def test_self_play_rows_are_the_hunters_of_whole_boards():
    env = make(12, rules=SMALL, co_players="self", episode="board")
    obs, infos = env.reset(seed=1)
    assert infos["seat"].tolist() == env.seats.tolist() == [0, 1, 2, 3] * 3
    assert (infos["strategy_ids"] == LEARNER).all() and env.strategy_ids.shape == (3, 4)
    np.testing.assert_array_equal(obs, env.core.obs.reshape(12, 5, 4, 4))
    with pytest.raises(ValueError, match="rows of a board must be equal"):
        env.reset(options={"reset_mask": np.arange(12) < 5})
    with pytest.raises(ValueError, match='give episode="board"'):
        make(12, rules=SMALL, co_players="self")
    with pytest.raises(ValueError, match="multiple of 4 hunters, got 10"):
        make(10, rules=SMALL, co_players="self", episode="board")


# ---- co-players that are a function


def test_co_players_may_be_a_function_of_the_core():
    asked = []

    def greedy(core):
        asked.append(core.tick.copy())
        return strategy_probs(core, ["NS"])[:, :, 0].argmax(-1)

    env = make(10, co_players=greedy, team_episodes=2)
    env.reset(seed=1)
    assert (env.strategy_ids == LEARNER).all() and len(set(env.seats.tolist())) > 1
    for _ in range(5):
        wanted = strategy_probs(env.core, ["NS"])[:, :, 0].argmax(-1)
        wanted[np.arange(10), env.seats] = STAY
        *_, infos = env.step(np.full(10, STAY))
        np.testing.assert_array_equal(infos["joint_actions"], wanted)
    assert len(asked) == 5


# ---- layouts


@pytest.mark.parametrize(("team", "rows"), [("mixed", 1), ("self", 4)])
def test_hop_layout_has_the_learner_first(team, rows):
    env = make(8, co_players=team, episode="board", layout="hop")
    obs, infos = env.reset(seed=1)
    for _ in range(20):
        joint = planes_to_joint(env.core.obs).repeat(rows, 0)
        np.testing.assert_array_equal(obs, joint_to_hop(joint, infos["seat"]))
        assert obs.dtype == np.uint8 and obs in env.observation_space
        obs, *_, infos = env.step(np.random.default_rng(1).integers(0, 7, 8))
    single = gymnasium.make("StagHunt-v0", layout="hop")
    assert single.reset(seed=1)[0].shape == single.observation_space.shape == (8, 8, 7)


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_without_a_layout_the_boards_are_the_same(mode):
    env, other = (
        make(8, co_players="mixed", layout=layout, autoreset_mode=mode) for layout in ("none", "planes")
    )
    obs, infos = env.reset(seed=1)
    others_infos = other.reset(seed=1)[1]
    ended = 0
    for _ in range(60):
        assert obs.shape == (8, 0) and obs in env.observation_space
        for key in INFOS:
            np.testing.assert_array_equal(infos[key], others_infos[key])
        actions = np.random.default_rng(1).integers(0, 7, 8)
        obs, *results, infos = env.step(actions)
        _, *others_results, others_infos = other.step(actions)
        np.testing.assert_array_equal(results, others_results)
        over = results[1] | results[2]
        ended += over.sum()
        if mode == "SameStep" and over.any():
            assert all(last.shape == (0,) for last in infos["final_obs"][over])
        elif over.any():
            obs, infos = env.reset(options={"reset_mask": over})
            others_infos = other.reset(options={"reset_mask": over})[1]
    assert ended > 0


# ---- stopping and going on


@pytest.mark.parametrize(
    ("team", "episode", "mode"),
    [("mixed", "learner", "SameStep"), ("2NS1NH", "board", "Disabled"), ("self", "board", "Disabled")],
)
def test_a_loaded_environment_goes_on_as_if_it_had_not_stopped(team, episode, mode):
    def fresh():
        return make(12, rules=MOVING, co_players=team, episode=episode, autoreset_mode=mode, team_episodes=2)

    def play(env, ticks):
        for actions in ticks:
            obs, *results, infos = env.step(actions)
            yield obs, *results, *(infos[key] for key in (*INFOS, "seat", "strategy_ids", "joint_actions"))
            over = results[1] | results[2]
            if mode == "Disabled" and over.all():
                env.reset(options={"reset_mask": over})

    ticks = np.random.default_rng(3).integers(0, 7, (60, 12))
    env, other = fresh(), fresh()
    env.reset(seed=5)
    list(play(env, ticks[:25]))
    state = env.state_dict()
    assert all(isinstance(value, np.ndarray) for value in state.values())
    kept = {key: value.copy() for key, value in state.items()}
    expected = list(play(env, ticks[25:]))
    other.load_state_dict(state)
    obs, infos = look(other)
    assert len(obs) == 12
    for key in ("joint_actions", "strategy_ids"):
        np.testing.assert_array_equal(infos[key], state[key].repeat(other.rows_per_board, 0))
    for a, b in zip(expected, play(other, ticks[25:]), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    for key, value in kept.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)


# ---- the registered games


@pytest.mark.parametrize("layout", ["planes", "hop", "none"])
@pytest.mark.parametrize("episode", ["learner", "board"])
@pytest.mark.filterwarnings("error")
def test_gymnasiums_checks_pass_for_the_hidden_game(layout, episode):
    check_env(gymnasium.make("StagHunt-hidden-v0", layout=layout, episode=episode).unwrapped)


def test_teams_of_the_hidden_game_are_mixed_and_stay_for_ten_episodes():
    env = gymnasium.make_vec("StagHunt-hidden-v0", num_envs=300)
    obs, infos = env.reset(seed=1)
    assert obs.shape == (300, 5, 8, 8) and env.core.rules.hunters_needed == 3
    ids = infos["strategy_ids"]
    assert abs(ids[ids != LEARNER].mean() - 0.5) < 0.1
    seats, new_teams, episodes = infos["seat"], 0, np.ones(300, int)
    for _ in range(300):
        _, _, terminated, truncated, infos = env.step(np.full(300, STAY))
        episodes += terminated | truncated
        np.testing.assert_array_equal(infos["new_team"], (terminated | truncated) & (episodes % 10 == 1))
        same = ~infos["new_team"]
        np.testing.assert_array_equal(infos["seat"][same], seats[same])
        np.testing.assert_array_equal(infos["strategy_ids"][same], ids[same])
        seats, ids = infos["seat"], infos["strategy_ids"]
        new_teams += infos["new_team"].sum()
    assert new_teams > 100
    single = gymnasium.make("StagHunt-hidden-v0")
    np.testing.assert_array_equal(single.reset(seed=1)[0], env.reset(seed=1)[0][0])
    assert single.unwrapped.core.rules == env.core.rules


def test_unknown_layouts_and_episodes_are_errors():
    for keywords in (dict(layout="rgb"), dict(episode="day"), dict(team_episodes=0), dict(co_players="2NS")):
        for make_env in (gymnasium.make, gymnasium.make_vec):
            with pytest.raises(ValueError, match=r"rgb|day|team_episodes|co-players: expected"):
                make_env("StagHunt-v0", **keywords)
