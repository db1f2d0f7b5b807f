"""Fusion adapters: the only trained part. Frozen latents in, a shared space out."""

import math
import re
from inspect import signature
from numbers import Integral, Real
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors.torch import save
from torch import Tensor, nn

from .disk import as_json, read_json, write_aside
from .errors import FuseMixLiteError
from .untrusted import LARGEST, load_fitting

IDENTITY = "identity"
TEMPERATURE, TEMPERATURE_RANGE = 0.07, (0.001, 0.5)
CONFIG, WEIGHTS = "config.json", "model.safetensors"

#: README.md of a saved model; the hub reads its head.
CARD = """\
---
{{ card_data }}
---

# FuseMix adapters

Small adapters that bring latents of frozen encoders into one shared space, trained with
[FuseMix]({{ paper_url }}) by fusemix-lite. `config.json` holds their shape; where `encoders.json` is there, it names the
encoders that they belong to.

    from fusemix_lite import FusionModel

    model = FusionModel.from_pretrained("this folder, or its id on the hub")

To be filled in by whoever passes it on: data, licence, what it is good and bad at.
"""


class ResidualBlock(nn.Module):
    """Pre-norm inverted bottleneck at constant width: (B, d) -> (B, d). Dropout follows the GELU only."""

    def __init__(self, dim: int, expansion: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, expansion * dim)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(expansion * dim, dim)

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.widen(self.norm(z))))  # (B, expansion * d)
        return z + self.narrow(hidden)


class FusionAdapter(nn.Module):
    """`depth` residual blocks at the encoder's width, LayerNorm, projection: (B, in_dim) -> (B, shared_dim).

    The output is not normalised; `FusionModel.embed` does that. With depth 0 it is a LayerNorm and a linear map.

    Source: official code, ``mlp_contrastive_fusion.py`` (depth 4, expansion 4, dropout 0.6, shared_dim 512).
    """

    def __init__(self, in_dim: int, shared_dim: int = 512, depth: int = 4, expansion: int = 4, dropout: float = 0.6):
        super().__init__()
        if not isinstance(depth, int) or depth < 0:
            raise FuseMixLiteError(f'depth = {depth!r}: give a number of blocks; "identity" is for a FusionModel')
        self.blocks = nn.Sequential(*(ResidualBlock(in_dim, expansion, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(in_dim)
        self.project = nn.Linear(in_dim, shared_dim)

    def forward(self, z: Tensor) -> Tensor:
        return self.project(self.norm(self.blocks(z)))


class Standardizer(nn.Module):
    """Subtract a mean and divide by a standard deviation that are kept, and saved, with the model: (B, d) -> (B, d)."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, z: Tensor) -> None:
        """Take the statistics of z (N, d), a tensor or `StoredRows`. A dimension that never varies is only centred."""
        std, mean = torch.std_mean(z, dim=0, correction=0) if isinstance(z, Tensor) else z.std_mean()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.std


class FusionModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="fusemix-lite",
    tags=["fusemix", "multimodal", "contrastive-learning"],
    paper_url="https://arxiv.org/abs/2312.10144",
    model_card_template=CARD,
):
    """One tower a modality, a shared space and a temperature.

    Args:
        in_dims: latent dimension of each modality, such as ``{"image": 1536, "text": 1024}``.
        shared_dim: dimension of the shared space.
        depth: residual blocks a tower: a number, or a dict by modality. ``"identity"`` freezes a modality: its latents
            are the shared space, so its dimension must be `shared_dim`.
        expansion: width of the hidden layer of a block, in multiples of the latent dimension.
        dropout: a probability, or a dict by modality.
        standardize: standardise latents first; statistics by `fit_standardizers`, saved with the weights.

    Attributes:
        temperature: 0-dim float32 parameter, starts at 0.07. `clamp_temperature` keeps it in [0.001, 0.5].

    Raises:
        FuseMixLiteError: an option that does not name every modality, or an identity of the wrong dimension.

    `save_pretrained(folder)` writes config.json and model.safetensors, `push_to_hub(repo_id)` uploads them.
    """

    def __init__(
        self,
        in_dims: dict[str, int],
        shared_dim: int = 512,
        depth: int | str | dict[str, int | str] = 4,
        expansion: int = 4,
        dropout: float | dict[str, float] = 0.6,
        standardize: bool = False,
    ):
        super().__init__()
        _check_shape(in_dims, shared_dim, depth, expansion, dropout, standardize)
        self.config = {
            "in_dims": {name: int(dim) for name, dim in in_dims.items()},
            "shared_dim": shared_dim,
            "depth": depth,
            "expansion": expansion,
            "dropout": dropout,
            "standardize": standardize,
        }
        self.in_dims = self.config["in_dims"]
        depths, dropouts = (_by_modality(option, in_dims) for option in (depth, dropout))
        self.towers, self.standardizers = nn.ModuleDict(), nn.ModuleDict()
        for name, dim in self.in_dims.items():
            if depths[name] == IDENTITY:
                if dim != shared_dim:
                    raise FuseMixLiteError(f"{name} is an identity: shared_dim must be {dim}, not {shared_dim}")
                self.towers[name] = nn.Identity()
                continue
            self.towers[name] = FusionAdapter(dim, shared_dim, depths[name], expansion, dropouts[name])
            if standardize:
                self.standardizers[name] = Standardizer(dim)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))

    def embed(self, modality: str, z: Tensor) -> Tensor:
        """Embed latents z (B, in_dims[modality]) into the shared space: (B, shared_dim), unit rows."""
        if modality not in self.in_dims:
            raise FuseMixLiteError(f"unknown modality {modality!r}: this model knows {', '.join(self.in_dims)}")
        if z.ndim != 2 or z.shape[1] != self.in_dims[modality]:
            expected = f"(B, {self.in_dims[modality]})"
            raise FuseMixLiteError(f"{modality} latents of shape {tuple(z.shape)}: this model takes {expected}")
        if modality in self.standardizers:
            z = self.standardizers[modality](z)
        z = self.towers[modality](z)
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)  # under autocast too

    def fit_standardizers(self, latents: dict[str, Tensor]) -> None:
        """Take the standardisation statistics from training latents by modality, each (N, d); nothing if it is off."""
        for name, standardizer in self.standardizers.items():
            standardizer.fit(latents[name])

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the temperature back into [0.001, 0.5]; `fit` does it after each step."""
        self.temperature.clamp_(*TEMPERATURE_RANGE)

    def _save_pretrained(self, save_directory: Path) -> None:
        # The mixin's own config would drop, without a word, an option that JSON cannot hold.
        write_aside(save_directory / CONFIG, as_json(self.config))
        # Not save_file, whose file only its owner may read.
        write_aside(save_directory / WEIGHTS, save({name: t.contiguous() for name, t in self.state_dict().items()}))

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub_options) -> "FusionModel":
        """Load a saved model, on the CPU, ready to evaluate. Weights must fit the configuration exactly.

        Args:
            source: a local folder, or a Hub id such as ``"name/model"`` (looked up only where no such folder exists).
            hub_options: for `huggingface_hub.snapshot_download`: revision, token, cache_dir, ...

        Raises:
            FuseMixLiteError: the folder or a file in it is missing, unreadable or does not fit the other.
        """
        folder = Path(source)
        if not folder.is_dir():
            if isinstance(source, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
                raise FuseMixLiteError(f"{source}: no such folder; give one that save_pretrained wrote, or a Hub id")
            folder = Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS], **hub_options))
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise FuseMixLiteError(f"{folder}: {file} is missing; save the model again with save_pretrained")
        config = read_json(folder / CONFIG, "save the model again with save_pretrained")
        try:
            options = signature(cls.__init__).bind(None, **config)  # None: self
            options.apply_defaults()
            depths = _check_shape(*options.args[1:])
        except (TypeError, FuseMixLiteError) as error:
            raise FuseMixLiteError(f"{folder / CONFIG} does not describe a FusionModel: {error}") from error
        try:
            model = load_fitting(lambda: cls(**config), folder / WEIGHTS, sum(d for d in depths.values() if d != IDENTITY))
        except Exception as error:  # safetensors and torch each raise their own kinds
            reason = " ".join(str(error).split())[:200]
            raise FuseMixLiteError(f"{folder / WEIGHTS} is broken or does not fit {CONFIG}: {reason}") from error
        if not model.temperature > 0 or not all(standardizer.std.gt(0).all() for standardizer in model.standardizers.values()):
            raise FuseMixLiteError(f"{folder / WEIGHTS} holds a temperature or a deviation that is not above 0: fit again")
        return model.eval()


def _check_shape(
    in_dims: dict[str, int],
    shared_dim: int,
    depth: int | str | dict[str, int | str],
    expansion: int,
    dropout: float | dict[str, float],
    standardize: bool,
) -> dict[str, int | str]:
    """The depth of each modality. Raises FuseMixLiteError for options of `FusionModel` of another kind, or out of range."""
    if not isinstance(in_dims, dict) or not in_dims:
        raise FuseMixLiteError(f"in_dims = {in_dims!r:.80}: give the latent dimension of each modality")
    for name in in_dims:
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
            raise FuseMixLiteError(f'a modality cannot be called {name!r:.80}: give a word without dots, such as "image"')
    depths, dropouts = (_by_modality(option, in_dims) for option in (depth, dropout))
    for what, number, least, most in (
        *((f"the dimension of {name}", dim, 1, LARGEST) for name, dim in in_dims.items()),
        *((f"the depth of {name}", number, 0, math.inf) for name, number in depths.items() if number != IDENTITY),
        ("shared_dim", shared_dim, 1, LARGEST),
        ("expansion", expansion, 1, LARGEST),
    ):
        if not isinstance(number, Integral) or isinstance(number, bool) or not least <= number <= most:
            span = f"of {least} or more" if most == math.inf else f"from {least} to {most:,}"
            raise FuseMixLiteError(f"{what} = {number!r:.80}: give a whole number {span}")
    for name, share in dropouts.items():
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 <= share <= 1:
            raise FuseMixLiteError(f"the dropout of {name} = {share!r:.80}: give a probability")
    if not isinstance(standardize, bool):
        raise FuseMixLiteError(f"standardize = {standardize!r:.80}: give True or False")
    return depths


def _by_modality(option, in_dims: dict[str, int]) -> dict:
    """Spell an option out by modality, from one value for all or a dict that names each."""
    if not isinstance(option, dict):
        return dict.fromkeys(in_dims, option)
    if option.keys() != in_dims.keys():
        raise FuseMixLiteError(f"{option!r:.200} must name each modality once: {', '.join(in_dims)}")
    return option
