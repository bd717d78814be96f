"""One HTML file that classifies a typed text in the browser, with the model inside: it needs no server and no network.

A browser does not let a page from disk read the files beside it, so the page contains them, compressed: the int8 graph,
the tokenizer, transformers.js and the WebAssembly of onnxruntime. transformers.js does the work, from the same files
that it would load from the folder of an export. It is downloaded by npm, once, and checked.
"""

import base64
import gzip
from pathlib import Path

from kdbench.declared import OWN
from kdbench.errors import Code, UserError
from kdbench.inference.finished_run import FinishedRun
from kdbench.inference.forms import FORMS
from kdbench.models import students
from kdbench.shipping.card import rendered
from kdbench.sources.npm import Package, fetch_npm
from kdbench.storage.files import write_text
from kdbench.storage.results import DEMO, EXPORT
from kdbench.tasks import traits

TRANSFORMERS_JS = Package(
    "@huggingface/transformers", "4.3.2",
    "V3+dqf3iWlRYJ9I9GreM3zGQd0lAXnnoPeddmkOQYWAEE4l/+Fi6p7tx/qVUJlKQgLXGim2W76rTOzz+eC0i7g==",
    ("dist/transformers.min.js",),
)  # fmt: skip
ONNXRUNTIME_WEB = Package(  # the version that this transformers.js asks for
    "onnxruntime-web", "1.31.0-dev.20260914-8d85527a0",
    "Iy7rtadoBgxS/LLvDr3QW38DB1PNXRnr0GJMcL0TAt7c9qjgVQl83UlGCVyeAnK2InpmW8Uc3PL8XIuqtDeF6g==",
    ("dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)  # fmt: skip
OF_THE_MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", FORMS["int8"].file)


def require_demo(run: FinishedRun) -> None:
    """Raise UserError if transformers.js cannot run the model of this run as a page with one text."""
    task = traits(run.dataset.task)
    problem = ""
    if students.model_type(run.model).startswith(OWN):
        problem = "transformers.js does not have its architecture"
    elif run.pairs or task.words or task.numbers:
        problem = "the page classifies one text, and this model does not"
    if problem:
        raise UserError(Code.UNSUPPORTED_EXPORT, f"--demo: {problem}. Leave it out")


def write_demo(run: FinishedRun) -> Path:
    """Write the page of a run that has an export with an int8 graph, and return it.

    Raises SourceError or UserError if the packages cannot be downloaded, StoreError.
    """
    library, runtime = fetch_npm(TRANSFORMERS_JS, run.cache), fetch_npm(ONNXRUNTIME_WEB, run.cache)
    write_text(run.folder / DEMO, _page(run, run.folder / EXPORT, library, runtime))
    return run.folder / DEMO


def _page(run: FinishedRun, export: Path, library: Path, runtime: Path) -> str:
    files = {f"model/{name}": export / name for name in OF_THE_MODEL}
    files |= {"transformers.js": library / "transformers.min.js"}
    files |= {name: runtime / f"ort-wasm-simd-threaded.{name}" for name in ("mjs", "wasm")}
    return rendered(
        "demo.html.j2",
        title=f"{run.result['identity']['dataset']}: {run.result['identity']['student']}",
        several=traits(run.dataset.task).several,
        megabytes=(export / FORMS["int8"].file).stat().st_size / 1e6,
        packages=[TRANSFORMERS_JS, ONNXRUNTIME_WEB],
        files={name: _packed(path) for name, path in files.items()},
    )


def _packed(path: Path) -> str:
    """Return a file as text: gzip, then base64."""
    return base64.b64encode(gzip.compress(path.read_bytes(), mtime=0)).decode()
