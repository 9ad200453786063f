"""The two lower floors stay light: importing all of their modules loads no engine and no web framework."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "vllm", "transformers", "fastapi", "starlette", "uvicorn"}


def modules(package: str) -> list[str]:
    found = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name not in ("__init__.py", "env.py")  # env.py runs inside Alembic only
    ]
    assert len(found) >= 10
    return found


@pytest.mark.parametrize("package", ["feedback", "deploy"])
def test_importing_a_lower_floor_loads_nothing_heavy(package: str) -> None:
    script = f"""
import importlib, sys
for name in {modules(package)!r}:
    importlib.import_module(name)
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["feedback", "deploy"])
def test_the_commands_show_their_help_without_loading_the_database(package: str) -> None:
    script = f"import sys, {package}.cli; print(sorted({{'sqlalchemy', 'alembic', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
