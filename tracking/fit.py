"""Do networks, the game and the settings of hop_ppo.py fit each other? One line says what does not, and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tracking import UsageError, World, find_folder

# Rules that say what lies on a board, how large it is and when it ends: a world model can do without.
OF_BOARDS = (
    *("hunters", "stags", "hares", "agents", "drifts", "blocks"),
    *("height", "width", "horizon", "end_after_first_hunt"),
)


def check_game(folder: str, checkpoint: dict, rules: Any) -> None:
    """Raises: UsageError: what stands in `folder` was trained on another game."""
    trained_on = checkpoint["game"]["id"]
    if trained_on != rules.game.id:
        advice = f"name one that was trained on a file of {rules.game.id}, or use --env-id {trained_on}"
        raise UsageError(f"{folder}: trained on {trained_on}, the game is {rules.game.id}: {advice}")


def check_vae(
    folder: str,
    vae: Any,
    checkpoint: dict,
    rules: Any,
    needs_goals: Sequence[str] = (),
    needs_names: Sequence[str] = (),
) -> None:
    """A VAE + MOA is for one game, on boards of one size.

    Args: needs_goals: the flags that need trained goal heads; needs_names: those for which they must be the goals of the
    game's strategies. Raises: UsageError: this VAE cannot be used.
    """
    if checkpoint["args"]["network"] == "plain":
        raise UsageError(
            f"{folder}: of --network plain, which cannot be followed in play: name another with --vae"
        )
    check_game(folder, checkpoint, rules)
    if vae.loss == "recon":
        raise UsageError(f"{folder}: trained with --loss recon, it has no MOA head: name another with --vae")
    size = (vae.sizes["height"], vae.sizes["width"])
    if size != (rules.height, rules.width):
        found = f"for boards of {size}, the game has {(rules.height, rules.width)}"
        raise UsageError(f"{folder}: {found}: name one of this size with --vae")
    if needs_names and checkpoint["args"]["goals"] == "free":
        found = f"of --goals free, goals without names, which {needs_names[0]} cannot use"
        raise UsageError(f"{folder}: {found}: name a VAE of recorded or captured goals with --vae")
    if needs_goals and not checkpoint["goals_trained"]:
        why = f"{needs_goals[0]} needs goal heads, and its data had no strategies to train them"
        advice = "train on a file of `python -m data.collect`, or name another with --vae"
        raise UsageError(f"{folder}: {why}: {advice}")


def needs_of_vae(args: Any, imagined_team: str) -> tuple[list[str], list[str]]:
    """Flags of hop_ppo.py that need trained goal heads, and those that need goals with names: see `check_vae`.

    args: its settings. imagined_team: the co-players of imagined boards.
    """
    imagines = args.real_ratio < 1 and imagined_team != "self"
    goal_users = {
        "--om belief": args.om == "belief",
        "--plan": args.plan,
        "--plan-train": args.plan_train,
        "--real-ratio below 1": imagines,
    }
    name_users = {
        "--om oracle": args.om == "oracle",
        "--real-ratio below 1 without --imagined-co-players goals": imagines and imagined_team != "goals",
    }
    users = (goal_users, name_users)
    needs_goals, needs_names = ([flag for flag, used in flags.items() if used] for flags in users)
    return needs_goals, needs_names


def describe_vae(folder: str, checkpoint: dict, rules: Any, env_id: str) -> list[str]:
    """How good its MOA is, and whether it was trained under other rules."""
    split = f"on the offline test split of {checkpoint['args']['data']}"
    lines = [f"[MOA] {folder}: {test_figures(find_folder(folder) / 'metrics.json')} {split}"]
    trained_on = checkpoint.get("rules") or {}
    other = [name for name, value in asdict(rules).items() if trained_on.get(name) != value]
    if other:
        names = ", ".join(other)
        lines.append(f"[MOA] {folder}: in {env_id} these rules are not those of its data: {names}")
    return lines


def test_figures(path: Path) -> str:
    """Of a VAE's metrics.json. A run can do without: where there are none, the text says why."""
    if not path.is_file():
        return "not judged yet"
    try:
        test = json.loads(path.read_text(encoding="utf-8"))["test"]
        return ", ".join(f"{key} {test[key]:.4f}" for key in ("top1", "top3", "nll"))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return f"not known how good ({path.as_posix()} is damaged: expected top1, top3 and nll under `test`)"


def check_world_model(folder: str, world_model: Any, checkpoint: dict, rules: Any, env_id: str) -> None:
    """Sizes, hunters and horizon of its data may differ: it plays on any board, and when boards end is the game's rule.

    Raises: UsageError: this world model cannot be used.
    """
    if world_model.kind != "moves" or not world_model.joint:
        raise UsageError(f"{folder}: imagination needs --model moves --actions joint: name another")
    check_game(folder, checkpoint, rules)
    trained_on = checkpoint.get("rules")
    names = [name for name in asdict(rules) if name not in OF_BOARDS]
    other = [name for name in names if trained_on and trained_on.get(name) != getattr(rules, name)]
    if other:
        values = [
            f"{name} {trained_on.get(name)} where {env_id} has {getattr(rules, name)}" for name in other
        ]
        values_here = " ".join(f"{name}={getattr(rules, name):g}" for name in other)
        flags = f"--env-id {env_id} --env-args {values_here}"
        advice = f"collect with `python -m data.collect {flags} --out FILE`, train on that file"
        found = f"learnt from a game with {', '.join(values)}"
        raise UsageError(f"{folder}: {found}: {advice}, and name the run with --world-model")
    rewards = capture_totals(rules)
    learnt = {round(value, 4) for value in world_model.reward_values.tolist()}
    if not rewards <= learnt:
        found = f"captures pay {sorted(rewards)} in {env_id}, {sorted(learnt - {0.0})} in what it learnt from"
        raise UsageError(f"{folder}: {found}: name one that learnt from this game")
    if not trained_on:
        print(f"[WM] {folder}: the rules of its data are not known; only what captures pay was checked")


def capture_totals(rules: Any) -> set[float]:
    """What the capture of a prey of each kind pays in all to those who take part, besides what everyone is paid for it."""
    totals = set()
    game = rules.game
    stay = game.actions.index("STAY")
    takers = rules.hunters
    cells = np.array([[0] * takers + [1]])  # one more looks on
    for take in game.takes:
        actions = np.array([[game.actions.index(take)] * takers + [stay]])
        captures, rewards = rules.resolve(cells, actions, np.float64)
        if captures.any():
            totals.add(round(float((rewards[0, :-1] - rewards[0, -1]).sum()), 4))
    return totals


def check_oracle(folder: str, settings: dict, env_id: str, env_args: tuple[str, ...]) -> None:
    """settings: of the run in `folder`. Raises: UsageError: it does not know who the others are, or is of another game."""
    check_policy(f"--oracle {folder}", settings, "oracle", env_id, env_args)
    if settings["co_players"] == "self":
        advice = "name one with scripted co-players"
        raise UsageError(f"--oracle {folder}: learnt among learners alone; {advice}")


def check_policy(what: str, settings: dict, om: str, env_id: str, env_args: tuple[str, ...]) -> None:
    """settings: of a run; what: begins the message. Raises: UsageError: it knows other things than `om`, or is of another
    game."""
    wanted = flags_of(om, env_id, env_args)
    found = flags_of(settings["om"], settings["env_id"], settings["env_args"])
    if found != wanted:
        raise UsageError(f"{what}: needs {wanted}, this has {found}")


def flags_of(om: str, env_id: str, env_args: tuple[str, ...]) -> str:
    """The settings of a run of hop_ppo.py that say what it knows, and of which game."""
    return " ".join(["--om", om, "--env-id", env_id, *(["--env-args"] if env_args else []), *env_args])


def read_population(folder: str, env_id: str, env_args: tuple[str, ...]) -> dict[str, list[str]]:
    """`train` and `held_out` of a folder's population.json: folders of runs, which lie in it. Raises: UsageError: there is
    none, it is damaged or empty, or of another game."""
    path = Path(folder) / "population.json"
    make = "make one: python -m benchmarks.population"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"--population {folder}: no population.json there: {make}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.as_posix()}: expected JSON, {error}: {make}") from None
    game = content.get("game") if isinstance(content, dict) else None
    if not isinstance(game, dict) or set(game) != {"id", "args"}:
        raise UsageError(f"{path.as_posix()}: game: expected its id and args: {make}")
    if not isinstance(game["args"], list) or not all(isinstance(rule, str) for rule in game["args"]):
        raise UsageError(f"{path.as_posix()}: args: expected a list of rules, found {game['args']!r}: {make}")
    found = flags_of("none", str(game["id"]), tuple(game["args"]))
    wanted = flags_of("none", env_id, env_args)
    if found != wanted:
        raise UsageError(f"--population {folder}: of {found}, the game is {wanted}: name one of this game")
    runs = {}
    for split in ("train", "held_out"):
        names = content.get(split)
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UsageError(
                f"{path.as_posix()}: {split}: expected a list of run folders, found {names!r}: {make}"
            )
        runs[split] = [(Path(folder) / name).as_posix() for name in names]
    return runs


def check_partner(run: str, settings: dict, env_id: str, env_args: tuple[str, ...]) -> None:
    """settings: of a policy of a population. Raises: UsageError: it is of another game, or needs to know something."""
    check_policy(f"{run}: a co-player sees the board alone", settings, "none", env_id, env_args)


def check_population_settings(args: Any) -> None:
    """args: settings of hop_ppo.py with a population's co-players. Raises: UsageError: what needs scripted ones is set."""
    if not args.population:
        advice = "name the folder of one, see python -m benchmarks.population"
        raise UsageError(f"--co-players {args.co_players}: needs --population: {advice}")
    if args.oracle or args.oracle_simulations:
        raise UsageError(f"--oracle: knows strategies, not the policies of {args.population}")
    if args.om == "oracle" and (args.real_ratio < 1 or args.plan):
        flag = "--plan" if args.plan else "--real-ratio below 1"
        raise UsageError(f"--om oracle: knows policies of {args.population}, {flag} has goals: leave one out")
    if args.real_ratio < 1 and args.imagined_co_players == "same":
        needs = "its policies play on real boards alone"
        raise UsageError(f"--real-ratio: {needs}: give --imagined-co-players goals, too")


def check_settings(args: Any) -> None:
    """Raises: UsageError: settings of hop_ppo.py that exclude each other."""
    if 0 < args.real_ratio < 1 and round(args.real_ratio * args.num_envs) in (0, args.num_envs):
        outcome = "none would be real" if args.real_ratio < 0.5 else "all would be real"
        numbers = f"--real-ratio {args.real_ratio}: of {args.num_envs} boards {outcome}"
        raise UsageError(f"{numbers}: 0, 1, or more --num-envs")
    if args.imagined_co_players != "same" and args.real_ratio == 1:
        raise UsageError("--imagined-co-players: no board is imagined: give --real-ratio below 1, too")
    if args.team_reward and args.co_players != "self":
        message = "needs --co-players self: scripted co-players have no use for a reward"
        raise UsageError(f"--team-reward: {message}")
    if args.om in ("gru", "liam") and (args.real_ratio < 1 or args.plan):
        flag = "--plan" if args.plan else "--real-ratio below 1"
        raise UsageError(f"--om {args.om}: plays real boards, without a search: leave out {flag}")
    if args.moa_update != "off" and args.real_ratio == 0:
        raise UsageError("--moa-update: learns from real boards, of which --real-ratio 0 has none")
    if args.plan_train and (args.om, args.plan_search) != ("belief", "gumbel"):
        raise UsageError("--plan-train: needs --om belief and --plan-search gumbel")


def check_shares(args: Any, world: World) -> None:
    """args: settings of hop_ppo.py. Raises: UsageError: they need one process on the CPU, or their
    boards, real and imagined, do not divide evenly over the processes."""
    alone = "--plan-train" if args.plan_train else f"--om {args.om}" if args.om in ("gru", "liam") else ""
    if alone and (world.size > 1 or world.device.type != "cpu"):
        raise UsageError(f"{alone}: runs in one process on the CPU: give --no-cuda, without torchrun")
    if args.moa_update != "off" and world.size > 1:
        raise UsageError("--moa-update: runs in one process, without torchrun")
    real = round(args.real_ratio * args.num_envs)
    if real % world.size or args.num_envs % world.size:
        boards = f"--num-envs {args.num_envs}: {real} real and {args.num_envs - real} imagined boards"
        raise UsageError(f"{boards} do not divide evenly over {world.size} processes")
