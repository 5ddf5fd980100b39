"""goals.py says on cells what the MOA says on planes."""

import numpy as np
import pytest
import torch
from games import check_draws

from envs import Rules, StagHunt, random_actions
from pretrain_vae import VAE, TabularMOA


@pytest.mark.parametrize("spread", [1, 100])
def test_equals_the_moa_on_planes(spread):
    """spread: also with scores of the prey as far apart as those of a trained network."""
    torch.manual_seed(0)
    rules = Rules(height=6, width=5, blocks=4, hares=3, horizon=20, hunters_needed=1)
    model = VAE(6, 5, 20).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.moa.choice[3].weight *= spread
    B, A, K = 16, 4, 30
    env, rng, moa = StagHunt(B, rules), np.random.default_rng(0), model.moa
    env.reset(seed=3)
    cells = lambda: (torch.as_tensor(env.hunters), torch.as_tensor(env.prey))  # noqa: E731
    policy = TabularMOA(model, torch.as_tensor(env.blocks), cells()[1], rules.prey_counts)
    seen = 0
    while not env.ended.all():
        (hunters, prey), tick = cells(), torch.as_tensor(env.tick).long()
        planes = torch.as_tensor(env.obs).flatten(3).flatten(0, 1).float()
        boards = planes.unflatten(0, (B, A))[:, 0, 2:]
        with torch.no_grad():
            prey_maps = moa.prey_nearness(boards, rules.prey)
            board = torch.arange(B).repeat_interleave(A)
            features = moa.encode_board(planes, board, prey_maps, tick.repeat_interleave(A))
            said = moa.action_logprobs(features)[:, moa.behaviours :].exp().view(B, A, 2, 7)
        found = policy.probs(torch.arange(B), hunters, prey, tick)
        here = hunters < K
        torch.testing.assert_close(found[here], said[here], atol=1e-5, rtol=1e-4)
        assert (found[~here][..., 4] == 1).all()
        legal = torch.as_tensor(env.legal_actions()).float()
        three = torch.cat(
            [found, (legal / legal.sum(2, keepdim=True))[:, :, None]], 2
        )  # RANDOM: uniform over legal actions
        goals = torch.randint(3, (B, A))
        one = policy.probs(torch.arange(B), hunters, prey, tick, goals)
        torch.testing.assert_close(
            one, three.gather(2, goals[..., None, None].expand(-1, -1, -1, 7))[:, :, 0]
        )
        if env.tick[0] in (3, 12):
            check_draws(policy, torch.arange(B), hunters, prey, tick, goals)
        seen += int(here.sum())
        env.step(random_actions(env, rng))
    assert seen > 500
    assert (prey == K).any() and not here.all()


@pytest.mark.parametrize("goal", [-1, 3])
@pytest.mark.parametrize("method", ["probs", "sample"])
def test_a_goal_that_is_none_is_refused(goal, method):
    policy = TabularMOA(VAE(4, 4, 9), torch.zeros(1, 16, dtype=torch.bool), torch.tensor([[3, 5]]), (1, 1))
    board, hunters, prey = torch.zeros(1, dtype=torch.int64), torch.tensor([[1, 2]]), torch.tensor([[3, 5]])
    draw = getattr(policy, method)
    with pytest.raises(ValueError, match=rf"goals: expected 0 to 1, or 2 \(none\), got \[{goal}\]"):
        draw(board, hunters, prey, board, torch.tensor([[0, goal]]))


def test_needs_a_moa():
    with pytest.raises(ValueError, match="no MOA head"):
        TabularMOA(
            VAE(4, 4, 9, loss="recon"), torch.zeros(1, 16, dtype=torch.bool), torch.zeros(1, 1).long(), (1, 0)
        )
