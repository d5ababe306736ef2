"""The tables of arXiv 2510.17206 for the 169M model: rows, the paper's figures, and the recipe that makes each model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BASE", "MODELS", "PERPLEXITY", "SAMPLES", "Model", "PerplexityRow", "SamplesRow"]

BASE = "mdlm-owt"


@dataclass(frozen=True)
class Model:
    """``recipe``: file name, without .yaml, of what trains it; None is the public checkpoint that others start from."""

    recipe: str | None
    about: str


@dataclass(frozen=True)
class PerplexityRow:
    model: str
    name: str
    paper: float | None  # validation perplexity on OpenWebText


@dataclass(frozen=True)
class SamplesRow:
    """``model`` and ``preset`` (of ``sampling.PRESETS``) None: a figure of the paper that nothing here makes."""

    model: str | None
    preset: str | None
    name: str
    paper_mauve: float
    paper_perplexity: float  # generative, by gpt2-large


MODELS = {
    BASE: Model(None, "the public MDLM checkpoint, 1M updates"),
    "continue-binary": Model("mdlm-owt-continue-binary", "100k more updates, binary"),
    "continue": Model("mdlm-owt-continue", "100k more updates, soft masking"),
    "continue-equal-compute": Model("mdlm-owt-continue-equal-compute", "50k more updates, soft masking"),
    "scratch-binary": Model("mdlm-owt-scratch-binary", "1M updates from random weights, binary"),
    "scratch": Model("mdlm-owt-scratch", "1M updates from random weights, soft masking"),
    "scratch-equal-compute": Model("mdlm-owt-scratch-equal-compute", "500k updates from random weights, soft masking"),
}

PERPLEXITY = (
    PerplexityRow(BASE, "MDLM", 23.14),
    PerplexityRow("continue-binary", "+ binary, 100k updates", 22.88),
    PerplexityRow("continue", "+ soft masking, 100k updates", 21.63),
    PerplexityRow("continue-equal-compute", "+ soft masking, equal compute", None),
)

#: At as many steps as tokens, 1024. The paper's ReMDM is the loop, ReMDM's own choice at this number of steps.
SAMPLES = (
    SamplesRow("scratch-binary", "sm-mdlm", "binary", 0.034, 50.46),
    SamplesRow("scratch-equal-compute", "sm-mdlm", "soft masking, equal compute", 0.596, 24.63),
    SamplesRow("scratch", "sm-mdlm", "soft masking, equal updates", 0.602, 23.53),
    SamplesRow("scratch-binary", "sm-remdm-loop", "ReMDM", 0.411, 28.62),
    SamplesRow("scratch-equal-compute", "sm-remdm-loop", "ReMDM + soft masking, equal compute", 0.766, 17.29),
    SamplesRow("scratch", "sm-remdm-loop", "ReMDM + soft masking, equal updates", 0.774, 16.72),
    SamplesRow(None, None, "autoregressive model", 0.760, 12.1),
)
