"""kdbench-clean: delete what finished runs keep and nothing reads again."""

import argparse
import sys
from pathlib import Path

from kdbench.console import command, obey
from kdbench.errors import Code, UserError
from kdbench.storage.files import sized

EPILOG = """\
kdbench-clean lists, and deletes when you agree:
  the weights of finished stages   RUN/00_training/student.safetensors and the like: model/ has the final weights
  teacher outputs, tokenised texts the cache's folders teacher/ and tokens/: a later run makes them again

It keeps everything that a command reads: model/, results.json, predictions, logs, exports, the general stages that
students start from, and all files that kdbench did not write. It keeps unfinished runs, their checkpoints and best
weights, and runs that a command is using. As long as a run with the same cache is unfinished, it keeps that cache.

One thing changes: if a file of a cleaned run is damaged later, the same command trains that run again.

examples:
  kdbench-clean outputs
  kdbench-clean outputs --yes

exit codes: 0 done, or there was nothing to delete; 1 a file cannot be deleted; 2 the command line is wrong, or there is
no such folder; 130 interrupted. Error messages begin with a code: docs/errors.md
"""


def parser() -> argparse.ArgumentParser:
    made = command(
        "kdbench-clean",
        "Delete what finished runs keep and nothing reads again. Without --yes, it lists and asks first.",
        EPILOG,
    )
    add = made.add_argument
    add("outputs", type=Path, metavar="OUTPUTS", help="the folder of the runs: outputs")
    add("--yes", action="store_true", help="delete without asking; needed where there is no terminal")
    return made


def main(argv: list[str] | None = None) -> int:
    """List, ask and delete. Return the exit code."""
    return obey(parser(), argv, _clean)


def _clean(options: argparse.Namespace) -> int:
    outputs, sure = options.outputs, options.yes
    if not outputs.is_dir():
        raise UserError(Code.MISSING_FILE, f"{outputs}: no such folder. Name the folder of the runs, such as outputs")
    from kdbench.runs import spare  # loads OmegaConf: not for --help

    found = spare.find(outputs)
    sizes: dict[tuple[Path, str], int] = {}  # of a cache one line for each kind of entry
    for one in found.spare:
        place = one.folder if one.cache is None else one.folder.parent
        sizes[place, one.what] = sizes.get((place, one.what), 0) + one.bytes
    for (place, what), size in sizes.items():
        print(f"{sized(size):>13}  {place}  {what}")
    for line in found.kept:
        print(f"kept: {line}")
    total = sum(one.bytes for one in found.spare)
    if not found.spare:
        print("nothing to delete")
        return 0
    print(f"{sized(total):>13}  in all")
    if not sure and not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("nothing was deleted. To delete these files, add --yes")
        return 0
    if not sure and not _agreed():
        print("nothing was deleted")
        return 0
    deleted = 0
    for one in found.spare:
        if (reason := spare.delete(one)) is None:
            deleted += one.bytes
        else:
            print(f"kept: {one.folder}: {reason}")
    print(f"deleted: {sized(deleted)}")
    return 0


def _agreed() -> bool:
    try:
        return input("Delete them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
