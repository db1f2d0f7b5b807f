"""The scales at which every chapter runs. A profile is a flat list of values; no code asks which profile it is on."""

from dataclasses import dataclass, fields, replace

from .errors import FuseMixLiteError


@dataclass(frozen=True)
class Profile:
    """Everything that a chapter or an experiment may want to know about its scale."""

    name: str
    # frozen encoders: the first of a modality is the default one
    image_encoders: tuple[str, ...]
    text_encoders: tuple[str, ...]
    audio_encoders: tuple[str, ...]
    # Sounding Scenes: scenes a split, captions a scene
    train_items: int
    val_items: int
    test_items: int
    captions: int
    # fusion: what every arm of a comparison shares
    sizes: tuple[int, ...]  # scenes to learn from, for the curve over pairs
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
}


def profile(name: str = "lite", **overrides) -> Profile:
    """The profile of that name with some values changed; an override of None leaves the profile's value."""
    if name not in _PROFILES:
        raise FuseMixLiteError(f"unknown profile {name!r}; there are {', '.join(_PROFILES)}")
    known = {f.name for f in fields(Profile)} - {"name"}
    for key in overrides:
        if key not in known:
            raise FuseMixLiteError(f"a profile has no {key!r}; it has {', '.join(sorted(known))}")
    return replace(_PROFILES[name], **{key: value for key, value in overrides.items() if value is not None})
