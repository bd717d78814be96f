"""kdbench-predict --out: the answers to a file of any size, in one file that is complete or absent."""

import csv
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
import pytest

from kdbench.cli import predict
from kdbench.errors import Code, UserError
from kdbench.inference import classifier, out_file
from kdbench.inference.classifier import Classifier
from kdbench.inference.out_file import OutFile
from kdbench.storage.files import write_record
from kdbench.tasks.classification import Answer, Scored
from kdbench.tasks.multi_label import Chosen
from kdbench.tasks.regression import Value
from kdbench.tasks.token_classification import Tagged
from tests.conftest import FILLER, TOPICS
from tests.refusals import refused
from tests.reliability.forks import forked, kill_after


class Stub(Classifier):
    """Answers with what a function says of each text, without a model."""

    def __call__(self, texts: Any, pairs: Any = None) -> list[Any]:
        self.predict({"ids": texts}, 0)  # type: ignore[typeddict-item]
        return [self.tokenizer(text) for text in texts]

    @property
    def answer(self) -> Any:
        return type(self.tokenizer("a"))


def stub(says: Any) -> Stub:
    return Stub(None, ["a", "b"], 8, says, 0, lambda batch, step: None)  # type: ignore[arg-type, return-value]


def echo() -> Stub:
    """Answers with the length of a text."""
    return stub(lambda text: Value(len(text) / 3))


def never() -> None:
    raise AssertionError("no other process makes this file")


def table(out: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pyarrow.parquet.read_table(out).to_pydict()
    return found


def write(out: Path, says: Any, texts: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    file = OutFile(out, {"x": "y"}, print)
    with file.alone(never):
        assert not file.found()
        file.write(stub(says), lambda: iter(texts), len(texts), lambda texts, before: None)
    return table(out) if out.suffix == ".parquet" else {}


class Found(NamedTuple):
    number: int


@pytest.mark.parametrize(
    ("says", "columns"),
    [
        (Answer("b", {"a": 0.25, "b": 0.75}), {"label": "b", "probability:a": 0.25, "probability:b": 0.75}),
        (Scored("a", {"a": 1.5, "b": -2.0}), {"label": "a", "score:a": 1.5, "score:b": -2.0}),
        (Chosen(["a"], {"a": 0.75, "b": 0.5}), {"labels": ["a"], "probability:a": 0.75, "probability:b": 0.5}),
        (Value(2.5), {"value": 2.5}),
        (Tagged(["x", "y"], ["O", "B-p"], [("p", "y")]),
         {"words": ["x", "y"], "tags": ["O", "B-p"], "entities": ["p: y"]}),
        (Found(3), {"number": 3}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_each_kind_of_answer_has_columns(tmp_path, says, columns):
    texts = [("x y", "z"), (" ", "\n"), ("x y", "")]
    found = write(tmp_path / "answers.parquet", lambda text: says, texts)
    given = {"text": [text for text, _ in texts], "pair": [pair for _, pair in texts]}
    assert found == given | {name: [value, None, value] for name, value in columns.items()}
    write(tmp_path / "answers.jsonl", lambda text: says, texts)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert lines == [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    write(tmp_path / "answers.csv", lambda text: says, texts)
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = {
        name: json.dumps(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in columns.items()
    }
    assert rows == [
        {"text": "x y", "pair": "z"} | shown,
        {"text": " ", "pair": "\n"} | dict.fromkeys(columns, ""),
        {"text": "x y", "pair": ""} | shown,
    ]


def test_numbers_have_the_digits_of_float32(tmp_path):
    write(tmp_path / "answers.jsonl", lambda text: Value(0.1), [("a",)])
    assert (tmp_path / "answers.jsonl").read_text() == '{"text": "a", "value": 0.1}\n'


def texts_of(rows: int) -> list[str]:
    draw = random.Random(0)
    words = [*FILLER, *" ".join(TOPICS.values()).split()]
    return [" ".join(draw.choices(words, k=draw.randint(0, 9))) for _ in range(rows)]


@pytest.fixture
def run(finetuned) -> str:
    return finetuned


@pytest.fixture
def asked(tmp_path) -> Path:
    (tmp_path / "asked").mkdir()
    path = tmp_path / "asked" / "many.txt"
    path.write_text("\n".join(texts_of(50)) + "\n")
    return path


def test_the_answers_of_a_file_are_those_on_stdout(run, asked, capsys, monkeypatch):
    monkeypatch.setattr(out_file, "SHARD", 8)
    out = asked.with_name("answers.parquet")
    assert predict.main([run, "--file", str(asked), "--json", "--quiet"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert predict.main([run, "--file", str(asked), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n" and f"50 rows, {sum(a['label'] is None for a in answers)} of them blank" in said.err
    found = table(out)
    assert found["text"] == texts_of(50) and found["label"] == [one["label"] for one in answers]
    for label in TOPICS:
        given = [one["probabilities"] and one["probabilities"][label] for one in answers]
        assert found[f"probability:{label}"] == pytest.approx(given, abs=1e-6)
    assert sorted(path.name for path in asked.parent.iterdir()) == [
        ".answers.parquet.json", ".answers.parquet.lock", "answers.parquet", "many.txt"
    ]  # fmt: skip


def test_a_finished_file_is_found_and_made_again_only_for_another_model_or_other_texts(
    run, asked, configure, execute, capsys, monkeypatch
):
    out = asked.with_name("answers.csv")
    command = [run, "--file", str(asked), "--out", str(out)]
    assert predict.main(command) == 0
    before = out.stat()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "compute_outputs", None)
        assert predict.main(command) == 0
    assert "found: " in capsys.readouterr().err and out.stat() == before
    asked.write_text("apple\n")
    assert predict.main(command) == 0
    assert f"the texts changed since {out} was written" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 2
    other = execute(configure("method=finetune", "seed=1"))["folder"]
    capsys.readouterr()
    assert predict.main([other, *command[1:], "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert predict.main(command) == 0
    assert f"the model changed since {out} was written" in capsys.readouterr().err
    out.write_text(out.read_text() + "mine\n")  # someone's own
    for words in (command, [other, *command[1:]]):
        assert predict.main(words) == 2
        assert "KD079 would-overwrite" in capsys.readouterr().err and out.read_text().endswith("mine\n")
    out.unlink()
    assert predict.main(command) == 0 and len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_killed_command_resumes_and_the_file_is_the_same(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(out_file, "SHARD", 5)
    texts = [(text,) for text in texts_of(23)]
    write(tmp_path / f"whole.{ending}", lambda text: Value(len(text) / 3), texts)
    out = tmp_path / f"answers.{ending}"
    said: list[str] = []
    file = OutFile(out, {"x": "y"}, said.append)

    def dies(text: str) -> Value:
        if text == texts[17][0]:
            raise KeyboardInterrupt
        return Value(len(text) / 3)

    with file.alone(never), pytest.raises(KeyboardInterrupt):
        assert not file.found()
        file.write(stub(dies), lambda: iter(texts), 23, lambda texts, before: None)
    assert not out.exists() and len(list(file.shards.glob("*.parquet"))) == 3
    (file.shards / "000001.parquet").write_bytes((file.shards / "000001.parquet").read_bytes()[:-1])
    damaged = bytearray((file.shards / "000000.parquet").read_bytes())
    damaged[40] ^= 1
    (file.shards / "000000.parquet").write_bytes(damaged)
    with file.alone(never):
        assert not file.found()
        seen: list[tuple[int, bool]] = []
        file.write(stub(lambda text: Value(len(text) / 3)), lambda: iter(texts), 23, lambda *one: seen.append(one))
    assert [one for one in seen if one[1]] == [(5, True)] and sum(texts for texts, _ in seen) >= 21
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes() and not file.shards.exists()
    assert said == []


def test_shards_of_another_model_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(out_file, "SHARD", 1)
    said: list[str] = []
    first = OutFile(tmp_path / "answers.csv", {"the model": "1", "the texts": "2"}, said.append)
    assert not first.found()
    with pytest.raises(UserError):
        first.write(echo(), lambda: iter([("a",)]), 2, lambda texts, before: None)
    (first.shards / "000000.parquet").write_bytes(out_file._content(stub(lambda text: Value(9)), [("a",)]))
    late = out_file._content(stub(lambda text: Value(9)), [("b",)])

    def says(text: str) -> Value:
        first.shards.mkdir(parents=True, exist_ok=True)
        (first.shards / "000001.parquet").write_bytes(late)  # by a process that helped the first one
        return Value(1)

    file = OutFile(tmp_path / "answers.csv", {"the model": "3", "the texts": "2"}, said.append)
    assert not file.found()
    file.write(stub(says), lambda: iter([("a",), ("b",)]), 2, lambda texts, before: None)
    assert (tmp_path / "answers.csv").read_text().splitlines()[1:] == ['"a",1', '"b",1']
    assert len(said) == 1 and said[0].startswith("the model changed since the answers in")


def test_a_shard_of_other_texts_is_not_used(tmp_path, monkeypatch):
    """The file may be replaced while processes that share it begin."""
    monkeypatch.setattr(out_file, "SHARD", 1)
    file = OutFile(tmp_path / "answers.csv", {"x": "y"}, print)
    assert not file.found()
    file.shards.mkdir(parents=True)

    def says(text: str) -> Value:
        (file.shards / "000001.parquet").write_bytes(out_file._content(stub(lambda text: Value(9)), [("new b",)]))
        return Value(1)

    file.write(stub(says), lambda: iter([("a",), ("b",)]), 2, lambda texts, before: None)
    assert (tmp_path / "answers.csv").read_text().splitlines()[1:] == ['"a",1', '"b",1']


def test_a_plan_that_is_removed_meanwhile_is_told(tmp_path):
    file = OutFile(tmp_path / "answers.csv", {"x": "y"}, print)
    assert not file.found()

    def says(text: str) -> Value:
        file.plan.unlink(missing_ok=True)
        return Value(1)

    with refused(Code.CHANGED_DATA, file.plan.name, kind=UserError):
        file.write(stub(says), lambda: iter([("a",)]), 1, lambda texts, before: None)


def test_a_folder_of_that_name_is_not_overwritten(tmp_path):
    file = OutFile(tmp_path / "answers.csv", {"x": "y"}, print)
    write_record(file.plan, file.asked)  # of a killed command
    file.out.mkdir()
    with refused(Code.WOULD_OVERWRITE, file.out, kind=UserError):
        file.found()


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    file = OutFile(tmp_path / "answers.csv", {"x": "y"}, print)
    assert not file.found()
    file.out.write_text("mine")
    with refused(Code.WOULD_OVERWRITE, file.out, kind=UserError):
        file.write(echo(), lambda: iter([("a",)]), 1, lambda texts, before: None)
    assert file.out.read_text() == "mine"
    with refused(Code.CHANGED_DATA, kind=UserError):
        file.write(echo(), lambda: iter([("a",)]), 2, lambda texts, before: None)


def test_sigkill_at_random_moments(run, asked, monkeypatch, tmp_path):
    """A process is killed again and again until the file is there; it equals that of a process that was not."""
    monkeypatch.setattr(out_file, "SHARD", 4)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    ends = []
    for name, draw in (("whole", None), ("killed", random.Random(0))):
        command = [run, "--file", str(asked), "--out", str(tmp_path / name / "answers.parquet"), "--quiet"]

        for attempt in range(1, 101):  # the first dies at once, the later ones ever later, on a machine of any speed
            after = None if draw is None else draw.uniform(0, 0.02 * attempt)

            def work(command: list[str] = command, after: float | None = after) -> None:
                if after is not None:
                    kill_after(after)
                raise SystemExit(predict.main(command))

            ends.append(os.waitpid(forked(work), 0)[1])
            if ends[-1] == 0:
                break
    assert ends.count(0) == 2 and signal.SIGKILL in ends
    whole, killed = ((tmp_path / name / "answers.parquet").read_bytes() for name in ("whole", "killed"))
    assert whole == killed and sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "whole"))


def until(holds: Callable[[], bool]) -> None:
    """Wait for it, a minute at most."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def process(
    out: Path,
    texts: Sequence[str],
    log: Path,
    seconds: float,
    asked: str = "y",
    ready: Callable[[], bool] = lambda: True,
) -> int:
    """Fork a process that makes the file, or helps; each text takes it some time, and it logs those it has answered.

    With the first text in hand, it waits until it is `ready`.
    """

    def says(text: str) -> Value:
        if text in texts:  # else it is asked for the kind of its answers
            log.with_suffix(".begun").touch()
            until(ready)
            time.sleep(seconds)
            with log.open("a") as file:
                file.write(f"{text}\n")
        return Value(len(text) / 3)

    def work() -> None:
        file = OutFile(out, {"x": asked}, print)

        def rows() -> Any:
            return iter([(text,) for text in texts])

        def told(count: int, before: bool) -> None: ...

        def help_others() -> None:
            log.with_suffix(".helped").touch()
            file.share(stub(says), rows(), told)

        with file.alone(help_others):
            if not file.found():
                file.write(stub(says), rows, len(texts), told)

    return forked(work)


def test_processes_that_write_one_file_share_its_rows(tmp_path, monkeypatch):
    """Each row is answered once, by the process that came first or by one that helps it."""
    monkeypatch.setattr(out_file, "SHARD", 3)
    monkeypatch.setattr(out_file, "_ASKED_AGAIN", 0.01)
    texts = [f"text {number}" for number in range(60)]
    write(tmp_path / "alone" / "answers.csv", lambda text: Value(len(text) / 3), [(text,) for text in texts])
    out = tmp_path / "shared" / "answers.csv"
    logs = [tmp_path / f"{name}.log" for name in "abc"]

    def two_help() -> bool:
        return len(list(tmp_path.glob("*.helped"))) == 2

    processes = [process(out, texts, log, 0.02, ready=two_help) for log in logs]
    assert [os.waitpid(one, 0)[1] for one in processes] == [0, 0, 0]
    answered = [log.read_text().splitlines() for log in logs]
    assert sorted(text for one in answered for text in one) == sorted(texts) and all(answered)
    alone = tmp_path / "alone"
    assert out.read_bytes() == (alone / "answers.csv").read_bytes()
    assert sorted(os.listdir(out.parent)) == sorted(os.listdir(alone))


@pytest.mark.parametrize("killed", ["first", "second"])
def test_what_a_killed_process_was_answering_is_answered_by_another(tmp_path, monkeypatch, killed):
    monkeypatch.setattr(out_file, "SHARD", 3)
    monkeypatch.setattr(out_file, "_ASKED_AGAIN", 0.01)
    texts = [f"text {number}" for number in range(30)]
    write(tmp_path / "alone" / "answers.csv", lambda text: Value(len(text) / 3), [(text,) for text in texts])
    out = tmp_path / "shared" / "answers.csv"
    logs = {name: tmp_path / f"{name}.log" for name in ("first", "second")}
    begun = logs[killed].with_suffix(".begun")
    other = logs["second" if killed == "first" else "first"]
    processes = {}
    for name, log in logs.items():
        processes[name] = process(out, texts, log, 60.0 if name == killed else 0.001, ready=begun.exists)
        until(log.with_suffix(".begun").exists)
    until(lambda: other.exists() and len(other.read_text().splitlines()) == len(texts) - 3)  # it waits for the others
    os.kill(processes[killed], signal.SIGKILL)
    ends = {name: os.waitpid(number, 0)[1] for name, number in processes.items()}
    assert ends == {killed: signal.SIGKILL, other.stem: 0}
    alone = tmp_path / "alone"
    assert out.read_bytes() == (alone / "answers.csv").read_bytes()
    assert sorted(os.listdir(out.parent)) == sorted(os.listdir(alone))


def test_another_models_process_waits_and_writes_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(out_file, "SHARD", 3)
    monkeypatch.setattr(out_file, "_ASKED_AGAIN", 0.01)
    texts = [f"text {number}" for number in range(9)]
    out, logs = tmp_path / "answers.csv", [tmp_path / "a.log", tmp_path / "b.log"]
    processes = [process(out, texts, log, 0.01, asked) for log, asked in zip(logs, "yz", strict=True)]
    assert [os.waitpid(one, 0)[1] for one in processes] == [0, 0]
    assert [log.read_text().splitlines() for log in logs] == [texts, texts] and not list(tmp_path.glob("*.helped"))


def test_what_is_refused_writes_nothing(run, asked, capsys, tmp_path):
    out = tmp_path / "new" / "answers.csv"
    names = {"none.csv": "", "other.csv": "a,b\nx,y\n", "bytes.csv": "text,label\nschön,a\n", "blank.txt": ""}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    for words, problem in (
        (["--text", "a", "--out", str(out)], "KD006 conflicting-options"),
        (["--file", str(asked), "--out", str(out), "--json"], "KD006 conflicting-options"),
        (["--file", str(asked), "--out", "answers.xlsx"], "KD015 out-of-range"),
        (["--file", str(tmp_path / "none"), "--out", str(out)], "KD042 missing-file"),
        (["--file", str(tmp_path / "none.csv"), "--out", str(out)], "KD051 unreadable-table"),
        (["--file", str(tmp_path / "blank.txt"), "--out", str(out)], "KD051 unreadable-table"),
        (["--file", str(tmp_path / "other.csv"), "--out", str(out)], "KD053 missing-column"),
        (["--file", str(tmp_path / "bytes.csv"), "--out", str(out)], "KD052 wrong-encoding"),
        (["--file", str(asked), "--out", str(asked.with_suffix(".csv"))], "KD079 would-overwrite"),
    ):
        shutil.copy(asked, asked.with_suffix(".csv"))
        assert predict.main([run, *words]) == 2, words
        said = capsys.readouterr()
        assert said.out == "" and problem in said.err and "Traceback" not in said.err
        assert not list(tmp_path.glob("**/*.shards")) and not out.exists(), words
