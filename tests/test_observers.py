"""The exact observers against posteriors and tables computed in plain loops, and the scores against hand computations."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from reference import distances

from data import DEFAULT_DATA, DataError, default_or_fresh, load
from data.collect import Args, collect
from data.datasets import load_samples
from data.trajectories import Trajectories, check, save_arrays
from envs import Rules
from metrics import observers, scores

SMALL = Rules(height=4, width=5, blocks=3, hares=3, horizon=12)
LAWS = {
    "the data's": Args(samples=900, rules=SMALL),
    "three strategies": Args(samples=900, strategies=("NH", "RANDOM", "NS"), rules=SMALL, seed=4),
    "epsilon 0": Args(samples=900, epsilon=0.0, rules=SMALL, seed=5),
    "one hunter": Args(samples=150, rules=replace(SMALL, hunters=1)),
    "unmasked": Args(samples=900, unmasked=0.3, rules=SMALL, seed=6),
}


@pytest.fixture(scope="module", params=LAWS)
def played(request):
    return collect(LAWS[request.param])


@pytest.fixture(scope="module")
def default_samples():
    return load_samples(default_or_fresh(DEFAULT_DATA))


@pytest.fixture(scope="module")
def shuffled(default_samples):
    """All samples of the default file in any order, and each observer's predictions for them."""
    order = np.random.default_rng(0).permutation(len(default_samples))
    return order, observers.predictions(default_samples, order, observers.training_table(default_samples))


def steps_of(t):
    """episode, tick, step: every step of a file."""
    step = 0
    for episode, length in enumerate(t.episode_lengths.tolist()):
        for tick in range(length):
            yield episode, tick, step
            step += 1


def brute_force_posterior(t):
    """Bayes' rule with plain products, one hunter of one episode at a time."""
    found = np.empty((*t.actions.shape, len(t.strategy_names)))
    for seat in range(t.actions.shape[1]):
        for _, tick, step in steps_of(t):
            if tick == 0:
                belief = [float(p) for p in t.metadata["priors"]]
            found[step, seat] = belief
            likelihood = [float(p) for p in t.policy_probs[step, seat, :, t.actions[step, seat]]]
            product = [b * p for b, p in zip(belief, likelihood, strict=True)]
            if sum(product) > 0:  # else no strategy would have played so: the belief stays
                belief = [p / sum(product) for p in product]
    return found


# ---- bayes


def test_posterior_is_bayes_rule(played):
    expected = brute_force_posterior(played)
    np.testing.assert_allclose(observers.posterior(played), expected, rtol=0, atol=1e-9)
    starts = np.cumsum(played.episode_lengths) - played.episode_lengths
    np.testing.assert_allclose(expected[starts], np.broadcast_to(played.priors, expected[starts].shape))
    assert expected.max() > 0.9, "and it does learn"
    mixed = np.zeros((*played.actions.shape, 7))
    for step, seat in np.ndindex(played.actions.shape):
        for s in range(len(played.strategy_names)):
            mixed[step, seat] += expected[step, seat, s] * played.policy_probs[step, seat, s]
    bayes = observers.bayes(played)
    assert bayes.dtype == np.float32 and bayes.shape == mixed.shape
    np.testing.assert_allclose(bayes, mixed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("law", ["the data's", "three strategies", "epsilon 0"])
def test_priors_of_the_file_are_used(law):
    t = collect(LAWS[law])
    priors = (
        [0.7, 0.1, 0.2] if law == "three strategies" else [0.0, 1.0] if law == "epsilon 0" else [0.2, 0.8]
    )
    t.metadata = t.metadata | {"priors": priors}
    np.testing.assert_allclose(observers.posterior(t), brute_force_posterior(t), rtol=0, atol=1e-9)
    np.testing.assert_allclose(observers.posterior(t)[0], [priors] * 4)


def test_actions_that_no_strategy_plays_keep_the_belief():
    """Epsilon 0 and actions changed at random: what is impossible under all strategies tells nothing."""
    t = collect(LAWS["epsilon 0"])
    rng = np.random.default_rng(0)
    t.actions = np.where(
        rng.random(t.actions.shape) < 0.4, rng.integers(0, 7, t.actions.shape), t.actions
    ).astype(np.int8)
    taken = np.take_along_axis(t.policy_probs, t.actions.astype(int)[..., None, None], 3)[..., 0]
    assert ((taken == 0).all(-1)).any(), "impossible under both"
    belief = observers.posterior(t)
    product = belief * taken
    assert ((product.sum(-1) == 0) & (taken > 0).any(-1)).any(), "impossible after what was seen before"
    assert np.isfinite(belief).all() and np.isfinite(observers.bayes(t)).all()
    np.testing.assert_allclose(belief.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(belief, brute_force_posterior(t), rtol=0, atol=1e-9)
    assert (belief == 0).any() and (belief == 1).any()


def test_bayes_by_hand():
    """One hunter, two strategies, three steps: 1/2; then 0.9 against 0.3; then an action that only the other plays."""
    t = by_hand()
    t.policy_probs[:, 0, 0] = [[0.9, 0.1, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]
    t.policy_probs[:, 0, 1] = [[0.3, 0.7, 0, 0, 0, 0, 0], [0.0, 0.5, 0, 0, 0.5, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    t.actions[:, 0] = [0, 4, 1]
    np.testing.assert_allclose(observers.posterior(t)[:, 0], [[0.5, 0.5], [0.75, 0.25], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(observers.bayes(t)[1, 0], [0.375, 0.5, 0, 0, 0.125, 0, 0], atol=1e-6)


def test_later_steps_change_no_prediction():
    t = collect(LAWS["the data's"])
    before = observers.bayes(t)
    later = t.tick >= 3
    t.actions = np.where(later[:, None], (t.actions + 1) % 7, t.actions).astype(np.int8)
    after = observers.bayes(t)
    assert np.array_equal(before[t.tick <= 3], after[t.tick <= 3]) and not np.array_equal(before, after)


def test_bayes_with_unmasked_actions_by_hand():
    """By hand: a corner of a 1x3 board, the stag two cells to the right. NS moves RIGHT, RANDOM stays or moves RIGHT."""
    rules = Rules(hunters=1, hares=0, blocks=0, height=1, width=3, horizon=2)
    strategies = ("NS", "RANDOM")
    t = collect(Args(samples=9000, epsilon=0.0, strategies=strategies, unmasked=0.35, seed=2, rules=rules))
    corner = (t.obs[t.obs_row, 0, 0, 0, 0] == 1) & (t.obs[t.obs_row, 0, 3, 0, 2] == 1) & (t.tick == 0)
    # Each of the seven is attempted with 0.05 more; UP, DOWN, LEFT and both hunts become STAY.
    np.testing.assert_allclose(
        t.policy_probs[corner, 0, 0], [[0, 0, 0, 0.7, 0.3, 0, 0]] * corner.sum(), atol=1e-6
    )
    np.testing.assert_allclose(
        t.policy_probs[corner, 0, 1], [[0, 0, 0, 0.375, 0.625, 0, 0]] * corner.sum(), atol=1e-6
    )
    law = [0, 0, 0, (0.7 + 0.375) / 2, (0.3 + 0.625) / 2, 0, 0]
    bayes = observers.bayes(t)
    np.testing.assert_allclose(bayes[corner, 0], [law] * corner.sum(), atol=1e-6)
    n = corner.sum()
    stayed = (t.actions[corner, 0] == 4).sum()
    assert n > 500 and abs(stayed - n * law[4]) < 4 * np.sqrt(n * law[4] * law[3])
    after = (
        np.flatnonzero(corner & (t.actions[:, 0] == 4)) + 1
    )  # it stayed: NS with probability 0.3 / (0.3 + 0.625)
    np.testing.assert_allclose(observers.posterior(t)[after, 0, 0], 0.3 / 0.925, atol=1e-6)
    assert np.array_equal(t.tick[after], np.ones(len(after)))
    taken = bayes[np.arange(len(bayes)), 0, t.actions[:, 0]]
    nll = -np.log(taken)
    entropy = -(bayes[:, 0] * np.log(np.maximum(bayes[:, 0], 1e-30))).sum(1)
    assert abs((nll - entropy).mean()) < 4 * (nll - entropy).std() / np.sqrt(len(nll)), "calibrated"


# ---- known


def test_known_is_the_hunters_own_strategy(played):
    known = observers.known(played)
    assert known.dtype == np.float32 and known.shape == (*played.actions.shape, 7)
    for episode, _, step in steps_of(played):
        for seat, s in enumerate(played.strategies[episode]):
            assert np.array_equal(known[step, seat], played.policy_probs[step, seat, s])


# ---- table


def by_hand() -> Trajectories:
    """1x5 board, one hunter, stag in column 2, hare in column 4, and three steps: columns 0, 1, 2; then it is gone."""
    obs = np.zeros((4, 1, 5, 1, 5), np.uint8)
    for row, column in enumerate((0, 1, 2)):
        obs[row, 0, 0, 0, column] = 1
    obs[:, 0, 3, 0, 2] = obs[:, 0, 4, 0, 4] = 1
    return check(
        {
            "obs": obs,
            "actions": np.array([[3], [3], [5]], np.int8),
            "rewards": np.zeros((3, 1), np.float32),
            "active": np.ones((3, 1), bool),
            "episode_lengths": np.array([3], np.int32),
            "terminated": np.array([True]),
            "strategies": np.zeros((1, 1), np.int8),
            "policy_probs": np.full((3, 1, 2, 7), 1 / 7, np.float32),
            "metadata": np.array(json.dumps({"strategies": ["NS", "NH"], "priors": [0.5, 0.5]})),
        }
    )


def test_table_by_hand():
    t = by_hand()
    assert observers.table_features(t)[:, 0].tolist() == [[2, 4, 0, 1], [1, 3, 1, 1], [0, 2, 2, 1]]
    counts = observers.count_table(t, np.array([0, 2]))
    assert (
        counts.sum() == 2 and counts[2, 4, 0, 1].tolist() == [1, 0] and counts[0, 2, 2, 1].tolist() == [1, 0]
    )
    t.policy_probs[:, :, 0], t.policy_probs[:, :, 1] = np.eye(7)[3], np.eye(7)[6]
    table = observers.table(t, counts)  # seen once as NS: (1 + 1/2) / 2; never seen: the prior
    np.testing.assert_allclose(table[:, 0, 3], [0.75, 0.5, 0.75], atol=1e-7)
    np.testing.assert_allclose(table[:, 0, 6], [0.25, 0.5, 0.25], atol=1e-7)
    t.obs[:, 0, 3] = 0  # no stag left; and a block between hunter and hare
    t.obs[0, 0, 2, 0, 3] = 1
    assert observers.table_features(t)[:, 0].tolist() == [[24, 24, 0, 1], [24, 3, 1, 1], [24, 2, 2, 1]]


def features_in_loops(t, step, seat, tick):
    """The distances of one hunter by breadth-first search in the slow reference."""
    own, _, blocks, stags, hares = t.obs[t.obs_row[step], seat]
    free = frozenset((int(r), int(c)) for r, c in np.argwhere(blocks == 0))
    here = tuple(int(x) for x in np.argwhere(own)[0])
    nearest = []
    for plane in (stags, hares):
        paths = [distances(free, (int(r), int(c))).get(here, 99) for r, c in np.argwhere(plane)]
        nearest.append(min(24, *paths, 99))
    return (*nearest, tick, int(t.active[step].sum()))


def test_table_counts_strategies_in_plain_loops(played):
    """Counted on two episodes of three, applied to all."""
    priors, count = played.priors, Counter()
    features = {}
    for episode, tick, step in steps_of(played):
        for seat in np.flatnonzero(played.active[step]):
            features[step, seat] = features_in_loops(played, step, seat, tick)
            if episode % 3:
                count[*features[step, seat], int(played.strategies[episode, seat])] += 1
    counts = observers.count_table(played, np.flatnonzero(played.episode % 3))
    assert counts.sum() == sum(count.values()) and all(counts[key] == n for key, n in count.items())
    assert len(set(features.values())) > 20
    table = observers.table(played, counts)
    assert table.dtype == np.float32 and np.isfinite(table).all()
    for (step, seat), key in features.items():
        belief = np.array([count[*key, s] + priors[s] for s in range(len(priors))])
        expected = (belief / belief.sum()) @ played.policy_probs[step, seat]
        np.testing.assert_allclose(table[step, seat], expected, rtol=0, atol=1e-6)


def test_a_table_reads_longer_episodes_and_refuses_other_games():
    """A tick beyond those counted is looked up as the last one; another number of hunters or strategies is refused."""
    short, long = collect(Args(samples=400, rules=replace(SMALL, horizon=4))), collect(LAWS["the data's"])
    table = observers.table(long, observers.count_table(short, np.arange(len(short.actions))))
    np.testing.assert_allclose(table.sum(-1), 1, atol=1e-6)
    counts = observers.count_table(short, np.arange(len(short.actions)))
    assert counts.shape == (25, 25, 4, 5, 2)
    longer = np.concatenate(
        [counts, *[counts[:, :, 3:]] * 20], 2
    )  # the last tick, also for the 20 that follow
    assert np.array_equal(table, observers.table(long, longer)) and long.tick.max() > 4
    for other in ("three strategies", "one hunter"):
        t = collect(LAWS[other])
        with pytest.raises(DataError, match=r"expected 4 hunters and 2 strategies, .* found \d and \d"):
            observers.table(t, observers.count_table(short, np.arange(5)))


# ---- all of them


def test_predictions_permute_with_seats(played):
    seats = played.actions.shape[1]
    order = np.roll(np.arange(seats), 1)
    other = replace(
        played,
        obs=played.obs[:, order],
        **{
            key: getattr(played, key)[:, order]
            for key in ("actions", "rewards", "active", "strategies", "policy_probs")
        },
    )
    steps = np.arange(0, len(played.actions), 2)
    counts = observers.count_table(played, steps)
    assert np.array_equal(observers.count_table(other, steps), counts)
    assert np.array_equal(observers.known(other), observers.known(played)[:, order])
    assert np.array_equal(observers.bayes(other), observers.bayes(played)[:, order])
    assert np.array_equal(observers.table(other, counts), observers.table(played, counts)[:, order])


def test_observers_need_policy_probs():
    t = replace(collect(LAWS["one hunter"]), policy_probs=None, path="mine.npz")
    for observer in (observers.known, observers.bayes, observers.posterior):
        with pytest.raises(DataError, match=r"^mine.npz: policy_probs: expected float32 \[N, A, S, 7\]"):
            observer(t)


def test_uniform_is_the_random_strategy(tmp_path):
    t = collect(LAWS["three strategies"])
    save_arrays(tmp_path / "x.npz", t.arrays())
    samples = load_samples(tmp_path / "x.npz")
    uniform = observers.predictions(samples, samples.splits["all"], None)["uniform"]
    np.testing.assert_allclose(uniform, t.policy_probs[t.active][:, 1], rtol=0, atol=1e-7)
    save_arrays(tmp_path / "y.npz", {k: v for k, v in t.arrays().items() if k != "policy_probs"})
    bare = load_samples(tmp_path / "y.npz")
    predicted = observers.predictions(bare, bare.splits["all"], None)
    assert observers.training_table(bare) is None and list(predicted) == ["uniform"]
    assert np.array_equal(predicted["uniform"], uniform)


def test_predictions_are_of_the_samples_in_index(default_samples, shuffled):
    """Any rows in any order, each with the prediction of its own step and seat; the table is of the training episodes."""
    s, t, (order, found) = default_samples, load(default_or_fresh(DEFAULT_DATA)), shuffled
    counts = observers.training_table(s)
    assert counts.sum() == len(s.splits["train"])
    assert np.array_equal(
        counts, observers.count_table(t, np.unique(np.nonzero(t.active)[0][s.splits["train"]]))
    )
    expected = {"known": observers.known(t), "bayes": observers.bayes(t), "table": observers.table(t, counts)}
    for name, probs in expected.items():
        assert np.array_equal(found[name], probs[t.active][order]), name
    assert list(found) == ["uniform", "table", "bayes", "known"]
    for probs in found.values():
        assert probs.shape == (len(s), 7) and probs.dtype == np.float32
        np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
        assert (probs[np.arange(len(s)), s.actions[order]] > 0).all(), (
            "epsilon 0.1: nothing taken was impossible"
        )


def test_observers_with_more_information_predict_better(default_samples, shuffled):
    """3,106 episodes. Known < bayes < table < uniform, on all and on the episodes that the table has not seen."""
    s, (order, found) = default_samples, shuffled
    nll = {name: scores.nll(probs, s.actions[order]) for name, probs in found.items()}
    unseen = ~np.isin(order, s.splits["train"])
    for rows in (slice(None), unseen):
        for better, worse in pairwise(["known", "bayes", "table", "uniform"]):
            gap = (nll[worse] - nll[better])[rows]
            assert gap.mean() > 3 * gap.std() / np.sqrt(len(gap)), (better, worse)
    p = found["bayes"].astype(np.float64)  # calibrated: its NLL is its entropy, within 5 standard errors
    gap = nll["bayes"] + (p * np.log(np.maximum(p, 1e-30))).sum(1)
    assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(len(gap))
    assert scores.kl(p, found["table"]).mean() > 0.01


# ---- scores

ROWS = np.array(
    [
        [0.5, 0.2, 0.1, 0.1, 0.1, 0.0, 0.0],
        [0.3, 0.3, 0.3, 0.1, 0.0, 0.0, 0.0],
        [1 / 7] * 7,
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.75],
    ]
)


@pytest.mark.parametrize(
    ("row", "target", "top1", "top2", "top3"),
    [
        (0, 0, 1, 1, 1),
        (0, 1, 0, 1, 1),
        (0, 2, 0, 0, 1 / 3),  # three share the third place
        (0, 5, 0, 0, 0),
        (1, 0, 1 / 3, 2 / 3, 1),  # three share the first
        (1, 3, 0, 0, 0),
        (2, 4, 1 / 7, 2 / 7, 3 / 7),
        (3, 6, 1, 1, 1),
        (3, 5, 0, 1, 1),
        (3, 0, 0, 0, 1 / 5),  # five share places 3 to 7, with nothing
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_topk_shares_ties_equally(row, target, top1, top2, top3, dtype):
    for k, expected in ((1, top1), (2, top2), (3, top3), (7, 1)):
        credit = scores.topk_credit(ROWS[[row]].astype(dtype), np.array([target]), k)
        np.testing.assert_allclose(credit, [expected], atol=1e-12)


def test_topk_credits_of_all_actions_sum_to_k():
    rng = np.random.default_rng(0)
    probs = rng.integers(0, 4, (300, 7)) + 1.0
    probs /= probs.sum(1, keepdims=True)
    for k in range(1, 8):
        total = sum(scores.topk_credit(probs, np.full(300, a), k) for a in range(7))
        np.testing.assert_allclose(total, k, atol=1e-9)


def test_rounding_does_not_break_ties():
    """1/3 by two ways of computing it, as float32: still a tie."""
    probs = np.array([[1 / 3, np.float32(1) - np.float32(2 / 3), 0.33333331, 0, 0, 0, 0]], np.float32)
    assert len(set(probs[0, :3].tolist())) > 1
    np.testing.assert_allclose(scores.topk_credit(probs, np.array([2]), 1), [1 / 3])


def test_nll_brier_by_hand():
    targets = np.array([1, 0, 3, 5])
    np.testing.assert_allclose(scores.nll(ROWS, targets), -np.log([0.2, 0.3, 1 / 7, 0.25]), rtol=1e-12)
    np.testing.assert_allclose(scores.nll(ROWS, np.array([5, 6, 0, 0]))[[0, 1, 3]], [-np.log(1e-12)] * 3)
    brier = [
        0.5**2 + 0.8**2 + 3 * 0.1**2,
        0.7**2 + 2 * 0.3**2 + 0.1**2,
        (6 / 7) ** 2 + 6 / 49,
        0.75**2 + 0.75**2,
    ]
    found = scores.score(ROWS, targets)
    assert set(found) == {"top1", "top3", "nll", "brier", "ece"} and all(
        type(value) is float for value in found.values()
    )
    assert found["brier"] == pytest.approx(np.mean(brier)) and found["nll"] == pytest.approx(
        scores.nll(ROWS, targets).mean()
    )
    assert found["top1"] == pytest.approx((0 + 1 / 3 + 1 / 7 + 0) / 4)
    assert found["top3"] == pytest.approx((1 + 1 + 3 / 7 + 1) / 4)
    assert found["ece"] == pytest.approx(scores.ece(ROWS, targets))


def test_ece_by_hand():
    """Ten bins. Confidences 0.95 (right), 0.92 (right), 0.55 (right), 1.0 (wrong, in the last bin)."""
    probs = np.zeros((4, 7))
    for row, confidence in enumerate((0.95, 0.92, 0.55, 1.0)):
        probs[row, 2], probs[row, 5] = confidence, 1 - confidence
    targets = np.array([2, 2, 2, 5])
    last = abs(2 - (0.95 + 0.92 + 1.0))  # bin 0.9 to 1: two of three right
    assert scores.ece(probs, targets, bins=10) == pytest.approx((last + abs(1 - 0.55)) / 4)
    assert scores.ece(np.eye(7)[targets], targets) == 0
    assert scores.ece(ROWS[[2]], np.array([0])) == pytest.approx(
        0
    )  # uniform: right one time in seven, and says so


def test_recall_by_hand():
    probs = np.eye(7)[[0, 0, 1, 4]]
    found = scores.recall(probs, np.array([0, 1, 1, 5]))
    np.testing.assert_array_equal(found, [1, 0.5, np.nan, np.nan, np.nan, 0, np.nan])


def test_kl_by_hand():
    p, q = np.array([[0.5, 0.5, 0, 0, 0, 0, 0]]), np.array([[0.25, 0.75, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(scores.kl(p, q), [0.5 * np.log(2) + 0.5 * np.log(2 / 3)], rtol=1e-12)
    np.testing.assert_allclose(scores.kl(ROWS, ROWS), 0, atol=1e-15)
    np.testing.assert_allclose(scores.kl(np.eye(7)[[0]], np.eye(7)[[1]]), [-np.log(1e-12)])
    assert (
        scores.kl(q, p)[0] != scores.kl(p, q)[0]
        and scores.kl(ROWS.astype(np.float32), ROWS).dtype == np.float64
    )
