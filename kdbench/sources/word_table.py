"""A file of vectors for the pieces of a vocabulary, with its tokenizer: where it lies, what it is, what is in it."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kdbench.errors import Code, SettingError, SourceError
from kdbench.schema import TableConfig
from kdbench.sources.fetch import hub_model
from kdbench.sources.sources import check_source, fetched, files_digest, remote_identity

if TYPE_CHECKING:
    from torch import Tensor

GROUP = "student.table"


class TableFiles(NamedTuple):
    weights: Path  # safetensors
    tokenizer: Path  # in the form of tokenizer.json


def check_table(table: TableConfig) -> None:
    """Raise SettingError if the source cannot be used, or a local file is missing. Needs no network."""
    source = check_source(table, GROUP)
    if not table.weights.endswith(".safetensors"):
        problem = "must be a .safetensors file: kdbench reads no pickles, which can run code"
        raise SettingError(Code.UNSAFE_CONTENT, f"{GROUP}.weights", table.weights, problem)
    for key in ("weights", "tokenizer") if source.kind == "path" else ():
        if not (path := Path(source.name) / getattr(table, key)).is_file():
            raise SettingError(Code.MISSING_FILE, f"{GROUP}.{key}", getattr(table, key), f"no file {path}")


def resolve_table(table: TableConfig, cache: Path) -> TableFiles:
    """Return the two files; they are fetched where they are not local. Raises SourceError."""
    check_table(table)
    source, names = check_source(table, GROUP), [table.weights, table.tokenizer]
    if source.kind == "path":
        folder = Path(source.name)
    elif source.kind == "hub":
        folder = hub_model(source, names, cache)
    else:
        folder = fetched(table, source, names, cache, GROUP)
    for name in names:
        if not (folder / name).is_file():
            raise SourceError(Code.MISSING_FILE, f"{GROUP}.source={table.source} has no file {name}.")
    return TableFiles(folder / table.weights, folder / table.tokenizer)


def table_identity(table: TableConfig, cache: Path) -> dict[str, str]:
    """Return what of the table enters a run's id: its contents, wherever they lie."""
    source = check_source(table, GROUP)
    names = {"weights": table.weights, "tokenizer": table.tokenizer, "tensor": table.tensor}
    if source.kind != "path":
        return names | remote_identity(table, source, "model", cache)
    check_table(table)
    files = [Path(source.name) / name for name in (table.weights, table.tokenizer)]
    return {"sha256": files_digest(files, ["weights", "tokenizer"]), "tensor": table.tensor}


def table_vectors(table: TableConfig, weights: Path, pieces: int) -> "Tensor":
    """Return the vectors (V, H) in float32, at least one for each of `pieces`. Raises SourceError."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as file:
            if table.tensor not in file.keys():  # noqa: SIM118  # it is no dict
                there = ", ".join(sorted(file.keys())[:6])
                raise SourceError(
                    Code.MISMATCHED_MODEL, f"{weights} has no tensor {table.tensor} ({GROUP}.tensor): it has {there}."
                )
            vectors = file.get_tensor(table.tensor)
    except (SafetensorError, OSError) as error:
        raise SourceError(Code.INCOMPLETE_MODEL, f"{weights} cannot be read as safetensors: {error}") from error
    if vectors.ndim != 2 or not vectors.is_floating_point() or len(vectors) < pieces:
        raise SourceError(
            Code.MISMATCHED_MODEL,
            f"{weights}: {table.tensor} is {tuple(vectors.shape)} of {vectors.dtype}. Needed is a row of floating-point"
            f" numbers for each of the {pieces} pieces of {GROUP}.tokenizer.",
        )
    if not torch.isfinite(vectors).all():
        raise SourceError(Code.MISMATCHED_MODEL, f"{weights}: {table.tensor} holds numbers that are not finite.")
    wide: torch.Tensor = vectors.float()
    return wide
