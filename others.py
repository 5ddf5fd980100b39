"""What a policy is told of each co-player while a game is played: nothing, who it is, a belief about its goal, or z.

Each class has the same interface: `look()` before a tick, `observe()` after it, `deal()` when boards are dealt anew. After
`load_state_dict`, which comes after that of the game, nothing is left of what was worked out from boards before.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from boards import Imagined, Minds, Real
from envs.scripted import STRATEGIES
from envs.teams import LEARNER
from pretrain_vae import OpponentTracker

ACTIONS = 7
NS, NH = 0, 1  # of STRATEGIES, and of the goals stag and hare
PRIOR = 0.5  # counts of each goal before the first episode (Krichevsky & Trofimov 1981); not tuned


class Told:
    """`none`: nothing. `oracle`: the strategy of each, one-hot; the only place that asks for it."""

    def __init__(self, game: Real | Imagined, oracle: bool):
        self.game, self.oracle, self.size = game, oracle, len(STRATEGIES) * oracle

    def look(self) -> torch.Tensor:
        """float [B, A, I], before a tick."""
        return F.one_hot(self.game.who + 1, len(STRATEGIES) + 1)[..., 1:].float()[..., : self.size]

    def observe(self) -> None:
        """After a tick."""

    def deal(self, boards: torch.Tensor, new: torch.Tensor) -> None:
        """A new episode on `boards`, a new team on `new`, bool [B]."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


class GoalBelief:
    """P(goal = stag | behaviour) of each hunter: within an episode by Bayes' rule from the goal heads; the next episode
    with the same co-players begins with discounted counts of the beliefs at the ends of those before, plus PRIOR."""

    size = 1

    def __init__(self, game: Real | Imagined, vae: nn.Module, discount: float):
        self.game, self.minds, self.discount = game, Minds(game, vae), discount
        self.log_odds, self.counts = torch.zeros(game.who.shape), torch.zeros(*game.who.shape, 2)
        self.score = Score(game)

    def look(self) -> torch.Tensor:
        self.said = self.minds.log_probs()  # [B, A, 2, 7]
        self.there = (self.game.hunters < self.game.rules.cells) & ~self.game.ended[:, None]
        self.tick = self.game.tick
        return self.log_odds.sigmoid()[..., None]

    def observe(self) -> None:
        belief = self.log_odds.sigmoid()
        mixed = (
            belief[..., None] * self.said[:, :, 0].exp() + (1 - belief[..., None]) * self.said[:, :, 1].exp()
        )
        self.score.add(mixed, self.there, self.tick, belief)
        taken = self.said.gather(3, self.game.actions[..., None, None].expand(-1, -1, 2, 1))[..., 0]
        self.log_odds += (taken[..., NS] - taken[..., NH]) * self.there

    def deal(self, boards: torch.Tensor, new: torch.Tensor) -> None:
        belief = self.log_odds.sigmoid()
        counts = self.discount * self.counts + torch.stack([belief, 1 - belief], 2)
        counts = torch.where(new[:, None, None], 0.0, counts)
        prior = (counts + PRIOR).log()
        self.log_odds = torch.where(boards[:, None], prior[..., NS] - prior[..., NH], self.log_odds)
        self.counts = torch.where(boards[:, None, None], counts, self.counts)

    def state_dict(self) -> dict:
        return dict(log_odds=self.log_odds, counts=self.counts)

    def load_state_dict(self, state: dict) -> None:
        self.log_odds, self.counts = state["log_odds"].clone(), state["counts"].clone()
        self.minds.rebuild()


class LatentInfo:
    """z at its mean and p(action), of each hunter, from the pretrained VAE and MOA; z is inferred anew each episode."""

    def __init__(self, game: Real | Imagined, vae: nn.Module):
        self.game, self.online, self.score = game, OpponentTracker(vae, *game.who.shape), Score(game)
        self.size = vae.sizes["latent_dim"] + ACTIONS

    def look(self) -> torch.Tensor:
        self.probs, z, _ = self.online.predict(self.game.planes(), self.game.tick)
        self.there = (self.game.hunters < self.game.rules.cells) & ~self.game.ended[:, None]
        self.tick = self.game.tick
        return torch.cat([z, self.probs], 2)

    def observe(self) -> None:
        self.score.add(self.probs, self.there, self.tick, None)
        self.online.update(self.game.actions)

    def deal(self, boards: torch.Tensor, new: torch.Tensor) -> None:
        self.online.reset(boards)

    def state_dict(self) -> dict:
        return self.online.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.online.load_state_dict(state)


class Score:
    """How good predictions of co-players were on the boards just played."""

    def __init__(self, game: Real | Imagined):
        self.game, self.sums = game, torch.zeros(4)  # actions, right, among the first three, NLL
        self.by_tick = torch.zeros(game.rules.horizon, 2)  # co-players with a goal, believed to have it

    def add(
        self, probs: torch.Tensor, there: torch.Tensor, tick: torch.Tensor, belief: torch.Tensor | None
    ) -> None:
        """probs: float [B, A, 7], of the actions just taken; there: bool [B, A]; belief: float [B, A], P(stag)."""
        who, rows = self.game.who, there & (self.game.who != LEARNER)
        taken = probs.gather(2, self.game.actions[..., None])
        ahead = (probs > taken).sum(2)[rows]
        self.sums += torch.stack([rows.sum(), (ahead < 1).sum(), (ahead < 3).sum(), -taken[rows].log().sum()])
        if belief is not None:
            rows &= who <= NH
            right = ((belief > 0.5) == (who == NS)) & rows
            self.by_tick.index_add_(0, tick, torch.stack([rows.sum(1), right.sum(1)], 1).float())

    def read(self) -> dict[str, float]:
        """The figures since the last call."""
        n, *rest = self.sums.tolist()
        found = (
            dict(zip(("moa_top1", "moa_top3", "moa_nll"), (value / n for value in rest), strict=True))
            if n
            else {}
        )
        counts = self.by_tick.tolist()
        found |= {f"belief_accuracy_tick{t}": right / all_ for t, (all_, right) in enumerate(counts) if all_}
        self.sums.zero_(), self.by_tick.zero_()
        return found
