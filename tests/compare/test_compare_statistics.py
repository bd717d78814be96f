"""The pure figures, on values computed by hand."""

import pytest

from kdbench.compare.rows import gap_share, paired_difference, summarize
from kdbench.compare.table import Summary


def test_sample_deviation_divides_by_n_minus_1() -> None:
    # mean 4, squares 4 + 0 + 4 = 8, 8 / 2 = 4; the population's s.d. would be 1.63
    assert summarize([2.0, 4.0, 6.0]) == Summary(mean=4.0, sd=2.0, n=3)


def test_one_value_has_no_deviation() -> None:
    assert summarize([92.5]) == Summary(mean=92.5, sd=None, n=1)


def test_difference_pairs_equal_seeds() -> None:
    run = {0: 10.0, 1: 20.0, 2: 33.0}
    baseline = {2: 30.0, 1: 19.0, 7: 99.0}
    # seeds 1 and 2: 1 and 3; mean 2, s.d. sqrt((1 + 1) / 1). Unpaired means would give 21 - 49.33
    assert paired_difference(run, baseline) == Summary(mean=2.0, sd=pytest.approx(2**0.5), n=2)  # type: ignore[arg-type]


def test_pairing_removes_what_the_seed_does_to_both() -> None:
    difference = paired_difference({0: 80.0, 1: 90.0}, {0: 79.0, 1: 89.0})
    assert difference == Summary(mean=1.0, sd=0.0, n=2)


def test_no_common_seed_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("run", "share"),
    [([90.0, 92.0], 0.5), ([88.0, 90.0], 0.0), ([94.0, 94.0], 1.25), ([87.0, 87.0], -0.5)],
)
def test_gap_share_from_the_means(run: list[float], share: float) -> None:
    # baseline 89, teacher 93: a gap of 4
    assert gap_share(run, [88.0, 90.0], [93.0, 93.0]) == pytest.approx(share)


@pytest.mark.parametrize("teacher", [89.9, 89.0, 88.0])
def test_no_share_of_a_gap_below_a_point(teacher: float) -> None:
    assert gap_share([95.0], [89.0], [teacher]) is None
