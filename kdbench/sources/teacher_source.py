"""The files that `teacher.source` names. Nothing heavy is imported here, so that a refusal comes quickly."""

import glob
from pathlib import Path
from typing import Any

from kdbench.errors import Code, SettingError
from kdbench.schema import OF_A_FILE, TeacherConfig
from kdbench.sources import files
from kdbench.storage.files import sha256_of

FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")


def teacher_files(teacher: TeacherConfig) -> list[Path]:
    """Return the files that `teacher.source` names, sorted; it may have `*`, `?` and `[]`. Raises SettingError."""
    source = teacher.source
    found = [Path(source)] if Path(source).exists() else sorted(map(Path, glob.glob(source, recursive=True)))
    if not found:
        raise SettingError(
            Code.MISSING_FILE, "teacher.source", source, f"no such file (looked for {Path(source).absolute()})"
        )
    for path in found:
        if not path.is_file() or files.ending(path.name) not in FORMATS:
            problem = f"{path} must be a table ({', '.join(FORMATS)}), or one of these in a .gz or .zip"
            raise SettingError(Code.INVALID_SOURCE, "teacher.source", source, problem)
    return found


def files_identity(teacher: TeacherConfig) -> dict[str, Any]:
    """Return what decides the answers: the contents of the files, wherever they lie, and how they are read."""
    keys = {key: getattr(teacher, key) for key in OF_A_FILE if getattr(teacher, key) is not None}
    return keys | {"files": sorted([files.ending(path.name), sha256_of(path)] for path in teacher_files(teacher))}
