"""The layouts of an observation, each converted into the others.

- *planes*, `[..., A, 5, H, W]`: for each hunter SELF, OTHERS, BLOCKS, STAGS, HARES.
- *joint*, `[..., A+3, H, W]`: the SELF plane of each seat in seat order, then BLOCKS, STAGS, HARES.
- *HOP*, `[..., H, W, A+3]`: channels last, observer first: plane k is seat (observer + k) mod A, then BLOCKS,
  STAGS, HARES. Joint ACTIONS are in seat order; these planes are not.
"""

from __future__ import annotations

import numpy as np


def planes_to_joint(obs: np.ndarray) -> np.ndarray:
    """[..., A, 5, H, W] -> [..., A+3, H, W], same dtype."""
    return np.concatenate([obs[..., :, 0, :, :], obs[..., 0, 2:, :, :]], axis=-3)


def joint_to_planes(joint: np.ndarray) -> np.ndarray:
    """[..., A+3, H, W] -> [..., A, 5, H, W], same dtype."""
    hunters, rest = joint[..., :-3, :, :], joint[..., -3:, :, :]
    seats = hunters.shape[-3]
    if seats > 1:
        others = np.stack([np.delete(hunters, seat, axis=-3).max(axis=-3) for seat in range(seats)], axis=-3)
    else:
        others = np.zeros_like(hunters)
    board = np.broadcast_to(rest[..., None, :, :, :], (*hunters.shape[:-2], *rest.shape[-3:]))
    return np.concatenate([hunters[..., None, :, :], others[..., None, :, :], board], axis=-3)


def joint_to_hop(joint: np.ndarray, observer: int | np.ndarray) -> np.ndarray:
    """[..., A+3, H, W] -> [..., H, W, A+3] as seat `observer` (an int, or an int array of shape [...]) sees it."""
    return np.moveaxis(_rotate(joint, np.asarray(observer)), -3, -1)


def hop_to_joint(hop: np.ndarray, observer: int | np.ndarray) -> np.ndarray:
    """[..., H, W, A+3] seen by seat `observer` -> [..., A+3, H, W] in seat order."""
    return _rotate(np.moveaxis(hop, -1, -3), -np.asarray(observer))


def _rotate(joint: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Plane k becomes plane (k + by) mod A; the last three planes stay."""
    seats = joint.shape[-3] - 3
    if seats < 1:
        raise ValueError(f"expected at least one hunter plane and three more, got {joint.shape[-3]} planes")
    by = np.broadcast_to(by, joint.shape[:-3])[..., None]
    order = np.concatenate(
        [(np.arange(seats) + by) % seats, np.broadcast_to(np.arange(seats, seats + 3), (*by.shape[:-1], 3))],
        -1,
    )
    return np.take_along_axis(joint, order[..., None, None], axis=-3)
