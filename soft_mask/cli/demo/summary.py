"""From the parts of all seeds to means, standard errors, checks and honest words. No formatting here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from .settings import Act

BRANCHES = ("binary", "soft", "binary_long")
RIVALS = {"binary": "equal updates", "binary_long": "equal compute"}
# A gate that has not opened, and a difference that is rounding: both far below anything a trained gate gives.
OPEN_GATE = 0.01
NOT_ZERO = 1e-4


def statistic(values: list[float]) -> dict[str, Any]:
    """Mean and standard error over seeds (None for one seed)."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": mean(values), "se": error, "per_seed": values}


def summarise(act: Act, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One act over its seeds. NELBO in nats per token, lower is better."""
    summary: dict[str, Any] = {
        "seeds": [part["seed"] for part in parts],
        "parameters": parts[0]["parameters"],
        "compute_ratio_counted": act.compute_ratio,
        "base": statistic([part["base"]["nelbo"] for part in parts]),
        "branches": {},
        "differences": {},
        "generation_differences": {},
    }
    if parts[0]["floor"] is not None:
        summary["floor"] = statistic([part["floor"] for part in parts])
    for name in BRANCHES:
        records = [part["branches"][name] for part in parts]
        branch: dict[str, Any] = {"updates": records[0]["updates"]}
        for key in ("nelbo", "nelbo_one_pass", "mean_lambda", "ms_per_update", "cpu_ms_per_update"):
            if key in records[0]:
                branch[key] = statistic([record[key] for record in records])
        if "gate" in records[0]:
            branch["gate"] = {key: statistic([record["gate"][key] for record in records]) for key in records[0]["gate"]}
        branch["generation"] = {
            steps: {key: statistic([record["generation"][steps][key] for record in records]) for key in scores}
            for steps, scores in records[0]["generation"].items()
        }
        summary["branches"][name] = branch
    for rival in RIVALS:
        summary["differences"][rival] = statistic([part["differences"][rival]["mean"] for part in parts])
        summary["differences"][rival]["paired_se_per_seed"] = [part["differences"][rival]["paired_se"] for part in parts]
        summary["generation_differences"][rival] = {
            steps: {
                key: statistic(
                    [
                        part["branches"]["soft"]["generation"][steps][key] - part["branches"][rival]["generation"][steps][key]
                        for part in parts
                    ]
                )
                for key in scores
            }
            for steps, scores in parts[0]["branches"]["soft"]["generation"].items()
        }
    paces = summary["branches"]
    summary["compute_ratio_measured"] = (
        paces["soft"]["cpu_ms_per_update"]["mean"] / paces["binary_long"]["cpu_ms_per_update"]["mean"]
    )
    return summary


@dataclass(frozen=True)
class Check:
    claim: str
    holds: bool | None  # None: not judged
    detail: str


def checks(summary: dict[str, Any]) -> list[Check]:
    """Act 1's claims. A feedback that is switched off fails them: it is not enough to be no worse than binary."""
    found = []
    for rival, words in RIVALS.items():
        difference = summary["differences"][rival]
        each = ", ".join(f"{value:+.4f}" for value in difference["per_seed"])
        found.append(Check(f"soft below binary at {words} on every seed", all(v < 0 for v in difference["per_seed"]), each))
    for rival, words in RIVALS.items():
        difference = summary["differences"][rival]
        claim = f"by more than 2 standard errors over seeds at {words}"
        if len(difference["per_seed"]) < 3:
            found.append(Check(claim, None, "not judged with fewer than 3 seeds"))
        else:
            low = difference["mean"] + 2 * difference["se"] < 0
            found.append(Check(claim, low, f"{difference['mean']:+.4f} ± {difference['se']:.4f}"))
    soft = summary["branches"]["soft"]
    gates = soft["mean_lambda"]["per_seed"]
    differs = all(abs(value) > NOT_ZERO for value in summary["differences"]["binary"]["per_seed"])
    found.append(
        Check(
            "feedback is at work: the gate is open and soft is not binary under another name",
            all(gate > OPEN_GATE for gate in gates) and differs,
            "mean lambda " + ", ".join(f"{gate:.3f}" for gate in gates),
        )
    )
    gains = [two - one for two, one in zip(soft["nelbo"]["per_seed"], soft["nelbo_one_pass"]["per_seed"], strict=True)]
    found.append(
        Check(
            "the same weights are worse without the feedback, on every seed",
            all(gain < -NOT_ZERO for gain in gains),
            ", ".join(f"{gain:+.4f}" for gain in gains),
        )
    )
    if "floor" in summary:
        lowest = min(
            value - floor
            for branch in summary["branches"].values()
            for value, floor in zip(branch["nelbo"]["per_seed"], summary["floor"]["per_seed"], strict=True)
        )
        found.append(Check("no bound below the exact floor", lowest > -0.02, f"the closest is {lowest:+.4f} from it"))
    return found


def verdict(difference: dict[str, Any], scale: float = 1.0, unit: str = "") -> str:
    """What a difference (soft minus rival, lower is better) is worth over its seeds, in words."""
    values = [value * scale for value in difference["per_seed"]]
    wins = sum(value < 0 for value in values)
    if len(values) < 2:
        return f"{values[0]:+.4f} {unit} on one seed: no error known, so no conclusion".replace("  ", " ")
    size, error = difference["mean"] * scale, difference["se"] * scale
    head = f"{size:+.4f} ± {error:.4f} {unit}, lower on {wins} of {len(values)} seeds".replace(" ,", ",")
    if abs(size) <= 2 * error:
        tail = "within noise (2 standard errors): no difference shown"
    elif size < 0:
        tail = "a gain beyond 2 standard errors"
    else:
        tail = "WORSE by more than 2 standard errors"
    if len(values) == 2:
        tail += "; with 2 seeds the error itself is hardly known, so this is weak evidence"
    return f"{head}: {tail}"
