"""What `pretrain_vae.py` reports of a VAE: its predictions, and their figures as metrics.json names them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data.datasets import Batch, Batches, Samples
from metrics import observers, reports, scores
from metrics.columns import Columns

BATCH_SIZE = 4096


class Predictions(NamedTuple):
    """Of m samples, z at its mean; None where the loss leaves a part untrained."""

    probs: np.ndarray | None  # float32 [m, n], p(action | z)
    goal_probs: np.ndarray | None  # float32 [m, goals, n], p(action | goal)
    z: np.ndarray  # float32 [m, latent_dim]
    means: dict[
        str, float | None
    ]  # kl, recon_nll, recon_mse, recon_exact (share of frames with every cell right)
    used_dimensions: int  # of z, with a KL above 0.01 nats


@torch.no_grad()
def predict(model: torch.nn.Module, batches: Batches, index: np.ndarray) -> Predictions:
    """Of the samples `index`: whole groups, in order. model: a `pretrain_vae.VAE`."""
    columns = Columns(len(index))
    sums: dict[str, torch.Tensor] = {}
    done = 0
    for groups in batches.shares(index, BATCH_SIZE):
        batch = batches.take(groups)
        output = model(batch)
        batch_sums = {} if output.cell_logits is None else reconstruction_sums(output.cell_logits, batch)
        batch_sums["kl"] = output.kl().sum(0)  # [latent_dim]
        for name, value in batch_sums.items():
            sums[name] = sums.get(name, 0.0) + value.double()
        rows = slice(done, done + len(output.mean))
        for name in ("mean", "action_logprobs", "goal_logprobs"):
            value = getattr(output, name)
            if value is not None:
                value = value.cpu().numpy()
                columns.put(name, rows, value if name == "mean" else np.exp(value))
        done = rows.stop

    kl = sums.pop("kl").cpu().numpy() / len(index)
    means = dict(kl=float(kl.sum()), recon_nll=None, recon_mse=None, recon_exact=None)
    means |= {name: value.item() / len(index) for name, value in sums.items()}
    return Predictions(
        probs=columns.get("action_logprobs"),
        goal_probs=columns.get("goal_logprobs"),
        z=columns["mean"],
        means=means,
        used_dimensions=int((kl > 0.01).sum()),
    )


def action_figures(
    model: torch.nn.Module, samples: Samples, batches: Batches, index: np.ndarray
) -> dict[str, float]:
    """How well the actions of the samples `index`, whole groups, are predicted.

    Returns: top1, top3 and nll of p(action | z); goal_nll of p(action | goal), if there are samples with a goal.
    """
    predictions = predict(model, batches, index)
    actions = samples.actions[index]
    score = scores.score(predictions.probs, actions)
    figures = {name: score[name] for name in ("top1", "top3", "nll")}
    goals = batches.goals.cpu().numpy()[index]
    known = np.flatnonzero(goals >= 0)
    if len(known):
        by_goal = predictions.goal_probs[known, goals[known]]
        figures["goal_nll"] = scores.score(by_goal, actions[known])["nll"]
    return figures


def reconstruction_sums(cell_logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """NLL in nats, MSE, and frames with every cell right (p > 0.5), summed over a batch. cell_logits: [B, 3 + k, K]."""
    planes = batch.planes
    right = (cell_logits > 0) == (planes > 0.5)
    return dict(
        recon_nll=F.binary_cross_entropy_with_logits(cell_logits, planes, reduction="sum"),
        recon_mse=(cell_logits.sigmoid() - planes).square().mean((1, 2)).sum(),
        recon_exact=right.all(2).all(1).sum(),
    )


def evaluate(
    samples: Samples,
    batches: Batches,
    index: np.ndarray,
    checkpoint: dict,
    predictions: Predictions,
    observed: dict[str, np.ndarray],
    belief: np.ndarray | None = None,
) -> dict:
    """All figures of the samples `index`, as metrics.json names them; under `arrays` what is drawn.

    Args:
        checkpoint: with `goals_trained` and the belief's law, `belief`.
        predictions, observed: of these samples, from `predict` and `baselines`.
        belief: float [m, goals + 1], the last column none of them, which predicts `observed["belief"]`.
    """
    test = dict.fromkeys(("top1", "top3", "nll", "brier", "ece"))
    if predictions.probs is not None:
        test = scores.score(predictions.probs, samples.actions[index])
    goal = batches.goals.cpu().numpy()[index]
    if not checkpoint["goals_trained"]:
        goal = np.full_like(goal, -1)  # no figures of heads that no label reached
    nats = dict(kl=predictions.means["kl"], recon=predictions.means["recon_nll"])
    report = dict(
        test=test | predictions.means,
        bits={name: None if value is None else value / math.log(2) for name, value in nats.items()},
        used_dimensions=predictions.used_dimensions,
        goals_trained=checkpoint["goals_trained"],
    )
    report |= reports.of_actions(
        samples, index, observed, predictions.probs, predictions.goal_probs, goal, predictions.z
    )
    if belief is not None:
        report["belief"] |= checkpoint["belief"]
        report["none"] = reports.none_report(samples, index, belief[:, -1])
    return report


def baselines(samples: Samples, index: np.ndarray, checkpoint: dict) -> dict[str, np.ndarray]:
    """The observers' predictions for the samples `index`, and the majority class of the training split."""
    table = checkpoint["table"]
    if table is not None and not observers.table_fits(samples, table, checkpoint["strategies"]):
        names = "/".join(checkpoint["strategies"])
        print(f"[DATA] no `table` here: it was counted with {table.shape[-2] - 1} hunters of {names}")
        table = None
    tables = (None if counts is None else counts.cpu().numpy() for counts in (table, checkpoint["pairs"]))
    observed = observers.predictions(samples, index, *tables)
    counts = np.array(checkpoint["counts"])
    majority = (counts / counts.sum()).astype(np.float32)
    observed["majority"] = np.broadcast_to(majority, (len(index), len(counts)))
    return observed


def lines(report: dict) -> list[str]:
    """A report as text: the MOA between its lower and upper bounds, then the reconstruction and z."""
    test, bits, used = report["test"], report["bits"], report["used_dimensions"]
    reconstruction = "untrained"
    if test["recon_nll"] is not None:
        exact = f"{test['recon_exact']:.2%} of frames exact"
        reconstruction = f"{exact}, {bits['recon']:.3f} bits a frame, MSE {test['recon_mse']:.6f}"
    kl = f"KL of z: {test['kl']:.3f} nats ({bits['kl']:.2f} bits), {used} dimensions above 0.01"
    if not used:
        kl += ": z carries nothing (posterior collapse); try a smaller --kl-coef"
    return [*reports.lines(report), f"reconstruction: {reconstruction}", kl]


def validation(
    samples: Samples, batches: Batches, index: np.ndarray, predictions: Predictions
) -> dict[str, float | None]:
    """The figures of an epoch on the samples `index`; None for what is untrained."""
    if predictions.probs is None:
        return predictions.means
    targets = samples.actions[index]
    metrics: dict[str, float | None] = dict(scores.score(predictions.probs, targets))
    metrics["goal_nll"] = None
    goal = batches.goals.cpu().numpy()[index]
    goal_known = goal >= 0
    if goal_known.any():
        by_goal = predictions.goal_probs[goal_known, goal[goal_known]]
        metrics["goal_nll"] = float(scores.nll(by_goal, targets[goal_known]).mean())
    return metrics | predictions.means


def validation_arrays(
    samples: Samples, index: np.ndarray, predictions: Predictions, confusion_matrix: np.ndarray
) -> dict[str, np.ndarray]:
    """What moa_eval_epoch{k}.npz holds."""
    arrays = dict(
        targets=samples.actions[index].astype(np.int8),
        predictions=predictions.probs.argmax(1).astype(np.int8),
        probabilities=predictions.probs,
        strategies=samples.strategies[index],
        ticks=samples.ticks[index].astype(np.int32),
        confusion_matrix=confusion_matrix,
        goal_probabilities=predictions.goal_probs,
        z=predictions.z,
    )
    return {name: array for name, array in arrays.items() if array is not None}


@torch.no_grad()
def reconstructions(model: torch.nn.Module, batches: Batches, groups: np.ndarray) -> dict[str, np.ndarray]:
    """`original` and `reconstruction` of the first frame of each of G groups, each float [G, 3 + k, H, W]."""
    first = np.cumsum(batches.length[groups]) - batches.length[groups]
    board = (model.sizes["height"], model.sizes["width"])
    batch = batches.take(groups)
    frames = dict(original=batch.planes, reconstruction=model(batch).cell_logits.sigmoid())
    return {name: cells[first].unflatten(2, board).cpu().numpy() for name, cells in frames.items()}
