from pathlib import Path

import pytest

from common.data.large_sources import prepare_large
from common.data.sets import load
from common.data.sources import prepare


@pytest.fixture(scope="session")
def miniature(tmp_path_factory) -> Path:
    """A folder with the prepared miniature."""
    folder = tmp_path_factory.mktemp("miniature")
    prepare_large("miniature", folder, None)
    return folder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare("digits", folder, None)
    return folder


@pytest.fixture(scope="session")
def digits(digits_folder):
    return load("digits", digits_folder)
