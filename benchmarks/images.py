"""All pictures of `docs/images/`, from the tables in `docs/results/` and, with --train, from what is trained for it.

Each table begins with the command that made it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

import tracking
from benchmarks import hop_ppo, moa_loss, population, results, scale, study, study_page
from benchmarks.results import ROOT, run
from envs import GameRules, make_rules, render
from tracking import figures

IMAGES = ROOT / "docs" / "images"
TABLES = ROOT / "docs" / "results"
LISTS = ("strategy_ids", "belief", "returns", "actions")  # of film.csv, by hunter
VAE_IMAGES = ("vae_loss_curve", "by_tick", "confusion_matrix", "recall", "reliability")


@dataclass
class Options:
    only: tuple[str, ...] = ()
    """these pictures alone, such as film.gif"""
    train: bool = False
    """also those that need a training: a VAE, two world models for wm_case.png, the ladder of learning_curves.png"""
    vae: str = ""
    """folder of a finished run of pretrain_vae.py, to draw instead of a new one"""
    record: str = ""
    """folder of a run of hop_ppo.py: first write one of its episodes to docs/results/film.csv"""
    seed: int = 1
    """of the board of that episode"""


def read_table(name: str) -> pd.DataFrame:
    """A table of docs/results."""
    return pd.read_csv(TABLES / name, comment="#")


# ---- from tables


def board(path: Path, options: Options) -> None:
    render.main([str(path), "--seed", "1", "--ticks", "5", "--ring", "0"])


def film(path: Path, options: Options) -> None:
    """An episode in which a belief forms; 400 pixels wide."""
    rules, frames = read_film()
    figures.play_film(frames, rules.game, True, path, scale=1)


def record(run_folder: str, seed: int) -> None:
    """Write an episode of a run, on the first board of a seed, to film.csv: a tick a row, cells and figures by hunter."""
    agent, evaluator = hop_ppo.load(run_folder)
    frames = evaluator.film_frames(agent, seed)[0]
    rules = evaluator.rules
    rows = []
    for frame in frames:
        row = dict(env_id=evaluator.args.env_id, tick=frame["tick"], learner=frame["learner"])
        planes = frame["joint"].reshape(len(frame["joint"]), -1)
        row["hunters"] = join(plane.argmax() if plane.any() else -1 for plane in planes[: rules.hunters])
        for name, plane in zip(("BLOCKS", *rules.game.prey), planes[rules.hunters :], strict=True):
            row[name] = join(np.flatnonzero(plane))
        rows.append(row | {name: join(frame[name]) for name in LISTS})
    command = f"# python -m benchmarks.images --record {run_folder} --seed {seed}\n"
    text = command + pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    tracking.write_bytes(TABLES / "film.csv", text.encode())


def join(values: Iterable[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def read_film() -> tuple[GameRules, list[dict]]:
    """Rules and frames, as `figures.play_film` takes them."""
    table = pd.read_csv(TABLES / "film.csv", comment="#", dtype=str, keep_default_na=False)
    rules, _ = make_rules(table["env_id"][0])
    frames = []
    for row in table.to_dict("records"):
        planes = np.zeros((rules.hunters + 1 + rules.game.kinds, rules.cells), np.uint8)
        for seat, cell in enumerate(map(int, row["hunters"].split())):
            planes[seat, cell] = cell >= 0
        for plane, name in zip(planes[rules.hunters :], ("BLOCKS", *rules.game.prey), strict=True):
            plane[[int(cell) for cell in row[name].split()]] = 1
        lists = {name: [float(value) for value in row[name].split()] for name in LISTS}
        for name in ("strategy_ids", "actions"):
            lists[name] = [int(value) for value in lists[name]]
        joint = planes.reshape(-1, rules.height, rules.width)
        frames.append(dict(joint=joint, tick=int(row["tick"]), learner=int(row["learner"])) | lists)
    return rules, frames


def adaptation(path: Path, options: Options) -> None:
    hop_ppo.draw_adaptation(read_table("adaptation.csv").to_dict("records"), path)


def scale_figure(path: Path, options: Options) -> None:
    table = read_table(path.with_suffix(".csv").name)
    figures.save(scale.draw(table, table["what"].iloc[0]), path)


def recon_curve(path: Path, options: Options) -> None:
    figures.save(results.draw(read_table("recon_curve.csv")), path)


def moa_loss_figure(path: Path, options: Options) -> None:
    table = read_table("moa_loss.csv")
    parts = {kind: part.set_index("label")["nll"].to_dict() for kind, part in table.groupby("kind")}
    by_label = table[table["kind"] == "curve"].groupby("label", sort=False)
    curves = {label: part.to_dict("records") for label, part in by_label}
    figures.save(moa_loss.draw(curves, parts["level"], parts["bar"]), path)


def study_figure(path: Path, options: Options) -> None:
    study_page.draw(read_table("study.csv"), list(get_args(study.Method)), path)


def cross_play(path: Path, options: Options) -> None:
    population.draw_matrix(read_table("cross_play.csv"), path)


# ---- from trainings


@lru_cache(maxsize=1)
def drawn_vae(folder: str) -> Path:
    """The run in this folder, or a new one. A run that is finished draws its figures once more when it is resumed."""
    if folder:
        run("pretrain_vae.py", "--resume", folder)
    else:
        folder, _ = results.train("--loss", "moa")
    return tracking.find_folder(ROOT / folder)


def vae_image(path: Path, options: Options) -> None:
    shutil.copyfile(drawn_vae(options.vae) / path.name, path)


def wm_case(path: Path, options: Options) -> None:
    run("-m", "benchmarks.world_model", "--what", "case", "--case-figure", str(path))


def learning_curves(path: Path, options: Options) -> None:
    flags = ("--seconds", "150", "--boards", "2048", "--seeds", "1")
    table = path.parent / "ladder.csv"
    run("-m", "benchmarks.hop_ppo", "--what", "ladder", *flags, "--out", str(table))
    table.unlink()
    table.with_suffix(".png").replace(path)


FROM_TABLES: dict[str, Callable[[Path, Options], None]] = {
    "board.png": board,
    "film.gif": film,
    "adaptation.png": adaptation,
    **{f"scale_{what}.png": scale_figure for what in scale.SIZES if what != "processes"},
    "recon_curve.png": recon_curve,
    "moa_loss.png": moa_loss_figure,
    "cross_play.png": cross_play,
    **{f"study_{name}.png": study_figure for name in ("iqm", "few_shot", "held_out")},
}
TRAINED: dict[str, Callable[[Path, Options], None]] = {
    **{f"{name}.png": vae_image for name in VAE_IMAGES},
    "wm_case.png": wm_case,
    "learning_curves.png": learning_curves,
}
MAKERS = FROM_TABLES | TRAINED


def main() -> None:
    options = tracking.parse_args(Options, __doc__.split("\n")[0])
    unknown = [name for name in options.only if name not in MAKERS]
    if unknown:
        raise tracking.UsageError(f"--only: no picture {unknown[0]}: choose from {', '.join(MAKERS)}")
    if options.record:
        record(options.record, options.seed)
    names = options.only or (MAKERS if options.train else FROM_TABLES)
    for name in names:
        MAKERS[name](IMAGES / name, options)
        print(f"docs/images/{name}", flush=True)


if __name__ == "__main__":
    tracking.run(main, ValueError)
