"""The goal heads of the pretrained MOA on cells: p(action | observation, tick, goal) for planning and imagination.

What `pretrain_vae.MOA.behave` says of planes, said of boards whose blocks and prey stand still while many positions of the
hunters are asked about: how near each cell is to each prey is worked out once a board.
"""

import torch
import torch.nn.functional as F

from pretrain_vae import FAR, GOALS, MASKED, STAY, VAE

CHUNK = 1024  # hunters whose actions are worked out at once: what fits a processor's cache is twice as fast


class GoalPolicy:
    """U boards of A hunters and P prey, stags first.

    tabulate: also work out the action scores of every cell of a board once, which pays from about a hundred questions a
    board on. Raises: ValueError: the VAE has no MOA head.
    """

    def __init__(self, model: VAE, blocks: torch.Tensor, prey: torch.Tensor, stags: int, tabulate: bool = False):
        """blocks: bool [U, K]; prey: int64 [U, P], K for what is gone."""
        if model.loss == "recon":
            raise ValueError("a VAE trained with --loss recon has no MOA head: train one with --loss moa or both")
        self.moa, self.first_goal = model.eval().moa, model.moa.behaviours
        (U, P), K = prey.shape, blocks.shape[1]
        self.stags, self.kind = stags, torch.eye(2)[(torch.arange(P) >= stags).long()]  # [P, 2]
        self.around = F.pad(self.moa.around, (0, 0, 0, 1), value=K)  # [K + 1, 5]
        self.near = torch.full((U, P, K + 1), FAR)
        self.walls = torch.ones(U, K + 1, dtype=torch.bool)
        self.table = torch.zeros(U, P, K + 1, 7) if tabulate else None
        self.place(torch.arange(U), blocks, prey)

    @torch.no_grad()
    def place(self, boards: torch.Tensor, blocks: torch.Tensor, prey: torch.Tensor) -> None:
        """Boards that are new, or whose prey have moved. boards: int64 [m]; blocks: bool [m, K]; prey: int64 [m, P]."""
        (m, P), K = prey.shape, blocks.shape[1]
        thing = F.one_hot(prey, K + 1)[..., :K].float()  # [m, P, K]
        planes = torch.stack([blocks[:, None].expand(-1, P, -1).float(), thing, torch.zeros_like(thing)], 2)
        near = torch.cat([self.moa.spread(part, 1)[0] for part in planes.flatten(0, 1).split(CHUNK)])  # [mP, 1, K + 1]
        self.near[boards] = near.view(m, P, K + 1)
        self.walls[boards, :K] = blocks
        if self.table is not None:
            for rows in boards.split(max(1, CHUNK // K)):
                around = self.near[rows][..., self.around]  # [m, P, K + 1, 5]
                self.table[rows] = self._scores(around, self.kind[:, None].expand(*around.shape[:3], 2))

    def _scores(self, around: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        """Scores of the seven actions, given the thing that the hunter is after. around: float [.., 5], near of the cells
        above, below, left, right, own; kind: [.., 2]. Returns: [.., 7]."""
        own, toward = around[..., 4:], F.pad((around[..., :4] - around[..., 4:]).clamp(-3, 3), (0, 3))[..., None]
        seen = torch.cat([own / 8, (own == 0).float(), kind], -1)[..., None, :].expand(*own.shape[:-1], 7, 4)
        action = self.moa.action_kind.expand(*own.shape[:-1], 7, 4)
        return self.moa.action(torch.cat([seen, toward, (toward > 0).float(), action], -1))[..., 0]

    @torch.no_grad()
    def probs(self, board, hunters, prey, tick, goals=None) -> torch.Tensor:
        """p(action | goal) of each hunter, STAY for certain once it has left.

        Args:
            board: int64 [n], which of the U boards; hunters int64 [n, A], prey int64 [n, P]: cells, K for what is gone;
            tick: int64 [n]; goals: int64 [n, A], 0 stag, 1 hare; None: both.
        Returns: float [n, A, 7], or [n, A, 2, 7] for both.
        """
        step = max(1, CHUNK // hunters.shape[1])
        given = (board, hunters, prey, tick) + (() if goals is None else (goals,))
        return torch.cat([self._probs(*part) for part in zip(*(whole.split(step) for whole in given), strict=True)])

    def _probs(self, board, hunters, prey, tick, goals=None) -> torch.Tensor:
        moa, (n, A), P, K = self.moa, hunters.shape, prey.shape[1], self.walls.shape[1] - 1
        row = (board[:, None] * P + torch.arange(P))[..., None] * (K + 1)  # [n, P, 1]
        near = self.near.view(-1)[row + hunters[:, None]].transpose(1, 2)  # [n, A, P]
        there = (prey < K)[:, None].expand(-1, A, -1)  # [n, A, P]
        gone = hunters == K
        others = ~torch.eye(A, dtype=torch.bool) & ~gone[:, None]  # [n, A, A]
        rival = near[:, None].masked_fill(~others[..., None], FAR).amax(2)  # [n, A, P]
        earlier = (torch.tril((hunters[:, :, None] == hunters[:, None]), -1)[:, None] & others[:, :, None]).any(3)  # [n, A, A]
        crowd = (others & ~earlier).sum(2, keepdim=True) / 4  # cells with other hunters
        on = (near == 0) & there
        thing = [near / 8, (near == 0).float(), rival / 8, (rival == 0).float()]
        thing = moa.thing(torch.cat([torch.stack(thing, 3), self.kind.expand(n, A, -1, -1)], 3))  # [n, A, P, hidden]
        clock = moa.tick(tick.clamp(max=moa.ticks - 1))[:, None].expand(-1, A, -1)
        code = moa.code[self.first_goal :]  # [2, D]
        code = code.expand(n, A, -1, -1) if goals is None else code[goals][:, :, None]  # [n, A, G, D]
        context = torch.cat([code, torch.cat([clock, crowd], 2)[:, :, None].expand(-1, -1, code.shape[2], -1)], 3)
        scores = moa.choice(thing[:, :, None] + moa.context(context)[:, :, :, None])[..., 0]  # [n, A, G, P]
        scores = scores.masked_fill(~there[:, :, None], MASKED)
        choice = torch.cat([scores, moa.nothing(context)], 3).softmax(3)

        ways = self.around[hunters]  # [n, A, 5]
        go = ~self.walls.view(-1)[board[:, None, None] * (K + 1) + ways[..., :4]] & ~gone[..., None]
        hunts = [part.any(2, keepdim=True) for part in (on[..., : self.stags], on[..., self.stags :])]
        legal = torch.cat([go, torch.ones_like(go[..., :1]), *hunts], 2)  # [n, A, 7]
        if self.table is None:
            around = self.near.view(-1)[row[:, None] + ways[:, :, None]]  # [n, A, P, 5]
            action = self._scores(around, self.kind.expand(n, A, -1, -1))
        else:
            action = self.table.view(-1, 7)[(row + hunters[:, None]).transpose(1, 2)]  # [n, A, P, 7]
        action = F.pad(action, (0, 0, 0, 1)).masked_fill(~legal[:, :, None], MASKED).softmax(3)
        probs = choice @ action  # [n, A, G, 7]
        stay = F.one_hot(torch.tensor(STAY), 7).float()
        probs = torch.where(gone[..., None, None], stay, probs)
        return probs if goals is None else probs[:, :, 0]


assert list(GOALS) == ["stag", "hare"]
