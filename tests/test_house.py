"""The guard of the house: how its rooms may lean on each other, and what stands in one place only.

Sources are parsed, not imported. Each rule is a function from a `House` to its findings, a line
each that says where and what to do. Below the rules, each is shown to see its fault in a house of
a few lines. To give a new room its place, a new backend its library or a file an exception, change
the tables that come first.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import string
import subprocess
import sys
import tomllib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import pytest

import quantolab
from quantolab import weights

ROOT = Path(__file__).resolve().parents[1]
OURS = "quantolab"

# --- what is allowed ------------------------------------------------------------------------

# From the ground up. A room leans on rooms of lower lines only; rooms of one line don't know each
# other. `demo/making`, which makes the demo model, is imported by nothing.
ORDER = (
    "errors",
    "units text_tables arguments telling quietly",
    "weights shapes plain_values",
    "devices recipes",
    "records command_line",
    "files hub",
    "processes",
    "demo",
    "models backends measure",
    "planning",
    "loading",
    "single_file saved",
    "run",
    "progress",
    "report",
    "experiments",
    "full_size doctor tutorials demo/making",
    "widgets",
    "cli",
    "__main__",
)
RANKS = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms.split()}

# They meet in the rooms above them.
STRANGERS = {"models", "backends", "measure"}

# A backend's folder, and the library that nobody else imports.
BACKEND_LIBRARIES = {
    "quanto": "optimum", "sdnq": "sdnq", "torchao": "torchao", "bitsandbytes": "bitsandbytes",
    "gguf": "gguf",
}  # fmt: skip

# Libraries that take a second or more to import.
TORCH = {"torch", "diffusers", "transformers", "accelerate", *BACKEND_LIBRARIES.values()}
HEAVY = TORCH | {"ipywidgets", "pandas", "matplotlib"}

# Rooms that load without torch: they run in the notebook's or the terminal's process.
WITHOUT_TORCH = {
    "errors", "units", "text_tables", "arguments", "quietly", "weights", "shapes", "plain_values",
    "devices", "recipes", "records", "hub", "processes", "demo", "progress", "report",
    "experiments", "full_size", "tutorials", "widgets", "command_line", "cli", "__main__",
}  # fmt: skip
NEVER_TORCH = {"report"}  # it opens results and draws; no late import of torch either

# Names of what crosses to another process: it is a record, and no dict.
CROSSES = {"asked", "request", "job", "order"}

# Files, or folders, that a rule lets be, and why. A line that isn't needed any more is a fault.
EXCEPTIONS = {
    "computed_imports": {
        "backends/__init__.py": "the door: the table of weights words names the folder",
        "doctor/machine.py": "whether libraries can be imported; none is ours",
        "models/skeleton.py": "the library of a component's class, from the model's own files",
        "processes/jobs.py": "finds the job that a JobKind names; names count where they stand",
        "processes/server.py": "what a Preload names; names count where they stand",
        "run/preloads.py": "preloads the layers of the backend that is always there",
        "saved/verifying.py": "preloads the layers of the backend that is always there",
    },
    "past_the_door": {
        "doctor/": "examines Quanto as it is shipped, without our cures",
        "report/code.py": "a plain script repeats the cures of Quanto that it needs",
    },
    "loads_torch": {
        "experiments/compiling_child.py": "does its job in a child",
        "experiments/full_size_child.py": "does its job in a child",
        "experiments/replaying.py": "runs a model again and again, in a child",
        "experiments/sensitivity_child.py": "does its jobs in a child",
        "widgets/child.py": "does its jobs in the process beside the kernel",
    },
    "imports_torch_late": {
        "report/code.py": "resolves layers against the model's shapes, to write a script",
    },
    "numbers_as_text": {
        "demo/making/": "tells whoever trains the demo model how it goes, on a terminal",
    },
}

# --- what the guard sees --------------------------------------------------------------------

ANY = "*"  # stands for a piece of text that only running the code tells


@dataclass(frozen=True)
class Finding:
    """One line about one place."""

    file: str
    """Path inside the package."""
    line: int
    text: str

    def __str__(self) -> str:
        return f"{OURS}/{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Import:
    """What a statement or a call imports, ours or not."""

    module: str
    name: str
    """What is taken from it; empty for the module itself."""
    line: int
    when: str


@dataclass(frozen=True)
class Edge:
    """One module of ours leans on another."""

    source: str
    target: str
    line: int
    when: str
    """``load``, ``lazy`` (inside a function), ``types`` (for type checkers), ``text`` (named in a
    string) or ``any`` (one of all that a name with unknown pieces fits)."""


class Module:
    """A file of the package, parsed."""

    def __init__(self, root: Path, path: Path) -> None:
        parts = path.relative_to(root).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.package = self.name if self.is_package else self.name.rpartition(".")[0]
        self.file = path.relative_to(root / OURS).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"), str(path))

    @property
    def backend(self) -> str:
        """Folder of `backends` in which the file lies; empty for all other files."""
        parts = self.file.split("/")
        return parts[1] if parts[0] == "backends" and len(parts) > 2 else ""

    @cached_property
    def nodes(self) -> list[tuple[ast.AST, str]]:
        """Every node but docstrings, and when it runs."""
        return _walk(self.tree, "load")

    @cached_property
    def tops(self) -> set[str]:
        """Names that can be imported from the module, those for type checkers included."""
        names = set()
        for node in _statements(self.tree, into_classes=False):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {a.asname or a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            else:
                stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
                names |= {n.id for n in stored if isinstance(n.ctx, ast.Store)}
        return names

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """What is assigned to names at the top."""
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            target = node.target if isinstance(node, ast.AnnAssign) else target
            if isinstance(target, ast.Name) and node.value is not None:
                found[target.id] = node.value
        return found

    def table(self, name: str) -> dict[str, str]:
        """Return a dict of texts at the top, such as a glossary's; empty if there is none."""
        value = self.constants.get(name)
        if not isinstance(value, ast.Dict):
            return {}
        return {
            key.value: text.value
            for key, text in zip(value.keys, value.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(text, ast.Constant)
        }

    def texts(self, node: ast.AST | None) -> list[str]:
        """Return the texts that an expression may be, ``*`` for unknown pieces; [] for others."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.FormattedValue):
            return self.texts(node.value) or [ANY]
        if isinstance(node, ast.JoinedStr):
            return ["".join(parts) for parts in product(*map(self.texts, node.values))]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.texts(node.left), self.texts(node.right)
            both = product(left or [ANY], right or [ANY])
            return [a + b for a, b in both] if left or right else []
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            return list(dict.fromkeys(self.table(node.value.id).values()))
        if isinstance(node, ast.Name) and node.id in ("__name__", "__package__"):
            return [self.name if node.id == "__name__" else self.package]
        if isinstance(node, ast.Name) and node.id in self.constants:
            return self.texts(self.constants[node.id])
        return []

    @cached_property
    def imports(self) -> list[Import]:
        """Every import that says what it imports."""
        found = []
        for node, when in self.nodes:
            if isinstance(node, ast.Import):
                found += [Import(a.name, "", node.lineno, when) for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = self.source_of(node)
                found += [Import(module, a.name, node.lineno, when) for a in node.names]
            elif _is_import_call(node):
                names = self._imported_by(node)
                found += [Import(name, "", node.lineno, when) for name in names if ANY not in name]
        return found

    @cached_property
    def named(self) -> list[tuple[str, int]]:
        """Names of modules of ours in strings, some with unknown pieces, and their lines."""
        found = []
        for node, _ in self.nodes:
            texts = []
            if _is_import_call(node):
                texts = [name for name in self._imported_by(node) if ANY in name]
            elif isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
                texts = [] if id(node) in self._pieces else self.texts(node)
                code = "\n".join(texts)  # that another process may be given to run
                texts += [".".join(filter(None, names)) for names in _IMPORTED_IN.findall(code)]
            found += [(t.partition(":")[0], node.lineno) for t in texts if _is_ours(t)]
        return list(dict.fromkeys(found))

    @cached_property
    def unknown_imports(self) -> list[int]:
        """Lines of calls that import what reading them doesn't tell."""
        called = {id(node.func) for node, _ in self.nodes if isinstance(node, ast.Call)}
        lines = []
        for node, _ in self.nodes:
            if _is_import_call(node):
                names = self._imported_by(node)
                unknown = not names or any(ANY in name for name in names)
            elif isinstance(node, ast.ImportFrom):  # under another name
                unknown = node.module == "importlib" and any(a.asname for a in node.names)
            else:  # handed on
                unknown = _last_name(node) in _IMPORTERS and id(node) not in called
            lines += [node.lineno] if unknown else []
        return lines

    @cached_property
    def _pieces(self) -> set[int]:
        """Texts that others are put together from; they name nothing by themselves."""
        joined = [n for n, _ in self.nodes if isinstance(n, (ast.JoinedStr, ast.BinOp))]
        inner = {id(n): n for whole in joined for n in ast.walk(whole) if n is not whole}
        names = {n.id for n in inner.values() if isinstance(n, ast.Name)}
        names -= {
            n.id
            for n, _ in self.nodes
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and id(n) not in inner
        }
        return inner.keys() | {id(self.constants[n]) for n in names & self.constants.keys()}

    def source_of(self, node: ast.ImportFrom) -> str:
        """Return the full name of the module that names are imported from."""
        return _absolute(self.package, "." * node.level + (node.module or ""))

    def _imported_by(self, call: ast.Call) -> list[str]:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        name = call.args[0] if call.args else given.get("name")
        base = call.args[1] if len(call.args) > 1 else given.get("package")
        package = (self.texts(base) or [self.package])[0]
        return [_absolute(package, text) for text in self.texts(name)]


_IMPORTERS = ("import_module", "__import__")
_IMPORTED_IN = re.compile(
    rf"(?:^|;) *(?:from|import) +({OURS}(?:\.\w+)+)(?: +import +(\w+))?", re.MULTILINE
)


def _walk(node: ast.AST, when: str) -> list[tuple[ast.AST, str]]:
    found = [(node, when)]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and when == "load":
        when = "lazy"
    only_types = isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"
    for field, value in ast.iter_fields(node):
        inner = "types" if only_types and field == "body" else when
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_docstring(child):
                found += _walk(child, inner)
    return found


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _statements(tree: ast.AST, *, into_classes: bool) -> Iterator[ast.AST]:
    """Yield functions, and the statements outside them."""
    blocks = (ast.If, ast.Try, ast.With, ast.ExceptHandler)
    for field in ("body", "handlers", "orelse", "finalbody"):
        for node in getattr(tree, field, ()):
            if isinstance(node, blocks) or (into_classes and isinstance(node, ast.ClassDef)):
                yield from _statements(node, into_classes=into_classes)
            elif not _is_docstring(node):
                yield node


def _absolute(package: str, name: str) -> str:
    """Return what ``..name`` means in a package; a name without dots means itself."""
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - dots + 1], name[dots:]]).rstrip(".")


def _last_name(node: ast.AST | None) -> str:
    """Return ``c`` of ``a.b.c`` and of ``c[...]``; empty for what has no name."""
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_import_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _last_name(node.func) in _IMPORTERS


def _is_ours(text: str) -> bool:
    return re.fullmatch(rf"{OURS}(\.[\w*]+)+(:\w+)?", text) is not None


class House:
    """The package under a root, and who leans on whom in it."""

    def __init__(self, root: Path) -> None:
        found = [Module(root, path) for path in sorted((root / OURS).rglob("*.py"))]
        self.modules = {module.name: module for module in found}
        self.lost: list[Finding] = []
        """Imports of ours that name nothing."""
        edges = (edge for module in found for edge in self._edges_of(module))
        self.edges = list(dict.fromkeys(edge for edge in edges if edge.source != edge.target))

    def _edges_of(self, module: Module) -> Iterator[Edge]:
        for found in module.imports:
            if found.module.partition(".")[0] == OURS:
                target = self._target(module, found)
                if target:
                    yield Edge(module.name, target, found.line, found.when)
        for name, line in module.named:
            if ANY in name:
                for target in self.fitting(name):
                    yield Edge(module.name, target, line, "any")
            elif (target := self._longest(name)) != OURS:  # "quantolab.json" is a file
                yield Edge(module.name, target, line, "text")

    def _target(self, module: Module, found: Import) -> str:
        """Return the module that an import leans on; empty for none, and for `__version__`."""
        base = self.modules.get(found.module)
        if base is None:
            said = f"imports {found.module}, which isn't there; name the module as it is now"
            self.lost.append(Finding(module.file, found.line, said))
            return ""
        if found.name in ("", "*"):
            return base.name
        if f"{base.name}.{found.name}" in self.modules:
            return f"{base.name}.{found.name}"
        glossary = base.table("_ROOMS")
        if found.name in glossary:
            return f"{base.name}.{glossary[found.name]}"
        if found.name not in base.tops:
            said = f"imports {found.name} from {base.name}, which has no such name"
            self.lost.append(Finding(module.file, found.line, said))
        return "" if glossary else base.name

    def _longest(self, name: str) -> str:
        while name not in self.modules and "." in name:
            name = name.rpartition(".")[0]
        return name

    def fitting(self, pattern: str) -> list[str]:
        """Return the modules whose names a name with unknown pieces fits."""
        return fnmatch.filter(self.modules, pattern)

    def edges_from(self, *kinds: str) -> dict[str, list[Edge]]:
        """Return the edges of each module, of some kinds or of all."""
        found: dict[str, list[Edge]] = {name: [] for name in self.modules}
        for edge in self.edges:
            if not kinds or edge.when in kinds:
                found[edge.source].append(edge)
        return found

    def at(self, edge: Edge, text: str) -> Finding:
        """Return a finding about one module that leans on another."""
        return Finding(self.modules[edge.source].file, edge.line, text)

    def defined(self, module: Module, node: ast.AST | None) -> tuple[Module, ast.AST] | None:
        """Return the class or function that an expression in a module names, and its home."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.Attribute):
            home = self._imported(module, _last_name(node.value), modules=True)
            return self.defined(home[0], ast.Name(node.attr)) if home else None
        if not isinstance(node, ast.Name):
            return None
        for top in module.tree.body:
            if getattr(top, "name", None) == node.id:
                return module, top
        home = self._imported(module, node.id, modules=False)
        return self.defined(home[0], ast.Name(home[1])) if home else None

    def _imported(self, module: Module, name: str, *, modules: bool) -> tuple[Module, str] | None:
        """Return where a name comes from: that module, or the module from which it is taken."""
        for node, _ in module.nodes:
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                if (alias.asname or alias.name) == name:
                    base = module.source_of(node)
                    home = self.modules.get(f"{base}.{alias.name}" if modules else base)
                    return (home, alias.name) if home else None
        return None


def room(name: str) -> str:
    """Return the room of a module; empty for the package itself, the glossary of all rooms."""
    parts = name.split(".")[1:]
    if parts[:2] == ["demo", "making"]:
        return "demo/making"
    return parts[0] if parts else ""


def way(edges: dict[str, list[Edge]], start: str, ends: set[str]) -> list[Edge]:
    """Return the shortest way from a module to one of others, itself perhaps; [] if there is none.

    >>> way({"a": [Edge("a", "b", 1, "load")], "b": []}, "a", {"a"})
    []
    """
    came: dict[str, Edge] = {}
    queue = deque([start])
    while queue:
        for edge in edges[queue.popleft()]:
            if edge.target in ends:
                steps = [edge]
                while steps[0].source != start:
                    steps.insert(0, came[steps[0].source])
                return steps
            if edge.target not in came:
                came[edge.target] = edge
                queue.append(edge.target)
    return []


# --- who leans on whom ----------------------------------------------------------------------


def lost_imports(house: House) -> list[Finding]:
    """Whatever is imported is there, also where it is imported late or for types alone."""
    return house.lost


def computed_imports(house: House) -> list[Finding]:
    """What is imported can be read."""
    said = (
        "imports what only running it tells; name the module, or say in EXCEPTIONS of "
        "tests/test_house.py why it can't be named"
    )
    found = []
    for module in house.modules.values():
        texts = [line for name, line in module.named if ANY in name and house.fitting(name)]
        lines = sorted({*module.unknown_imports, *texts})
        found += [Finding(module.file, line, said) for line in lines]
    return found


def circles(house: House) -> list[Finding]:
    """No module leans on itself by way of others; every kind of leaning counts."""
    edges, seen, found = house.edges_from(), set(), []
    for start in sorted(house.modules):
        steps = [] if start in seen else way(edges, start, {start})
        if steps:
            seen |= {edge.source for edge in steps}
            files = [f"{house.modules[e.source].file}:{e.line} ({e.when})" for e in steps]
            said = (
                f"leans on itself: {' -> '.join(files)} -> {house.modules[start].file}; move what "
                "two of them need into a module below both, or hand it in as an argument"
            )
            found.append(house.at(steps[0], said))
    return found


def unranked(house: House) -> list[Finding]:
    """Every room has its place in the order."""
    first = {room(name): module.file for name, module in reversed(house.modules.items())}
    said = "is a room without a place; give it one in ORDER of tests/test_house.py"
    return [Finding(file, 1, said) for name, file in first.items() if name and name not in RANKS]


def upward(house: House) -> list[Finding]:
    """Rooms lean on rooms below them."""
    found = []
    for edge in house.edges:
        here, there = room(edge.source), room(edge.target)
        if here in ("", there) or here not in RANKS or RANKS.get(there, 99) < RANKS[here]:
            continue
        which = f"{there}, which doesn't stand below it" if there else "the glossary of all rooms"
        said = (
            f"{here} leans on {which} ({edge.target}); move what it needs down, or what needs it "
            "up (ORDER in tests/test_house.py)"
        )
        found.append(house.at(edge, said))
    return found


def uses_of_making(house: House) -> list[Finding]:
    """What makes the demo model isn't needed to use it."""
    said = "demo/making is imported by nothing outside it; move what is needed out of it"
    pairs = [(edge, room(edge.source), room(edge.target)) for edge in house.edges]
    return [house.at(e, said) for e, here, there in pairs if there == "demo/making" != here]


def strangers(house: House) -> list[Finding]:
    """`models`, `backends` and `measure` don't know each other, nor do backends."""
    found = []
    for edge in house.edges:
        here, there = room(edge.source), room(edge.target)
        if here != there and {here, there} <= STRANGERS:
            said = (
                f"{here} and {there} don't know each other; let a room above both (planning, "
                "loading, run) take from one and give to the other"
            )
            found.append(house.at(edge, said))
        mine, other = house.modules[edge.source].backend, house.modules[edge.target].backend
        if mine and other and mine != other:
            said = f"backend {mine} imports backend {other}; put what both need beside them"
            found.append(house.at(edge, said))
    return found


def past_the_door(house: House) -> list[Finding]:
    """A backend's modules are reached through `quantolab.backends`, whatever backend it is."""
    found = []
    for edge in house.edges:
        outside = room(edge.source) != "backends" and edge.when != "any"  # that means all alike
        if outside and house.modules[edge.target].backend:
            said = f"reaches for {edge.target}; ask quantolab.backends (door, stored_form, ...)"
            found.append(house.at(edge, said))
    return found


# --- libraries ------------------------------------------------------------------------------


def library(found: Import) -> str:
    """Return the name under which a library is installed to be imported."""
    return found.module.partition(".")[0]


def foreign_libraries(house: House) -> list[Finding]:
    """A backend's library is imported in the backend's folder alone."""
    homes = {name: folder for folder, name in BACKEND_LIBRARIES.items()}
    found = []
    for module in house.modules.values():
        for item in module.imports:
            home = homes.get(library(item), module.backend)
            if module.backend != home:
                said = (
                    f"imports {item.module}, which only backends/{home} may; ask "
                    "quantolab.backends (door, stored_form, ...) for what is needed"
                )
                found.append(Finding(module.file, item.line, said))
        if module.is_package and module.backend and module.backend not in BACKEND_LIBRARIES:
            said = "name this backend's library in BACKEND_LIBRARIES of tests/test_house.py"
            found.append(Finding(module.file, 1, said))
    return found


def ways_to_torch(house: House) -> dict[str, list[Edge]]:
    """Return the modules that load torch, and by way of which others; [] for those that name it."""
    edges = house.edges_from("load")
    for name in house.modules:  # a module has the packages run that it lies in
        parts = name.split(".")
        for parent in (".".join(parts[:n]) for n in range(2, len(parts))):
            edges[name].append(Edge(name, parent, 1, "load"))
    named = {
        name
        for name, module in house.modules.items()
        if any(library(i) in TORCH and i.when == "load" for i in module.imports)
    }
    ways = {name: way(edges, name, named) for name in house.modules if name not in named}
    return {name: [] for name in named} | {name: steps for name, steps in ways.items() if steps}


def loads_torch(house: House) -> list[Finding]:
    """Rooms of the notebook's or terminal's process load without torch."""
    found = []
    for name, steps in ways_to_torch(house).items():
        module = house.modules[name]
        if room(name) in WITHOUT_TORCH:
            heavy = [i for i in module.imports if library(i) in TORCH and i.when == "load"]
            files = [house.modules[edge.target].file for edge in steps]
            what = f"loads torch by way of {' -> '.join(files)}" if steps else "loads torch"
            said = f"{what}; import that in the function that needs it, or in a child process"
            line = steps[0].line if steps else heavy[0].line
            found.append(Finding(module.file, line, said))
    return found


def imports_torch_late(house: House) -> list[Finding]:
    """`report` needs torch nowhere: results are opened and drawn on machines without it."""
    heavy, found = ways_to_torch(house), []
    for name, module in house.modules.items():
        if room(name) in NEVER_TORCH:
            said = f"imports torch in a function; {room(name)} does without: hand in what it needs"
            lines = [i.line for i in module.imports if library(i) in TORCH and i.when == "lazy"]
            lines += [e.line for e in house.edges_from("lazy")[name] if e.target in heavy]
            found += [Finding(module.file, line, said) for line in lines]
    return found


# --- what stands in one place ---------------------------------------------------------------


def numbers_as_text(house: House) -> list[Finding]:
    """Numbers are turned into text in units.py."""
    found = []
    for module in house.modules.values():
        for node, _ in module.nodes if module.file != "units.py" else ():
            for form in _number_forms(node):
                said = (
                    f"turns a number into text ({form}); use or add a function of "
                    "quantolab/units.py, which alone says how numbers look"
                )
                found.append(Finding(module.file, node.lineno, said))
    return found


_UNKNOWN_FORM = "a format that only running it tells"
_BY_HAND = ("format_float_positional", "format_float_scientific", "array2string")
_OLD_FORM = re.compile(r"(?<!%)%[-+#0]*(?:\d*\.\d*)?[eEfFgG]\b|%[-+#0]*\d*\.\d+d")
_FORM = re.compile(r"(?:.?[<>=^])?[-+ ]?z?#?0?(\d*)([,_]?)(?:\.(\d+))?([a-zA-Z%]?)")


def _number_forms(node: ast.AST) -> list[str]:
    """Return what in a node says how a number looks: format specifications, mostly."""
    forms: list[str] = []
    if isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr):
        known = [p.value if isinstance(p, ast.Constant) else "9" for p in node.format_spec.values]
        forms = ["".join(known)]
        if not any(isinstance(part, ast.Constant) for part in node.format_spec.values):
            return [_UNKNOWN_FORM]
    elif isinstance(node, ast.Call) and _last_name(node.func) in _BY_HAND:
        return [_last_name(node.func)]
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "format":
        form = node.args[1] if len(node.args) > 1 else ast.Constant("")
        if not (isinstance(form, ast.Constant) and isinstance(form.value, str)):
            return [_UNKNOWN_FORM]
        forms = [form.value]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        old = [] if re.search("%[YmdHMS]", node.value) else _OLD_FORM.findall(node.value)
        return old + [form for form in _fields(node.value) if _shapes_numbers(form)]
    return [form for form in forms if _shapes_numbers(form)]


def _shapes_numbers(form: str) -> bool:
    """Whether a format specification says how a number looks, other than how wide it is."""
    parts = _FORM.fullmatch(form)
    if parts is None or re.search("%[A-Za-z]", form):  # a date
        return False
    width, thousands, places, kind = parts.groups()
    if places and (kind == "s" or (not kind and places == width)):  # "<32.32" cuts a text
        return False
    return bool(thousands or places) or kind in tuple("eEfFgGn%")


def _fields(text: str) -> list[str]:
    """Return the format specifications in a text for ``str.format``; [] if it is none."""
    try:
        fields = [(name, form) for _, name, form, _ in string.Formatter().parse(text) if form]
    except ValueError:
        return []
    plain = r"\w*(\.\w+|\[\w+\])*"  # no code between the braces, as in CSS
    return [re.sub(r"\{[^}]*\}", "9", form) for name, form in fields if re.fullmatch(plain, name)]


def weights_lists(house: House) -> list[Finding]:
    """Only weights.py, and a backend of its own words, says what holds for several of them."""
    rows = [weights.weights_of(word) for word in weights.QUANTIZED]
    words = {row.word for row in rows} | {row.name for row in rows}
    found = []
    for module in house.modules.values():
        if module.file == "weights.py" or module.backend:
            continue
        for statement in _statements(module.tree, into_classes=True):
            seen = _words_in(statement, words)
            if len({word for _, word in seen}) > 1:
                said = (
                    f"lists weights words ({', '.join(dict.fromkeys(w for _, w in seen))}); look "
                    "them up in quantolab/weights.py, where what holds for a word is a column"
                )
                found.append(Finding(module.file, seen[0][0], said))
    return found


def _words_in(statement: ast.AST, words: set[str]) -> list[tuple[int, str]]:
    """Return the weights words that stand in a statement or function by themselves, no prose."""
    found = []
    for node, _ in _walk(statement, ""):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            pieces = [piece for piece in re.split(r"[\s,;|()/]+", node.value) if piece]
            if all(piece in words for piece in pieces):
                found += [(node.lineno, piece) for piece in pieces]
        elif isinstance(node, ast.keyword) and node.arg in words:
            found.append((node.value.lineno, node.arg))
    return found


# --- what crosses to another process --------------------------------------------------------


def bare_dicts(house: House) -> list[Finding]:
    """What crosses is a record, and read as one."""
    found = []
    for module in house.modules.values():
        for node, _ in module.nodes:
            value, key = None, None
            if isinstance(node, ast.Subscript):
                value, key = node.value, node.slice
            elif isinstance(node, ast.Call) and _last_name(node.func) in ("get", "pop"):
                value, key = getattr(node.func, "value", None), next(iter(node.args), None)
            text = isinstance(key, ast.Constant) and isinstance(key.value, str)
            if text and _last_name(value) in CROSSES:
                said = (
                    f"reads {ast.unparse(node)} from a bare dict; declare a frozen dataclass for "
                    f"it (see processes/jobs.py) and read {_last_name(value)}.{key.value}"
                )
                found.append(Finding(module.file, node.lineno, said))
    return found


def job_kinds(house: House) -> list[tuple[Module, ast.Call]]:
    """Return every kind of job that is declared, and where."""
    return [
        (module, node)
        for module in house.modules.values()
        for node, _ in module.nodes
        if isinstance(node, ast.Call) and _last_name(node.func) == "JobKind"
    ]


def untyped_jobs(house: House) -> list[Finding]:
    """Each JobKind names a function that takes and returns the records that it declares."""
    return [
        Finding(module.file, call.lineno, said)
        for module, call in job_kinds(house)
        for said in _wrong_with_job(house, module, call)
    ]


def _wrong_with_job(house: House, module: Module, call: ast.Call) -> list[str]:
    given = dict(zip(("does", "asked", "found"), call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    names = module.texts(given.get("does"))
    if len(names) != 1 or ANY in names[0]:
        return ["the job has no name to read; write 'quantolab.room.module:function'"]
    place, _, name = names[0].partition(":")
    home = house.modules.get(place)
    if home is None:
        return [f"job {names[0]!r}: there is no module {place}; name the one that does it"]
    function = next((n for n in home.tree.body if getattr(n, "name", None) == name), None)
    if not isinstance(function, ast.FunctionDef) or name.startswith("_"):
        return [f"job {names[0]!r}: {place} has no public function {name}; define it there"]
    where = f"{OURS}/{home.file}:{function.lineno}"
    arguments = function.args.posonlyargs + function.args.args
    wrong = []
    if len(arguments) != 2 or arguments[0].arg != "asked":
        wrong.append(f"{where}: {name} must take (asked, desk)")
    annotations = {"asked": arguments[0].annotation if arguments else None}
    annotations["found"] = function.returns
    for what, annotation in annotations.items():
        record = house.defined(module, given.get(what))
        if record is None or not _is_frozen_record(record[1]):
            wrong.append(f"what is {what} must be a frozen dataclass of ours, given by its name")
        elif house.defined(home, annotation) != record:
            how = "take asked as" if what == "asked" else "return"
            wrong.append(f"{where}: {name} must {how} {record[1].name}, and say so, as declared")
    return wrong


def _is_frozen_record(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        isinstance(decorator, ast.Call)
        and _last_name(decorator.func) == "dataclass"
        and any(k.arg == "frozen" and ast.unparse(k.value) == "True" for k in decorator.keywords)
        for decorator in node.decorator_list
    )


# --- the house is sound ---------------------------------------------------------------------

RULES: tuple[Callable[[House], list[Finding]], ...] = (
    lost_imports,
    computed_imports,
    circles,
    unranked,
    upward,
    uses_of_making,
    strangers,
    past_the_door,
    foreign_libraries,
    loads_torch,
    imports_torch_late,
    numbers_as_text,
    weights_lists,
    bare_dicts,
    untyped_jobs,
)


def judged(findings: list[Finding], allowed: dict[str, str]) -> list[Finding]:
    """Return the findings that aren't allowed, and the exceptions that nothing needs any more."""
    left = [f for f in dict.fromkeys(findings) if not f.file.startswith(tuple(allowed))]
    idle = [n for n in allowed if not any(f.file.startswith(n) for f in findings)]
    said = "needs no exception any more; take its line off EXCEPTIONS in tests/test_house.py"
    return left + [Finding(name, 1, said) for name in idle]


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_sound(house, rule):
    found = judged(rule(house), EXCEPTIONS.get(rule.__name__, {}))
    assert not found, "\n".join(["", *map(str, found)])


def test_the_guard_looks_at_the_whole_house(house):
    assert {room(name) for name in house.modules} == {"", *RANKS}
    assert EXCEPTIONS.keys() <= {rule.__name__ for rule in RULES}
    assert RANKS.keys() >= STRANGERS | WITHOUT_TORCH | NEVER_TORCH
    assert set(weights.BACKENDS) <= BACKEND_LIBRARIES.keys()
    assert len(job_kinds(house)) > 10
    assert {edge.when for edge in house.edges} == {"load", "lazy", "types", "text", "any"}


# --- the guard sees -------------------------------------------------------------------------


def built(root: Path, files: dict[str, str]) -> House:
    """Return a house of a few files; packages get an empty ``__init__.py``."""
    for name, text in {"__init__.py": '__version__ = "1"\n', **files}.items():
        path = root / OURS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in (p for p in (root / OURS).rglob("*") if p.is_dir()):
        (folder / "__init__.py").touch()
    return House(root)


SOUND = {
    "__init__.py": (
        'import importlib\n__version__ = "1"\n_ROOMS = {"do": "run.child"}\n'
        "def __getattr__(name):\n"
        '    return importlib.import_module(f".{_ROOMS[name]}", __name__)\n'
    ),
    "units.py": 'def places(x, n):\n    return f"{x:.{n}f}"\n',
    "weights.py": 'WORDS = ("int8", "int4")\n',
    "recipes.py": 'from .weights import WORDS\nDEFAULT = "int8"\n',
    "backends/quanto/layers.py": 'import optimum.quanto\nOWN = ("int8", "int4")\n',
    "run/jobs.py": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Job:\n    a: int\n"
        "@dataclass(frozen=True)\nclass Found:\n    b: int\n"
    ),
    "run/child.py": "import torch\nfrom .jobs import Found, Job\n"
    "def do(asked: Job, desk) -> Found:\n    return Found(asked.a)\n",
    "run/session.py": (
        "from .. import __version__\nfrom ..processes.jobs import JobKind\n"
        'from . import jobs\n_HERE = "quantolab.run"\n'
        'DO = JobKind(f"{_HERE}.child:do", jobs.Job, jobs.Found)\n'
        'SIZES = f"{4:>3} {4:03d} {_HERE:<{20}} {4}x{5!r} quantolab.json"\n'
    ),
    "processes/jobs.py": "class JobKind: ...\n",
    "demo/making/train.py": "from ...recipes import DEFAULT\n",
    "measure/held.py": "HELD = 1\n",
    "single_file/names.py": "NAMES = 1\n",
    "report/tables.py": (
        "from typing import TYPE_CHECKING\nfrom ..run import session\nfrom ..units import places\n"
        'if TYPE_CHECKING:\n    import torch\n_BAR = "{a:<32.32} {b} {c:02x}"\n'
        'def when(day):\n    """Say "int8" or "int4", as f"{x:.2f}"."""\n'
        '    return f"{day:%Y%m%d}", "50 % free", round(2.34, 1), "%Y.%f"\n'
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_guard_lets_a_sound_house_be(tmp_path, rule):
    assert rule(built(tmp_path, SOUND)) == []


S = f"{OURS}.run.session"


@pytest.mark.parametrize(
    ("when", "text"),
    [
        ("load", "from .child import do"),
        ("load", "from . import child"),
        ("load", "from ..run import child as other"),
        ("load", "from .. import do"),  # by the glossary
        ("load", "from quantolab import do"),
        ("load", "from quantolab.run import child"),
        ("load", "from quantolab.run.child import do"),
        ("load", "import quantolab.run.child"),
        ("load", "import os, quantolab.run.child as other"),
        ("load", "try:\n    from .child import do\nexcept ImportError:\n    pass"),
        ("load", "class A:\n    from .child import do"),
        ("lazy", "def f():\n    from .child import do"),
        ("lazy", "class A:\n    async def f(self):\n        import quantolab.run.child"),
        ("types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import child"),
        ("types", "import typing\nif typing.TYPE_CHECKING:\n    from . import child"),
        ("load", "import importlib\nimportlib.import_module('quantolab.run.child')"),
        ("lazy", "def f():\n    __import__('quantolab.run.child')"),
        ("load", "from importlib import import_module\nimport_module('.child', __package__)"),
        ("load", "import importlib\nimportlib.import_module('..run.child', package=__package__)"),
        ("load", "import importlib\nN = 'child'\nimportlib.import_module(f'.{N}', __package__)"),
        ("lazy", "T = {'a': 'child'}\ndef f(x):\n    import_module(f'.{T[x]}', 'quantolab.run')"),
        ("text", "DO = JobKind('quantolab.run.child:do', Job, Found)"),
        ("text", "_HERE = 'quantolab.run'\nDO = JobKind(f'{_HERE}.child:do', Job, Found)"),
        ("text", "DO = JobKind(f'{__package__}.child:do', Job, Found)"),
        ("text", "A = 'quantolab.run'\nDO = A + '.child' + ':do'"),
        ("text", "COMMAND = ['python', '-m', 'quantolab.run.child']"),
        ("text", "WANTED = Preload((), ('quantolab.run.child',))"),
        ("text", "CODE = '''\nimport sys\nfrom quantolab.run import child\n'''\nrun(CODE)"),
        ("text", "COMMAND = ['python', '-c', 'import sys; import quantolab.run.child']"),
        ("any", "def f(name):\n    return f'quantolab.run.{name}'"),
        ("any", "def f(name):\n    return 'quantolab.' + name"),
        ("any", "import importlib\nimportlib.import_module(f'.{x}', 'quantolab.run')"),
    ],
)  # fmt: skip
def test_the_guard_sees_every_kind_of_leaning(tmp_path, when, text):
    files = {**SOUND, "run/session.py": text}
    edges = built(tmp_path, files).edges
    found = {e.when for e in edges if (e.source, e.target) == (S, f"{OURS}.run.child")}
    assert when in found


@pytest.mark.parametrize(
    "text",
    [
        "from .. import __version__",
        "NAME = 'quantolab.json'",
        "'''A docstring.'''\n'quantolab.run.child'",
        "TEXT = 'see quantolab.run.child'",
        "SHOWN = 'import quantolab as ql\\nql.do()'",
        "JOB = f'{__name__}:do'",  # of itself
        "import os\nos.path",
    ],
)
def test_the_guard_sees_no_leaning_where_there_is_none(tmp_path, text):
    edges = built(tmp_path, {**SOUND, "run/session.py": text}).edges
    assert not [edge for edge in edges if edge.source == S]


def test_the_guard_sees_what_a_glossary_and_the_door_lead_to(tmp_path):
    glossary = SOUND["__init__.py"].replace("run.child", "child")
    door = "def door(name):\n    return f'{__name__}.quanto.{name}'\n"
    house = built(tmp_path, {**SOUND, "run/__init__.py": glossary, "backends/__init__.py": door})
    pairs = {(edge.source, edge.target) for edge in house.edges}
    assert (OURS, f"{OURS}.run.child") in pairs
    assert (f"{OURS}.run", f"{OURS}.run.child") in pairs
    assert (f"{OURS}.backends", f"{OURS}.backends.quanto.layers") in pairs


def test_a_piece_of_a_name_names_nothing(tmp_path):
    text = "_HERE = 'quantolab.run'\nDO = f'{_HERE}.child:do'"
    edges = built(tmp_path, {**SOUND, "run/session.py": text}).edges
    assert [edge.target for edge in edges if edge.source == S] == [f"{OURS}.run.child"]


JOB, CHILD, JOBS = (SOUND[f"run/{name}.py"] for name in ("session", "child", "jobs"))

LATE = "def f():\n    "
TYPES = "if TYPE_CHECKING:\n    "

FAULTS = [
    (lost_imports, "run/a.py", LATE + "from .old import do", "run/a.py:2: imports"),
    (lost_imports, "run/a.py", "from .child import gone", "run/a.py:1: imports gone from"),
    (lost_imports, "run/a.py", "from .. import gone", "run/a.py:1: imports gone from quantolab"),
    (computed_imports, "run/a.py", "import_module(name)", "run/a.py:1: imports what only running"),
    (computed_imports, "run/a.py", "\nX = f'quantolab.run.{name}'", "run/a.py:2: imports what"),
    (computed_imports, "run/a.py", "load = importlib.import_module", "run/a.py:1: imports what"),
    (computed_imports, "run/a.py", "from importlib import import_module as f", "run/a.py:1:"),
    (circles, "run/jobs.py", LATE + "from .child import do", "child.py:2 (load) -> run/jobs.py:2"),
    (circles, "run/jobs.py", "DO = 'quantolab.run.child:do'", "run/jobs.py:1 (text) ->"),
    (circles, "run/jobs.py", TYPES + "from . import child", "run/jobs.py:2 (types) ->"),
    (circles, "run/jobs.py", "from .. import do", "run/jobs.py:1 (load) -> run/child.py"),
    (circles, "run/jobs.py", "import quantolab", "__init__.py:5 (lazy) -> run/child.py:2"),
    (circles, "backends/quanto/layers.py", "from .. import door", "backends/__init__.py:2 (any)"),
    (unranked, "attic/things.py", "", "attic/__init__.py:1: is a room without a place"),
    (upward, "recipes.py", LATE + "from .run import child", "recipes.py:2: recipes leans on run"),
    (upward, "recipes.py", "\nX = 'quantolab.run.child:do'", "recipes.py:2: recipes leans on run"),
    (upward, "recipes.py", "import quantolab", "recipes.py:1: recipes leans on the glossary"),
    (upward, "saved/a.py", "from ..single_file import names", "a.py:1: saved leans on single_file"),
    (uses_of_making, "cli.py", "from .demo.making import train", "cli.py:1: demo/making is"),
    (uses_of_making, "demo/a.py", "X = ['-m', 'quantolab.demo.making.train']", "demo/a.py:1:"),
    (strangers, "measure/a.py", "\nfrom ..backends import quanto", "a.py:2: measure and backends"),
    (strangers, "models/a.py", LATE + "from ..measure import held", "a.py:2: models and measure"),
    (strangers, "backends/sdnq/a.py", "from ..quanto import layers", "backend sdnq imports"),
    (past_the_door, "run/a.py", "from ..backends.quanto import layers", "run/a.py:1: reaches for"),
    (foreign_libraries, "run/a.py", LATE + "import optimum.quanto", "a.py:2: imports"),
    (foreign_libraries, "run/a.py", "import_module('optimum.quanto')", "a.py:1: imports optimum"),
    (foreign_libraries, "run/a.py", TYPES + "import sdnq", "run/a.py:2: imports sdnq, which only"),
    (foreign_libraries, "backends/forms.py", "import torchao", "which only backends/torchao may"),
    (foreign_libraries, "backends/sdnq/a.py", "import optimum", "sdnq/a.py:1: imports optimum,"),
    (foreign_libraries, "backends/own/a.py", "", "backends/own/__init__.py:1: name this backend's"),
    (loads_torch, "report/a.py", "\nimport torch.nn", "report/a.py:2: loads torch; import that"),
    (loads_torch, "report/a.py", "from ..run.child import do", "by way of run/child.py; import"),
    (loads_torch, "report/a.py", "from ..run import jobs, child", "report/a.py:1: loads torch by"),
    (loads_torch, "report/__init__.py", "import diffusers", "report/__init__.py:1: loads torch"),
    (imports_torch_late, "report/a.py", LATE + "import torch", "report/a.py:2: imports torch in"),
    (imports_torch_late, "report/a.py", LATE + "from ..run import child", "report/a.py:2: imports"),
    (numbers_as_text, "run/a.py", "X = f'{x:.2f}'", "run/a.py:1: turns a number into text (.2f)"),
    (numbers_as_text, "run/a.py", "X = f'{x:>{w}.{n}%}'", "a number into text (>9.9%)"),
    (numbers_as_text, "run/a.py", "X = f'{x:g}'", "a number into text (g)"),
    (numbers_as_text, "run/a.py", "X = f'{x:.3}'", "a number into text (.3)"),
    (numbers_as_text, "run/a.py", "X = f'{x:,}'", "a number into text (,)"),
    (numbers_as_text, "run/a.py", "X = f'{x:{form}}'", "a format that only running it tells"),
    (numbers_as_text, "run/a.py", "X = '{:.1f} s'.format(x)", "a number into text (.1f)"),
    (numbers_as_text, "run/a.py", "X = '{name:.1e}'", "a number into text (.1e)"),
    (numbers_as_text, "run/a.py", "X = '%5.1f s' % x", "a number into text (%5.1f)"),
    (numbers_as_text, "run/a.py", "X = format(x, '.1%')", "a number into text (.1%)"),
    (numbers_as_text, "run/a.py", "X = format(x, form)", "a format that only running it tells"),
    (numbers_as_text, "run/a.py", "X = np.array2string(x)", "a number into text (array2string)"),
    (weights_lists, "run/a.py", "X = ('int8', 'int4')", "run/a.py:1: lists weights words"),
    (weights_lists, "run/a.py", "X = {'int8': 1, 'float8': 2}", "words (int8, float8)"),
    (weights_lists, "run/a.py", "X = [('int8', 1), ('int4', 2)]", "words (int8, int4)"),
    (weights_lists, "run/a.py", "class A:\n    x = {'int8', 'int4'}", "run/a.py:2: lists weights"),
    (weights_lists, "run/a.py", "X = dict(int8=1, int4=2)", "words (int8, int4)"),
    (weights_lists, "run/a.py", "X = 'int8 int4'.split()", "words (int8, int4)"),
    (weights_lists, "run/a.py", LATE + "return x == 'int8' or x == 'int2'", "words (int8, int2)"),
    (weights_lists, "run/a.py", "match x:\n    case 'int8' | 'qint4': y", "words (int8, qint4)"),
    (weights_lists, "backends/forms.py", "X = ('int8', 'int4')", "backends/forms.py:1: lists"),
    (bare_dicts, "run/a.py", "X = request['model']", "run/a.py:1: reads request['model'] from"),
    (bare_dicts, "run/a.py", "X = self.asked['model']", "and read asked.model"),
    (bare_dicts, "run/a.py", "X = job.get('model')", "and read job.model"),
    (untyped_jobs, "run/session.py", JOB.replace("{_HERE}", "{here()}"), "the job has no name to"),
    (untyped_jobs, "run/session.py", JOB.replace("child:", "gone:"), "no module"),
    (untyped_jobs, "run/session.py", JOB.replace(":do", ":gone"), "has no public function gone"),
    (untyped_jobs, "run/session.py", JOB.replace("jobs.Found", "dict"), "what is found must be"),
    (untyped_jobs, "run/session.py", JOB.replace("jobs.Found", "jobs.Job"), "must return Job"),
    (untyped_jobs, "run/child.py", CHILD.replace(", desk", ""), "must take (asked, desk)"),
    (untyped_jobs, "run/child.py", CHILD.replace("asked:", "wanted:"), "must take (asked, desk)"),
    (untyped_jobs, "run/child.py", CHILD.replace("asked: Job", "asked"), "must take asked as Job"),
    (untyped_jobs, "run/child.py", CHILD.replace(" -> Found", ""), "must return Found, and say so"),
    (untyped_jobs, "run/jobs.py", JOBS.replace("(frozen=True)", ""), "must be a frozen dataclass"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "file", "text", "said"), FAULTS)
def test_the_guard_sees_a_fault(tmp_path, rule, file, text, said):
    door = "def door(name):\n    return f'{__name__}.quanto.{name}'\n"
    more = {"backends/__init__.py": door} if rule is circles else {}
    found = rule(built(tmp_path, {**SOUND, **more, file: text}))
    assert said in "\n".join(map(str, found))
    assert all(str(one).startswith(f"{OURS}/") for one in found)


def test_every_rule_is_shown_its_fault():
    assert {rule for rule, *_ in FAULTS} == set(RULES)


def test_exceptions_hold_for_their_files_and_no_longer_than_needed():
    fault = Finding("demo/making/train.py", 7, "fault")
    assert judged([fault, fault], {}) == [fault]
    assert judged([fault], {"demo/making/": "why"}) == []
    assert "needs no exception" in str(judged([fault], {"demo/": "why", "cli.py": "why"}))


# --- nothing heavy is loaded early ----------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def told(*arguments: str) -> str:
    return f"import quantolab.cli\ntry: quantolab.cli.main({list(arguments)})\nexcept SystemExit: 0"


@pytest.mark.parametrize(
    "code",
    [
        "import quantolab",
        "import quantolab; quantolab.Recipe; quantolab.QuantolabError; dir(quantolab)",
        told("--help"),
        told("compare", "--help"),
        told("plan", "--help"),
        told("lab", "--help"),
        "import quantolab; quantolab.demo_model()",
    ],
)
def test_nothing_heavy_is_loaded_early(code):
    assert not loaded_by(code) & HEAVY


def test_a_comparison_is_asked_for_without_torch():
    code = "from quantolab.run.asked import check_request; check_request('demo')"
    assert not loaded_by(code) & TORCH


def test_results_open_without_torch():
    code = "import quantolab as ql; ql.results_table; ql.image_grid; ql.load_comparison"
    assert "torch" not in loaded_by(code)


def test_temporary_files_are_made_in_one_place():
    """What a killed process left is cleared away by the next, wherever it was: `files.whole`."""
    sources = (ROOT / OURS).rglob("*.py")
    using = [p for p in sources if re.search(r"\btempfile\b", p.read_text(encoding="utf-8"))]
    assert using == [ROOT / OURS / "files/whole.py"]


# --- the files agree ------------------------------------------------------------------------


def test_every_public_name_loads_and_is_documented():
    for name in quantolab.__all__:
        value = getattr(quantolab, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), name


def test_environment_agrees_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.strip(" -") for line in (ROOT / "environment.yml").read_text().splitlines()]
    start = lines.index("pip:") + 1
    listed = [line for line in lines[start:] if line and line != "e ."]
    assert listed == project["dependencies"]
    assert f"python{project['requires-python']}" in lines


def test_the_top_level_keeps_its_shape():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    tops = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    allowed = {
        "pyproject.toml", "quantolab", "notebooks", "tests", "environment.yml", "README.md",
        "LICENSE",
    }  # fmt: skip
    assert tops <= allowed
