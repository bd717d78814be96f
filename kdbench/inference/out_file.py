"""Write the answers to a file of any size to one file, which appears whole or not at all. A killed command resumes.

While `answers.parquet` is made, `.answers.parquet.shards/<digest>/` has the answers to SHARD rows in each file, and
`.answers.parquet.plan.json` the digests of the model and of the texts. Afterwards `.answers.parquet.json` has these and
that of the answers.

Processes on one or more machines may make the same file. One of them holds the lock of the file. The others answer
shards too, each of which has a lock of its own, and then wait until the file is there.
"""

import glob
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, get_type_hints

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from filelock import Timeout

from kdbench.data.raw import Row, is_blank
from kdbench.errors import Code, UserError
from kdbench.inference.classifier import Classifier
from kdbench.storage import files as store
from kdbench.storage.cache import locked, locked_hidden

SHARD = 4000  # rows: sorted by length they have hardly any padding, and few are lost if the command is killed
_JOINED = 16  # shards that are in memory at a time
_ASKED_AGAIN = 1.0  # seconds after which a process that waits looks whether it can help
_PREFIX = {"probabilities": "probability", "scores": "score"}  # of a column for each label, by the answer's field
_TYPES: dict[Any, Any] = {
    str: pa.string(), int: pa.int64(), float: pa.float32(), list[str]: pa.list_(pa.string()),
}  # fmt: skip


class OutFile:
    """The file of answers to come, or that is there already.

    `asked` identifies the answers: a digest for each thing that they depend on, by its name in messages. `say` gets
    messages. The caller must be in `alone`, and ask `found` before it calls `write`.
    """

    def __init__(self, out: Path, asked: dict[str, str], say: Callable[[str], None]) -> None:
        self.out, self.asked = out, asked
        self.record = out.with_name(f".{out.name}.json")
        self.all_shards = out.with_name(f".{out.name}.shards")  # also those of another model that was killed
        self.shards = self.all_shards / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
        self.plan = out.with_name(f".{out.name}.plan.json")
        self.say = say
        self.replaces = self.resumes = False

    @contextmanager
    def alone(self, help_others: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of the file within the block.

        If another process holds it, and makes the same answers, `help_others` is called once; it should call `share`.
        """
        helped = False
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(locked_hidden(self.out, -1 if helped else _ASKED_AGAIN))
                    break
                except Timeout:
                    if self._is_being_made():
                        help_others()
                        helped = True
            yield

    def _shard(self, number: int) -> Path:
        return self.shards / f"{number:06d}.parquet"

    def _is_being_made(self) -> bool:
        return _value(self.plan) == self.asked

    def found(self) -> bool:
        """Return whether the file is complete, from the same model and texts. Raises UserError if it is another's."""
        written, plan = _value(self.record, verified=True), _value(self.plan)
        if written == self.asked:
            self._tidy()
            return True
        if self.out.is_dir() or (written is None and plan is None and self.out.exists()):
            raise self._not_ours()
        self.replaces, self.resumes = written is not None, plan == self.asked
        if written is not None:
            self._say_changed(written, f"{self.out} was written")
        elif plan is not None and not self.resumes:
            self._say_changed(plan, f"the answers in {self.all_shards} were computed")
        return False

    def _say_changed(self, before: dict[str, str], when: str) -> None:
        changed = " and ".join(name for name in self.asked if before.get(name) != self.asked[name])
        self.say(f"{changed} changed since {when}: all rows are answered again")

    def _not_ours(self) -> UserError:
        return UserError(
            Code.WOULD_OVERWRITE,
            f"--out {self.out}: exists, and is not what kdbench-predict wrote. Name another file, or remove this one",
        )

    def write(
        self, classifier: Classifier, rows: Callable[[], Iterator[Row]], count: int, told: Callable[[int, bool], None]
    ) -> None:
        """Write the answers to all rows, of which there are `count`. `rows` starts anew with each call.

        `told` gets the number of rows that are done, and whether they were before. Raises StoreError, UserError.
        """
        if not self.resumes:
            self._tidy()
            store.write_record(self.plan, self.asked)
        total, others = self.share(classifier, rows(), told)
        if others:
            total, _ = self.share(classifier, rows(), told, others)
        if not self._is_being_made():
            raise UserError(Code.CHANGED_DATA, f"{self.plan} was removed while {self.out} was made. Try again")
        if total != count:
            raise UserError(
                Code.CHANGED_DATA, f"--file changed while it was read: {count} rows, then {total}. Try again"
            )
        staged = self.shards / f"joined{self.out.suffix}"
        with store.explained(staged), staged.open("wb") as file:
            _join([self._shard(number) for number in range(-(-total // SHARD))], file, self.out.suffix)
        if not self.replaces and self.out.exists() and store.sha256_of(self.out) != store.sha256_of(staged):
            raise self._not_ours()
        store.publish(staged, self.out)
        store.write_record(self.record, self.asked, [self.out])
        self._tidy()

    def share(
        self, classifier: Classifier, rows: Iterator[Row], told: Callable[[int, bool], None],
        waited_for: Container[int] | None = None,
    ) -> tuple[int, set[int]]:  # fmt: skip
        """Answer the shards that no process has answered or is answering.

        `waited_for`: only these shards, once no other process answers them. Returns the number of rows, and the shards
        that others are answering. Ends early if the file is no longer made. Raises StoreError.
        """

        def counting(batch: Any, step: int) -> Any:
            outputs = classifier.predict(batch, step)
            told(len(batch["ids"]), False)
            return outputs

        counted = replace(classifier, predict=counting)
        total, others = 0, set()
        for number, part in enumerate(_parts(rows)):
            total += len(part)
            if waited_for is not None and number not in waited_for:
                continue
            if not self._is_being_made():
                break
            shard = self._shard(number)
            try:
                with locked(shard, 0 if waited_for is None else -1):
                    if _is_whole(shard, part):
                        told(len(part), True)
                    elif self._is_being_made():  # else the shards were removed just now
                        store.write_bytes(shard, _content(counted, part))
            except Timeout:
                others.add(number)
        return total, others

    def _tidy(self) -> None:
        of_killed = self.out.parent.glob(f"..{glob.escape(self.out.name)}.*.part")
        for path in (self.plan, *of_killed):  # without a plan, no other process begins a shard
            store.remove(path)
        # On NFS, what another process still has open stays. It does no harm, and that process removes it in its turn.
        shutil.rmtree(self.all_shards, ignore_errors=True)


def _value(record: Path, verified: bool = False) -> dict[str, str] | None:
    """Return the value of a record; None if it or, if `verified`, a file that it lists is not what was written."""
    try:
        return store.verify(record) if verified else store.read_record(record)
    except store.Damaged:
        return None


def _parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while part := list(islice(rows, SHARD)):
        yield part


def _is_whole(shard: Path, rows: Sequence[Row]) -> bool:
    """Return whether the shard is intact and answers these rows."""
    try:
        found = pyarrow.parquet.read_table(shard, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return False
    return all(found[name].to_pylist() == list(cells) for name, cells in _of_texts(rows))


def _of_texts(rows: Sequence[Row]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names and cells of the columns of texts: `text`, and `pair` if there is one."""
    return zip(("text", "pair"), zip(*rows, strict=True), strict=False)


# --- from answers to columns


def _content(classifier: Classifier, rows: Sequence[Row]) -> bytes:
    """Return a Parquet file with the rows and their answers, which are null for a blank row."""
    blank = [is_blank(row) for row in rows]
    texts = list(zip(*(row for row, empty in zip(rows, blank, strict=True) if not empty), strict=True))
    found = iter(classifier(*texts) if texts else [])
    answers = [None if empty else next(found) for empty in blank]
    columns = {name: pa.array(cells) for name, cells in _of_texts(rows)}
    for at, (field, kind) in enumerate(get_type_hints(classifier.answer).items()):
        cells = [None if answer is None else answer[at] for answer in answers]
        if kind in _TYPES:
            columns[field] = pa.array(cells, _TYPES[kind])
        elif kind == dict[str, float]:
            for label in classifier.labels:
                of_label = [None if cell is None else cell[label] for cell in cells]
                columns[f"{_PREFIX[field]}:{label}"] = pa.array(of_label, pa.float32())
        else:  # entities of a text: (kind, words)
            joined = [None if cell is None else [": ".join(parts) for parts in cell] for cell in cells]
            columns[field] = pa.array(joined, pa.list_(pa.string()))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer, write_page_checksum=True)
    return buffer.getvalue()


def _join(shards: Sequence[Path], file: IO[bytes], ending: str) -> None:
    """Write the rows of all shards into one file."""
    tables = (
        pa.concat_tables(pyarrow.parquet.read_table(shard) for shard in shards[start : start + _JOINED])
        for start in range(0, len(shards), _JOINED)
    )
    schema = pyarrow.parquet.read_schema(shards[0])
    match ending:
        case ".parquet":
            with pyarrow.parquet.ParquetWriter(file, schema) as writer:
                for table in tables:
                    writer.write_table(table)
        case ".csv":
            flat = pa.schema([(one.name, pa.string() if pa.types.is_list(one.type) else one.type) for one in schema])
            with pyarrow.csv.CSVWriter(file, flat) as writer:
                for table in tables:
                    writer.write_table(pa.table([_without_lists(column) for column in table.columns], schema=flat))
        case _:
            for table in tables:
                for row in pa.table([_short(column) for column in table.columns], table.column_names).to_pylist():
                    file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())


def _without_lists(column: Any) -> Any:
    """Return a column with its lists as JSON, which kdbench reads as lists in a table."""
    if not pa.types.is_list(column.type):
        return column
    cells = (None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in column.to_pylist())
    return pa.array(cells, pa.string())


def _short(column: Any) -> Any:
    """Return a column of float32 as the doubles with the fewest digits that are the same float32."""
    return column.cast(pa.string()).cast(pa.float64()) if column.type == pa.float32() else column
