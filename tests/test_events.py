"""TensorBoard's event files: nothing twice and nothing missing after a kill."""

import importlib.util
import os
import shutil
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.json_format import MessageToDict
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import writer as torch_writer

import hop_ppo
import pretrain_vae
import tracking
import train_world_model
from data import DataError
from data.collect import Args as CollectArgs
from data.collect import collect
from data.trajectories import save_arrays
from tracking import figures

ALL = dict(scalars=0, images=0, tensors=0)


def points(folder: Path) -> dict[str, list]:
    """(step, value) by tag, as TensorBoard shows them; speeds and pictures without their value."""
    log = EventAccumulator(str(folder), size_guidance=ALL).Reload()
    tags = log.Tags()
    found = {}
    for tag in tags["scalars"]:
        found[tag] = [(event.step, "" if tag == "charts/SPS" else event.value) for event in log.Scalars(tag)]
    for tag in tags["images"]:
        found[tag] = [(event.step, "") for event in log.Images(tag)]
    for tag in tags["tensors"]:
        if tag.startswith("_hparams_/"):
            continue  # metadata alone
        texts = [(event.step, event.tensor_proto.string_val[0]) for event in log.Tensors(tag)]
        found[tag] = texts
    return found


def log_epochs(writer, epochs) -> None:
    for step in epochs:
        tracking.log_scalars(writer, "losses", {"total": 1.0 / step, "name": "not a number"}, step)


# ---- the log


def test_what_is_logged_is_on_disk_at_once(tmp_path):
    writer = tracking.open_log("run", {"seed": 1}, tmp_path)
    log_epochs(writer, range(1, 4))
    found = points(tmp_path / "run")
    assert found["losses/total"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert found["hyperparameters/text_summary"] == [(0, b"|param|value|\n|-|-|\n|seed|1|")]


def test_a_resumed_run_has_the_points_of_an_uninterrupted_one(tmp_path):
    """Killed after step 3, saved at step 2; killed once more at the end, and resumed when it was finished."""
    whole = tracking.open_log("whole", {"seed": 1}, tmp_path)
    log_epochs(whole, range(1, 6))
    log_epochs(tracking.open_log("part", {"seed": 1}, tmp_path), range(1, 4))
    for saved, until in ((2, 5), (4, 5), (4, 5)):
        resumed = tracking.open_log("part", {"seed": 1}, tmp_path, purge_step=saved + 1)
        log_epochs(resumed, range(saved + 1, until + 1))
    assert points(tmp_path / "part") == points(tmp_path / "whole")


def test_a_run_killed_before_its_first_step_has_its_settings_once(tmp_path):
    tracking.open_log("run", {"seed": 1}, tmp_path)
    tracking.open_log("run", {"seed": 1}, tmp_path, purge_step=1)
    assert len(points(tmp_path / "run")["hyperparameters/text_summary"]) == 1


def test_a_log_is_read_after_those_before_it_whatever_the_clock_says(tmp_path, monkeypatch):
    log_epochs(tracking.open_log("run", {}, tmp_path), range(1, 4))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1000)
    log_epochs(tracking.open_log("run", {}, tmp_path, purge_step=2), [2])
    assert [step for step, _ in points(tmp_path / "run")["losses/total"]] == [1, 2]


def test_a_record_cut_short_by_a_kill_hides_nothing(tmp_path):
    log_epochs(tracking.open_log("run", {}, tmp_path), range(1, 4))
    (file,) = (tmp_path / "run").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    log_epochs(tracking.open_log("run", {}, tmp_path, purge_step=3), [3])
    assert [step for step, _ in points(tmp_path / "run")["losses/total"]] == [1, 2, 3]


def test_a_second_test_replaces_the_first(tmp_path):
    log_epochs(tracking.open_log("run", {}, tmp_path), [1])
    for _ in range(2):
        writer = tracking.open_test_log("run", tmp_path)
        tracking.log_scalars(writer, "test_metrics", {"nll": 0.5}, 1)
        writer.close()
    found = points(tmp_path / "run")
    assert found["test_metrics/nll"] == [(1, 0.5)] and found["losses/total"] == [(1, 1.0)]


def test_a_setting_that_is_no_text_is_logged(tmp_path):
    """The bytes of a file's name that are no letters in UTF-8."""
    tracking.open_log("run", {"data": os.fsdecode(b"\xe4.npz")}, tmp_path)
    (text,) = points(tmp_path / "run")["hyperparameters/text_summary"]
    assert rb"|data|\xe4.npz|" in text[1]


def shown_settings(run: Path) -> dict:
    """On the page HPARAMS."""
    found = EventAccumulator(str(run)).Reload().PluginTagToContent("hparams")
    assert set(found) == {"_hparams_/session_start_info"}, (
        "TensorBoard takes one experiment for that of all runs"
    )
    data = HParamsPluginData.FromString(found["_hparams_/session_start_info"])
    return {key: MessageToDict(value) for key, value in data.session_start_info.hparams.items()}


def test_settings_stand_on_the_page_hparams(tmp_path):
    """Numbers (a switch is 0 or 1) and texts, once, in the run itself."""
    args = dict(seed=1, cuda=True, exp_name="x", rate=0.5, env_args=("height=4",), target_kl=None)
    tracking.open_log("run", args, tmp_path)
    tracking.open_log("run", args | dict(seed=2), tmp_path, purge_step=1)
    expected = dict(seed=1.0, cuda=1.0, exp_name="x", rate=0.5, env_args="('height=4',)", target_kl="None")
    assert shown_settings(tmp_path / "run") == expected
    assert len(list(tmp_path.iterdir())) == 1, "no run of its own"


# ---- Weights & Biases


class FakeWandb(ModuleType):
    """Takes the place of torch's writer, as wandb does, to learn of folders."""

    def __init__(self, patch):
        super().__init__("wandb")
        self.patch, self.given, self.folders = patch, {}, []
        self.__spec__ = ModuleSpec("wandb", None)

    def init(self, **given) -> None:
        self.given = given
        folders = self.folders

        class Watched(torch_writer.EventFileWriter):
            def __init__(self, folder, *args, **kwargs):
                folders.append(folder)
                super().__init__(folder, *args, **kwargs)

        self.patch.setattr(torch_writer, "EventFileWriter", Watched)


def test_track_sends_what_is_logged_to_wandb(tmp_path, monkeypatch):
    wandb = FakeWandb(monkeypatch)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    args = dict(track=True, wandb_project_name="mine", wandb_entity=None, seed=3)
    writer = tracking.open_log("run__1", args, tmp_path)
    expected = dict(project="mine", entity=None, sync_tensorboard=True, config=args, name="run__1")
    assert wandb.given == expected | dict(save_code=True)
    assert wandb.folders == [str(tmp_path / "run__1")]
    log_epochs(writer, [1])
    assert points(tmp_path / "run__1")["losses/total"] == [(1, 1.0)]
    tracking.open_log("run__2", args | dict(track=False), tmp_path)
    assert wandb.given["name"] == "run__1"


@pytest.mark.parametrize("script", [pretrain_vae, train_world_model, hop_ppo])
def test_track_without_wandb_is_one_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, script, tmp_path, "--track")
    assert stop.value.code == 2 and os.listdir(tmp_path) == []
    assert capsys.readouterr().err.startswith("error: --track: wandb is not installed: `pip install wandb`")


# ---- the scripts: a run, its folder as it was at several moments, and each of these resumed


def call(monkeypatch, script, folder: Path, *flags) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["script", *map(str, flags)])
    tracking.run(script.main, DataError)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.npz"
    save_arrays(path, collect(CollectArgs(samples=600)).arrays())
    return path


def small_figure(*args) -> Figure:
    return Figure(figsize=(1, 1))


SCRIPTS = {
    "pretrain_vae": (pretrain_vae, ["--epochs", 2, "--batch-size", 256]),
    "train_world_model": (train_world_model, ["--epochs", 2, "--batch-size", 128]),
    "hop_ppo": (
        hop_ppo,
        [
            "--num-envs",
            "16",
            "--num-steps",
            "8",
            "--total-timesteps",
            "768",
            "--eval-every",
            "2",
            "--eval-boards",
            "4",
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_killed_at_any_moment_logs_what_it_would_have(name, data_file, tmp_path, monkeypatch):
    script, flags = SCRIPTS[name]
    if script is not hop_ppo:
        flags = ["--data", data_file, *flags]
    monkeypatch.setattr(figures, "curves", small_figure)
    monkeypatch.setattr(pretrain_vae, "draw_figures", lambda *args: {"curve": small_figure()})
    monkeypatch.setattr(figures, "of_returns", lambda *args: {"teams": small_figure()})
    earned = {"teams": {"mixed": dict(learner=1.0, team=2.0)}}
    monkeypatch.setattr(hop_ppo, "compare", lambda *args: earned)
    monkeypatch.setattr(hop_ppo, "adapt", lambda *args: {})
    monkeypatch.setattr(hop_ppo.returns, "table_rows", lambda *args: [])
    monkeypatch.setattr(hop_ppo.returns, "lines", lambda *args: [])
    monkeypatch.setattr(hop_ppo.Evaluator, "film", lambda *args: None)
    save, moments = tracking.save_checkpoint, []

    def saving(path, checkpoint) -> None:
        for moment in ("before", "after"):
            shutil.copytree(whole, tmp_path / f"{moment}{len(moments)}")
            moments.append(tmp_path / f"{moment}{len(moments)}")
            if moment == "before":
                save(path, checkpoint)

    whole = tmp_path / "whole"
    whole.mkdir()
    monkeypatch.setattr(tracking, "save_checkpoint", saving)
    call(monkeypatch, script, whole, *flags)
    monkeypatch.setattr(tracking, "save_checkpoint", save)
    (run,) = (whole / "runs").iterdir()
    expected = points(run)
    assert shown_settings(run)["seed"] == 1 and {"test/nll", "final/team"} & set(expected)
    assert any(tag.startswith("figures/") for tag in expected) and "charts/SPS" in expected

    shutil.copytree(whole, tmp_path / "finished")
    resumable = [folder for folder in moments if list(folder.rglob("last.pt"))]
    # the first save; after an epoch that is not saved yet; the end
    for folder in (resumable[0], resumable[-2], tmp_path / "finished"):
        (checkpoint,) = folder.rglob("last.pt")
        call(monkeypatch, script, folder, "--resume", checkpoint.parent)
        assert points(folder / "runs" / run.name) == expected, folder.name
