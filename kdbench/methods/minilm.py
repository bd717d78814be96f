"""MiniLM (Wang et al. 2020) and MiniLMv2 (Wang et al. 2021): relations within one layer, learned on a corpus.

v1: KL between the last layers' attention distributions, and between their value relations softmax(V V^T / sqrt(d)).

v2: KL between the Q-Q, K-K and V-V relations of a chosen teacher layer. Heads are joined and split anew, so the
numbers of heads may differ.

`relations` leaves terms out, for the papers' ablations: v1 without value relations (Wang et al. 2020), v2 with some of
its three relations (Wang et al. 2021).

There is no masked-LM term. `assistants` are students of other shapes in between, each the teacher of the next (v1,
section 3.3).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from kdbench.losses import attention_kl, regroup_heads, relation
from kdbench.models.network import view
from kdbench.models.students import base
from kdbench.objectives import supervised
from kdbench.options import Rule, at_least, one_of, option, or_none
from kdbench.schema import ENCODERS, TASKS
from kdbench.stage import Batch, Objective, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig


def _shapes(given: Any) -> bool:
    return isinstance(given, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(k) is int and k >= 1 for k in pair) for pair in given
    )


RELATIONS = {"v1": ["attention", "value"], "v2": ["qq", "kk", "vv"]}


def _relations(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and len(set(map(str, given))) == len(given)


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "corpus", "attention"})
    students: ClassVar[frozenset[str]] = frozenset(ENCODERS)
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)
    general_stages: ClassVar[tuple[str, ...]] = ("assistant", "distillation")
    general_keys: ClassVar[frozenset[str]] = frozenset(
        {"version", "relations", "teacher_layer", "relation_heads", "assistants"}
    )

    version: str = option(one_of("v1", "v2"))
    relations: Any = option(or_none(Rule("a list of terms such as [attention] or [qq,kk]", _relations)))  # null: all
    teacher_layer: int | None = option(or_none(at_least(1)))  # v2: from 1; null: the last
    relation_heads: int | None = option(or_none(at_least(1)))  # v2: null: the student's own heads
    assistants: list[Any] = option(Rule("a list of [layers, hidden], in order", _shapes))

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if heads or widths do not fit."""
        teacher, student = config.teacher, config.student
        if any(name not in RELATIONS[self.version] for name in self.relations or []):
            known = ", ".join(RELATIONS[self.version])
            yield "method.relations", f"must be null or a list of {known}, the terms of method.version={self.version}"
        if self.version == "v1" and student.heads != teacher.heads:
            yield (
                "student.heads",
                f"must equal teacher.heads={teacher.heads} (MiniLM compares head by head; v2 need not)",
            )
        heads = self.relation_heads if self.version == "v2" and self.relation_heads else student.heads
        if heads and teacher.hidden % heads:
            yield "method.relation_heads", f"must divide teacher.hidden={teacher.hidden}"
        elif heads and student.hidden % heads:
            yield "method.relation_heads", f"must divide student.hidden={student.hidden}"
        for _, width in self.assistants:
            if width % (student.heads or 1):
                yield "method.assistants", f"a width of {width} does not divide into student.heads={student.heads}"
        if self.teacher_layer is not None and self.teacher_layer > teacher.layers:
            yield "method.teacher_layer", f"must be {teacher.layers} or less (teacher.layers)"


def general(run: "Run", p: Params) -> Iterator[Stage]:
    teacher, layer = run.pretrained, p.teacher_layer
    for number, (layers, hidden) in enumerate(p.assistants):
        assistant = run.fresh(layers, hidden, seed=("assistant", number))
        data = run.corpus_batches("assistant")
        objective = relation_terms(base(assistant), teacher, p, layer)
        schedule = run.schedule("assistant", data)
        yield Stage(f"assistant_{number}", assistant, objective, data, schedule, key="assistant")
        teacher, layer = base(assistant), None
    student, data = run.student, run.corpus_batches("distillation")
    objective = relation_terms(base(student), teacher, p, layer)
    yield Stage("distillation", student, objective, data, run.schedule("distillation", data))


def relation_terms(student: Any, teacher: Any, p: Params, teacher_layer: int | None) -> Objective:
    """Return the loss on the relations of the student's last layer and of `teacher_layer` (default: the last)."""
    wanted = p.relations or RELATIONS[p.version]

    def objective(batch: Batch, step: int) -> Terms:
        query, key, value = last_qkv(student, batch)
        target_query, target_key, target_value = last_qkv(teacher, batch, teacher_layer)
        mask = batch["attention_mask"]

        def kl(own: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
            return attention_kl(relation(*own), relation(*target), mask)

        if p.version == "v1":
            losses = {}
            if "attention" in wanted:
                own = relation(query, key) + view(student).position_bias(mask)
                target = relation(target_query, target_key) + view(teacher).position_bias(mask)
                losses["attention"] = attention_kl(own, target, mask)
            if "value" in wanted:
                losses["value"] = kl((value, value), (target_value, target_value))
            return Terms(losses)
        pairs = {"qq": (query, target_query), "kk": (key, target_key), "vv": (value, target_value)}
        heads = p.relation_heads or query.shape[1]
        cut = {name: [regroup_heads(x, heads) for x in pair] for name, pair in pairs.items() if name in wanted}
        return Terms({name: kl((own, own), (target, target)) for name, (own, target) in cut.items()})

    return objective


def last_qkv(encoder: Any, batch: Batch, layer: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys, values (B, A, T, d) of the last layer, or of `layer` (from 1); no higher layer is run."""
    parts = view(encoder)
    last = (layer or len(parts.layers)) - 1
    return parts.queries_keys_values(last, parts.states(batch, last)[-1])


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    yield Stage("training", student, supervised(student, run.task), run.batches("training"), run.schedule("training"))
