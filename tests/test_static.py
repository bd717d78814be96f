"""Runs of static students: what their vectors start from, what teaches them, what is shipped, what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer

from kdbench.cli import export, predict
from kdbench.data.pieces import bare_tokenizer, ranked_pieces, special_tokens
from kdbench.errors import Code, SettingError, SourceError
from kdbench.models import static, students
from kdbench.runs.identity import run_id
from kdbench.runs.related import baseline, uses_teacher
from kdbench.sources.fetch import parse
from kdbench.training.hardware import settle
from kdbench.validation.fit import cross_faults
from tests.conftest import FILLER, ROOT, TOPICS
from tests.encoders import write_encoder
from tests.refusals import refused
from tests.test_methods import data_lines

SMALL = ["student.hidden=8", "student.ffn=6"]
WORDS = sorted({*FILLER, *" ".join(TOPICS.values()).split()})


def table_of(result: dict) -> torch.Tensor:
    return load_file(Path(result["folder"]) / "model/model.safetensors")["embedding.weight"]


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like wordllama's wheel: half-precision vectors of 12 numbers, and a tokenizer that adds <s>."""
    folder = tmp_path_factory.mktemp("vectors")
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["<unk>", "<s>", *WORDS])}, "<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.add_special_tokens(["<unk>", "<s>"])
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    table = torch.randn(2 + len(WORDS), 12, generator=torch.Generator().manual_seed(0)).half()
    save_file({"embedding.weight": table}, folder / "vectors.safetensors")
    return folder


def of_table(folder: Path, *words: str) -> list[str]:
    """The words of a run on a table in a local folder."""
    files = {"weights": "vectors.safetensors", "tokenizer": "tokenizer.json", "source": str(folder)}
    keys = [f"student.table.{key}={value}" for key, value in files.items()]
    return ["method=static", "student=static_wordllama", "student.hidden=12", "student.ffn=6", *keys, *words]


def test_the_vectors_start_from_what_the_encoder_returns_for_each_piece_alone(teacher_folder):
    encoder, tokenizer = AutoModel.from_pretrained(teacher_folder).eval(), AutoTokenizer.from_pretrained(teacher_folder)
    before, after = special_tokens(teacher_folder)
    assert (before, after) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    pieces = torch.tensor([5, 9, 17])
    found = static.piece_outputs(encoder, pieces, before, after)
    for piece in range(len(tokenizer)):
        states = torch.zeros(1, encoder.config.hidden_size)
        if piece in pieces:
            with torch.no_grad():
                states = encoder(torch.tensor([[*before, piece, *after]])).last_hidden_state[0]
        torch.testing.assert_close(found[piece], states.sum(0) / len(states), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "mpnet", "modernbert", "deberta-v2"])
def test_a_tokenizer_without_special_tokens_splits_as_the_encoders(kind, tmp_path):
    folder = write_encoder(tmp_path / "encoder", kind)
    bare = AutoTokenizer.from_pretrained(bare_tokenizer(folder, tmp_path))
    original = AutoTokenizer.from_pretrained(folder)
    for text in ("gold is near a big lake", "A pear", "", "zebra"):
        assert bare(text)["input_ids"] == original(text, add_special_tokens=False)["input_ids"]
    pair = bare("gold", "a lake")
    ends = len(bare("gold")["input_ids"])
    assert pair["token_type_ids"] == [0] * ends + [1] * (len(pair["input_ids"]) - ends)
    ranked = ranked_pieces(bare_tokenizer(folder, tmp_path)).tolist()
    assert ranked == sorted(ranked) and set(ranked) >= set(bare("gold is near a big lake")["input_ids"])
    assert not {original.cls_token_id, original.sep_token_id, original.pad_token_id} & {*ranked}


def test_unused_places_of_a_vocabulary_have_no_rank(tmp_path, teacher_folder):
    folder = shutil.copytree(teacher_folder, tmp_path / "encoder")
    text = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["[unused0]"] = vocabulary.pop("apple")
    (folder / "tokenizer.json").write_text(json.dumps(text))
    bare = bare_tokenizer(folder, tmp_path)
    assert len(ranked_pieces(bare)) == len(ranked_pieces(bare_tokenizer(teacher_folder, tmp_path))) - 1


def test_untrained_vectors_are_those_of_the_start_and_only_the_head_learns(configure, execute, teacher_folder):
    result = execute(configure("method=static", "method.train_vectors=false", "method.alpha=0", *SMALL))
    folder = Path(result["folder"]) / "model"
    encoder = AutoModel.from_pretrained(teacher_folder).eval()
    ranked = ranked_pieces(folder)
    outputs = static.piece_outputs(encoder, ranked, [2], [3])
    expected = static.start_table(outputs, ranked, 8, True, 1e-4)
    torch.testing.assert_close(table_of(result), expected, rtol=1e-4, atol=1e-4)
    trained = execute(configure("method=static", "method.alpha=0", *SMALL))
    moved = (table_of(trained) - expected).abs().amax(1) > 1e-3
    train = AutoTokenizer.from_pretrained(folder)(data_lines(Path(result["folder"])))
    assert 0 < moved.sum() <= len(ranked) and train["input_ids"]


def test_labels_alone_need_no_teacher(configure, execute, tmp_path):
    config = configure("method=static", "method.alpha=0", *SMALL)
    assert not uses_teacher(config)
    result = execute(config)
    assert result["teacher"] is None and not list((tmp_path / "outputs/topics").glob("finetune/*"))
    assert set(result["stages"][0]["epochs"][0]["means"]) == {"hard"}
    assert result["parameters"]["embeddings"] == 27 * 8


def test_raw_texts_are_learned_from_the_teacher_alone(configure, execute, data_folder):
    raw = f"dataset.unlabelled={data_folder / 'corpus.txt'}"
    few, more = (execute(configure("method=static", *SMALL, *words)) for words in ([], [raw]))
    assert more["stages"][0]["steps"] > few["stages"][0]["steps"] and more["id"] != few["id"]
    assert set(more["stages"][0]["epochs"][0]["means"]) == {"soft", "hard"}


def test_the_direct_fine_tune_has_the_same_vectors(configure, execute):
    own = baseline(configure("method=static", *SMALL))
    start = ["method.init.weights=random", "schedule.lr=1e-2"]
    direct = configure("method=finetune", "student=static", *start, *SMALL)
    assert run_id(own, settle(own.hardware)) == run_id(direct, settle(direct.hardware))
    assert execute(direct)["identity"]["student"] == "static_8"


def test_8_bits_are_scored_as_they_are_stored(configure, execute):
    result = execute(configure("method=static", "student.int8_table=true", *SMALL))
    model = students.load(Path(result["folder"]) / "model")
    assert model.embedding.weight.dtype == torch.int8
    wide = execute(configure("method=static", *SMALL))
    table, scale = model.embedding.weight, model.scale.weight
    assert ((table * scale - table_of(wide)).abs() <= scale / 2 * (1 + 1e-5)).all()
    assert result["id"] != wide["id"] and result["parameters"]["embeddings"] == 27 * 8 + 27


def test_a_table_from_a_file_needs_no_encoder(configure, execute, vectors, tmp_path):
    unreachable = ["teacher=bert_base_uncased", "teacher.source=hub:no/where"]
    config = configure(*of_table(vectors, "method.alpha=0", "method.train_vectors=false", *unreachable))
    result = execute(config)
    original = load_file(vectors / "vectors.safetensors")["embedding.weight"].double()
    rows = torch.tensor([0, *range(2, len(original))])  # all but <s>
    expected = original[rows] / original[rows].square().mean().sqrt()
    torch.testing.assert_close(table_of(result)[rows], expected.float(), rtol=1e-5, atol=1e-6)
    assert not table_of(result)[1].any()
    tokenizer = AutoTokenizer.from_pretrained(Path(result["folder"]) / "model")
    assert tokenizer.tokenize("gold zebra") == ["gold", "<unk>"] and len(tokenizer("gold")["input_ids"]) == 1
    (pieces,) = result["data"]["pieces"]
    assert pieces["tokenizer"] == "wordllama, without special tokens" and pieces["splits"]["test"]["unknown"] == 0
    elsewhere = shutil.copytree(vectors, tmp_path / "copy")
    moved = configure(*of_table(elsewhere, "method.alpha=0", "method.train_vectors=false"))
    assert run_id(moved, settle(moved.hardware)) == result["id"]
    (elsewhere / "tokenizer.json").write_text((elsewhere / "tokenizer.json").read_text() + "\n")
    assert run_id(moved, settle(moved.hardware)) != result["id"]


def test_a_table_learns_the_logits_of_any_teacher(configure, execute, vectors):
    result = execute(configure(*of_table(vectors, "student.pca=true", "student.hidden=5", "student.sif=1e-3")))
    assert result["teacher"] is not None and table_of(result).shape == (2 + len(WORDS), 5)
    assert result["identity"]["parameters"]["alpha"] == 0.5


REFUSED = [
    (["student.layers=3"], Code.MISMATCHED_SHAPE, "student.layers"),
    (["student.hidden=17"], Code.MISMATCHED_SHAPE, "student.hidden"),
    (["student.pca=false"], Code.MISMATCHED_SHAPE, "student.hidden"),
    (["student.word_vectors=teacher"], Code.UNUSABLE_START, "student.word_vectors"),
    (["student.word_vectors=table"], Code.CONFLICTING_VALUES, "student.table"),
    (["method.init.weights=pretrained"], Code.UNUSABLE_START, "method.init.weights"),
    (["student.heads=2"], Code.INAPPLICABLE_KEY, "student.heads"),
    (["student.pca=null"], Code.MISSING_VALUE, "student.pca"),
    (["dataset.task=token_classification"], Code.UNSUPPORTED_TASK, "dataset.task"),
    (["teacher.architecture=static"], Code.UNSUPPORTED_ARCHITECTURE, "teacher.architecture"),
]


@pytest.mark.parametrize(("words", "code", "key"), REFUSED, ids=[words[0] for words, *_ in REFUSED])
def test_what_does_not_fit_is_refused(configure, words, code, key):
    found = [(fault.code, fault.key) for fault in cross_faults(configure("method=static", *SMALL, *words))]
    assert (code, key) in found


def test_theseus_has_no_layer_to_replace(configure):
    (fault,) = cross_faults(configure("method=theseus", "student=static"))
    assert fault.key == "student.architecture" and "no layer" in fault.problem


def test_a_bilstm_has_no_table(configure):
    (fault,) = cross_faults(configure("method=bilstm", "student.layers=1", "student.word_vectors=outputs"))
    assert fault.key == "student.word_vectors"


def test_tables_that_cannot_be_used_are_refused(configure, execute, vectors, tmp_path):
    def faults(*words):
        return [(one.code, one.key) for one in cross_faults(configure(*of_table(vectors, "method.alpha=0", *words)))]

    assert faults() == []
    assert faults("student.table.weights=none.safetensors") == [(Code.MISSING_FILE, "student.table.weights")]
    assert faults("student.table.weights=vectors.bin") == [(Code.UNSAFE_CONTENT, "student.table.weights")]
    assert faults('student.table.source="pypi:w==1"', "student.table.sha256=null") == [
        (Code.UNVERIFIED_SOURCE, "student.table.source")
    ]
    with refused(Code.MISMATCHED_SHAPE, "student.hidden=13", "12 or less", kind=SettingError):
        execute(configure(*of_table(vectors, "method.alpha=0", "student.hidden=13", "student.pca=true")))
    with refused(Code.MISMATCHED_MODEL, "student.table.tensor", "embedding.weight", kind=SourceError):
        execute(configure(*of_table(vectors, "method.alpha=0", "student.table.tensor=other")))
    few = shutil.copytree(vectors, tmp_path / "few")
    save_file({"embedding.weight": torch.ones(4, 12)}, few / "vectors.safetensors")
    with refused(Code.MISMATCHED_MODEL, "(4, 12)", kind=SourceError):
        execute(configure(*of_table(few, "method.alpha=0")))


def test_a_source_may_name_the_wheel_of_one_system():
    source = parse("pypi:wordllama==0.4.0.post1#cp311-cp311-manylinux2014_x86_64")
    assert (source.version, source.tags) == ("0.4.0.post1", "cp311-cp311-manylinux2014_x86_64")
    assert parse("pypi:a==1").tags == ""
    with refused(Code.INVALID_SOURCE, "a==1#linux", kind=SourceError):
        parse("pypi:a==1#linux")


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on Python's path in which torch and all that kdbench brings cannot be imported."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in ("torch", "transformers", "safetensors", "kdbench", "onnxruntime", "scipy"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not needed')\n")
    return folder


SHOWN = {"page": ROOT / "docs/methods/static.md", "card": Path("README.md")}


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("words", [[], ["student.int8_table=true", "student.layers=1"]], ids=["plain", "int8"])
def test_the_folder_answers_with_numpy_and_tokenizers_alone(
    configure, execute, blocked, tmp_path, capsys, shown, words
):
    result = execute(configure("method=static", "method.alpha=0", *SMALL, *words))
    capsys.readouterr()
    assert export.main([result["folder"], "--quiet"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    text = (folder / SHOWN[shown] if shown == "card" else SHOWN[shown]).read_text(encoding="utf8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "numpy" in block]
    code = re.sub(r'folder = ".*?"', f"folder = {str(folder) + '/'!r}", code)
    texts = ["gold near the old lake", "a pear", "zebra", "", " ".join(["iron sea"] * 30)]
    length = configure("method=static", *SMALL).dataset.max_length
    code = re.sub(r"(Tokenizer.from_file\(.*?\)), \d+", rf"\1, {length}", code)
    code += f"\nprint(json.dumps([logits(text).tolist() for text in {texts!r}]))"
    env = {**os.environ, "PYTHONPATH": str(blocked)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = students.load(folder)
    given = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(given["input_ids"], given["attention_mask"]).logits
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout.splitlines()[-1])), expected, rtol=1e-4, atol=1e-5)


def test_predict_and_the_card(configure, execute, vectors, capsys):
    result = execute(configure(*of_table(vectors, "method.alpha=0", "export.onnx=true")))
    capsys.readouterr()
    assert predict.main([result["folder"], "--text", "gold near the lead", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["label"] in TOPICS
    card = (Path(result["folder"]) / "export/README.md").read_text()
    assert "mean of vectors of width 12" in card and f"Vectors: wordllama, from `{vectors.name}`, licence mit" in card
    assert predict.main([f"{result['folder']}/export/onnx", "--text", "gold near the lead", "--json"]) == 0
    (graph,) = json.loads(capsys.readouterr().out)["answers"]
    assert graph["label"] == answer["label"]
