"""Text classifiers of the safety filter, as folders: published whole or not at all, verified before they are loaded.

A plain folder of transformers (safetensors, a tokenizer) and a manifest that lists its files, and a probe: what the
trainer's model said of a few texts. A version is <name>-<first 8 digits of the manifest's digest>.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.errors import BadManifest, MissingFile, WrongDigest
from deploy.folders import check_files, check_harmless, check_no_auto_map, copied, settle, write_synced
from deploy.manifest import FileEntry
from deploy.safetensors_check import check_finite, read_header

MANIFEST_NAME = "classifier.json"
_NEEDED = {"config.json", "model.safetensors", "tokenizer.json"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Case(_Frozen):
    text: str
    probability: Annotated[float, Field(ge=0, le=1)]


class Probe(_Frozen):
    label: str
    cases: Annotated[list[Case], Field(min_length=1)]
    tolerance: Annotated[float, Field(gt=0, lt=1)]


class Draft(_Frozen):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    probe: Probe
    training: dict[str, Any] = {}
    """Where it comes from, for people: data, seed, accuracy. JSON values only."""


class Manifest(Draft):
    files: dict[str, FileEntry]

    @property
    def version(self) -> str:
        body = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(body.encode()).hexdigest()[:8]}"


def publish(staging: Path, draft: Draft, root: Path) -> Path:
    """Make the files of `staging` a classifier below `root`. Raises BadArtifact, with nothing published."""
    with copied(staging, root, MANIFEST_NAME) as (temporary, files):
        manifest = Manifest(**draft.model_dump(), files=files)
        _check(temporary, manifest)
        write_synced(temporary / MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
        target = root / manifest.version
        settle(temporary, files, target)
    verify(target)
    return target


def verify(folder: Path) -> Manifest:
    """Refuse a folder, with the error that names the fault, unless it is exactly what was published."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        raise BadManifest(f"{MANIFEST_NAME} of {folder.name} cannot be read: {error}") from error
    if folder.name != manifest.version:
        raise WrongDigest(f"{folder.name} holds the manifest of {manifest.version}")
    check_files(folder, manifest.files, MANIFEST_NAME)
    _check(folder, manifest)
    return manifest


def _check(folder: Path, manifest: Manifest) -> None:
    if missing := _NEEDED - manifest.files.keys():
        raise MissingFile(f"{manifest.version} lacks {min(missing)}, which every classifier has")
    for name in sorted(manifest.files):
        check_harmless(folder / name)
        if name.endswith(".json"):
            check_no_auto_map(folder / name)
        if name.endswith(".safetensors"):
            check_finite(folder / name, read_header(folder / name))
