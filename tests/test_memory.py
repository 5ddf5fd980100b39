"""Runs that this machine cannot hold are refused before anything is allocated, in one line with the number."""

from __future__ import annotations

import ctypes
import tracemalloc

import numpy as np
import pytest
import torch

import hop_ppo
import pretrain_vae
import tracking
from data import collect, flatten, memory
from data.datasets import TransitionBatches, load_samples, load_transitions
from data.trajectories import save_arrays
from envs import Rules, make_rules
from metrics import observers, scores, vae_reports
from metrics.transitions import EvalTransitions, find_events


@pytest.fixture
def four_gigabytes(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * 10**9)


def test_what_fits_is_no_shortage_up_to_the_last_byte(four_gigabytes):
    assert memory.shortage(4 * 10**9) == ""
    memory.require(4 * 10**9, "rows")
    assert memory.shortage(4 * 10**9 + 1) == "needs 4.0 GB of memory, 4.0 GB are free"
    with pytest.raises(
        MemoryError, match=r"^rows: needs 31\.2 GB of memory, 4\.0 GB are free; choose smaller numbers$"
    ):
        memory.require(31.2e9, "rows")


def test_where_nothing_is_known_of_the_memory_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert memory.shortage(10**30) == ""


def test_available_bytes_are_those_of_linux(monkeypatch, tmp_path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    group.mkdir()
    meminfo.write_text("MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    500 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", group)
    assert memory.available_bytes() == 500 * 1024
    (group / "memory.current").write_text("3000\n")
    (group / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 500 * 1024
    (group / "memory.max").write_text("10000\n")
    assert memory.available_bytes() == 7000


def test_available_bytes_are_those_of_macos_and_windows(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "absent")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "absent")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}.get, raising=False)
    assert memory.available_bytes() == 5 * 4096
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.available_bytes() is None

    class Kernel:
        @staticmethod
        def GlobalMemoryStatusEx(reference):
            status = ctypes.cast(reference, ctypes.POINTER(ctypes.c_ulonglong))
            assert ctypes.cast(reference, ctypes.POINTER(ctypes.c_uint32))[0] == 64
            status[1], status[2] = 8_000, 6_000
            return 1

    windll = type("windll", (), {"kernel32": Kernel})
    monkeypatch.setattr(memory.ctypes, "windll", windll, raising=False)
    assert memory.available_bytes() == 6_000


@pytest.mark.parametrize(
    "flags",
    [
        dict(num_envs=2**31 - 1),
        dict(num_steps=2**31 - 1),
        dict(num_envs=200_000, num_steps=400),
        dict(num_envs=100_000, num_steps=200, co_players="self"),
        dict(eval_boards=2**31 - 1),
        dict(plan=True, plan_boards=2**31 - 1),
        dict(plan=True, plan_simulations=2**31 - 1),
        dict(plan=True, plan_samples=2**31 - 1),
        dict(plan_train=True, plan_simulations=2**31 - 1),
        dict(oracle_simulations=2**31 - 1),
        dict(record="games.npz", eval_boards=100_000),  # 4 GB of episodes; without a record these fit
    ],
)
def test_hop_ppo_refuses_more_than_the_machine_holds(flags, four_gigabytes):
    name = list(flags)[-1] if "co_players" not in flags else "num_steps"
    with pytest.raises(MemoryError, match=f"--{name.replace('_', '-')} {flags[name]}.*needs .* GB of memory"):
        hop_ppo.check_memory(hop_ppo.Args(**flags), Rules())


def test_hop_ppo_fits_with_its_defaults_and_with_many_boards(four_gigabytes):
    hop_ppo.check_memory(hop_ppo.Args(), Rules())
    hop_ppo.check_memory(hop_ppo.Args(num_envs=16_384, num_steps=16), Rules())
    hop_ppo.check_memory(hop_ppo.Args(plan_simulations=2**31 - 1), Rules())  # nothing searches
    hop_ppo.check_memory(hop_ppo.Args(eval_boards=100_000), Rules())


@pytest.mark.parametrize("env_id", ["StagHunt-v0", "StagHunt-4x4-v0", "Snowdrift-v0"])
def test_a_board_and_an_observation_take_no_more_than_is_said(env_id):
    """Nor less than a third of it."""
    rules, _ = make_rules(env_id)
    infos = hop_ppo.to_tensors(hop_ppo.make_envs(rules, 32, "mixed").reset(seed=1)[1])
    board = sum(value.nbytes for value in infos.values()) / 32
    assert board < memory.bytes_of_board(rules) < 3 * board
    obs = hop_ppo.observe_envs(infos, rules)
    observation = sum(value.nbytes for value in vars(obs).values()) / 32
    assert observation < memory.bytes_of_observation(rules) < 3 * observation


def test_imagination_before_a_search_takes_memory(four_gigabytes, monkeypatch):
    """Its boards and ticks are its own, however few those of the run are."""

    def needed(**settings):
        args = hop_ppo.Args(num_envs=4, num_steps=5, num_minibatches=1, **settings)
        return memory.bytes_of_play(args, Rules(), 0, (1024, 16))

    assert needed(plan=True) > 500e6 > 10 * needed(plan=True, plan_fit=0)
    assert needed(plan=True, plan_model="rules") == needed(plan=True, plan_fit=0)
    many = hop_ppo.Args(num_envs=1024, num_steps=16, num_minibatches=1)
    assert 0 < needed(plan=True) - memory.bytes_of_play(many, Rules(), 0, (1024, 16)) < 50e6
    trees = [needed(plan=True, plan_train=True, plan_boards=4, plan_simulations=n) for n in (16, 10**6)]
    assert trees[1] - trees[0] < 2 * 4 * 10**6 * 300, "trees of the four boards that are trained on"
    monkeypatch.setattr(hop_ppo, "PLAN_BOARDS", 2**31)
    hop_ppo.check_memory(hop_ppo.Args(), Rules())
    with pytest.raises(MemoryError):
        hop_ppo.check_memory(hop_ppo.Args(plan=True), Rules())


def test_a_latent_size_that_does_not_fit_is_refused(four_gigabytes):
    sizes = pretrain_vae.VAE(8, 8, 35).sizes
    for loss in ("moa", "recon", "both"):
        pretrain_vae.check_memory(sizes, pretrain_vae.Args(loss=loss, latent_dim=1000), 100_000)
        with pytest.raises(MemoryError, match="--latent-dim 2000000000: needs"):
            pretrain_vae.check_memory(sizes, pretrain_vae.Args(loss=loss, latent_dim=2 * 10**9), 0)
    with pytest.raises(MemoryError, match="--latent-dim 16: needs"):
        pretrain_vae.check_memory(sizes, pretrain_vae.Args(), 10**9)


@pytest.mark.parametrize("message", ["--num-envs 5: needs much", ""])
def test_a_lack_of_memory_is_one_line_and_exit_code_2(message, capsys):
    def main():
        raise MemoryError(message)

    with pytest.raises(SystemExit) as stop:
        tracking.run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message or 'out of memory'}")


def test_more_threads_than_a_system_starts_are_refused():
    for args in (pretrain_vae.Args(torch_threads=1025), hop_ppo.Args(torch_threads=2 * 10**9)):
        with pytest.raises(tracking.UsageError, match="--torch-threads: must be at most 1024, got"):
            tracking.check_ranges(args, {})


@pytest.mark.parametrize(
    "flags",
    [
        dict(samples=20_000_000),
        dict(samples=2**31 - 1),
        dict(steps=5_000_000),
        dict(samples=10**6, rules=Rules(height=64, width=64)),
        dict(samples=10**7, rules=Rules(hunters=50)),
    ],
)
def test_more_than_memory_holds_is_refused_before_it_is_collected(flags, four_gigabytes, monkeypatch):
    monkeypatch.setattr(collect, "_play", None)
    with pytest.raises(MemoryError, match=r"^--(samples|steps) \d+, \d+ hunters on .* cells: needs .* GB"):
        collect.collect(collect.Args(**flags))
    if "samples" in flags:
        with pytest.raises(MemoryError, match=r"^--rows \d+: needs .* GB"):
            flatten.flatten(flatten.Args(out="", rows=flags["samples"], rules=flags.get("rules", Rules())))


def test_what_the_first_boards_foretell_is_refused(monkeypatch):
    """Samples of hunters that leave early need more steps than samples of hunters that stay."""
    args = collect.Args(samples=5000)
    played = len(collect.collect(args).actions)
    monkeypatch.setattr(memory, "available_bytes", lambda: 5000 * 400 * 1.3)
    with pytest.raises(MemoryError, match="--samples 5000, 4 hunters on 8x8 cells"):
        collect.collect(args)
    assert played > 1.5 * 5000 / 4


def test_a_game_without_an_end_is_stopped_before_memory_is_full(monkeypatch):
    """One hunter cannot hunt a stag alone: it waits for ever."""
    rules = Rules(hunters=1, hares=0, horizon=10**9)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**6)
    with pytest.raises(MemoryError, match=r"^--env-args horizon=1000000000: needs .* GB"):
        collect.collect(collect.Args(samples=100, rules=rules, strategies=("NS",)))


@pytest.mark.parametrize("rules", [Rules(), Rules(height=16, width=16, horizon=10), Rules(hunters=9)])
def test_how_many_boards_fit_changes_no_byte(rules, monkeypatch):
    args = collect.Args(samples=600, rules=rules, unmasked=0.1)
    monkeypatch.setattr(collect, "BOARDS", 40)
    many = collect.collect(args)
    monkeypatch.setattr(collect, "BATCH_BYTES", 10**5)
    assert collect._boards_at_once(args) < 10
    assert collect.collect(args).fingerprint == many.fingerprint


def test_large_boards_are_played_fewer_at_once():
    assert collect._boards_at_once(collect.Args()) == collect.BOARDS
    assert 1 <= collect._boards_at_once(collect.Args(rules=Rules(height=128, width=128))) < 200
    assert collect._boards_at_once(collect.Args(rules=Rules(hunters=4000, height=128, width=128))) >= 1


# ---- what is made of a large file, a part at a time


def numbers(value) -> bytes:
    """All that a result holds, as bytes."""
    if isinstance(value, dict):
        return b"".join(key.encode() + numbers(part) for key, part in value.items())
    return repr(value).encode() if value is None else np.asarray(value).tobytes()


def test_the_size_of_the_parts_changes_no_byte(tmp_path, monkeypatch):
    """Samples, transitions, outcomes, observers' predictions, a model's predictions, scores."""
    path = tmp_path / "x.npz"
    save_arrays(path, collect.collect(collect.Args(samples=2500, unmasked=0.1)).arrays())
    torch.manual_seed(1)
    model = pretrain_vae.VAE(8, 8, 35, 4).eval()

    def results() -> dict[str, bytes]:
        samples, transitions = load_samples(path), load_transitions(path)
        batches = pretrain_vae.make_batches(samples, torch.device("cpu"), "moa")
        made = TransitionBatches.of(transitions, torch.device("cpu"), own=False)
        table = observers.training_table(samples)
        index = np.random.default_rng(1).permutation(len(samples))
        observed = observers.predictions(samples, index, table)
        probs = vae_reports.predict(model, batches, samples.splits["all"]).probs
        found = dict(table=table, possible=made.outcomes.possible, start=made.outcomes.start)
        found |= dict(hunters=made.outcomes.hunters, prey=made.outcomes.prey, probs=probs)
        found |= dict(states=transitions.states, boards=samples.boards, group=batches.group)
        found |= observed | dict(belief=observers.sample_posterior(samples, index))
        found |= {
            name: list(scores.score(p, samples.actions[index]).values()) for name, p in observed.items()
        }
        found["kl"] = scores.kl(observed["bayes"], observed["table"])
        found["probe"] = scores.probe(
            samples.boards.reshape(len(samples.boards), -1)[samples.board][:, :99],
            samples.strategies,
            samples.episodes % 2 == 0,
        )
        found["events"] = find_events(EvalTransitions.of(transitions, transitions.splits["all"], True, 1))
        return {name: numbers(value) for name, value in found.items()}

    whole = results()
    for module in ("data.trajectories", "data.datasets", "metrics.observers", "metrics.scores"):
        monkeypatch.setattr(f"{module}.CHUNK", 100)
    parts = results()
    assert [name for name in whole if whole[name] != parts[name]] == []
    monkeypatch.setattr("metrics.scores.BLOCK", 500)  # here sums are rounded otherwise
    assert (
        abs(np.frombuffer(results()["probe"], bool).mean() - np.frombuffer(whole["probe"], bool).mean())
        < 0.002
    )


def test_frames_are_made_of_joint_states_as_the_file_has_them(tmp_path):
    args = collect.Args(samples=800, rules=Rules(hunters=3, height=5, width=6))
    recorded = collect.collect(args)
    save_arrays(tmp_path / "x.npz", recorded.arrays())
    samples = load_samples(tmp_path / "x.npz")
    obs = recorded.obs.reshape(-1, *recorded.obs.shape[2:])
    assert samples.frames.shape == obs.shape
    assert np.array_equal(samples.frames[np.arange(len(obs))], obs)
    assert samples.frames.states.nbytes < obs.nbytes / 2
    assert sum(part.obs.size for _, part in samples.parts()) == obs.size
    for batches in (
        pretrain_vae.make_batches(samples, torch.device("cpu"), loss) for loss in ("moa", "recon")
    ):
        planes = batches.take(np.arange(len(batches.start))).planes
        assert np.array_equal(planes.numpy(), obs[samples.rows].reshape(len(samples), 5, -1))


def test_training_on_transitions_makes_no_copy_of_all_states(tmp_path, monkeypatch):
    """Peak memory above the states: far from the two copies that all outcomes at once would take."""
    args = collect.Args(samples=8000, rules=Rules(height=16, width=16))
    save_arrays(tmp_path / "x.npz", collect.collect(args).arrays())
    data = load_transitions(tmp_path / "x.npz")
    assert len(data.trajectories.obs) == 0
    monkeypatch.setattr("data.trajectories.CHUNK_BYTES", 10**6)
    tracemalloc.start()
    TransitionBatches.of(data, torch.device("cpu"), own=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.7 * data.states.nbytes
