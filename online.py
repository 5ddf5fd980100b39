"""The MOA of `pretrain_vae.py` while a game is played: one tick at a time, for a batch of boards."""

import torch
import torch.nn.functional as F

from pretrain_vae import ACTIONS, BLOCKS, PLANES, SELF, STAY, VAE, BoardFeatures

CHUNK = (
    512  # co-players whose behaviours are worked out at once: what fits a processor's cache is twice as fast
)


class OpponentTracker:
    """Beliefs about C co-players on each of B boards.

    Example:
        >>> online = Online(load_vae("vae_ckpts/vae__1758375079")[0], boards=1024, co_players=3)
        >>> probs, z, goal_probs = online.step(obs, tick)  # before the tick
        >>> online.observe(actions)  # after it
        >>> online.reset(ended)  # boards dealt anew
    """

    def __init__(self, model: VAE, boards: int, co_players: int):
        if model.loss == "recon":
            raise ValueError(
                "a VAE trained with --loss recon has no MOA head: train one with --loss moa or both"
            )
        self.model, self.shape = model.eval(), (boards, co_players)
        self.device = next(model.parameters()).device
        self.log_likelihood = torch.zeros(boards * co_players, model.moa.behaviours, device=self.device)
        self.behaved, self.gone, self.boards = None, None, None

    @torch.no_grad()
    def step(self, obs: torch.Tensor, tick: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """obs: uint8 [B, C, 5, H, W], as each co-player sees the board; tick: int64 [B].

        Returns: p(action) float [B, C, 7], z at its mean [B, C, latent_dim], p(action | goal) [B, C, 2, 7]; STAY is certain
        for a co-player that has left. Raises: ValueError: a wrong shape.
        """
        B, C = self.shape
        height, width = self.model.sizes["height"], self.model.sizes["width"]
        if obs.shape != (B, C, len(PLANES), height, width) or tick.shape != (B,):
            raise ValueError(f"obs, tick: expected shapes {(B, C, 5, height, width)} and {(B,)}, "
                             f"got {tuple(obs.shape)} and {tuple(tick.shape)}")  # fmt: skip
        moa = self.model.moa
        planes = obs.to(self.device).flatten(3).flatten(0, 1).float()  # [BC, 5, K]
        ticks = tick.to(self.device).repeat_interleave(C)
        self._spread(planes.unflatten(0, (B, C))[:, 0, BLOCKS:])
        reading = moa.encode_board(
            planes, torch.arange(B, device=self.device).repeat_interleave(C), self.fields
        )
        parts = zip(*(whole.split(CHUNK) for whole in (*reading, ticks)), strict=True)
        self.behaved = torch.cat([moa.action_logprobs(BoardFeatures(*part[:-1]), part[-1]) for part in parts])
        self.gone, self.legal = planes[:, SELF].amax(1) == 0, reading.legal
        history = self.log_likelihood if self.model.context == "episode" else None
        moments = [self.model.encode_history(reading, ticks, history)]
        if self.model.loss == "both":
            moments.append(self.model.encoder(planes.flatten(1)))
        z, _ = self.model.moments(moments)
        moa_probs = moa(self.behaved, z[:, : self.model.who])
        probs = torch.cat([moa_probs[:, None], self.behaved[:, moa.behaviours :]], 1).exp()  # [BC, 3, 7]
        stay = F.one_hot(torch.tensor(STAY, device=self.device), len(ACTIONS)).float()
        probs = torch.where(self.gone[:, None, None], stay, probs).unflatten(0, (B, C))
        return probs[:, :, 0], z.unflatten(0, (B, C)), probs[:, :, 1:]

    @torch.no_grad()
    def observe(self, actions: torch.Tensor) -> None:
        """actions: integers [B, C], what the co-players did after the last `step`; an illegal action counts as STAY."""
        if self.behaved is None:
            raise ValueError("nothing was predicted yet: call step() before observe()")
        if actions.shape != self.shape:
            raise ValueError(f"actions: expected shape {self.shape}, got {tuple(actions.shape)}")
        actions = actions.to(self.device).flatten().long()
        legal = self.legal.gather(1, actions[:, None])[:, 0]
        taken = self.model.evidence(self.behaved, torch.where(legal, actions, STAY))
        self.log_likelihood += taken.masked_fill(self.gone[:, None], 0.0)

    def reset(self, boards: torch.Tensor) -> None:
        """Forget the co-players of these boards (bool [B]): a new episode begins."""
        self.log_likelihood[boards.to(self.device).repeat_interleave(self.shape[1])] = 0.0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The beliefs."""
        return dict(log_likelihood=self.log_likelihood)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Beliefs as saved; fields are spread anew: their padding is of the boards seen so far, and sets how sums round."""
        self.log_likelihood = state["log_likelihood"].clone()
        self.behaved, self.gone, self.boards = None, None, None

    def _spread(self, boards: torch.Tensor) -> None:
        """Spread the things of the boards [B, 3, K] that changed since the last tick."""
        things = max(1, int((boards[:, 1] + boards[:, 2]).clamp(max=1).sum(1).amax()))
        if self.boards is None or things > self.fields[1].shape[1]:
            self.boards, self.fields = boards.clone(), self.model.moa.prey_nearness(boards, things)
            return
        changed = (boards != self.boards).flatten(1).any(1)
        for field, new in zip(
            self.fields, self.model.moa.prey_nearness(boards[changed], self.fields[1].shape[1]), strict=True
        ):
            field[changed] = new
        self.boards[changed] = boards[changed]
