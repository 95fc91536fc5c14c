"""The borders between the rooms, read from the imports, and calls that may not occur."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("genrec", "sweeps")
SOURCES = {path.relative_to(ROOT).as_posix(): path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, wherever they stand; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package: str, within: str = "") -> set[str]:
    """Files that import `package` or something below it."""
    return {
        name
        for name, tree in TREES.items()
        if name.startswith(within) and any(f"{found}.".startswith(f"{package}.") for found in imported(tree))
    }


def test_there_is_something_to_read():
    assert {name.split("/")[0] for name in SOURCES} == set(PACKAGES)
    assert "genrec/models/tiger.py" in SOURCES


@pytest.mark.parametrize("package", ["sweeps", "ray", "optuna"])
def test_the_library_does_not_know_the_sweep(package):
    assert importers(package, "genrec/") == set()


@pytest.mark.parametrize("package", ["ray.train", "ray.tune"])
def test_one_module_alone_knows_each_part_of_ray(package):
    assert importers(package) == {f"sweeps/{package.replace('.', '_')}.py"}


RAY = {
    f"sweeps/{name}.py"
    for name in (
        "cluster_view",
        "demand",
        "job_server",
        "preflight",
        "ray_cluster",
        "ray_token",
        "ray_train",
        "ray_tune",
        "reservations",
        "stop_mark",
        "submission",
    )
}


def test_only_the_modules_that_the_readme_names_know_ray():
    assert importers("ray") == RAY


LEDGER = {
    f"sweeps/{name}.py"
    for name in ("ledger", "database", "finalist_queue", "proposer", "sampling", "study_record", "study_storage")
}


def test_optuna_belongs_to_ledger_and_report():
    report = {f"sweeps/report/{name}.py" for name in ("importance", "search", "course")}
    assert LEDGER <= importers("optuna") <= LEDGER | report


@pytest.mark.parametrize(
    ("package", "module"), [("wandb", "genrec/tracking.py"), ("wandb_workspaces", "sweeps/wandb_report.py")]
)
def test_wandb_belongs_to_tracking_and_to_the_report_there(package, module):
    assert importers(package) == {module}


def test_searches_and_clusters_are_no_programs():
    for folder in ("search_spaces", "cluster"):
        assert list((ROOT / folder).rglob("*.py")) == []


def test_the_layers_of_the_library_point_down():
    """Modules know neither models nor trainers, models no trainers, and only the top knows the command line."""
    above = {
        "genrec/modules/": ("genrec.models", "genrec.trainers", "genrec.pipeline", "genrec.data"),
        "genrec/models/": ("genrec.trainers", "genrec.pipeline"),
        "genrec/data/": ("genrec.trainers", "genrec.pipeline"),
        "genrec/trainers/": ("genrec.pipeline",),
    }
    for folder, forbidden in above.items():
        for package in forbidden:
            assert importers(package, folder) == set(), package


def test_a_command_line_is_nobodys_library():
    assert importers("sweeps.cli") == set()
    assert importers("genrec.cli") == {"genrec/trainers/launch.py"}  # when a trainer is run as a program


# ------------------------------------------------------------------- calls

BANNED = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
}
MUST_SAY = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def names_of(tree: ast.AST) -> dict[str, str]:
    """Local names of imported things -> their full names: `import numpy as np` gives np -> numpy."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                names[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return ""


def banned_calls(tree: ast.AST) -> list[str]:
    """`line: name` of every call that could run code from data or from a shell."""
    names, found = names_of(tree), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = full_name(node.func, names)
        said = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
        key, value = MUST_SAY.get(name, (None, None))
        shell = any(
            k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in node.keywords
        )
        if name in BANNED or shell or (key and said.get(key) is not value):
            found.append(f"{node.lineno}: {name}")
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_that_is_read_can_run_code(name):
    assert banned_calls(TREES[name]) == []


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "from torch import load as get\nget('x')",
        "import pickle\npickle.loads(b'')",
        "import pickle as p\np.Unpickler(f).load()",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load(t, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(t)",
        "eval('1')",
        "exec('1')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import subprocess\nsubprocess.run('x', shell=flag)",
        "import os\nos.system('x')",
    ],
)
def test_the_check_sees_what_it_is_for(code):
    assert banned_calls(ast.parse(code))


def test_the_check_lets_the_safe_forms_pass():
    code = (
        "import torch, numpy as np\ntorch.load('x', weights_only=True)\nnp.load('x', allow_pickle=False)\nmodel.eval()"
    )
    assert banned_calls(ast.parse(code)) == []


# ------------------------------------------------------------------ import


def top_level_calls(tree: ast.Module) -> Iterator[str]:
    """Names of calls that run when the module is imported."""
    todo: list[ast.AST] = [*tree.body]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Call):
            yield full_name(node.func, names_of(tree))
        todo += ast.iter_child_nodes(node)


@pytest.mark.parametrize("name", SOURCES)
def test_an_import_neither_prints_nor_configures_logging(name):
    forbidden = {"print", "logging.basicConfig", "logging.config.dictConfig", "logging.disable", "click.echo"}
    assert forbidden & set(top_level_calls(TREES[name])) == set()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, cwd=ROOT)


def test_importing_the_package_is_quick_and_does_not_load_ray():
    code = (
        "import sys, time; t = time.process_time(); import genrec\n"
        "print(time.process_time() - t, [m for m in ('ray', 'torch', 'optuna') if m in sys.modules])"
    )
    seconds, loaded = run_python(code).stdout.split(maxsplit=1)
    assert float(seconds) < 2
    assert loaded.strip() == "[]"


def test_the_whole_library_imports_silently_and_without_ray():
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in SOURCES]
    library = [module for module in modules if module.startswith("genrec")]
    code = (
        f"import sys, logging, {', '.join(library)}\n"
        "assert not [m for m in ('ray', 'optuna', 'sweeps', 'wandb') if m in sys.modules]\n"
        "assert not logging.root.handlers and logging.root.level == logging.WARNING\n"
    )
    started = time.monotonic()
    ended = run_python(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), time.monotonic() - started


def test_both_names_load_from_this_tree():
    """`sweeps` is also the name of an extra of another project."""
    ended = run_python("import genrec, sweeps; print(genrec.__file__); print(sweeps.__file__)")
    assert ended.stdout.split() == [str(ROOT / "genrec/__init__.py"), str(ROOT / "sweeps/__init__.py")]
