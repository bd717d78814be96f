"""The pages: each command on them is legal and does what stands there, tables are the code's, the site builds."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from hydra._internal.utils import get_args_parser
from safetensors.torch import load_file, save_file

from kdbench.best.cli import parser as best_parser
from kdbench.cli import clean, label, predict, serve
from kdbench.cli import export as export_command
from kdbench.cli import help as answers
from kdbench.cli import main as cli
from kdbench.cli.command import judge
from kdbench.cli.compose import composing
from kdbench.cli.hydra_keys import closed
from kdbench.compare import cli as compare_runs
from kdbench.compare import options as compare_options
from kdbench.compare.watch import State
from kdbench.errors import Code
from kdbench.runs import times
from kdbench.storage.results import RESULTS
from kdbench.storage.status import Status
from kdbench.validation.keys import method_names, run_keys
from scripts import docs as written
from tests.compare.test_compare_runs import write as write_run

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(kdbench (?:-|'?[\w.]+=)[^`]*)`")
LANGUAGES = {"", "text", "python", "yaml", "console"}  # "": commands

# Lines of other programs: where each is tried. A line that is neither here nor of a program below fails a test.
TRIED = {
    "scripts/quickstart": "its commands: test_scripts",
    "scripts/test": "test_scripts; it is what runs this",
    'eval "$(kdbench -sc install=bash)"': "completion: tests/test_command.py",
    "cd examples/own": "tests/test_own_method.py runs the example",
    "python prepare.py": "tests/test_own_method.py runs the example",
    "python -m scripts.docs": "test_tables_and_refusals_are_what_the_code_says",
    "export PYTHONPATH=.": "tests/test_own_method.py runs the example",
    ".venv/bin/python -m mkdocs build --strict": "test_the_site_builds_without_a_network",
}


class Line(NamedTuple):
    page: str
    text: str  # without a comment
    words: list[str]  # of the program, without VARIABLE=value before and > file after


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, content) of each fenced block."""
    for found in FENCED.finditer(page.read_text(encoding="utf8")):
        yield found[2], re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE)


def lines(*pages: Path) -> list[Line]:
    """Every line of the blocks without a language, and each whole `kdbench ...` of a sentence; $NAMEs are filled in."""
    found, names = [], {}
    for page in pages:
        texts = [text for language, text in blocks(page) if language == ""]
        if "study" not in page.parts:  # its commands are the plan's: tests/test_study.py
            plain = FENCED.sub("", page.read_text(encoding="utf8"))
            texts += [" ".join(text.split()) for text in INLINE.findall(plain) if "<" not in text and "..." not in text]
        for text in "\n".join(texts).replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"\$([A-Z]+)", lambda name: names[name[1]], text), comments=True)
            text = shlex.join(words) if "$(" not in text else text.partition("  #")[0].strip()
            while words and (variable := re.match(r"([A-Z_]+)=(.*)", words[0])):
                names[variable[1]] = variable[2]
                del words[0]
            if words:
                found.append(Line(page.relative_to(ROOT).as_posix(), text, until(words, ">")))
    return found


def until(words: list[str], end: str) -> list[str]:
    return words[: words.index(end)] if end in words else words


def of(*programs: str) -> list[Line]:
    """Each different line of these programs, of all pages."""
    return list({one.text: one for one in reversed(lines(*PAGES)) if one.words[0] in programs}.values())[::-1]


def kdbench_lines() -> list[Line]:
    """Also those within torchrun and accelerate."""
    started = [one._replace(words=one.words[one.words.index("-m", 1) + 1 :]) for one in of("torchrun", "accelerate")]
    assert all(one.words[0] == "kdbench" for one in started)
    return of("kdbench") + started


def pip(words: list[str]) -> bool:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.fullmatch(r"(?:kdbench|\.)(?:\[(\w+)\])?", words[-1])
    return words[1] == "install" and asked is not None and asked[1] in {None, *extras}


def module(words: list[str]) -> bool:
    """Of scripts/: what it does is tried by its own tests."""
    return words[1] == "-m" and (ROOT / f"{words[2].replace('.', '/')}.py").is_file()


PROGRAMS: dict[str, Callable[[list[str]], bool]] = {  # True: the words may stand on a page
    "kdbench": lambda words: True,  # test_kdbench_lines_are_legal, and run by the slow test
    "torchrun": lambda words: True,  # the same, from -m kdbench on
    "accelerate": lambda words: True,
    "compare-runs": lambda words: True,  # test_compare_runs_lines
    "kdbench-best": lambda words: best_parser().parse_args(words[1:]) is not None,
    "kdbench-clean": lambda words: True,  # test_clean_lines
    "kdbench-export": lambda words: True,  # test_export_predict_and_label_lines
    "kdbench-label": lambda words: True,
    "kdbench-predict": lambda words: True,
    "kdbench-serve": lambda words: True,
    "curl": lambda words: words[-1].startswith("http://127.0.0.1:8000/"),  # tests/test_serve.py
    "pip": pip,
    "python": module,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_command_is_one_that_a_test_tries(page):
    assert {language for language, _ in blocks(page)} <= LANGUAGES
    for one in lines(page):
        assert one.text in TRIED or (one.words[0] in PROGRAMS and PROGRAMS[one.words[0]](one.words)), one.text


@pytest.fixture
def place(tmp_path, monkeypatch, teacher_folder):
    """A folder with the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    own = shutil.ignore_patterns("outputs", "small-bert", "*.csv", "__pycache__")
    shutil.copytree(ROOT / "examples" / "own", tmp_path, ignore=own, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, text in {
        "my/dataset/reviews.yaml": next(text for language, text in blocks(TUTORIAL) if language == "yaml"),
        "tickets.csv": "message,team\n",
        "reviews.csv": "body,stars\n",
        "raw.csv": "body\n",
        "entities/train.conll": "A O\n",
        "answers.parquet": "",
        "labels.csv": "text,label\n",
        "texts/wiki.txt": "A text.\n",
        "data/wiki.txt": "A text.\n",
        **{f"data/{name}.jsonl": "{}\n" for name in ("train", "dev", "test")},
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    positions = "embeddings.position_embeddings.weight"  # as many as the data sets' texts are long
    weights = load_file(teacher_folder / "model.safetensors")
    for name in ("models/my-bert", "small-bert"):
        shutil.copytree(teacher_folder, name)
        config = Path(name, "config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 512}))
        save_file(weights | {positions: weights[positions].repeat(16, 1)}, Path(name, "model.safetensors"))
    yield tmp_path
    sys.modules.pop("mine", None)
    run_keys.cache_clear()


def faults_of(configs, words):
    """As kdbench.cli.main judges them."""
    rest, _, found = cli.own_flags(words)
    args = get_args_parser().parse_args(rest)
    found += closed(args)
    if any(map(answers.QUESTION.fullmatch, args.overrides)):
        found += answers.asked(configs, args.overrides, cli.yaml_folders(args))
    elif not (args.help or args.info or args.shell_completion):
        found += judge(configs, rest, args.overrides, args.multirun).faults
    # Extras that no lock has (ray, wandb): beyond the name of the extra there is nothing to judge.
    return [] if any(fault.code == Code.NOT_INSTALLED for fault in found) else found


def faults_in(known):
    """Each line that has faults, and these."""
    wrong: list[str] = []
    for folder in (None, "my"):
        with composing(folder) as configs:  # once: composing is slow
            for one in known:
                given = get_args_parser().parse_args(cli.own_flags(one.words[1:])[0]).config_dir
                if (given and Path(given).name) == folder and (found := faults_of(configs, one.words[1:])):
                    wrong += [f"{one.page}: {one.text}", *map(str, found)]
    return wrong


def is_grid(one):
    presets = (ROOT / "conf/experiment" / f"{word[11:]}.yaml" for word in one.words if word.startswith("experiment="))
    return any(preset.is_file() and "sweeper:" in preset.read_text() for preset in presets)


FIRST = {"README.md", "docs/tutorial.md", "docs/methods/index.md"}


def test_the_first_pages_kdbench_lines_are_legal(place):
    known = [one for one in kdbench_lines() if one.page in FIRST and not is_grid(one)]
    assert len(known) > 20
    assert faults_in([one._replace(words=[*map(first, one.words)]) for one in known]) == []  # of a sweep one job


@pytest.mark.slow
def test_every_kdbench_line_is_legal(place):
    known = kdbench_lines()
    assert len(known) > 80
    assert faults_in(known) == []


def first(word):
    """`key=a` of key=a,b,c; of a range its start."""
    return re.sub(r"^([\w.@/]+)=(?:range\((?=\d+\)).*|([^\[\]{}()'\",]+),.*)$", lambda f: f"{f[1]}={f[2] or 0}", word)


def test_compare_runs_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ids = {"reuters_r52": "7e30e6eb", "reviews": "4266fe72", "iflytek": "0a0b0c0d"}
    for number, (data, id_) in enumerate(ids.items()):
        for method in ("tinybert", "theseus"):
            identity = {"identity__parameters": {"temperature": 5}, "identity__layers": 3, "identity__dataset": data}
            write_run(Path("outputs"), method, id_ if method == "theseus" else f"0000000{number}", 0, 90.0, **identity)
    found = of("compare-runs")
    assert len(found) > 10
    for one in found:
        words = one.words[1:]
        if {"--watch", "--latency", "html", "--plots", "--gate"} & {
            *words
        }:  # they take their time: each has tests of its own
            compare_options.parser().read(words)
        else:
            assert compare_runs.main(words) == 0 and capsys.readouterr().out, one


def test_export_predict_and_label_lines():
    commands = (export_command, label, predict, serve)
    parsers = {f"kdbench-{one.__name__.rpartition('.')[2]}": one.parser() for one in commands}
    found = of(*parsers)
    assert len(found) > 5
    assert all(str(vars(parsers[one.words[0]].parse_args(one.words[1:]))) for one in found)


def test_clean_lines():
    found = of("kdbench-clean")
    assert found and all(clean.parser().parse_args(one.words[1:]).outputs == Path("outputs") for one in found)


def test_scripts(place):
    for one in (one for one in TRIED if one.startswith("scripts/")):
        assert os.access(ROOT / one, os.X_OK)
        subprocess.run(["bash", "-n", ROOT / one], check=True)
    text = (ROOT / "scripts/quickstart").read_text().replace('"$root/.venv/bin/', "").replace('kdbench"', "kdbench")
    (words,) = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("kdbench ")]
    with composing(None) as configs:
        assert faults_of(configs, [*map(first, words)]) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_other_blocks_can_be_read(page):
    for language, text in blocks(page):
        if language == "python":
            compile(text if "yield Stage" not in text or "def " in text else f"def f():\n {text}", str(page), "exec")
        elif language == "yaml":
            assert yaml.safe_load(text)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(text.split()) <= 1000  # tables and code too, as wc -w counts
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) > 20 and [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    "names",
    [("theseus", "tinybert", "troubleshooting", "papers", "architecture"), pytest.param(None, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_tables_and_refusals_are_what_the_code_says(names):
    with composing(None) as configs:
        for page in (page for page in written.pages() if names is None or page.stem in names):
            text = page.read_text(encoding="utf8")
            assert written.fill_page(text, configs) == text, f"{page.name}: python -m scripts.docs"


def test_a_stage_does_not_show_the_comment_of_the_key_of_its_name():
    with composing(None) as configs:
        (row,) = [row for row in written.options("cascade", configs).splitlines() if row.startswith("| `stages.small`")]
    assert row.endswith("| keys of a schedule | |")


def test_each_method_has_a_whole_page():
    heads = ["Idea", "What is computed", "What differs from the paper", "Options", "Cost", "Measured"]
    for name in method_names():
        text = (ROOT / "docs/methods" / f"{name}.md").read_text(encoding="utf8")
        assert text.startswith(f"# `{name}`: ") and re.findall(r"^## (.*)$", text, re.MULTILINE) == heads, name
        assert f"<!-- options {name} -->" in text and text.count("$$") >= 2, name


def test_measured_figures_are_those_of_the_tables():
    index = (ROOT / "docs/methods/index.md").read_text(encoding="utf8")
    tables = index[index.index("## Three layers, three seeds") :]
    for name in method_names():
        measured = (ROOT / "docs/methods" / f"{name}.md").read_text(encoding="utf8").partition("## Measured")[2]
        assert re.search(r"\bn \d|Not yet", measured), f"{name}: of how many seeds?"
        for figure in re.findall(r"\d[\d,]*\.\d+|\d,\d{3}", measured):
            assert figure in tables, f"{name}: {figure}"


def test_quoted_messages_are_in_the_code():
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf8")
    table = text[text.index("## While it runs") : text.index("## Slow, or out of memory")]
    quoted = [one for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for one in re.findall(r"`(.*?)`", row)]
    source = "".join(path.read_text(encoding="utf8") for path in (ROOT / "kdbench").rglob("*.py"))
    source = re.sub(r'"\s*f?"', "", source) + os.strerror(28)  # a text over several lines
    assert len(quoted) > 2 and [one for one in quoted if one not in source] == []


def test_the_site_builds_without_a_network(tmp_path):
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of the theme's makers, on their next tool
    done = subprocess.run(mkdocs, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf8")
        fetched = re.findall(r"<(?:script|img|link|iframe)[^>]*?(?:src|href)=\"?(https?:[^\" >]*)", text)
        assert [url for url in fetched if 'rel="canonical"' not in url] == [], page
    methods = {path.stem: path.read_text() for path in (tmp_path / "site/methods").glob("*.html")}
    assert methods.keys() == {*method_names(), "index"}
    assert [name for name, text in methods.items() if "<math" not in text or "$$" in text or "<table" not in text] == []


def flat(value, at=""):
    """Every key that ends in a value; of a list's entries as key[], of what is empty as key.* too."""
    if isinstance(value, dict) and value:
        return {key for name, one in value.items() for key in flat(one, f"{at}.{name}" if at else name)}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {key for one in value for key in flat(one, f"{at}[]")}
    return {f"{at}.*"} if value == {} else {at}


def documented(kind, page="docs/results.md"):
    """The keys that a page has of `kind`: of a `task` or a `general` run, of a `status`, of what a `watch` prints."""
    text = (ROOT / page).read_text(encoding="utf8")
    (table,) = re.findall(rf"<!-- keys {kind} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    return [key for row in re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE) for key in re.findall(r"`(.*?)`", row)]


def compare_keys(kind, *folders):
    results = [json.loads((Path(folder) / RESULTS).read_text()) for folder in folders]
    found, known = set().union(*map(flat, results)), documented(kind)
    assert len(known) > 15
    patterns = {one: one.replace("[]", "[[][]]") for one in known}  # fnmatch reads [..] as a set
    assert {key for key in found if not any(fnmatchcase(key, pattern) for pattern in patterns.values())} == set()
    assert {one for one, pattern in patterns.items() if not any(fnmatchcase(key, pattern) for key in found)} == set()


SHORT = ["schedule.steps=1", "teacher.schedule.steps=1"]


def test_the_keys_of_results_json(configure, execute, data_folder, tmp_path):
    raw = f"dataset.unlabelled={data_folder / 'corpus.txt'}"
    folder = Path(execute(configure("method=logit_kd", raw, *SHORT))["folder"])
    (teacher,) = tmp_path.glob("outputs/topics/finetune/*/seed0")
    times.at_the_end({folder: teacher, teacher: teacher})
    compare_keys("task", folder, teacher)


def test_the_keys_of_a_run_that_is_watched():
    assert {*documented("status")} == {"schema", *(one.name for one in dataclasses.fields(Status))}
    found = {*documented("watch", "docs/comparing.md")}
    assert found == {one.name for one in dataclasses.fields(State)}


@pytest.mark.slow
def test_the_keys_of_a_general_stage(configure, execute):
    compare_keys("general", execute(configure("method=minilm", "phase=general", "student.layers=2"))["folder"])


# Of a line what the tests' teacher of four layers and two heads cannot do, and what stands for it.
FOR_TINY = {
    "student.layers=3": "student.layers=2",
    "method.init.layers=[0,2,4]": "method.init.layers=[0,3]",
    "method.patient_layers=[2,4]": "method.patient_layers=[2]",
    "method.relation_heads=12": "method.relation_heads=4",
    "schedule.class_weights={spam:5}": "schedule.class_weights={fruit:5}",
}


def runnable():
    """Of each line that asks for a run what it says of the method, for the tests' tiny data and teacher."""
    found = {}
    for one in of("kdbench"):
        words = [
            word
            for word in one.words[1:]
            if re.match(r"(method|seed|export|schedule|student\.layers)\b[.\w]*=[^?]", word)
        ]
        if (
            not any(
                word.startswith(("-", "experiment=", "dataset=", "hydra/", "method=glob("))
                for word in one.words[1:]
                if word != "-m"
            )
            and words
        ):
            found[" ".join(words)] = words
    return found


@pytest.mark.slow
@pytest.mark.parametrize("words", runnable().values(), ids=runnable())
def test_kdbench_lines_run(words, configure, execute, monkeypatch):
    result = execute(configure(*(FOR_TINY.get(word, first(word)) for word in words), "dry_run=true"))
    assert result["stages"] or result["identity"]["method"] in ("tfidf", "cascade", "answers")


@pytest.mark.slow
def test_export_predict_and_label_lines_run(configure, execute, tmp_path, monkeypatch, capsys):
    run = execute(configure("method=logit_kd", *SHORT))["folder"]
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("an apple\n")
    for name in ("million.csv", "pool.csv", "raw.csv", "texts.csv"):
        Path(name).write_text("text\nan apple\n")
    mains = {"kdbench-export": export_command.main, "kdbench-predict": predict.main, "kdbench-label": label.main}
    elsewhere = {"--push", "--demo", "--best-int8"}  # need a network, or a model that is better than by chance
    lines = [one for one in of(*mains) if not elsewhere & {*one.words}]
    for one in sorted(lines, key=lambda one: (one.words[0], "--int8" in one.words)):  # first what is asked later
        assert mains[one.words[0]]([word.replace("RUN", run) for word in one.words[1:]]) == 0, one
        assert capsys.readouterr().out
    codes = [text for page in (ROOT / "README.md", TUTORIAL) for _, text in blocks(page) if "load_classifier" in text]
    assert len(codes) == 2
    for code in codes:
        exec(code.replace("outputs/.../seed0", run), {})


def test_the_packages_of_the_site_are_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = [re.split(r"[<>=]", one)[0] for one in extras["docs"]]
    assert all(importlib.util.find_spec({"mkdocs-material": "material"}.get(name, name)) for name in names)
    assert any("docs" in one for one in extras["dev"])
