"""The layouts of an observation: what stands where, and the way back."""

import numpy as np
import pytest

from envs import Rules, StagHunt, hop_to_joint, joint_to_hop, joint_to_planes, planes_to_joint

SEATS = (1, 2, 3, 4, 6)


def play_some(hunters, boards=200):
    """Five planes of boards in play: some hunters share cells, some have left. uint8 [B, A, 5, H, W]."""
    env = StagHunt(boards, Rules(hunters=hunters, height=4, width=5, hares=5, blocks=2, prey_moves=0.5))
    env.reset(seed=hunters)
    rng = np.random.default_rng(hunters)
    for _ in range(12):
        env.step(rng.integers(0, 7, (boards, hunters)))
    assert not env.active.all() and (hunters == 1 or (env.obs[:, :, 0] & env.obs[:, :, 1]).any())
    return env.obs


@pytest.mark.parametrize("hunters", SEATS)
def test_planes_to_joint_and_back(hunters):
    obs = play_some(hunters)
    joint = planes_to_joint(obs)
    assert joint.shape == (200, hunters + 3, 4, 5) and joint.dtype == np.uint8
    for seat in range(hunters):
        assert np.array_equal(joint[:, seat], obs[:, seat, 0])
    assert np.array_equal(joint[:, hunters:], obs[:, 0, 2:])
    assert np.array_equal(joint_to_planes(joint), obs) and joint_to_planes(joint).dtype == np.uint8


@pytest.mark.parametrize("hunters", SEATS)
def test_joint_to_hop_and_back_for_every_observer(hunters):
    joint = planes_to_joint(play_some(hunters))
    for observer in range(hunters):
        hop = joint_to_hop(joint, observer)
        assert hop.shape == (200, 4, 5, hunters + 3) and hop.dtype == np.uint8
        for plane in range(hunters):
            assert np.array_equal(hop[..., plane], joint[:, (observer + plane) % hunters])
        for plane in range(hunters, hunters + 3):
            assert np.array_equal(hop[..., plane], joint[:, plane])
        assert np.array_equal(hop_to_joint(hop, observer), joint)


@pytest.mark.parametrize("shape", [(200,), (5, 6), ()])
def test_an_observer_for_each_row(shape):
    """Any leading axes; rows with their own observer equal rows converted one by one."""
    joint = planes_to_joint(play_some(4))[: int(np.prod(shape))].reshape(*shape, 7, 4, 5)
    observer = np.random.default_rng(0).integers(0, 4, shape)
    hop = joint_to_hop(joint, observer)
    for row in np.ndindex(shape):
        assert np.array_equal(hop[row], joint_to_hop(joint[row], int(observer[row])))
    assert np.array_equal(hop_to_joint(hop, observer), joint)
    assert np.array_equal(joint_to_planes(joint)[..., 0, :, :], joint[..., :4, :, :])
    assert np.array_equal(planes_to_joint(joint_to_planes(joint)), joint)


def test_by_hand():
    """Three hunters on a board of 1x3: seats 0 and 2 in the first cell, seat 1 has left; block, stag, hare."""
    joint = np.array([[[1, 0, 0]], [[0, 0, 0]], [[1, 0, 0]], [[0, 1, 0]], [[1, 0, 0]], [[0, 0, 1]]], np.uint8)
    board = [[[0, 1, 0]], [[1, 0, 0]], [[0, 0, 1]]]
    assert joint_to_planes(joint).tolist() == [
        [[[1, 0, 0]], [[1, 0, 0]], *board],
        [[[0, 0, 0]], [[1, 0, 0]], *board],
        [[[1, 0, 0]], [[1, 0, 0]], *board],
    ]
    # cells of one row; in each the planes: observer, next seat, the seat after it, block, stag, hare
    assert joint_to_hop(joint, 0).tolist() == [[[1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]]
    assert joint_to_hop(joint, 1).tolist() == [[[0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]]
    assert joint_to_hop(joint, 2).tolist() == [[[1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]]


def test_the_rotation_of_numbered_planes_by_hand():
    """Planes filled with their own number, so that a rotation the wrong way round cannot pass."""
    joint = np.broadcast_to(np.arange(7.0)[:, None, None], (7, 2, 2))
    assert joint_to_hop(joint, 1)[0, 0].tolist() == [1, 2, 3, 0, 4, 5, 6]
    assert joint_to_hop(joint, 3)[1, 1].tolist() == [3, 0, 1, 2, 4, 5, 6]
    hop = np.broadcast_to(np.arange(7.0), (2, 2, 7))
    assert hop_to_joint(hop, 1)[:, 0, 0].tolist() == [3, 0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("planes", [2, 3])
def test_too_few_planes(planes):
    with pytest.raises(ValueError, match=f"at least one hunter plane and 3 more, got {planes} planes"):
        joint_to_hop(np.zeros((planes, 4, 4)), 0)
    with pytest.raises(ValueError, match="at least one hunter plane"):
        hop_to_joint(np.zeros((4, 4, planes)), 0)
