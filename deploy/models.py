"""The model that a deployment starts from: the built-in one, a folder, or one of a hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from deploy.errors import NoSuchModel

TINY = "kudos-tiny"


def model_folder(name: str) -> Path:
    """Where the model's files are; a hub model is fetched first, or found where an earlier start has put it.

    Raises NoSuchModel for what is neither built in, nor a folder, nor on a hub that can be reached.
    """
    if name == TINY:
        return _tiny_folder()
    if Path(name).is_dir():
        return Path(name).absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except Exception as error:  # isolates: every fault of the hub means the same to whoever starts kudos
        raise NoSuchModel(
            f"KUDOS_MODEL={name}: no such folder, and no hub gave it ({type(error).__name__}). "
            f"Name a folder, or {TINY}."
        ) from error


def _tiny_folder() -> Path:
    # Found without importing: whoever asks may not know the trainer's code, only where its data lies.
    spec = find_spec("trainer")
    locations = list(spec.submodule_search_locations or []) if spec else []
    for location in locations:
        folder = Path(location) / "tiny" / "model"
        if (folder / "config.json").is_file():
            return folder
    raise NoSuchModel(f"{TINY} is not in this installation: build it with `kudos tiny build`")
