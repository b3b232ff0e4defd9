"""One floor each, and imports go downwards only: read from the syntax of every module."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys

import pytest
from benchmarks.sizes import MODULES, imports, room, sizes

import loopax

LAYERS = [
    {"errors", "jaxprs", "terminal", "processes"},
    {"extras"},
    {
        "paths",
        "purity",
        "randomness",
        "account",
        "files",
        "deadline",
        "digests",
        "jsonlines",
        "environment",
        "caches",
        "threads",
        "malloc",
    },
    {"meshes"},
    {"placement", "cluster"},
    {"compiled"},
    {"batches", "lora", "schedules", "weights"},
    {"data"},
    {"compute"},
    {"arguments", "optimizer"},
    {"evaluation"},
    {"run"},
    {"writers", "loop"},
    {"diagnose"},
    {"fitting"},
    {"doctor", "verify", "recipe", "report"},
    {"models", "measures"},
    {"recipes"},
    {"cli"},
    {"__main__"},
]
FLOORS = {name: floor for floor, layer in enumerate(LAYERS) for name in layer}
NARROWER = {
    "batches": {
        *("errors", "files", "paths", "processes", "meshes", "placement", "purity", "randomness"),
        *("batches", "compiled", "threads"),
    },
    "data": {"errors", "extras", "terminal", "files", "digests", "caches", "batches", "data"},
    "models": {"errors", "models"},
}
"""What may be imported where being lower is not enough."""
PUBLIC_WITH_UNDERSCORE = {"_asdict", "_replace", "_fields", "__name__", "__file__", "__version__"}
"""Of named tuples and modules."""
PUBLIC_MODULES = {"loopax.errors", "loopax.terminal"}
STILL_TOO_LARGE = {"read to trust a run", "the core", "data/", "recipes/"}
"""Goals of `benchmarks/sizes.py` that are not reached yet; what is reached, stays."""
CORE = [name for name in MODULES if name != "loopax"]
RECIPES = [name for name in MODULES if name.startswith("loopax.recipes")]
CLI = [name for name in MODULES if name.startswith("loopax.cli")]
PROGRAM = [("loopax.run.signals", {"POLITE"}), ("loopax.malloc", {"keep_freed_memory"})]
"""What the command line imports beside what a user may: what holds for the whole process."""
PUBLIC = {"loopax"} | {f"loopax.{name}" for name in loopax.__all__} & {*MODULES}
PUBLIC |= {"loopax.recipes.images"}  # A VAE is judged by a classifier of images.


def parsed(module):
    path = MODULES[module]
    tree = ast.parse(path.read_text())
    return tree, list(imports(tree, module, path.name == "__init__.py"))


def test_the_reader_of_imports_finds_every_kind():
    source = (
        "import loopax.loop\nfrom loopax import evaluation\nfrom loopax.data import Dataset\n"
        "def f():\n    from . import arguments\n    from .paths import merge\nimport numpy\n"
        "from loopax import fit\n"
    )
    found = [name for name, _ in imports(ast.parse(source), "loopax.cli", is_package=False)]
    assert found == [
        "loopax.loop",
        "loopax.evaluation",
        "loopax.data",
        "loopax",
        "loopax.arguments",
        "loopax.paths",
    ]


def test_every_module_has_its_floor():
    assert {room(module) for module in CORE} == set(FLOORS)


def test_sizes_that_have_reached_their_goals_stay():
    assert {size.name for size in sizes() if size.count > size.goal} <= STILL_TOO_LARGE


def test_imports_go_downwards_only():
    for module in CORE:
        name = room(module)
        top = FLOORS[name]
        allowed = NARROWER.get(name, {other for other, floor in FLOORS.items() if floor < top})
        for imported, line in parsed(module)[1]:
            other = room(imported)
            if not other:
                assert name in {"recipes", "cli"}, f"{module}:{line} imports the public face"
                continue
            same_layer = other in LAYERS[top] and name not in NARROWER
            assert other in allowed or same_layer, f"{module}:{line} imports {imported}"


def test_no_file_imports_itself_by_way_of_others():
    """Nor for types or inside of functions. Faces of packages only hand names on."""
    faces = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {
        module: {name for name, _ in parsed(module)[1]} - faces for module in {*MODULES} - faces
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_the_loop_knows_no_file_formats():
    """What it reads are batches; images and texts are read apart from each other."""
    for module in CORE:
        home = ".".join(module.split(".")[:3])
        for imported, line in parsed(module)[1]:
            if imported.startswith("loopax.data"):
                where = f"{module}:{line} imports {imported}"
                assert room(module) in {"data", "recipe", "recipes", "cli"}, where
                apart = {"loopax.data.images": "texts", "loopax.data.texts": "images"}
                assert not imported.startswith(f"loopax.data.{apart.get(home, '-')}"), where


def public_names(module):
    """What a user may import from a module of loopax; None where it is no public one."""
    if module not in PUBLIC and not module.startswith("loopax.models."):
        return None
    found = importlib.import_module(module)
    listed = getattr(found, "__all__", None) or vars(found)
    return {name for name in listed if not name.startswith("_")}


def test_recipes_and_the_command_line_import_what_a_user_may():
    """Public names of loopax and of its public sub-packages, and what is their own."""
    for module in RECIPES + CLI:
        own = ".".join(module.split(".")[: 3 if module in RECIPES else 2])
        tree, _ = parsed(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert alias.name == "loopax" or not alias.name.startswith("loopax."), (
                        f"{module}:{node.lineno} imports {alias.name}"
                    )
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "loopax":
                home, names = node.module, {alias.name for alias in node.names}
                if home == "loopax.recipes":
                    continue  # Another recipe is loaded when a name of it is used.
                if home != own and not home.startswith(f"{own}."):
                    where = f"{module}:{node.lineno} imports {sorted(names)} from {home}"
                    public = (public_names(home) or set()) | {"__version__"}
                    assert names <= public or (home, names) in PROGRAM, where


def test_the_command_line_knows_no_recipe():
    """What it says of recipes, and which there are, it asks them."""
    for module in CLI:
        tree, imported = parsed(module)
        assert not any(room(name) == "recipes" for name, _ in imported), module
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not words & {*loopax.recipe.SHIPPED}, module


def test_a_recipe_touches_no_private_attribute():
    for module in RECIPES:
        tree, _ = parsed(module)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            of_its_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            private = node.attr.startswith("_") and node.attr not in PUBLIC_WITH_UNDERSCORE
            assert of_its_own or not private, f"{module}:{node.lineno} reaches for {node.attr}"
            if isinstance(node.value, ast.Name) and node.value.id == "loopax":
                public = {*loopax.__all__, "__version__"}
                assert node.attr in public, f"{module}:{node.lineno} uses loopax.{node.attr}"


def insides(tree):
    """The lines of a syntax tree that import or touch what jaxprs are made of."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        if any(re.match(r"jax\.(core|extend|interpreters)\b|.*\.eqns$", name) for name in names):
            yield node.lineno


def test_one_module_knows_the_inside_of_a_jaxpr():
    source = (
        "from jax.extend import core\nimport jax.core\nfrom jax import core\njax.core.Jaxpr\nx.eqns"
    )
    assert {*insides(ast.parse(source))} == {1, 2, 3, 4, 5}
    lines = {module: [*insides(parsed(module)[0])] for module in CORE}
    assert {module for module, found in lines.items() if found} == {"loopax.jaxprs"}


def test_one_module_puts_arrays_on_devices():
    callers = {
        module
        for module in CORE
        for node in ast.walk(parsed(module)[0])
        if isinstance(node, ast.Attribute | ast.alias | ast.Name)
        if "device_put" in ast.unparse(node)
    }
    assert callers == {"loopax.placement"}


@pytest.mark.parametrize(
    "statement",
    [
        "import loopax",
        "import loopax.cli",
        "import loopax.errors",
        "from loopax import Optimizer, Schedule; Optimizer(schedule=Schedule('cosine'))",
    ],
)
def test_neither_the_command_line_nor_a_configuration_waits_for_jax(statement):
    heavy = "{'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'matplotlib', 'numpy'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in loopax.__all__:
        assert getattr(loopax, name) is not None
    assert set(loopax.__all__) == set(dir(loopax))
    with pytest.raises(AttributeError, match="trainer"):
        loopax.trainer  # noqa: B018
