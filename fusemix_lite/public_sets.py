"""What is to know about each public data set, once: readers, fetching, messages and cards take it from here.

Nothing is from memory alone: sizes and checksums stand here only where a public source states them, and `stated` names it.
None of these sets could be fetched where this was written, so that a stated size or address may have changed since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from . import public_layouts as layouts
from .errors import FuseMixLiteError
from .public_layouts import Layout


@dataclass(frozen=True)
class Remote:
    """A file to fetch. `checksum` is "sha256:…" or "md5:…"; None: nobody states one, the size alone is checked, if known."""

    url: str
    bytes: int | None = None
    checksum: str | None = None
    unpack: bool = False
    splits: tuple[str, ...] = ("train", "val", "test")

    @property
    def name(self) -> str:
        return Path(urlsplit(self.url).path).name


@dataclass(frozen=True)
class PublicSet:
    """What is to know about a public data set before one uses it."""

    title: str
    media: str
    about: str
    splits: Mapping[str, str]  # split -> size, in words
    captions: str
    licence: str
    page: str
    source: str  # whom to cite
    size: str  # of everything, in words
    layouts: tuple[Layout, ...]
    remotes: tuple[Remote, ...] = ()
    by_hand: str = ""  # what has to be got by oneself, and where; empty: everything is fetched
    stated: str = ""  # who states sizes and checksums
    overlaps: tuple[str, ...] = ()

    def needed(self, split: str | None = None) -> list[Remote]:
        """The files of one split, or all."""
        return [remote for remote in self.remotes if split is None or split in remote.splits]


_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research"
_COCO = "http://images.cocodataset.org/zips"
_ZENODO = "https://zenodo.org/record"
_AUDIOCAPS = "https://raw.githubusercontent.com/cdjkim/audiocaps/master/dataset"
_KARPATHY = Remote(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    36_745_453,
    "sha256:4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    unpack=True,
)
_PLACES = ("", "annotations/", "karpathy/", "caption_datasets/")


def _at(places: Sequence[str], *names: str) -> tuple[str, ...]:
    return tuple(place + name for name in names for place in places)


def _karpathy_layout(dataset: str, media: tuple[str, ...], words: str, read=layouts.karpathy) -> Layout:
    file = f"dataset_{dataset}.json"
    return Layout(f"`{file}` (Karpathy), {words}", dict.fromkeys(("train", "val", "test"), _at(_PLACES, file)), media, read)


_SHARDS = {
    "train": ("[0-9]*.tar", "train/*.tar", "*-train-*.tar"),
    "val": ("val/*.tar", "validation/*.tar", "*-validation-*.tar"),
}


_FLICKR30K = ("flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "images", "Images", "")
_FLICKR8K = ("Flicker8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_Dataset", "images", "Images", "")
_MINILM = "all-MiniLM-L6-v2 was tuned on captions of COCO and Flickr30K among a billion pairs of sentences (no picture)."
_WEB_POOL = (
    "DINOv2's LVD-142M holds photos of the web that resemble ImageNet, Google Landmarks and fine-grained sets. The web pool "
    "is not published, so that photos of this set in it can be neither shown nor ruled out."
)
_AUDIOSET = (
    "HTS-AT and AST are supervised on AudioSet's labels; the clips of AudioCaps are clips of AudioSet, so that such an encoder "
    "may have been trained on the very sounds that are tested."
)
_FLICKR_TERMS = "photos under Flickr's terms of use, for non-commercial research and education; their authors keep the rights"

DATASETS = {
    "coco": PublicSet(
        title="COCO captions",
        media="image",
        about="Photos of everyday scenes, captioned by people for the purpose. In the paper both training data and a test set.",
        splits={"train": "113,287", "val": "5,000", "test": "5,000"},
        captions="5, a few photos have 6 or 7",
        licence="captions CC BY 4.0; photos under Flickr's terms of use",
        page="https://cocodataset.org",
        source="Lin et al. (2014), Chen et al. (2015); splits of Karpathy and Fei-Fei (2015)",
        size="20 GB to fetch, as much again unpacked",
        layouts=(
            Layout(
                "`coco_karpathy_train.json`, `_val`, `_test` (BLIP, LAVIS), with `train2014/` and `val2014/`",
                {s: _at(_PLACES, f"coco_karpathy_{s}.json") for s in ("train", "val", "test")},
                ("", "images"),
                layouts.lavis_coco,
            ),
            _karpathy_layout("coco", ("", "images"), "with `train2014/` and `val2014/`", layouts.karpathy_coco),
        ),
        remotes=(
            Remote(
                f"{_LAVIS}/datasets/coco_karpathy_train.json",
                checksum="md5:aa31ac474cf6250ebb81d18348a07ed8",
                splits=("train",),
            ),
            Remote(
                f"{_LAVIS}/datasets/coco_karpathy_val.json", checksum="md5:b273847456ef5580e33713b1f7de52a0", splits=("val",)
            ),
            Remote(
                f"{_LAVIS}/datasets/coco_karpathy_test.json", checksum="md5:3ff34b0ef2db02d01c37399f6a2a6cd1", splits=("test",)
            ),
            Remote(
                f"{_COCO}/train2014.zip",
                13_510_573_713,
                "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
                unpack=True,
                splits=("train",),
            ),
            Remote(
                f"{_COCO}/val2014.zip",
                6_645_013_297,
                "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
                unpack=True,
            ),
        ),
        stated="zip files: TensorFlow Datasets; lists: LAVIS",
        overlaps=(
            "COCO's training photos are in FuseMix's training mix, so that the paper's recall on COCO is in-domain, not "
            "zero-shot.",
            "Visual Genome, in the same mix, was made of photos of COCO and YFCC100M, and so holds photos of COCO's val and "
            "test splits, with other captions. UNITER's authors took them out; whether the list that the paper used has them "
            "is not known.",
            _MINILM,
            _WEB_POOL,
        ),
    ),
    "flickr30k": PublicSet(
        title="Flickr30K",
        media="image",
        about="Photos of people in everyday situations. In the paper the test set that is not trained on.",
        splits={"train": "29,000", "val": "1,014", "test": "1,000"},
        captions="5",
        licence=_FLICKR_TERMS,
        page="https://shannon.cs.illinois.edu/DenotationGraph/",
        source="Young et al. (2014); splits of Karpathy and Fei-Fei (2015)",
        size="captions 37 MB; photos some GB",
        layouts=(
            Layout(
                "`flickr30k_train.json`, `_val`, `_test` (BLIP, LAVIS), with `flickr30k-images/`",
                {s: _at(_PLACES, f"flickr30k_{s}.json") for s in ("train", "val", "test")},
                _FLICKR30K,
                layouts.lavis,
            ),
            _karpathy_layout("flickr30k", _FLICKR30K, "with `flickr30k-images/`"),
            Layout(
                "`results.csv` of Kaggle's flickr-image-dataset, which knows no split: the one split `all`",
                {"all": _at(("", "flickr30k_images/", "flickr30k_images/flickr30k_images/"), "results.csv")},
                _FLICKR30K,
                layouts.kaggle_flickr,
            ),
        ),
        remotes=(_KARPATHY,),
        by_hand="the photos: by the form on the page, or from Kaggle (hsankesara/flickr-image-dataset), into flickr30k-images/",
        stated="TensorFlow Datasets",
        overlaps=(
            "The official code of FuseMix chooses its best epoch on the test split of Flickr30K. Here, val chooses.",
            "Photos of COCO, Visual Genome, SBU and CC3M come from Flickr and the web as well. UNITER's authors took out what "
            "is in Flickr30K too, found by its address; whether the paper did is not known.",
            _MINILM,
            _WEB_POOL,
        ),
    ),
    "flickr8k": PublicSet(
        title="Flickr8K",
        media="image",
        about="A small set of photos, most of people and dogs: for trying out.",
        splits={"train": "6,000", "val": "1,000", "test": "1,000"},
        captions="5",
        licence=_FLICKR_TERMS,
        page="https://hockenmaier.cs.illinois.edu/8k-pictures.html",
        source="Hodosh, Young and Hockenmaier (2013); splits of Karpathy and Fei-Fei (2015)",
        size="captions 37 MB; photos about 1 GB",
        layouts=(_karpathy_layout("flickr8k", _FLICKR8K, "with `Flicker8k_Dataset/` (sic)"),),
        remotes=(_KARPATHY,),
        by_hand="the photos: by the form on the page (Flickr8k_Dataset.zip), unpacked as it is",
        stated="TensorFlow Datasets",
        overlaps=(
            "Flickr30K was made by the same group from the same site; do not train on one and test on the other before looking "
            "for doubles with `fl.audit`.",
            _WEB_POOL,
        ),
    ),
    "visual-genome": PublicSet(
        title="Visual Genome",
        media="image",
        about="Photos with short phrases about their regions. Training data of the paper.",
        splits={"train": "108,077"},
        captions="many: 821,000 in all in `vg_caption.json`, 5.4 million region descriptions",
        licence="CC BY 4.0",
        page="https://homes.cs.washington.edu/~ranjay/visualgenome/",
        source="Krishna et al. (2017); the list of captions by BLIP and LAVIS",
        size="15 GB to fetch, as much again unpacked",
        layouts=(
            Layout(
                "`vg_caption.json` (BLIP, LAVIS), with `VG_100K/` and `VG_100K_2/`",
                {"train": _at(_PLACES, "vg_caption.json")},
                ("VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2"),
                layouts.visual_genome_captions,
                by_stem=True,
            ),
            Layout(
                "`region_descriptions.json`, with `VG_100K/` and `VG_100K_2/` (read whole: some 5 GB of memory)",
                {"train": _at(_PLACES, "region_descriptions.json")},
                ("VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2"),
                layouts.visual_genome_regions,
                by_stem=True,
            ),
        ),
        remotes=(
            Remote(f"{_LAVIS}/LAVIS/datasets/visual_genome/vg_caption.json"),
            Remote("https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip", 9_731_705_982, unpack=True),
            Remote("https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip", 5_471_658_058, unpack=True),
        ),
        stated="zip files: a public script that checks them by size; no checksum is stated anywhere",
        overlaps=(
            "Its photos are of COCO and YFCC100M (`image_data.json` tells which). Some are in COCO's val and test splits, "
            "which the paper tests on; whether `vg_caption.json` leaves them out is not known.",
        ),
    ),
    "sbu": PublicSet(
        title="SBU captioned photos",
        media="image",
        about="Photos of Flickr with what their owners wrote under them. Training data of the paper.",
        splits={"train": "1,000,000 in the original list"},
        captions="1",
        licence="not stated; photos under Flickr's terms of use",
        page="https://www.cs.rice.edu/~vo9/sbucaptions/",
        source="Ordonez, Kulkarni and Berg (2011)",
        size="list 50 MB; photos depend on how they are resized",
        layouts=(
            Layout(
                "`sbu.json` (LAVIS), with `images/`",
                {"train": _at(_PLACES, "sbu.json")},
                ("images", "sbu_captions/images", ""),
                layouts.lavis,
                partial=True,
            ),
            Layout(
                "`sbu-captions-all.json`, with `images/`: photos named as in their addresses",
                {"train": _at(_PLACES, "sbu-captions-all.json")},
                ("images", "dataset", ""),
                layouts.sbu_json,
                by_stem=True,
                partial=True,
            ),
            Layout(
                "`SBU_captioned_photo_dataset_urls.txt` and `…_captions.txt`, with the photos beside them (torchvision)",
                {"train": _at(("", "dataset/"), "SBU_captioned_photo_dataset_urls.txt")},
                ("dataset", "images", ""),
                layouts.sbu_urls,
                by_stem=True,
                partial=True,
            ),
            Layout("tar shards of `img2dataset` (`00000.tar` …)", {"train": _SHARDS["train"]}, ()),
        ),
        remotes=(
            Remote(f"{_LAVIS}/LAVIS/datasets/sbu/sbu.json"),
            Remote("https://www.cs.rice.edu/~vo9/sbucaptions/sbu-captions-all.tar.gz", unpack=True),
        ),
        by_hand="the photos: img2dataset --url_list sbu-captions-all.json --input_format json --url_col image_urls "
        "--caption_col captions --output_format webdataset --output_folder .",
        stated="nobody states a size or a checksum",
        overlaps=("Photos of Flickr, as those of Flickr30K and COCO: some may be the same (see Flickr30K).",),
    ),
    "cc3m": PublicSet(
        title="Conceptual Captions (CC3M)",
        media="image",
        about="Pictures of the web with their cleaned alternative texts. Training data of the paper, once also alone.",
        splits={"train": "3,318,333 addresses (2,905,954 of them alive in December 2021)", "val": "15,840 addresses"},
        captions="1",
        licence="list free for any use, naming Google is asked for; the pictures belong to their owners",
        page="https://ai.google.com/research/ConceptualCaptions/download",
        source="Sharma et al. (2018)",
        size="list 0.5 GB; pictures depend on how they are resized",
        layouts=(
            Layout("tar shards of `img2dataset` (`00000.tar` …, `val/00000.tar` …), or `cc3m-train-0000.tar` …", _SHARDS, ()),
            Layout(
                "`Train_GCC-training.tsv` and `Validation_GCC-1.1.0-Validation.tsv`, with the pictures as ROW_CRC32(.jpg) in "
                "`training/` and `validation/` or in `images/`",
                {
                    "train": _at(_PLACES, "Train_GCC-training.tsv", "cc3m.tsv"),
                    "val": _at(_PLACES, "Validation_GCC-1.1.0-Validation.tsv"),
                },
                ("{split}", "images/{split}", "images", "cc3m"),
                layouts.conceptual_captions,
                by_stem=True,
                partial=True,
                own_splits={"train": "training", "val": "validation"},
            ),
        ),
        by_hand="the list Train_GCC-training.tsv by the page, with a first line put before it (caption, a tab, url), then: "
        "img2dataset --url_list Train_GCC-training.tsv --input_format tsv --url_col url --caption_col caption "
        "--output_format webdataset --output_folder .; or the shards of the hub's pixparse/cc3m-wds",
        stated="counts: the hub's cards of conceptual_captions and pixparse/cc3m-wds",
        overlaps=("Pictures of the web: some may be in Flickr30K or COCO (see Flickr30K).",),
    ),
    "clotho": PublicSet(
        title="Clotho",
        media="audio",
        about="Sounds of Freesound, 15 to 30 s long, captioned by people. In the paper training data and a test set.",
        splits={"train": "2,893 in version 1, 3,839 in 2.1", "val": "1,045 (from version 2 on)", "test": "1,045"},
        captions="5",
        licence="sounds: each its own of Freesound, mostly Creative Commons; captions: Tampere University's, mainly "
        "non-commercial with attribution",
        page="https://zenodo.org/record/4783391",
        source="Drossos, Lipping and Virtanen (2020)",
        size="about 6.5 GB to fetch, 11 GB unpacked",
        layouts=(
            Layout(
                "`clotho_captions_development.csv`, `_validation`, `_evaluation`, with `development/`, `validation/`, "
                "`evaluation/`; versions 1, 2 and 2.1 alike",
                {
                    split: _at(("", "clotho_csv_files/"), f"clotho_captions_{own}.csv")
                    for split, own in (("train", "development"), ("val", "validation"), ("test", "evaluation"))
                },
                ("{split}", "clotho_audio_files/{split}"),
                layouts.clotho,
                own_splits={"train": "development", "val": "validation", "test": "evaluation"},
            ),
        ),
        remotes=tuple(
            Remote(f"{_ZENODO}/4783391/files/clotho_{kind}_{own}.{suffix}", None, f"md5:{md5}", suffix == "7z", (split,))
            for kind, own, suffix, md5, split in (
                ("captions", "development", "csv", "d4090b39ce9f2491908eebf4d5b09bae", "train"),
                ("audio", "development", "7z", "c8b05bc7acdb13895bb3c6a29608667e", "train"),
                ("captions", "validation", "csv", "5879e023032b22a2c930aaa0528bead4", "val"),
                ("audio", "validation", "7z", "7dba730be08bada48bd15dc4e668df59", "val"),
                ("captions", "evaluation", "csv", "1b16b9e57cf7bdb7f13a13802aeb57e2", "test"),
                ("audio", "evaluation", "7z", "4569624ccadf96223f19cb59fe4f849f", "test"),
            )
        ),
        stated="checksums: aac-datasets; size: DCASE's list",
        overlaps=(
            "The paper's 15,000 pairs are those of version 1 (2,893 sounds); version 2.1, which is fetched here, has 3,839.",
            "Freesound is also a source of WavCaps and FSD50K: an encoder trained on them may know its sounds.",
        ),
    ),
    "audiocaps": PublicSet(
        title="AudioCaps",
        media="audio",
        about="Clips of AudioSet, 10 s of YouTube videos, captioned by people. In the paper training data and a test set.",
        splits={"train": "49,838", "val": "495", "test": "975"},
        captions="1 in train, 5 in val and test",
        licence="lists for academic purposes only; the sounds belong to the videos' owners",
        page="https://audiocaps.github.io",
        source="Kim et al. (2019)",
        size="lists 6 MB; sounds about 43 GB at 32 kHz",
        layouts=(
            Layout(
                "`train.csv`, `val.csv`, `test.csv`, with the clips in `train/` and so on, as YOUTUBE_START.wav, YOUTUBE.wav, "
                "YYOUTUBE.wav or NUMBER.wav (or .flac)",
                {s: _at(("", "dataset/", "csv_files_v1/"), f"{s}.csv") for s in ("train", "val", "test")},
                ("{split}", "audio/{split}", "audio_32000Hz/{split}", "wavs/{split}", "audio", "wavs", ""),
                layouts.audiocaps,
                by_stem=True,
            ),
        ),
        remotes=tuple(Remote(f"{_AUDIOCAPS}/{split}.csv", splits=(split,)) for split in ("train", "val", "test")),
        by_hand="the sounds: by the authors' form on the page, or from YouTube with audiocaps-download or aac-datasets, into "
        "train/, val/ and test/. Many videos are gone by now (aac-datasets found 46,231 of the training clips)",
        stated="counts: aac-datasets; nobody states a size or a checksum of the lists",
        overlaps=(_AUDIOSET, "Clips that are gone from YouTube make every copy a little smaller than the paper's test set."),
    ),
}


def public_set(name: str) -> PublicSet:
    """The record of a data set. Raises FuseMixLiteError listing what there is."""
    if name not in DATASETS:
        raise FuseMixLiteError(f'no data set "{name}"; there are {", ".join(DATASETS)}')
    return DATASETS[name]
