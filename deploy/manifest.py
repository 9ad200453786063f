"""What a published policy says about itself: manifest.json, and the probe inside it.

The digest of a policy is the SHA-256 of its manifest's canonical JSON without the version, which itself ends in the
first 8 digits of that digest. As the manifest lists every file's SHA-256, one digest covers the whole folder. Nothing
in it depends on the clock, so a run that is resumed publishes the same version again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError, model_validator

from deploy.errors import BadManifest
from feedback.schema import PolicyKind

MANIFEST_NAME = "manifest.json"
FORMAT = 1  # of the manifest
VERSION_PATTERN = re.compile(r"v(\d+)-([0-9a-f]{8})")
MAX_MANIFEST_BYTES = 16 * 2**20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_enum_values=False)


class ProbeCase(_Frozen):
    """One reply to score: logprobs[i] belongs to token_ids[i], given the prompt and the tokens before it."""

    prompt_token_ids: list[NonNegativeInt] = Field(min_length=1)
    token_ids: list[NonNegativeInt] = Field(min_length=1)
    logprobs: list[FiniteFloat]
    """What the trainer computed for this policy, in nats."""
    reference_logprobs: list[FiniteFloat]
    """The same tokens under the base, without the adapter (for a full checkpoint: the weights it started from)."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> ProbeCase:
        lengths = len(self.token_ids), len(self.logprobs), len(self.reference_logprobs)
        if len(set(lengths)) != 1:
            raise ValueError(f"token_ids, logprobs and reference_logprobs have lengths {lengths}; they must agree")
        return self


class Probe(_Frozen):
    """Logprobs that the policy must show in the engine: see `deploy.probe`."""

    cases: list[ProbeCase] = Field(min_length=1)
    tolerance_nats: FiniteFloat = Field(gt=0)
    """The largest mean absolute gap per token that two numerics of one policy may show."""


class LoraShape(_Frozen):
    rank: int = Field(gt=0)
    alpha: FiniteFloat = Field(gt=0)
    target_modules: list[str] = Field(min_length=1)


class FileEntry(_Frozen):
    sha256: Sha256
    size: NonNegativeInt


class Draft(_Frozen):
    """What the publisher knows before the files are hashed."""

    number: NonNegativeInt
    """`policies.next_number(session)`."""
    kind: PolicyKind
    base_digest: Sha256
    """`digests.model_digest` of what an adapter sits on, or of what a full checkpoint started from."""
    tokenizer_digest: Sha256
    probe: Probe
    lora: LoraShape | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    """Where it comes from, for people: run id, seed, settings. JSON values only."""

    @model_validator(mode="after")
    def _kind_is_publishable(self) -> Draft:
        if self.kind is PolicyKind.BASE:
            raise ValueError("a base is registered where it lies, not published: kind must be adapter or full")
        if (self.kind is PolicyKind.ADAPTER) != (self.lora is not None):
            raise ValueError(f"lora is given for an adapter and for nothing else; kind is {self.kind}")
        return self


class Manifest(Draft):
    format: Literal[1] = 1
    version: str = Field(pattern=r"^v\d+-[0-9a-f]{8}$")
    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        return digest_of(self.model_dump(mode="json", exclude={"version"}))

    def to_json(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def digest_of(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def make_manifest(draft: Draft, files: Mapping[str, FileEntry]) -> Manifest:
    fields = {name: getattr(draft, name) for name in Draft.model_fields}
    unnamed = Manifest(**fields, files=dict(files), version="v0-00000000")
    return unnamed.model_copy(update={"version": f"v{draft.number}-{unnamed.digest[:8]}"})


def read_manifest(folder: Path) -> Manifest:
    """Parse manifest.json and nothing else; `artifacts.verify` is what makes a folder trustworthy."""
    path = folder / MANIFEST_NAME
    try:
        if path.is_symlink() or not path.is_file():
            raise BadManifest(f"{folder.name} has no {MANIFEST_NAME} that is a plain file")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BadManifest(f"{MANIFEST_NAME} of {folder.name} is larger than {MAX_MANIFEST_BYTES} bytes")
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadManifest(f"{MANIFEST_NAME} of {folder.name} cannot be read: {error}") from error
    written = body.get("format") if isinstance(body, dict) else None
    if written != FORMAT:
        raise BadManifest(f"{MANIFEST_NAME} of {folder.name} has format {written!r}; this kudos reads format {FORMAT}")
    try:
        return Manifest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadManifest(f"{MANIFEST_NAME} of {folder.name}: {where}: {first['msg']}") from error
