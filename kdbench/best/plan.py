"""Which runs to do, in which order, and what each will cost on this machine.

What is cheap comes first, so that there is an answer at once: TF-IDF, static vectors, a frozen encoder. Then come the
teacher, the students that the limits leave, each fine-tuned directly and taught by the teacher, and last, while time is
left, schedules of the best network by successive halving (Jamieson and Talwalkar 2016): of four learning rates the
better half goes on with twice the updates.

In a short time a network makes fewer updates, and a teacher answers a part of the raw texts. How many is decided when
it is their turn, and kept, so that the same command finds the same runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kdbench.best.look import Look
from kdbench.best.machine import Machine
from kdbench.best.wish import Wish
from kdbench.best.work import configured

# All of these are ours.
START = 4.0  # seconds of a run that are neither training nor evaluation
EXPORT = 8.0  # seconds that its other forms take, without their evaluation
EVALUATED = 2.0  # passes over dev and test: of the run, and of its other forms
BATCH = 32
UPDATES = 150  # at least, if there is time; scripts/bench/NOTES.md has 75, 150 and 300 on 720 texts
LEAST = 60  # a network for which there is not even time for these is not begun
EPOCHS = {10_000: 5, 100_000: 3}  # of the labelled texts, by their number; of more texts: 2
PASSES = 2  # over labelled and raw texts
TEACHER = 0.35  # share of the whole time that a larger teacher may take
SHARE = 0.5  # of the time that is left, for one network
ALONE = 0.8  # the same for a teacher that keeps the limits and has no raw texts to answer: it is what will be shipped
FROZEN = 0.1  # share of the whole time that a frozen encoder may take: it is for few texts
ANSWERS = 0.25  # of the time that is left, for the teacher's answers to raw texts
RATES = (1.0, 1 / 3, 2.0, 0.1)  # of the network's own, for successive halving
SLACK = 2.0  # a student is tried if its expected time keeps the limit within this factor


@dataclass(frozen=True)
class Encoder:
    """A teacher that installs from the package index; its figures are those of its YAML."""

    name: str
    layers: int
    hidden: int
    ffn: int
    lr: float  # of its own schedule
    student_lr: float  # default of the students that are made of it
    vocabulary: int

    @property
    def layer(self) -> int:
        """Parameters of a layer's matrices."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.ffn

    def megabytes(self, layers: int) -> float:
        """Return the size of the first layers and the word embeddings in int8, the smallest form of a network."""
        return (self.vocabulary * self.hidden + layers * self.layer) / 1e6


@dataclass(frozen=True)
class Candidate:
    """A run that may be done."""

    name: str  # for people
    words: tuple[str, ...]
    seconds: float  # expected
    ships: bool = True  # False: it cannot keep the limits, or is a control
    steps: int = 0  # updates of a network; 0: another method
    lr: float = 0.0  # of a network


class Board:
    """What the plan needs to know of the runs that are done. Here none is."""

    pace = 1.0  # measured time over expected time

    def __init__(self, left: float) -> None:
        self._left = left
        self.decided: dict[str, int] = {}  # how many updates and raw texts there is time for, by what they are of

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self._left

    def score(self, candidate: Candidate) -> float | None:
        """Return the dev score, or None if it was not done."""
        return None


def encoders() -> list[Encoder]:
    """Return the encoders that are in the package index, the largest first."""
    found = []
    for name in ("mpnet_base", "minilm_l6"):
        config, _ = configured((f"teacher={name}", "method=finetune"))
        one = config.teacher
        found.append(
            Encoder(name, one.layers, one.hidden or 0, one.ffn or 0, one.schedule.lr, one.student_lr, one.vocab_size)
        )
    return found


@dataclass
class Plan:
    wish: Wish
    look: Look
    machine: Machine
    encoders: list[Encoder]  # the largest first

    def candidates(self, board: Board) -> Iterator[Candidate]:
        """Yield one run after the other; what is yielded may depend on those before."""
        yield self._cheap("TF-IDF and a linear model", "tfidf")
        if self.look.foreign:  # nothing that reads the encoder's pieces
            return
        small = self.encoders[-1]
        yield self.half
        yield self._static("static vectors, trained on the labels", small, "method.alpha=0")
        frozen = self._frozen(small)
        if frozen.seconds <= FROZEN * self.wish.seconds:
            yield frozen
        yield from self._networks(board)

    def on_paper(self) -> Iterator[Candidate]:
        """Yield the runs that do not depend on the results of others."""
        return self.candidates(Board(self.wish.seconds))

    @property
    def half(self) -> Candidate:
        """TF-IDF on half of the labels: what the last doubling brought."""
        few = max(1, self.look.rows["train"] // 2)
        one = self._cheap("TF-IDF on half of the labels", "tfidf", f"dataset.max_train_samples={few}")
        return replace(one, ships=False)

    def _cheap(self, name: str, method: str, *words: str) -> Candidate:
        texts = self.look.rows["train"] * self.look.tokens
        return Candidate(name, self._words(f"method={method}", *words), START + 2e-5 * texts)

    def _static(self, name: str, encoder: Encoder, *words: str) -> Candidate:
        """Return a static student. Its vectors take a pass over the vocabulary, its training hardly any time."""
        steps = PASSES * self._steps(self.look.rows["train"])
        one = self._cheap(name, "static", *words, f"teacher={encoder.name}", f"schedule.steps={steps}")
        vectors = self.machine.passes(encoder.layers * encoder.layer, 3 * encoder.vocabulary)
        return replace(one, seconds=one.seconds + EXPORT + vectors)

    def _frozen(self, encoder: Encoder) -> Candidate:
        rows = sum(self.look.rows[split] for split in ("train", "dev", "test"))
        seconds = START + EXPORT + EVALUATED * self._passes(encoder, rows)
        words = self._words("method=frozen", f"teacher={encoder.name}")
        name = f"{encoder.name}, frozen, and a linear model"
        return Candidate(name, words, seconds, ships=self._possible(encoder, encoder.layers))

    def _networks(self, board: Board) -> Iterator[Candidate]:
        small = self.encoders[-1]
        depths = [depth for depth in range(small.layers, 0, -1) if self._possible(small, depth)]
        students = list(dict.fromkeys([*depths[:1], *(depth for depth in (3,) if depth in depths)]))
        direct = [depth for depth in students if depth < small.layers]
        done: list[Candidate] = []
        if direct and not self._possible(small, small.layers):  # what can be shipped comes before what only teaches
            done.append(self._student(small, direct.pop(0), board))
            yield done[-1]
        if (teacher := self._teacher(board)) is not None:
            encoder, run = teacher
            yield run
            if run.ships:
                done.append(run)
            raw = self._raw(encoder, board)
            teaching = [f"teacher.schedule.steps={run.steps}"]
            if raw < self.look.rows.get("unlabelled", 0):
                teaching.append(f"dataset.max_unlabelled_samples={raw}")
            on = "labels and raw texts" if raw else "labels"
            static = self._static(f"static vectors, taught by {encoder.name} on {on}", encoder, *teaching)
            answers = self._passes(encoder, self.look.rows["train"] + raw)
            yield replace(static, seconds=static.seconds + answers)  # those for the others, too
            hard = [(depth, "pseudo_label") for depth in students[:1] if raw]
            for depth, method in [*((depth, "logit_kd") for depth in students), *hard]:
                done.append(self._taught(small, depth, encoder, teaching, raw, board, method))
                yield done[-1]
        for depth in direct:
            done.append(self._student(small, depth, board))
            yield done[-1]
        scores = {one: score for one in done if (score := board.score(one)) is not None}
        if scores:
            yield from self._halving(max(scores, key=lambda one: (scores[one], -one.seconds)), board)

    def _teacher(self, board: Board) -> tuple[Encoder, Candidate] | None:
        """Return the largest teacher that the time allows, with its run: the smallest one also with fewer updates."""
        wanted = self._steps(self.look.rows["train"])
        for encoder in self.encoders:
            name = f"{encoder.name}, all {encoder.layers} layers: the teacher"
            if encoder is self.encoders[-1]:
                fits = self._seconds(encoder, encoder.layers, LEAST) * board.pace <= SHARE * board.left
            else:
                whole = self._seconds(encoder, encoder.layers, wanted)
                whole += self._passes(encoder, sum(self.look.rows.values()))
                fits = whole * board.pace <= TEACHER * self.wish.seconds
            if fits or name in board.decided:
                words = ("method=finetune", "student=full", f"teacher={encoder.name}", f"schedule.lr={encoder.lr:g}")
                ships = self._possible(encoder, encoder.layers)
                share = ALONE if ships and not self.look.rows.get("unlabelled") else SHARE
                run = self._network(name, encoder, encoder.layers, wanted, encoder.lr, board, *words, share=share)
                return encoder, replace(run, ships=ships)
        return None

    def _raw(self, teacher: Encoder, board: Board) -> int:
        """Return how many raw texts the teacher has the time to answer."""
        rows, name = self.look.rows.get("unlabelled", 0), f"raw texts for {teacher.name}"
        if name not in board.decided:
            affordable = int(ANSWERS * board.left / (self._passes(teacher, 1) * board.pace))
            board.decided[name] = min(rows, max(BATCH, affordable))
        return board.decided[name]

    def _passes(self, encoder: Encoder, texts: int) -> float:
        """Return the seconds in which all layers of the encoder read these texts."""
        return self.machine.passes(encoder.layers * encoder.layer, self.look.tokens * texts)

    def _student(self, encoder: Encoder, depth: int, board: Board) -> Candidate:
        words = ("method=finetune", f"teacher={encoder.name}", f"student.layers={depth}")
        name = f"{depth} layers of {encoder.name}, fine-tuned on the labels"
        steps = self._steps(self.look.rows["train"])
        return self._network(name, encoder, depth, steps, encoder.student_lr, board, *words)

    def _taught(
        self, encoder: Encoder, depth: int, teacher: Encoder, teaching: list[str], raw: int, board: Board, method: str
    ) -> Candidate:
        """Return the student that learns the teacher's logits, or its hard answers, from the raw texts too."""
        steps = max(self._steps(self.look.rows["train"]), PASSES * (self.look.rows["train"] + raw) // BATCH)
        on = "labels and raw texts" if raw else "labels"
        how = "taught by" if method == "logit_kd" else "trained on the hard answers of"
        own = [] if teacher is encoder else ["student=own", f"teacher@student.encoder={encoder.name}"]
        return self._network(
            f"{depth} layers of {encoder.name}, {how} {teacher.name} on {on}", encoder, depth, steps,
            encoder.student_lr, board, f"method={method}", f"teacher={teacher.name}", *teaching, *own,
            f"student.layers={depth}",
        )  # fmt: skip

    def _network(
        self, name: str, encoder: Encoder, depth: int, wanted: int, lr: float, board: Board, *words: str,
        share: float = SHARE,
    ) -> Candidate:  # fmt: skip
        """Return a run with the wanted updates, or as many as its share of the time that is left allows."""
        if name not in board.decided:
            free = share * board.left / board.pace - self._seconds(encoder, depth, 0)
            affordable = int(free / self.machine.step(depth * encoder.layer, BATCH * self.look.tokens))
            board.decided[name] = min(wanted, max(LEAST, affordable))
        steps = board.decided[name]
        seconds = self._seconds(encoder, depth, steps)
        return Candidate(name, self._words(*words, f"schedule.steps={steps}"), seconds, steps=steps, lr=lr)

    def _seconds(self, encoder: Encoder, depth: int, steps: int) -> float:
        """Return what a run with these updates takes, with its evaluation and export."""
        size, tokens = depth * encoder.layer, self.look.tokens
        train = steps * self.machine.step(size, BATCH * tokens)
        judged = EVALUATED * self.machine.passes(size, tokens * (self.look.rows["dev"] + self.look.rows["test"]))
        return START + EXPORT + train + judged

    def _halving(self, best: Candidate, board: Board) -> Iterator[Candidate]:
        """Yield variants of a run: four learning rates, then the better two with twice the updates, then the best."""
        rates = tuple(rate * best.lr for rate in RATES)
        steps, done = best.steps, {best.lr: best}
        while rates:
            for lr in rates:
                if lr not in done:
                    done[lr] = _variant(best, steps, lr)
                    yield done[lr]
            scores = {lr: score for lr in rates if (score := board.score(done[lr])) is not None}
            rates = tuple(sorted(scores, key=lambda lr: -scores[lr])[: len(rates) // 2])
            steps, done = 2 * steps, {}

    def _possible(self, encoder: Encoder, depth: int) -> bool:
        """Return whether a student may keep the limits, before it has been measured."""
        ms = self.machine.ms(depth * encoder.layer, self.look.tokens) / SLACK
        return self.wish.fits(ms, encoder.megabytes(depth))

    def _steps(self, texts: int) -> int:
        epochs = next((epochs for most, epochs in EPOCHS.items() if texts <= most), 2)
        return max(UPDATES, epochs * texts // BATCH)

    def _words(self, *words: str) -> tuple[str, ...]:
        return (*words, *self.wish.words, *self.look.words)


def _variant(one: Candidate, steps: int, lr: float) -> Candidate:
    """Return the same run with other updates and another learning rate."""
    kept = (word for word in one.words if not word.startswith(("schedule.steps=", "schedule.lr=")))
    return replace(
        one,
        name=f"{one.name}; {steps} updates, learning rate {lr:g}",
        words=(*kept, f"schedule.steps={steps}", f"schedule.lr={lr:g}"),
        seconds=one.seconds * steps / one.steps,
        steps=steps,
        lr=lr,
    )
