"""Policy folders: published whole or not at all, and verified before anything in them reaches an engine.

`publish` copies into a temporary folder beside the target, syncs every file and folder, and renames. A crash at any
moment leaves the whole policy or nothing that looks like one; what it leaves behind is swept away by the next publish.
A published folder is immutable. Which policies may serve is for the registry and the rollout, not for this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.digests import BaseShapes, tokenizer_digest
from deploy.errors import BadManifest, MissingFile, WrongBase, WrongDigest, WrongTokenizer
from deploy.fit import check_adapter_config, check_adapter_shapes, check_full_shapes
from deploy.folders import check_files, check_harmless, check_no_auto_map, copied, settle, write_synced
from deploy.manifest import MANIFEST_NAME, VERSION_PATTERN, Draft, Manifest, make_manifest, read_manifest
from deploy.safetensors_check import check_finite, read_header
from feedback.schema import PolicyKind


@dataclass(frozen=True)
class Published:
    version: str
    number: int
    path: Path
    digest: str
    manifest: Manifest


def publish(staging: Path, draft: Draft, root: Path, base: BaseShapes | None = None) -> Published:
    """Make the files of `staging` a policy below `root`; the staging folder is left as it is.

    The same files with the same draft give the same version, so a publisher that died after the rename may publish
    again. Raises BadArtifact, with nothing published, for a folder that `verify` would refuse.
    """
    with copied(staging, root, MANIFEST_NAME) as (temporary, files):
        manifest = make_manifest(draft, files)
        _check(temporary, manifest, base)
        write_synced(temporary / MANIFEST_NAME, manifest.to_json())
        target = root / manifest.version
        if target.exists():
            verify(target, base)
        settle(temporary, files, target)
    return Published(manifest.version, manifest.number, target, manifest.digest, manifest)


def verify(folder: Path, base: BaseShapes | None, *, digest: str | None = None) -> Manifest:
    """Read a policy folder and refuse it, with the error that names the fault, unless it is exactly what was published.

    `base` is what the engine holds (None checks all but the fit); `digest` is what the registry remembers.
    """
    manifest = read_manifest(folder)
    if manifest.version != f"v{manifest.number}-{manifest.digest[:8]}" or digest not in (None, manifest.digest):
        raise WrongDigest(f"{MANIFEST_NAME} of {folder.name} is not the one that was published")
    if folder.name != manifest.version:
        raise BadManifest(f"the folder {folder.name} holds the manifest of {manifest.version}")
    check_files(folder, manifest.files, MANIFEST_NAME)
    _check(folder, manifest, base)
    return manifest


def published_folders(root: Path) -> list[Path]:
    """Every whole policy below `root`, by number; temporary folders never match."""
    found = [
        (int(match[1]), path)
        for path in (root.iterdir() if root.is_dir() else ())
        if (match := VERSION_PATTERN.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def _check(folder: Path, manifest: Manifest, base: BaseShapes | None) -> None:
    """Whatever does not depend on where the folder lies: contents that are safe, whole, finite and fit the base."""
    adapter = manifest.kind is PolicyKind.ADAPTER
    for name in manifest.files:
        check_harmless(folder / name)
    needed = {"adapter_model.safetensors", "adapter_config.json"} if adapter else {"config.json", "tokenizer.json"}
    if not adapter and "model.safetensors.index.json" not in manifest.files:
        needed.add("model.safetensors")
    if missing := needed - manifest.files.keys():
        raise MissingFile(f"{manifest.version} lacks {min(missing)}, which every {manifest.kind} policy has")
    for name in sorted(manifest.files):
        if name.endswith(".json"):
            check_no_auto_map(folder / name)
        if name.endswith(".safetensors"):
            check_finite(folder / name, read_header(folder / name))
    if "tokenizer.json" in manifest.files and tokenizer_digest(folder) != manifest.tokenizer_digest:
        raise WrongTokenizer(f"the tokenizer in {manifest.version} is not the one that its manifest names")
    if manifest.lora is not None:
        check_adapter_config(folder, manifest.lora)
    if base is None:
        return
    if manifest.tokenizer_digest != base.tokenizer_digest:
        raise WrongTokenizer(
            f"{manifest.version} was made for the tokenizer {manifest.tokenizer_digest[:8]}, "
            f"the base has {base.tokenizer_digest[:8]}"
        )
    if manifest.lora is None:
        check_full_shapes(folder, base)
        return
    if manifest.base_digest != base.digest:
        raise WrongBase(
            f"{manifest.version} was made for the base {manifest.base_digest[:8]}, the engine holds {base.digest[:8]}"
        )
    check_adapter_shapes(folder, manifest.lora, base)
