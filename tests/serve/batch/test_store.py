"""Pictures in stores of fsspec."""

from pathlib import Path, PurePosixPath

import fsspec
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentrt.runtime.errors import InputError
from latentrt.runtime.image import save_png, text_of_png
from latentrt.serve.batch.store import Store, place_of


def picture() -> Image.Image:
    image, info = Image.linear_gradient("L"), PngInfo()
    info.add_itxt("latentrt", "☆")
    image.encoderinfo = {"pnginfo": info}
    return image


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_picture_in_a_store_is_that_of_a_file(tmp_path: Path, protocol: str) -> None:
    folder = "memory://pictures" if protocol == "memory" else f"file://{tmp_path}/new"
    place, pattern = place_of(f"{folder}/p.png")
    path = place.path("a/one.png")
    assert place.key(path) == place.key(place.path(f"{folder}/a/b/../one.png"))
    assert pattern.name == "p.png"
    place.save(picture(), path)
    save_png(picture(), tmp_path / "local.png")
    with place.open(path) as file:
        assert file.read() == (tmp_path / "local.png").read_bytes()
    with fsspec.open(place.shown(path)) as file:
        assert text_of_png(file) == {"latentrt": "☆"}
    with pytest.raises(OSError):
        place.open(place.path("none.png"))
    if protocol == "file":
        assert [file.name for file in (tmp_path / "new" / "a").iterdir()] == ["one.png"]


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, path = place_of(f"file://{tmp_path}/p.png")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr(type(fsspec.filesystem("file")), "mv", broken)
    with pytest.raises(InputError, match=f"file://{tmp_path}/p.png cannot be written: no space"):
        place.save(picture(), path)
    assert not (tmp_path / "p.png").exists()


def test_what_is_elsewhere_is_refused() -> None:
    with pytest.raises(InputError, match=r"s3://b/x\.png is elsewhere than the other pictures: expected memory://"):
        Store("memory://a/p.png").path("s3://b/x.png")
    with pytest.raises(InputError, match=r"pictures cannot be written to nonsense://a/p\.png: Protocol not known"):
        place_of("nonsense://a/p.png")
    place, path = place_of("a/p.png")
    assert path == Path("a/p.png")
    with pytest.raises(InputError, match=r"s3://b/x\.png is not on this machine"):
        place.path("s3://b/x.png")


def test_a_path_cannot_leave_its_store() -> None:
    place = Store("memory://a/p.png")
    assert place.key(PurePosixPath("/a/../../../x.png")) == place.key(PurePosixPath("/x.png"))
