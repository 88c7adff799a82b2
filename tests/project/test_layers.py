"""Imports run one way: a module takes only from its own room, or from rooms on lower floors, and never in a circle."""

import ast
import graphlib
from pathlib import Path

import scratchvit

ROOT = Path(scratchvit.__file__).parent
FLOORS = [
    ["errors", "learn"],
    ["files", "options", "progress", "loopback", "compiling", "gpu", "upload", "backend"],
    # The engine: a Tensor, what its ops are, and what checks them.
    ["signature", "recording", "plain", "precision", "threads", "rounding", "facts", "dtypes",
     "casting", "replay", "shadow", "random", "graph", "tensor", "checkpoint", "backward_rules", "gradcheck"],
    ["kernels"],
    ["ops"],
    ["parallel"],
    ["nn"],
    ["models"],
    ["optim"],                  # asks a model for its layers
    ["costs"],
    ["data", "weights"],        # weights bring their preprocessing, and CIFAR's pickles are read as theirs
    ["__init__"],               # what `import scratchvit` gives, with the weights and without what is above
    ["training", "doctor"],
    ["detection"],
    ["recipes", "zoo"],
    ["inspect"],
    ["reports"],
    ["course", "play"],
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """{"models.vit": its file}; a package has the name of its folder."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file names, anywhere in it: inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "scratchvit":
                inner = name.partition(".")[2]
                candidates = (inner, inner.rpartition(".")[0] or "__init__")
                found.add(next((candidate for candidate in candidates if candidate in known), "__init__"))
    return found


def test_imports_run_one_way():
    known = modules()
    graph = {name: imports(path, known) for name, path in known.items() if not name.startswith("__main__")}
    assert {name.partition(".")[0] for name in graph} == FLOOR.keys(), "a room without a floor: give it one in FLOORS"
    upward = [
        f"{name} → {other}" for name, others in graph.items() for other in others
        if FLOOR[other.partition(".")[0]] > FLOOR[name.partition(".")[0]]
    ]
    assert not upward, f"imports from a higher floor: {', '.join(upward)}"
    # A package's __init__ gathers its own modules, which import each other and not it.
    inner = {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in graph.items()}
    graphlib.TopologicalSorter(inner).prepare()     # raises CycleError, with the circle


def test_no_test_module_imports_another():
    """What they share is in tests/support, where it is found, and nobody collects it twice."""
    tests = Path(__file__).parents[1]
    named = [
        f"{path.relative_to(tests)}: {line}"
        for path in tests.rglob("*.py") for line in path.read_text("utf-8").splitlines()
        if line.lstrip().startswith(("from ", "import ")) and "test_" in line.partition(" import ")[0]
    ]
    assert not named
