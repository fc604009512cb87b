"""Deploy packages are extras: asked for by name, imported only when used, and installable as [deploy]."""

import ast

from packaging.requirements import Requirement

from tests.tiny import REPOSITORY

EXTRAS = {"faiss", "onnx", "onnxruntime", "onnxscript", "safetensors"}


def lines(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_they_are_listed_for_deployment_alone():
    deploy = {Requirement(line).name.partition("-")[0] for line in lines("requirements-deploy.txt")}
    assert deploy == EXTRAS, "plain names, as the extra [deploy] of pyproject.toml needs them"
    assert not EXTRAS & {Requirement(line).name.partition("-")[0] for line in lines("requirements.txt")}


def test_importing_the_package_needs_none_of_them():
    for path in sorted((REPOSITORY / "d3still").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not EXTRAS & {module.partition(".")[0] for module in modules}, path


def test_deploy_imports_no_engine():
    for path in sorted((REPOSITORY / "d3still/deploy").glob("*.py")):
        assert "d3still.engine" not in path.read_text(encoding="utf-8"), path
