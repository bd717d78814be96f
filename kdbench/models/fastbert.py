"""FastBERT (Liu et al. 2020): a BERT with a classifier behind every layer, which stops where it is sure.

A branch head sits behind each of the L layers; the last one is the paper's teacher classifier, of the same form.
At inference a row leaves after the first layer whose head is less uncertain than `speed`, and the batch shrinks
to the rows that are left. As in the authors' code, and unlike other ports, a head has its tanh and its attention
sees no padding; a row that no head is sure of is answered by the last one.

transformers is imported inside the functions: methods import this module, and a refusal must come quickly.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.errors import Code, UserError
from kdbench.models.encoder import attention_bias

WIDTH = 128  # of a branch head
HEADS = 2  # of its attention


class Output(NamedTuple):
    """What `forward` returns: the form of transformers' classifiers."""

    logits: Tensor  # (B, C)


class Branch(nn.Module):
    """A classifier on one layer's states: narrow, attend, take [CLS], classify (Liu et al. 2020, section 3.1)."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(hidden, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.0)  # of the attention; each stage sets its own
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) from hidden states (B, T, H) and the mask (B, T), 0 = padding."""
        x = torch.tanh(self.narrow(hidden))
        # Only [CLS] is read afterwards, so only its query is asked: same answer, fewer products.
        query, key, value = (_split(y) for y in (self.query(x[:, :1]), self.key(x), self.value(x)))
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)  # (B, A, 1, T)
        scores = scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min)
        attended = self.dropout(scores.softmax(-1)) @ value  # (B, A, 1, d)
        return self.classifier(torch.tanh(self.dense(self.output(attended.flatten(1)))))


def _split(x: Tensor) -> Tensor:
    """(B, T, A * d) -> (B, A, T, d)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class FastBert(nn.Module):
    """A BertModel without pooler, and a `Branch` behind each of its layers."""

    def __init__(self, config: Any) -> None:
        from transformers import BertModel

        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.config: Any = self.bert.config
        self.branches = nn.ModuleList(
            Branch(config.hidden_size, len(config.id2label)) for _ in range(config.num_hidden_layers)
        )

    @property
    def speed(self) -> float:
        """The uncertainty below which `forward` lets a row leave; 0 = all layers for all rows."""
        return self.config.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self.config.speed = speed

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Output:
        """Logits (B, C) at the model's own `speed`."""
        return Output(self.early_exit(input_ids, attention_mask, self.speed, token_type_ids)[0])

    def early_exit(
        self, input_ids: Tensor, attention_mask: Tensor, speed: float, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the layer each row left after (B,), 1..L, both in the order of the input.

        A row leaves where its uncertainty is below `speed`, strictly, so that at 0 none does: then no head but
        the last is computed (Liu et al. 2020, section 3.3).
        """
        x, bias = self._embed(input_ids, attention_mask, token_type_ids)
        mask, rows = attention_mask, torch.arange(len(input_ids), device=input_ids.device)  # those still inside
        left: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, their logits, their layer
        last = len(self.branches)
        for number, (layer, branch) in enumerate(zip(self.bert.encoder.layer, self.branches, strict=True), start=1):
            x = layer(x, bias)
            if number < last and speed <= 0:
                continue
            z = branch(x, mask)
            sure = uncertainty(z) < speed if number < last else torch.ones_like(rows, dtype=torch.bool)
            leave, stay = sure.nonzero().squeeze(1), (~sure).nonzero().squeeze(1)
            left.append((rows[leave], z[leave], torch.full_like(leave, number)))
            if not len(stay):
                break
            if len(leave):
                rows = rows[stay]
                x, mask = _trim(x[stay], mask[stay])
                bias = attention_bias(self, x, mask)
        rows, logits, exit_layer = (torch.cat(parts) for parts in zip(*left, strict=True))
        order = rows.argsort()
        return logits[order], exit_layer[order]

    def all_logits(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits of every head (L, B, C) in one pass.

        Gradients reach the heads only: self-distillation leaves the backbone as it is. Whether its dropout is
        off as well is the caller's business.
        """
        logits = []
        with torch.no_grad():
            x, bias = self._embed(input_ids, attention_mask, token_type_ids)
        for layer, branch in zip(self.bert.encoder.layer, self.branches, strict=True):
            with torch.no_grad():
                x = layer(x, bias)
            logits.append(branch(x, attention_mask))
        return torch.stack(logits)

    def _embed(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> tuple[Tensor, Any]:
        """The first layer's input (B, T, H) and the mask in the form that the layers take."""
        x = self.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        return x, attention_bias(self, x, attention_mask)


def uncertainty(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over that of the uniform distribution: (B, C) -> (B,) in [0, 1], 0 log 0 = 0.

    Liu et al. 2020, section 3.3. Summed in float64 and returned in float32, which makes equal logits exactly 1:
    they never fall below a speed of 1.
    """
    return (torch.special.entr(logits.double().softmax(-1)).sum(-1) / math.log(logits.shape[-1])).float()


def _trim(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the columns, from the right, that are padding in every row: x (B, T, H), mask (B, T)."""
    length = int(mask.any(0).nonzero().max()) + 1
    return x[:, :length], mask[:, :length]


@cache
def _config_class() -> Any:
    """The backbone's configuration with a speed, defined on first use because its base is transformers'."""
    from transformers import BertConfig

    class FastBertConfig(BertConfig):
        model_type = "kdbench_fastbert"  # its own: with BERT's, the folder would load as what it is not
        speed: float = 0.0

    return FastBertConfig


def build(shape: dict[str, Any], label_names: list[str], attention: str, seed: int) -> FastBert:
    """A randomly initialised FastBert of speed 0.

    `shape`: vocab_size, max_positions, pad_token_id, layers, hidden, heads, ffn. The weights are a function of
    `seed` alone; the caller's random state is left untouched. The heads keep PyTorch's initialisation, as the
    authors' do behind a pretrained backbone.
    """
    config = _config_class()(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["ffn"],
        max_position_embeddings=shape["max_positions"],
        pad_token_id=shape["pad_token_id"],
        hidden_dropout_prob=0.0,  # each stage sets its own
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(label_names)),
        label2id={name: index for index, name in enumerate(label_names)},
        attn_implementation=attention,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FastBert(config)


def save(model: FastBert, folder: Path) -> None:
    """config.json with model_type kdbench_fastbert and the speed, and model.safetensors; only `load` reads them."""
    from safetensors.torch import save_file

    model.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def load(folder: Path, attention: str) -> FastBert:
    """A FastBert's folder, in evaluation mode and with its speed.

    Raises OSError where the folder holds no complete model, UserError where weights are missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _config_class().from_pretrained(folder, attn_implementation=attention)
    try:
        weights = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise OSError(f"{folder}: model.safetensors is cut short or damaged: {error}") from error
    with torch.random.fork_rng(devices=[]):
        model = FastBert(config)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise UserError(Code.INCOMPLETE_MODEL, f"{folder}: weights are missing: {', '.join(sorted(missing))}")
    return model.eval()


def flops(shape: dict[str, Any], length: int, classes: int, exit_layer: int) -> int:
    """FLOPs of one example of `length` tokens that leaves after `exit_layer`, all heads up to there asked.

    Counted as the authors do: 2 per multiply-add in linear layers only, with the head's attention for all tokens,
    without attention scores and last classifier. So `classes` counts for nothing (it is taken because all
    architectures are asked alike), and the figures are not comparable with those of other architectures here,
    which count scores and classifier: `flops_at_speed_0` is.
    """
    return exit_layer * (_layer_flops(shape, length) + _head_flops(shape, length))


def full_flops(shape: dict[str, Any], length: int) -> int:
    """FLOPs at speed 0, all layers and the last head only, counted as in `flops`: the base of every speed-up."""
    return shape["layers"] * _layer_flops(shape, length) + _head_flops(shape, length)


def flops_at_speed_0(shape: dict[str, Any], length: int, classes: int) -> int:
    """FLOPs of one example through all layers and the last head, every matrix product: as for other architectures."""
    h, t = shape["hidden"], length
    scores = 2 * t * (t * h * shape["layers"] + WIDTH)  # and weighted values
    head = t * h * WIDTH + 2 * t * WIDTH**2 + 3 * WIDTH**2 + WIDTH * classes  # query, output, dense: of [CLS] alone
    return shape["layers"] * _layer_flops(shape, length) + 2 * (scores + head)


def _layer_flops(shape: dict[str, Any], length: int) -> int:
    h, f = shape["hidden"], shape["ffn"]
    return 2 * length * (4 * h * h + 2 * h * f)


def _head_flops(shape: dict[str, Any], length: int) -> int:
    return 2 * (length * (shape["hidden"] * WIDTH + 4 * WIDTH * WIDTH) + WIDTH * WIDTH)
