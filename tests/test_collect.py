"""Collected trajectories: the same game as the slow reference plays, the law of the data, the same bytes each time."""

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reference import STAY, Reference

import data.collect
import data.flatten
import data.trajectories
from data import DEFAULT_DATA, DataError, default_or_fresh, load, training_file
from data.collect import Args, collect, collect_to_file
from data.trajectories import OPTIONAL, SPEC, save_arrays, split_episodes
from envs import ACTIONS, PLANES, Rules
from envs.stag_hunt import legal_actions

ROOT = Path(__file__).resolve().parents[1]
SMALL = Rules(height=4, width=4, blocks=0, horizon=10)
GAMES = {
    "default": Args(samples=400, seed=5),
    "4x4 no blocks": Args(samples=300, rules=SMALL),
    "prey that move": Args(
        samples=300, seed=2, rules=Rules(height=5, width=4, blocks=3, prey_moves=0.5, horizon=12)
    ),
    "ends early": Args(
        samples=300, rules=Rules(height=5, width=5, blocks=3, end_after_first_hunt=2, horizon=15)
    ),
    "three strategies": Args(
        samples=300, seed=3, epsilon=0.3, strategies=("RANDOM", "NH", "NS"), rules=SMALL
    ),
    "one hunter, no epsilon": Args(
        samples=200, epsilon=0.0, rules=Rules(hunters=1, height=3, width=5, blocks=2, hares=2)
    ),
    "seven hunters, other rewards": Args(
        samples=600, rules=Rules(hunters=7, stags=2, stag_reward=7, hunters_needed=3)
    ),
    "unmasked": Args(samples=400, seed=6, unmasked=0.4, rules=Rules(height=4, width=4, blocks=2, horizon=10)),
}


@pytest.fixture(autouse=True)
def few_boards(monkeypatch):
    """A batch of 32 boards instead of 2,048: enough here, and several batches a file."""
    monkeypatch.setattr(data.collect, "BOARDS", 32)


@pytest.fixture(scope="module")
def default_data():
    return load(default_or_fresh(DEFAULT_DATA))


def returns(t):
    starts = np.cumsum(t.episode_lengths) - t.episode_lengths
    return np.add.reduceat(t.rewards, starts)


def test_hunters_switch_strategies_at_the_switch_tick():
    """Without epsilon every action is one of the first strategy before the tick, and of the next one from it on."""
    t = collect(Args(samples=2000, epsilon=0.0, switch_tick=4))
    assert t.metadata["switch_tick"] == 4 and "switch_tick" not in collect(Args(samples=50)).metadata
    first = t.strategies[t.episode].astype(np.intp)
    now = np.where(t.tick[:, None] >= 4, 1 - first, first)
    rows, seats = np.nonzero(t.active)
    played = t.policy_probs[rows, seats, :, t.actions[rows, seats]]  # [n, S]
    assert (played[np.arange(len(rows)), now[rows, seats]] > 0).all()
    assert (played[np.arange(len(rows)), first[rows, seats]][t.tick[rows] >= 4] == 0).any()
    with pytest.raises(ValueError, match=r"--switch-tick must be in 0\.\.2\*\*31 - 1, got -1"):
        collect(Args(switch_tick=-1))


# ---- the game


def first_above(uniform, probs):
    """The action that inversion draws: the first one whose cumulative probability is above a number in [0, 1)."""
    return next(a for a in range(7) if uniform < sum(probs[: a + 1]))


@pytest.mark.parametrize("name", GAMES)
def test_episodes_equal_the_reference_game(name):
    """Replayed by seed in the slow reference: observations, rewards, ends, who was active, exact probabilities."""
    args = GAMES[name]
    t, rules = collect(args), args.rules
    obs_row = step = 0
    for episode, length in enumerate(t.episode_lengths):
        game = Reference(rules, args.seed, episode)
        draws = np.array(game.draw(rules.hunters)) / 2**64  # one number a hunter says which strategy it plays
        assert t.strategies[episode].tolist() == (draws * len(args.strategies)).astype(int).tolist()
        for tick in range(length):
            assert (
                not game.ended
                and t.episode[step] == episode
                and t.tick[step] == tick
                and t.obs_row[step] == obs_row
            )
            assert np.array_equal(t.obs[obs_row], game.obs())
            assert t.active[step].tolist() == [cell is not None for cell in game.hunters]
            law = []
            for seat in range(rules.hunters):
                asked = np.array([game.probs(seat, strategy, args.epsilon) for strategy in args.strategies])
                asked = (1 - args.unmasked) * asked + args.unmasked / 7
                expected, illegal = asked.copy(), [a for a in range(7) if a not in game.legal(seat)]
                expected[:, STAY] += expected[:, illegal].sum(1)
                expected[:, illegal] = 0
                np.testing.assert_allclose(t.policy_probs[step, seat], expected, rtol=0, atol=1e-7)
                law.append(asked[t.strategies[episode, seat]])
            uniform = np.array(game.draw(rules.hunters), np.uint64) >> np.uint64(
                11
            )  # which action each hunter asks for
            attempted = [first_above(u, p) for u, p in zip(uniform * 2.0**-53, law, strict=True)]
            attempted = [a if t.active[step, seat] else STAY for seat, a in enumerate(attempted)]
            assert t.attempted is None if not args.unmasked else t.attempted[step].tolist() == attempted
            rewards, terminated, truncated = game.step(attempted)
            assert t.actions[step].tolist() == game.effective
            np.testing.assert_array_equal(t.rewards[step], np.float32(rewards))
            obs_row, step = obs_row + 1, step + 1
        assert game.ended and np.array_equal(t.obs[obs_row], game.obs())
        assert t.terminated[episode] == (not any(truncated)) and (any(terminated) or any(truncated))
        obs_row += 1
    assert step == len(t.actions) and obs_row == len(t.obs) and episode > 3


def test_the_test_games_end_in_every_way():
    rules = Rules(height=6, width=6, hares=2, end_after_first_hunt=2, horizon=8)
    t = collect(Args(samples=2000, rules=rules))
    emptied = ~t.obs[np.cumsum(t.episode_lengths + 1) - 1][:, :, 0].any((1, 2, 3))
    horizon = t.episode_lengths == 8
    assert (
        (t.terminated[~horizon]).all() and (t.terminated & emptied).any() and (t.terminated & ~emptied).any()
    )
    assert (~t.terminated).any() and (horizon[~t.terminated]).all() and not emptied[~t.terminated].any()


def test_the_default_file_has_terminated_and_truncated_episodes(default_data):
    emptied = ~default_data.obs[np.cumsum(default_data.episode_lengths + 1) - 1][:, :, 0].any((1, 2, 3))
    assert np.array_equal(default_data.terminated, emptied)
    assert 0.1 < default_data.terminated.mean() < 0.9
    assert (default_data.episode_lengths[~default_data.terminated] == 35).all()


def test_recorded_actions_are_legal(default_data):
    t = default_data
    own = t.obs[t.obs_row]
    assert np.array_equal(t.active, own[:, :, 0].any((2, 3))) and t.active[t.tick == 0].all()
    assert legal_actions(own[t.active])[np.arange(t.active.sum()), t.actions[t.active]].all()
    assert (t.actions[~t.active] == STAY).all() and (t.rewards[~t.active] == 0).all()
    assert (t.policy_probs[~t.active] == np.eye(7)[STAY]).all()
    left = ~own[:, :, 0].any((2, 3))
    assert left[t.tick == 20].any(), "some have left by tick 20, so the lines above saw some"


# ---- the law


def test_the_default_settings():
    args = Args()
    assert (args.samples, args.steps, args.seed, args.epsilon, args.strategies) == (
        107_010,
        0,
        1,
        0.1,
        ("NS", "NH"),
    )
    assert args.rules == Rules() and args.out == DEFAULT_DATA == "data/stag_hunt_4p5b_8x8.npz"


def test_the_default_file_has_the_default_settings(default_data):
    """Its first episodes are what the present code collects: a file left by older code fails here."""
    first = collect(Args(samples=500))
    steps = len(first.actions)
    for key in ("actions", "rewards", "active", "policy_probs"):
        assert np.array_equal(getattr(default_data, key)[:steps], getattr(first, key)), key
    assert np.array_equal(default_data.obs[: len(first.obs)], first.obs)
    last_episode = default_data.active[default_data.episode == default_data.episode.max()].sum()
    assert 107_010 <= default_data.active.sum() < 107_010 + last_episode
    differing = {k for k in first.metadata if first.metadata[k] != default_data.metadata[k]}
    assert differing <= {"total_episodes", "total_steps", "active_samples", "action_counts"}


def test_strategies_are_drawn_equally_and_independently(default_data):
    s = default_data.strategies.astype(float)
    bound = 5 / np.sqrt(len(s)) / 2  # 5 standard errors of a share of 1/2
    assert (np.abs(s.mean(0) - 0.5) < bound).all()
    for k in range(5):  # how many of four are NH: binomial
        expected = (1, 4, 6, 4, 1)[k] / 16
        assert abs((s.sum(1) == k).mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / len(s))
    correlation = np.corrcoef(s.T)[np.triu_indices(4, 1)]
    assert (np.abs(correlation) < 5 / np.sqrt(len(s))).all()
    assert abs(np.corrcoef(s[:-1, 0], s[1:, 0])[0, 1]) < 5 / np.sqrt(
        len(s)
    )  # nor does one episode tell of the next


def test_actions_follow_the_probabilities_of_their_strategy(default_data):
    """For each strategy and action, the number taken is within 5 standard deviations of what was to be expected."""
    t = default_data
    step, seat = np.nonzero(t.active)
    who, taken = t.strategies[t.episode[step], seat], t.actions[step, seat]
    probs = t.policy_probs[step, seat].astype(np.float64)  # [M, S, 7]
    for s in (0, 1):
        p, a = probs[who == s, s], taken[who == s]
        z = (np.bincount(a, minlength=7) - p.sum(0)) / np.sqrt((p * (1 - p)).sum(0))
        assert (np.abs(z) < 5).all()
        assert (p[np.arange(len(a)), a] > 0).all()
        other = probs[who == s, 1 - s]
        z = (np.bincount(a, minlength=7) - other.sum(0)) / np.sqrt((other * (1 - other)).sum(0))
        assert np.abs(z).max() > 20, "and the other strategy's do not fit"


@pytest.mark.parametrize("unmasked", [0.0, 0.3])
def test_action_frequencies_match_policy_probs(unmasked, monkeypatch):
    """On a tiny board the same states come up on thousands of boards: chi-square against `policy_probs` of each."""
    monkeypatch.setattr(data.collect, "BOARDS", 2048)
    rules = Rules(hunters=1, stags=1, hares=1, blocks=0, height=1, width=4, horizon=3, hunters_needed=1)
    t = collect(
        Args(samples=16_000, epsilon=0.3, strategies=("NS", "NH", "RANDOM"), unmasked=unmasked, rules=rules)
    )
    rows = np.flatnonzero(t.active[:, 0])
    keys = np.concatenate(
        [t.obs[t.obs_row[rows], 0].reshape(len(rows), -1), t.strategies[t.episode[rows]]], 1
    )
    _, group = np.unique(keys, axis=0, return_inverse=True)
    statistic = freedom = counted = 0
    for g in range(group.max() + 1):
        of = rows[group == g]
        p = t.policy_probs[of, 0, t.strategies[t.episode[of[0]], 0]]
        assert (p == p[0]).all(), "one state, one strategy, one distribution"
        observed = np.bincount(t.actions[of, 0], minlength=7)
        assert (observed[p[0] == 0] == 0).all()
        expected = len(of) * p[0].astype(np.float64)
        if expected[p[0] > 0].min() >= 5:
            statistic += ((observed - expected)[p[0] > 0] ** 2 / expected[p[0] > 0]).sum()
            freedom += (p[0] > 0).sum() - 1
            counted += len(of)
    assert counted > 10_000 and freedom > 50
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_unmasked_actions_are_uniform_over_all_seven():
    """At U = 1 nothing else is asked for: chi-square with 6 degrees of freedom, below its 99.9% quantile."""
    t = collect(Args(samples=4000, unmasked=1.0, rules=SMALL))
    asked, legal = t.attempted[t.active], legal_actions(t.obs[t.obs_row][t.active])
    counts = np.bincount(asked, minlength=7)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 22.5
    possible = legal[np.arange(len(asked)), asked]
    assert (
        np.array_equal(t.actions[t.active], np.where(possible, asked, STAY)) and 0.2 < possible.mean() < 0.9
    )
    assert (t.attempted[~t.active] == STAY).all() and (~t.active).any()
    law = np.where(legal, 1 / 7, 0)
    law[:, STAY] += 1 - law.sum(1)
    np.testing.assert_allclose(t.policy_probs[t.active], np.repeat(law[:, None], 2, 1), atol=1e-6)
    assert (t.policy_probs[~t.active] == np.eye(7)[STAY]).all()


def test_without_unmasked_actions_nothing_is_attempted():
    """The fingerprint of the code before `unmasked` was there."""
    rules = replace(SMALL, prey_moves=0.3, end_after_first_hunt=2)
    t = collect(Args(samples=1000, seed=3, epsilon=0.3, strategies=("RANDOM", "NH", "NS"), rules=rules))
    assert t.fingerprint == "59d61f23cab5bc334321fe8748ce6b439b88a96e7576a2b8183641e82c5bbef4"
    assert t.attempted is None and "attempted" not in t.arrays() and "unmasked" not in t.metadata
    assert collect(GAMES["unmasked"]).metadata["unmasked"] == 0.4


def test_epsilon_and_moving_prey_reach_the_game():
    assert np.isin(collect(GAMES["one hunter, no epsilon"]).policy_probs, (0, 0.5, 1)).mean() > 0.95
    still, moving = collect(GAMES["4x4 no blocks"]), collect(GAMES["prey that move"])
    appear = lambda t: (np.diff(t.obs[:, 0, 3:].astype(int), axis=0)[t.obs_row] > 0).any()  # noqa: E731
    assert appear(moving) and not appear(still)


# ---- how much, and the same each time


@pytest.mark.parametrize("unit", ["samples", "steps"])
@pytest.mark.parametrize("target", [1, 35, 140, 333])
def test_the_fewest_whole_episodes_that_reach_the_target(unit, target):
    t = collect(Args(**{"samples": 7, unit: target}))
    counts = t.active.sum(1) if unit == "samples" else np.ones(len(t.actions), int)
    before_last = t.episode < t.episode.max()
    assert counts.sum() >= target > counts[before_last].sum()
    more = collect(Args(samples=1500))
    steps, rows = len(t.actions), len(t.obs)
    assert np.array_equal(more.obs[:rows], t.obs) and np.array_equal(more.actions[:steps], t.actions)
    assert more.tick[steps] == 0, "the last episode is whole"


def test_a_target_met_exactly_adds_no_episode():
    t = collect(Args(samples=500))
    upto = int(t.active[t.episode < 5].sum())
    assert len(collect(Args(samples=upto)).episode_lengths) == 5
    assert len(collect(Args(samples=upto + 1)).episode_lengths) == 6
    steps = int(t.episode_lengths[:5].sum())
    assert (
        len(collect(Args(steps=steps)).episode_lengths) == 5
        and len(collect(Args(steps=steps + 1)).episode_lengths) == 6
    )


@pytest.mark.parametrize("game", ["default", "prey that move", "unmasked"])
def test_the_number_of_parallel_boards_changes_nothing(game, monkeypatch):
    found = []
    for boards in (1, 5, 32, 300):
        monkeypatch.setattr(data.collect, "BOARDS", boards)
        t = collect(GAMES[game])
        found.append((t.fingerprint, t.metadata))
    assert all(one == found[0] for one in found)


def test_the_seed_determines_the_file(tmp_path):
    a, b, c = (collect(Args(samples=200, seed=seed)) for seed in (4, 4, 5))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    for name, t in (("a", a), ("b", b)):
        save_arrays(tmp_path / name, t.arrays())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---- the file


@pytest.mark.parametrize("name", GAMES)
def test_files_are_read_back(name, tmp_path):
    t = collect(GAMES[name])
    save_arrays(tmp_path / "new" / "x.npz", t.arrays())
    again = load(tmp_path / "new" / "x.npz")
    spec = {
        key: value for key, value in (SPEC | OPTIONAL).items() if key != "attempted" or name == "unmasked"
    }
    for key, (dtype, rank) in spec.items():
        saved, read = getattr(t, key), getattr(again, key)
        assert saved.dtype == read.dtype == dtype and saved.ndim == rank and np.array_equal(saved, read), key
    assert again.metadata == t.metadata and again.fingerprint == t.fingerprint
    assert again.path == str(tmp_path / "new" / "x.npz")
    with np.load(tmp_path / "new" / "x.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {*spec, "metadata"}
        assert archive["metadata"].dtype.kind == "U" and archive["metadata"].shape == ()


def test_arrays_have_the_documented_shapes():
    rules = GAMES["seven hunters, other rewards"].rules
    t = collect(GAMES["seven hunters, other rewards"])
    n, e = len(t.actions), len(t.episode_lengths)
    assert t.obs.shape == (n + e, 7, 5, rules.height, rules.width) and t.policy_probs.shape == (n, 7, 2, 7)
    assert (
        t.rewards.shape == t.active.shape == (n, 7)
        and t.terminated.shape == (e,)
        and t.strategies.shape == (e, 7)
    )


def test_metadata_describes_the_file():
    args = GAMES["three strategies"]
    t = collect(args)
    meta = t.metadata
    assert meta["total_episodes"] == len(t.terminated) and meta["total_steps"] == len(t.rewards)
    assert meta["active_samples"] == t.active.sum() == sum(meta["action_counts"])
    assert meta["action_counts"] == [int(((t.actions == a) & t.active).sum()) for a in range(7)]
    assert meta["seed"] == 3 and meta["epsilon"] == 0.3 and Rules(**meta["rules"]) == args.rules
    assert meta["strategies"] == ["RANDOM", "NH", "NS"] and meta["priors"] == [1 / 3] * 3
    assert meta["channels"] == list(PLANES) and meta["actions"] == list(ACTIONS)
    assert meta["dataset_id"] == "stag_hunt/4p0b-4x4/scripted-v0" and meta["env_id"] == "StagHunt-v0"


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    class Unsaveable:
        def __reduce__(self):
            raise RuntimeError("no")

    save_arrays(tmp_path / "x.npz", {"a": np.arange(3)})
    before = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(RuntimeError):
        save_arrays(tmp_path / "x.npz", {"a": np.arange(5), "b": np.array([Unsaveable()], object)})
    monkeypatch.setattr(data.trajectories.os, "replace", lambda *paths: Unsaveable().__reduce__())
    with pytest.raises(
        RuntimeError
    ):  # nothing is written in place: only the move at the end would change the file
        save_arrays(tmp_path / "x.npz", {"a": np.arange(5)})
    assert (tmp_path / "x.npz").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_captures_pay_what_the_rules_say(default_data):
    """At most one stag (10) and four hares (1 each) on a board, and nobody leaves without a reward, nor is paid twice."""
    per_hunter = returns(default_data)
    assert per_hunter.sum(1).max() <= 12 + 1e-6  # 2 on the stag, 2 on hares: the most that a team can earn
    left = ~default_data.obs[np.cumsum(default_data.episode_lengths + 1) - 1][:, :, 0].any((2, 3))
    assert np.array_equal(per_hunter > 0, left)


# ---- first use


def test_the_default_file_is_collected_on_first_use(tmp_path, monkeypatch, capsys):
    wanted = []

    def tiny(args):
        wanted.append(args)
        collect_to_file(replace(args, samples=20, steps=0))

    monkeypatch.setattr(data.trajectories, "DEFAULT_FILE", tmp_path / "default.npz")
    monkeypatch.setattr(data.trajectories, "FRESH_FILE", tmp_path / "fresh.npz")
    monkeypatch.setattr(data.trajectories, "UNMASKED_FILE", tmp_path / "unmasked.npz")
    monkeypatch.setattr(data.collect, "collect_to_file", tiny)
    for _ in range(2):  # the second time it is there
        assert default_or_fresh(DEFAULT_DATA) == tmp_path / "default.npz"
        assert default_or_fresh("fresh") == tmp_path / "fresh.npz"
        assert default_or_fresh("unmasked") == tmp_path / "unmasked.npz"
    assert wanted == [
        Args(out=str(tmp_path / "default.npz")),
        Args(out=str(tmp_path / "fresh.npz"), seed=1001, steps=100_000),
        Args(out=str(tmp_path / "unmasked.npz"), seed=1002, steps=100_000, unmasked=0.3),
    ]
    assert capsys.readouterr().out.count("[DATA] collecting") == 3
    assert load(tmp_path / "unmasked.npz").attempted is not None
    load(tmp_path / "default.npz")
    assert (
        default_or_fresh(tmp_path / "mine.npz") == tmp_path / "mine.npz"
        and not (tmp_path / "mine.npz").exists()
    )


def test_training_on_a_file_that_judges_is_refused(tmp_path, monkeypatch):
    """By its name, by its path however written, and before it is collected."""
    for name in ("DEFAULT_FILE", "FRESH_FILE", "UNMASKED_FILE"):
        monkeypatch.setattr(data.trajectories, name, tmp_path / f"{name}.npz")
    monkeypatch.setattr(data.collect, "collect_to_file", lambda args: Path(args.out).touch())
    (tmp_path / "folder").mkdir()
    for name in ("fresh", "unmasked"):
        file = f"{name.upper()}_FILE.npz"
        monkeypatch.chdir(tmp_path)
        for path in (name, tmp_path / file, f"./{file}", f"folder/../{file}"):
            with pytest.raises(DataError, match="this file is for judging only; train on another") as caught:
                training_file(path)
            assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / file).exists()
    assert (
        training_file(DEFAULT_DATA) == tmp_path / "DEFAULT_FILE.npz"
        and (tmp_path / "DEFAULT_FILE.npz").exists()
    )
    assert training_file("mine.npz") == Path("mine.npz")


# ---- the command line


def run_collect(*flags):
    return subprocess.run(
        [sys.executable, "-m", "data.collect", *flags], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_writes_what_the_function_does(tmp_path, capsys):
    done = run_collect("--out", str(tmp_path / "a.npz"), "--samples", "300", "--env-args", "prey_moves=0.25")
    assert done.returncode == 0, done.stderr
    t = collect_to_file(Args(out=str(tmp_path / "b.npz"), samples=300, rules=Rules(prey_moves=0.25)))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes(), (
        "two processes, the same bytes"
    )
    first, last = done.stdout.splitlines()
    assert first == f"[DATA] collecting 300 active samples (seed 1) into {tmp_path / 'a.npz'}"
    counts = f"{len(t.terminated)} episodes, {len(t.actions)} steps, {t.active.sum()} active samples in "
    assert last.startswith(f"[DATA] {counts}")
    assert capsys.readouterr().out.splitlines()[1].startswith(f"[DATA] {counts}")


@pytest.mark.slow
def test_an_unknown_flag_is_refused(tmp_path):
    done = run_collect("--out", str(tmp_path / "a.npz"), "--sample", "3")
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert (
        done.stderr.startswith("error:") and "--sample" in done.stderr and len(done.stderr.splitlines()) == 1
    )


BAD = {
    "no samples": (dict(samples=0), "--samples and --steps must be positive"),
    "negative steps": (dict(steps=-1), r"--steps must be in 0..2\*\*31 - 1, got -1"),
    "2**31 samples": (dict(samples=2**31), r"--samples must be in 0..2\*\*31 - 1, got 2147483648"),
    "a seed of 400 digits": (
        dict(seed=10**400),
        r"--seed must be in 0..2\*\*31 - 1, got 10000000000000000000$",
    ),
    "epsilon above 1": (dict(epsilon=1.5), "epsilon must be in"),
    "epsilon NaN": (dict(epsilon=float("nan")), "epsilon must be in"),
    "unmasked above 1": (dict(unmasked=1.01), r"--unmasked must be in \[0, 1\], got 1.01"),
    "unmasked below 0": (dict(unmasked=-0.1), r"--unmasked must be in \[0, 1\], got -0.1"),
    "unmasked NaN": (dict(unmasked=float("nan")), r"--unmasked must be in \[0, 1\], got nan"),
    "unknown strategy": (dict(strategies=("NS", "XX")), "unknown strategy 'XX': choose from NS, NH, RANDOM"),
    "negative seed": (dict(seed=-1), r"--seed must be in 0..2\*\*31 - 1, got -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_out_of_range_are_refused(name):
    setting, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        collect(Args(**{"samples": 10} | setting))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_setting_out_of_range_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["collect", "--out", str(tmp_path / "a.npz"), "--strategies", "NS", "XX"]
    )
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("data.collect", run_name="__main__", alter_sys=True)
    assert stop.value.code == 2 and not list(tmp_path.iterdir())
    written = capsys.readouterr().err
    assert written.startswith("error: --strategies: unknown strategy 'XX'") and written.count("\n") == 1


@pytest.mark.parametrize("module", [data.collect, data.flatten])
def test_a_folder_cannot_be_the_output(module, tmp_path, monkeypatch):
    """Refused before anything is played."""
    monkeypatch.setattr(module, "save_arrays", None)
    write = getattr(module, "collect_to_file", None) or module.flatten_to_file
    for out in (".", str(tmp_path)):
        with pytest.raises(ValueError, match="npz file to write, found a folder"):
            write(module.Args(out=out))


def test_the_split_of_the_default_file_is_by_episode(default_data):
    parts = split_episodes(len(default_data.terminated))
    assert [len(parts[name]) for name in ("train", "val", "test")] == [2486, 310, 310]
