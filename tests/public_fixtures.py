"""Public data sets in small: folders in exactly the published layouts, with pictures and sounds of Sounding Scenes.

Each has the same odd cases where its layout can hold them. Pictures: grey, CMYK, turned by EXIF, missing, cut short. Sounds:
stereo, 8 kHz, of odd length, missing, cut short, too short. Captions: not ASCII, empty. `Built` says what is to come out.
"""

import csv
import io
import json
import tarfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from scipy.signal import resample_poly

from fusemix_lite import SoundingScenes

N = 12
FINE = {"quality": 95, "subsampling": 0}
ODD_TEXT = "größer als eine Katze – 猫"
GREY, CMYK, TURNED, MISSING, CUT = range(5)  # indices of odd pictures
STEREO, LOW, ODD_LENGTH, _, _, SHORT = range(6)  # of odd sounds; 3 and 4 as above
PICTURES, SOUNDS = SoundingScenes("image-text", "train", size=N), SoundingScenes("audio-text", "train", size=N)


@dataclass
class Built:
    """A data set on the disk: what `open_dataset` gets, and what is to come out of it."""

    name: str
    folder: Path
    split: str
    items: list[str]  # those that the list names, in order
    captions: list[list[str]]
    broken: dict[str, str] = field(default_factory=dict)  # item -> words of the reason why it is in quarantine
    index: list[int] = field(default_factory=list)  # of its scene, an item

    @property
    def media(self) -> str:
        return "audio" if self.name in ("clotho", "audiocaps") else "image"


def captions(world, per_item: int) -> list[list[str]]:
    """Captions of every scene; one is not ASCII, one is empty where there are several."""
    texts = [[world.caption(i, k) for k in range(per_item)] for i in range(N)]
    texts[0][-1] = ODD_TEXT
    if per_item > 1:
        texts[5][1] = "  "
    return texts


def jpeg(index: int) -> bytes:
    """Scene `index` as a JPEG, in the odd state of that index."""
    image, options = PICTURES.image(index), dict(FINE)
    if index == GREY:
        image = image.convert("L")
    if index == CMYK:
        image, options = image.convert("CMYK"), {"quality": 95}
    if index == TURNED:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown after a quarter turn
        image, options["exif"] = image.transpose(Image.Transpose.ROTATE_90), exif
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2 if index == CUT else None]


def pictures(folder: Path, names: list[str], missing: bool = True) -> dict[str, str]:
    """Write N pictures under these names. Returns the file names of the bad ones, with words of what is wrong."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if index != MISSING or not missing:
            path.write_bytes(jpeg(index))
    return {names[MISSING]: "No such file", names[CUT]: "truncated"} if missing else {names[CUT]: "truncated"}


def samples(index: int) -> np.ndarray:
    return SOUNDS.audio(index)


def sounds(folder: Path, names: list[str]) -> dict[str, str]:
    """As `pictures`, for sounds in WAV or FLAC."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        audio, rate = samples(index), 16_000
        if index == STEREO:
            audio = np.stack([audio, 0.5 * audio], 1)
        if index == LOW:
            audio, rate = resample_poly(audio, 1, 2), 8_000
        if index == ODD_LENGTH:
            audio = audio[:12_345]
        if index == SHORT:
            audio = audio[:100]
        if index != MISSING:
            soundfile.write(path, audio, rate)
        if index == CUT:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return {names[MISSING]: "no readable sound", names[CUT]: names[CUT], names[SHORT]: "shorter than 25 ms"}


def dump(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def table(file: Path, rows: list[tuple], delimiter: str = ",") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened, delimiter=delimiter).writerows(rows)


# what is to come out


def plain(media: str, index: int):
    """What item `index` shows or plays, without its odd file."""
    if media == "image":
        image = PICTURES.image(index)
        return image.convert("L").convert("RGB") if index == GREY else image
    audio = samples(index)
    if index == LOW:  # what 8 kHz hold
        return resample_poly(resample_poly(audio, 1, 2), 2, 1).astype(np.float32)
    return audio[:12_345] if index == ODD_LENGTH else audio


def quiet(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*args, **options)


def cosine(a, b):
    a, b = (torch.from_numpy(np.asarray(z).astype(np.float32)) for z in (a, b))
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


# pictures


def coco_names() -> list[str]:
    return [f"COCO_{'val' if i % 3 else 'train'}2014_{i * 7:012d}.jpg" for i in range(N)]


def coco_folder(name: str) -> str:
    return name.split("_")[1]


def karpathy_entry(name: str, texts: list[str], split: str, number: int, filepath: str | None) -> dict:
    sentences = [
        {"tokens": text.split(), "raw": text, "imgid": number, "sentid": 10 * number + k} for k, text in enumerate(texts)
    ]
    entry = {"sentids": [s["sentid"] for s in sentences], "imgid": number, "sentences": sentences, "split": split}
    entry["filename"] = name
    if filepath:
        entry |= {"filepath": filepath, "cocoid": number * 7}
    return entry


def coco_karpathy(folder: Path) -> Built:
    names, texts = coco_names(), captions(PICTURES, 5)
    parts = ["train" if coco_folder(name) == "train2014" else "restval" for name in names]  # both are training
    images = [
        karpathy_entry(name, texts[i], parts[i], i, coco_folder(name)) for i, name in enumerate(names)
    ]  # fmt: skip
    images.append(karpathy_entry("COCO_val2014_000000391895.jpg", ["a test photo"] * 5, "test", 99, "val2014"))
    dump(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    broken = pictures(folder, [f"{coco_folder(name)}/{name}" for name in names])
    return Built("coco", folder, "train", names, texts, base(broken), list(range(N)))


def coco_lavis(folder: Path) -> Built:
    names, texts = coco_names(), captions(PICTURES, 5)
    rows = [
        {"caption": text, "image": f"{coco_folder(name)}/{name}", "image_id": f"coco_{i}"}
        for i, name in enumerate(names)
        for text in texts[i]
    ]
    dump(folder / "annotations" / "coco_karpathy_train.json", rows)
    broken = pictures(folder / "images", [f"{coco_folder(name)}/{name}" for name in names])
    return Built("coco", folder, "train", names, texts, base(broken), list(range(N)))


def coco_lavis_test(folder: Path) -> Built:
    names, texts = coco_names(), captions(PICTURES, 5)
    dump(
        folder / "coco_karpathy_test.json",
        [{"image": f"{coco_folder(name)}/{name}", "caption": texts[i]} for i, name in enumerate(names)],
    )
    broken = pictures(folder, [f"{coco_folder(name)}/{name}" for name in names])
    return Built("coco", folder, "test", names, texts, base(broken), list(range(N)))


def flickr_names() -> list[str]:
    return [f"{1000092795 + i}.jpg" for i in range(N - 1)] + ["größe-猫.jpg"]


def flickr30k_karpathy(folder: Path) -> Built:
    names, texts = flickr_names(), captions(PICTURES, 5)
    images = [karpathy_entry(name, texts[i], "val", i, None) for i, name in enumerate(names)]
    images.append(karpathy_entry("9.jpg", ["not of this split"], "train", 99, None))
    dump(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return Built("flickr30k", folder, "val", names, texts, pictures(folder / "flickr30k-images", names), list(range(N)))


def flickr30k_lavis(folder: Path) -> Built:
    names, texts = flickr_names(), captions(PICTURES, 5)
    dump(
        folder / "flickr30k_test.json",
        [{"image": f"flickr30k-images/{name}", "caption": texts[i]} for i, name in enumerate(names)],
    )
    broken = pictures(folder / "flickr30k_images" / "flickr30k_images", names)
    return Built("flickr30k", folder, "test", names, texts, broken, list(range(N)))


def flickr30k_kaggle(folder: Path) -> Built:
    names, texts = flickr_names(), captions(PICTURES, 5)
    lines = ["image_name| comment_number| comment"]
    lines += [f"{name}| {k}| {text}" for i, name in enumerate(names) for k, text in enumerate(texts[i])]
    place = 1 + 5 * 7 + 4
    lines[place] = lines[place].replace("| 4| ", "| 4   ")  # as it is published: 2199200615.jpg lacks a bar
    images = folder / "flickr30k_images"
    broken = pictures(images / "flickr30k_images", names)
    (images / "results.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return Built("flickr30k", folder, "all", names, texts, broken, list(range(N)))


def flickr8k_karpathy(folder: Path) -> Built:
    names, texts = [f"{name[:-4]}_ab{i}.jpg" for i, name in enumerate(flickr_names())], captions(PICTURES, 5)
    images = [karpathy_entry(name, texts[i], "train", i, None) for i, name in enumerate(names)]
    images.append(karpathy_entry(names[0], ["the same photo again"], "train", 99, None))  # a double id
    dump(folder / "caption_datasets" / "dataset_flickr8k.json", {"images": images, "dataset": "flickr8k"})
    texts[0].append("the same photo again")
    return Built("flickr8k", folder, "train", names, texts, pictures(folder / "Flicker8k_Dataset", names), list(range(N)))


def visual_genome_captions(folder: Path) -> Built:
    names, texts = [f"{2 + i}.jpg" for i in range(N)], captions(PICTURES, 3)
    where = ["VG_100K" if i % 2 else "VG_100K_2" for i in range(N)]
    prefix = "/export/home/vg/images/"  # as BLIP's list has it; LAVIS' may be without
    rows = [
        {"image": f"{prefix if i % 3 else ''}{where[i]}/{name}", "caption": text, "dataset": "vg"}
        for i, name in enumerate(names)
        for text in texts[i]
    ]
    dump(folder / "vg_caption.json", rows)
    broken = pictures(folder / "images", [f"{where[i]}/{name}" for i, name in enumerate(names)])
    return Built("visual-genome", folder, "train", names, texts, base(broken), list(range(N)))


def visual_genome_regions(folder: Path) -> Built:
    names, texts = [f"{2 + i}.jpg" for i in range(N)], captions(PICTURES, 3)
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    regions = [
        {"id": 2 + i, "regions": [{"region_id": 9 * i + k, "image_id": 2 + i, "phrase": p, **box} for k, p in enumerate(t)]}
        for i, t in enumerate(texts)
    ]
    dump(folder / "region_descriptions.json", regions)
    broken = pictures(folder, [f"{'VG_100K' if i % 2 else 'VG_100K_2'}/{name}" for i, name in enumerate(names)])
    return Built("visual-genome", folder, "train", names, texts, base(broken), list(range(N)))


def sbu_names() -> list[str]:
    return [f"43850589{i:02d}_b0f291553e.jpg" for i in range(N)]


def never_fetched(built: Built) -> Built:
    """A missing picture of a list of addresses was never fetched: it is no item."""
    built.broken = {item: reason for item, reason in built.broken.items() if reason != "No such file"}
    for rows in (built.items, built.captions, built.index):
        del rows[MISSING]
    return built


def sbu_lavis(folder: Path) -> Built:
    names, texts = sbu_names(), captions(PICTURES, 1)
    urls = [f"http://static.flickr.com/2723/{name}" for name in names]
    dump(
        folder / "sbu.json",
        [{"image": n, "caption": t[0], "url": u} for n, t, u in zip(names, texts, urls, strict=True)],
    )
    broken = pictures(folder / "images", names)
    return never_fetched(Built("sbu", folder, "train", names, texts, broken, list(range(N))))


def sbu_all_json(folder: Path) -> Built:
    names, texts = sbu_names(), captions(PICTURES, 1)
    urls = [f"http://static.flickr.com/2723/{name}" for name in names]
    content = {"image_urls": urls, "user_ids": ["7@N00"] * N, "captions": [t[0] for t in texts]}
    dump(folder / "sbu-captions-all.json", content)
    broken = pictures(folder / "images", names)
    return never_fetched(Built("sbu", folder, "train", names, texts, broken, list(range(N))))


def sbu_urls(folder: Path) -> Built:
    names, texts = sbu_names(), captions(PICTURES, 1)
    broken = pictures(folder / "dataset", names)
    urls = "\n".join(f"http://static.flickr.com/2723/{name}" for name in names)
    (folder / "dataset" / "SBU_captioned_photo_dataset_urls.txt").write_text(urls + "\n")
    lines = "\n".join(t[0] for t in texts)
    (folder / "dataset" / "SBU_captioned_photo_dataset_captions.txt").write_text(lines + "\n", "utf-8")
    return never_fetched(Built("sbu", folder, "train", names, texts, broken, list(range(N))))


def cc3m_tsv(folder: Path, suffix: str = ".jpg", split: str = "train", header: bool = False) -> Built:
    texts, urls = captions(PICTURES, 1), [f"http://example.org/{i}/a.jpg?größe={i}" for i in range(N)]
    texts[6] = ['a quoted "thing" on a field']
    names = [f"{i}_{zlib.crc32(url.encode())}" for i, url in enumerate(urls)]
    file = {"train": "Train_GCC-training.tsv", "val": "Validation_GCC-1.1.0-Validation.tsv"}[split]
    rows = [(t[0], url) for t, url in zip(texts, urls, strict=True)]
    table(folder / file, ([("caption", "url")] if header else []) + rows, "\t")
    place = folder / ("images" if suffix else {"train": "training", "val": "validation"}[split])
    broken = {Path(n).stem: reason for n, reason in pictures(place, [name + suffix for name in names]).items()}
    return never_fetched(Built("cc3m", folder, split, names, texts, broken, list(range(N))))


def cc3m_tsv_val(folder: Path) -> Built:
    return cc3m_tsv(folder, "", "val")


def cc3m_tsv_header(folder: Path) -> Built:
    return cc3m_tsv(folder, header=True)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def shard(
    file: Path, indices: range, texts: list[list[str]], extra: Callable[[tarfile.TarFile], None] = lambda a: None
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for index in indices:
            key = f"{int(file.stem[-5:]):05d}{index:04d}"
            about = {"caption": texts[index][0], "url": "http://example.org/a.jpg", "key": key, "status": "success"}
            if index != MISSING:  # img2dataset writes nothing for what it could not fetch
                add(archive, f"{key}.jpg", jpeg(index))
                if index != 7:  # the caption then stands in the JSON alone
                    add(archive, f"{key}.txt", texts[index][0].encode())
                add(archive, f"{key}.json", json.dumps(about, indent=4).encode())
        extra(archive)


def cc3m_shards(folder: Path) -> Built:
    texts = captions(PICTURES, 1)
    shard(folder / "00000.tar", range(7), texts)
    shard(folder / "00001.tar", range(7, N), texts)
    (folder / "00000.parquet").write_bytes(b"its own table of contents: not read")
    (folder / "00000_stats.json").write_text("{}")
    items = [f"0000{0 if i < 7 else 1}/0000{0 if i < 7 else 1}{i:04d}" for i in range(N)]
    built = Built("cc3m", folder, "train", items, texts, {items[MISSING]: "No such file"}, list(range(N)))
    return never_fetched(Built(**vars(built) | {"broken": built.broken | {items[CUT]: "truncated"}}))


def sbu_shards(folder: Path) -> Built:
    return Built(**vars(cc3m_shards(folder)) | {"name": "sbu"})


# sounds


def clotho(folder: Path, split: str = "train", below: str = "", tables: str = "") -> Built:
    own = {"train": "development", "val": "validation", "test": "evaluation"}[split]
    names, texts = [f"Sound {i}, größer.wav" for i in range(N)], captions(SOUNDS, 5)
    names[8] = " begins with a space.wav"
    header = ("file_name", *(f"caption_{k}" for k in range(1, 6)))
    rows = [(name, *texts[i]) for i, name in enumerate(names)]
    table(folder / tables / f"clotho_captions_{own}.csv", [header, *rows])
    broken = sounds(folder / below / own, names)
    return Built("clotho", folder, split, names, texts, broken, list(range(N)))


def clotho_test(folder: Path) -> Built:
    return clotho(folder, "test", "clotho_audio_files", "clotho_csv_files")


def audiocaps(folder: Path, form: str = "{video}_{start}.wav", split: str = "train", below: str = "train") -> Built:
    per_item = 1 if split == "train" else 5
    videos = [f"-abc_{i:02d}xyz"[-11:] for i in range(N)]
    texts = captions(SOUNDS, per_item)
    rows = [
        (str(91139 + 10 * i + k), videos[i], str(30 * (i % 4)), texts[i][k]) for i in range(N) for k in range(per_item)
    ]  # fmt: skip
    table(folder / f"{split}.csv", [("audiocap_id", "youtube_id", "start_time", "caption"), *rows])
    items = [f"{videos[i]}_{30 * (i % 4)}" for i in range(N)]
    names = [form.format(video=videos[i], start=30 * (i % 4), number=91139 + 10 * i) for i in range(N)]
    found = sounds(folder / below, names)
    broken = {items[names.index(name)]: reason for name, reason in found.items()}
    return Built("audiocaps", folder, split, items, texts, broken, list(range(N)))


def audiocaps_video(folder: Path) -> Built:
    return audiocaps(folder, "{video}.wav", "val", "audio/val")


def audiocaps_y(folder: Path) -> Built:
    return audiocaps(folder, "Y{video}.wav", "test", "test")


def audiocaps_number(folder: Path) -> Built:
    return audiocaps(folder, "{number}.wav", "train", "audio")


def audiocaps_flac(folder: Path) -> Built:
    return audiocaps(folder, "{video}_{start}.flac", "test", "audio_32000Hz/test")


def base(broken: dict[str, str]) -> dict[str, str]:
    return {Path(name).name: reason for name, reason in broken.items()}


LAYOUTS = {
    builder.__name__: builder
    for builder in (
        coco_karpathy,
        coco_lavis,
        coco_lavis_test,
        flickr30k_karpathy,
        flickr30k_lavis,
        flickr30k_kaggle,
        flickr8k_karpathy,
        visual_genome_captions,
        visual_genome_regions,
        sbu_lavis,
        sbu_all_json,
        sbu_urls,
        sbu_shards,
        cc3m_tsv,
        cc3m_tsv_header,
        cc3m_tsv_val,
        cc3m_shards,
        clotho,
        clotho_test,
        audiocaps,
        audiocaps_video,
        audiocaps_y,
        audiocaps_number,
        audiocaps_flac,
    )
}
