"""How the house is built: files a folder, imports a module, floors and arrows, and the way to the attention.

    python tests/structure.py [CHECKOUT] [--json FILE]

Folders are rooms. An arrow runs from a room to one that it imports; a room's floor is the longest way from
it down to a room that imports none, where rooms that import one another count as one. The way to the
attention is watched on one chunk of a tiny model: which modules are visited until attention is first
computed, by the command, by the generator, and within a rollout.
"""

from __future__ import annotations

import ast
import json
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

TOPS = ("plugins", "vmla", "export", "runtime", "bench")
PROMPT = "a red star bouncing on a navy background"
START, ATTENTION = "denoise", "mla_attention"
"""Functions between which a pass is watched: that of a rollout, and that of the operator's module."""

Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the most of some counts."""

    least: int
    middle: float
    most: int

    @classmethod
    def of(cls, counts: Iterable[int]) -> Spread:
        """That of `counts`, zeros if there are none."""
        found = sorted(counts) or [0]
        return cls(found[0], median(found), found[-1])

    def __str__(self) -> str:
        """As a table shows it."""
        return f"{self.least} / {self.middle:g} / {self.most}"


@dataclass(frozen=True)
class Way:
    """What happened between two calls."""

    modules: int
    """Different ones that were visited."""
    changes: int
    """Calls that led from one module into another."""
    deep: int
    """The house's own calls under way at the end."""

    def __str__(self) -> str:
        """In words."""
        return f"{self.modules} modules, {self.changes} changes of module, {self.deep} calls deep"


# The source, read.


class House:
    """A checkout's modules and what they import."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = [path for top in TOPS for path in sorted((root / top).rglob("*.py"))]
        self.files = {_dotted(path.relative_to(root)): path for path in paths}
        self.imports: dict[str, set[str]] = {name: self._imported(name) for name in self.files}
        self.by_name: dict[str, set[str]] = {name: self._spelled(name) for name in self.files}
        """Modules that are named in strings, as those are which are loaded by their names."""

    def _tree(self, name: str) -> ast.Module:
        return _parsed(self.files[name])

    def _imported(self, name: str) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(self._tree(name)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found |= {path if path in self.files else node.module for path in whole.values()}
        return {module for module in found if module in self.files} - {name}

    def _spelled(self, name: str) -> set[str]:
        strings = (node.value for node in ast.walk(self._tree(name)) if isinstance(node, ast.Constant))
        names = {value for value in strings if isinstance(value, str) and "." in value}
        return {value for value in names if value in self.files} - {name}

    def room(self, name: str) -> str:
        """The folder of a module."""
        return name if self.files[name].name == "__init__.py" else name.rpartition(".")[0]

    def lines(self, top: str) -> int:
        """Lines of source below a top-level folder."""
        return sum(len(p.read_text().splitlines()) for n, p in self.files.items() if n.split(".")[0] == top)

    def folders(self) -> dict[str, int]:
        """Files of each folder; one that only makes a folder a package does not count."""
        counts: dict[str, int] = {}
        for name, path in self.files.items():
            room = self.room(name)
            counts[room] = counts.get(room, 0) + (path.name != "__init__.py" or _says_more(path))
        return counts

    def modules(self, top: str) -> Graph:
        """The modules of a top-level folder and the arrows between them."""
        inside = {name for name in self.files if name.split(".")[0] == top}
        return {name: self.imports[name] & inside for name in inside}

    def rooms(self, top: str | None = None) -> Graph:
        """The rooms of one top-level folder, or of all, and the arrows between them."""
        graph: dict[str, set[str]] = {}
        for name, imported in self.imports.items():
            others = graph.setdefault(self.room(name), set())
            others |= {self.room(each) for each in imported} - {self.room(name)}
        if top is not None:
            graph = {room: others for room, others in graph.items() if room.split(".")[0] == top}
            graph = {room: others & graph.keys() for room, others in graph.items()}
        return graph


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _says_more(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in _parsed(path).body)


# Graphs.


def circles(graph: Graph) -> list[list[str]]:
    """Sets of nodes each of which leads to all others of its set, the largest first."""
    reached = {node: _reached(graph, node) for node in graph}
    found = {frozenset(m for m in reached[n] if n in reached[m]) for n in graph if n in reached[n]}
    return sorted((sorted(each) for each in found), key=len, reverse=True)


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return seen


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each node, 1 at the bottom."""
    same = {node: frozenset(each) for each in circles(graph) for node in each}
    whole = {node: same.get(node, frozenset((node,))) for node in graph}

    @cache
    def floor(part: frozenset[str]) -> int:
        below = {whole[other] for node in part for other in graph[node]} - {part}
        return 1 + max((floor(each) for each in below), default=0)

    return {node: floor(part) for node, part in whole.items()}


def arrows(graph: Graph) -> int:
    """How many there are."""
    return sum(map(len, graph.values()))


# The way to the attention, watched.

FOLLOWED = ("MainThread", "video-pipeline")
"""Threads between whoever asks for a video and the attention."""


class Watch:
    """Follows the house's own calls of the threads `FOLLOWED`, between two functions."""

    def __init__(self, root: Path, start: str | None, end: str) -> None:
        """From the first call of `start`, or at once if it is None, to the first of `end`."""
        self._root, self._start, self._end = f"{root}/", start, end
        self._stacks: dict[str, list[str]] = {name: [] for name in FOLLOWED}
        self._trail: list[str] = []
        self._on = start is None
        self.way: Way | None = None

    def __call__(self, frame: Any, event: str, argument: object) -> None:
        """What `sys.setprofile` calls."""
        code, stack = frame.f_code, self._stacks.get(threading.current_thread().name)
        if stack is None or not code.co_filename.startswith(self._root):
            return
        if event == "return" and stack:
            stack.pop()
        elif event == "call":
            self._enter(code.co_filename, code.co_name, stack)

    def _enter(self, file: str, function: str, stack: list[str]) -> None:
        if function == self._start and not self._on:
            self._on = True
            stack.clear()
        if not self._on or self.way is not None:
            return
        if not stack or stack[-1] != file:
            self._trail.append(file)
        stack.append(file)
        if function == self._end:
            self.way = Way(len(set(self._trail)), len(self._trail), len(stack))


@contextmanager
def _profiled(watch: Watch) -> Iterator[None]:
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def ways(root: Path) -> dict[str, Way | None]:
    """How far it is to the attention: from the command, the generator, and a rollout's `denoise`."""
    sys.path[:0] = [str(root), str(root / "tests")]
    from kit.tiny.checkpoints import debug_checkpoint

    import runtime

    assert Path(str(runtime.__file__)).is_relative_to(root), runtime.__file__
    found: dict[str, Way | None] = {}
    with TemporaryDirectory() as folder:
        checkpoint = debug_checkpoint(Path(folder) / "debug")
        command = _command(root, ["--checkpoint", str(checkpoint), "-o", str(Path(folder) / "a.mp4")])

        def generate() -> None:
            next(iter(runtime.generate(PROMPT, seconds=0.1, checkpoint=checkpoint)))

        starts = [("vmla-run", command, None), ("runtime.generate", generate, None), (START, generate, START)]
        for name, call, start in starts:
            call()  # everything is loaded now
            watch = Watch(root, start, ATTENTION)
            with _profiled(watch):
                call()
            found[name] = watch.way
    return found


def _command(root: Path, arguments: list[str]) -> Callable[[], None]:
    """`vmla-run` for one chunk, without what it prints."""
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["vmla-run"].partition(":")
    command = getattr(import_module(module), name)
    rest = ["--prompt", PROMPT, "--chunks", "1", "--engine", "eager", "--overwrite", *arguments]

    def call() -> None:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            command.main(rest, standalone_mode=False)

    return call


# What is said of it.


def measure(root: Path) -> dict[str, Any]:
    """All figures of a checkout."""
    house = House(root)
    return {
        "lines": {top: house.lines(top) for top in TOPS},
        "folders": house.folders(),
        "imports": {top: asdict(_imports(house, top)) for top in TOPS},
        "modules": {top: _figures(house.modules(top)) for top in TOPS},
        "rooms": {top: _figures(house.rooms(top)) for top in TOPS},
        "all": _figures(house.rooms()),
        "by name": sorted(f"{name} -> {each}" for name, found in house.by_name.items() for each in found),
        "ways": {name: way and asdict(way) for name, way in ways(root).items()},
    }


def _imports(house: House, top: str) -> Spread:
    return Spread.of(len(found) for name, found in house.imports.items() if name.split(".")[0] == top)


def _figures(graph: Graph) -> dict[str, Any]:
    highest = max(floors(graph).values(), default=0)
    return {"count": len(graph), "floors": highest, "arrows": arrows(graph), "circles": circles(graph)}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The figures as a person reads them."""
    folders = found["folders"]
    spread = Spread.of(count for count in folders.values() if count)
    yield f"library: {sum(found['lines'].values()):,} lines, {len(folders)} folders of {spread} files"
    heads = f"{'lines':>7}{'files a folder':>18}{'imports a module':>19}"
    yield f"{'':9}{heads}   modules: floors, arrows   rooms: same"
    for top in TOPS:
        counts = Spread.of(n for room, n in folders.items() if room.split(".")[0] == top and n)
        imports, modules, rooms = (found[kind][top] for kind in ("imports", "modules", "rooms"))
        yield (
            f"{top:9}{found['lines'][top]:>7,}{counts!s:>18}{Spread(**imports)!s:>19}"
            f"   {modules['count']:>4}: {modules['floors']:>2}, {modules['arrows']:>3}"
            f"            {rooms['count']:>4}: {rooms['floors']:>2}, {rooms['arrows']:>3}"
        )
    whole = found["all"]
    yield f"all rooms: {whole['count']} on {whole['floors']} floors, {whole['arrows']} arrows"
    for kind in ("modules", "rooms"):
        for top in TOPS:
            for circle in found[kind][top]["circles"]:
                yield f"circle of {kind}: {', '.join(circle)}"
    for circle in whole["circles"]:
        yield f"circle of all rooms: {', '.join(circle)}"
    crowded = [f"{room} {count}" for room, count in sorted(folders.items()) if count > 9]
    yield f"more than nine files: {', '.join(crowded) or 'none'}"
    small = [f"{room} {count}" for room, count in sorted(folders.items()) if 0 < count < 4]
    yield f"fewer than four: {', '.join(small) or 'none'}"
    yield f"found by name: {len(found['by name'])}"
    for name, way in found["ways"].items():
        yield f"from {name} to the attention: {Way(**way) if way else 'never'}"


def main(arguments: list[str]) -> None:
    """Measure the checkout named first, or the one here."""
    target = arguments.index("--json") if "--json" in arguments else len(arguments)
    found = measure(Path(arguments[0] if target else ".").resolve())
    sys.stdout.write("\n".join(lines(found)) + "\n")
    if target < len(arguments):
        Path(arguments[target + 1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
