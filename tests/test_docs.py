"""README.md and docs/: links lead somewhere, and commands are those that the scripts and the Makefile know."""

import ast
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tracking
from data.collect import Args as CollectArgs
from data.collect import collect
from data.datasets import load_samples, samples_of_episodes

ROOT = Path(tracking.__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data" / "README.md",
    ROOT / "README.zh.md",
    ROOT / "pretrained" / "README.md",
]
READMES = pytest.mark.parametrize("name", ["README.md", "README.zh.md"])


def make_commands() -> dict[str, list[str]]:
    """What each target of the Makefile runs with Python, such as {"moa": ["python pretrain_vae.py --loss moa"]}."""
    rules = re.findall(r"^(\w+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target: re.findall(r"\$\(BIN\)/(python .*)", recipe) for target, recipe in rules}


def commands(page: str) -> list[str]:
    """The Python commands of a page: lines of ```bash blocks, and `python ..` in the text; comments are left out."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = [
        part for block in blocks for line in block.splitlines() for part in line.partition("#")[0].split("&&")
    ]
    found = [*lines, *re.findall(r"`(python [^`]+)`", page)]
    return [line.strip() for line in found if line.strip().startswith("python ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_images_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    relative = [link.partition("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert [link for link in relative if not (page.parent / link).exists()] == []


@READMES
def test_the_readme_has_the_commands_of_the_makefile(name):
    readme, targets = (ROOT / name).read_text(encoding="utf-8"), make_commands()
    assert {"moa", "wm", "play", "pretrained", "tour", "test"} <= set(targets)
    for target, found in targets.items():
        assert not found or f"make {target}" in readme, target
        for command in found:
            assert re.search(rf"{re.escape(command)}\s*(?:[`\n]|&&)", readme), (
                f"make {target} runs `{command}`"
            )


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def test_the_data_of_the_readme_are_read(tmp_path, monkeypatch):
    """Rows that follow one another are episodes."""
    monkeypatch.chdir(tmp_path)
    source, _ = python_blocks("README.md")
    samples = samples_of_episodes(collect(CollectArgs(samples=1500)), split=False)
    rows = np.lexsort((samples.ticks, samples.hunters))  # one hunter after another
    mine = dict(actions=samples.actions[rows], times=samples.ticks[rows])
    exec(compile(source, "README.md", "exec"), mine | dict(obs=samples.frames[samples.rows[rows]]))
    found = load_samples("mine.npz")
    assert found.has_episodes and len(np.unique(found.hunters)) == len(np.unique(samples.hunters))
    assert (found.actions == mine["actions"]).all() and (found.ticks == mine["times"]).all()


def test_the_example_of_the_readme_runs():
    """Arrays have the shapes and types that the comments say."""
    _, source = python_blocks("README.md")
    names = {}
    exec(compile(source, "README.md", "exec"), names)
    assert names["obs"].shape == (1024, 4, 5, 8, 8) and names["obs"].dtype == "uint8"
    assert names["probs"].shape == (1024, 4, 2, 7) and names["rewards"].shape == (1024,)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_targets_and_flags_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)) <= set(make_commands())
    for command in commands(text):
        script, *words = shlex.split(command.removeprefix("python "))
        if script == "-m":
            script, *words = words
        if (
            not words or "--help" in words or script in ("pytest", "benchmarks.envs")
        ):  # its command line is argparse's
            continue
        module = importlib.import_module(script.removesuffix(".py"))
        options = next(getattr(module, name) for name in ("Args", "Options") if hasattr(module, name))
        tracking.parse_args(options, "", words)


NO_NOUNS = (
    "a",
    "above",
    "each",
    "if",
    "in",
    "is",
    "of",
    "on",
    "the",
    "toggle",
    "train",
    "use",
    "what",
    "with",
    "z",
)


@pytest.mark.parametrize("script", ["hop_ppo", "pretrain_vae", "train_world_model", "test_obs_reward_model"])
def test_help_begins_with_its_noun(script):
    """Not with a verb, an article, or in the middle of a sentence."""
    (args,) = [
        node
        for node in ast.parse(read_source(f"{script}.py")).body
        if isinstance(node, ast.ClassDef) and node.name == "Args"
    ]
    helps = [node.value.value for node in args.body if isinstance(node, ast.Expr)]
    assert len(helps) == sum(isinstance(node, ast.AnnAssign) for node in args.body) > 5
    assert [text for text in helps if text.split()[0].strip(",:") in NO_NOUNS] == []


# ---- the two languages


def blocks_of(name: str) -> list[str]:
    return re.findall(r"```.*?```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def prose_of(name: str) -> str:
    return re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize(
    "pattern",
    [r"^#+ ", r"^\|.*\|$", r"^- ", r"\d[\d,.]*\d|\d", r"`[^`]+`", r"\]\((?!#|README)([^)]+)\)"],
    ids=["headings", "rows of tables", "points", "figures", "code", "links"],
)
def test_the_readme_says_the_same_in_both_languages(pattern):
    """As often, whatever the order in a sentence."""
    english, chinese = (
        sorted(re.findall(pattern, prose_of(n), re.MULTILINE)) for n in ("README.md", "README.zh.md")
    )
    if pattern.startswith("^"):
        english, chinese = len(english), len(chinese)
    assert english == chinese


def test_the_readme_has_the_same_commands_in_both_languages():
    assert blocks_of("README.md") == blocks_of("README.zh.md")
    assert commands(prose_of("README.md")) == commands(prose_of("README.zh.md"))


def test_the_readmes_link_to_each_other():
    for name, other in (("README.md", "README.zh.md"), ("README.zh.md", "README.md")):
        assert f"]({other})" in "".join((ROOT / name).read_text(encoding="utf-8").splitlines()[:4])


# ---- the table "How to change" of CONTRIBUTING.md


def names_of(source: str) -> set[str]:
    """What a module defines: functions, classes, `Class.method`, and variables."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def missing_places(page: str, read: Callable[[str], str | None]) -> set[str]:
    """The files in the table's rows, and the names that follow each, that are not there: `file` or `file: name`."""
    rows = [line for line in page.partition("## How to change")[2].splitlines() if line.startswith("| ")]
    missing = set()
    for row in rows:
        file = ""
        for word in re.findall(r"`([\w./]+)`", row):
            if word.endswith(".py"):
                file = word
                if read(file) is None:
                    missing.add(file)
            elif file and word not in names_of(read(file) or ""):
                missing.add(f"{file}: {word}")
    return missing


def read_source(path: str) -> str | None:
    return (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else None


def test_places_to_change_exist():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert page.count("\n| ") > 40
    assert missing_places(page, read_source) == set()


def test_a_place_that_is_gone_is_found():
    page = "| `x.py`: `none` |\n## How to change\n| a | `a.py`: `f`, `C.m`, `C.n`, `V`, `g` | `b.py` |\n"
    source = "V = 1\ndef f(): pass\nclass C:\n    def m(self): pass\n"
    assert missing_places(page, {"a.py": source}.get) == {"a.py: C.n", "a.py: g", "b.py"}
