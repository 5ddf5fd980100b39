"""How cost grows with size: `python -m benchmarks.scale --what boards`.

Each point is a process of its own, with one thread: processor time (CPU time) of one unit of work after a warm-up, and the
peak resident memory above what the process held after its imports. The exponent of a curve is the slope of log cost over
log size, fitted to the upper half of its sizes. A CSV and a figure for each --what.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import hop_ppo
import pretrain_vae
import tracking
import train_world_model
from benchmarks import machine
from benchmarks.memory import peak_bytes
from data import collect
from envs import Rules
from envs.core import GameRules
from tracking import figures

ROOT = Path(__file__).resolve().parents[1]
CHILD = "from benchmarks import scale; scale.child()"
What = Literal["boards", "hunters", "side", "data", "processes"]


@dataclass
class Args:
    what: What
    """boards, hunters, board side: a tick of the game with scripted co-players, a rollout and update of PPO, an imagined
    tick; data: to collect and load a file, and a pass over its batches; processes: an update of hop_ppo.py and an epoch of
    train_world_model.py, by torchrun"""
    quick: bool = False
    """few and small sizes, little time for each"""
    sizes: tuple[int, ...] = ()
    """other sizes than usual: rows with data"""
    only: tuple[str, ...] = ()
    """these curves alone, such as game"""
    vae: str = ""
    """of imagined co-players; the newest in vae_ckpts/ by default"""
    world_model: str = ""
    """the newest in wm_ckpts/ by default"""
    out: str = "scale"
    """writes <out>_<what>.csv and .png"""


SIZES: dict[str, tuple[int, ...]] = {
    "boards": (16, 64, 256, 1024, 4096, 16_384, 65_536),
    "hunters": (2, 3, 4, 6, 8, 12, 16),
    "side": (4, 6, 8, 12, 16, 24, 32),
    "data": (100_000, 200_000, 500_000, 1_000_000, 2_000_000),
    "processes": (1, 2),
}
QUICK: dict[str, tuple[int, ...]] = {
    "boards": (16, 32, 64),
    "hunters": (2, 3, 4),
    "side": (4, 5, 6),
    "data": (1000, 2000, 4000),
    "processes": (1, 2),
}


# ---- the work, in a process of its own


class Work(NamedTuple):
    """One unit of it, how many are not counted, and how many are counted at least."""

    unit: Callable[[], object]
    warm_up: int
    repeats: int


def rules_of(what: str, size: int) -> tuple[GameRules, int]:
    """The rules, and how many boards."""
    if what == "boards":
        return Rules(), size
    if what == "hunters":
        return Rules(hunters=size), 1024
    return Rules(height=size, width=size, blocks=0), 1024  # a board of 4x4 has no room for blocks


def make_tick(envs: hop_ppo.Envs) -> Callable[[], None]:
    """A tick of legal actions drawn at random; boards that end begin again."""
    _, infos = envs.reset(seed=1)
    draw = torch.Generator().manual_seed(1)

    def tick() -> None:
        nonlocal infos
        mask = torch.as_tensor(infos["action_mask"])  # [N, 7]
        actions = (mask * torch.rand(mask.shape, generator=draw)).argmax(1)
        _, _, terminated, truncated, infos = envs.step(actions.numpy())
        ended = torch.as_tensor(terminated) | torch.as_tensor(truncated)
        if ended.any():
            _, infos = envs.reset(options={"reset_mask": ended.numpy()})

    return tick


def game(point: dict) -> Work:
    """A tick for the warm-up and for the figure: so many that boards of all ages are played."""
    rules, boards = rules_of(point["what"], point["size"])
    return Work(make_tick(hop_ppo.make_envs(rules, boards, "mixed")), rules.horizon, rules.horizon)


def imagined(point: dict) -> Work:
    """As `game`. On boards of other sides in self-play: a VAE is for boards of one size."""
    rules, boards = rules_of(point["what"], point["size"])
    team = "self" if point["what"] == "side" else "mixed"
    run_args = hop_ppo.Args(
        real_ratio=0.0, co_players=team, team_episodes=1, vae=point["vae"], world_model=point["world_model"]
    )
    vae, world_model = hop_ppo.load_networks(run_args, rules)
    real = hop_ppo.make_envs(rules, 1024, "mixed")
    starts = hop_ppo.Collector(real, replace(run_args, om="none"), None, 1).starts
    envs = hop_ppo.make_world_model_envs(run_args, rules, boards, starts, world_model, vae)
    return Work(make_tick(envs), rules.horizon, rules.horizon)


def ppo(point: dict) -> Work:
    """A rollout of 16 ticks and its update, with `--om none`."""
    rules, boards = rules_of(point["what"], point["size"])
    run_args = hop_ppo.Args(num_envs=boards, team_episodes=1)
    hop_ppo.check_memory(run_args, rules)
    collector = hop_ppo.Collector(hop_ppo.make_envs(rules, boards, "mixed"), run_args, None, run_args.seed)
    agent = hop_ppo.make_agent("objects", rules, 0)
    optimizer = hop_ppo.make_optimizer(agent, run_args)

    def learn() -> None:
        batch = hop_ppo.rollout(agent, collector, run_args, torch.zeros(3))
        hop_ppo.update(agent, optimizer, batch, run_args, 1.0)

    return Work(learn, 1, 1)


def file_of(point: dict) -> str:
    """The file that `collected` leaves for the other curves, in the folder of all processes."""
    return f"{point['size']}.npz"


def collected(point: dict) -> Work:
    args = collect.Args(samples=point["size"], out=file_of(point))
    return Work(lambda: collect.collect_to_file(args), 0, 1)


def load(point: dict) -> pretrain_vae.Batches:
    samples = pretrain_vae.load_samples(file_of(point))
    return pretrain_vae.make_batches(samples, torch.device("cpu"), "both")


def loaded(point: dict) -> Work:
    """From the file to pretrain_vae.py's tensors."""
    return Work(lambda: load(point), 0, 1)


def batches(point: dict) -> Work:
    """Every sample once, in pretrain_vae.py's batches of whole episodes in random order, each turned; no network."""
    data = load(point)
    size = pretrain_vae.Args().batch_size

    def visit() -> None:
        groups = torch.randperm(len(data.start)).numpy()
        for part in np.array_split(groups, math.ceil(len(data.group) / size)):
            data.take(part, torch.randint(len(data.cell_permutation), (len(part),)))

    return Work(visit, 0, 1)


CURVES: dict[str, dict[str, Callable[[dict], Work]]] = {
    "boards": {"game": game, "ppo": ppo, "imagined": imagined},
    "hunters": {"game": game, "ppo": ppo, "imagined": imagined},
    "side": {"game": game, "ppo": ppo, "imagined": imagined},
    "data": {"collected": collected, "loaded": loaded, "batches": batches},
}


def time_units(work: Work, seconds: float) -> float:
    """Processor time of a unit: the mean of so many as take so many seconds, and of work.repeats at least."""
    for _ in range(work.warm_up):
        work.unit()
    count, took = 0, 0.0
    start = time.process_time()
    while count < work.repeats or took < seconds:
        work.unit()
        count += 1
        took = time.process_time() - start
    return took / count


def measure_here(point: dict) -> dict[str, float]:
    """One point in this process: milliseconds, and bytes after the imports and at most."""
    torch.manual_seed(1)
    if point["curve"] == "ppo":
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports much
    base = peak_bytes()
    work = CURVES[point["what"]][point["curve"]](point)
    if point["quick"]:
        work = Work(work.unit, min(work.warm_up, 1), 1)
    seconds = time_units(work, 0.0 if point["quick"] else 0.5)
    return dict(base=base, peak=peak_bytes(), ms=1000 * seconds)


# ---- processes of torchrun


SCRIPTS = {"hop_ppo.py": hop_ppo, "train_world_model.py": train_world_model}


def run_script(point: dict) -> dict[str, float]:
    """A whole run of a script in this process, one of torchrun's."""
    base = peak_bytes()
    start, wall_start = time.process_time(), time.perf_counter()
    sys.argv = [point["curve"], *point["flags"]]
    SCRIPTS[point["curve"]].main()
    wall = time.perf_counter() - wall_start
    return dict(base=base, peak=peak_bytes(), ms=1000 * (time.process_time() - start), wall_ms=1000 * wall)


def lengths_of(point: dict) -> tuple[int, int]:
    """Of the two runs, of whose difference a unit is judged: what a run costs but for its length cancels."""
    if point["quick"]:
        return 1, 2
    return (2, 12) if point["curve"] == "hop_ppo.py" else (1, 6)


def flags_of(point: dict, length: int) -> list[str]:
    """Of a run with so many updates, or epochs."""
    if point["curve"] == "hop_ppo.py":
        boards = 64 if point["quick"] else hop_ppo.Args().num_envs
        steps = length * boards * hop_ppo.Args().num_steps
        few = "--eval-boards 16 --plan-boards 2 --eval-every 1000000 --no-cuda"
        return f"--num-envs {boards} --total-timesteps {steps} {few}".split()
    return f"--data data.npz --epochs {length} --no-cuda".split()


def measure_processes(point: dict, folder: Path) -> dict[str, float]:
    """ms: of the process that uses most; total_ms: of all together; wall_ms: on this machine, loaded as it is. peak: of one
    process."""
    if point["curve"] == "train_world_model.py" and not (folder / "data.npz").exists():
        samples = 2000 if point["quick"] else 20_000
        collect.collect_to_file(collect.Args(samples=samples, out=str(folder / "data.npz")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    launcher += ["--nproc-per-node", str(point["size"])]
    first, last = lengths_of(point)
    short, long = (
        pd.DataFrame(start(point | dict(flags=flags_of(point, length)), folder, launcher))
        for length in (first, last)
    )
    units = last - first
    return dict(
        base=float(long["base"].max()),
        peak=float(long["peak"].max()),
        ms=float(long["ms"].max() - short["ms"].max()) / units,
        total_ms=float(long["ms"].sum() - short["ms"].sum()) / units,
        wall_ms=float(long["wall_ms"].max() - short["wall_ms"].max()) / units,
    )


# ---- every point, and the table of them


def child() -> None:
    """What a process of its own does: the point in its command line, as JSON; prints what it found as JSON."""
    point = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    found = run_script(point) if point["what"] == "processes" else measure_here(point)
    # One write: processes of torchrun share the output.
    sys.stdout.write("\n" + json.dumps(dict(found=found)) + "\n")
    sys.stdout.flush()


def start(point: dict, folder: Path, launcher: list[str]) -> list[dict[str, float]]:
    """What the processes found. Raises: RuntimeError: one of them failed."""
    command = [*launcher, sys.executable, "-c", CHILD, json.dumps(point)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{point['curve']}, {point['size']}: {done.stderr.strip()[-500:]}")
    return [json.loads(line)["found"] for line in done.stdout.splitlines() if line.startswith('{"found"')]


def measure(point: dict, folder: Path) -> dict:
    """A row of the table."""
    if point["what"] == "processes":
        found = measure_processes(point, folder)
    else:
        (found,) = start(point, folder, [])
    row = {key: point[key] for key in ("what", "curve", "size")}
    row["ms"] = found["ms"]
    row["base_mb"] = found["base"] / 1e6
    row["mb"] = (found["peak"] - found["base"]) / 1e6
    return row | {key: found[key] for key in ("total_ms", "wall_ms") if key in found}


def fit_exponent(sizes: np.ndarray, costs: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of log cost over log size, for the upper half of the sizes, two at least. NaN: a cost is not above
    0, or there is one size."""
    half = max(2, len(sizes) - len(sizes) // 2)
    sizes, costs = np.asarray(sizes, float)[-half:], np.asarray(costs, float)[-half:]
    if len(sizes) < 2 or (costs <= 0).any():
        return math.nan, math.nan
    slope, intercept = np.polyfit(np.log(sizes), np.log(costs), 1)
    return float(slope), float(intercept)


def slopes(curve: pd.DataFrame, cost: str) -> list[float]:
    """Of log cost over log size between each size and the one before: where the curve bends."""
    pairs = [curve.iloc[max(0, i - 1) : i + 1] for i in range(len(curve))]
    return [fit_exponent(pair["size"].to_numpy(), pair[cost].to_numpy())[0] for pair in pairs]


def with_exponents(rows: list[dict]) -> pd.DataFrame:
    """The rows, and for milliseconds and megabytes the exponent of each curve and the slope before each size."""
    parts = []
    for _, curve in pd.DataFrame(rows).groupby("curve", sort=False):
        for cost in ("ms", "mb"):
            exponent, _ = fit_exponent(curve["size"].to_numpy(), curve[cost].to_numpy())
            curve = curve.assign(**{f"{cost}_slope": slopes(curve, cost), f"{cost}_exponent": exponent})
        parts.append(curve)
    return pd.concat(parts)


X_LABELS = {"side": "side of the board, cells", "data": "rows"}


def draw(table: pd.DataFrame, what: str) -> Figure:
    """Milliseconds and megabytes over the sizes, with the fitted lines."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figures.row_of_axes(figure, 2)
    labels = {"ms": "processor time of a unit, ms", "mb": "peak memory above the imports, MB"}
    for axis, (cost, ylabel) in zip(axes, labels.items(), strict=True):
        groups = table.groupby("curve", sort=False)
        for colour, (name, curve) in zip(figures.COLOURS, groups, strict=False):
            sizes = curve["size"].to_numpy(float)
            slope, intercept = fit_exponent(sizes, curve[cost].to_numpy())
            axis.plot(sizes, curve[cost], "o-", ms=3, lw=1, color=colour, label=f"{name}: {slope:.2f}")
            axis.plot(sizes, np.exp(intercept) * sizes**slope, "--", lw=0.8, color=colour)
        axis.set(xscale="log", yscale="log", xlabel=X_LABELS.get(what, what), ylabel=ylabel)
        axis.set_xticks(np.unique(table["size"]))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter("{x:,g}")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, title="exponent of the upper half", title_fontsize=7)
    return figure


def make_points(args: Args) -> list[dict]:
    """In an order in which each finds the file that it needs.

    Raises: tracking.UsageError: there is no such curve, or a size is below 1.
    """
    curves = list(SCRIPTS if args.what == "processes" else CURVES[args.what])
    unknown = [name for name in args.only if name not in curves]
    if unknown:
        message = f"no curve {', '.join(unknown)} of --what {args.what}: choose from {', '.join(curves)}"
        raise tracking.UsageError(f"--only: {message}")
    sizes = args.sizes or (QUICK if args.quick else SIZES)[args.what]
    if min(sizes) < 1:
        raise tracking.UsageError(f"--sizes: must be at least 1, got {min(sizes)}")
    names = [name for name in curves if not args.only or name in args.only]
    networks = dict(vae=args.vae, world_model=args.world_model)
    if "imagined" in names:
        scripts = dict(vae="pretrain_vae.py", world_model="train_world_model.py")
        roots = dict(vae="vae_ckpts", world_model="wm_ckpts")
        for name, folder in networks.items():
            found = folder or tracking.newest_run(roots[name], scripts[name])
            networks[name] = str(Path(found).absolute())  # its processes run in a folder of their own
    common = dict(what=args.what, quick=args.quick) | networks
    return [common | dict(size=size, curve=name) for size in sizes for name in names]


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for point in make_points(args):
            rows.append(measure(point, Path(folder)))
            print(rows[-1], flush=True)
            table = with_exponents(rows)
            tracking.write_csv(f"{args.out}_{args.what}.csv", table)
    figures.save(draw(table, args.what), f"{args.out}_{args.what}.png")
    print(machine())
    print(f"python -m benchmarks.scale {' '.join(sys.argv[1:])}")
    with pd.option_context("display.width", 250, "display.max_columns", 50):
        print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    tracking.run(main, RuntimeError)
