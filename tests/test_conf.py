"""Every option and every combination of the groups composes, and trains."""

import dataclasses
import itertools
import re
import shutil

import hydra
import pytest
import yaml
from omegaconf import MISSING, OmegaConf

from conftest import CONF
from debugnn import config
from debugnn.build import build
from debugnn.overrides import quote_numbers
from debugnn.records import Step
from debugnn.runs.naming import arm_of
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import train_one_epoch

GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name != "hydra"
}
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]
THE_USERS = {
    "model": ["sigmoid_net", "relu_net", "cnn"],
    "init": ["kaiming", "xavier", "lecun", "const100"],
    "reg": ["none", "dropout", "bn", "bn_dropout"],
    "clip": ["off", "4.0"],
}
PRETRAINED = [
    "data.as_shape=[3,32,32]",
    "init.pretrain.epochs=1",
    "init.pretrain.steps_per_epoch=2",
]
# Settings that an option cannot do without, as its own comment says.
NEEDS = {
    ("model", "regressor"): ["data=regression", "loss=mse"],
    ("data", "regression"): ["model=regressor", "loss=mse"],
    ("data", "regression_notebook"): ["model=regressor", "loss=mse"],
    ("init", "pretrained"): PRETRAINED,
    ("init", "pretrained_cifar10"): PRETRAINED,
}


def two_steps(settings) -> list[Step]:
    training = build(settings)
    training.steps_per_epoch = 2
    doctor = settings.doctor
    probe = LayerProbe(doctor.every) if doctor.enabled else None
    records = train_one_epoch(training, probe, evaluated=False)
    return [record for record in records if isinstance(record, Step)]


def test_the_users_options_are_there():
    for group, options in THE_USERS.items():
        assert set(options) <= set(GROUPS[group])


@pytest.mark.slow
@pytest.mark.parametrize("group", THE_USERS)
def test_an_option_changes_its_own_group_alone(group):
    """Groups do not know each other, so that their options can be combined in every way."""
    config.register()

    def composed(*arguments):
        settings = hydra.compose("config", quote_numbers(list(arguments), CONF))
        return OmegaConf.to_container(settings, resolve=False)

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        usual = composed()
        for option in GROUPS[group]:
            settings = composed(f"{group}={option}")
            assert settings.pop(group)
            assert settings == {key: value for key, value in usual.items() if key != group}, option


@pytest.mark.slow
@pytest.mark.parametrize("arm", list(itertools.product(*THE_USERS.values())), ids="-".join)
def test_every_combination_of_the_users_options_trains(compose, arm):
    settings = [f"{group}={option}" for group, option in zip(THE_USERS, arm, strict=True)]
    steps = two_steps(compose(*settings, "data.batch_size=4"))
    assert [step.step for step in steps] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "option"), [o for o in OPTIONS if o[0] not in ("experiment", "data")]
)
def test_every_option_trains(compose, request, group, option):
    needed = NEEDS.get((group, option), [])
    if option == "pretrained_cifar10":
        needed = [*needed, f"data.root={request.getfixturevalue('real_data')}"]
    steps = two_steps(compose(f"{group}={option}", *needed, "data.batch_size=4"))
    assert len(steps) == 2


@pytest.mark.parametrize("option", [o for o in GROUPS["data"] if o not in ("mnist", "cifar10")])
def test_every_embedded_data_set_trains(compose, option):
    steps = two_steps(compose(f"data={option}", *NEEDS.get(("data", option), [])))
    assert len(steps) == 2


@pytest.mark.parametrize("option", ["mnist", "cifar10"])
def test_the_articles_data_sets_train(compose, real_data, option):
    assert len(two_steps(compose(f"data={option}", f"data.root={real_data}"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_every_arm_of_every_experiment_trains(compose, name):
    from reproduce import CONF as REPRODUCE_CONF
    from reproduce import arms

    assert REPRODUCE_CONF == CONF
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        found = list(arms(name, "embedded"))
    assert found
    for arm in found:
        short = ["data.batch_size=4"] if name != "overfit_small" else []
        settings = compose(f"experiment={name}", *arm, *short)
        assert settings.data.name not in ("mnist", "cifar10")
        if settings.init.pretrain is not None:
            settings.init.pretrain.epochs = 1
            settings.init.pretrain.steps_per_epoch = 2
        assert two_steps(settings)


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_an_experiment_says_what_it_is_for(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert text.splitlines()[1] == f"# python train.py experiment={name}"
    report = yaml.safe_load(text)["report"]
    assert report["title"]
    assert report["figures"]


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_an_experiment_with_arms_sweeps_without_being_told(name):
    hydra_settings = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text()).get("hydra")
    if hydra_settings is not None:
        assert hydra_settings["sweeper"]["params"]
        assert hydra_settings["mode"] == "MULTIRUN"


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_every_arm_that_a_report_block_names_is_swept_over(name):
    from reproduce import arms

    config.register()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        swept = [arm_of(arm) for arm in arms(name, "neither")]
    report = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())["report"]
    patterns = [key for key in report.get("article", {}) if key != "default"]
    patterns += [arm for figure in report["figures"] for arm in figure.get("arms", ())]
    for pattern in patterns:
        wanted = dict(item.split("=", 1) for item in pattern.split(","))
        assert any(wanted.items() <= arm.items() for arm in swept), pattern


@pytest.mark.slow
def test_the_range_tests_follow_up_trains_at_each_rules_rate(compose):
    from reproduce import arms

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        found = list(arms("lr_finder", "neither"))
    tasks = [compose("experiment=lr_finder", *arm).task for arm in found]
    assert [(task.name, task.lr_from) for task in tasks] == [
        ("lr_find", None), ("train", None),
        ("train", "minimum"), ("train", "steepest"), ("train", "valley"),
    ]  # fmt: skip
    for rule in ("minimum", "steepest", "valley"):
        asked = compose("task=lr_train", f"task.lr_from={rule}").task
        assert asked == tasks[found.index([f"task={{lr_from:{rule}}}"])]


# --- a group's default file shows all of its fields ----------------------------------------------

DEFAULTS = {
    group: option
    for item in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    if isinstance(item, dict)
    for group, option in item.items()
}
SCHEMAS = {
    entry.name: config.group_of(entry)
    for entry in dataclasses.fields(config.Config)
    if config.group_of(entry) is not None and entry.name in DEFAULTS
}


def shown_fields(schema, written):
    """Each field of the schema with its value in a file, those of nested groups included."""
    for entry in dataclasses.fields(schema):
        assert entry.name in written, entry.name
        inner = config.group_of(entry)
        if inner is not None and written[entry.name] is not None:
            yield from shown_fields(inner, written[entry.name])
        else:
            yield entry, written[entry.name]


@pytest.mark.parametrize("group", SCHEMAS)
def test_a_default_option_shows_every_field_its_default_and_what_is_allowed(group):
    text = (CONF / group / f"{DEFAULTS[group]}.yaml").read_text()
    defaults = OmegaConf.to_container(OmegaConf.structured(SCHEMAS[group]))
    given = dict(flat(defaults))
    for entry, value in shown_fields(SCHEMAS[group], yaml.safe_load(text)):
        (line,) = re.finditer(rf"^ *{entry.name}:.*$", text, re.MULTILINE)
        before = text[: line.start()].splitlines()
        above = list(itertools.takewhile(lambda row: row.startswith("#"), reversed(before[1:])))
        comment = " ".join([line.group().partition(" # ")[2], *above])
        assert comment.strip(), f"{entry.name} has no comment"
        if (default := given[entry.name]) != MISSING:
            assert value == default
        allowed = entry.metadata.get("allowed")
        if isinstance(allowed, config.Choice):
            words = set(re.findall(r"\w+", comment))
            assert {option or "null" for option in allowed.options} <= words, entry.name


def flat(values):
    for key, value in values.items():
        yield key, value
        if isinstance(value, dict):
            yield from flat(value)


# --- a data file of the user's own ---------------------------------------------------------------

OWN = {"train_size": 100, "scale": "raw", "imbalance": 0.5, "augment_shift": 1}


@pytest.fixture
def with_own_data(tmp_path):
    """`with_own_data(override, …)`: the data section composed from a folder with a file more."""
    config.register()
    folder = shutil.copytree(CONF, tmp_path / "conf")
    file = {"name": "own", "reader": {"_target_": "debugnn.data.digits"}, "batch_size": 8, **OWN}
    (folder / "data" / "own.yaml").write_text(yaml.safe_dump(file))

    def composed(*overrides):
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder)):
            return hydra.compose("config", ["data=own", *overrides]).data

    return composed


def test_a_data_file_keeps_what_it_sets(with_own_data):
    composed = with_own_data()
    assert {key: composed[key] for key in OWN} == OWN
    assert composed.root
    assert composed.cache


def test_a_decision_wins_over_the_data_file(with_own_data):
    composed = with_own_data("decision=small")
    assert {key: composed[key] for key in OWN} == {**OWN, "train_size": 200}


# --- what is typed -------------------------------------------------------------------------------


def test_articles_runs_are_all_claimed():
    """Each run in the article's table is repeated by an arm of some experiment."""
    claimed = set()
    for path in (CONF / "experiment").glob("*.yaml"):
        claimed |= set(yaml.safe_load(path.read_text())["report"].get("article", {}).values())
    lines = (CONF.parent / "src/debugnn/analysis/article_runs.csv").read_text().splitlines()
    recorded = {line.split(",")[0] for line in lines[1:]}
    # One program with VG_Converge: its first ten epochs.
    assert recorded - claimed == {"Vanishing_Grad_1"}


@pytest.mark.parametrize(
    ("arguments", "max_norm"),
    [(["clip=4.0"], 4.0), (["clip=off"], None), (["clip.max_norm=1.0"], 1.0),
     (["clip=4.0", "clip.max_norm=2"], 2.0)],
)  # fmt: skip
def test_clip_is_typed_as_anybody_would(compose, arguments, max_norm):
    assert compose(*arguments).clip.max_norm == max_norm


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("clip=4.0", "clip='4.0'"),
        ("clip=off,4.0", "clip=off,'4.0'"),
        ("optim.lr=0.1", "optim.lr=0.1"),
        ("seed=0,1", "seed=0,1"),
        ("-m", "-m"),
        ("init=kaiming", "init=kaiming"),
    ],
)
def test_numbers_are_quoted_only_where_they_name_an_option(given, quoted):
    assert quote_numbers([given], CONF) == [quoted]


def test_default_run_is_offline_and_embedded(compose):
    composed = compose("wandb=offline")
    assert composed.wandb.mode == "offline"
    assert composed.data.name == "digits"
    assert OmegaConf.select(composed, "wandb.project") == "debug-neural-nets"
