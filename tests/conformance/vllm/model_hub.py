"""A Hugging Face cache in which every model that vLLM's tests name is a tiny one with random weights.

No hub is reached: `HF_HOME` points here and `HF_HUB_OFFLINE=1`, so that the tests, vLLM and SAGE all find the names
they ask for. Run it with a Python that has torch, transformers and SAGE: `python model_hub.py FOLDER TESTS`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from sage_llm_worker.testing import TOOL_TEMPLATE, tiny_llama

GENERATORS = (
    "HuggingFaceH4/zephyr-7b-beta",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2-1.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B",
    "facebook/opt-125m",
    "openai-community/gpt2",
)
ENCODERS = {
    "BAAI/bge-base-en-v1.5": 768,
    "intfloat/multilingual-e5-small": 384,
    "sentence-transformers/all-MiniLM-L12-v2": 384,
}
CROSS_ENCODERS = ("BAAI/bge-reranker-base",)
ADAPTERS = ("charent/self_cognition_Alice", "typeof/zephyr-7b-beta-lora")
"""Never loaded: fixtures download them before the tests that do without."""

_NUM_TOKENS = 6000
_NUM_ENDS = 60
"""Tokens that end an answer, so that random ones have about a hundred tokens, not thousands."""


def main(home: Path, tests: Path) -> None:
    """Build what is missing; the tokenizer of the language model learns the words of the tests."""
    models = home / "models"
    llama = _built(models / "llama", lambda folder: _generator(folder, tests))
    for name in GENERATORS:
        _offer(home, name, llama)
    for name, width in ENCODERS.items():
        _offer(
            home,
            name,
            _built(models / f"encoder-{width}", lambda folder, width=width: _encoder(folder, width)),
        )
    for name in CROSS_ENCODERS:
        _offer(home, name, _built(models / "cross-encoder", _cross_encoder))
    for name in ADAPTERS:
        _offer(home, name, _built(models / "adapter", lambda folder: folder.mkdir()))


def _built(folder: Path, build: Callable[[Path], object]) -> Path:
    """Return the folder, built unless a run before this one did."""
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        build(unfinished)
        unfinished.rename(folder)
    return folder


def _offer(home: Path, name: str, folder: Path) -> None:
    """Make `folder` the only revision of a hub repository."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "snapshots").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text("tiny")
    snapshot = repository / "snapshots" / "tiny"
    if not snapshot.is_symlink():
        snapshot.symlink_to(folder.resolve(), target_is_directory=True)


def _generator(folder: Path, tests: Path) -> None:
    corpus = [file.read_text() for file in sorted(tests.rglob("test_*.py"))]
    tiny_llama(
        folder,
        vocab_size=_NUM_TOKENS,
        max_context=32768,
        chat_template=TOOL_TEMPLATE,
        special_tokens=[f"<|end {i}|>" for i in range(_NUM_ENDS)],
        corpus=corpus,
    )
    place = folder / "generation_config.json"
    generation = json.loads(place.read_text())
    ends = [generation["eos_token_id"], *range(_NUM_TOKENS, _NUM_TOKENS + _NUM_ENDS)]
    place.write_text(json.dumps(generation | {"eos_token_id": ends}))


def _bert(folder: Path, width: int) -> dict[str, object]:
    """Write a WordPiece tokenizer of letters; return the configuration for its model."""
    from transformers import BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    vocabulary += list(".,!?;:'\"()-")
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 64,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 512,
    }


def _encoder(folder: Path, width: int) -> None:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(**_bert(folder, width))).save_pretrained(folder)
    stages = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(stages)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "2_Normalize").mkdir()


def _cross_encoder(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(**_bert(folder, 128), num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
