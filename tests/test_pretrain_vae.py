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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pretrain_vae
import tracking
from data import DataError, load_samples, scores, symmetries
from data.collect import Args as CollectArgs
from data.collect import collect
from data.trajectories import legal_actions, save_arrays
from envs import Rules, joint_to_hop, planes_to_joint

ROOT = Path(pretrain_vae.__file__).resolve().parent
MOA_COLUMNS = ["action", "name", "count", "ratio", "precision", "recall", "f1", "table_recall", "bayes_recall"]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """About 2,000 samples of the default law."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    save_arrays(path, collect(CollectArgs(samples=2000)).arrays())
    return path


def command(*flags, cwd):
    """The script in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return [sys.executable, str(ROOT / "pretrain_vae.py"), *map(str, flags)], dict(cwd=cwd, env=environment, text=True)


def call(monkeypatch, *flags):
    """The script in this process. Returns: its exit code, 0 if it just ends."""
    monkeypatch.setattr(sys, "argv", ["pretrain_vae.py", *map(str, flags)])
    try:
        tracking.run(pretrain_vae.main, DataError)
    except SystemExit as stop:
        return stop.code
    return 0


def run_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "vae_ckpts").glob("vae__*/dim*")
    return folder


@pytest.fixture(scope="module")
def finished(data_file, tmp_path_factory):
    """A finished run of two epochs: (its working folder, what it printed)."""
    cwd = tmp_path_factory.mktemp("run")
    words, how = command("--data", data_file, "--epochs", 2, "--loss", "both", "--batch-size", 128, cwd=cwd)
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
    assert list(table.columns) == MOA_COLUMNS and list(table.name) == list(pretrain_vae.ACTIONS)
    assert set(arrays) == {"targets", "predictions", "probabilities", "strategies", "ticks", "confusion_matrix"}
    val = samples.splits["val"]
    np.testing.assert_array_equal(arrays["targets"], samples.actions[val])
    np.testing.assert_array_equal(arrays["predictions"], arrays["probabilities"].argmax(1))
    np.testing.assert_array_equal(table["count"], np.bincount(samples.actions[val], minlength=7))
    np.testing.assert_array_equal(arrays["confusion_matrix"].sum(1), table["count"])
    bayes = samples.observers(val, samples.count_table())["bayes"]
    recall = scores.recall(bayes, samples.actions[val])
    np.testing.assert_allclose(table.bayes_recall, recall, atol=1e-6)
    top1 = (arrays["targets"] == arrays["predictions"]).mean()
    assert f"epoch 1: top1={top1:.4f}" in out
    loss = pd.read_csv(folder / "loss.csv")
    assert list(loss.epoch) == [0, 1] and loss.val_top1.iloc[1] == pytest.approx(top1, abs=1e-6)
    # total = moa + recon + kl_coef * kl, the weight rising over the first epoch: after it, exactly
    assert loss.total.iloc[1] == pytest.approx(loss.moa.iloc[1] + loss.recon.iloc[1] + 1e-3 * loss.kl.iloc[1], rel=1e-5)
    assert loss.total.iloc[0] < loss.moa.iloc[0] + loss.recon.iloc[0] + 1e-3 * loss.kl.iloc[0]
    for name in ("vae_loss_curve", "confusion_matrix", "recall", "class_distribution", "reconstructions"):
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
    assert metrics["samples"] == {name: len(samples.splits[name]) for name in ("train", "val", "test")}
    assert sum(metrics["samples"].values()) == len(samples)
    names = {"top1", "top3", "nll", "brier", "ece", "kl", "recon_nll", "recon_mse", "recon_exact"}
    assert set(metrics["test"]) == names and all(math.isfinite(value) for value in metrics["test"].values())
    assert set(metrics["bayes"]) == set(metrics["table"]) == set(metrics["known"]) == {"top1", "top3", "nll"}
    assert metrics["known"]["nll"] < metrics["bayes"]["nll"] < metrics["test"]["nll"]
    assert metrics["kl_to_bayes"] > 0 and set(metrics["by_strategy"]) == {"NS", "NH"}
    rows = pd.read_csv(folder / "moa_breakdown.csv", dtype={"value": str})
    for row in rows[rows.by == "strategy"].itertuples():
        assert row.nll == pytest.approx(metrics["by_strategy"][row.value][row.predictor]["nll"], abs=1e-6)
    assert set(rows.predictor) == {"moa", "uniform", "table", "bayes", "known", "majority"}
    total = sum(tick["samples"] for tick in metrics["by_tick"].values())
    assert total == metrics["samples"]["test"] == sum(s["samples"] for s in metrics["by_strategy"].values())


def test_tensorboard_has_it_all(finished):
    (log,) = (finished[0] / "runs").iterdir()
    events = EventAccumulator(str(log)).Reload().Tags()
    assert log.name == run_folder(finished[0]).parent.name
    assert {"losses/moa", "losses/total", "val/top1", "val/recon_nll", "charts/SPS", "test/nll"} <= set(events["scalars"])
    drawn = ("vae_loss_curve", "confusion_matrix", "recall", "class_distribution", "reconstructions")
    assert {f"figures/{name}" for name in drawn} <= set(events["images"])
    assert "hyperparameters/text_summary" in events["tensors"]


def test_a_checkpoint_describes_itself(finished, data_file):
    folder = run_folder(finished[0])
    model, checkpoint = pretrain_vae.load_vae(finished[0] / "vae_ckpts" / folder.parent.name)
    assert checkpoint["fingerprint"] == load_samples(data_file).fingerprint
    assert {"model", "optimizer", "rng", "step", "epoch", "args", "sizes", "history"} <= set(checkpoint)
    assert model.sizes == checkpoint["sizes"] and not model.training


def test_evaluate_judges_the_whole_of_another_file(finished, tmp_path, monkeypatch):
    path = tmp_path / "other.npz"
    save_arrays(path, collect(CollectArgs(samples=700, seed=5)).arrays())
    folder = run_folder(finished[0])
    assert call(monkeypatch, "--evaluate", folder.parent, "--data", path) == 0
    report, samples = json.loads((folder / "evaluate_other.json").read_text()), load_samples(path)
    trained = json.loads((folder / "metrics.json").read_text())
    assert set(trained) <= set(report) and report["run"] == trained["run"]
    assert report["samples"] == {"train": 0, "val": 0, "test": len(samples)}
    model, checkpoint = pretrain_vae.load_vae(folder)
    batches = pretrain_vae.Batches.of(samples, torch.device("cpu"))
    planes, ticks, actions = batches.get(torch.arange(len(samples)))
    with torch.no_grad():  # z at its mean, best checkpoint, by hand
        nll = torch.nn.functional.cross_entropy(model.moa(planes, ticks, model.encode(planes)[0]), actions)
    assert report["test"]["nll"] == pytest.approx(nll.item(), abs=1e-5)
    table = samples.observers(samples.splits["all"], checkpoint["table"].numpy())["table"]
    assert report["table"]["nll"] == pytest.approx(scores.score(table, samples.actions)["nll"])
    per_action = pd.read_csv(folder / "evaluate_other.csv")
    assert list(per_action.columns) == MOA_COLUMNS and per_action["count"].sum() == len(samples)


def test_what_was_trained_on_is_not_judged(finished, data_file, monkeypatch, capsys):
    says = refused(monkeypatch, capsys, "--evaluate", run_folder(finished[0]), "--data", data_file)
    assert "the run was trained on this file; judge it on another, such as --data fresh" in says


# ---- the model and its losses


@pytest.fixture(scope="module")
def batches(data_file):
    return pretrain_vae.Batches.of(load_samples(data_file), torch.device("cpu"))


@pytest.mark.parametrize("loss", ["moa", "recon", "both"])
def test_what_a_loss_reaches_is_what_is_trained(loss, batches):
    model = pretrain_vae.VAE(8, 8, 35)
    planes, ticks, actions = batches.get(torch.arange(500))
    terms = pretrain_vae.loss_terms(model, loss, planes, ticks, actions)
    terms.sum().backward()
    reached = {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {id(p) for p in model.trained_parameters(loss)}
    assert (terms[0] > 0) == (loss != "recon") and (terms[1] > 0) == (loss != "moa")


@pytest.mark.parametrize(
    "rules", [Rules(), Rules(height=4, width=4, blocks=0), Rules(height=3, width=6, hunters=2, blocks=2)]
)
def test_legal_mask_and_symmetries(rules, tmp_path):
    path = tmp_path / "x.npz"
    save_arrays(path, collect(CollectArgs(samples=600, rules=rules)).arrays())
    samples = load_samples(path)
    batches, model = pretrain_vae.Batches.of(samples, torch.device("cpu")), pretrain_vae.VAE(rules.height, rules.width, 35)
    index = torch.arange(len(samples))
    for planes, ticks, actions in (batches.get(index), batches.augmented(index)):
        probs = model.moa(planes, ticks, torch.zeros(len(index), 16)).softmax(1)
        frames = planes.unflatten(2, (rules.height, rules.width)).numpy()
        np.testing.assert_array_equal(probs.detach().numpy() > 0, legal_actions(frames))
        assert (probs.gather(1, actions[:, None]) > 0).all()  # what was done stays legal, turned round or not


def test_augmentation_turns_boards_and_actions_together(batches):
    torch.manual_seed(0)
    planes, _, action = (array[0] for array in batches.get(torch.zeros(1, dtype=torch.int64)))
    cells, turned = symmetries(8, 8)
    expected = {(planes.numpy()[:, c].tobytes(), int(a[action])) for c, a in zip(cells, turned, strict=True)}
    drawn, _, actions = batches.augmented(torch.zeros(400, dtype=torch.int64))
    assert {(p.numpy().tobytes(), int(a)) for p, a in zip(drawn, actions, strict=True)} == expected


def test_losses_take_logits(batches):
    """A memorised batch goes far below 1.165, where softmax fed to cross-entropy would stop (7 actions)."""
    torch.manual_seed(0)
    planes, ticks, actions = batches.get(torch.arange(8))
    model = pretrain_vae.VAE(8, 8, 35)
    optimizer = torch.optim.Adam(model.trained_parameters("moa"), 1e-2)
    for _ in range(60):
        terms = pretrain_vae.loss_terms(model, "moa", planes, ticks, actions)
        optimizer.zero_grad()
        terms[0].backward()
        optimizer.step()
    assert terms[0].item() < 0.05


def test_terms_are_nats_per_action_and_per_frame(batches):
    """An untrained network that says 1/2 everywhere costs 320 log 2 a frame; z at the prior costs no KL."""
    model = pretrain_vae.VAE(8, 8, 35)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    planes, ticks, actions = batches.get(torch.arange(300))
    moa, recon, kl = pretrain_vae.loss_terms(model, "both", planes, ticks, actions).tolist()
    legal = legal_actions(planes.unflatten(2, (8, 8)).numpy())
    assert moa == pytest.approx(np.log(legal.sum(1)).mean(), rel=1e-5)
    assert recon == pytest.approx(320 * math.log(2), rel=1e-5) and kl == pytest.approx(0.0, abs=1e-6)


def test_action_table_by_hand():
    targets = np.array([0, 0, 0, 1, 5])
    probs = np.full((5, 7), 0.05)
    probs[[0, 1, 2, 3, 4], [0, 0, 1, 1, 6]] = 0.7
    rows, matrix = pretrain_vae.action_table(probs, targets, {})
    assert matrix[0, 0] == 2 and matrix[0, 1] == 1 and matrix[1, 1] == 1 and matrix[5, 6] == 1 and matrix.sum() == 5
    assert (rows[0]["precision"], rows[0]["recall"]) == (1.0, 2 / 3) and rows[0]["f1"] == pytest.approx(0.8)
    assert (rows[1]["precision"], rows[1]["recall"], rows[1]["ratio"]) == (0.5, 1.0, 0.2)
    observed = {"table": probs[:, ::-1].copy(), "bayes": np.eye(7)[targets]}
    rows_beside, _ = pretrain_vae.action_table(probs, targets, observed)
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
    assert metrics["test"]["nll"] is None and metrics["kl_to_bayes"] is None and metrics["test"]["recon_nll"] > 0
    assert "[MOA] untrained" in capsys.readouterr().out


def test_flat_files_go_the_whole_way(tmp_path, monkeypatch, capsys):
    trajectories = collect(CollectArgs(samples=1500, rules=Rules(height=4, width=4, blocks=0)))
    rows, observer = trajectories.obs_row, np.arange(len(trajectories.actions)) % 4
    hop = joint_to_hop(planes_to_joint(trajectories.obs[rows]), observer)
    save_arrays(tmp_path / "hop.npz", dict(obs=hop, actions=trajectories.actions, observer=observer.astype(np.int8)))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", "hop.npz", "--epochs", 1) == 0
    out, folder = capsys.readouterr().out, run_folder(tmp_path)
    active = trajectories.active[np.arange(len(observer)), observer].sum()
    assert f"[VAE] Loaded {active} samples." in out and "layout hop" in out and "contiguous" in out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["bayes"] is None and metrics["table"] is None and metrics["kl_to_bayes"] is None
    assert pd.read_csv(folder / "moa_eval_epoch0.csv").bayes_recall.isna().all()


# ---- what is judged, and how


def test_figures_by_hand(data_file):
    """predict and judge against formulas written out here."""
    torch.manual_seed(0)
    samples, model = load_samples(data_file), pretrain_vae.VAE(8, 8, 35, latent_dim=3)
    batches, index = pretrain_vae.Batches.of(samples, torch.device("cpu")), samples.splits["test"]
    torch.nn.init.normal_(model.decoder.last.bias, -4.0, 2.0)
    counts, table = [1, 2, 3, 4, 5, 6, 79], torch.as_tensor(samples.count_table())
    checkpoint = {"args": {"loss": "both"}, "table": table, "strategies": ["NS", "NH"], "counts": counts}
    report = pretrain_vae.judge(model, samples, batches, index, checkpoint)
    planes, ticks, actions = batches.get(torch.as_tensor(index))
    with torch.no_grad():
        mean, log_var = model.encode(planes)
        cells = model.decode(mean).sigmoid().double()
        probs = model.moa(planes, ticks, mean).softmax(1).double().numpy()
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (0.5 * log_var).exp()), prior).sum(1)
    nll = -(planes * cells.log() + (1 - planes) * (1 - cells).log()).sum((1, 2))
    exact = [bool(((frame > 0.5) == (truth > 0.5)).all()) for frame, truth in zip(cells, planes, strict=True)]
    expected = {
        "kl": kl.mean(),
        "recon_nll": nll.mean(),
        "recon_mse": ((cells - planes) ** 2).mean(),
        "recon_exact": np.mean(exact),
    }
    for key, value in expected.items():
        assert report["test"][key] == pytest.approx(float(value), rel=1e-4, abs=1e-9), key
    assert report["bits"]["recon"] == pytest.approx(float(nll.mean()) / math.log(2), rel=1e-4)
    bayes = samples.observers(index, None)["bayes"].astype(float)
    assert report["kl_to_bayes"] == pytest.approx(
        np.mean([(p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum() for p, q in zip(bayes, probs, strict=True)]), rel=1e-4
    )
    assert report["majority"]["nll"] == pytest.approx(-np.log(np.array(counts) / 100)[actions].mean(), rel=1e-5)
    assert report["majority"]["top1"] == pytest.approx((actions == 6).double().mean().item())
    taken = probs[np.arange(len(index)), actions]
    for key, groups in (("by_tick", samples.ticks[index]), ("by_strategy", samples.strategies[index])):
        for group in np.unique(groups):
            found = report[key][str(group) if key == "by_tick" else ("NS", "NH")[group]]
            assert found["samples"] == (groups == group).sum()
            assert found["moa"]["nll"] == pytest.approx(-np.log(taken[groups == group]).mean(), rel=1e-4)


def test_exact_frames_need_every_plane(batches):
    """A decoder that knows all planes but one has no frame right."""
    model = pretrain_vae.VAE(8, 8, 35)
    planes = batches.get(torch.arange(1))[0]
    for wrong in (None, 0, 4):
        logits = (2 * planes - 1) * 9.0
        if wrong is not None:
            logits[:, wrong] *= -1
        model.decode = lambda z, logits=logits: logits
        _, means = pretrain_vae.predict(model, batches, np.arange(1), "recon")
        assert means["recon_exact"] == (1.0 if wrong is None else 0.0)


def test_an_epoch_is_each_training_sample_once_augmented(data_file, tmp_path, monkeypatch):
    samples, seen = load_samples(data_file), []
    augmented = pretrain_vae.Batches.augmented
    monkeypatch.setattr(pretrain_vae.Batches, "augmented", lambda self, index: seen.append(index) or augmented(self, index))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", data_file, "--epochs", 2) == 0
    for part in np.array_split(torch.cat(seen).numpy(), 2):
        np.testing.assert_array_equal(np.sort(part), samples.splits["train"])
    assert not torch.equal(torch.cat(seen)[: len(part)], torch.cat(seen)[len(part) :])  # another order each time


def test_best_is_the_epoch_of_the_lowest_validation_nll(data_file, tmp_path, monkeypatch):
    scripted = iter([0.9, 0.3, 0.5])
    monkeypatch.setattr(pretrain_vae, "validate", lambda *a: {"nll": next(scripted), "kl": 0.0, "recon_nll": None})
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--data", data_file, "--epochs", 3) == 0
    saved_epochs = [torch.load(run_folder(tmp_path) / f"{name}.pt", weights_only=True)["epoch"] for name in ("best", "last")]
    assert saved_epochs == [2, 3]


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
        assert call(monkeypatch, "--data", data_file, "--epochs", 3, "--batch-size", 64, "--kl-coef", coef) == 0
        kls.append(json.loads((run_folder(tmp_path / str(coef)) / "metrics.json").read_text())["test"]["kl"])
    assert kls[1] < 0.2 * kls[0]


# ---- the same again


def saved(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


@pytest.mark.slow
def test_same_seed_same_bytes_killed_or_not(data_file, tmp_path):
    flags = ("--data", data_file, "--epochs", 4, "--batch-size", 32)
    folders = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        words, how = command(*flags, cwd=tmp_path / name)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
        if name == "killed":
            deadline = time.monotonic() + 60
            while not list((tmp_path / name).glob("vae_ckpts/*/*/moa_eval_epoch1.csv")) and time.monotonic() < deadline:
                time.sleep(0.01)
            process.kill()
            process.wait()
            assert not list((tmp_path / name).glob("vae_ckpts/*/*/metrics.json")), "it was too fast to be killed"
            words, how = command("--resume", run_folder(tmp_path / name).parent, cwd=tmp_path / name)
            assert subprocess.run(words, capture_output=True, **how).returncode == 0
        else:
            assert process.wait() == 0
        folders.append(run_folder(tmp_path / name))
    whole, killed = folders
    assert saved(whole) == saved(killed) and len(saved(whole)) == 6
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in folders)
        assert one["step"] == other["step"]
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
        moments = [[m for state in c["optimizer"]["state"].values() for m in state.values()] for c in (one, other)]
        assert len(moments[0]) > 10 and all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
        assert torch.equal(one["rng"]["cpu"], other["rng"]["cpu"])
    logs = [EventAccumulator(str(next((tmp_path / name / "runs").iterdir()))).Reload() for name in ("whole", "killed")]
    for tag in ("val/top1", "losses/moa", "charts/learning_rate"):
        one, other = ([(event.step, event.value) for event in log.Scalars(tag)] for log in logs)
        assert one == other and len(one) >= 4
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    for metrics in (one, other):  # the wall clock, and the name that comes from it
        for key in ("run", "seconds", "samples_per_second"):
            del metrics[key]
    assert one == other


@pytest.mark.slow
def test_two_seeds_differ_and_a_run_beside_gets_its_own_folder(data_file, tmp_path):
    processes = []
    for seed in (1, 2):
        words, how = command("--data", data_file, "--epochs", 1, "--seed", seed, cwd=tmp_path)
        processes.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how))
    assert [process.wait() for process in processes] == [0, 0]
    folders = sorted((tmp_path / "vae_ckpts").glob("vae__*/dim16"))
    assert len(folders) == 2 and saved(folders[0]) != saved(folders[1])


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
    (tmp_path / "bad.npz").write_bytes({"cut short": whole[: len(whole) // 2], "no npz": b"hello"}.get(how, whole))
    monkeypatch.chdir(tmp_path)
    assert f"bad.npz: {says}" in refused(monkeypatch, capsys, "--data", "bad.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]


def test_an_unwritable_output_folder(data_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "vae_ckpts").write_text("a file, not a folder")
    monkeypatch.chdir(tmp_path)
    assert "vae_ckpts: expected a folder to write to, found a file" in refused(monkeypatch, capsys, "--data", data_file)


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
    save_arrays(tmp_path / "4x4.npz", collect(CollectArgs(samples=100, rules=Rules(height=4, width=4))).arrays())
    says = refused(monkeypatch, capsys, "--evaluate", copied, "--data", tmp_path / "4x4.npz")
    assert "expected boards of 8x8, as the checkpoint's, found 4x4" in says
    checkpoint = torch.load(copied / "best.pt", weights_only=True)
    torch.save(checkpoint | {"sizes": checkpoint["sizes"] | {"latent_dim": 3}}, copied / "best.pt")
    assert "best.pt: the checkpoint is of other sizes" in refused(
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
    assert "--latent-dim 64: the run to be resumed has 16" in says
    save_arrays(tmp_path / "other.npz", collect(CollectArgs(samples=700, seed=5)).arrays())
    says = refused(monkeypatch, capsys, "--resume", copied, "--data", tmp_path / "other.npz")
    assert "not the data that the run was trained on" in says
