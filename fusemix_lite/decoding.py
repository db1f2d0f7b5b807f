"""What an encoder is given, opened: upright RGB pictures, captions, mono sound.

An item may come as what it is (a PIL image, a caption, a float array), as a path, as the bytes of a file, or as a callable
without arguments that returns one of these: what lies in an archive opens itself when its turn comes, and not before.
`decode` opens it once; an encoder's `prepare` takes what `decode` gives, so that several encoders can share one opening.
"""

import io
import os
import re
from functools import cache
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from .errors import FuseMixLiteError

ARRAY_RATE = 16_000  # samples a second of audio that comes as an array without a rate
MAX_CHANNELS = 8  # of a (C, T) or (T, C) array: surround sound; more "channels" than that are samples
MAX_ASPECT = 200  # the longer side of a picture over the shorter one
MAX_SCANS = 100  # of a JPEG: a progressive one has ten or so, each goes over all pixels, and an empty one takes ten bytes
MAX_SAMPLES = 1 << 28  # of a sound, of all its channels, at its own rate and at 48 kHz: 93 minutes, or 1 GB as float32
# Samples a second: a filter that resamples from an odd rate has twenty taps a sample of a second, and a sample at 1 Hz becomes
# 16,000 of them.
MIN_RATE, MAX_RATE = 1_000, 384_000
MAX_CHARACTERS = 1 << 17  # of a caption: what a cell of a CSV holds at most
WORDS = 50  # that `clean_caption` keeps

# What photos and sounds come in. Pillow and libsndfile know sixty more formats, of games, telescopes and old synthesisers, for
# some of which they start a program (EPS), open other files (SD2) or unpack without a limit (FITS).
_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "ICO")
_SOUNDS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"}
# Where a JPEG has a segment that says its length, or its end. In what is compressed, a byte 0 or a restart follows every ff.
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_OBJECT = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")
_REMOVED = re.compile(r'[.!"()*#:;~]')


def decode(item: Any, modality: str) -> Any:
    """An item opened and checked: an upright RGB `PIL.Image`, a caption, or mono sound as (samples (T,), rate).

    What comes out may go in again and stays what it is. Sound has its own rate; an encoder resamples it to the one it wants.

    Raises FuseMixLiteError saying what is wrong with the item.
    """
    if callable(item):
        name = _name(item)
        try:
            item = item()
        except FuseMixLiteError:
            raise
        except Exception as error:  # archives, shards and their decoders raise many kinds
            raise FuseMixLiteError(f"{name} cannot be opened: {first_line(error)}") from error
    return {"image": as_image, "text": as_caption, "audio": as_sound}[modality](item)


def as_image(item: Any) -> Image.Image:
    """An upright RGB image of a picture in any mode: grey, with a palette, CMYK, or of 16 bits a channel.

    16 bits are scaled to 8, where Pillow's own conversion cuts them off at 255, which leaves white. Transparency is dropped,
    as it is by the encoders' own processors. A picture of more than twice `PIL.Image.MAX_IMAGE_PIXELS` is refused before it
    is decoded, since a small file may unpack to more than the memory holds. So is what is no format of photos, such as
    PostScript, which is a program.
    """
    try:
        image = Image.open(_source(item), formats=_formats()) if isinstance(item, str | Path | bytes) else item
        _check_shape(image, item)
        _check_scans(image, item)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # "I;16", or "I" from a 16-bit file
            image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
        if image.mode == "P":
            image = image.convert("RGBA")  # by way of RGBA, or Pillow warns of some palettes; the colours are the same
        return image.convert("RGB")
    except Image.DecompressionBombError as error:
        remedy = "shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS"
        raise FuseMixLiteError(f"{_name(item)} is too large a picture ({first_line(error)}): {remedy}") from error
    except FuseMixLiteError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise FuseMixLiteError(f"{_name(item)} is no readable image: {first_line(error)}") from error


def _check_shape(image: Image.Image, item: Any) -> None:
    """Raise for a picture that is hardly more than a line: a processor makes its shorter side 256 pixels, and so fills the
    memory with the longer one."""
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise FuseMixLiteError(f"{_name(item)} is {width} x {height} pixels, too narrow for an encoder: crop it")


def _check_scans(image: Image.Image, item: Any) -> None:
    """Raise for a JPEG that would be gone over for hours."""
    if image.format in ("JPEG", "MPO") and isinstance(item, str | Path | bytes):
        content = item if isinstance(item, bytes) else Path(item).read_bytes()
        scans, at = 0, 0
        while (found := _SEGMENT.search(content, at)) and found[0] != b"\xff\xd9":  # the end; some cameras add a film to it
            scans += found[0] == b"\xff\xda"
            at = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
        if scans > MAX_SCANS:
            raise FuseMixLiteError(f"{_name(item)} has {scans:,} scans, more than any photo: save it again")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values (H, W) of up to 16 bits as uint8, some rows at a time: as floats, a large picture would take gigabytes."""
    deep = mode.startswith("I;16") or values.max() > 255
    shown = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):
        rows = values[start : start + 256].astype(np.float32)
        shown[start : start + 256] = ((rows / 257).round() if deep else rows).clip(0, 255)  # 65535 to 255
    return shown


@cache
def _formats() -> list[str]:
    """Those of `_PICTURES` that this Pillow reads, HEIF with a plug-in only. (MPO is a JPEG to it.)"""
    Image.init()
    return [name for name in _PICTURES if name in Image.OPEN]


def as_caption(item: Any) -> str:
    """A text that is not empty, in Unicode: half a surrogate pair stops a tokenizer, and a book fills its memory."""
    if not isinstance(item, str) or not item.strip():
        raise FuseMixLiteError(f"{item!r:.40} is no caption: a text that is not empty is needed")
    if len(item) > MAX_CHARACTERS:
        much = f"{len(item):,} characters, {MAX_CHARACTERS:,} are the most"
        raise FuseMixLiteError(f"{item[:40]!r}… is no caption, but a book: {much}")
    try:
        item.encode()
    except UnicodeEncodeError:
        raise FuseMixLiteError(f"{item!a:.40} is no caption: it holds a character that is not Unicode") from None
    return item


def clean_caption(caption: str) -> str:
    """A caption as the official FuseMix code feeds it to every text encoder: lower case, the characters . ! " ( ) * # : ; ~
    and all runs of white space a single space, the first 50 words."""
    return " ".join(_REMOVED.sub(" ", caption.lower()).split()[:WORDS])


def as_sound(item: Any) -> tuple[np.ndarray, int]:
    """Mono samples (T,), floats, and their rate. Several channels are mixed down by their mean, here, where one can see it.

    `item` is a file, a float array (T,) at 16 kHz, or (samples, rate) with samples (T,), (C, T) or (T, C), floats or signed
    integers. An array of two dimensions without a rate is refused: a feature extractor takes (2, T) for two clips. So is
    a sound of more than `MAX_SAMPLES`, a file before it is decoded: silence of many hours packs into a small one. So is a
    rate that no sound has.
    """
    if isinstance(item, str | Path | bytes):
        samples, rate = _read_sound(item)
    elif isinstance(item, tuple) and len(item) == 2:
        samples, rate = _as_array(item[0]), item[1]
        real = isinstance(rate, int | float | np.integer | np.floating)
        if not real or isinstance(rate, bool) or not 1 <= rate < np.inf or rate != int(rate):
            raise FuseMixLiteError(f"{_name(samples)} comes with {rate!r:.40} for a rate: samples a second are needed")
        samples, rate = _mono(samples, _name(item)), int(rate)
    else:
        samples, rate = _as_array(item), ARRAY_RATE
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise FuseMixLiteError(
                f"{_name(item)} is no mono sound: float32 samples (T,) at {ARRAY_RATE} Hz, (samples, rate) or a path are needed"
            )
    if not np.isfinite(samples).all():
        raise FuseMixLiteError(f"{_name(item)} holds samples that are not finite")
    _check_length(len(samples), 1, rate, item)
    if len(samples) * 40 < rate:  # feature extractors look through windows of 25 ms
        raise FuseMixLiteError(f"{_name(item)} is empty or shorter than 25 ms: {len(samples)} samples")
    return samples, rate


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Float32 samples (T',) at `wanted` samples a second."""
    if rate != wanted:
        from scipy.signal import resample_poly

        divisor = gcd(rate, wanted)
        samples = resample_poly(samples, wanted // divisor, rate // divisor)
    return samples.astype(np.float32, copy=False)


def blank(modality: str) -> Any:
    """An item with nothing in it, for finding out what an encoder gives."""
    return {"image": Image.new("RGB", (64, 64)), "text": "a", "audio": np.zeros(ARRAY_RATE, np.float32)}[modality]


def first_line(error: Exception) -> str:
    """The first line of a message that may have many, without addresses in memory, which are others in every run."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _OBJECT.sub("", line)[:200]


def _as_array(item: Any) -> np.ndarray:
    try:
        return np.asarray(item)
    except Exception:  # lists of different lengths, tensors on a device
        return np.empty((), object)  # which is no sound


def _mono(samples: np.ndarray, name: str) -> np.ndarray:
    """(T,), (C, T) or (T, C) mixed down to (T,), integers scaled to [-1, 1)."""
    if samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    elif samples.dtype.kind != "f":
        raise FuseMixLiteError(f"{name} is no sound: floats or signed integers are needed")
    if samples.ndim == 1:
        return samples
    few = [axis for axis, size in enumerate(samples.shape) if 1 <= size <= MAX_CHANNELS]
    if samples.ndim != 2 or len(few) != 1:
        raise FuseMixLiteError(
            f"{name} is no sound: (T,), (C, T) or (T, C) with up to {MAX_CHANNELS} channels and more samples is needed"
        )
    return samples.mean(few[0])


def _read_sound(item: str | Path | bytes) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        source = _source(item)
        if not isinstance(item, bytes):
            Path(item).open("rb").close()  # which says why it cannot be opened, where soundfile says "System error"
        with soundfile.SoundFile(source) as file:
            if file.format not in _SOUNDS:
                raise FuseMixLiteError(f"{_name(item)} is a {file.format}, which is not read: save it as WAV or FLAC")
            expected, rate = file.frames, file.samplerate
            if expected >= 1 << 62:
                raise FuseMixLiteError(f"{_name(item)} does not say how long it is, as a stream does: save it as a file")
            _check_length(expected, file.channels, rate, item)
            samples = file.read(dtype="float32", always_2d=True)
    except FuseMixLiteError:
        raise
    except Exception as error:  # soundfile raises many kinds for broken files
        raise FuseMixLiteError(f"{_name(item)} is no readable sound: {first_line(error)}") from error
    with io.BytesIO(item) if isinstance(item, bytes) else Path(item).open("rb") as opened:
        if len(samples) < expected or is_cut_short(opened):
            raise FuseMixLiteError(f"{_name(item)} is truncated: its end is missing")
    return samples.mean(1), rate


def _check_length(frames: int, channels: int, rate: int, item: Any) -> None:
    """Raise unless a sound fits the memory, decoded and resampled."""
    if not MIN_RATE <= rate <= MAX_RATE:
        remedy = f"write it again at {MIN_RATE:,} to {MAX_RATE:,}"
        raise FuseMixLiteError(f"{_name(item)} says {rate:,} samples a second: {remedy}")
    if max(frames * channels, frames * 48_000 // rate) > MAX_SAMPLES:
        told = f"{frames:,} samples in {channels} channels at {rate:,} Hz"
        raise FuseMixLiteError(f"{_name(item)} is too long a sound ({told}): cut it into parts, or raise decoding.MAX_SAMPLES")


def is_cut_short(file: BinaryIO) -> bool:
    """Whether a WAV, AIFF or Ogg file lacks its end: libsndfile reads what is there and says nothing."""
    head, size = file.read(8), file.seek(0, 2)
    if head[:4] in (b"RIFF", b"FORM"):
        announced = int.from_bytes(head[4:], "little" if head[:4] == b"RIFF" else "big")
        return announced not in (0, 0xFFFFFFFF) and announced + 8 > size + 1  # 0, -1: a stream; 1: a pad byte
    if head[:4] == b"OggS":
        file.seek(-min(size, 65_307), 2)  # the longest page
        tail = file.read()
        page = tail[max(tail.rfind(b"OggS"), 0) :]
        whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return not whole or not page[5] & 4  # the last page carries the end-of-stream flag
    return False


def _source(item: str | Path | bytes) -> Any:
    """What Pillow and soundfile can open. Raises for a pipe or a device, which might keep them waiting for ever."""
    if isinstance(item, bytes):
        return io.BytesIO(item)
    if os.path.exists(item) and not os.path.isfile(item):
        raise FuseMixLiteError(f"{item} is no plain file, but a folder, a pipe or a device: put a file in its place")
    return item


def _name(item: Any) -> str:
    """How an error names an item."""
    if isinstance(item, np.ndarray):
        return f"array {item.dtype}{item.shape}"
    if isinstance(item, bytes):
        return f"a file of {len(item)} bytes"
    if isinstance(item, tuple) and len(item) == 2:
        return f"{_name(_as_array(item[0]))} at {item[1]!r:.20} Hz"
    says = isinstance(item, str | Path) or (callable(item) and type(item).__str__ is not object.__str__)
    return str(item) if says else type(item).__name__
