"""Every option and every combination of the groups composes, and trains."""

import itertools
import re

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from conftest import CONF
from debugnn import cli, config
from debugnn.build import build
from debugnn.records import Step
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
    "+init.pretrain.steps_per_epoch=2",
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
    records = train_one_epoch(training, LayerProbe(settings.doctor.every), evaluated=False)
    return [record for record in records if isinstance(record, Step)]


def test_the_users_options_are_there():
    for group, options in THE_USERS.items():
        assert set(options) <= set(GROUPS[group])


@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_combination_of_model_init_reg_and_clip_composes(model):
    """Groups that do not know each other: what one sets, no other may change."""
    config.register()
    alone = {}
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for group in ("init", "reg", "clip"):
            for option in GROUPS[group]:
                composed = hydra.compose("config", cli.quote_numbers([f"{group}={option}"], CONF))
                alone[group, option] = composed[group]
        for init, reg, clip in itertools.product(*(GROUPS[g] for g in ("init", "reg", "clip"))):
            arguments = [f"model={model}", f"init={init}", f"reg={reg}", f"clip={clip}"]
            composed = hydra.compose("config", cli.quote_numbers(arguments, CONF))
            assert composed.init == alone["init", init]
            assert composed.reg == alone["reg", reg]
            assert composed.clip == alone["clip", clip]


@pytest.mark.parametrize("arm", itertools.product(*THE_USERS.values()), ids="-".join)
def test_every_combination_of_the_users_options_trains(compose, arm):
    settings = [f"{group}={option}" for group, option in zip(THE_USERS, arm, strict=True)]
    steps = two_steps(compose(*settings, "data.batch_size=4"))
    assert [step.step for step in steps] == [0, 1]


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
        if settings.init.pretrain is not None:
            settings.init.pretrain.epochs = 1
            settings.init.pretrain.steps_per_epoch = 2
        assert two_steps(settings)


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_an_experiment_says_what_it_is_for(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    command = text.splitlines()[1]
    assert re.fullmatch(rf"# python train\.py (-m )?experiment={name}", command)
    report = yaml.safe_load(text)["report"]
    assert report["title"]
    assert report["figures"]


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
    assert cli.quote_numbers([given], CONF) == [quoted]


def test_default_run_is_offline_and_embedded(compose):
    composed = compose("wandb=offline")
    assert composed.wandb.mode == "offline"
    assert composed.data.name == "digits"
    assert OmegaConf.select(composed, "wandb.project") == "debug-neural-nets"
