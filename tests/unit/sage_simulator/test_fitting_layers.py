"""Layer times become step times, and what is wrong with the tables is said in one line."""

import csv
import itertools

import numpy as np
import pytest

from sage_policy import EngineProfile
from sage_simulator import FileMistake
from sage_simulator.fitting import Steps
from sage_simulator.layer_times import find_file, read_layer_times
from sage_simulator.measured_tables import fit_layers

POWERS = [0, 16, 32, 64, 128, 256, 512, 1024, 2048]
ONCE_BY_TOKENS = ("embedding", "final_layernorm")
PER_LAYER = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
NUM_LAYERS = 4


def attention_us(prefill, context, decoding, decode_context):
    return 1 + 0.5 * prefill + 0.25 * context + 2 * decoding + 0.125 * decode_context


@pytest.fixture
def folder(tmp_path):
    """Every layer takes 1 us and 0.01 us per token, heads 10 us and 1 us per sequence, attention is linear."""
    write(
        tmp_path / "gpu__dense.csv",
        ["layer", "tokens", "time_us"],
        [
            (layer, tokens, 1 + 0.01 * tokens)
            for layer in (*ONCE_BY_TOKENS, *PER_LAYER)
            for tokens in (1, 64, 4096)
        ],
    )
    write(
        tmp_path / "gpu__per_sequence.csv",
        ["layer", "sequences", "time_us"],
        [("lm_head", count, 10 + count) for count in (1, 256)],
    )
    write(
        tmp_path / "gpu__attention.csv",
        ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"],
        [
            (*sizes, attention_us(*sizes))
            for sizes in itertools.product(POWERS, POWERS, [0, 1, 2, 4, 8, 256], POWERS)
            if (sizes[0] or not sizes[1]) and bool(sizes[2]) == bool(sizes[3]) and (sizes[0] or sizes[2])
        ],
    )
    return tmp_path


def write(file, header, rows):
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        table.writerows(rows)


def one(prefill=0.0, context=0.0, decoding=0.0, decode_context=0.0):
    return Steps(
        *(np.array([float(value)]) for value in (prefill, prefill > 0, context, decoding, decode_context))
    )


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 0, 1, 16),
        (0, 0, 5, 300),
        (0, 0, 256, 2048),
        (16, 0, 0, 0),
        (700, 0, 0, 0),
        (700, 900, 0, 0),
        (100, 40, 3, 77),
        (1700, 2048, 200, 1500),
    ],
)
def test_a_step_takes_its_layers_times_their_number(folder, sizes):
    times = read_layer_times(folder, "gpu", num_layers=NUM_LAYERS)
    prefill, _, decoding, _ = sizes
    tokens = prefill + decoding
    if tokens <= 512:
        graphs = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
        tokens = next(size for size in graphs if size >= tokens)
    dense = (len(ONCE_BY_TOKENS) + NUM_LAYERS * (len(PER_LAYER) + 1)) * (1 + 0.01 * tokens)
    heads = 10 + decoding + (prefill > 0)
    microseconds = dense + heads + NUM_LAYERS * attention_us(*sizes)
    assert times.step_seconds(one(*sizes))[0] == pytest.approx(microseconds * 1e-6)


def test_graphs_are_captured_for_twice_the_sequences_only(folder):
    few = read_layer_times(folder, "gpu", num_layers=1, max_sequences=128)
    many = read_layer_times(folder, "gpu", num_layers=1, max_sequences=256)
    step = one(prefill=305)
    assert few.step_seconds(step)[0] < many.step_seconds(step)[0]
    assert few.step_seconds(one(prefill=201))[0] == many.step_seconds(one(prefill=201))[0]


@pytest.mark.parametrize("sizes", [(0, 0, 1, 4096), (0, 0, 300, 64), (2049, 0, 0, 0), (16, 4000, 0, 0)])
def test_beyond_what_was_measured_nothing_is_said(folder, sizes):
    times = read_layer_times(folder, "gpu", num_layers=NUM_LAYERS)
    assert np.isnan(times.step_seconds(one(*sizes))[0])


def test_holes_in_the_grid_are_no_times(folder):
    file = folder / "gpu__attention.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith("0,0,4,64,")) + "\n")
    times = read_layer_times(folder, "gpu", num_layers=NUM_LAYERS)
    assert np.isnan(times.step_seconds(one(decoding=4, decode_context=64))[0])
    assert not np.isnan(times.step_seconds(one(decoding=4, decode_context=128))[0])


def test_a_linear_profile_is_fitted_well(folder):
    limits = EngineProfile(max_sequences=256, kv_tokens=100_000)
    fit = fit_layers(folder, "gpu", limits, num_layers=NUM_LAYERS, num_steps=2000)
    assert 1000 < fit.decode.count + fit.mixed.count <= 2000
    assert fit.decode.mean < 0.25
    assert fit.profile.m1 > 0


def test_limits_outside_of_the_profile_are_refused(folder):
    limits = EngineProfile(max_sequences=1_000_000, max_step_tokens=1_000_001, kv_tokens=10_000_000_000)
    with pytest.raises(FileMistake, match="no step within these limits"):
        fit_layers(folder, "gpu", limits, num_layers=NUM_LAYERS, num_steps=100)


def test_a_layer_that_nobody_knows_is_refused(folder):
    with (folder / "gpu__dense.csv").open("a") as stream:
        stream.write("moe_experts,1,5.0\n")
    with pytest.raises(FileMistake, match=r"layer is 'moe_experts'; expected one of act_fn, down_proj"):
        read_layer_times(folder, "gpu", num_layers=NUM_LAYERS)


def test_two_times_for_one_size_are_refused(folder):
    with (folder / "gpu__per_sequence.csv").open("a") as stream:
        stream.write("lm_head,1,5.0\n")
    with pytest.raises(FileMistake, match="'lm_head' has two times for one of its sequences"):
        read_layer_times(folder, "gpu", num_layers=NUM_LAYERS)


def test_the_file_of_the_named_device_is_found(tmp_path):
    for name in ("profile__RTX4090__bf16__dense.csv.gz", "profile__RTX4090D__dense.csv", "dense.csv.old"):
        (tmp_path / name).touch()
    assert find_file(tmp_path, "RTX4090", "dense.csv").name == "profile__RTX4090__bf16__dense.csv.gz"
    with pytest.raises(FileMistake, match=r"expected one dense\.csv .* of H100; found none"):
        find_file(tmp_path, "H100", "dense.csv")
    with pytest.raises(FileMistake, match=r"found profile__RTX4090D__dense\.csv, profile__RTX4090__bf16"):
        find_file(tmp_path, "", "dense.csv")
    with pytest.raises(FileMistake, match="is no folder"):
        find_file(tmp_path / "nowhere", "H100", "dense.csv")
