"""Presets that follow a source: those in reference/ the authors' code, in paper/ the paper, in blog/ the post.

Whatever decides their result is said by themselves: our own defaults may change and must not reach it.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kdbench.schema import method_schema
from kdbench.validation.load import complete
from scripts import papers

CONF = Path(__file__).parents[1] / "conf"
SOURCED = sorted(
    f"{folder}/{path.stem}"
    for folder in ("reference", "paper", "blog")
    for path in (CONF / "experiment" / folder).glob("*.yaml")
)
assert len(SOURCED) >= 18
# What a source may be: a paper, a repository, a published model's configuration, or our own choice.
PUBLISHED = re.compile(r"[A-Z]\w+ et al\. (19|20)\d\d|[\w.-]+/[\w.-]+|bert-[\w-]+|ours")
OURS, HALF = 7777, 3888  # no preset has them; the second is what ${half:} makes of the first
NEUTRAL = {"accumulation", "class_weights", "name", "defaults"}  # 1: no accumulation; none: all classes weigh alike
# What has no effect under the preset's other choices.
UNUSED = {
    "reference/theseus": {"method.replace_rate", "method.full_at", "method.halved"},
    "paper/theseus": {"method.replace_rate", "method.full_at", "method.halved"},
    "blog/theseus": {"method.base_rate", "method.full_at", "method.halved"},
    "blog/theseus_mix": {"method.base_rate", "method.full_at"},
    "reference/distilbert": {"method.temperature", "method.reduction", "method.scale_by_temperature_squared"},
}


def ours(value: Any) -> Any:
    """The same structure with every default of ours marked; null, lists and what is taken from elsewhere stay."""
    if isinstance(value, dict):
        return {key: one if key in NEUTRAL else ours(one) for key, one in value.items()}
    if isinstance(value, bool) or (isinstance(value, str) and "$" not in value):
        return "ours"
    return OURS if isinstance(value, int | float) else value


def marked(group: str, values: dict[str, Any]) -> dict[str, Any]:
    match group:
        case "dataset":
            return values | ours({key: values[key] for key in ("max_length", "epochs")})
        case "corpus":
            return values | ours({key: values[key] for key in ("max_length", "mask_probability", "schedule")})
        case "teacher":
            return values | ours({key: values[key] for key in ("schedule",) if key in values})
        case _:
            return ours(values)


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hydra over a copy of conf/ in which our own defaults are marked."""
    folder = tmp_path_factory.mktemp("presets") / "conf"
    shutil.copytree(CONF, folder)
    files = [file for group in ("dataset", "corpus", "teacher", "method") for file in (folder / group).glob("*.yaml")]
    for file in [*files, folder / "schedule/default.yaml"]:
        text = file.read_text(encoding="utf8")
        header = "# @package _global_\n" if text.startswith("# @package _global_") else ""
        values = marked(file.parent.name, yaml.safe_load(text))
        file.write_text(header + yaml.safe_dump(values, sort_keys=False), encoding="utf8")
    with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        yield


def inherited(value: Any, key: str) -> Iterator[str]:
    """The keys below `key` whose value is a default of ours."""
    if isinstance(value, dict):
        for name, one in value.items():
            if not (name == "epochs" and value.get("steps") is not None):  # steps win
                yield from inherited(one, f"{key}.{name}")
    elif value in (OURS, HALF, "ours"):
        yield key


def command(preset: str) -> list[str]:
    """The words of the command that the preset's header gives."""
    line = (CONF / f"experiment/{preset}.yaml").read_text(encoding="utf8").splitlines()[1]
    assert line.startswith(f"# kdbench experiment={preset} ") or line == f"# kdbench experiment={preset}", line
    return line.split()[2:]


@pytest.mark.parametrize("preset", SOURCED)
def test_nothing_that_decides_the_result_is_ours(conf: None, preset: str) -> None:
    cfg: Any = OmegaConf.to_container(complete(compose("config", overrides=command(preset))))
    method = cfg["method"]["name"]
    needs = method_schema(method).needs  # type: ignore[attr-defined]
    decides = {"schedule": cfg["schedule"], "method": cfg["method"], "dataset.max_length": cfg["dataset"]["max_length"]}
    if "teacher" in needs:
        decides["teacher.schedule"] = cfg["teacher"]["schedule"]
    if "corpus" in needs:
        decides["corpus.max_length"] = cfg["corpus"]["max_length"]
    if method in ("distilbert", "mobilebert"):  # those with a masked LM
        decides["corpus.mask_probability"] = cfg["corpus"]["mask_probability"]
    if method == "mobilebert":  # IB-BERT is trained by it
        decides["corpus.schedule"] = cfg["corpus"]["schedule"]
    found = {key for group, values in decides.items() for key in inherited(values, group)}
    unused = UNUSED.get(preset, set())
    if cfg["method"]["init"]["weights"] == "random":
        unused = unused | {"method.init.layers"}
    assert found - unused == set()
    assert unused <= found  # nothing stands here in vain


@pytest.mark.parametrize("preset", SOURCED)
def test_headers_say_what_is_published_and_what_departs(preset: str) -> None:
    lines = (CONF / f"experiment/{preset}.yaml").read_text(encoding="utf8").splitlines()
    header = " ".join(line for line in lines if line.startswith("#"))
    assert re.search("Published|published", header) and re.search("Differences|Not copied|Not in the paper", header)


@pytest.mark.parametrize("path", papers.files(), ids=lambda path: path.relative_to(CONF).as_posix())
def test_each_number_has_its_source_beside_it(path: Path) -> None:
    """Defaults of methods, and presets that follow a source or search: a paper, published code, or `ours`."""
    values = list(papers.values(path))
    assert [value for value in values if papers.NUMBER.search(value.text) and not value.sources] == []
    names = {name for value in values for name, _, _ in value.sources}
    assert {name for name in names if not PUBLISHED.fullmatch(name)} == set()
    lines = [line.partition(" # ")[0] for line in path.read_text(encoding="utf8").splitlines()]
    numbers = [line for line in lines if papers.NUMBER.search(line) and not line.startswith("#")]
    assert len(numbers) == sum(bool(papers.NUMBER.search(value.text)) for value in values)  # no line was overlooked


def test_each_paper_is_named_with_its_title() -> None:
    page = (CONF.parent / "docs/papers.md").read_text(encoding="utf8")
    found = {name for path in papers.files() for value in papers.values(path) for name, _, _ in value.sources}
    titles = re.findall(r"^\| (.* et al\. \d{4}) \| \S.* \|", page, re.MULTILINE)
    assert {name for name in found if "et al." in name} <= {*titles}


def test_sources_are_read_with_their_keys(tmp_path: Path) -> None:
    (path := tmp_path / "method/mine.yaml").parent.mkdir()
    path.write_text(
        "# A method. Paper: of nobody.\n# Paper: Xu et al. 2020. Code: some/code.py.\n"
        "init:\n  layers: [0, 2]  # a list such as [0, 1] [paper, 4.3: b of 0.1, 0.3; code, README]\n"
        "stages:\n  training: {epochs: 3}  # [ours]\nalpha: 0.5  # weight\n"
    )
    layers, training, alpha = papers.values(path)
    assert layers.file == "method=mine" and layers.key == "method.init.layers" and layers.text == "[0, 2]"
    assert layers.sources == [("Xu et al. 2020", "4.3", "b of 0.1, 0.3"), ("some/code.py", "README", "")]
    assert training.key == "method.stages.training" and training.sources == [("ours", "", "")]
    assert alpha.sources == [] and papers.NUMBER.search(alpha.text)
    path.write_text("alpha: 0.5  # [paper, 3]\n")
    with pytest.raises(AssertionError, match="names no paper"):
        list(papers.values(path))
