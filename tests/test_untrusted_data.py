"""Tables, pictures, sounds, captions, lists, archives and shards from anybody: read, left out or refused, and nothing worse.

Nothing worse: no other error than FuseMixLiteError, no hang, no memory out of proportion, no file read or written outside of
the folder, no program started, no caption at another item than its own.
"""

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import public_fixtures as small
import pytest
import soundfile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mutations import failures, guarded, mutated_bytes, mutated_json, mutated_json_bytes
from PIL import Image
from torture import tries

from fusemix_lite import FuseMixLiteError, cli, decoding, extract, fetching, files, load_encoder, read_pairs, shards, unpacking
from fusemix_lite.decoding import decode, resampled
from fusemix_lite.fetching import NOTE, read_note
from fusemix_lite.public_data import open_dataset
from fusemix_lite.unpacking import unpack

COMMON = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
RANDOM = np.random.default_rng(0)
PICTURE = Image.fromarray(RANDOM.integers(0, 255, (40, 56, 3), dtype=np.uint8))
NOISE = (0.1 * RANDOM.standard_normal((4000, 2))).astype(np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("FUSEMIX_LITE_DATA", raising=False)


def refused(message: str, call, *args, **options) -> str:
    """The message of an error that is ours, one line, and says this."""
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        call(*args, **options)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 9000
    return str(caught.value)


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    more = [other.copy() for other in options.pop("append_images", [])]
    image.copy().save(buffer, form, append_images=more, **options)  # a copy: Pillow leaves settings of one format for the next
    return buffer.getvalue()


def sounded(samples: np.ndarray = NOISE, rate: int = 16_000, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return buffer.getvalue()


# errors


def test_an_error_stays_one_line_whatever_it_quotes():
    """A path of a stranger may hold line ends, codes that a terminal obeys, and a million characters."""
    shown = str(FuseMixLiteError("a\nb\x1b[2Jc\u202ed\ud800\x85\u2028: do this"))
    assert shown == "a\\nb\\x1b[2Jc\\u202ed\\ud800\\x85\\u2028: do this" and len(shown.splitlines()) == 1
    shown = str(FuseMixLiteError("photos.csv, line 7: " + "x" * 1_000_000 + ": save it again"))
    assert len(shown) < 9000 and shown.startswith("photos.csv, line 7: xxx") and shown.endswith("xxx: save it again")
    assert str(FuseMixLiteError("größe\u00a0猫\u3000😀: fine")) == "größe\u00a0猫\u3000😀: fine"


def test_the_command_shows_no_codes_of_a_stranger(capsys):
    content = {"text": "a\x9b2Jdog\x7f\u202e\ud800 größe"}
    for as_json in (False, True):
        cli.Speaker(as_json, quiet=False).result(content, "1. a\x1b[2Jdog\n2. a cat")
        cli.Speaker(as_json, quiet=False).note("a\x1b[2Jdog")
    out, err = capsys.readouterr()
    text, as_json = out.rsplit("\n", 2)[:2]
    assert text == "1. a\\x1b[2Jdog\n2. a cat" and err.count("a\\x1b[2Jdog") == 2
    assert as_json.isprintable() and json.loads(as_json) == content and "größe" in as_json


# tables

NAMES = st.lists(
    st.text(st.characters(categories=["L", "N"], include_characters="-_ ,;'\"%"), min_size=1, max_size=12).map(str.strip),
    min_size=1,
    max_size=3,
).filter(lambda parts: all(parts) and not parts[0][1:2] == ":")
ROWS = st.lists(st.tuples(NAMES.map(lambda parts: "/".join(parts) + ".jpg"), TEXT), min_size=1, max_size=8)


def check_rows(folder: Path, kind: str, rows: list[tuple[str, str]]) -> None:
    """Each caption comes out at the item that it was written to."""
    table = folder / f"t.{kind}"
    if kind == "jsonl":
        table.write_text("".join(json.dumps({"image": name, "text": text}) + "\n" for name, text in rows), "utf-8")
    else:
        with table.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened, delimiter="\t" if kind == "tsv" else ",", quoting=csv.QUOTE_ALL)
            writer.writerows([("image", "text"), *rows])
    read = read_pairs(table)
    assert read.items == list(dict.fromkeys(name for name, _ in rows))
    assert [(read.items[index], text) for index, text in read.captions] == [(name, text.strip()) for name, text in rows]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@given(rows=ROWS)
@settings(max_examples=25, **COMMON)
def test_odd_cells_come_back_as_they_were(tmp_path_factory, kind, rows):
    check_rows(tmp_path_factory.mktemp("table"), kind, rows)


def table_trial(folder: Path):
    rows = [("a.jpg", "a dog, barking", "train"), ("b/größe.jpg", 'two "cats"\nand more', "test"), ("a.jpg", "x", "train")]
    text = io.StringIO()
    csv.writer(text).writerows([("image", "text", "split"), *rows])
    csv_bytes = text.getvalue().encode()
    lines = [dict(zip(("image", "text", "split"), row, strict=True)) for row in rows]

    def trial(rng):
        kind = rng.choice(("csv", "tsv", "jsonl"))
        if kind == "jsonl":
            content = b"\n".join(json.dumps(mutated_json(rng, line)).encode("utf-8", "surrogatepass") for line in lines)
            content = mutated_bytes(rng, content) if rng.random() < 0.5 else content
        else:
            content = mutated_bytes(rng, csv_bytes.replace(b",", b"\t") if kind == "tsv" else csv_bytes)
        (folder / f"t.{kind}").write_bytes(content)
        read = read_pairs(folder / f"t.{kind}", rng.choice((None, "image")))
        assert read.id and all(0 <= index < len(read) and isinstance(text, str) for index, text in read.captions)
        assert all(below(path, folder) for path in read.paths)

    return trial


def below(path: Path, folder: Path) -> bool:
    return os.path.abspath(path).startswith(os.path.abspath(folder) + os.sep)


@pytest.mark.torture
def test_mutated_tables(tmp_path, record_property):
    count = tries(30, 2000)
    assert not failures(table_trial(tmp_path), count, seed=1)
    record_property("inputs", count)


BAD_ROWS = {
    "nul.jsonl": ('{"image": "a\\u0000.jpg", "text": "x"}\n', "line 1: .* holds a NUL"),
    "split.jsonl": ('{"image": "a.jpg", "text": "x", "split": "\\ud800"}\n', "line 1: .* not Unicode"),
    "line end.jsonl": ('{"image": "../a\\nb.jpg", "text": "x"}\n', 'line 1: "../a.nb.jpg" leaves the folder'),
    "terminal.csv": ('image,text\n"http://\x1b[2J\n",x\n', "line 3: .*is an address"),
    "columns.csv": (",".join(f"c{i}" for i in range(1_000_000)) + "\n", "line 1: more than 4,194,304 characters"),
    "names.csv": (",".join(f"c{i}" for i in range(100_000)) + "\n" + "," * 99_999 + "x\n", "no column .image. or"),
    "open quote.csv": ('image,text\na.jpg,"x\n' + "b.jpg,y\n" * 100_000, "field larger than field limit .*check the quotes"),
    "open row.csv": ("image,text\n" + 'a,"\n",' * 700_000, "line [0-9]+: more than 4,194,304 characters in a row"),
    "deep.jsonl": ('{"image": "a.jpg", "text": ' + "[" * 100_000 + "\n", "line 1: no JSON"),
    "digits.jsonl": ('{"image": "a.jpg", "text": ' + "9" * 5_000 + "}\n", "line 1: no JSON"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_hostile_tables_are_refused_with_their_line(tmp_path, name):
    content, message = BAD_ROWS[name]
    (tmp_path / name).write_text(content, "utf-8")
    assert refused(message, lambda: read_pairs(tmp_path / name).id).startswith(str(tmp_path / name))


def check_a_long_line(folder: Path, kind: str) -> None:
    """150 MB without a line end take neither the memory nor the time of a table of that size."""
    table = folder / f"t.{kind}"
    with table.open("wb") as opened:
        opened.write(b"image,text\na.jpg," if kind == "csv" else b'{"image": "a.jpg", "text": "')
        opened.truncate(150_000_000)  # zeros, with no room on the disk
    assert guarded(lambda: read_pairs(table), seconds=10, megabytes=100) is None
    with pytest.raises(FuseMixLiteError, match="more than 4,194,304 characters in a row"):
        read_pairs(table)
    (folder / "a.jpg").write_bytes(b"")
    table.replace(folder / "a.txt")
    with pytest.raises(FuseMixLiteError, match="a.txt: more than 4,194,304 characters"):
        read_pairs(folder)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_without_an_end_fills_no_memory(tmp_path, kind):
    check_a_long_line(tmp_path, kind)


def test_a_table_is_read_row_by_row(tmp_path):
    """A table may be larger than the memory; of its rows one at a time is held."""
    with (tmp_path / "t.csv").open("w") as opened:
        opened.write("image,text\n")
        opened.writelines(f"a.jpg,{'a dog ' * 300}\n" for _ in range(30_000))  # 54 MB
    assert guarded(lambda: [None for _ in files.csv_rows(tmp_path / "t.csv")], megabytes=30) is None


def test_old_macs_and_carriage_returns_in_captions(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'image,text\ra.jpg,x\rb.jpg,"y\rz"\r\n')
    assert read_pairs(tmp_path / "t.csv").captions == [(0, "x"), (1, "y\rz")]


def test_links_are_followed_as_the_caches_of_the_hub_are_made_of_them(tmp_path):
    """Who makes a folder decides where its links lead. Unpacking makes none (test_fetching)."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_bytes(saved(PICTURE, "PNG"))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.png").symlink_to("../blobs/0123")
    (tmp_path / "snapshot" / "captions.csv").write_text("image,text\na.png,x\n")
    assert decode(read_pairs(tmp_path / "snapshot").paths[0], "image").size == PICTURE.size


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"")
    scan = os.scandir

    def locked(place):
        if Path(place).name in ("inner", "lost+found"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", locked)
    refused("inner cannot be read .Permission denied.: what is in it would be missing: see to it", read_pairs, tmp_path)
    (tmp_path / "inner").rename(tmp_path / "lost+found")  # as at the root of a disk, where only its system can look into it
    assert read_pairs(tmp_path).items == ["a.jpg"]


# pictures


@functools.cache
def picture_seeds() -> dict[str, bytes]:
    """A small file in each way in which pictures come; some of formats that are not read."""
    exif = Image.Exif()
    exif[0x0112], exif[0x9286] = 6, "a comment"
    more = [PICTURE.rotate(90 * k, expand=True).resize(PICTURE.size) for k in (1, 2)]
    deep = Image.fromarray(RANDOM.integers(0, 65_535, (40, 56), dtype=np.uint16))
    seeds = {
        "jpeg": saved(PICTURE, "JPEG", exif=exif),
        "jpeg progressive": saved(PICTURE, "JPEG", progressive=True),
        "jpeg cmyk": saved(PICTURE.convert("CMYK"), "JPEG"),
        "mpo": saved(PICTURE, "MPO", save_all=True, append_images=more),
        "png": saved(PICTURE, "PNG", icc_profile=b"x" * 300, exif=exif),
        "png palette": saved(PICTURE.convert("P"), "PNG", transparency=3),
        "png 16 bits": saved(deep, "PNG"),
        "gif": saved(PICTURE, "GIF", save_all=True, append_images=more),
        "webp": saved(PICTURE, "WEBP"),
        "webp moving": saved(PICTURE, "WEBP", save_all=True, append_images=more),
        "bmp": saved(PICTURE, "BMP"),
        "ppm": saved(PICTURE, "PPM"),
        "ico": saved(PICTURE, "ICO"),
        "jpeg 2000": saved(PICTURE, "JPEG2000"),
        "tiff": saved(PICTURE, "TIFF", save_all=True, append_images=more),
        "tiff lzw": saved(PICTURE, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": saved(PICTURE, "TIFF", compression="jpeg"),
        "tiff fax": saved(PICTURE.convert("1"), "TIFF", compression="group4"),
        "tiff floats": saved(PICTURE.convert("F"), "TIFF"),
        "tga": saved(PICTURE, "TGA"),
        "qoi": saved(PICTURE, "QOI") if "QOI" in Image.SAVE else b"qoif",
    }
    if "AVIF" in Image.SAVE:
        seeds["avif"] = saved(PICTURE, "AVIF")
    return seeds


def picture_trial(rng):
    seeds = picture_seeds()
    image = decode(mutated_bytes(rng, seeds[rng.choice(list(seeds))], seeds[rng.choice(list(seeds))]), "image")
    assert image.mode == "RGB" and image.size[0] * image.size[1] <= 2 * Image.MAX_IMAGE_PIXELS
    assert np.asarray(image).shape == (*image.size[::-1], 3)  # it is all there


@pytest.mark.torture
def test_mutated_pictures(record_property):
    count = tries(45, 3500)
    picture_seeds()  # before the processes part
    assert not failures(picture_trial, count, seed=2)
    record_property("inputs", count)


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mode=st.sampled_from("1 L LA P PA RGB RGBA RGBX CMYK YCbCr HSV LAB I F I;16 La RGBa".split()),
    form=st.sampled_from([None, "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO"]),
)
@settings(max_examples=80, **COMMON)
def test_a_picture_of_any_size_and_mode(size, mode, form):
    """Upright RGB of its size, whatever it was; or left out by name."""
    image = Image.new(mode, size)
    if form:
        with contextlib.suppress(OSError, ValueError, KeyError):
            image = saved(image, form)
    try:
        shown = decode(image, "image")
    except FuseMixLiteError as error:
        assert "too narrow" in str(error) or mode in ("LAB", "HSV", "PA", "La", "RGBa"), error
    else:
        assert shown.mode == "RGB" and (shown.size == size or form == "ICO")


def bomb(width: int, height: int, bits: int = 8) -> bytes:
    """A grey PNG of zeros: a thousandth of its pixels in bytes."""
    packer = zlib.compressobj(1)
    row = bytes(1 + width * bits // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_text(kind: bytes, content: bytes) -> bytes:
    png = saved(PICTURE, "PNG")
    return png[:33] + chunk(kind, b"a\0\0" + zlib.compress(content, 1)) + png[33:]


def big_webp() -> bytes:
    """A moving WebP that says that it is 16,383 pixels a side."""
    content = bytearray(picture_seeds()["webp moving"])
    at = content.find(b"VP8X") + 12
    content[at : at + 6] = (16_382).to_bytes(3, "little") * 2
    return bytes(content)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: bomb(20_000, 20_000, 1), "too large a picture"),
        (big_webp, "too large a picture"),
        (lambda: with_text(b"zTXt", bytes(100_000_000)), "no readable image: (?i:Decompressed data too large)"),
        (lambda: with_text(b"iCCP", bytes(100_000_000)), "no readable image: (?i:Decompressed data too large)"),
    ],
    ids=["pixels", "webp", "text", "profile"],
)
def test_a_picture_that_unpacks_to_more_than_the_memory_is_left_out(make, message):
    content = make()
    assert guarded(lambda: decode(content, "image"), seconds=10, megabytes=80) is None
    refused(message, decode, content, "image")


def check_sixteen_bits() -> None:
    """24 million pixels: 48 MB as they come, 96 MB as Pillow keeps RGB, and as floats 96 MB at each of four steps."""
    content = bomb(4_000, 6_000, 16)
    assert guarded(lambda: decode(content, "image"), seconds=60, megabytes=200) is None


def test_sixteen_bits_take_little_more_than_their_pixels():
    check_sixteen_bits()


def check_scans() -> None:
    content = picture_seeds()["jpeg progressive"]
    scan = content[content.rfind(b"\xff\xda") : -2]
    refused("has 3,0.. scans, more than any photo", decode, content[:-2] + 3000 * scan + content[-2:], "image")
    assert decode(content, "image").size == decode(content[:-2] + 5 * scan + content[-2:], "image").size == PICTURE.size


def test_a_jpeg_of_a_thousand_scans_is_left_out():
    """Ten bytes more a scan, and the whole picture is gone over once more."""
    check_scans()


def test_a_photo_with_a_film_behind_it_or_a_thumbnail_in_it_is_read():
    """Phones put a film of some megabytes behind a photo: among so many bytes, those that begin a scan occur by chance."""
    content = picture_seeds()["jpeg progressive"]
    begins = 3000 * b"\xff\xda\0\x08"
    extra = b"\xff\xe2" + (len(begins) + 2).to_bytes(2) + begins
    assert decode(content + begins, "image").size == decode(content[:2] + extra + content[2:], "image").size == PICTURE.size


def check_formats() -> None:
    for form in ("TGA", "SGI", "PCX", "IM"):
        refused("no readable image: cannot identify", decode, saved(PICTURE, form), "image")


def test_formats_that_no_photo_comes_in_are_not_even_tried():
    """Their readers are old and little used; that of FITS unpacks gzip without a limit, that of EPS starts a program."""
    check_formats()
    assert decoding._formats() == [name for name in decoding._PICTURES if name in Image.OPEN] and len(decoding._formats()) > 9


def test_photos_of_phones_are_read(monkeypatch):
    """Those of two pictures in one JPEG, and those that a plug-in of Pillow knows how to read."""
    assert decode(saved(PICTURE, "MPO", append_images=[PICTURE], save_all=True), "image").size == PICTURE.size
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    decoding._formats.cache_clear()
    try:
        assert "HEIF" in decoding._formats()
    finally:
        decoding._formats.cache_clear()


def check_plain_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.wav")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "device.wav").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "pipe.wav", "device.jpg", "device.wav"):
        call = functools.partial(decode, folder / name, "image" if name.endswith("jpg") else "audio")
        assert guarded(call, seconds=3) is None
        refused("is no plain file, but a folder, a pipe or a device", call)


def test_a_pipe_or_a_device_in_a_folder_is_left_out(tmp_path):
    """Opening a pipe waits for somebody to write into it, for ever."""
    check_plain_files(tmp_path)


def test_the_reason_is_the_same_in_every_run():
    """Pillow and soundfile name the object in memory, and with it the place where it lies."""
    for modality in ("image", "audio"):
        reasons = {refused("a file of 9 bytes is no readable", decode, bytes(9), modality) for _ in range(2)}
        assert len(reasons) == 1 and "0x" not in reasons.pop()


# sounds


@functools.cache
def sound_seeds() -> dict[str, bytes]:
    made = {}
    for form, kind in [
        *(("WAV", kind) for kind in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM")),
        *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16")),
        *(("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("NIST", "PCM_16"), ("VOC", "PCM_16")),
    ]:
        if kind in soundfile.available_subtypes(form):
            made[f"{form} {kind}"] = sounded(format=form, subtype=kind)
    return made


def sound_trial(rng):
    seeds = sound_seeds()
    content = mutated_bytes(rng, seeds[rng.choice(list(seeds))], seeds[rng.choice(list(seeds))])
    samples, rate = decode(content, "audio")
    assert samples.ndim == 1 and np.isfinite(samples).all() and len(samples) * 40 >= rate > 0
    assert resampled(samples, rate, 16_000).dtype == np.float32


@pytest.mark.torture
def test_mutated_sounds(record_property):
    count = tries(35, 2500)
    sound_seeds()
    assert not failures(sound_trial, count, seed=3, megabytes=1500)
    record_property("inputs", count)


RATES = st.one_of(
    st.integers(-2, 400_000), st.floats(), st.sampled_from([2**32 - 5, 10**400, True, None, "16000", 1j, np.int64(8000)])
)
ARRAYS = st.sampled_from([(1000,), (2, 900), (900, 2), (3, 4, 5), (), (0,), (9, 9), (1, 1), (10_000, 500)])
KINDS = st.sampled_from(["f4", "f8", "f2", "i2", "i4", "u1", "c8", "O", "?", "U3"])


@given(shape=ARRAYS, kind=KINDS, rate=RATES, odd=st.sampled_from([None, np.nan, np.inf, -np.inf, 1e300]))
@settings(max_examples=120, **COMMON)
def test_an_array_of_any_shape_kind_and_rate(shape, kind, rate, odd):
    samples = np.zeros(shape, kind)
    if odd is not None and samples.dtype.kind == "f" and samples.size:
        with np.errstate(over="ignore"):
            samples.flat[0] = odd
    try:
        heard, found = decode((samples, rate), "audio")
    except FuseMixLiteError as error:
        assert str(error).isprintable()
    else:
        assert heard.ndim == 1 and np.isfinite(heard).all() and decoding.MIN_RATE <= found == rate <= decoding.MAX_RATE


def check_rates() -> None:
    x = np.zeros(20_000, np.float32)
    for rate in (float("nan"), float("inf"), True, np.complex64(1), 0, -1, 0.5, "16000"):
        refused("comes with .* for a rate", decode, (x, rate), "audio")
    refused("says 500,000 samples a second: write it again", decode, (np.zeros(50_000, np.float32), 500_000), "audio")
    refused("says 999 samples a second: write it again", decode, (x, 999), "audio")
    content = bytearray(sounded(np.zeros(300_000, np.float32), format="WAV", subtype="PCM_U8"))
    content[24:28] = (9_999_991).to_bytes(4, "little")  # a prime: its filter would have two hundred million taps

    def call():
        return resampled(*decode(bytes(content), "audio"), 16_000)

    assert guarded(call, seconds=10, megabytes=300) is None
    refused("says 9,999,991 samples a second", call)


def test_rates_that_no_sound_has_are_refused():
    check_rates()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sounded(format="VOC", subtype="PCM_16"), "is a VOC, which is not read: save it as WAV or FLAC"),
        (lambda: sounded(np.full(4000, np.nan, np.float32), format="WAV", subtype="FLOAT"), "samples that are not finite"),
        (lambda: without_length(sounded(format="FLAC", subtype="PCM_16")), "does not say how long it is"),
        (lambda: sounded(np.zeros((100, 1000), np.float32), rate=1, format="WAV", subtype="PCM_U8"), "says 1 samples"),
        (lambda: sounded(format="AU")[:8] + b"\xff\xff\xff\x7f" + sounded(format="AU")[12:], None),
    ],
    ids=["format", "nan", "no length", "channels", "frames"],
)
def test_lying_and_odd_sounds(make, message):
    content = make()
    assert guarded(lambda: decode(content, "audio"), megabytes=200) is None
    if message:
        refused(message, decode, content, "audio")


def without_length(flac: bytes) -> bytes:
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


# captions


@given(st.one_of(st.text(max_size=40), st.none(), st.integers(), st.binary(max_size=4)))
@settings(max_examples=60, **COMMON)
def test_any_caption_is_one_or_is_refused(text):
    try:
        assert decode(text, "text") == text and text.strip() and text.encode()
    except FuseMixLiteError as error:
        assert "is no caption" in str(error) and str(error).isprintable()


def test_odd_captions_are_encoded_or_left_out(tmp_path):
    """One batch with everything in it: every caption keeps its place."""
    odd = ["...", "\x07\x1b[2J", "\u200b", "猫" * 500, "a" * 131_072, "\u202eabc", "\U0010ffff", "é" * 900, "\x85x", "'" * 99]
    bad = ["", " \n", "b" * 131_073, "half \ud800"]
    captions = ["a dog", *odd, *bad, "a cat"]

    class Captions:
        id = "odd"

        def fields(self, modality):
            return [str(index) for index in range(len(captions))], captions

    encoder = load_encoder("lite-text-a", device="cpu")
    with pytest.warns(UserWarning, match="4 of 16 items left out"):
        store = extract(Captions(), encoder, tmp_path / "y", progress=False)
    assert [entry["item_id"] for entry in store.quarantine] == ["11", "12", "13", "14"]
    assert list(store.item_ids) == [str(index) for index in (*range(11), 15)]
    alone = encoder.encode(["a cat"])[0]
    assert np.allclose(np.asarray(store.array[-1], np.float32), alone, atol=2e-3)
    assert all(len(entry["reason"]) < 300 for entry in store.quarantine)


# lists of public data sets

LISTS = {
    "coco_karpathy": ["dataset_coco.json"],
    "coco_lavis_test": ["coco_karpathy_test.json"],
    "flickr30k_kaggle": ["flickr30k_images/results.csv"],
    "visual_genome_captions": ["vg_caption.json"],
    "visual_genome_regions": ["region_descriptions.json"],
    "sbu_all_json": ["sbu-captions-all.json"],
    "sbu_urls": ["dataset/SBU_captioned_photo_dataset_urls.txt", "dataset/SBU_captioned_photo_dataset_captions.txt"],
    "cc3m_tsv": ["Train_GCC-training.tsv"],
    "clotho": ["clotho_captions_development.csv"],
    "audiocaps": ["train.csv"],
}


@pytest.mark.torture
def test_mutated_lists(tmp_path, record_property):
    built = {name: small.LAYOUTS[name](tmp_path / name) for name in LISTS}
    whole = {name: {file: (tmp_path / name / file).read_bytes() for file in files} for name, files in LISTS.items()}

    def trial(rng):
        name = rng.choice(list(LISTS))
        file = rng.choice(LISTS[name])
        content = whole[name][file]
        if file.endswith("json") and rng.random() < 0.8:
            broken = mutated_json_bytes(rng, json.loads(content))
        else:
            broken = mutated_bytes(rng, content)
        try:
            (tmp_path / name / file).write_bytes(broken)
            read = open_dataset(built[name].name, built[name].split, tmp_path / name)
            assert read.id and len(read.items) == len(read.values) == len(set(read.items))
            assert len(read.texts) == len(read.owners) and all(isinstance(text, str) for text in read.texts)
            assert all(0 <= owner < len(read) for owner in read.owners.tolist())
            assert all(below(path, tmp_path / name) for path in read.paths)
        finally:
            (tmp_path / name / file).write_bytes(content)

    count = tries(40, 2500)
    assert not failures(trial, count, seed=4)
    record_property("inputs", count)


def karpathy(**changes) -> str:
    entry = {"filename": "1.jpg", "filepath": "val2014", "split": "test", "sentences": [{"raw": "a"}]} | changes
    return json.dumps({"images": [entry]})


@pytest.mark.parametrize(
    "name, split, file, content, message",
    [
        ("coco", "test", "dataset_coco.json", karpathy(split=["test"]), 'image 0: "split" is .*, no text'),
        ("coco", "test", "dataset_coco.json", karpathy(filename=None), 'image 0: "filename" is None, no text'),
        ("coco", "test", "dataset_coco.json", karpathy(filepath=7), 'image 0: "filepath" is 7, no text'),
        ("coco", "test", "dataset_coco.json", karpathy(filename="a\0.jpg"), "holds a NUL"),
        ("coco", "test", "dataset_coco.json", karpathy(filename="a" * 5000), "no pictures"),
        ("sbu", "train", "sbu-captions-all.json", '{"image_urls": [{}], "captions": ["a"]}', "line 1: {} is no address"),
        ("visual-genome", "train", "region_descriptions.json", '[{"id": true, "regions": []}]', "id True is no number"),
        ("cc3m", "train", "Train_GCC-training.tsv", "a\tb" + "c" * 5_000_000 + "\n", "line 1: more than 4,194,304"),
    ],
)
def test_hostile_lists_are_refused_with_their_place(tmp_path, name, split, file, content, message):
    (tmp_path / file).write_text(content)
    (tmp_path / "images").mkdir()
    refused(message, open_dataset, name, split, tmp_path)


def test_a_form_feed_in_a_caption_shifts_no_other(tmp_path):
    """Python's splitlines ends lines at some characters more than files do."""
    built = small.sbu_urls(tmp_path)
    texts = tmp_path / "dataset/SBU_captioned_photo_dataset_captions.txt"
    lines = texts.read_text("utf-8").split("\n")
    lines[0] += "\x0c\x85\u2028 and more"
    texts.write_text("\n".join(lines), "utf-8")
    read = small.quiet(open_dataset, "sbu", "train", tmp_path)
    assert read.texts[0].endswith("and more") and list(read.texts[1:]) == [own[0] for own in built.captions[1:]]
    small.flickr30k_kaggle(tmp_path / "kaggle")
    table = tmp_path / "kaggle/flickr30k_images/results.csv"
    table.write_text(table.read_text("utf-8").replace("| 0| ", "| 0| \x0c", 1), "utf-8")
    assert len(open_dataset("flickr30k", "all", tmp_path / "kaggle").texts) == 5 * small.N


# shards


@pytest.mark.torture
def test_mutated_shards(tmp_path, record_property):
    small.shard(tmp_path / "whole" / "00000.tar", range(5, 9), small.captions(small.PICTURES, 1))
    content = (tmp_path / "whole" / "00000.tar").read_bytes()
    index = [["a/b", 1536, 100, "x"], ["c", 4096, 50, None]]

    def trial(rng):
        folder = tmp_path / f"{rng.random()}"
        folder.mkdir()
        shard = folder / "00000.tar"
        if rng.random() < 0.2:  # a list in the cache that somebody has touched
            shard.write_bytes(content)
            shards.index_shard(shard)
            kept = max((shards.cache_dir() / "shards").iterdir(), key=lambda file: file.stat().st_mtime_ns)
            told = json.loads(kept.read_text())
            kept.write_bytes(mutated_json_bytes(rng, told if rng.random() < 0.7 else told | {"samples": index}))
        else:
            shard.write_bytes(mutated_bytes(rng, content))
        try:
            read = open_dataset("cc3m", "train", folder)
            assert len(read.values) == len(read.owners)
            open_pictures(read)
        finally:
            shutil.rmtree(folder)

    count = tries(15, 900)
    assert not failures(trial, count, seed=5)
    record_property("inputs", count)


def open_pictures(read) -> None:
    """Look at all that was read: as many values as items, a caption an owner, every picture opened or refused."""
    assert read.id and len(read.items) == len(read.values) and len(read.owners) == len(read.texts)
    for value in read.values:
        with contextlib.suppress(FuseMixLiteError):
            decode(value, "image")


def sparse(archive: tarfile.TarFile, name: str, size: int) -> None:
    """A file of which nothing is stored, as GNU tar writes holes."""
    info = tarfile.TarInfo(name)
    info.size = 0
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:410] = b"%011o\0" % size + b"%011o\0" % 0
    block[483:495] = b"%011o\0" % size
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
    archive.fileobj.write(block)
    archive.offset += 512


def raw_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that says this size, also a negative one."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else (size % 256**12).to_bytes(12, "big")
    block[124] |= 0x80 if not 0 <= size < 8**11 else 0
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
    return bytes(block)


def check_tar_headers(folder: Path) -> None:
    """As a shard, and as an archive."""
    end = bytes(1024)
    good = raw_header("a.jpg", 3) + b"abc".ljust(512, b"\0")
    cases = {
        "a negative size|no header": good + raw_header("b.jpg", -1024) + end,
        "a header that does not end": good + raw_header("x", 1 << 40, tarfile.XHDTYPE) + end,
        "does not end": raw_header("x", 1 << 33, tarfile.GNUTYPE_LONGNAME) + end,
        "something that is no header": good + b"\x07" * 512 + good + end,
    }
    for message, content in cases.items():
        (folder / "00000.tar").write_bytes(content)
        for call in (
            functools.partial(shards.index_shard, folder / "00000.tar"),
            functools.partial(unpack, folder / "00000.tar", folder / "out", False),
        ):
            assert guarded(call, seconds=5, megabytes=100) is None, message
            refused(message, call)


def test_headers_of_tar_are_not_believed(tmp_path):
    (tmp_path / "out").mkdir()
    check_tar_headers(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_odd_members_of_a_shard_are_passed_over_and_no_caption_moves(tmp_path):
    def odd(archive):
        sparse(archive, "000000100.jpg", 10**9)
        small.add(archive, "caf\udce9.jpg", b"x")
        small.add(archive, "000000101.pickle", b"never loaded")

    small.shard(tmp_path / "00000.tar", range(5, 7), small.captions(small.PICTURES, 1), odd)
    with pytest.warns(UserWarning, match="2 links or paths"):
        read = open_dataset("cc3m", "train", tmp_path)
    assert read.items == ["00000/000000005", "00000/000000006"]
    assert list(read.texts) == [own[0] for own in small.captions(small.PICTURES, 1)[5:7]]


def test_a_shard_without_an_end_says_so_and_a_pipe_is_none(tmp_path):
    small.shard(tmp_path / "00000.tar", range(5, 7), small.captions(small.PICTURES, 1))
    content = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content.rstrip(b"\0").ljust(-(-len(content.rstrip(b"\0")) // 512) * 512, b"\0"))
    with pytest.warns(UserWarning, match="00000.tar has no end, as if it were cut short"):
        assert len(open_dataset("cc3m", "train", tmp_path)) == 2
    os.mkfifo(tmp_path / "00001.tar")
    refused("00001.tar is no plain file", small.quiet, open_dataset, "cc3m", "train", tmp_path)


def check_kept_index(folder: Path) -> None:
    """What lies in the cache is compared with the shard before it is used."""
    small.shard(folder / "00000.tar", range(5, 7), small.captions(small.PICTURES, 1))
    first = shards.index_shard(folder / "00000.tar")
    kept = max((shards.cache_dir() / "shards").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    told = json.loads(kept.read_text())
    odd_ones = (
        ["a", 0, 10**12, "x"],
        ["a", -5, 3, "x"],
        ["a", "0", 3, "x"],
        [3, 0, 3, "x"],
        ["a", 0, 3, ["x"]],
        ["a", True, 3, ""],
    )
    for odd in odd_ones:
        kept.write_text(json.dumps(told | {"samples": [odd]}))
        assert shards.index_shard(folder / "00000.tar") == first, odd


def test_a_list_of_a_shard_that_was_touched_is_made_again(tmp_path):
    check_kept_index(tmp_path)


# tables of the hub


@pytest.mark.torture
def test_mutated_tables_of_the_hub(tmp_path, record_property):
    datasets = pytest.importorskip("datasets")
    from fusemix_lite.hub_data import read_hub

    rows = {
        "image": [{"bytes": small.jpeg(i), "path": f"{i}.jpg"} for i in range(5, 9)],
        "caption": [list("ab")] * 4,
        "id": list("abcd"),
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(tmp_path / "a.parquet")
    parquet = (tmp_path / "a.parquet").read_bytes()
    whole = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}

    def trial(rng):
        folder = tmp_path / f"{rng.random()}"
        folder.mkdir()
        chosen = rng.choice([None, *whole])
        if chosen is None:
            (folder / "a.parquet").write_bytes(mutated_bytes(rng, parquet))
        else:
            for name, content in whole.items():
                if name == chosen:
                    js = name.endswith(".json")
                    content = mutated_json_bytes(rng, json.loads(content)) if js else mutated_bytes(rng, content)
                (folder / name).write_bytes(content)
        try:
            read = read_hub(folder, item=rng.choice((None, "id")))
            open_pictures(read)
        finally:
            shutil.rmtree(folder)

    count = tries(10, 800)
    assert not failures(trial, count, seed=8, megabytes=1500)
    record_property("inputs", count)


# archives


def zipped(file: Path, members, **options) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file


def tarred(file: Path, members, mode: str = "w:gz") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


PARTS = st.sampled_from(
    ["..", ".", "", "a", "A", "b.jpg", "C:", "a\\b", "\\", "~", "größe", "x" * 300, "a\nb", "...", " ", "-rf"]
)
MEMBERS = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@given(names=MEMBERS)
@settings(max_examples=40, **COMMON)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_archive_writes_outside_of_its_folder(tmp_path_factory, kind, names):
    assume(kind != "zip" or all(names))  # zipfile itself writes no member without a name
    root = tmp_path_factory.mktemp("root")
    folder = root / "in" / "here"
    folder.mkdir(parents=True)
    make = zipped if kind == "zip" else tarred
    archive = make(root / f"a.{kind}", [(name, b"%d" % index) for index, name in enumerate(names)])
    try:
        found = unpack(archive, folder, progress=False)
    except FuseMixLiteError as error:
        assert str(error).isprintable() and not list(folder.iterdir())
    else:
        assert all(below(folder / name, folder) and (folder / name).is_file() for name in found)
        assert sum(path.is_file() for path in folder.rglob("*")) == len(found)
    assert sorted(path.name for path in root.iterdir()) == [f"a.{kind}", "in"] and os.listdir(root / "in") == ["here"]


@pytest.mark.torture
def test_mutated_archives(tmp_path, record_property):
    members = [("train/größe.jpg", bytes(5000)), ("train/b/c.jpg", b"abc" * 100), ("d.json", b"{}")]
    seeds = {"zip": zipped(tmp_path / "a.zip", members), "tar": tarred(tmp_path / "a.tar", members, "w")}
    seeds |= {"tar.gz": tarred(tmp_path / "a.tar.gz", members), "tar.xz": tarred(tmp_path / "a.tar.xz", members, "w:xz")}
    with contextlib.suppress(ImportError):
        import py7zr

        with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
            for name, content in members:
                archive.writestr(content, name)
        seeds["7z"] = tmp_path / "a.7z"
    whole = {kind: file.read_bytes() for kind, file in seeds.items()}

    def trial(rng):
        root = tmp_path / f"{rng.random()}"
        (root / "in" / "here").mkdir(parents=True)
        kind = rng.choice(list(whole))
        (root / f"a.{kind}").write_bytes(mutated_bytes(rng, whole[kind]))
        try:
            for name in unpack(root / f"a.{kind}", root / "in" / "here", progress=False):
                assert (root / "in" / "here" / name).is_file() and below(root / "in" / "here" / name, root / "in" / "here")
        finally:
            found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
            links = [path for path in root.rglob("*") if path.is_symlink()]
            shutil.rmtree(root)
            assert not links and all(name in (f"a.{kind}", "in", "in/here") or name.startswith("in/here/") for name in found)

    count = tries(30, 1800)
    assert not failures(trial, count, seed=6, megabytes=800)
    record_property("inputs", count)


def overlapping(file: Path) -> Path:
    """Two names for the bytes of one file: a hundred thousand of them would be a bomb."""
    zipped(file, [("a", bytes(100)), ("b", bytes(100))])
    content = file.read_bytes()
    second = content.find(b"PK\1\2", content.find(b"PK\1\2") + 1)
    file.write_bytes(content[: second + 42] + bytes(4) + content[second + 46 :])
    return file


def many(file: Path) -> Path:
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        for index in range(3_000):
            archive.addfile(tarfile.TarInfo(f"{index}"))
    return file


ARCHIVES = {
    "overlapping": (lambda folder: overlapping(folder / "a.zip"), "damaged .*lies upon another file"),
    "twice": (lambda folder: tarred(folder / "a.tar", [("A.jpg", b"1"), ("A.jpg", b"2")], "w"), "holds A.jpg twice: fetch"),
    "long name": (lambda folder: tarred(folder / "a.tar", [("x" * 300, b"1")], "w"), "a name of 300 bytes .*too long"),
    "deep name": (lambda folder: zipped(folder / "a.zip", [("a/" * 30_000 + "b", b"1")]), "a name of 60,001 bytes"),
    "no text": (lambda folder: tarred(folder / "a.tar", [("caf\udce9", b"1")], "w"), "leaves the folder"),
    "reserved": (lambda folder: zipped(folder / "a.zip", [("x", b"1"), ("Fetched.json", b"{}")]), "a name that is needed"),
    "below reserved": (lambda folder: zipped(folder / "a.zip", [("fetched.json/x", b"1")]), "a name that is needed here"),
    "own name": (lambda folder: zipped(folder / "a.zip", [("a.zip", b"1")]), "holds a.zip, a name that is needed here"),
    "too many": (lambda folder: many(folder / "a.tar.gz"), "holds more than 2,000 files"),
    "in the way": (lambda folder: zipped(folder / "a.zip", [("taken/x", b"1")]), "taken is in the way .*move it away"),
    "a folder in the way": (lambda folder: zipped(folder / "a.zip", [("inner", b"1")]), "is in the way .*move it away"),
}


def check_archive(folder: Path, name: str) -> None:
    make, message = ARCHIVES[name]
    (folder / "taken").write_bytes(b"mine")
    (folder / "inner").mkdir()
    archive = make(folder)
    before = sorted(path.name for path in folder.rglob("*"))
    call = functools.partial(unpack, archive, folder, False, (NOTE,))
    assert guarded(call, seconds=10, megabytes=300) is None
    refused(message, call)
    assert before == sorted(path.name for path in folder.rglob("*")) and (folder / "taken").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path, name, monkeypatch):
    monkeypatch.setattr(unpacking, "MEMBERS", 2000)
    check_archive(tmp_path, name)


SEEN_AS_ONE = {"case": ("Rain/a.wav", "rain/A.wav"), "accent": ("\u00e9.wav", "e\u0301.wav")}


def check_disk_that_does_not_tell_names_apart(folder: Path, name: str = "case") -> None:
    archive, opened = zipped(folder / "a.zip", [(member, b"1") for member in SEEN_AS_ONE[name]]), Path.open
    before = sorted(folder.rglob("*"))

    def seen(path: Path) -> str:
        return unicodedata.normalize("NFC", str(path)).casefold()

    def careless(path: Path, *args, **options):
        if args == ("xb",) and seen(path) in map(seen, folder.rglob("*")):
            raise FileExistsError(17, "File exists", str(path))
        return opened(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", careless)
        refused("twice, as the disk of .* sees it: unpack it on another disk", unpack, archive, folder, False)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", SEEN_AS_ONE)
def test_an_archive_is_refused_where_the_disk_takes_two_names_for_one_and_only_there(tmp_path, name):
    check_disk_that_does_not_tell_names_apart(tmp_path, name)
    if sys.platform == "linux":
        assert unpack(tmp_path / "a.zip", tmp_path, False) == list(SEEN_AS_ONE[name])
        assert all((tmp_path / member).read_bytes() == b"1" for member in SEEN_AS_ONE[name])


def check_bombs_of_tar(folder: Path) -> None:
    """Small archives that would fill the memory before anything is unpacked: a long header, long headers, holes."""
    import gzip

    long = raw_header("x", 100_000_000, tarfile.XHDTYPE) + b"9 a=" + bytes(100_000_000)
    piece = raw_header("x", 8_000_000, tarfile.XHDTYPE) + b"8000000 comment=".ljust(8_000_000 - 1, b"y") + b"\n"
    with gzip.open(folder / "holes.tar.gz", "wb") as opened:
        with tarfile.open(fileobj=opened, mode="w") as archive:
            sparse(archive, "a", 10**9)
    cases = {
        "header that does not end": long + bytes(1024),
        "that does not end": (piece + raw_header("a", 0)) * 4 + bytes(1024),
    }
    for number, (message, content) in enumerate(cases.items()):
        (folder / f"{number}.tar.gz").write_bytes(gzip.compress(content, 1))
        call = functools.partial(unpack, folder / f"{number}.tar.gz", folder / "out", False)
        del content
        assert guarded(call, seconds=20, megabytes=60) is None, message
        refused(message, call)
    refused("holds a, which is a link or no file", unpack, folder / "holes.tar.gz", folder / "out", False)


def test_bombs_of_tar_headers_fill_no_memory(tmp_path):
    (tmp_path / "out").mkdir()
    check_bombs_of_tar(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_archive_is_given_up_before_a_bomb_is_gone_through(tmp_path, monkeypatch):
    """Members of a compressed tar can be passed over only by unpacking them: the sum is looked at before."""
    monkeypatch.setattr(unpacking, "AT_LEAST", 1_000_000)
    tarred(tmp_path / "a.tar.gz", [("first", bytes(2_000_000)), ("second", bytes(10))])
    seen = []
    true_next = unpacking.CarefulTar.next

    def counted(self):
        info = true_next(self)
        seen.append(info)
        return info

    monkeypatch.setattr(unpacking.CarefulTar, "next", counted)
    refused("at least 2,000,000 bytes, which is out of proportion", unpack, tmp_path / "a.tar.gz", tmp_path, False)
    assert {info.name for info in seen} == {"first"}


def check_asides(folder: Path) -> None:
    """A file is written aside under a name that no other file of the archive has, nor a link that lies there."""
    outside = folder / "outside"
    outside.write_bytes(b"mine")
    (folder / "in").mkdir()
    (folder / "in" / "b.tmp").symlink_to(outside)
    archive = zipped(folder / "a.zip", [("a.tmp", b"1"), ("a", b"22"), ("b", b"333")])
    unpack(archive, folder / "in", progress=False)
    assert (folder / "in" / "a.tmp").read_bytes() == b"1" and (folder / "in" / "a").read_bytes() == b"22"
    assert (folder / "in" / "b").read_bytes() == b"333" and outside.read_bytes() == b"mine"


def test_no_file_of_an_archive_takes_the_place_of_another(tmp_path):
    check_asides(tmp_path)


# what was fetched


@pytest.mark.parametrize(
    "told",
    [{"bytes": "7"}, {"bytes": True}, *({"bytes": 7, "unpacked": names} for names in (["../../x"], [3], 1, ["/x"], ["a\\b"]))],
)
def test_a_note_that_is_none_is_named(tmp_path, told):
    (tmp_path / NOTE).write_text(json.dumps({"a.zip": told}))
    refused("is no list of fetched files: delete it to fetch again", read_note, tmp_path)


@pytest.mark.torture
def test_mutated_notes(tmp_path, record_property):
    told = {"a.zip": {"url": "http://x/a.zip", "bytes": 7, "sha256": "0" * 64, "checked": "size", "unpacked": ["a/b.jpg", "c"]}}
    remote = fetching.Remote("http://x/a.zip")

    def trial(rng):
        (tmp_path / NOTE).write_bytes(mutated_json_bytes(rng, told))
        assert fetching.is_there(remote, tmp_path) in (True, False)
        (tmp_path / "a.zip").write_bytes(b"0123456")
        fetching.examine(remote, tmp_path / "a.zip")

    count = tries(10, 700)
    assert not failures(trial, count, seed=7)
    record_property("inputs", count)


@pytest.mark.parametrize("length, total", [("7", 7), ("-7", None), ("1e9", None), ("9" * 30, None), ("", None), (None, None)])
def test_a_length_that_a_server_states_is_a_number_or_nothing(length, total):
    class Answer:
        status, url, headers = 200, "http://x/a", {"Content-Length": length, "Content-Type": "x"}

    assert fetching._start_and_total(Answer, 0) == (0, total)


# deliberate breaks: with a guard taken away, what proves it has to fail

BREAKS = {
    "one row is a whole file": (files, "LONGEST_ROW", 1 << 40, functools.partial(check_a_long_line, kind="csv")),
    "16 bits as floats, all at once": (
        *(decoding, "_eight_bits"),
        lambda values, mode: (values.astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8),
        lambda folder: check_sixteen_bits(),
    ),
    "any number of scans": (decoding, "MAX_SCANS", 10**9, lambda folder: check_scans()),
    "any format": (decoding, "_formats", lambda: list(Image.OPEN), lambda folder: check_formats()),
    "pipes and devices": (decoding.os.path, "isfile", lambda path: True, check_plain_files),
    "any rate": (decoding, "MAX_RATE", 2**40, lambda folder: check_rates()),
    "headers of any length": (unpacking, "HEADERS", 1 << 50, check_bombs_of_tar),
    "a tar as Python reads it": (unpacking.CarefulTar, "next", tarfile.TarFile.next, check_tar_headers),
    "a kept list as it is": (shards, "_is_whole", lambda sample, size: True, check_kept_index),
    "names as they are": (unpacking, "_on_any_disk", lambda name: name, check_disk_that_does_not_tell_names_apart),
    "names of any length": (unpacking, "LONGEST_NAME", 10**9, functools.partial(check_archive, name="deep name")),
    "any number of files": (unpacking, "MEMBERS", 10**9, functools.partial(check_archive, name="too many")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_guard_that_is_taken_away_is_missed(tmp_path, name, monkeypatch):
    module, attribute, value, check = BREAKS[name]
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(module, attribute, value)
    with pytest.raises((AssertionError, pytest.fail.Exception, OSError, FuseMixLiteError)):
        check(tmp_path)
