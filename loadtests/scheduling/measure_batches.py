"""How long one batch takes on this machine's CPU: embeddings, rerank, retrieval and splitting, by items and tokens.

Loads what the workers load (all-MiniLM-L6-v2; as a reranker the same six layers with a fresh head, since times do not
depend on weights) with `--threads` threads. Every size is run `--repeats` times, all sizes in turn, and the fastest
counts: other processes of a shared machine only ever add. Writes loadtests/results/batch_times.csv, which
`fit_profiles.py` reads, and says what machine it was.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sage_embedding_worker.locations import OFFLINE_MODEL, parse_model
from sage_embedding_worker.sentence_encoder import Compute, SentenceCrossEncoder, SentenceEncoder
from sage_operator_worker.operators import retrieve, split
from sage_operator_worker.settings import OperatorWorkerSection
from sage_operator_worker.sqlite_store import SqliteVectorStore
from sage_operator_worker.store import Update
from sage_wire.messages import Chunk, Document, Retrieve, Split

RESULTS = Path(__file__).parents[1] / "results"
ITEMS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (8, 16, 32, 64, 128, 256)
MAX_TOKENS = 8192
QUERY_TOKENS = 12
PASSAGES = 10_000
DIM = 384
CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One batch: what it is of, its size, and the call that computes it."""

    executor: str
    items: int
    tokens: int
    run: Callable[[], object]


def main() -> int:
    """Measure, write the table, print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "batch_times.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sage-batches-") as folder:
        cases = [*_model_cases(options.threads), *_operator_cases(Path(folder))]
        for case in cases:
            case.run()
        fastest = [float("inf")] * len(cases)
        for repeat in range(options.repeats):
            for number, case in enumerate(cases):
                begin = time.perf_counter()
                case.run()
                fastest[number] = min(fastest[number], time.perf_counter() - begin)
            print(f"{repeat + 1} of {options.repeats} done", file=sys.stderr, flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["executor", "tokens", "items", "seconds", "threads", "machine"])
        for case, seconds in zip(cases, fastest, strict=True):
            table.writerow(
                [case.executor, case.tokens, case.items, f"{seconds:.6f}", options.threads, _machine()]
            )
    print(options.output)
    return 0


def _model_cases(threads: int) -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        compute = Compute("cpu", dtype, threads)
        encoder = SentenceEncoder(parse_model(OFFLINE_MODEL), compute)
        reranker = SentenceCrossEncoder(parse_model(OFFLINE_MODEL), compute)
        for items in ITEMS:
            for length in LENGTHS:
                if items * length > MAX_TOKENS:
                    continue
                texts = _texts(items, length - 2)
                assert set(encoder.count_tokens(texts)) == {length}
                yield Case(f"embed-{dtype}", items, items * length, lambda t=texts, e=encoder: e.embed(t))
                if length <= QUERY_TOKENS + 3:
                    continue
                query = " ".join(["the"] * QUERY_TOKENS)
                pairs = [(query, text) for text in _texts(items, length - QUERY_TOKENS - 3)]
                assert set(reranker.count_tokens(pairs)) == {length}
                yield Case(f"rerank-{dtype}", items, items * length, lambda p=pairs, r=reranker: r.score(p))


def _texts(items: int, words: int) -> list[str]:
    """Return texts of `words` tokens each, all different, as duplicates are computed once."""
    names = ("one", "two", "three", "four", "five", "six", "seven", "eight")
    return [
        " ".join(names[(number >> 3 * (word % 3)) % 8] for word in range(words)) for number in range(items)
    ]


def _operator_cases(folder: Path) -> Iterator[Case]:
    """Retrieval from a collection of 10,000 passages, and splitting; workers take the requests of a batch in turn."""
    limits, rng = OperatorWorkerSection(), np.random.default_rng(0)
    store = SqliteVectorStore(folder)
    vocabulary = [f"word{number}" for number in range(20_000)]
    for begin in range(0, PASSAGES, 2000):
        words = rng.choice(vocabulary, (2000, 60))
        vectors = rng.standard_normal((2000, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        chunks = [
            Chunk(source=f"document-{begin + number}", position=0, text=" ".join(words[number]))
            for number in range(2000)
        ]
        store.update("passages", Update(OFFLINE_MODEL, chunks, vectors))
    vector = vectors[0].tobytes()
    for items in ITEMS:
        for length in (8, 32):
            work = [
                Retrieve(
                    collection="passages",
                    query=" ".join(rng.choice(vocabulary, length)),
                    vector=vector,
                    top_k=8,
                )
                for _ in range(items)
            ]
            yield Case(
                "retrieve", items, items * length, lambda w=work: [retrieve(one, limits, store) for one in w]
            )
        for length in (256, 1024, 4096):
            text = ". ".join(rng.choice(vocabulary, 8 * length))[: CHARS_PER_TOKEN * length]
            one = Split(documents=[Document(source="a", text=text)], chunk_chars=1000, overlap_chars=100)
            yield Case(
                "split", items, items * length, lambda o=one, n=items: [split(o, limits) for _ in range(n)]
            )


def _machine() -> str:
    name = platform.machine()
    for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name}, {len(os.sched_getaffinity(0))} CPUs"


if __name__ == "__main__":
    sys.exit(main())
