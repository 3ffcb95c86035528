"""Run the rag pipeline as a durable job on NATS and print its answer. Needs `nats-py[nkeys]` and `msgpack` alone.

Exit status: 0 answered, 1 the job failed, 2 wrong usage, 3 nothing confirmed that it is stored, 4 not ended in time.
After 3 and 4, run it again with the job id that it printed: a job runs once, and its result is kept for a week.
"""

import argparse
import asyncio
import re
import sys
import uuid
from pathlib import Path

import msgpack
import nats
from nats.js.errors import NotFoundError

parser = argparse.ArgumentParser(description="Answer a question from indexed documents, as a durable job.")
parser.add_argument("question")
parser.add_argument("--url", default="nats://127.0.0.1:4222", help="for tls://, SSL_CERT_FILE names the CA")
parser.add_argument("--nkey-seed", metavar="FILE", help="seed of the role `publisher`")
parser.add_argument("--job-id", default=uuid.uuid4().hex, help="1 to 128 of A-Z a-z 0-9 _ -")
parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for the result")


async def main(options: argparse.Namespace) -> int:
    """Submit the job unless it is known already, wait for its final state, print it."""
    job_id, state, status, troubles = options.job_id, {}, 3, []

    async def note(error: Exception) -> None:  # what the server denies, and what keeps us from connecting
        troubles.append(str(error))

    async def look() -> dict:
        try:
            found = await js.get_last_msg("KV_sage_jobs", f"$KV.sage_jobs.{job_id}", direct=True)
            return msgpack.unpackb(found.data) if found.data else {}
        except (NotFoundError, nats.errors.NoRespondersError, nats.errors.TimeoutError):
            return {}  # no planner has taken it yet, or the server is away

    try:
        async with (
            asyncio.timeout(min(20.0, options.timeout)) as limit,
            await nats.connect(options.url, nkeys_seed=options.nkey_seed, inbox_prefix="_INBOX_publisher",
                               max_reconnect_attempts=-1, error_cb=note) as nc,
        ):  # fmt: skip
            js = nc.jetstream()
            changes = await nc.subscribe(f"sagekv.v1.sage_jobs.{job_id}")  # first: so no change is missed
            if not (state := await look()):
                messages = [{"role": "user", "content": options.question}]
                run = {"type": "run_pipeline", "pipeline": "rag-docs", "messages": messages}
                job = msgpack.packb({"job_id": job_id, "run": run})
                await js.publish("sagejobs.v1.submit", job, headers={"Nats-Msg-Id": job_id}, timeout=12)
            status = 4
            limit.reschedule(asyncio.get_running_loop().time() + options.timeout)
            while state.get("status") not in ("succeeded", "failed", "cancelled"):
                try:
                    state = msgpack.unpackb((await changes.next_msg(timeout=5)).data)
                except nats.errors.TimeoutError:  # what changes while we reconnect is not sent again
                    state = await look() or state
    except (OSError, nats.errors.Error) as error:
        found = (
            "may not be stored" if status == 3 else f"has not ended, it is {state.get('status', 'queued')}"
        )
        why = "; ".join(filter(None, dict.fromkeys([*troubles, str(error)]))) or "no answer in time"
        print(f"job {job_id} {found}: {why}", file=sys.stderr)
        return status
    if state["status"] != "succeeded":
        print(f"job {job_id} {state['status']}: {state.get('error', {}).get('message', '')}", file=sys.stderr)
        return 1
    print(state.get("text", ""))
    for number, passage in enumerate(state.get("sources", []), 1):
        print(f"[{number}] {passage['source']}")
    return 0


if __name__ == "__main__":
    given = parser.parse_args()
    if not re.fullmatch("[A-Za-z0-9_-]{1,128}", given.job_id):
        parser.error(f"--job-id is {given.job_id!r}; expected 1 to 128 of A-Z a-z 0-9 _ -")
    seed = Path(given.nkey_seed) if given.nkey_seed else None
    if seed and not (
        seed.is_file() and re.match("SU[A-Z2-7]{56}$", seed.read_text("utf-8", "replace").strip())
    ):
        parser.error(f"--nkey-seed: {seed} holds no seed of a user, 58 characters that begin with SU")
    sys.exit(asyncio.run(main(given)))
