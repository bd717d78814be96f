"""What can be trained, whatever its architecture: build, initialise, run, save, load, count."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.models import bert, bilstm, distilbert, fastbert, mobilebert, relu_head, stock, tfidf
from kdbench.models.encoders import view
from kdbench.sources.foreign import read_config, require_weights, with_pad_token
from kdbench.stage import Batch
from kdbench.storage import files as store

# transformers' words for what a head's outputs are; of classes they are its default.
_PROBLEMS = {"multi_label": "multi_label_classification", "regression": "regression"}
STOCK = (
    "roberta",
    "xlm-roberta",
    "electra",
    "albert",
    "deberta-v2",
    "modernbert",
)  # built after a checkpoint's config.json
LAYERED = ("bert", "distilbert", *STOCK)  # walked layer by layer (encoder.py)
_BASES = {"distilbert": "distilbert", "mobilebert": "mobilebert", "kdbench_ib_bert": "mobilebert"} | {
    "roberta": "roberta", "xlm-roberta": "roberta", "electra": "electra", "albert": "albert", "deberta-v2": "deberta",
    "modernbert": "model",
}  # fmt: skip
_WITHOUT_TYPES = (
    "distilbert",
    "roberta",
    "xlm-roberta",
    "deberta-v2",
    "modernbert",
    tfidf.MODEL_TYPE,
)  # which sentence a token is of says nothing to them


def build(
    shape: dict[str, Any], label_names: list[str], attention: str, seed: int, task: str = "classification"
) -> Any:
    """A randomly initialised model of the task; its weights are a function of `seed` alone.

    `shape` has the keys of a student (`architecture`, `layers` ...) and vocab_size, max_positions, pad_token_id, and
    for an architecture of `STOCK` what stock.build asks for.
    """
    model = _build(shape, label_names, attention, seed, task == "token_classification")
    if task in _PROBLEMS and shape["architecture"] != "bilstm":  # whose folder transformers does not read
        model.config.problem_type = _PROBLEMS[task]
    return model


def _build(shape: dict[str, Any], label_names: list[str], attention: str, seed: int, words: bool) -> Any:
    match shape["architecture"]:
        case "bert":
            return bert.build(shape, label_names, attention, seed, words)
        case "distilbert":
            return distilbert.build(shape, label_names, attention, seed, words)
        case "mobilebert":
            return mobilebert.build(shape, label_names, attention, seed)
        case "ib_bert":
            return mobilebert.build_ib(shape, label_names, attention, seed)
        case "fastbert":
            return fastbert.build(shape, label_names, attention, seed)
        case "bilstm":
            return bilstm.build(shape, label_names, seed)
        case kind if kind in STOCK:
            return stock.build(shape, label_names, attention, seed)
        case other:
            raise ValueError(other)


def base(student: Any) -> Any:
    """The student without its task head."""
    return getattr(student, _BASES.get(student.config.model_type, "bert"))


def load_base(student: Any, state: dict[str, Tensor]) -> None:
    """Start from an encoder that was trained before the task; a classifier of words has no use for its pooler."""
    encoder = base(student)
    own = encoder.state_dict()
    encoder.load_state_dict({name: value for name, value in state.items() if name in own or "pooler" not in name})


def copy_layers(source: Any, student: Any, layers: list[int]) -> None:
    """Start the student from the listed layers (from 0), the embeddings and the pooler of an encoder of its kind.

    A DistilBERT starts from a BERT, too.
    """
    if (source.base_model_prefix, student.config.model_type) == ("bert", "distilbert"):
        distilbert.copy_from_bert(source, student.distilbert, layers, add_token_type=True)
    else:
        view(base(student)).copy_from(view(source), layers)


def reads_types(model: Any) -> bool:
    """Whether the model can tell two sentences apart by token types."""
    return model.config.model_type not in _WITHOUT_TYPES


def input_names(model: Any, pairs: bool) -> list[str]:
    """What the model, its graph and its tokenizer call the model's inputs; `pairs`: whether it reads two texts."""
    return ["input_ids", "attention_mask", *(["token_type_ids"] if pairs and reads_types(model) else [])]


def forward(model: Any, batch: Batch) -> Tensor:
    """Logits (B, C), of words (B, T, C), by the model's own forward, as whoever loads its folder calls it."""
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if reads_types(model) else ()))
    return model(**{name: value for name, value in batch.items() if name in names}).logits


def logits(model: Any, batch: Batch) -> Tensor:
    """`forward`'s logits; where the layers can be walked, by the shortest way."""
    return view(model).logits(batch) if model.config.model_type in LAYERED else forward(model, batch)


def save(model: Any, folder: Path, tokenizer_folder: Path, pairs: bool) -> None:
    """config.json, model.safetensors and the tokenizer; for stock architectures a plain Hugging Face folder.

    The tokenizer gives what the model takes: as the teacher's it may have given more, or less.
    """
    from transformers import AutoTokenizer

    kind = relu_head.RELU_BERT if getattr(model.config, "relu_head", False) else model.config.model_type
    match kind:
        case relu_head.RELU_BERT:
            relu_head.save_relu_head(model, folder)
        case "kdbench_bilstm":
            bilstm.save(model, folder)
        case "kdbench_fastbert":
            fastbert.save(model, folder)
        case tfidf.MODEL_TYPE:
            tfidf.save(model, folder)
        case "kdbench_ib_bert":
            mobilebert.save_ib(model, folder)
        case _:
            model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, model_input_names=input_names(model, pairs))
    with_pad_token(tokenizer).save_pretrained(folder)


def load(folder: Path, attention: str = "sdpa") -> Any:
    """The model in a run's `model` folder, in evaluation mode.

    Raises Damaged where a file is not what its manifest says, OSError where the folder holds no complete model,
    UserError where weights are missing, are a pickle, or config.json names code. Folders of other programs have no
    manifest.
    """
    if (folder / store.MANIFEST).exists():
        store.verify(folder / store.MANIFEST)
    require_weights(folder)
    match model_type(folder):
        case relu_head.RELU_BERT:
            return relu_head.load_relu_head(folder, attention)
        case "kdbench_bilstm":
            return bilstm.load(folder)
        case "kdbench_fastbert":
            return fastbert.load(folder, attention)
        case tfidf.MODEL_TYPE:
            return tfidf.load(folder)
        case "kdbench_ib_bert":
            return mobilebert.load_ib(folder, attention)
        case "distilbert":
            return distilbert.load(folder, attention)
        case "mobilebert":
            return mobilebert.load(folder, attention)
        case kind if kind in STOCK:
            return stock.load(folder, kind, attention)
        case _:
            return bert.load(folder, attention)


def load_classifier(folder: Path, label_names: list[str], attention: str) -> Any:
    """`load` a classifier whose labels are these, in whichever order, and put its outputs in theirs."""
    model = load(folder, attention)
    own = [model.config.id2label[index] for index in range(len(label_names))]
    order = [own.index(name) for name in label_names]
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]  # of every architecture's
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[order])
    model.config.id2label = dict(enumerate(label_names))
    model.config.label2id = {name: index for index, name in enumerate(label_names)}
    return model


def model_type(folder: Path) -> str:
    """Of the model in a folder: transformers' name for it, or one of kdbench's own (kdbench_...)."""
    return str(read_config(folder / "config.json").get("model_type"))


def flops(shape: dict[str, Any], length: int, classes: int, task: str = "classification") -> int:
    """FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else."""
    words = task == "token_classification"
    match shape["architecture"]:
        case "distilbert":
            return distilbert.flops(shape, length, classes, words)
        case "mobilebert":
            return mobilebert.flops(shape, length, classes)
        case "ib_bert":
            return mobilebert.flops(shape, length, classes, ib=True)
        case "bilstm":
            return bilstm.flops(shape, length, classes)
        case "fastbert":
            return fastbert.flops_at_speed_0(shape, length, classes)
        case kind if kind in STOCK:
            return stock.flops(shape, length, classes)
        case _:
            return bert.flops(shape, length, classes, words)


def set_dropout(student: Any, dropout: float) -> None:
    """Give every dropout of the student the probability of the coming stage."""
    bert.set_dropout(student, dropout)
    if student.config.model_type in LAYERED:
        view(student).set_dropout(dropout)


def compile_layers(student: nn.Module) -> None:
    """Let torch.compile make the student's layers, each when first called; names of weights stay as they are.

    Layer by layer, because the layers of a stack share one compiled function, and a whole step does not: methods walk
    the layers themselves.
    """
    for stack in student.modules():
        if isinstance(stack, nn.ModuleList):
            for layer in stack:
                layer.compile(dynamic=True)  # batches differ in size and length


def mlm_head(student: Any, seed: int) -> nn.Module:
    """A fresh masked-LM head: forward(hidden (N, H), word embeddings (V, E)) -> (N, V)."""
    if student.config.model_type in ("mobilebert", "kdbench_ib_bert"):
        return mobilebert.mlm_head(base(student), seed)
    vocabulary, width = word_embeddings(base(student)).shape
    return bert.MlmHead(base(student).config.hidden_size, width, vocabulary, seed)


def word_table(student: Any) -> nn.Embedding | None:
    """Where words enter; None for a BiLSTM, whose vocabulary is its training texts' own."""
    return None if student.config.model_type == bilstm.MODEL_TYPE else base(student).get_input_embeddings()


def word_embeddings(encoder: Any) -> Tensor:
    """(V, E), E the width of the hidden states or, in MobileBERT, a smaller one."""
    return encoder.get_input_embeddings().weight


def last_hidden(encoder: Any, batch: Batch) -> Tensor:
    """(B, T, H)"""
    return encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
