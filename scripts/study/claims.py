"""The claims of the source posts and papers, each judged by the study's own rows: docs/study/claims.csv.

Verdicts: held, not held, not told apart (the runs cannot say), can't be tested here, not run yet. `tested` says how;
the thresholds are ours. A claim is judged on each data set that has its rows.
"""

import csv
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from scripts.study.keep import written
from scripts.study.plan import data_of

Record = dict[str, Any]
Judged = tuple[str, str]  # verdict, figures
COMBINATIONS = 6  # of two_stage: its head inherited or not, three learning rates
FIELDS = ("claim", "source", "tested", "verdict", "figures")


class Rows:
    """The rows of all questions, of one place, by name; LookupError where one is not run."""

    def __init__(self, documents: dict[str, Any], data: str) -> None:
        self.documents = documents
        self.data = data

    def every(self, question: str, start: str) -> list[Record]:
        found = [row for row in self.documents[question]["rows"]
                 if data_of(row) == self.data and row["row"].startswith(start) and not row["form"]]  # fmt: skip
        if not found:
            raise LookupError(start)
        return found

    def one(self, question: str, name: str) -> Record:
        return next(iter([row for row in self.every(question, name) if row["row"] == name]), None) or self._none(name)

    def teacher(self, question: str, row: Record) -> Record:
        """Of the same data: a cut data set has a teacher of its own."""
        found = [one for one in self.every(question, "teacher") if one["data_id"] == row["data_id"]]
        return found[0] if found else self._none("teacher")

    def details(self, question: str, name: str) -> list[Record]:
        found = [one for one in self.documents[question]["details"][name] if one["data"] == self.data]
        return found or self._none(name)

    def _none(self, name: str) -> Any:
        raise LookupError(name)


def said(holds: bool, figures: str) -> Judged:
    return ("held" if holds else "not held"), figures


def kept(rows: Rows, question: str, row: Record) -> tuple[float, float, float]:
    """Share of the teacher's score, share of its parameters, times as fast."""
    teacher = rows.teacher(question, row)
    faster = teacher["latency_batch_1_ms"] / row["latency_batch_1_ms"]
    return row["score_points"] / teacher["score_points"], row["parameters"] / teacher["parameters"], faster


def words(share: float, size: float, faster: float) -> str:
    return f"{100 * share:.1f} % of the score, {100 * size:.1f} % of the parameters, {faster:.2f} times as fast"


def pkd_speed(rows: Rows) -> Judged:
    times = {layers: rows.one("direct", f"direct layers {layers}")["latency_batch_1_ms"] for layers in (2, 3, 6)}
    shares = [times[layers] / times[6] for layers in (2, 3)]
    linear = all(abs(share - layers / 6) < 0.1 for share, layers in zip(shares, (2, 3), strict=True))
    return said(linear, f"2 and 3 of 6 layers take {shares[0]:.2f} and {shares[1]:.2f} of the time")


def distilbert(rows: Rows) -> Judged:
    share, size, faster = kept(rows, "insides", rows.one("insides", "distilbert"))
    return said(share >= 0.97 and size <= 0.6 and faster >= 1.6, words(share, size, faster))


def tinybert_size(rows: Rows) -> Judged:
    figures = kept(rows, "insides", rows.one("insides", "tinybert"))
    return "can't be tested here", f"that is 4 of 12 layers; here 3 of 6: {words(*figures)}"


def bilstm(rows: Rows) -> Judged:
    _, size, faster = figures = kept(rows, "bilstm", rows.one("bilstm", "bilstm augment true"))
    return said(size <= 0.01 and faster >= 15, words(*figures))


def theseus(rows: Rows) -> Judged:
    share, _, faster = figures = kept(rows, "theseus", rows.one("theseus", "theseus"))
    return said(share >= 0.98 and faster >= 1.94, words(*figures))


def theseus_gap(rows: Rows) -> Judged:
    row = rows.one("theseus", "theseus")
    closed, low, high = row["gap_closed"], row["difference_low_points"], row["difference_high_points"]
    if closed is None:
        return "not told apart", "the teacher is hardly above the direct fine-tune"
    figures = f"{100 * closed:.0f} % of the gap closed"
    if not closed or low is None:
        return "not told apart", figures
    half = row["difference_points"] / closed / 2  # of the gap, in points
    figures += f" ({50 * low / half:.0f} to {50 * high / half:.0f} %)"
    return told(True if low > half else False if high < half else None, figures)


def steadier_mix(rows: Rows) -> Judged:
    from scipy.stats import f

    mix, drawn = (
        rows.one("theseus", "theseus_epsilon variant mix"),
        rows.one("theseus", "theseus_bernoulli replace_rate 0.5"),
    )
    a, b = mix["score_sd_points"], drawn["score_sd_points"]
    if not a or not b:
        raise LookupError("one seed has no spread")
    p = float(f.cdf((a / b) ** 2, mix["score_n"] - 1, drawn["score_n"] - 1))
    figures = f"s.d. {a:.2f} (n {mix['score_n']}) against {b:.2f} (n {drawn['score_n']}), one-sided F test p {p:.3f}"
    return ("held" if p < 0.05 else "not told apart" if a < b else "not held"), figures


def two_stage(rows: Rows) -> Judged:
    found = [row for row in rows.every("replacement", "two_stage") if row["difference_p_holm"] is not None]
    if not found:
        raise LookupError("no tests")
    best = max(found, key=lambda row: row["difference_points"])
    gain, p = best["difference_points"], best["difference_p_holm"]
    figures = f"best of {len(found)}: {best['row']}, {gain:+.2f} points, Holm p {p:.3f}"
    if gain > 0 and p < 0.05:
        return "not held", figures
    if len(found) < COMBINATIONS:
        raise LookupError("another combination may be better")
    return ("held" if gain <= 0 else "not told apart"), figures


def graft(rows: Rows) -> Judged:
    found = [one for one in rows.details("theseus", "graft") if one["row"] == "theseus"]
    if not found:
        raise LookupError("theseus")
    lost = fmean(one["predecessor_dev_points"] - one["graft_dev_points"] for one in found)
    return said(lost >= 1, f"{lost:.2f} points lost on dev (n {len(found)})")


def ahead(a: Record, b: Record) -> bool | None:
    """Whether a is above b; None where their 95 % intervals meet. Rougher than a paired test, but one seed will do."""
    if None in (a["score_low_points"], b["score_low_points"]):
        raise LookupError("no predictions, so no interval")
    if a["score_low_points"] > b["score_high_points"]:
        return True
    return False if a["score_high_points"] < b["score_low_points"] else None


def told(found: bool | None, figures: str) -> Judged:
    return ("not told apart", figures) if found is None else said(found, figures)


def same_size(rows: Rows) -> Judged:
    row = next(iter(rows.every("same_size", "same_size method logit_kd")))
    teacher = rows.teacher("same_size", row)
    gain = row["score_points"] - teacher["score_points"]
    return told(ahead(row, teacher), f"{gain:+.2f} points over one teacher (n {row['score_n']})")


def larger_teacher(rows: Rows) -> Judged:
    found = {row["row"]: row for row in rows.every("pkd", "pkd_teacher")}
    pairs = [(f"pkd_teacher weights {w} teacher minilm_l6", f"pkd_teacher weights {w} teacher run")
             for w in ("pretrained", "finetuned")]  # fmt: skip
    gains = {large: (found[large], found[small]) for large, small in pairs if {large, small} <= found.keys()}
    if not gains:
        raise LookupError("pkd_teacher")
    words_ = ", ".join(f"{large['score_points'] - small['score_points']:+.2f} points from {name.split()[2]} layers"
                       for name, (large, small) in gains.items())  # fmt: skip
    better = [ahead(large, small) for large, small in gains.values()]
    # one that is surely not better is enough; that it is sure of all refutes it
    verdict = True if False in better else False if all(better) else None
    return told(verdict, f"6 layers over 3 as a teacher: {words_}")


def fastbert(rows: Rows) -> Judged:
    last = [one["exit_shares"][-1] for one in rows.details("fastbert", "speeds") if one["speed"] == 0.5]
    return said(fmean(last) < 0.03, f"{100 * fmean(last):.1f} % of test rows reach the last of 6 layers at speed 0.5")


def attention_over_hidden(rows: Rows) -> Judged:
    whole, attention, hidden = (
        rows.one("insides", name) for name in ("tinybert", "tinybert attention false", "tinybert hidden false")
    )
    losses = [row["score_points"] - whole["score_points"] for row in (attention, hidden)]
    return told(ahead(hidden, attention), f"without attention {losses[0]:+.2f}, without hidden {losses[1]:+.2f}")


def transfer(rows: Rows) -> Judged:
    names = ("mobilebert", "mobilebert strategy jkt", "mobilebert strategy akt steps 450")
    found = [rows.one("insides", name) for name in names]
    scores = [row["score_points"] for row in found]
    order = [ahead(better, worse) for better, worse in pairwise(found)]
    wide = scores[0] - scores[2] > 0.5 and ahead(found[0], found[2])
    verdict = False if False in order or wide else all(order) or None
    return told(verdict, "PKT, JKT, AKT: " + ", ".join(f"{score:.2f}" for score in scores))


def minilm(rows: Rows) -> Judged:
    best = max(rows.every("insides", "minilm"), key=lambda row: row["dev_score_points"])
    figures = kept(rows, "insides", best)
    return "can't be tested here", f"half the width too, and 300 steps of its general stage: {words(*figures)}"


CHECKS: dict[str, Callable[[Rows], Judged]] = {
    check.__name__: check
    for check in (
        pkd_speed, distilbert, tinybert_size, bilstm, theseus, theseus_gap, steadier_mix, two_stage, graft, same_size,
        larger_teacher, fastbert, attention_over_hidden, transfer, minilm,
    )
}  # fmt: skip


def judge(folder: Path) -> list[Record]:
    """The claims of claims.yaml with their verdicts, from the questions' JSON in `folder`."""
    documents = written(folder)
    places = sorted({data_of(row) for document in documents.values() for row in document["rows"]})
    found = []
    for claim in yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf8")):
        judged = {}
        for data in places:
            with suppress(LookupError):  # not run there
                judged[data] = CHECKS[claim["check"]](Rows(documents, data))
        found.append({name: claim[name] for name in FIELDS[:3]} | together(judged))
    return found


def together(judged: dict[str, Judged]) -> dict[str, str]:
    """One verdict where all places agree, else each with its own."""
    verdicts = list(dict.fromkeys(verdict for verdict, _ in judged.values())) or ["not run yet"]
    if len(verdicts) > 1:
        verdicts = [f"{verdict} ({data})" for data, (verdict, _) in judged.items()]
    figures = [f"{data}: {figures}" for data, (_, figures) in judged.items()]
    return {"verdict": "; ".join(verdicts), "figures": "; ".join(figures)}


def write(folder: Path) -> None:
    with (folder / "claims.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(judge(folder))
