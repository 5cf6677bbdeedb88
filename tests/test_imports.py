"""What may import what: the contracts of pyproject.toml hold, and `cxr --help` loads little."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT

import cxr

HEAVY = (
    *("aws_cdk", "boto3", "botocore", "classifier", "matplotlib"),
    *("numpy", "onnx", "onnxruntime", "PIL", "sklearn"),
)


def test_the_contracts_on_imports_hold() -> None:
    """`lint-imports` prints the import that breaks one."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["runs", "--help"]])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from cxr.commands.app import app; app(sys.argv[1:], standalone_mode=False); "
        f"sys.exit(' '.join(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Usage" in done.stdout
    assert done.stderr.strip() == ""


def test_no_library_names_an_option_of_the_command_line() -> None:
    """A notebook has no options. The commands add the option that helps."""
    libraries = [path for path in (ROOT / "cxr").rglob("*.py") if "commands" not in path.parts]
    for path in libraries:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc:
                texts = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
                named = [text for text in texts if isinstance(text, str) and "--" in text]
                assert named == [], f"{path.relative_to(ROOT)}, line {node.lineno}"


@pytest.mark.parametrize("name", sorted(cxr.__all__))
def test_a_notebook_imports_what_the_name_says(name: str) -> None:
    """A module of the same name would come in its place."""
    assert not (ROOT / "cxr" / f"{name}.py").exists()
    assert not isinstance(getattr(cxr, name), ModuleType)
