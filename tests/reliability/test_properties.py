"""What must hold of any input: order of examples, layer maps, what a config is written as, statistics."""

from dataclasses import asdict
from itertools import chain

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from kdbench.cli.main import literal
from kdbench.compare import statistics
from kdbench.compare.rows import summarize
from kdbench.data.batches import Examples, TrainBatches
from kdbench.data.tokenize import Tokens
from kdbench.methods import pkd, tinybert
from kdbench.methods.theseus import blocks
from kdbench.options import choose_layers
from kdbench.tasks import classification
from kdbench.validation.load import digest

# Bucketing


@st.composite
def batches(draw):
    lengths = np.array(draw(st.lists(st.integers(1, 30), min_size=1, max_size=300)))
    flat = np.arange(lengths.sum(), dtype=np.int32)
    ids = 7 * np.arange(len(lengths)) + 3
    examples = Examples(Tokens("t", flat, np.concatenate([[0], lengths.cumsum()])), ids, ids % 3, 0)
    return TrainBatches(examples, draw(st.integers(1, 40)), draw(st.integers(0, 2**62)))


@given(batches(), st.integers(0, 9), st.data())
def test_each_example_once_an_epoch_in_an_order_of_seed_epoch_and_position_alone(data, epoch, draw):
    whole = [batch["ids"].tolist() for batch in data.epoch(epoch)]
    assert sorted(chain(*whole)) == data.examples.ids.tolist()
    assert len(whole) == len(data) and all(1 <= len(ids) <= data.batch_size for ids in whole)
    start = draw.draw(st.integers(0, len(data)))
    np.random.seed(start), torch.manual_seed(start)  # the global generators have no say
    again = TrainBatches(data.examples, data.batch_size, data.seed)
    assert [batch["ids"].tolist() for batch in again.epoch(epoch, start)] == whole[start:]


@given(batches(), st.integers(1, 50))
def test_a_batch_holds_its_examples_tokens_and_padding(data, size):
    seen = []
    for rows, batch in data.examples.in_length_order(size):
        seen += rows.tolist()
        for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
            tokens = data.examples.tokens.flat[data.examples.tokens.span(row)]
            assert ids[mask == 1].tolist() == tokens.tolist() and not ids[mask == 0].any()
    assert sorted(seen) == list(range(len(data.examples)))


# Layers


@given(st.integers(1, 48), st.integers(1, 48), st.sampled_from(["first", "last", "every_other", "symmetric"]))
def test_chosen_layers_are_distinct_rising_and_there(of, count, choice):
    layers = choose_layers(choice, of, min(of, count))
    assert len(layers) == min(of, count) and layers == sorted({*layers}) and {*layers} <= {*range(of)}
    assert choose_layers(choice, of, of) == list(range(of))


def test_every_other_layer_is_spread_over_the_teacher():
    assert choose_layers("every_other", 12, 6) == [0, 2, 4, 6, 8, 10]
    assert choose_layers("every_other", 12, 3) == [0, 4, 8]
    assert choose_layers("first", 12, 3) == [0, 1, 2] and choose_layers("last", 12, 3) == [9, 10, 11]


@given(st.integers(1, 48), st.integers(0, 24), st.sampled_from(["odd_alternate", "even_alternate"]))
def test_alternate_layers_are_dropped_from_the_top(of, dropped, choice):
    dropped = min(dropped, of // 2)
    layers = choose_layers(choice, of, of - dropped)
    gone = [number for number in range(1, of + 1) if number - 1 not in layers]  # counted from 1, as in the paper
    assert len(layers) == of - dropped and layers == sorted(layers)
    assert all(number % 2 == (choice == "odd_alternate") for number in gone)
    assert gone == [] or (gone[-1] >= of - 1 and gone == [*range(gone[0], gone[-1] + 1, 2)])


def test_the_papers_example_of_dropped_layers():
    """Sajjad et al. 2020, counted from 1: 4 of 12 layers, and for symmetric 6."""
    kept = {choice: choose_layers(choice, 12, 8) for choice in ("odd_alternate", "even_alternate", "first", "last")}
    gone = {choice: sorted({*range(1, 13)} - {layer + 1 for layer in layers}) for choice, layers in kept.items()}
    assert gone["odd_alternate"] == [5, 7, 9, 11] and gone["even_alternate"] == [6, 8, 10, 12]
    assert gone["first"] == [9, 10, 11, 12] and gone["last"] == [1, 2, 3, 4]
    assert choose_layers("symmetric", 12, 6) == [0, 1, 2, 9, 10, 11]
    assert choose_layers("symmetric", 12, 5) == [0, 1, 2, 10, 11]


@given(st.integers(1, 12), st.integers(1, 6))
def test_maps_of_layers_reach_the_teachers_last_and_miss_none(student, size):
    teacher = student * size
    assert [*chain(*blocks(teacher, student))] == list(range(teacher))
    assert {len(block) for block in blocks(teacher, student)} == {size}
    states, scores = zip(*tinybert.layer_map(teacher, student), strict=True)
    assert states == (*range(size, teacher + 1, size),) and scores == tuple(state - 1 for state in states)
    for choice in ("skip", "last") if student > 1 else ():
        layers = pkd.layer_map(choice, teacher, student)
        assert len(layers) == student - 1 and layers == sorted({*layers}) and {*layers} <= {*range(1, teacher + 1)}


# Config

LEAVES = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@given(st.recursive(LEAVES | TEXTS, lambda below: st.lists(below, max_size=3), max_leaves=6))
def test_a_value_written_for_a_command_line_is_read_back(value):
    (override,) = OverridesParser.create().parse_overrides([f"key={literal(value)}"])
    read = override.value()
    assert type(read) is type(value) or isinstance(value, str)
    assert str(read) == str(value) if isinstance(value, str) else plain(read) == plain(value)


def plain(value):
    """With quoted strings as strings."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


@given(st.dictionaries(TEXTS, LEAVES | TEXTS, max_size=6), st.randoms(use_true_random=False))
def test_an_id_does_not_depend_on_the_order_of_keys(values, draw):
    keys = list(values)
    draw.shuffle(keys)
    assert digest({key: values[key] for key in keys}) == digest(values)


@given(st.data())
def test_a_runs_config_is_read_back_from_its_yaml(tmp_path_factory, data):
    from kdbench.schema import RunConfig
    from kdbench.validation.load import load
    from tests.test_check import composed

    if not READ:
        READ.append(load(composed("method=logit_kd")))
    values = asdict(READ[0])
    values["tag"] = data.draw(st.none() | TEXTS)
    values["schedule"]["lr"] = data.draw(st.floats(1e-12, 1e3))
    values["method"]["temperature"] = data.draw(st.integers(1, 99) | st.floats(1e-3, 99.0))
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(OmegaConf.to_yaml(values), encoding="utf8")
    again = load(OmegaConf.load(path))  # type: ignore[arg-type]
    assert isinstance(again, RunConfig) and asdict(again) == values


READ: list = []  # composed once

# Statistics

LABELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=80).map(np.array)
PS = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(LABELS)
def test_metrics_are_scikit_learns(pairs):
    labels, predicted = pairs.T
    found = classification.Kind().figures(labels, predicted, "abcdefg")
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    counts = confusion_matrix(labels, predicted, labels=range(7))  # counted here again, not by f1_score alone
    either = counts.sum(0) + counts.sum(1)
    f1 = (2 * counts.diagonal())[either > 0] / either[either > 0]
    assert found["macro_f1"] == pytest.approx(f1.mean())
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0.0))
    assert classification.macro_f1(labels, predicted).mean() == pytest.approx(100 * f1.mean())
    points = classification.Kind().points("accuracy", labels, predicted, "abcdefg")
    assert points.mean() == pytest.approx(100 * found["accuracy"])


@given(st.integers(2, 3000), st.floats(0, 1))
def test_the_interval_of_a_score_holds_it_and_is_symmetric(examples, share):
    right = round(share * examples)
    found, turned = (statistics.score(100.0 * (np.arange(examples) < one)[None]) for one in (right, examples - right))
    assert -1e-9 <= found.low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.high <= 100 + 1e-9
    assert (turned.low, turned.high) == (
        pytest.approx(100 - found.high, abs=1e-9), pytest.approx(100 - found.low, abs=1e-9)
    )  # fmt: skip


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).map(np.array))
def test_mcnemar_is_scipys_binomial_test_whichever_comes_first(pairs):
    a, b = pairs.T
    only, both = int((a & ~b).sum()), int((a != b).sum())
    expected = stats.binomtest(only, both).pvalue if both else 1.0
    assert statistics.exact_mcnemar(a, b) == statistics.exact_mcnemar(b, a) == pytest.approx(expected)


VALUES = st.integers(2, 5).flatmap(
    lambda seeds: st.lists(st.lists(st.integers(-1, 1), min_size=seeds, max_size=seeds), min_size=2, max_size=40)
)


@given(VALUES.map(lambda rows: 100.0 * np.array(rows).T), st.floats(-50, 50))
def test_an_interval_moves_with_its_data_and_turns_with_their_sign(values, shift):
    one = statistics.crossed(values)
    assert one.low <= one.mean <= one.high
    moved, turned = statistics.crossed(values + shift), statistics.crossed(-values)
    assert [moved.low, moved.high] == pytest.approx([one.low + shift, one.high + shift], abs=1e-6)
    assert [turned.low, turned.high] == pytest.approx([-one.high, -one.low], abs=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_a_summary_is_numpys(values):
    found = summarize(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9) and found.n == len(values)
    assert found.sd == pytest.approx(np.std(values, ddof=1), abs=1e-6)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8).map(lambda v: np.array(v, float)))
def test_a_permutation_test_counts_signs(differences):
    p = statistics.seed_permutation(differences)
    assert 2 ** -len(differences) <= p <= 1
    assert p == pytest.approx(statistics.seed_permutation(-differences))
