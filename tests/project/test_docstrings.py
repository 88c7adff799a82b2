"""What a docstring must say: the errors of whatever raises any, and the shape of what an op takes.

A function raises if there is a `raise` in it, in a function inside it, or in one of ours that it calls by name. What
Python or NumPy raise by themselves is not looked for.
"""

import ast
import re
from pathlib import Path

import pytest

import scratchvit
from scratchvit.signature import differentiable_parameters
from scratchvit.tensor import OPS

PACKAGE = Path(scratchvit.__file__).parent
DOCUMENTED = [PACKAGE / "tensor.py", PACKAGE / "gradcheck.py", *PACKAGE.glob("ops/*.py"), *PACKAGE.glob("nn/*.py")]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(path):
    """(name, with its class before it; node; docstring) of the functions of a file. A class documents its __init__."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, FUNCTION) and "overload" not in map(ast.unparse, node.decorator_list):
            yield node.name, node, ast.get_docstring(node)
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, FUNCTION):
                    of_class = ast.get_docstring(node) if method.name == "__init__" else None
                    yield f"{node.name}.{method.name}", method, ast.get_docstring(method) or of_class


def last(name):
    return name.rpartition(".")[2]


def called_by(node):
    """Names of what it calls as `name(…)` or `self.name(…)`."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            if isinstance(call.func, ast.Name):
                yield call.func.id
            elif isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in ("self", "super"):
                yield call.func.attr


def imported_by(path):
    """{name: file} of what it imports from scratchvit.ops."""
    return {
        alias.name: PACKAGE.parent / f"{node.module.replace('.', '/')}.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scratchvit.ops.")
        for alias in node.names
    }


def raising_functions():
    """(file, name) of every function that raises."""
    nodes = {(path, name): node for path in DOCUMENTED for name, node, _ in functions_of(path)}
    raising = {key for key, node in nodes.items() if any(isinstance(n, ast.Raise) and n.exc for n in ast.walk(node))}
    imports = {path: imported_by(path) for path in DOCUMENTED}
    while True:
        known = {(path, last(name)) for path, name in raising}
        more = {
            (path, name)
            for (path, name), node in nodes.items()
            if any((imports[path].get(called, path), called) in known for called in called_by(node))
        }
        if more <= raising:
            return raising
        raising |= more


RAISING = raising_functions()
PUBLIC = {
    f"{path.relative_to(PACKAGE).as_posix()}: {name}": (path, name, docstring)
    for path in DOCUMENTED
    for name, _, docstring in functions_of(path)
    if not name.startswith("_") and (not last(name).startswith("_") or last(name) == "__init__")
}


def test_the_search_sees_what_raises():
    names = {name for _, name in RAISING}
    assert {"attention", "reshape", "conv3d", "max_pool2d", "softmax", "gradcheck", "kaiming_normal"} <= names
    assert {"Tensor.__init__", "Tensor.backward", "Module.forward", "Module.load_state_dict"} <= names
    assert not {"exp", "Tensor.numpy", "Module.parameters", "Sequential.forward"} & names


@pytest.mark.parametrize("function", PUBLIC)
def test_what_raises_says_so(function):
    path, name, docstring = PUBLIC[function]
    if (path, name) in RAISING:
        assert "Raise" in (docstring or ""), "it raises, and its docstring does not say what"


@pytest.mark.parametrize("name", OPS)
def test_an_op_says_what_shape_it_takes(name):
    x = differentiable_parameters(OPS[name])[0].name
    says = rf"any shape|one shape|shapes differ|\b{x}:? \("
    assert re.search(says, OPS[name].__doc__), f"{name}: the docstring gives no shape of {x}, and no 'any shape'"
