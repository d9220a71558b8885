import struct

import pytest
import torch

from media_files import corners, quadrants, write_video
from soundstage.core.errors import MediaError, RequestError
from soundstage.media.image import read_image, recompress, write_image
from soundstage.media.placement import cover_plainly, place


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


@pytest.fixture
def image():
    return pytest.importorskip("PIL.Image")


def corners_of(path):
    return corners(read_image(path))


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBA", "YCbCr"])
def test_every_mode_shows_the_same_colours(tmp_path, image, mode):
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png")
    picture = image.fromarray(quadrants().numpy())
    (picture.quantize(4) if mode == "P" else picture.convert(mode)).save(path)
    assert (corners_of(path) - corners(quadrants())).abs().max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_become_eight_by_scaling(tmp_path, image, name):
    levels = torch.arange(256).repeat(4, 1) * 257
    image.fromarray(levels.numpy().astype("uint16")).save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert torch.equal(read, torch.arange(256, dtype=torch.uint8)[None, :, None].expand(4, 256, 3))


def test_grey_becomes_three_equal_channels(tmp_path, image):
    image.fromarray(picture()[..., 0].numpy()).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), picture()[..., :1].expand(-1, -1, 3))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_transparency_is_laid_over_black(tmp_path, image, kind):
    stored = torch.full((8, 8, 4), 200, dtype=torch.uint8)
    stored[:, :4, 3], stored[:, 4:6, 3], stored[:, 6:, 3] = 0, 128, 255
    picture = image.fromarray(stored.numpy())
    if kind == "palette":
        picture = picture.convert("RGB").quantize(2)
        picture.info["transparency"] = picture.getpixel((0, 0))  # all of it
    elif kind == "LA":
        picture = picture.convert("LA")
    picture.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read[:, :4].max() == 0
    if kind != "palette":
        assert (read[:, 4:6].int() - 100).abs().max() <= 1
        assert (read[:, 6:].int() - 200).abs().max() <= 1


def linear_profile():
    """A profile of sRGB's colours in which codes are proportional to light, written by hand (ICC.1:2001)."""

    def xyz(*values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)  # no entries: the identity
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 7) + b"linear\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.4360, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = bytes(4) + struct.pack(">I", 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += xyz(0.9642, 1, 0.8249)[8:]
    whole = header + bytes(124 - len(header)) + table + data
    return struct.pack(">I", len(whole) + 4) + whole


def test_a_colour_profile_is_applied(tmp_path, image):
    """In a linear profile the code 128 is half of the light, which sRGB writes as 188."""
    cms = pytest.importorskip("PIL.ImageCms")
    half = image.fromarray(torch.full((8, 8, 3), 128, dtype=torch.uint8).numpy())
    profiles = {"srgb": cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes(), "linear": linear_profile()}
    expected = {"srgb": 128, "linear": 188, "broken": 128}
    for name, profile in (profiles | {"broken": b"not a profile"}).items():
        half.save(tmp_path / f"{name}.png", icc_profile=profile)
        assert (read_image(tmp_path / f"{name}.png").int() - expected[name]).abs().max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_of_photographs_are_undone(tmp_path, image, orientation):
    undo = {
        1: lambda p: p, 2: lambda p: p.flip(1), 3: lambda p: torch.rot90(p, 2), 4: lambda p: p.flip(0),
        5: lambda p: p.transpose(0, 1), 6: lambda p: torch.rot90(p, 1),
        7: lambda p: torch.rot90(p.transpose(0, 1), 2), 8: lambda p: torch.rot90(p, -1),
    }  # fmt: skip
    exif = image.Exif()
    exif[0x0112] = orientation
    stored = undo[orientation](quadrants()).contiguous()
    image.fromarray(stored.numpy()).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png"), quadrants())


def test_the_first_frame_of_a_video_serves_as_a_picture(tmp_path):
    path = write_video(tmp_path / "a.mp4", [quadrants().numpy()] * 2)
    assert (corners_of(path) - corners(quadrants())).abs().max() < 12


def test_a_picture_is_fitted_and_says_where_it_lies(tmp_path):
    write_image(tmp_path / "a.png", quadrants(32, 64))
    placement = place((32, 64), (64, 64), "pad")
    fitted = placement.apply(read_image(tmp_path / "a.png")[None])
    assert fitted.shape == (1, 64, 64, 3)
    assert placement.inside == (slice(16, 48), slice(0, 64))
    assert torch.equal(placement.undo(fitted)[0], quadrants(32, 64))
    covered = place((32, 64), (32, 32), "cover").apply(quadrants(32, 64)[None])[0]
    assert torch.equal(covered, quadrants(32, 64)[:, 16:48])


def test_plain_covering_mixes_the_four_nearest_pixels_and_rounds_nothing():
    rows = torch.arange(10).view(10, 1, 1).expand(10, 30, 3).to(torch.uint8) * 20
    covered = cover_plainly(rows, (4, 6))
    # Scaled to 4 x 12 and columns 3 to 8 cut out. Row i lies at (i + 0.5) * 10 / 4 - 0.5 of the picture.
    assert covered.shape == (4, 6, 3)
    assert covered[:, 0, 0].tolist() == pytest.approx([20 * at for at in (0.75, 3.25, 5.75, 8.25)])
    odd = torch.arange(7).view(1, 7, 1).expand(5, 7, 3).to(torch.uint8)
    # Scaled by 4/5 to 4 x 6 (5.6, rounded up), columns 1 to 4: column 1 lies at 1.5 * 7 / 6 - 0.5.
    assert cover_plainly(odd, (4, 4))[0, 0, 0].item() == pytest.approx(1.25)


def test_plain_covering_skips_what_smooth_covering_averages():
    stripes = (torch.arange(64) % 2 * 255).view(1, 64, 1).expand(64, 64, 3).to(torch.uint8)
    smooth = place((64, 64), (8, 8), "cover").apply(stripes[None])[0].float()
    assert smooth[:, 1:-1].std() < 1
    assert torch.equal(cover_plainly(stripes, (64, 64)), stripes.float())
    dots = torch.zeros(64, 64, 3, dtype=torch.uint8)
    dots[3::8, 3::8] = 255
    assert cover_plainly(dots, (8, 8)).max() > 60 > place((64, 64), (8, 8), "cover").apply(dots[None]).max()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_recompression_costs_more_detail_the_higher_the_factor(height, width):
    noisy = picture(height, width)
    assert torch.equal(recompress(noisy, 0), noisy)
    even = noisy[: height - height % 2, : width - width % 2]
    errors = [(recompress(noisy, crf).float() - even.float()).abs().mean() for crf in (10, 33, 51)]
    assert 0 < errors[0] < errors[2]
    assert errors[0] <= errors[1] <= errors[2] + 1


def test_recompression_keeps_colours_and_repeats_itself():
    once = recompress(quadrants(), 23)
    assert (corners(once) - corners(quadrants())).abs().max() < 12
    assert torch.equal(once, recompress(quadrants(), 23))


def test_impossible_factors_are_named():
    with pytest.raises(RequestError, match="crf=60 is outside 0 to 51"):
        recompress(quadrants(), 60)
