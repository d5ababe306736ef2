"""What a model is worth: its likelihood bound and perplexity, and how good others find what it writes."""

from __future__ import annotations

from soft_mask.data import load_tokenizer, wrap

from .mauve import mauve_score
from .nelbo import nelbo
from .ngram import NGram, unigram_entropy
from .perplexity import Perplexity, perplexity
from .record import write_record
from .scorer import GenerativePerplexity, Scorer
from .texts import ZERO_SHOT, byte_count, read_texts, zero_shot_texts

__all__ = [
    "ZERO_SHOT",
    "GenerativePerplexity",
    "NGram",
    "Perplexity",
    "Scorer",
    "byte_count",
    "load_tokenizer",
    "mauve_score",
    "nelbo",
    "perplexity",
    "read_texts",
    "unigram_entropy",
    "wrap",
    "write_record",
    "zero_shot_texts",
]
