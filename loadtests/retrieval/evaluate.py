"""Index a folder of documents through a fresh instance and score written questions on their sources.

Prints and writes `loadtests/results/retrieval.{json,md}`. The score is recall@3: the share of questions for which
one of the accepted pages is among the first three distinct sources that `pipeline/rag-docs` answers with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import httpx

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
SAGE = Path(sys.executable).parent / "sage"
INSTANCE = "retrieval"


def main() -> int:
    """Return 0 when at least 18 of 20 questions have the right source in the top 3."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("docs", type=Path, help="folder of documents")
    parser.add_argument("--questions", type=Path, default=HERE / "questions.toml")
    parser.add_argument(
        "--at-least", type=float, default=0.9, help="recall@3 below which the exit status is 1"
    )
    options = parser.parse_args()
    questions = tomllib.loads(options.questions.read_text("utf-8"))["question"]
    with tempfile.TemporaryDirectory(prefix="sage-retrieval-") as home:
        environment = os.environ | {"XDG_DATA_HOME": home, "XDG_STATE_HOME": home, "XDG_RUNTIME_DIR": home}
        up = subprocess.Popen([SAGE, "up", "--name", INSTANCE], env=environment)
        try:
            report = evaluate(options.docs, questions, environment)
        finally:
            up.terminate()
            up.wait(timeout=60)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "retrieval.json").write_text(json.dumps(report, indent=2) + "\n")
    text = markdown(report)
    (RESULTS / "retrieval.md").write_text(text)
    print(text)
    return 0 if report["recall_at_3"] >= options.at_least else 1


def evaluate(docs: Path, questions: list[dict], environment: dict[str, str]) -> dict:
    """Index, ask, score."""
    status = run_json(["status", "--name", INSTANCE, "--wait-ready", "180", "--json"], environment)
    base_url = status["gateway_url"]
    started = time.monotonic()
    indexed = run_json(["index", str(docs), "--name", INSTANCE, "--json"], environment)
    index_s = time.monotonic() - started
    rows = []
    with httpx.Client(base_url=base_url, timeout=120) as client:
        for question in questions:
            started = time.monotonic()
            answer = client.post(
                "/v1/chat/completions",
                json={
                    "model": "pipeline/rag-docs",
                    "messages": [{"role": "user", "content": question["text"]}],
                },
            )
            answer.raise_for_status()
            message = answer.json()["choices"][0]["message"]
            ranked = list(dict.fromkeys(Path(source["source"]).name for source in message["sources"]))
            rank = next((n for n, name in enumerate(ranked, 1) if name in question["sources"]), None)
            rows.append(
                {
                    "question": question["text"],
                    "accepted": question["sources"],
                    "top_3": ranked[:3],
                    "rank": rank,
                    "answer_ms": round((time.monotonic() - started) * 1000),
                }
            )
            print(
                f"{'ok  ' if rank and rank <= 3 else 'MISS'} rank {rank}  {question['text']}", file=sys.stderr
            )
    found = sum(1 for row in rows if row["rank"] is not None and row["rank"] <= 3)
    return {
        "command": "make retrieval",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "num_documents": indexed["num_indexed"],
        "index_seconds": round(index_s, 1),
        "num_questions": len(rows),
        "num_in_top_3": found,
        "recall_at_3": found / len(rows),
        "rows": rows,
    }


def run_json(arguments: list[str], environment: dict[str, str]) -> dict:
    """Run a `sage` command, its progress on our stderr, and return its JSON."""
    done = subprocess.run([SAGE, *arguments], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def markdown(report: dict) -> str:
    """Return the report as a page."""
    lines = [
        "# Retrieval on real documents",
        "",
        f"`{report['command']}`, {report['date']}: {report['num_documents']} HTML pages of the PostgreSQL 15 manual, "
        f"indexed in {report['index_seconds']} s; {report['num_in_top_3']} of {report['num_questions']} questions "
        f"have a right source in the top 3 (recall@3 = {report['recall_at_3']:.2f}).",
        "",
        "| question | rank | top 3 sources |",
        "|---|---|---|",
    ]
    lines += [
        f"| {r['question']} | {r['rank'] or 'missed'} | {', '.join(r['top_3'])} |" for r in report["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
