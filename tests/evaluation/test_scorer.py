"""Generative perplexity and features with a tiny random GPT-2 saved locally, against a plain loop over its tokens."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast  # noqa: E402

from soft_mask.evaluation import Scorer, load_tokenizer, mauve_score  # noqa: E402

EOS = "<|endoftext|>"
TEXTS = [f"{EOS}abca{EOS}bc{EOS}", f"{EOS}cab", "bbca", f"{EOS}aaaaaaaabc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of all 256 bytes and EOS, and a causal LM for it."""
    path = tmp_path_factory.mktemp("gpt2")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={**{c: i for i, c in enumerate(alphabet)}, EOS: 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, bos_token=EOS).save_pretrained(path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return Scorer.from_pretrained(folder)


@torch.no_grad()
def by_hand(scorer: Scorer, texts: list[str], cut: int, count_all: bool = False) -> tuple[float, int]:
    """Nats and tokens, one text at a time and no padding but the originals' rule for which tokens count."""
    nats, tokens = 0.0, 0
    for text in texts:
        ids = scorer.tokenizer(text)["input_ids"][:cut]
        logp = scorer.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        ends = 0
        for i, token in enumerate(ids):
            ends += token == 256
            if i and (count_all or token != 256 or ends == 1):
                nats -= logp[i - 1, token].item()
                tokens += 1
    return nats, tokens


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("cut", [5, 1024])
@pytest.mark.parametrize("count_all", [False, True])
def test_equals_a_plain_loop(scorer: Scorer, batch_size: int, cut: int, count_all: bool) -> None:
    nats, tokens = by_hand(scorer, TEXTS, cut, count_all)
    found = scorer.perplexity(TEXTS, max_length=cut, batch_size=batch_size, count_all=count_all)
    assert found.tokens == tokens
    assert found.nats_per_token == pytest.approx(nats / tokens, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_no_eos_counts_where_a_text_begins_with_it(scorer: Scorer) -> None:
    text = [TEXTS[0]]
    found = scorer.perplexity(text)
    assert found.tokens == 6  # a b c a, b c: text after an EOS counts, no EOS does
    assert scorer.perplexity(text, count_all=True).tokens == 8
    assert found.error is None and found.texts == 1


def test_a_remainder_is_dropped_only_on_request(scorer: Scorer) -> None:
    texts = [EOS + "abc"[i % 3] * (i + 2) for i in range(5)]
    assert scorer.perplexity(texts, batch_size=2).texts == 5
    dropped = scorer.perplexity(texts, batch_size=2, drop_last=True)
    assert dropped.texts == 4 and dropped == scorer.perplexity(texts[:4], batch_size=4, drop_last=True)
    assert scorer.perplexity(texts, batch_size=99, drop_last=True).texts == 5


def test_features_are_the_last_hidden_state_of_the_last_token(scorer: Scorer) -> None:
    features = scorer.features([*TEXTS, ""], batch_size=3)
    assert features.shape == (4, 16)
    with torch.no_grad():
        for text, feature in zip(TEXTS, features, strict=True):
            ids = torch.tensor([scorer.tokenizer(text)["input_ids"]])
            hidden = scorer.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            torch.testing.assert_close(feature, hidden[0, -1], rtol=1e-4, atol=1e-5)


def test_mauve_tells_near_from_far(scorer: Scorer) -> None:
    pytest.importorskip("mauve")
    generator = torch.Generator().manual_seed(0)
    near, also, far = (torch.randn(80, 8, generator=generator) + shift for shift in (0.0, 0.0, 4.0))
    same, other = mauve_score(near, also), mauve_score(near, far)
    assert 0 <= other["mauve"] < 0.2 < 0.5 < same["mauve"] <= 1
    assert same["num_buckets"] == 8 and same["reference_texts"] == same["sample_texts"] == 80
    assert mauve_score(near, near)["mauve"] == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="features of one size, got 8, 7"):
        mauve_score(near, far[:, :7])
    with pytest.raises(ValueError, match="samples must be features .* at least 2 texts"):
        mauve_score(near, far[:1])


def test_gpt2_s_two_files_are_enough(data_dir: Path) -> None:
    tokenizer = load_tokenizer(data_dir / "gpt2")
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert tokenizer.eos_token_id == 50256 and len(tokenizer) == 50257


def test_bad_input_is_told_in_words(scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="texts must hold at least one text"):
        scorer.perplexity([])
    with pytest.raises(ValueError, match="no token to count"):
        scorer.perplexity([EOS])
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(OSError):
        Scorer.from_pretrained(tmp_path / "nothing")
