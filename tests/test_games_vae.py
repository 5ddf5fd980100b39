"""Trajectories, observers and pretrain_vae.py on a game that is not the stag hunt: nothing of 5 planes or 7 actions."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import run_script
from games import check_draws
from saved import whole_checkpoint, write_run

import data.collect
import data.flatten
import data.trajectories
import pretrain_vae
import tracking
from data import DataError, card, default_or_fresh, load, training_file
from data.collect import Args, collect, collect_to_file
from data.datasets import (
    Batches,
    captured_goals,
    first_boards,
    load_samples,
    load_transitions,
    recorded_goals,
    samples_of_episodes,
)
from data.flatten import Args as FlatArgs
from data.flatten import flatten
from data.trajectories import Trajectories, check, judged_file, save_arrays
from envs import Rules, make_core, make_rules, random_actions, snowdrift
from envs.game import OWN_PLANES
from metrics import observers, scores, vae_reports
from tracking import figures

CPU = torch.device("cpu")
SMALL = snowdrift.Rules(agents=3, drifts=4, blocks=2, height=5, width=5, horizon=12)


@pytest.fixture(scope="module")
def drifts():
    return collect(Args(rules=SMALL, samples=1500))


# ---- the file


def test_a_file_says_which_game_it_is_of(drifts, tmp_path):
    save_arrays(tmp_path / "x.npz", drifts.arrays())
    found = load(tmp_path / "x.npz")
    assert found.game == snowdrift.GAME and found.rules == SMALL
    assert found.obs.shape[1:] == (3, 4, 5, 5) and found.policy_probs.shape[1:] == (3, 2, 6)
    assert found.strategy_names == ["ND", "FIX"] and found.active.all()
    assert found.metadata["channels"] == [*OWN_PLANES, "DRIFTS"]
    assert found.metadata["actions"][-1] == "REMOVE" and len(found.metadata["action_counts"]) == 6
    assert found.metadata["dataset_id"] == "snowdrift/3a4d2b-5x5/scripted-v0"
    hunt = collect(Args(samples=20))
    assert "game" not in hunt.metadata and hunt.game.id == "StagHunt-v0" and hunt.rules == Rules()


def change(drifts, key, change):
    """A file with one array changed in place."""
    arrays = {name: array.copy() for name, array in drifts.arrays().items()}
    change(arrays[key])
    return arrays


def leave(active):
    active[3, 1] = False


BAD = {
    "an agent that leaves": (lambda t: change(t, "active", leave), "active: expected True"),
    "an action of the stag hunt": (
        lambda t: change(t, "actions", lambda actions: actions.fill(6)),
        "actions: expected values in 0..5, found 6",
    ),
    "five planes": (
        lambda t: t.arrays() | {"obs": np.pad(t.obs, [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0)])},
        "obs: expected shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_its_game_is_refused(name, drifts):
    make, message = BAD[name]
    with pytest.raises(DataError, match=message):
        check(make(drifts))


def agents_gone(t):
    """Agent 1 leaves at its first tick in all that the file says."""
    obs, active, actions = t.obs.copy(), t.active.copy(), t.actions.copy()
    obs[:, 1, 0] = 0
    others = obs[:, :, 0].sum(1, keepdims=True) > obs[:, :, 0]
    obs[:, :, 1] = others
    active[:, 1], actions[:, 1] = False, 4
    rewards = t.rewards.copy()
    rewards[:, 1] = 0
    return replace(t, obs=obs, active=active, actions=actions, rewards=rewards).arrays()


METADATA = {
    "no game": (dict(game={"id": "Chess-v0"}), "`game` as `python -m data.collect` writes it"),
    "another game of this name": (
        dict(game=snowdrift.GAME.metadata() | dict(leaves=True)),
        "`game` as this version's Snowdrift-v0, found another description",
    ),
    "fewer drifts": (dict(rules=vars(SMALL) | dict(drifts=3)), "drifts at least 4, as the arrays, found 3"),
    "other agents": (
        dict(rules=vars(SMALL) | dict(agents=2)),
        "`rules` with hunters 3, as the arrays, found 2",
    ),
    "a shorter horizon": (dict(rules=vars(SMALL) | dict(horizon=3)), "horizon at least 12"),
    "a rule that is none": (dict(rules=vars(SMALL) | dict(reward="much")), "`rules` of a game"),
    "a rule of another game": (
        dict(rules=vars(SMALL) | dict(stags=1)),
        "unknown rule 'stags' of Snowdrift-v0",
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_do_not_fit_are_refused(name, drifts):
    values, message = METADATA[name]
    with pytest.raises(DataError, match=message) as caught:
        check(replace(drifts, metadata=drifts.metadata | values).arrays())
    assert len(str(caught.value).splitlines()) == 1


def test_agents_that_never_leave_are_active_throughout(drifts):
    with pytest.raises(DataError, match="active: expected True: agents of this game never leave"):
        check(agents_gone(drifts))


def test_the_card_prints_another_game(drifts, tmp_path):
    save_arrays(tmp_path / "x.npz", drifts.arrays())
    text = card.block(drifts, tmp_path / "x.npz")
    removed = (drifts.actions == 5).sum()
    assert f"| REMOVE | {removed:,} |" in text and "REMOVE an agent" in text
    left = drifts.obs[np.cumsum(drifts.episode_lengths + 1) - 1, 0, 3].sum((1, 2))[~drifts.terminated]
    assert f"| drifts left on truncated boards | mean {left.mean():.2f} |" in text
    assert "Left the board" not in text and "hunts that capture" not in text


# ---- the default, fresh and unmasked files of each game


def test_files_of_a_game_are_collected_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr(data.trajectories, "DEFAULT_FILE", tmp_path / "stag_hunt_4p5b_8x8.npz")
    wanted = []

    def tiny(args):
        wanted.append((args.rules, args.steps, args.seed, args.unmasked))
        collect_to_file(replace(args, samples=20, steps=0))

    monkeypatch.setattr(data.collect, "collect_to_file", tiny)
    rules, _ = make_rules("Snowdrift-v0")
    for _ in range(2):  # the second time it is there
        assert training_file("data/snowdrift_4a6d_8x8.npz") == tmp_path / "snowdrift_4a6d_8x8.npz"
        for name in ("fresh_1001", "unmasked_1002"):
            expected = tmp_path / f"snowdrift_3a4d2b_5x5_{name}.npz"
            assert default_or_fresh(name.split("_")[0], SMALL) == expected
    assert wanted == [(rules, 0, 1, 0.0), (SMALL, 100_000, 1001, 0.0), (SMALL, 100_000, 1002, 0.3)]
    small_hunt, _ = make_rules("StagHunt-4x4-v0")
    assert default_or_fresh("fresh", small_hunt) == tmp_path / "stag_hunt_4p0b_4x4_fresh_1001.npz"
    assert load(tmp_path / "snowdrift_3a4d2b_5x5_unmasked_1002.npz").metadata["unmasked"] == 0.3
    longer = replace(SMALL, horizon=20)
    with pytest.raises(DataError, match=r"expected the checkpoint's rules, Rules\(.*horizon=20"):
        default_or_fresh("fresh", longer)
    for path in tmp_path.glob("*_100?.npz"):
        with pytest.raises(DataError, match="this file is for judging only"):
            training_file(path)


def test_a_run_that_keeps_no_rules_is_judged_by_the_default_ones_of_its_game(monkeypatch, tmp_path):
    """That is stated; of a game that cannot be played here nothing is assumed; a file's name says all."""
    asked = []
    monkeypatch.setattr(
        data.trajectories, "default_or_fresh", lambda path, rules=None: asked.append(rules) or tmp_path
    )
    game = SMALL.game.metadata()
    assert judged_file("fresh", dict(game=game, rules=asdict(SMALL))) == (tmp_path, [])
    path, assumed = judged_file("unmasked", dict(game=game, rules=None))
    assert path == tmp_path and assumed == [
        f"unmasked: the run does not keep its rules: the default ones of {SMALL.game.id}"
    ]
    assert judged_file("mine.npz", dict(game=game, rules=None)) == (tmp_path, [])
    assert asked == [SMALL, type(SMALL)(), None]
    with pytest.raises(DataError, match="fresh: the rules of Chess-v0 are not known: name a file"):
        judged_file("fresh", dict(game=game | {"id": "Chess-v0"}, rules=None))


def test_where_collected_files_lie_by_default():
    assert Args().out == "data/stag_hunt_4p5b_8x8.npz"
    assert Args(env_id="Snowdrift-v0").out.endswith("data/snowdrift_4a6d_8x8.npz")
    assert Args(env_id="Snowdrift-6x6-v0", env_args=("blocks=3",)).out.endswith("snowdrift_4a6d3b_6x6.npz")
    assert Args(env_id="Snowdrift-v0").strategies == ("ND", "FIX")
    assert Args(env_args=("height=4", "width=4", "blocks=0")).rules == Rules(height=4, width=4, blocks=0)


MISTAKES = {
    "an unknown game": (["--env-id", "Chess-v0"], "unknown game 'Chess-v0': choose from StagHunt-v0"),
    "a rule of another game": (
        ["--env-id", "Snowdrift-v0", "--env-args", "stags=2"],
        "unknown rule 'stags' of Snowdrift-v0: choose from agents, drifts",
    ),
    "no number": (["--env-args", "height=tall"], "height: expected a whole number, got 'tall'"),
    "more drifts than free cells": (
        ["--env-id", "Snowdrift-v0", "--env-args", "height=4", "width=4", "blocks=8", "drifts=5"],
        "rules: 1[57] hunters, prey and blocks do not fit on 4x4 = 16 cells",
    ),
    "a strategy of another game": (["--env-id", "Snowdrift-v0", "--strategies", "NS"], "choose from ND, FIX"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("module", [data.collect, data.flatten])
def test_mistakes_on_the_command_line_are_one_line(module, name):
    flags, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message) as caught:
        args = tracking.parse_args(module.Args, "", [*flags, "--out", "x.npz"])
        module.collect(args) if module is data.collect else module.flatten(args)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("drifts_stated", "blocks_stated"), [(30, 2), (19, 4)])
def test_a_file_whose_rules_fit_no_board_is_refused(drifts, drifts_stated, blocks_stated, tmp_path):
    """More drifts than cells, or than the blocks and agents leave free: by all who read files."""
    rules = drifts.metadata["rules"] | dict(drifts=drifts_stated, blocks=blocks_stated)
    metadata = np.array(json.dumps(drifts.metadata | dict(rules=rules)))
    save_arrays(tmp_path / "x.npz", drifts.arrays() | dict(metadata=metadata))
    things = drifts_stated + blocks_stated + 3
    message = f"found rules: {things} hunters, prey and blocks do not fit on 5x5 = 25 cells"
    for read in (load, load_samples, load_transitions, lambda path: first_boards(path, SMALL)):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "x.npz")
        assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


# ---- samples and observers


def test_samples_are_what_the_agents_see(drifts):
    samples = samples_of_episodes(drifts, split=False)
    step, seat = np.divmod(np.arange(len(samples)), 3)
    expected = drifts.obs[drifts.obs_row[step], seat]
    np.testing.assert_array_equal(samples.frames[samples.rows], expected)
    np.testing.assert_array_equal(samples.boards[samples.board], expected[:, 2:])
    batches = Batches.of(samples, CPU, recorded_goals(samples), whole_episodes=True)
    batch = batches.take(np.arange(len(batches.start)))
    np.testing.assert_array_equal(batch.planes.unflatten(2, (5, 5)).numpy(), expected)
    assert batch.max_prey == 4 and batches.action_permutation.shape == (8, 6)
    who = drifts.strategies[drifts.episode[step], seat]
    np.testing.assert_array_equal(batch.goal.numpy(), who)  # ND removes, FIX rides
    for _, part in samples.parts():
        np.testing.assert_array_equal(part.obs, drifts.obs[: len(part.obs)])
        break


def test_observers_of_another_game(drifts):
    samples = samples_of_episodes(drifts, split=True)
    table = observers.training_table(samples)
    assert table.shape == (25, 12, 4, 2)
    features = observers.table_features(drifts)
    assert features.shape == (*drifts.actions.shape, 3) and (features[..., 2] == 3).all()
    on_drift = (drifts.obs[drifts.obs_row][:, :, 0] & drifts.obs[drifts.obs_row][:, :, 3]).any((2, 3))
    np.testing.assert_array_equal(features[..., 0] == 0, on_drift)
    index = samples.splits["test"]
    probs = observers.predictions(samples, index, table)
    targets = samples.actions[index]
    nll = {name: scores.nll(p, targets).mean() for name, p in probs.items()}
    assert nll["known"] < nll["bayes"] < nll["table"] < nll["uniform"]
    assert all(p.shape == (len(index), 6) for p in probs.values())
    saved = dict(game=snowdrift.GAME.metadata(), strategies=["ND", "FIX"])
    assert observers.is_table(torch.as_tensor(table), saved)
    assert not observers.is_table(torch.as_tensor(table), saved | dict(game=Rules().game.metadata()))


@pytest.mark.parametrize("layout", ["hop", "planes"])
def test_rows_of_another_game(layout, drifts, tmp_path):
    """Rows whose metadata say the game are read as it has them, in both layouts."""
    arrays = flatten(FlatArgs(out="", rows=300, all_observers=True, rules=SMALL))
    joint = np.moveaxis(arrays["obs"], -1, 1)
    own = np.concatenate([joint[:, :1], joint[:, 1:3].max(1, keepdims=True), joint[:, 3:]], 1)
    if layout == "planes":
        mine = arrays["actions"][np.arange(len(own)), arrays["observer"]]
        arrays = {key: arrays[key] for key in ("times", "metadata", "observer")} | dict(obs=own, actions=mine)
    np.savez(tmp_path / "rows.npz", **arrays)
    samples = load_samples(tmp_path / "rows.npz", split=False)
    assert samples.game == snowdrift.GAME and samples.has_episodes and "metadata" not in str(samples.inferred)
    np.testing.assert_array_equal(samples.frames[samples.rows], own)
    took = samples.actions == 5
    hunter = samples.episodes * 3 + samples.seats
    expected = np.where(np.isin(hunter, hunter[took]), 0, 1)
    np.testing.assert_array_equal(captured_goals(samples), expected)
    assert set(expected) == {0, 1}
    if layout == "hop":
        t = load_transitions(tmp_path / "rows.npz", split=False)
        assert t.game == snowdrift.GAME and t.states.shape[1] == 5 and not np.isnan(t.rewards).any()
        before, after = t.states[t.before], t.states[t.after]
        removed = before[:, -1].sum((1, 2), np.int64) - after[:, -1].sum((1, 2), np.int64)
        paid = 6 * 3 * removed - 4 * removed
        np.testing.assert_allclose(t.rewards.sum(1), paid, atol=1e-4)
        np.testing.assert_array_equal(t.ends, after[:, -1].sum((1, 2)) == 0)
        assert removed.max() > 0 and t.ends.any()
    arrays["actions"] = np.full_like(arrays["actions"], 6)
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(DataError, match=r"actions: expected values in 0..5, found 6 to 6"):
        load_samples(tmp_path / "rows.npz")


# ---- goals by what was taken


def test_captured_goals_by_hand():
    """Three agents on one row of six cells, a drift on cell 0 and on cell 3; only the first agent removes one."""
    rules = snowdrift.Rules(agents=3, drifts=2, height=1, width=6, horizon=4)
    core = make_core(1, rules)
    core.reset(seed=0)
    state = core.state
    state.hunters[:] = [0, 1, 2]
    state.prey[:] = [0, 3]
    core.set_state(state)
    right, stay, remove = 3, 4, 5
    ticks = [(remove, stay, right), (stay, stay, stay), (remove, remove, stay)]  # illegal: STAY
    obs, actions, rewards = [core.obs.copy()], [], []
    for tick in ticks:
        _, paid, _, _ = core.step(np.array([tick], np.int8))
        obs.append(core.obs.copy())
        actions.append(core.effective_actions.copy())
        rewards.append(paid)
    metadata = dict(strategies=["ND", "FIX"], priors=[0.5, 0.5], game=snowdrift.GAME.metadata())
    t = Trajectories(
        obs=np.concatenate(obs),
        actions=np.concatenate(actions),
        rewards=np.concatenate(rewards).astype(np.float32),
        active=np.ones((3, 3), bool),
        episode_lengths=np.array([3], np.int32),
        terminated=np.array([False]),
        strategies=np.array([[1, 1, 0]], np.int8),
        policy_probs=None,
        metadata=metadata,
    )
    samples = samples_of_episodes(check(t.arrays()), split=False)
    np.testing.assert_array_equal(captured_goals(samples).reshape(3, 3), [[0, 1, 1]] * 3)
    np.testing.assert_array_equal(recorded_goals(samples).reshape(3, 3), [[1, 1, 0]] * 3)


def captured_by_hand(t):
    """int [E, A]: what each hunter of a stag hunt left with: 0 a stag, 1 a hare, -1 nothing."""
    ends = np.cumsum(t.episode_lengths)
    goals = np.full(t.strategies.shape, -1)
    for e, end in enumerate(ends):
        start = end - t.episode_lengths[e]
        for seat in range(t.actions.shape[1]):
            last = start + np.flatnonzero(t.active[start:end, seat])[-1]
            if t.rewards[last, seat] > 0:
                goals[e, seat] = t.actions[last, seat] - 5
    return goals


def test_captured_goals_of_the_stag_hunt():
    """A failed stag hunt is no capture, nor is one at the horizon; rewards say who captured what."""
    t = collect(Args(samples=1500, rules=Rules(height=5, width=5, horizon=15, hunters_needed=3)))
    samples = samples_of_episodes(t, split=False)
    by_hand = captured_by_hand(t)
    np.testing.assert_array_equal(captured_goals(samples), by_hand[samples.episodes, samples.seats])
    assert set(by_hand.ravel()) == {-1, 0, 1}
    failed = (t.actions == 5) & (t.rewards == 0)
    assert failed.any()


def test_captured_goals_of_rows(tmp_path):
    """Rows end where a hunter leaves: but for the last tick of all, they say what a trajectory file does."""
    arrays = flatten(FlatArgs(out="", rows=800, all_observers=True))
    np.savez(tmp_path / "rows.npz", **arrays)
    samples = load_samples(tmp_path / "rows.npz", split=False)
    own = arrays["actions"][np.arange(len(arrays["observer"])), arrays["observer"]]
    paid = arrays["rewards"][np.arange(len(own)), arrays["observer"]]
    expected = np.full(len(own), -1)
    begins = np.flatnonzero(arrays["times"] == 0)
    for first, end in zip(begins, [*begins[1:], len(own)], strict=True):
        last_tick = arrays["times"][end - 1] == arrays["times"].max()
        if paid[end - 1] > 0 and not last_tick:
            expected[first:end] = own[end - 1] - 5
    np.testing.assert_array_equal(captured_goals(samples), expected)
    assert set(expected) == {-1, 0, 1}
    everyone = np.arange(len(samples))
    counts = {
        goals: pretrain_vae.count_goals(
            pretrain_vae.make_batches(samples, CPU, "moa", goals), everyone, num_goals=2
        )
        for goals in ("recorded", "captured")
    }
    assert counts == {"recorded": 0, "captured": (expected >= 0).sum()}
    alone = replace(samples, has_episodes=False)
    assert (captured_goals(alone) == -1).all()


# ---- the network


def shaken(rules, ticks, **sizes):
    torch.manual_seed(0)
    game = rules.game
    sizes |= dict(kinds=game.kinds, goal_kinds=game.goal_kinds)
    model = pretrain_vae.VAE(rules.height, rules.width, ticks, **sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_the_table_equals_the_moa_on_a_snowdrift():
    B, A, K = 16, SMALL.agents, SMALL.cells
    model = shaken(SMALL, SMALL.horizon)
    moa = model.moa
    core, rng = make_core(B, SMALL), np.random.default_rng(0)
    core.reset(seed=3)
    blocks, prey = torch.as_tensor(core.blocks), torch.as_tensor(core.prey)
    table = pretrain_vae.TabularMOA(model, blocks, prey, SMALL.prey_counts)
    every = torch.arange(B)
    while not core.ended.all():
        hunters, prey, tick = (torch.as_tensor(part) for part in (core.hunters, core.prey, core.tick))
        planes = torch.as_tensor(core.obs).flatten(3).flatten(0, 1).float()
        with torch.no_grad():
            maps = moa.prey_nearness(planes.unflatten(0, (B, A))[:, 0, 2:], SMALL.prey)
            features = moa.encode_board(planes, every.repeat_interleave(A), maps, tick.repeat_interleave(A))
            expected = moa.action_logprobs(features)[:, moa.behaviours :].exp().view(B, A, 2, 6)
        playing = torch.as_tensor(~core.ended)
        found = table.probs(every, hunters, prey, tick.long())
        torch.testing.assert_close(found[playing], expected[playing], atol=1e-5, rtol=1e-4)
        goals = torch.randint(3, (B, A))
        one = table.probs(every, hunters, prey, tick.long(), goals)
        legal = torch.as_tensor(core.legal_actions()).float()
        three = torch.cat([found, (legal / legal.sum(2, keepdim=True))[:, :, None]], 2)
        torch.testing.assert_close(
            one, three.gather(2, goals[..., None, None].expand(-1, -1, -1, 6))[:, :, 0]
        )
        if core.tick[0] == 3:
            check_draws(table, every, hunters, prey, tick.long(), goals)
        core.step(random_actions(core, rng))
    assert (prey == K).any()


def test_without_a_prey_a_behaviour_may_prefer_an_action():
    """A free rider: any legal step or STAY alike, never REMOVE. The stag hunt's network has no such parameter."""
    model = shaken(SMALL, SMALL.horizon)
    assert pretrain_vae.VAE(8, 8, 35).moa.idle is None
    moa = model.moa
    with torch.no_grad():
        moa.nothing.weight.zero_()
        moa.nothing.bias.fill_(50.0)  # no prey is ever chosen
        moa.idle.zero_()
        moa.idle[-1] = torch.tensor([0.0, 0.0, -50.0])
    obs = make_core(8, SMALL).reset(seed=1)
    tracker = pretrain_vae.OpponentTracker(model, 8, 3)
    on_drift = (obs[:, :, 0] & obs[:, :, 3]).any((2, 3))
    obs[:, :, 3] = obs[:, :1, 0]  # a drift under the first agent
    on_drift = torch.as_tensor((obs[:, :, 0] & obs[:, :, 3]).any((2, 3)))
    _, _, by_goal = tracker.predict(torch.as_tensor(obs), torch.zeros(8, dtype=torch.int64))
    remove, ride = by_goal.unbind(2)
    assert on_drift.any() and (ride[..., 5] < 1e-6).all() and (remove[on_drift][:, 5] > 0.1).all()
    legal = ride > 1e-6
    torch.testing.assert_close(ride, legal / legal.sum(2, keepdim=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kinds", "goals"), [(0, (0,)), (4, (0,)), (1, (1,)), (2, (-2,))])
def test_kinds_that_are_none_are_refused(kinds, goals):
    with pytest.raises(ValueError, match="kinds, goal_kinds"):
        pretrain_vae.VAE(4, 4, 9, kinds=kinds, goal_kinds=goals)


# ---- the command line


def call(monkeypatch, *flags):
    return run_script(monkeypatch, pretrain_vae, *flags)


@pytest.fixture(scope="module")
def run(drifts, tmp_path_factory):
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    save_arrays(folder / "drifts.npz", drifts.arrays())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        flags = ("--epochs", 2, "--batch-size", 32, "--latent-dim", 8, "--goals", "captured", "--no-cuda")
        assert call(monkeypatch, "--data", "drifts.npz", *flags) == 0
    return next(folder.glob("vae_ckpts/*/dim8"))


def test_a_run_on_another_game(run, drifts):
    metrics = json.loads((run / "metrics.json").read_text())
    nll = {name: metrics[name]["nll"] for name in ("known", "bayes", "table", "uniform")}
    assert nll["known"] < metrics["test"]["nll"] < nll["uniform"]
    assert metrics["goal"]["nll"] < nll["uniform"]
    csv = pd.read_csv(run / "moa_eval_epoch1.csv")
    assert list(csv.name) == list(drifts.game.actions)
    arrays = np.load(run / "moa_eval_epoch1.npz")
    assert arrays["probabilities"].shape[1] == 6 and arrays["goal_probabilities"].shape[1:] == (2, 6)
    model, checkpoint = pretrain_vae.load_vae(run)
    assert checkpoint["game"] == snowdrift.GAME.metadata() and checkpoint["rules"] == vars(SMALL)
    assert (model.sizes["kinds"], model.sizes["goal_kinds"]) == (1, (0, -1))
    assert checkpoint["args"]["goals"] == "captured"


def test_evaluating_and_mistakes(run, monkeypatch, capsys, tmp_path):
    """`fresh` is a file of the checkpoint's game and rules; a file of another game is one line."""
    monkeypatch.setattr(data.trajectories, "DEFAULT_FILE", tmp_path / "stag_hunt_4p5b_8x8.npz")
    write = data.collect.collect_to_file
    monkeypatch.setattr(
        data.collect, "collect_to_file", lambda args: write(replace(args, samples=400, steps=0))
    )
    assert call(monkeypatch, "--evaluate", run, "--data", "fresh") == 0
    report = json.loads((run / "evaluate_snowdrift_3a4d2b_5x5_fresh_1001.json").read_text())
    assert 0 < report["kl_to_bayes"] < 0.5 and report["goal"]["kl"] > 0
    save_arrays(tmp_path / "hunt.npz", collect(Args(samples=300, rules=Rules(height=5, width=5))).arrays())
    capsys.readouterr()
    assert call(monkeypatch, "--evaluate", run, "--data", tmp_path / "hunt.npz") == 2
    written = capsys.readouterr().err
    assert "expected a file of Snowdrift-v0, as the checkpoint's, found one of StagHunt-v0" in written
    assert written.count("\n") == 1


def test_frames_of_another_game_are_reconstructed(drifts):
    """Decoded and drawn with the planes of the game."""
    samples = samples_of_episodes(drifts, split=False)
    model = shaken(SMALL, SMALL.horizon, latent_dim=4, loss="both", frame_hidden=8)
    batches = pretrain_vae.make_batches(samples, CPU, "both")
    frames = vae_reports.reconstructions(model, batches, np.arange(2))
    assert frames["original"].shape == frames["reconstruction"].shape == (2, 4, 5, 5)
    figure = figures.planes(frames, drifts.game.planes, ["a", "b"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "SELF",
        "OTHERS",
        "BLOCKS",
        "DRIFTS",
    ]


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_what_shares_a_cell_is_drawn_side_by_side(kinds):
    """Each plane alone colours its own part of the cell, and all parts together the whole cell."""
    parts = []
    for plane in range(3 + kinds):
        frame = np.zeros((3 + kinds, 1, 1))
        frame[plane] = 1
        parts.append((figures.planes_picture(frame) < 1).any(2))
    block, *others = parts[2], *parts[:2], *parts[3:]
    assert block.all() and (np.sum(others, axis=0) == 1).all()
    assert len({part.sum() for part in parts[3:]}) == 1


def test_older_checkpoints_are_the_stag_hunts(tmp_path):
    """From before a checkpoint named its game: they load, play and can be judged as before."""
    saved = whole_checkpoint(pretrain_vae, pretrain_vae.VAE(8, 8, 35))
    saved = saved | dict(sizes=dict(saved["sizes"]), args=dict(saved["args"]))
    del saved["sizes"]["kinds"], saved["sizes"]["goal_kinds"], saved["args"]["goals"]
    assert "game" not in saved
    write_run(tmp_path / "run", saved)
    model, checkpoint = pretrain_vae.load_vae(tmp_path / "run")
    assert model.sizes["kinds"] == 2 and checkpoint["game"] == Rules().game.metadata()
    assert checkpoint["args"]["goals"] == "recorded"


def test_a_checkpoint_of_two_games_is_refused(tmp_path):
    saved = whole_checkpoint(pretrain_vae, pretrain_vae.VAE(8, 8, 35), game=snowdrift.GAME.metadata())
    write_run(tmp_path / "run", saved)
    with pytest.raises(tracking.UsageError, match="game: expected the description of a game"):
        pretrain_vae.load_vae(tmp_path / "run")


def test_captured_goals_are_printed(run, drifts, capsys):
    samples = samples_of_episodes(drifts, split=False)
    line = pretrain_vae.goal_counts(samples, captured_goals(samples))
    last = (
        np.add.reduceat(drifts.actions == 5, np.cumsum(drifts.episode_lengths) - drifts.episode_lengths) > 0
    )
    assert line.startswith(f"{last.sum()} remove, {(~last).sum()} ride; 0 without a goal")
