"""A plain NATS client for `make rollout`: connect, and try what must be denied. Needs `nats-py` alone."""

import argparse
import asyncio
import sys

import nats

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", required=True)
parser.add_argument("--seed", help="file with a seed")
parser.add_argument("--denied", help="subject that must not be subscribed to")
parser.add_argument("--name", required=True)


async def main(options: argparse.Namespace) -> int:
    """Return 0 where the connection stands and what must be denied is denied."""
    told: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        told.put_nowait(str(error))

    try:
        client = await nats.connect(
            options.url,
            name=options.name,
            nkeys_seed=options.seed,
            allow_reconnect=False,
            connect_timeout=5,
            error_cb=note,
        )
    except (OSError, nats.errors.Error) as error:
        print(f"refused: {error}")
        return 1
    try:
        if options.denied is None:
            return 0
        await client.subscribe(options.denied)
        answer = await asyncio.wait_for(told.get(), 5)
        print(f"denied: {answer}")
        return 0 if "permissions violation" in answer.lower() else 1
    except TimeoutError:
        print(f"{options.denied} was not denied")
        return 1
    finally:
        await client.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(parser.parse_args())))
