"""kdbench-export: turn a finished run into a folder to ship."""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.console import command, obey, quiet_libraries
from kdbench.errors import Code, UserError

if TYPE_CHECKING:
    from kdbench.schema import ExportConfig

SCHEMA = 1  # version of the --json document
EPILOG = """\
RUN/export is a plain Hugging Face folder, which you can copy anywhere. Its model card is filled in from the run, its
other seeds and its baselines. It has no texts, no predictions, and no paths or names of this machine. The graphs have
the names under which other programs look for them: onnx/model.onnx, onnx/model_quantized.onnx and
openvino/openvino_model.xml. Each graph is evaluated on dev and test, and is a row of its own in compare-runs
(RUN/forms). To replace an export, repeat the command.

examples:
  kdbench-export outputs/reuters_r8/theseus/bert_3l-1a2b3c4d/seed0 --int8
  kdbench-export outputs/.../seed0 outputs/.../seed1 --onnx --json
  kdbench-export outputs/.../seed0 outputs/.../seed1 outputs/.../seed2 --average
  kdbench-export outputs/.../seed0 --best-int8 --max-loss 0.3
  kdbench-export outputs/.../seed0 --demo
  kdbench-export outputs/.../seed0 --int8 --push my-org/my-model

exit codes: 0 exported; 1 a stored file is damaged or nothing can be written; 2 the command line is wrong, or a run
cannot be exported; 130 interrupted. If a run fails, the RUNs before it have been exported.
Error messages begin with a code: docs/errors.md
"""


def parser() -> argparse.ArgumentParser:
    made = command(
        "kdbench-export",
        "Export finished runs as Hugging Face folders with a model card, and as ONNX and int8 graphs.",
        EPILOG,
    )
    add = made.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a finished run: outputs/<...>/seed0")
    add("--average", action="store_true", help="export one ONNX graph with the mean of the logits of all RUNs")
    add("--onnx", action="store_true", help="also export an ONNX graph, equal to PyTorch within 1e-5")
    add("--int8", action="store_true", help="also export a graph quantised to 8 bits (includes --onnx)")
    add("--best-int8", action="store_true", help="--int8 in the way that is fastest here and loses little on dev")
    add("--max-loss", type=float, default=0.5, metavar="POINTS", help="that --best-int8 may lose on dev (default: 0.5)")
    add("--qat", action="store_true", help="--int8 after one more epoch that rounds to 8 bits")
    add("--fp16", action="store_true", help="also export an fp16 graph for a GPU (includes --onnx)")
    add("--openvino", action="store_true", help="also export a graph for OpenVINO (includes --onnx)")
    add("--demo", action="store_true", help="also write RUN/demo.html, a page that runs the int8 graph")
    add("--push", metavar="ORG/NAME", help="upload the export to the model hub, as a private model")
    add("--public", action="store_true", help="with --push: a new model is public")
    add("--json", action="store_true", help="print the folders as one JSON document")
    add("--quiet", action="store_true", help="print only the folders, no messages")
    return made


def main(argv: list[str] | None = None) -> int:
    """Print the exported folders. Return the exit code."""
    return obey(parser(), argv, _export)


def _export(options: argparse.Namespace) -> int:
    from huggingface_hub.utils import disable_progress_bars

    from kdbench.inference.finished_run import open_run
    from kdbench.schema import ExportConfig
    from kdbench.shipping.demo import require_demo, write_demo
    from kdbench.shipping.export import export_run, require_forms  # loads torch: not for --help
    from kdbench.shipping.push import push
    from kdbench.training.progress import hide_log, show_log

    _check_push(options)
    if not options.max_loss >= 0:
        raise UserError(Code.OUT_OF_RANGE, f"--max-loss {options.max_loss:g}: must be 0 or more points")
    quiet_libraries()
    hide_log() if options.quiet else show_log(on_stderr=True)
    options.int8 |= options.demo or options.best_int8
    wanted = ExportConfig(**{field.name: getattr(options, field.name) for field in fields(ExportConfig)})
    if options.average:
        return _average(options, wanted)
    runs = [open_run(folder) for folder in options.runs]
    for run in runs:  # all, before the first is exported
        require_forms(run, wanted, options.best_int8)
        if options.demo:
            require_demo(run)
    folders, demos = [], []
    for run in runs:
        folders.append(str(export_run(run.folder, wanted, options.max_loss if options.best_int8 else None)))
        if options.demo:
            demos.append(str(write_demo(run)))
    if options.push and (options.quiet or not sys.stderr.isatty()):
        disable_progress_bars()
    pushed = [push(Path(folders[0]), options.push, options.public)] if options.push else []
    _tell(options, folders, demos, pushed)
    return 0


def _average(options: argparse.Namespace, wanted: "ExportConfig") -> int:
    from kdbench.shipping.average import export_average

    for option in ("best_int8", "qat", "demo", "push"):
        if getattr(options, option):
            raise UserError(
                Code.CONFLICTING_OPTIONS, f"--{option.replace('_', '-')} excludes --average: export one RUN with it"
            )
    wanted.onnx = True
    _tell(options, [str(export_average(options.runs, wanted))], [], [])
    return 0


def _tell(options: argparse.Namespace, folders: list[str], demos: list[str], pushed: list[str]) -> None:
    if options.json:
        print(json.dumps({"schema": SCHEMA, "folders": folders, "demos": demos, "pushed": pushed}, indent=2))
    else:
        print("\n".join(folders + demos + pushed))
    sys.stdout.flush()


def _check_push(options: argparse.Namespace) -> None:
    """Raise UserError for an upload that cannot succeed, before anything is exported."""
    if options.public and not options.push:
        raise UserError(Code.CONFLICTING_OPTIONS, "--public needs --push ORG/NAME")
    if not options.push:
        return
    if len(options.runs) > 1:
        raise UserError(Code.CONFLICTING_OPTIONS, f"--push uploads one RUN, not {len(options.runs)}: name one")
    from kdbench.shipping.push import require_name, require_token  # loads the hub's client: not for --help

    require_name(options.push)
    require_token()
