"""The benchmarks of play: every table can be asked for, and the plain loop plays the same game in both of its forms."""

import copy
import subprocess
import sys
import typing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import hop_ppo
import tracking
from benchmarks import adaptation, cleanrl_ppo
from benchmarks import hop_ppo as tables
from envs import Rules
from envs.stag_hunt import STAY
from hop_ppo import make_envs, observe_envs, to_tensors
from metrics.returns import half_width
from pretrain_vae import VAE

ROOT = Path(__file__).resolve().parents[1]
SMALL = Rules(height=5, width=5, blocks=3, hares=3, horizon=14)


# ---- hop_ppo.py's tables


def test_benchmarks_need_nothing_of_the_tests():
    """--help where hypothesis is not installed."""
    code = "import sys; sys.modules['hypothesis'] = None; sys.argv = ['x', '--help']; import runpy; "
    code += "runpy.run_module('benchmarks.hop_ppo', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and "--what" in ran.stdout, ran.stderr


def test_every_table_that_can_be_asked_for_exists():
    assert set(tables.TABLES) == set(typing.get_args(typing.get_type_hints(tables.Args)["what"]))


def test_runs_of_a_table(monkeypatch):
    """A row a setting, seed and team, with the flags of each run; those that do not learn are judged once."""
    runs, judged = [], []

    def run(*flags):
        runs.append(" ".join(map(str, flags)))
        return f"run{len(runs)}"

    def judge_run(folder, teams, boards, first, first_seed):
        judged.append((folder, first, first_seed))
        return [dict(policy="policy", team=team) for team in teams]

    monkeypatch.setattr(tables, "run", run)
    monkeypatch.setattr(tables, "judge_run", judge_run)
    args = tables.Args("teams", seeds=(3, 4), steps=10, only=("none", "oracle, cut"))
    rows = tables.TABLES["teams"](args)
    common = "--seed 3 --total-timesteps 10"
    assert runs[0] == f"{common} --om none --co-players 3NS"
    assert runs[2] == f"{common} --om oracle --no-end-at-horizon --co-players 3NS"
    assert len(runs) == 5 * 2 * 2
    assert judged[:4] == [
        ("run1", True, True),
        ("run2", True, False),
        ("run3", False, True),
        ("run4", False, False),
    ]
    assert rows[0] == dict(setting="none", seed=3, policy="policy", team="3NS")
    assert {row["team"] for row in rows} == set(tables.TEAMS[1:])


def test_a_rung_of_the_ladder_by_hand():
    """The first rung's best mean of five updates, and when this one reaches it."""
    curve = tables.pd.DataFrame(dict(seconds=[1.0, 2.0, 4.0], steps=[10, 20, 30], learner=[1.0, 2.0, 4.5]))
    curve = curve.assign(kind="k", seed=7)
    assert tables.smooth(curve).tolist() == [1.0, 1.5, 2.5]
    row = tables.rung(curve, dict(learner=9.0, learner_ci95=0.5), 1.5)
    expected = dict(kind="k", seed=7, steps=30.0, per_second=7.5, learner=9.0, learner_ci95=0.5)
    assert row == expected | dict(best=1.5, steps_to_best=20.0, seconds_to_best=2.0)


def test_bare_passes_see_every_sample_as_often_as_an_update(monkeypatch):
    monkeypatch.setattr(tables.hop_ppo, "Args", partial(hop_ppo.Args, num_envs=32))
    loop = tables.OurLoop(tables.first_weights(1, "objects"), seed=1)
    batch, _ = loop.update(1.0)
    rows = []
    forward = loop.agent.forward
    loop.agent.forward = lambda obs, info: (rows.append(len(info)), forward(obs, info))[1]
    tables.pass_bare(loop.agent, batch, loop.args)
    assert sum(rows) == len(batch.actions) * (1 + loop.args.update_epochs)
    assert max(rows[-3 * loop.args.num_minibatches :]) <= -(-len(batch.actions) // loop.args.num_minibatches)
    assert all(parameter.grad is None for parameter in loop.agent.parameters())


# ---- the plain loop


def test_the_plain_loop_sees_the_same_in_both_games():
    """From the same cells the slow game and the batched one give the same observations and masks."""
    fast = cleanrl_ppo.fast_envs(SMALL, 6, 1)
    fast.reset(seed=1)
    for _ in range(4):
        obs, *_, infos = fast.step(np.full(6, STAY))
    planes = cleanrl_ppo.to_planes(obs, infos["tick"], SMALL)
    assert planes.shape == (6, 8, 5, 5) and (infos["tick"] > 0).any()
    for board in range(6):
        slow = cleanrl_ppo.PlainStagHunt(SMALL, 0, 1)
        slow.game = slow.game.from_state(SMALL, fast.unwrapped.core.state, board)
        slow.seat = int(infos["seat"][board])
        info = slow.info()
        np.testing.assert_array_equal(slow.obs(), obs[board])
        np.testing.assert_array_equal(info["action_mask"], infos["action_mask"][board])
        assert info["tick"] == infos["tick"][board]


def test_the_plain_loops_policy_is_judged_on_what_it_learnt_from():
    """The planes that hop_ppo.py's observations give are those of its own game."""
    fast = cleanrl_ppo.fast_envs(SMALL, 6, 1)
    obs, infos = fast.reset(seed=1)
    agent = cleanrl_ppo.ConvAgent(SMALL)
    mask = torch.as_tensor(infos["action_mask"]).bool()
    expected = agent(cleanrl_ppo.to_planes(obs, infos["tick"], SMALL), mask)[0].logits
    same = to_tensors(make_envs(SMALL, 6, "mixed").reset(seed=1)[1])
    logits, _ = agent.as_policy(SMALL)(observe_envs(same, SMALL), torch.zeros(6, 3, 0))
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("done", [0.0, 1.0])
def test_gae_of_the_plain_loop_by_hand(done):
    """Two ticks; with `done` the second observation begins a new episode."""
    rewards = torch.tensor([[1.0], [2.0]])
    values = torch.tensor([[0.5], [0.25]])
    dones = torch.tensor([[0.0], [done]])
    found = cleanrl_ppo.compute_gae(rewards, values, dones, torch.tensor([4.0]), torch.tensor([0.0]))
    last = 2.0 + 0.99 * 4.0 - 0.25
    first = 1.0 + (1 - done) * 0.99 * 0.25 - 0.5 + (1 - done) * 0.99 * 0.95 * last
    assert found[:, 0].tolist() == pytest.approx([first, last])


@pytest.mark.parametrize("make", [cleanrl_ppo.plain_envs, cleanrl_ppo.fast_envs])
def test_the_plain_loop_trains_all_parameters(make):
    envs = make(SMALL, 2, 1)
    runner = cleanrl_ppo.Runner(envs, SMALL, 1, 40)
    agent = cleanrl_ppo.ConvAgent(SMALL)
    before = [parameter.clone() for parameter in agent.parameters()]
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    batch, finished = runner.rollout(agent)
    cleanrl_ppo.update(agent, optimizer, batch)
    assert batch.planes.shape == (40, 2, 8, 5, 5) and len(finished) >= 4
    assert all(not torch.equal(new, old) for new, old in zip(agent.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", tables.RUNGS)
def test_every_rung_of_the_ladder_trains(kind, monkeypatch):
    """So many rows as updates, each with the seconds and steps so far; and a policy that can be judged."""
    monkeypatch.setattr(tables.hop_ppo, "Args", partial(hop_ppo.Args, num_envs=32))
    few = dict(num_envs=2, num_steps=8) if "plain" in kind else {}
    rows, policy = tables.RUNGS[kind](0.05, 1, **few)
    batch = 16 if few else 32 * 16
    assert [steps for _, steps, _ in rows] == [batch * (i + 1) for i in range(len(rows))]
    assert rows and rows == sorted(rows)
    summary = tables.play(tables.default_evaluator(), policy, "mixed", 4, om="none")
    assert summary["episodes"] == 4


def test_returns_by_episode_of_boards_that_go_on_by_hand():
    """Two rows; the second ends its episodes sooner, and is then in its third."""

    class Game:
        num_envs = 2
        tick = 0

        def step(self, actions):
            rewards = np.array([[1.0, 1.0], [0.0, 2.0], [4.0, 0.0], [5.0, 8.0], [6.0, 9.0]])[self.tick]
            terminated = np.array([[0, 1], [0, 0], [1, 1], [0, 0], [0, 0]], bool)[self.tick]
            truncated = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [1, 0]], bool)[self.tick]
            self.tick += 1
            return None, rewards, terminated, truncated, {}

    recorder = adaptation.Recorder(Game())
    assert recorder.num_envs == 2
    for _ in range(4):
        recorder.step(None)
    with pytest.raises(ValueError, match="expected 2 episodes of each row, found 1"):
        recorder.returns(2)
    recorder.step(None)
    assert recorder.returns(2).tolist() == [[5.0, 1.0], [11.0, 2.0]]


def test_the_share_that_is_recovered_by_hand():
    """On two boards, where knowing is worth 1 and 3: no interval if it is the same share of both."""
    none, oracle = np.array([0.0, 1.0]), np.array([1.0, 4.0])
    assert tables.recovered(none + 0.5 * (oracle - none), none, oracle) == (0.5, 0.0)
    assert tables.recovered(oracle, none, oracle) == (1.0, 0.0)
    share, half = tables.recovered(np.array([1.0, 1.0]), none, oracle)
    assert share == 0.25
    left = np.array([1.0 - 0.25, 0.0 - 0.75]) / 2
    assert half == pytest.approx(half_width(left))
    assert np.isnan(tables.recovered(oracle, none, none + np.array([0.5, -0.4]))).all(), "nothing to recover"


def test_adaptation_of_runs_and_of_a_search_by_hand(tmp_path, monkeypatch):
    """none and oracle come first, and do not search; where they earn 1 and 3, 2 is half of what knowing is worth."""
    loaded = []

    class Judge:
        final_seed = 7

        def play(self, agent, team, seed, boards, episodes, plan):
            assert (team, seed, boards, episodes) == ("mixed", 7, 5, 10)
            first, later = {
                "none": (1.0, 1.0),
                "oracle": (3.0, 3.0),
                "belief": (2.0, 2.5),
                "gru": (2.0, 2.0),
            }[agent]
            returns = np.full((10, 5), later + 0.5 * (plan == "learned"))
            returns[0] = first
            return dict(learner=returns)

    def load(folder, **settings):
        loaded.append((folder, settings))
        return folder.partition("/")[2], Judge()

    monkeypatch.setattr(tables, "load", load)
    runs = tmp_path / "runs.csv"
    runs.write_text(
        "setting,seed,run\nbelief,1,belief\noracle,1,oracle\nnone,1,none\ngru,1,gru\n", encoding="utf-8"
    )
    out = tmp_path / "adapt.csv"
    args = tables.Args(
        "adapt", runs=runs.as_posix(), boards=5, only=("gumbel8",), world_model="wm", out=str(out)
    )
    rows = tables.adapt_table(args)
    assert [row["setting"] for row in rows] == ["oracle", "none", "belief", "belief gumbel8", "gru"]
    assert [folder for folder, _ in loaded] == [
        f"ppo_ckpts/{run}" for run in ("oracle", "none", "belief", "belief", "gru")
    ]
    assert [settings for _, settings in loaded[:3]] == [{}] * 3
    assert loaded[3][1] == dict(plan=True, world_model="wm", **tables.SEARCHES["gumbel8"])
    assert [(row["first"], row["later"]) for row in rows[2:4]] == [(0.5, 0.75), (0.5, 1.0)]
    assert out.exists() and out.with_suffix(".png").exists()


def check_mistake(main, flags, says, monkeypatch, capsys) -> None:
    """One line that begins so, and exit code 2."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    with pytest.raises(SystemExit) as stop:
        tracking.run(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(says) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--what plan", "error: --what plan needs --agent, the folder of a run"),
        ("--what adapt", "error: --what adapt needs --runs, see --help"),
        ("--what adapt --runs nowhere.csv", "error: nowhere.csv: No such file or directory; "),
        (
            "--what adapt --runs nowhere.csv --only x",
            "error: --only x: --what adapt has 'puct', 'gumbel', 'gumbel8'",
        ),
        ("--what om --only x none", "error: --only x: --what om has 'none', 'latent', "),
        ("--what removals --runs .", "error: --runs .: no run of the snowdrift there"),
        (
            "--what adapt --runs x.csv",
            "error: --runs x.csv: expected a column 'run', found ['setting', 'seed']",
        ),
        ("--what overhead --only x", "error: --what overhead takes no --only"),
        ("--what overhead --seeds", "error: --seeds: name one or more"),
        ("--what ladder --only x", "error: --only x: --what ladder has 'plain loop, slow game', "),
    ],
)
def test_a_mistake_is_one_line(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("setting,seed\nnone,1\n", encoding="utf-8")
    check_mistake(tables.main, flags.split(), says, monkeypatch, capsys)


@pytest.mark.parametrize("what", ["learning", "moa"])
def test_what_goes_on_to_learn_among_strangers(what, monkeypatch):
    """The policy, or the MOA; the other stays as it was."""
    agent = hop_ppo.make_agent("objects", SMALL, 2)
    vae = VAE(SMALL.height, SMALL.width, SMALL.horizon)
    before = {name: copy.deepcopy(part) for name, part in (("learning", agent), ("moa", vae))}

    def load(folder, **settings):
        args = hop_ppo.Args(om="belief", num_steps=7, num_minibatches=2, update_epochs=1, **settings)
        return agent, hop_ppo.Evaluator(args, SMALL, vae, None)

    monkeypatch.setattr(adaptation, "load", load)
    returns = adaptation.learn(adaptation.Args(boards=8, episodes=3), "run", "3NH", what)
    assert returns.shape == (3, 8) and returns.max() > 0
    for name, part in (("learning", agent), ("moa", vae)):
        pairs = zip(part.parameters(), before[name].parameters(), strict=True)
        assert all(torch.equal(new, old) for new, old in pairs) == (name != what), name


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--plan-fit -1", "error: --plan-fit: must be at least 0, got -1"),
        ("--episodes 2", "error: --episodes: must be at least 3, got 2"),
        ("--seeds", "error: --seeds: name one or more"),
        (
            "--responses x.csv",
            "error: --responses x.csv: expected a column 'name', found ['setting', 'seed']",
        ),
        ("--responses y.csv", "error: --responses y.csv: expected 10 episodes with 3NS"),
        ("--only beliefs", "error: vae_ckpts: no trained run there; "),
    ],
)
def test_a_mistake_of_adaptation_is_one_line(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("setting,seed\nnone,1\n", encoding="utf-8")
    names = "name,seed,team,episode,learner,learner_ci95,share,run\n"
    Path("y.csv").write_text(f"{names}response,1,3NS,1,1.0,0.1,1.0,x\n", encoding="utf-8")
    only = () if "--only" in flags else ("--only", "nothing", "strict")  # which need no network
    check_mistake(adaptation.main, [*flags.split(), *only], says, monkeypatch, capsys)


def test_best_responses_by_hand(monkeypatch):
    """Of the first seed, by PPO that knows who is in a team; shares are of what it earns, also those of a script."""
    asked = []
    earned = {"3NS": 4.0, "3NH": 2.0}

    def run(*flags):
        asked.append(tracking.parse_args(hop_ppo.Args, "", list(map(str, flags))))
        return f"run{len(asked)}"

    monkeypatch.setattr(adaptation, "run", run)
    monkeypatch.setattr(adaptation, "load", lambda folder: (None, folder))
    monkeypatch.setattr(
        adaptation, "meet", lambda args, folder, team, search: np.full((3, 4), earned[team] + search)
    )
    monkeypatch.setattr(adaptation, "script", lambda args, judge, team: np.full((3, 4), earned[team] / 2))
    best, rows = {}, []
    args = adaptation.Args(seeds=(5, 6), response_updates=7, gamma=0.9)
    adaptation.train_responses(args, ["3NS", "3NH"], best, rows)
    assert {(run.seed, run.om, run.total_timesteps, run.gamma) for run in asked} == {
        (5, "oracle", 7 * 1024 * 16, 0.9)
    }
    assert [run.co_players for run in asked] == ["3NS", "3NH"]
    assert {team: returns.mean() for team, returns in best.items()} == earned
    found = [(row["name"], row["seed"], row["team"], row["share"], row["run"]) for row in rows[::3]]
    assert found == [
        ("response", 5, "3NS", 1.0, "run1"),
        ("script_told", 5, "3NS", 0.5, ""),
        ("response", 5, "3NH", 1.0, "run2"),
        ("script_told", 5, "3NH", 0.5, ""),
    ]
    assert [row["episode"] for row in rows[:3]] == [1, 2, 3]


def test_best_responses_of_another_run_are_read(tmp_path):
    names = "name,seed,team,episode,learner,learner_ci95,share,run\n"
    rows = [f"{name},1,3NS,{i},{i}.5,0.1,1.0,x\n" for name in ("response", "nothing") for i in (2, 1, 3)]
    (tmp_path / "known.csv").write_text(names + "".join(rows), encoding="utf-8")
    best = {}
    args = adaptation.Args(responses=str(tmp_path / "known.csv"), episodes=3)
    known = adaptation.known_responses(args, ["3NS"], best)
    assert best["3NS"].tolist() == [[1.5], [2.5], [3.5]]
    assert [row["name"] for row in known] == ["response"] * 3
    for episodes in (2, 4):
        with pytest.raises(tracking.UsageError, match=f"expected {episodes} episodes with 3NS"):
            adaptation.known_responses(replace(args, episodes=episodes), ["3NS"], best)
