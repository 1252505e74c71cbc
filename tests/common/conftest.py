from pathlib import Path

import pytest

from common.data.large_sources import prepare_large


@pytest.fixture(scope="session")
def miniature(tmp_path_factory) -> Path:
    """A folder with the prepared miniature."""
    folder = tmp_path_factory.mktemp("miniature")
    prepare_large("miniature", folder, None)
    return folder
