"""The goal heads of the pretrained MOA on cells: p(action | observation, tick, goal) for planning and imagination.

What `pretrain_vae.MOA.behave` says of planes, said of boards whose blocks and prey stand still while many positions of the
hunters are asked about: how near each cell is to each prey is worked out once a board.
"""

import torch
import torch.nn.functional as F

from pretrain_vae import FAR, GOALS, STAY, VAE

TINY = 1e-30  # where all weights underflow
NO_GOAL = 2  # index of RANDOM in `envs.scripted.STRATEGIES`: a hunter that is after nothing
CHUNK = 1024  # questions at once: what fits a processor's cache is twice as fast


class TabularMOA:
    """U boards of A hunters and P prey, stags first.

    How near a cell is to a prey takes few values (so many steps, each at the cost that was learnt), so that the scores of
    things and of actions, given those, are worked out once and looked up. Raises: ValueError: the VAE has no MOA head.
    """

    def __init__(self, model: VAE, blocks: torch.Tensor, prey: torch.Tensor, stags: int):
        """blocks: bool [U, K]; prey: int64 [U, P], K for what is gone."""
        if model.loss == "recon":
            raise ValueError(
                "a VAE trained with --loss recon has no MOA head: train one with --loss moa or both"
            )
        self.moa, (U, P), K = model.eval().moa, prey.shape, blocks.shape[1]
        self.stags, self.kind = stags, (torch.arange(P) >= stags).long()  # [P], 0 stag, 1 hare
        self.around = F.pad(self.moa.around, (0, 0, 0, 1), value=K)  # [K + 1, 5]
        self.walls = torch.ones(U, K + 1, dtype=torch.bool)
        self.values = torch.tensor([FAR])  # what nearness can be, rising
        self.near = torch.zeros(U, P, K + 1, dtype=torch.int16)  # index into `values`
        self.place(torch.arange(U), blocks, prey)

    @torch.no_grad()
    def place(self, boards: torch.Tensor, blocks: torch.Tensor, prey: torch.Tensor) -> None:
        """Boards that are new, or whose prey have moved. boards: int64 [m]; blocks: bool [m, K]; prey: int64 [m, P]."""
        (m, P), K = prey.shape, blocks.shape[1]
        thing = F.one_hot(prey, K + 1)[..., :K].float()  # [m, P, K]
        planes = torch.stack([blocks[:, None].expand(-1, P, -1).float(), thing, torch.zeros_like(thing)], 2)
        near = torch.cat(
            [self.moa.prey_nearness(part, 1)[0] for part in planes.flatten(0, 1).split(CHUNK)]
        )  # [mP, 1, K + 1]
        values = torch.cat([self.values, near.unique()]).unique()
        if len(values) > len(self.values):
            self.near = torch.searchsorted(values, self.values)[self.near.long()].to(torch.int16)
            self.values = values
            self._tabulate()
        self.near[boards] = torch.searchsorted(values, near).view(m, P, K + 1).to(torch.int16)
        self.walls[boards, :K] = blocks

    def _tabulate(self) -> None:
        """Weights of the actions, given the thing: of the steps [2 kinds, own nearness, that of the cell stepped to], of
        STAY and the hunts [2, own nearness, 3]. Weights of the things wait until a tick is asked about."""
        V, moa = len(self.values), self.moa
        kind, own, to = torch.meshgrid(torch.arange(2.0), self.values, self.values, indexing="ij")
        toward = torch.where(own == to, 0.0, (to - own).clamp(-3, 3))
        seen = [
            own / 8,
            (own == 0).float(),
            (kind == 0).float(),
            (kind == 1).float(),
            toward,
            (toward > 0).float(),
        ]
        seen = torch.stack(seen, 3)
        step = moa.action(torch.cat([seen, moa.action_kind[0].expand(2, V, V, 4)], 3))[..., 0]
        here = F.pad(seen[:, :, 0, :4], (0, 2))
        still = [moa.action(torch.cat([here, moa.action_kind[a].expand(2, V, 4)], 2)) for a in (4, 5, 6)]
        highest = torch.stack([step.max(), *(part.max() for part in still)]).max()
        self.steps, self.still, self.things = (
            (step - highest).exp(),
            (torch.cat(still, 2) - highest).exp(),
            {},
        )

    def _things(self, tick: int, crowds: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the things, float [2 goals, crowds, 2 kinds, own nearness, a rival's], and of none [2, crowds]."""
        if (tick, crowds) not in self.things:
            moa, values = self.moa, self.values
            kind, own, rival = torch.meshgrid(torch.arange(2.0), values, values, indexing="ij")
            seen = [
                own / 8,
                (own == 0).float(),
                rival / 8,
                (rival == 0).float(),
                (kind == 0).float(),
                (kind == 1).float(),
            ]
            thing = moa.thing(torch.stack(seen, 3))  # [2, V, V, hidden]
            code = moa.code[moa.behaviours :][:, None].expand(-1, crowds, -1)
            now = moa.tick(torch.tensor(min(tick, moa.ticks - 1))).expand(2, crowds, -1)
            crowd = (torch.arange(crowds) / 4)[None, :, None].expand(2, -1, 1)
            context = torch.cat([code, now, crowd], 2)  # [2, crowds, D + 9]
            found = torch.stack(
                [moa.choice(thing + one)[..., 0] for one in moa.context(context).flatten(0, 1)]
            )
            nothing = moa.nothing(context)[..., 0]
            highest = torch.maximum(found.max(), nothing.max())
            self.things[tick, crowds] = (
                (found - highest).exp().view(2, crowds, *kind.shape),
                (nothing - highest).exp(),
            )
        return self.things[tick, crowds]

    @torch.no_grad()
    def probs(self, board, hunters, prey, tick, goals=None) -> torch.Tensor:
        """p(action | goal) of each hunter, STAY for certain once it has left.

        Args:
            board: int64 [n], which of the U boards; hunters int64 [n, A], prey int64 [n, P]: cells, K for what is gone;
            tick: int64 [n]; goals: int64 [n, A], 0 stag, 1 hare, 2 none: uniform over legal actions; None: both 0 and 1.
        Returns: float [n, A, 7], or [n, A, 2, 7] for both. Raises: ValueError: there is no such goal.
        """
        if goals is not None and goals.numel() and not (goals.amin() >= 0 and goals.amax() <= NO_GOAL):
            found = sorted(set(goals.unique().tolist()) - {*range(NO_GOAL + 1)})
            raise ValueError(f"goals: expected 0 (stag), 1 (hare) or {NO_GOAL} (none), got {found}")
        given = (board, hunters, prey, tick) + (() if goals is None else (goals,))
        return torch.cat(
            [self._probs(*part) for part in zip(*(whole.split(CHUNK) for whole in given), strict=True)]
        )

    def _probs(self, board, hunters, prey, tick, goals=None) -> torch.Tensor:
        (n, A), P, K, V = hunters.shape, prey.shape[1], self.walls.shape[1] - 1, len(self.values)
        gone, there = hunters == K, (prey < K)[:, None]  # [n, A], [n, 1, P]
        ways = self.around[hunters]  # [n, A, 5]
        row = (board[:, None] * P + torch.arange(P)) * (K + 1)  # [n, P]
        around = self.near.view(-1)[
            row[:, None, :, None] + ways[:, :, None]
        ].long()  # [n, A, P, 5], index into values
        near = around[..., 4]
        others = ~torch.eye(A, dtype=torch.bool) & ~gone[:, None]  # [n, A, A]
        rival = near[:, None].masked_fill(~others[..., None], 0).amax(2)  # [n, A, P]; 0 is FAR
        earlier = (torch.tril(hunters[:, :, None] == hunters[:, None], -1)[:, None] & others[:, :, None]).any(
            3
        )  # [n, A, A]
        crowd = (others & ~earlier).sum(2)  # [n, A], cells with other hunters

        ticks, which = tick.unique(return_inverse=True)
        things, nothing = zip(*(self._things(t, A) for t in ticks.tolist()), strict=True)
        goal = (
            torch.arange(2).expand(n, A, 2) if goals is None else goals.clamp(max=1)[..., None]
        )  # [n, A, G]
        base = (which[:, None, None] * 2 + goal) * A + crowd[..., None]  # [n, A, G]
        flat = (base[..., None] * 2 + self.kind) * V * V + (near * V + rival)[:, :, None]  # [n, A, G, P]
        weight = torch.stack(things).view(-1)[flat] * there[:, :, None]
        choice = torch.cat([weight, torch.stack(nothing).view(-1)[base][..., None] + TINY], 3)

        on = (near == V - 1) & there
        go = ~self.walls.view(-1)[board[:, None, None] * (K + 1) + ways[..., :4]] & ~gone[..., None]
        hunts = [part.any(2, keepdim=True) for part in (on[..., : self.stags], on[..., self.stags :])]
        legal = torch.cat([go, torch.ones_like(go[..., :1]), *hunts], 2)  # [n, A, 7]
        own = self.kind * V + near  # [n, A, P]
        action = torch.cat(
            [self.steps.view(-1)[own[..., None] * V + around[..., :4]], self.still.view(-1, 3)[own]], 3
        )
        action = (F.pad(action, (0, 0, 0, 1), value=1.0) + TINY) * legal[
            :, :, None
        ]  # after nothing, all are alike
        probs = (choice / choice.sum(3, keepdim=True)) @ (
            action / action.sum(3, keepdim=True)
        )  # [n, A, G, 7]
        stay = F.one_hot(torch.tensor(STAY), 7).float()
        probs = torch.where(gone[..., None, None], stay, probs)
        if goals is None:
            return probs
        uniform = legal / legal.sum(2, keepdim=True)
        return torch.where((goals == NO_GOAL)[..., None], uniform, probs[:, :, 0])


assert list(GOALS) == ["stag", "hare"]
