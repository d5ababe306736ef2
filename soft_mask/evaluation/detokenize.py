"""Undo the word splitting of old benchmark texts, rule by rule as MDLM and the paper do before they tokenise."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["DETOKENIZERS"]

Rule = tuple[str, str]


def _replace(text: str, rules: tuple[Rule, ...]) -> str:
    for old, new in rules:
        text = text.replace(old, new)
    return text


def _substitute(text: str, rules: tuple[Rule, ...]) -> str:
    for pattern, new in rules:
        text = re.sub(pattern, new, text)
    return text


SPACED_BEFORE = tuple((f" {mark} ", f"{mark} ") for mark in ":;.!?,")
BRACKETS = ((r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}"))
QUOTES = ((r"\"\s*([^\"]*?)\s*\"", r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'"))


def wikitext(text: str) -> str:
    text = text.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", "/'[0-9]/", text)  # the originals' rule, which was meant otherwise
    text = _replace(text, ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), *SPACED_BEFORE))
    text = _substitute(text, (*BRACKETS, *QUOTES))
    return _replace(
        text,
        (
            ("= = = =", "===="),
            ("= = =", "==="),
            ("= =", "=="),
            (" \u00b0 ", "\u00b0"),
            (" \n", "\n"),
            ("\n ", "\n"),
            (" N ", " 1 "),
            (" 's", "'s"),
        ),
    )


def ptb(text: str) -> str:
    text = _replace(text, ((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")))
    for _ in range(10):  # " N N " shares a space
        text = text.replace(" N ", " 1 ")
    return _replace(text, (("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")))


def lm1b(text: str) -> str:
    text = _replace(text, (("http : / / ", "http://"), ("https : / / ", "https://")))
    text = _substitute(text, ((r" \'(\w+)", r"'\1"), (r" (\w+) \. ", r" \1. "), (r" (\w+) \.$", r" \1.")))
    text = re.sub(r" \?$", "?", text.replace(" ? ", "? "))
    text = re.sub(r" \!$", "!", text.replace(" ! ", "! "))
    text = _replace(text, ((" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/")))
    text = _substitute(
        text,
        (
            (r"\" ([^\"]+) \"", r'"\1"'),
            (r"\' ([^\']+) \'", r"'\1'"),
            (r"\( ([^\(\)]+) \)", r"(\1)"),
            (r"\[ ([^\[\]]+) \]", r"[\1]"),
        ),
    )
    return _replace(text, (("$ ", "$"), ("\u00a3 ", "\u00a3")))


def lambada(text: str) -> str:
    return "\n" + _replace(text, (("\u201c", '"'), ("\u201d", '"'))).strip()


def scientific_papers(text: str) -> str:
    return lm1b(wikitext(text))


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "wikitext": wikitext,
    "ptb": ptb,
    "lm1b": lm1b,
    "lambada": lambada,
    "scientific_papers": scientific_papers,
}
