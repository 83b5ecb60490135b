"""Jobs of a sweep share compositions, and have the settings that Hydra gives each of them."""

import copy
import pickle

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from conftest import CONF
from debugnn import config
from hydra_plugins.debugnn_sweeper import LetGoOfSettings, SharedCompositions

JOBS = [
    ["seed=3"],
    ["optim.lr=0.1", "seed=4"],
    ["model=cnn", "data=shapes", "seed=4", "init=xavier"],
    ["model=cnn", "data=shapes", "seed=5", "init=xavier", "optim.lr=0.2"],
    ["experiment=dropout_batchnorm", "reg=bn", "trainer.epochs=2"],
    ["experiment=weight_init", "init=lecun", "+model.more=[1,2]", "++optim.eps=1e-7"],
    ["task=lr_train", "task.finder.iterations=7", "~loss.label_smoothing"],
    ["reg.dropout=0.3", "reg=bn", "reg.dropout=0.4"],
    ["hydra.job.env_set.A=1", "wandb=disabled", "output_dir=/x/y"],
]


@pytest.fixture(scope="module")
def loaders():
    """Hydra's loader, the sharing one, and the settings of a sweep."""
    config.register()
    own = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    master = own.load_configuration("config", ["wandb.tags=[a]"], RunMode.MULTIRUN)
    return own, SharedCompositions(own), master


def outcome(loader, master, overrides):
    """The settings of a job as plain values, or the error."""
    try:
        found = loader.load_sweep_config(master, list(overrides))
    except HydraException as error:
        return str(error)
    return (
        OmegaConf.to_container(found),
        found._get_flag("struct"),
        found.hydra._get_flag("readonly"),
    )


@pytest.mark.parametrize("overrides", JOBS, ids=" ".join)
def test_a_jobs_settings_are_those_of_hydras_own_loader(loaders, overrides):
    own, sharing, master = loaders
    expected = outcome(own, master, overrides)
    for _ in range(2):  # from the files, and from the copy that is kept
        assert outcome(sharing, master, overrides) == expected


def test_a_job_takes_no_compositions_to_another_process(loaders):
    own, sharing, master = loaders
    sharing.load_sweep_config(master, ["seed=1"])
    assert len(pickle.dumps(sharing.__getstate__())) < 2 * len(pickle.dumps(vars(own)))
    sent = copy.copy(sharing)  # as a pickle makes it
    assert outcome(sent, master, ["seed=2"]) == outcome(own, master, ["seed=2"])


def test_a_job_does_not_change_the_next_ones_settings(loaders):
    own, sharing, master = loaders
    changed = sharing.load_sweep_config(master, ["seed=1"])
    changed.trainer.epochs = 99
    changed.hydra.job.num = 7
    assert outcome(sharing, master, ["seed=2"]) == outcome(own, master, ["seed=2"])


@pytest.mark.parametrize(
    "wrong",
    ["trainer.epochs=many", "optim.rate=1", "init=magic", "+seed=3", "seed=1.5", "~model.nothing"],
)
def test_one_wrong_job_among_many_is_found_before_the_first(loaders, wrong):
    own, sharing, master = loaders
    jobs = [[f"seed={seed}", "reg=bn"] for seed in range(20)]
    sharing.check(master, jobs)
    with pytest.raises(HydraException) as expected:
        own.load_sweep_config(master, [wrong])
    with pytest.raises(HydraException) as found:
        sharing.check(master, [*jobs, [wrong, "reg=bn"], ["seed=99"]])
    assert str(found.value) == str(expected.value)


def test_what_a_job_returns_holds_no_settings(loaders):
    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.cfg = returned.hydra_cfg = OmegaConf.create({"a": 1})
    returned.return_value = 3
    LetGoOfSettings().on_job_end(OmegaConf.create({}), returned)
    assert (returned.cfg, returned.hydra_cfg, returned.return_value) == (None, None, 3)
