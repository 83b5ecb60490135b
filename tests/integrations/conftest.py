"""Lightning and Transformers take seconds to import, in every worker of the tests."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder's tests out before they are imported: all of them are slow."""
    return True if config.option.markexpr == "not slow" else None
