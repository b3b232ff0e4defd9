"""How large the house is, beside its goals.

    python -m benchmarks.sizes

Lines are all lines of Python files, with docstrings, comments and blank ones. What one must read to
trust a run is all that `loopax.fitting` imports, directly or not, apart from `ASIDE`. Of the names
of `loopax` itself, public sub-packages do not count.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1] / "src" / "loopax"
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
ASIDE = {"data", "diagnose", "report"}
AROUND = {"cli", "data", "measures", "models", "recipes", "report"}
"""What is not counted in the core."""


class Size(NamedTuple):
    name: str
    count: int
    goal: int


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """The modules of loopax that a syntax tree imports, at its top and inside of functions."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else None
            home = ".".join(filter(None, [base, node.module]))
            inner = [f"{home}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else home for name in inner]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "loopax")


def room(module: str) -> str:
    """`data` for `loopax.data.images`, and an empty string for `loopax` itself."""
    return module.partition(".")[2].partition(".")[0]


def closure(module: str) -> set[str]:
    """All that a module imports, directly or not, apart from the rooms `ASIDE`."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in MODULES and room(name) not in {"", *ASIDE} and name not in found:
            found.add(name)
            path = MODULES[name]
            tree = ast.parse(path.read_text())
            waiting += [home for home, _ in imports(tree, name, path.stem == "__init__")]
    return found


def sizes() -> list[Size]:
    """Each size that has a goal, and the largest files."""
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    core = [name for name in MODULES if room(name) not in AROUND]
    names = re.findall(r"^from \.\w", (ROOT / "__init__.pyi").read_text(), re.MULTILINE)
    largest = sorted(lines, key=lines.__getitem__, reverse=True)[:5]

    def total(*rooms: str) -> int:
        return sum(lines[name] for name in MODULES if room(name) in rooms)

    return [
        Size("read to trust a run", sum(lines[name] for name in closure("loopax.fitting")), 3400),
        Size("the core", sum(lines[name] for name in core), 5300),
        Size("loop.py", total("loop"), 230),
        Size("data/", total("data"), 2900),
        Size("recipes/", total("recipes"), 3600),
        Size("top-level names", len(names), 16),
        *(Size(str(MODULES[name].relative_to(ROOT)), lines[name], 400) for name in largest),
    ]


if __name__ == "__main__":
    for name, count, goal in sizes():
        print(f"{name:28}{count:6,}   goal {goal:5,}{'' if count <= goal else '   too many'}")
