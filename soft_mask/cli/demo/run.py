"""The demo's jobs: one act and one seed each."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..jobs import spawn
from .settings import Act, settings_hash


@dataclass(frozen=True)
class Job:
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

    @property
    def result_file(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.name}.log"

    def finished(self) -> dict[str, Any] | None:
        """The result of an earlier run with the very same settings, or None."""
        try:
            result = json.loads(self.result_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) and result.get("hash") == self.hash else None

    def start(self) -> subprocess.Popen[str]:
        job_file = self.folder / f"{self.name}.job"
        job = {
            "settings": asdict(self.act),
            "seed": self.seed,
            "text": str(self.text.resolve()) if self.text else "",
            "result": str(self.result_file.resolve()),
            "hash": self.hash,
        }
        job_file.write_text(json.dumps(job, indent=1), encoding="utf-8")
        return spawn("soft_mask.cli.demo.branches", job_file, self.log_file)
