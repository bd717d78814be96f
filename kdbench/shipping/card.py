"""The model card of an exported run, filled in from its records alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from kdbench.compare.collect import read_runs
from kdbench.compare.columns import number, unit
from kdbench.compare.keys import Wanted, flat
from kdbench.compare.rows import build_tables
from kdbench.compare.table import Row, Table
from kdbench.compare.testing import with_tests
from kdbench.declared import OWN
from kdbench.errors import shown
from kdbench.inference.classifier import label_names
from kdbench.inference.finished_run import FinishedRun
from kdbench.inference.forms import FORMS
from kdbench.inference.int8 import SEEN, WAYS
from kdbench.models import students
from kdbench.shipping.portable import portable_command, portable_source, portable_text
from kdbench.storage.files import read_json
from kdbench.storage.provenance import instructions, machine
from kdbench.storage.results import metric_of
from kdbench.tasks import traits


class Forms(NamedTuple):
    """The ONNX graphs of an export."""

    results: list[dict[str, Any]]  # one for each graph
    difference: float  # the largest of a logit to PyTorch
    pytorch: dict[str, Any]  # PyTorch's latency, measured in turns with theirs


def rendered(template: str, **values: Any) -> str:
    """Return a template of this folder, filled in. In HTML, texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=template.endswith(".html.j2"),
    )  # fmt: skip
    return environment.get_template(template).render(number=number, **values)


def model_card(run: FinishedRun, forms: Forms | None) -> str:
    """Return the README.md of an export."""
    table, row = _compared(run)
    kind, own = students.model_type(run.model), students.folder_traits(run.model)
    task, metric = traits(run.dataset.task), table.metric
    measured = [name for name in task.metrics if name in run.result["metrics"]["test"]]
    teacher, encoder, environ = run.config["teacher"], weights_of(run), read_json(run.folder / "env.json")
    parameters = {key: value for key, value in run.result["identity"]["parameters"].items() if key != "stages"}
    return rendered(
        "card.md.j2",
        **origin([run]),
        run=run,
        result=run.result,
        identity=run.result["identity"],
        student=run.config["student"],
        teacher=teacher | {"source": portable_source(teacher["source"])},
        encoder=encoder and encoder | {"source": portable_source(encoder["source"])},
        data_source=portable_source(run.dataset.source),
        unlabelled=(raw := run.result["data"].get("unlabelled")) and raw | {"source": portable_source(raw["source"])},
        notes=[portable_text(note) for note in run.data.notes],
        answers={"files": None, "members": None} | (run.result.get("teacher_identity") or {}),
        task=task,
        metric=metric,
        metrics=measured,
        hub_names=list(dict.fromkeys(task.metrics[name].hub for name in measured)),
        unit=unit(metric),
        stock=not kind.startswith(OWN),
        fastbert=own.early_exit,
        static=own.bare_pieces,
        vectors=_vectors(run),
        counted=run.result["reported"].get("chosen"),
        labels=label_names(run.model),
        environment=environ,
        command=portable_command(environ["command"]),
        probable=run.result.get("calibration"),  # older runs have none
        settings=[(key, portable_text(shown(value))) for key, value in flat(parameters) if value is not None],
        bytes=(run.model / "model.safetensors").stat().st_size,
        row=row,
        tests=row.tests,
        tfidf=floor.score.mean if (floor := table.tfidf(row.runs[0].labelled)) else None,
        taught=row.runs[0].teacher,
        forms=[FORMS[form["form"]]._asdict() | form for form in forms.results] if forms else [],
        difference=forms.difference if forms else None,
        latency=forms.pytorch if forms else run.result["latency"],
        int8=next((form["quantisation"] for form in forms.results if form["form"] == "int8"), None) if forms else None,
        ways=WAYS,
        calibration=SEEN,
        instructions=instructions() if forms else None,
        machine=machine() if forms else environ["machine"],
    )


def origin(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return what the header of a card says of the licence, the languages, and what the models were made of."""
    bases = [base for run in runs if (base := weights_of(run))]
    licenses = {(weights_of(run) or {}).get("license") or "unknown" for run in runs}
    names = [hub_name(base["source"], base.get("base_model")) for base in bases]
    return {
        "license": licenses.pop() if len(licenses) == 1 else "other",
        "base_models": list(dict.fromkeys(filter(None, names))),
        "language": runs[0].config["dataset"].get("language"),
        "data_name": hub_name(runs[0].dataset.source, None),
    }


def weights_of(run: FinishedRun) -> dict[str, Any] | None:
    """Return the settings of the pretrained weights from which a model is derived, None if there are none."""
    own = students.folder_traits(run.model)
    if own.own_words or own.whole_texts:
        return None
    found: dict[str, Any] = _vectors(run) or run.config["student"]["encoder"] or run.config["teacher"]
    return found


def _vectors(run: FinishedRun) -> dict[str, Any] | None:
    vectors: dict[str, Any] | None = run.config["student"].get("table")  # older runs have no such key
    return vectors


def hub_name(source: str, named: str | None) -> str | None:
    """Return what the model hub calls a source, `org/name`: as the config has `named` it, or from hub:<org>/<name>."""
    return named or (source.removeprefix("hub:").partition("@")[0] if source.startswith("hub:") else None)


def _compared(run: FinishedRun) -> tuple[Table, Row]:
    """Return the run's table and row, with all its seeds and the baselines below the same folder."""
    *_, dataset, method, _, _ = run.folder.absolute().parts
    where = (run.result["identity"]["dataset"], run.result["identity"]["method"])
    root = run.folder.absolute().parents[2 if (dataset, method) == where else 0]
    runs, _ = read_runs([root], metric_of(run.result), "test", Wanted())
    (table,) = build_tables(runs, lambda other: other.id == run.result["id"])
    table = with_tests(table, True)
    return table, table.rows[0]
