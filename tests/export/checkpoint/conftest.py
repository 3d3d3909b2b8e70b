"""Random checkpoint folders for the tests of this folder."""

import os
import shutil
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family ("sd1", "sd2") -> a folder in the diffusers format. Read-only."""
    folder = tmp_path_factory.mktemp("folders")
    return {family: tiny_checkpoint(folder / family, family, seed=23) for family in ("sd1", "sd2")}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the sd1 folder that a test may change."""
    return Path(shutil.copytree(folders["sd1"], tmp_path / "checkpoint"))


@pytest.fixture
def cache(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of someone/tiny-diffusion in a Hub cache, laid out as by the Hub's client: links to blobs."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny-diffusion"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for number, file in enumerate(sorted(f for f in folders["sd1"].rglob("*") if f.is_file())):
        blob = repository / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folders["sd1"])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot
