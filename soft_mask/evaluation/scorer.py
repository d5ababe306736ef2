"""A causal language model as a judge of samples: generative perplexity, and features for MAUVE."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from soft_mask.data import load_tokenizer

__all__ = ["GenerativePerplexity", "Scorer"]


@dataclass(frozen=True)
class GenerativePerplexity:
    """``perplexity`` is exp(nats / tokens) over all texts together; ``error`` its standard error over texts (delta method).

    ``tokens`` are those counted. Never read it without the entropy of the samples beside it: text that repeats itself is
    likely.
    """

    perplexity: float
    nats_per_token: float
    error: float | None
    tokens: int
    texts: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Scorer:
    """Any causal LM of ``transformers`` with its tokenizer, read from safetensors alone and without remote code.

    Args:
        model: ``transformers`` causal LM; put in eval mode.
        tokenizer: its tokenizer, with an EOS token.
        name: what results call it.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "") -> None:
        if getattr(tokenizer, "eos_token_id", None) is None:
            raise ValueError("tokenizer must have an EOS token: samples are padded with it")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.eos = int(tokenizer.eos_token_id)

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str], device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Scorer:
        """gpt2-large in float32 is what the papers use.

        Raises:
            OSError: no such folder or hub id, or no safetensors in it.
            ImportError: ``transformers`` is missing.
        """
        from transformers import AutoModelForCausalLM

        name = os.fspath(path_or_hub_id)
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        return cls(model.to(device), load_tokenizer(name), name)

    @property
    def device(self) -> torch.device:
        parameter: Tensor = next(self.model.parameters())
        return parameter.device

    @property
    def context(self) -> int:
        """The longest sequence the model takes; 1024 where its config does not say."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1024)

    @torch.no_grad()
    def perplexity(
        self,
        texts: list[str],
        max_length: int = 1024,
        batch_size: int = 8,
        drop_last: bool = False,
        count_all: bool = False,
    ) -> GenerativePerplexity:
        """Generative perplexity in the protocol of MDLM and the paper.

        Texts are tokenised anew, cut at ``max_length`` and padded with EOS; each token but the first is predicted from
        those before it. Counted are tokens that are not EOS, and the first EOS of a text; as samples begin with EOS
        (as BOS) that is never a target there, so no EOS counts, and text after an EOS counts as any other. Padding never
        counts; in the originals it does once, where a text without any EOS is shorter than another of its run.

        Args:
            batch_size: texts a forward pass.
            drop_last: leave out texts that do not fill a batch, as the originals do.
            count_all: count every token up to a text's end instead, EOS among them (no quirk).

        Raises:
            ValueError: no text, or nothing to count.
        """
        if not texts:
            raise ValueError("texts must hold at least one text")
        if drop_last:
            texts = texts[: len(texts) // min(batch_size, len(texts)) * min(batch_size, len(texts))]
        sums: list[float] = []
        counts: list[int] = []
        for at in range(0, len(texts), batch_size):
            ids, attention = self._pad([self._encode(text, max_length) for text in texts[at : at + batch_size]])
            logits = self.model(input_ids=ids, attention_mask=attention).logits
            nll = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
            is_eos = ids == self.eos
            counted = attention.bool()
            if not count_all:
                counted &= ~is_eos | (is_eos.cumsum(-1) == 1)
            weight = counted[:, 1:].double()
            sums += (nll.double() * weight).sum(1).tolist()
            counts += weight.sum(1).long().tolist()
        total, tokens = math.fsum(sums), sum(counts)
        if tokens == 0:
            raise ValueError("texts hold no token to count: each is at most one token long")
        mean = total / tokens
        error = None
        if len(sums) > 1:  # of a ratio of sums
            residuals = torch.tensor([a - mean * b for a, b in zip(sums, counts, strict=True)], dtype=torch.float64)
            error = float(residuals.std()) * math.sqrt(len(sums)) / tokens
        perplexity = math.exp(mean) if mean < 700 else math.inf
        return GenerativePerplexity(perplexity, mean, None if error is None else perplexity * error, tokens, len(texts))

    @torch.no_grad()
    def features(self, texts: list[str], max_length: int = 1024, batch_size: int = 8) -> Tensor:  # [N, d] float32
        """Last hidden state at each text's last token, as ``mauve-text`` takes it; empty texts are left out."""
        kept = [ids for ids in (self._encode(text, max_length) for text in texts if text) if ids]
        if not kept:
            raise ValueError("texts must hold at least one text that is not empty")
        rows: list[Tensor] = []
        for at in range(0, len(kept), batch_size):
            part = kept[at : at + batch_size]
            ids, attention = self._pad(part)
            hidden = self.model(input_ids=ids, attention_mask=attention, output_hidden_states=True).hidden_states[-1]
            rows += [hidden[i, len(one) - 1].float().cpu() for i, one in enumerate(part)]
        return torch.stack(rows)

    def _encode(self, text: str, max_length: int) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=min(max_length, self.context))["input_ids"]
        return ids

    def _pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        longest = max(max(len(row) for row in rows), 2)
        ids = torch.full((len(rows), longest), self.eos)
        attention = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            attention[i, : len(row)] = 1
        return ids.to(self.device), attention.to(self.device)
