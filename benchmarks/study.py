"""One study: every method on every game with three sorts of partners, as one page of tables and figures.

    python -m benchmarks.study                # two games, two seeds
    python -m benchmarks.study --full         # eight games, five seeds, self-play as well
    python -m benchmarks.study --page docs    # docs/study.md, of what is there

few-shot     trained among scripted co-players with one of two goals each; judged with every team, ten episodes in a row
held-out     trained among policies that learned (`benchmarks.population`); judged with those that were held out
self-play    trained among its own kind; judged so, and among scripted co-players

All methods have the same agent and steps. A study is made of cells, each a training and its judging in a process of its
own, as many at once as --workers says. What a cell found stands in FOLDER/cells/<cell>/result.json, so the same command
goes on with a study that was stopped.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from tqdm import tqdm

import hop_ppo
import tracking
from benchmarks import machine, population, results, study_page
from benchmarks.hop_ppo import Rows, load, run
from envs import REGISTERED, snowdrift
from metrics.comparison import best_switch, standard_teams
from metrics.returns import half_width
from metrics.rivals import ScriptPolicy, uniform_policy

Partners = Literal["few-shot", "held-out", "self-play"]
Method = Literal["none", "gru", "liam", "latent", "belief", "oracle"]

TRAINED_WITH = {"few-shot": "mixed", "held-out": "population", "self-play": "self"}
NUM_ENVS = 512  # boards at once; of self-play so many rows
# Of hop_ppo.py itself: the study judges on boards of its own.
SHORT_REPORT = ("--eval-boards", 32, "--plan-boards", 2)
POLL = 0.2  # seconds between looks at the processes
# For the estimate: ticks a second of an idle core; seconds of a training's start and end, and of an episode that judges.
SPEED = dict(none=11_000, oracle=11_000, belief=8_000, gru=4_000, liam=4_000, latent=4_000)
END_SECONDS = 20.0
JUDGE_SECONDS = 0.002
VAE_SECONDS = 120.0 / 107_010  # of a sample
FREE_VAE_SECONDS = 200.0  # of games of a population


@dataclass
class Args:
    full: bool = False
    """all games, five seeds, self-play, more steps; else the two games in which it is worth most to know the others"""
    folder: str = ""
    """of the study; by default study, or study-full"""
    games: tuple[str, ...] = ()
    """these games alone"""
    partners: tuple[Partners, ...] = ()
    """these alone"""
    methods: tuple[Method, ...] = ()
    """these alone"""
    seeds: tuple[int, ...] = ()
    """of each training"""
    steps: int = 0
    """of a method, in ticks of boards"""
    policy_steps: int = 0
    """of a policy of a population, and of a best response"""
    samples: int = 0
    """of the file from which the VAE of a game learns"""
    boards: int = 0
    """to judge on, the same for all"""
    episodes: int = 0
    """with the same partners"""
    workers: int = 0
    """processes at once, a thread each; 0: one a core"""
    page: str = ""
    """train nothing: write study.md, results/ and images/ of what is there into this folder, such as docs"""
    cell: str = ""
    """train and judge this one alone: what a process of a study does"""


@dataclass(frozen=True)
class Settings:
    """What decides the rows of a study; 0 and () in Args: as here."""

    games: tuple[str, ...] = ("StagHunt-hidden-v0", "Snowdrift-hidden-v0")
    partners: tuple[str, ...] = ("few-shot", "held-out")
    methods: tuple[str, ...] = ("none", "gru", "liam", "latent", "belief", "oracle")
    seeds: tuple[int, ...] = (1, 2)
    steps: int = 262_144
    policy_steps: int = 163_840
    samples: int = 107_010
    boards: int = 128
    episodes: int = 10


# Games in the order of what it is worth to know the others, by `benchmarks.worth` (docs/hop_ppo.md).
FULL = Settings(
    games=(
        *Settings.games,
        *("Snowdrift-6x6-v0", "StagHunt-6x6-v0", "Snowdrift-v0", "Snowdrift-4x4-v0"),
        *("StagHunt-4x4-v0", "StagHunt-v0"),
    ),
    partners=("few-shot", "held-out", "self-play"),
    seeds=(1, 2, 3, 4, 5),
    steps=1_000_000,
    policy_steps=500_000,
    boards=512,
)


class Cell(NamedTuple):
    """kind: vae, rivals, policy (of a population), goals (a VAE of its games), response (to one that is held out), agent."""

    kind: str
    game: str
    partners: str = ""
    method: str = ""
    number: int = 0  # the seed; of a response, the partner's number, from 1

    @property
    def name(self) -> str:
        return ".".join(str(part) for part in self if part).replace(" ", "-")


@dataclass(frozen=True)
class Study:
    folder: Path
    settings: Settings

    def place(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / cell.name

    def is_done(self, cell: Cell) -> bool:
        return (self.place(cell) / "result.json").is_file()

    def result(self, cell: Cell) -> dict:
        """Raises: tracking.UsageError: it is damaged."""
        path = self.place(cell) / "result.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise tracking.UsageError(f"{path}: expected JSON, {error}: remove it") from None


# ---- what a study is made of


def rules_of(game: str) -> hop_ppo.GameRules:
    return hop_ppo.load_rules(hop_ppo.Args(env_id=game))[0]


def has_population(game: str) -> bool:
    """Held-out partners are for games in which it pays much to know the others."""
    return "-hidden-" in game


def cells_of(settings: Settings) -> list[Cell]:
    """In the order in which they are begun."""
    cells = []
    for game in settings.games:
        needs_vae = bool({"latent", "belief"} & set(settings.methods))
        if needs_vae and set(settings.partners) != {"held-out"}:
            cells.append(Cell("vae", game))
        cells.append(Cell("rivals", game))
        for partners in settings.partners:
            methods = settings.methods
            if partners == "held-out":
                if not has_population(game):
                    continue
                policies = population.policies_of(rules_of(game))
                cells += [Cell("policy", game, partners, kind, seed) for kind, seed in policies]
                if needs_vae:
                    cells.append(Cell("goals", game, partners))
                held_out = range(1, len(policies) // 2 + 1)
                cells += [Cell("response", game, partners, "best response", number) for number in held_out]
                # An oracle knows those whom it learned with.
                methods = [method for method in methods if method != "oracle"]
            seeds = settings.seeds
            cells += [Cell("agent", game, partners, method, seed) for seed in seeds for method in methods]
    return cells


def vae_of(cell: Cell) -> Cell:
    """The VAE of an agent: of games of the population's policies to train with, or of scripted ones."""
    return Cell("goals", cell.game, cell.partners) if cell.partners == "held-out" else Cell("vae", cell.game)


def needs(cell: Cell, cells: list[Cell]) -> list[Cell]:
    """The cells that a cell uses."""
    needed = [vae_of(cell)] if cell.method in ("latent", "belief") else []
    if cell.partners == "held-out" and cell.kind != "policy":
        needed += [other for other in cells if other.game == cell.game and other.kind == "policy"]
    return needed


def teams_of(cell: Cell) -> list[str]:
    """With whom the agent of a cell is judged; a response: with its partner."""
    rules = rules_of(cell.game)
    if cell.kind == "response":
        return [f"held-out/{cell.number - 1}"]
    if cell.partners == "held-out":
        return [f"held-out/{number}" for number in range(len(population.policies_of(rules)) // 2)]
    return ["self", "mixed"] if cell.partners == "self-play" else standard_teams("mixed", rules)


def estimate(cell: Cell, settings: Settings) -> int:
    """Whole seconds of an idle core, one at least: they add up to the length of a bar."""
    return max(1, round(estimate_seconds(cell, settings)))


def estimate_seconds(cell: Cell, settings: Settings) -> float:
    if cell.kind == "goals":
        return FREE_VAE_SECONDS
    if cell.kind == "vae":
        return VAE_SECONDS * settings.samples + END_SECONDS
    episodes = settings.boards * settings.episodes
    hunters = rules_of(cell.game).hunters
    if cell.kind == "policy":
        rows = (1 + hunters) / 2 if cell.method in ("self", "team") else 1
        return rows * settings.policy_steps / SPEED["none"] + END_SECONDS
    judging = JUDGE_SECONDS * episodes * len(teams_of(cell)) * (1.5 if cell.partners == "held-out" else 1)
    if cell.kind == "rivals":
        return 3 * judging
    if cell.kind == "response":
        return settings.policy_steps / SPEED["none"] + END_SECONDS + 3 * judging
    return settings.steps / SPEED[cell.method] + END_SECONDS + judging


# ---- the work of a cell


def population_args(study: Study, game: str) -> population.Args:
    """Of the game's population; waiting costs nothing in the snowdrift, so returns are not discounted there."""
    gamma = 1.0 if rules_of(game).game == snowdrift.GAME else 0.99
    folder = (study.folder / "population" / game).as_posix()
    steps = study.settings.policy_steps
    return population.Args("train", env_id=game, folder=folder, steps=steps, gamma=gamma)


def judge_episodes(
    judge: hop_ppo.Evaluator, policy: Callable, team: str, settings: Settings, om: str = ""
) -> dict:
    """Return by episode, and from the second on; in self-play the mean of all hunters."""
    how = (judge.final_seed, settings.boards, settings.episodes)
    earned = judge.play(policy, team, *how, om=om)["team" if team == "self" else "learner"]  # [episodes, B]
    late = earned[1:].mean(0)
    row = dict(mean=float(late.mean()), mean_ci95=float(half_width(late)))
    return row | {f"episode{i}": float(mean) for i, mean in enumerate(earned.mean(1), start=1)}


def judge_rivals(
    cell: Cell, judge: hop_ppo.Evaluator, partners: str, team: str, names: tuple[str, ...], study: Study
) -> Rows:
    """random, script (its tick is chosen with `mixed`), script_told (with this team, on other boards)."""
    rows: Rows = []
    for name in names:
        policy = uniform_policy
        if name != "random":
            chosen = "mixed" if name == "script" else team
            boards = study.settings.boards
            switch = best_switch(judge.play, judge.rules, chosen, hop_ppo.EVAL_SEED, boards)
            policy = ScriptPolicy(judge.rules, switch)
        head = dict(game=cell.game, partners=partners, method=name, seed=0, team=team)
        rows.append(head | judge_episodes(judge, policy, team, study.settings, om="none"))
    return rows


def train_vae(cell: Cell, study: Study) -> dict:
    samples = study.settings.samples
    data = results.collected(f"{cell.game}_{samples}", "--env-id", cell.game, "--samples", str(samples))
    folder, metrics = results.train("--data", data)
    return dict(vae=folder, rows=[], test=metrics["test"])


def learn_goals(cell: Cell, study: Study) -> dict:
    args = population_args(study, cell.game)
    return dict(vae=population.learn_goals(args, rules_of(cell.game)), rows=[])


def play_rivals(cell: Cell, study: Study) -> dict:
    """Those that do not learn, with each team of the partners that the study has."""
    judge = population.evaluator(population_args(study, cell.game))
    rows: Rows = []
    for partners in study.settings.partners:
        if partners == "held-out":
            continue  # with the responses
        names = ("random", "script_told") if partners == "self-play" else ("random", "script", "script_told")
        for team in teams_of(cell._replace(partners=partners)):
            rows += judge_rivals(cell, judge, partners, team, names, study)
    return dict(rows=rows)


def train_policy(cell: Cell, study: Study) -> dict:
    args = population_args(study, cell.game)
    population.train_policy(args, rules_of(cell.game), cell.method, cell.number)
    return dict(rows=[])


def train_response(cell: Cell, study: Study) -> dict:
    """PPO trained with copies of one partner that was held out."""
    args = population_args(study, cell.game)
    (team,) = teams_of(cell)
    steps = population.game_flags(args, 1, study.settings.policy_steps)
    team_flags = ("--co-players", team, "--population", args.folder)
    folder = run(*steps, *SHORT_REPORT, "--num-envs", NUM_ENVS, *team_flags)
    agent, judge = load(folder)
    head = dict(game=cell.game, partners=cell.partners, method=cell.method, seed=1, team=team)
    rows = [head | judge_episodes(judge, agent, team, study.settings)]
    rows += judge_rivals(cell, judge, cell.partners, team, ("random", "script_told"), study)
    return dict(run=folder, rows=rows)


def train_agent(cell: Cell, study: Study) -> dict:
    args = population_args(study, cell.game)
    settings = study.settings
    team = TRAINED_WITH[cell.partners]
    learners = rules_of(cell.game).hunters if team == "self" else 1
    flags = [*population.game_flags(args, cell.number, settings.steps // learners)]
    flags += ["--num-envs", NUM_ENVS // learners, "--team-episodes", settings.episodes]
    flags += ["--co-players", team, "--om", cell.method]
    if team == "population":
        flags += ["--population", args.folder]
    if cell.method in ("latent", "belief"):
        flags += ["--vae", study.result(vae_of(cell))["vae"]]
    folder = run(*flags, *SHORT_REPORT)
    agent, judge = load(folder)
    head = dict(game=cell.game, partners=cell.partners, method=cell.method, seed=cell.number)
    rows = [head | dict(team=team) | judge_episodes(judge, agent, team, settings) for team in teams_of(cell)]
    return dict(run=folder, rows=rows)


WORK: dict[str, Callable[[Cell, Study], dict]] = {
    "vae": train_vae,
    "goals": learn_goals,
    "rivals": play_rivals,
    "policy": train_policy,
    "response": train_response,
    "agent": train_agent,
}


def work(name: str, study: Study) -> None:
    """Do a cell, and write its result. Raises: tracking.UsageError: there is no such cell, or another process does it."""
    cells = {cell.name: cell for cell in cells_of(study.settings)}
    if name not in cells:
        raise tracking.UsageError(f"--cell: no cell {name} in {study.folder}: choose from {', '.join(cells)}")
    cell = cells[name]
    study.place(cell).parent.mkdir(parents=True, exist_ok=True)
    tracking.lock_run(study.place(cell))
    start = time.perf_counter()
    found = WORK[cell.kind](cell, study)
    seconds = time.perf_counter() - start
    tracking.write_json(study.place(cell) / "result.json", dict(seconds=seconds) | found)


# ---- all cells


class Process(Protocol):
    """What is used of subprocess.Popen."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...


def start_process(cell: Cell, study: Study) -> Process:
    """A process of its own for a cell, with one thread; what it prints goes to log.txt."""
    command = [sys.executable, "-m", "benchmarks.study", "--folder", str(study.folder), "--cell", cell.name]
    study.place(cell).mkdir(parents=True, exist_ok=True)
    with (study.place(cell) / "log.txt").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def run_cells(
    study: Study, workers: int, start: Callable[[Cell, Study], Process] = start_process
) -> list[Cell]:
    """Do what is not done, so many cells at once. Returns: those that failed; what needs them is not begun."""
    cells = cells_of(study.settings)
    costs = {cell: estimate(cell, study.settings) for cell in cells}
    needed = {cell: needs(cell, cells) for cell in cells}
    done = {cell for cell in cells if study.is_done(cell)}
    todo = [cell for cell in cells if cell not in done]
    failed: list[Cell] = []
    running: dict[Cell, Process] = {}
    form = "{percentage:3.0f}% |{bar}| {postfix[0]} [{elapsed} < {remaining}]"
    state = [f"{len(done)} of {len(cells)} cells"]
    before = sum(costs[cell] for cell in done)
    bar = tqdm(total=sum(costs.values()), initial=before, bar_format=form, postfix=state, smoothing=0)
    try:
        while todo or running:
            ready = [cell for cell in todo if done.issuperset(needed[cell])]
            for cell in ready[: workers - len(running)]:
                running[cell] = start(cell, study)
                todo.remove(cell)
            if not running:  # what is left needs a cell that failed
                break
            ended = [cell for cell, process in running.items() if process.poll() is not None]
            for cell in ended:
                del running[cell]
                if study.is_done(cell):
                    done.add(cell)
                    bar.postfix[0] = f"{len(done)} of {len(cells)} cells"
                    bar.update(costs[cell])
                else:
                    failed.append(cell)
            if not ended:
                time.sleep(POLL)
    finally:
        bar.close()
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def describe_failure(study: Study, failed: list[Cell]) -> str:
    log = study.place(failed[0]) / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    last = text.strip().splitlines()[-1:] or ["no word of why"]
    advice = f"see {log.as_posix()}; the same command tries again"
    return f"{len(failed)} of the study's cells failed, first {failed[0].name}: {last[0]}; {advice}"


# ---- the command line


def settings_of(args: Args) -> Settings:
    """Raises: tracking.UsageError: there is no such game, or a number is out of its range."""
    given = {}
    for field in fields(Settings):
        value = getattr(args, field.name)
        if value:
            given[field.name] = tuple(dict.fromkeys(value)) if isinstance(value, tuple) else value
    settings = replace(FULL if args.full else Settings(), **given)
    for game in settings.games:
        if game not in REGISTERED:
            raise tracking.UsageError(f"--games: no game {game}: choose from {', '.join(REGISTERED)}")
    least = dict(steps=1, policy_steps=1, samples=100, boards=2, episodes=2)
    for name, minimum in least.items():
        if getattr(settings, name) < minimum:
            flag = f"--{name.replace('_', '-')}"
            raise tracking.UsageError(f"{flag}: must be at least {minimum}, got {getattr(settings, name)}")
    if args.workers < 0:
        raise tracking.UsageError(f"--workers: must be at least 0, got {args.workers}")
    if min(settings.seeds) < 0:
        raise tracking.UsageError(f"--seeds: must be at least 0, got {min(settings.seeds)}")
    return settings


def read_settings(folder: Path) -> dict:
    """study.json: settings, and the machine with the date. Raises: tracking.UsageError: there is none, or it is damaged."""
    path = folder / "study.json"
    if not path.is_file():
        raise tracking.UsageError(f"{folder}: no study there: begin one with python -m benchmarks.study")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        values = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in saved["settings"].items()
        }
        return dict(settings=Settings(**values), machine=str(saved["machine"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise tracking.UsageError(f"{path}: damaged, or of another version: name another --folder") from None


def begin(args: Args, folder: Path) -> Study:
    """Make the folder of a new study, or go on with its own. Raises: tracking.UsageError: it is another's."""
    settings = settings_of(args)
    if not (folder / "study.json").is_file():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise tracking.UsageError(f"{folder}: not a study's folder, and not empty: name another --folder")
        folder.mkdir(parents=True, exist_ok=True)
    tracking.lock_run(folder)
    if (folder / "study.json").is_file():
        saved = read_settings(folder)["settings"]
        for name, value in asdict(saved).items():
            if value != getattr(settings, name):
                found = f"a study with --{name.replace('_', '-')} {study_page.words(value)}"
                here = study_page.words(getattr(settings, name))
                raise tracking.UsageError(f"{folder}: {found}, here it is {here}: name another --folder")
    else:
        content = dict(settings=asdict(settings), machine=machine())
        tracking.write_json(folder / "study.json", content)
    return Study(folder, settings)


def write_page(study: Study, folder: Path) -> None:
    """study.md and what it shows. Raises: tracking.UsageError: no agent is judged yet."""
    cells = cells_of(study.settings)
    found = [study.result(cell) for cell in cells if study.is_done(cell)]
    rows = [row for result in found for row in result["rows"]]
    facts = study_page.Facts(
        command=command_of(study.settings),
        settings=asdict(study.settings),
        machine=read_settings(study.folder)["machine"],
        cells=len(cells),
        done=len(found),
        hours=sum(result["seconds"] for result in found) / 3600,
        estimate=sum(estimate(cell, study.settings) for cell in cells) / 3600,
    )
    if not any(row["method"] in study.settings.methods for row in rows):
        raise tracking.UsageError(f"{study.folder}: no agent is judged yet: go on with the study first")
    study_page.write(rows, facts, folder)


def command_of(settings: Settings) -> str:
    """The command with which a study of these settings is begun, in its default folder."""
    plans = {"": Settings(), " --full": FULL}
    differences = {
        flag: {key: value for key, value in asdict(settings).items() if value != getattr(plan, key)}
        for flag, plan in plans.items()
    }
    flag = min(differences, key=lambda flag: len(differences[flag]))
    others = [
        f"--{key.replace('_', '-')} {study_page.words(value)}" for key, value in differences[flag].items()
    ]
    return " ".join([f"python -m benchmarks.study{flag}", *others])


def main(start: Callable[[Cell, Study], Process] = start_process) -> None:
    args = tracking.parse_args(Args, __doc__.split("\n")[0])
    tracking.interrupt.advise("the same command goes on")
    torch.set_num_threads(1)
    folder = Path(args.folder or ("study-full" if args.full else "study"))
    if args.page or args.cell:
        study = Study(folder, read_settings(folder)["settings"])
        if args.cell:
            work(args.cell, study)
        else:
            write_page(study, Path(args.page))
            print(f"page: {(Path(args.page) / 'study.md').as_posix()}")
        return
    study = begin(args, folder)
    for game in filter(has_population, study.settings.games):
        population.name_population(population_args(study, game), rules_of(game))
    cells = cells_of(study.settings)
    workers = args.workers or os.cpu_count() or 1
    minutes = sum(estimate(cell, study.settings) for cell in cells) / workers / 60
    print(f"{folder}: {len(cells)} cells, about {minutes:.0f} minutes on {workers} idle cores", flush=True)
    failed = run_cells(study, workers, start)
    if failed:
        raise RuntimeError(describe_failure(study, failed))
    write_page(study, folder)
    print(
        f"page: {(folder / 'study.md').as_posix()}; python -m benchmarks.study --folder {folder} --page docs"
    )


if __name__ == "__main__":
    tracking.run(main, ValueError, RuntimeError)
