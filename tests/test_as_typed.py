"""What the schema has as text arrives as it was typed, and what kdbench prints of it can be typed again."""

from copy import deepcopy
from pathlib import Path
from typing import Any, get_origin

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kdbench.cli import main as cli
from kdbench.cli.command import as_typed
from kdbench.cli.compose import composing
from kdbench.errors import Code
from kdbench.schema import DatasetConfig
from kdbench.validation.keys import run_keys
from kdbench.validation.load import recorded_dataset

RETYPED = ["2024_01", "1e3", "true", "False", "NULL", "Null", "nan", "-inf", "007", "1_0.5", "+5", "0", "1.", "-1_0e2"]
# Words of a command line without Hydra's own punctuation, and with what looks like numbers to it.
WORDS = st.sampled_from(RETYPED) | st.from_regex(r"[+-]?[0-9_.eE]{1,6}|[A-Za-z_][\w./ -]{0,6}[\w/]", fullmatch=True)
TEXTS = sorted(
    key for key, leaf in run_keys("finetune", ()).leaves.items() if leaf.text and get_origin(leaf.hint) is not dict
)
CONF = Path(__file__).parents[1] / "conf"
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def configs():
    with composing(None) as made:
        yield made


@pytest.fixture
def plain(configs):
    cfg = hydra.compose("config")
    OmegaConf.set_struct(cfg, True)
    return cfg


def test_there_are_texts():
    assert {"dataset.text", "dataset.label", "dataset.source", "dataset.name", "tag", "outputs"} <= set(TEXTS)


@shared
@given(key=st.sampled_from(TEXTS), word=WORDS.filter(lambda word: word.isascii() and word != "null"))
@example(key="dataset.label", word="null")  # it must have a text
@example(key="tag", word="2024_01")
def test_a_text_arrives_as_it_was_typed(configs, plain, key, word):
    (o,) = as_typed(configs, [configs.parse(f"{key}={word}")])
    assert o.value == word
    cfg = deepcopy(plain)
    ConfigLoaderImpl._apply_overrides_to_config(  # as Hydra's own command reads it
        OverridesParser.create().parse_overrides([f"++{o.text}"]), cfg
    )
    assert OmegaConf.select(cfg, key) == word
    assert o.fault(Code.WRONG_TYPE, "").value == word


@pytest.mark.parametrize(("key", "value"), [("tag", "null"), ("seed", "3"), ("schedule.lr", "1e-3"), ("rerun", "true")])
def test_what_is_no_text_is_left_alone(configs, key, value):
    (o,) = as_typed(configs, [configs.parse(f"{key}={value}")])
    assert o.text == f"{key}={value}" and not isinstance(o.value, str)


def test_lists_dictionaries_and_sweeps_too(configs):
    files, tags, choices = as_typed(
        configs,
        [configs.parse(text) for text in ("corpus.running.files={a.txt:2024_01}", "tag=1e3,b", "tag=choice(1,true)")],
    )
    assert files.value == {"a.txt": "2024_01"}
    (labels,) = as_typed(configs, [configs.parse("dataset.label=[1e3,true,2024_01]")])
    assert labels.value == ["1e3", "true", "2024_01"]
    assert tags.sweep == ['tag="1e3"', "tag=b"] and choices.sweep == ['tag="1"', 'tag="true"']


def test_a_choice_is_a_files_name(tmp_path):
    (tmp_path / "schedule").mkdir()
    for name in ("2024_01", "1e3"):
        (tmp_path / "schedule" / f"{name}.yaml").write_text("defaults: [default, _self_]\nlr: 0.125\n")
    for words in (["schedule=2024_01"], ["-m", "schedule=2024_01,1e3", "tag=007"]):
        command = cli.read(["--config-dir", str(tmp_path), *words])
        assert command.faults == []
        assert 'schedule="2024_01"' in " ".join(command.words)


@pytest.mark.parametrize("multirun", [False, True])
def test_a_comma_in_a_file_name_gets_the_hint(tmp_path, multirun):
    (tmp_path / "a,b").mkdir()
    words = ["dataset=files", f"dataset.source={tmp_path / 'a,b'}"]
    (fault,) = [one for one in cli.refuse(["-m"] * multirun + words) if one.key == "dataset.source"]
    assert f'"{tmp_path / "a,b"}"' in fault.nearest
    (fault,) = cli.refuse(["dataset.text=a,b"])
    assert "'dataset.text=\"a,b\"'" in fault.problem
    (command,) = [cli.read([words[0], f'dataset.source="{tmp_path / "a,b"}"'])]
    assert "dataset.source" not in {one.key for one in command.faults if "quotes" in one.problem}


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
PRINTED = st.text(st.characters(exclude_categories=["C"], exclude_characters="$"), max_size=8)
SINGLE = st.sampled_from(RETYPED) | st.none() | st.booleans() | NUMBERS | PRINTED
VALUES = st.recursive(SINGLE, lambda below: st.lists(below, max_size=3), max_leaves=6)


@shared
@given(value=VALUES)
@example(value="a\\")
@example(value='\\"')
def test_a_printed_value_can_be_typed_again(configs, value):
    assert configs.parse(f"x={cli.literal(value)}").value == value


@shared
@given(word=WORDS | PRINTED)
@example(word="null")
@example(word="12:30:45")
@example(word="0x1F")
@example(word="2024-01-05")
@example(word="yes")
def test_a_recorded_text_is_read_again(tmp_path, word):
    path = Path(tmp_path) / "config.yaml"
    whole: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "reuters_r8.yaml"))
    path.write_text(OmegaConf.to_yaml({"dataset": whole | {"name": word, "text": word, "label": word}}), "utf8")
    recorded: Any = OmegaConf.to_container(OmegaConf.load(path))
    read: DatasetConfig = recorded_dataset(recorded)
    assert (read.name, read.text, read.label) == (word, word, word)
