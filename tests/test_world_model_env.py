"""Boards inside a world model: the same interface as the vector environment, draws, ends, and going on after a stop."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from envs import STRATEGIES, Rules, StagHunt, joint_to_hop, joint_to_planes, planes_to_joint
from envs.grid import FAR
from envs.scripted import parse_team
from envs.stag_hunt import STAY, Cells, step_cells
from envs.vector_env import LEARNER, StagHuntVectorEnv
from envs.world_model_env import WorldModelEnv

HIDDEN = Rules(height=5, width=5, blocks=6, hunters=3, stags=1, hares=2, end_after_first_hunt=1, horizon=12)
SMALL = Rules(height=4, width=5, blocks=2, hares=2, horizon=9)
BOARDS, TICKS = 10, 60


class State(NamedTuple):
    blocks: torch.Tensor
    hunters: torch.Tensor
    prey: torch.Tensor
    prey_counts: tuple[int, ...]


class NoisyRules:
    """The rules as a world model, which draws what is added to the rewards. Its end is wrong: no user may go by it."""

    def __init__(self, rules):
        self.rules = rules

    def step(self, state, actions):
        zero = np.zeros(len(actions), np.int64)
        cells = Cells(state.hunters.numpy(), state.prey.numpy(), zero, zero - 1)
        after, rewards, _ = step_cells(cells, actions.numpy(), state.blocks.bool().numpy(), self.rules)
        after = state._replace(hunters=torch.as_tensor(after.hunters), prey=torch.as_tensor(after.prey))
        return after, torch.as_tensor(rewards) + torch.rand(rewards.shape), torch.rand(len(rewards)) < 0.1


def policy(blocks, hunters, prey, tick, goals):
    """Some law that depends on where all are, and on the goals."""
    score = hunters[..., None] + torch.arange(7) * (goals[..., None] + 1) + tick[:, None, None]
    return score.sin().log_softmax(-1)  # [B, A, 7]


class Policy:
    """Co-players that draw from `policy`."""

    def sample(self, *state):
        law = policy(*state)
        return (law - torch.empty_like(law).exponential_().log()).argmax(2)


def starts(rules, boards=17, seed=1):
    core = StagHunt(boards, rules)
    core.reset(seed=seed)
    return tuple(torch.as_tensor(array) for array in (core.blocks, core.hunters, core.prey))


def make(num_envs, rules=HIDDEN, team="mixed", **keywords) -> WorldModelEnv:
    keywords = dict(make_state=State) | keywords
    return WorldModelEnv(num_envs, rules, team, NoisyRules(rules), Policy(), starts(rules), **keywords)


def look(env):
    """The infos, without a reset."""
    return env.reset(options={"reset_mask": torch.zeros(env.num_envs, dtype=torch.bool)})[1]


# ---- a slow reference, with its draws written out


class Reference:
    """The same boards: random numbers are drawn for all boards at once, the rest is done board by board."""

    def __init__(self, boards, rules, team, team_episodes, episode):
        self.rules, self.team, self.team_episodes, self.episode = rules, team, team_episodes, episode
        self.starts, self.world = starts(rules), NoisyRules(rules)
        self.boards = [
            dict(episodes=team_episodes, ids=[LEARNER] * rules.hunters, seat=0) for _ in range(boards)
        ]
        self.reset([True] * boards)

    def stack(self, key):
        return torch.tensor(np.array([board[key] for board in self.boards]))

    def reset(self, mask) -> list[bool]:
        todo = [board for board, reset in zip(self.boards, mask, strict=True) if reset]
        hunters = self.rules.hunters
        for board, pick in zip(todo, torch.randint(len(self.starts[0]), (len(todo),)).tolist(), strict=True):
            for key, start in zip(("blocks", "hunters", "prey"), self.starts, strict=True):
                board[key] = start[pick].tolist()
            board.update(tick=0, first_hunt=-1, joint=[STAY] * hunters)
        new = [
            reset and b["episodes"] == self.team_episodes for b, reset in zip(self.boards, mask, strict=True)
        ]
        for board in todo:
            board["episodes"] = board["episodes"] % self.team_episodes + 1
        if self.team == "self":
            return new
        todo = [board for board, is_new in zip(self.boards, new, strict=True) if is_new]
        seats = torch.randint(hunters, (len(todo),)).tolist()
        others = torch.randint(2, (len(todo), hunters - 1)).tolist()
        names = parse_team(self.team, hunters - 1)
        if names:
            order = torch.rand(len(todo), hunters - 1).argsort(1).tolist()
            others = [[STRATEGIES.index(names[k]) for k in row] for row in order]
        for board, seat, row in zip(todo, seats, others, strict=True):
            board["seat"], board["ids"] = seat, [LEARNER] * hunters
            for j, strategy in enumerate(row):
                board["ids"][(seat + 1 + j) % hunters] = strategy
        return new

    def step(self, actions):
        """actions: int64 [B, 1] or [B, A]. Returns: rewards [rows], and the boards whose episodes are over."""
        blocks, hunters, prey = (self.stack(key) for key in ("blocks", "hunters", "prey"))
        joint = actions
        if self.team != "self":
            law = policy(blocks, hunters, prey, self.stack("tick"), self.stack("ids").clamp(min=0))
            joint = (law - torch.empty_like(law).exponential_().log_()).argmax(2)
            for board, row, action in zip(self.boards, joint, actions[:, 0], strict=True):
                row[board["seat"]] = action
        state = State(blocks.float(), hunters, prey, self.rules.prey_counts)
        after, rewards, _ = self.world.step(state, joint)
        found, ends = [], []
        for i, board in enumerate(self.boards):
            gone, limit = self.rules.cells, self.rules.end_after_first_hunt
            was_active = [cell < gone for cell in board["hunters"]]
            new_prey = after.prey[i].tolist()
            captured = any(new == gone != old for new, old in zip(new_prey, board["prey"], strict=True))
            if captured and board["first_hunt"] < 0:
                board["first_hunt"] = board["tick"]
            board.update(hunters=after.hunters[i].tolist(), prey=new_prey, joint=joint[i].tolist())
            over = all(cell == gone for cell in board["hunters"])
            if limit is not None and board["first_hunt"] >= 0:
                over = over or board["tick"] - board["first_hunt"] >= limit
            board["tick"] += 1
            seats = range(len(was_active)) if self.team == "self" else [board["seat"]]
            if self.episode == "learner":
                over = over or board["hunters"][board["seat"]] == gone
            found += [float(rewards[i, seat]) * was_active[seat] for seat in seats]
            ends.append((over, not over and board["tick"] >= self.rules.horizon))
        return found, ends


CASES = [
    ("mixed", "learner", 3),
    ("mixed", "board", 1),
    ("{}NS1NH", "learner", 1),
    ("{}NH1RANDOM", "board", 2),
    ("self", "board", 1),
]


@pytest.mark.parametrize("rules", [HIDDEN, SMALL])
@pytest.mark.parametrize(("team", "episode", "team_episodes"), CASES)
def test_world_model_env_plays_as_board_by_board(rules, team, episode, team_episodes):
    team = team.format(rules.hunters - 2)
    rows = rules.hunters if team == "self" else 1
    generator = torch.Generator().manual_seed(5)
    ticks = torch.randint(7, (TICKS, BOARDS, rows), generator=generator)
    torch.manual_seed(3)
    reference = Reference(BOARDS, rules, team, team_episodes, episode)
    history = []
    keys = ("tick", "first_hunt", "hunters", "prey", "blocks", "ids", "joint", "seat")
    for actions in ticks:
        rewards, ends = reference.step(actions)
        before = {key: reference.stack(key) for key in keys}
        new_teams = reference.reset([any(end) for end in ends])
        after = {key: reference.stack(key) for key in keys}
        history.append((rewards, ends, before, new_teams, after))

    torch.manual_seed(3)
    keywords = dict(episode=episode, team_episodes=team_episodes, layout="hop")
    env = make(BOARDS * rows, rules, team, **keywords)
    _, infos = env.reset()
    assert infos["new_team"].all()

    def check(infos, expected):
        for key in keys[:-1]:
            name = {"ids": "strategy_ids", "joint": "joint_actions"}.get(key, key)
            assert torch.equal(infos[name].long(), expected[key].long().repeat_interleave(rows, 0)), name
        if team != "self":
            assert torch.equal(infos["seat"], expected["seat"])

    over = 0
    for actions, (rewards, ends, before, new_teams, after) in zip(ticks, history, strict=True):
        _, found, terminated, truncated, infos = env.step(actions.flatten())
        ends = torch.tensor(ends).repeat_interleave(rows, 0)
        assert found.tolist() == rewards and torch.equal(torch.stack([terminated, truncated], 1), ends)
        assert not infos["new_team"].any()
        check(infos, before)
        _, infos = env.reset(options={"reset_mask": terminated | truncated})
        assert infos["new_team"].tolist() == np.repeat(new_teams, rows).tolist()
        check(infos, after)
        over += sum(map(any, ends.tolist()))
    assert over > 3 * BOARDS


# ---- what it returns


@pytest.mark.parametrize(("team", "episode"), [("mixed", "learner"), ("mixed", "board"), ("self", "board")])
def test_obs_and_infos_are_those_of_the_vector_env_on_the_same_boards(team, episode):
    """All keys, shapes, dtypes and values, on boards that the core is set to."""
    env = make(12, team=team, episode=episode, layout="hop")
    torch.manual_seed(1)
    obs, infos = env.reset()
    real = StagHuntVectorEnv(12, HIDDEN, team, autoreset_mode="Disabled", layout="hop", episode=episode)
    real.reset(seed=1)
    for _ in range(30):
        state, gone = real.core.state, HIDDEN.cells
        state.blocks[:] = env.blocks.numpy()
        for key in ("hunters", "prey"):
            cells = getattr(env, key).numpy()
            getattr(state, key)[:] = np.where(cells == gone, -1, cells)
        state.tick[:], state.first_hunt[:] = env.tick.numpy(), env.first_hunt.numpy()
        over = env.terminated | env.truncated
        state.ended[:] = over.numpy()
        core = {f"core.{key}": value for key, value in vars(state).items()}
        extra = dict(strategy_ids=env.strategy_ids.numpy(), seats=env.seats.numpy())
        real.load_state_dict(real.state_dict() | core | extra)
        expected_obs, expected = real.reset(options={"reset_mask": np.zeros(12, bool)})
        np.testing.assert_array_equal(obs.numpy(), expected_obs)
        assert obs.dtype == torch.uint8 and infos.keys() == expected.keys()
        np.testing.assert_array_equal(env.planes().numpy(), real.planes())
        for key, value in expected.items():
            assert infos[key].numpy().dtype == value.dtype and infos[key].shape == value.shape, key
            if key not in ("new_team", "joint_actions", "joint_rewards"):
                np.testing.assert_array_equal(infos[key].numpy(), value, err_msg=key)
        obs, _, terminated, truncated, infos = env.step(torch.randint(7, (12,)))
        if episode == "learner":  # the learner's end is not the board's
            obs, infos = env.reset(options={"reset_mask": terminated | truncated})


def test_hop_layout_is_drawn_only_if_asked():
    env = make(6)
    assert env.reset()[0] is None and env.step(torch.zeros(6, dtype=torch.int64))[0] is None
    env = make(6, layout="hop")
    obs, infos = env.reset()
    joint = planes_to_joint(env.planes().numpy())
    np.testing.assert_array_equal(joint_to_planes(joint), env.planes().numpy())
    np.testing.assert_array_equal(obs.numpy(), joint_to_hop(joint, infos["seat"].numpy()))


def test_numpy_actions_and_masks_are_taken():
    env = make(4)
    env.reset()
    env.step(np.full(4, STAY))
    _, infos = env.reset(options={"reset_mask": np.array([True, False, False, True])})
    assert infos["tick"].tolist() == [0, 1, 1, 0]


def test_what_is_returned_is_not_changed_by_later_steps():
    env = make(8, rules=SMALL, episode="board")
    kept = []
    _, infos = env.reset()
    for _ in range(30):
        kept.append((infos, {key: value.clone() for key, value in infos.items()}))
        _, _, terminated, truncated, infos = env.step(torch.randint(7, (8,)))
        kept.append((infos, {key: value.clone() for key, value in infos.items()}))
        _, infos = env.reset(options={"reset_mask": terminated | truncated})
    for infos, copies in kept:
        assert all(torch.equal(infos[key], copy) for key, copy in copies.items())


# ---- episodes


def test_imagined_boards_that_ended_stand_still_until_they_are_reset():
    torch.manual_seed(0)
    env = make(20, rules=HIDDEN, episode="board")
    env.reset()
    last = None
    for _ in range(HIDDEN.horizon + 3):
        _, rewards, terminated, truncated, infos = env.step(torch.randint(7, (20,)))
        if last is not None:
            over = last[0] | last[1]
            assert not rewards[over].any()
            assert torch.equal(terminated[over], last[0][over])
            assert torch.equal(truncated[over], last[1][over])
            for key in ("tick", "hunters", "prey"):
                assert torch.equal(infos[key][over], last[2][key][over])
        last = terminated, truncated, infos
    assert (last[0] ^ last[1]).all() and last[0].any()


def test_a_step_needs_running_episodes():
    with pytest.raises(ResetNeeded):
        make(4).step(torch.zeros(4, dtype=torch.int64))
    env = make(4, rules=Rules(horizon=1))
    env.reset()
    assert env.step(torch.full((4,), STAY))[3].all()
    with pytest.raises(ResetNeeded):
        env.step(torch.full((4,), STAY))


def test_a_seed_repeats_boards_and_teams():
    env = make(50, team_episodes=4)
    _, first = env.reset(seed=1)
    env.step(torch.zeros(50, dtype=torch.int64))
    _, again = env.reset(seed=1)
    assert all(torch.equal(first[key], again[key]) for key in first) and again["new_team"].all()
    assert not torch.equal(first["hunters"], env.reset(seed=2)[1]["hunters"])


def test_goals_are_drawn_with_shares_of_each_team_their_own():
    """Two co-players, the two goals and none: all six teams are as likely; seats are drawn."""
    env = make(12000, team="goals")
    env.reset(seed=1)
    ids = env.strategy_ids
    assert (ids == LEARNER).sum(1).eq(1).all()
    others = ids[ids != LEARNER].view(-1, 2).sort(1)[0]
    teams, counts = others.unique(dim=0, return_counts=True)
    assert teams.tolist() == [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2], [2, 2]]
    assert (counts - 2000).abs().max() < 200


def test_goals_can_be_other_than_the_games():
    """As many as the co-players' policy knows, and none; what is read again is held to their number."""
    env = make(2000, team="goals", num_goals=4)
    env.reset(seed=1)
    ids = env.strategy_ids
    assert ids.unique().tolist() == [LEARNER, 0, 1, 2, 3, 4]
    state = env.state_dict()
    env.load_state_dict(state)
    with pytest.raises(ValueError, match="strategy_ids: expected numbers from -1 to 4, found -1 to 5"):
        env.load_state_dict(state | dict(strategy_ids=ids.masked_fill(ids == 4, 5)))


def test_starts_may_be_assigned_again():
    env = make(30)
    env.reset()
    one = tuple(start[:1] for start in starts(HIDDEN, seed=9))
    env.starts = one
    _, infos = env.reset()
    for key, start in zip(("blocks", "hunters", "prey"), one, strict=True):
        assert torch.equal(infos[key], start.expand_as(infos[key]))


def test_distances_follow_prey_that_move():
    """A world model may move prey: distances are 0 where each stands, and FAR everywhere once it is captured."""

    class Moving:
        def step(self, state, actions):
            prey = torch.where(torch.rand(state.prey.shape) < 0.2, state.hunters[:, :1], state.prey)
            prey = torch.where(torch.rand(state.prey.shape) < 0.1, HIDDEN.cells, prey)
            return state._replace(prey=prey), torch.zeros(actions.shape), None

    env = WorldModelEnv(
        9, HIDDEN, "2NS", Moving(), Policy(), starts(HIDDEN), episode="board", make_state=State
    )
    _, infos = env.reset()
    for _ in range(15):
        prey, distances = infos["prey"], infos["distances"]
        captured = prey == HIDDEN.cells
        assert torch.equal((distances == FAR).all(2), captured)
        at_prey = distances.gather(2, prey.clamp(max=HIDDEN.cells - 1)[..., None])[..., 0]
        assert (at_prey[~captured] == 0).all()
        _, _, terminated, truncated, infos = env.step(torch.full((9,), STAY))
        _, infos = env.reset(options={"reset_mask": terminated | truncated})


# ---- stopping and going on


@pytest.mark.parametrize(("team", "episode"), [("1NS1NH", "learner"), ("self", "board")])
def test_a_loaded_environment_goes_on_as_if_it_had_not_stopped(team, episode):
    def play(env, ticks):
        for _ in range(ticks):
            _, rewards, terminated, truncated, infos = env.step(torch.randint(7, (12,)))
            yield dict(rewards=rewards, terminated=terminated, truncated=truncated) | infos
            env.reset(options={"reset_mask": terminated | truncated})

    env = make(12, team=team, episode=episode, team_episodes=2)
    env.reset(seed=4)
    list(play(env, 20))
    state, generator = env.state_dict(), torch.get_rng_state()
    expected = list(play(env, 20))
    other = make(12, team=team, episode=episode, team_episodes=2)
    other.load_state_dict(state)
    assert torch.equal(look(other)["hunters"], state["hunters"].repeat_interleave(other.rows_per_board, 0))
    torch.set_rng_state(generator)
    for found, wanted in zip(play(other, 20), expected, strict=True):
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


# ---- errors


def test_wrong_arguments_are_told_in_one_line():
    for num_envs, keywords, message in (
        (6, dict(team="self"), 'give episode="board"'),
        (7, dict(team="self", episode="board"), "multiple of 3 hunters, got 7"),
        (6, dict(team="4NS"), "co-players: expected"),
        (6, dict(episode="day"), "unknown episode 'day'"),
        (6, dict(layout="rgb"), "unknown layout 'rgb'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(num_envs, **keywords)
    env = make(6, team="self", episode="board")
    mask = torch.arange(6) < 2
    with pytest.raises(ValueError, match="first reset"):
        env.reset(options={"reset_mask": mask})
    env.reset()
    for wrong, message in (
        (mask, "rows of a board"),
        (mask[:3], "expected bool"),
        (mask.long(), "expected bool"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options={"reset_mask": wrong})
    with pytest.raises(ValueError, match="a seed"):
        env.reset(seed=1, options={"reset_mask": mask})
