"""`--moa-update`: what the MOA learns from while it plays, whose actions, whose goals, and who uses what it has learnt."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import run_script

import hop_ppo
import metrics.comparison
import pretrain_vae
import tracking
from data.collect import Args as CollectArgs
from data.collect import collect
from data.trajectories import save_arrays
from envs import Rules
from hop_ppo import Args, Collector, MOALearner, make_envs, new_vae, rollout
from metrics.rivals import uniform_policy
from tracking import fit

SMALL = Rules(height=5, width=5, blocks=3, hares=3, horizon=14)
SMALL_FLAGS = ("--env-args", "height=5", "width=5", "blocks=3", "hares=3", "horizon=14")


class Uniform(hop_ppo.ActorCritic):
    """Random play."""

    def forward(self, obs, opponent_info):
        return uniform_policy(obs)[0], torch.zeros(len(obs.action_mask))


def start(team: str, boards: int = 32, om: str = "none") -> tuple[Collector, MOALearner, Args]:
    torch.manual_seed(0)
    args = Args(om=om, num_steps=16)
    vae = new_vae(args, SMALL)
    collector = Collector(make_envs(SMALL, boards, team), args, vae, seed=1)
    return collector, MOALearner(vae, collector, seed=1), args


def play(collector: Collector, args: Args) -> None:
    rollout(Uniform(), collector, args, torch.zeros(3))


def weights(learner: MOALearner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in learner.vae.parameters()])


@pytest.mark.parametrize("team", ["mixed", "self"])
def test_it_learns_from_the_co_players_and_in_self_play_from_all(team):
    collector, learner, args = start(team)
    play(collector, args)
    recorded, learners = learner.recorder.trajectories(512)
    active = recorded.active.copy()
    if team == "mixed":
        assert set(learners) == {0, 1, 2, 3}
        active[np.arange(len(active)), learners[recorded.episode]] = False
    samples, _ = learner.samples(512)
    assert len(samples) == active.sum() < recorded.active.sum() + (team == "self")
    step, seat = np.nonzero(active)
    assert (samples.actions == recorded.actions[step, seat]).all()
    figures = learner.update(1.0, [collector])
    assert learner.action_counts.tolist() == np.bincount(samples.actions, minlength=7).tolist()
    assert {"moa_update_top1", "moa_update_top3", "moa_update_nll", "moa_update_loss"} <= figures.keys()
    before = weights(learner)
    assert learner.update(1.0, [collector]) == {} and (weights(learner) == before).all(), "nothing is new"
    play(collector, args)
    learner.update(1.0, [collector])
    total = len(learner.samples(512)[0])
    assert learner.recorder.count < 512 and int(learner.action_counts.sum()) == total, "each sample once"


def test_strategies_of_the_environment_are_not_read(monkeypatch):
    """Learning is the same if the environment calls all co-players NH; predictions are then judged otherwise."""
    found = []
    for named in (True, False):
        collector, learner, args = start("mixed")
        step = collector.envs.step
        if not named:
            monkeypatch.setattr(
                collector.envs, "step", lambda actions, step=step: without_names(step(actions))
            )
        play(collector, args)
        learner.update(1.0, [collector])
        found.append(weights(learner))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def without_names(result: tuple) -> tuple:
    *others, infos = result
    return *others, infos | {"strategy_ids": np.ones_like(infos["strategy_ids"])}


def test_goals_are_what_was_captured_and_who_took_nothing_teaches_no_goal_head():
    """All hunters stay: the goals' own parameters have no gradient. Random play: some took hares."""
    collector, learner, args = start("self")
    stay = torch.full((len(collector.infos["seat"]),), pretrain_vae.STAY)
    for _ in range(SMALL.horizon):
        infos = hop_ppo.to_tensors(collector.envs.step(stay.numpy())[-1])
        learner.recorder.update(infos, torch.zeros(len(stay), dtype=torch.bool))
    learner.recorder.finish()
    learner.update(1.0, [])
    gradient = learner.vae.moa.code.grad
    assert (gradient[-2:] == 0).all() and (gradient[:-2] != 0).any()
    assert learner.goals_trained == 0
    assert learner.action_counts[pretrain_vae.STAY] == learner.action_counts.sum()

    collector, learner, args = start("self")
    for _ in range(3):
        play(collector, args)
    learner.update(1.0, [collector])
    _, batches = learner.samples(512)
    counts = batches.goals[batches.goals >= 0].bincount(minlength=2)
    assert learner.goal_counts.tolist() == counts.tolist() and counts[1] > 0
    assert learner.goals_trained == (counts.sum() if counts.min() > 0 else 0)


@pytest.mark.parametrize("om", ["belief", "latent"])
def test_predictions_use_the_new_weights_at_once(om):
    collector, learner, args = start("mixed", om=om)
    play(collector, args)
    learner.update(1.0, [collector])
    collector.opponents.features()
    fresh = hop_ppo.make_opponents(args, collector.envs, collector.infos, learner.vae)
    if om == "latent":
        fresh.tracker.load_state_dict(collector.opponents.tracker.state_dict())
    fresh.features()
    torch.testing.assert_close(collector.opponents.probs, fresh.probs)


def test_it_learns_to_predict_and_to_tell_goals_apart():
    """Among stag and hare hunters, from its first weights: uniform play over legal actions has 1.5 nats."""
    collector, learner, args = start("mixed", boards=64)
    nll = []
    for now in range(7):
        play(collector, args)
        figures = learner.update(1 - now / 7, [collector])
        nll.append(figures["moa_update_nll"])
    assert nll[0] > 1.2 and nll[-1] < 0.75, nll
    assert figures["moa_update_goal_nll"] < nll[-1], "a hunter's goal says more than its history"
    assert figures["moa_update_top1"] > 0.7 and figures["moa_update_top3"] > 0.9
    assert learner.vae.belief_law == (0.0, 0.0)
    learner.choose_law()
    assert learner.vae.belief_law.none > 0
    belief = hop_ppo.make_opponents(replace(args, om="belief"), collector.envs, collector.infos, learner.vae)
    learner.vae.belief_law = pretrain_vae.BeliefLaw(none=0.25, hazard=0.1)
    belief.reset(torch.ones(64, dtype=torch.bool), collector.infos | {"new_team": torch.ones(64).bool()})
    torch.testing.assert_close(belief.log_belief[0, 0].exp(), torch.tensor([0.375, 0.375, 0.25]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("recorder"), "moa.recorder: expected a value"),
        (lambda state: state["numbers"]["law"].fill_(1.5), "moa.numbers.law: expected two probabilities"),
        (lambda state: state["model"]["moa.code"].fill_(torch.nan), "moa.model.moa.code: expected finite"),
        (lambda state: state["optimizer"].pop("state"), "optimizer.state: expected a value"),
        (
            lambda state: state["recorder"]["kept.cells"].fill_(99),
            "kept.cells: expected numbers from 0 to 25",
        ),
    ],
)
def test_a_state_that_is_none_is_refused(change, message):
    _, learner, _ = start("mixed", boards=2)
    state = learner.state_dict()
    state |= dict(model={key: value.clone() for key, value in state["model"].items()})
    change(state)
    with pytest.raises(ValueError, match=message):
        learner.load_state_dict(state)


def test_one_process_alone():
    world = tracking.World(0, 2, torch.device("cpu"))
    with pytest.raises(tracking.UsageError, match="--moa-update: runs in one process"):
        fit.check_shares(Args(moa_update="empty"), world)


def test_a_run_is_judged_with_its_own_moa_unless_another_is_named():
    saved = dict(args=dict(vae="first"))
    args = Args(moa_update="pretrained", vae="first")
    own = hop_ppo.with_own_moa(args, "runs/x", saved)
    assert (own.vae, own.moa_update) == ("runs/x/moa", "off")
    other = hop_ppo.with_own_moa(replace(args, vae="other"), "runs/x", saved)
    assert (other.vae, other.moa_update) == ("other", "off")
    fixed = replace(args, moa_update="off")
    assert hop_ppo.with_own_moa(fixed, "runs/x", saved) == fixed


@pytest.mark.slow
def test_a_run_leaves_a_vae_that_all_can_read(tmp_path, monkeypatch, capsys):
    """`--evaluate` of the run uses it; `pretrain_vae.py --evaluate` judges it; the next run goes on from it."""
    monkeypatch.chdir(tmp_path)
    adapt = hop_ppo.adapt
    monkeypatch.setattr(hop_ppo, "standard_teams", lambda *args: ["mixed"])
    monkeypatch.setattr(hop_ppo, "adapt", lambda *args: adapt(*args, episodes=2))
    monkeypatch.setattr(hop_ppo.figures, "save", lambda *args: None)
    monkeypatch.setattr(hop_ppo.Evaluator, "film", lambda *args: None)
    monkeypatch.setattr(metrics.comparison, "best_switch", lambda *args: None)
    tiny = (
        "--num-envs",
        32,
        "--total-timesteps",
        1024,
        "--eval-every",
        2,
        "--eval-boards",
        4,
        "--plan-boards",
        2,
    )
    flags = (*tiny, *SMALL_FLAGS, "--om", "belief")
    assert run_script(monkeypatch, hop_ppo, *flags, "--moa-update", "empty") == 0
    (run,) = (tmp_path / "ppo_ckpts").iterdir()
    progress = (run / "progress.csv").read_text().splitlines()
    assert "moa_update_nll" in progress[0]
    judged = json.loads((run / "metrics.json").read_text())
    capsys.readouterr()
    assert run_script(monkeypatch, hop_ppo, "--evaluate", run) == 0
    assert f"[MOA] {(run / 'moa').as_posix()}:" in capsys.readouterr().out
    again = json.loads((run / "evaluate.json").read_text())
    assert again["teams"] == judged["teams"] and again["adaptation"] == judged["adaptation"]

    save_arrays(tmp_path / "x.npz", collect(CollectArgs(samples=500, rules=SMALL)).arrays())
    assert run_script(monkeypatch, pretrain_vae, "--evaluate", run / "moa", "--data", "x.npz") == 0
    assert "told the goal" in capsys.readouterr().out

    before, _ = pretrain_vae.load_vae(run / "moa")
    assert run_script(monkeypatch, hop_ppo, *flags, "--moa-update", "pretrained", "--vae", run / "moa") == 0
    (second,) = set((tmp_path / "ppo_ckpts").iterdir()) - {run}
    after, _ = pretrain_vae.load_vae(second / "moa")
    change = (after.moa.code - before.moa.code).abs().max()
    assert 0 < change < 0.3


# ---- films of strangers


def test_films_of_strangers_show_the_same_board_with_more_known(tmp_path, monkeypatch):
    """The belief about three hare hunters is carried over from four episodes; who sits where, and on which board, stays."""
    films = {}
    monkeypatch.setattr(
        hop_ppo.figures,
        "play_film",
        lambda frames, game, shows_belief, path: films.update({path.name: frames}),
    )
    args = Args(om="belief", team_episodes=1)
    vae = new_vae(args, SMALL)
    evaluator = hop_ppo.Evaluator(args, SMALL, vae, None)
    agent = hop_ppo.make_agent("objects", SMALL, 2)
    before = torch.get_rng_state()
    evaluator.film_strangers(agent, tmp_path / "x.gif")
    assert films.keys() == {"x_strangers1.gif", "x_strangers5.gif"}
    first, last = films["x_strangers1.gif"], films["x_strangers5.gif"]
    np.testing.assert_array_equal(first[0]["joint"], last[0]["joint"])
    assert (first[0]["learner"], first[0]["strategy_ids"]) == (last[0]["learner"], last[0]["strategy_ids"])
    assert sorted(first[0]["strategy_ids"]) == [-1, 1, 1, 1] and first[0]["tick"] == last[0]["tick"] == 0
    others = [seat for seat in range(4) if seat != first[0]["learner"]]
    assert [first[0]["belief"][seat] for seat in others] == [0.5] * 3
    assert all(last[0]["belief"][seat] != 0.5 for seat in others)
    assert len(first) > 1 and len(last) > 1 and first[-1]["tick"] == len(first) - 1
    assert (torch.get_rng_state() == before).all()
