"""Instructions: sources, chat template, filters, packing, and the batches."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from soft_mask.data import (
    Encoded,
    Filters,
    InstructionCollator,
    InstructionRows,
    InstructionSource,
    encode_instructions,
    pack_instructions,
)

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>\n' + m['content'] + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)


def letters() -> Any:
    """A tokenizer of characters, in which two line breaks are one token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["[UNK]", "[PAD]", "[MASK]", "\n\n", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|[\s\S]"), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]")
    fast.chat_template = TEMPLATE
    return fast


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_sources_give_conversations(tmp_path: Path) -> None:
    rows = [{"q": "one?", "a": "1"}, {"q": "two?", "a": "2"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = InstructionSource(file=str(tmp_path / "a.jsonl"), prompt="q", response="a")
    assert [source.conversation(row) for row in source.rows()] == [talk("one?", "1"), talk("two?", "2")]
    said = [{"role": "SYSTEM", "content": "s"}, {"role": "HUMAN", "content": "h"}, {"role": "ASSISTANT", "content": "a"}]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"messages": m}) + "\n" for m in (said, said[:2], said[:1])))
    source = InstructionSource(file=str(tmp_path / "b.jsonl.gz"))
    roles = [{"role": "system", "content": "s"}, {"role": "user", "content": "h"}, {"role": "assistant", "content": "a"}]
    assert [source.conversation(row) for row in source.rows()] == [roles, None, None]


def test_faults_of_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n[2]\n')
    for given, words in (
        ({}, "either hub or file"),
        ({"hub": "a/b", "file": "c"}, "either hub or file"),
        ({"hub": "a/b", "prompt": "q"}, "both of prompt and response"),
        ({"hub": "a/b", "messages": "m", "prompt": "q", "response": "r"}, "either messages or both"),
    ):
        with pytest.raises(ValueError, match=words):
            InstructionSource(**given)  # type: ignore[arg-type]
    source = InstructionSource(file=str(tmp_path / "a.jsonl"), prompt="q", response="a")
    with pytest.raises(ValueError, match="line 2: expected a JSON object"):
        source.rows()
    with pytest.raises(ValueError, match="fields 'q' and 'a' must be texts"):
        source.conversation({"q": 1})
    with pytest.raises(ValueError, match="must be a list of messages"):
        InstructionSource(file="x").conversation({"messages": ["hello"]})
    with pytest.raises(ValueError, match="cannot read"):
        InstructionSource(file=str(tmp_path / "none.jsonl")).rows()


def test_prompts_end_where_the_answer_begins() -> None:
    tokenizer, counts = letters(), Counter[str]()
    talks = [talk("a", "hello"), None, talk("b", "\nhi there"), talk("c", "x"), talk("d" * 50, "hello"), talk("e", "he~lo")]
    filters = Filters(max_length=60, min_answer=8, drop_ids=(tokenizer.convert_tokens_to_ids("~"),))
    plain, joined = encode_instructions(talks, tokenizer, filters, counts)
    text = [tokenizer.convert_ids_to_tokens(row.ids) for row in (plain, joined)]
    assert "".join(text[0][: plain.prompt_length]) == "<user>\na<end>\n<assistant>\n"
    assert "".join(text[0][plain.prompt_length :]) == "hello<end>\n"
    # the two line breaks are one token, which the prompt alone does not end with: it is the answer's
    assert "".join(text[1][: joined.prompt_length]) == "<user>\nb<end>\n<assistant>"
    assert text[1][joined.prompt_length] == "\n\n"
    assert counts == {"no answer": 1, "too long": 1, "dropped ids": 1, "answer too short": 1}
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        next(encode_instructions(talks, tokenizer, filters))


ROWS = [Encoded([5, 6, 7, 8], 2), Encoded([9, 9, 9], 1), Encoded([1, 2, 3, 4, 5, 6, 7], 3)]


def test_packed_rows_are_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.instructions"
    pack_instructions(path, ROWS[1:], ROWS[:1], {"too long": 3})
    train, held_out = InstructionRows.open(path)
    assert held_out is not None and len(train) == 2 and len(held_out) == 1
    memory = InstructionRows.from_encoded(ROWS[1:])
    for i in range(2):
        a, b = train[i], memory[i]
        assert a["input_ids"].tolist() == b["input_ids"].tolist() == ROWS[1 + i].ids
        assert a["prompt_length"] == b["prompt_length"] == ROWS[1 + i].prompt_length
    assert "t" not in train[0] and held_out.with_times(0.2, 0.8)[0]["t"] == pytest.approx(0.2)
    assert [row["t"] for row in (memory.with_times(0.2, 0.8)[i] for i in range(2))] == pytest.approx([0.2, 0.8])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="is cut off"):
        InstructionRows.open(path)
    with pytest.raises(ValueError, match="no file of instructions"):
        InstructionRows.open(tmp_path / "none")
    with pytest.raises(ValueError, match="leave no row"):
        pack_instructions(tmp_path / "y", [])
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(ValueError, match="row 1 has no answer"):
        InstructionRows.from_encoded([ROWS[0], Encoded([1, 2], 2)])
    with pytest.raises(ValueError, match="there is no row"):
        InstructionRows(np.zeros(0), np.zeros(1), np.zeros(0))


def test_batches_pad_as_the_answer() -> None:
    rows = InstructionRows.from_encoded(ROWS).with_times(0.2, 0.8)
    items = [rows[0], rows[2]]
    batch = InstructionCollator(0, extra=0, multiple=8)(items)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 0]]
    assert batch["answer"].tolist() == [[i >= 2 for i in range(8)], [i >= 3 for i in range(8)]]
    assert batch["t"].tolist() == pytest.approx([0.2, 0.8]) and "attention_mask" not in batch
    bare = InstructionCollator(0, pad_in_loss=False)(items)
    assert bare["attention_mask"].sum(1).tolist() == [4, 7] and bare["answer"].sum(1).tolist() == [2, 4]
    assert bare["input_ids"].shape == (2, 8)


def test_extra_padding_follows_from_the_rows() -> None:
    rows = InstructionRows.from_encoded(ROWS * 200)
    make = InstructionCollator(0, extra=50, multiple=1, seed=3)
    extras = torch.tensor([make([rows[i]])["input_ids"].shape[1] - len(rows[i]["input_ids"]) for i in range(600)])
    assert extras.min() == 0 and extras.max() == 49 and abs(float(extras.float().mean()) - 24.5) < 2.5
    again = InstructionCollator(0, extra=50, multiple=1, seed=3)
    assert again([rows[7]])["input_ids"].shape == make([rows[7]])["input_ids"].shape
    other = InstructionCollator(0, extra=50, multiple=1, seed=4)
    assert [other([rows[i]])["input_ids"].shape for i in range(9)] != [make([rows[i]])["input_ids"].shape for i in range(9)]
    assert InstructionCollator(0)([rows[0], rows[1]])["input_ids"].shape[1] % 8 == 0
    with pytest.raises(ValueError, match="extra must be an int of at least 0"):
        InstructionCollator(0, extra=-1)


def test_mbpp_by_dreams_tokenizer(data_dir: Path) -> None:
    """Real problems and solutions: prompts and answers read as the chat template writes them."""
    from soft_mask.models.tokenizer import dream_tokenizer

    tokenizer = dream_tokenizer(data_dir / "qwen2.5")
    source = InstructionSource(file=str(data_dir / "mbpp" / "mbpp.jsonl"), prompt="text", response="code")
    rows = list(source.rows())[:50]
    encoded = list(encode_instructions((source.conversation(row) for row in rows), tokenizer, Filters()))
    assert len(encoded) == 50
    for row, one in zip(rows, encoded, strict=True):
        prompt, answer = tokenizer.decode(one.ids[: one.prompt_length]), tokenizer.decode(one.ids[one.prompt_length :])
        assert prompt.endswith(f"<|im_start|>user\n{row['text']}<|im_end|>\n<|im_start|>assistant\n")
        assert answer == row["code"] + "<|im_end|>\n"
