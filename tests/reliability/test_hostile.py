"""A corpus of hostile inputs, made here: each is refused, and the module that it names is never imported.

Planted pickles under each name that kdbench reads, code in config and command line, code in a model's JSON, archives.
"""

import io
import itertools
import json
import shutil
import struct
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from kdbench.cli import main as cli
from kdbench.data.tokenize import cached_tokens
from kdbench.errors import Code, SourceError, UserError
from kdbench.models import students
from kdbench.sources.archive import extract
from kdbench.sources.model_folder import verify
from kdbench.storage import files as store
from kdbench.storage.predictions import NoPredictionsError, read
from kdbench.storage.results import read_result
from kdbench.training import checkpoint
from kdbench.validation.load import _fill_teacher
from kdbench.validation.values import faults
from tests.data.test_datasets import config as dataset
from tests.refusals import refused
from tests.tables import read_table
from tests.test_check import composed

MODULE = "kd_planted"  # lies on sys.path for every test here; importing it leaves a mark


@pytest.fixture(autouse=True)
def planted(tmp_path, monkeypatch):
    """Nothing may import the planted module, nor write beside the test's own `inside` folder."""
    code = f"from pathlib import Path\ndef run(*_, **__): Path({str(tmp_path / 'MARK')!r}).touch()\nrun()\n"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{MODULE}.py").write_text(code)
    (tmp_path / "inside").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.chdir(tmp_path / "inside")
    yield
    assert MODULE not in sys.modules
    assert {path.name for path in tmp_path.iterdir()} == {"path", "inside"}
    assert {path.name for path in (tmp_path / "path").iterdir()} == {f"{MODULE}.py"}


# Pickles


def _zipped(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # as torch.save does
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def _in_numpy(pickled: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return file.getvalue() + pickled


_OLD, _NEW = f"c{MODULE}\nrun\n(tR.".encode(), b"\x80\x04\x8c\x0akd_planted\x8c\x03run\x93)R."
PICKLES = {"old": _OLD, "new": _NEW, "zip": _zipped(_NEW), "npy": _in_numpy(_NEW)}


def in_model(name):
    def plant(pickled, inside, teacher):
        folder = Path(shutil.copytree(teacher, inside / "model"))
        for other in {"vocab.txt": ["tokenizer.json"], "pytorch_model.bin": ["model.safetensors"]}.get(name, []):
            (folder / other).unlink()
        (folder / name).write_bytes(pickled)
        (students.load if name == "pytorch_model.bin" else verify)(folder)

    return plant


def sealed(name, load):
    """Under a manifest that fits it, which anyone can write."""

    def plant(pickled, inside, _):
        folder = inside / "cache" / "kind" / "key"
        folder.mkdir(parents=True)
        for other in ("flat.npy", "offsets.npy"):
            np.save(folder / other, np.zeros(1, np.int64))
        (folder / name).write_bytes(pickled)
        store.write_record(folder / store.MANIFEST, {}, list(folder.iterdir()))
        load(folder / name)

    return plant


def in_checkpoint(name):
    """Under a manifest that fits it."""

    def plant(pickled, inside, _):
        module = torch.nn.Linear(1, 1)
        optimizer = torch.optim.AdamW(module.parameters())
        folder = checkpoint.save(inside, module, optimizer, checkpoint.State())
        (folder / name).write_bytes(pickled)
        (folder / store.MANIFEST).unlink()
        store.write_record(folder / store.MANIFEST, {}, list(folder.iterdir()))
        checkpoint.restore(inside, module, optimizer)

    return plant


def table(name):
    def plant(pickled, inside, _):
        (inside / name).write_bytes(pickled)
        read_table(inside / name, dataset(inside, name))

    return plant


def in_run(name, load):
    def plant(pickled, inside, _):
        (inside / "model").mkdir()
        (inside / "results.json").write_text("{}")
        (inside / name).write_bytes(pickled)
        load(inside)

    return plant


def fail_to_fill() -> NoReturn:
    raise AssertionError("a cache that fits its manifest was not read")


NAMES = {
    **{name: in_model(name) for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt")},
    **{name: in_model(name) for name in ("tokenizer_config.json", "pytorch_model.bin")},
    **{f"train{ending}": table(f"train{ending}") for ending in (".csv", ".tsv", ".tab", ".jsonl", ".parquet")},
    "results.json": in_run("results.json", read_result),
    "config.yaml": in_run("config.yaml", lambda folder: _fill_teacher({"path": str(folder)}, "teacher")),
    "predictions.parquet": in_run("predictions.parquet", lambda folder: read(folder / "results.json", "test")),
    "model/MANIFEST.json": in_run("model/MANIFEST.json", lambda folder: students.load(folder / "model")),
    "stage.json": in_run("stage.json", lambda folder: store.verify(folder / "stage.json")),
    "student.safetensors": sealed("student.safetensors", load_file),
    **{name: in_checkpoint(name) for name in ("module.safetensors", "optimizer.safetensors", "state.json")},
    "outputs.safetensors": sealed("outputs.safetensors", load_file),
    "flat.npy": sealed("flat.npy", lambda p: cached_tokens("key", fail_to_fill, p.parents[2])),
    "offsets.npy": sealed("offsets.npy", lambda p: cached_tokens("key", fail_to_fill, p.parents[2])),
}
TEXT = ("vocab.txt", "old")  # a text like another
PLANTED = [case for case in itertools.product(NAMES, PICKLES) if case != TEXT]


@pytest.mark.parametrize(("name", "kind"), PLANTED)
def test_a_planted_pickle_is_not_loaded(name, kind, tmp_path, teacher_folder):
    refused = (UserError, NoPredictionsError, SafetensorError, ValueError, OSError)
    if name.endswith(".npy"):
        (tmp_path / "inside/cache/tokens").mkdir(parents=True)
        (tmp_path / "inside/cache/kind").symlink_to("tokens")
    with pytest.raises(refused):
        NAMES[name](PICKLES[kind], tmp_path / "inside", teacher_folder)


# Command line and YAMLs

HYDRA = [
    f"hydra.searchpath=[pkg://{MODULE}]", f"+hydra.searchpath=[pkg://{MODULE}]", f"++hydra.searchpath=[pkg://{MODULE}]",
    f"+hydra.callbacks.x._target_={MODULE}.run", f"hydra.callbacks={{x:{{_target_:{MODULE}.run}}}}",
    f"hydra.launcher._target_={MODULE}.run", f"hydra.sweeper._target_={MODULE}.run",
    f"+hydra.launcher.nested._target_={MODULE}.run", f"hydra.job_logging.handlers.x.class={MODULE}.run",
    f"+hydra.job_logging.formatters.x.()={MODULE}.run", f"hydra.job_logging={{formatters:{{x:{{class:{MODULE}}}}}}}",
    f"+hydra.hydra_logging.filters.x.()={MODULE}.run", f"hydra.hydra_logging.root.handlers=[{MODULE}]",
    "hydra/job_logging=default", "hydra/hydra_logging=default", "hydra/callbacks=none", "hydra/env=default",
    "hydra.run.dir=/tmp/elsewhere", "hydra.sweep.dir=/tmp/elsewhere", "hydra.sweep.subdir=../elsewhere",
    "hydra.output_subdir=../elsewhere", "hydra.job.chdir=true", "+hydra.job.env_set.LD_PRELOAD=x.so",
    "hydra.job.env_copy=[HOME]", "hydra.mode=MULTIRUN", "hydra.verbose=true", "hydra.help.template=x", "~hydra.run",
    "hydra={searchpath:[]}", "+hydra={callbacks:{}}", "dataset@hydra.callbacks=files", "method@hydra.launcher=theseus",
    "hydra.sweeper.params.seed=1", " hydra.searchpath=[x]", "--config-name other", "--config-path /tmp",
    "--experimental-rerun x.pickle",
]  # fmt: skip


@pytest.mark.parametrize("line", HYDRA)
@pytest.mark.parametrize("answer", ["", "--cfg job"])
def test_hydras_own_keys_are_closed_also_where_hydra_answers(line, answer, monkeypatch, capsys):
    words = [line] if line.startswith(" ") else line.split()
    monkeypatch.setattr(sys, "argv", ["kdbench", *words, *answer.split()])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "1 fault, nothing was run" in capsys.readouterr().err


CODE = [{"_target_": f"{MODULE}.run"}, f"${{oc.env:{MODULE}}}", "${oc.decode:x}", f"${{{MODULE}:x}}",
        f"${{hydra:{MODULE}}}", "${half:${oc.env:HOME}}", "${oc.create:{a:1}}", f"${{oc.select:{MODULE}}}"]  # fmt: skip
KEYS = ["schedule.lr", "outputs", "method.init.layers", "student.name"]
VALUES = list(itertools.product(KEYS, CODE))


@pytest.fixture(scope="module")
def theseus():
    return composed("method=theseus")


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_a_config_names_no_code(theseus, key, value):
    cfg = theseus.copy()
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, key, value, merge=False)
    (fault,) = faults(cfg)
    assert fault.key in (key, f"{key}._target_") and fault.code in (
        Code.CODE_IN_CONFIG,
        Code.WRONG_TYPE,
        Code.OUT_OF_RANGE,
    )


PRESETS = {
    "a searchpath": ("config.yaml", f"defaults: []\nhydra: {{searchpath: ['pkg://{MODULE}']}}\n"),
    "another config": ("config.yaml", "seed: 0\n"),
    "a callback": ("p.yaml", f"hydra: {{callbacks: {{x: {{_target_: {MODULE}.run}}}}}}\n"),
    "a searchpath in a preset": ("p.yaml", f"hydra: {{searchpath: ['pkg://{MODULE}']}}\n"),
    "a launcher": ("p.yaml", f"hydra: {{launcher: {{_target_: {MODULE}.run}}}}\n"),
    "a launcher's part": ("p.yaml", f"hydra: {{sweeper: {{x: [{{_target_: {MODULE}.run}}]}}}}\n"),
    "a log": ("p.yaml", f"hydra: {{job_logging: {{formatters: {{x: {{(): {MODULE}.run}}}}}}}}\n"),
    "a folder": ("p.yaml", "hydra: {run: {dir: /tmp/elsewhere}}\n"),
    "an environment": ("p.yaml", "hydra: {job: {env_set: {LD_PRELOAD: x.so}}}\n"),
    "a tag": ("p.yaml", f"tag: !!python/object/apply:{MODULE}.run []\n"),
    "a module": ("p.yaml", f"tag: !!python/module:{MODULE}\n"),
    "a target": ("p.yaml", f"schedule: {{lr: {{_target_: {MODULE}.run}}}}\n"),
    "a method of another place": ("p.yaml", f"method: {{name: ..{MODULE}}}\n"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_yaml_names_no_code(name, tmp_path):
    file, content = PRESETS[name]
    own = tmp_path / "inside" / "own"
    (own / "experiment").mkdir(parents=True)
    (own / ("" if file == "config.yaml" else "experiment") / file).write_text(f"# @package _global_\n{content}")
    assert cli.refuse(["--config-dir", str(own), *(["experiment=p"] if file == "p.yaml" else [])])


# A model's JSON

JSON_KEYS: dict[str, list[Any]] = {
    "auto_map": [{"AutoModel": f"{MODULE}.run"}, {"AutoConfig": "org/repo--x.Y"}, None, f"{MODULE}.run"],
    "custom_pipelines": [{"x": {"impl": f"{MODULE}.run"}}, {}],
    "quantization_config": [{"quant_method": MODULE}, {"quant_method": "gptq"}, None],
    "attn_implementation": ["org/kernel", {"": "org/kernel"}, f"{MODULE}.run", "flash_attention_2"],
    "_attn_implementation": ["org/kernel", ["sdpa"], "kernels-community/flash-attn"],
    "_attn_implementation_internal": ["org/kernel", "org/kernel@main:run"],
    "_experts_implementation": ["org/kernel"],
}
MODEL_JSON = [
    (file, nested, key, value)
    for file in ("config.json", "tokenizer_config.json")
    for nested in (False, True)
    for key, values in JSON_KEYS.items()
    for value in values
]


@pytest.mark.parametrize(("file", "nested", "key", "value"), MODEL_JSON)
def test_a_models_json_names_no_code(file, nested, key, value, tmp_path, teacher_folder):
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "inside" / "model"))
    given = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(given | ({"text_config": [{key: value}]} if nested else {key: value})))
    with refused(Code.UNSAFE_CONTENT, key):
        verify(folder)
    if file == "config.json":
        with refused(Code.UNSAFE_CONTENT, key):
            students.load(folder)


# Archives

NAMED = ["../out", "a/../../out", "/out", "//out", "a/..", "..", ".", "", "a//b", "./a", "a/./b", "a\\..\\out",
         "..\\out", "C:out", "C:\\out", "a\0b", "a/", ".download/x.whl", "MANIFEST.json", "manifest.json", ".hidden",
         "a:stream", "\\\\host\\share", "a/\\b"]  # fmt: skip


def zipped(*files, compression=zipfile.ZIP_STORED):
    """An archive with these (name or ZipInfo, content), also where a name comes twice."""
    file = io.BytesIO()
    twice = len({name for name, _ in files}) < len(files)
    noted = pytest.warns(UserWarning, match="Duplicate") if twice else nullcontext()
    with noted, zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content, compression)
    return file.getvalue()


def of_kind(mode):
    info = zipfile.ZipInfo("a")
    info.external_attr = mode << 16
    return zipped((info, "/etc/passwd"))


def patched(content, at, value):
    """The archive with bytes changed, counted from where its list of entries begins (negative: in the entry)."""
    start = content.index(b"PK\x01\x02") if at >= 0 else 0
    place = start + at if at >= 0 else -at
    return content[:place] + value + content[place + len(value) :]


_ONE = zipped(("a", b"content"))
_PACKED = zipped(("a", b"content" * 50), compression=zipfile.ZIP_DEFLATED)
ARCHIVES = {
    "a symbolic link": of_kind(0o120777),
    "a device": of_kind(0o020666),
    "a block device": of_kind(0o060666),
    "a pipe": of_kind(0o010666),
    "a socket": of_kind(0o140666),
    "a folder": of_kind(0o040755),
    "twice": zipped(("a", b"1"), ("a", b"2")),
    "twice, and a third": zipped(("a", b"1"), ("b", b"1"), ("a", b"2")),
    "in another case": zipped(("a", b"1"), ("A", b"2")),
    "in another case, first": zipped(("A", b"1"), ("a", b"2")),
    "in another case alone": zipped(("A", b"1")),
    "a bomb": zipped(("a", bytes(5_000_000)), compression=zipfile.ZIP_DEFLATED),
    "a bomb of bzip2": zipped(("a", bytes(5_000_000)), compression=zipfile.ZIP_BZIP2),
    "a bomb of lzma": zipped(("a", bytes(5_000_000)), compression=zipfile.ZIP_LZMA),
    "a size that is not true": patched(_ONE, 24, struct.pack("<L", 5)),
    "a size without end": patched(_ONE, 24, struct.pack("<L", 0xFFFFFFF0)),
    "a checksum that is not true": patched(_ONE, 16, b"\0\0\0\0"),
    "encrypted": patched(patched(_ONE, 8, b"\1\0"), -6, b"\1\0"),
    "an unknown compression": patched(_ONE, 10, struct.pack("<H", 99)),
    "another name in the entry": patched(_ONE, -30, b"b"),
    "an entry beyond the end": patched(_ONE, 42, struct.pack("<L", 1 << 20)),
    "a name with a zero": zipped(("aX", b"1")).replace(b"aX", b"a\0"),
    "a name that is no text": patched(patched(zipped(("\xe9", b"1")), 8, b"\0\x08"), 46, b"\xff\xff"),
    "packed data that are cut": _PACKED[:40] + bytes(8) + _PACKED[48:],
    "cut in the middle": _ONE[: len(_ONE) // 2],
    "without its list": _ONE[:40],
    "empty": b"",
    "no archive": b"PK\x03\x04" + bytes(60),
    "a list alone": _ONE[_ONE.index(b"PK\x01\x02") :],
    "no entries": zipped(),
    "tar": b"a" + bytes(99) + b"0000644\0" + bytes(149) + b"ustar\0" + bytes(250),
    "a pickle": _zipped(_NEW),
}
TOGETHER = [["a", "a"], ["a", "A"], ["a", "a/b"], ["a/b", "a"], ["d/x", "D/x/y"]]


@pytest.mark.parametrize("member", NAMED)
def test_an_archives_member_stays_in_its_folder(member, tmp_path):
    path = tmp_path / "inside" / "x.whl"
    path.write_bytes(zipped(("good", b"1"), ("out", b"1")))
    with refused(Code.UNSAFE_CONTENT):
        extract(path, ["good", member], tmp_path / "inside" / "to" / "here")
    assert [p.name for p in (tmp_path / "inside").iterdir()] == ["x.whl"]


@pytest.mark.parametrize("members", TOGETHER, ids=str)
def test_members_that_would_be_one_file_are_refused(members, tmp_path):
    path = tmp_path / "inside" / "x.whl"
    path.write_bytes(zipped(*((name, b"1") for name in dict.fromkeys(members))))
    with refused(Code.UNSAFE_CONTENT):
        extract(path, members, tmp_path / "inside" / "to")


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused(name, tmp_path):
    path = tmp_path / "inside" / "x.whl"
    path.write_bytes(ARCHIVES[name])
    with pytest.raises(SourceError):
        extract(path, ["a"], tmp_path / "inside" / "to")


def test_the_corpus_is_kept():
    counts = {
        "planted pickles": len(PLANTED),
        "command lines": 2 * len(HYDRA),
        "config values": len(VALUES),
        "YAMLs": len(PRESETS),
        "a model's JSON": len(MODEL_JSON),
        "archives": len(NAMED) + len(TOGETHER) + len(ARCHIVES),
    }
    print(f"\nhostile inputs: {sum(counts.values())} tried {counts}")
    assert sum(counts.values()) >= 200
