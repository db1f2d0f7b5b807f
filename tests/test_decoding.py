"""What an encoder is given, opened: pictures upright in RGB, sound mono, in whatever form they come."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from fusemix_lite import FuseMixLiteError, decoding
from fusemix_lite.decoding import MAX_CHANNELS, clean_caption, decode, resampled

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (33, 40, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
TIME = np.arange(16_000) / 16_000
TONE = (0.3 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)


def as_file(save, **options):
    buffer = io.BytesIO()
    save(buffer, **options)
    return buffer.getvalue()


def shown(item):
    return np.asarray(decode(item, "image"))


def test_a_picture_may_come_in_every_form(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for item in (PICTURE, tmp_path / "a.png", str(tmp_path / "a.png"), content, lambda: PICTURE, lambda: content):
        assert np.array_equal(shown(item), PIXELS)
    once = decode(content, "image")
    assert np.array_equal(shown(once), PIXELS)  # what comes out may go in again


def test_grey_cmyk_palettes_and_transparency_become_rgb():
    grey = as_file(PICTURE.convert("L").save, format="PNG")
    assert np.array_equal(shown(grey), np.asarray(PICTURE.convert("L").convert("RGB")))
    few = PICTURE.quantize(16)
    assert np.array_equal(shown(as_file(few.save, format="GIF")), np.asarray(few.convert("RGB")))
    seen_through = as_file(few.save, format="PNG", transparency=bytes([0] * 16))  # of which Pillow itself would warn
    assert np.array_equal(shown(seen_through), np.asarray(few.convert("RGB")))
    cmyk = PICTURE.convert("CMYK")
    assert np.array_equal(shown(as_file(cmyk.save, format="TIFF")), np.asarray(cmyk.convert("RGB")))
    jpeg = as_file(cmyk.save, format="JPEG", quality=95)
    assert np.abs(shown(jpeg).astype(int) - np.asarray(cmyk.convert("RGB"))).mean() < 15  # not inverted
    assert shown(Image.new("RGBA", (4, 4), (10, 20, 30, 128)))[0, 0].tolist() == [10, 20, 30]
    assert shown(Image.new("1", (4, 4), 1))[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled_and_not_cut_off():
    values = np.linspace(0, 65_535, 64).round().astype(np.uint16).reshape(8, 8)
    expected = (values / 257).round().astype(np.uint8)
    assert shown(Image.fromarray(values))[..., 0].tolist() == expected.tolist()
    content = as_file(Image.fromarray(values).save, format="PNG")
    assert Image.open(io.BytesIO(content)).mode.startswith("I")
    assert shown(content)[..., 1].tolist() == expected.tolist()
    wide = Image.fromarray(values.astype(np.int32))  # mode I, as older versions of Pillow open such a file
    assert wide.mode == "I" and shown(wide)[..., 2].tolist() == expected.tolist()
    dark = Image.fromarray((values // 257).astype(np.int32))
    assert shown(dark)[..., 0].max() == 255 and shown(dark)[0, 1, 0] == (values // 257)[0, 1]  # eight bits in a wide mode


@pytest.mark.parametrize(("orientation", "undo"), {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}.items())
def test_a_turned_picture_is_turned_back(orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = as_file(PICTURE.transpose(undo).save, format="PNG", exif=exif)
    assert np.array_equal(shown(content), PIXELS)


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch):
    content = as_file(Image.new("1", (400, 400)).save, format="PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with pytest.raises(FuseMixLiteError, match="bytes is too large a picture .*MAX_IMAGE_PIXELS") as caught:
        decode(content, "image")
    assert "\n" not in str(caught.value)


def test_half_a_character_is_no_caption():
    """Half a surrogate pair, from a broken escape, would stop a tokenizer and with it a whole pass."""
    assert decode("größer 猫 \U0001f600", "text") == "größer 猫 \U0001f600"
    with pytest.raises(FuseMixLiteError, match="is no caption: it holds a character that is not Unicode"):
        decode("a dog \ud83d", "text")


@pytest.mark.parametrize("size", [(1, 201), (402, 2)])
def test_a_picture_that_is_a_line_is_refused(size):
    """Its shorter side made 256 pixels, 1 x 65,000 would take 13 GB."""
    with pytest.raises(FuseMixLiteError, match=f"is {size[0]} x {size[1]} pixels, too narrow for an encoder: crop it"):
        decode(as_file(Image.new("RGB", size).save, format="PNG"), "image")
    assert decode(Image.new("RGB", (1, 200)), "image").size == (1, 200)


def test_a_picture_starts_no_program(monkeypatch):
    """PostScript is a program, which Pillow would have Ghostscript run, under whatever name the file comes."""
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **options: started.append(given) or PICTURE.im)
    with pytest.raises(FuseMixLiteError, match="is no readable image"):
        decode(as_file(PICTURE.save, format="EPS"), "image")
    assert not started


def test_a_sound_that_would_fill_the_memory_is_refused(monkeypatch, tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros((16_000, 2)), 16_000)
    slow = as_file(soundfile.write, data=np.zeros(1_000, np.float32), samplerate=1_000, format="WAV")  # at 48 kHz: 48,000
    assert len(decode(tmp_path / "long.flac", "audio")[0]) == 16_000
    monkeypatch.setattr(decoding, "MAX_SAMPLES", 31_999)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *given, **options: pytest.fail("it was decoded"))
    with pytest.raises(FuseMixLiteError, match="long.flac is too long a sound .16,000 samples in 2 channels.*cut it"):
        decode(tmp_path / "long.flac", "audio")
    for item in (slow, (np.zeros(1_000, np.float32), 1_000), np.zeros(16_000, np.float32)):
        with pytest.raises(FuseMixLiteError, match="too long a sound"):
            decode(item, "audio")


@pytest.mark.parametrize(
    "item", [None, b"no picture", np.zeros((4, 4, 3), np.uint8), lambda: "absent.png"], ids=["None", "bytes", "array", "absent"]
)
def test_what_is_no_picture_is_named(item):
    with pytest.raises(FuseMixLiteError, match="is no readable image"):
        decode(item, "image")


class Member:
    """Something in an archive that opens itself."""

    def __init__(self, fails: bool):
        self.fails = fails

    def __call__(self):
        if self.fails:
            raise KeyError("no such member\nin this archive")
        return PICTURE

    def __str__(self):
        return "train.tar/000017.jpg"


def test_what_opens_itself_is_opened_once_and_named_where_it_fails():
    opened = []
    assert np.array_equal(shown(lambda: opened.append(1) or PICTURE), PIXELS) and opened == [1]
    with pytest.raises(FuseMixLiteError, match="^train.tar/000017.jpg cannot be opened: 'no such member"):
        decode(Member(fails=True), "image")
    assert np.array_equal(shown(Member(fails=False)), PIXELS)

    def broken():
        raise FuseMixLiteError("shard 3 is damaged: fetch it again")

    with pytest.raises(FuseMixLiteError, match="^shard 3 is damaged"):
        decode(broken, "audio")


def test_sound_may_come_in_every_form(tmp_path):
    soundfile.write(tmp_path / "a.wav", TONE, 16_000, subtype="FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    for item in (TONE, (TONE, 16_000), tmp_path / "a.wav", str(tmp_path / "a.wav"), content, lambda: (TONE, 16_000.0)):
        samples, rate = decode(item, "audio")
        assert (rate, samples.dtype) == (16_000, np.float32) and np.array_equal(samples, TONE)
    again, rate = decode(decode(content, "audio"), "audio")
    assert rate == 16_000 and np.array_equal(again, TONE)


@pytest.mark.parametrize("channels", [1, 2, MAX_CHANNELS])
def test_channels_are_mixed_down_whichever_way_they_lie(channels):
    apart = np.stack([TONE * (1 + i) for i in range(channels)])
    for samples in (apart, apart.T):
        mono, rate = decode((samples, 16_000), "audio")
        assert mono.shape == TONE.shape
        np.testing.assert_allclose(mono, apart.mean(0), atol=1e-6)
    content = as_file(lambda buffer: soundfile.write(buffer, apart.T, 16_000, format="WAV", subtype="FLOAT"))
    np.testing.assert_allclose(decode(content, "audio")[0], apart.mean(0), atol=1e-6)


def test_integers_are_scaled_to_one():
    for kind in (np.int16, np.int32):
        mono, _ = decode(((TONE * np.iinfo(kind).max).astype(kind), 16_000), "audio")
        assert mono.dtype == np.float32
        np.testing.assert_allclose(mono, TONE, atol=1e-4)


@pytest.mark.parametrize(
    ("item", "message"),
    {
        "stereo without a rate": (np.stack([TONE, TONE]), r"array float32\(2, 16000\) is no mono sound"),
        "square": ((np.zeros((4, 4), np.float32), 16_000), r"\(4, 4\) at 16000 Hz is no sound: \(T,\), \(C, T\) or \(T, C\)"),
        "too many channels": ((np.zeros((9, 9_000), np.float32), 16_000), "up to 8 channels"),
        "a batch": ((np.zeros((2, 1, 9_000), np.float32), 16_000), "is no sound"),
        "unsigned": ((np.zeros(9_000, np.uint8), 16_000), "floats or signed integers"),
        "no rate": ((TONE, None), "comes with None for a rate"),
        "rate of zero": ((TONE, 0), "comes with 0 for a rate"),
        "a broken rate": ((TONE, 0.5), "for a rate"),
        "three things": ((TONE, 16_000, 1), "no mono sound"),
        "ragged": ([TONE, TONE[:9]], "list is no mono sound"),
        "ragged, with a rate": (([TONE, TONE[:9]], 16_000), "array object.* at 16000 Hz is no sound"),
        "bytes": (b"no sound", "a file of 8 bytes is no readable sound"),
        "not finite": ((np.array([np.nan] * 9_000), 16_000), "not finite"),
        "too short": ((TONE[:800], 48_000), "shorter than 25 ms"),
    }.values(),
)
def test_what_is_no_sound_is_named(item, message):
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        decode(item, "audio")
    assert "\n" not in str(caught.value)


def test_resampling_keeps_a_tone():
    low = (0.3 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 8_000)).astype(np.float32)
    high = resampled(low, 8_000, 16_000)
    assert high.shape == (16_000,) and high.dtype == np.float32
    assert np.abs(high - TONE)[500:-500].max() < 2e-3  # away from the filter's ends
    assert resampled(TONE, 16_000, 16_000) is TONE


CLEANED = {
    "A Dog's BARK!": "a dog's bark",
    "two  birds.\n(red) *and* #blue: one; ~two": "two birds red and blue one two",
    'he said "stop", twice': "he said stop , twice",
    "well-known, 3.5 m?": "well-known, 3 5 m?",
    "word " * 60: " ".join(["word"] * 50),
    " ... ": "",
}


@pytest.mark.parametrize("caption", CLEANED)
def test_captions_are_cleaned_as_the_official_code_does(caption):
    assert clean_caption(caption) == CLEANED[caption]
    assert clean_caption(clean_caption(caption)) == clean_caption(caption)
