"""What a checkpoint holds: each field changed in each way is one line that names it, and so is each flipped byte."""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hidden_game import HIDDEN, call
from saved import FIRST_EPOCH, whole_checkpoint, write_run

import hop_ppo
import pretrain_vae
import test_obs_reward_model
import tracking
import train_world_model
from benchmarks.bad_checkpoints import (
    bad_fields,
    changes_of,
    flipped,
    is_allowed,
    names_of,
    paths_of,
    replaced,
)
from data.collect import Args as CollectArgs
from data.collect import collect
from data.trajectories import save_arrays
from envs import Rules
from envs.vector_env import check_state
from pretrain_vae import VAE
from tracking import checkpoints, fit
from train_world_model import ObjectWorldModel

SCRIPTS = {script.KIND: script for script in (pretrain_vae, train_world_model, hop_ppo)}
KINDS = pytest.mark.parametrize("kind", SCRIPTS)
SMALL_PPO = (
    "--num-envs 16 --num-steps 8 --total-timesteps 256 --num-minibatches 2 --eval-every 1 --eval-boards 4"
)


@dataclass
class Run:
    """A trained run: its best and its last checkpoint."""

    script: object
    folder: Path

    @property
    def schema(self) -> tracking.Schema:
        return self.script.CHECKPOINT

    def load(self, name: str = "last.pt") -> dict:
        return tracking.load_checkpoint(self.folder / name, self.schema)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A run of each script, made once."""
    folder = tmp_path_factory.mktemp("runs")
    data = collect(CollectArgs(samples=600, strategies=("NS", "NH"), rules=HIDDEN))
    save_arrays(folder / "data.npz", data.arrays())
    write_run(folder / "vae", whole_checkpoint(pretrain_vae, VAE(8, 8, 35)))
    write_run(folder / "wm", whole_checkpoint(train_world_model, ObjectWorldModel(8, 8, [0.0, 1.0, 10.0])))
    flags = (*SMALL_PPO.split(), "--om", "belief", "--vae", "vae", "--world-model", "wm", "--real-ratio", 0.5)
    few = ("--data", "data.npz", "--epochs", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hop_ppo.Evaluator, "report", lambda *args: None)
        patch.setattr(tracking.figures, "save", lambda *args: None)
        assert call(pretrain_vae, folder, *few) == 0
        assert call(train_world_model, folder, *few) == 0
        assert call(hop_ppo, folder, *flags) == 0
    found = {}
    for kind, root in zip(SCRIPTS, ("vae_ckpts", "wm_ckpts", "ppo_ckpts"), strict=True):
        (last,) = (folder / root).rglob("last.pt")
        found[kind] = Run(SCRIPTS[kind], last.parent)
    return found


@pytest.fixture
def copied(runs, tmp_path):
    """A function of a kind: a copy of its run, to be spoilt."""

    def copy_run(kind: str) -> Run:
        folder = tmp_path / "copy"
        folder.mkdir()
        for name in ("last.pt", "best.pt"):
            (folder / name).write_bytes((runs[kind].folder / name).read_bytes())
        return Run(runs[kind].script, folder)

    return copy_run


def refused(call, *args) -> str:
    """The one line of a mistake."""
    with pytest.raises(ValueError) as error:
        call(*args)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


# ---- the file


@KINDS
def test_torch_reads_a_checkpoint_with_its_digest(kind, runs):
    for name in ("best.pt", "last.pt"):
        path = runs[kind].folder / name
        assert path.read_bytes()[-71:-64] == b"sha256:"
        assert torch.load(path, weights_only=True)["kind"] == kind


def test_the_same_content_is_the_same_bytes(tmp_path):
    content = {"kind": "k", "model": {"w": torch.arange(5.0)}}
    for name in ("a.pt", "b.pt"):
        tracking.save_checkpoint(tmp_path / name, copy.deepcopy(content))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@KINDS
def test_a_flipped_bit_is_refused_wherever_it_is(kind, copied):
    run = copied(kind)
    (run.folder / "best.pt").unlink()
    path = run.folder / "last.pt"
    for position, spoilt in flipped(path.read_bytes(), seed=1):
        path.write_bytes(spoilt)
        assert "last.pt: the checkpoint is cut short or damaged" in refused(run.load), position


@pytest.mark.parametrize("length", [0, 1, 21, 22, 70, 71, 500, -1, -71, -93, -22])
def test_a_file_cut_short_is_refused(length, copied):
    run = copied("pretrain_vae")
    path = run.folder / "last.pt"
    path.write_bytes(path.read_bytes()[:length])
    assert "last.pt: the checkpoint is cut short or damaged" in refused(run.load)


def test_bytes_after_the_end_are_refused(copied):
    run = copied("pretrain_vae")
    path = run.folder / "last.pt"
    path.write_bytes(path.read_bytes() + b"\0")
    assert "cut short or damaged" in refused(run.load)


@KINDS
def test_a_checkpoint_without_a_digest_is_of_an_earlier_version(kind, copied):
    run = copied(kind)
    torch.save(run.load(), run.folder / "last.pt")
    assert run.load()["kind"] == kind


def test_a_flipped_bit_of_weights_without_a_digest_is_refused(copied):
    run = copied("train_world_model")
    path = run.folder / "last.pt"
    saved = run.load()
    torch.save(saved, path)
    content = bytearray(path.read_bytes())
    weights = saved["model"]["hunter.context.weight"].numpy().tobytes()
    content[content.index(weights) + 6] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True), "torch does not notice"
    assert "cut short or damaged" in refused(run.load)


def test_only_tensors_and_plain_values_are_read(tmp_path):
    path = tmp_path / "best.pt"
    torch.save({"kind": "hop_ppo", "args": hop_ppo.Args()}, path)
    assert "cut short or damaged (" in refused(tracking.load_checkpoint, path, hop_ppo.CHECKPOINT)
    for content in ([1, 2], None, {"kind": None}, {"kind": torch.zeros(3)}, {}):
        tracking.save_checkpoint(path, content)
        says = refused(tracking.load_checkpoint, path, hop_ppo.CHECKPOINT)
        assert "expected a checkpoint of hop_ppo.py, found one of another program" in says
    says = refused(tracking.load_checkpoint, tmp_path / "y.pt", hop_ppo.CHECKPOINT)
    assert "y.pt: no checkpoint there" in says


def test_former_names_are_read(tmp_path):
    network = ObjectWorldModel(5, 5, [0.0, 1.0, 15.0])
    saved = copy.deepcopy(whole_checkpoint(train_world_model, network))
    for part in (saved["sizes"], saved["model"]):
        part["totals"] = part.pop("reward_values")
    write_run(tmp_path / "run", saved)
    assert train_world_model.load_world_model(tmp_path / "run")[0].sizes == network.sizes


def test_what_older_checkpoints_lack_is_added(tmp_path):
    network = ObjectWorldModel(5, 5, [0.0, 1.0, 15.0])
    added = copy.deepcopy(train_world_model.CHECKPOINT.added)
    added.setdefault("", {})["rules"] = None
    sizes = {"hidden": network.sizes["hidden"]}
    schema = replace(train_world_model.CHECKPOINT, added=added, added_sizes=lambda saved: sizes)
    saved = copy.deepcopy(whole_checkpoint(train_world_model, network))
    del saved["rules"], saved["sizes"]["hidden"]
    tracking.save_checkpoint(tmp_path / "best.pt", saved)
    assert "rules: expected a value" in refused(
        tracking.load_checkpoint, tmp_path / "best.pt", train_world_model.CHECKPOINT
    )
    found = tracking.load_checkpoint(tmp_path / "best.pt", schema)
    assert found["rules"] is None and found["sizes"] == network.sizes


def test_a_policy_from_before_there_were_other_games_is_read(runs, tmp_path):
    saved = runs["hop_ppo"].load()
    older = copy.deepcopy(saved)
    del older["args"]["env_args"], older["args"]["capture_video"], older["sizes"]["kinds"]
    older["sizes"]["stags"] = 1
    tracking.save_checkpoint(tmp_path / "best.pt", older)
    found = tracking.load_checkpoint(tmp_path / "best.pt", hop_ppo.CHECKPOINT)
    assert (found["args"], found["sizes"]) == (saved["args"], saved["sizes"])


# ---- what is left of a run


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("pretrain_vae", "last.pt", "best.pt of epoch 2 of 2 is whole: `python pretrain_vae.py --evaluate "),
        ("train_world_model", "last.pt", "of 2 is whole: `python test_obs_reward_model.py --checkpoint "),
        ("hop_ppo", "last.pt", "of 2 is whole: `python hop_ppo.py --evaluate "),
        ("pretrain_vae", "best.pt", "last.pt of epoch 2 of 2 is whole: copied to best.pt it can be used"),
        ("hop_ppo", "best.pt", "last.pt of update 2 of 2 is whole: copied to best.pt it can be used"),
    ],
)
def test_the_line_names_what_is_left(kind, name, says, copied):
    run = copied(kind)
    (run.folder / name).write_bytes(b"PK")
    found = refused(run.load, name)
    assert says in found and found.endswith("or train again")
    if name == "last.pt":
        assert f"{run.folder.as_posix()}` judges it" in found


def test_an_untrained_last_checkpoint_is_of_no_use(tmp_path):
    write_run(tmp_path / "run", whole_checkpoint(pretrain_vae, VAE(5, 5, 25)))
    (tmp_path / "run/best.pt").write_bytes(b"")
    assert refused(pretrain_vae.load_vae, tmp_path / "run").endswith("damaged; train again")


# ---- each field, changed in each way


@KINDS
def test_a_changed_field_is_one_line_that_names_it(kind, runs):
    run = runs[kind]
    tried = 0
    for path, change, changed in bad_fields(run.load()):
        says = refused(checkpoints.check, changed, run.schema)
        assert any(name in says for name in names_of(path)), (path, change, says)
        tried += 1
    assert tried > 250


@KINDS
def test_what_may_be_otherwise_is_read(kind, runs):
    run = runs[kind]
    saved = run.load()
    for path in paths_of(saved):
        for change in ("deleted", "text"):
            if is_allowed(path, change):
                checkpoints.check(replaced(saved, path, changes_of(None)[change]), run.schema)


PATHS = ("../../..", "..", "a/b", "a\\b", "/tmp", "", "x\n", "C:x", ".hidden")


@KINDS
def test_the_name_of_a_run_is_never_a_path(kind, copied):
    run = copied(kind)
    saved = run.load("best.pt")
    for name in PATHS:
        says = refused(checkpoints.check, saved | {"run": name}, run.schema)
        assert says.startswith("run: expected a name of letters, digits, '_', '-' and '.', found ")
    tracking.save_checkpoint(run.folder / "best.pt", saved | {"run": PATHS[0]})
    reader = {"pretrain_vae": "load_vae", "train_world_model": "load_world_model", "hop_ppo": "load_agent"}
    assert "best.pt: run: expected a name" in refused(getattr(run.script, reader[kind]), run.folder)


@KINDS
@pytest.mark.parametrize("value", [-3, 0, "x", 2**40, 2**31 - 1, [1, 2], 7.5, True])
def test_wrong_sizes_cost_nothing(kind, value, runs):
    run = runs[kind]
    saved = run.load()
    for name, size in saved["sizes"].items():
        if type(size) is not int or name in ("height", "width", "hunt_bias"):
            continue
        changed = replaced(saved, ("sizes", name), value)
        if (name, value) != ("frame_hidden", 2**31 - 1):  # --loss moa has no such layer
            says = refused(checkpoints.check, changed, run.schema)
            assert "sizes" in says or "model." in says, (name, says)


def test_a_board_of_the_checkpoint_is_not_built_whatever_its_size(runs):
    run = runs["train_world_model"]
    saved = run.load()
    for height, width in ((2**30, 1), (2**16, 2**16), (-1, 5), (None, 5)):
        sizes = saved["sizes"] | dict(height=height, width=width)
        assert "sizes.height" in refused(checkpoints.check, saved | {"sizes": sizes}, run.schema)


@KINDS
def test_unknown_fields_are_refused(kind, runs):
    run = runs[kind]
    saved = run.load()
    for path in (
        ("unknown",),
        ("args", "unknown"),
        ("sizes", "unknown"),
        ("model", "unknown"),
        ("rng", "unknown"),
    ):
        parts = saved if len(path) == 1 else saved[path[0]]
        changed = parts | {"unknown": 3}
        says = refused(
            checkpoints.check, changed if len(path) == 1 else saved | {path[0]: changed}, run.schema
        )
        assert "unknown" in says


@pytest.mark.parametrize(
    ("kind", "field", "value", "says"),
    [
        ("hop_ppo", "update", 10**9, "update: expected a whole number from 0 to 2, found 1000000000"),
        ("hop_ppo", "update", 1, "history: expected a row of figures for each update, 1 in all"),
        ("hop_ppo", "best", math.inf, "best: expected one of the figures of its evaluations, found inf"),
        (
            "hop_ppo",
            "collectors",
            [],
            "collectors: expected a list of states, at least one, found a list of 0",
        ),
        ("pretrain_vae", "epoch", 3, "epoch: expected a whole number from 0 to 2, found 3"),
        ("pretrain_vae", "epoch", True, "epoch: expected a whole number from 0 to 2, found True"),
        ("pretrain_vae", "step", 10**9, "step: expected as many steps as the optimizer's"),
        (
            "pretrain_vae",
            "counts",
            [0] * 6,
            "counts: expected whole numbers of at least 0, one for each action",
        ),
        ("pretrain_vae", "table", torch.zeros(25, 25, 3, 4, 2), "table: expected counts of the strategies"),
        ("train_world_model", "best", -0.5, "best: expected one of the figures of its evaluations"),
        ("train_world_model", "fingerprint", "0" * 63, "fingerprint: expected 64 hexadecimal digits"),
    ],
)
def test_numbers_are_within_the_run(kind, field, value, says, runs):
    run = runs[kind]
    assert says in refused(checkpoints.check, run.load() | {field: value}, run.schema)


@pytest.mark.parametrize(
    ("kind", "name", "value", "says"),
    [
        ("pretrain_vae", "epochs", "ten", "args.epochs: expected int, found 'ten'"),
        ("pretrain_vae", "epochs", True, "args.epochs: expected int, found True"),
        ("pretrain_vae", "loss", "mao", "args.loss: expected 'recon' or 'moa' or 'both', found 'mao'"),
        ("pretrain_vae", "latent_dim", 8, "sizes.latent_dim: expected 8, found 16"),
        ("train_world_model", "actions", "own", "sizes.joint: expected False, found True"),
        ("train_world_model", "learning_rate", math.nan, "args: --learning-rate: must be a positive number"),
        ("hop_ppo", "co_players", "5NS", "args: --co"),
        ("hop_ppo", "env_id", "Pong-v5", "args: --env-id: unknown game 'Pong-v5': choose from StagHunt-v0, "),
        ("hop_ppo", "num_envs", -3, "args: --num-envs: must be at least 1"),
        ("hop_ppo", "gamma", 2.0, "args: --gamma: must be in [0, 1]"),
    ],
)
def test_settings_are_those_of_the_script(kind, name, value, says, runs):
    run = runs[kind]
    assert says in refused(checkpoints.check, replaced(run.load(), ("args", name), value), run.schema)


@pytest.mark.parametrize("length", [0, 16, 5055, 5057])
def test_a_short_random_state_is_refused(length, runs):
    run = runs["hop_ppo"]
    state = torch.zeros(length, dtype=torch.uint8)
    assert "rng.cpu: expected uint8 [5056]" in refused(
        checkpoints.check, run.load() | {"rng": {"cpu": state}}, run.schema
    )
    wrong = torch.full((5056,), 255, dtype=torch.uint8)
    assert "rng.cpu: expected a state" in refused(
        checkpoints.check, run.load() | {"rng": {"cpu": wrong}}, run.schema
    )


@pytest.mark.parametrize("option", ["fused", "foreach"])
def test_how_a_step_is_computed_may_differ(runs, option):
    """In a run of before Adam took all weights in one call, it did not."""
    run = runs["hop_ppo"]
    path = ("optimizer", "param_groups", 0, option)
    for value in (None, True, False):
        checkpoints.check(replaced(run.load(), path, value), run.schema)
    wrong = replaced(run.load(), (*path[:-1], "eps"), 1.0)
    assert "optimizer.param_groups[0].eps" in refused(checkpoints.check, wrong, run.schema)


def test_moments_are_of_their_parameters(runs):
    run = runs["hop_ppo"]
    saved = run.load()
    path = ("optimizer", "state", 1)
    for key, value in (
        ("exp_avg", torch.zeros(3, 2)),
        ("exp_avg_sq", -saved["optimizer"]["state"][1]["exp_avg_sq"]),
    ):
        assert "optimizer.state[1]" in refused(
            checkpoints.check, replaced(saved, (*path, key), value), run.schema
        )
    fewer = replaced(saved, ("optimizer", "param_groups", 0, "params"), [0, 1])
    assert "optimizer.param_groups[0].params: expected a list of" in refused(
        checkpoints.check, fewer, run.schema
    )
    more = replaced(saved, ("optimizer", "param_groups"), saved["optimizer"]["param_groups"] * 2)
    assert "optimizer.param_groups: expected a list of 1" in refused(checkpoints.check, more, run.schema)


# ---- who reads


@pytest.mark.parametrize(
    ("script", "name", "flag"),
    [
        ("pretrain_vae", "last.pt", "--resume"),
        ("pretrain_vae", "best.pt", "--evaluate"),
        ("train_world_model", "last.pt", "--resume"),
        ("test_obs_reward_model", "best.pt", "--checkpoint"),
        ("hop_ppo", "last.pt", "--resume"),
        ("hop_ppo", "best.pt", "--evaluate"),
        ("hop_ppo", "best.pt", "--om latent --vae"),
        ("hop_ppo", "best.pt", "--co-players self --real-ratio 0 --world-model"),
        ("hop_ppo", "best.pt", "--oracle"),
    ],
)
def test_each_reader_refuses_nan_weights_in_one_line(script, name, flag, copied, tmp_path, capsys):
    kind = {"test_obs_reward_model": "train_world_model"}.get(script, script)
    kind = {"--om latent --vae": "pretrain_vae"}.get(flag, "train_world_model" if "world" in flag else kind)
    run = copied(kind)
    saved = run.load(name)
    weight = next(iter(saved["model"]))
    saved["model"][weight] = torch.full_like(saved["model"][weight], math.nan)
    tracking.save_checkpoint(run.folder / name, saved)
    reader = SCRIPTS.get(script, test_obs_reward_model)
    assert call(reader, tmp_path, *flag.split(), run.folder) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert f"{name}: model.{weight}: expected finite numbers, found" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["copy"], "no run has begun"


def test_an_edited_run_writes_no_log_elsewhere(copied, tmp_path, capsys):
    run = copied("pretrain_vae")
    tracking.save_checkpoint(run.folder / "last.pt", run.load() | {"run": "../../.."})
    (tmp_path / "a/b").mkdir(parents=True)
    assert call(pretrain_vae, tmp_path / "a/b", "--resume", run.folder) == 2
    assert "run: expected a name" in capsys.readouterr().err and not list((tmp_path / "a/b").iterdir())


# ---- where a run of hop_ppo.py goes on


@pytest.fixture(scope="module")
def collecting(runs):
    """The boards of the run: real and imagined ones, and what it saved of them."""
    saved = runs["hop_ppo"].load()
    args = hop_ppo.Args(**saved["args"])
    root = runs["hop_ppo"].folder.parents[1]
    args.vae, args.world_model = str(root / "vae"), str(root / "wm")
    collectors = hop_ppo.make_collectors(args, Rules(), *hop_ppo.load_networks(args, Rules()))
    return collectors, saved["collectors"], runs["hop_ppo"].folder / "last.pt"


def leaves_of(part, path: tuple = ()) -> list[tuple]:
    if isinstance(part, torch.Tensor):
        return [path]
    items = part.items() if isinstance(part, dict) else enumerate(part)
    return [leaf for key, value in items for leaf in leaves_of(value, (*path, key))]


def test_states_that_were_saved_are_loaded(collecting):
    collectors, states, path = collecting
    tracking.load_states(path, hop_ppo.CHECKPOINT, "collectors", states, collectors)
    for collector, state in zip(collectors, states, strict=True):
        checkpoints.check_like("state", collector.state_dict(), state)


def test_a_changed_state_is_one_line_that_names_it(collecting, tmp_path):
    collectors, states, _ = collecting
    leaves = leaves_of(states)
    assert len(leaves) > 30
    for leaf in leaves:
        value = states
        for key in leaf:
            value = value[key]
        changes = changes_of(value)
        if value.dtype in (torch.int16, torch.int32, torch.int64):
            changes |= {"negative": value * 0 - 2, "large": value * 0 + 10_000}
        if leaf[-1] in ("team_episode", "core.counter", "core.key"):
            changes.pop("large", None)
        for change, new in changes.items():
            args = (
                tmp_path / "last.pt",
                hop_ppo.CHECKPOINT,
                "collectors",
                replaced(states, leaf, new),
                collectors,
            )
            says = refused(tracking.load_states, *args)
            name = [key for key in leaf if isinstance(key, str)][-1].removeprefix("core.")
            assert f"last.pt: collectors[{leaf[0]}]" in says, (leaf, change, says)
            assert name in says or (leaf[1] == "starts" and "expected" in says), (leaf, change, says)
    for wrong in ([], states[:1], states[::-1], None, [None, None]):
        args = (tmp_path / "last.pt", hop_ppo.CHECKPOINT, "collectors", wrong, collectors)
        assert "last.pt: collectors" in refused(tracking.load_states, *args)


def test_numbers_of_boards_are_in_range():
    good = dict(hunters=np.array([[0, 64]]), tick=np.array([35]), joint_actions=np.zeros((0, 4)))
    check_state(good, Rules())
    with pytest.raises(ValueError, match="tick: expected numbers from 0 to 35, found 36 to 36"):
        check_state(good | dict(tick=np.array([36])), Rules())
    with pytest.raises(ValueError, match="hunters: expected numbers from 0 to 64, found -1 to 3"):
        check_state(good | dict(hunters=np.array([[3, -1]])), Rules())


def test_a_vae_of_another_size_than_the_policy_reads_is_one_line(tmp_path, capsys):
    args = hop_ppo.Args(om="latent", vae="vae__1", team_episodes=1)
    agent = hop_ppo.make_agent("objects", Rules(), 16 + 7)
    hop_ppo.check_info_size(agent, args, Rules(), VAE(8, 8, 35))
    says = refused(hop_ppo.check_info_size, agent, args, Rules(), VAE(8, 8, 35, latent_dim=8))
    assert "gives 15 figures of each co-player, the policy reads 23" in says
    args.om = "none"
    assert "--om none" in refused(hop_ppo.check_info_size, agent, args, Rules(), None)


# ---- metrics.json beside a VAE


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"{}", b"null", b'{"test": {}}', b'{"test": {"top1": null}}', b"\xff\xfe", b"[" * 200_000],
)
def test_damaged_figures_of_a_vae_are_one_line(content, tmp_path):
    write_run(tmp_path / "vae", whole_checkpoint(pretrain_vae, VAE(8, 8, 35), **FIRST_EPOCH))
    _, saved = pretrain_vae.load_vae(tmp_path / "vae")
    (tmp_path / "vae/metrics.json").write_bytes(content)
    line = fit.describe_vae(str(tmp_path / "vae"), saved, Rules(), "StagHunt-v0")[0]
    assert "metrics.json is damaged: expected top1, top3 and nll" in line and "\n" not in line
    (tmp_path / "vae/metrics.json").unlink()
    assert "not judged yet" in fit.describe_vae(str(tmp_path / "vae"), saved, Rules(), "StagHunt-v0")[0]


def test_a_number_of_more_digits_than_python_prints_is_refused(runs):
    run = runs["pretrain_vae"]
    for path in (("step",), ("args", "seed"), ("sizes", "hidden"), ("best",)):
        says = refused(checkpoints.check, replaced(run.load(), path, 10**5000), run.schema)
        assert path[-1] in says and "a number of 16610 bits" in says
