"""Pictures and texts of a board, in NumPy alone.

Shapes are signed distance functions (negative inside, after Inigo Quilez, "2D distance functions"), blended with one
pixel of anti-aliasing, so that they stay crisp at any size. `python -m envs.render board.png` writes one board.
"""

from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from envs.core import GameRules, State, make_core
from envs.games import REGISTERED, make_rules
from envs.grid import planes_to_joint
from envs.scripted import sample_actions, strategy_probs

RENDER_MODES = ("rgb_array", "ansi")
Layer = tuple[np.ndarray, str]  # (signed distance, colour): what a sprite is painted from, back to front

# Searched so that any two of these differ by a Delta E (CIE76) of at least 20 in normal vision, with deuteranopia and with
# protanopia (Machado et al. 2009), and the first four seats and all kinds of things by as much in CIEDE2000: see the tests.
HUNTER_COLOURS = ("#0873ce", "#c35f13", "#023c01", "#d58694", "#daa400", "#2b93b8", "#ffec2b", "#672989")
THING_COLOURS = {"BLOCKS": "#161b22", "STAGS": "#6f5659", "HARES": "#f4d18c", "DRIFTS": "#9fcefa"}
PAPER, CELL, GRID, FRAME, INK = "#ffffff", "#fbfaf6", "#e4e0d6", "#b9b3a6", "#22252b"
INVISIBLE = 0.02  # the opacity below which nothing is drawn


def draw(
    state: State, rules: GameRules, board: int = 0, cell: int = 64, ring: int | None = None
) -> np.ndarray:
    """Draw one board: blocks, each kind of prey by its sprite (see `SPRITES`), hunters as discs with their seat number.

    Things that share a cell stand side by side, smaller. `places` says where each hunter stands in the picture.

    Args:
        state, rules: `env.state`, `env.rules`.
        board: which board of the batch.
        cell: pixels a cell; from 16 on numbers can be read.
        ring: a seat to mark by a ring, None for nobody.
    Returns: uint8 [h, w, 3], h = rules.height * cell + 2 * margin(cell), w likewise.
    """
    planes = np.zeros((rules.hunters + 1 + rules.game.kinds, rules.cells), np.uint8)
    planes[rules.hunters] = state.blocks[board]
    hunter_cells, prey_cells = state.hunters[board], state.prey[board]
    on_board = hunter_cells >= 0
    planes[np.flatnonzero(on_board), hunter_cells[on_board]] = 1
    kind = np.repeat(np.arange(rules.game.kinds), rules.prey_counts)
    on_board = prey_cells >= 0
    planes[rules.hunters + 1 + kind[on_board], prey_cells[on_board]] = 1
    return draw_planes(planes.reshape(-1, rules.height, rules.width), rules.game.prey, cell, ring)


def draw_planes(
    planes: np.ndarray, prey: Sequence[str], cell: int = 64, ring: int | None = None
) -> np.ndarray:
    """Draw a joint board, as a world model predicts it, too: what is there with probability p has opacity p.

    Args:
        planes: [A+1+k, H, W] in [0, 1]: a plane a seat, blocks, each kind of prey.
        prey: names of the planes of the k kinds.
        cell, ring: as `draw` has them.
    Returns: uint8 [H * cell + 2 * margin(cell), W * cell + 2 * margin(cell), 3].
    """
    hunters = len(planes) - 1 - len(prey)
    height, width = planes.shape[1:]
    shades = np.clip(planes.reshape(len(planes), -1), 0.0, 1.0)  # [A+1+k, K]
    edge = margin(cell)
    image = _empty_board(height, width, cell).copy()
    later = []  # discs, the ring last
    for k in range(height * width):
        top, left = edge + k // width * cell, edge + k % width * cell
        if shades[hunters, k] > INVISIBLE:
            _paint(image, _block, left + 0.5 * cell, top + 0.5 * cell, 0.5 * cell, shades[hunters, k])
        kinds = np.flatnonzero(shades[hunters + 1 :, k] > INVISIBLE)
        seats = np.flatnonzero(shades[:hunters, k] > INVISIBLE).tolist()
        spots = [(left + x * cell, top + y * cell, r * cell) for x, y, r in _spots(len(kinds), len(seats))]
        for kind, spot in zip(kinds, spots[: len(kinds)], strict=True):
            sprite = SPRITES.get(prey[kind], _thing)
            _paint(image, sprite, *spot, shades[hunters + 1 + kind, k])
        later += [
            (seat, spot, shades[seat, k]) for seat, spot in zip(seats, spots[len(kinds) :], strict=True)
        ]
    for seat, spot, shade in sorted(later, key=lambda disc: disc[0] == ring):
        _paint(image, _disc(seat, seat == ring), *spot, shade)
    return np.round(image * 255.0).astype(np.uint8)


def icon(name: str | int, size: int, ring: bool = False) -> np.ndarray:
    """A thing by itself, for legends. name: a seat, BLOCKS, or a plane of prey. Returns: uint8 [size, size, 3]."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = _rgb(PAPER)
    sprite = _disc(name, ring) if isinstance(name, int) else SPRITES.get(name, _thing)
    _paint(image, sprite, size / 2, size / 2, size / (2.7 if ring else 2.1))
    return np.round(image * 255.0).astype(np.uint8)


def prey_planes(rules: GameRules) -> list[str]:
    """Of each prey the plane of its kind."""
    kinds = zip(rules.game.prey, rules.prey_counts, strict=True)
    return [plane for plane, count in kinds for _ in range(count)]


def margin(cell: int) -> int:
    """Pixels around the board."""
    return max(cell // 6, 2)


def places(state: State, rules: GameRules, board: int = 0, cell: int = 64) -> tuple[dict, dict]:
    """Where `draw` puts things: ({prey slot: (x, y, radius)}, {seat: (x, y, radius)}), in pixels, x to the right."""
    on_cell: dict[int, tuple[list, list]] = {}  # cell -> (prey slots, seats)
    for kind, cells in enumerate((state.prey[board], state.hunters[board])):
        for i, k in enumerate(cells.tolist()):
            if k >= 0:
                on_cell.setdefault(k, ([], []))[kind].append(i)
    prey: dict[int, tuple[float, float, float]] = {}
    hunters: dict[int, tuple[float, float, float]] = {}
    for k, (slots, seats) in on_cell.items():
        row, col = divmod(k, rules.width)
        left = margin(cell) + col * cell
        top = margin(cell) + row * cell
        spots = [
            (left + x * cell, top + y * cell, radius * cell)
            for x, y, radius in _spots(len(slots), len(seats))
        ]
        prey.update(zip(slots, spots[: len(slots)], strict=True))
        hunters.update(zip(seats, spots[len(slots) :], strict=True))
    return prey, hunters


def _spots(prey: int, hunters: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) in a cell of size 1 for each prey, then for each hunter."""
    if not prey and hunters == 2:
        return [(0.29, 0.29, 0.28), (0.71, 0.71, 0.28)]
    if not prey:
        return _grid(hunters, 0.0, 0.0, 1.0, 1.0, 0.41)
    if prey == 1 and not hunters:
        return [(0.5, 0.5, 0.44)]
    if prey == 1 and hunters == 1:
        return [(0.33, 0.33, 0.30), (0.69, 0.69, 0.28)]
    if prey == 1 and hunters == 2:
        return [(0.5, 0.27, 0.26), (0.26, 0.74, 0.24), (0.74, 0.74, 0.24)]
    return _grid(prey + hunters, 0.02, 0.02, 0.96, 0.96, 0.27)


def _grid(
    n: int, x: float, y: float, width: float, height: float, largest: float
) -> list[tuple[float, float, float]]:
    """n discs in rows that fill a box; the rows are chosen so that the discs are as large as can be."""
    if n == 0:
        return []

    def box_side(rows: int) -> float:
        columns = -(-n // rows)
        return min(width / columns, height / rows)

    rows = max(range(1, n + 1), key=box_side)
    columns = -(-n // rows)
    radius = min(0.46 * box_side(rows), largest)
    spots = []
    for row in range(rows):
        in_row = min(columns, n - row * columns)
        for i in range(in_row):
            spots.append((x + width * (i + 0.5) / in_row, y + height * (row + 0.5) / rows, radius))
    return spots


# ---- painting


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255.0


def _blend(image: np.ndarray, distance: np.ndarray, colour: str) -> None:
    """Cover image (float [h, w, 3], in place) with a colour where distance (pixels) is negative."""
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    image += cover * (_rgb(colour) - image)


def _paint(
    image: np.ndarray,
    sprite: Callable[..., Iterator[Layer]],
    x: float,
    y: float,
    radius: float,
    opacity: float = 1.0,
) -> None:
    """Paint a sprite, which lives in [-1, 1] x [-1, 1] (y down), with its centre at pixel (x, y)."""
    reach = 1.35 * radius + 1.0
    top = max(int(y - reach), 0)
    left = max(int(x - reach), 0)
    part = image[top : int(y + reach) + 1, left : int(x + reach) + 1]
    rows, cols = np.ogrid[: part.shape[0], : part.shape[1]]
    u = (cols + left + 0.5 - x) / radius
    v = (rows + top + 0.5 - y) / radius
    painted = part.copy()
    for distance, colour in sprite(*np.broadcast_arrays(u, v)):
        _blend(painted, distance * radius, colour)
    part += opacity * (painted - part)


@lru_cache(maxsize=8)
def _empty_board(height: int, width: int, cell: int) -> np.ndarray:
    """The cells, the lines between them and a frame around them; float32 [h, w, 3], not to be written to."""
    h = height * cell
    w = width * cell
    edge = margin(cell)
    image = np.empty((h + 2 * edge, w + 2 * edge, 3), np.float32)
    image[:] = _rgb(PAPER)
    rows, cols = np.ogrid[: image.shape[0], : image.shape[1]]
    rows = rows + 0.5 - edge  # the centre of each pixel, from the board's corner
    cols = cols + 0.5 - edge
    x = cols - w / 2
    y = rows - h / 2
    line = max(cell / 64, 0.5)
    _blend(image, _box(x, y, w / 2 + 2 * line, h / 2 + 2 * line, 0.12 * cell), FRAME)
    _blend(image, _box(x, y, w / 2, h / 2, 0.1 * cell), CELL)
    shape = image.shape[:2]
    for k in range(1, width):
        distance = np.broadcast_to(np.abs(cols - k * cell) - line / 2, shape)
        _blend(image[edge : edge + h], distance[edge : edge + h], GRID)
    for k in range(1, height):
        distance = np.broadcast_to(np.abs(rows - k * cell) - line / 2, shape)
        _blend(image[:, edge : edge + w], distance[:, edge : edge + w], GRID)
    return image


# ---- distances


def _circle(x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float) -> np.ndarray:
    return np.hypot(x - cx, y - cy) - radius


def _ellipse(
    x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float, turn: float = 0.0
) -> np.ndarray:
    """To an ellipse, exact to first order at its edge. turn: radians, from x towards y."""
    dx = x - cx
    dy = y - cy
    a = np.cos(turn) * dx + np.sin(turn) * dy
    b = np.cos(turn) * dy - np.sin(turn) * dx
    k = np.hypot(a / rx, b / ry)
    slope = np.hypot(a / rx**2, b / ry**2)
    return k * (k - 1.0) / np.maximum(slope, 1e-6)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, corner: float) -> np.ndarray:
    a = np.abs(x) - half_width + corner
    b = np.abs(y) - half_height + corner
    outside = np.hypot(np.maximum(a, 0.0), np.maximum(b, 0.0))
    inside = np.minimum(np.maximum(a, b), 0.0)
    return outside + inside - corner


def _stroke(
    x: np.ndarray,
    y: np.ndarray,
    points: Sequence[tuple[float, float]],
    width: float,
    tip: float | None = None,
) -> np.ndarray:
    """A polyline with round ends; its half width runs from `width` to `tip`."""
    corners = np.asarray(points, np.float64)
    tip = width if tip is None else tip
    lengths = np.hypot(*(corners[1:] - corners[:-1]).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)]) / lengths.sum()
    nearest = np.full(np.shape(x), np.inf)
    for (ax, ay), (bx, by), start, end in zip(corners[:-1], corners[1:], along[:-1], along[1:], strict=True):
        dx = bx - ax
        dy = by - ay
        t = ((x - ax) * dx + (y - ay) * dy) / (dx**2 + dy**2)
        t = np.clip(t, 0.0, 1.0)
        half = width + (tip - width) * (start + t * (end - start))
        distance = np.hypot(x - ax - t * dx, y - ay - t * dy) - half
        nearest = np.minimum(nearest, distance)
    return nearest


def _drop(
    x: np.ndarray, y: np.ndarray, top: float, r_top: float, bottom: float, r_bottom: float
) -> np.ndarray:
    """The hull of two circles on the y axis, at heights top < bottom."""
    x = np.abs(x)
    y = y - top
    h = bottom - top
    b = (r_top - r_bottom) / h
    a = np.sqrt(1.0 - b * b)
    k = a * y - b * x
    side = a * x + b * y - r_top
    upper = np.hypot(x, y) - r_top
    lower = np.hypot(x, y - h) - r_bottom
    return np.where(k < 0.0, upper, np.where(k > a * h, lower, side))


# ---- sprites: layers from back to front, in [-1, 1] x [-1, 1]


def _block(x: np.ndarray, y: np.ndarray) -> Iterator[Layer]:
    yield _box(x, y, 0.86, 0.86, 0.2), THING_COLOURS["BLOCKS"]
    yield _box(x, y + 0.78, 0.68, 0.025, 0.02), "#5a6270"


_BEAM = [(0.10, -0.16), (0.24, -0.34), (0.50, -0.44), (0.68, -0.66), (0.66, -0.94)]
_TINES = (
    [(0.33, -0.38), (0.30, -0.62), (0.36, -0.80)],
    [(0.55, -0.48), (0.78, -0.50), (0.92, -0.60)],
)


def _stag(x: np.ndarray, y: np.ndarray) -> Iterator[Layer]:
    m = np.abs(x)  # all is mirrored
    beam = _stroke(m, y, _BEAM, 0.085, 0.05)
    lower, upper = (_stroke(m, y, tine, 0.07, 0.045) for tine in _TINES)
    antlers = np.minimum(beam, np.minimum(lower, upper))
    ears = _ellipse(m, y, 0.46, 0.0, 0.24, 0.115, -0.25)
    head = _drop(x, y, 0.10, 0.33, 0.72, 0.20)
    outline = np.minimum(np.minimum(ears, head), antlers) - 0.05
    yield outline, "#2e2022"
    yield antlers, THING_COLOURS["STAGS"]
    yield ears, THING_COLOURS["STAGS"]
    yield _ellipse(m, y, 0.47, 0.0, 0.15, 0.055, -0.25), "#c3a9a6"
    yield head, THING_COLOURS["STAGS"]
    yield _drop(x, y, 0.62, 0.13, 0.76, 0.13), "#c9b3ae"
    yield _ellipse(x, y, 0.0, 0.76, 0.11, 0.075), "#241610"
    yield _circle(m, y, 0.17, 0.17, 0.06), "#1c120c"


def _hare(x: np.ndarray, y: np.ndarray) -> Iterator[Layer]:
    m = np.abs(x)
    ears = _ellipse(m, y, 0.23, -0.46, 0.14, 0.47, 0.12)
    head = _ellipse(x, y, 0.0, 0.36, 0.46, 0.42)
    cheeks = _ellipse(m, y, 0.22, 0.5, 0.30, 0.27)
    outline = np.minimum(np.minimum(ears, head), cheeks) - 0.05
    yield outline, "#6b4f1d"
    yield ears, THING_COLOURS["HARES"]
    yield _ellipse(m, y, 0.23, -0.44, 0.055, 0.31, 0.12), "#d39a55"
    yield np.minimum(head, cheeks), THING_COLOURS["HARES"]
    yield _ellipse(m, y, 0.13, 0.56, 0.15, 0.12), "#fff6e0"
    yield _ellipse(x, y, 0.0, 0.45, 0.085, 0.06), "#8a4b2a"
    yield _circle(m, y, 0.22, 0.24, 0.065), "#2a2624"


def _drift(x: np.ndarray, y: np.ndarray) -> Iterator[Layer]:
    """A heap of snow on flat ground: two mounds, each with its lit side."""
    ground = y - 0.66
    high = np.maximum(_ellipse(x, y, -0.2, 0.66, 0.66, 1.14), ground)
    low = np.maximum(_ellipse(x, y, 0.42, 0.66, 0.52, 0.68), ground)
    yield np.minimum(high, low) - 0.06, "#2f5f8f"
    yield high, THING_COLOURS["DRIFTS"]
    yield np.maximum(_ellipse(x, y, -0.34, -0.02, 0.14, 0.3, 0.35), high + 0.1), "#eef6fd"
    yield np.maximum(low - 0.06, ground), "#2f5f8f"
    yield low, THING_COLOURS["DRIFTS"]
    yield np.maximum(_ellipse(x, y, 0.30, 0.33, 0.1, 0.17, 0.35), low + 0.1), "#eef6fd"


def _thing(x: np.ndarray, y: np.ndarray) -> Iterator[Layer]:
    """Of a kind that has no sprite of its own."""
    diamond = (np.abs(x) + np.abs(y) - 0.8) * 0.7071
    yield diamond, INK
    yield diamond + 0.12, "#e8e8f0"


# of each plane of things
SPRITES = {"BLOCKS": _block, "STAGS": _stag, "HARES": _hare, "DRIFTS": _drift}


def _disc(seat: int, ringed: bool) -> Callable[..., Iterator[Layer]]:
    colour = HUNTER_COLOURS[seat % len(HUNTER_COLOURS)]
    rgb = _rgb(colour)
    edge = "#" + "".join(f"{int(255 * 0.72 * c):02x}" for c in rgb)  # a darker shade
    number = INK if rgb @ np.float32([0.299, 0.587, 0.114]) > 0.6 else PAPER

    def sprite(x: np.ndarray, y: np.ndarray) -> Iterator[Layer]:
        around = np.hypot(x, y)
        if ringed:
            yield around - 1.32, INK
            yield around - 1.17, PAPER
        yield around - 1.0, edge
        yield around - 0.92, colour
        yield _number(x, y, seat), number

    return sprite


def _arc(
    cx: float, cy: float, rx: float, ry: float, start: float, end: float, n: int = 14
) -> list[tuple[float, float]]:
    """Points on an ellipse, degrees from x towards y (down)."""
    angle = np.radians(np.linspace(start, end, n))
    x = cx + rx * np.cos(angle)
    y = cy + ry * np.sin(angle)
    return list(zip(x.tolist(), y.tolist(), strict=True))


_DIGITS: dict[str, list[list[tuple[float, float]]]] = {  # strokes in a box of 0.6 x 1, y down
    "0": [_arc(0.3, 0.5, 0.29, 0.5, 0, 360, 25)],
    "1": [[(0.1, 0.2), (0.36, 0.0), (0.36, 1.0)]],
    "2": [[*_arc(0.3, 0.29, 0.28, 0.29, -165, 35), (0.02, 1.0), (0.6, 1.0)]],
    "3": [[*_arc(0.28, 0.26, 0.26, 0.26, -150, 90), *_arc(0.28, 0.745, 0.31, 0.255, -75, 155)]],
    "4": [[(0.45, 1.0), (0.45, 0.0), (0.0, 0.68), (0.62, 0.68)]],
    "5": [[(0.54, 0.0), (0.1, 0.0), (0.06, 0.44), *_arc(0.28, 0.68, 0.31, 0.32, -115, 150)]],
    "6": [[(0.46, 0.0), (0.12, 0.45)], _arc(0.3, 0.69, 0.29, 0.31, 0, 360, 22)],
    "7": [[(0.0, 0.0), (0.6, 0.0), (0.2, 1.0)]],
    "8": [_arc(0.3, 0.24, 0.24, 0.24, 0, 360, 20), _arc(0.3, 0.74, 0.29, 0.26, 0, 360, 20)],
    "9": [[(0.14, 1.0), (0.48, 0.55)], _arc(0.3, 0.31, 0.29, 0.31, 0, 360, 22)],
}


def _number(x: np.ndarray, y: np.ndarray, number: int) -> np.ndarray:
    """The distance to a number in the middle of a disc of radius 1."""
    digits = str(number)
    size = 1.2 if len(digits) == 1 else 0.85
    width = 0.6 + 0.85 * (len(digits) - 1)
    distance = np.full(np.shape(x), np.inf)
    for i, digit in enumerate(digits):
        a = x / size + width / 2 - 0.85 * i
        b = y / size + 0.5
        for points in _DIGITS[digit]:
            stroke = _stroke(a, b, points, 0.095) * size
            distance = np.minimum(distance, stroke)
    return distance


# ---- text


def text(state: State, rules: GameRules, board: int = 0, ring: int | None = None) -> str:
    """One board in letters, with a legend line. `S01` is a cell with a stag and the hunters 0 and 1."""
    planes = prey_planes(rules)
    prey = state.prey[board].tolist()
    hunters = state.hunters[board].tolist()
    cells = ["#" if block else "" for block in state.blocks[board]]
    for slot, k in enumerate(prey):
        if k >= 0:
            cells[k] += planes[slot][0]
    for seat, k in enumerate(hunters):
        if k >= 0:
            after_number = rules.hunters > 10 and cells[k][-1:].isdigit()
            comma = "," if after_number else ""  # beyond seat 9 it keeps 1, 2 and 12 apart
            star = "*" if seat == ring else ""
            cells[k] += f"{comma}{seat}{star}"
    width = 1 + max(2, *(len(cell) for cell in cells))
    lines = []
    for start in range(0, rules.cells, rules.width):
        row = cells[start : start + rules.width]
        lines.append("".join(f"{cell or '.':<{width}}" for cell in row).rstrip())
    kinds = "  ".join(f"{plane[0]} {plane.lower().removesuffix('s')}" for plane in rules.game.prey)
    legend = f"tick {state.tick[board]}/{rules.horizon}  {kinds}  # block  0-{rules.hunters - 1} hunters"
    if ring is not None:
        legend += f"  * seat {ring}"
    has_left = [str(seat) for seat, k in enumerate(hunters) if k < 0]
    if has_left:
        legend += f"  left: {' '.join(has_left)}"
    return "\n".join([*lines, legend])


def render_board(
    mode: str, state: State, rules: GameRules, board: int, ring: int | None = None
) -> np.ndarray | str:
    """One board as `mode` ("rgb_array" or "ansi") has it."""
    return text(state, rules, board, ring) if mode == "ansi" else draw(state, rules, board, ring=ring)


def film_frame(envs: Any, infos: dict, opponents: Any, joint_returns: Any) -> dict:
    """What a film shows at a tick: the first board, what was done last, and what is believed of its hunters.

    envs, infos: of a vector environment, infos as tensors. opponents: `board_features()` float [B, A, I]; shown is the first
    of the I. joint_returns: float [B, A].
    """
    learned = callable(envs.co_players)  # policies have no names to show
    return dict(
        joint=planes_to_joint(np.array(envs.planes()[0])),  # uint8 [A + 1 + k, H, W]
        belief=opponents.board_features()[0, :, :1].sum(1).tolist(),
        strategy_ids=[-1] * envs.rules.hunters if learned else infos["strategy_ids"][0].tolist(),
        learner=int(infos["seat"][0]),
        tick=int(infos["tick"][0]),
        returns=joint_returns[0].tolist(),
        actions=infos["joint_actions"][0].tolist(),
    )


# ---- files


def png(image: np.ndarray) -> bytes:
    """A PNG file of an image, uint8 [h, w, 3]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length = struct.pack(">I", len(data))
        check = struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + check

    h, w, _ = image.shape
    no_filter = np.zeros((h, 1), np.uint8)  # each row starts with its filter
    rows = np.concatenate([no_filter, image.reshape(h, -1)], 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def main(argv: list[str] | None = None) -> None:
    description = "Draw one board of hunters that all play the first strategy of their game."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("path", type=Path, help="the PNG to write")
    parser.add_argument("--env-id", default="StagHunt-v0", choices=REGISTERED, help="the game")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ticks", type=int, default=0, help="ticks to play first")
    parser.add_argument("--cell", type=int, default=64, help="pixels a cell")
    parser.add_argument("--ring", type=int, default=None, help="a seat to mark")
    args = parser.parse_args(argv)
    env = make_core(1, make_rules(args.env_id)[0])
    env.reset(seed=args.seed)
    strategy = next(iter(env.rules.game.strategies))
    for _ in range(args.ticks):
        probs = strategy_probs(env, [strategy])[:, :, 0]
        env.step(sample_actions(probs, env.uniform(env.rules.hunters)))
    args.path.parent.mkdir(parents=True, exist_ok=True)
    args.path.write_bytes(png(draw(env.state, env.rules, cell=args.cell, ring=args.ring)))
    print(text(env.state, env.rules, ring=args.ring))


if __name__ == "__main__":
    main()
