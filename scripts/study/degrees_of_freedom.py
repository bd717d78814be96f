"""Makes the table DEGREES of kdbench/compare/inference.py.

    python scripts/study/degrees_of_freedom.py

For S seeds the seeds' variance is a chi-square with S - 1 degrees of freedom; the examples are many, so theirs is as
good as known. For each S it solves for the degrees of freedom, at three estimated shares of the seeds, with which a
two-sided 5 % test errs in 5 % of the cases whatever the true share is. With S = 2 there is no solution: those were
set by hand, so that the error is nowhere above 5.5 %.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from kdbench.compare.inference import LEVEL, SHARES

TRUE_SHARES = np.concatenate([np.linspace(0, 0.1, 8), np.linspace(0.15, 0.9, 14), np.linspace(0.92, 1, 8)])


def errors(inverse: NDArray[np.float64], of_seeds: int) -> NDArray[np.float64]:
    """Rate of errors at each true share, for (S - 1) / degrees of freedom at the inner SHARES."""
    edges = stats.beta.cdf(np.linspace(0, 1, 401), 2, 2)  # finer where the chi-square's tails are
    factor, weight = stats.chi2.ppf((edges[1:] + edges[:-1]) / 2, of_seeds) / of_seeds, np.diff(edges)
    found = []
    for share in TRUE_SHARES:
        variance = share * factor + 1 - share
        curve = np.interp(share * factor / variance, SHARES, np.concatenate([[0], inverse, [1]]))
        critical = stats.t.ppf(1 - LEVEL / 2, of_seeds / np.maximum(curve, 1e-6))
        found.append((weight * 2 * stats.norm.sf(critical * np.sqrt(variance))).sum())
    return np.array(found)


if __name__ == "__main__":
    for seeds in (3, 4, 5, 6, 8, 10, 15, 30):
        start = np.array(SHARES[1:-1]) ** 1.5

        def miss(inverse: NDArray[np.float64], of_seeds: int = seeds - 1) -> NDArray[np.float64]:
            return errors(inverse, of_seeds) / LEVEL - 1

        solved = optimize.least_squares(miss, start, bounds=(0, 1))
        rates = 100 * errors(solved.x.round(3), seeds - 1)
        print(f"{seeds}: {solved.x.round(3).tolist()}, error {rates.min():.2f} to {rates.max():.2f} %")
