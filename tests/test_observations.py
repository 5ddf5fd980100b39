"""What learners see: the same on real and imagined boards, and nothing that they should not."""

import numpy as np
import pytest
import torch
from games import board_starts, imagined_envs, look
from hidden_game import HIDDEN

from envs.grid import FAR
from envs.vector_env import LEARNER
from hop_ppo import NEVER, Observation, make_envs, observe_envs, sample, to_tensors


def play(envs, ticks: int, infos):
    """Observations before each tick of a random game, and the infos that they are of."""
    for _ in range(ticks):
        obs = observe_envs(infos, envs.rules)
        yield obs, infos
        actions = sample((obs.action_mask.float() + 1e-20).log())
        _, _, terminated, truncated, _ = envs.step(actions.numpy())
        ended = torch.as_tensor(terminated) | torch.as_tensor(truncated)
        infos = to_tensors(envs.reset(options={"reset_mask": ended.numpy()})[1])


@pytest.mark.parametrize("team", ["mixed", "self"])
def test_observations_of_imagined_boards_are_those_of_real_ones(team):
    """Imagined in the rules, then the real boards are put into the same states."""
    torch.manual_seed(0)
    rows = 30
    imagined = imagined_envs(rows, HIDDEN, "self", board_starts(HIDDEN, 10), episode="board")
    real = make_envs(HIDDEN, 10 if team == "self" else rows, team, episode="board")
    real.reset(seed=1)
    for obs, infos in play(imagined, 12, to_tensors(imagined.reset()[1])):
        boards = slice(None, None, 3) if team == "self" else slice(None)
        core = {f"core.{key}": infos[key][boards].numpy() for key in ("blocks", "tick", "first_hunt")}
        for key in ("hunters", "prey"):
            cells = infos[key][boards].numpy()
            core[f"core.{key}"] = np.where(cells == HIDDEN.cells, -1, cells).astype(np.int16)
        core["core.ended"] = np.zeros(len(cells), bool)
        seats = dict(seats=infos["seat"].numpy())
        if team == "mixed":  # each row as a board of its own
            ids = np.zeros((rows, 3), np.int64)
            ids[np.arange(rows), seats["seats"]] = LEARNER
            seats["strategy_ids"] = ids
        real.load_state_dict(real.state_dict() | core | seats)
        for name, value in vars(observe_envs(look(real), HIDDEN)).items():
            torch.testing.assert_close(
                value, getattr(obs, name), msg=lambda text, name=name: f"{name}: {text}"
            )


def test_observations_by_the_infos_alone():
    """Distances, who is on the board and what is legal, hunter by hunter."""
    torch.manual_seed(1)
    envs = make_envs(HIDDEN, 20, "mixed")
    captured = 0
    for obs, infos in play(envs, 40, to_tensors(envs.reset(seed=1)[1])):
        for row in range(20):
            order = [(int(infos["seat"][row]) + step) % 3 for step in range(3)]
            cells = infos["hunters"][row][order].tolist()
            assert obs.cells[row].tolist() == cells + infos["prey"][row].tolist()
            assert obs.active[row].tolist() == infos["active"][row][order].tolist()
            for p, prey in enumerate(infos["prey"][row].tolist()):
                captured += prey == HIDDEN.cells
                for hunter, cell in enumerate(cells):
                    steps = FAR
                    if cell < HIDDEN.cells:
                        steps = int(infos["distances"][row, p, cell])
                    assert obs.distances[row, p, hunter] == min(steps, NEVER)
        assert torch.equal(obs.action_mask, infos["action_mask"].bool())
        assert torch.equal(obs.blocks, infos["blocks"])
    assert captured > 10


def test_observations_do_not_depend_on_who_the_others_are():
    """The strategies stand in the infos; only the oracle may read them."""
    envs = make_envs(HIDDEN, 20, "mixed")
    infos = to_tensors(envs.reset(seed=1)[1])
    hidden = infos | {"strategy_ids": torch.full_like(infos["strategy_ids"], LEARNER)}
    for name, value in vars(observe_envs(infos, HIDDEN)).items():
        assert torch.equal(value, getattr(observe_envs(hidden, HIDDEN), name)), name


def test_observations_are_indexed_assigned_and_joined_like_tensors():
    envs = make_envs(HIDDEN, 6, "mixed")
    obs = observe_envs(to_tensors(envs.reset(seed=1)[1]), HIDDEN)
    rows = torch.tensor([4, 1])
    storage = obs.map(lambda part: part.new_zeros((2, *part.shape)))
    storage[1] = obs
    joined = Observation.cat([obs[rows], obs])
    for name, value in vars(obs).items():
        assert torch.equal(getattr(obs[rows], name), value[rows]), name
        assert torch.equal(getattr(storage, name)[1], value) and not getattr(storage, name)[0].any(), name
        assert torch.equal(getattr(joined, name), torch.cat([value[rows], value])), name
