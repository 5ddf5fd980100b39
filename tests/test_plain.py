"""Beyond the family of games: files that only name their planes and actions, `--network plain`, benchmarks/foraging.py."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import run_script

import pretrain_vae
import tracking
import train_world_model
from benchmarks import foraging, networks
from data import DataError, load
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import TransitionBatches, captured_goals, last_actions, load_samples, load_transitions
from data.trajectories import check_other, save_arrays
from envs import Rules
from envs.game import OtherGame, any_game_of
from metrics import observers, scores
from pretrain_vae import OpponentTracker, PlainVAE, TabularMOA
from tracking import checkpoints, fit
from train_world_model import ViewWorldModel, nothing_moves

CPU = torch.device("cpu")
GAME = OtherGame("Lamps-v0", planes=("ME", "LAMPS"), actions=("WAIT", "LEFT", "RIGHT"))
SIZE = (3, 4)


def episodes(count=40, seed=0):
    """Two agents. Each goes left where the lamps are in the upper row, else right; one that is odd the other way round,
    which its earlier actions alone tell; each fifth tick is WAIT."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 8, count)
    steps = int(lengths.sum())
    obs = np.zeros((steps + count, 2, 2, *SIZE), np.uint8)
    lamp = rng.integers(2, size=steps + count)
    place = rng.integers(SIZE[1], size=(steps + count, 2))
    for row in range(steps + count):
        for seat in range(2):
            obs[row, seat, 0, 1, place[row, seat]] = 1
            obs[row, seat, 1, 2 * lamp[row]] = 1
    odd = rng.integers(2, size=(count, 2))
    episode = np.repeat(np.arange(count), lengths)
    tick = np.arange(steps) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    actions = 1 + (lamp[np.arange(steps) + episode][:, None] ^ odd[episode])
    actions[tick % 5 == 4] = 0
    return dict(
        obs=obs,
        actions=actions.astype(np.int8),
        rewards=np.zeros((steps, 2), np.float32),
        active=np.ones((steps, 2), bool),
        episode_lengths=lengths.astype(np.int32),
        terminated=np.zeros(count, bool),
        metadata=np.array(json.dumps(dict(game=GAME.metadata()))),
    )


@pytest.fixture(scope="module")
def lamps(tmp_path_factory):
    path = tmp_path_factory.mktemp("lamps") / "lamps.npz"
    save_arrays(path, episodes())
    return path


def call(monkeypatch, *flags, script=pretrain_vae):
    """The script in this process. Returns: its exit code, 0 if it just ends."""
    return run_script(monkeypatch, script, *flags)


def refused(monkeypatch, capsys, *flags, script=pretrain_vae):
    """The one line with which the script refuses these flags."""
    capsys.readouterr()
    assert call(monkeypatch, *flags, script=script) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# ---- the file


def test_samples_of_a_file_of_another_game(lamps):
    arrays, samples = episodes(), load_samples(lamps)
    assert samples.game == GAME and samples.strategy_names == ["unknown"] and not samples.has_policy_probs
    assert len(samples) == arrays["actions"].size == len(samples.splits["all"])
    obs_row = np.arange(len(arrays["actions"])) + np.repeat(np.arange(40), arrays["episode_lengths"])
    expected = arrays["obs"][obs_row].reshape(-1, 2, *SIZE)
    np.testing.assert_array_equal(samples.frames[samples.rows], expected)
    np.testing.assert_array_equal(samples.actions, arrays["actions"].ravel())
    assert (captured_goals(samples) == -1).all()


def test_the_last_action_of_each_agent(lamps):
    arrays, samples = episodes(), load_samples(lamps)
    expected = np.full(arrays["actions"].shape, 3)
    expected[1:] = arrays["actions"][:-1]
    expected[np.cumsum(arrays["episode_lengths"])[:-1]] = 3
    np.testing.assert_array_equal(last_actions(samples), expected.ravel())


def test_observers_that_know_no_game(lamps):
    """Worked out by hand: after none, action 0 twice; after 0, action 2 three times and 0 once; after 2 always 2."""
    pairs = np.array([[1, 0, 3], [0, 0, 0], [0, 0, 4], [2, 0, 0]])
    samples = load_samples(lamps)
    observed = observers.predictions(samples, samples.splits["val"], None, pairs)
    last = last_actions(samples)[samples.splits["val"]]
    after = np.array([[2, 1, 4], [1, 1, 1], [1, 1, 5], [3, 1, 1]], np.float32)
    after /= after.sum(1, keepdims=True)
    np.testing.assert_allclose(observed["after_last"], after[last])
    repeated = np.full((3, 3), 3 / 16, np.float32)  # 5 of 8 were repetitions
    np.fill_diagonal(repeated, 5 / 8)
    np.testing.assert_allclose(observed["last"], np.concatenate([repeated, after[3:]])[last])


def of_obs(obs):
    obs[2, 1, 0, 0, 0] = 2


BAD = {
    "an action that the game does not have": (
        "actions",
        lambda actions: actions.fill(3),
        "actions: expected values in 0..2, found 3",
    ),
    "a cell of 2": ("obs", of_obs, "obs: expected cells of 0 or 1, found 2"),
    "a reward that is no number": ("rewards", lambda r: r.fill(np.nan), "rewards: expected finite numbers"),
    "nobody": ("active", lambda active: active.fill(False), "active: expected at least one active sample"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_do_not_fit_are_refused(name):
    key, change, message = BAD[name]
    arrays = episodes(2)
    change(arrays[key])
    with pytest.raises(DataError, match=message):
        check_other(arrays, "x.npz")


def test_planes_are_those_that_the_file_names():
    arrays = episodes(2)
    arrays["obs"] = arrays["obs"][:, :, :1]
    with pytest.raises(DataError, match=r"obs: expected shape \(\d+, 2, 2, 3, 4\)"):
        check_other(arrays, "x.npz")


@pytest.mark.parametrize(
    "names", [dict(planes="ME"), dict(actions=[]), dict(actions=["A", "A"]), dict(planes=3)]
)
def test_names_that_are_none_are_refused(names, tmp_path):
    with pytest.raises(ValueError, match=r"^game: expected"):
        any_game_of(GAME.metadata() | names)
    arrays = episodes(2) | {"metadata": np.array(json.dumps(dict(game=GAME.metadata() | names)))}
    save_arrays(tmp_path / "x.npz", arrays)
    with pytest.raises(DataError, match=r"x\.npz: "):
        load_samples(tmp_path / "x.npz")


def test_what_knows_the_family_refuses_other_games(lamps, tmp_path, monkeypatch, capsys):
    for read in (load, load_transitions):
        with pytest.raises(
            DataError, match=r"expected a game of this family \(.*--model cells.*found Lamps-v0"
        ):
            read(lamps)
    message = "lamps.npz: Lamps-v0 is not of the family that --network moa knows: use --network plain"
    assert message in refused(monkeypatch, capsys, "--data", lamps)


# ---- the network


def batch_of(path, groups=6):
    samples = load_samples(path)
    batches = pretrain_vae.make_batches(samples, CPU, "moa")
    return samples, batches, batches.take(np.arange(groups))


def small(samples, **sizes):
    game = samples.game
    torch.manual_seed(0)
    names = dict(planes=len(game.planes), actions=game.num_actions, goals=len(game.goals))
    sizes = dict(latent_dim=4, channels=8, turns=2, hidden=24, memory=16) | names | sizes
    return PlainVAE(*samples.frames.shape[2:], **sizes)


def test_every_parameter_is_trained(lamps):
    samples, _, batch = batch_of(lamps)
    model = small(samples)
    sums = pretrain_vae.loss_sums(model(batch, torch.randn(len(batch.tick), 4)), batch)
    (sums["moa"] + sums["kl"]).backward()
    assert sums["goal"] == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


def test_predictions_depend_on_earlier_actions_alone(lamps):
    """Of the same agent; what it did then, and saw, not what it does now."""
    samples, _, batch = batch_of(lamps)
    model = small(samples).eval()
    changed = (batch.tick == 1) & (batch.trajectory_id == 3)
    assert changed.sum() == 1
    other = batch._replace(action=torch.where(changed, (batch.action + 1) % 3, batch.action))
    seen = batch._replace(planes=torch.where(changed[:, None, None], 1 - batch.planes, batch.planes))
    with torch.no_grad():
        before, acted, saw = (model(b).action_logprobs for b in (batch, other, seen))
    later = (batch.tick > 1) & (batch.trajectory_id == 3)
    assert torch.equal((before != acted).any(1), later) and later.sum() > 1
    assert torch.equal((before != saw).any(1), later | changed)
    assert (before.exp().sum(1) - 1).abs().max() < 1e-5 and before.exp().min() > 0


def test_rows_that_stand_alone_have_no_history(lamps):
    samples, _, batch = batch_of(lamps)
    model = small(samples, context="observation").eval()
    other = batch._replace(action=(batch.action + 1) % 3)
    with torch.no_grad():
        assert torch.equal(model(batch).action_logprobs, model(other).action_logprobs)


def test_it_learns_what_a_history_tells(lamps, tmp_path):
    """The rule of `episodes`, from 80 agents: at first one of two, then certain, on agents that it never saw."""
    save_arrays(tmp_path / "other.npz", episodes(30, seed=9))
    samples, batches, _ = batch_of(lamps)
    model = small(samples, dropout=0.0, view_dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(180):
        batch = batches.take(np.arange(step % 2, 40, 2))
        output = model(batch, torch.randn(len(batch.tick), 4))
        loss = F.nll_loss(output.action_logprobs, batch.action) + 1e-3 * output.kl().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, _, batch = batch_of(tmp_path / "other.npz", 30)
    with torch.no_grad():
        probs = model.eval()(batch).action_logprobs.exp().numpy()
    ticks, targets = batch.tick.numpy(), batch.action.numpy()
    first, later = ticks == 0, (ticks > 0) & (ticks != 4)
    assert scores.nll(probs[first], targets[first]).mean() == pytest.approx(np.log(2), abs=0.15)
    assert scores.score(probs[later], targets[later])["top1"] > 0.95


# ---- the script


PLAIN = ("--network", "plain", "--epochs", 2, "--batch-size", 64, "--latent-dim", 4)


@pytest.fixture(scope="module")
def finished(lamps, tmp_path_factory):
    """A run on the lamps: its folder, and its settings."""
    cwd = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        assert call(patch, "--data", lamps, *PLAIN) == 0
    (folder,) = (cwd / "vae_ckpts").glob("vae__*/dim4")
    return folder


def test_a_run_reports_the_network_beside_simple_predictors(finished, lamps):
    report = json.loads((finished / "metrics.json").read_text())
    samples = load_samples(lamps)
    train, test = samples.splits["train"], samples.splits["test"]
    counts = np.bincount(samples.actions[train], minlength=3)
    majority = np.broadcast_to(counts / counts.sum(), (len(test), 3))
    assert report["majority"]["nll"] == pytest.approx(scores.score(majority, samples.actions[test])["nll"])
    pairs = observers.training_pairs(samples)
    assert pairs.sum() == len(train) and (pairs.sum(0) == counts).all()
    observed = observers.predictions(samples, test, None, pairs)
    for name in ("last", "after_last"):
        assert report[name] == pytest.approx(scores.summarize(observed[name], samples.actions[test]))
    missing = ("table", "bayes", "known", "uniform", "kl_to_bayes", "goal")
    assert all(report[name] is None for name in missing) and report["goals_trained"] == 0
    assert report["args"]["network"] == "plain" and 0 < report["test"]["nll"] < 3


def test_a_checkpoint_is_judged_on_another_file_of_its_game(finished, tmp_path, monkeypatch, capsys):
    save_arrays(tmp_path / "more.npz", episodes(12, seed=3))
    model, checkpoint = pretrain_vae.load_vae(finished)
    assert isinstance(model, PlainVAE) and model.sizes == checkpoint["sizes"] and not model.training
    assert call(monkeypatch, "--evaluate", finished, "--data", tmp_path / "more.npz") == 0
    report = json.loads((finished / "evaluate_more.json").read_text())
    _, _, batch = batch_of(tmp_path / "more.npz", 12)
    with torch.no_grad():
        nll = F.nll_loss(model(batch).action_logprobs, batch.action).item()
    assert report["test"]["nll"] == pytest.approx(nll, rel=1e-4)
    save_arrays(tmp_path / "hunt.npz", collect(CollectArgs(samples=20)).arrays())
    message = "expected a file of Lamps-v0, as the checkpoint's, found one of StagHunt-v0"
    assert message in refused(monkeypatch, capsys, "--evaluate", finished, "--data", tmp_path / "hunt.npz")


def test_a_resumed_run_equals_an_uninterrupted_one(finished, lamps, tmp_path, monkeypatch):
    """Weights, moments, random state and figures; stopped in its second epoch, whose batches were drawn already."""
    whole_epoch, epochs = pretrain_vae.train_epoch, []

    def stopped(*args):
        epochs.append(whole_epoch(*args))
        if len(epochs) == 2:
            raise tracking.UsageError("stopped")
        return epochs[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain_vae, "draw_figures", lambda *args: {})
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_vae, "train_epoch", stopped)
        assert call(patch, "--data", lamps, *PLAIN) == 2
    (folder,) = (tmp_path / "vae_ckpts").glob("vae__*/dim4")
    assert tracking.load_checkpoint(folder / "last.pt", pretrain_vae.CHECKPOINT)["epoch"] == 1
    assert call(monkeypatch, "--resume", folder.parent) == 0
    assert (folder / "loss.csv").read_bytes() == (finished / "loss.csv").read_bytes()
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(run / name, weights_only=True) for run in (finished, folder))
        for key in ("run", "seconds", "train_seconds"):  # the wall clock, and the name that comes from it
            del one[key], other[key]
        checkpoints.check_like("checkpoint", one, other)
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
        moments = ([m for s in c["optimizer"]["state"].values() for m in s.values()] for c in (one, other))
        assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
        assert torch.equal(one["rng"]["cpu"], other["rng"]["cpu"])
    reports = [json.loads((run / "metrics.json").read_text()) for run in (finished, folder)]
    assert reports[0]["test"] == reports[1]["test"]


@pytest.mark.parametrize("lacks", [("view_dropout",), ("view_dropout", "belief")])
def test_a_network_from_before_its_views_had_dropout_is_read(lacks, finished, lamps, tmp_path, monkeypatch):
    """It goes on as it began, without. Fields that came later are added; other networks' sizes are not."""
    folder = tmp_path / "vae_ckpts/vae__1/dim4"
    folder.mkdir(parents=True)
    for name in ("last.pt", "best.pt"):
        saved = tracking.load_checkpoint(finished / name, pretrain_vae.CHECKPOINT)
        del saved["sizes"]["view_dropout"]
        if "belief" in lacks:
            del saved["belief"]
        tracking.save_checkpoint(folder / name, saved)
    model, _ = pretrain_vae.load_vae(folder)
    assert model.view_dropout.p == 0.0 and model.sizes["view_dropout"] == 0.0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain_vae, "draw_figures", lambda *args: {})
    assert call(monkeypatch, "--resume", folder.parent, "--data", lamps) == 0


def test_no_decoder(lamps, monkeypatch, capsys):
    says = refused(monkeypatch, capsys, "--data", lamps, "--network", "plain", "--loss", "recon")
    assert "--network plain: it has no decoder for --loss recon: use --loss moa" in says


def test_goal_heads_where_goals_are_recorded(tmp_path):
    """In the stag hunt, whose boards are not turned: the network knows no symmetries."""
    save_arrays(tmp_path / "x.npz", collect(CollectArgs(samples=600)).arrays())
    samples, _, batch = batch_of(tmp_path / "x.npz")
    output = small(samples)(batch, torch.randn(len(batch.tick), 4))
    assert output.goal_logprobs.shape == (len(batch.tick), 2, 7)
    assert pretrain_vae.loss_sums(output, batch)["goal"] > len(batch.tick)


def test_play_refuses_it(finished):
    model, checkpoint = pretrain_vae.load_vae(finished)
    with pytest.raises(
        tracking.UsageError, match="run: of --network plain, which cannot be followed in play"
    ):
        fit.check_vae("run", model, checkpoint, Rules(), [])
    with pytest.raises(ValueError, match="--network plain cannot be followed"):
        OpponentTracker(model, 2, 3)
    with pytest.raises(ValueError, match="--network plain cannot be followed"):
        TabularMOA(model, torch.zeros(1, 64, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.long), (1, 4))


def test_networks_compares_the_script_s_own():
    for name, network in (("MOA", pretrain_vae.VAE), ("plain", PlainVAE)):
        assert isinstance(networks.HISTORY[name][0](4, 4).vae, network)


def test_networks_compares_the_plain_network_as_it_is_trained(tmp_path):
    """Of the sizes that `--network plain` has on a file; and without the dropout of its views."""
    save_arrays(tmp_path / "x.npz", collect(CollectArgs(samples=600)).arrays())
    args = pretrain_vae.Args(network="plain")
    trained = pretrain_vae.saved_vae(pretrain_vae.network_sizes(args, load_samples(tmp_path / "x.npz")), args)
    assert networks.HISTORY["plain"][0](8, 8).vae.sizes == trained.sizes
    assert networks.HISTORY["plain, all views"][0](8, 8).vae.sizes == trained.sizes | dict(view_dropout=0.0)


# ---- the world model


def world_of(path):
    """Its transitions, batches, a small model, and the arguments of the model for the first eight transitions."""
    transitions = load_transitions(path, other_games=True)
    batches = TransitionBatches.of(transitions, CPU, own=False)
    torch.manual_seed(0)
    model = ViewWorldModel(*SIZE, planes=2, actions=3, rewards=[0.0, 0.5, 1.0], channels=8)
    return transitions, batches, model, batches.take(np.arange(8), random=False)


def test_transitions_are_what_all_agents_see(lamps):
    arrays, (transitions, _, _, batch) = episodes(), world_of(lamps)
    states, actions, next_states, rewards, ends = batch
    views = arrays["obs"].reshape(len(arrays["obs"]), 4, -1)
    first = int(arrays["episode_lengths"][0])
    step = np.arange(8) + (np.arange(8) >= first)  # the row of obs before each of eight steps of two episodes
    np.testing.assert_array_equal(states, views[step])
    np.testing.assert_array_equal(next_states, views[step + 1])
    np.testing.assert_array_equal(actions, arrays["actions"][:8])
    assert (rewards == 0).all() and (ends == 0).all() and 3 <= first < 8
    train, test = (set(transitions.episodes[transitions.splits[name]].tolist()) for name in ("train", "test"))
    assert len(train) == 32 and len(test) == 4 and not train & test


def test_agents_are_alike_for_the_world_model(lamps):
    """Their predictions change places with them, and all parameters are trained."""
    _, _, model, (states, actions, next_states, rewards, ends) = world_of(lamps)
    terms, _ = model(states, actions, next_states, rewards + 1, ends)
    (-terms.stack().sum()).backward()
    assert all((parameter.grad != 0).any() for parameter in model.parameters())
    assert (terms.prey == 0).all()
    swapped = model.outputs(states.view(8, 2, 2, -1).flip(1).reshape(states.shape), actions.flip(1))
    logits, paid, end = model.outputs(states, actions)
    torch.testing.assert_close(swapped[0].view(8, 2, 2, -1).flip(1).reshape(logits.shape), logits)
    torch.testing.assert_close(swapped[1].flip(1), paid)
    torch.testing.assert_close(swapped[2], end)


def test_an_unknown_reward_is_no_loss(lamps):
    _, _, model, (states, actions, next_states, rewards, ends) = world_of(lamps)
    unknown = rewards.clone()
    unknown[:, 1] = np.nan
    terms, _ = model(states, actions, next_states, unknown, ends)
    first = model.outputs(states, actions)[1][:, 0].log_softmax(1)
    torch.testing.assert_close(terms.rewards, first[:, 0])


def test_the_most_likely_reward_is_one_that_is_paid(lamps):
    """Paid in one transition of five, 0 is the most likely reward, and a fifth of the pay the expected one."""
    _, _, model, (states, actions, next_states, rewards, ends) = world_of(lamps)
    for parameter in (model.totals[-1].weight, model.totals[-1].bias):
        torch.nn.init.zeros_(parameter)
    logits = torch.tensor([0.8, 0.1, 0.1]).log() / train_world_model.LOGIT_SCALE
    model.totals[-1].bias.data[:3] = logits
    found = model.predict(states, actions)
    assert (found.rewards == 0).all()
    torch.testing.assert_close(found.expected_rewards, torch.full((8, 2), 0.15))
    terms, _ = model(states, actions, next_states, rewards + 0.5, ends)
    torch.testing.assert_close(terms.rewards, torch.full((8,), 2 * np.log(0.1), dtype=torch.float32))


def test_more_rewards_than_classes_are_rounded():
    assert train_world_model.spread_values([0.0, 0.3, 1.0]) == [0.0, 0.3, 1.0]
    found = train_world_model.spread_values([0.0, *np.arange(1, 200) / 100.0])
    assert len(found) <= train_world_model.MAX_REWARDS and found[0] == 0.0 and found[-1] == 1.99
    assert np.diff(found).max() < 0.05 and found == sorted(set(found))


def test_if_nothing_moved(lamps):
    """By hand: rewards of 0 and 1 beside their mean in training, and the cells that change."""
    transitions, batches, _, (states, _, next_states, _, _) = world_of(lamps)
    batches.rewards = torch.zeros(len(transitions), 2)
    batches.rewards[0, 0] = 1.0
    found = nothing_moves(batches, np.arange(4), np.arange(8))
    mean = 1 / 8
    assert found["reward_mse"] == pytest.approx(((1 - mean) ** 2 + 15 * mean**2) / 16)
    assert found["exact_rewards"] == 7 / 8
    changed = (states != next_states).numpy()
    assert found["obs_mse"] == pytest.approx(changed.mean()) and changed.mean() > 0
    assert found["exact_transitions"] == (~changed).all((1, 2)).mean()


def test_a_world_model_is_trained_and_saved(lamps, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--data", lamps, "--model", "cells", "--batch-size", 32)
    assert call(monkeypatch, *flags, "--epochs", 1, script=train_world_model) == 0
    out = capsys.readouterr().out
    assert "[WM] if nothing moved, and with the mean reward: obs_mse" in out and "judge it" not in out
    (folder,) = (tmp_path / "wm_ckpts").iterdir()
    model, checkpoint = train_world_model.load_world_model(folder)
    assert isinstance(model, ViewWorldModel) and checkpoint["game"] == GAME.metadata()
    report = json.loads((folder / "metrics.json").read_text())
    assert report["nothing_moves"]["reward_mse"] == 0 and report["test"]["obs_mse"] > 0
    says = refused(monkeypatch, capsys, "--data", lamps, script=train_world_model)
    assert "expected a game of this family" in says
    says = refused(monkeypatch, capsys, *flags, "--actions", "own", script=train_world_model)
    assert "--actions own: outside the family of games all actions are needed" in says


# ---- Level-Based Foraging


def test_foraging_without_the_package(monkeypatch):
    monkeypatch.setattr(foraging.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tracking.UsageError, match="no package lbforaging: `python -m pip install -r"):
        foraging.collect(10, 1)


def test_foraging_is_recorded_as_it_is_played():
    pytest.importorskip("lbforaging")
    arrays = foraging.collect(120, seed=3)
    again = foraging.collect(120, seed=3)
    assert all(np.array_equal(arrays[key], again[key]) for key in arrays), "deterministic given a seed"
    assert not np.array_equal(arrays["obs"][:100], foraging.collect(120, seed=4)["obs"][:100])
    t, game = check_other(arrays)
    assert game == foraging.GAME and t.strategy_names == ["H1", "H3"]
    own, others, fruit = np.split(t.obs, [2, 4], axis=2)
    assert (own.sum((2, 3, 4)) == 1).all() and (others.sum((2, 3, 4)) == 2).all()
    np.testing.assert_array_equal(own.sum(1) - own[:, 0], others[:, 0])
    assert (fruit == fruit[:, :1]).all() and (fruit[t.obs_row].sum((2, 3, 4)) <= 3).all()
    cell = own.sum(2).reshape(len(own), 3, -1).argmax(2)  # [N+E, A]
    moved = cell[t.obs_row + 1] - cell[t.obs_row]
    step = np.array([0, -8, 8, -1, 1, 0])[t.actions]
    assert np.isin(moved, [0]).any() and ((moved == step) | (moved == 0)).all()
    gathered = fruit[t.obs_row].sum((2, 3, 4)) > fruit[t.obs_row + 1].sum((2, 3, 4))
    np.testing.assert_array_equal(gathered.any(1), (t.rewards > 0).any(1))


def test_foraging_is_a_development_requirement():
    text = (foraging.ROOT / "requirements-dev.txt").read_text()
    assert re.search(r"^lbforaging>=2", text, re.M)
