"""The networks in `pretrained/`: small, as good as their metrics.json says, and at hand where there is no run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hidden_game import call

import hop_ppo
import pretrain_vae
import test_obs_reward_model
import tracking
import train_world_model
from benchmarks.pretrained import pack
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import TransitionBatches, load_samples, load_transitions
from data.trajectories import save_arrays
from metrics import observers, scores
from metrics.vae_reports import predict

ROOT = Path(tracking.__file__).resolve().parent.parent
FOLDERS = {root: ROOT / name for root, name in tracking.PRETRAINED.items()}
VAE, WORLD_MODEL = FOLDERS["vae_ckpts"], FOLDERS["wm_ckpts"]


def recorded(folder: Path) -> dict:
    """The figures on the fresh file."""
    return json.loads((tracking.find_folder(folder) / "metrics.json").read_text(encoding="utf-8"))["fresh"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A few episodes of a seed that neither trained nor judged them."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    save_arrays(path, collect(CollectArgs(samples=8000, seed=77)).arrays())
    return path


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder with the pretrained networks and no run."""
    shutil.copytree(ROOT / "pretrained", tmp_path / "pretrained")
    return tmp_path


def mean_and_error(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """The mean of rows, and its standard error, as rows of a group depend on each other."""
    deviations = np.bincount(groups, values - values.mean())
    return values.mean(), np.sqrt((deviations**2).sum()) / len(values)


def test_the_vae_is_as_good_as_it_says(data):
    samples = load_samples(data, split=False)
    index = samples.splits["all"]
    model, _ = pretrain_vae.load_vae(VAE)
    probs = predict(model, pretrain_vae.make_batches(samples, torch.device("cpu"), "moa"), index).probs
    bayes = observers.bayes(samples.trajectories)[samples.trajectories.active]
    nll, nll_error = mean_and_error(scores.nll(probs, samples.actions), samples.episodes)
    kl, kl_error = mean_and_error(scores.kl(bayes, probs), samples.episodes)
    assert abs(nll - recorded(VAE)["nll"]) < 3 * nll_error
    assert abs(kl - recorded(VAE)["kl_to_bayes"]) < 3 * kl_error < 0.002


def test_the_world_model_is_exact(data):
    transitions = load_transitions(data, split=False)
    model, _ = train_world_model.load_world_model(WORLD_MODEL)
    batches = TransitionBatches.of(transitions, torch.device("cpu"), False)
    found = train_world_model.evaluate(model, batches, transitions.splits["all"])
    assert found["exact_transitions"] == recorded(WORLD_MODEL)["exact_transitions"] == 1.0
    assert found["exact_rewards"] == recorded(WORLD_MODEL)["exact_rewards"] == 1.0
    assert found["nll"] < 1e-4


def test_they_are_small_and_hold_weights_alone():
    files = [path for path in (ROOT / "pretrained").rglob("*") if path.name in ("best.pt", "metrics.json")]
    assert len(files) == 4 and sum(path.stat().st_size for path in files) <= 500_000
    for checkpoint in (pretrain_vae.load_vae(VAE)[1], train_world_model.load_world_model(WORLD_MODEL)[1]):
        assert checkpoint["optimizer"] is None and checkpoint["rng"] is None


def test_a_packed_run_predicts_as_the_run(tmp_path):
    model, checkpoint = pretrain_vae.load_vae(VAE)
    pack(checkpoint | {"table": torch.zeros(3)}, tmp_path / "packed", dict(run="run", extra=1), dict(nll=1.0))
    again, packed = pretrain_vae.load_vae(tmp_path / "packed")
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name
    assert again.belief_law == model.belief_law and packed["table"] is None
    metrics = json.loads((tmp_path / "packed" / "metrics.json").read_text())
    assert metrics == {"run": "run", "fresh": {"nll": 1.0}}


# ---- which network a flag names


def test_hop_ppo_takes_them_where_there_is_no_run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    args = hop_ppo.Args(om="belief", real_ratio=0.5)
    vae, world_model = hop_ppo.load_networks(args, hop_ppo.load_rules(args)[0])
    assert vae is not None and world_model is not None
    assert (args.vae, args.world_model) == ("pretrained/vae", "pretrained/wm")
    printed = capsys.readouterr().out
    assert "vae_ckpts: no trained run there, so pretrained/vae is used" in printed
    assert "wm_ckpts: no trained run there, so pretrained/wm is used" in printed
    assert "[MOA] pretrained/vae: top1 0.78" in printed


def test_other_games_refuse_where_there_is_no_run(home, monkeypatch):
    monkeypatch.chdir(home)
    for game in (
        dict(env_id="Snowdrift-v0"),
        dict(env_args=("height=6",)),
        dict(env_id="StagHunt-hidden-v0"),
    ):
        args = hop_ppo.Args(om="belief", **game)
        with pytest.raises(tracking.UsageError, match=r"vae_ckpts: no trained run there; train one with"):
            hop_ppo.load_networks(args, hop_ppo.load_rules(args)[0])


def test_a_run_goes_before_them(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    shutil.copytree("pretrained/vae", "vae_ckpts/vae__1")
    assert tracking.network_run("", "vae_ckpts", "pretrain_vae.py", True) == "vae_ckpts/vae__1"
    assert tracking.network_run("pretrained", "vae_ckpts", "pretrain_vae.py") == "pretrained/vae"
    assert tracking.network_run("mine", "vae_ckpts", "pretrain_vae.py", True) == "mine"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("script", "flag"), [(pretrain_vae, "--evaluate"), (test_obs_reward_model, "--checkpoint")]
)
def test_the_word_is_known_where_networks_are_judged(script, flag, home, capsys):
    """They are found and read before the file is."""
    assert call(script, home, flag, "pretrained", "--data", "missing.npz") == 2
    assert capsys.readouterr().err.startswith("error: missing.npz: no such file")


@pytest.mark.parametrize(("script", "folder"), [(pretrain_vae, "vae/dim16"), (train_world_model, "wm")])
def test_there_is_no_training_to_go_on_with(script, folder, home, capsys):
    """Also not where the weights are copied to the name of a last checkpoint."""
    path = home / "pretrained" / folder
    assert call(script, home, "--resume", path) == 2
    assert "last.pt: no checkpoint there" in capsys.readouterr().err
    shutil.copy(path / "best.pt", path / "last.pt")
    assert call(script, home, "--resume", path) == 2
    assert capsys.readouterr().err.endswith("holds weights alone, no training to go on with; train again\n")


@pytest.mark.parametrize("name", ["optimizer", "rng"])
def test_half_of_what_training_needs_is_refused(name, tmp_path):
    model, checkpoint = train_world_model.load_world_model(WORLD_MODEL)
    whole = checkpoint | tracking.learnt(
        model, train_world_model.make_optimizer(model, train_world_model.Args())
    )
    tracking.save_checkpoint(tmp_path / "best.pt", whole | {name: None})
    with pytest.raises(tracking.UsageError, match=rf"best\.pt: (optimizer|{name})"):
        train_world_model.load_world_model(tmp_path)
