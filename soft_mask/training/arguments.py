"""The settings of a soft-masked training run, on top of Hugging Face's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class SoftMaskTrainingArguments(TrainingArguments):
    """``TrainingArguments`` plus what soft masking needs (arXiv 2510.17206, training procedure).

    Some of Trainer's own defaults differ here: no reporting to outside services, all columns kept (the trainer makes
    its own model inputs), and a loss of NaN is shown rather than replaced (looking for it costs a sync every step).
    """

    p_sm: float = field(default=0.8, metadata={"help": "Probability that a micro-batch is trained with feedback (two passes)."})
    omega_learning_rate: float = field(
        default=1e-2, metadata={"help": "Learning rate of the gate's three numbers, which have no weight decay."}
    )
    omega_constant_lr: bool = field(
        default=False, metadata={"help": "Keep omega's learning rate constant while the model's follows its schedule."}
    )
    clip_omega: bool = field(default=False, metadata={"help": "Clip omega along with the model, as the paper's code."})
    min_time: float = field(default=1e-3, metadata={"help": "Smallest diffusion time that is drawn."})
    max_time: float = field(default=1.0, metadata={"help": "Largest diffusion time that is drawn."})
    ema_decay: float = field(default=0.0, metadata={"help": "Moving average of the weights, 0.9999 in the paper; 0 is none."})

    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep all columns of a datasets.Dataset."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and inf losses from the log."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Integrations to report to."})

    def __post_init__(self) -> None:
        if not 0.0 <= self.p_sm <= 1.0:
            raise ValueError(f"p_sm: expected a probability in [0, 1], got {self.p_sm}")
        if not (math.isfinite(self.omega_learning_rate) and self.omega_learning_rate >= 0.0):
            raise ValueError(f"omega_learning_rate: expected a finite number ≥ 0, got {self.omega_learning_rate}")
        if not 0.0 < self.min_time < 1.0:
            raise ValueError(f"min_time: expected a time inside (0, 1), got {self.min_time}")
        if not self.min_time < self.max_time <= 1.0:
            raise ValueError(f"max_time: expected a time in (min_time = {self.min_time}, 1], got {self.max_time}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        super().__post_init__()
