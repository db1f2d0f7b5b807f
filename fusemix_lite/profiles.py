"""The scales at which every chapter runs. A profile is a flat list of values; no code asks which profile it is on.

    smoke   does the code run? seconds a chapter, numbers that mean nothing
    lite    the published book: small encoders and Sounding Scenes, on any laptop and without a network
    colab   DINOv2 and BGE on Flickr30K, AST and Whisper on Clotho: one GPU with 16 GB, 12 GB of RAM
    paper   what the paper trains and tests on, as far as it is known: one GPU with 80 GB

Any value can be another one: ``profile("colab", image_encoders=("my/encoder", "facebook/dinov2-small"))``, in a chapter by
its parameter ``overrides``. What is on disk and what would fit is said before a run (`costs.before_run`).
"""

import math
from dataclasses import dataclass, fields, replace
from typing import get_args, get_origin

from .errors import FuseMixLiteError

SCENES = "sounding-scenes"


@dataclass(frozen=True)
class Profile:
    """Everything that a chapter or an experiment may want to know about its scale."""

    name: str
    # frozen encoders, two of a modality: the first is the default one, with the second it is compared
    image_encoders: tuple[str, ...]
    text_encoders: tuple[str, ...]
    audio_encoders: tuple[str, ...]
    # items a split (pictures, sounds, scenes), captions an item
    train_items: int
    val_items: int
    test_items: int
    captions: int
    # fusion: what every arm of a comparison shares
    sizes: tuple[int, ...]  # items to learn from, for the curve over pairs
    scarce: int  # the size at which all schemes are compared
    batch_size: int  # pairs in the loss
    shared_dim: int
    depth: int
    lr: float
    # the small grid that every arm gets, chosen on validation
    dropouts: tuple[float, ...]
    lengths: tuple[int, ...]  # optimiser steps
    # statistics
    seeds: int  # of a record
    tuning_seeds: int  # of the grid, other seeds than those of the record
    live_seeds: int  # of the slice that every build runs again
    # real latents (real.py), where they are: their own sizes and lengths take the place of those above
    photo_sizes: tuple[int, ...]
    note_sizes: tuple[int, ...]
    real_lengths: tuple[int, ...]
    seed: int = 0  # the first one
    device: str = "auto"  # CUDA where there is one
    made_for: str = ""  # a device in costs.DEVICES; "": any computer
    workers: int = 2  # processes that make a record, one thread each
    # where retrieval is measured: Sounding Scenes, or public data by its name in public_data ("a+b": both)
    image_text: str = SCENES
    image_text_val: str = ""  # to choose on; "": its own validation split
    image_text_tests: tuple[str, ...] = ()  # (): its own test split; else one set of numbers each, see experiments
    audio_text: str = SCENES
    audio_text_val: str = ""
    audio_text_tests: tuple[str, ...] = ()
    # latents of public data (Sounding Scenes: in fp32 and in memory)
    precision: str = "fp32"  # of the encoders' matrix products
    in_memory: bool = True  # False: `fit` reads each batch from disk; the same numbers
    train_pairs: int = 0  # captions in training where items have different numbers of them; 0: `captions` each
    # Sounding Scenes where retrieval is measured elsewhere: at the scale of that profile; "": at this one
    scenes_as: str = ""
    # audio-text pairs where they are fewer than image-text pairs; (), 0: as many, as above
    audio_items: tuple[int, ...] = ()  # train, val, test
    audio_sizes: tuple[int, ...] = ()
    audio_lengths: tuple[int, ...] = ()
    audio_batch_size: int = 0
    audio_pairs: int = 0
    # what only some arms take
    image_layers: tuple[int, ...] = (1, 2)  # hidden layers of the second image encoder, beside its last
    text_layer: int = 1  # of the second text encoder
    batch_factors: tuple[float, ...] = (0.25, 0.5, 2, 4)  # batches of the ablations, in batch sizes
    # options of fit that only a large scale has reason to change
    expansion: int = 4
    warmup: float = 0.1  # share of the steps

    @property
    def scenes(self) -> "Profile":
        """This profile's encoders in Sounding Scenes, for what needs a world whose factors are known: probes, pictures and
        sounds that a page may show, the knobs for quality, skew and wording, training from scratch."""
        if not self.scenes_as:
            return self
        return replace(profile(self.scenes_as), **{key: getattr(self, key) for key in _KEPT_IN_SCENES})

    @property
    def small(self) -> "Profile":
        """Sounding Scenes with the small encoders too, for what the world is measured against: training from scratch, and a
        generator that knows these encoders' latents. It carries the name of the profile whose scale it is."""
        if not self.scenes_as:
            return self
        return profile(self.scenes_as, live_seeds=self.live_seeds, seed=self.seed, device=self.device, workers=self.workers)

    @property
    def sounds(self) -> "Profile":
        """The scale of audio-text pairs: their numbers in the place of those of image-text pairs."""
        own = {}
        if self.audio_items:
            own |= dict(zip(("train_items", "val_items", "test_items"), self.audio_items, strict=True))
        if self.audio_sizes:
            own |= {"sizes": self.audio_sizes, "scarce": self.audio_sizes[0], "train_pairs": self.audio_pairs}
        own |= {"lengths": self.audio_lengths or self.lengths, "batch_size": self.audio_batch_size or self.batch_size}
        return replace(self, **own)


_KEPT_IN_SCENES = (
    "name", "image_encoders", "text_encoders", "audio_encoders", "image_layers", "text_layer",
    "seeds", "live_seeds", "tuning_seeds", "seed", "device", "workers",
)  # fmt: skip


_PROFILES = {
    # Any laptop, no network: the scale of the published book.
    "lite": Profile(
        name="lite",
        image_encoders=("lite-image-a", "lite-image-b"),
        text_encoders=("lite-text-a", "lite-text-b"),
        audio_encoders=("lite-audio-a", "lite-audio-b"),
        train_items=8_000,
        val_items=1_000,
        test_items=1_000,
        captions=5,
        sizes=(500, 1_000, 2_000, 4_000, 8_000),
        scarce=500,
        batch_size=256,
        shared_dim=128,
        depth=1,
        lr=1e-3,
        dropouts=(0.2, 0.4, 0.6),
        lengths=(200, 600),
        seeds=10,
        tuning_seeds=1,
        live_seeds=2,
        photo_sizes=(500, 1_000, 3_000, 6_000),
        note_sizes=(1_000, 3_000, 8_246),
        real_lengths=(300,),
    ),
    # Seconds a chapter: does the code run? Its numbers mean nothing, and nothing is concluded from them.
    "smoke": Profile(
        name="smoke",
        image_encoders=("lite-image-a", "lite-image-b"),
        text_encoders=("lite-text-a", "lite-text-b"),
        audio_encoders=("lite-audio-a", "lite-audio-b"),
        train_items=200,
        val_items=50,
        test_items=50,
        captions=5,
        sizes=(100, 200),
        scarce=100,
        batch_size=64,
        shared_dim=32,
        depth=1,
        lr=1e-3,
        dropouts=(0.2,),
        lengths=(5,),
        seeds=2,
        tuning_seeds=1,
        live_seeds=2,
        photo_sizes=(100, 200),
        note_sizes=(100, 200),
        real_lengths=(5,),
    ),
    # One GPU of 16 GB (a T4) with 12 GB of RAM, as Colab lends it: the paper's two families of encoders, one or two sizes
    # smaller, on the set that its headline is about. Here FuseMix *trains* on Flickr30K, which the paper never does: its
    # numbers are of another protocol than Table 1.
    "colab": Profile(
        name="colab",
        made_for="T4",
        # The paper takes DINOv2-g, BGE-large and E5-large. DINOv2-B, with 86 M weights, reads some hundred pictures a second
        # on a T4, g with 1.1 billion some ten; small beside it is for chapters that exchange an encoder.
        image_encoders=("facebook/dinov2-base", "facebook/dinov2-small"),
        text_encoders=("BAAI/bge-base-en-v1.5", "intfloat/e5-base-v2"),
        # The paper takes HTS-AT beside Whisper, sizes not known. AST was supervised on AudioSet as HTS-AT was.
        audio_encoders=("MIT/ast-finetuned-audioset-10-10-0.4593", "openai/whisper-base"),
        image_text="flickr30k",
        audio_text="clotho",  # 6.5 GB, and files that stand still; AudioCaps has to be collected from YouTube
        precision="fp16",  # a T4 is eight times as fast in it, and has no bf16
        train_items=29_000,  # Karpathy's split
        val_items=1_014,
        test_items=1_000,
        captions=5,
        audio_items=(3_839, 1_045, 1_045),  # Clotho 2.1: development, validation, evaluation
        # 4,096 pairs in the loss: similarities of 67 MB, a fifth of the paper's batch. Mixing loads twice as many rows, and
        # a quarter of the scarce size (chapter 8) still has them: 1,812 x 5 >= 8,192. Scarce pairs bind the batch, not memory.
        batch_size=4_096,
        sizes=(7_250, 14_500, 29_000),
        scarce=7_250,
        audio_batch_size=2_048,  # 960 x 5 >= 2 x 2,048
        audio_sizes=(960, 1_920, 3_839),
        audio_lengths=(400, 1_600),  # 100 and 400 epochs of 4 steps
        shared_dim=512,  # paper (S), official code (C)
        depth=4,  # C
        lr=1e-3,  # C
        dropouts=(0.4, 0.6, 0.8),  # around the official 0.6 (C); no mixing wants more of it than FuseMix (chapter 9)
        lengths=(850, 1_700),  # 50 and 100 epochs of 17 steps; official 500 (C), which is hours a run on a T4
        seeds=5,  # fewer than lite's ten, since a run takes minutes
        tuning_seeds=1,
        live_seeds=1,
        workers=1,  # one GPU
        scenes_as="lite",
        image_layers=(6, 11),  # of twelve: half-way, and the last but one, from which the paper is said to take latents (S)
        text_layer=11,
        # latents of others, which do not depend on the encoders above: as in lite
        photo_sizes=(500, 1_000, 3_000, 6_000),
        note_sizes=(1_000, 3_000, 8_246),
        real_lengths=(300,),
    ),
    # One GPU of 80 GB, and RAM or a fast disk for the latents of five million pairs: Table 1 and Table 2. Marks as in
    # reported.yml: C official code, S secondary source, D arithmetic; what is not known to us is said.
    "paper": Profile(
        name="paper",
        made_for="H100",
        # DINOv2-g, BGE-large and E5-large, whose captions are cleaned first (C). The second image encoder is UNICOM (S), whose
        # size is not known to us and whose weights are pickled files behind code of their own (`registry.ENCODERS` says how to
        # bring them). In its place, by the same makers: a successor, and no row of Table 1.
        image_encoders=("facebook/dinov2-giant", "DeepGlint-AI/mlcd-vit-large-patch14-336"),
        text_encoders=("clean:BAAI/bge-large-en-v1.5", "clean:intfloat/e5-large-v2"),
        # HTS-AT and Whisper, concatenated (S); which checkpoint and which size is not known to us. The HTS-AT that the hub has
        # learned from captions, so AST stands in its place, supervised on AudioSet's labels as the paper's was.
        audio_encoders=("MIT/ast-finetuned-audioset-10-10-0.4593", "openai/whisper-large-v3"),
        image_text="coco+visual-genome+sbu+cc3m",  # C
        # Flickr30K is never trained on, COCO is (C). The official code keeps the epoch that is best on the Flickr30K *test*
        # split (C); here the choice falls on COCO's validation split, so that of Flickr30K nothing is seen.
        image_text_val="coco",
        image_text_tests=("flickr30k", "coco"),
        audio_text="audiocaps+clotho",  # S
        audio_text_tests=("audiocaps", "clotho"),
        precision="fp16",  # the official code extracts in fp32 (C); a latent differs by rounding, and days are saved
        in_memory=False,  # 47 GB in fp32, and an arm's subset again; a batch is 0.2 GB to read
        # 113,287 pictures of COCO, 108,077 of Visual Genome, some 860,000 of SBU and 3.0 million of CC3M, as far as their
        # addresses still answer: a run takes as many as there are.
        train_items=4_080_000,
        train_pairs=5_200_000,  # "5M" (S); 1 to 8 captions a picture
        val_items=5_000,
        test_items=1_000,
        captions=5,  # of the test sets
        audio_items=(53_677, 1_540, 975),  # AudioCaps 49,838 and Clotho 3,839 clips; 495 and 1,045; AudioCaps' test
        batch_size=20_480,  # in the loss, mixed from 40,960 rows (C; S says 20K)
        sizes=(160_000, 640_000, 2_000_000, 4_080_000),
        scarce=160_000,  # a quarter of it is the fewest that fill a batch
        audio_pairs=69_033,  # AudioCaps one caption each, Clotho five. The paper has 50K + 15K: Clotho's first version (D)
        audio_batch_size=8_192,  # not known; a quarter of the clips still fills it
        audio_sizes=(13_420, 53_677),
        audio_lengths=(2_000,),  # not known; 500 epochs of 4 steps, as many as for pictures
        shared_dim=512,  # S, C
        depth=4,  # C
        expansion=4,  # C
        lr=1e-3,  # C: to 1e-6 by a cosine a epoch; here to 0, step by step
        dropouts=(0.6,),  # C; a grid would take days, so that no mixing is not tuned here: say so, or override
        lengths=(63_000,),  # 500 epochs of 126 steps (D)
        warmup=100 / 63_000,  # 100 steps (C)
        seeds=3,  # the released run has one, 42 (C)
        tuning_seeds=1,
        live_seeds=1,
        workers=1,
        scenes_as="lite",
        image_layers=(12, 23),
        text_layer=23,  # of 24, the last but one
        batch_factors=(1 / 16, 0.25, 0.5, 2),  # four times the batch is 27 GB of similarities and their gradient again
        photo_sizes=(500, 1_000, 3_000, 6_000),
        note_sizes=(1_000, 3_000, 8_246),
        real_lengths=(300,),
    ),
}


#: Whole numbers that may be 0, and numbers that are shares; all others are above 0, whole ones 1 or more.
_FROM_0 = ("depth", "seed", "train_pairs", "audio_batch_size", "audio_pairs", "image_layers", "text_layer")
_SHARES = ("dropouts", "warmup")
_CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),  # `encoders.PRECISIONS`
    "scenes_as": ("", *_PROFILES),
}


def profile(name: str = "lite", /, **overrides) -> Profile:
    """The profile of that name with some values changed; an override of None leaves the profile's value.

    Args:
        name: "lite", "smoke", "colab" or "paper".
        overrides: any field of `Profile`. Lists do for tuples, as JSON and a notebook's parameters have them.

    Raises:
        FuseMixLiteError: no such profile, no such value, or a value of another kind or out of range.
    """
    if not isinstance(name, str) or name not in _PROFILES:
        raise FuseMixLiteError(f"unknown profile {name!r:.80}; there are {', '.join(_PROFILES)}")
    known = {f.name: f.type for f in fields(Profile) if f.name != "name"}
    changed = {}
    for key, value in overrides.items():
        if key not in known:
            raise FuseMixLiteError(f"a profile has no {key!r:.80}; it has {', '.join(sorted(known))}")
        if value is not None:
            changed[key] = _fitting(key, value, getattr(_PROFILES[name], key), known[key])
    return replace(_PROFILES[name], **changed)


def _fitting(key: str, value, usual, kind: type):
    """A value of the kind and range that a field has: lists become tuples, whole numbers do for fractions."""
    wrong = f"profile value {key} = {value!r:.80}"
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        if key.endswith("_encoders") and len(value) != 2:
            raise FuseMixLiteError(f"{wrong}: give two, the usual one and another, as {usual!r}")
        if key == "audio_items" and len(value) not in (0, 3):
            raise FuseMixLiteError(f"{wrong}: give three, to train, choose and test on, or none")
        if usual and not value:
            raise FuseMixLiteError(f"{wrong}: give one or more, as {usual!r}")
        return tuple(_fitting(key, one, usual[0] if usual else (), get_args(kind)[0]) for one in value)
    kinds = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}.get(kind, ())
    if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
        named = "tuple" if get_origin(kind) is tuple else kind.__name__
        raise FuseMixLiteError(f"{wrong}: give a {named}, as {usual!r}")
    if value not in _CHOICES.get(key, (value,)):
        raise FuseMixLiteError(f"{wrong}: choose one of {', '.join(map(repr, _CHOICES[key]))}")
    if key in _SHARES and not 0 <= value < 1:
        raise FuseMixLiteError(f"{wrong}: give a share, 0 or more and less than 1")
    least = 0 if key in _FROM_0 else 1
    if kind is int and not least <= value < 2**63:
        raise FuseMixLiteError(f"{wrong}: give {least} or more")
    if kind is float and key not in _SHARES and not 0 < value < math.inf:
        raise FuseMixLiteError(f"{wrong}: give a number above 0")
    return value
