"""What the documents say holds: tables, links, commands and examples."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys

import hydra
import pandas as pd
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.types import RunMode

from benchmarking import gpu_output, operations_output, output, scale_output
from conftest import CONF, REPOSITORY
from debugnn import config
from debugnn.analysis import archive, searches, tables
from debugnn.overrides import quote_numbers
from reproduce import values_of
from test_house import ALLOWED, LEAVES

REFERENCE = REPOSITORY / "outputs" / "reference"
SURVIVAL = tables.survival(REFERENCE / "survival")
PAGES = {
    "front": REPOSITORY / "README.md",
    "conf": CONF / "README.md",
    "build": REPOSITORY / "src" / "debugnn" / "README.md",
    "runs": REPOSITORY / "src" / "debugnn" / "runs" / "README.md",
    "doctor": REPOSITORY / "src" / "debugnn" / "doctor" / "README.md",
    "results": REFERENCE / "README.md",
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
EXAMPLES = {
    path: text
    for page in TEXTS.values()
    for path, text in re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL)
}
COMMANDS = sorted(
    {
        command
        for page in TEXTS.values()
        for command in re.findall(r"^(?:\$ )?(python train\.py.*)$", page, re.MULTILINE)
        + re.findall(r"`(python train\.py[^`\n]*)`", page)
    }
)


def between(page: str, name: str) -> str:
    """Return what stands between the marks of a name in a page."""
    marks = rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->"
    return re.search(marks, TEXTS[page], re.DOTALL).group(1)


def run(*command: str, folder) -> str:
    """Run a Python file in a folder and return what it prints."""
    shown = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_the_front_page_stays_short():
    assert len(TEXTS["front"].split()) <= 1500


# --- generated tables ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "name", "table"),
    [
        ("conf", "groups", tables.groups(CONF)),
        ("conf", "keys", tables.keys(CONF)),
        ("conf", "experiments", tables.experiments(CONF)),
        ("doctor", "causes", tables.causes()),
        ("results", "figures", tables.pictures(CONF, REFERENCE / "figures")),
        ("results", "kills", SURVIVAL["kills"]),
        ("results", "faults", SURVIVAL["faults"]),
        ("results", "load", SURVIVAL["load"]),
    ],
)
def test_tables_without_runs_are_those_that_the_code_makes(page, name, table):
    """`python scripts/report.py --tables` writes them."""
    assert between(page, name) == table


def test_the_results_are_those_of_the_kept_comparison():
    """`python scripts/report.py` writes both."""
    table, _ = between("results", "results").split("\n\n")
    kept = pd.read_csv(REFERENCE / "comparison.csv", na_values="NaN")
    assert table == tables.comparison(kept)


@pytest.mark.slow
def test_the_verdicts_are_those_of_the_kept_runs():
    """`python scripts/report.py --keep DIR` writes runs and tables."""
    runs = archive.read(REFERENCE / "results")
    table, provenance = between("results", "claims").split("\n\n")
    assert table == tables.verdicts(runs)
    assert provenance == tables.provenance(runs)
    assert between("results", "diagnoses") == tables.diagnoses(runs)
    assert between("results", "origins") == tables.origins(runs)
    assert between("front", "claims") == tables.headline(runs)


def test_what_is_kept_stays_small():
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file()) < 15e6


def test_the_precision_table_is_that_of_the_kept_pairs():
    """`python scripts/report.py --precision DIR` writes both."""
    table, _ = between("results", "precision").split("\n\n")
    assert table == tables.pairs(pd.read_csv(REFERENCE / "precision.csv"), ("fp32", "bf16"))


def test_the_speed_table_is_that_of_the_measured_numbers():
    """`python scripts/benchmark.py --output outputs/reference/benchmark` writes both."""
    measured = json.loads((REFERENCE / "benchmark" / "benchmark.json").read_text(encoding="utf-8"))
    assert between("results", "speed") == output.summary(measured)


def test_the_tables_of_scale_are_those_of_the_measured_numbers():
    """`python scripts/benchmark_scale.py --output outputs/reference/benchmark` writes all three."""
    measured = json.loads((REFERENCE / "benchmark" / "scale.json").read_text(encoding="utf-8"))
    assert between("results", "scale") == scale_output.summary(measured)
    written = (REFERENCE / "benchmark" / "scale.md").read_text(encoding="utf-8")
    assert written == scale_output.markdown(measured)


def test_the_operations_of_a_step_are_those_of_the_measured_numbers():
    """`scripts/benchmark_operations.py --output outputs/reference/benchmark` writes all three."""
    folder = REFERENCE / "benchmark"
    measured = json.loads((folder / "operations.json").read_text(encoding="utf-8"))
    assert between("results", "operations") == operations_output.summary(measured)
    page = operations_output.markdown(measured, operations_output.tried(folder))
    assert (folder / "operations.md").read_text(encoding="utf-8") == page


def test_the_gpu_tables_are_those_of_the_measured_numbers():
    """`python scripts/benchmark_gpu.py --output outputs/reference/benchmark` writes all three."""
    measured = json.loads((REFERENCE / "benchmark" / "gpu.json").read_text(encoding="utf-8"))
    assert between("results", "gpu") == gpu_output.summary(measured)
    written = (REFERENCE / "benchmark" / "gpu.md").read_text(encoding="utf-8")
    assert written == gpu_output.markdown(measured)


def test_the_search_table_is_that_of_the_kept_trials():
    """`python scripts/compare_searches.py` writes both."""
    trials = pd.read_csv(REFERENCE / "search" / "trials.csv")
    table = f"{searches.comparison(trials)}\n\n{searches.provenance(trials)}"
    assert between("results", "search") == table


def test_every_figure_of_the_reference_is_shown():
    shown = re.findall(r"\]\((figures/[^)]+)\)", between("results", "figures"))
    assert sorted(shown) == sorted(
        f"figures/{path.name}" for path in REFERENCE.glob("figures/*.png")
    )


def test_every_key_of_the_configuration_is_explained():
    rows = [line.split("|")[1:-1] for line in between("conf", "keys").splitlines()[2:]]
    assert rows
    assert [key for key, _, meaning in rows if not meaning.strip()] == []


def test_the_rooms_are_those_that_the_imports_are_held_to():
    rows = [line.strip("| ").split(" | ") for line in between("build", "rooms").splitlines()[2:]]
    told = {name.strip("`"): (rooms, libraries) for name, _, rooms, libraries in rows}
    expected = {}
    for room, (libraries, rooms) in ALLOWED.items():
        if room == "__init__" or room.startswith("debugnn_"):  # plugins of Hydra
            continue
        if rooms >= LEAVES:
            rooms = {"leaves"} | (rooms - LEAVES)
        order = ["leaves", *ALLOWED]
        expected[room] = (
            ", ".join(sorted(rooms, key=order.index)) or "–",
            ", ".join(sorted(libraries)) or "–",
        )
    assert told == expected


# --- links, files and commands -------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", TEXTS[page])
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        path = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page):
    """The names may start at the repository, at the package, or at the page's own folder."""
    named = re.findall(
        r"(?<![\w/.])((?:conf|src|scripts|tests|training|runs|data|analysis|doctor)/[\w/]+\.\w+)",
        TEXTS[page],
    )
    for name in set(named) - set(EXAMPLES):
        roots = (REPOSITORY, REPOSITORY / "src" / "debugnn", PAGES[page].parent)
        assert any((root / name).exists() for root in roots), name


@pytest.fixture(scope="session")
def documented_conf(tmp_path_factory):
    """A copy of conf/ with the options and the experiment that the pages show."""
    copy = tmp_path_factory.mktemp("documented") / "conf"
    shutil.copytree(CONF, copy)
    for path, text in EXAMPLES.items():
        if path.startswith("conf/"):
            (copy.parent / path).write_text(text, encoding="utf-8")
    return copy


def test_there_are_commands_to_test():
    assert len(COMMANDS) > 20


def ends_or_values(override):
    """What an override sets: the ends of a range, or each value of a sweep."""
    swept = override.value()
    return [swept.start, swept.end] if isinstance(swept, IntervalSweep) else values_of(override)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command, documented_conf):
    config.register()
    words = shlex.split(command, comments=True)[2:]
    overrides = quote_numbers([w for w in words if "=" in w], documented_conf)
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [[f"{o.key_or_group}={value}" for value in ends_or_values(o)] for o in parsed]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(documented_conf)):
        for arm in itertools.product(*choices):
            composed = hydra.compose("config", list(arm), return_hydra_config=True)
            config.check(composed)
            swept = any(len(values) > 1 for values in choices)
            assert not swept or "-m" in words or composed.hydra.mode == RunMode.MULTIRUN


# --- examples ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_ablations_run_from_the_files_that_are_shown(tmp_path, documented_conf, prepared):
    """In a copy of the project: the options, the experiment, its sweep and its figure."""
    shutil.copytree(documented_conf, tmp_path / "conf")
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    shutil.copy(REPOSITORY / "train.py", tmp_path)
    short = ("trainer.epochs=1", "trainer.steps_per_epoch=2", "wandb=disabled", "doctor=off",
             f"data.cache={prepared}")  # fmt: skip
    # One process for both new options: the experiment's arms, each with the new initialisation.
    run("train.py", "experiment=mish", "init=narrow", *short, folder=tmp_path)
    run("scripts/figures.py", "--experiments", "mish", folder=tmp_path)
    assert (tmp_path / "outputs" / "figures" / "mish_digits.png").stat().st_size > 10_000
    configs = [yaml.safe_load(path.read_text()) for path in tmp_path.rglob("seed=0/config.yaml")]
    used = [(c["model"]["activation"]["_target_"], c["init"]["weight"]["std"]) for c in configs]
    assert sorted(used) == [("torch.nn.Mish", 0.01), ("torch.nn.ReLU", 0.01)]


@pytest.mark.slow
def test_the_diagnosis_is_the_one_that_the_front_page_shows(tmp_path, prepared):
    """Its words, not its numbers, which depend on the processor."""
    sample = r"```\n\$ python (train\.py [^\n]*)\n(.*?)```"
    command, shown = re.search(sample, TEXTS["front"], re.DOTALL).groups()
    given = (f"output_dir={tmp_path}", f"data.cache={prepared}", "wandb=disabled")
    printed = run(*command.split(), *given, folder=REPOSITORY)
    words = [re.sub(r"[\d.]+", "N", text) for text in (shown, printed)]
    assert words[0] in words[1]


# --- filling the tables --------------------------------------------------------------------------


def test_markdown_table():
    table = tables.markdown(["a", "b"], [["1", "2"]])
    assert table == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_fill_replaces_only_what_stands_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("top\n<!-- x -->\nold\n<!-- /x -->\nend\n")
    tables.fill(page, "x", "new")
    tables.fill(page, "x", "newer")
    assert page.read_text() == "top\n<!-- x -->\nnewer\n<!-- /x -->\nend\n"


def test_fill_refuses_a_page_without_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("top\n")
    with pytest.raises(ValueError, match="marks"):
        tables.fill(page, "x", "new")
