"""Write the answer: one folder with the model, the commands that made it, a page, and three sentences."""

import contextlib
import io
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kdbench.best.standing import Form, Standing, points, standard_error
from kdbench.compare.statistics import score
from kdbench.errors import Code, UserError
from kdbench.inference.forms import FORMS
from kdbench.storage.files import filling, write_json, write_text
from kdbench.storage.results import EXPORT, metric_of
from kdbench.tasks import traits

SCHEMA = 1  # of answer.json
MODEL, PAGE, ANSWER = "model", "page.html", "answer.json"
Z = 1.96  # of a 95 % interval
_ENOUGH = 0.5  # points on dev that a doubling of the labels must bring to be recommended


def require_place(out: Path) -> None:
    """Raise UserError if the folder of the answer has what this command did not write: it will be replaced."""
    if out.exists() and not (out / ANSWER).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            Code.WOULD_OVERWRITE, f"--out {out}: exists, and is not an answer of kdbench-best. Name another folder"
        )


def write(standing: Standing, page: bool) -> Form | None:
    """Write the folder of the best model so far, in place of the one before, and return the model; None: none fits."""
    leading = standing.leading
    if leading is None:
        return None
    standing.wish.out.parent.mkdir(parents=True, exist_ok=True)
    with filling(standing.wish.out) as staged:
        _model(standing, leading, staged / MODEL)
        write_text(staged / "README.md", _readme(standing, leading))
        write_json(staged / ANSWER, document(standing, leading))
        if page:
            write_text(staged / PAGE, _page(standing))
    return leading


def _model(standing: Standing, leading: Form, folder: Path) -> None:
    """Copy the model in all forms that keep the limits."""
    exported = leading.run / EXPORT
    shutil.copytree(exported if exported.is_dir() else leading.run / "model", folder)
    entry = standing.entry_of(leading)
    for form in entry.forms:
        if not standing.wish.fits(form.ms, form.megabytes):
            files = [folder / "model.safetensors"] if form.name == "pytorch" else [folder / FORMS[form.name].file]
            for path in files:
                path.unlink(missing_ok=True)


def command_of(words: Sequence[str]) -> str:
    return shlex.join(["kdbench", *words])


def commands(standing: Standing, leading: Form) -> list[str]:
    """Return the commands that make the model anew."""
    words = standing.entry_of(leading).candidate.words
    forms = [FORMS[leading.name].option] if leading.name in FORMS else []
    return [command_of(words), shlex.join(["kdbench-export", str(leading.run), *forms])]


def sentences(standing: Standing, leading: Form) -> list[str]:
    """Return what to ship, how sure that is, and what would probably bring more."""
    return [_what(standing, leading), _how_sure(standing, leading), _what_next(standing)]


def _what(standing: Standing, leading: Form) -> str:
    metric = metric_of(leading.result)
    test = score(points(leading, "test")[None])
    shown = traits(standing.wish.task).metrics[metric]
    return (
        f"Ship {standing.entry_of(leading).candidate.name}, as {leading.name}: test {shown.shown} {leading.test:.2f}"
        f" {shown.unit} (95 % interval {test.low:.1f} to {test.high:.1f} over {leading.result['metrics']['test']['n']}"
        f" texts, one seed), {cost(leading)}."
    )


def cost(form: Form) -> str:
    ms = "no time was measured" if form.ms is None else f"{form.ms:.3g} ms a text"
    return ms if form.megabytes is None else f"{ms}, {form.megabytes:.3g} MB"


def _how_sure(standing: Standing, leading: Form) -> str:
    """Say how the model stands against the next ones: on dev, which chose it."""
    own = standing.entry_of(leading)
    others = [entry for entry in standing.entries if entry is not own and entry.forms and entry.candidate.ships]
    kept = [max(entry.forms, key=lambda form: form.dev) for entry in others]
    kept = [form for form in kept if standing.wish.fits(form.ms, form.megabytes)]
    if not kept:
        return "No other model that keeps the limits was finished, so nothing is known of what else there is."
    tied = [form for form in kept if leading.dev - form.dev <= Z * standard_error(leading, form)]
    said = (
        f"On dev, which chose it, it has {leading.dev:.2f}. Of {len(kept)} other models that keep the limits,"
        f" {len(kept) - len(tied)} are worse by a 95 % interval over the dev texts"
    )
    if not tied:
        return f"{said}."
    first = min(tied, key=lambda form: (form.ms is None, form.ms))
    return (
        f"{said}, and {len(tied)} may be as good; the fastest of these is {standing.entry_of(first).candidate.name}"
        f" (dev {first.dev:.2f}, {cost(first)})."
    )


def _what_next(standing: Standing) -> str:
    """Say what would probably bring more: labels, raw texts or time."""
    asked = []
    half = next((entry for entry in standing.entries if entry.candidate.words == standing.plan.half.words), None)
    whole = standing.entries[0]
    if half is not None and half.dev is not None and whole.dev is not None:
        gain = whole.dev - half.dev
        verdict = "so more labels are worth their price" if gain >= _ENOUGH else "so more labels bring little"
        asked.append(f"the last doubling of the labels brought TF-IDF {gain:+.2f} points on dev, {verdict}")
    if standing.wish.unlabelled is None and not standing.plan.look.foreign:
        asked.append("texts without labels (--unlabelled) were not given, and are what a teacher teaches on")
    if not standing.plan.look.foreign and not any("the teacher" in entry.candidate.name for entry in standing.entries):
        asked.append("the time was too short for a teacher and what it teaches: give a longer --time")
    if late := [entry for entry in standing.entries if entry.state in ("no time", "stopped")]:
        asked.append(f"{len(late)} runs had no time, the first: {late[0].candidate.name}")
    words = "; ".join(asked) or "nothing that was planned is left to try"
    return f"{words[0].upper()}{words[1:]}."


def rows(standing: Standing) -> list[dict[str, Any]]:
    """Return a row for each model, the best on dev first; the test scores are those of the end."""
    found = [
        {
            "model": entry.candidate.name, "form": form.name, "dev": form.dev, "test": form.test, "ms": form.ms,
            "megabytes": form.megabytes, "run": str(form.run),
            "fits": entry.candidate.ships and standing.wish.fits(form.ms, form.megabytes),
        }
        for entry in standing.entries
        for form in entry.forms
    ]  # fmt: skip
    return sorted(found, key=lambda row: -row["dev"])


def document(standing: Standing, leading: Form) -> dict[str, Any]:
    """Return answer.json."""
    return {
        "schema": SCHEMA,
        "model": standing.entry_of(leading).candidate.name,
        "form": leading.name,
        "run": str(leading.run),
        "metric": metric_of(leading.result),
        "sentences": sentences(standing, leading),
        "commands": commands(standing, leading),
        "rows": rows(standing),
        "not_done": [
            {"model": entry.candidate.name, "state": entry.state, "why": entry.why}
            for entry in standing.entries
            if not entry.forms
        ],
        "seconds": standing.clock.spent,
    }


def _readme(standing: Standing, leading: Form) -> str:
    table = ["| model | form | dev | test | ms | MB | keeps the limits |", "|---|---|---:|---:|---:|---:|---|"]
    for row in rows(standing):
        ms, size = (f"{row[key]:.3g}" if row[key] is not None else "" for key in ("ms", "megabytes"))
        fits = "yes" if row["fits"] else "no"
        table.append(
            f"| {row['model']} | {row['form']} | {row['dev']:.2f} | {row['test']:.2f} | {ms} | {size} | {fits} |"
        )
    lines = "\n\n".join(sentences(standing, leading))
    made = "\n".join(commands(standing, leading))
    use = f"kdbench-predict {standing.wish.out / MODEL} --text '...'"
    return (
        f"# {standing.wish.name}\n\n{lines}\n\nThe model is in `{MODEL}/`:\n\n```\n{use}\n```\n\nThe commands that made"
        f" it:\n\n```\n{made}\n```\n\n" + "\n".join(table) + "\n"
    )


def _page(standing: Standing) -> str:
    """Return the page of compare-runs on all runs of the data set: accuracy against latency, texts, confusions."""
    from kdbench.compare.cli import main

    held = io.StringIO()
    with contextlib.redirect_stdout(held):
        main([str(standing.wish.outputs), "--dataset", standing.wish.name, "--format", "html", "--quiet"])
    return held.getvalue()


def refuse(standing: Standing) -> NoReturn:
    """Raise UserError: there is no model that keeps the limits. The message says what comes nearest."""
    nearest, wish = standing.nearest, standing.wish
    if nearest is None:
        raise UserError(Code.NOTHING_FITS, f"no run was finished, so there is no model; see {standing.log}")
    limits = [f"--latency {wish.latency} ms"] if wish.latency is not None else []
    limits += [f"--size {wish.size} MB"] if wish.size is not None else []
    raise UserError(
        Code.NOTHING_FITS,
        f"no model keeps {', '.join(limits)}. The nearest is {standing.entry_of(nearest).candidate.name}, as"
        f" {nearest.name}: dev {nearest.dev:.2f}, {cost(nearest)}, in {nearest.run}",
    )
