"""What the files of methods and architectures declare, read without torch: a refusal and tab completion need no more.

A method's file declares its keys (`Params`), an architecture's what must be known before it is built (`Traits`).
"""

import ast
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from typing import Any, ClassVar

from kdbench.errors import Code

# Imported by a declaration, and free of torch.
LIGHT = ("kdbench.declared", "kdbench.errors", "kdbench.options", "kdbench.schema", "kdbench.tasks")

OWN = "kdbench_"  # before the name of an architecture that transformers does not have, in config.json
PRUNED = "pruned_"  # before the name of an architecture whose layers have lost heads and units (method=prune)
Size = tuple[str, str]  # rows and columns of a matrix, by their keys in a shape


def declaring(package: str, name: str) -> tuple[str, ...]:
    """Return the modules of a package that define the class `name`, in the order of their names."""
    modules = sorted(module.name for module in pkgutil.iter_modules(import_module(package).__path__))
    return tuple(module for module in modules if f"\nclass {name}(" in _source(f"{package}.{module}"))


@cache
def declared(module: str, name: str) -> type:
    """Return the class `name` of a module of the package, without what else its file imports and defines."""
    loader = _Declarations(name)
    made = module_from_spec(ModuleSpec(module, loader))
    loader.exec_module(made)
    found: type = getattr(made, name)
    return found


class _Declarations(InspectLoader):
    """Load three kinds of statements of a file.

    Imports from the standard library and from `LIGHT`; what the class names of the file's own; the class itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def get_source(self, fullname: str) -> str:
        tree = ast.parse(_source(fullname))
        (wanted,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == self.name]
        named = {node.id for node in ast.walk(wanted) if isinstance(node, ast.Name)}
        tree.body = [node for node in tree.body if node is wanted or self._declares(node, named)]
        return ast.unparse(tree)

    def _declares(self, node: ast.stmt, named: set[str]) -> bool:
        match node:
            case ast.ImportFrom(module=str(module)) | ast.Import(names=[ast.alias(name=module)]):
                return module in LIGHT or module.partition(".")[0] in sys.stdlib_module_names
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.FunctionDef(name=name):
                return name in named
        return False


def _source(module: str) -> str:
    """Return the text of a module that need not be imported; its package is."""
    spec = find_spec(module)
    assert spec is not None and isinstance(spec.loader, InspectLoader)
    return spec.loader.get_source(module) or ""


def six_matrices(attention: Sequence[str], feed_forward: Sequence[str]) -> dict[str, Size]:
    """Return the sizes of a layer's matrices by their names.

    `attention`: what makes queries, keys and values, and what reads the heads. `feed_forward`: what makes and reads the
    units.
    """
    made, read = feed_forward
    return dict.fromkeys(attention, ("hidden", "hidden")) | {made: ("ffn", "hidden"), read: ("hidden", "ffn")}


class Architecture:
    """Traits of an architecture; the defaults are those of an encoder of BERT's form, built from a checkpoint."""

    model_type: ClassVar[str]  # as config.json has it

    # As teacher and student
    student: ClassVar[bool] = True  # may be `student.architecture`
    encoder: ClassVar[bool] = True  # a checkpoint of it may be the teacher; methods may read its layers
    from_config: ClassVar[bool] = True  # built after a checkpoint's config.json, so that it starts from its own kind
    keys: ClassVar[frozenset[str]] = frozenset({"heads"})  # of a student, besides its sizes; others are null
    optional_keys: ClassVar[frozenset[str]] = frozenset()  # of a student, too, but they may be null
    choice: ClassVar[str] = ""  # of `student`, for a refusal to suggest
    starts_from: ClassVar[tuple[str, ...]] = ()  # other architectures whose layers it can have
    wraps: ClassVar[bool] = False  # is any encoder under a head of its own; its direct fine-tune is of that encoder
    lacks: ClassVar[dict[str, str]] = {}  # what a method may need -> why this one does not have it

    # How it reads and answers
    token_types: ClassVar[bool] = True  # tell two texts apart
    no_pairs: ClassVar[str] = ""  # why it cannot read two texts
    words: ClassVar[bool] = False  # has a head that labels words
    masked_lm: ClassVar[bool] = True  # has a masked-LM head
    word_pieces: ClassVar[bool] = False  # marks where a word goes on, as BERT's tokenizer does (##)
    own_words: ClassVar[bool] = False  # its vocabulary is the words of its training texts
    bare_pieces: ClassVar[bool] = False  # reads the pieces of an encoder or a table, without its special tokens
    whole_texts: ClassVar[bool] = False  # reads a text to its end, whatever `dataset.max_length` is
    probabilities: ClassVar[bool] = True  # else its logits are scores, which no softmax makes probabilities
    early_exit: ClassVar[bool] = False  # its time depends on its answers
    no_onnx: ClassVar[str] = ""  # why it has no such form
    no_exits_in_onnx: ClassVar[str] = ""  # why no FastBERT on it has
    no_int8: ClassVar[str] = ""
    no_openvino: ClassVar[str] = ""

    # Its checkpoints
    shape_keys: ClassVar[dict[str, str]] = {}  # our key -> config.json's, where it has another name than BERT's
    fixed: ClassVar[dict[str, object]] = {}  # of config.json: what the code of its file takes for granted
    must_say: ClassVar[frozenset[str]] = frozenset()  # keys of `fixed` that mean something else when left out
    first_position: ClassVar[int] = 0  # of a text's first token in the position embeddings
    tokenizers: ClassVar[frozenset[str]] = frozenset()  # classes, besides those that serve any architecture
    prefix: ClassVar[str]  # of the encoder's tensors in a classifier's file
    layer: ClassVar[str] = "encoder.layer."  # before the number of a layer
    one_layer: ClassVar[bool] = False  # all layers are one
    biases: ClassVar[bool] = True  # beside the matrices of a layer
    matrices: ClassVar[dict[str, Size]] = six_matrices(
        ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
        ["intermediate.dense", "output.dense"],
    )  # of a layer
    tables: ClassVar[dict[str, Size]] = {
        "embeddings.word_embeddings": ("vocab_size", "hidden"),
        "embeddings.position_embeddings": ("max_positions", "hidden"),
    }

    @classmethod
    def every_key(cls) -> frozenset[str]:
        """Return the keys that a student has besides its sizes."""
        return cls.keys | cls.optional_keys

    @classmethod
    def conflicts(cls, config: Any) -> Iterable[tuple[Code, str, str]]:
        """Yield (code, key, problem) for each key of a RunConfig that a student of this architecture cannot have."""
        return ()

    @classmethod
    def start_conflicts(cls, config: Any) -> Iterable[tuple[str, str]]:
        """Yield (key, problem) where a student of this architecture cannot start from the chosen layers."""
        return ()


def architecture_traits(architecture: str) -> type[Architecture]:
    """Return what an architecture declares, by its key (`ib_bert`) or its model_type (`kdbench_ib_bert`).

    The pruned form of an architecture (`pruned_bert`) has the traits of the whole one.
    """
    return declared(f"kdbench.models.{file_name(architecture)}", "Traits")


def file_name(architecture: str) -> str:
    """Return the name of an architecture's file in kdbench.models."""
    return architecture.removeprefix(OWN).removeprefix(PRUNED).replace("-", "_")


@cache
def architectures() -> dict[str, type[Architecture]]:
    """Return the traits of each architecture by its key, a value of `student.architecture`."""
    found = map(architecture_traits, declaring("kdbench.models", "Traits"))
    return {one.model_type.removeprefix(OWN): one for one in found}


@cache
def pruned_forms() -> tuple[str, ...]:
    """Return the keys of the pruned forms, one for each encoder whose heads are matrices of their own."""
    return tuple(PRUNED + name for name, one in architectures().items() if one.encoder and "heads" not in one.lacks)
