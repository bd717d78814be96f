"""Model folders as users have them: each fault is refused in words that name the file, or is read as is said here."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdbench
from kdbench.data.tokenize import load_tokenizer
from kdbench.errors import SourceError, UserError
from kdbench.models.stock import load_pretrained
from kdbench.runs.related import teacher_run
from kdbench.sources.model_folder import verify

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


# name -> (what is done to a good folder, how the refusal reads)
REFUSED = {
    # what is not there, or not what it says
    "an empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), r"is not a model folder: it has no config\.json"),
    "no tokenizer": (removed("tokenizer.json", "vocab.txt"), r"neither tokenizer\.json nor vocab\.txt"),
    "no weights": (removed("model.safetensors"), r"has no model\.safetensors: save the model there"),
    "a pickle alone": (as_pickle, r"has pytorch_model\.bin, but no model\.safetensors; .*\n.*save_pretrained"),
    "a config that is no JSON": (written("config.json", b"{"), r"config\.json cannot be read as JSON"),
    "a config that is a list": (written("config.json", b"[]"), r"config\.json holds list, not a JSON object"),
    "a config in UTF-16": (written("config.json", "{}".encode("utf-16")), r"config\.json cannot be read as JSON"),
    "a config without an end": (written("config.json", b"[" * 100_000), r"config\.json cannot be read as JSON"),
    "weights of another kind": (written("model.safetensors", b"\x80\x04N."), r"cannot be read as safetensors"),
    "empty weights": (written("model.safetensors", b""), r"cannot be read as safetensors"),
    "a pointer to weights": (
        written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        r"cannot be read as safetensors",
    ),
    "a tokenizer that is no JSON": (written("tokenizer.json", b"{"), r"tokenizer\.json cannot be read as a tokenizer"),
    "a vocabulary in latin-1": (
        lambda f: (removed("tokenizer.json")(f), written("vocab.txt", "é\n".encode("latin-1"))(f)),
        r"vocab\.txt is not UTF-8",
    ),
    # another architecture
    "GPT-2": (config(model_type="gpt2"), r"model_type=gpt2; kdbench reads bert, roberta, xlm-roberta, electra"),
    "RoBERTa": (config(model_type="roberta"), r"has pad_token_id=0; kdbench reads roberta with 1 only"),
    "DistilBERT": (config(model_type="distilbert"), r"gives no n_layers"),
    "DeBERTa": (config(model_type="deberta-v2"), r"has relative_attention=None; kdbench reads deberta-v2 with True"),
    "ModernBERT": (config(model_type="modernbert"), r"lacks embeddings\.tok_embeddings\.weight: .* of a modernbert"),
    "no model type": (config(model_type=None), r"model_type=None"),
    "another activation": (config(hidden_act="relu"), r"hidden_act='relu'; kdbench reads bert with 'gelu' only"),
    "another epsilon": (config(layer_norm_eps=1e-5), r"layer_norm_eps=1e-05; .* with 1e-12 only"),
    "one token type": (config(type_vocab_size=1), r"type_vocab_size=1"),
    "relative positions": (config(position_embedding_type="relative_key"), r"position_embedding_type='relative_key'"),
    "a decoder": (config(is_decoder=True), r"is_decoder=True"),
    "heads that do not divide": (config(num_attention_heads=3), r"num_attention_heads=3 must divide hidden_size=16"),
    "no layers": (config(num_hidden_layers=0), r"num_hidden_layers=0: it must be 1 or more"),
    "a width in words": (config(hidden_size="16"), r"gives no hidden_size"),
    "no width": (config(hidden_size=None), r"gives no hidden_size"),
    "padding beyond the vocabulary": (config(pad_token_id=99), r"pad_token_id=99, but vocab_size=\d+: no such token"),
    # weights that do not fit config.json
    "more layers than the config has": (config(num_hidden_layers=2), r"weights of 4 layers, .*num_hidden_layers=2"),
    "fewer layers than the config has": (config(num_hidden_layers=6), r"weights of 4 layers, .*num_hidden_layers=6"),
    "layers without end": (config(num_hidden_layers=10**9), r"weights of 4 layers, .*num_hidden_layers=1000000000"),
    "another width": (config(hidden_size=32), r"word_embeddings\.weight is \d+ x 16, by config\.json it is \d+ x 32"),
    "another feed-forward": (config(intermediate_size=64), r"intermediate\.dense\.weight is 32 x 16, .* 64 x 16"),
    "another length": (config(max_position_embeddings=64), r"position_embeddings\.weight is 32 x 16, .* 64 x 16"),
    "a smaller vocabulary": (config(vocab_size=9), r"word_embeddings\.weight is \d+ x 16, .* 9 x 16"),
    "a layer less": (weights(lambda s: without(s, "layer.3.")), r"weights of 3 layers"),
    "a layer in the middle less": (weights(lambda s: without(s, "layer.1.")), r"weights of 3 layers"),
    "a matrix less": (weights(lambda s: without(s, QUERY)), rf"lacks {QUERY}: it does not hold"),
    "embeddings less": (weights(lambda s: without(s, "word_embeddings")), r"lacks embeddings\.word_embeddings"),
    "a head alone": (weights(lambda s: {"classifier.weight": torch.zeros(3, 16)}), r"lacks embeddings\.word"),
    "weights in eighths": (weights(lambda s: s | {QUERY: s[QUERY].to(torch.int8)}), r"holds I8"),
    # a tokenizer that does not fit
    "another tokenizer": (
        lambda f: (removed("tokenizer.json")(f), written("vocab.txt", b"[PAD]\n" + b"a\n" * 60)(f)),
        r"vocab\.txt has tokens up to number 60, but config\.json vocab_size=\d+: it is the tokenizer of another",
    ),
    "a tokenizer of another kind": (settings(tokenizer_class="LlamaTokenizer"), r"tokenizer_class=LlamaTokenizer"),
    "a tokenizer class that is a number": (settings(tokenizer_class=3), r"tokenizer_class=3"),
}  # fmt: skip

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
    change, message = REFUSED[name]
    change(folder)
    with pytest.raises(SourceError, match=message) as refusal:
        verify(folder)
    assert str(folder) in str(refusal.value)


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
    with pytest.raises(UserError, match=rf"{QUERY} holds numbers that are not finite"):
        load_pretrained(folder, "eager", seed=0)


def test_a_tokenizer_that_cannot_be_read_is_refused(folder):
    settings(added_tokens_decoder=3)(folder)
    with pytest.raises(SourceError, match="its tokenizer cannot be read"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["fewer layers than the config has", "a pickle alone", "another tokenizer"])
def test_a_local_teacher_is_refused_before_anything_is_written(folder, data_folder, tmp_path, name):
    from kdbench.cli import main as cli

    change, message = REFUSED[name]
    change(folder)
    words = f"teacher=local teacher.source={folder} dataset=files dataset.name=topics dataset.source={data_folder}"
    words += " dataset.splits.train=train.csv dataset.max_length=16 student.layers=2"
    (fault,) = cli.refuse([*words.split(), f"outputs={tmp_path / 'outputs'}"])
    assert fault.key == "teacher.source"
    with pytest.raises(SourceError, match=message):
        raise SourceError(fault.problem)
    assert not (tmp_path / "outputs").exists()


def test_a_teacher_that_was_trained_on_other_labels_is_refused(configure, execute, data_folder, tmp_path):
    teacher = execute(teacher_run(configure("method=logit_kd")))
    (tmp_path / "renamed").mkdir()
    for name in ("train.csv", "test.csv"):
        text = (data_folder / name).read_text().replace(",metal", ",metals")
        (tmp_path / "renamed" / name).write_text(text)
    from_run = ["teacher=run", f"teacher.path={teacher['folder']}", "method=logit_kd"]
    with pytest.raises(UserError, match=r"the teacher's labels \[.*'metal'.*\] are not the data's \[.*'metals'"):
        execute(configure(*from_run, f"dataset.source={tmp_path / 'renamed'}"))


def test_an_exported_folder_is_judged_like_a_teacher(configure, execute):
    model = Path(execute(configure("method=finetune"))["folder"]) / "model"
    (model / "MANIFEST.json").unlink()  # as if it came from elsewhere
    kdbench.load(model)
    config(quantization_config={"quant_method": "bitsandbytes"})(model)
    with pytest.raises(UserError, match="quantization_config would load code"):
        kdbench.load(model)
    config(quantization_config={})(model)
    (model / "config.json").write_text((model / "config.json").read_text().replace("quantization_config", "x"))
    as_pickle(model)
    with pytest.raises(UserError, match=r"has pytorch_model\.bin, but no model\.safetensors"):
        kdbench.load(model)
