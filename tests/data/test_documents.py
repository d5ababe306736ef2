"""Reading documents, packing them, and streaming them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from soft_mask.data import ByteTokenizer, HubDocuments, PackedBlocks, StreamedBlocks, iterate_blocks, pack, read_documents, wrap

TEXTS = ["one é\n", "two\n", "three\n"]


def zstd_open(*arguments: Any, **more: Any) -> Any:
    return pytest.importorskip("zstandard").open(*arguments, **more)


@pytest.mark.parametrize(
    ("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open), (".bz2", bz2.open), (".zst", zstd_open)]
)
def test_each_compression_gives_the_same_documents(tmp_path: Path, suffix: str, opener: Any) -> None:
    plain, rows = tmp_path / f"a.txt{suffix}", tmp_path / f"a.jsonl{suffix}"
    with opener(plain, "wt", encoding="utf-8") as file:
        file.write("".join(TEXTS))
    with opener(rows, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    assert list(read_documents(plain)) == TEXTS
    assert list(read_documents(plain, whole=True)) == ["".join(TEXTS)]
    assert list(read_documents(rows, "body")) == TEXTS
    with pytest.raises(ValueError, match="line 1: no JSON object with the field 'text'"):
        list(read_documents(rows))
    if suffix not in ("", ".zst"):
        plain.write_bytes(plain.read_bytes()[:-6])
        with pytest.raises(ValueError, match="cannot read"):
            list(read_documents(plain))


def test_a_field_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match="line 1: field 'text' must be text, got int"):
        list(read_documents(tmp_path / "a.jsonl"))


def test_packed_and_streamed_blocks_are_those_of_wrap(tmp_path: Path) -> None:
    tokenizer, path = ByteTokenizer(), tmp_path / "deep" / "a.tokens"
    expected = wrap(TEXTS, tokenizer, 6)
    assert expected[0].tolist() == [256, *b"one "[:4], 256]
    assert pack(path, iterate_blocks(TEXTS, tokenizer, 6), 6, 258) == len(expected) == 5
    packed = PackedBlocks(path)
    assert torch.equal(torch.stack([packed[i]["input_ids"] for i in range(len(packed))]), expected)
    assert torch.equal(packed.__getitems__([2, 0])["input_ids"], expected[[2, 0]])
    assert isinstance(packed.ids, np.memmap) and packed.ids.dtype == np.uint16
    streamed = [item["input_ids"] for item in islice(StreamedBlocks(TEXTS, tokenizer, 6), 10)]
    assert torch.equal(torch.stack(streamed), expected.repeat(3, 1)[:10])
    bare = tmp_path / "bare.bin"
    bare.write_bytes(expected.numpy().astype("<u4").tobytes())
    assert torch.equal(PackedBlocks(bare, 6, "uint32")[1]["input_ids"], expected[1])


def test_packed_files_that_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 258\)"):
        pack(path, [[1, 258]], 2, 258)
    with pytest.raises(ValueError, match="expected 3 ids in each, got one of 2"):
        pack(path, [[1, 2]], 3, 258)
    with pytest.raises(ValueError, match="do not fill"):
        pack(path, [], 3, 258)
    assert not list(tmp_path.iterdir())
    pack(path, [[1, 2, 3]] * 4, 3, 258)
    with pytest.raises(ValueError, match="packed with length 3, not 4"):
        PackedBlocks(path, length=4)
    narrow = PackedBlocks(path, vocab_size=3)
    for read in (lambda: narrow[0], lambda: narrow.__getitems__([1, 2])):
        with pytest.raises(ValueError, match="holds id 3, outside the model's vocabulary of 3"):
            read()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is cut off"):
        PackedBlocks(path)
    (tmp_path / "a.tokens.json").write_text("{")
    with pytest.raises(ValueError, match="not the header"):
        PackedBlocks(path)
    (tmp_path / "a.tokens.json").unlink()
    with pytest.raises(ValueError, match="say its length"):
        PackedBlocks(path)
    with pytest.raises(ValueError, match="do not fill"):
        next(iter(StreamedBlocks(["a"], ByteTokenizer(), 9)))


def test_a_stream_goes_on_where_its_state_says(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    texts = [f"{number} is a number\n" for number in range(2300)]  # three groups of at most a thousand documents
    (tmp_path / "hub").mkdir()
    for shard in range(3):
        rows = [json.dumps({"text": text}) for text in texts[shard * 800 : (shard + 1) * 800]]
        (tmp_path / "hub" / f"train-{shard}.jsonl").write_text("\n".join(rows))
    sources: list[Any] = [texts]
    if find_spec("datasets"):
        sources.append(HubDocuments(str(tmp_path / "hub")))
    expected = [block["input_ids"] for block in islice(StreamedBlocks(texts, tokenizer, 12), 7000)]
    for source in sources:
        stream = StreamedBlocks(source, tokenizer, 12, key="these")
        blocks, given = iter(stream), 0
        for taken in (0, 1, 1700, 1900, 4500, 6000):  # 4500 and 6000 are in the second reading
            while given < taken + 40:  # a loader reads ahead
                next(blocks)
                given += 1
            state = json.loads(json.dumps(stream.state_dict(taken)))
            other = StreamedBlocks(source, tokenizer, 12, key="these")
            other.load_state_dict(state)
            for ours, theirs in zip(other, expected[taken : taken + 100], strict=False):
                assert torch.equal(ours["input_ids"], theirs)
            again = StreamedBlocks(source, tokenizer, 12, key="these")
            again.load_state_dict(json.loads(json.dumps(other.state_dict(taken + 50))))
            assert torch.equal(next(iter(again))["input_ids"], expected[taken + 50])
    with pytest.raises(ValueError, match="other texts were streamed"):
        StreamedBlocks(texts, tokenizer, 12, key="those").load_state_dict(state)
    with pytest.raises(ValueError, match="the place of block 3 is not known"):
        StreamedBlocks(texts, tokenizer, 12).state_dict(3)


def test_a_hub_set_without_the_field(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match="no text in the field 'text'; the fields are body"):
        list(HubDocuments(str(tmp_path)))
