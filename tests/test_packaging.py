"""The field box installs the ``[edge]`` extra alone; nothing of the cloud may be needed there."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIELD = ("protocols", "edge", "gateway")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def field_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the edge requirements and our wheel, nothing else."""
    folder = tmp_path_factory.mktemp("field")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder)
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    run(*pip, "--require-hashes", "-r", ROOT / "requirements" / "edge.txt")
    run(*pip, "--no-deps", next(folder.glob("*.whl")))
    return python


def test_every_field_module_imports_with_the_edge_extra_alone(field_python: Path, tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in FIELD
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.name != "__main__.py"
    ]
    assert len(modules) > 10
    run(
        field_python,
        "-c",
        "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]",
        *modules,
        cwd=tmp_path,
    )


def test_meterctl_runs_with_the_edge_extra_alone(field_python: Path, tmp_path: Path) -> None:
    assert "Copy and run" in run(field_python.parent / "meterctl", "--help", cwd=tmp_path)


def test_meter_templates_travel_with_the_wheel(field_python: Path, tmp_path: Path) -> None:
    code = "from protocols.templates import load; print(load('dlt645-2007').name, load('gridloom-demo-modbus').name)"
    assert run(field_python, "-c", code, cwd=tmp_path)
