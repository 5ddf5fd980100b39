"""pretrain_vae.py: what it prints and saves, what it learns, how it goes on, what it refuses."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pretrain_vae
import tracking
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import Batch, Batches, load_samples
from data.flatten import Args as FlattenArgs
from data.flatten import flatten
from data.trajectories import save_arrays
from envs import ACTIONS, Rules, StagHunt, joint_to_hop, planes_to_joint, sample_actions, strategy_probs
from envs.grid import FAR, distance_fields, symmetries
from envs.stag_hunt import legal_actions
from metrics import observers, reports, scores, vae_reports
from pretrain_vae import OpponentTracker

CPU = torch.device("cpu")
ROOT = Path(pretrain_vae.__file__).resolve().parent
DRAWN = (
    "vae_loss_curve",
    "confusion_matrix",
    "recall",
    "class_distribution",
    "reconstructions",
    "reliability",
    "by_tick",
)
MOA_COLUMNS = [
    "action",
    "name",
    "count",
    "ratio",
    "precision",
    "recall",
    "f1",
    "table_recall",
    "bayes_recall",
]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """About 2,000 samples of the default law."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    save_arrays(path, collect(CollectArgs(samples=2000)).arrays())
    return path


def command(*flags, cwd):
    """The script in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return [sys.executable, str(ROOT / "pretrain_vae.py"), *map(str, flags)], dict(
        cwd=cwd, env=environment, text=True
    )


def call(monkeypatch, *flags):
    """The script in this process. Returns: its exit code, 0 if it just ends."""
    return run_script(monkeypatch, pretrain_vae, *flags)


def run_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "vae_ckpts").glob("vae__*/dim*")
    return folder


FINISHED = ("--epochs", 2, "--loss", "both", "--batch-size", 128)  # settings of the run `finished`
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def finished(data_file, tmp_path_factory):
    """A finished run of two epochs: (its working folder, what it printed)."""
    cwd = tmp_path_factory.mktemp("run")
    words, how = command("--data", data_file, *FINISHED, cwd=cwd)
    done = subprocess.run(words, capture_output=True, **how)
    assert done.returncode == 0, done.stderr
    return cwd, done.stdout


# ---- what it prints and saves


def test_the_printed_lines(finished, data_file):
    cwd, out = finished
    folder = run_folder(cwd).relative_to(cwd).as_posix()
    assert re.fullmatch(r"vae_ckpts/vae__\d+/dim16", folder)
    lines = out.splitlines()
    assert lines[0] == f"[VAE] Loaded {len(load_samples(data_file))} samples."
    assert "[VAE] Begin offline training..." in lines and "[Epoch 1/2]" in lines and "[Epoch 2/2]" in lines
    for epoch in (0, 1):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"[MOA] epoch {epoch}:"))
        assert re.fullmatch(rf"\[MOA\] epoch {epoch}: top1=0\.\d{{4}}, top3=0\.\d{{4}}, saved:", lines[at])
        assert lines[at + 1] == f"       {folder}/moa_eval_epoch{epoch}.csv"
        assert lines[at + 2] == f"       {folder}/moa_eval_epoch{epoch}.npz"
    assert f"[VAE] model saved to: {folder}" in lines
    assert any("held out" in line for line in lines)


def test_the_files_agree_with_one_another(finished, data_file):
    cwd, out = finished
    folder, samples = run_folder(cwd), load_samples(data_file)
    table = pd.read_csv(folder / "moa_eval_epoch1.csv")
    with np.load(folder / "moa_eval_epoch1.npz") as archive:
        arrays = dict(archive)
    assert list(table.columns) == MOA_COLUMNS and list(table.name) == list(ACTIONS)
    names = {"targets", "predictions", "probabilities", "strategies", "ticks", "confusion_matrix"}
    assert set(arrays) == names | {"goal_probabilities", "z"}
    val = samples.splits["val"]
    np.testing.assert_array_equal(arrays["targets"], samples.actions[val])
    np.testing.assert_array_equal(arrays["predictions"], arrays["probabilities"].argmax(1))
    np.testing.assert_array_equal(table["count"], np.bincount(samples.actions[val], minlength=7))
    np.testing.assert_array_equal(arrays["confusion_matrix"].sum(1), table["count"])
    bayes = observers.predictions(samples, val, observers.training_table(samples))["bayes"]
    recall = scores.recall(bayes, samples.actions[val])
    np.testing.assert_allclose(table.bayes_recall, recall, atol=1e-6)
    top1 = (arrays["targets"] == arrays["predictions"]).mean()
    assert f"epoch 1: top1={top1:.4f}" in out
    loss = pd.read_csv(folder / "loss.csv")
    assert list(loss.epoch) == [0, 1] and loss.val_top1.iloc[1] == pytest.approx(top1, abs=1e-6)
    # total = moa + goal + recon + kl_coef * kl, the weight rising over the first epoch: after it, exactly
    parts = loss.moa + loss.goal + loss.recon + 1e-3 * loss.kl
    assert loss.total.iloc[1] == pytest.approx(parts.iloc[1], rel=1e-5) and loss.total.iloc[0] < parts.iloc[0]
    told = arrays["goal_probabilities"][
        np.arange(len(val)), samples.strategies[val]
    ]  # NS is goal 0, NH is goal 1
    goal_nll = -np.log(told[np.arange(len(val)), arrays["targets"]]).mean()
    assert loss.val_goal_nll.iloc[1] == pytest.approx(goal_nll, abs=1e-5)
    for name in DRAWN:
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(cwd.rglob("*.tmp"))


def test_metrics_json(finished, data_file):
    folder, samples = run_folder(finished[0]), load_samples(data_file)
    metrics = json.loads((folder / "metrics.json").read_text())
    keys = {
        "run",
        "seed",
        "args",
        "seconds",
        "samples_per_second",
        "samples",
        "test",
        "table",
        "bayes",
        "known",
        "kl_to_bayes",
    }
    assert keys <= set(metrics)
    last = torch.load(folder / "last.pt", weights_only=True)
    assert metrics["samples_per_second"] == pytest.approx(
        2 * metrics["samples"]["train"] / last["train_seconds"]
    )
    assert 0 < last["train_seconds"] < last["seconds"] < metrics["seconds"] < 600
    assert metrics["samples"] == {name: len(samples.splits[name]) for name in ("train", "val", "test")}
    assert sum(metrics["samples"].values()) == len(samples)
    names = {"top1", "top3", "nll", "brier", "ece", "kl", "recon_nll", "recon_mse", "recon_exact"}
    assert set(metrics["test"]) == names and all(math.isfinite(value) for value in metrics["test"].values())
    assert (
        set(metrics["bayes"])
        == set(metrics["table"])
        == set(metrics["known"])
        == {"top1", "top3", "nll", "ece"}
    )
    assert metrics["known"]["nll"] < metrics["bayes"]["nll"] < metrics["test"]["nll"]
    assert metrics["kl_to_bayes"] > 0 and set(metrics["by_strategy"]) == {"NS", "NH"}
    rows = pd.read_csv(folder / "moa_breakdown.csv", dtype={"value": str})
    for row in rows[rows.by == "strategy"].itertuples():
        assert row.nll == pytest.approx(metrics["by_strategy"][row.value][row.predictor]["nll"], abs=1e-6)
    predictors = {"moa", "uniform", "table", "bayes", "known", "majority", "belief", "bayes_filter"}
    assert set(rows.predictor) == predictors
    goal = metrics["goal"]
    assert goal["known"] == metrics["known"] and goal["nll"] > goal["known"]["nll"] and goal["kl"] > 0
    assert set(metrics["probe"]) == set(metrics["by_tick"]) and metrics["probe"]["0"]["posterior"] == 0.5
    assert all(0 <= tick["probe"] <= 1 and 0 <= tick["posterior"] <= 1 for tick in metrics["probe"].values())
    total = sum(tick["samples"] for tick in metrics["by_tick"].values())
    assert total == metrics["samples"]["test"] == sum(s["samples"] for s in metrics["by_strategy"].values())


def test_tensorboard_has_it_all(finished):
    (log,) = (finished[0] / "runs").iterdir()
    events = EventAccumulator(str(log)).Reload().Tags()
    assert log.name == run_folder(finished[0]).parent.name
    assert {"losses/moa", "losses/total", "val/top1", "val/recon_nll", "charts/SPS", "test/nll"} <= set(
        events["scalars"]
    )
    assert {f"figures/{name}" for name in DRAWN} <= set(events["images"])
    assert "hyperparameters/text_summary" in events["tensors"]


def test_a_checkpoint_describes_itself(finished, data_file):
    folder = run_folder(finished[0])
    model, checkpoint = pretrain_vae.load_vae(finished[0] / "vae_ckpts" / folder.parent.name)
    assert checkpoint["fingerprint"] == load_samples(data_file).fingerprint
    assert {"model", "optimizer", "rng", "step", "epoch", "args", "sizes", "history"} <= set(checkpoint)
    assert model.sizes == checkpoint["sizes"] and not model.training


def test_a_checkpoint_says_which_goals_and_rules_it_learnt_from(finished, data_file):
    folder, samples = run_folder(finished[0]), load_samples(data_file)
    _, checkpoint = pretrain_vae.load_vae(folder)
    assert checkpoint["goals_trained"] == len(samples.splits["train"]), "each hunter is NS or NH"
    assert checkpoint["rules"] == samples.trajectories.metadata["rules"] and checkpoint["rules"]["stags"] == 1
    assert set(checkpoint["belief"]) == {"none", "hazard"}
    assert "goal heads stay untrained" not in finished[1]


def test_a_checkpoint_without_them_is_of_another_version(copied, data_file, monkeypatch, capsys):
    for name, flag in (("best.pt", "--evaluate"), ("last.pt", "--resume")):
        checkpoint = torch.load(copied / name, weights_only=True)
        torch.save({key: value for key, value in checkpoint.items() if key != "goals_trained"}, copied / name)
        assert (
            f"{name}: goals_trained: expected a value, found none: edited, or made by another version"
            in refused(monkeypatch, capsys, flag, copied)
        )


@pytest.mark.parametrize(
    ("strategies", "goals"), [(("RANDOM", "NH", "NS"), True), (("NS",), False), (("RANDOM",), False)]
)
def test_goal_samples_are_counted(strategies, goals, tmp_path):
    """RANDOM hunters have no goal; with stag hunters alone the head of `hare` learns nothing."""
    save_arrays(tmp_path / "x.npz", collect(CollectArgs(samples=300, strategies=strategies)).arrays())
    samples = load_samples(tmp_path / "x.npz", split=False)
    batches, some = pretrain_vae.make_batches(samples, CPU, "moa"), np.arange(0, len(samples), 2)
    expected = sum(strategies[samples.strategies[i]] != "RANDOM" for i in some) if goals else 0
    assert pretrain_vae.count_goals(batches, some, 2) == expected and (expected > 0) == goals


def test_evaluate_judges_the_whole_of_another_file(finished, tmp_path, monkeypatch):
    path = tmp_path / "other.npz"
    save_arrays(path, collect(CollectArgs(samples=700, seed=5)).arrays())
    folder = run_folder(finished[0])
    assert call(monkeypatch, "--evaluate", folder.parent, "--data", path) == 0
    report, samples = json.loads((folder / "evaluate_other.json").read_text()), load_samples(path)
    trained = json.loads((folder / "metrics.json").read_text())
    assert set(trained) <= set(report) and report["run"] == trained["run"]
    assert report["samples"] == {"train": 0, "val": 0, "test": len(samples)}
    assert (
        report["samples_per_second"] * report["seconds"] == pytest.approx(len(samples))
        and 0 < report["seconds"] < 600
    )
    model, checkpoint = pretrain_vae.load_vae(folder)
    batch = every(samples, "both")
    with torch.no_grad():  # z at its mean, best checkpoint, by hand
        nll = -model(batch).action_logprobs.gather(1, batch.action[:, None]).mean()
    assert report["test"]["nll"] == pytest.approx(nll.item(), abs=1e-5)
    table = observers.predictions(samples, samples.splits["all"], checkpoint["table"].numpy())["table"]
    assert report["table"]["nll"] == pytest.approx(scores.score(table, samples.actions)["nll"])
    per_action = pd.read_csv(folder / "evaluate_other.csv")
    assert list(per_action.columns) == MOA_COLUMNS and per_action["count"].sum() == len(samples)


def test_what_was_trained_on_is_not_judged(finished, data_file, monkeypatch, capsys):
    says = refused(monkeypatch, capsys, "--evaluate", run_folder(finished[0]), "--data", data_file)
    assert "the run was trained on this file; judge it on another, such as --data fresh" in says


@pytest.mark.parametrize("name", ["fresh", "unmasked"])
def test_training_on_a_file_that_judges_is_refused(name, monkeypatch, capsys):
    says = refused(monkeypatch, capsys, "--data", name)
    assert f"{name}: this file is for judging only; train on another" in says


# ---- the model and its losses


def every(samples, loss="moa"):
    """All samples of a file as one batch."""
    batches = pretrain_vae.make_batches(samples, CPU, loss)
    return batches.take(np.arange(len(batches.start)))


@pytest.fixture(scope="module")
def batches(data_file):
    return pretrain_vae.make_batches(load_samples(data_file), CPU, "moa")


@pytest.fixture(scope="module")
def batch(data_file):
    return every(load_samples(data_file))


def shaken(loss="moa", context="episode", seed=0, **sizes):
    """A network whose every parameter is random and large enough to matter."""
    torch.manual_seed(seed)
    model = pretrain_vae.VAE(**dict(height=8, width=8, ticks=35, loss=loss, context=context) | sizes)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.05 if "encoder" in name or "decoder" in name else 0.4)
    return model


@pytest.mark.parametrize("loss", ["moa", "recon", "both"])
@pytest.mark.parametrize("context", ["episode", "observation"])
def test_every_parameter_is_trained(loss, context, batch):
    torch.manual_seed(0)
    model = pretrain_vae.VAE(8, 8, 35, loss=loss, context=context)
    losses = pretrain_vae.loss_sums(model(batch, torch.randn(len(batch.tick), 16)), batch)
    sum(losses.values()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    # what attention does not choose between, it does not learn from: a constant that is the same for all things
    assert not [name for name in still if name != "moa.code"], still
    assert (losses["moa"] > 0) == (losses["goal"] > 0) == (loss != "recon")
    assert (losses["recon"] > 0) == (loss != "moa")


@pytest.mark.parametrize(
    "rules", [Rules(), Rules(height=4, width=4, blocks=0), Rules(height=3, width=6, hunters=2, blocks=2)]
)
def test_legal_mask(rules, tmp_path):
    path = tmp_path / "x.npz"
    save_arrays(path, collect(CollectArgs(samples=600, rules=rules)).arrays())
    batches = pretrain_vae.make_batches(load_samples(path), CPU, "moa")
    model, groups = shaken(height=rules.height, width=rules.width), np.arange(len(batches.start))
    for batch in (
        batches.take(groups),
        batches.take(groups, torch.randint(len(batches.cell_permutation), (len(groups),))),
    ):
        frames = batch.planes.unflatten(2, (rules.height, rules.width)).numpy()
        said = model(batch)
        for logs in (said.action_logprobs, *said.goal_logprobs.unbind(1)):
            np.testing.assert_array_equal(logs.detach().exp().numpy() > 0, legal_actions(frames))
            np.testing.assert_allclose(logs.detach().exp().sum(1).numpy(), 1.0, atol=1e-5)
        assert (
            said.action_logprobs.gather(1, batch.action[:, None]).exp() > 0
        ).all()  # what was done stays legal, turned round or not


@pytest.mark.parametrize("context", ["episode", "observation"])
@pytest.mark.parametrize("shape", [(8, 8), (3, 6)])
def test_symmetries_hold_by_construction(context, shape, data_file, tmp_path):
    """A board seen through a symmetry: the same z, and the actions permuted along."""
    path = data_file
    if shape != (8, 8):
        path = tmp_path / "x.npz"
        rules = Rules(height=shape[0], width=shape[1], hunters=2, blocks=2)
        save_arrays(path, collect(CollectArgs(samples=300, rules=rules)).arrays())
    batches = pretrain_vae.make_batches(load_samples(path), CPU, "moa")
    model, groups = shaken(context=context, height=shape[0], width=shape[1]), np.arange(8)
    with torch.no_grad():
        straight = model(batches.take(groups))
        for turn, permuted in enumerate(symmetries(*shape)[1]):
            turned = model(batches.take(groups, torch.full((8,), turn)))
            torch.testing.assert_close(turned.mean, straight.mean, atol=1e-4, rtol=1e-4)
            for one, other in (
                (turned.action_logprobs, straight.action_logprobs),
                (turned.goal_logprobs, straight.goal_logprobs),
            ):
                torch.testing.assert_close(one[..., permuted].exp(), other.exp(), atol=1e-5, rtol=1e-4)
    assert straight.action_logprobs.exp()[:, :4].std(1).mean() > 0.01  # not all directions alike


def test_nothing_of_the_future_leaks(batches):
    """Another future (actions from a tick on, frames after it) changes nothing up to that tick, and something after it."""
    model, batch = shaken(), batches.take(np.arange(6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = model(batch)
        for tick in (0, 1, 4, 9):
            action = batch.action.clone()
            redrawn = torch.randint(0, 4, action.shape, generator=generator)
            legal = before.action_logprobs.gather(1, redrawn[:, None])[:, 0] > -1e6
            action[(batch.tick >= tick) & legal] = redrawn[(batch.tick >= tick) & legal]
            planes = batch.planes.clone()
            planes[batch.tick > tick] = planes[batch.tick > tick].flip(0)
            after = model(batch._replace(action=action, planes=planes))
            past = batch.tick <= tick
            for one, other in zip(before, after, strict=True):
                if one is not None:
                    assert torch.equal(one[past], other[past])
            assert not torch.allclose(before.mean[~past], after.mean[~past])


def test_the_history_is_the_hunters_own(batches):
    """z of one hunter does not hang on what another did, nor on what else is in the batch; permuted seats permute it."""
    model = shaken()
    batch = batches.take(np.arange(5))
    with torch.no_grad():
        together = model(batch)
        alone = [model(batches.take(np.array([group]))) for group in range(5)]
        torch.testing.assert_close(
            together.action_logprobs,
            torch.cat([said.action_logprobs for said in alone]),
            atol=1e-5,
            rtol=1e-5,
        )
        torch.testing.assert_close(
            together.mean, torch.cat([said.mean for said in alone]), atol=1e-5, rtol=1e-5
        )
        first = batch.trajectory_id % 4 == 0
        action = batch.action.clone()
        action[~first] = 4
        other = model(batch._replace(action=action))
        assert torch.equal(together.mean[first], other.mean[first])
        assert not torch.equal(together.mean[~first], other.mean[~first])


def test_seats_permuted_permute_what_is_said(data_file, tmp_path):
    with np.load(data_file) as archive:
        arrays, order = dict(archive), np.array([2, 0, 3, 1])
    permuted = arrays | {
        k: arrays[k][:, order] for k in ("obs", "actions", "rewards", "active", "strategies", "policy_probs")
    }
    save_arrays(tmp_path / "permuted.npz", permuted)
    model, said = shaken(), []
    for path in (data_file, tmp_path / "permuted.npz"):
        samples = load_samples(path)
        at = np.full(samples.trajectories.active.shape, -1)
        at[samples.trajectories.active] = np.arange(len(samples))
        with torch.no_grad():
            said.append((model(every(samples)), at))
    (one, at), (other, at_permuted) = said
    for mine, its in zip(at[:, order].ravel(), at_permuted.ravel(), strict=True):
        assert (mine < 0) == (its < 0)
    both = at_permuted.ravel() >= 0
    torch.testing.assert_close(
        one.action_logprobs[at[:, order].ravel()[both]], other.action_logprobs[at_permuted.ravel()[both]]
    )
    torch.testing.assert_close(one.mean[at[:, order].ravel()[both]], other.mean[at_permuted.ravel()[both]])


def test_augmentation_turns_boards_and_actions_together(batches):
    torch.manual_seed(0)
    straight, group = batches.take(np.zeros(1, int)), np.zeros(200, int)
    cells, turned = symmetries(8, 8)
    expected = {
        (straight.planes[0].numpy()[:, c].tobytes(), int(a[straight.action[0]]))
        for c, a in zip(cells, turned, strict=True)
    }
    drawn = batches.take(group, torch.randint(8, (200,)))
    first = torch.arange(200) * len(straight.tick)
    assert {
        (p.numpy().tobytes(), int(a)) for p, a in zip(drawn.planes[first], drawn.action[first], strict=True)
    } == expected


def test_boards_are_read_once_and_are_what_the_frames_show(batches):
    for turn in (None, torch.arange(6) % 8):
        batch = batches.take(np.arange(6), turn)
        assert torch.equal(batch.boards[batch.board], batch.planes[:, 2:])
        assert len(batch.boards) < len(batch.planes) / 4


def test_how_near_things_are_with_steps_that_cost_one(data_file):
    """With a straight step at 1 and diagonal ones forbidden, value iteration is the shortest path."""
    samples = load_samples(data_file)
    model, boards = pretrain_vae.VAE(8, 8, 35), torch.as_tensor(samples.boards[:50]).flatten(2).float()
    model.moa.step_costs.data = torch.tensor([math.log(math.e - 1), 50.0])  # softplus
    near, kind, there = model.moa.prey_nearness(boards, 5)
    for u, (blocks, stags, hares) in enumerate(samples.boards[:50].astype(bool)):
        for p in range(5):
            if not there[u, p]:
                continue
            source = near[u, p, :-1].view(8, 8) == 0
            assert source.sum() == 1 and bool((stags if kind[u, p, 0] else hares)[source.numpy()].all())
            distance = distance_fields(blocks[None], source.numpy()[None])[0]
            expected = np.where(distance == FAR, -30, -distance.astype(float))
            np.testing.assert_allclose(near[u, p, :-1].detach().view(8, 8).numpy(), expected, atol=1e-4)
    assert (there.sum(1).numpy() == samples.boards[:50, 1:].sum((1, 2, 3))).all()


@pytest.fixture
def hand_made():
    """A 3x4 board, one tick of one hunter, and a network whose straight step costs 1 and whose diagonal steps are barred:

    hunter .    stag    rival
    .      .    block   block
    hare   .    .       rival
    """
    model = shaken(height=3, width=4)
    model.moa.step_costs.data = torch.tensor([math.log(math.e - 1), 50.0])  # softplus
    planes = torch.zeros(1, 5, 12)
    for plane, cells in enumerate(([0], [3, 11], [6, 7], [2], [8])):
        planes[0, plane, cells] = 1
    zero = torch.zeros(1, dtype=torch.long)
    batch = Batch(planes, planes[:, 2:], zero, 2, zero + 3, zero + 1, zero, zero, 1, 35)
    return model, batch


def inputs_of(module, call):
    """What `module` is given while `call` runs."""
    given = []
    hook = module.register_forward_pre_hook(lambda module, args: given.append(args[0].detach()))
    with torch.no_grad():
        call()
    hook.remove()
    return given[0]


def test_what_the_network_sees_of_a_board_by_hand(hand_made):
    """The hunter is 2 steps from the stag and from the hare; the nearest rival 1 step from the stag, 3 from the hare."""
    model, batch = hand_made
    moa = model.moa
    prey = moa.prey_nearness(batch.boards, 2)
    features = moa.encode_board(batch.planes, batch.board, prey, batch.tick)
    order = [0, 1] if features.kind[0, 0, 0] else [1, 0]  # stag first
    assert features.own_nearness[0, order].tolist() == pytest.approx([-2, -2]) and features.present.all()
    assert features.rival_nearness[0, order].tolist() == pytest.approx([-1, -3])
    toward = features.nearness_gain[0, order].tolist()  # up, down, left, right; off the board all is far
    assert toward[0] == pytest.approx([-28, -1, -28, 1]) and toward[1] == pytest.approx([-28, 1, -28, -1])
    assert features.action_mask[0].tolist() == [
        False,
        True,
        False,
        True,
        True,
        False,
        False,
    ] and features.other_cells.tolist() == [[2.0]]

    thing = inputs_of(moa.thing, lambda: moa.action_logprobs(features))[0, 0, order]
    assert thing[0].tolist() == pytest.approx([-2 / 8, 0, -1 / 8, 0, 1, 0])
    assert thing[1].tolist() == pytest.approx([-2 / 8, 0, -3 / 8, 0, 0, 1])
    context = inputs_of(moa.context, lambda: moa.action_logprobs(features))[0]  # [behaviours + goals, ..]
    torch.testing.assert_close(context[:, :16], moa.code.detach())
    torch.testing.assert_close(
        context[:, 16:], torch.cat([moa.tick.weight[3], torch.tensor([2 / 4])]).detach().expand(6, -1)
    )
    late = inputs_of(moa.context, lambda: moa.action_logprobs(features._replace(tick=batch.tick + 99)))[0]
    torch.testing.assert_close(
        late[0, 16:24], moa.tick.weight[34].detach()
    )  # later than any tick of the training data
    action = inputs_of(moa.action, lambda: moa.action_logprobs(features))[0, order]  # [things, actions, ..]
    step, still = [-2 / 8, 0, 1, 0], [-2 / 8, 0, 0, 1]  # of the stag, of the hare
    assert action[0, 3].tolist() == pytest.approx([*step, 1, 1, 1, 0, 0, 0])  # RIGHT: nearer to the stag
    assert action[0, 0].tolist() == pytest.approx([*step, -3, 0, 1, 0, 0, 0])  # UP: no further than 3 away
    assert action[1, 3].tolist() == pytest.approx([*still, -1, 0, 1, 0, 0, 0])
    for kind, a in enumerate((4, 5, 6), 1):
        assert action[1, a].tolist() == pytest.approx([*still, 0, 0, *(float(kind == i) for i in range(4))])


def test_who_is_told_from_one_observation_by_hand(hand_made):
    model, batch = hand_made
    model = shaken(height=3, width=4, context="observation")
    model.moa.step_costs.data = torch.tensor([math.log(math.e - 1), 50.0])
    seen = inputs_of(model.recogniser[0], lambda: model(batch))[0]
    assert seen[:7].tolist() == pytest.approx(
        [-2 / 8, -2 / 8, 0, 0, 1 / 4, 1 / 4, 2 / 4]
    )  # nearest, on it, how many, others
    torch.testing.assert_close(seen[7:], model.moa.tick.weight[3].detach())
    on_the_hare = batch.planes.clone()
    on_the_hare[0, 0] = on_the_hare[0, 4]
    seen = inputs_of(model.recogniser[0], lambda: model(batch._replace(planes=on_the_hare)))[0]
    assert seen[:4].tolist() == pytest.approx([-4 / 8, 0, 0, 1])


def test_who_is_told_from_the_history_by_bayes_rule(hand_made):
    model, _ = hand_made
    history = torch.tensor([[-1.0, -1.0, -1.0, -1.0], [-3.0, -2.0, -50.0, -3.0]])
    given = inputs_of(model.recogniser[0], lambda: model.encode_history(None, history))
    assert given[0].exp().tolist() == pytest.approx([0.25] * 4)
    odds = np.exp([-1.0, 0.0, -1.0])
    assert (
        given[1, [0, 1, 3]].exp().tolist() == pytest.approx((odds / odds.sum()).tolist())
        and given[1, 2] == -8
    )


@pytest.mark.parametrize(
    ("loss", "latent_dim", "who"),
    [("moa", 16, 16), ("recon", 16, 0), ("both", 16, 4), ("both", 7, 1), ("both", 2, 1)],
)
def test_z_is_shared_out_and_begins_almost_without_noise(loss, latent_dim, who, batch):
    model = pretrain_vae.VAE(8, 8, 35, latent_dim, loss)
    assert model.agent_dim == who
    with torch.no_grad():
        said = model(batch)
    assert said.mean.shape[1] == latent_dim and said.log_var.mean().item() == pytest.approx(-5.0, abs=0.7)
    assert said.mean.abs().mean() < 2


def test_z_is_the_mean_plus_noise_times_its_deviation(batches):
    model, batch = shaken("both"), batches.take(np.arange(2))
    noise = torch.randn(len(batch.tick), 16)
    with torch.no_grad():
        said, still = model(batch, noise), model(batch)
        z = said.mean + noise * (said.log_var / 2).exp()
        torch.testing.assert_close(said.cell_logits, model.decode(z[:, 4:]))
        torch.testing.assert_close(still.cell_logits, model.decode(still.mean[:, 4:]))
        prey = model.moa.prey_nearness(batch.boards, 5)
        features = model.moa.encode_board(batch.planes, batch.board, prey, batch.tick)
        behaved = model.moa.action_logprobs(features)
        torch.testing.assert_close(said.action_logprobs, model.moa(behaved, z[:, :4]))


def test_an_epoch_logs_means_of_its_steps(batches, data_file, monkeypatch):
    """Seven steps, logged every three: by hand from the terms of each step."""
    steps, logged = [], []
    loss_sums = pretrain_vae.loss_sums

    def spy(outputs, batch, mixed_goals):
        sums = loss_sums(outputs, batch, mixed_goals)
        detached = {name: value.detach() for name, value in sums.items()}
        steps.append((detached, len(batch.tick), int((batch.goal >= 0).sum())))
        return sums

    monkeypatch.setattr(pretrain_vae, "loss_sums", spy)
    monkeypatch.setattr(pretrain_vae, "LOG_STEPS", 3)
    monkeypatch.setattr(
        tracking, "log_scalars", lambda writer, prefix, values, step: logged.append((prefix, step, values))
    )
    index = load_samples(data_file).splits["train"]
    args = pretrain_vae.Args(batch_size=math.ceil(len(index) / 7), kl_coef=0.5, learning_rate=0.1)
    model, world = shaken(), tracking.World(0, 1, CPU)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    means, step = pretrain_vae.train_epoch(model, optimizer, batches, index, args, 100, world, None)
    assert step == 107 and len(steps) == 7
    rows = []
    for done, (sums, count, goal_count) in enumerate(steps):
        moa, goal, kl = sums["moa"] / count, sums["goal"] / goal_count, sums["kl"] / count
        weight = 0.5 * min(1.0, (100 + done + 1) / 7)
        rows.append([moa, goal, 0.0, kl, moa + goal + weight * kl])
    names = ("moa", "goal", "recon", "kl", "total")
    assert [means[name] for name in names] == pytest.approx(np.mean(rows, 0).tolist(), rel=1e-4)
    losses = [(step, values) for prefix, step, values in logged if prefix == "losses"]
    for (step, values), part in zip(losses, (slice(0, 3), slice(3, 6), slice(6, 7)), strict=True):
        assert step == 100 + part.stop and values["kl_coef"] == pytest.approx(0.5)
        assert [values[name] for name in names] == pytest.approx(np.mean(rows[part], 0).tolist(), rel=1e-4)
    rate = [values["learning_rate"] for prefix, _, values in logged if prefix == "charts"][-1]
    assert rate == pytest.approx(pretrain_vae.rates(106, args, 7)[0])


def test_losses_take_log_probabilities(batches):
    """A memorised batch goes far below 1.165, where softmax fed to cross-entropy would stop (7 actions)."""
    torch.manual_seed(0)
    batch = batches.take(np.arange(1))
    model = pretrain_vae.VAE(8, 8, 35)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        loss = pretrain_vae.loss_sums(model(batch), batch)["moa"] / len(batch.tick)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6


def test_terms_are_nats_per_action_and_per_frame(batch):
    """An untrained network that says 1/2 everywhere costs 320 log 2 a frame; z at the prior costs no KL."""
    model = pretrain_vae.VAE(8, 8, 35, loss="both")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    n = len(batch.tick)
    losses = pretrain_vae.loss_sums(model(batch, torch.randn(n, 16)), batch)
    losses = {name: value.item() for name, value in losses.items()}
    legal = legal_actions(batch.planes.unflatten(2, (8, 8)).numpy())
    assert [losses["moa"] / n, losses["goal"] / n] == pytest.approx(
        [np.log(legal.sum(1)).mean()] * 2, rel=1e-5
    )
    assert losses["recon"] / n == pytest.approx(320 * math.log(2), rel=1e-5)
    assert losses["kl"] == pytest.approx(0.0, abs=1e-3)


def test_goals_are_learnt_from_hunters_whose_goal_is_recorded(tmp_path):
    """RANDOM hunters have no goal; the name decides, not the number."""
    save_arrays(
        tmp_path / "x.npz", collect(CollectArgs(samples=500, strategies=("RANDOM", "NH", "NS"))).arrays()
    )
    samples = load_samples(tmp_path / "x.npz", split=False)
    batch = every(samples)
    np.testing.assert_array_equal(batch.goal.numpy(), np.array([-1, 1, 0])[samples.strategies])
    with torch.no_grad():
        said = shaken()(batch)
    goal = pretrain_vae.loss_sums(said, batch)["goal"]
    batches = pretrain_vae.make_batches(samples, CPU, "moa")
    by_hand = [
        -said.goal_logprobs[i, g, a]
        for i, (g, a) in enumerate(zip(batch.goal, batch.action, strict=True))
        if g >= 0
    ]
    assert batches.goal_known.sum() == len(by_hand) and goal == pytest.approx(float(sum(by_hand)), rel=1e-5)


# ---- one tick at a time


@pytest.mark.parametrize("loss", ["moa", "both"])
@pytest.mark.parametrize("context", ["episode", "observation"])
def test_online_equals_the_batch(loss, context, tmp_path):
    """Twelve games played one tick at a time, and read whole: prey that move, boards that are reset."""
    rules = Rules(prey_moves=0.3)
    trajectories = collect(CollectArgs(samples=900, rules=rules))
    save_arrays(tmp_path / "x.npz", trajectories.arrays())
    samples, model = load_samples(tmp_path / "x.npz"), shaken(loss, context)
    with torch.no_grad():
        said = model(every(samples, loss))
    at = np.full(trajectories.active.shape, -1)
    at[trajectories.active] = np.arange(len(samples))
    lengths = trajectories.episode_lengths[:12]
    starts = (np.cumsum(lengths) - lengths)[:12]
    seats = np.array([3, 0, 1])
    online = OpponentTracker(model, 6, 3)
    for games in (np.arange(6), np.arange(6, 12)):
        for tick in range(lengths[games].max()):
            step = starts[games] + np.minimum(tick, lengths[games] - 1)  # a board that is over stands still
            obs = torch.as_tensor(trajectories.obs[trajectories.obs_row[step]][:, seats])
            probs, z, goal_probs = online.predict(obs, torch.full((6,), tick))
            for board in np.flatnonzero(lengths[games] > tick):
                for player, seat in enumerate(seats):
                    row = at[step[board], seat]
                    if row < 0:
                        assert probs[board, player].tolist() == [0, 0, 0, 0, 1, 0, 0]
                        continue
                    torch.testing.assert_close(
                        probs[board, player], said.action_logprobs[row].exp(), atol=1e-5, rtol=0
                    )
                    torch.testing.assert_close(z[board, player], said.mean[row], atol=1e-5, rtol=1e-5)
                    torch.testing.assert_close(
                        goal_probs[board, player], said.goal_logprobs[row].exp(), atol=1e-5, rtol=0
                    )
            online.update(torch.as_tensor(trajectories.actions[step][:, seats]))
        online.reset(torch.ones(6, dtype=torch.bool))


def test_online_forgets_only_the_boards_that_are_reset(batches):
    model, env = shaken(), StagHunt(4)
    online, obs = OpponentTracker(model, 4, 4), env.reset(seed=0)
    for tick in range(3):
        online.predict(torch.as_tensor(obs), torch.full((4,), tick))
        env.step(sample_actions(strategy_probs(env, ["NS"])[:, :, 0], env.uniform(4)))
        online.update(torch.as_tensor(env.effective_actions))
    before = online.log_likelihood.clone()
    online.reset(torch.tensor([False, True, False, False]))
    kept = online.log_likelihood.view(4, 4, -1)
    assert (
        (kept[1] == 0).all()
        and torch.equal(kept[[0, 2, 3]], before.view(4, 4, -1)[[0, 2, 3]])
        and (before != 0).all()
    )


def test_online_refuses_what_does_not_fit():
    online = OpponentTracker(shaken(), 2, 3)
    with pytest.raises(
        ValueError, match=r"expected shapes \(2, 3, 5, 8, 8\) and \(2,\), got \(2, 4, 5, 8, 8\)"
    ):
        online.predict(torch.zeros(2, 4, 5, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="call predict"):
        online.update(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="no MOA head"):
        OpponentTracker(pretrain_vae.VAE(8, 8, 35, loss="recon"), 2, 3)


# ---- tables


def test_action_table_by_hand():
    targets = np.array([0, 0, 0, 1, 5])
    probs = np.full((5, 7), 0.05)
    probs[[0, 1, 2, 3, 4], [0, 0, 1, 1, 6]] = 0.7
    rows, matrix = reports.action_table(probs, targets, {}, ACTIONS)
    assert (
        matrix[0, 0] == 2
        and matrix[0, 1] == 1
        and matrix[1, 1] == 1
        and matrix[5, 6] == 1
        and matrix.sum() == 5
    )
    assert (rows[0]["precision"], rows[0]["recall"]) == (1.0, 2 / 3) and rows[0]["f1"] == pytest.approx(0.8)
    assert (rows[1]["precision"], rows[1]["recall"], rows[1]["ratio"]) == (0.5, 1.0, 0.2)
    observed = {"table": probs[:, ::-1].copy(), "bayes": np.eye(7)[targets]}
    rows_beside, _ = reports.action_table(probs, targets, observed, ACTIONS)
    assert [rows_beside[a]["bayes_recall"] for a in (0, 1, 5)] == [1.0, 1.0, 1.0]
    assert [rows_beside[a]["table_recall"] for a in (0, 1, 5)] == [0.0, 0.0, 0.0]
    assert rows[2]["count"] == 0 and rows[2]["f1"] == 0.0 and math.isnan(rows[0]["bayes_recall"])


@pytest.mark.slow
def test_it_learns(data_file, tmp_path, monkeypatch, capsys):
    """Beyond the legal moves: what 2,000 samples can teach in a few seconds."""
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", data_file, "--epochs", 12, "--batch-size", 64) == 0
    metrics = json.loads((run_folder(tmp_path) / "metrics.json").read_text())
    assert metrics["test"]["nll"] < metrics["uniform"]["nll"] - 0.3
    assert metrics["test"]["recon_nll"] is None and metrics["bits"]["recon"] is None
    assert "reconstruction: untrained" in capsys.readouterr().out


def test_recon_leaves_the_moa_untrained(data_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", data_file, "--epochs", 1, "--loss", "recon", "--latent-dim", 4) == 0
    folder = run_folder(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert folder.name == "dim4" and not list(folder.glob("moa_eval*"))
    assert (
        metrics["test"]["nll"] is None and metrics["kl_to_bayes"] is None and metrics["test"]["recon_nll"] > 0
    )
    out = capsys.readouterr().out
    assert "[MOA] untrained" in out and "the decoder" not in out and "the goal heads" not in out
    assert metrics["goals_trained"] == 0


def test_flat_files_go_the_whole_way(tmp_path, monkeypatch, capsys):
    trajectories = collect(CollectArgs(samples=1500, rules=Rules(height=4, width=4, blocks=0)))
    rows, observer = trajectories.obs_row, np.arange(len(trajectories.actions)) % 4
    hop = joint_to_hop(planes_to_joint(trajectories.obs[rows]), observer)
    save_arrays(
        tmp_path / "hop.npz", dict(obs=hop, actions=trajectories.actions, observer=observer.astype(np.int8))
    )
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", "hop.npz", "--epochs", 1) == 0
    out, folder = capsys.readouterr().out, run_folder(tmp_path)
    active = trajectories.active[np.arange(len(observer)), observer].sum()
    assert f"[VAE] Loaded {active} samples." in out and "layout hop" in out and "contiguous" in out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["bayes"] is None and metrics["table"] is None and metrics["kl_to_bayes"] is None
    assert (
        metrics["args"]["context"] == "observation" and metrics["goal"] is None and metrics["probe"] is None
    )
    assert "[DATA] no episodes in this file, so no history: --context observation" in out
    assert "the goal heads stay untrained; beliefs, imagination and planning in hop_ppo.py need them" in out
    assert re.search(r"MOA, told the goal +- +- +untrained", out) and metrics["goals_trained"] == 0
    checkpoint = torch.load(folder / "best.pt", weights_only=True)
    assert checkpoint["goals_trained"] == 0 and checkpoint["rules"] is None
    save_arrays(
        tmp_path / "labelled.npz", trajectories.arrays()
    )  # what it is judged on does not train a head
    assert call(monkeypatch, "--evaluate", folder, "--data", "labelled.npz") == 0
    assert json.loads((folder / "evaluate_labelled.json").read_text())["goal"] is None
    assert re.search(r"MOA, told the goal +- +- +untrained", capsys.readouterr().out)
    assert pd.read_csv(folder / "moa_eval_epoch0.csv").bayes_recall.isna().all()


def test_rows_that_follow_one_another_have_a_history(tmp_path, monkeypatch, capsys):
    """They train as a trajectory file does, and each judges the other's run."""
    settings = dict(seed=3, rules=Rules(height=4, width=4, blocks=0))
    rows = flatten(FlattenArgs("", rows=1500, all_observers=True, **settings))
    save_arrays(tmp_path / "rows.npz", {key: rows[key] for key in ("obs", "actions", "times", "observer")})
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", "rows.npz", "--epochs", 1) == 0
    out, folder = capsys.readouterr().out, run_folder(tmp_path)
    assert "split 80/10/10 by episode" in out and "--context observation" not in out
    assert json.loads((folder / "metrics.json").read_text())["args"]["context"] == "episode"
    other = dict(settings, seed=4)
    save_arrays(tmp_path / "same.npz", collect(CollectArgs(samples=1500, **other)).arrays())
    save_arrays(tmp_path / "seen.npz", flatten(FlattenArgs("", rows=1500, all_observers=True, **other)))
    figures = []
    for name in ("same", "seen"):
        assert call(monkeypatch, "--evaluate", folder, "--data", f"{name}.npz") == 0
        figures.append(json.loads((folder / f"evaluate_{name}.json").read_text())["test"])
    assert figures[0]["nll"] == pytest.approx(figures[1]["nll"], abs=1e-5)
    assert figures[0]["top1"] == pytest.approx(figures[1]["top1"], abs=1e-5)
    shuffled = np.random.default_rng(0).permutation(len(rows["obs"]))
    save_arrays(tmp_path / "mixed.npz", {key: array[shuffled] for key, array in rows.items()})
    assert "expected episodes, as --context episode needs, found rows" in refused(
        monkeypatch, capsys, "--evaluate", folder, "--data", "mixed.npz"
    )


# ---- what is judged, and how


def test_figures_by_hand(data_file):
    """predict and judge against formulas written out here."""
    samples, model = load_samples(data_file), shaken("both", latent_dim=8)
    batches, index = pretrain_vae.make_batches(samples, CPU, "both"), samples.splits["test"]
    torch.nn.init.normal_(model.decoder.last.bias, -4.0, 2.0)
    counts, table = [1, 2, 3, 4, 5, 6, 79], torch.as_tensor(observers.training_table(samples))
    checkpoint = {
        "table": table,
        "pairs": None,
        "strategies": ["NS", "NH"],
        "counts": counts,
        "goals_trained": 1,
        "belief": None,
    }
    report = pretrain_vae.judge(model, samples, batches, index, checkpoint)
    whole = every(samples)
    with torch.no_grad():
        said = model(whole)
        mean, log_var, cells = (
            said.mean[index],
            said.log_var[index],
            said.cell_logits[index].sigmoid().double(),
        )
        probs, goal_probs = (
            said.action_logprobs[index].exp().double().numpy(),
            said.goal_logprobs[index].exp().double().numpy(),
        )
    planes, actions = whole.planes[index], whole.action[index]
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (0.5 * log_var).exp()), prior)
    nll = -(planes * cells.log() + (1 - planes) * (1 - cells).log()).sum((1, 2))
    exact = [bool(((frame > 0.5) == (truth > 0.5)).all()) for frame, truth in zip(cells, planes, strict=True)]
    expected = {
        "kl": kl.sum(1).mean(),
        "recon_nll": nll.mean(),
        "recon_mse": ((cells - planes) ** 2).mean(),
        "recon_exact": np.mean(exact),
    }
    for key, value in expected.items():
        assert report["test"][key] == pytest.approx(float(value), rel=1e-4, abs=1e-9), key
    assert report["used_dimensions"] == int((kl.mean(0) > 0.01).sum())
    assert report["bits"]["recon"] == pytest.approx(float(nll.mean()) / math.log(2), rel=1e-4)
    observed = observers.predictions(samples, index, None)
    for name, key, mine in (
        ("bayes", report["kl_to_bayes"], probs),
        ("known", report["goal"]["kl"], goal_probs[np.arange(len(index)), samples.strategies[index]]),
    ):
        by_row = [
            (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()
            for p, q in zip(observed[name].astype(float), mine, strict=True)
        ]
        assert key == pytest.approx(np.mean(by_row), rel=1e-4)
    assert report["majority"]["nll"] == pytest.approx(
        -np.log(np.array(counts) / 100)[actions].mean(), rel=1e-5
    )
    assert report["majority"]["top1"] == pytest.approx((actions == 6).double().mean().item())
    taken = probs[np.arange(len(index)), actions]
    for key, groups in (("by_tick", samples.ticks[index]), ("by_strategy", samples.strategies[index])):
        for group in np.unique(groups):
            found = report[key][str(group) if key == "by_tick" else ("NS", "NH")[group]]
            assert found["samples"] == (groups == group).sum()
            assert found["moa"]["nll"] == pytest.approx(-np.log(taken[groups == group]).mean(), rel=1e-4)
    belief, step = observers.posterior(samples.trajectories), np.argwhere(samples.trajectories.active)[index]
    right = belief[step[:, 0], step[:, 1], samples.strategies[index]]
    for tick, found in report["probe"].items():
        own = right[samples.ticks[index] == int(tick)]
        assert found["samples"] == len(own)
        assert found["posterior"] == pytest.approx(((own > 0.5) + 0.5 * (own == 0.5)).mean())


def test_exact_frames_need_every_plane(data_file, monkeypatch):
    """A decoder that knows all planes but one has no frame right."""
    model, batches = (
        pretrain_vae.VAE(8, 8, 35, loss="recon"),
        pretrain_vae.make_batches(load_samples(data_file), CPU, "recon"),
    )
    planes = batches.take(np.arange(1)).planes
    for wrong in (None, 0, 4):
        logits = (2 * planes - 1) * 9.0
        if wrong is not None:
            logits[:, wrong] *= -1
        monkeypatch.setattr(model, "decode", lambda z, logits=logits: logits)
        said = vae_reports.predict(model, batches, np.arange(1))
        assert said.means["recon_exact"] == (1.0 if wrong is None else 0.0)


@pytest.mark.parametrize("loss", ["moa", "recon"])
def test_an_epoch_is_each_training_sample_once_augmented(loss, data_file, tmp_path, monkeypatch):
    samples, seen, turns = load_samples(data_file), [], set()
    take = Batches.take

    def spy(self, groups, turn=None):
        if turn is not None:
            seen.append(
                np.concatenate([np.arange(self.start[g], self.start[g] + self.length[g]) for g in groups])
            )
            turns.update(turn.tolist())
        return take(self, groups, turn)

    monkeypatch.setattr(Batches, "take", spy)
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", data_file, "--epochs", 2, "--loss", loss) == 0
    epochs = np.array_split(np.concatenate(seen), 2)
    for part in epochs:
        np.testing.assert_array_equal(np.sort(part), samples.splits["train"])
    assert not np.array_equal(*epochs) and turns == set(range(8))  # another order each time


def test_best_is_the_epoch_of_the_lowest_validation_nll(data_file, tmp_path, monkeypatch):
    scripted = iter([0.9, 0.3, 0.5])
    validate = pretrain_vae.validate
    monkeypatch.setattr(
        pretrain_vae,
        "validate",
        lambda *a: ({"nll": next(scripted), "kl": 0.0, "recon_nll": None}, validate(*a)[1]),
    )
    laws = iter(
        [pretrain_vae.BeliefLaw(0.1, 0.0), pretrain_vae.BeliefLaw(0.2, 0.0)]
    )  # of the two best epochs
    monkeypatch.setattr(pretrain_vae, "choose_belief_law", lambda *a: next(laws))
    kept, save = [], tracking.save_checkpoint
    monkeypatch.setattr(
        tracking, "save_checkpoint", lambda path, found: (kept.append((path.name, found)), save(path, found))
    )
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", data_file, "--epochs", 3) == 0
    names = [name for name, _ in kept]
    assert names == ["last.pt", "best.pt", "last.pt", "best.pt", "last.pt", "last.pt"]
    first = kept[0][1]  # before the first epoch
    assert [first[key] for key in ("epoch", "step", "train_seconds", "best")] == [0, 0, 0.0, math.inf]
    saved_epochs = [
        torch.load(run_folder(tmp_path) / f"{name}.pt", weights_only=True)["epoch"]
        for name in ("best", "last")
    ]
    assert saved_epochs == [2, 3]
    assert kept[3][1]["belief"] == kept[5][1]["belief"] == dict(none=0.2, hazard=0.0)


def test_learning_rate_and_kl_weight_by_step():
    args = pretrain_vae.Args(epochs=4, learning_rate=0.1, kl_coef=2.0)
    assert pretrain_vae.rates(0, args, 500) == (pytest.approx(0.1 / 100), pytest.approx(2.0 / 500))
    assert pretrain_vae.rates(1000, args, 500) == (pytest.approx(0.05), 2.0)
    assert pretrain_vae.rates(1999, args, 500) == (pytest.approx(0.1 / 2000), 2.0)


@pytest.mark.slow
def test_the_kl_weight_holds_z_back(data_file, tmp_path, monkeypatch):
    kls = []
    for coef in (0.0, 1.0):
        (tmp_path / str(coef)).mkdir()
        monkeypatch.chdir(tmp_path / str(coef))
        flags = ("--epochs", 6, "--batch-size", 64, "--learning-rate", 0.02, "--kl-coef", coef)
        assert call(monkeypatch, "--data", data_file, *flags) == 0
        kls.append(json.loads((run_folder(tmp_path / str(coef)) / "metrics.json").read_text())["test"]["kl"])
    assert kls[1] < 0.2 * kls[0]


# ---- the same again


def saved(folder: Path) -> dict[str, bytes]:
    """What a run writes; not what `--evaluate` does later."""
    tables = [path for path in sorted(folder.glob("*.csv")) if not path.name.startswith("evaluate_")]
    return {path.name: path.read_bytes() for path in tables}


def saved_after_best(cwd: Path) -> bool:
    """Whether `last.pt` of an epoch is there: it is written after `best.pt`."""
    times = [path.stat().st_mtime_ns for path in sorted(cwd.glob("vae_ckpts/*/*/*t.pt"))]
    return len(times) == 2 and times[1] > times[0]  # best.pt, last.pt


def kill_after_first_epoch(words: list, how: dict, cwd: Path) -> Path:
    """Start a run, and kill it once the first epoch is saved. Returns: its folder."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
    deadline = time.monotonic() + 90
    while not saved_after_best(cwd) and time.monotonic() < deadline:
        time.sleep(0.01)
    if "torch.distributed.run" in words:
        process.terminate()  # it ends those that it has started
    else:
        process.kill()
    process.wait()
    assert not list(cwd.glob("vae_ckpts/*/*/metrics.json")), "it was too fast to be killed"
    return run_folder(cwd)


@pytest.mark.slow
def test_same_seed_same_bytes_killed_or_not(finished, data_file, tmp_path):
    words, how = command("--data", data_file, *FINISHED, cwd=tmp_path)
    killed = kill_after_first_epoch(words, how, tmp_path)
    words, how = command("--resume", killed.parent, cwd=tmp_path)
    assert subprocess.run(words, capture_output=True, **how).returncode == 0
    whole = run_folder(finished[0])
    assert saved(whole) == saved(killed) and len(saved(whole)) == 4
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        assert one["step"] == other["step"]
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
        moments = [
            [m for state in c["optimizer"]["state"].values() for m in state.values()] for c in (one, other)
        ]
        assert len(moments[0]) > 10 and all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
        assert torch.equal(one["rng"]["cpu"], other["rng"]["cpu"])
    logs = [EventAccumulator(str(next((cwd / "runs").iterdir()))).Reload() for cwd in (finished[0], tmp_path)]
    for tag in ("val/top1", "losses/moa", "charts/learning_rate"):
        one, other = ([(event.step, event.value) for event in log.Scalars(tag)] for log in logs)
        assert one == other and len(one) >= 2
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed))
    for metrics in (one, other):  # the wall clock, and the name that comes from it
        for key in ("run", "seconds", "samples_per_second"):
            del metrics[key]
    assert one == other


@pytest.mark.slow
def test_two_processes_learn_what_one_does(finished, data_file, tmp_path):
    """torchrun on CPU: the same batches and the same noise, so the same losses but for rounding; and one process can go on
    with a run of two."""
    words, how = command("--data", data_file, *FINISHED, cwd=tmp_path)
    folder = kill_after_first_epoch([*TORCHRUN, *words[1:]], how, tmp_path)
    words, how = command("--resume", folder.parent, cwd=tmp_path)
    done = subprocess.run(words, capture_output=True, **how)
    assert done.returncode == 0, done.stderr
    one = pd.read_csv(run_folder(finished[0]) / "loss.csv")
    mixed = pd.read_csv(folder / "loss.csv")
    np.testing.assert_allclose(mixed.val_nll, one.val_nll, atol=1e-3)
    np.testing.assert_allclose(mixed.total, one.total, rtol=1e-3)


def test_more_processes_than_episodes_in_a_batch(data_file, tmp_path):
    """Also: one of the processes speaks, saves and logs."""
    words, how = command("--data", data_file, "--epochs", 1, "--batch-size", 1, cwd=tmp_path)
    done = subprocess.run([*TORCHRUN, *words[1:]], capture_output=True, **how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[VAE] Begin offline training...") == 1
    assert (run_folder(tmp_path) / "metrics.json").is_file()
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.slow
def test_a_users_mistake_is_said_once_by_two_processes(tmp_path):
    words, how = command("--data", "nowhere.npz", cwd=tmp_path)
    done = subprocess.run([*TORCHRUN, *words[1:]], capture_output=True, **how)
    assert done.returncode != 0 and done.stderr.count("error: nowhere.npz: no such file") == 1


@pytest.mark.parametrize("context", ["episode", "observation"])
def test_a_latent_that_carries_nothing_shows(context, data_file, capsys):
    """z at the prior, whatever the hunter did: no KL, no dimension in use, and a line that names it."""
    samples, model = load_samples(data_file), shaken(context=context)
    batches, index = pretrain_vae.make_batches(samples, CPU, "moa"), samples.splits["test"]
    checkpoint = {"table": None, "pairs": None, "strategies": [], "counts": [1] * 7, "goals_trained": 1}
    checkpoint["belief"] = None
    used = pretrain_vae.judge(model, samples, batches, index, checkpoint)["used_dimensions"]
    for parameter in model.recogniser[-1].parameters():
        torch.nn.init.zeros_(parameter)
    report = pretrain_vae.judge(model, samples, batches, index, checkpoint)
    assert used > 0 and report["used_dimensions"] == 0 and report["test"]["kl"] == 0
    report["test"] |= {"recon_nll": None}
    pretrain_vae.show_report(report, {"epoch": 1}, "here")
    assert "0 dimensions above 0.01: z carries nothing (posterior collapse)" in capsys.readouterr().out


@pytest.mark.slow
def test_another_seed_gives_another_run(finished, data_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", data_file, *FINISHED, "--seed", 2) == 0
    assert saved(run_folder(tmp_path)) != saved(run_folder(finished[0]))


# ---- what it refuses: one line, exit code 2


def refused(monkeypatch, capsys, *flags) -> str:
    code, error = call(monkeypatch, *flags), capsys.readouterr().err.splitlines()
    assert code == 2 and len(error) == 1 and error[0].startswith("error: "), error
    return error[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch-size", 0], "--batch-size: must be at least 1, got 0"),
        (["--epochs", -1], "--epochs: must be at least 1, got -1"),
        (["--latent-dim", 0], "--latent-dim: must be at least 1"),
        (["--torch-threads", 0], "--torch-threads: must be at least 1"),
        (["--seed", -1], "--seed: must be at least 0"),
        (["--seed", 10**20], "--seed: must be below 2**31, got 1"),
        (["--exp-name", "a\nb"], "--exp-name: must be letters"),
        (["--learning-rate", "nan"], "--learning-rate: must be a positive number, got nan"),
        (["--kl-coef", -1], "--kl-coef: must be a number of at least 0"),
        (["--loss", "mae"], "'mae'"),
        (["--context", "future"], "'future'"),
        (["--loss", "both", "--latent-dim", 1], "--latent-dim: must be at least 2 with --loss both"),
        (["--batch-size", "many"], "--batch-size"),
        (["--exp-name", "a/b"], "--exp-name"),
        (["--resume", "x", "--evaluate", "x"], "--resume and --evaluate exclude each other"),
        (["--resume", "nowhere"], "nowhere: no checkpoint there"),
        (["--evaluate", "nowhere"], "nowhere: no checkpoint there"),
        (["--data", "nowhere.npz"], "nowhere.npz: no such file"),
    ],
)
def test_bad_settings(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert says in refused(monkeypatch, capsys, *flags)
    assert not list(tmp_path.iterdir())


def spoilt(arrays: dict, how: str) -> dict:
    """A trajectory file's arrays with one thing wrong."""
    found = {key: value.copy() for key, value in arrays.items()}
    if how == "missing key":
        del found["rewards"]
    elif how == "wrong dtype":
        found["actions"] = found["actions"].astype(np.int64)
    elif how == "wrong rank":
        found["rewards"] = found["rewards"][:, 0]
    elif how == "lengths that disagree":
        found["episode_lengths"][0] += 1
    elif how == "action out of range":
        found["actions"][3, 1] = 9
    elif how == "NaN reward":
        found["rewards"][3, 1] = np.nan
    elif how == "plane value":
        found["obs"][0, 0, 2, 0, 0] = 7
    elif how == "two SELF cells":
        found["obs"][0, 0, 0] = 1
    elif how == "zero episodes":
        found = {key: value if key == "metadata" else value[:0] for key, value in found.items()}
    elif how == "pickled":
        found["rewards"] = np.array([{"a": 1}], object)
    return found


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing key", "rewards: expected an array float32 with 2 dimensions, found no such key"),
        ("wrong dtype", "actions: expected dtype int8, found int64"),
        ("wrong rank", "rewards: expected 2 dimensions, found shape"),
        ("lengths that disagree", "obs: expected shape"),
        ("action out of range", "actions: expected values in 0..6, found 9 at [3, 1]"),
        ("NaN reward", "rewards: expected finite numbers, found nan at [3, 1]"),
        ("plane value", "obs: expected cells of 0 or 1, found 7"),
        ("two SELF cells", "obs: expected at most one cell in a SELF plane, found 64 at [0, 0]"),
        ("zero episodes", "episode_lengths: expected at least one episode, found zero episodes"),
        ("pickled", "rewards: expected plain numbers, found pickled Python objects"),
        ("cut short", "the archive is cut short or damaged"),
        ("no npz", "expected an .npz file (a zip archive)"),
    ],
)
def test_bad_data_files(how, says, data_file, tmp_path, monkeypatch, capsys):
    with np.load(data_file) as archive:
        np.savez(tmp_path / "bad.npz", **spoilt(dict(archive), how))
    whole = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(
        {"cut short": whole[: len(whole) // 2], "no npz": b"hello"}.get(how, whole)
    )
    monkeypatch.chdir(tmp_path)
    assert f"bad.npz: {says}" in refused(monkeypatch, capsys, "--data", "bad.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]


def test_an_unwritable_output_folder(data_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "vae_ckpts").write_text("a file, not a folder")
    monkeypatch.chdir(tmp_path)
    assert "vae_ckpts: expected a folder to write to, found a file" in refused(
        monkeypatch, capsys, "--data", data_file
    )


def test_a_split_left_empty(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.npz"
    save_arrays(path, collect(CollectArgs(samples=100)).arrays())
    monkeypatch.chdir(tmp_path)
    assert "val and test would be empty" in refused(monkeypatch, capsys, "--data", path)


def test_a_loss_that_is_not_a_number(data_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = call(monkeypatch, "--data", data_file, "--epochs", 2, "--learning-rate", 1e30)
    assert code == 2 and "try a smaller --learning-rate" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be spoilt."""
    shutil.copytree(run_folder(finished[0]), tmp_path / "dim16")
    return tmp_path / "dim16"


def test_a_checkpoint_of_other_sizes(copied, data_file, tmp_path, monkeypatch, capsys):
    save_arrays(
        tmp_path / "4x4.npz", collect(CollectArgs(samples=100, rules=Rules(height=4, width=4))).arrays()
    )
    says = refused(monkeypatch, capsys, "--evaluate", copied, "--data", tmp_path / "4x4.npz")
    assert "expected boards of 8x8, as the checkpoint's, found 4x4" in says
    checkpoint = torch.load(copied / "best.pt", weights_only=True)
    torch.save(checkpoint | {"sizes": checkpoint["sizes"] | {"latent_dim": 3}}, copied / "best.pt")
    assert "best.pt: sizes.latent_dim: expected 16, found 3" in refused(
        monkeypatch, capsys, "--evaluate", copied, "--data", data_file
    )


@pytest.mark.parametrize(
    "change", [dict(rules=Rules(hunters=3)), dict(strategies=("NH", "NS")), dict(strategies=("RANDOM",))]
)
def test_other_hunters_can_be_judged_but_not_by_the_table(change, copied, tmp_path, monkeypatch, capsys):
    save_arrays(tmp_path / "other.npz", collect(CollectArgs(samples=300, **change)).arrays())
    assert call(monkeypatch, "--evaluate", copied, "--data", tmp_path / "other.npz") == 0
    report = json.loads((copied / "evaluate_other.json").read_text())
    assert report["table"] is None and report["bayes"]["nll"] <= report["test"]["nll"]
    assert "no `table` here: it was counted with 4 hunters of NS/NH" in capsys.readouterr().out


def test_a_checkpoint_cut_short(copied, data_file, monkeypatch, capsys):
    for name, flag in (("best.pt", "--evaluate"), ("last.pt", "--resume")):
        (copied / name).write_bytes((copied / name).read_bytes()[:5000])
        says = refused(monkeypatch, capsys, flag, copied, "--data", data_file)
        assert f"{name}: the checkpoint is cut short or damaged" in says


def test_resuming_with_other_settings_or_data(copied, data_file, tmp_path, monkeypatch, capsys):
    says = refused(monkeypatch, capsys, "--resume", copied, "--latent-dim", 64, "--data", data_file)
    assert "--latent-dim 64: the run has 16" in says
    says = refused(monkeypatch, capsys, "--resume", copied, "--epochs", 10)  # the default, but not the run's
    assert "--epochs 10: the run has 2; leave --epochs out" in says
    save_arrays(tmp_path / "other.npz", collect(CollectArgs(samples=700, seed=5)).arrays())
    says = refused(monkeypatch, capsys, "--resume", copied, "--data", tmp_path / "other.npz")
    assert "not the data that the run was trained on" in says
