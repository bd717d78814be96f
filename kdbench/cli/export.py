"""kdbench-export: turn a finished run into a folder to ship."""

import argparse
import json
import sys
from pathlib import Path

from kdbench.console import guarded, quiet_libraries

SCHEMA = 1  # version of the --json document
EPILOG = """\
RUN/export is a plain Hugging Face folder, which you can copy anywhere. Its model card is filled in from the run, its
other seeds and its baselines. --onnx and --int8 add graphs for onnxruntime. Each graph is evaluated on dev and test,
and is a row of its own in compare-runs. To replace an export, repeat the command.

examples:
  kdbench-export outputs/reuters_r8/theseus/bert_3l-1a2b3c4d/seed0 --int8
  kdbench-export outputs/.../seed0 outputs/.../seed1 --onnx --json

exit codes: 0 exported; 1 a stored file is damaged or nothing can be written; 2 the command line is wrong, or a run
cannot be exported; 130 interrupted. If a run fails, the RUNs before it have been exported.
Error messages begin with a code: docs/errors.md
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="kdbench-export",
        description="Export finished runs as Hugging Face folders with a model card, and as ONNX and int8 graphs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run: outputs/<...>/seed0")
    made.add_argument("--onnx", action="store_true", help="also export an ONNX graph, equal to PyTorch within 1e-5")
    made.add_argument("--int8", action="store_true", help="also export a graph quantised to 8 bits (includes --onnx)")
    made.add_argument("--json", action="store_true", help="print the folders as one JSON document")
    made.add_argument("--quiet", action="store_true", help="print only the folders, no messages")
    return made


def main(argv: list[str] | None = None) -> int:
    """Print the exported folders. Return the exit code."""
    options = parser().parse_args(argv)
    return guarded("kdbench-export", lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    from kdbench.inference.finished_run import open_run
    from kdbench.shipping.export import export_run  # loads torch: not for --help
    from kdbench.training.progress import hide_log, show_log

    quiet_libraries()
    hide_log() if options.quiet else show_log(on_stderr=True)
    for run in options.runs:  # checks all before the first is exported
        open_run(run)
    folders = [str(export_run(run, options.onnx, options.int8)) for run in options.runs]
    print(json.dumps({"schema": SCHEMA, "folders": folders}, indent=2) if options.json else "\n".join(folders))
    sys.stdout.flush()
    return 0
