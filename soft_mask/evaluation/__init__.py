"""What a model is worth: the likelihood bound on fixed masks, and plain statistics of what it writes."""

from __future__ import annotations

from .nelbo import nelbo
from .ngram import NGram, unigram_entropy

__all__ = ["NGram", "nelbo", "unigram_entropy"]
