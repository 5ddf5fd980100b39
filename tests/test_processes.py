"""hop_ppo.py in several processes: the result of one but for rounding; and each script on a GPU."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import run_script
from saved import whole_checkpoint, write_run

import hop_ppo
import pretrain_vae
import test_obs_reward_model
import tracking
import train_world_model
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import TransitionBatches, load_samples, load_transitions
from data.trajectories import save_arrays
from envs import Rules
from hop_ppo import Args, sample
from pretrain_vae import VAE
from tracking import run_lock

ROOT = Path(hop_ppo.__file__).resolve().parent
CPU = torch.device("cpu")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SMALL = ["--num-envs", 16, "--num-steps", 8, "--total-timesteps", 512, "--num-minibatches", 3]
SMALL += ["--eval-every", 2, "--eval-boards", 8]  # 4 updates of 128 steps
RUNNER = """
import hop_ppo, tracking
from data import DataError

hop_ppo.Evaluator.report = lambda *args: None  # one process alone makes it
hop_ppo.figures.save = lambda *args: None
tracking.run(hop_ppo.main, DataError)
"""


class Share(tracking.World):
    """One of two processes, whose sums are added up by the test."""

    def __init__(self, rank: int):
        super().__init__(rank, 2, CPU)

    def sum(self, values):
        return values


@pytest.fixture(scope="module")
def rolled_out():
    """A policy and a batch of it, of 16 boards."""
    torch.manual_seed(1)
    args = Args(num_envs=16, num_steps=8, team_episodes=1)
    (collector,) = hop_ppo.make_collectors(args, Rules(), None, None)
    agent = hop_ppo.make_agent("objects", Rules(), 0)
    return agent, hop_ppo.rollout(agent, collector, args, torch.zeros(3))


def learn(rolled_out, world) -> tuple[torch.Tensor, dict]:
    """One step of plain gradient descent. Returns: how all weights change, and the losses."""
    agent, batch = copy.deepcopy(rolled_out)
    before = torch.nn.utils.parameters_to_vector(agent.parameters()).detach()
    args = Args(update_epochs=1, num_minibatches=1, learning_rate=1.0, max_grad_norm=1e6, ent_coef=0.1)
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    losses = hop_ppo.update(agent, optimizer, batch, args, 1.0, world)
    return torch.nn.utils.parameters_to_vector(agent.parameters()).detach() - before, losses


# ---- shares


def test_shares_of_a_minibatch_add_up_to_it(rolled_out):
    """Also of an odd number of samples: a mean of the shares' means would weigh them alike."""
    agent, batch = rolled_out
    odd = hop_ppo.Batch(*(getattr(batch, name)[:5] for name in hop_ppo.Batch.__dataclass_fields__))
    whole, losses = learn((agent, odd), tracking.ALONE)
    shares = [learn((agent, odd), Share(rank)) for rank in (0, 1)]
    assert whole.abs().max() > 1e-2
    torch.testing.assert_close(shares[0][0] + shares[1][0], whole, rtol=1e-4, atol=1e-6)
    for name, value in losses.items():
        torch.testing.assert_close(shares[0][1][name] + shares[1][1][name], value, rtol=1e-4, atol=1e-6)


def test_an_action_does_not_depend_on_who_plays_which_boards():
    logprobs = torch.zeros(40, 7).log_softmax(1)
    torch.manual_seed(3)
    whole = sample(logprobs)
    shares = []
    for rank in (0, 1):
        torch.manual_seed(3)
        shares.append(sample(Share(rank).own(logprobs), Share(rank)))
    assert torch.equal(torch.cat(shares), whole) and len(whole.unique()) > 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            dict(num_envs=15),
            "--num-envs 15: 15 real and 0 imagined boards do not divide evenly over 2 processes",
        ),
        (dict(num_envs=6, real_ratio=0.5), "3 real and 3 imagined boards do not divide evenly"),
    ],
)
def test_boards_that_do_not_divide_evenly(settings, says):
    with pytest.raises(tracking.UsageError, match=says):
        hop_ppo.check_shares(Args(**settings), Share(0))
    hop_ppo.check_shares(Args(num_envs=16, real_ratio=0.5), Share(0))


# ---- a run


def stop_at_second_evaluation(monkeypatch, folder: Path, *flags) -> Path:
    """Returns: the run's folder."""
    play, calls = hop_ppo.Evaluator.play, []

    class Killed(Exception):
        pass

    def killed(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return play(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(hop_ppo.Evaluator, "play", killed)
        run_script(patched, hop_ppo, *flags)
    stopped = max((folder / "ppo_ckpts").iterdir(), key=lambda path: path.stat().st_mtime)
    run_lock.release((stopped / ".lock").resolve())  # as when its process ends
    return stopped


@pytest.mark.slow
def test_a_run_goes_on_in_two_processes(tmp_path, monkeypatch):
    """The run of one process, but for rounding: the same boards, weights, figures, random numbers; one save and one log."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hop_ppo.Evaluator, "report", lambda *args: None)
    monkeypatch.setattr(hop_ppo.figures, "save", lambda *args: None)
    torch.manual_seed(0)
    vae = whole_checkpoint(pretrain_vae, VAE(8, 8, 35), args=dict(data="x"))
    write_run(tmp_path / "vae_ckpts/vae__1/dim16", vae)
    tracking.write_json(
        tmp_path / "vae_ckpts/vae__1/dim16/metrics.json", {"test": dict(top1=0.7, top3=0.9, nll=0.5)}
    )
    flags = (*SMALL, "--om", "belief")
    assert run_script(monkeypatch, hop_ppo, *flags) == 0
    (whole,) = (tmp_path / "ppo_ckpts").iterdir()
    part = stop_at_second_evaluation(monkeypatch, tmp_path, *flags)
    assert part != whole
    saved = tracking.load_checkpoint(part / "last.pt", hop_ppo.CHECKPOINT)
    assert saved["update"] == 2
    (tmp_path / "runner.py").write_text(RUNNER)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*TORCHRUN, "runner.py", "--resume", part]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[PPO] model saved to") == 1 and "2 processes" in done.stdout
    assert len(list((tmp_path / "ppo_ckpts").iterdir())) == len(list((tmp_path / "runs").iterdir())) == 2

    one, two = (tracking.load_checkpoint(run / "last.pt", hop_ppo.CHECKPOINT) for run in (whole, part))
    assert one["update"] == two["update"] == 4
    for key in ("collectors", "rng"):
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-4)
    moved = max(float((one["model"][name] - saved["model"][name]).abs().max()) for name in one["model"])
    assert moved > 1e-2
    torch.testing.assert_close(two["model"], one["model"], rtol=0, atol=2e-3)
    for name in ("progress.csv", "evaluations.csv"):
        tables = [pd.read_csv(run / name) for run in (whole, part)]
        pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-3)


# ---- a GPU


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.npz"
    save_arrays(path, collect(CollectArgs(samples=2000)).arrays())
    return path


@pytest.mark.parametrize("kind", ["moves", "cells"])
def test_a_world_model_keeps_to_its_device(kind, data_file):
    """Whatever is made on the default device, as a number without data, cannot be combined with it."""
    data = load_transitions(data_file)
    batches, index = TransitionBatches.of(data, CPU, False), data.splits["train"][:32]
    model = train_world_model.make_model(train_world_model.Args(model=kind), batches, index, data, None)
    with torch.device("meta"):
        noise = model.draw_noise(len(index), 4, sum(batches.most)) if kind == "moves" else ()
        terms, contrast = model(*train_world_model.make_batch(model, batches, index, augment=True), noise)
        (contrast.sum() - terms.stack().sum()).backward()
        figures = train_world_model.evaluate(model, batches, index)
    assert all(parameter.grad.device == CPU for parameter in model.parameters())
    assert figures["nll"] > 0


@pytest.mark.parametrize("loss", ["moa", "both"])
def test_a_vae_keeps_to_its_device(loss, data_file):
    samples = load_samples(data_file)
    batches = pretrain_vae.make_batches(samples, CPU, loss)
    vae = VAE(8, 8, 35, loss=loss)
    with torch.device("meta"):
        batch = batches.take(batches.group[:1].repeat(1))
        sums = pretrain_vae.loss_sums(vae(batch, None), batch)
        sum(sums.values()).backward()
    assert all(value.device == CPU for value in sums.values())


@pytest.mark.parametrize("network", ["objects", "cnn"])
def test_an_update_keeps_to_its_device(network, rolled_out):
    _, batch = rolled_out
    agent = hop_ppo.make_agent(network, Rules(), 0)
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.1)  # Adam counts its steps on the default device
    with torch.device("meta"):
        losses = hop_ppo.update(agent, optimizer, batch, Args(update_epochs=1), 1.0)
        action = sample(agent(batch.obs, batch.opponent_info)[0])
        explained = hop_ppo.explained_variance(batch)
    assert all(value.device == CPU for value in (*losses.values(), action, explained))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("script", ["pretrain_vae", "train_world_model", "judge", "hop_ppo"])
def test_every_script_runs_on_a_gpu(script, data_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    epoch = ("--data", data_file, "--epochs", 1)
    torch.cuda.reset_peak_memory_stats()
    if script == "pretrain_vae":
        assert run_script(monkeypatch, pretrain_vae, *epoch) == 0
    if script in ("train_world_model", "judge"):
        assert run_script(monkeypatch, train_world_model, *epoch) == 0
    if script == "judge":
        torch.cuda.reset_peak_memory_stats()
        assert run_script(monkeypatch, test_obs_reward_model, "--data", data_file, "--split", "test") == 0
    if script == "hop_ppo":
        monkeypatch.setattr(hop_ppo.Evaluator, "report", lambda *args: None)
        assert run_script(monkeypatch, hop_ppo, *SMALL) == 0
        (folder,) = (tmp_path / "ppo_ckpts").iterdir()
        agent, _ = hop_ppo.load_agent(folder)  # what was saved on a GPU plays on a CPU
        assert next(agent.parameters()).device == CPU
    assert torch.cuda.max_memory_allocated() > 0
