"""TF-IDF and a linear layer: n-grams of a text's tokens, which are words and signs, or characters.

The tokenizer is a Hugging Face one (tokenizer.json), so that all who read the model's folder split texts alike. The
n-grams are looked up by number: no text is kept twice, and a graph of the same numbers gives the same answers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.declared import Architecture
from kdbench.errors import Code, UserError
from kdbench.models.network import labels_of
from kdbench.models.own import Output, OwnModel


class Traits(Architecture):
    model_type = "kdbench_tfidf"
    student = False  # method=tfidf makes it
    encoder = False
    token_types = False
    whole_texts = True
    probabilities = False
    no_int8 = "is not supported for TF-IDF: rounding would lose rare words. Its ONNX graph is small and exact"
    no_openvino = "is not supported for TF-IDF, which is fast already"


PAD, UNK, START = SPECIAL = ("[PAD]", "[UNK]", "[START]")  # ids 0, 1, 2; part of no n-gram
# A sign is a token of its own: there are texts of nothing else. \w is Onigruma's, with the vowel signs of Hindi.
PATTERNS = {"word": r"\w+|[^\w\s]", "char": r"."}
AT_A_TIME = 2000  # texts


class Texts(NamedTuple):
    """Tokens laid end to end: token ids[i] is of text rows[i], which rises."""

    rows: Tensor  # (T,)
    ids: Tensor  # (T,)
    n: int  # texts; one may have no token


class Counts(NamedTuple):
    """How often the n-grams are in the texts: an entry for each that is in a text, by text and n-gram."""

    rows: Tensor  # (E,)
    grams: Tensor  # (E,)
    times: Tensor  # (E,)
    n: int  # texts

    def below(self, gram: int) -> "Counts":
        """Of the n-grams before this one."""
        kept = self.grams < gram
        return Counts(self.rows[kept], self.grams[kept], self.times[kept], self.n)


class NGrams:
    """The n-grams of the texts that they were learned from; a text's others are nothing.

    They are numbered: those of one token first, by its id, then those of two, and so on. `keys[n - 2]` has, rising, a
    number for each of n tokens: (place of the n-gram without its last token) * vocabulary + last token.
    """

    def __init__(self, vocabulary: int, keys: Sequence[Tensor] = ()) -> None:
        self.vocabulary, self.keys = vocabulary, list(keys)

    @property
    def sizes(self) -> list[int]:
        """The number of n-grams of at most one token, of at most two, and so on."""
        return list(accumulate([self.vocabulary - len(SPECIAL), *map(len, self.keys)]))

    def learn(self, texts: Texts, longest: int) -> None:
        """Know each n-gram of up to `longest` tokens that is in these texts."""
        places = self._tokens(texts)
        for n in range(2, longest + 1):
            found = self._keys(texts, places, n)
            self.keys.append(found[found >= 0].unique())
            places = _places(self.keys[-1], found)

    def count(self, texts: Texts) -> Counts:
        places = self._tokens(texts)
        rows, grams = [texts.rows[places >= 0]], [places[places >= 0]]
        for n, (keys, before) in enumerate(zip(self.keys, self.sizes, strict=False), start=2):
            places = _places(keys, self._keys(texts, places, n))
            rows.append(texts.rows[: len(places)][places >= 0])
            grams.append(places[places >= 0] + before)
        known = max(self.sizes[-1], 1)
        entries, times = torch.unique(torch.cat(rows) * known + torch.cat(grams), return_counts=True)
        return Counts(entries // known, entries % known, times, texts.n)

    def _tokens(self, texts: Texts) -> Tensor:
        """(T,) The place of each token among those that count, -1 for a special one."""
        return (texts.ids - len(SPECIAL)).clamp(min=-1)

    def _keys(self, texts: Texts, places: Tensor, n: int) -> Tensor:
        """(T - n + 1,) Of what begins at each token and has n; -1 where it ends in another text or is no n-gram.

        `places`: among those of n - 1 tokens, likewise.
        """
        last, places = texts.ids[n - 1 :], places[: max(len(texts.ids) - n + 1, 0)]
        whole = (texts.rows[n - 1 :] == texts.rows[: len(last)]) & (last >= len(SPECIAL)) & (places >= 0)
        return torch.where(whole, places * self.vocabulary + last, -1)


def _places(keys: Tensor, found: Tensor) -> Tensor:
    """Where each number is in `keys`, -1 where it is not."""
    if not len(keys):
        return torch.full_like(found, -1)
    places = torch.searchsorted(keys, found).clamp(max=len(keys) - 1)
    return torch.where(keys[places] == found, places, -1)


def inverse_frequency(counts: Counts, grams: int) -> Tensor:
    """(G,) ln((1 + N) / (1 + n_g)) + 1, of N texts of which n_g have the n-gram; float64."""
    having = torch.bincount(counts.grams, minlength=grams)
    return ((1 + counts.n) / (1 + having.double())).log() + 1


def weights(counts: Counts, idf: Tensor, sublinear: bool) -> Tensor:
    """(E,) The counts, or 1 + ln of them, times `idf` (G,); each text's have the square sum 1."""
    times = counts.times.to(idf.dtype)
    raw = (1 + times.log() if sublinear else times) * idf[counts.grams]
    square = torch.zeros(counts.n, dtype=idf.dtype, device=idf.device).index_add(0, counts.rows, raw.square())
    return raw / square.sqrt()[counts.rows]


@dataclass
class TfIdfConfig:
    """What config.json holds; transformers' names where it has them."""

    analyzer: str  # word or char
    vocab_size: int  # tokens
    grams: list[int]  # n-grams of two tokens, of three, and so on
    sublinear_tf: bool
    id2label: dict[int, str]
    label2id: dict[str, int]
    problem_type: str | None = None  # transformers' word for several labels, or a number
    pad_token_id: int = 0
    model_type: str = Traits.model_type


class TfIdf(nn.Module):
    """Logits are distances from planes, no logarithms of odds; of a number, itself."""

    idf: Tensor

    def __init__(self, config: TfIdfConfig) -> None:
        super().__init__()
        self.config = config
        for n, size in enumerate(config.grams, start=2):
            self.register_buffer(f"keys_{n}", torch.zeros(size, dtype=torch.long))
        grams = self.ngrams.sizes[-1]
        self.register_buffer("idf", torch.zeros(grams))
        self.weight = nn.Parameter(torch.zeros(grams, len(config.id2label)))
        self.bias = nn.Parameter(torch.zeros(len(config.id2label)))

    @property
    def ngrams(self) -> NGrams:
        keys = [self.get_buffer(f"keys_{n}") for n in range(2, len(self.config.grams) + 2)]
        return NGrams(self.config.vocab_size, keys)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """Logits (B, C) of ids and mask, each (B, T); padding may stand behind a text only."""
        rows, columns = attention_mask.nonzero(as_tuple=True)
        return Output(self.logits(Texts(rows, input_ids[rows, columns], len(input_ids))))

    def logits(self, texts: Texts) -> Tensor:
        """(n, C)"""
        counts = self.ngrams.count(texts)
        weighed = weights(counts, self.idf, self.config.sublinear_tf)
        starts = torch.searchsorted(counts.rows, torch.arange(texts.n, device=texts.ids.device))
        return self.bias + F.embedding_bag(counts.grams, self.weight, starts, mode="sum", per_sample_weights=weighed)


def build(
    ngrams: NGrams,
    idf: Tensor,
    planes: Tensor,
    offsets: Tensor,
    analyzer: str,
    sublinear: bool,
    label_names: list[str],
    problem_type: str | None,
) -> TfIdf:
    """The model of idf (G,), planes (G, C) and offsets (C,), in float32."""
    labels: Any = labels_of(label_names)
    config = TfIdfConfig(
        analyzer=analyzer,
        vocab_size=ngrams.vocabulary,
        grams=[len(keys) for keys in ngrams.keys],
        sublinear_tf=sublinear,
        problem_type=problem_type,
        **labels,
    )
    model = TfIdf(config)
    state = {"idf": idf, "weight": planes, "bias": offsets}
    model.load_state_dict(state | {f"keys_{n}": keys for n, keys in enumerate(ngrams.keys, start=2)})
    return model.eval()


class Model(OwnModel):
    config_class, module_class = TfIdfConfig, TfIdf

    def written(self) -> Any:
        """Return a graph of plain operators."""
        from onnx import TensorProto, helper, numpy_helper

        model, config, ngrams = self.model, self.config, self.model.ngrams
        pools = [torch.arange(len(SPECIAL), config.vocab_size)[:, None]]  # (n-grams, n) of tokens
        for keys in ngrams.keys:
            pools.append(torch.cat([pools[-1][keys // config.vocab_size], keys[:, None] % config.vocab_size], 1))
        sizes = [pool.numel() for pool in pools]
        constants = {
            "one": np.array(1, np.float32),
            "least": np.array(1e-12, np.float32),  # the length of a text without a known n-gram
            "idf": model.idf.numpy(),
            "weight": model.weight.detach().numpy(),
            "bias": model.bias.detach().numpy(),
        }
        nodes = [
            helper.make_node("Mul", ["input_ids", "attention_mask"], ["ids"]),  # [PAD] is 0
            helper.make_node(
                "TfIdfVectorizer", ["ids"], ["times"], mode="TF", min_gram_length=1, max_gram_length=len(pools),
                max_skip_count=0, ngram_counts=[sum(sizes[:n]) for n in range(len(sizes))],
                ngram_indexes=list(range(ngrams.sizes[-1])),
                pool_int64s=torch.cat([p.flatten() for p in pools]).tolist(),
            ),
        ]  # fmt: skip
        counted = "times"
        if config.sublinear_tf:
            for kind, given, made in (
                ("Max", ["times", "one"], "there"), ("Log", ["there"], "log"), ("Add", ["log", "one"], "raised"),
                ("Min", ["times", "one"], "whether"), ("Mul", ["raised", "whether"], "counted"),
            ):  # fmt: skip
                nodes.append(helper.make_node(kind, given, [made]))
            counted = "counted"
        nodes += [
            helper.make_node("Mul", [counted, "idf"], ["raw"]),
            helper.make_node("ReduceL2", ["raw"], ["length"], axes=[1], keepdims=1),
            helper.make_node("Max", ["length", "least"], ["divisor"]),
            helper.make_node("Div", ["raw", "divisor"], ["weighed"]),
            helper.make_node("MatMul", ["weighed", "weight"], ["sums"]),
            helper.make_node("Add", ["sums", "bias"], ["logits"]),
        ]
        shape = ["batch", "length"]
        inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("input_ids", "attention_mask")]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(config.id2label)])]
        tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "tfidf", inputs, outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def tokenizer_of(inputs: Sequence[tuple[str, ...]], analyzer: str) -> Any:
    """A Hugging Face fast tokenizer that knows each token of these texts, or pairs; no n-gram is of both texts of one.

    Forms of one letter (full-width, composed, capital) are one; white space between characters is one token. Raises
    UserError where there is no token.
    """
    from tokenizers import Regex, Tokenizer, normalizers
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import WordLevelTrainer
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel(vocab={}, unk_token=UNK))
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), one_space, normalizers.Strip()]
    )
    made.pre_tokenizer = Split(Regex(PATTERNS[analyzer]), "removed", invert=True)
    trainer = WordLevelTrainer(vocab_size=2**31, min_frequency=0, special_tokens=list(SPECIAL), show_progress=False)
    made.train_from_iterator((text for given in inputs for text in given), trainer)
    if made.get_vocab_size() == len(SPECIAL):
        raise UserError(
            Code.INVALID_TEXT, "method=tfidf: every text of train is blank: is dataset.text the column of the texts?"
        )
    start = SPECIAL.index(START)
    made.post_processor = TemplateProcessing(f"{START} $A", f"{START} $A {START} $B", [(START, start)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=START,
        model_input_names=["input_ids", "attention_mask"],
    )


def encode(tokenizer: Any, inputs: Sequence[tuple[str, ...]]) -> Texts:
    """Texts, or pairs of them, whole."""
    lengths: list[int] = []
    ids = [torch.zeros(0, dtype=torch.long)]
    for start in range(0, len(inputs), AT_A_TIME):
        given = [one[0] if len(one) == 1 else one for one in inputs[start : start + AT_A_TIME]]
        encoded = [one.ids for one in tokenizer.backend_tokenizer.encode_batch_fast(given)]
        lengths += map(len, encoded)
        ids.append(torch.from_numpy(np.fromiter(chain.from_iterable(encoded), np.int64)))
    rows = torch.arange(len(inputs)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    return Texts(rows, torch.cat(ids), len(inputs))


# Scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")


def unspaced_share(inputs: Sequence[Sequence[str]]) -> float:
    """Return the share of characters, spaces apart, of scripts that put no space between words."""
    characters = sum(len("".join(text.split())) for parts in inputs for text in parts)
    found = sum(len(_UNSPACED.findall(text)) for parts in inputs for text in parts)
    return found / characters if characters else 0.0


def unknown_share(texts: Texts) -> float:
    """The share of tokens that the tokenizer does not know; 0 where there is none."""
    tokens = texts.ids[texts.ids != SPECIAL.index(START)]
    return (tokens == SPECIAL.index(UNK)).double().mean().item() if len(tokens) else 0.0
