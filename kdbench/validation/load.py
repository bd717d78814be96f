"""From a composed Hydra config to a typed run. No DictConfig is used after `load`."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from platformdirs import user_cache_path
from yaml import YAMLError

from kdbench.declared import PRUNED
from kdbench.errors import Code, UserError
from kdbench.options import MISSING
from kdbench.schema import DatasetConfig, RunConfig, method_schema
from kdbench.storage.files import private
from kdbench.storage.results import RESULTS, verify_file

TASK = "${dataset}"  # among the data sets of a corpus: that of the run
_PATHS = ("source", "path", "outputs", "cache_dir")  # keys, in any group, that name a file or folder


def _half(count: int | None) -> int | None:
    return None if count is None else max(1, round(count / 2))


def _own_encoder(key: str, other: Any, *, _root_: DictConfig) -> Any:
    """Return a key of the student's own encoder, or `other`, the teacher's, if it has none."""
    own = OmegaConf.select(_root_, f"student.encoder.{key}")
    return other if own is None else own


# What a YAML may compute: the length of a second stage that is half as long, the length of both stages, a default for
# another key that is null, and a key of the encoder that the student is made of.
OmegaConf.register_new_resolver("half", _half, replace=True)
OmegaConf.register_new_resolver("half_again", lambda count: count + (_half(count) or 0), replace=True)
OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)  # used in conf/config.yaml only
OmegaConf.register_new_resolver("own_encoder", _own_encoder, replace=True)
OmegaConf.register_new_resolver("or", lambda given, other: other if given is None else given, replace=True)


def fill(cfg: DictConfig) -> DictConfig:
    """Return a copy of `cfg` in which each stage of the method has every schedule key. Nothing is resolved yet."""
    return OmegaConf.create(filled(OmegaConf.to_container(cfg, resolve=False)))  # type: ignore[arg-type]


def filled(values: dict[str, Any]) -> dict[str, Any]:
    """Fill the values of a config in place, and return them.

    A stage takes the keys that its YAML leaves out from `schedule`. The shape of a local teacher is read from its
    folder. A leading ~ becomes the user's home, because the shell does not expand it inside quotes.
    """
    _expand(values)
    _fill_teacher(values["teacher"], "teacher")
    if isinstance(values["student"].get("encoder"), dict):
        _fill_teacher(values["student"]["encoder"], "student.encoder")
    with_task(values)
    for stage in values["method"].get("stages", {}).values():
        stage.update({key: f"${{schedule.{key}}}" for key in values["schedule"] if key not in stage})
    return values


def with_task(values: dict[str, Any]) -> None:
    """Put the run's data set into a corpus in place of TASK, as references to its keys."""
    corpus: Any = values.get("corpus")
    datasets: Any = corpus.get("datasets") if isinstance(corpus, dict) else None
    for name, one in [*datasets.items()] if isinstance(datasets, dict) else ():
        if one == TASK:
            datasets[name] = _references(values["dataset"], "dataset")


def _references(values: dict[str, Any], at: str) -> dict[str, Any]:
    return {
        key: _references(value, f"{at}.{key}") if isinstance(value, dict) else f"${{{at}.{key}}}"
        for key, value in values.items()
    }


def _expand(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _expand(value)
        elif key in _PATHS and isinstance(value, str):
            values[key] = os.path.expanduser(value)
        elif key == "members" and isinstance(value, list):
            values[key] = [os.path.expanduser(one) if isinstance(one, str) else one for one in value]


class NoTeacher(UserError):
    """The teacher that a key names cannot be read."""

    def __init__(self, key: str, error: UserError) -> None:
        super().__init__(error.code, str(error))
        self.key = key


def _fill_teacher(teacher: dict[str, Any], group: str) -> None:
    """Add the teacher's shape from a local model's config.json or a finished run's record. Raises NoTeacher."""
    try:
        _fill_from_elsewhere(teacher)
    except UserError as error:
        key = next((key for key in ("path", "members") if teacher.get(key) is not None), "source")
        raise NoTeacher(f"{group}.{key}", error) from error
    teacher.setdefault("source_architecture", "${.architecture}")


def _fill_from_elsewhere(teacher: dict[str, Any]) -> None:
    path, members = teacher.get("path"), teacher.get("members")
    runs = members if isinstance(members, list) else [path]
    if runs not in ([], [None], [MISSING]):
        records = [_record_of_run(one, f"{one} " * (runs is members)) for one in runs]
        try:
            _fill_from_run(teacher, records[0])
        except (LookupError, TypeError, AttributeError) as error:
            raise _no_config(error) from error
    elif teacher.get("join") is None and isinstance(source := teacher.get("source"), str) and source != MISSING:
        _fill_from_folder(teacher, source)


def _record_of_run(folder: Any, named: str) -> Any:
    """Return the config of a finished run that has a network; `named` begins the messages. Raises UserError."""
    path = Path(str(folder))
    if not (path / RESULTS).is_file() or not (path / "model").is_dir():
        problem = f"{named}is not a finished run: name the folder of a seed, such as outputs/<...>/seed0"
        raise UserError(Code.NOT_A_RUN, problem)
    verify_file(path, "config.yaml")
    try:
        record: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        method = record["method"]["name"]
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, LookupError, TypeError) as error:
        raise _no_config(error) from error
    if method == "tfidf":
        raise UserError(
            Code.NOT_A_RUN, f"{named}is a run of method=tfidf, which has no layers: name a run of a network"
        )
    return record


def _no_config(error: Exception) -> UserError:
    return UserError(Code.NOT_A_RUN, f"has a config.yaml of no run: {type(error).__name__}: {error}")


def _fill_from_folder(teacher: dict[str, Any], source: str) -> None:
    if Path(source).is_dir():
        from kdbench.sources.model_folder import shape_of

        shape = shape_of(Path(source) / teacher.get("folder", ""))
        teacher.update({key: value for key, value in shape.items() if teacher.get(key, MISSING) == MISSING})
        teacher.setdefault("embedding", None)
    elif teacher.get("layers", MISSING) == MISSING and ":" not in source:  # nor pypi: or hub:
        raise UserError(Code.MISSING_FILE, "no such folder: config.json, model.safetensors and a tokenizer are needed")


def _fill_from_run(teacher: dict[str, Any], record: Any) -> None:
    student, name = record["student"], f"{record['method']['name']}_{record['student']['name']}"
    made = (student.get("encoder") or record["teacher"]) | {"name": name}
    if made.get("join") is not None:
        raise UserError(
            Code.NOT_A_RUN, "learned from a file and reads its own words, so it has no encoder for students"
        )
    teacher.update({key: value for key, value in made.items() if teacher.get(key, MISSING) == MISSING})
    teacher.update({key: student[key] for key in ("architecture", "layers", "hidden", "heads", "ffn")})
    if record["method"]["name"] == "prune":  # its layers are no longer those of the student that the config names
        teacher["architecture"] = PRUNED + student["architecture"]


def complete(cfg: DictConfig) -> DictConfig:
    """Return `cfg` filled by `fill`, with every interpolation resolved."""
    made = fill(cfg)
    OmegaConf.resolve(made)
    return made


@cache
def _schema(method: str, module: str | None) -> DictConfig:
    """Return the typed schema that a completed config must fit. It is shared, so it must not be changed."""
    schema: DictConfig = OmegaConf.structured(RunConfig)
    schema.method = OmegaConf.structured(method_schema(method, module))
    return schema


def load(cfg: DictConfig) -> RunConfig:
    """Return the typed run of a composed config.

    Raises OmegaConf's own errors; `kdbench.validation.values.faults` finds them first and explains them.
    """
    return typed(complete(cfg))


def typed(completed: DictConfig) -> RunConfig:
    """Return the typed run of a config that is complete. Raises OmegaConf's own errors."""
    method = completed.method
    return OmegaConf.to_object(OmegaConf.merge(_schema(method.name, method.get("module")), completed))  # type: ignore[return-value]


def cache_folder(config: RunConfig) -> Path:
    """Return the folder of downloads, token ids and teacher outputs: `cache_dir`, or the user's cache folder."""
    return cache_at(config.cache_dir)


def cache_at(cache_dir: str | None) -> Path:
    return private(cache_path(cache_dir))


def cache_path(cache_dir: str | None) -> Path:
    """Return where the cache is, or would be."""
    return Path(cache_dir) if cache_dir else user_cache_path("kdbench")


def recorded_dataset(record: Mapping[str, Any]) -> DatasetConfig:
    """Return the data set in a run's config.yaml."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DatasetConfig), record["dataset"]))  # type: ignore[return-value]


def digest(value: Any) -> str:
    """Return 8 hex digits of the SHA-256 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
