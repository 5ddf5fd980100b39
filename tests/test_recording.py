"""data/recording.py: episodes are kept as they were played, in the format of files, across stops."""

import numpy as np
import pytest
import torch
from commands import run_script

import hop_ppo
import pretrain_vae
import tracking
import train_world_model
from benchmarks import adaptation
from data import recording, trajectories
from data.datasets import captured_goals, samples_of_episodes, transitions_of_episodes
from data.recording import EpisodeRecorder
from envs import Rules, snowdrift
from hop_ppo import make_envs, to_tensors

SMALL = Rules(height=4, width=5, blocks=3, hares=3, horizon=9)
DRIFTS = snowdrift.Rules(height=4, width=4, drifts=3, horizon=9)


def play(rules, team: str, ticks: int, recorder_size=(5, 40), seed: int = 1, stop_at: int = -1):
    """Random play on seven boards. Returns: the recorder, and what each of its boards' episodes looked like."""
    envs = make_envs(rules, 7, team)
    rows = envs.rows_per_board
    infos = to_tensors(envs.reset(seed=seed)[1])
    recorder = EpisodeRecorder(rules, *recorder_size, rows)
    recorder.reset(torch.ones(7, dtype=torch.bool), infos)
    rng = np.random.default_rng(seed)
    logs = [[envs.planes()[b].copy()] for b in range(7)]
    steps = [[] for _ in range(7)]
    ended = []
    for tick in range(ticks):
        if tick == stop_at:
            resumed = EpisodeRecorder(rules, *recorder_size, rows)
            resumed.load_state_dict(recorder.state_dict())
            recorder = resumed
        legal = infos["action_mask"].numpy() * rng.random(infos["action_mask"].shape)
        _, _, terminated, truncated, infos = envs.step(legal.argmax(1))
        infos = to_tensors(infos)
        recorder.update(infos, torch.as_tensor(terminated))
        over = terminated | truncated
        for board in range(7):
            logs[board].append(envs.planes()[board].copy())
            row = board * rows
            steps[board].append((infos["joint_actions"][row].tolist(), infos["joint_rewards"][row].tolist()))
            if over[row]:
                ended.append(
                    (board, logs[board], steps[board], bool(terminated[row]), int(infos["seat"][row]))
                )
                logs[board], steps[board] = [], []
        if over.any():
            infos = to_tensors(envs.reset(options={"reset_mask": over})[1])
            recorder.reset(torch.as_tensor(over[::rows]), infos)
            for board in np.flatnonzero(over[::rows]):
                logs[board] = [envs.planes()[board].copy()]
    return recorder, [episode for episode in ended if episode[0] < recorder.boards]


@pytest.mark.parametrize(("rules", "team"), [(SMALL, "mixed"), (SMALL, "self"), (DRIFTS, "self")])
def test_whole_episodes_are_what_was_played(rules, team, tmp_path):
    recorder, ended = play(rules, team, 30)
    assert recorder.count == len(ended) > 12
    t, learner = recorder.trajectories(1000)
    assert t.episode_lengths.tolist() == [len(steps) for _, _, steps, _, _ in ended]
    np.testing.assert_array_equal(t.obs, np.concatenate([np.stack(log) for _, log, *_ in ended]))
    np.testing.assert_array_equal(t.actions, [a for _, _, steps, *_ in ended for a, _ in steps])
    np.testing.assert_array_equal(t.rewards, np.float32([r for _, _, steps, *_ in ended for _, r in steps]))
    assert t.terminated.tolist() == [terminated for *_, terminated, _ in ended]
    assert learner.tolist() == ([seat for *_, seat in ended] if team == "mixed" else [-1] * len(ended))
    trajectories.save_arrays(tmp_path / "x.npz", t.arrays())
    read = trajectories.load(tmp_path / "x.npz")
    assert read.rules == rules and read.strategy_names == ["unknown"]
    samples = samples_of_episodes(read, split=False)
    assert (captured_goals(samples) >= 0).any()
    assert len(transitions_of_episodes(read, split=False)) == len(t.actions)


def test_the_last_episodes_are_kept_the_oldest_first():
    recorder, ended = play(SMALL, "mixed", 40, recorder_size=(5, 6))
    assert recorder.count > 12
    for last, expected in ((4, 4), (6, 6), (99, 6)):
        t, _ = recorder.trajectories(last)
        assert t.episode_lengths.tolist() == [len(steps) for _, _, steps, *_ in ended[-expected:]]
        first = np.concatenate([log[:1] for _, log, *_ in ended[-expected:]])
        starts = np.cumsum(t.episode_lengths + 1) - t.episode_lengths - 1
        np.testing.assert_array_equal(t.obs[starts], first)


def test_a_stop_in_the_middle_of_episodes_changes_nothing():
    whole, stopped = play(SMALL, "mixed", 20)[0], play(SMALL, "mixed", 20, stop_at=13)[0]
    assert whole.trajectories(99)[0].fingerprint == stopped.trajectories(99)[0].fingerprint
    torch.testing.assert_close(whole.state_dict(), stopped.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("key", "value"), [("kept.cells", 21), ("playing.length", 10), ("kept.learner", 4)])
def test_numbers_out_of_range_are_refused(key, value):
    recorder = EpisodeRecorder(SMALL, 2, 3)
    state = recorder.state_dict()
    state[key][0] = value
    with pytest.raises(ValueError, match=f"{key}: expected numbers from"):
        recorder.load_state_dict(state)


def test_boards_that_are_over_stand_still():
    """Played to the end of every board: what is asked of boards that have ended is in no episode."""
    envs = make_envs(SMALL, 6, "mixed", episode="board")
    infos = to_tensors(envs.reset(seed=2)[1])
    recorder = EpisodeRecorder(SMALL, 6, 6)
    recorder.reset(torch.ones(6, dtype=torch.bool), infos)
    for _ in range(SMALL.horizon + 3):
        mask = infos["action_mask"].numpy()
        _, _, terminated, _, infos = envs.step(6 - mask[:, ::-1].argmax(1))  # hunts whatever it can
        infos = to_tensors(infos)
        recorder.update(infos, torch.as_tensor(terminated))
    assert recorder.count == 0
    recorder.finish()
    t, _ = recorder.trajectories(6)
    assert t.episode_lengths.tolist() == infos["tick"].tolist() and len(t.episode_lengths) == 6
    trajectories.check(t.arrays())


def test_games_of_a_run_are_a_file_that_both_networks_learn_from(tmp_path, monkeypatch, capsys):
    """In self-play no script plays: goals are what was captured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hop_ppo.Evaluator, "report", lambda *args: None)
    flags = ("--co-players", "self", "--env-args", "height=4", "width=4", "blocks=0", "horizon=12")
    assert run_script(monkeypatch, hop_ppo, *flags, "--num-envs", 4, "--total-timesteps", 64) == 0
    (run,) = (tmp_path / "ppo_ckpts").iterdir()
    record = ("--evaluate", run, "--record", "x.npz", "--eval-boards", 40)
    assert run_script(monkeypatch, hop_ppo, *record) == 0
    assert "[DATA] 40 episodes, " in capsys.readouterr().out
    recorded = trajectories.load("x.npz")
    assert len(recorded.episode_lengths) == 40 and recorded.episode_lengths.max() <= 12
    at_horizon = recorded.episode_lengths == 12
    assert recorded.terminated[~at_horizon].all() and not recorded.terminated[at_horizon].all()
    assert (recorded.rewards > 0).any() and set(recorded.actions[recorded.active]) >= {0, 1, 2, 3, 4}
    assert not (run / "evaluate.json").exists()
    first = (tmp_path / "x.npz").read_bytes()
    assert run_script(monkeypatch, hop_ppo, *record) == 0
    assert (tmp_path / "x.npz").read_bytes() == first
    goals = pretrain_vae.make_batches(
        pretrain_vae.read_samples(pretrain_vae.Args(data="x.npz")), torch.device("cpu"), "moa", "captured"
    ).goals
    assert (goals >= 0).any()
    assert len(train_world_model.load_transitions("x.npz")) == len(recorded.actions)


def test_random_moves_are_legal():
    """Of a policy that is sure of one action: nine times in ten, or as the scripts do, it takes that one."""
    mask = torch.tensor([[True, False, True, True, True, False, False]])
    logprobs = torch.tensor([[0.0] + [hop_ppo.MASKED] * 6])
    obs = type("Obs", (), dict(action_mask=mask))
    mixed, _ = recording.with_random_moves(lambda obs, info: (logprobs, None))(obs, None)
    random = hop_ppo.DATA_EPSILON / 4
    expected = [1 - hop_ppo.DATA_EPSILON + random, 0, random, random, random, 0, 0]
    torch.testing.assert_close(mixed.exp(), torch.tensor([expected]))
    assert mixed.isfinite().all()


@pytest.mark.parametrize(
    ("flags", "message"), [((), "--record: needs --evaluate RUN"), (("--evaluate", "x"), "x: no")]
)
def test_a_record_needs_a_run(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_script(monkeypatch, hop_ppo, "--record", "x.npz", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.strip().count("\n") == 0


def test_strict_agents_learn_from_self_play_alone(monkeypatch):
    """`python -m benchmarks.adaptation --only strict`: no offline network, and no co-player but learners on real boards."""
    asked: list[tuple] = []

    def called(script, *flags):
        asked.append((script, *map(str, flags)))
        return f"run{len(asked)}"

    def met(args, folder, team, search):
        assert folder == "run4" and not search
        return np.ones((2, 3))

    monkeypatch.setattr(adaptation, "call", called)
    monkeypatch.setattr(adaptation, "run", lambda *flags: called("hop_ppo.py", *flags))
    monkeypatch.setattr(adaptation, "meet", met)
    rows = []
    args = adaptation.Args(only=("strict",), vae="offline", world_model="offline")
    adaptation.judge_seed(args, 5, ["3NH"], {"3NH": np.ones((2, 3))}, rows)
    assert [row["team"] for row in rows] == ["self", "self", "3NH", "3NH"]
    first, games, world, last = asked
    assert games[1:5] == ("--evaluate", "run1", "--record", "run1/games.npz")
    assert world[:3] == ("train_world_model.py", "--data", "run1/games.npz")
    for _, *flags in (first, last):
        settings = tracking.parse_args(hop_ppo.Args, "", flags)
        assert (settings.co_players, settings.seed, settings.vae) == ("self", 5, "")
    assert (settings.world_model, settings.moa_update, settings.om) == ("run3", "empty", "belief")
    assert (settings.real_ratio, settings.imagined_co_players) == (0.5, "goals")
