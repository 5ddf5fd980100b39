"""Pictures and texts of boards."""

import struct
import zlib

import numpy as np
import pytest

from envs import GAMES, Rules, StagHunt, make_core, snowdrift
from envs.render import (
    HUNTER_COLOURS,
    INK,
    PAPER,
    SPRITES,
    THING_COLOURS,
    draw,
    draw_planes,
    icon,
    main,
    margin,
    places,
    png,
    text,
)
from envs.stag_hunt import STAY, UP

RULES = Rules(height=3, width=4, hunters=3, stags=1, hares=2, blocks=2)


def board(hunters=(0, 0, 7), prey=(0, 5, 11), blocks=(1, 6), tick=4, rules=RULES):
    """One board with things on these cells."""
    env = StagHunt(1, rules)
    env.reset(seed=0)
    state = env.state
    state.blocks[:] = np.isin(np.arange(rules.cells), blocks)
    state.hunters[0], state.prey[0], state.tick[0], state.ended[0] = hunters, prey, tick, False
    env.set_state(state)
    return env


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def pixels(image, colour):
    return int((np.abs(image.astype(int) - rgb(colour)).max(-1) < 12).sum())


@pytest.mark.parametrize("cell", [8, 24, 64, 97])
def test_the_picture_has_the_right_size_and_a_light_background(cell):
    env = board()
    image = draw(env.state, RULES, cell=cell)
    assert (
        image.shape == (3 * cell + 2 * margin(cell), 4 * cell + 2 * margin(cell), 3)
        and image.dtype == np.uint8
    )
    assert image[0, 0].tolist() == [255, 255, 255]
    middle = margin(cell) + cell // 2
    assert image[middle + cell, middle].min() > 240  # the free cell 4
    assert image[middle, middle + cell].max() < 110  # the block on cell 1


def test_the_picture_changes_with_the_state_and_only_there():
    env = board()
    before = draw(env.state, RULES)
    np.testing.assert_array_equal(before, draw(env.state, RULES))
    env.step(np.array([[STAY, STAY, UP]]))  # seat 2 from cell 7 to cell 3
    changed = (draw(env.state, RULES) != before).any(-1)
    assert changed.any()
    edge = margin(64)
    changed[edge : edge + 128, edge + 192 : edge + 256] = False  # cells 3 and 7
    assert not changed.any()


def test_each_thing_looks_its_own_way():
    def cell_zero(**things):
        env = board(**{"hunters": (11, 11, 11), "prey": (10, 9, 8), **things})
        return draw(env.state, RULES)[margin(64) :, margin(64) :][:64, :64]

    looks = [cell_zero(), cell_zero(prey=(0, 9, 8)), cell_zero(prey=(10, 0, 8)), cell_zero(blocks=(0,)),
             cell_zero(hunters=(0, 11, 11)), cell_zero(hunters=(11, 0, 11)), cell_zero(hunters=(0, 0, 11)),
             cell_zero(hunters=(0, 11, 11), prey=(0, 9, 8))]  # fmt: skip
    for i, a in enumerate(looks):
        for b in looks[:i]:
            assert (np.abs(a.astype(int) - b).max(-1) > 30).sum() > 150
    np.testing.assert_array_equal(cell_zero(prey=(10, 0, 8)), cell_zero(prey=(10, 9, 0)))  # hares are alike


def test_prey_is_symmetric():
    """An odd cell, a stag in its middle: the head must be its own mirror image."""
    env = board(hunters=(-1, -1, -1), prey=(0, 5, -1), blocks=())
    image = draw(env.state, RULES, cell=65)[margin(65) :, margin(65) :].astype(int)
    for row, col in ((0, 0), (1, 1)):
        cell = image[65 * row + 2 : 65 * row + 64, 65 * col + 2 : 65 * col + 63]
        assert (cell < 200).any() and np.abs(cell - cell[:, ::-1]).max() <= 1


@pytest.mark.parametrize("prey_there", [True, False])
@pytest.mark.parametrize("crowd", [1, 2, 3, 4, 5, 8])
def test_all_that_share_a_cell_can_be_seen(crowd, prey_there):
    rules = Rules(height=3, width=4, hunters=crowd, stags=1, hares=0, blocks=0)
    env = board(hunters=[0] * crowd, prey=[0 if prey_there else 3], blocks=(), rules=rules)
    image = draw(env.state, rules, cell=96)
    assert all(pixels(image, HUNTER_COLOURS[seat]) > 60 for seat in range(crowd))
    prey, hunters = places(env.state, rules, cell=96)
    spots = np.array([*hunters.values(), *(prey.values() if prey_there else ())])
    low, high = margin(96), margin(96) + 96
    for i, (x, y, radius) in enumerate(spots):
        assert low <= x - radius and x + radius <= high and low <= y - radius and y + radius <= high
        for a, b, other in spots[:i][: len(hunters)]:
            assert np.hypot(x - a, y - b) >= 0.85 * (radius + other)  # a prey is slimmer than its circle


def test_the_ring_marks_one_seat():
    env = board(hunters=(4, 3, 7))
    plain, ringed = draw(env.state, RULES), draw(env.state, RULES, ring=1)
    changed = np.argwhere((plain != ringed).any(-1))
    x, y, radius = places(env.state, RULES)[1][1]
    distance = np.hypot(changed[:, 1] + 0.5 - x, changed[:, 0] + 0.5 - y)
    assert pixels(ringed, INK) > 100 > pixels(plain, INK)
    assert len(changed) > 50 and distance.max() < 1.4 * radius and distance.min() > 0.95 * radius


def test_the_ring_lies_on_top_of_a_crowd():
    state = board(hunters=(4, 4, 4), prey=(-1, -1, -1)).state
    inked = [pixels(draw(state, RULES, ring=seat), INK) for seat in range(3)]
    assert min(inked) > 0.9 * max(inked)


def test_those_who_left_are_not_drawn():
    env = board(hunters=(-1, -1, -1), prey=(-1, -1, -1))
    assert not any(pixels(draw(env.state, RULES), colour) for colour in HUNTER_COLOURS[:3])
    assert places(env.state, RULES) == ({}, {})


def test_any_board_of_a_batch_can_be_drawn():
    env = StagHunt(3)
    env.reset(seed=1)
    one = StagHunt(1)
    one.set_state(env.state[np.array([2])])
    np.testing.assert_array_equal(draw(env.state, env.rules, board=2), draw(one.state, one.rules))
    assert text(env.state, env.rules, board=2) == text(one.state, one.rules)


def test_the_text_of_a_board():
    env = board()
    assert text(env.state, RULES) == "\n".join([
        "S01 #   .   .",
        ".   H   #   2",
        ".   .   .   H",
        "tick 4/35  S stag  H hare  # block  0-2 hunters",
    ])  # fmt: skip
    env = board(hunters=(0, -1, 7), prey=(-1, 5, 11))
    assert text(env.state, RULES, ring=2) == "\n".join([
        "0  #  .  .",
        ".  H  #  2*",
        ".  .  .  H",
        "tick 4/35  S stag  H hare  # block  0-2 hunters  * seat 2  left: 1",
    ])  # fmt: skip


def test_the_snowdrift_is_drawn_and_written():
    rules = snowdrift.Rules(height=3, width=4, agents=3, drifts=3, blocks=2)
    env = make_core(1, rules)
    env.reset(seed=0)
    state = env.state
    state.blocks[:] = np.isin(np.arange(rules.cells), (1, 6))
    state.hunters[0], state.prey[0], state.tick[0] = (0, 0, 7), (0, 5, -1), 4
    env.set_state(state)
    assert text(env.state, rules, ring=2) == "\n".join([
        "D01 #   .   .",
        ".   D   #   2*",
        ".   .   .   .",
        "tick 4/50  D drift  # block  0-2 hunters  * seat 2",
    ])  # fmt: skip
    image = draw(env.state, rules)
    edge = margin(64)
    drift = THING_COLOURS["DRIFTS"]
    shows_drift = pixels(image[edge + 64 : edge + 128, edge + 64 : edge + 128], drift)
    assert shows_drift > 200 and pixels(image[edge + 128 :], drift) < 20
    assert pixels(draw(env.state, rules, ring=2), INK) > 100 > pixels(image, INK)
    assert all(pixels(image, colour) > 60 for colour in HUNTER_COLOURS[:3])


def test_each_kind_of_prey_of_each_game_has_a_sprite():
    for rules in GAMES.values():
        assert set(rules.game.prey) <= set(SPRITES)


# ---- colours, as they are seen

VISION = {  # Machado et al. (2009), severity 1: on linear RGB
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}  # fmt: skip
RGB_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175],
                       [0.0193339, 0.119192, 0.9503041]])  # fmt: skip


def lab_of(colours, vision):
    """CIELAB [n, 3] (D65) of sRGB [n, 3] in [0, 1]."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISION[vision]), 0, 1)
    x = seen @ RGB_TO_XYZ.T / RGB_TO_XYZ.sum(1)
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    differences = 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])
    return np.stack([116 * f[:, 1] - 16, *differences], 1)


def ciede2000(one, other):
    """Sharma, Wu & Dalal (2005). one, other: CIELAB."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25**7))
    c1, c2 = np.hypot(a1 * g, b1), np.hypot(a2 * g, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a * g)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    hue = (h1 + turn / 2) % 360
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    waves = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    t = 1 + sum(weight * np.cos(np.radians(k * hue + phase)) for weight, k, phase in waves)
    dl = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = dh / (1 + 0.015 * chroma * t)
    bend = np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    return np.sqrt(dl**2 + dc**2 + dh**2 - 2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * bend * dc * dh)


def main_colour(planes, prey):
    """The colour that covers most of the only cell, beside the floor; float [3]. Of an empty one, the floor's."""
    image = draw_planes(planes, prey)[margin(64) :, margin(64) :][:64, :64]
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    is_floor = (np.abs(colours.astype(int) - rgb("#fbfaf6")) <= 3).all(1)
    if planes.any():
        counts = np.where(is_floor, 0, counts)
    return colours[counts.argmax()] / 255


def test_ciede2000_is_that_of_its_paper():
    assert ciede2000((50, 2.6772, -79.7751), (50, 0, -82.7485)) == pytest.approx(2.0425, abs=1e-4)
    assert ciede2000((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387)) == pytest.approx(
        1.2644, abs=1e-4
    )
    assert ciede2000((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514)) == pytest.approx(0.9082, abs=1e-4)


@pytest.mark.parametrize("vision", VISION)
def test_any_two_things_differ_in_colour(vision):
    """As drawn. CIE76: eight seats, blocks, each kind of prey, the floor. CIEDE2000: the same with the first four seats."""
    prey = [name for name in SPRITES if name != "BLOCKS"]
    kinds = len(HUNTER_COLOURS) + 1 + len(prey)
    boards = np.concatenate([np.eye(kinds), np.zeros((1, kinds))])[..., None, None]
    labs = lab_of(np.array([main_colour(board, prey) for board in boards]), vision)
    distances = np.linalg.norm(labs[:, None] - labs, axis=-1)
    assert distances[np.triu_indices(len(labs), 1)].min() >= 20
    few = [*labs[:4], *labs[len(HUNTER_COLOURS) :]]
    assert min(ciede2000(a, b) for i, a in enumerate(few) for b in few[:i]) >= 20


def test_numbers_stand_out_from_their_discs():
    """WCAG's contrast of 3 for large text."""

    def luminance(pixel):
        return lab_of(pixel[None] / 255, "normal")[0, 0]

    for seat in range(len(HUNTER_COLOURS)):
        disc = icon(seat, 64).astype(float)
        number = min((PAPER, INK), key=lambda colour: -pixels(disc[20:44, 20:44], colour))
        light = [((luminance(rgb(c).astype(float)) + 16) / 116) ** 3 for c in (number, HUNTER_COLOURS[seat])]
        assert pixels(disc, number) > 100 and (max(light) + 0.05) / (min(light) + 0.05) >= 3, seat


# ---- predicted boards


def test_a_probability_is_an_opacity():
    planes = np.zeros((6, 1, 1))
    empty, whole, half, faint = (draw_planes(planes + p * np.eye(6)[2][:, None, None], ("STAGS", "HARES"))
                                 for p in (0, 1, 0.5, 0.01))  # fmt: skip
    np.testing.assert_allclose(half, (whole.astype(int) + empty) / 2, atol=1)
    assert (whole != empty).any() and (faint == empty).all()


def test_a_cell_may_hold_all_there_is():
    """As a regression predicts: nothing is left out, whatever else is on the cell."""
    for plane in range(7):
        all_there = np.full((7, 1, 1), 0.5)
        less = all_there.copy()
        less[plane] = 0
        changed = draw_planes(less, ("STAGS", "HARES")) != draw_planes(all_there, ("STAGS", "HARES"))
        assert changed.any(), plane


def test_the_thing_of_an_unknown_game_is_drawn():
    planes = np.zeros((3, 1, 1))
    planes[2] = 1
    assert pixels(draw_planes(planes, ("WOLVES",)), INK) > 100


def test_two_digit_seats_stay_apart():
    rules = Rules(hunters=12)
    env = board(hunters=[0, 0, 5, 5, *range(12, 18), 0, 5], prey=[63, 62, 61, 60, 0], blocks=(), rules=rules)
    words = text(env.state, rules).split()
    assert "H0,1,10" in words and "2,3,11" in words
    assert draw(env.state, rules).shape == (8 * 64 + 20, 8 * 64 + 20, 3)


def test_a_png_holds_the_picture(tmp_path, capsys):
    path = tmp_path / "new folder" / "board.png"
    main([str(tmp_path / "drifts.png"), "--env-id", "Snowdrift-4x4-v0"])
    assert "tick 0/15  D drift" in capsys.readouterr().out
    main([str(path), "--seed", "3", "--ticks", "2", "--cell", "24", "--ring", "1"])
    assert "tick 2/35" in capsys.readouterr().out
    data = path.read_bytes()
    size = 8 * 24 + 2 * margin(24)
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (size, size)
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = png(image)
    start = data.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", data[start - 8 : start - 4])
    rows = np.frombuffer(zlib.decompress(data[start : start + length]), np.uint8).reshape(5, 22)
    np.testing.assert_array_equal(rows[:, 1:].reshape(5, 7, 3), image)
    assert not rows[:, 0].any()
