"""Games that learners play, kept as whole episodes: what a MOA and a world model can learn from without any script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.collect import draw_boards
from data.trajectories import Trajectories, size_of
from envs import DATA_EPSILON
from envs.core import GameRules
from envs.game import STAY
from envs.stag_hunt import GAME as STAG_HUNT

UNKNOWN = "unknown"  # the strategy of every hunter: a recorder does not ask who plays


class EpisodeRecorder:
    """The last whole episodes of the first boards of a vector environment.

    Example:
        >>> recorder = EpisodeRecorder(rules, boards=256, episodes=512)
        >>> recorder.reset(torch.ones(B, dtype=torch.bool), infos)  # after a reset of these boards
        >>> recorder.update(infos, terminated)  # after a tick, before boards are reset
        >>> recorder.trajectories(100)  # of the last hundred episodes that have ended
    """

    def __init__(self, rules: GameRules, boards: int, episodes: int, rows_per_board: int = 1):
        """boards: that are recorded. episodes: that are kept, at least `boards`. rows_per_board: of the environment."""
        self.rules = rules
        self.rows_per_board = rows_per_board
        self.boards = boards
        self.count = 0  # of all episodes that have ended
        self.playing = self._empty(boards)
        self.kept = self._empty(max(boards, episodes))  # a ring

    def _empty(self, rows: int) -> dict[str, Tensor]:
        A, P, T, K = self.rules.hunters, self.rules.prey, self.rules.horizon, self.rules.cells
        return dict(
            cells=torch.full((rows, T + 1, A + P), K, dtype=torch.int16),  # of hunters and prey, K: gone
            blocks=torch.zeros(rows, K, dtype=torch.bool),
            actions=torch.full((rows, T, A), STAY, dtype=torch.int8),
            rewards=torch.zeros(rows, T, A),
            length=torch.zeros(rows, dtype=torch.int64),
            terminated=torch.zeros(rows, dtype=torch.bool),
            learner=torch.full((rows,), -1),  # the seat of the only learner, -1: there are more
        )

    def _of(self, infos: Mapping[str, Tensor], key: str) -> Tensor:
        return infos[key][:: self.rows_per_board][: self.boards]

    def _cells(self, infos: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([self._of(infos, "hunters"), self._of(infos, "prey")], 1).to(torch.int16)

    def update(self, infos: Mapping[str, Tensor], terminated: Tensor) -> None:
        """After a tick. infos: as of `BoardVectorEnv`, tensors; terminated: bool [N]. A board that is over stands still."""
        tick = self._of(infos, "tick")
        rows = (tick > self.playing["length"]).nonzero()[:, 0]
        at = tick[rows]
        self.playing["cells"][rows, at] = self._cells(infos)[rows]
        self.playing["actions"][rows, at - 1] = self._of(infos, "joint_actions")[rows].to(torch.int8)
        self.playing["rewards"][rows, at - 1] = self._of(infos, "joint_rewards")[rows]
        self.playing["length"][rows] = at
        self.playing["terminated"][rows] = terminated[:: self.rows_per_board][: self.boards][rows]

    def reset(self, boards: Tensor, infos: Mapping[str, Tensor]) -> None:
        """Where new episodes have begun, bool [B]: keep those that have ended there."""
        new = boards[: self.boards]
        self._keep((new & (self.playing["length"] > 0)).nonzero()[:, 0])
        rows = new.nonzero()[:, 0]
        self.playing["cells"][rows, 0] = self._cells(infos)[rows]
        self.playing["blocks"][rows] = self._of(infos, "blocks")[rows]
        self.playing["length"][rows] = 0
        if self.rows_per_board == 1:
            self.playing["learner"][rows] = self._of(infos, "seat")[rows]

    def finish(self) -> None:
        """All boards are over, and no others will begin."""
        self._keep((self.playing["length"] > 0).nonzero()[:, 0])
        self.playing["length"].zero_()

    def _keep(self, rows: Tensor) -> None:
        places = (self.count + torch.arange(len(rows))) % len(self.kept["length"])
        for key, values in self.kept.items():
            values[places] = self.playing[key][rows]
        self.count += len(rows)

    def trajectories(self, last: int) -> tuple[Trajectories, np.ndarray]:
        """The last episodes that have ended, so many or as many as are kept, the oldest first.

        Returns: them, as a file of `python -m data.collect` holds them, but for who the hunters are; and int64 [E], the seat
        of the only learner of each, -1: there are more.
        """
        size = len(self.kept["length"])
        places = torch.arange(self.count - min(last, self.count, size), self.count) % size
        kept = {key: values[places] for key, values in self.kept.items()}
        length = kept["length"][:, None]
        states = torch.arange(self.rules.horizon + 1) <= length  # [E, T + 1], one more than steps
        steps = states[:, 1:]
        A, K = self.rules.hunters, self.rules.cells
        cells = kept["cells"].masked_fill(kept["cells"] == K, -1)
        lengths = kept["length"].numpy().astype(np.int32)
        at = cells[states].numpy()
        arrays = dict(
            obs=draw_boards(kept["blocks"].numpy(), at[:, :A], at[:, A:], lengths, self.rules),
            actions=kept["actions"][steps].numpy(),
            rewards=kept["rewards"][steps].numpy(),
            active=(cells[:, :-1, :A][steps] >= 0).numpy(),
            episode_lengths=lengths,
            terminated=kept["terminated"].numpy(),
            strategies=np.zeros((len(lengths), A), np.int8),
        )
        metadata = recorded_metadata(arrays, self.rules)
        recorded = Trajectories(**arrays, policy_probs=None, metadata=metadata)
        return recorded, kept["learner"].numpy()

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"playing.{key}": values.clone() for key, values in self.playing.items()}
        state |= {f"kept.{key}": values.clone() for key, values in self.kept.items()}
        return state | dict(count=torch.tensor(self.count))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises: ValueError: a number is out of its range."""
        rules = self.rules
        most = dict(cells=rules.cells, actions=rules.game.num_actions - 1, length=rules.horizon)
        least = dict.fromkeys(most, 0) | dict(learner=-1, count=0)
        most |= dict(learner=rules.hunters - 1, count=2**62)
        for key, values in state.items():
            name = key.rpartition(".")[2]
            if (
                name in most
                and values.numel()
                and not least[name] <= values.min() <= values.max() <= most[name]
            ):
                found = f"{values.min()} to {values.max()}"
                raise ValueError(f"{key}: expected numbers from {least[name]} to {most[name]}, found {found}")
        for key in self.playing:
            self.playing[key] = state[f"playing.{key}"].clone()
            self.kept[key] = state[f"kept.{key}"].clone()
        self.count = int(state["count"])


def with_random_moves(policy: Callable) -> Callable:
    """A policy that acts uniformly over legal actions as often as the scripts of recorded files do.

    policy: (obs, opponent_info) -> (log pi float [N, 5 + k], V); obs has `action_mask`, bool [N, 5 + k].
    """

    def mixed(obs: Any, opponent_info: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, values = policy(obs, opponent_info)
        uniform = obs.action_mask / obs.action_mask.sum(1, keepdim=True)
        return torch.lerp(logprobs.exp(), uniform, DATA_EPSILON).log().clamp(min=-1e9), values

    return mixed


def recorded_metadata(arrays: dict[str, np.ndarray], rules: GameRules) -> dict:
    """Of a file of games that learners played; its strategies have no names."""
    game = rules.game
    active, actions = arrays["active"], arrays["actions"]
    return {
        "dataset_id": f"{game.name}/{size_of(rules).replace('_', '-')}/played-v0",
        "env_id": game.id,
        "algorithm_name": "games that hop_ppo.py played",
        "total_episodes": len(arrays["episode_lengths"]),
        "total_steps": len(actions),
        "active_samples": int(active.sum()),
        "strategies": [UNKNOWN],
        "priors": [1.0],
        "rules": dict(vars(rules)),
        **({"game": game.metadata()} if game != STAG_HUNT else {}),
        "channels": list(game.planes),
        "actions": list(game.actions),
        "action_counts": np.bincount(actions[active], minlength=game.num_actions).tolist(),
    }
