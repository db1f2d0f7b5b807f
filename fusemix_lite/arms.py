"""What each record is made of: the arms of every experiment, and what it changes in a profile.

An arm is a flat dict: ``scheme`` and ``items`` wherever something is trained, and whatever else it does otherwise than usual.

    data, image, audio, text   which pairs ("image-text", "audio-text": of what the profile measures on), which encoders
                               ("a+b": concatenated; "a@2": hidden layer 2)
    captions, wording          how many captions an item, in which words
    train_captions, noise      how many in training only; the share of them that is degraded as on the web
    clean                      that many of the items keep undegraded captions
    skew                       of the world that training, validation and test scenes come from; then a test on even ones too
    pool, pick                 how many items there are to pick from, and by which way of `subsets.pick`
    unit                       latents are scaled to norm 1 first
    steps, dropout             take the place of the grid
    swap, before, kept         the tower that is replaced, the encoder the other was trained with, and whether it was
    generator, told, correct   what draws, from a sound or a caption, and how the sound's latents are moved first
    null                       "again": the same on other seeds; "shuffled": pairs that do not match; "shuffled-b": of two
                               concatenated encoders the second one's latents belong to other items

Everything else is an option of `fusemix_lite.fit`, as ``depth`` or ``alpha``.

``noise``, ``clean``, ``skew`` and ``wording`` are knobs of Sounding Scenes: nobody knows which caption of a public data set is
careless, and what degrades one here (`scene_text.degrade`) tells of this world's things. So experiments with them, those that
train from scratch and those that draw run in Sounding Scenes at every profile: ``Experiment.scale`` takes ``p.scenes``, which
has the profile's encoders, or ``p.small``, which has the small ones. On public data, quality is another data set: a record with
``--set image_text=sbu+cc3m`` beside one with ``--set image_text=coco+visual-genome``, at the same sizes.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from .mixing import SCHEMES
from .profiles import Profile
from .real import REAL


def arms_fusemix(p: Profile) -> list[dict]:
    """Chapter "FuseMix": the curve over pairs for three schemes, all schemes where pairs are scarce, the same three with
    another image encoder and with a schedule three times as long as the longest of the grid, and the nulls."""
    three = ("none", "separate", "fusemix")
    curve = [{"scheme": s, "items": n} for n, s in product(p.sizes, three)]
    rivals = [{"scheme": s, "items": p.scarce} for s in ("noise", "quantise", "slerp")]
    swapped = [{"scheme": s, "items": p.scarce, "image": p.image_encoders[1]} for s in three]
    longer = [{"scheme": s, "items": p.scarce, "steps": 3 * p.lengths[-1]} for s in three]
    nulls = [
        {"scheme": "none", "items": p.scarce, "null": "again"},  # the same arm on other seeds: no difference
        {"scheme": "fusemix", "items": p.scarce, "null": "shuffled"},  # pairs that do not match: chance
    ]
    return curve + rivals + swapped + longer + nulls


def arms_retrieval(p: Profile) -> list[dict]:
    """Chapter "Image-text retrieval": all encoder pairs on all pairs, with FuseMix and without, and the null."""
    pairs = list(product(p.image_encoders, p.text_encoders))
    arms = [{"scheme": s, "items": p.train_items, "image": i, "text": t} for (i, t), s in product(pairs, ("none", "fusemix"))]
    image, text = pairs[0]
    return [*arms, {"scheme": "fusemix", "items": p.train_items, "image": image, "text": text, "null": "shuffled"}]


def arms_audio(p: Profile) -> list[dict]:
    """Chapter "Audio-text retrieval": all encoder pairs, two audio encoders concatenated among them, on all pairs with
    FuseMix, and without it for the first text encoder; the schemes where pairs are scarce; the nulls."""
    (a, b), text, both = p.audio_encoders, p.text_encoders[0], "+".join(p.audio_encoders)
    data = {"data": "audio-text"}
    full = [
        {**data, "scheme": s, "items": p.train_items, "audio": audio, "text": t}
        for audio, (s, t) in product((a, b, both), [("none", text), *product(("fusemix",), p.text_encoders)])
    ]
    few = [(a, "none"), (a, "separate"), (a, "fusemix"), (both, "none"), (both, "fusemix")]
    scarce = [{**data, "scheme": s, "items": p.scarce, "audio": audio} for audio, s in few]
    nulls = [
        {**data, "scheme": "none", "items": p.scarce, "audio": a, "null": "again"},
        {**data, "scheme": "fusemix", "items": p.train_items, "audio": a, "text": text, "null": "again"},
        {**data, "scheme": "fusemix", "items": p.train_items, "audio": a, "text": text, "null": "shuffled"},
    ]
    return full + scarce + nulls


def arms_wording(p: Profile) -> list[dict]:
    """Why FuseMix trails on templated captions: the same sounds, told once by a person or by a template, at two sizes, and
    by five people at the larger one."""
    once, five = ({"captions": 1}, {"captions": 1, "wording": "template"}), ({},)
    told = [*product(once, (p.sizes[1],)), *product((*five, *once), (p.sizes[-1],))]
    return [{"data": "audio-text", "scheme": s, "items": n, **how} for (how, n), s in product(told, ("none", "fusemix"))]


def arms_quantity(p: Profile) -> list[dict]:
    """Chapter "Quantity, quality, diversity": fewer scenes than the record of chapter "FuseMix" begins with, and the null."""
    few = [{"scheme": s, "items": n} for n, s in product((p.scarce // 4, p.scarce // 2), ("none", "fusemix"))]
    return [*few, {**few[0], "null": "again"}]


def arms_quality(p: Profile) -> list[dict]:
    """The same chapter: one caption a scene, careful or as on the web, from few scenes to all; the ends without mixing too;
    few careful ones among many of the web; the null."""
    kinds = {"train_captions": 1}, {"train_captions": 1, "noise": 0.5}
    few, many = p.sizes[1 % len(p.sizes)], p.sizes[-1]
    fewer = [{**kinds[0], "scheme": "fusemix", "items": n} for n in (p.scarce // 2, p.scarce)]  # what many of the web are worth
    curve = [{**kind, "scheme": "fusemix", "items": n} for kind, n in product(kinds, p.sizes[1:])]
    ends = [{**kind, "scheme": "none", "items": n} for kind, n in product(kinds, dict.fromkeys((few, many)))]
    both = {**kinds[1], "scheme": "fusemix", "items": p.sizes[-1], "clean": p.scarce}
    return [*fewer, *curve, *ends, both, {**kinds[0], "scheme": "fusemix", "items": few, "null": "again"}]


def arms_diversity(p: Profile) -> list[dict]:
    """The same chapter: subsets of a pool, each way to pick and each side, from a skewed world and from an even one; fewer
    and more items for two of them; the null."""
    pool = {"scheme": "fusemix", "pool": p.train_items // 2}
    ways = ("uniform", "kdpp-x", "kdpp-y", "kdpp-both", "kdpp-x-centred", "kcentre-x", "clusters-x", "redundant-x")
    skewed = [{**pool, "skew": 1.0, "pick": way, "items": p.scarce} for way in ways]
    even = [{**pool, "pick": way, "items": p.scarce} for way in ("uniform", "kdpp-x", "kdpp-y", "redundant-x")]
    sizes = (p.scarce // 4, p.train_items // 4)
    other = [{**pool, "skew": 1.0, "pick": way, "items": n} for n, way in product(sizes, ("uniform", "kdpp-x"))]
    return [*skewed, *even, *other, {**skewed[0], "null": "again"}]


def arms_diversity_flickr8k(p: Profile) -> list[dict]:
    """The same chapter: subsets of half of the real photos."""
    pool = {"data": "flickr8k", "scheme": "fusemix", "pool": p.train_items // 2, "items": p.scarce}
    arms = [{**pool, "pick": way} for way in ("uniform", "kdpp-x", "kdpp-y", "kcentre-x", "redundant-x")]
    return [*arms, {**arms[0], "null": "again"}]


def arms_ablations(p: Profile) -> list[dict]:
    """Chapter "Ablations": where pairs are scarce, one thing at a time is otherwise than in the arms without more."""
    two, three = ("none", "fusemix"), ("none", "separate", "fusemix")
    few, steps = p.scarce, p.lengths[-1]
    batches = [(round(p.batch_size * f), max(1, round(steps / f))) for f in p.batch_factors]  # as many pairs seen in all
    changes = [
        *({"batch_size": size, "steps": n} for size, n in batches),
        *({"depth": depth} for depth in (0, 2, 4)),
        *({"expansion": expansion} for expansion in (1, 8)),
        *({"shared_dim": dim} for dim in (8, 32, 512)),
        *({"alpha": alpha} for alpha in (0.1, 3.0)),
        {"per": "pair"},
        {"mix_probability": 0.5},
        *({"image": f"{p.image_encoders[1]}{layer}"} for layer in (*(f"@{n}" for n in p.image_layers), "")),
    ]
    for_both = [
        *({"dropout": dropout} for dropout in (0.0, 0.2, 0.4, 0.6, 0.8)),
        {"unit": True},
        {"standardize": True},
        {"mask_negatives": True},
    ]
    return [
        *({"scheme": s, "items": few} for s in (*three, "noise", "quantise")),
        *({"scheme": "fusemix", "items": few, **change} for change in changes),
        *({"scheme": s, "items": few, **change} for change, s in product(for_both, two)),
        *({"scheme": "none", "items": few, "batch_size": size, "steps": n} for size, n in (batches[0], batches[-1])),
        *({"scheme": s, "items": few, "temperature": t} for t, s in product((0.01, 0.03, 0.1), three)),
        {"scheme": "none", "items": few, "null": "again"},
    ]


def arms_scratch(p: Profile) -> list[dict]:
    """Chapter "Compute and data efficiency": both encoders trained from scratch, end to end, from few scenes to all, three
    times as long with all of them; the fusion runs that it is compared with; the null."""
    sizes = tuple(dict.fromkeys((p.scarce, p.sizes[len(p.sizes) // 2], p.sizes[-1])))
    steps, usual = p.lengths[-1], {"scheme": "scratch", "dropout": p.dropouts[0]}
    ends = dict.fromkeys((sizes[0], sizes[-1]))
    scratch = [*({**usual, "items": n, "steps": steps} for n in ends), {**usual, "items": sizes[-1], "steps": 3 * steps}]
    plain = [{**arm, "views": False} for arm in scratch[-2:]]  # with all scenes, changing pictures does harm
    fusion = [{"scheme": s, "items": n} for n, s in product(sizes, ("none", "fusemix"))]
    return [*scratch, *plain, *fusion, {"scheme": "none", "items": p.scarce, "null": "again"}]


def arms_precision(p: Profile) -> list[dict]:
    """The same chapter: matrix products of training in half precision, with few scenes and with all."""
    halved = ({}, {"precision": "bf16"})
    return [{"scheme": "fusemix", "items": n, **how} for n, how in product((p.scarce, p.sizes[-1]), halved)]


def arms_plug(p: Profile) -> list[dict]:
    """Chapter "Plug and play": every image encoder, two layers of one and two together, with every text encoder; the same for
    sounds; what in a concatenation counts; the nulls. Latents are standardised, since `lite-audio-b`'s vary 30 times less
    than `lite-audio-a`'s and would count for nothing beside them."""
    (a, b), (ta, tb), (sa, sb) = p.image_encoders, p.text_encoders, p.audio_encoders
    images = (a, b, f"{a}+{b}", *(f"{b}@{layer}" for layer in p.image_layers))
    texts = (ta, tb, f"{ta}+{tb}", f"{tb}@{p.text_layer}")
    arm, sound = _plugged(p), {**_plugged(p.sounds), "data": "audio-text"}
    if p.sounds.batch_size != p.batch_size:
        sound["batch_size"] = p.sounds.batch_size
    return [
        *({**arm, "image": image, "text": text} for image, text in product(images, texts)),
        *({**sound, "audio": audio, "text": text} for audio, text in product((sa, sb, f"{sa}+{sb}"), (ta, tb))),
        {**arm, "image": f"{a}+{a}", "text": ta},  # wider, and nothing else
        {**arm, "image": f"{a}+{b}", "text": ta, "null": "shuffled-b"},
        {**sound, "audio": f"{sa}+{sb}", "text": ta, "null": "shuffled-b"},
        {**arm, "image": a, "text": ta, "null": "again"},
        {**sound, "audio": sa, "text": ta, "null": "again"},
        {**arm, "image": b, "text": tb, "null": "shuffled"},
    ]


def arms_swap(p: Profile) -> list[dict]:
    """The same chapter: one tower is replaced, the other kept as it was trained (with the encoder `before`) or untrained
    (`kept`); both trained anew; the null."""
    (a, b), (ta, tb), arm = p.image_encoders, p.text_encoders, _plugged(p)
    image = {**arm, "image": a, "text": ta, "swap": "image", "before": b}
    return [
        *({**arm, "image": i, "text": t} for i, t in ((a, ta), (b, ta), (a, tb))),
        image,
        {**arm, "image": a, "text": ta, "swap": "text", "before": tb},
        {**arm, "image": b, "text": ta, "swap": "image", "before": a},
        {**image, "kept": "untrained"},
        {**arm, "image": a, "text": ta, "null": "again"},
    ]


def arms_generation(p: Profile) -> list[dict]:
    """Chapter "Audio to image": pictures from sounds, with corrections of three strengths, and from captions, those of sounds
    moved as well; the floor of sounds that belong to other scenes; the null."""
    here = {"data": "audio-text", "generator": "lite-generator"}
    sound = {**here, "scheme": "fusemix", "items": p.train_items, "told": "sound"}
    main = {**sound, "correct": "mean"}
    return [
        {**here, "told": "image-caption"},
        {**here, "told": "audio-caption"},
        {**here, "told": "audio-caption", "correct": "mean"},
        main,
        {**sound, "correct": "none"},
        {**sound, "correct": "spread"},
        {**main, "scheme": "none"},
        {**main, "null": "shuffled"},
        {**main, "scheme": "none", "null": "shuffled"},
        {**main, "null": "again"},
    ]


def _plugged(p: Profile) -> dict:
    own = {"standardize": True, "dropout": 0.2, "steps": max(1, p.lengths[-1] // 2)}
    return {"scheme": "fusemix", "items": p.train_items // 4, **own}


def shorter(p: Profile) -> Profile:
    """The scale of many arms: one length, half the usual longest, and half the seeds."""
    return replace(p, lengths=(max(1, p.lengths[-1] // 2),), dropouts=p.dropouts[-2:], seeds=max(2, p.seeds // 2))


def middling(p: Profile) -> Profile:
    """In between: two thirds of the usual longest length, the ends of the grid, and half the seeds."""
    steps, dropouts = max(1, p.lengths[-1] * 2 // 3), tuple(dict.fromkeys((p.dropouts[0], p.dropouts[-1])))
    return replace(p, lengths=(steps,), dropouts=dropouts, seeds=max(2, p.seeds // 2))


def longer(p: Profile) -> Profile:
    """The scale where pairs are up to all of them: one length, the longest, and half the seeds."""
    return replace(p, lengths=p.lengths[-1:], seeds=max(2, p.seeds // 2))


def arms_flickr8k(p: Profile) -> list[dict]:
    """Chapter "Real photos, real sounds": every scheme at every size, two with three times the steps, the nulls."""
    here = {"data": "flickr8k"}
    curve = [{**here, "scheme": s, "items": n} for n, s in product(p.sizes, SCHEMES)]
    return curve + _at_full_size(p, here, steps=3 * p.lengths[-1]) + _real_nulls(p, here)


def arms_philharmonia(p: Profile) -> list[dict]:
    """The same chapter: three schemes over the sizes, two with four times the steps and with standardised latents, the
    nulls."""
    here, three = {"data": "philharmonia"}, ("none", "separate", "fusemix")
    curve = [{**here, "scheme": s, "items": n} for n, s in product(p.sizes, three)]
    longer, scaled = _at_full_size(p, here, steps=4 * p.lengths[-1]), _at_full_size(p, here, standardize=True)
    return curve + longer + scaled + _real_nulls(p, here)


def _at_full_size(p: Profile, here: dict, **otherwise) -> list[dict]:
    """No mixing and FuseMix on all items, with something else than usual."""
    return [{**here, "scheme": s, "items": p.sizes[-1], **otherwise} for s in ("none", "fusemix")]


def _real_nulls(p: Profile, here: dict) -> list[dict]:
    return [
        {**here, "scheme": "none", "items": p.scarce, "null": "again"},
        {**here, "scheme": "fusemix", "items": p.sizes[-1], "null": "shuffled"},
    ]


def photos(p: Profile) -> Profile:
    """The scale on Flickr8K: latents of others, not of the profile's encoders, so a scale of their own as well."""
    return _on_real(p.scenes, p.photo_sizes, "flickr8k")


def notes(p: Profile) -> Profile:
    """The scale on the Philharmonia notes."""
    return _on_real(p.scenes, p.note_sizes, "philharmonia")


def _on_real(p: Profile, sizes: tuple[int, ...], name: str) -> Profile:
    own = {"sizes": sizes, "scarce": sizes[0], "train_items": sizes[-1], "lengths": p.real_lengths}
    return replace(p, **own, captions=REAL[name].captions)


def in_scenes(scale: Callable[[Profile], Profile]) -> Callable[[Profile], Profile]:
    """The scale of an experiment that runs in Sounding Scenes at every profile: it turns a knob of that world."""
    return lambda p: scale(p.scenes)


def as_it_is(p: Profile) -> Profile:
    return p


class Experiment(NamedTuple):
    """What a record is made of: its arms, what it changes in a profile before they are drawn up, and the module whose
    ``run`` makes one run of an arm."""

    arms: Callable[[Profile], list[dict]]
    scale: Callable[[Profile], Profile] = as_it_is
    module: str = "experiments"


EXPERIMENTS = {
    "fusemix": Experiment(arms_fusemix),
    "retrieval": Experiment(arms_retrieval),
    "audio": Experiment(arms_audio, lambda p: p.sounds),
    "wording": Experiment(arms_wording, in_scenes(as_it_is)),
    "flickr8k": Experiment(arms_flickr8k, photos),
    "philharmonia": Experiment(arms_philharmonia, notes),
    "quantity": Experiment(arms_quantity),
    "quality": Experiment(arms_quality, in_scenes(middling)),
    "diversity": Experiment(arms_diversity, in_scenes(shorter)),
    "diversity-flickr8k": Experiment(arms_diversity_flickr8k, lambda p: longer(photos(p))),
    "ablations": Experiment(arms_ablations, shorter),
    "precision": Experiment(arms_precision),
    "plug": Experiment(arms_plug, longer),
    "swap": Experiment(arms_swap, longer, "swapping"),
    # Its runs are short, and arms share adapters: all the seeds.
    "generation": Experiment(arms_generation, lambda p: replace(longer(p.small), seeds=p.seeds), "generation"),
    # A run from scratch takes minutes: three seeds.
    "scratch": Experiment(arms_scratch, lambda p: replace(longer(p.small), seeds=min(p.seeds, 3)), "end_to_end"),
}


def plan(name: str, p: Profile) -> tuple[Profile, list[dict]]:
    """The scale and the arms of an experiment under a profile."""
    scaled = EXPERIMENTS[name].scale(p)
    return scaled, EXPERIMENTS[name].arms(scaled)
