"""The sampler: a pure function with the distribution of the published generator."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ghn_fast.deepnets import build_graph, count_parameters, sample_config
from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.sampling.sampler import architecture_key
from ghn_fast.deepnets.sampling.splits import SPACES

PUBLISHED = Path(__file__).with_name("published_statistics.json")
# Seeds are fixed, so this is no matter of luck: a distribution that is off fails every time.
SIGNIFICANCE = 1e-3


@cache
def samples(split: str, count: int) -> list[NetworkConfig]:
    return [sample_config(split, index, seed=2) for index in range(count)]


def published(split: str) -> dict[str, Any]:
    return json.loads(PUBLISHED.read_text())["splits"][split]


def homogeneity(ours: Iterable[Any], theirs: dict[str, int]) -> float:
    """p-value of the chi-square test that two sets of categories have one distribution."""
    counts = Counter(str(value) for value in ours)
    table, rest = [], [0, 0]
    for key in set(counts) | set(theirs):
        pair = [counts[key], theirs.get(key, 0)]
        if sum(pair) < 20:
            rest = [rest[0] + pair[0], rest[1] + pair[1]]
        else:
            table.append(pair)
    if sum(rest) >= 20:
        table.append(rest)
    return stats.chi2_contingency(np.array(table).T).pvalue if len(table) > 1 else 1.0


def test_each_architecture_is_a_function_of_split_seed_and_index() -> None:
    forward = [sample_config("train", index, 7) for index in range(20)]
    backward = [sample_config("train", index, 7) for index in reversed(range(20))]
    assert forward == backward[::-1]
    assert len({architecture_key(config) for config in forward}) == 20
    other = [sample_config("train", index, 8) for index in range(20)]
    assert all(a != b for a, b in zip(forward, other, strict=True))


def test_streams_are_the_same_on_every_machine() -> None:
    keys = [architecture_key(sample_config(split, 3, 11)) for split in SPACES]
    # Files and runs elsewhere were made with these.
    assert [key[:12] for key in keys] == [
        "4e25b9ebb0a1",  # train
        "c0c27f8d0663",  # val
        "c20bb31b3b72",  # test
        "0c885e629d60",  # search
        "c20bb31b3b72",  # wide
        "ca3b99c8a697",  # deep
        "a1fdd6f06ad3",  # dense
        "4299d7ff5cff",  # bnfree
    ]


def test_splits_have_streams_of_their_own_but_wide_is_test() -> None:
    keys = {
        split: [architecture_key(sample_config(split, index, 0)) for index in range(20)]
        for split in SPACES
    }
    assert keys["wide"] == keys["test"]
    del keys["wide"]
    all_keys = [key for split in keys.values() for key in split]
    assert len(set(all_keys)) == len(all_keys)


def test_train_nodes_and_parameters_agree_with_the_published_generator() -> None:
    theirs, configs = published("train"), samples("train", 2000)
    nodes = [build_graph(config, virtual_edges=1).num_nodes for config in configs]
    expected = [int(n) for n, times in theirs["nodes"].items() for _ in range(times)]
    assert stats.ks_2samp(nodes, expected).pvalue > SIGNIFICANCE
    assert min(nodes) < 30
    assert 500 < max(nodes) <= 827
    for size in (32, 224):
        params = [count_parameters(config, 10, size) for config in configs]
        edges = theirs["params_edges"]
        bins = np.searchsorted(edges, params, side="right")
        counts = {str(i): n for i, n in enumerate(theirs[f"params_{size}"])}
        assert homogeneity(bins.tolist(), counts) > SIGNIFICANCE


@pytest.mark.parametrize("split", ["train", "search", "bnfree", "deep", "dense"])
def test_choices_agree_with_the_published_generator(split: str) -> None:
    count = 2000 if split == "train" else 1000
    ours, theirs = choices(samples(split, count)), published(split)["choices"]
    assert set(ours) == set(theirs)
    p_values = {name: homogeneity(ours[name], theirs[name]) for name in ours}
    assert {name: p for name, p in p_values.items() if p < SIGNIFICANCE} == {}


def test_the_statistics_find_a_wrong_distribution() -> None:
    wrong = choices([replace(config, ks=3) for config in samples("train", 300)])
    assert homogeneity(wrong["ks"], published("train")["choices"]["ks"]) < SIGNIFICANCE
    other = choices(samples("search", 300))
    assert homogeneity(other["cells"], published("train")["choices"]["cells"]) < SIGNIFICANCE


def choices(configs: Iterable[NetworkConfig]) -> dict[str, list[Any]]:
    """Categories that each are independent between architectures, or nearly so."""
    result: dict[str, list[Any]] = {}

    def note(name: str, *values: Any) -> None:
        result.setdefault(name, []).extend(values)

    for config in configs:
        genotype = config.genotype
        steps = len(genotype.normal) // 2
        only_pooling = all(
            name in ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect")
            for name, _ in genotype.reduce
        )
        note("cells", config.n_cells)
        note("steps", steps)
        note("cells and steps", (config.n_cells, steps))
        note("concat", (steps, len(genotype.normal_concat)))
        note("same concat", genotype.normal_concat == genotype.reduce_concat)
        note("only pooling", (steps, only_pooling))
        note("normal primitives", *(name for name, _ in genotype.normal))
        kind = "pooling" if only_pooling else "any"
        note(f"reduce primitives, {kind}", *(name for name, _ in genotype.reduce))
        for step in range(steps):
            for cell in (genotype.normal, genotype.reduce):
                note("sources", (step, cell[2 * step][1], cell[2 * step + 1][1]))
        note("norm, cells, steps", (config.norm, config.n_cells <= 5, min(steps, 3)))
        note("stem", (config.stem_type, config.stem_pool))
        note("ks", config.ks)
        note("C_mult", config.C_mult)
        note("fc_layers", config.fc_layers)
        note("msa", config.is_vit)
        note("cse", "cse" in genotype.primitives())
        note("preproc", (steps > 1, config.C_mult, config.is_vit, config.preproc))
        note("glob_avg", (config.is_vit, config.n_cells, config.glob_avg))
    return result


@pytest.mark.parametrize("split", list(SPACES))
def test_no_rejected_architecture_comes_up(split: str) -> None:
    space = SPACES[split]
    for config in samples(split, 150):
        genotype = config.genotype
        assert space.cells[0] <= config.n_cells <= space.cells[1]
        for cell in (genotype.normal, genotype.reduce):
            names = [name for name, _ in cell]
            assert space.steps[0] <= len(cell) // 2 <= space.steps[1]
            assert names.count("cse") <= 1
            assert names.count("conv_5x5") + names.count("conv_7x7") <= 1
            for (_, first), (_, second) in zip(cell[::2], cell[1::2], strict=True):
                assert first != second
        used = genotype.primitives()
        has_conv = any("conv" in name for name in used)
        assert has_conv or ("msa" in used and "cse" not in used)
        assert (config.C, config.fc_dim) == (32, 256)
        assert max(count_parameters(config, 10, size) for size in (32, 224)) <= space.max_params


def test_networks_that_are_too_large_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [sample_config("train", index, 0) for index in range(40)]
    monkeypatch.setitem(SPACES, "train", replace(SPACES["train"], max_params=300_000))
    after = [sample_config("train", index, 0) for index in range(40)]
    for old, new in zip(before, after, strict=True):
        fits = max(count_parameters(old, 10, size) for size in (32, 224)) <= 300_000
        assert (new == old) == fits
        assert max(count_parameters(new, 10, size) for size in (32, 224)) <= 300_000
    assert before != after


def test_networks_without_a_path_are_drawn_again() -> None:
    # Deep and dense cells use `none` most; `build_graph` refuses a network without a path.
    for config in samples("dense", 100):
        assert build_graph(config, virtual_edges=1).names[-1].startswith("classifier.")


def test_excluded_architectures_do_not_come_up() -> None:
    configs = [sample_config("train", index, 0) for index in range(10)]
    banned = {architecture_key(configs[2]), architecture_key(configs[7])}
    redrawn = [sample_config("train", index, 0, exclude=banned) for index in range(10)]
    changed = [index for index in range(10) if redrawn[index] != configs[index]]
    assert changed == [2, 7]
    assert banned.isdisjoint(architecture_key(config) for config in redrawn)


def test_key_ignores_widths_and_order_but_nothing_else() -> None:
    config = next(c for c in samples("test", 50) if not c.is_vit and len(c.genotype.normal) > 2)
    key = architecture_key(config)
    assert len(key) == 32
    assert architecture_key(replace(config, C=64, fc_dim=128)) == key
    normal = config.genotype.normal
    swapped = replace(config.genotype, normal=(normal[1], normal[0], *normal[2:]))
    assert architecture_key(replace(config, genotype=swapped)) == key
    name = "conv_1x1" if normal[0][0] != "conv_1x1" else "conv_3x3"
    other = replace(config.genotype, normal=((name, normal[0][1]), *normal[1:]))
    changed = [
        replace(config, genotype=other),
        replace(config, n_cells=config.n_cells + 1),
        replace(config, ks=9),
        replace(config, C_mult=3),
        replace(config, norm=None if config.norm else "bnorm"),
        replace(config, fc_layers=3),
        replace(config, glob_avg=not config.glob_avg),
        replace(config, stem_type=1 - config.stem_type),
        replace(config, stem_pool=not config.stem_pool),
    ]
    assert key not in {architecture_key(c) for c in changed}
    vit = next(c for c in samples("test", 50) if c.is_vit)
    assert architecture_key(replace(vit, ks=9)) == architecture_key(vit)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"split: got 'tset', needs one of train, val, test"):
        sample_config("tset", 0, 0)
    with pytest.raises(ValueError, match=r"index: got -1"):
        sample_config("test", -1, 0)
    with pytest.raises(ValueError, match=r"seed: got -2"):
        sample_config("test", 0, -2)
