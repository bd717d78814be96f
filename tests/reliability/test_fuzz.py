"""Readers under random input: each reads, or refuses in its own words; none hangs, breaks or writes."""

import hashlib
import io
import json
import logging
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kdbench.cli import main as cli
from kdbench.compare.collect import read_runs
from kdbench.compare.keys import Wanted
from kdbench.compare.where import ConditionError, condition
from kdbench.errors import SourceError, UserError
from kdbench.sources.archive import extract
from kdbench.sources.model_folder import verify
from kdbench.storage import files as store
from kdbench.storage.results import RESULTS, read_result, verify_run
from kdbench.validation.values import faults
from tests.compare.test_compare_runs import student
from tests.data.test_datasets import config as dataset
from tests.tables import read_table
from tests.test_check import composed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
ANYTHING = JSON | st.sampled_from([[], {}, "../x", "/etc/passwd", -1, 10**30, 1e308, "\0", "${x}", "null"])
with_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def edits(draw, whole: bytes) -> bytes:
    """The bytes with a piece replaced, cut out, doubled, or the end lost."""
    start = draw(st.integers(0, len(whole)))
    end = min(len(whole), start + draw(st.integers(0, 40)))
    piece = draw(st.sampled_from([b"", whole[start:end] * 2]) | st.binary(max_size=40))
    return whole[:start] + piece + (b"" if draw(st.booleans()) and draw(st.booleans()) else whole[end:])


@st.composite
def changed(draw, value):
    """A JSON object with one value, somewhere in it, replaced, removed or added."""
    value = json.loads(json.dumps(value))
    place = value
    while isinstance(place, dict) and place:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or draw(st.booleans()):
            break
        place = place[key]
    if draw(st.booleans()) and key in place:
        del place[key]
    else:
        place[draw(st.sampled_from([key, "x"]))] = draw(ANYTHING)
    return value


def sealed(text: str) -> bytes:
    """A record that ends with the digest of its own bytes, whatever it holds."""
    start = text.removesuffix("\n}") + ',\n  "sha256": "'
    return f'{start}{hashlib.sha256(start.encode()).hexdigest()}"\n}}\n'.encode()


@with_folder
@given(data=st.data())
def test_results(tmp_path, data):
    if not (tmp_path / "runs").exists():
        student(tmp_path / "runs", "pkd", "ffff0001", 0, 92.0)
        (path,) = (tmp_path / "runs").rglob(RESULTS)
        (tmp_path / "whole.json").write_bytes(path.read_bytes())
    (path,) = (tmp_path / "runs").rglob(RESULTS)
    whole = (tmp_path / "whole.json").read_bytes()
    content = json.loads(whole)
    as_json = st.one_of(changed(content), JSON).map(lambda value: json.dumps(value, indent=2))
    path.write_bytes(data.draw(edits(whole) | as_json.map(str.encode) | as_json.map(sealed)))
    runs, warnings = read_runs([tmp_path / "runs"], "accuracy", "test", Wanted())
    assert len(runs) + len(warnings) <= 1 and all(str(path) in warning for warning in warnings)
    for read in (read_result, verify_run):
        try:
            read(path.parent)
        except store.Damaged as damage:
            assert str(tmp_path) in str(damage) and "expected" in str(damage)


@with_folder
@given(data=st.data())
def test_manifests(tmp_path, data):
    (tmp_path / "file").write_bytes(b"content")
    store.write_record(tmp_path / store.MANIFEST, {"key": 1}, [tmp_path / "file"])
    whole = (tmp_path / store.MANIFEST).read_bytes()
    value = json.loads(whole)
    del value["sha256"]
    record = changed(value).map(lambda one: sealed(json.dumps(one, indent=2)))
    (tmp_path / store.MANIFEST).write_bytes(data.draw(edits(whole) | record | ANYTHING.map(json.dumps).map(sealed)))
    try:
        store.verify(tmp_path / store.MANIFEST)
    except store.Damaged as damage:
        assert str(tmp_path) in str(damage)


@with_folder
@given(data=st.data())
def test_archives(tmp_path, data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for name in ("pkg/a.txt", "pkg/b.txt", "pkg/code.py"):
            archive.writestr(name, b"content" * 30)
    number = len(list(tmp_path.iterdir()))
    (tmp_path / "x.whl").write_bytes(data.draw(edits(file.getvalue()) | edits(b"PK\x03\x04")))
    to = tmp_path / f"to{number}"
    try:
        extract(tmp_path / "x.whl", ["pkg/a.txt", "pkg/b.txt"], to)
        assert {path.read_bytes() for path in (to / "pkg").iterdir()} == {b"content" * 30}
    except SourceError as refusal:
        assert str(refusal).startswith("x.whl")
    written = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()}
    assert written <= {"pkg/a.txt", "pkg/b.txt"} and {path.name[:2] for path in tmp_path.iterdir()} <= {"x.", "to"}


@with_folder
@given(data=st.data())
def test_model_folders(tmp_path, teacher_folder, data):
    """config.json, the tokenizer's JSON and the header of the weights."""
    for path in teacher_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = data.draw(st.sampled_from(["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"]))
    whole = (tmp_path / name).read_bytes()
    if name == "model.safetensors":
        length = int.from_bytes(whole[:8], "little")
        header = data.draw(edits(whole[: 8 + length]) | changed(json.loads(whole[8 : 8 + length])).map(_header))
        broken = header + whole[8 + length :]
    else:
        broken = data.draw(edits(whole) | changed(json.loads(whole)).map(lambda value: json.dumps(value).encode()))
    (tmp_path / name).write_bytes(broken)
    try:
        verify(tmp_path)
    except SourceError as refusal:
        assert str(tmp_path) in str(refusal)


def _header(value: dict) -> bytes:
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


@with_folder
@given(data=st.data())
def test_tables(tmp_path, data):
    ending = data.draw(st.sampled_from([".csv", ".tsv", ".tab", ".jsonl", ".parquet"]))
    good = {".jsonl": b'{"text": "a", "label": "x"}\n' * 3}.get(ending, b'text,label\na,x\n"b",y\n')
    path = tmp_path / f"train{ending}"
    path.write_bytes(data.draw(edits(good) | st.binary(max_size=60)))
    try:
        rows = read_table(path, dataset(tmp_path, path.name))
        assert len(rows.texts) == len(rows.labels)
    except SourceError as refusal:
        assert "train" in str(refusal) or "dataset." in str(refusal)


@pytest.fixture(scope="module")
def theseus():
    return composed("method=theseus")


@given(data=st.data())
def test_configs(theseus, data):
    """Any value under any key, or a key that is not there, is a fault in words or none."""
    values = data.draw(changed(OmegaConf.to_container(theseus, resolve=False)))
    try:
        cfg = OmegaConf.create(values)
    except Exception:  # what OmegaConf itself cannot hold never gets here
        return
    for fault in faults(cfg):
        assert fault.key and fault.problem and "\0" not in fault.key


@settings(max_examples=settings.get_profile("fast").max_examples // 2)
@given(
    st.lists(st.text(st.characters(codec="ascii"), min_size=1, max_size=20).filter(lambda t: t[0] != "-"), max_size=2)
)
def test_command_lines(words):
    for fault in cli.refuse([*words, "schedule.epochs=0"]):
        assert str(fault)


WORDS = st.sampled_from(["a.b", "==", "<", "in", "[", "]", "(", ")", "not", "or", "like", "'x'", "1", ","])


@given(st.text(max_size=40) | st.lists(WORDS).map(" ".join))
def test_conditions(text):
    try:
        read = condition(text)
    except ConditionError as refusal:
        assert str(refusal)
    else:
        assert read.holds(dict.fromkeys(read.keys, 1)) in (True, False)


@with_folder
@given(content=st.binary(max_size=200))
def test_configs_of_finished_runs(tmp_path, content):
    from kdbench.validation.load import _fill_teacher

    logging.getLogger("kdbench").setLevel(logging.ERROR)
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / RESULTS).write_text("{}")  # of before there were digests
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError):
        _fill_teacher({"path": str(tmp_path)}, "teacher")
    assert {path.name for path in Path(tmp_path).iterdir()} == {"model", RESULTS, "config.yaml"}
