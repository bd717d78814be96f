"""Read tables from files: format, separator, columns and rows. `kdbench.tasks.cells` interprets the cells."""

import csv
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import Code, SettingError, SourceError
from kdbench.schema import SEPARATORS, TASKS, DatasetConfig
from kdbench.sources import files
from kdbench.tasks import traits

_OWN = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}  # separators by ending
_SEPARATORS = (",", ";", "\t", "|")
_LINES = (".jsonl", ".ndjson")
START = 1 << 16  # characters in which the header is looked for
_PIECE = 1 << 16  # bytes of a Parquet column that are read at a time
MOST_LEFT_OUT = 0.2  # share of rows that may be dropped; above it, the file was misread
_END = "\0end"
_BLANK = re.compile(r'(?:""|[,;|]|[^\S\n])*\n')  # a line of empty cells
_TYPES = re.compile(r"([cdst]|continuous|discrete|string|time|basket)?", re.IGNORECASE)  # Orange's second row
_FLAGS = re.compile(r"((class|meta|ignore|skip|weight|[cimsw]|\S+=\S*)(\s|$))*", re.IGNORECASE)  # its third


@dataclass(frozen=True)
class Dropped:
    """Rows that were dropped for one reason."""

    reason: str  # "another number of columns than the header"
    rows: int
    first: int  # line or row of the first one in the file, from 1: see Reading.unit


@dataclass(frozen=True)
class Reading:
    """How one file was read. Each guess has a note."""

    file: str  # as the config names it
    format: str  # csv, tsv, jsonl, json, parquet, xlsx, txt, conll, hub, ...
    separator: str | None = None  # None: the format has none
    encoding: str | None = None  # None: the format defines it
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()  # sentences on what was guessed or merged

    @property
    def unit(self) -> str:
        """Return the unit in which the file's rows are counted: line or row."""
        return "row" if self.format in ("json", "parquet", "xlsx", "hub") else "line"


@dataclass(frozen=True)
class Table:
    names: list[str]  # of the columns
    column: Callable[[str], Sequence[Any]]  # name -> cells
    lines: Sequence[int]  # where each row begins: see Reading.unit
    reading: Reading


def wanted(config: DatasetConfig) -> list[tuple[str, str]]:
    """Return (key below `dataset`, column) of all columns that are read."""
    labels = config.label if isinstance(config.label, list) else [config.label]
    pair = [] if config.text_pair is None else [("text_pair", config.text_pair)]
    return [("text", config.text), *pair, *(("label", name) for name in labels)]


def read(path: Path, config: DatasetConfig) -> Table:
    """Return the table in a file. Raises SourceError if it cannot be read as a table."""
    with files.opened(path) as (ending, file):
        packed = ending != path.suffix.lower()
        if ending == ".parquet":
            return _parquet(path, io.BytesIO(file.read()) if packed else path, config)
        if ending == ".xlsx":
            return _xlsx(path, io.BytesIO(file.read()) if packed else file, config)
        data = file.read()
    if ending not in (*files.TABLES, files.TEXT):
        raise SourceError(
            Code.INVALID_SOURCE, f"{path}: its ending says of no format that is read. These are: {files.FORMATS}."
        )
    text = files.text(path, data, config.encoding)
    if ending in _LINES:
        return _json_lines(path, text, config)
    if ending == ".json":
        return _json(path, text, config)
    if ending in files.TAGGED:
        return _tagged(path, text, config)
    return _delimited(path, ending, with_line_ends(text, config.encoding), config)


def with_line_ends(text: str, encoding: str) -> str:
    """Return the text of a table with a line feed for each sign that ends a line in this encoding alone.

    In ISO 8859-1 the byte 0x85 ends a line (NEL), which gives tweet_sentiment's 37,231 tweets. In a Windows file it is
    an ellipsis; the encoding of such a file is cp1252.
    """
    return text.replace("\x85", "\n") if files.codec_of(encoding) == "iso8859-1" else text


def names_at_start(path: Path, config: DatasetConfig) -> list[str] | None:
    """Return the columns by the first lines. None: they are not known, or `read` will raise an error.

    Raises SettingError if the file is a text without columns.
    """
    try:
        with files.opened(path) as (ending, file):
            if ending == ".parquet":
                return _parquet_names(path if path.suffix.lower() == ending else io.BytesIO(file.read()))
            if ending == ".xlsx" or ending in files.TAGGED:
                return None
            _require_columns(path, ending, config)
            data = file.read(4 * START)
            complete = not file.read(1)
        text = files.start(data, config.encoding)
        if ending in _LINES or ending == ".json":
            whole = ending == ".json"  # JSON lines in a .json are left to `read`
            rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
            return json_names(iter(rows)) if complete and isinstance(rows, list) else None
        return header_of(path, ending, text[:START], config).names or None
    except SettingError:
        raise
    except (OSError, LookupError, ValueError, TypeError, AttributeError, csv.Error):
        return None  # SourceError too: `read` reports what is wrong


def _require_columns(path: Path, ending: str, config: DatasetConfig) -> None:
    if ending == ".txt" and config.delimiter is None:
        raise SettingError(
            Code.UNREADABLE_TABLE,
            "dataset.delimiter",
            "null",
            f"{path}: a .txt holds texts without labels, for corpus.running. If it is a table, say what separates its"
            " columns, such as dataset.delimiter=tab.",
        )


# --- text with separators


class Header(NamedTuple):
    names: list[str]
    separator: str
    begin: int  # character at which the header begins, or the first row if there is no header
    line: int  # its line, from 1
    rows: int  # that are no data: the header and two rows of Orange
    padded: bool  # whether the header ends in cells without a name
    notes: list[str]


def header_of(path: Path, ending: str, text: str, config: DatasetConfig) -> Header:
    """Return what the first lines of a file define. `text`: the whole file, or its first START characters."""
    begin, line, notes, given = 0, 1, [], separator(config.delimiter)
    if told := re.match(r'"?sep=(.)"?\r?\n', text):  # Excel's
        begin, line, given = told.end(), 2, given or told[1]
        notes.append(f"line 1 is Excel's and says that {_spelled(told[1])} separates the columns")
    first = line
    while found := _BLANK.match(text, begin):
        begin, line = found.end(), line + 1
    if line > first:
        notes.append(f"{line - first} empty lines above the first row are skipped")
    sample = text[begin : begin + START]
    own = given or _OWN[ending]
    tried = [own] if given else [own, *(sign for sign in _SEPARATORS if sign != own)]
    chosen, names = own, []
    found_rows = {sign: _first_rows(sample, sign) for sign in tried}
    for sign in tried:
        rows = found_rows[sign]
        names = _column_names(rows, config.header)
        if {name for _, name in wanted(config)} <= set(names):
            chosen = sign
            break
    else:  # with each separator, some column is missing: the error shows the columns that exist
        if len(found_rows[own][0] if found_rows[own] else ()) < 2:
            chosen = max(tried, key=lambda sign: len(found_rows[sign][0]) if found_rows[sign] else 0)
        names = _column_names(found_rows[chosen], config.header)
    if not given and chosen != _OWN[ending]:
        where = "in the header" if config.header else "in the first rows"
        notes.append(f"{_spelled(chosen)} separates the columns, by what is {where}; dataset.delimiter sets it")
    if not config.header:
        return Header(names, chosen, begin, line, 0, False, [*notes, "no header: its columns go by number, from 1"])
    padded = bool(names) and len(found_rows[chosen][0]) > len(names)
    if ending == ".tab" and _is_orange(found_rows[chosen]):
        return Header(names, chosen, begin, line, 3, padded, [*notes, "rows 2 and 3 are Orange's types and flags"])
    return Header(names, chosen, begin, line, 1, padded, notes)


def checked_header(path: Path, ending: str, text: str, config: DatasetConfig) -> Header:
    """Return the header of a table that has each wanted column once. Raises SourceError."""
    try:
        header = header_of(path, ending, text, config)
    except csv.Error as error:
        raise SourceError(Code.UNREADABLE_TABLE, f"{path} cannot be read as a table: {error}.") from error
    names = header.names
    if not names:
        raise SourceError(Code.UNREADABLE_TABLE, f"{path} is empty.")
    require(path, names, config)
    for key, name in wanted(config):
        if names.count(name) > 1:
            raise SettingError(
                Code.MISSING_COLUMN,
                f"dataset.{key}",
                name,
                f"{path} has {names.count(name)} columns of this name: rename one.",
            )
    return header


def separator(delimiter: str | None) -> str | None:
    """Return the separator for `dataset.delimiter`, which is a sign or the name of one."""
    return None if delimiter is None else SEPARATORS.get(delimiter, delimiter)


def _spelled(sign: str) -> str:
    return {"\t": "a tab", " ": "a space"}.get(sign, sign)


def _first_rows(text: str, sign: str) -> list[list[str]]:
    rows = list(islice(csv.reader(io.StringIO(text, newline=""), delimiter=sign), 21))
    return [row for row in (rows[:-1] if len(rows) > 1 and not text.endswith("\n") else rows) if row]


def _column_names(rows: list[list[str]], header: bool) -> list[str]:
    """Return the columns by the first rows. Without a header, they are numbers, as many as most rows have cells."""
    if not rows:
        return []
    if not header:
        width = Counter(map(len, rows)).most_common(1)[0][0]
        return [str(number) for number in range(1, width + 1)]
    names = [name.strip().strip("\ufeff\u200b") for name in rows[0]]
    while names and not names[-1]:  # a separator at the end of the line
        names.pop()
    return names


def _is_orange(rows: list[list[str]]) -> bool:
    """Return whether the second row has Orange's types and the third its flags.

    The type of a discrete column may be the list of its values.
    """
    if len(rows) < 3:
        return False
    types = sum(_TYPES.fullmatch(cell.strip()) is not None for cell in rows[1])
    flags = all(_FLAGS.fullmatch(cell.strip()) for cell in rows[2])
    return flags and (types == len(rows[1]) or (types > 0 and any(cell.strip() for cell in rows[2])))


def _empty(cells: list[str]) -> bool:
    return not "".join(cells).strip()


def blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())


def rows(path: Path, lines: Iterable[str], header: Header, quoting: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the line at which each row begins, and its cells, the header included. `lines`: from the header on.

    Raises SourceError if a quote is not closed.
    """
    csv.field_size_limit(1 << 30)  # characters; the module's limit of 131,072 is less than a long document has
    reader = csv.reader(chain(lines, [_END]), delimiter=header.separator, quoting=quoting)  # type: ignore[arg-type]
    line = header.line
    try:
        for row in reader:
            if row == [_END]:
                return
            if row and row[-1].endswith(_END):
                raise _unclosed(path, line, "".join(row))
            yield line, row
            line = header.line + reader.line_num
    except csv.Error as error:
        raise SourceError(Code.UNREADABLE_TABLE, f"{path}, line {line}, cannot be read: {error}.") from error


def quoting_of(path: Path, lines: Callable[[], Iterable[str]], header: Header) -> int:
    """Return csv.QUOTE_NONE if quotes are ordinary characters: no cell is in quotes, and quotes join lines that fit.

    `lines` begins anew at the header each time. In a file with tabs, quotes are often ordinary characters. In a file
    with commas, an open quote is a fault.
    """
    plain, begun = 0, False
    for _, row in rows(path, lines(), header, csv.QUOTE_NONE):
        around = any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in row)
        if around or not (len(row) == len(header.names) or blank(row)):
            return csv.QUOTE_MINIMAL
        plain += 1
        begun |= any(cell[:1] == '"' for cell in row)
    if not begun:  # csv reads a quote inside a cell as an ordinary character
        return csv.QUOTE_MINIMAL
    usual, suspect = 0, False
    try:
        for _, row in rows(path, lines(), header, csv.QUOTE_MINIMAL):
            usual += 1
            suspect |= any("\n" in cell or "\r" in cell for cell in row)
    except SourceError:  # a quote is not closed
        usual += 1
        suspect = header.separator == "\t"
    return csv.QUOTE_NONE if suspect and plain > usual else csv.QUOTE_MINIMAL


def _delimited(path: Path, ending: str, text: str, config: DatasetConfig) -> Table:
    _require_columns(path, ending, config)
    header = checked_header(path, ending, text[:START], config)
    names, notes = header.names, list(header.notes)

    def lines() -> Iterable[str]:
        return io.StringIO(text[header.begin :], newline="")

    quoting = quoting_of(path, lines, header) if '"' in text else csv.QUOTE_MINIMAL
    if quoting == csv.QUOTE_NONE:
        notes.append('the sign " is a letter like others: no cell is in quotes')
    body = [one for one in islice(rows(path, lines(), header, quoting), header.rows, None) if not blank(one[1])]
    surplus = [row for _, row in body if len(row) > len(names) and _empty(row[len(names) :])]
    if surplus and (header.padded or len(surplus) <= MOST_LEFT_OUT * len(body)):
        notes.append(f"{len(surplus)} rows end in empty cells beyond the last column, which are cut off")
        for row in surplus:
            del row[len(names) :]
    kept = [one for one in body if len(one[1]) == len(names)]
    other = [one for one in body if len(one[1]) != len(names)]
    if len(other) > MOST_LEFT_OUT * len(body):
        said = other_width(path, *other[0], f"{len(other)} of {len(body)}", header)
        raise SourceError(Code.UNREADABLE_TABLE, f"{said}{_backslashes(text)}")
    reason = "another number of columns than the header" if config.header else "another number of columns than most"
    dropped = (Dropped(reason, len(other), other[0][0]),) if other else ()
    kind = "orange tab" if header.rows == 3 else ending.removeprefix(".")
    reading = Reading(str(path), kind, header.separator, config.encoding, dropped, tuple(notes))

    def column(name: str) -> list[str]:
        index = names.index(name)
        return [row[index] for _, row in kept]

    return Table(names, column, [line for line, _ in kept], reading)


def _unclosed(path: Path, line: int, text: str) -> SourceError:
    """Return the error for a quote that opens in `line`; `text` may show why."""
    return SourceError(
        Code.UNREADABLE_TABLE,
        f"{path}: a quote that opens in line {line} is never closed; double it if it is text.{_backslashes(text)}",
    )


def _backslashes(text: str) -> str:
    return ' In a CSV a quote inside quotes is doubled, "", where this file has \\".' if '\\"' in text else ""


def other_width(path: Path, line: int, row: list[str], how_many: str, header: Header) -> str:
    width = len(header.names)
    if _empty(row[width:]) and len(row) > width:
        cure = "Its cells beyond those are empty: give the header a name for each, or take them off the rows."
    else:
        cure = (
            f"A text that has {_spelled(header.separator)} in it must be in quotes; dataset.delimiter names another"
            " separator."
        )
    return (
        f"{path}: {how_many} rows have another number of columns than"
        f" {'the header' if header.rows else 'the others'}, {width}. The first is line {line} with"
        f" {len(row)}: {header.separator.join(row)[:60]!r}. {cure}"
    )


# --- JSON


def _json_lines(path: Path, text: str, config: DatasetConfig, notes: tuple[str, ...] = ()) -> Table:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        rows.append(json_object(path, number, line))
        lines.append(number)
    return _objects(path, rows, lines, Reading(str(path), "jsonl", encoding=config.encoding, notes=notes), config)


def json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    """Return the object in line `number`. Raises SourceError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(Code.UNREADABLE_TABLE, f"{path}, line {number}, is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise SourceError(
            Code.UNREADABLE_TABLE,
            f'{path}, line {number}: every line must be an object, {{"text": ..., "label": ...}}.',
        )
    return row


def _json(path: Path, text: str, config: DatasetConfig) -> Table:
    """Return the table of a list of objects. A .json may also hold JSON lines, or an object that holds the list."""
    notes: tuple[str, ...] = ()
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        with suppress(ValueError):
            if isinstance(json.loads(text.lstrip().partition("\n")[0]), dict):
                return _json_lines(path, text, config, ("a .json with an object a line",))
        raise SourceError(Code.UNREADABLE_TABLE, f"{path} is not JSON: {error}.") from error
    if isinstance(rows, dict):
        lists = {key: value for key, value in rows.items() if isinstance(value, list)}
        if len(lists) == 1:
            ((key, rows),) = lists.items()
            notes = (f"the rows are the list under {key!r}",)
        elif wanted(config)[0][1] in rows and not lists:
            rows = [rows]  # JSON lines with one line
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SourceError(
            Code.UNREADABLE_TABLE, f'{path} must hold a list of objects: [{{"text": ..., "label": ...}}, ...].'
        )
    reading = Reading(str(path), "json", encoding=config.encoding, notes=notes)
    return _objects(path, rows, range(1, len(rows) + 1), reading, config)


def _objects(
    path: Path, rows: list[dict[str, Any]], lines: Sequence[int], reading: Reading, config: DatasetConfig
) -> Table:
    if not rows:
        raise SourceError(Code.UNREADABLE_TABLE, f"{path} is empty.")
    names = json_names(iter(rows))
    require(path, names, config)
    return Table(names, lambda name: [reached(row, name) for row in rows], lines, reading)


def json_names(rows: Iterator[Any]) -> list[str]:
    """Return the keys of all rows, and keys of inner objects as outer.inner."""
    names: dict[str, None] = {}

    def add(row: dict[str, Any], before: str) -> None:
        for key, value in row.items():
            names[before + key] = None
            if isinstance(value, dict):
                add(value, f"{before}{key}.")

    for row in rows:
        add(row, "")
    return list(names)


def reached(row: Any, name: str) -> Any:
    """Return the value under a key, or under outer.inner. None: it is absent or null."""
    if not isinstance(row, dict):
        return None
    if name in row:
        return row[name]
    for at, letter in enumerate(name):
        if letter == "." and (inner := reached(row.get(name[:at]), name[at + 1 :])) is not None:
            return inner
    return None


# --- words with tags, Parquet, Excel


def _tagged(path: Path, text: str, config: DatasetConfig) -> Table:
    """Return the table of a CoNLL file: a word and its tag (last) on a line, empty lines between sentences."""
    if not traits(config.task).words:
        able = " or ".join(name for name in TASKS if traits(name).words)
        raise SourceError(
            Code.INAPPLICABLE_KEY, f"{path} has a tag for each word: it is read with dataset.task={able}."
        )
    sentences: list[list[list[str]]] = [[]]
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        cells = line.split()
        if cells and not line.startswith("-DOCSTART-"):
            if len(cells) == 1:
                raise SourceError(
                    Code.UNREADABLE_TABLE,
                    f"{path}, line {number}, has one column: a word and, last, its tag are needed.",
                )
            if not sentences[-1]:
                lines.append(number)
            sentences[-1].append([cells[0], cells[-1]])
        elif sentences[-1]:
            sentences.append([])
    kept = [[list(column) for column in zip(*sentence, strict=True)] for sentence in sentences if sentence]
    if not kept:
        raise SourceError(Code.UNREADABLE_TABLE, f"{path} is empty.")
    table = dict(zip((config.text, str(config.label)), zip(*kept, strict=True), strict=True))
    return Table(list(table), table.__getitem__, lines, Reading(str(path), "conll", " ", config.encoding))


def _parquet_names(source: Path | io.BytesIO) -> list[str]:
    import pyarrow.parquet

    names: list[str] = []

    def add(fields: Any, before: str) -> None:
        for field in fields:
            names.append(before + field.name)
            if str(field.type).startswith("struct"):
                add(field.type, f"{before}{field.name}.")

    add(pyarrow.parquet.read_schema(source), "")
    return names


def _parquet(path: Path, source: Path | io.BytesIO, config: DatasetConfig) -> Table:
    with unreadable_parquet(path):
        file, names, outer = opened_parquet(path, source, config)
        return of_arrow(path, names, file.read(columns=outer))


def of_arrow(path: Path, names: list[str], content: Any, first: int = 1) -> Table:
    """Return a table or record batch of a Parquet file, which begins at row `first`."""

    def column(name: str) -> list[Any]:
        if name in content.schema.names:
            return list(content[name].to_pylist())
        return [reached(row, name) for row in content.select([name.partition(".")[0]]).to_pylist()]

    return Table(names, column, range(first, first + content.num_rows), Reading(str(path), "parquet"))


def opened_parquet(path: Path, source: Path | io.BytesIO, config: DatasetConfig) -> tuple[Any, list[str], list[str]]:
    """Return a pyarrow ParquetFile, its columns, and those to read for the wanted ones. Raises SourceError."""
    import pyarrow.parquet

    names = _parquet_names(source)
    require(path, names, config)
    # Its defaults read row groups ahead, which are as large as the file is long.
    file = pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=_PIECE)
    top = set(file.schema_arrow.names)
    outer = {name if name in top else name.partition(".")[0] for _, name in wanted(config)}
    return file, names, sorted(outer)


@contextmanager
def unreadable_parquet(path: Path) -> Iterator[None]:
    """Turn an error of Arrow within the block into a SourceError."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise SourceError(
            Code.UNREADABLE_TABLE, f"{path} cannot be read as parquet: {str(error).splitlines()[0]}"
        ) from error


def _xlsx(path: Path, file: Any, config: DatasetConfig) -> Table:
    """Return the sheet that `dataset.subset` names, or else the first one that has rows."""
    try:
        import openpyxl
    except ImportError as error:
        raise SourceError(Code.NOT_INSTALLED, f"{path}: .xlsx needs openpyxl: pip install 'kdbench[excel]'") from error

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on styles and other things that openpyxl does not keep
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
    except Exception as error:  # openpyxl raises KeyError, BadZipFile, InvalidFileException and others
        raise SourceError(
            Code.UNREADABLE_TABLE, f"{path} cannot be read as .xlsx: {type(error).__name__}: {error}"
        ) from error
    full = {
        title: [(line, row) for line, row in enumerate(rows, 1) if any(cell not in (None, "") for cell in row)]
        for title, rows in sheets.items()
    }
    if config.subset is not None and config.subset not in full:
        raise SourceError(
            Code.MISSING_COLUMN, f"dataset.subset={config.subset}: {path} has no such sheet; it has {', '.join(full)}."
        )
    filled = [title for title, rows in full.items() if rows]
    if not filled:
        raise SourceError(Code.UNREADABLE_TABLE, f"{path} is empty.")
    title = config.subset or filled[0]
    notes = [f"sheet {title!r}"]
    if config.subset is None and len(filled) > 1:
        notes[0] += f", the first of {', '.join(map(repr, filled))}; dataset.subset names another"
    rows = full[title]
    width = max((len(row) for _, row in rows), default=0)
    names = [str(number) for number in range(1, width + 1)]
    if config.header:
        names = ["" if cell is None else _as_text(cell).strip() for cell in rows[0][1]] if rows else []
        rows = rows[1:]
    require(path, names, config)

    def column(name: str) -> list[Any]:
        index = names.index(name)
        cells = [row[index] if index < len(row) else None for _, row in rows]
        # Excel turns texts that look like numbers or dates into these.
        return [_as_text(cell) for cell in cells] if name in (config.text, config.text_pair) else cells

    return Table(names, column, [line for line, _ in rows], Reading(str(path), "xlsx", notes=tuple(notes)))


def _as_text(cell: Any) -> Any:
    if cell is None or isinstance(cell, str):
        return cell
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


# --- columns


def require(where: Path | str, names: Sequence[str], config: DatasetConfig) -> None:
    """Raise SettingError if a column that is read is missing."""
    for error in missing(where, names, config):
        raise error


def missing(where: Path | str, names: Sequence[str], config: DatasetConfig) -> Iterator[SettingError]:
    """Yield an error for each column that is read but missing."""
    numbered = "" if config.header else " (dataset.header=false: columns go by number)"
    for key, name in wanted(config):
        if name not in names:
            lacks = f"column {name}" if isinstance(config.label, list) and key == "label" else "such column"
            problem = f"{where} has no {lacks}; it has {', '.join(names)}{numbered}."
            yield SettingError(Code.MISSING_COLUMN, f"dataset.{key}", name, problem)
