"""The tests of a table as a sheet: each difference with its interval and p values."""

from kdbench.compare.columns import NOTHING, Column, Sheet
from kdbench.compare.table import Row, Table, Test

LEGEND = (
    "Differences to direct fine-tuning, for other seeds and other test examples. All are tested together: where no row "
    "differs from its baseline, 95 of 100 tables have no star, and all intervals hold zero. p < 0.05, the star and an "
    "interval without zero say the same. The spread between seeds is pooled over the rows of the table; a row that "
    "varies more keeps its own. With one seed the interval is for other examples alone, and there is no p. Exports are "
    "not tested. Of one row alone are the interval of the gap, permuted seeds (exact, never below 2 / 2^n) and McNemar "
    "(exact, one seed, accuracy)."
)


def sheet(table: Table) -> Sheet:
    """A line a test; `table.tests` must have been made."""
    assert table.tests is not None
    lines = [
        (row, name, test)
        for row in table.rows
        if (found := table.tests.rows.get(row.id))
        for name, test in zip(("direct", "longer"), found.against, strict=True)
        if test
    ]
    columns = [
        Column("method", [f"{row.label} {row.settings}".strip() for row, _, _ in lines], left=True),
        Column("id", [row.id for row, _, _ in lines], left=True),
        Column("against", [name for _, name, _ in lines], left=True),
        Column("n", [str(test.estimate.seeds) for *_, test in lines]),
        Column("points", [f"{test.estimate.mean:+.2f}" for *_, test in lines]),
        Column("95 % interval", [_interval(test) for *_, test in lines]),
        Column("p", [_p(test.estimate.p) for *_, test in lines]),
        Column("gap\n%", [_gap(row, name) for row, name, _ in lines], drop=4),
        Column("gap, 95 %\ninterval", [_share(table, row, name) for row, name, _ in lines], drop=3),
        Column("permuted\nseeds, p", [_p(test.permutation) for *_, test in lines], drop=5),
        Column(
            "McNemar p\nby seed",
            [" ".join(_p(p) for p in test.mcnemar.values()) or NOTHING for *_, test in lines],
            drop=6,
        ),
    ]
    heading = f"{table.dataset}: differences to direct fine-tuning, {table.tests.count} tested together"
    return Sheet(heading, columns, legend=LEGEND)


def _interval(test: Test) -> str:
    return f"{test.estimate.low:+.2f} to {test.estimate.high:+.2f}"


def _p(p: float | None) -> str:
    return NOTHING if p is None else "<.001" if p < 0.001 else f"{p:.3f}"


def _gap(row: Row, name: str) -> str:
    return f"{100 * row.gap_closed:.0f}" if row.gap_closed is not None and name == "direct" else NOTHING


def _share(table: Table, row: Row, name: str) -> str:
    """Interval of the share of the gap to the teacher."""
    found = table.tests.rows[row.id].gap if table.tests and name == "direct" else None
    if found is None or found.low is None or found.high is None:
        return NOTHING
    return f"{100 * found.low:.0f} to {100 * found.high:.0f}"
