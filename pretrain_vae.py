"""Pretrain a VAE with a MOA head (a model of other agents) on offline trajectories of the Markov stag hunt.

z ~ q(z | observation) is trained by the actions that the hunter takes (`--loss moa`: cross-entropy, in nats per action),
by the observation itself (`--loss recon`: in nats per frame), or by both, each with a KL term to the unit Gaussian
(Kingma & Welling 2014). The MOA head predicts the next action from (observation, tick, z), illegal actions masked
(Jaques et al. 2019). What it says is printed beside the best that can be said: see data/observers.py.
"""

import math
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import tracking
from data import DEFAULT_DATA, DataError, Samples, default_or_fresh, load_samples, scores, symmetries
from data.trajectories import save_arrays
from tracking import figures

ACTIONS = ("UP", "DOWN", "LEFT", "RIGHT", "STAY", "HUNT_STAG", "HUNT_HARE")
PLANES = ("SELF", "OTHERS", "BLOCKS", "STAGS", "HARES")
SELF, OTHERS, BLOCKS, STAGS, HARES = range(5)
KIND = "pretrain_vae"  # what a checkpoint says it is
EVAL_BATCH = 4096
LOG_STEPS = 50  # TensorBoard gets the mean of so many minibatches, and of what is left at the end of an epoch


@dataclass
class Args:
    exp_name: str = "vae"
    """the run is called <exp-name>__<unix seconds>"""
    seed: int = 1
    """seed of the weights, the batches and the noise of z"""
    torch_deterministic: bool = True
    """use deterministic algorithms: same seed, same bytes (on a GPU: where PyTorch has them, with a warning where not)"""
    cuda: bool = True
    """train on the GPU where there is one"""
    torch_threads: int = 1
    """CPU threads"""

    loss: Literal["recon", "moa", "both"] = "moa"
    """what trains z: the actions, the observation, or the sum of both"""
    data: str = DEFAULT_DATA
    """trajectories or a flat file; the default file and `fresh` are collected on first use"""
    layout: Literal["auto", "planes", "hop", "hop-first"] = "auto"
    """layout of a flat file, where its shape does not tell: [N, 5, H, W], [N, H, W, A+3], or [N, A+3, H, W]"""
    epochs: int = 10
    """passes over the training split"""
    batch_size: int = 256
    """samples a step"""
    learning_rate: float = 3e-3
    """of AdamW; rises over the first 100 steps, then falls linearly to zero"""
    kl_coef: float = 1e-3
    """weight of the KL term, reached linearly over the first epoch (OMG, NeurIPS 2024)"""
    latent_dim: int = 16
    """size of z"""

    resume: str = ""
    """go on with the run in this folder; its settings come from its checkpoint"""
    evaluate: str = ""
    """train nothing: judge the best checkpoint of the run in this folder on the whole of --data; other flags do nothing"""


# ---- the model


class MOA(nn.Module):
    """p(action | observation, tick, z): logits, illegal actions masked.

    Which way is the nearest prey is a shortest-path question. Two readings of the board answer it together:
    *egocentric*: what lies where relative to the hunter, one linear layer on the board shifted so that the hunter stands
    in the middle; and *spreading*: one 3x3 convolution, applied again and again with the input added and blocks held at
    zero, carries what it learns to carry from the prey around the blocks, a cell a turn (value iteration networks,
    Tamar et al. 2016), and is read on the 3x3 cells around the hunter.
    """

    def __init__(self, height: int, width: int, latent_dim: int, ticks: int, hidden: int, channels: int, turns: int):
        super().__init__()
        self.height, self.width, self.ticks, self.turns = height, width, ticks, turns
        self.stem = nn.Conv2d(6, channels, 3, padding=1)  # the five planes, and ones: where the board ends
        self.spread = nn.Conv2d(channels, channels, 3, padding=1)
        self.around = nn.Linear(9 * channels, hidden)
        window = (2 * height - 1) * (2 * width - 1)
        self.ego = nn.Linear(4 * window, hidden)
        self.tick = nn.Embedding(ticks, hidden)
        self.latent = nn.Linear(latent_dim, hidden, bias=False)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, len(ACTIONS)))
        self.register_buffer("window", _windows(height, width, height - 1, width - 1), persistent=False)  # [K, window]
        self.register_buffer("near", _windows(height, width, 1, 1), persistent=False)  # [K, 9]

    def forward(self, planes: torch.Tensor, tick: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """planes: float [B, 5, K]; tick: int64 [B]; z: float [B, latent_dim]. Returns: logits [B, 7]."""
        B = len(planes)
        at = planes[:, SELF].argmax(1)  # [B], the hunter's cell
        board = torch.cat([planes, torch.ones_like(planes[:, :1])], 1).unflatten(2, (self.height, self.width))
        board = board.contiguous(memory_format=torch.channels_last)
        free = 1.0 - board[:, BLOCKS, None]
        stem = self.stem(board)
        h = F.relu(stem)  # [B, channels, H, W]
        for _ in range(self.turns):
            h = F.relu(self.spread(h) + stem) * free
        h = F.pad(h.flatten(2), (0, 1))  # cell K: off the board
        near = h.gather(2, self.near[at][:, None].expand(-1, h.shape[1], -1))  # [B, channels, 9]
        seen = F.pad(planes[:, OTHERS:], (0, 1))
        seen[:, BLOCKS - 1, -1] = 1.0  # off the board is as good as a block
        seen = seen.gather(2, self.window[at][:, None].expand(-1, 4, -1))  # [B, 4, window]
        x = self.around(near.reshape(B, -1)) + self.ego(seen.flatten(1))
        x = x + self.tick(tick.clamp(max=self.ticks - 1)) + self.latent(z)
        return self.out(x).masked_fill(~self.legal(board, at), torch.finfo(x.dtype).min)

    def legal(self, board: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """bool [B, 7]: a step onto a free cell, STAY, and hunting what stands on the hunter's own cell."""
        walls = F.pad(board[:, BLOCKS].flatten(1), (0, 1), value=1.0)
        steps = walls.gather(1, self.near[at][:, [1, 7, 3, 5]]) == 0  # up, down, left, right of the 3x3 cells
        prey = board[:, STAGS : HARES + 1].flatten(2).gather(2, at[:, None, None].expand(-1, 2, 1))[..., 0] > 0
        return torch.cat([steps, torch.ones_like(steps[:, :1]), prey], 1)


def _windows(height: int, width: int, rows: int, columns: int) -> torch.Tensor:
    """int64 [K, (2 rows + 1)(2 columns + 1)]: the cells around each cell, K for what is off the board."""
    r, c = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    dr, dc = torch.meshgrid(torch.arange(-rows, rows + 1), torch.arange(-columns, columns + 1), indexing="ij")
    r, c = r.reshape(-1, 1) + dr.reshape(1, -1), c.reshape(-1, 1) + dc.reshape(1, -1)
    inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
    return torch.where(inside, r * width + c, height * width)


class Shortcut(nn.Module):
    """A hidden layer beside a linear map. Cells are copied by the map; the hidden layer only has to repair it."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.direct, self.first, self.last = (
            nn.Linear(inputs, outputs),
            nn.Linear(inputs, hidden),
            nn.Linear(hidden, outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.direct(x) + self.last(F.relu(self.first(x)))


class VAE(nn.Module):
    """q(z | observation), p(observation | z) and the MOA head. K = height * width cells."""

    def __init__(self, height: int, width: int, ticks: int, latent_dim: int = 16, hidden: int = 256, code: int = 512,
                 channels: int = 16, turns: int = 8):  # fmt: skip
        super().__init__()
        self.sizes = dict(height=height, width=width, ticks=ticks, latent_dim=latent_dim, hidden=hidden, code=code,
                          channels=channels, turns=turns)  # fmt: skip
        inputs = len(PLANES) * height * width
        self.encoder = Shortcut(inputs, code, 2 * latent_dim)
        self.decoder = Shortcut(latent_dim, code, inputs)
        nn.init.constant_(self.encoder.last.bias[latent_dim:], -5.0)  # z begins almost without noise: something gets through
        self.moa = MOA(height, width, latent_dim, ticks, hidden, channels, turns)

    def encode(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """planes: float [B, 5, K]. Returns: mean and log variance of z, each [B, latent_dim]."""
        mean, log_var = self.encoder(planes.flatten(1)).chunk(2, 1)
        return mean, log_var.clamp(-10.0, 10.0)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z: [B, latent_dim]. Returns: logits of each cell being 1, [B, 5, K]."""
        return self.decoder(z).unflatten(1, (len(PLANES), -1))

    def trained_parameters(self, loss: str) -> list[nn.Parameter]:
        """All parameters that this loss reaches."""
        parts = [self.encoder] + [self.decoder] * (loss != "moa") + [self.moa] * (loss != "recon")
        return [parameter for part in parts for parameter in part.parameters()]


def loss_terms(model: VAE, loss: str, planes: torch.Tensor, tick: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """The means over a batch, in nats: [moa per action, recon per frame, kl per frame]; what is not trained is 0."""
    mean, log_var = model.encode(planes)
    z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
    moa = recon = mean.new_zeros(())
    if loss != "recon":
        moa = F.cross_entropy(model.moa(planes, tick, z), action)
    if loss != "moa":
        recon = F.binary_cross_entropy_with_logits(model.decode(z), planes, reduction="sum") / len(planes)
    kl = 0.5 * (mean**2 + log_var.exp() - 1.0 - log_var).sum(1).mean()
    return torch.stack([moa, recon, kl])


def load_vae(folder: str | Path, device: str | torch.device = "cpu") -> tuple[VAE, dict]:
    """The network of a run's best checkpoint, in eval mode, and the checkpoint. Raises: tracking.UsageError."""
    path = find_folder(folder) / "best.pt"
    checkpoint = tracking.load_checkpoint(path, KIND, device)
    model = VAE(**checkpoint["sizes"]).to(device)
    tracking.load_weights(model, checkpoint["model"], path)
    return model.eval(), checkpoint


def find_folder(run: str | Path) -> Path:
    """The folder with the checkpoints of a run: itself, or its one `dim<latent_dim>/`. Raises: tracking.UsageError."""
    run = Path(run)
    found = [run] if (run / "last.pt").is_file() else sorted(path.parent for path in run.glob("dim*/last.pt"))
    if not found:
        raise tracking.UsageError(f"{run}: no checkpoint there; name the folder of a run, such as vae_ckpts/vae__1758375079")
    return found[0]


# ---- the data, resident on the device


@dataclass
class Batches:
    """The samples as tensors on the device, and the symmetries that augment them."""

    frames: torch.Tensor  # uint8 [R, 5, K]
    rows: torch.Tensor  # int64 [M]
    actions: torch.Tensor  # int64 [M]
    ticks: torch.Tensor  # int64 [M]
    cells: torch.Tensor  # int64 [S, K]
    turned: torch.Tensor  # int64 [S, 7]

    @classmethod
    def of(cls, samples: Samples, device: torch.device):
        arrays = (samples.frames.reshape(len(samples.frames), len(PLANES), -1), samples.rows, samples.actions, samples.ticks)
        return cls(*(torch.as_tensor(array, device=device) for array in (*arrays, *symmetries(*samples.frames.shape[2:]))))

    def get(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """index: int64 [B] -> planes float [B, 5, K], ticks [B], actions [B]."""
        return self.frames[self.rows[index]].float(), self.ticks[index], self.actions[index]

    def augmented(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `get`, each sample seen through a random symmetry of the board."""
        turn = torch.randint(len(self.cells), (len(index),), device=index.device)
        cells = self.cells[turn][:, None].expand(-1, len(PLANES), -1)
        planes = self.frames[self.rows[index]].gather(2, cells).float()
        return planes, self.ticks[index], self.turned[turn, self.actions[index]]


# ---- judging


@torch.no_grad()
def predict(model: VAE, batches: Batches, index: np.ndarray, loss: str) -> tuple[np.ndarray | None, dict[str, float]]:
    """Predictions for samples `index`, z at its mean. Returns: probs float32 [m, 7] (None where the MOA is untrained), and
    the means {kl, recon_nll, recon_mse, recon_exact}; an exact frame has every cell right (p > 0.5)."""
    probs, sums = [], torch.zeros(4, dtype=torch.float64, device=batches.frames.device)
    for part in torch.as_tensor(index, device=batches.frames.device).split(EVAL_BATCH):
        planes, ticks, _ = batches.get(part)
        mean, log_var = model.encode(planes)
        kl = 0.5 * (mean**2 + log_var.exp() - 1.0 - log_var).sum()
        recon = [kl.new_zeros(())] * 3
        if loss != "recon":
            probs.append(model.moa(planes, ticks, mean).softmax(1))
        if loss != "moa":
            logits = model.decode(mean)
            nll = F.binary_cross_entropy_with_logits(logits, planes, reduction="sum")
            mse = (logits.sigmoid() - planes).square().mean((1, 2)).sum()
            recon = [nll, mse, ((logits > 0) == (planes > 0.5)).all(2).all(1).sum()]
        sums += torch.stack([kl, *recon]).double()
    means = dict(zip(("kl", "recon_nll", "recon_mse", "recon_exact"), (sums / len(index)).tolist(), strict=True))
    if loss == "moa":
        means |= dict.fromkeys(("recon_nll", "recon_mse", "recon_exact"))
    return torch.cat(probs).cpu().numpy() if probs else None, means


def action_table(probs: np.ndarray, targets: np.ndarray, observed: dict[str, np.ndarray]) -> tuple[list[dict], np.ndarray]:
    """One row an action, as moa_eval_epoch{k}.csv has it, and the confusion matrix int64 [7, 7], rows the action taken."""
    matrix = np.bincount(targets * 7 + probs.argmax(1), minlength=49).reshape(7, 7)
    recalls = {f"{name}_recall": scores.recall(observed[name], targets) for name in ("table", "bayes") if name in observed}
    rows = []
    for a, name in enumerate(ACTIONS):
        count, hits, said = int(matrix[a].sum()), matrix[a, a], matrix[:, a].sum()
        precision, recall = hits / said if said else 0.0, hits / count if count else 0.0
        row = dict(action=a, name=name, count=count, ratio=count / len(targets), precision=precision, recall=recall)
        row["f1"] = 2 * precision * recall / (precision + recall) if hits else 0.0
        rows.append(row | {key: recalls[key][a] if key in recalls else np.nan for key in ("table_recall", "bayes_recall")})
    return rows, matrix


def brief(probs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """top1, top3 and nll of probs [m, 7]: what metrics.json has of each observer."""
    found = scores.score(probs, targets)
    return {key: found[key] for key in ("top1", "top3", "nll")}


def judge(model: VAE, samples: Samples, batches: Batches, index: np.ndarray, checkpoint: dict) -> dict:
    """All figures of the samples `index`, as metrics.json names them, and under `arrays` what the figures are drawn from.

    checkpoint: what `load_vae` gives: the loss, and what the baselines know of the training split (`table`, `counts`).
    """
    loss, table, targets = checkpoint["args"]["loss"], checkpoint["table"], samples.actions[index]
    probs, means = predict(model, batches, index, loss)
    if table is not None and not samples.fits_table(table, checkpoint["strategies"]):
        hunters, names = table.shape[-2] - 1, "/".join(checkpoint["strategies"])
        print(f"[DATA] no `table` here: it was counted with {hunters} hunters of {names}")
        table = None
    observed = samples.observers(index, None if table is None else table.cpu().numpy())
    counts = np.array(checkpoint["counts"])
    observed["majority"] = np.tile((counts / counts.sum()).astype(np.float32), (len(targets), 1))
    moa = scores.score(probs, targets) if probs is not None else dict.fromkeys(("top1", "top3", "nll", "brier", "ece"))
    report = {"test": moa | means}
    for name in ("table", "bayes", "known", "uniform", "majority"):
        report[name] = brief(observed[name], targets) if name in observed else None
    compared = probs is not None and "bayes" in observed
    report["kl_to_bayes"] = float(scores.kl(observed["bayes"], probs).mean()) if compared else None
    bits = {"kl": means["kl"], "recon": means["recon_nll"]}
    report["bits"] = {key: None if nats is None else nats / math.log(2) for key, nats in bits.items()}
    if probs is not None:
        all_probs, ticks, strategies = {"moa": probs} | observed, samples.ticks[index], samples.strategies[index]
        groups = {"strategy": {name: strategies == s for s, name in enumerate(samples.strategy_names)}}
        groups["tick"] = {str(tick): ticks == tick for tick in np.unique(ticks)}
        for by, parts in groups.items():
            report[f"by_{by}"] = {
                value: {"samples": int(part.sum())} | {n: scores.score(p[part], targets[part]) for n, p in all_probs.items()}
                for value, part in parts.items()
                if part.any()
            }
    report["arrays"] = {"probs": probs, "targets": targets, "observed": observed}
    return report


def show(report: dict, what: str) -> None:
    """The figures of a report beside their floor and ceiling, as a small table."""
    test, bits = report["test"], report["bits"]
    print(f"\n[VAE] {what}")
    if test["nll"] is None:
        print("       MOA: untrained")
    else:
        print(f"       {'':<22}{'top-1':>8}{'top-3':>8}{'NLL, nats':>11}")
        for name in ("majority", "uniform", "table", "moa", "bayes", "known"):
            row = test if name == "moa" else report[name]
            if row:
                label = dict(uniform="uniform over legal", table="table (one obs.)", moa="MOA (this model)").get(name, name)
                print(f"       {label:<22}{row['top1']:8.4f}{row['top3']:8.4f}{row['nll']:11.4f}")
        away = "" if report["kl_to_bayes"] is None else f", KL(bayes || MOA) {report['kl_to_bayes']:.4f} nats"
        print(f"       Brier {test['brier']:.4f}, ECE {test['ece']:.4f}{away}")
    if test["recon_nll"] is None:
        print("       reconstruction: untrained")
    else:
        print(f"       reconstruction: {test['recon_exact']:.2%} of frames exact, {bits['recon']:.3f} bits a frame, "
              f"MSE {test['recon_mse']:.6f}")  # fmt: skip
    print(f"       KL of z: {test['kl']:.3f} nats ({bits['kl']:.2f} bits)", flush=True)


def draw(model: VAE, samples: Samples, index: np.ndarray, report: dict, history: list, levels: dict[str, float], loss: str,
         folder: Path, writer, step: int) -> None:  # fmt: skip
    """All PNGs of a finished run, in its folder and in TensorBoard, and the breakdown by strategy and tick as CSV.

    report, index: of the test split. history, levels: the loss curves, and the observers' NLL on the same validation split.
    """

    def save(figure, name: str) -> None:
        figures.save(figure, folder / f"{name}.png", writer, step)

    column = {key: [row[key] for row in history] for key in history[0]}
    panels, lines = {"total": {"train": column["total"]}}, {}
    if loss != "recon":
        panels["action loss, nats per action"] = {"train": column["moa"], "val": column["val_nll"]}
        lines["action loss, nats per action"] = {n: levels[n] for n in ("uniform", "table", "bayes") if n in levels}
    if loss != "moa":
        panels["reconstruction, nats per frame"] = {"train": column["recon"], "val": column["val_recon_nll"]}
    panels["KL of z, nats per frame"] = {"train": column["kl"], "val": column["val_kl"]}
    save(figures.curves(panels, lines, "epoch"), "vae_loss_curve")
    shares = {name: np.bincount(samples.actions[part], minlength=7) / len(part) for name, part in samples.splits.items()}
    shares.pop("all")
    save(figures.bars(ACTIONS, shares, "share of samples", "actions in the data, active samples only"), "class_distribution")
    probs, targets, observed = (report["arrays"][key] for key in ("probs", "targets", "observed"))
    if probs is not None:
        _, matrix = action_table(probs, targets, observed)
        save(figures.confusion(matrix, ACTIONS, f"MOA on the test split ({len(targets):,} samples)"), "confusion_matrix")
        recalls = {
            name: scores.recall(p, targets)
            for name, p in ({"MOA": probs} | observed).items()
            if name not in ("uniform", "majority")
        }
        save(figures.bars(ACTIONS, recalls, "recall", "recall per action, test split"), "recall")
        tracking.write_csv(folder / "moa_breakdown.csv", breakdown(report))
    if loss != "moa":
        some = index[:: max(1, len(index) // 8)][:8]
        frames = samples.frames[samples.rows[some]].astype(np.float32)
        with torch.no_grad():
            planes = torch.as_tensor(frames, device=next(model.parameters()).device).flatten(2)
            soft = model.decode(model.encode(planes)[0]).sigmoid().cpu().numpy().reshape(frames.shape)
        rows = {"original": frames, "reconstruction": soft}
        save(figures.planes(rows, PLANES, [f"sample {i}" for i in some]), "reconstructions")


def breakdown(report: dict) -> list[dict]:
    """`by_strategy` and `by_tick` of a report as rows: by, value, samples, predictor, top1, top3, nll, brier, ece."""
    return [
        {"by": by, "value": value, "samples": found["samples"], "predictor": name} | figure
        for by in ("strategy", "tick")
        for value, found in report[f"by_{by}"].items()
        for name, figure in found.items()
        if name != "samples"
    ]


# ---- training


def check(args: Args) -> None:
    """Raises: tracking.UsageError: a number is out of its range, or flags that exclude each other."""
    for name, low in dict(epochs=1, batch_size=1, latent_dim=1, torch_threads=1, seed=0).items():
        value, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        if value < low:
            raise tracking.UsageError(f"{flag}: must be at least {low}, got {value}")
        if value >= 2**31:
            raise tracking.UsageError(f"{flag}: must be below 2**31, got {value}")
    if not (math.isfinite(args.learning_rate) and args.learning_rate > 0):
        raise tracking.UsageError(f"--learning-rate: must be a positive number, got {args.learning_rate}")
    if not (math.isfinite(args.kl_coef) and args.kl_coef >= 0):
        raise tracking.UsageError(f"--kl-coef: must be a number of at least 0, got {args.kl_coef}")
    if args.resume and args.evaluate:
        raise tracking.UsageError("--resume and --evaluate exclude each other: choose one")
    if not re.fullmatch(r"[\w-][\w.-]*", args.exp_name):
        raise tracking.UsageError(f"--exp-name: must be letters, digits, '_', '-' and '.', got {args.exp_name!r}")


def read_samples(args: Args, split: bool = True) -> Samples:
    samples = load_samples(default_or_fresh(args.data), args.layout, split)
    print(f"[VAE] Loaded {len(samples)} samples.")
    for line in samples.inferred:
        print(f"[DATA] inferred: {line}")
    return samples


def evaluate(args: Args, device: torch.device) -> None:
    """Judge a finished run on the whole of another file; nothing of it was trained on."""
    start, folder = time.perf_counter(), find_folder(args.evaluate)
    model, checkpoint = load_vae(folder, device)
    samples = read_samples(args, split=False)
    height, width = samples.frames.shape[2:]
    if (height, width) != (model.sizes["height"], model.sizes["width"]):
        sizes = f"{model.sizes['height']}x{model.sizes['width']}"
        raise tracking.UsageError(
            f"{args.data}: obs: expected boards of {sizes}, as the checkpoint's, found {height}x{width}"
        )
    if samples.fingerprint == checkpoint["fingerprint"]:
        raise tracking.UsageError(
            f"{args.data}: the run was trained on this file; judge it on another, such as --data fresh"
        )
    report = judge(model, samples, Batches.of(samples, device), samples.splits["all"], checkpoint)
    show(report, f"epoch {checkpoint['epoch'] - 1} (best on validation) on the whole of {args.data}: {len(samples)} samples")
    path, arrays = folder / f"evaluate_{Path(default_or_fresh(args.data)).stem}.json", report.pop("arrays")
    if arrays["probs"] is not None:
        tracking.write_csv(path.with_suffix(".csv"), action_table(arrays["probs"], arrays["targets"], arrays["observed"])[0])
    seconds = time.perf_counter() - start
    trained = checkpoint["args"]
    head = dict(run=checkpoint["run"], seed=trained["seed"], args=trained, data=args.data, seconds=seconds,
                samples_per_second=len(samples) / seconds, samples=dict(train=0, val=0, test=len(samples)))  # fmt: skip
    tracking.write_json(path, head | report)
    print(f"[VAE] saved: {path.as_posix()}")


def rates(step: int, args: Args, steps_per_epoch: int) -> tuple[float, float]:
    """Learning rate and KL weight of a step: the one rises and falls linearly, the other is warmed up over an epoch."""
    rise, fall = min(1.0, (step + 1) / 100), 1.0 - step / (args.epochs * steps_per_epoch)
    return args.learning_rate * rise * fall, args.kl_coef * min(1.0, (step + 1) / steps_per_epoch)


def run_epoch(model, optimizer, batches: Batches, index: torch.Tensor, args: Args, step: int, steps_per_epoch: int, writer):
    """Train once on the samples `index`, in random order, `step` steps having been taken before.

    Returns: the means over these samples {moa, recon, kl, total}, and the steps taken so far.
    """
    names = ("moa", "recon", "kl", "total")
    sums, logged = torch.zeros(2, len(names), device=index.device)  # over the epoch; over the steps since the last log
    steps_logged = 0
    order = index[torch.randperm(len(index)).to(index.device)]
    with tqdm(total=len(index), unit=" samples", leave=False, mininterval=1.0) as bar:
        for part in order.split(args.batch_size):
            optimizer.param_groups[0]["lr"], kl_coef = rates(step, args, steps_per_epoch)
            terms = loss_terms(model, args.loss, *batches.augmented(part))
            loss = terms[0] + terms[1] + kl_coef * terms[2]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen = torch.cat([terms, loss[None]]).detach()
            sums += seen * len(part)
            logged += seen
            step, steps_logged = step + 1, steps_logged + 1
            bar.update(len(part))
            if steps_logged == LOG_STEPS or bar.n == len(index):
                means = dict(zip(names, (logged / steps_logged).tolist(), strict=True))
                tracking.log_scalars(writer, "losses", means | {"kl_coef": kl_coef}, step)
                writer.add_scalar("charts/learning_rate", optimizer.param_groups[0]["lr"], step)
                logged.zero_()
                steps_logged = 0
    return dict(zip(names, (sums / len(index)).tolist(), strict=True)), step


def validate(model: VAE, samples: Samples, batches: Batches, observed: dict, args: Args, epoch: int, folder: Path) -> dict:
    """Judge the validation split after an epoch, print and save. Returns: its figures, None for what is untrained."""
    val = samples.splits["val"]
    probs, means = predict(model, batches, val, args.loss)
    if probs is None:
        print("[MOA] untrained")
        return means
    targets = samples.actions[val]
    moa, (rows, matrix) = scores.score(probs, targets), action_table(probs, targets, observed)
    csv, npz = (folder / f"moa_eval_epoch{epoch}.{ending}" for ending in ("csv", "npz"))
    tracking.write_csv(csv, rows)
    arrays = dict(targets=targets.astype(np.int8), predictions=probs.argmax(1).astype(np.int8), probabilities=probs)
    arrays |= dict(strategies=samples.strategies[val], ticks=samples.ticks[val].astype(np.int32), confusion_matrix=matrix)
    save_arrays(npz, arrays)
    print(f"[MOA] epoch {epoch}: top1={moa['top1']:.4f}, top3={moa['top3']:.4f}, saved:")
    print(f"       {csv.as_posix()}\n       {npz.as_posix()}")
    return moa | means


def train(args: Args, device: torch.device, resumed: dict | None) -> None:
    start = time.perf_counter()
    samples = read_samples(args)
    if resumed and resumed["fingerprint"] != samples.fingerprint:
        raise tracking.UsageError(f"{args.data}: not the data that the run was trained on; name that file with --data")
    parts = {name: len(samples.splits[name]) for name in ("train", "val", "test")}
    print(f"[DATA] split {samples.split_law}: {parts['train']} train, {parts['val']} val, {parts['test']} test samples; "
          "an epoch's figures are held out, of the val split, the last ones of the test split")  # fmt: skip
    tracking.seed_everything(args.seed, args.torch_deterministic)
    batches = Batches.of(samples, device)
    train_index = torch.as_tensor(samples.splits["train"], device=device)
    steps_per_epoch = math.ceil(len(train_index) / args.batch_size)
    height, width = samples.frames.shape[2:]
    ticks = int(samples.ticks.max()) + 1
    model = VAE(**resumed["sizes"]) if resumed else VAE(height, width, ticks, args.latent_dim)
    model = model.to(device)
    optimizer = torch.optim.AdamW(model.trained_parameters(args.loss), lr=args.learning_rate, weight_decay=0.01)
    table = samples.count_table()
    observed = samples.observers(samples.splits["val"], table)

    state = dict(epoch=0, step=0, best=math.inf, history=[], seconds=0.0, train_seconds=0.0)
    if resumed:
        folder, run_name = find_folder(args.resume), resumed["run"]
        state = {key: resumed[key] for key in state}
        tracking.load_weights(model, resumed["model"], folder / "last.pt")
        optimizer.load_state_dict(resumed["optimizer"])
        tracking.set_rng_state(resumed["rng"])
    else:
        run_name = tracking.new_run(args.exp_name, "vae_ckpts")
        folder = Path("vae_ckpts") / run_name / f"dim{args.latent_dim}"
        folder.mkdir()
    settings = asdict(args) | {"resume": ""}  # so that a resumed run's files equal an uninterrupted one's
    fixed = dict(kind=KIND, run=run_name, args=settings, sizes=model.sizes, fingerprint=samples.fingerprint,
                 table=None if table is None else torch.as_tensor(table), strategies=samples.strategy_names,
                 counts=np.bincount(samples.actions[samples.splits["train"]], minlength=7).tolist())  # fmt: skip

    def save(name: str) -> None:
        now = state | dict(seconds=state["seconds"] + time.perf_counter() - start)
        learnt = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), rng=tracking.rng_state())
        tracking.save_checkpoint(folder / name, fixed | now | learnt)

    writer = tracking.open_log(run_name, settings, purge_step=state["step"] + 1 if resumed else None)
    if not resumed:
        save("last.pt")  # so that a run killed in its first epoch can be resumed too
    untrained = dict(moa="the decoder", recon="the MOA head").get(args.loss)
    if untrained:
        print(f"[VAE] --loss {args.loss}: {untrained} stays untrained")
    print("[VAE] Begin offline training...", flush=True)

    for epoch in range(state["epoch"], args.epochs):
        print(f"\n[Epoch {epoch + 1}/{args.epochs}]", flush=True)
        epoch_start = time.perf_counter()
        means, state["step"] = run_epoch(
            model, optimizer, batches, train_index, args, state["step"], steps_per_epoch, writer
        )
        seconds = time.perf_counter() - epoch_start
        state["train_seconds"] += seconds
        if not math.isfinite(means["total"]):
            raise tracking.UsageError(f"epoch {epoch}: the loss is {means['total']}; try a smaller --learning-rate")
        writer.add_scalar("charts/SPS", len(train_index) / seconds, state["step"])
        figures_of_val = validate(model, samples, batches, observed, args, epoch, folder)
        tracking.log_scalars(writer, "val", figures_of_val, state["step"])
        used = [name for name in ("moa", "recon") if args.loss in (name, "both")] + ["kl", "total"]
        row = {name: means[name] for name in used}
        row |= {f"val_{key}": value for key, value in figures_of_val.items() if value is not None}
        print("[VAE] " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()), flush=True)
        state["history"].append(dict(epoch=epoch) | row)
        state["epoch"] = epoch + 1
        tracking.write_csv(folder / "loss.csv", state["history"])
        val_nll = row.get("val_nll", 0.0) + row.get("val_recon_nll", 0.0)
        if val_nll < state["best"]:
            state["best"] = val_nll
            save("best.pt")
        save("last.pt")

    print(f"\n[VAE] model saved to: {folder.as_posix()}")
    model, best = load_vae(folder, device)
    test = samples.splits["test"]
    report = judge(model, samples, batches, test, best)
    show(report, f"epoch {best['epoch'] - 1} (best on validation) on the test split: {len(test)} samples, none trained on")
    levels = {name: scores.score(p, samples.actions[samples.splits["val"]])["nll"] for name, p in observed.items()}
    draw(model, samples, test, report, state["history"], levels, args.loss, folder, writer, state["step"])
    report.pop("arrays")
    tracking.log_scalars(writer, "test", report["test"], state["step"])
    seconds = state["seconds"] + time.perf_counter() - start
    speed = args.epochs * len(train_index) / state["train_seconds"]
    head = dict(run=run_name, seed=args.seed, args=settings, seconds=seconds, samples_per_second=speed, samples=parts)
    tracking.write_json(folder / "metrics.json", head | report)
    writer.close()
    print(f"[VAE] {seconds:.0f} s, {speed:.0f} samples/s in training; figures and metrics.json: {folder.as_posix()}")


def main() -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    check(args)
    resumed = None
    if args.resume:
        resumed = tracking.load_checkpoint(find_folder(args.resume) / "last.pt", KIND)
        args = tracking.resumed_args(args, resumed, free=("resume", "data", "cuda", "torch_threads"))
    torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    if args.evaluate:
        evaluate(args, device)
    else:
        train(args, device, resumed)


if __name__ == "__main__":
    tracking.run(main, DataError)
