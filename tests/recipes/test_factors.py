"""Two factors that are independent, and emoji of which every combination is there."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import factors

CPU = torch.device("cpu")


def test_painted_digits_keep_their_shape_and_get_their_colour():
    grey = torch.rand(len(factors.COLOURS), 1, 4, 4)
    painted = factors.paint(grey, torch.arange(len(factors.COLOURS)), jitter=0)
    torch.testing.assert_close(painted, grey * factors.COLOURS[:, :, None, None])
    jittered = factors.paint(grey, torch.arange(len(factors.COLOURS)))
    assert 0.01 < (jittered - painted).abs().max() <= 0.15


def test_colours_are_drawn_anew_and_independent_of_the_class():
    torch.manual_seed(0)
    digits = factors.load_factors("digits", limit=1000)
    assert len(digits.train.images) == 1000
    assert (digits.contents, digits.styles) == (10, len(factors.COLOURS))
    one, two = (factors.draw(digits.train, torch.arange(1000), CPU) for _ in range(2))
    assert one.images.shape == (1000, 3, 8, 8)
    assert torch.equal(one.content, two.content)
    assert (one.style == two.style).float().mean() < 0.2
    counts = torch.bincount(one.content * digits.styles + one.style, minlength=80).float()
    expected = one.content.bincount()[:, None] * one.style.bincount() / 1000
    chi_squared = ((counts.view(10, 8) - expected) ** 2 / expected).sum()
    assert chi_squared < 103  # the 0.999 quantile for 63 degrees of freedom


def write_emoji(root: Path, vendors: tuple[str, ...], points: tuple[str, ...]) -> None:
    image = pytest.importorskip("PIL.Image")
    for v, vendor in enumerate(vendors):
        (root / vendor / "64").mkdir(parents=True)
        for p, point in enumerate(points):
            for t, tone in enumerate(factors.TONES):
                name = f"{point}-{tone}-200d" if "x" in point else f"{point}-{tone}"
                colour = (40 * p, 40 * t, 100 * v, 255)
                image.new("RGBA", (64, 64), colour).save(root / vendor / "64" / f"{name}.png")
            image.new("RGBA", (64, 64)).save(root / vendor / "64" / f"{point}.png")  # without a tone: not read
        for tone in factors.TONES:  # nothing but a tone: not read either
            image.new("RGBA", (64, 64)).save(root / vendor / "64" / f"{tone}.png")


def test_emoji_are_labelled_by_what_they_show_and_by_vendor_and_tone(tmp_path):
    write_emoji(tmp_path, ("google", "twitter"), ("1f44b", "1f44c", "1f9d1x"))
    (tmp_path / "twitter" / "64" / f"1f44c-{factors.TONES[2]}.png").unlink()  # so this one is not complete
    emoji = factors.load_factors(str(tmp_path))
    assert (emoji.contents, emoji.styles) == (2, 10)
    assert (len(emoji.train.images), len(emoji.test.images)) == (16, 4)
    assert emoji.train.images.shape[1:] == (3, 32, 32)
    for part in (emoji.train, emoji.test):
        levels = part.images[:, :, 0, 0].mul(255).round().long()
        assert torch.equal(levels[:, 0], 80 * part.content)  # the first and the third are left
        assert torch.equal(levels[:, 1], 40 * (part.style % 5))
        assert torch.equal(levels[:, 2], 100 * (part.style // 5))
    drawn = factors.draw(emoji.test, torch.arange(4), CPU)
    assert torch.equal(drawn.images, emoji.test.images)


def test_transparent_emoji_lie_on_white(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGBA", (64, 64)).save(tmp_path / "clear.png")
    assert torch.equal(factors.read_image(tmp_path / "clear.png", 8), torch.ones(3, 8, 8))


def test_a_single_emoji_is_an_error(tmp_path):
    write_emoji(tmp_path, ("google", "twitter"), ("1f44b",))
    with pytest.raises(ValueError, match="at least two emoji"):
        factors.load_factors(str(tmp_path))


def test_incomplete_emoji_are_an_error(tmp_path):
    write_emoji(tmp_path, ("google", "twitter"), ("1f44b", "1f44c"))
    (tmp_path / "twitter" / "64" / f"1f44b-{factors.TONES[2]}.png").unlink()
    with pytest.raises(ValueError, match="emoji-datasource-twitter"):
        factors.load_factors(str(tmp_path))
