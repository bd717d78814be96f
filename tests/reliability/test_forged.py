"""What fits its digests and is nonsense all the same: refused in words that name the folder, before a step is taken."""

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.data.augment import cached_augmentation
from kdbench.data.stored import stored_dataset
from kdbench.data.teacher_cache import cached_outputs
from kdbench.data.tokenize import tokenize
from kdbench.errors import Code, UserError
from kdbench.storage import files as store
from kdbench.storage.files import MANIFEST, Misfit, write_record
from kdbench.storage.results import STAGE
from tests.refusals import refused
from tests.reliability.test_crash import RISING, went_on_from
from tests.test_train import examples, run, supervised, toy


def tensors(change):
    def forge(path):
        forged = change(load_file(path))
        save_file({name: value.contiguous().clone() for name, value in forged.items()}, path)

    return forge


def scalars(change):
    def forge(path):
        rest = json.loads(path.read_text())
        path.write_text(json.dumps(change(rest)))

    return forge


def renamed(state):
    return {f"other.{name}": value for name, value in state.items()}


def narrowed(state):
    return {name: value[..., :1] if value.dim() else value for name, value in state.items()}


def without(state):
    return dict(list(state.items())[1:])


def progress(**values):
    return scalars(lambda rest: rest | {"progress": rest["progress"] | values})


FORGED = {
    "module renamed": ("module.safetensors", tensors(renamed)),
    "module narrowed": ("module.safetensors", tensors(narrowed)),
    "module lacks a tensor": ("module.safetensors", tensors(without)),
    "module is text": ("module.safetensors", lambda path: path.write_text("weights")),
    "module is missing": ("module.safetensors", lambda path: path.unlink()),
    "moments renamed": ("optimizer.safetensors", tensors(renamed)),
    "moments narrowed": ("optimizer.safetensors", tensors(narrowed)),
    "moments of a parameter that is not there": (
        "optimizer.safetensors", tensors(lambda state: {"99.exp_avg": torch.ones(2)}),
    ),
    "moments without a number": ("optimizer.safetensors", tensors(lambda state: {"exp_avg": torch.ones(2)})),
    "best is a number": ("state.json", scalars(lambda rest: rest | {"best": 7})),
    "best is left out": ("state.json", scalars(lambda rest: rest | {"best": None})),
    "best of no score": ("state.json", progress(best_step=0)),
    "state is no JSON": ("state.json", lambda path: path.write_text("{")),
    "state is a list": ("state.json", scalars(lambda rest: [rest])),
    "state is a number": ("state.json", scalars(lambda rest: 7)),
    "state is empty": ("state.json", scalars(lambda rest: {})),
    "no progress": ("state.json", scalars(lambda rest: rest | {"progress": {}})),
    "progress of another kind": ("state.json", progress(speed=1)),
    "a step in words": ("state.json", progress(step="ten")),
    "another step than the folder's": ("state.json", progress(step=3)),
    "a score in words": ("state.json", progress(best_score="high")),
    "lines are text": ("state.json", scalars(lambda rest: rest | {"lines": "step 1"})),
    "lines are numbers": ("state.json", scalars(lambda rest: rest | {"lines": [1, 2]})),
    "passes are numbers": ("state.json", scalars(lambda rest: rest | {"passes": [1]})),
    "losses are words": ("state.json", scalars(lambda rest: rest | {"passes": [[["ce"], ["high"], {}]]})),
    "losses lack names": ("state.json", scalars(lambda rest: rest | {"passes": [[[], [0.5], {}]]})),
}  # fmt: skip
FORGED_BEST = {"text": lambda path: path.write_text("best"), "renamed": tensors(renamed), "narrowed": tensors(narrowed)}


def seal(folder, record=MANIFEST):
    """Digests that fit what now lies there."""
    value = store.read_record(folder / record) if record != MANIFEST else {}
    names = json.loads((folder / record).read_text())["files"]
    write_record(folder / record, value, [folder / name for name in names if (folder / name).exists()])


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_refused(tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        run(model := toy(), tmp_path, supervised(model, fail_at=11))
    (checkpoint,) = tmp_path.glob("checkpoint-10")
    file, forge = FORGED[name]
    forge(checkpoint / file)
    seal(checkpoint)
    with refused(Code.FOREIGN_FILE, checkpoint, "Remove it", kind=Misfit):
        run(toy(), tmp_path)
    store.remove(checkpoint)
    again, whole = toy(), toy()
    run(again, tmp_path)
    run(whole, tmp_path / "whole")
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", FORGED_BEST)
def test_forged_best_weights_are_refused(tmp_path, name):
    """If the checkpoint names them; if it names others, it is damaged."""
    with pytest.raises(KeyboardInterrupt):
        run(model := toy(dropout=0.3), tmp_path, supervised(model, fail_at=11), schedule=RISING)
    checkpoint, best = tmp_path / "checkpoint-10", tmp_path / "best-10"
    FORGED_BEST[name](best / "module.safetensors")
    seal(best)
    assert went_on_from(shutil.copytree(tmp_path, tmp_path / "copy")) == 5
    scalars(lambda rest: rest | {"best": store.sha256_of(best / MANIFEST)})(checkpoint / "state.json")
    seal(checkpoint)
    with refused(Code.FOREIGN_FILE, checkpoint, "Remove it", kind=Misfit):
        run(toy(), tmp_path, schedule=RISING)


@pytest.mark.parametrize("change", [renamed, narrowed, without])
def test_a_forged_stage_is_refused(tmp_path, change):
    run(toy(), tmp_path)
    tensors(change)(tmp_path / "student.safetensors")
    seal(tmp_path, STAGE)
    with pytest.raises(Misfit, match=rf"{tmp_path} is intact, but .*Remove it"):
        run(toy(), tmp_path)


@pytest.mark.parametrize("file", ["data.json", "train.arrow", "flat.npy", "outputs.safetensors", "texts.jsonl"])
def test_a_forged_cache_is_refused(configure, teacher_folder, tmp_path, file):
    config = configure()

    def read():
        train = stored_dataset(config.dataset, tmp_path).train
        weights = teacher_folder / "model.safetensors"
        tokenize(train, teacher_folder, 16, tmp_path)
        cached_outputs("cls", examples(), lambda b, s: b["input_ids"].float()[:, :2], weights, "", tmp_path)
        cached_augmentation(tmp_path, "key", lambda: (["one"], [0]))

    read()
    (path,) = tmp_path.rglob(file)
    path.unlink()  # it may be mapped
    path.write_text('{"name": 1}\n')
    seal(path.parent)
    with refused(Code.FOREIGN_FILE, path.parent, "Remove it", kind=Misfit):
        read()


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), MemoryError(), UserError(Code.NOT_A_RUN, "known")]
)
def test_what_is_no_fault_of_the_content_is_not_blamed_on_it(tmp_path, error):
    with pytest.raises(type(error)) as raised, store.fitting(tmp_path):
        raise error
    assert raised.value is error
