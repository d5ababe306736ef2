"""Where a run that streams its data stands, kept in its checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from soft_mask.data import StreamedBlocks

__all__ = ["StreamPlace"]

STREAM_FILE = "stream.json"


class StreamPlace:
    """Counts the blocks that updates have taken from a stream, over all ranks; every rank reads the same stream.

    Args:
        dataset: the stream, of which each process has its own.
        whole: blocks of an update.
    """

    def __init__(self, dataset: StreamedBlocks, whole: int) -> None:
        self.dataset, self.whole = dataset, whole
        self._step = self._blocks = 0  # an update, and the blocks that were taken before it

    def write(self, folder: str | os.PathLike[str], step: int) -> None:
        state = self.dataset.state_dict(self._blocks + (step - self._step) * self.whole)
        Path(folder, STREAM_FILE).write_text(json.dumps({"step": step, **state}) + "\n", encoding="utf-8")

    def read(self, folder: str | os.PathLike[str]) -> bool:
        """Go on where the checkpoint was written; False where it does not say.

        Raises:
            ValueError: the file is broken, or the checkpoint is of other data.
        """
        path = Path(folder, STREAM_FILE)
        if not path.is_file():
            return False
        try:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._step, self._blocks = int(state.pop("step")), int(state["blocks"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not say where the data stood: {error!r}") from None
        self.dataset.load_state_dict(state)
        return True
