"""Small trace files of every format, as their publishers write them, for tests."""

from __future__ import annotations

import gzip
from pathlib import Path

from sage_simulator.traces.servegen import QUANTILE_LEVELS

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.0000000,110,27
"""
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [0, 9]}\n'
)
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,API log
"""


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rag_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write(folder / "1_sys_prompt.jsonl", '{"sys_prompt_id": 1, "token_length": 64}\n\n')
    write(
        folder / "2_passages.jsonl",
        '{"passage_id": 1, "token_length": 100}\n{"passage_id": 2, "token_length": 50}\n',
    )
    write(folder / "3_history.jsonl", '{"history_id": 7, "token_length": 64}\n')
    write(folder / "4_user_input.jsonl", '{"user_input_id": 3, "token_length": 6}\n')
    write(folder / "5_web_search.jsonl.gz", gzip.compress(b'{"web_search_id": 4, "token_length": 20}\n'))
    one = '{"timestamp": "%s", "input_length": %d, "output_length": 9, "session_id": "%s", "hash_ids": %s}\n'
    full = '{"sys_prompt": [1], "passages_ids": [1, 2], "history": [7], "web_search": [4], "user_input": [3]}'
    bare = '{"sys_prompt": [1], "passages_ids": [], "history": [7], "web_search": [], "user_input": [3]}'
    write(folder / "0_trace.jsonl", one % ("20", 310, "a", full) + one % ("5", 140, "b", bare) + "\n")
    return folder


def servegen_folder(folder: Path, *, rate: float = 2.0, pattern: str = "Gamma") -> Path:
    folder.mkdir(exist_ok=True)
    rows = "".join(
        f"{client},{window},{rate},1.0,{pattern},1.0,{1 / rate}\n"
        for client in (3, 8)
        for window in range(0, 3600, 600)
    )
    write(folder / "pool.arrivals.csv", "client_id,window_start_s,rate_rps,cv,pattern,param1,param2\n" + rows)
    q = [float(10 * number) for number in range(len(QUANTILE_LEVELS))]
    lengths = "".join(
        f'{{"client_id":{client},"window_start_s":0,"input_tokens":{{"mean":1,"q":{q}}},'
        f'"output_tokens":{{"mean":1,"q":{[5.0] * len(q)}}}}}\n'
        for client in (3, 8)
    )
    write(folder / "pool.lengths.jsonl", lengths)
    return folder
