"""The contrastive objective."""

import torch
from torch import Tensor

from .errors import FuseMixLiteError


def symmetric_infonce(u: Tensor, v: Tensor, temperature: Tensor | float, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE: the mean of the cross-entropies of finding ``v[i]`` from ``u[i]`` and ``u[i]`` from ``v[i]``.

    Row i of `u` and row i of `v` are the positive pair; every other row of the batch is a negative, in both directions.
    That holds for a second caption of the same image too, as in the official code, unless `same` says otherwise.

    Args:
        u: (B, D) embeddings of one modality, unit rows. They are never normalised here.
        v: (B, D) embeddings of the other modality, unit rows.
        temperature: positive scalar that divides the cosine similarities.
        same: (B, B) bool, true where row i and row j are about one item and so no negatives of each other: they are left
            out of both denominators. The diagonal is never left out.

    Returns:
        A scalar in nats, 0 at best and log(B) where all embeddings are alike.

    Raises:
        FuseMixLiteError: `u` and `v` differ in shape or are not matrices, or `same` does not fit them.

    Source: the paper's L_sym (arXiv 2312.10144); official code, ``mlp_contrastive_fusion.py``.
    """
    if u.ndim != 2 or u.shape != v.shape:
        raise FuseMixLiteError(f"symmetric_infonce: u {tuple(u.shape)}, v {tuple(v.shape)}; both must be (B, D)")
    logits = (u / temperature) @ v.T  # (B, B), row i: u[i] against every v
    targets = logits.diagonal()
    if same is not None:
        if same.shape != logits.shape or same.dtype != torch.bool:
            raise FuseMixLiteError(f"symmetric_infonce: same {tuple(same.shape)} {same.dtype}; it must be (B, B) bool")
        kept = torch.eye(len(u), dtype=torch.bool, device=u.device)
        logits = logits.masked_fill(same & ~kept, -torch.inf)
    # Cross-entropy is logsumexp minus the logit of the target, and both directions share their targets: the diagonal.
    u_to_v, v_to_u = torch.logsumexp(logits, dim=1), torch.logsumexp(logits, dim=0)  # (B,), (B,)
    return (u_to_v + v_to_u).mean() / 2 - targets.mean()
