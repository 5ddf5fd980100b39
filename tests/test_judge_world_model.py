"""test_obs_reward_model.py: what it prints and saves, its figures on models whose mistakes are known, what it refuses."""

import itertools
import json
import math
import re
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from commands import run_script
from PIL import Image
from saved import FIRST_EPOCH, whole_checkpoint, write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import test_obs_reward_model as judge
import tracking
import train_world_model
from benchmarks.regression import NETWORKS, Regression
from data import flatten
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import load_transitions
from data.trajectories import save_arrays, split_episodes
from envs import Rules
from envs.stag_hunt import GAME
from metrics import observers, transitions
from metrics.laws import deterministic_step, next_state_log_prob
from metrics.transitions import EvalTransitions
from metrics.violations import KINDS
from train_world_model import Prediction

CPU = torch.device("cpu")
UP, DOWN, LEFT, RIGHT, STAY, HUNT_STAG, HUNT_HARE = range(7)
FILES = {"per_channel.csv", "violations.csv", "rollout.csv", "metrics.json", "predictions.npz", "worst_cases.png",
         "events.png", "calibration.png", "error_by_tick.png", "error_by_depth.png", "imagined_episode.gif"}  # fmt: skip
KEYS = {"checkpoint", "data", "n", "obs_mse", "psnr_global", "psnr_frame_mean", "reward_mse", "nll", "exact_transitions",
        "exact_transitions_events", "exact_rewards", "per_channel_mse", "violations_per_10k", "rollout", "hits_at_1",
        "floor", "untrained", "events", "calibration", "seconds"}  # fmt: skip


class Stub(torch.nn.Module):
    """A model whose next planes and rewards are a function of states and actions, `next`."""

    kind, num_hunters, joint, sizes = "moves", None, True, {}

    def on(self, height, width):
        self.board = (height, width)
        return self

    def predict(self, states, actions):
        planes, rewards = self.next(states.view(*states.shape[:2], *self.board).numpy(), actions.numpy())
        planes = torch.as_tensor(planes).flatten(2).to(torch.uint8)
        rewards = torch.as_tensor(rewards, dtype=torch.float32)
        ends = (planes[:, :-3] == 0).all(2).all(1).float()
        return Prediction(planes, planes.float(), rewards, rewards, (rewards > 0).float(), ends)

    def sample(self, states, actions):
        said = self.predict(states, actions)
        return said.most_likely, said.rewards, said.end_prob > 0.5

    def log_prob(self, states, actions, next_states, rewards, ends):
        said = self.predict(states, actions)
        right = (said.most_likely == next_states).all(2).all(1) & ((said.rewards - rewards).abs() < 0.01).all(
            1
        )
        return torch.where(right, 0.0, -1e9)


class Oracle(Stub):
    def next(self, before, actions):
        step = deterministic_step(before, actions, Rules())
        after, K = before.reshape(*before.shape[:2], -1).copy(), before.shape[2] * before.shape[3]
        after[:, :-3] = np.where(step.captures, K, step.destinations)[..., None] == np.arange(K)
        after[:, -2:] = step.remaining_prey
        return after.reshape(before.shape), step.rewards


class Copycat(Stub):
    """Nothing ever happens."""

    def next(self, before, actions):
        return before, np.zeros(actions.shape)


class Jumper(Oracle):
    """Hunters that stay on the board go two cells to the right, where there are so many; each is paid 0.042."""

    def next(self, before, actions):
        after, paid = super().next(before, actions)
        jumped = before[:, :-3].copy()
        room = ~before[:, :-3, :, -2:].any((2, 3))
        jumped[room] = np.roll(jumped[room], 2, 2)
        stays = after[:, :-3].any((2, 3), keepdims=True)
        return np.concatenate([np.where(stays, jumped, 0), after[:, -3:]], 1), np.full(paid.shape, 0.042)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small files of several laws: name -> path."""
    folder = tmp_path_factory.mktemp("data")
    games = {"default": CollectArgs(steps=600), "other": CollectArgs(steps=600, seed=2),
             "moving": CollectArgs(steps=300, rules=Rules(prey_moves=0.5)),
             "six": CollectArgs(steps=100, rules=Rules(hunters=6, height=10, width=9, stags=2, hares=8, blocks=6)),
             "late": CollectArgs(steps=300, rules=Rules(end_after_first_hunt=2))}  # fmt: skip
    for name, args in games.items():
        save_arrays(folder / f"{name}.npz", collect(args).arrays())
    for own in (False, True):
        rows = flatten.flatten(flatten.Args(out="", rows=400, own_actions=own))
        save_arrays(folder / ("own.npz" if own else "joint.npz"), rows)
    moving = flatten.Args(
        out="", rows=400, rules=Rules(stags=1, hares=2, blocks=0, height=4, width=4, prey_moves=0.5)
    )
    save_arrays(folder / "moving_rows.npz", flatten.flatten(moving))
    return {path.stem: path for path in folder.iterdir()}


def fingerprint(path):
    return load_transitions(path, split=False).fingerprint


def of_stub(model, trained_on, monkeypatch, run="wm__5"):
    """A run folder that `load_world_model` finds this model in."""
    folder = tracking.Path("wm_ckpts") / run
    folder.mkdir(parents=True)
    for name in ("last.pt", "best.pt"):
        (folder / name).touch()
    checkpoint = dict(args={"data": str(trained_on), "layout": "auto"}, run=run, epoch=3, step=70,
                      fingerprint=fingerprint(trained_on), rules=None, game=GAME.metadata())  # fmt: skip
    monkeypatch.setattr(judge, "load_world_model", lambda *_: (model, checkpoint))
    return folder


def of_network(model, trained_on, run="wm__7"):
    """A run folder with a checkpoint as train_world_model.py writes it."""
    folder = tracking.Path("wm_ckpts") / run
    args = dict(model=model.kind, data=str(trained_on), actions="joint" if model.joint else "own")
    fields = FIRST_EPOCH | dict(
        args=args, run=run, fingerprint=fingerprint(trained_on), rules=asdict(Rules())
    )
    write_run(folder, whole_checkpoint(train_world_model, model, **fields))
    return folder


def moves(joint=True, seed=0):
    torch.manual_seed(seed)
    return train_world_model.ObjectWorldModel(8, 8, [0.0, 1.0, 10.0], joint)


def call(monkeypatch, *flags):
    """The script in this process. Returns: its exit code, 0 if it just ends."""
    return run_script(monkeypatch, judge, *flags)


@pytest.fixture
def drawn_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(drawn_here, monkeypatch):
    """Without figures, which take most of the time."""
    monkeypatch.setattr(judge, "make_figures", lambda *_: {})
    monkeypatch.setattr(judge, "save_film", lambda *_: None)
    return drawn_here


def metrics(folder):
    return json.loads((folder / "test" / "metrics.json").read_text())


def cases_of(path, joint=True, seed=0):
    data = load_transitions(path, split=False)
    return EvalTransitions.of(data, data.splits["all"], joint, seed), data


def judged_on(cases, rules):
    counted = np.ones(len(KINDS), bool)
    return judge.Judged(cases, rules, counted, seed=1, device=CPU)


# ---- whole runs, on models whose mistakes are known


def test_the_oracle_is_without_fault(files, drawn_here, monkeypatch, capsys):
    folder = of_stub(Oracle(), files["default"], monkeypatch)
    (drawn_here / "runs" / "wm__5").mkdir(parents=True)
    (drawn_here / "runs" / "wm__5" / "events.out.tfevents.1.own").write_bytes(b"")
    assert call(monkeypatch, "--data", files["other"]) == 0
    out, found = capsys.readouterr().out, metrics(folder)
    assert {path.name for path in (folder / "test").iterdir()} == FILES and found.keys() >= KEYS
    cases, _ = cases_of(files["other"])
    n = len(cases)
    block = (
        r"\[INFO\] loaded model\. obs_shape=\(7, 8, 8\), action_dim=7\n"
        rf"\[INFO\] dataset size={n}, inferred n_agents=4\n\n=== Metrics ===\n"
        r"Obs  MSE \(mean over B,C,H,W\): 0\.000000\nObs  PSNR: 100\.00 dB\nRew  MSE:  0\.000000\nPer-channel MSE:\n"
        + "".join(rf"  ch\[{c}\]: 0\.000000e\+00\n" for c in range(7))
    )
    assert re.match(block, out), "the block comes first"
    assert f"the rule counter reads 0 on the {n} real transitions" in out and "on the whole of" in out
    assert (
        found["n"] == n
        and found["obs_mse"] == found["reward_mse"] == found["nll"] == 0.0 == found["nll_capped"]
    )
    assert found["psnr_global"] == found["psnr_frame_mean"] == pytest.approx(100.0)
    rates = ("exact_transitions", "exact_transitions_events", "exact_rewards", "exact_ends", "hits_at_1")
    assert (
        all(found[key] == 1.0 for key in rates) and found["wrong_transitions"] == found["wrong_rewards"] == 0
    )
    for source in ("argmax", "samples"):
        assert found["violations_per_10k"][source] == dict.fromkeys(("total", *KINDS), 0.0)
    assert list(found["rollout"]) == ["1", "5", "10", "20", "35"]
    episodes = len(np.unique(cases.episodes))
    for row in found["rollout"].values():
        assert row["exact"] == row["exact_path"] == 1.0 and row["obs_mse"] == row["reward_mse"] == 0.0
        assert row["violations_per_10k"] == 0.0 and row["episodes"] == episodes
    assert found["floor"] == {"obs_mse": 0.0, "reward_mse": 0.0, "nll": 0.0, "n": n}
    for label in (
        "exact transitions",
        "exact rewards",
        "exact ends",
        "Hits@1",
        "35-step rollouts: exact",
        "  every step exact",
    ):
        assert re.search(rf"\n{label} +100\.000% +100\.000% +", out), label
    for label in ("PSNR, global, dB", "PSNR, mean over frames, dB"):
        assert re.search(rf"\n{label} +100\.00 +100\.00 +", out), label
    there = cases.before[:, :-3].any((2, 3))
    expected = {
        "reward > 0": (there.sum(), (cases.rewards[there] > 0).sum()),
        "hunter 1": (n * 64, cases.after[:, 1].sum()),
        "HARES": (n * 64, cases.after[:, 6].sum()),
    }
    for channel, (total, on) in expected.items():
        curve = found["calibration"][channel]
        assert curve["predicted"] == curve["frequency"] == [0.0, 1.0] and curve["count"] == [
            total - on,
            on,
        ], channel
    assert found["untrained"]["exact_transitions"] == 1.0, "its `untrained` twin is the same oracle"

    with np.load(folder / "test" / "predictions.npz") as arrays:
        assert arrays["expected"].dtype == np.float16 and arrays["expected"].shape == (n, 7, 8, 8)
        assert np.array_equal(arrays["likely"], arrays["true_next"]) and np.array_equal(
            arrays["actions"], cases.actions
        )
        assert np.array_equal(arrays["index"], np.arange(n))
    assert pd.read_csv(folder / "test" / "per_channel.csv").mse.tolist() == [0.0] * 7
    assert pd.read_csv(folder / "test" / "violations.csv").kind.tolist() == ["total", *KINDS]
    assert pd.read_csv(folder / "test" / "rollout.csv").k.tolist() == [1, 5, 10, 20, 35]
    with Image.open(folder / "test" / "imagined_episode.gif") as gif:
        assert 2 <= gif.n_frames <= 36

    written = sorted((drawn_here / "runs" / "wm__5").iterdir())
    assert len(written) == 2 and written[0].stat().st_size == 0, "the run's own log is as it was"
    log = EventAccumulator(str(written[1])).Reload()
    assert all(tag.startswith("test_") for kind in ("scalars", "images") for tag in log.Tags()[kind])
    assert not log.Tags()["scalars"], "one point is no curve"
    (event,) = log.Tensors("test_report/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 70 and "\n|obs_mse|0|\n" in text and "\n|argmax|0|0|" in text
    (rollout,) = [table.splitlines() for table in text.split("\n\n") if table.startswith("|rollout")]
    assert rollout[0].split("|")[2] == "exact" and [line.split("|")[1] for line in rollout[2:]] == [
        *("1", "5", "10", "20", "35")
    ]


def test_a_model_that_jumps_and_pays_for_nothing(files, here, monkeypatch):
    folder = of_stub(Jumper(), files["default"], monkeypatch)
    assert call(monkeypatch, "--data", files["other"]) == 0
    found, (cases, _) = metrics(folder), cases_of(files["other"])
    stays = cases.before[:, :-3].any((2, 3)) & cases.after[:, :-3].any((2, 3))
    room = ~cases.before[:, :-3, :, -2:].any((2, 3))
    caught = cases.before[:, :-3].any((2, 3)) & ~cases.after[:, :-3].any((2, 3))
    rates = found["violations_per_10k"]["argmax"]
    assert rates["jump"] == pytest.approx(1e4 * (stays & room).any(1).mean()) and rates["jump"] > 5000
    assert rates["reward_without_capture"] == pytest.approx(1e4 * (~caught).any(1).mean())
    assert rates["capture_without_reward"] == pytest.approx(1e4 * caught.any(1).mean())
    assert rates["lost"] == rates["doubled"] == rates["prey_moved"] == rates["block_changed"] == 0.0
    assert rates == found["violations_per_10k"]["samples"]
    assert found["exact_rewards"] == 0.0 and found["wrong_rewards"] == len(cases)
    assert found["reward_mse"] == pytest.approx(((0.042 - cases.rewards) ** 2).mean(), rel=1e-5)
    assert found["nll"] == judge.NLL_CAP and found["nll_capped"] == len(cases)
    assert found["rollout"]["35"]["violations_per_10k"] > 5000


def test_a_model_for_which_nothing_happens(files, here, monkeypatch):
    folder = of_stub(Copycat(), files["default"], monkeypatch)
    assert call(monkeypatch, "--data", files["other"]) == 0
    found, (cases, _) = metrics(folder), cases_of(files["other"])
    wrong = (cases.before != cases.after).mean((2, 3))
    assert found["per_channel_mse"] == pytest.approx(wrong.mean(0))
    assert found["obs_mse"] == pytest.approx(wrong.mean())
    assert found["psnr_global"] == pytest.approx(-10 * np.log10(wrong.mean()))
    assert found["psnr_frame_mean"] == pytest.approx(
        np.mean([10 * np.log10(1 / (x.mean() + 1e-10)) for x in wrong])
    )
    same = (wrong == 0).all(1)
    assert (
        found["exact_transitions"] == pytest.approx(same.mean())
        and found["wrong_transitions"] == (~same).sum()
    )
    assert found["exact_rewards"] == pytest.approx((cases.rewards == 0).all(1).mean())
    assert found["reward_mse"] == pytest.approx((cases.rewards**2).mean())
    start, length = cases.unbroken_parts()
    assert found["rollout"]["1"]["exact"] == pytest.approx(same[start].mean())
    last = start + np.minimum(length, 5) - 1
    still = (cases.before[start] == cases.after[last]).all((1, 2, 3))
    assert found["rollout"]["5"]["exact"] == pytest.approx(still.mean())
    assert found["rollout"]["5"]["reward_mse"] == pytest.approx((cases.rewards[last] ** 2).mean())
    assert found["rollout"]["5"]["shorter"] == (length < 5).sum()


def test_what_is_judged(files, here, monkeypatch, capsys):
    folder = of_stub(Oracle(), files["default"], monkeypatch)
    data = load_transitions(files["default"])
    for flags, n in (
        ((), len(data.splits["test"])),
        (("--split", "val"), len(data.splits["val"])),
        (("--max-samples", 7), 7),
    ):
        assert call(monkeypatch, "--data", files["default"], *flags) == 0
        assert metrics(folder)["n"] == n and f"dataset size={len(data)}" in capsys.readouterr().out
    test = split_episodes(len(data.trajectories.episode_lengths))["test"]
    assert len(data.splits["test"]) == data.trajectories.episode_lengths[test].sum()
    for flags in (("--split", "all"), ("--split", "train")):
        assert call(monkeypatch, "--data", files["default"], *flags) == 2
        assert "the run was trained on" in capsys.readouterr().err
    other = load_transitions(files["other"])
    assert call(monkeypatch, "--data", files["other"], "--split", "test") == 0
    assert metrics(folder)["n"] == len(other.splits["test"])


def test_data_that_breaks_the_rules(files, here, monkeypatch, capsys):
    arrays = dict(np.load(files["other"]))
    row = int(np.flatnonzero((arrays["rewards"] == 0) & arrays["active"])[5] // 4)
    hunter = int(np.flatnonzero((arrays["rewards"][row] == 0) & arrays["active"][row])[0])
    arrays["rewards"][row, hunter] = 0.5
    save_arrays(here / "bad.npz", arrays)
    folder = of_stub(Oracle(), files["default"], monkeypatch)
    assert call(monkeypatch, "--data", here / "bad.npz") == 0
    data, found = load_transitions(here / "bad.npz", split=False), metrics(folder)
    where = f"transition {row} (episode {data.episodes[row]}, tick {data.ticks[row]})"
    line = (
        f"the data breaks the rules: reward_without_capture in 1 of {len(data)} transitions, first in {where}"
    )
    assert line in capsys.readouterr().out
    assert found["violations_per_10k"]["argmax"]["reward_without_capture"] is None
    assert found["violations_per_10k"]["argmax"]["total"] == 0.0 and found["floor"]["obs_mse"] is None
    assert found["wrong_rewards"] == 1 and found["exact_transitions"] == 1.0


# ---- whole runs, on networks


def test_the_same_seed_says_the_same(files, here, monkeypatch):
    of_network(moves(), files["default"], "wm__6")
    folder = of_network(moves(seed=4), files["default"])
    said = []
    for flags in ((), (), ("--seed", 2)):
        assert call(monkeypatch, *flags, "--data", files["other"]) == 0
        found = metrics(folder) | {"seconds": 0.0}
        assert found["checkpoint"] == "wm_ckpts/wm__7", "the newest"
        files_now = [
            (folder / "test" / name).read_bytes()
            for name in ("predictions.npz", "violations.csv", "rollout.csv")
        ]
        said.append((found, files_now))
    assert (
        said[0] == said[1] and said[0][0]["nll"] > 1 and said[0][0]["nll"] != said[0][0]["untrained"]["nll"]
    )
    assert said[2][0]["violations_per_10k"]["samples"] != said[0][0]["violations_per_10k"]["samples"]
    assert said[2][0]["obs_mse"] == said[0][0]["obs_mse"]


@pytest.mark.parametrize("name", ["six", "moving", "late"])
def test_other_games(name, files, here, monkeypatch, capsys):
    folder = of_network(moves(), files["default"])
    assert call(monkeypatch, "--data", files[name]) == 0
    found, (cases, data) = metrics(folder), cases_of(files[name])
    assert len(found["per_channel_mse"]) == cases.before.shape[1]
    assert "reads 0 on the" in capsys.readouterr().out
    random = name == "moving"
    assert ("violations_per_10k_samples" in found["rollout"]["5"]) == random
    assert (found["floor"]["nll"] == 0.0) == (not random)
    assert np.isnan(cases.ends).any() == (name == "late"), "a joint state does not say when such a board ends"
    if random:
        rules = Rules(**data.trajectories.metadata["rules"])
        exact = -next_state_log_prob(cases.before, cases.actions, cases.after, rules).mean()
        assert found["floor"]["nll"] == pytest.approx(exact) and found["floor"]["reward_mse"] == 0.0
        assert 0.001 < found["floor"]["obs_mse"] < 0.02 and found["floor"]["obs_mse"] < found["obs_mse"]


@pytest.mark.parametrize("name", ["joint", "own", "moving_rows"])
def test_flat_files(name, files, here, monkeypatch, capsys):
    folder = of_network(moves(joint=name != "own"), files["default"])
    assert call(monkeypatch, "--data", files[name]) == 0
    found, out = metrics(folder), capsys.readouterr().out
    assert "inferred: layout hop" in out and "reads 0 on the" in out
    assert ("prey move; how often is not known" in out) == (name == "moving_rows")
    assert found["floor"]["obs_mse"] == (0.0 if name == "joint" else None) and found["n"] > 300
    assert f"obs_shape=(7, 4, 4), action_dim=7\n[INFO] dataset size={found['n']}" in out


def test_one_hunters_action(files, drawn_here, monkeypatch):
    folder = of_network(moves(joint=False), files["default"])
    assert call(monkeypatch, "--data", files["other"], "--max-samples", 200) == 0
    found = metrics(folder)
    assert found["floor"]["n"] == 200 and 0 < found["floor"]["obs_mse"] < found["obs_mse"]
    assert (folder / "test" / "calibration.png").exists()
    assert (
        0.1 < found["floor"]["nll"] < found["nll"] and "violations_per_10k_samples" in found["rollout"]["1"]
    )
    cases, data = cases_of(files["other"], joint=False)
    told = cases.given_actions >= 0
    there = cases.before[:, :-3].any((2, 3))
    assert (
        (told.sum(1) == 1).all()
        and (there[told]).all()
        and (cases.given_actions[told] == cases.actions[told]).all()
    )
    assert len(np.unique(told.argmax(1))) == 4, "any of them"
    rows, probs = np.arange(6), observers.bayes(data.trajectories)
    brute = []
    for i in rows:  # every joint action of the others, one by one
        total = 0.0
        for joint in itertools.product(range(7), repeat=4):
            p = 1.0
            for a, action in enumerate(joint):
                if told[i, a]:
                    p *= float(action == cases.given_actions[i, a])
                elif there[i, a]:
                    p *= probs[i, a, action]
                else:
                    p *= float(action == STAY)
            if p > 0:
                log_p = next_state_log_prob(
                    cases.before[i : i + 1], np.array([joint]), cases.after[i : i + 1], Rules()
                )
                paid = deterministic_step(cases.before[i : i + 1], np.array([joint]), Rules()).rewards[0]
                total += p * np.exp(log_p[0]) * (np.abs(paid - cases.rewards[i]) < 0.01).all()
        brute.append(-np.log(total))
    judged = judged_on(cases.take(rows), Rules())
    floor = judge.compute_floor(judged, data, certain=True)
    assert floor["nll"] == pytest.approx(np.mean(brute), rel=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_regression(network, files):
    """The earlier kind, which the benchmarks judge: no probabilities, one prediction instead of samples."""
    torch.manual_seed(0)
    cases, _ = cases_of(files["other"])
    model = Regression(8, 8, 4, network).eval()
    found, _ = judge.evaluate(model, judged_on(cases, Rules()))
    assert (
        found["nll"] is None
        and found["violations_per_10k"]["argmax"] == found["violations_per_10k"]["samples"]
    )
    assert "reward > 0" not in found["calibration"] and 0 < found["obs_mse"] < 1


def test_the_plain_model(files, here, monkeypatch, capsys):
    """Untrained, its samples are no boards: the counter says so. It plays boards of any size and any number of hunters."""
    torch.manual_seed(0)
    folder = of_network(train_world_model.CellWorldModel(8, 8, [0.0, 1.0]), files["default"])
    for name in ("other", "six"):
        assert call(monkeypatch, "--data", files[name]) == 0
        found = metrics(folder)
        assert found["violations_per_10k"]["samples"]["total"] > 9000 and found["nll"] > 5


def test_other_rules_than_those_trained_on_are_named(files, here, monkeypatch, capsys):
    of_network(moves(), files["default"])
    rules = Rules(hunters_needed=3, stag_reward=15.0)
    save_arrays(here / "three.npz", collect(CollectArgs(steps=200, rules=rules)).arrays())
    assert call(monkeypatch, "--data", here / "three.npz") == 0
    assert (
        "learnt from other rules: hunters_needed 2, here 3; stag_reward 10.0, here 15.0\n"
        in capsys.readouterr().out
    )
    assert call(monkeypatch, "--data", files["other"]) == 0
    assert "other rules" not in capsys.readouterr().out


# ---- mistakes


def test_without_a_checkpoint(here, monkeypatch, capsys):
    assert call(monkeypatch) == 2
    assert capsys.readouterr().err == (
        "error: wm_ckpts: no trained run there; train one with `python train_world_model.py`, or name another\n"
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--checkpoint", "nowhere"), "nowhere: no checkpoint there"),
        (("--data", "missing.npz"), "missing.npz: no such file"),
        (("--data", "own"), "expected everyone's, as in training, found one hunter's"),
        (("--seed", "-1"), "--seed: must be at least 0"),
        (("--max-samples", "-1"), "--max-samples: must be at least 0"),
        (("--torch-threads", "0"), "--torch-threads: must be at least 1"),
        (("--split", "some"), "--split"),
    ],
)
def test_mistakes_are_one_line(flags, says, files, here, monkeypatch, capsys):
    of_network(moves(), files["default"])
    assert call(monkeypatch, *(files.get(flag, flag) for flag in flags)) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and err.startswith("error: ")


def test_a_damaged_checkpoint(files, here, monkeypatch, capsys):
    path = of_network(moves(), files["default"]) / "best.pt"
    path.write_bytes(path.read_bytes()[:500])
    assert call(monkeypatch, "--data", files["other"]) == 2
    assert "cut short or damaged" in capsys.readouterr().err


def test_the_newest_is_by_number(here):
    for name in ("wm__9", "wm__10", "other__8", "wm__11"):
        (here / "wm_ckpts" / name).mkdir(parents=True)
        if name != "wm__11":  # killed in its first epoch
            (here / "wm_ckpts" / name / "best.pt").touch()
    assert tracking.newest_run("wm_ckpts", "train_world_model.py").name == "wm__10"


def test_pytest_collects_nothing_from_the_script():
    assert not [name for name in vars(judge) if name.startswith("test")]


# ---- formulas, by hand


def said_of(expected, rewards):
    """A prediction of these expected planes [B, C, K] and rewards [B, A]."""
    expected, rewards = torch.tensor(expected), torch.tensor(rewards)
    return Prediction(
        (expected > 0.5).to(torch.uint8), expected, rewards, rewards, None, torch.zeros(len(expected))
    )


def test_hits_at_1_by_hand():
    truth = torch.tensor(
        [[[1, 0], [0, 0], [0, 0], [0, 0]]], dtype=torch.uint8
    )  # one hunter on a board of 1x2: one neighbour
    paid, zeros = torch.zeros(1, 1), [[0.0, 0.0]] * 3
    for here, score in ((0.5, 0.5), (0.4, 0.0), (0.6, 1.0)):
        said = said_of([[[here, 1 - here], *zeros]], [[0.0]])
        assert transitions.hits_at_1(said, truth, paid, (1, 2)).tolist() == [score]
    sure = [[[1.0, 0.0], *zeros]]
    for pays, score in ((0.4, 1.0), (0.5, 0.5), (0.6, 0.0)):  # against a reward of 1
        assert transitions.hits_at_1(said_of(sure, [[pays]]), truth, paid, (1, 2)).tolist() == [score]
    assert transitions.hits_at_1(
        said_of(sure, [[0.6]]), truth, torch.tensor([[math.nan]]), (1, 2)
    ).tolist() == [1.0]
    prey = truth.clone()
    prey[0, 3, 1] = 1
    for there, score in ((0.6, 1.0), (0.5, 0.5), (0.4, 0.0)):
        said = said_of([[[1.0, 0.0], *zeros[:2], [0.0, there]]], [[0.0]])
        assert transitions.hits_at_1(said, prey, paid, (1, 2)).tolist() == [score]
    both = torch.cat([truth, truth.flip(2)])  # what happened after the other one is as near to both
    undecided = said_of([[[0.5, 0.5], *zeros]] * 2, [[0.0]] * 2)
    assert transitions.hits_at_1(undecided, both, torch.zeros(2, 1), (1, 2)).tolist() == pytest.approx(
        [1 / 3] * 2
    )
    twice = torch.cat([truth, truth])  # the same is no counterfactual
    assert transitions.hits_at_1(
        said_of(sure * 2, [[0.0]] * 2), twice, torch.zeros(2, 1), (1, 2)
    ).tolist() == [
        1.0,
        1.0,
    ]


def test_psnr_by_hand():
    assert transitions.psnr(0.01) == pytest.approx(20.0) and transitions.psnr(0.0) == pytest.approx(100.0)
    assert transitions.psnr(np.array([0.01, 0.001])) == pytest.approx(25.0)


def test_calibration_bins_by_hand():
    said = torch.tensor([[0.2, 0.25, 0.95], [0.0, 1.0, 0.6]])
    found = torch.tensor([[0, 1, 1], [0, 1, 1]], dtype=torch.uint8)
    sums = transitions.bin_probs(torch.tensor([[0], [1]]), said, found, 3)
    bins = np.searchsorted(transitions.EDGES, [0.2, 0.95, 0.0001, 0.6, 0.99995]) - 1
    assert sums[:, 0, bins[0]].tolist() == pytest.approx([0.45, 1.0, 2.0])
    assert sums[:, 0, bins[1]].tolist() == pytest.approx([0.95, 1.0, 1.0])
    assert sums[:, 1, bins[2]].tolist() == [0.0, 0.0, 1.0] and sums[:, 1, bins[4]].tolist() == [1.0, 1.0, 1.0]
    assert sums[:, 2].sum() == 0 and sums[2].sum() == 6


def board(*cells, hunters=2, size=(1, 4), prey=()):
    """Hunters on these cells (None: gone), prey as (plane from behind, cell). uint8 [1, A+3, H, W]"""
    planes = np.zeros((hunters + 3, size[0] * size[1]), np.uint8)
    for seat, cell in enumerate(cells):
        if cell is not None:
            planes[seat, cell] = 1
    for plane, cell in prey:
        planes[plane, cell] = 1
    return planes.reshape(1, hunters + 3, *size)


def test_events_by_hand():
    stag = [(-2, 0)]
    rows = [(board(0, 0, prey=stag), (HUNT_STAG, HUNT_STAG), board(None, None)),
            (board(0, 2, prey=stag), (HUNT_STAG, LEFT), board(0, 1, prey=stag)),
            (board(0, 2), (LEFT, STAY), board(0, 2)),
            (board(0, 2), (RIGHT, LEFT), board(1, 1)),
            (board(0, None), (RIGHT, STAY), board(1, None)),
            (board(0, 2, prey=stag), (HUNT_HARE, LEFT), board(0, 1, prey=stag)),
            (board(0, None, prey=[(-1, 0)]), (HUNT_STAG, HUNT_STAG), board(0, None, prey=[(-1, 0)]))]  # fmt: skip
    before, after = (np.concatenate([row[i] for row in rows]) for i in (0, 2))
    n, actions = len(rows), np.array([row[1] for row in rows])
    row, zeros = np.arange(n), np.zeros(n)
    cases = EvalTransitions(
        np.concatenate([before, after]), row, row + n, actions, actions, np.zeros((n, 2)), *[zeros] * 4, GAME
    )
    found = {name: np.flatnonzero(there).tolist() for name, there in transitions.find_events(cases).items()}
    assert found == {
        "capture": [0],
        "failed_stag_hunt": [1],
        "empty_hunt": [5, 6],
        "bump": [2],
        "shared_cell": [3],
    }


def test_ends_that_a_joint_state_cannot_tell_are_not_judged(files):
    """A model that always says that the board goes on: wrong where it is known to end, not judged where nothing is known."""
    cases, _ = cases_of(files["default"])
    cases = cases.take(slice(4))
    cases.ends = np.array([0.0, 1.0, np.nan, np.nan], np.float32)
    steps, _ = judge.evaluate_steps(Copycat().on(8, 8), judged_on(cases, Rules()))
    np.testing.assert_array_equal(steps["right_ends"], [1.0, 0.0, np.nan, np.nan])


def test_rollout_depths_by_hand():
    exact = np.array([[1, 0, 1], [1, 1, 0]], float)  # the second is two steps long
    broken = np.zeros((2, 3, len(KINDS)), bool)
    broken[0, 1, 0] = broken[1, 1, 2] = True
    rollouts = judge.Rollouts(
        length=np.array([3, 2]),
        exact=exact,
        obs_mse=1 - exact,
        reward_mse=np.full((2, 3), np.nan),
        broken=broken,
    )
    counted = np.ones(len(KINDS), bool)
    judged = judge.Judged(None, Rules(), counted, seed=1, device=CPU)
    found = judge.rollout_metrics(rollouts, None, judged)
    assert [found[k]["exact"] for k in ("1", "5", "35")] == [1.0, 1.0, 1.0]
    assert [found[k]["exact_path"] for k in ("1", "5", "35")] == [1.0, 0.5, 0.5]
    assert [found[k]["violations_per_10k"] for k in ("1", "5")] == pytest.approx([0.0, 4000.0])
    assert found["5"]["reward_mse"] is None and found["5"]["shorter"] == 2 and found["1"]["shorter"] == 0
    counted[0] = False
    assert judge.rollout_metrics(rollouts, None, judged)["5"]["violations_per_10k"] == pytest.approx(2000.0)


def test_unknown_actions_are_those_that_are_shown():
    """A board is possible if some action of those who are not known makes it so."""
    stag, hare, yes = [(-2, 1)], [(-1, 1)], np.ones((1, 2), bool)
    for before, actions, after, rewards, kinds in (
        (board(0, 2), (RIGHT, -1), board(1, 3), (0, 0), set()),
        (board(0, 2), (RIGHT, -1), board(1, 2), (0, 0), set()),
        (board(0, 0), (RIGHT, -1), board(1, 2), (0, 0), {"jump"}),
        (board(0, 2), (RIGHT, -1), board(0, 2), (0, 0), {"against_action"}),
        (board(1, 1, prey=stag), (HUNT_STAG, -1), board(None, None), (5, 5), set()),
        (board(1, 1, prey=stag), (HUNT_STAG, -1), board(1, 1, prey=stag), (0, 0), set()),
        (board(1, 1, prey=stag), (STAY, -1), board(1, None, prey=stag), (0, 0), {"lost"}),
        (board(1, 1, prey=stag), (HUNT_STAG, -1), board(None, None), (10, 0), {"capture_without_reward"}),
        (board(0, 1, prey=hare), (STAY, -1), board(0, None), (0, 1), set()),
        (board(0, 1, prey=hare), (STAY, -1), board(0, 1), (0, 0), {"prey_lost"}),
    ):
        found = transitions.broken_rules(
            before, np.array([actions]), after, np.array([rewards], float), yes, Rules()
        )
        assert {kind for kind, there in zip(KINDS, found[0], strict=True) if there} == kinds, (actions, kinds)
    unknown = transitions.broken_rules(
        board(0, 2), np.array([[STAY, STAY]]), board(0, 2), np.full((1, 2), 9.0), ~yes, Rules()
    )
    assert not unknown.any(), "rewards that are not known are not judged"


@pytest.mark.parametrize("name", ["default", "moving", "six"])
def test_what_is_played_breaks_no_rule_whoever_is_known(name, files):
    cases, data = cases_of(files[name], joint=False)
    rules, known = Rules(**data.trajectories.metadata["rules"]), np.ones(cases.actions.shape, bool)
    for told in (cases.given_actions, np.full_like(cases.given_actions, -1), cases.actions):
        assert not transitions.broken_rules(
            cases.before, told, cases.after, cases.rewards, known, rules
        ).any()


def test_the_floor_by_hand():
    probs = np.zeros((2, 7))
    probs[0, [RIGHT, STAY]], probs[1, STAY] = 0.5, 1.0
    before, after, rewards = board(0, 3)[0], board(1, 3)[0], np.zeros(2)
    obs_mse, reward_mse, nll = transitions.exact_expectation(before, probs, after, rewards, Rules())
    assert (obs_mse, reward_mse, nll) == pytest.approx((2 * 0.25 / 20, 0.0, np.log(2)))
    probs[0] = 0
    probs[0, [HUNT_HARE, LEFT]] = 0.25, 0.75
    before, after = board(1, 3, prey=[(-1, 1)])[0], board(None, 3)[0]
    obs_mse, reward_mse, nll = transitions.exact_expectation(
        before, probs, after, np.array([1.0, np.nan]), Rules()
    )
    # the hunter: gone 1/4, one to the left 3/4; the hare is left 3/4
    assert (obs_mse, reward_mse, nll) == pytest.approx((2 * 0.1875 / 20, 0.1875, np.log(4)))
    probs[0] = np.eye(7)[STAY]
    before, after = board(0, 0, prey=[(-2, 2)])[0], board(0, 0, prey=[(-2, 3)])[0]
    obs_mse, reward_mse, nll = transitions.exact_expectation(
        before, probs, after, np.zeros(2), Rules(prey_moves=0.5)
    )
    assert (obs_mse, reward_mse, nll) == pytest.approx(((0.25 + 2 * 0.1875) / 20, 0.0, np.log(4)))


def test_stretches_are_cut_where_a_step_is_missing(files):
    cases, data = cases_of(files["default"])
    start, length = cases.unbroken_parts()
    assert np.array_equal(length, data.trajectories.episode_lengths) and start[1] == length[0]
    less = cases.take(np.delete(np.arange(len(cases)), 2))
    assert less.unbroken_parts()[1][:2].tolist() == [2, length[0] - 3]
