"""Model folders as users have them: each fault is refused in words that name the file, or is read as is said here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdbench
from kdbench.data.tokenize import load_tokenizer
from kdbench.errors import Code, UserError
from kdbench.models.stock import load_pretrained
from kdbench.runs.related import teacher_run
from kdbench.sources.model_folder import verify
from tests.refusals import refused

QUERY = "encoder.layer.3.attention.self.query.weight"


def config(**changed):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def weights(edit):
    def change(folder):
        path = folder / "model.safetensors"
        state = {name: tensor.clone() for name, tensor in load_file(path).items()}
        save_file(edit(state), path)

    return change


def without(state, *parts):
    return {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def removed(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def settings(**changed):
    return written("tokenizer_config.json", json.dumps(changed).encode())


# name -> (what is done to a good folder, code of the refusal, what it names)
REFUSED: dict[str, tuple[Callable[[Path], object], Code, *tuple[str, ...]]] = {
    # what is not there, or not what it says
    "an empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), Code.INCOMPLETE_MODEL, "config.json"),
    "no tokenizer": (removed("tokenizer.json", "vocab.txt"), Code.INCOMPLETE_MODEL, "tokenizer.json", "vocab.txt"),
    "no weights": (removed("model.safetensors"), Code.INCOMPLETE_MODEL, "model.safetensors"),
    "a pickle alone": (as_pickle, Code.UNSAFE_CONTENT, "pytorch_model.bin", "model.safetensors", "save_pretrained"),
    "a config that is no JSON": (written("config.json", b"{"), Code.INCOMPLETE_MODEL, "config.json"),
    "a config that is a list": (written("config.json", b"[]"), Code.INCOMPLETE_MODEL, "config.json"),
    "a config in UTF-16": (written("config.json", "{}".encode("utf-16")), Code.INCOMPLETE_MODEL, "config.json"),
    "a config without an end": (written("config.json", b"[" * 100_000), Code.INCOMPLETE_MODEL, "config.json"),
    "weights of another kind": (
        written("model.safetensors", b"\x80\x04N."),
        Code.INCOMPLETE_MODEL,
        "model.safetensors",
    ),
    "empty weights": (written("model.safetensors", b""), Code.INCOMPLETE_MODEL, "model.safetensors"),
    "a pointer to weights": (
        written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        Code.INCOMPLETE_MODEL,
        "model.safetensors",
    ),
    "a tokenizer that is no JSON": (written("tokenizer.json", b"{"), Code.MISMATCHED_MODEL, "tokenizer.json"),
    "a vocabulary in latin-1": (
        lambda f: (removed("tokenizer.json")(f), written("vocab.txt", "é\n".encode("latin-1"))(f)),
        Code.MISMATCHED_MODEL,
        "vocab.txt",
    ),
    # another architecture
    "GPT-2": (
        config(model_type="gpt2"),
        Code.UNSUPPORTED_MODEL,
        "model_type=gpt2",
        "albert, bert, deberta-v2",
    ),
    "RoBERTa": (config(model_type="roberta"), Code.UNSUPPORTED_MODEL, "pad_token_id=0", "with 1"),
    "DistilBERT": (config(model_type="distilbert"), Code.UNSUPPORTED_MODEL, "n_layers"),
    "DeBERTa": (config(model_type="deberta-v2"), Code.UNSUPPORTED_MODEL, "relative_attention=None", "with True"),
    "ModernBERT": (
        config(model_type="modernbert"),
        Code.MISMATCHED_MODEL,
        "embeddings.tok_embeddings.weight",
        "modernbert",
    ),
    "no model type": (config(model_type=None), Code.UNSUPPORTED_MODEL, "model_type=None"),
    "another activation": (config(hidden_act="relu"), Code.UNSUPPORTED_MODEL, "hidden_act='relu'", "'gelu'"),
    "another epsilon": (config(layer_norm_eps=1e-5), Code.UNSUPPORTED_MODEL, "layer_norm_eps=1e-05", "1e-12"),
    "one token type": (config(type_vocab_size=1), Code.UNSUPPORTED_MODEL, "type_vocab_size=1"),
    "relative positions": (
        config(position_embedding_type="relative_key"),
        Code.UNSUPPORTED_MODEL,
        "position_embedding_type='relative_key'",
    ),
    "a decoder": (config(is_decoder=True), Code.UNSUPPORTED_MODEL, "is_decoder=True"),
    "heads that do not divide": (
        config(num_attention_heads=3),
        Code.UNSUPPORTED_MODEL,
        "num_attention_heads=3",
        "hidden_size=16",
    ),
    "no layers": (config(num_hidden_layers=0), Code.UNSUPPORTED_MODEL, "num_hidden_layers=0"),
    "a width in words": (config(hidden_size="16"), Code.UNSUPPORTED_MODEL, "hidden_size"),
    "no width": (config(hidden_size=None), Code.UNSUPPORTED_MODEL, "hidden_size"),
    "padding beyond the vocabulary": (config(pad_token_id=99), Code.MISMATCHED_MODEL, "pad_token_id=99", "vocab_size="),
    # weights that do not fit config.json
    "more layers than the config has": (
        config(num_hidden_layers=2),
        Code.MISMATCHED_MODEL,
        "4 layers",
        "num_hidden_layers=2",
    ),
    "fewer layers than the config has": (
        config(num_hidden_layers=6),
        Code.MISMATCHED_MODEL,
        "4 layers",
        "num_hidden_layers=6",
    ),
    "layers without end": (
        config(num_hidden_layers=10**9),
        Code.MISMATCHED_MODEL,
        "4 layers",
        "num_hidden_layers=1000000000",
    ),
    "another width": (config(hidden_size=32), Code.MISMATCHED_MODEL, "word_embeddings.weight", " x 16", " x 32"),
    "another feed-forward": (
        config(intermediate_size=64),
        Code.MISMATCHED_MODEL,
        "intermediate.dense.weight",
        "32 x 16",
        "64 x 16",
    ),
    "another length": (
        config(max_position_embeddings=64),
        Code.MISMATCHED_MODEL,
        "position_embeddings.weight",
        "32 x 16",
        "64 x 16",
    ),
    "a smaller vocabulary": (config(vocab_size=9), Code.MISMATCHED_MODEL, "word_embeddings.weight", "9 x 16"),
    "a layer less": (weights(lambda s: without(s, "layer.3.")), Code.MISMATCHED_MODEL, "3 layers"),
    "a layer in the middle less": (weights(lambda s: without(s, "layer.1.")), Code.MISMATCHED_MODEL, "3 layers"),
    "a matrix less": (weights(lambda s: without(s, QUERY)), Code.MISMATCHED_MODEL, QUERY),
    "embeddings less": (
        weights(lambda s: without(s, "word_embeddings")),
        Code.MISMATCHED_MODEL,
        "embeddings.word_embeddings",
    ),
    "a head alone": (
        weights(lambda s: {"classifier.weight": torch.zeros(3, 16)}),
        Code.MISMATCHED_MODEL,
        "embeddings.word",
    ),
    "weights in eighths": (weights(lambda s: s | {QUERY: s[QUERY].to(torch.int8)}), Code.MISMATCHED_MODEL, "I8"),
    # a tokenizer that does not fit
    "another tokenizer": (
        lambda f: (removed("tokenizer.json")(f), written("vocab.txt", b"[PAD]\n" + b"a\n" * 60)(f)),
        Code.MISMATCHED_MODEL,
        "vocab.txt",
        "60",
        "vocab_size=",
    ),
    "a tokenizer of another kind": (
        settings(tokenizer_class="LlamaTokenizer"),
        Code.UNSUPPORTED_MODEL,
        "tokenizer_class=LlamaTokenizer",
    ),
    "a tokenizer class that is a number": (settings(tokenizer_class=3), Code.UNSUPPORTED_MODEL, "tokenizer_class=3"),
}

# what is read all the same
READ = {
    "a prefix": weights(lambda s: {f"bert.{name}": tensor for name, tensor in s.items()}),
    "no pooler": weights(lambda s: without(s, "pooler")),
    "a classifier of another task": weights(lambda s: s | {"classifier.weight": torch.zeros(7, 16)}),
    "half precision": weights(lambda s: {name: tensor.half() for name, tensor in s.items()}),
    "a buffer of older versions": weights(lambda s: s | {"embeddings.position_ids": torch.arange(32)[None]}),
    "a pickle beside the weights": written("pytorch_model.bin", b"cos\nsystem\n(S'false'\ntR."),
    "no padding token": config(pad_token_id=None),
    "another label list": config(id2label={"0": "good", "1": "bad"}, label2id={"good": 0, "bad": 1}),
    "rows to spare in the vocabulary": lambda f: (
        weights(lambda s: s | {WORDS: torch.cat([s[WORDS], torch.zeros(5, 16)])})(f),
        config(vocab_size=json.loads((f / "config.json").read_text())["vocab_size"] + 5)(f),
    ),
    "a vocabulary in lines": removed("tokenizer.json"),
}
WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture
def folder(teacher_folder, tmp_path):
    return Path(shutil.copytree(teacher_folder, tmp_path / "model"))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(folder, name):
    change, code, *named = REFUSED[name]
    change(folder)
    with refused(code, folder, *named):
        verify(folder)


@pytest.mark.parametrize("name", READ)
def test_read_as_is_said(folder, name):
    """Heads and labels of another task are left out; what is missing above the layers is drawn from the seed."""
    whole = load_pretrained(folder, "eager", seed=1)
    READ[name](folder)
    verify(folder)
    encoder = load_pretrained(folder, "eager", seed=1)
    assert encoder.dtype == torch.float32
    tolerance = 1e-3 if name == "half precision" else 0
    torch.testing.assert_close(encoder.encoder.state_dict(), whole.encoder.state_dict(), rtol=0, atol=tolerance)
    assert len(load_tokenizer(folder)("apple pear")["input_ids"]) == 4


def test_weights_that_are_not_finite_are_refused(folder):
    weights(lambda s: s | {QUERY: s[QUERY] * float("nan")})(folder)
    with refused(Code.MISMATCHED_MODEL, QUERY, kind=UserError):
        load_pretrained(folder, "eager", seed=0)


def test_a_tokenizer_that_cannot_be_read_is_refused(folder):
    settings(added_tokens_decoder=3)(folder)
    with refused(Code.MISMATCHED_MODEL, folder):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["fewer layers than the config has", "a pickle alone", "another tokenizer"])
def test_a_local_teacher_is_refused_before_anything_is_written(folder, data_folder, tmp_path, name):
    from kdbench.cli import main as cli

    change, code, *named = REFUSED[name]
    change(folder)
    words = f"teacher=local teacher.source={folder} dataset=files dataset.name=topics dataset.source={data_folder}"
    words += " dataset.splits.train=train.csv dataset.max_length=16 student.layers=2"
    (fault,) = cli.refuse([*words.split(), f"outputs={tmp_path / 'outputs'}"])
    assert (fault.code, fault.key) == (code, "teacher.source")
    assert [name for name in named if name not in fault.problem] == []
    assert not (tmp_path / "outputs").exists()


def test_a_teacher_that_was_trained_on_other_labels_is_refused(configure, execute, data_folder, tmp_path):
    teacher = execute(teacher_run(configure("method=logit_kd")))
    (tmp_path / "renamed").mkdir()
    for name in ("train.csv", "test.csv"):
        text = (data_folder / name).read_text().replace(",metal", ",metals")
        (tmp_path / "renamed" / name).write_text(text)
    from_run = ["teacher=run", f"teacher.path={teacher['folder']}", "method=logit_kd"]
    with refused(Code.UNSUITABLE_TEACHER, "'metal'", "'metals'", kind=UserError):
        execute(configure(*from_run, f"dataset.source={tmp_path / 'renamed'}"))


def test_an_exported_folder_is_judged_like_a_teacher(configure, execute):
    model = Path(execute(configure("method=finetune"))["folder"]) / "model"
    (model / "MANIFEST.json").unlink()  # as if it came from elsewhere
    kdbench.load(model)
    config(quantization_config={"quant_method": "bitsandbytes"})(model)
    with refused(Code.UNSAFE_CONTENT, "quantization_config"):
        kdbench.load(model)
    config(quantization_config={})(model)
    (model / "config.json").write_text((model / "config.json").read_text().replace("quantization_config", "x"))
    as_pickle(model)
    with refused(Code.UNSAFE_CONTENT, "pytorch_model.bin", "model.safetensors"):
        kdbench.load(model)
