import pytest
import torch

from soundstage.core.errors import MediaError
from soundstage.media.image import read_image, write_image


def picture(height=5, width=7):
    return torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_png_comes_back_equal(tmp_path):
    write_image(tmp_path / "a.png", picture())
    assert torch.equal(read_image(tmp_path / "a.png"), picture())


def test_same_picture_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name, picture())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_are_read_upright(tmp_path, orientation):
    """A camera held sideways stores the turn in EXIF instead of turning the pixels."""
    image = pytest.importorskip("PIL.Image", reason="writes the EXIF tag")
    upright = torch.zeros(16, 32, 3, dtype=torch.uint8)
    upright[:, :16, 0] = 255  # red left, blue right
    upright[:, 16:, 2] = 255
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # counter-clockwise turns that the sensor saw
    stored = torch.rot90(upright, turns)
    path = tmp_path / "photo.jpg"
    exif = image.Exif()
    exif[0x0112] = orientation
    image.fromarray(stored.numpy()).save(path, quality=95, subsampling=0, exif=exif)
    read = read_image(path).int()
    assert read.shape == upright.shape
    assert (read[4:12, 4:12] - upright[4:12, 4:12].int()).abs().max() < 12
    assert (read[4:12, 20:28] - upright[4:12, 20:28].int()).abs().max() < 12


def test_missing_file_and_text_are_named(tmp_path):
    with pytest.raises(MediaError, match=r"cannot read .*none\.png"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(MediaError, match="cannot read"):
        read_image(tmp_path / "text.png")
