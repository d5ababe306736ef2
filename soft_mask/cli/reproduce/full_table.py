"""The full-scale tables as text: the paper's figures, ours where they were measured, and what is missing."""

from __future__ import annotations

import shlex
from typing import Any

from .full import Plan
from .paper import BASE, MODELS, PERPLEXITY, SAMPLES

PAPER = "paper (arXiv 2510.17206)"


def markdown(plan: Plan) -> str:
    """Both tables. A figure of ours is there only where its record is; the paper's are in columns of their own."""
    lines = [
        "# `soft-mask reproduce mdlm`",
        "",
        "MDLM 169M on OpenWebText. Columns headed *paper* are the paper's figures; *here* is what was measured here, a dash "
        "where nothing was.",
        "",
        "## Validation perplexity: the public checkpoint, continued",
        "",
        f"| | perplexity, {PAPER} | perplexity here | passes |",
        "|---|---|---|---|",
    ]
    for row in PERPLEXITY:
        found = plan.measured("perplexity", row.model)
        here = _with_error(found) if found else "-"
        lines.append(f"| {row.name} | {_or_dash(row.paper)} | {here} | {found['passes'] if found else '-'} |")
    lines += [
        "",
        f"## Samples of models trained from scratch, {plan.steps} steps",
        "",
        f"| | MAUVE, {PAPER} | generative perplexity, {PAPER} | MAUVE here | generative perplexity here | entropy here "
        "| NFE here |",
        "|---|---|---|---|---|---|---|",
    ]
    for sample_row in SAMPLES:
        found = None
        if sample_row.model is not None:
            found = plan.measured("samples", sample_row.model, sample_row.preset)
        here_cells = ["-"] * 4
        if found:
            mauve = found["mauve"]["mauve"] if found["mauve"] else None
            perplexity = found["generative_perplexity"]["perplexity"]
            here_cells = [_or_dash(mauve, 3), f"{perplexity:.2f}", f"{found['entropy']:.2f}", f"{found['nfe']:.0f}"]
        paper_cells = [f"{sample_row.paper_mauve:.3f}", f"{sample_row.paper_perplexity:.2f}"]
        lines.append("| " + " | ".join([sample_row.name, *paper_cells, *here_cells]) + " |")
    return "\n".join(lines) + "\n"


def needs(plan: Plan) -> str:
    """What each table needs, what is done, and the commands that make it one by one."""
    lines = ["", "## What makes them", ""]
    for title, models in (
        ("Validation perplexity", [row.model for row in PERPLEXITY]),
        ("Samples", list(dict.fromkeys(row.model for row in SAMPLES if row.model is not None))),
    ):
        lines.append(f"{title}:")
        for model in models:
            recipe = plan.recipe(model)
            state = "there" if plan.is_trained(model) else "not trained yet"
            if model == BASE:
                lines.append(f"- {MODELS[model].about}: {plan.weights(model)}, read from the hub or its cache")
                continue
            sequences = recipe.training.updates * recipe.training.batch
            lines.append(
                f"- {MODELS[model].about} ({state}): {recipe.training.updates:,} updates of {recipe.training.batch} x "
                f"{recipe.data.length} tokens, {sequences * recipe.data.length / 1e9:,.0f} G tokens of "
                f"{recipe.data.hub or 'local files'}"
            )
            lines.append(f"      {shlex.join(['python', *plan.train_command(model)[1:]])}")
        lines.append("")
    lines += [
        f"All of it in order, going on where it was stopped: soft-mask reproduce mdlm --run --out {plan.out} "
        "[--table perplexity | --table samples]",
        "Needs: a GPU (a training run uses all there are), the hub or its cache for the checkpoint, OpenWebText, the tokenizer "
        f"and {plan.scorer}; mauve-text for MAUVE.",
        "",
    ]
    return "\n".join(lines)


def _with_error(found: dict[str, Any]) -> str:
    error = found.get("error_sequences")
    text = f"{found['perplexity']:.2f}"
    return text if error is None else f"{text} ± {found['perplexity'] * error:.2f}"


def _or_dash(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
