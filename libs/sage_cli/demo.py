"""`sage demo`: start, index, ask through the OpenAI endpoint, show where the time went, keep serving."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sage_cli.conversation import ask_documents
from sage_cli.exits import fail
from sage_cli.indexing import run_index
from sage_cli.runtime import Instance
from sage_cli.screens import PlainScreen
from sage_cli.terminal import err, out

__all__ = ["DEFAULT_QUESTION", "Demo", "shipped_documents"]

DEFAULT_QUESTION = "What happens to a request when the worker that runs it dies?"
_MODEL = "pipeline/rag-docs"
_MAX_BYTES = 2 * 2**20


def shipped_documents() -> Path:
    """Return the folder of documents that comes with SAGE."""
    return Path(str(resources.files("sage_cli").joinpath("demo_docs")))


@dataclass(slots=True)
class Demo:
    """The steps after everything is ready. One object per run."""

    screen: PlainScreen
    folder: Path
    collection: str
    question: str
    is_exiting: bool
    api_key: str | None = None

    async def run(self, instance: Instance) -> bool:
        """Index, ask, show; return True where the instance shall stop then."""
        started = time.monotonic()
        self.screen.say(f"indexing {self.folder}")
        shipped = shipped_documents().resolve()
        summary = await run_index(
            instance,
            [self.folder],
            collection=self.collection,
            pipeline="index-docs",
            max_bytes=_MAX_BYTES,
            is_forced=False,
            console=err,
            replaced=[] if self.folder == shipped else [shipped],
        )
        problem = summary.problem()
        if problem is not None:
            fail(problem)
        if summary.num_documents == 0:
            fail(f"{self.folder} holds no documents; expected text, Markdown, reStructuredText or HTML")
        for line in summary.text().splitlines():
            self.screen.say(line)
        self.screen.say(f"asking {_MODEL} at {instance.gateway_url}/v1")
        out.print(f"\n{self.question}\n", style="bold", markup=False)
        await ask_documents(
            instance,
            _MODEL,
            self.question,
            collection=self.collection,
            is_traced=True,
            api_key=self.api_key,
        )
        out.print()
        self.screen.say(f"done {time.monotonic() - started:.1f} s after everything was ready")
        if not self.is_exiting:
            self.screen.say(f"serving {instance.gateway_url}/v1 until Ctrl-C; try, in another terminal:")
            for line in _next_steps(instance, has_key=self.api_key is not None):
                out.print(f"    {line}", markup=False, soft_wrap=True)
        return self.is_exiting


def _next_steps(instance: Instance, *, has_key: bool) -> list[str]:
    option = "" if instance.name == "default" else f" --name {instance.name}"
    key = ' -H "authorization: Bearer $OPENAI_API_KEY"' if has_key else ""
    body = f'{{"model": "{_MODEL}", "stream": true, "messages": [{{"role": "user", "content": "What is a pool?"}}]}}'
    return [
        f'sage ask "Which limits does a pipeline have?"{option} --trace',
        f"sage status{option}",
        f"curl -N {instance.gateway_url}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'",
    ]
