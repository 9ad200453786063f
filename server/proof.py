"""Proofs that what the engine holds is what was registered: the folder's digest, a probe, and a fingerprint.

The digest says that the files are those that the gate let pass. The probe, which the trainer put into the folder, says
that the engine answers with them as the trainer did. The fingerprint says that weights which come back, after a swap
that failed or an engine that died, answer as they did before.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from deploy import policies
from deploy.artifacts import verify
from deploy.digests import BaseShapes, base_shapes, model_digest
from deploy.errors import BadArtifact, WrongDigest
from deploy.manifest import Probe
from deploy.probe import probe_verdict
from deploy.rollout import WantedPolicy
from feedback.schema import PolicyKind
from feedback.store import Store
from server.engine import Engine

log = logging.getLogger("kudos.proof")

_FINGERPRINT_TOLERANCE_NATS = 0.02  # of the same weights, scored beside other requests


class NotProved(BadArtifact):
    """The engine does not answer as the trainer's weights do."""


class Proofs:
    def __init__(self, store: Store, engine: Engine, policies_folder: Path) -> None:
        self._store = store
        self._engine = engine
        self._policies_folder = policies_folder
        self._fingerprints: dict[str, list[float]] = {}
        self._shapes: dict[str, BaseShapes] = {}

    def folder(self, policy: WantedPolicy) -> Path:
        return self._policies_folder / policy.path  # an absolute path on the right wins

    async def verified(self, policy: WantedPolicy) -> Probe | None:
        """`verify`, in a thread."""
        return await asyncio.to_thread(self.verify, policy)

    def verify(self, policy: WantedPolicy) -> Probe | None:
        """Raises BadArtifact unless the folder is what was registered. A base has no probe: it was never published."""
        folder = self.folder(policy)
        if policy.kind is PolicyKind.BASE:
            found = model_digest(folder)
            if found != policy.digest:
                raise WrongDigest(f"{folder.name} has the digest {found[:8]}, not {policy.digest[:8]} as registered")
            return None
        with self._store.read() as session:
            below = policies.first_base(session, policies.get(session, policy.version))
            base_folder = policies.folder_of(below, self._policies_folder)
        if below.version not in self._shapes:
            self._shapes[below.version] = base_shapes(base_folder)
        return verify(folder, self._shapes[below.version], digest=policy.digest).probe

    async def prove(self, version: str, probe: Probe | None) -> None:
        """Raises NotProved unless the engine scores the probe's replies as the trainer did, and EngineError."""
        if probe is None:
            return
        # One after another: all at once are one large batch, for which every stream beside them stands still.
        measured = [await self._engine.score(case.prompt_token_ids, case.token_ids, version) for case in probe.cases]
        verdict = probe_verdict(probe, measured)
        log.info("probe of %s: %s", version, verdict.message)
        if not verdict.passed:
            raise NotProved(f"{version}: {verdict.message}")

    async def check_fingerprint(self, version: str) -> None:
        """The first time, remember how these weights answer; later, raise NotProved where they answer otherwise."""
        tokens = [2 + 37 * at % 251 for at in range(24)]  # any ids will do; all vocabularies have these
        measured = await self._engine.score(tokens[:8], tokens[8:], version)
        known = self._fingerprints.setdefault(version, measured)
        gap = sum(abs(a - b) for a, b in zip(known, measured, strict=True)) / len(known)
        if not gap <= _FINGERPRINT_TOLERANCE_NATS:  # a NaN is refused as well
            raise NotProved(f"{version}: its weights answer otherwise than before (mean gap {gap:.4f} nats)")
