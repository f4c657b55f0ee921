"""The rules of the house, read off the source: sizes, docstrings, arrows, tiers, lean imports."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import structure

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[1]
ROOMS = ("plugins", "vmla", "export", "runtime", "bench")
"""Arrows run one way: each may import itself and those before it."""
TIERS = ("cpu", "gpu", "trt", "slow", "browser", "ray")
HEAVY = ("tensorrt", "tensorrt_rtx", "triton", "diffusers", "transformers", "av", "onnx", "PIL", "pydantic")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
KERNELS = {"plugins/triton/absorbed.py": 80}
"""A kernel whose one loop carries a dozen tiles, which no function could take over without all of them."""
LOADS = {
    "export.engine.manifest", "export.checks", "export.backends.base", "export.backends.registry",
    "export.lowering.exclusions",
}  # fmt: skip
"""What the runtime takes of `export`: the manifest, whether an engine fits, the backend that loads it, and
which layers fp8 leaves alone."""
BUILDS = ("runtime/cli/export.py", "runtime/cli/verify/layers.py")
"""The commands that build engines or export their graphs anew, and so may import all of `export`."""
AT_THE_BOTTOM = "plugins.errors"
"""What every module raises: importing it loads nothing."""


def sources(*folders):
    """Every Python file of `folders`, sorted."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in files if "__pycache__" not in path.parts)


@cache
def parsed(path):
    return ast.parse(path.read_text(), str(path))


@cache
def house():
    return structure.House(ROOT)


def named(path):
    return str(path.relative_to(ROOT))


LIBRARY, ALL = sources(*ROOMS), sources(*ROOMS, "tests")
TESTS = [path for path in ALL if path.name.startswith("test_")]


def imported(tree):
    """Every module that is imported anywhere in `tree`, with the names that are taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield node.module, tuple(alias.name for alias in node.names)


def test_the_walk_finds_the_house():
    found = {path.relative_to(ROOT).parts[0] for path in ALL}
    assert found == {*ROOMS, "tests"}
    assert ROOT / "vmla" / "transformer.py" in LIBRARY


def test_files_are_short():
    lengths = {named(path): len(path.read_text().splitlines()) for path in ALL}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_functions_are_short():
    lengths = {
        (named(path), node.name): node.end_lineno - node.lineno + 1
        for path in ALL
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    long = {at: lines for at, lines in lengths.items() if lines > KERNELS.get(at[0], LONGEST_FUNCTION)}
    assert long == {}


def test_every_module_says_what_it_is():
    assert [named(path) for path in ALL if not ast.get_docstring(parsed(path))] == []


def test_arrows_run_one_way():
    wrong = []
    for path in LIBRARY:
        room = ROOMS.index(path.relative_to(ROOT).parts[0])
        above = {*ROOMS[room + 1 :], "tests"}
        wrong += [
            f"{named(path)} imports {module}"
            for module, _ in imported(parsed(path))
            if module.split(".")[0] in above
        ]
    assert wrong == []


def test_errors_import_nothing():
    path = ROOT / AT_THE_BOTTOM.replace(".", "/")
    assert [module for module, _ in imported(parsed(path.with_suffix(".py")))] == ["__future__"]


def test_the_runtime_knows_of_export_what_loads_an_engine_alone():
    known = {
        (named(path), module)
        for path in sources("runtime")
        for module, _ in imported(parsed(path))
        if module.split(".")[0] == "export" and named(path) not in BUILDS
    }
    assert known and {one for one in known if one[1] not in LOADS} == set()


def test_all_that_lists_and_loads_engines_is_imported_without_a_compiler_or_torch():
    modules = ", ".join(sorted(LOADS | {"runtime.cli.export", "sys"}))
    statement = f"import {modules}; assert 'torch' not in sys.modules"
    assert loaded_by(statement) == ["[]", "False"]


def test_the_library_prints_nothing():
    calls = (
        (path, node) for path in LIBRARY for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)
    )
    printing = [named(path) for path, call in calls if ast.unparse(call.func) == "print"]
    assert printing == []


def tier_of(path):
    """What a test file sets `pytestmark` to, as it is written there."""
    return [
        ast.unparse(node.value)
        for node in parsed(path).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]


def test_every_test_file_names_its_tier():
    marks = {named(path): tier_of(path) for path in TESTS}
    known = {f"pytest.mark.{tier}" for tier in TIERS}
    without = [
        name
        for name, found in marks.items()
        if len(found) != 1 or not any(mark in found[0] for mark in known)
    ]
    assert without == []


def asserting(tree):
    """Names of the functions of `tree` that assert something, themselves or through one another."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    names: set[str] = set()
    while True:
        found = {function.name for function in functions if asserts(function, names)}
        if found == names:
            return names
        names = found


def asserts(function, helpers):
    """Whether `function` holds an assertion, `pytest.raises`, an `assert_...`, or calls one of `helpers`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "pytest.raises" or called in helpers or called.startswith("assert_"):
                return True
    return False


def test_no_test_is_without_an_assertion():
    without = set()
    for path in TESTS:
        tests = {
            node.name
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        without |= {(named(path), name) for name in tests - asserting(parsed(path))}
    assert without == set()


def test_file_names_differ_so_that_pytest_can_import_them():
    names = [path.name for path in ALL if path.name.startswith("test_")]
    assert len(names) == len(set(names))


def loaded_by(statement):
    """What `statement` leaves loaded of the heavy packages, and whether it started CUDA."""
    script = (
        f"{statement}; import sys; print([m for m in {HEAVY} if m in sys.modules]);"
        "t = sys.modules.get('torch'); print(bool(t and t.cuda.is_initialized()))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:2]


def test_importing_vmla_loads_not_even_torch():
    statement = "import vmla, sys; assert 'torch' not in sys.modules"
    assert loaded_by(statement) == ["[]", "False"]


def test_model_training_and_rollout_load_no_optional_package_and_start_no_cuda():
    modules = (
        "plugins, vmla.transformer, vmla.cache, vmla.scheduler, vmla.text, vmla.vae.tiny, vmla.vae.wan, "
        "vmla.weights.checkpoint, vmla.train.run, vmla.train.recipes.from_scratch, "
        "vmla.world.render, runtime.rollout.rollout"
    )
    assert loaded_by(f"import {modules}") == ["[]", "False"]


def test_the_shipped_model_reads_prompts_without_transformers():
    assert loaded_by(
        "from vmla.weights.checkpoint import open_checkpoint; open_checkpoint().text()(['a red star'])"
    ) == ["['pydantic']", "False"]  # which reads its settings


@pytest.mark.parametrize("top", structure.TOPS)
def test_no_two_modules_import_each_other(top):
    assert structure.circles(house().modules(top)) == []


def test_no_two_folders_import_each_other():
    assert structure.circles(house().rooms()) == []


def test_no_folder_is_a_hall():
    full = {room: count for room, count in house().folders().items() if count > 9}
    assert not full
