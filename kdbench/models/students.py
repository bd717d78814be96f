"""What can be trained, whatever its architecture: build, initialise, run, save, load, count."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.declared import OWN, Architecture, architecture_traits, architectures, pruned_forms
from kdbench.errors import Code, UserError
from kdbench.models.network import network, view
from kdbench.schema import DEFAULT_TASK
from kdbench.sources.foreign import read_config, require_weights, with_pad_token
from kdbench.stage import Batch
from kdbench.storage import files as store
from kdbench.tasks import traits

_COUNTED: dict[tuple[Any, ...], int] = {}  # FLOPs by what they were asked of


def build(shape: dict[str, Any], label_names: list[str], attention: str, seed: int, task: str = DEFAULT_TASK) -> Any:
    """Return a randomly initialised model of the task; its weights are a function of `seed` alone.

    `shape` has the keys of a student (`architecture`, `layers` ...), vocab_size, max_positions and pad_token_id. For an
    architecture that is built from a checkpoint's config.json it has this (`config`), and `chosen_layers`: the layers
    (from 0) that the student's will be like.
    """
    own = traits(task)
    model = network(shape["architecture"]).build(shape, label_names, attention, seed, own.words)
    if own.problem_type is not None:
        model.config.problem_type = own.problem_type
    return model


def flops(shape: dict[str, Any], length: int, classes: int, task: str = DEFAULT_TASK) -> int:
    """Return the FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else.

    They are counted once for a shape, because the runs of a sweep often have the same one.
    """
    kind, words = network(shape["architecture"]), traits(task).words
    asked = (kind, repr(shape), length, classes, words)
    if asked not in _COUNTED:
        _COUNTED[asked] = kind.flops(shape, length, classes, words)
    return _COUNTED[asked]


def base(student: Any) -> Any:
    """Return the student without its task head."""
    return view(student).encoder


def load_base(student: Any, state: dict[str, Tensor]) -> None:
    """Start from an encoder that was trained before the task; a classifier of words has no use for its pooler."""
    encoder = base(student)
    own = encoder.state_dict()
    encoder.load_state_dict({name: value for name, value in state.items() if name in own or "pooler" not in name})


def input_names(model: Any, pairs: bool) -> list[str]:
    """Return what model, graph and tokenizer call the model's inputs; `pairs`: whether it reads two texts."""
    types = pairs and view(model).token_types
    return ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]


def forward(model: Any, batch: Batch) -> Tensor:
    """Return logits (B, C), of words (B, T, C), by the model's own forward, as whoever loads its folder calls it."""
    return view(model).forward(batch)


def logits(model: Any, batch: Batch) -> Tensor:
    """Return `forward`'s logits; where the layers can be walked, by the shortest way."""
    return view(model).logits(batch)


def save(model: Any, folder: Path, tokenizer_folder: Path, pairs: bool) -> None:
    """Write config.json, model.safetensors and the tokenizer; for stock architectures a plain Hugging Face folder.

    The tokenizer gives what the model takes: as the teacher's it may have given more, or less.
    """
    from transformers import AutoTokenizer

    view(model).save(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, model_input_names=input_names(model, pairs))
    with_pad_token(tokenizer).save_pretrained(folder)


def load(folder: Path, attention: str = "sdpa") -> Any:
    """Return the model in a run's `model` folder, in evaluation mode.

    Raises Damaged where a file is not what its manifest says, OSError where the folder holds no complete model,
    UserError where weights are missing, are a pickle, or config.json names code. Folders of other programs have no
    manifest.
    """
    if (folder / store.MANIFEST).exists():
        store.verify(folder / store.MANIFEST)
    require_weights(folder)
    return network(model_type(folder)).load(folder, attention)


def load_classifier(folder: Path, label_names: list[str], attention: str) -> Any:
    """`load` a classifier whose labels are these, in whichever order, and put its outputs in theirs."""
    model = load(folder, attention)
    own = [model.config.id2label[index] for index in range(len(label_names))]
    order = [own.index(name) for name in label_names]
    with torch.no_grad():
        for parameter in view(model).last_linear.parameters():
            parameter.copy_(parameter[order])
    model.config.id2label = dict(enumerate(label_names))
    model.config.label2id = {name: index for index, name in enumerate(label_names)}
    return model


def model_type(folder: Path) -> str:
    """Return the model_type in a folder's config.json: transformers', or one of kdbench's own (kdbench_...).

    Raises UserError where it is no architecture of kdbench.
    """
    kind = read_config(folder / "config.json").get("model_type")
    known = [*(one.model_type for one in architectures().values()), *(OWN + name for name in pruned_forms())]
    if kind not in known:
        raise UserError(
            Code.UNSUPPORTED_MODEL, f"{folder}: config.json has model_type={kind}; kdbench reads {', '.join(known)}"
        )
    return str(kind)


def folder_traits(folder: Path) -> type[Architecture]:
    """Return the traits of the model in a folder."""
    return architecture_traits(model_type(folder))


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
    """Return a new masked-LM head: forward(hidden (N, H), word embeddings (V, E)) -> (N, V)."""
    return view(student).mlm_head(seed)


def word_embeddings(encoder: Any) -> Tensor:
    """(V, E), E the width of the hidden states or, in MobileBERT, a smaller one."""
    return encoder.get_input_embeddings().weight


def last_hidden(encoder: Any, batch: Batch) -> Tensor:
    """(B, T, H)"""
    return encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
