from pathlib import Path

import pytest

from common.data.sets import load
from common.data.sources import prepare


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare("digits", folder, None)
    return folder


@pytest.fixture(scope="session")
def digits(digits_folder):
    return load("digits", digits_folder)
