import os
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def both(miniature, tmp_path_factory) -> Path:
    """The folder in which two processes left what `pair.py` says."""
    from tests.common.train import pair
    from tests.common.train.large_toys import torchrun

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pair"  # pytest-xdist: once for all workers
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir()
            done = torchrun([pair.__file__, miniature, folder])
            first_life = (folder / "cases.pt").exists() and (folder / "whole").exists()  # torchrun hides how that ended
            assert done.returncode == 0, done.stderr[-4000:]
            assert first_life, done.stderr[-4000:]
            (folder / "done").touch()
    return folder
