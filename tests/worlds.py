"""A world model that is exact, and predictions that are not, for tests of what is done with them."""

import numpy as np
import torch

from envs import Rules
from envs.stag_hunt import Cells, step_cells
from train_world_model import JointState


class TrueWorld:
    """The rules as a world model. The end that it predicts is noise: users of a world model must go by the game's rule."""

    def __init__(self, rules: Rules):
        self.rules = rules

    def on(self, height, width):
        return self

    def step(self, boards: JointState, actions):
        blocks = boards.blocks.bool().numpy()
        zero = np.zeros(len(actions), np.int64)
        cells = Cells(boards.hunters.numpy(), boards.prey.numpy(), zero, zero - 1)
        after, rewards, _ = step_cells(cells, actions.numpy(), blocks, self.rules)
        boards = boards._replace(hunters=torch.as_tensor(after.hunters), prey=torch.as_tensor(after.prey))
        return boards, torch.as_tensor(rewards), torch.rand(len(actions)) < 0.1


def put(*cells, rewards=()):
    """A prediction spoilt: (plane, row, column, value) cells, (seat, value) rewards."""

    def spoil(after, paid):
        for plane, row, column, value in cells:
            after[plane, row, column] = value
        for seat, value in rewards:
            paid[seat] = value

    return spoil
