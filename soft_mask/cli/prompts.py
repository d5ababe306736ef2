"""What a sequence begins with: a prompt, a chat, a text with gaps; and the text that is made of what was filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NEW_TOKENS = 128


@dataclass
class Start:
    """A sequence to be filled.

    Attributes:
        ids: ``[L]`` int64, masks where tokens are wanted.
        answer: where the text that is shown begins; 0 where it is all shown.
        chat: it was made by the chat template.
    """

    ids: Any
    masks: int
    answer: int = 0
    chat: bool = False


def start_of(
    loaded: Any,
    prompt: str,
    infill: str,
    system: str,
    chat: bool | None,
    length: int | None,
    new: int | None,
) -> Start:
    """ValueError for what does not fit together, or the model."""
    import torch

    model, tokenizer = loaded.model, loaded.tokenizer
    mask, longest = model.mask_token_id, model.model_length
    if prompt and infill:
        raise ValueError("--prompt and --infill exclude each other: write gaps into --infill")
    if length is not None and new is not None:
        raise ValueError("--length and --max-new-tokens exclude each other")
    templated = loaded.hosted and bool(getattr(tokenizer, "chat_template", None)) and bool(prompt) and chat is not False
    if (chat or system) and not templated:
        raise ValueError("--chat and --system need a --prompt and a tokenizer with a chat template")
    if templated:
        turns = [{"role": "system", "content": system}] if system else []
        turns += [{"role": "user", "content": prompt}]
        # return_dict is said: its default differs between versions of transformers
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer(prompt or infill)["input_ids"] if prompt or infill else []
    if infill:
        if mask not in ids:
            raise ValueError(f"--infill has no gap: write {tokenizer.decode([mask])} for each token that is wanted")
        if length is not None or new is not None:
            raise ValueError(f"--length must be left out with --infill, whose text has {len(ids)} tokens")
    if infill:
        size = len(ids)
    elif length is not None or (new is None and not loaded.hosted):
        size = length or longest
    else:
        size = len(ids) + (new or NEW_TOKENS)
    if size > longest or len(ids) > size or (prompt and len(ids) == size):
        raise ValueError(f"{len(ids)} tokens are given for a length of {size}; the model's longest is {longest}")
    row = ids + [mask] * (size - len(ids))
    return Start(torch.tensor(row, dtype=torch.int64), row.count(mask), len(ids) if templated else 0, templated)


def finished(loaded: Any, start: Start, rows: list[list[int]]) -> list[str]:
    """The text of each row. A hosted model's ends at its end token; MDLM's is decoded whole, special tokens kept."""
    if not loaded.hosted:
        return list(loaded.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return ["".join(text for text, _ in pieces(loaded, start, row)) for row in rows]


def pieces(loaded: Any, start: Start, row: list[int]) -> list[tuple[str, bool]]:
    """What a row says so far: runs of text, and of masks (True), up to the first end token after the prompt."""
    mask, tokenizer = loaded.model.mask_token_id, loaded.tokenizer
    ends = _ends(tokenizer)
    fixed = start.ids.tolist()
    parts: list[tuple[str, bool]] = []
    run: list[int] = []

    def flush() -> None:
        if run:
            parts.append((tokenizer.decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False), False))
            run.clear()

    for i, token in enumerate(row):
        if i < start.answer:
            continue
        if token == mask:
            flush()
            parts.append(("\u2591", True))
        elif token in ends and fixed[i] == mask and loaded.hosted:
            break
        else:
            run.append(token)
    flush()
    return parts


def _ends(tokenizer: Any) -> set[int]:
    """End of text, and of a turn where the tokenizer has such a token."""
    turns = ("<|im_end|>", "<|eot_id|>")
    known = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return {tokenizer.eos_token_id} | {known[token] for token in turns if token in known}
