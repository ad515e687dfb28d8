"""Counter-based draws against SplitMix64 in NumPy's wrapping uint64 arithmetic."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch

from salm_lightning.noise import draws
from salm_lightning.noise.draws import fold, integers, normal, uniform

INDICES = torch.tensor([0, 1, 2, 17, 89_995, 2**31, 2**40 + 3])


def test_the_oracle_is_splitmix64() -> None:
    # The first outputs of the published generator for seed 1234567, as Rosetta Code and the reference C code print them.
    state = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * oracles.GOLDEN
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert oracles.splitmix64(state).tolist() == published


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63 + 5, -1])
@pytest.mark.parametrize("counters", [(), (0,), (3, 1), (5000, 9, 4)])
def test_draws_equal_the_numpy_oracle_bit_for_bit(seed: int, counters: tuple[int, ...]) -> None:
    key = fold(seed, "start", *counters)
    assert key == int(oracles.fold(seed, "start", *counters))
    drawn = uniform(key, INDICES, 37)
    assert drawn.dtype == torch.float32
    np.testing.assert_array_equal(drawn.numpy(), oracles.uniform(np.uint64(key), INDICES.tolist(), 37))


def test_a_samples_draw_does_not_depend_on_its_batch() -> None:
    key = fold(3, "eot", 12)
    whole = uniform(key, INDICES, 50)
    shuffled = torch.tensor([4, 2, 6, 0, 5, 1, 3])
    assert torch.equal(uniform(key, INDICES[shuffled], 50), whole[shuffled])
    for row, index in zip(whole, INDICES, strict=True):
        assert torch.equal(uniform(key, index[None], 50)[0], row)
    assert torch.equal(uniform(key, INDICES, 7), whole[:, :7])  # nor on how many numbers are asked for
    assert torch.equal(uniform(key, INDICES[[2, 2]], 50), whole[[2, 2]])


def test_nothing_touches_the_global_generator() -> None:
    before = torch.get_rng_state()
    uniform(fold(0, "start"), INDICES, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_differ_in_every_part_of_the_key() -> None:
    keys = [
        fold(seed, purpose, *counters)
        for seed in (0, 1)
        for purpose in ("eot", "source")
        for counters in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    ]
    assert len(set(keys)) == len(keys)
    rows = torch.stack([uniform(key, INDICES, 16) for key in keys]).view(-1, 16)
    assert len(rows.unique(dim=0)) == len(rows)


def test_draws_are_uniform_and_uncorrelated() -> None:
    drawn = uniform(fold(0, "start"), torch.arange(2000), 100).double()
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    counts = torch.histc(drawn.float(), bins=64, min=0, max=1).double()
    expected = drawn.numel() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 30 < chi_square < 110  # 63 degrees of freedom: 63 +- 11
    # Neighbours along samples, along elements, and the same samples under neighbouring keys.
    other = uniform(fold(0, "start", 0), torch.arange(2000), 100).double()
    for left, right in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1]), (drawn, other)):
        correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1].item()
        assert abs(correlation) < 0.01  # 4.5 standard errors


def test_integers_cover_their_range_evenly_and_never_reach_the_end() -> None:
    drawn = integers(fold(0, "eot"), torch.arange(9000), 2, 9)
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn.flatten(), minlength=9)
    assert len(counts) == 9
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_the_largest_draw_is_not_rounded_up_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "uniform", lambda key, indices, numel: torch.full((len(indices), numel), 1 - 2.0**-24))
    for high in (*range(1, 600), 4097, 65537):
        assert integers(0, torch.zeros(1, dtype=torch.int64), 1, high).item() == high - 1


def test_normal_numbers_are_those_of_box_and_muller() -> None:
    key, indices = fold(3, "cloud"), torch.arange(4000)
    drawn = normal(key, indices, 9)
    pairs = oracles.uniform(np.uint64(key), range(4000), 18).astype(np.float64)
    expected = np.sqrt(-2 * np.log(1 - pairs[:, :9])) * np.cos(2 * np.pi * pairs[:, 9:])
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=0, atol=1e-12)
    assert torch.isfinite(drawn).all()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (drawn**power).mean().item() == pytest.approx(moment, abs=0.06)
    assert (torch.corrcoef(drawn.T) - torch.eye(9)).abs().max() < 0.06
