"""What a policy remembers of its co-players: `--om gru` and `--om liam`."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hidden_game import HIDDEN

import hop_ppo
import tracking
from envs.grid import FAR
from hop_ppo import Args, Collector, HistoryInfo, Memory, make_agent, make_envs, make_memory, rollout

ROWS, TICKS = 12, 60


def played(
    om: str, team: str = "mixed", team_episodes: int = 2
) -> tuple[hop_ppo.ActorCritic, hop_ppo.Batch, Args]:
    """Two rollouts, so that some teams go on from the first; of the second, in which teams begin and end."""
    torch.manual_seed(1)
    args = Args(om=om, num_steps=TICKS, team_reward=team == "self", learning_rate=0.0)
    memory = make_memory(om, HIDDEN)
    envs = make_envs(HIDDEN, ROWS, team, team_episodes)
    collector = Collector(envs, args, None, 1, memory)
    agent = make_agent("objects", HIDDEN, collector.opponents.info_size, memory)
    rollout(agent, collector, args, torch.zeros(3))
    return agent, rollout(agent, collector, args, torch.zeros(3)), args


@pytest.mark.parametrize("team", ["mixed", "self"])
def test_an_update_remembers_what_the_rollout_did(team):
    """With the same weights, sample by sample, also of rows in another order; teams meet, and episodes begin, in between."""
    agent, batch, _ = played("gru", team)
    history = batch.history
    rows = torch.randperm(history.fresh.shape[1])
    fresh = history.fresh.sum(0)
    assert (fresh > 0).all() and (history.inputs[..., -1].sum(0)[:, 0] > fresh).any()
    assert history.hidden.abs().sum() > 0
    everything = torch.arange(len(batch.actions))
    info, loss = hop_ppo.remember(agent.memory, history, everything, rows)
    torch.testing.assert_close(info, batch.opponent_info)
    assert loss == 0.0


def test_minibatches_are_whole_rows_and_hold_every_sample_once():
    _, batch, _ = played("gru")
    parts = list(hop_ppo.minibatches(batch, 5))
    assert torch.cat([samples for samples, _ in parts]).sort()[0].tolist() == list(range(len(batch.actions)))
    assert torch.cat([rows for _, rows in parts]).sort()[0].tolist() == list(range(ROWS))
    for samples, rows in parts:
        assert set((batch.history.samples[samples] % ROWS).tolist()) <= set(rows.tolist())


def test_a_new_team_is_met_without_memories_and_an_old_one_with_them():
    envs = make_envs(HIDDEN, 8, "mixed", 2, episode="board")
    infos = hop_ppo.to_tensors(envs.reset(seed=1)[1])
    opponents = HistoryInfo(infos, 1, Memory(2, 7, predicts=False), HIDDEN)
    assert opponents.fresh.all() and not opponents.hidden.any()
    for episode in (1, 2, 3):
        opponents.features()
        infos = hop_ppo.to_tensors(envs.step(infos["action_mask"].argmax(1).numpy())[-1])
        opponents.update(infos)
        assert opponents.hidden.abs().sum((1, 2)).min() > 0 and not opponents.fresh.any()
        boards = torch.arange(8) < 4
        infos = hop_ppo.to_tensors(envs.reset(options={"reset_mask": boards.numpy()})[1])
        opponents.reset(boards, infos)
        met = boards & (episode == 2)
        assert opponents.fresh.tolist() == met.tolist() == (opponents.hidden == 0).all(2).all(1).tolist()
        assert opponents.fresh.tolist() == infos["new_team"].tolist()


def test_a_board_that_is_over_is_not_remembered_twice():
    envs = make_envs(HIDDEN, 30, "3RANDOM".replace("3", "2"), 1, episode="board")
    infos = hop_ppo.to_tensors(envs.reset(seed=1)[1])
    opponents = HistoryInfo(infos, 1, Memory(2, 7, predicts=False), HIDDEN)
    over = torch.zeros(30, dtype=torch.bool)
    while not over.any():
        opponents.features()
        _, _, terminated, truncated, infos = envs.step(infos["action_mask"].argmax(1).numpy())
        over = torch.as_tensor(terminated | truncated)
        infos = hop_ppo.to_tensors(infos)
        opponents.update(infos)
    hidden = opponents.hidden
    opponents.features()
    opponents.update(hop_ppo.to_tensors(envs.step(infos["action_mask"].argmax(1).numpy())[-1]))
    assert torch.equal(opponents.hidden[over], hidden[over])
    assert (opponents.hidden[~over] != hidden[~over]).any(2).all()


def test_what_is_seen_of_a_co_player_by_hand():
    """Against a slow loop over learners, co-players and prey, in self-play, where seats differ by row."""
    envs = make_envs(HIDDEN, 6, "self", 1)
    infos = hop_ppo.to_tensors(envs.reset(seed=3)[1])
    opponents = HistoryInfo(infos, HIDDEN.hunters, Memory(2, 7, predicts=False), HIDDEN)
    rng = np.random.default_rng(1)
    for _ in range(12):
        before = infos
        opponents.features()
        mask = infos["action_mask"].numpy()
        infos = hop_ppo.to_tensors(envs.step((mask * rng.random(mask.shape)).argmax(1))[-1])
        opponents.update(infos)
    assert not infos["active"].all()

    def nearest(infos, row, hunter, kind):
        cell = int(infos["hunters"][row, hunter])
        prey = [0] if kind == 0 else [1]
        steps = [int(infos["distances"][row, p, cell]) for p in prey] if cell < HIDDEN.cells else [FAR]
        return min(24, *steps, 24) / 8

    inputs = opponents.inputs()
    A, K = HIDDEN.hunters, 2
    rows = (infos["tick"] > before["tick"]).nonzero()[:, 0].tolist()  # the others' boards are over
    assert len(rows) >= 6
    for row in rows:
        seat = int(infos["seat"][row])
        for j in range(1, A):
            other = (seat + j) % A
            values = [nearest(infos, row, other, kind) for kind in range(K)]
            own = [nearest(infos, row, seat, kind) for kind in range(K)]
            was = [nearest(before, row, other, kind) for kind in range(K)]
            approach = [8 * min(0.5, max(-0.5, a - b)) for a, b in zip(was, values, strict=True)]
            action = np.eye(7)[int(infos["joint_actions"][row, other])].tolist()
            tick = int(infos["tick"][row])
            rest = [float(infos["active"][row, other]), tick / HIDDEN.horizon, float(tick == 0)]
            expected = [*values, *own, *approach, *action, *rest]
            np.testing.assert_allclose(inputs[row, j - 1], expected, atol=1e-6)


def test_the_loss_of_predictions_by_hand():
    """One row, two ticks, two co-players, of which one has left before the second tick: three predictions."""
    torch.manual_seed(0)
    memory = Memory(2, 7, predicts=True)
    inputs = torch.randn(2, 1, 2, memory.input_size(2, 7))
    actions = torch.tensor([[[0, 6]], [[3, 4]]])
    playing = torch.tensor([[[True, True]], [[True, False]]])
    history = hop_ppo.History(
        inputs, torch.zeros(2, 1).bool(), torch.zeros(1, 2, 32), actions, playing, torch.arange(2)
    )
    remembered = memory.replay(history, torch.tensor([0]))
    loss, errors = 0.0, 0.0
    for tick, other in [(0, 0), (0, 1), (1, 0)]:
        outputs = memory.decoder(remembered[tick, 0, other])
        loss -= outputs[:7].log_softmax(0)[actions[tick, 0, other]] / 3
        errors += (outputs[7:] - inputs[tick, 0, other, :4]).square().sum() / 12
    found = memory.prediction_loss(remembered, history, torch.tensor([0]))
    torch.testing.assert_close(found, loss + errors)


@pytest.mark.parametrize("om", ["gru", "liam"])
def test_who_trains_the_memory(om):
    """Recurrent PPO: PPO's loss. LIAM: the predictions alone, so the GRU's gradient does not depend on PPO's loss."""
    agent, batch, _ = played(om)
    torch.nn.init.normal_(agent.other.weight)
    torch.nn.init.normal_(agent.actor.weight)
    gradients = []
    for advantages in (batch.advantages, torch.randn_like(batch.advantages)):
        torch.manual_seed(5)
        batch.advantages = advantages
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
        settings = dict(num_minibatches=1, update_epochs=1, max_grad_norm=1e9)
        hop_ppo.update(agent, optimizer, batch, Args(om=om, learning_rate=0.0, **settings), 1.0)
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in agent.parameters())
        gradients.append(agent.memory.cell.weight_ih.grad.clone())
    assert torch.equal(*gradients) == (om == "liam")


def test_liam_learns_to_predict():
    agent, batch, _ = played("liam")
    rows = torch.arange(ROWS)
    optimizer = torch.optim.Adam(agent.memory.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = agent.memory.prediction_loss(agent.memory.replay(batch.history, rows), batch.history, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.7


def test_without_co_players_there_is_nothing_to_predict():
    agent, batch, _ = played("liam")
    rows = torch.arange(ROWS)
    alone = replace(batch.history, playing=torch.zeros_like(batch.history.playing))
    loss = agent.memory.prediction_loss(agent.memory.replay(alone, rows), alone, rows)
    loss.backward()
    assert loss == 0.0
    assert not any(parameter.grad.any() for parameter in agent.memory.parameters())


def test_rows_whose_learners_have_left_are_no_minibatch():
    _, batch, _ = played("gru", "self")
    batch.history.samples = batch.history.samples[batch.history.samples % len(batch.history.hidden) == 3]
    ((samples, rows),) = hop_ppo.minibatches(batch, len(batch.history.hidden))
    assert rows.tolist() == [3] and len(samples) == len(batch.history.samples)


def test_an_evaluation_does_not_search_with_a_memory(monkeypatch):
    saved = dict(run="run", args=asdict(Args(om="gru")))
    monkeypatch.setattr(hop_ppo, "load_agent", lambda folder: (None, saved))
    monkeypatch.setattr(tracking, "find_folder", Path)
    with pytest.raises(tracking.UsageError, match="--om gru: plays real boards, without a search"):
        hop_ppo.evaluate_run(Args(evaluate="run", plan=True))
