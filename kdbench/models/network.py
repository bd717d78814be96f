"""A model of any architecture, by what all have: build, load, save, run, count.

`Network` is the base of `Model` in each architecture's file. An instance has no weights of its own: `view(model)` makes
one wherever it is needed. transformers is imported inside the functions, because methods import this module.
"""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.declared import OWN, Architecture, architecture_traits, file_name, pruned_forms
from kdbench.errors import Code, UserError
from kdbench.sources.foreign import read_config
from kdbench.sources.model_folder import SHAPE
from kdbench.stage import Batch


def network(architecture: str) -> "type[Network]":
    """Return what models of an architecture have, by its key or its model_type: the file name is the key.

    A pruned form (`pruned_bert`) is made of the original's.
    """
    found: Any = import_module(f"kdbench.models.{file_name(architecture)}").Model
    if (key := architecture.removeprefix(OWN)) in pruned_forms():
        return import_module("kdbench.models.pruned").form_of(found, key)
    return found


def view(model: Any) -> Any:
    """Return the `Model` of its architecture around a classifier, or around its encoder alone."""
    return network(model.config.model_type)(model)


class Network:
    """A classifier, or its encoder alone, of one architecture."""

    dropouts: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob")  # in config.json
    speeds: ClassVar[tuple[float, ...]] = (0.0,)  # at which a graph is compared with the model

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config: Any = model.config

    @property
    def encoder(self) -> Any:
        """The model without its task head."""
        return self.model.base_model

    @property
    def word_table(self) -> nn.Embedding | None:
        """The embeddings of the tokenizer's words; None where the vocabulary is that of the training texts."""
        return self.encoder.get_input_embeddings()

    @property
    def token_types(self) -> bool:
        """Whether it reads which of two texts a token is of."""
        return self.traits.token_types

    @property
    def no_onnx(self) -> str:
        """Why it has no ONNX form; empty where it has."""
        return self.traits.no_onnx

    @property
    def found_shape(self) -> dict[str, Any]:
        """What of the model's shape its training decided, and not the config of its run."""
        return {}

    # One class for all models of the architecture

    @classmethod
    def model_class(cls, words: bool) -> Any:
        """Return transformers' class of classifiers, of texts or of their `words`."""
        from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

        return AutoModelForTokenClassification if words else AutoModelForSequenceClassification

    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        """Return what config.json says of a student of this shape, `model_type` included."""
        raise NotImplementedError

    @classmethod
    def build(
        cls, shape: dict[str, Any], label_names: list[str], attention: str, seed: int, words: bool = False
    ) -> Any:
        """Return a classifier without dropout whose random weights are a function of `seed` alone.

        The caller's random state is left untouched.
        """
        from transformers import AutoConfig

        model_class, given = cls.model_class(words), cls.config_of(shape) | labels_of(label_names)
        config: Any = AutoConfig.for_model(**given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = model_class.from_config(
                config, attn_implementation=cls.attention(attention), dtype=torch.float32
            )
        cls(model).set_dropout(0.0)  # each stage sets its own
        return model

    @classmethod
    def attention(cls, implementation: str) -> str:
        """Return the implementation of attention that the architecture has, where this one was chosen."""
        return implementation

    @classmethod
    def load(cls, folder: Path, attention: str = "sdpa") -> Any:
        """Return the classifier in a folder, in evaluation mode.

        Raises OSError where the folder holds no complete model, UserError where weights are missing.
        """
        loaded: Any = cls.model_class(labels_words(folder)).from_pretrained(
            folder,
            attn_implementation=cls.attention(attention),
            dtype=torch.float32,
            output_loading_info=True,
        )
        model, report = loaded
        refuse_missing(folder, report["missing_keys"])
        return model.eval()

    @classmethod
    def load_mlm_head(cls, folder: Path) -> "nn.Module | None":
        """Return the masked-LM head of a checkpoint; None where it has none that is read here."""
        return None

    @classmethod
    def flops(cls, shape: dict[str, Any], length: int, classes: int, words: bool = False) -> int:
        """Return the FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else.

        torch counts them on a model without weights. Where a layer sees a window of the tokens, all pairs count,
        because all are computed.
        """
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            made = cls(cls.build(shape, [str(index) for index in range(classes)], "eager", 0, words).eval())
            made.encoder.config.pad_token_id = None  # else transformers looks for it, and here ids have no values
            made.counted(torch.ones(1, length, dtype=torch.long))
        return counter.get_total_flops()

    def counted(self, ids: Tensor) -> None:
        """Do the matrix products that `flops` counts, for ids (1, T)."""
        self.model(input_ids=ids)

    # One model

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        self.model.save_pretrained(folder)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (B, C), of words (B, T, C), by the model's own forward."""
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if self.token_types else ()))
        return self.model(**{name: value for name, value in batch.items() if name in names}).logits

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of `forward` by the shortest way there is."""
        return self.forward(batch)

    def mlm_head(self, seed: int) -> nn.Module:
        """Return a new masked-LM head: forward(hidden (N, H), word embeddings (V, E)) -> (N, V)."""
        vocabulary, width = self.encoder.get_input_embeddings().weight.shape
        return MlmHead(self.encoder.config.hidden_size, width, vocabulary, seed)

    @property
    def last_linear(self) -> nn.Linear:
        """The layer whose outputs are the logits: the last one outside the encoder, which XLM-R has behind its head."""
        inside = set(self.encoder.modules())
        return [one for one in self.model.modules() if isinstance(one, nn.Linear) and one not in inside][-1]

    def divide_logits(self, temperature: float) -> None:
        """Divide all logits that the model will give by a temperature, in its weights."""
        with torch.no_grad():
            for parameter in self.last_linear.parameters():
                parameter.div_(temperature)

    def set_dropout(self, dropout: float) -> None:
        """Give every dropout of the model, and config.json, the probability of the coming stage."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        for name in self.dropouts:
            setattr(self.config, name, dropout)

    # Its ONNX graph

    def traced(self) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
        """Return what torch.onnx traces: a module, its inputs besides those of every classifier, its outputs' names."""
        return _Plain(self.model), {}, ["logits"]

    def written(self) -> Any | None:
        """Return the graph as an onnx.ModelProto where it is not traced."""
        return None

    def at_speed(self, batch: Batch, speed: float) -> Tensor:
        """Return the logits that the graph must give; `speed` is that of a model with early exits."""
        return self.forward(batch)

    @property
    def traits(self) -> type[Architecture]:
        return architecture_traits(self.config.model_type)


class _Plain(nn.Module):
    """A classifier whose arguments and answer are tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits


class MlmHead(nn.Module):
    """BERT's masked-LM head (Devlin et al. 2019, A.1), whose output matrix is the word embeddings, handed in.

    `width`: that of the word embeddings; in ELECTRA and ALBERT it is not that of the hidden states.
    """

    def __init__(self, hidden: int, width: int, vocabulary: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.dense = nn.Linear(hidden, width)
            nn.init.normal_(self.dense.weight, std=0.02)
            nn.init.zeros_(self.dense.bias)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """(N, H), (V, E) -> (N, V)"""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), word_embeddings, self.bias)


def named_shape(own: type[Architecture], shape: dict[str, Any]) -> dict[str, Any]:
    """Return what config.json says of a shape, by the names that this architecture has for it."""
    names = {"pad_token_id": "pad_token_id"} | SHAPE | own.shape_keys
    return {"model_type": own.model_type} | {theirs: shape[ours] for ours, theirs in names.items()}


def labels_of(names: list[str]) -> dict[str, dict[Any, Any]]:
    """Return the keys of config.json that name the classes, in the order of the logits."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def labels_words(folder: Path) -> bool:
    """Return whether the classifier in a model's folder has an answer for each word."""
    named = read_config(folder / "config.json").get("architectures") or []
    return any(str(name).endswith("ForTokenClassification") for name in named)


def refuse_missing(folder: Path, missing: Iterable[str]) -> None:
    """Raise UserError where weights are missing."""
    if names := sorted(missing):
        raise UserError(Code.INCOMPLETE_MODEL, f"{folder}: weights are missing: {', '.join(names)}")
