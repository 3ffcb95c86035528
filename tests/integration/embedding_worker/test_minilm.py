"""The real all-MiniLM-L6-v2 and a real cross-encoder, as the worker runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sage_embedding_worker.locations import ModelSpec, parse_model
from sage_embedding_worker.sentence_encoder import Compute, SentenceCrossEncoder, SentenceEncoder
from sage_embedding_worker.served import ModelLimits, ServedCrossEncoder, ServedEncoder

# Warnings that torch and transformers raise while they load are theirs.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

FLOAT32 = Compute(dtype="float32", threads=1)

MIXED = [
    "Emperor penguins breed in the Antarctic winter.",
    "A bird that cannot fly raises its chick on the ice.",
    "The central bank raised interest rates by a quarter point.",
    "Borrowing money becomes more expensive this month.",
    "To knead the dough, fold it and press it with the heel of your hand.",
    "Bread needs to be worked by hand before it rises.",
    "x",
    "word " * 400,
]


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def encoder(_offline: None) -> SentenceEncoder:
    return SentenceEncoder(parse_model("all-MiniLM-L6-v2"), FLOAT32)


def test_a_paraphrase_is_nearer_than_any_other_sentence(encoder: SentenceEncoder) -> None:
    vectors = encoder.embed(MIXED[:6])
    similarity = vectors @ vectors.T - 2 * np.eye(6, dtype=np.float32)
    assert np.argmax(similarity, axis=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_vectors_do_not_depend_on_what_else_is_in_the_batch(encoder: SentenceEncoder) -> None:
    assert (encoder.dim, encoder.max_tokens) == (384, 256)
    together = encoder.embed(MIXED)
    alone = np.concatenate([encoder.embed([text]) for text in MIXED])
    assert np.abs(together - alone).max() < 1e-3
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)


def test_tokens_are_those_of_the_model_s_tokenizer(encoder: SentenceEncoder) -> None:
    # [CLS] hello world [SEP]; 400 words are counted whole, though the model reads 256 tokens.
    assert encoder.count_tokens(["hello world", "", "word " * 400]) == [4, 2, 402]


def test_token_ids_embed_as_the_text_they_are_of(encoder: SentenceEncoder) -> None:
    texts = [*MIXED[:3], "word " * 300]
    ids = [tuple(encoder.tokenize(text, adds_special_tokens=True)) for text in texts]
    assert [len(tokens) for tokens in ids] == encoder.count_tokens(texts) == encoder.count_tokens(ids)
    # The model's end token is cut off with the rest of what is too long, unlike with text.
    cut = [*ids[:3], (*ids[3][:255], ids[3][-1])]
    mixed = encoder.embed([cut[0], texts[1], *cut[2:]])
    assert np.abs(mixed - encoder.embed(texts)).max() < 1e-3


def test_tokens_go_there_and_back(encoder: SentenceEncoder) -> None:
    ids = encoder.tokenize("Hello penguins", adds_special_tokens=True)
    assert encoder.strings(ids)[:2] == ["[CLS]", "hello"]
    assert encoder.detokenize(ids) == "[CLS] hello penguins [SEP]"
    assert max(ids) < encoder.vocab_size


def test_bfloat16_stays_close_to_float32(encoder: SentenceEncoder) -> None:
    half = SentenceEncoder(parse_model("all-MiniLM-L6-v2"), Compute(dtype="bfloat16", threads=1))
    cosines = np.sum(half.embed(MIXED) * encoder.embed(MIXED), axis=1)
    assert cosines.min() > 0.999


async def test_many_requests_at_once_get_what_each_would_get_alone(encoder: SentenceEncoder) -> None:
    served = ServedEncoder(encoder, ModelLimits(max_batch_texts=4))
    await served.start()
    try:
        answers = await asyncio.gather(
            *(served.compute(MIXED[i : i + 3]) for i in range(6) for _ in range(4))
        )
    finally:
        await served.stop()
    alone = encoder.embed(MIXED)
    for i, answer in enumerate(answers):
        first = i // 4
        assert np.abs(answer.values - alone[first : first + 3]).max() < 1e-3


def tiny_cross_encoder(folder: Path) -> Path:
    """Make a BERT with random weights and one output: it tests order and batching, not relevance."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = sorted({word for text in MIXED for word in text.lower().replace(".", " .").split()})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=64).save_pretrained(folder)
    return folder


async def test_a_cross_encoder_scores_each_pair_as_it_would_alone(tmp_path: Path) -> None:
    model = SentenceCrossEncoder(ModelSpec("tiny", str(tiny_cross_encoder(tmp_path))), FLOAT32)
    assert model.max_tokens == 64
    served = ServedCrossEncoder(model, ModelLimits(max_batch_texts=3))
    await served.start()
    try:
        found = await served.rerank(MIXED[0], MIXED)
    finally:
        await served.stop()
    alone = [model.score([(MIXED[0], document)])[0] for document in MIXED]
    np.testing.assert_allclose(found.values, alone, atol=1e-4)
    assert len({round(float(score), 4) for score in alone}) > 4
    counts = model.count_tokens([(MIXED[0], document) for document in MIXED])
    assert found.num_tokens == sum(min(count, 64) for count in counts)
