"""fusemix_lite: align frozen unimodal encoders with FuseMix, on whatever machine you have.

    import fusemix_lite as fl

Names are loaded on first use, so that ``import fusemix_lite`` costs milliseconds and never pulls in torch by itself.
No submodule carries the name of an exported function: importing it would shadow the function.
"""

from importlib import import_module

from .errors import FuseMixLiteError

__version__ = "0.1.0"

_EXPORTS = {
    "adapters": ["FusionAdapter", "FusionModel"],
    "mixing": ["SCHEMES", "fusemix", "gaussian_noise", "no_mixing", "random_quantisation", "separate_lambda", "slerp"],
    "losses": ["symmetric_infonce"],
    "metrics": ["modality_gap", "recall_at_k", "retrieval"],
    "pairs": ["LatentPairs"],
    "store": ["LatentStore"],
    "verifying": ["repair", "verify"],
    "training": ["FitResult", "fit"],
    "checkpoints": ["Checkpoints"],
    "encoders": ["load_encoder"],
    "composed": ["callable_encoder"],
    "extraction": ["cached_latents", "extract", "use_cache"],
    "datasets": ["SoundingScenes", "scene_pairs"],
    "profiles": ["profile"],
    "searching": ["SearchIndex"],
    "arrays": ["load_array", "load_latent_pairs"],
    "files": ["FilePairs", "read_pairs", "split_items"],
    "public_data": ["open_dataset"],
    "public_pairs": ["PublicPairs"],
    "hub_data": ["read_hub"],
    "audits": ["audit"],
    "subsets": ["greedy_kdpp"],
    "similarity": ["cka", "mutual_knn"],
}
_MODULES = {"costs", "subsets"}  # used as fl.costs.fusion_cost
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = ["FuseMixLiteError", "__version__", *sorted(_HOME)]


def __getattr__(name: str):
    if name not in _HOME and name not in _MODULES:
        raise AttributeError(f"module 'fusemix_lite' has no attribute {name!r}")
    import_module(".versions", __name__).warn_once()  # before the import that it may break
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
