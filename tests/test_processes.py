"""hop_ppo.py and train_world_model.py in several processes: the result of one but for rounding; and each script on a GPU."""

import contextlib
import copy
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import run_script
from saved import whole_checkpoint, write_run
from worlds import TrueWorld

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

CPU = torch.device("cpu")
SMALL = ["--num-envs", 16, "--num-steps", 8, "--total-timesteps", 512, "--num-minibatches", 3]
SMALL += ["--eval-every", 2, "--eval-boards", 8, "--env-args", "horizon=12"]  # 4 updates of 128 steps


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


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.npz"
    save_arrays(path, collect(CollectArgs(samples=2000)).arrays())
    return path


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
    names = [name for name in hop_ppo.Batch.__dataclass_fields__ if name != "history"]
    odd = hop_ppo.Batch(*(getattr(batch, name)[:5] for name in names))
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
    ("flags", "says"),
    [
        (["--num-envs", 15], "--num-envs 15: 15 real and 0 imagined boards do not divide evenly"),
        (
            ["--num-envs", 6, "--real-ratio", 0.5, "--co-players", "self"],
            "--num-envs 6: 3 real and 3 imagined boards do not divide evenly over 2 processes",
        ),
    ],
)
def test_boards_that_do_not_divide_evenly(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "join_world", lambda cuda: contextlib.nullcontext(Share(0)))
    assert run_script(monkeypatch, hop_ppo, *flags) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and says in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["moves", "cells"])
def test_shares_of_a_minibatch_of_transitions(kind, data_file):
    """Symmetries, InfoNCE's wrong outcomes and the losses are those of the whole minibatch."""
    data = load_transitions(data_file)
    batches, index = TransitionBatches.of(data, CPU, False), data.splits["train"][:33]
    coef = 0.1 if kind == "moves" else 0.0
    args = train_world_model.Args(model=kind, batch_size=len(index), contrastive_coef=coef)
    torch.manual_seed(5)
    model = train_world_model.make_model(args, batches, index, data, None)
    losses = []
    for world in (tracking.ALONE, Share(0), Share(1)):
        learner = copy.deepcopy(model)
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.0)
        epoch = learner, learner, optimizer, batches, index, args, 0, world, None
        losses.append(train_world_model.train_epoch(*epoch)[0])
    whole, *shares = losses
    for name, value in whole.items():
        assert sum(share[name] for share in shares) == pytest.approx(value, rel=1e-4, abs=1e-6)


# ---- a run


@pytest.mark.usefixtures("uncached_worlds")
def test_shares_of_the_boards_are_all_of_them():
    """Real and imagined ones, of self-play, also after new episodes on some of them."""
    rules = Rules(height=4, width=4, blocks=0)
    settings = dict(num_envs=8, real_ratio=0.5, team_episodes=1, co_players="self", env_id="StagHunt-v0")
    args = Args(**settings)
    whole = hop_ppo.make_collectors(args, rules, None, TrueWorld(rules))
    torch.manual_seed(4)
    after = torch.get_rng_state()
    shares = [
        hop_ppo.own_collectors(whole, args, rules, None, TrueWorld(rules), Share(rank)) for rank in (0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), after)
    ended = torch.arange(4).repeat_interleave(rules.hunters) % 3 == 0  # of the 4 real boards
    for collector in (whole[0], *(share[0] for share in shares)):
        collector.reset(ended if collector is whole[0] else ended.view(2, -1)[int(collector is shares[1][0])])
    for index, collector in enumerate(whole):
        parts = [hop_ppo.map_boards(share[index].state_dict(), torch.clone) for share in shares]
        expected = hop_ppo.map_boards(collector.state_dict(), torch.clone)
        for rank, part in enumerate(parts):
            torch.testing.assert_close(part, hop_ppo.map_boards(expected, Share(rank).own), rtol=0, atol=0)
    starts = [share[1].envs.state_dict()["starts0"] for share in shares]
    assert [len(boards) for boards in starts] == [4, 4]  # any imagined board may begin from any of them


@contextlib.contextmanager
def second_process(monkeypatch, *words):
    """Inside, this process is the first of two that train together; the other one is started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = dict(WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    environment = os.environ | world | {"RANK": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, hop_ppo.__file__, *map(str, words)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with monkeypatch.context() as patched, subprocess.Popen(command, env=environment, **pipes) as other:
        for key, value in (world | {"RANK": "0"}).items():
            patched.setenv(key, value)
        try:
            yield other
        finally:
            if sys.exc_info()[0]:
                other.kill()


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(tmp_path, monkeypatch, capsys):
    """The same boards, weights, figures and random numbers but for rounding; of two processes one save and one log."""
    monkeypatch.setattr(hop_ppo.Evaluator, "report", lambda *args: None)
    monkeypatch.setattr(hop_ppo.figures, "save", lambda *args: None)
    torch.manual_seed(0)
    vae = tmp_path / "vae__1"
    write_run(vae, whole_checkpoint(pretrain_vae, VAE(8, 8, 35), args=dict(data="x")))
    tracking.write_json(vae / "metrics.json", {"test": dict(top1=0.7, top3=0.9, nll=0.5)})
    play, calls = hop_ppo.Evaluator.play, []

    def copy_first(self, *args):
        """What is saved when the second evaluation begins is of the first one."""
        calls.append(1)
        if len(calls) == 2:
            shutil.copytree(tmp_path / "two", tmp_path / "one", ignore=shutil.ignore_patterns(".lock"))
        return play(self, *args)

    monkeypatch.setattr(hop_ppo.Evaluator, "play", copy_first)
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    flags = (*SMALL, "--om", "belief", "--vae", vae, "--no-cuda")
    with second_process(monkeypatch, *flags) as other:
        assert run_script(monkeypatch, hop_ppo, *flags) == 0
        assert (*other.communicate(), other.returncode) == ("", "", 0)
    assert "2 processes" in capsys.readouterr().out
    (whole,) = Path("ppo_ckpts").resolve().iterdir()
    assert len(list(Path("runs").glob("*/*"))) == 1
    monkeypatch.chdir(tmp_path / "one")
    part = Path("ppo_ckpts").resolve() / whole.name
    before = tracking.load_checkpoint(part / "last.pt", hop_ppo.CHECKPOINT)
    assert run_script(monkeypatch, hop_ppo, "--resume", part, "--no-cuda") == 0

    two, one = (tracking.load_checkpoint(run / "last.pt", hop_ppo.CHECKPOINT) for run in (whole, part))
    assert (before["update"], one["update"], two["update"]) == (2, 4, 4)
    for key in ("collectors", "rng"):
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-4)
    moved = max(float((one["model"][name] - before["model"][name]).abs().max()) for name in one["model"])
    assert moved > 1e-2 and "episodic_return" in one["history"][3]
    torch.testing.assert_close(two["model"], one["model"], rtol=0, atol=2e-3)
    for name in ("progress.csv", "evaluations.csv"):
        tables = [pd.read_csv(run / name) for run in (whole, part)]
        pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-3)


# ---- a GPU


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
