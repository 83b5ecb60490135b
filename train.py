"""Compose a configuration and run it. `python train.py --help` says how."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from debugnn import cli, config

CONF = Path(__file__).resolve().parent / "conf"

config.register()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(settings: DictConfig) -> None:
    # Imported here, because torch takes seconds: --help and --cfg do not need it.
    from debugnn.runs.execute import execute

    job = HydraConfig.get()
    arm, experiment = job.overrides.task, job.runtime.choices.get("experiment")
    sweep = job.mode == RunMode.MULTIRUN
    cli.guarded(lambda: execute(settings, arm, experiment), arm, job.launcher._target_, sweep)


if __name__ == "__main__":
    cli.start(main, CONF)
