"""Compose a configuration and run it. `python train.py --help` says how."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from debugnn import cli, config

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(settings: DictConfig) -> None:
    # torch takes seconds to import: --help and --cfg never come here.
    from debugnn.run import execute

    job = HydraConfig.get()
    execute(settings, job.overrides.task, job.runtime.choices.get("experiment"))


if __name__ == "__main__":
    cli.launch(main, Path(__file__).parent / "conf")
