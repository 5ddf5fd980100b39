"""The house that docs/design.md shows: what stands at the root, who imports whom, and what is nobody else's business.

Each check is a function of sources, {path: text}, that returns the violations as lines, so that a test of its own shows
that it finds a planted one.
"""

import ast
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("hop_ppo", "pretrain_vae", "test_obs_reward_model", "train_world_model")
LIBRARIES = ("envs", "data", "metrics", "search", "tracking")
# What each folder may import besides itself. The scripts and the benchmarks may import all of them.
MAY_IMPORT = {
    "envs": (),
    "data": ("envs", "tracking"),  # `tracking`: the command lines, in their `if __name__` blocks
    "metrics": ("envs", "data"),
    "search": (),
    "tracking": (),
}
FILMS = (
    "tracking/figures.py",
    "envs.render",
)  # the one exception: boards are drawn there alone, in films, too
TORCH_IN_ENVS = "envs/world_model_env.py"
# Violations that are known: (file, the text of the attribute). To be emptied.
KNOWN_PRIVATE_READS: set[tuple[str, str]] = set()
KNOWN_OUTSIDE_CHANGES: set[tuple[str, str]] = set()

Sources = dict[str, str]


# ---- reading sources


def repository_sources() -> Sources:
    """All Python files of the root, the libraries and the benchmarks."""
    paths = list(ROOT.glob("*.py"))
    for folder in (*LIBRARIES, "benchmarks"):
        paths += (ROOT / folder).rglob("*.py")
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def part_of(path: str) -> str:
    """The folder of a file, or the script's own name: `envs/grid.py` -> `envs`, `hop_ppo.py` -> `hop_ppo`."""
    return PurePosixPath(path).parts[0].removesuffix(".py")


def module_name(path: str) -> str:
    """`envs/grid.py` -> `envs.grid`, `envs/__init__.py` -> `envs`."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes_run_on_import(tree: ast.Module):
    """All nodes but those in functions, in `if TYPE_CHECKING` and in `if __name__ == "__main__"`.

    Nor those in `if sys.argv[0] == "-m"`: Python imports the package of a command that it is about to run.
    """
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(node):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith(("__name__ ==", "sys.argv[0] ==")):
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def imported(nodes, path: str, modules: set[str]) -> set[str]:
    """Full names of what the import statements among `nodes` import; `from a import b` is a.b where that is a module."""
    names = set()
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                names.add(full if full in modules else base)
    return names


# ---- the checks


def wrong_root_files(paths) -> list[str]:
    """Python files at the root that are not one of the scripts, and scripts that are missing."""
    found = {path.removesuffix(".py") for path in paths if "/" not in path}
    extra = [f"{name}.py: not one of the scripts" for name in sorted(found - set(SCRIPTS))]
    return extra + [f"{name}.py: missing" for name in SCRIPTS if name not in found]


def wrong_imports(sources: Sources) -> list[str]:
    """Imports against the directions, anywhere in a file: also in functions and for type hints alone."""
    modules = {module_name(path) for path in sources}
    parts = {part_of(path) for path in sources}
    found = []
    for path, text in sources.items():
        part = part_of(path)
        if part not in LIBRARIES:
            continue
        for name in sorted(imported(ast.walk(ast.parse(text)), path, modules)):
            target = name.split(".")[0]
            if (path, name) == FILMS:
                continue
            if target in parts and target != part and target not in MAY_IMPORT[part]:
                found.append(f"{path}: imports {name}")
            if target == "torch" and part == "envs" and path != TORCH_IN_ENVS:
                found.append(f"{path}: imports torch")
    return found


def tracking_outside_commands(sources: Sources) -> list[str]:
    """Files of data/ that import `tracking` when they are imported: only their command lines may."""
    modules = {module_name(path) for path in sources}
    found = []
    for path, text in sources.items():
        names = imported(nodes_run_on_import(ast.parse(text)), path, modules)
        if part_of(path) == "data" and any(name.split(".")[0] == "tracking" for name in names):
            found.append(f"{path}: imports tracking")
    return found


def import_cycles(sources: Sources) -> list[str]:
    """Circles among library modules by what they import when they are imported.

    `from package.module import x` also runs `package/__init__.py`, but a package and its own modules are no circle by that.
    """
    modules = {module_name(path) for path in sources}
    imports = {}
    for path, text in sources.items():
        if part_of(path) in LIBRARIES:
            names = imported(nodes_run_on_import(ast.parse(text)), path, modules)
            imports[module_name(path)] = sorted(names & modules)
    cycles, done = [], set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            cycles.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in imports.get(name, ()):
                visit(target, [*trail, name])
            done.add(name)

    for name in imports:
        visit(name, [])
    return cycles


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined_names(tree: ast.Module) -> set[str]:
    """All names that a module defines: functions, classes, variables, fields, and what it sets on `self` or `cls`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "register_buffer":
            names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return names


def is_own(node: ast.AST) -> bool:
    """`self`, `cls` and `super()`."""
    if isinstance(node, ast.Call) and not node.args:
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_reads(sources: Sources) -> list[tuple[str, str]]:
    """Private names of another module: (path, the text), for `x._name` and `from module import _name`.

    `_replace`, `_asdict`, `_fields` and `_make` are a named tuple's public names, `_exit` is one of `os`.
    """
    found = []
    for path, text in sources.items():
        tree = ast.parse(text)
        own = defined_names(tree) | {"_replace", "_asdict", "_fields", "_make", "_exit"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                if not is_own(node.value) and node.attr not in own:
                    found.append((path, ast.unparse(node)))
            elif isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names if is_private(alias.name)]
                found += [(path, f"{node.module}.{name}") for name in names]
    return found


def assigned_targets(node: ast.AST) -> list[ast.AST]:
    """What a statement assigns to or deletes, tuples taken apart."""
    if isinstance(node, (ast.Assign, ast.Delete)):
        targets = list(node.targets)
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For, ast.AsyncFor)):
        targets = [node.target]
    elif isinstance(node, ast.withitem) and node.optional_vars:
        targets = [node.optional_vars]
    else:
        return []
    flat = []
    while targets:
        target = targets.pop()
        if isinstance(target, (ast.Tuple, ast.List)):
            targets += target.elts
        elif isinstance(target, ast.Starred):
            targets.append(target.value)
        else:
            flat.append(target)
    return flat


def imported_aliases(tree: ast.Module, modules: set[str]) -> set[str]:
    """Names under which modules of the repository, and what they define, are known in a file."""
    names = set()
    tops = {module.split(".")[0] for module in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in tops:
                    names.add(alias.asname or alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] in tops):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def outside_changes(sources: Sources) -> list[tuple[str, str]]:
    """Assignments to attributes of an imported module, function or class: (path, the text of the target).

    `setattr(module, ..)` counts, too.
    """
    modules = {module_name(path) for path in sources}
    found = []
    for path, text in sources.items():
        tree = ast.parse(text)
        aliases = imported_aliases(tree, modules)
        for node in ast.walk(tree):
            targets = [target for target in assigned_targets(node) if isinstance(target, ast.Attribute)]
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr"):
                targets += [ast.Attribute(node.args[0], "..", ast.Store())]
            for target in targets:
                root = target.value
                while isinstance(root, (ast.Attribute, ast.Subscript)):
                    root = root.value
                if isinstance(root, ast.Name) and root.id in aliases:
                    found.append((path, ast.unparse(target)))
    return found


# ---- the repository


@pytest.fixture(scope="module")
def sources() -> Sources:
    return repository_sources()


def test_the_root_holds_the_four_scripts(sources):
    assert wrong_root_files(sources) == []


def test_imports_go_one_way(sources):
    assert wrong_imports(sources) == []
    assert tracking_outside_commands(sources) == []


def test_library_modules_do_not_import_each_other_in_circles(sources):
    assert import_cycles(sources) == []


def test_private_names_stay_in_their_module(sources):
    found = set(private_reads(sources))
    assert sorted(found - KNOWN_PRIVATE_READS) == []
    assert sorted(KNOWN_PRIVATE_READS - found) == [], "no longer there: remove it from the list"


def test_modules_are_not_changed_from_outside(sources):
    found = set(outside_changes(sources))
    assert sorted(found - KNOWN_OUTSIDE_CHANGES) == []
    assert sorted(KNOWN_OUTSIDE_CHANGES - found) == [], "no longer there: remove it from the list"


# ---- each check finds a planted violation


def test_root_files_are_checked():
    good = [f"{name}.py" for name in SCRIPTS]
    assert wrong_root_files([*good, "envs/goals.py"]) == []
    assert wrong_root_files([*good, "goals.py"]) == ["goals.py: not one of the scripts"]
    assert wrong_root_files(good[1:]) == ["hop_ppo.py: missing"]


HOUSE = {
    "hop_ppo.py": "import data.flat\nimport search\nimport torch\nfrom metrics import scores\n",
    "envs/__init__.py": "from envs.grid import legal\n",
    "envs/grid.py": "import numpy\n\ndef legal(): ...\n",
    "envs/world_model_env.py": "import torch\nfrom envs.grid import legal\n",
    "data/__init__.py": "from data.flat import read\n",
    "data/flat.py": "from envs import grid\n\ndef read():\n    from data import collect\n",
    "data/collect.py": (
        "from data.flat import read\n\nif __name__ == '__main__':\n    import tracking\n    tracking.run()\n"
    ),
    "metrics/__init__.py": "",
    "metrics/scores.py": "from data.flat import read\nfrom envs.grid import legal\n",
    "search/__init__.py": "import torch\n",
    "tracking/__init__.py": "import torch\n",
    "tracking/figures.py": "from envs.render import draw\n",
    "envs/render.py": "from envs.grid import legal\n\ndef draw(): ...\n",
}


def test_a_good_house_passes():
    assert wrong_imports(HOUSE) == tracking_outside_commands(HOUSE) == import_cycles(HOUSE) == []
    assert private_reads(HOUSE) == outside_changes(HOUSE) == []


@pytest.mark.parametrize(
    "path, line, violation",
    [
        ("envs/grid.py", "from data.flat import read", "imports data.flat"),
        ("envs/grid.py", "import metrics.scores", "imports metrics.scores"),
        ("envs/grid.py", "import torch.nn as nn", "imports torch"),
        ("envs/grid.py", "def f():\n    from torch import nn", "imports torch"),
        ("envs/world_model_env.py", "import hop_ppo", "imports hop_ppo"),
        ("data/flat.py", "from metrics import scores", "imports metrics.scores"),
        ("data/flat.py", "if TYPE_CHECKING:\n    from metrics import scores", "imports metrics.scores"),
        ("data/flat.py", "def f():\n    import hop_ppo", "imports hop_ppo"),
        ("metrics/scores.py", "import tracking", "imports tracking"),
        ("metrics/scores.py", "from hop_ppo import Agent", "imports hop_ppo"),
        ("search/__init__.py", "from envs.grid import legal", "imports envs.grid"),
        ("tracking/__init__.py", "from .. import x\nimport envs", "imports envs"),
        ("tracking/__init__.py", "from envs.render import draw", "imports envs.render"),
        ("tracking/figures.py", "from envs.grid import legal", "imports envs.grid"),
    ],
)
def test_import_directions_are_checked(path, line, violation):
    assert wrong_imports(HOUSE | {path: HOUSE[path] + line + "\n"}) == [f"{path}: {violation}"]


def test_tracking_is_for_command_lines():
    planted = HOUSE | {"data/flat.py": "import tracking\n"}
    assert tracking_outside_commands(planted) == ["data/flat.py: imports tracking"]
    assert wrong_imports(planted) == []


@pytest.mark.parametrize(
    "path, line, cycle",
    [
        ("data/flat.py", "import data.collect", "data.flat -> data.collect -> data.flat"),
        ("data/flat.py", "from . import collect", "data.flat -> data.collect -> data.flat"),
        ("data/flat.py", "class A:\n    from data import collect", "data.flat -> data.collect -> data.flat"),
        ("envs/grid.py", "from envs import legal", "envs -> envs.grid -> envs"),
        ("metrics/scores.py", "import metrics.scores", "metrics.scores -> metrics.scores"),
    ],
)
def test_import_cycles_are_found(path, line, cycle):
    assert import_cycles(HOUSE | {path: HOUSE[path] + line + "\n"}) == [cycle]


@pytest.mark.parametrize(
    "line, violation",
    [
        ("x = core._at", "core._at"),
        ("x = self.core._at(3)", "self.core._at"),
        ("core._at = 3", "core._at"),
        ("from data.flat import read, _first", "data.flat._first"),
        ("import data.flat\nx = data.flat._first()", "data.flat._first"),
        ("x = search()._root", "search()._root"),
    ],
)
def test_private_reads_are_found(line, violation):
    assert private_reads({"metrics/scores.py": line}) == [("metrics/scores.py", violation)]


@pytest.mark.parametrize(
    "text",
    [
        "class A:\n    def f(self, other):\n        self._x = other._x\n        return self._y",
        "class A:\n    @classmethod\n    def f(cls):\n        return cls._x",
        "class A:\n    def f(self):\n        return super()._f()",
        "def _help(): ...\nx = module._help",
        "x = state._replace(a=1)\ny = x.__dict__",
        "class A:\n    _cache: int = 0\n\ndef f(a):\n    return a._cache",
    ],
)
def test_own_private_names_are_allowed(text):
    assert private_reads({"metrics/scores.py": text}) == []


@pytest.mark.parametrize(
    "line, violation",
    [
        ("import data.flat\ndata.flat.CHUNK = 7", "data.flat.CHUNK"),
        ("from data import flat\nflat.CHUNK += 7", "flat.CHUNK"),
        ("from data import flat as f\ndef g():\n    a, (f.CHUNK, *b) = 1, (2, 3)", "f.CHUNK"),
        ("from data import flat\ndel flat.CHUNK", "flat.CHUNK"),
        ("from data import flat\nfor flat.CHUNK in (1, 2): ...", "flat.CHUNK"),
        ("from data import flat\nsetattr(flat, 'CHUNK', 7)", "flat..."),
        ("from data.flat import Flat\nFlat.read = None", "Flat.read"),
    ],
)
def test_changes_from_outside_are_found(line, violation):
    assert outside_changes(HOUSE | {"hop_ppo.py": line}) == [("hop_ppo.py", violation)]


def test_own_objects_may_be_changed():
    text = "from data.flat import Flat\nimport torch\nflat = Flat()\nflat.rows = 3\ntorch.x.y = True\n"
    assert outside_changes(HOUSE | {"hop_ppo.py": text}) == []
