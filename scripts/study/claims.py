"""The claims of the source posts and papers (claims.yaml), each judged by the study's own rows.

Verdicts: held, not held, not shown (these runs cannot decide), can't be tested here, not run yet. `rule` in claims.yaml
says what each verdict of a claim needs; the margins are ours. A claim is judged on each data set that has its rows.
"""

from collections.abc import Callable
from contextlib import suppress
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import yaml

from kdbench.compare.statistics import LEVEL
from scripts.study.intervals import ALL_LAYERS, TEACHER, Interval, ceiling, gap_closed, interval, score, times_faster
from scripts.study.plan import data_of
from scripts.study.tables import Evidence, Record

Judged = tuple[str, str]  # verdict, figures
MARGIN = 0.5  # points: what a claim that nothing gains must leave out
WIDEST = 2.0  # high over low of a ratio of times: a wider interval shows nothing
COMBINATIONS = 6  # of two_stage: its head inherited or not, three learning rates


class Rows:
    """The rows of all questions on one data set, by name. Raises LookupError where one is not run."""

    def __init__(self, evidence: Evidence, data: str) -> None:
        self.evidence, self.data = evidence, data

    def every(self, question: str, start: str) -> list[Record]:
        """Return the rows, without exports, whose names start so."""
        rows = self.evidence.rows(question, self.data)
        found = [row for row in rows if row["row"].startswith(start) and not row["form"]]
        if not found:
            raise LookupError(start)
        return found

    def one(self, question: str, name: str) -> Record:
        return self.evidence.row(question, name, self.data)

    def ceiling(self, question: str, row: Record) -> Record:
        found = ceiling(self.evidence, question, row)
        if found is None:
            raise LookupError(TEACHER)
        return found

    def faster(self, row: Record, than: str = TEACHER) -> Interval | None:
        """Return how many times as fast a row is; None where it was not measured often enough."""
        with suppress(LookupError):
            return times_faster(row, than, self.evidence.times)
        return None


def judged(holds: bool | None, figures: str, *rows: Record) -> Judged:
    """Return the verdict. A row of one seed decides nothing, whatever its interval over texts."""
    lone = [row["row"] for row in rows if row["score_n"] == 1 and row["row"] != TEACHER]
    if lone:
        return "not shown", f"{figures}; one seed"
    return {True: "held", False: "not held", None: "not shown"}[holds], figures


def every(parts: list[bool | None]) -> bool | None:
    """Return whether all parts hold. One that does not refutes the claim."""
    return False if False in parts else True if all(parts) else None


def difference(a: Record, b: Record) -> Interval:
    return score(a).minus(score(b))


def points(found: Interval) -> str:
    return f"{found.mean:+.2f} points ({found.low:+.2f} to {found.high:+.2f})"


def fast(found: Interval | None, row: Record, teacher: Record) -> str:
    if found is None:
        return f"{teacher['latency_batch_1_ms'] / row['latency_batch_1_ms']:.2f} times as fast, measured once"
    return f"{found.mean:.2f} times as fast ({found.low:.2f} to {found.high:.2f})"


def reaches(found: Interval | None, claimed: float) -> bool | None:
    """Return whether the claimed ratio of times lies within or below the measured interval."""
    if found is None or found.high > WIDEST * found.low:
        return None
    return found.high >= claimed


def kept(rows: Rows, question: str, row: Record) -> str:
    """Say the share of the teacher's score and of its parameters, and how many times as fast."""
    teacher = rows.one(question, TEACHER)
    share, size = row["score_points"] / teacher["score_points"], row["parameters"] / teacher["parameters"]
    faster = fast(rows.faster(row), row, teacher)
    return f"{100 * share:.1f} % of this teacher's score, {100 * size:.1f} % of its parameters, {faster}"


def retained(rows: Rows, question: str, name: str, share: float, times: float, size: float | None = None) -> Judged:
    """Judge whether a row keeps a share of its teacher's score, is `times` as fast and has `size` of its parameters."""
    row = rows.one(question, name)
    teacher = rows.one(question, TEACHER)
    over, faster = score(row).minus(score(teacher).scaled(share)), rows.faster(row)
    keeps, quick = over.above(0), reaches(faster, times)
    if row["score_n"] == 1:
        keeps = None
    figures = [
        f"{points(over)} beside {100 * share:.0f} % of the teacher's score, n {row['score_n']}",
        f"{100 * row['parameters'] / teacher['parameters']:.1f} % of the parameters",
        fast(faster, row, teacher),
    ]
    small = True if size is None else row["parameters"] <= size * teacher["parameters"]
    return judged(every([keeps, small, quick]), ", ".join(figures))


def pkd_speed(rows: Rows) -> Judged:
    found = {layers: rows.one("direct", f"direct layers {layers}") for layers in (2, 3)}
    whole = rows.one("direct", ALL_LAYERS)
    shares, parts, words = {}, [], []
    for layers, row in found.items():
        faster = rows.faster(row, ALL_LAYERS)
        if faster is None:
            words.append(f"{layers} of 6 layers take {row['latency_batch_1_ms'] / whole['latency_batch_1_ms']:.2f}")
            parts.append(None)
            continue
        share = shares[layers] = Interval(1 / faster.mean, 1 / faster.high, 1 / faster.low)
        parts.append(within(share, layers / 6 - 0.1, layers / 6 + 0.1))
        words.append(f"{layers} of 6 layers take {share.mean:.2f} ({share.low:.2f} to {share.high:.2f})")
    return judged(every(parts), ", ".join(words) + " of the time")


def within(found: Interval, low: float, high: float) -> bool | None:
    """Return whether all of an interval is within the margin (True) or outside of it (False)."""
    if low <= found.low and found.high <= high:
        return True
    return False if found.high < low or found.low > high else None


def distilbert(rows: Rows) -> Judged:
    return retained(rows, "insides", "distilbert", 0.97, 1.6, size=0.6)


def tinybert_size(rows: Rows) -> Judged:
    row = rows.one("insides", "tinybert")
    return "can't be tested here", f"3 of 6 layers: {kept(rows, 'insides', row)}, n {row['score_n']}"


def bilstm(rows: Rows) -> Judged:
    row = rows.one("bilstm", "bilstm augment true")
    return "can't be tested here", f"{kept(rows, 'bilstm', row)}, n {row['score_n']}"


def theseus(rows: Rows) -> Judged:
    return retained(rows, "theseus", "theseus", 0.98, 1.94)


def theseus_gap(rows: Rows) -> Judged:
    row, base = rows.one("theseus", "theseus"), rows.one("theseus", "direct layers 3")
    top = rows.ceiling("theseus", row)
    share = gap_closed(row, base, top)
    if share is None:
        return "not shown", f"{top['row']} may be no better than the direct fine-tune"
    figures = f"{100 * share.mean:.0f} % of the way to {top['row']} ({100 * share.low:.0f} to {100 * share.high:.0f} %)"
    return judged(share.above(0.5), figures, row, base)


def steadier_mix(rows: Rows) -> Judged:
    from scipy.stats import f

    mix, drawn = (
        rows.one("theseus", "theseus_epsilon variant mix"),
        rows.one("theseus", "theseus_bernoulli replace_rate 0.5"),
    )
    a, b = mix["score_sd_points"], drawn["score_sd_points"]
    if not a or not b:
        raise LookupError("one seed has no spread")
    low, high = (a / b / sqrt(f.ppf(at, mix["score_n"] - 1, drawn["score_n"] - 1)) for at in (1 - LEVEL / 2, LEVEL / 2))
    sds = f"s.d. {a:.2f} (n {mix['score_n']}) against {b:.2f} (n {drawn['score_n']})"
    below = Interval(a / b, low, high).above(1.0)
    return judged(None if below is None else not below, f"{sds}, ratio {a / b:.2f} ({low:.2f} to {high:.2f})")


def two_stage(rows: Rows) -> Judged:
    found = [(row, gain) for row in rows.every("replacement", "two_stage") if (gain := interval(row, "difference"))]
    if not found:
        raise LookupError("no tests")
    best, gain = max(found, key=lambda one: one[1].mean)
    most = max(gain.high for _, gain in found)
    figures = f"best of {len(found)}: {best['row']}, {points(gain)}"
    sure = [
        gain.low > 0 and (len(found) == 1 or row["difference_p"] < LEVEL) for row, gain in found if row["score_n"] > 1
    ]
    if any(sure):
        return judged(False, figures)
    if len(found) < COMBINATIONS:
        raise LookupError("another combination may be better")
    return judged(
        True if most < MARGIN else None,
        f"{figures}, no interval reaches beyond {most:+.2f}",
        *(row for row, _ in found),
    )


def graft(rows: Rows) -> Judged:
    from scipy.stats import t

    lost = [
        one["predecessor_dev_points"] - one["graft_dev_points"]
        for one in rows.evidence.details("theseus", "runs", rows.data)
        if one["row"] == "theseus"
    ]
    if not lost:
        raise LookupError("theseus")
    if len(lost) == 1:
        return "not shown", f"{lost[0]:+.2f} points lost on dev; one seed"
    half = float(t.ppf(1 - LEVEL / 2, len(lost) - 1)) * stdev(lost) / sqrt(len(lost))
    found = Interval(fmean(lost), fmean(lost) - half, fmean(lost) + half)
    return judged(within(found, 1.0, 3.0), f"{points(found)} lost on dev (n {len(lost)})")


def same_size(rows: Rows) -> Judged:
    row = next(iter(rows.every("same_size", "same_size method logit_kd")))
    over, paired = difference(row, rows.one("same_size", TEACHER)), interval(row, "difference")
    figures = f"{points(over)} over the teacher"
    if paired is None:
        return judged(every([over.above(0), None]), figures, row)
    figures += f", {points(paired)} over the direct fine-tune of all layers (n {row['score_n']})"
    return judged(every([over.above(0), paired.above(0)]), figures, row)


def larger_teacher(rows: Rows) -> Judged:
    found = {row["row"]: row for row in rows.every("pkd", "pkd_teacher")}
    pairs = [(f"pkd_teacher weights {w} teacher minilm_l6", f"pkd_teacher weights {w} teacher run")
             for w in ("pretrained", "finetuned")]  # fmt: skip
    gains = {large: (found[large], found[small]) for large, small in pairs if {large, small} <= found.keys()}
    if not gains:
        raise LookupError("pkd_teacher")
    over = {name.split()[2]: difference(*pair) for name, pair in gains.items()}
    better = [gain.above(0) for gain in over.values()]
    words = ", ".join(f"{points(gain)} from {start} layers" for start, gain in over.items())
    # one that is surely not better is enough; that it is sure of all refutes it
    verdict = True if False in better else False if all(better) else None
    return judged(verdict, f"6 layers over 3 as a teacher: {words}", *(row for pair in gains.values() for row in pair))


def need_all_layers(rows: Rows) -> Judged:
    shallow = rows.one("theseus", "direct layers 3")
    full = rows.ceiling("theseus", shallow)
    gap = difference(full, shallow)
    figures = f"{full['row']} (n {full['score_n']}) less the direct 3 layers (n {shallow['score_n']}): {points(gap)}"
    above = gap.above(3.0)
    return judged(None if above is None else not above, figures, full, shallow)


def attention_over_hidden(rows: Rows) -> Judged:
    whole, attention, hidden = (
        rows.one("insides", name) for name in ("tinybert", "tinybert attention false", "tinybert hidden false")
    )
    losses = [row["score_points"] - whole["score_points"] for row in (attention, hidden)]
    figures = f"without attention {losses[0]:+.2f}, without hidden {losses[1]:+.2f}"
    return judged(difference(hidden, attention).above(0), figures, attention, hidden)


def transfer(rows: Rows) -> Judged:
    names = ("mobilebert", "mobilebert strategy jkt", "mobilebert strategy akt steps 450")
    pkt, jkt, akt = found = [rows.one("insides", name) for name in names]
    wide = difference(pkt, akt).above(MARGIN)
    parts = [difference(pkt, jkt).above(0), difference(jkt, akt).above(0), None if wide is None else not wide]
    scores = ", ".join(f"{row['score_points']:.2f}" for row in found)
    return judged(every(parts), f"PKT, JKT, AKT: {scores}", *found)


def minilm(rows: Rows) -> Judged:
    best = max(rows.every("insides", "minilm"), key=lambda row: row["dev_score_points"])
    figures = f"half the width too, and 300 steps of its general stage: {kept(rows, 'insides', best)}"
    return "can't be tested here", f"{figures}, n {best['score_n']}"


CHECKS: dict[str, Callable[[Rows], Judged]] = {
    check.__name__: check
    for check in (
        pkd_speed, distilbert, tinybert_size, bilstm, theseus, theseus_gap, steadier_mix, two_stage, graft, same_size,
        larger_teacher, need_all_layers, attention_over_hidden, transfer, minilm,
    )
}  # fmt: skip


def judge(evidence: Evidence) -> list[Record]:
    """Return the claims of claims.yaml, each with the verdict and the figures on every data set that has its rows."""
    places = sorted({data_of(row) for document in evidence.documents.values() for row in document["rows"]})
    found = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf8"))
    for claim in found:
        claim["judged"] = {}
        for data in places:
            with suppress(LookupError):  # not run there
                claim["judged"][data] = CHECKS[claim["check"]](Rows(evidence, data))
    return list(found)
