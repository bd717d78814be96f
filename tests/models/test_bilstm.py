"""Oracle O2 (sizes) and what a BiLSTM must not depend on: padding, company in the batch, the caller's RNG."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.data import vocabulary
from kdbench.errors import Code, UserError
from kdbench.models import bilstm, students
from kdbench.models.network import view
from tests.refusals import refused

LABELS = ["a", "b", "c"]
SHAPE = {
    "vocab_size": 20, "embedding": 6, "hidden": 5, "ffn": 7, "multichannel": True, "pairs": False, "pad_token_id": 0,
}  # fmt: skip
PAIRS = SHAPE | {"pairs": True}
LENGTHS = [3, 1, 6, 0]


def build(shape=SHAPE, seed=0):
    return bilstm.Model.build(shape, LABELS, "eager", seed).eval()


def batch(lengths=LENGTHS, width=6):
    """Right-padded; of n tokens the last n // 2 are the second text's."""
    ids = torch.randint(3, 20, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    position, length = torch.arange(width), torch.tensor(lengths)[:, None]
    mask = (position < length).long()
    types = mask * (position >= length - length // 2)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}


@pytest.mark.parametrize(
    ("units", "fc", "key"),
    [(150, 200, "params_sst2_h150_fc200_in600_c2"), (300, 400, "params_h300_fc400_in600_c2")],
)
def test_parameters(oracles, units, fc, key):
    shape = SHAPE | {"embedding": 300, "hidden": units, "ffn": fc}
    model = bilstm.Model.build(shape, LABELS[:2], "eager", 0)
    without = sum(p.numel() for name, p in model.named_parameters() if name != "embedding.weight")
    assert without == oracles["O2_bilstm"][key]


@pytest.mark.parametrize("shape", [SHAPE, SHAPE | {"multichannel": False}, PAIRS])
def test_flops_are_the_weights_each_word_meets(shape):
    model = build(shape)
    weights = {"lstm": 0, "fc": 0, "classifier": 0}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name != "embedding.weight":
            weights[name.split(".")[0]] += parameter.numel()
    expected = 2 * (11 * weights["lstm"] + weights["fc"] + weights["classifier"])
    assert bilstm.Model.flops(shape, 11, 3) == expected


@pytest.mark.parametrize("shape", [SHAPE, SHAPE | {"multichannel": False}, PAIRS])
def test_flops_equal_torchs_counter(shape):
    """Torch counts no LSTM, so both directions are gone through word by word, with cells."""
    model = build(shape)
    cells = [nn.LSTMCell(model.lstm.input_size, model.lstm.hidden_size) for _ in range(2)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch([6]))
        for cell in cells:
            state = None
            for _ in range(6):
                state = cell(torch.zeros(1, cell.input_size), state)
    assert bilstm.Model.flops(shape, 6, 3) == counter.get_total_flops()


@pytest.mark.parametrize("shape", [SHAPE, PAIRS])
def test_padding_and_company_change_nothing(shape):
    model = build(shape)
    together = model(**batch()).logits
    padded = {name: nn.functional.pad(tensor, (0, 4)) for name, tensor in batch().items()}
    torch.testing.assert_close(model(**padded).logits, together)
    for row, length in enumerate(LENGTHS):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch().items()}
        torch.testing.assert_close(model(**alone).logits[0], together[row])
    assert len(together.unique(dim=0)) == len(LENGTHS)


@pytest.mark.parametrize("shape", [SHAPE, PAIRS])
def test_an_empty_text_is_one_pad(shape):
    model = build(shape)
    empty = model(**batch([0, 0])).logits
    assert empty.isfinite().all()
    no_column = torch.zeros(2, 0, dtype=torch.long)
    torch.testing.assert_close(model(no_column, no_column, no_column).logits, empty)


def test_one_pad_is_what_an_empty_text_becomes():
    model, pad = build(), torch.zeros(1, 1).long()
    torch.testing.assert_close(model(pad, torch.ones_like(pad)).logits, model(pad, pad).logits)


def test_the_states_are_the_last_ones_of_both_directions():
    """Against the cell's equations, word by word."""
    model = build()
    ids = torch.tensor([[4, 7, 5]])
    words = torch.cat([model.static, model.embedding.weight], dim=1)[ids[0]]
    ends = []
    for suffix, sequence in (("", words), ("_reverse", words.flip(0))):
        w, r, b, c = (
            getattr(model.lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = cell = torch.zeros(5)
        for x in sequence:
            i, f, g, o = (w @ x + b + r @ h + c).chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            h = o.sigmoid() * cell.tanh()
        ends.append(h)
    torch.testing.assert_close(model.encode(ids, torch.ones_like(ids).bool())[0], torch.cat(ends))


def test_logits_from_the_states():
    model = build()
    states = model.encode(batch()["input_ids"], batch()["attention_mask"].bool())
    before = states @ model.fc.weight.T + model.fc.bias
    expected = before.clamp(min=0) @ model.classifier.weight.T + model.classifier.bias
    assert (before < 0).any()
    torch.testing.assert_close(model(**batch()).logits, expected)


def test_pack_left_keeps_the_order():
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8]])
    kept = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    moved, lengths = bilstm.pack_left(ids, kept, 0)
    assert moved.tolist() == [[6, 8, 0], [5, 6, 7], [0, 0, 0]]
    assert lengths.tolist() == [2, 3, 1]
    wide = torch.arange(1, 501).repeat(3, 1)  # an unstable sort is in order on a few tokens only
    kept = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)) < 0.5
    moved, lengths = bilstm.pack_left(wide, kept, 0)
    for row in range(3):
        assert moved[row, : lengths[row]].tolist() == wide[row][kept[row]].tolist()


def test_features_of_a_pair():
    model = build(PAIRS)
    seen = []
    model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    first, second = torch.tensor([[4, 5, 6]]), torch.tensor([[7, 8]])
    u, v = (model.encode(ids, torch.ones_like(ids).bool()) for ids in (first, second))
    ids, types = torch.cat([first, second], 1), torch.tensor([[0, 0, 0, 1, 1]])
    model(ids, torch.ones_like(ids), types)
    torch.testing.assert_close(seen[0], torch.cat([u, v, (u - v).abs(), u * v], dim=1))
    model(ids, torch.ones_like(ids), 1 - types)  # the texts change places: only u and v do
    torch.testing.assert_close(seen[1], torch.cat([v, u, (u - v).abs(), u * v], dim=1))


def test_a_pair_needs_types_and_a_single_text_does_not():
    ids = torch.tensor([[4, 5, 6]])
    with pytest.raises(ValueError, match="token_type_ids"):
        build(PAIRS)(ids, torch.ones_like(ids))
    model = build()
    assert torch.equal(
        model(ids, torch.ones_like(ids), torch.ones_like(ids)).logits, students.logits(model, batch_of(ids))
    )


def batch_of(ids):
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("shape", [SHAPE, PAIRS])
def test_the_static_channel_stands_still(shape):
    model = build(shape).train().requires_grad_(True)
    before = model.static.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(**batch()).logits.square().sum().backward()
    optimizer.step()
    assert torch.equal(model.static, before)
    assert not model.static.requires_grad and model.static.grad is None
    met = batch()["input_ids"].unique()[1:]
    assert (model.embedding.weight.grad[met].abs().sum(1) > 0).all()
    assert (model.embedding.weight[0] == 0).all()  # [PAD]
    assert all(p.grad is not None for p in model.parameters())


def test_one_channel():
    model = build(SHAPE | {"multichannel": False})
    assert model.lstm.input_size == 6
    assert "static" not in model.state_dict()


@pytest.mark.parametrize("shape", [SHAPE, PAIRS])
def test_weights_are_a_function_of_the_seed(shape):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build(shape, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        assert not torch.equal(tensor, other[name]), name
    assert torch.equal(first["static"], first["embedding.weight"])


def test_dropout_acts_on_single_texts_only():
    for shape, differs in ((SHAPE, True), (PAIRS, False)):
        model = build(shape).train()
        view(model).set_dropout(0.5)
        torch.manual_seed(0)
        first, second = model(**batch()).logits, model(**batch()).logits
        assert torch.equal(first, second) != differs


@pytest.mark.parametrize("shape", [SHAPE, PAIRS, SHAPE | {"multichannel": False}])
def test_save_and_load(shape, tmp_path):
    model = build(shape)
    view(model).set_dropout(0.25)
    with torch.no_grad():
        model.embedding.weight[3:] += 1  # the channels differ after training
    view(model).save(tmp_path / "model")
    before = torch.get_rng_state()
    loaded = bilstm.Model.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert loaded.config.dropout == (0.0 if shape["pairs"] else 0.25)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


SPOIL = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "no object": lambda folder: (folder / "config.json").write_text("[1]"),
    "no fields": lambda folder: (folder / "config.json").write_text(f'{{"model_type": "{bilstm.Traits.model_type}"}}'),
    "another model": lambda folder: change(folder, model_type="bert"),
    "another size": lambda folder: change(folder, units=4),
    "another channel": lambda folder: change(folder, multichannel=False),
    "no number": lambda folder: change(folder, units="many"),
    "no labels": lambda folder: change(folder, id2label=None),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "half the weights": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:100]
    ),
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_files_that_do_not_fit_are_said(spoil, tmp_path):
    view(build()).save(tmp_path)
    bilstm.Model.load(tmp_path)
    spoil(tmp_path)
    with refused(Code.INCOMPLETE_MODEL, tmp_path, kind=UserError):
        bilstm.Model.load(tmp_path)


def test_set_word_vectors():
    vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    for multichannel in (True, False):
        model = build(SHAPE | {"multichannel": multichannel})
        bilstm.set_word_vectors(model, vectors)
        assert torch.equal(model.embedding.weight, vectors)
        assert not multichannel or torch.equal(model.static, vectors)
        with pytest.raises(ValueError, match="20, 6"):
            bilstm.set_word_vectors(model, vectors[0])


WORDS = [*vocabulary.SPECIAL, "ab", "c", "", "ba"]
SPELL = {"a": 0, "b": 1, "c": 2}


def spell(word):
    return [SPELL[letter] for letter in word]  # KeyError for a special token


def test_a_word_is_the_mean_of_its_pieces():
    table = torch.tensor([[1.0, 3], [5, 1], [2, -2]])
    vectors = bilstm.word_vectors(WORDS, spell, table, 2)
    expected = torch.tensor([[0.0, 0], [0, 0], [0, 0], [3, 2], [2, -2], [0, 0], [3, 2]])
    scale = vectors[3, 0] / 3
    torch.testing.assert_close(vectors, expected * scale)
    assert vectors.square().mean().sqrt().item() == pytest.approx(0.25 / 3**0.5)
    assert vectors.dtype == torch.float32 and not vectors.requires_grad


def test_special_tokens_are_the_vocabularys():
    assert bilstm.SPECIAL == vocabulary.SPECIAL


def sample():
    """60 words of one or two pieces in a table of fast falling spectrum, with a common offset as BERT's has."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, 12, generator=generator) * 0.7 ** torch.arange(12) + 0.3
    drawn = torch.randint(0, 40, (60, 2), generator=generator).tolist()
    words = [str(index) for index in range(60)]
    return SimpleNamespace(words=words, pieces=lambda word: drawn[int(word)], table=table, generator=generator)


def error(vectors, gram):
    """Relative error of the inner products, at the best scale: the cut vectors are scaled anew."""
    own = vectors.double() @ vectors.double().T
    return ((own * (own * gram).sum() / own.square().sum() - gram).norm() / gram.norm()).item()


def test_the_cut_keeps_inner_products_best():
    s = sample()
    full = bilstm.word_vectors(s.words, s.pieces, s.table, 12)
    gram = full.double() @ full.double().T
    ours = error(bilstm.word_vectors(s.words, s.pieces, s.table, 4), gram)
    random = []
    for _ in range(50):
        axes = torch.linalg.qr(torch.randn(12, 4, generator=s.generator)).Q
        random.append(error(full @ axes, gram))
    assert ours < 0.1 < min(random)
    singular = torch.linalg.svdvals(full.double())
    least = (singular[4:] ** 4).sum().sqrt() / (singular**4).sum().sqrt()  # Eckart-Young
    assert ours == pytest.approx(least.item(), rel=1e-2)


def test_the_cut_is_deterministic_in_order_and_sign():
    s = sample()
    vectors = bilstm.word_vectors(s.words, s.pieces, s.table, 4)
    assert torch.equal(vectors, bilstm.word_vectors(s.words, s.pieces, s.table, 4))
    spread = vectors.square().sum(0)
    assert (spread[:-1] > spread[1:]).all()
    other_order = bilstm.word_vectors(s.words[::-1], s.pieces, s.table, 4).flip(0)
    torch.testing.assert_close(vectors, other_order)
    axes = bilstm.principal_axes(s.table.double(), 4)
    torch.testing.assert_close(axes.T @ axes, torch.eye(4).double())
    assert (axes.amax(0) == axes.abs().amax(0)).all()


def test_too_many_dimensions():
    with pytest.raises(ValueError, match="13 dimensions"):
        bilstm.word_vectors(["0"], lambda word: [0], torch.ones(2, 12), 13)


def test_runs_in_bfloat16():
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**batch()).logits
    torch.testing.assert_close(half.float(), model(**batch()).logits, atol=0.02, rtol=0.02)


def test_it_learns():
    """Which of two words comes last: only a reader of order can tell."""
    torch.manual_seed(0)
    model = bilstm.Model.build(SHAPE, LABELS[:2], "eager", 0).train()
    ids = torch.tensor([[4, 5], [5, 4], [4, 5], [5, 4]])
    mask, labels = torch.ones_like(ids), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(ids, mask).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
