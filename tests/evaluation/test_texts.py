"""Documents, detokenising, blocks and bytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from soft_mask.data import blocks as blocks_module  # noqa: E402
from soft_mask.evaluation import ZERO_SHOT, byte_count, load_tokenizer, read_texts, wrap, zero_shot_texts  # noqa: E402
from soft_mask.evaluation.detokenize import DETOKENIZERS  # noqa: E402


class Letters:
    """A tokenizer of single letters: a is 0."""

    eos_token_id, bos_token_id, all_special_ids = 30, 30, [30]

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) - 97 for c in text] for text in texts]}


def test_blocks_are_wrapped_as_in_mdlm(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = wrap(["abc", "de", "fghij"], Letters(), 5)
    assert blocks.tolist() == [[30, 0, 1, 2, 30], [30, 30, 3, 4, 30], [30, 30, 5, 6, 30], [30, 7, 8, 9, 30]]
    assert blocks.dtype == torch.int64
    assert wrap(["abc", "de", "fghij"], Letters(), 5, limit=2).equal(blocks[:2])
    monkeypatch.setattr(blocks_module, "DOCUMENTS_TOGETHER", 2)  # the remainder of each batch of documents is dropped
    # abc|d#d|e# and fgh|ij#|k#: what is left over of each batch is dropped
    assert wrap(["abcd", "de", "fghij", "k"], Letters(), 5).tolist() == [
        [30, 0, 1, 2, 30], [30, 3, 30, 3, 30], [30, 5, 6, 7, 30], [30, 8, 9, 30, 30]
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"\(1 documents\) do not fill one block of 9 tokens"):
        wrap(["abc"], Letters(), 9)
    with pytest.raises(ValueError, match="length must be at least 3"):
        wrap(["abc"], Letters(), 2)


def test_bytes_of_gpt2_tokens_are_exact(data_dir: Path) -> None:
    tokenizer = load_tokenizer(data_dir / "gpt2")
    text = "naïve café — 日本語, \n\tplain"
    ids = torch.tensor([[50256, *tokenizer(text)["input_ids"], 50256]])
    assert byte_count(ids, tokenizer) == len(text.encode())
    assert byte_count(ids[:, :-3], tokenizer) < len(text.encode())


# What the functions of MDLM's dataloader give for these strings. On 23,525 strings made of WikiText-2's validation set
# (lines, and four lines joined) each of the five gave what theirs gives.
CASES = [
    (
        "wikitext",
        ' = Valkyria = \n The 2 @,@ 000 @-@ man team \'s ( first ) game : " good " . End',
        ' = Valkyria =\nThe 2,000-man team\'s (first) game: "good". End',
    ),
    ("ptb", "the company 's N N N stake is n't <unk> $ N # N \\/ b", "the company's 1 1 1 stake isn't ? $1 #1 / b"),
    (
        "lm1b",
        "He said : \" yes \" , ( and ) [ so ] left for $ 5 . ' ok ' http : / / a . b ?",
        "He said: \"yes\", (and) [so] left for $5. 'ok' http://a . b?",
    ),
    ("lambada", " \u201cHello\u201d said he ", '\n"Hello" said he'),
    ("scientific_papers", " we use [ 3 ] , ' this ' = = a at $ 5 .", " we use [3],'this' == a at $5."),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_detokenizers(name: str, text: str, expected: str) -> None:
    assert DETOKENIZERS[name](text) == expected


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert list(read_texts(tmp_path / "a.txt")) == ["one\n", "two\n"]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"sentence": "N N stake"}) + "\n")
    assert list(read_texts(tmp_path / "b.jsonl.gz", "sentence", "ptb")) == ["N 1 stake"]
    with pytest.raises(ValueError, match="line 1: no JSON object with the field 'text'"):
        list(read_texts(tmp_path / "b.jsonl.gz"))
    with pytest.raises(ValueError, match="cannot read"):
        list(read_texts(tmp_path / "none.txt"))
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="cannot read"):
        list(read_texts(tmp_path / "c.txt"))
    whole = (tmp_path / "b.jsonl.gz").read_bytes()
    (tmp_path / "d.jsonl.gz").write_bytes(whole[:-6])
    with pytest.raises(ValueError, match="cannot read"):
        list(read_texts(tmp_path / "d.jsonl.gz", "sentence"))


def test_every_set_names_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[Any, ...]] = []

    class Rows(list[dict[str, str]]):
        def to_iterable_dataset(self) -> Rows:
            return self

    def load(path: str, name: str | None, **options: Any) -> Rows:
        assert ("[" in options["split"]) != options.get("streaming", False)  # slices are not to be had by streaming
        asked.append((path, name, options["split"]))
        field = next(where.field for where in ZERO_SHOT.values() if (where.path, where.name) == (path, name))
        return Rows([{field: "a , b", "other": "c"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in ZERO_SHOT:
        (text,) = zero_shot_texts(name)
        assert text == (
            "a, b" if name not in ("openwebtext", "ptb", "lambada", "ag_news") else "\na , b" if name == "lambada" else "a , b"
        )
    assert len(set(asked)) == len(ZERO_SHOT) == 9
    with pytest.raises(ValueError, match="dataset must be one of openwebtext, ptb, .*, got 'c4'"):
        next(zero_shot_texts("c4"))
