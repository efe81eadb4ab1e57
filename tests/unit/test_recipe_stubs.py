"""The stub says what the package has."""

import ast
import inspect

import toolkit
from toolkit.recipe import stubs


def test_the_stub_on_disk_is_that_of_the_installed_trl():
    assert stubs.STUB.read_text(encoding="utf-8") == stubs.generate()


def test_the_stub_has_every_public_name():
    found = {
        getattr(node, "name", None) or ast.unparse(getattr(node, "target", ast.Constant("")))
        for node in ast.parse(stubs.generate()).body
    }
    assert set(toolkit.__all__) - {"ToolkitError"} <= found
    assert "ToolkitError as ToolkitError" in stubs.generate()


def test_load_and_run_have_the_parameters_of_the_stub():
    functions = {
        n.name: n for n in ast.parse(stubs.generate()).body if isinstance(n, ast.FunctionDef)
    }
    for name in ("load", "run"):
        arguments = functions[name].args
        named = [a.arg for a in (*arguments.args, *arguments.kwonlyargs)]
        real = inspect.signature(getattr(toolkit, name)).parameters
        assert named == [p.name for p in real.values() if p.kind is not p.VAR_KEYWORD]
