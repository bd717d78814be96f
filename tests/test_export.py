"""kdbench-export and kdbench-predict on tiny runs: what is written, what it answers, what is refused."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

import kdbench
from kdbench.cli import export as export_command
from kdbench.cli import predict
from kdbench.compare import cli as compare_runs
from kdbench.data import tokenize
from kdbench.errors import Code, UserError
from kdbench.inference import classifier, latency, measure
from kdbench.inference import onnx as graph
from kdbench.models import tfidf
from kdbench.storage import files as store
from kdbench.tasks.classification import Scored
from kdbench.validation.values import cross_faults
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("taught")

TEXTS = ["apple near the old pear", "a big lead", "river of gold is one lake", ""]


@pytest.fixture
def run_of(execute, capsys):
    """Do a run, and forget what it said."""

    def do(config) -> Path:
        folder = Path(execute(config)["folder"])
        capsys.readouterr()
        return folder

    return do


def test_a_run_exports_itself(configure, run_of, capsys):
    """One export and all that is asked of it: it takes a while to make."""
    config = configure("method=logit_kd", "student.layers=1", "export.int8=true")
    folder = run_of(config)
    exported = folder / "export"
    store.verify(exported / "MANIFEST.json")
    everything = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert everything >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
    }
    assert not list(folder.rglob(".*.part"))

    # a plain Hugging Face folder
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.model_max_length == 16
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = AutoModelForSequenceClassification.from_pretrained(exported).eval()(**inputs).logits

    # the same answers by all ways
    for where in (folder, exported, exported / "onnx"):
        classifier = kdbench.load_classifier(where)
        torch.testing.assert_close(classifier.logits(TEXTS), logits, rtol=1e-4, atol=1e-5)
        answers = classifier(TEXTS)
        assert [answer.label for answer in answers] == [classifier.labels[i] for i in logits.argmax(-1)]
        assert all(sum(answer.probabilities.values()) == pytest.approx(1) for answer in answers)
        assert classifier([]) == []
    assert len(kdbench.load_classifier(exported / "onnx/model_quantized.onnx")(TEXTS)) == 4

    forms = [folder, folder / "forms/onnx", folder / "forms/int8"]
    assert len({latency._shape_of(form) for form in forms}) == 3  # and each has a time of its own

    # the card is filled in
    card = (exported / "README.md").read_text()
    result = json.loads((folder / "results.json").read_text())
    assert f"| test | 40 | {100 * result['metrics']['test']['accuracy']:.2f} |" in card
    for words in ("fruit, metal, water", "training, 20 dev and 40 test", "ONNX, int8", "There is one seed"):
        assert words in card, words
    assert not re.search(r"\bNone\b|\bnan\b|\{\{|TODO|More [Ii]nformation", card)

    # rows of compare-runs
    assert compare_runs.main([str(folder.parents[2]), "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    rows = {(row["method"], row["form"]): row for row in table["rows"]}
    assert rows.keys() == {("finetune", "null"), ("logit_kd", "null"), ("logit_kd", "onnx"), ("logit_kd", "int8")}
    of_run, of_onnx, of_int8 = (rows["logit_kd", form] for form in ("null", "onnx", "int8"))
    assert of_onnx["score_points"] == of_run["score_points"]
    assert 0 < of_int8["bytes"] < of_onnx["bytes"] and of_int8["latency_batch_1_ms"] > 0
    assert len({row["id"] for row in rows.values()}) == 4

    # found, not made again; gone with a run that is done again
    before = (exported / "MANIFEST.json").stat().st_mtime_ns
    run_of(config)
    assert (exported / "MANIFEST.json").stat().st_mtime_ns == before
    assert run_of(configure("method=logit_kd", "student.layers=1", "rerun=true")) == folder
    assert not exported.exists()


def test_a_failed_export_leaves_the_one_before(configure, run_of, capsys, monkeypatch):
    folder = run_of(configure("method=tfidf"))  # has a graph sooner than a network
    assert export_command.main([str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{folder / 'export'}\n"
    before = (folder / "export" / "MANIFEST.json").read_bytes()
    monkeypatch.setattr(graph, "TOLERANCE", -1.0)
    assert export_command.main([str(folder), "--onnx"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "nothing was exported" in err and "Traceback" not in err
    assert (folder / "export" / "MANIFEST.json").read_bytes() == before
    assert not list(folder.rglob(".*.part"))
    (folder / "model" / "model.safetensors").write_bytes(b"damaged")
    assert export_command.main([str(folder)]) == 1
    assert "is damaged: expected" in capsys.readouterr().err


def test_what_cannot_be_exported_says_why(configure, run_of, capsys, tmp_path):
    assert export_command.main([str(tmp_path)]) == 2
    assert "KD071 not-a-run  " in capsys.readouterr().err
    for overrides, key in (
        (["method=cascade", "export.onnx=true"], "export.onnx"),
        (["method=tfidf", "export.int8=true"], "export.int8"),
        (["method=bilstm", "student=bilstm_150", "student.layers=1", "export.int8=true"], "export.int8"),
        (["method=mlm", "phase=general", "export.onnx=true"], "export.onnx"),
    ):
        assert [fault.key for fault in cross_faults(configure(*overrides))] == [key]


def test_a_bilstm_answers_and_exports_its_folder(configure, run_of, capsys):
    folder = run_of(configure("method=bilstm", "student=bilstm_150", *TINY_BILSTM))
    assert export_command.main([str(folder), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{folder / 'export'}\n", "")
    both = [kdbench.load_classifier(where).logits(TEXTS) for where in (folder, folder / "export")]
    torch.testing.assert_close(*both)  # the temperature is in the weights of the second
    assert "import kdbench" in (folder / "export" / "README.md").read_text()
    assert export_command.main([str(folder), "--onnx"]) == 2
    assert "ONNX is not supported for a BiLSTM" in capsys.readouterr().err


TINY_BILSTM = ["student.hidden=6", "student.ffn=8", "student.embedding=8", "method.rounds=1"]


def test_predict(finetuned, capsys, tmp_path):
    folder = finetuned
    assert predict.main([folder, "--text", TEXTS[0], "--text", TEXTS[1]]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[2] for line in lines] == TEXTS[:2]
    (tmp_path / "texts.txt").write_text(f"{TEXTS[0]}\r\n\n{TEXTS[1]}\n", encoding="utf8")
    assert predict.main([folder, "--file", str(tmp_path / "texts.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1 and [one["text"] for one in found["answers"]] == [TEXTS[0], "", TEXTS[1]]
    assert [one["label"] for one in found["answers"]] == [lines[0][0], None, lines[1][0]]
    assert found["answers"][0]["probabilities"].keys() == {"fruit", "metal", "water"}
    (tmp_path / "empty.txt").write_text("\n")
    for words, said in (([], "there is no text in"), (["--quiet"], "")):
        assert predict.main([folder, "--file", str(tmp_path / "empty.txt"), "--json", *words]) == 0
        out, err = capsys.readouterr()
        assert len(json.loads(out)["answers"]) == 1 and said in err and bool(err) == bool(said)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for words, problem in (
        ([folder, "--text", "a", "--pair", "b"], "KD083 mismatched-input"),
        ([folder, "--text", "a", "--pair", "b", "--pair", "c"], "KD083 mismatched-input"),
        ([folder, "--file", str(tmp_path / "none.txt")], "KD042 missing-file"),
        ([folder, "--file", str(tmp_path / "bytes.txt")], "KD052 wrong-encoding"),
        ([str(tmp_path / "none"), "--text", "a"], "KD042 missing-file"),
        ([str(tmp_path), "--text", "a"], "KD071 not-a-run"),
    ):
        assert predict.main(words) == 2, words
        out, err = capsys.readouterr()
        assert out == "" and problem in err and "Traceback" not in err


TABLES = {  # four rows: a text, a blank one, one with a tab and a line break, none at all
    "plain.csv": 'label,text\na,gold\nb,\nc,"a\tbig\nlead"\nd\n',
    "plain.tsv": 'text\tlabel\n"gold"\ta\n \tb\n"a\tbig\nlead"\tc\n\td\n',
    "marked.csv": '\ufefftext,label\r\ngold,a\r\n,b\r\n"a\tbig\nlead",c\r\n"  ",d\r\n',
    "excel.csv": 'sep=;\n\ntext;label\ngold;a\n;b\n"a\tbig\nlead";c\n ;d\n',
    "list.json": '[{"text": "gold"}, {"text": ""}, {"text": "a\\tbig\\nlead"}, {"x": 1}]',
    "plain.jsonl": '{"text": "gold"}\n\n{"text": "a\\tbig\\nlead", "x": 1}\n{"text": null}\n',
    "plain.txt": "gold\n\na\u2028big lead\n \t \n",
}


@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=["told", "quiet"])
def test_each_row_of_a_file_has_an_answer(finetuned, capsys, tmp_path, quiet):
    folder = finetuned
    for name, content in TABLES.items():
        (tmp_path / name).write_bytes(content.encode())
        assert predict.main([folder, "--file", str(tmp_path / name), *quiet]) == 0
        out, err = capsys.readouterr()
        lines = [line.split("\t") for line in out.removesuffix("\n").split("\n")]
        assert [len(line) for line in lines] == [3] * 4, name
        assert [bool(line[0]) for line in lines] == [True, False, True, False]
        assert lines[0][2] == "gold" and lines[2][2] == "a big lead" and bool(err) is not bool(quiet)
        assert predict.main([folder, "--file", str(tmp_path / name), "--json", *quiet]) == 0
        found = json.loads(capsys.readouterr().out)["answers"]
        assert [one["label"] for one in found] == [line[0] or None for line in lines]
        assert [one["probabilities"] is None for one in found] == [False, True, False, True]
    for name, content in {
        "other.csv": "a,b\nx,y\n",
        "list.jsonl": "[1]\n",
        "bad.jsonl": "{\n",
        "key.jsonl": "{}",
    }.items():
        (tmp_path / name).write_text(content)
        assert predict.main([folder, "--file", str(tmp_path / name)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and name in err and "Traceback" not in err


def test_texts_must_be_a_list(finetuned):
    classifier = kdbench.load_classifier(finetuned)
    with refused(Code.MISMATCHED_INPUT, "[text]", kind=UserError):
        classifier("apple")


def test_times_are_measured_together_and_kept(configure, run_of, capsys, monkeypatch):
    quiet, fresh = [True], latency._fresh_memory  # a process for each model: of the students alone
    monkeypatch.setattr(latency, "_fresh_memory", lambda folder: fresh(folder) if "logit_kd" in folder.parts else 1.0)
    monkeypatch.setattr(measure, "is_quiet", lambda load, figures: quiet[0])
    root = run_of(configure("method=logit_kd")).parents[2]
    other = run_of(configure("method=logit_kd", "method.alpha=0.9"))
    run_of(configure("method=tfidf"))
    compare = [str(root), "--no-tests"]
    assert compare_runs.main([*compare, "--json", "--latency"]) == 0
    out, err = capsys.readouterr()
    assert "measuring 3 models (only one of each shape)" in err
    found = json.loads(out)["tables"][0]["rows"]
    rows = {row["method"]: row for row in found}
    student, teacher = rows["logit_kd"], rows["finetune"]
    for name in ("real_batch_1", "real_batch_32", "fixed_batch_1", "fixed_batch_32"):
        assert student[f"{name}_ms"] > 0 and student[f"{name}_iqr_ms"] >= 0
    assert student["latency_batch_1_ms"] == student["real_batch_1_ms"] and student["memory_mb"] > 0
    assert student["speedup"] == pytest.approx(teacher["real_batch_1_ms"] / student["real_batch_1_ms"])
    times = {row["id"]: (row["real_batch_1_ms"], row["memory_mb"]) for row in found if row["method"] == "logit_kd"}
    assert len(times) == 2 and len(set(times.values())) == 1  # of one shape, measured once
    assert student["real_batch_1_ms"] != teacher["real_batch_1_ms"]
    config = (other / "model" / "config.json").read_bytes()
    (other / "model" / "config.json").write_text("{}")  # each is found whole all the same
    with pytest.raises(SystemExit, match="2"):
        compare_runs.main([*compare, "--latency"])
    assert "is damaged: expected" in capsys.readouterr().err
    floor = rows["tfidf"]  # has the time of when its command ended: here, none
    assert floor["real_batch_1_ms"] is None and floor["latency_batch_1_ms"] is None
    assert floor["speedup"] is None  # it took no turns with the teacher
    assert compare_runs.main(compare) == 0  # what was measured before is kept
    out = capsys.readouterr().out
    assert "speed on the CPU" in out and "keep no network: tfidf" in out
    (kept,) = root.glob("latency-*.json")
    kept.write_text(kept.read_text().replace('"threads": 1', '"threads": 3'))  # damaged: as if it were not there
    assert compare_runs.main([*compare, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert all(row["real_batch_1_ms"] is None for row in rows)
    (other / "model" / "config.json").write_bytes(config)
    quiet[0] = False
    monkeypatch.setattr(latency, "_fresh_memory", lambda folder: None)  # a process for each model; seen above
    assert compare_runs.main([*compare, "--json", "--latency"]) == 0
    out, err = capsys.readouterr()
    assert "was not quiet" in err
    rows = json.loads(out)["tables"][0]["rows"]
    assert {row["speedup"] for row in rows} == {None} and {row["latency_quiet"] for row in rows} == {False, None}


def test_one_fastbert_is_not_like_another(configure, run_of):
    """Its rows leave by its weights; others take the same time whatever theirs are, with texts as long."""
    for method, other, shapes in (
        ("fastbert", "seed=1", 2), ("finetune", "seed=1", 1), ("finetune", "dataset.max_length=12", 2),
    ):  # fmt: skip
        folders = [run_of(configure(f"method={method}", "schedule.steps=1", *more)) for more in ((), (other,))]
        assert len({latency._shape_of(folder) for folder in folders}) == shapes


@pytest.mark.parametrize("has_pad", [True, False])
def test_a_teacher_without_a_padding_token_makes_a_student_that_pads(
    configure, run_of, teacher_folder, tmp_path, has_pad
):
    """transformers' pipeline puts texts of several lengths into one batch."""
    made = tmp_path / "teacher"
    shutil.copytree(teacher_folder, made)
    named = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokens = PreTrainedTokenizerFast(tokenizer_file=str(made / "tokenizer.json"), **named)
    if not has_pad:  # nor is there one in the vocabulary
        content = json.loads((made / "tokenizer.json").read_text())
        content["model"]["vocab"]["[unused0]"] = content["model"]["vocab"].pop("[PAD]")
        content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] != "[PAD]"]
        (made / "tokenizer.json").write_text(json.dumps(content))
        tokens = PreTrainedTokenizerFast(tokenizer_file=str(made / "tokenizer.json"), **named)
    tokens.save_pretrained(made)
    (made / "vocab.txt").unlink(missing_ok=True)
    assert AutoTokenizer.from_pretrained(made).pad_token is None
    folder = run_of(configure("method=finetune", f"teacher.source={made}", "schedule.steps=3")) / "model"
    assert AutoTokenizer.from_pretrained(folder).pad_token == ("[PAD]" if has_pad else "[SEP]")
    classify = pipeline("text-classification", str(folder), device="cpu")
    alone = [classify(text, top_k=None)[0] for text in TEXTS[:3]]
    together = [one[0] for one in classify(TEXTS[:3], batch_size=3, top_k=None)]
    assert [one["label"] for one in alone] == [one["label"] for one in together]
    assert [one["score"] for one in alone] == pytest.approx([one["score"] for one in together], abs=1e-5)


def test_the_tokenizer_is_read_once(finetuned, monkeypatch):
    read = []
    own = tokenize.load_tokenizer
    monkeypatch.setattr(classifier, "load_tokenizer", lambda folder: read.append(folder) or own(folder))
    monkeypatch.setattr(tokenize, "load_tokenizer", lambda folder: pytest.fail("read again"))
    classify = kdbench.load_classifier(finetuned)
    for _ in range(3):
        classify(TEXTS)
    assert len(read) == 1


@pytest.mark.parametrize("chars", [False, True], ids=["words", "characters"])
def test_tf_idf_is_shipped_like_a_student(configure, run_of, capsys, monkeypatch, chars):
    only = ["method.unknown_words=0", "method.max_char_ngrams=[3]"] if chars else ["method.max_char_ngrams=[]"]
    if chars:  # as if words could not be split
        monkeypatch.setitem(tfidf.PATTERNS, "word", r".+")
    folder = run_of(configure("method=tfidf", *only, "export.onnx=true"))
    result, exported = json.loads((folder / "results.json").read_text()), folder / "export"
    assert result["bytes"] == (folder / "model" / "model.safetensors").stat().st_size
    times = latency.together({folder: None})[folder]
    assert times["batch_1"]["median_ms"] > 0 and result["latency"]["length"] is None
    store.verify(exported / "MANIFEST.json")
    assert not [path for path in exported.rglob("*") if path.suffix in (".pkl", ".joblib", ".bin", ".pt")]

    texts = [*TEXTS, "水 😀", "ＡＰＰＬＥ ÉTÉ", "x" * 4000, "apple " * 3000]
    answers = {}
    for where in (folder, exported, exported / "onnx"):
        classify = kdbench.load_classifier(where)
        answers[where] = classify.logits(texts)
        assert all(isinstance(one, Scored) for one in classify(texts))
        assert [one.label for one in classify(texts)] == [classify.labels[at] for at in answers[where].argmax(-1)]
    assert torch.equal(answers[folder], answers[exported])
    torch.testing.assert_close(answers[exported / "onnx"], answers[folder], rtol=1e-5, atol=1e-5)

    form = json.loads((folder / "forms/onnx/results.json").read_text())
    assert form["metrics"]["test"] == result["metrics"]["test"]
    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
    others = pyarrow.parquet.read_table(folder / "forms/onnx/predictions.parquet").to_pylist()
    for row, other in zip(rows, others, strict=True):
        assert row["logits"] == pytest.approx(other["logits"], abs=1e-5)

    card = (exported / "README.md").read_text()
    assert result["reported"]["chosen"] in card and "not probabilities" in card and "| ONNX, fp32 |" in card
    assert not re.search(r"\bNone\b|\bnan\b|\{\{|layers of width", card)
    capsys.readouterr()
    assert predict.main([str(exported / "onnx"), "--text", TEXTS[0], "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert "probabilities" not in answer and answer["scores"].keys() == {"fruit", "metal", "water"}
    assert export_command.main([str(folder), "--int8"]) == 2
    assert "KD027 unsupported-export" in capsys.readouterr().err
    assert compare_runs.main([str(folder.parents[2]), "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert {row["form"] for row in table["rows"]} == {"null", "onnx"}


def test_tf_idf_teaches_nobody(configure, run_of):
    folder = run_of(configure("method=tfidf"))
    with refused(Code.NOT_A_RUN, "method=tfidf", kind=UserError):
        configure("method=logit_kd", "teacher=run", f"teacher.path={folder}")
