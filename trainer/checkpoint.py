"""What a run leaves in its folder, so that a killed one goes on where it was.

Every file is written beside its place and renamed, so it is whole or not there. People's words (`examples.json`) are
removed when the run ends; which files hold any is agreed on in `feedback.run_files`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from feedback.run_files import CHECKPOINT, EXAMPLES, PART, REPORT, forget_words
from trainer.examples import Examples, from_json, to_json


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @property
    def reward_model(self) -> Path:
        return self.path / "reward_model"

    @property
    def judge(self) -> Path:
        return self.path / "judge"

    @property
    def report(self) -> Path:
        return self.path / REPORT

    def save_examples(self, examples: Examples) -> None:
        self._write(EXAMPLES, json.dumps(to_json(examples)).encode())

    def load_examples(self) -> Examples | None:
        path = self.path / EXAMPLES
        return from_json(json.loads(path.read_bytes())) if path.exists() else None

    def forget_examples(self) -> None:
        (self.path / EXAMPLES).unlink(missing_ok=True)

    def save_json(self, name: str, body: Any) -> None:
        self._write(f"{name}.json", json.dumps(body, indent=2).encode())

    def load_json(self, name: str) -> Any | None:
        path = self.path / f"{name}.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def save_state(self, state: dict[str, Any]) -> None:
        temporary = self.path / (CHECKPOINT + PART)
        torch.save(state, temporary)
        os.replace(temporary, self.path / CHECKPOINT)

    def load_state(self) -> dict[str, Any] | None:
        path = self.path / CHECKPOINT
        return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None

    def forget_state(self) -> None:
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def forget_words(self) -> None:
        """Also of the report. The run cannot go on after that."""
        forget_words(self.path)

    def _write(self, name: str, body: bytes) -> None:
        temporary = self.path / (name + PART)
        temporary.write_bytes(body)
        os.replace(temporary, self.path / name)
