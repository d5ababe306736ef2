"""The demo's jobs: one act and one seed each."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from ..jobs import KeptJob
from .settings import Act, settings_hash


@dataclass(frozen=True)
class Job(KeptJob):
    act: Act
    seed: int
    folder: Path  # of parts
    text: Path | None = None
    data: str = ""  # a fingerprint of the text

    @property
    def name(self) -> str:
        return f"{self.act.name}-{self.seed}"

    @property
    def hash(self) -> str:
        return settings_hash(self.act, self.seed, self.data)

    def start(self) -> subprocess.Popen[str]:
        text = str(self.text.resolve()) if self.text else ""
        return self.spawn("soft_mask.cli.demo.branches", settings=asdict(self.act), seed=self.seed, text=text)
