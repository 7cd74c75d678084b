"""Fixtures that several folders share. Nothing here touches the network."""

import os
import shutil
import tempfile
from pathlib import Path

# Read by huggingface_hub and datasets when they are imported, so before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
SCRATCH = Path(tempfile.mkdtemp(prefix="kexue-tests-"))
os.environ["HF_DATASETS_CACHE"] = str(SCRATCH / "datasets")
os.environ["KEXUE_CACHE"] = str(SCRATCH / "kexue")

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_configure():
    torch.set_num_threads(1)


def pytest_unconfigure():
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def tokenizer():
    """The built-in character tokenizer."""
    from kexue.models.tiny import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """A folder of look-alike data for all eleven tasks, in the official layout."""
    from kexue.data.mini import write_mini

    return write_mini(tmp_path_factory.mktemp("mini"), train=48, dev=24, test=24)


@pytest.fixture(scope="session")
def real_clue():
    """Slices of the real data, which their licences keep out of the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "clue"
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}")
    return folder
