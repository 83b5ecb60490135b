"""Compose a configuration and run it. `python train.py --help` says how."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from debugnn import cli, config
from debugnn.runs.arms import Arm

CONF = Path(__file__).resolve().parent / "conf"

config.register()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(settings: DictConfig) -> Arm:
    return cli.run_job(settings, HydraConfig.get())


if __name__ == "__main__":
    cli.start(main, CONF)
