"""Several processes, one batch: each embeds its share of the pairs, and all pairs are negatives of all.

Every process draws the same batch and mixes it alike, so that nothing has to be told but embeddings, two log-sum-exps a row,
and gradients. It embeds its own share, multiplies that with the embeddings of all (`losses.shared_infonce`), and gets the
gradients that a single process would have found for these rows. Those of the adapters' weights, and of the temperature, are
then sums over the processes. No gradient travels back through the gathering.

What is not divided: mixing the batch, the optimiser's step, and looking at validation.

Any launcher will do that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and LOCAL_RANK where a machine has several GPUs:

    torchrun --nproc-per-node 8 -m fusemix_lite fit latents --out model
    accelerate launch --multi_gpu --num_processes 8 -m fusemix_lite fit latents --out model
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch import distributed as dist

from .adapters import FusionModel
from .checkpoints import differences
from .device import seed_generators
from .errors import FuseMixLiteError
from .launched import Share, in_a_group
from .losses import shared_infonce
from .resuming import Run


class Processes:
    """The processes that fit one model together. One alone has nobody to talk to, and does as it always did.

    Attributes:
        share: this process's.
        device: where tensors are that are sent.
    """

    def __init__(self, share: Share, device: torch.device):
        self.share, self.device = share, device

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks, and writes files."""
        return self.share.rank == 0

    def seed_dropout(self, seed: int, step: int) -> None:
        """Masks of a step that depend on the process, as its rows do, and on nothing that a checkpoint would have to hold."""
        if self.share.world > 1:
            seed_generators(random.Random(f"{seed} {step} {self.share.rank}").getrandbits(63), self.device)

    def loss(self, u: Tensor, v: Tensor, temperature: Tensor, total: int, same: Tensor | None = None) -> Tensor:
        """`symmetric_infonce` of a batch of `total` rows, of which this process has embedded its share u, v (b, D).

        Its gradients have to go through `add_gradients`.
        """
        return shared_infonce(u, v, temperature, self.share.rows(total), lambda own: self.gather(own, total), same)

    def gather(self, own: Tensor, total: int) -> Tensor:
        """The rows (total, k) of all processes, in order, of which this one has its share (b, k)."""
        places = [Share(rank, self.share.world).rows(total) for rank in range(self.share.world)]
        longest = max(place.stop - place.start for place in places)
        sent = own.new_zeros(longest, own.shape[1])  # shares may differ by a row, what is sent must not
        sent[: len(own)] = own
        got = [torch.empty_like(sent) for _ in places]
        self._do(dist.all_gather, got, sent)
        return torch.cat([part[: place.stop - place.start] for part, place in zip(got, places, strict=True)])

    def add_gradients(self, model: FusionModel, stop: bool) -> bool | None:
        """Replace gradients by their sums over the processes.

        Returns whether any process was asked to stop, so that all of them do after the same step; None for one alone.
        """
        if self.share.world == 1:
            return None
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        asked = torch.full((1,), float(stop), dtype=grads[0].dtype, device=self.device)
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), asked])  # one message instead of one a weight
        self._do(dist.all_reduce, flat)
        *totals, asked = flat.split([*(grad.numel() for grad in grads), 1])
        for grad, total in zip(grads, totals, strict=True):
            grad.copy_(total.view_as(grad))
        return bool(asked.item())

    def check_alike(self, identity: dict) -> None:
        """Raise FuseMixLiteError where the processes are not about the same run, as they would fit something in between."""
        if self.share.world == 1:
            return
        if self.device.type == "cuda":  # another one may draw another batch from the same seed
            identity = identity | {"GPU": torch.cuda.get_device_name(self.device)}
        own = json.dumps(identity, default=float)
        other = differences(json.loads(own), json.loads(self._told(own.encode())))
        odd = torch.tensor([float(bool(other))], device=self.device)
        self._do(dist.all_reduce, odd)
        if odd.item():  # all of them stop, each with what it knows
            what = f"this one has {other}" if other else f"{odd.item():.0f} of them differ from the first"
            alone = "for fits of their own unset RANK and WORLD_SIZE, or leave your process group before"
            why = f"{self.share.world} processes of one launch fit one model together, but {what}"
            raise FuseMixLiteError(f"{why}: give all of them the same; {alone}")

    def start_alike(self, run: Run, begin: Callable[[], int]) -> int:
        """Bring a run to where that of the first process is. Returns how many steps are done.

        `begin` returns that in each process; what it raises in the first one is raised in all, so that nobody waits for it.
        """
        if self.share.world == 1:
            return begin()
        error, done, tensors, facts = None, 0, {}, {}
        try:
            done = begin()
            tensors, facts = run.state() if self.first and done else ({}, {})
        except FuseMixLiteError as found:
            error = found
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        facts = facts | {"step": done, "error": None if error is None else str(error)}
        told, content = json.loads(self._told(json.dumps(facts).encode())), self._told(save(tensors))
        if error is not None:
            raise error
        if told["error"] is not None:
            raise FuseMixLiteError(f"the first process stops: {told['error']}")
        if told["step"] and not self.first:
            run.restore(load(content), told)
        return told["step"]

    def _told(self, content: bytes) -> bytes:
        """What the first process has; the others' is forgotten."""
        size = torch.tensor([len(content)], device=self.device)
        self._do(dist.broadcast, size, 0)
        sent = torch.zeros(int(size), dtype=torch.uint8)
        if self.first:
            sent = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        sent = sent.to(self.device)
        self._do(dist.broadcast, sent, 0)
        return sent.cpu().numpy().tobytes()

    def _do(self, talk: Callable, *given) -> None:
        try:
            talk(*given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _gone(self.share, error) from error


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that a launcher has started together with this one; it alone where there is no launcher.

    Where the caller has set up torch.distributed already, that is used, and left as it is.

    Raises FuseMixLiteError if the others cannot be reached, or one of them is gone while there is work. Between GPUs (NCCL)
    nobody notices that; there it is the launcher who ends those that are left.
    """
    share = Share.of_this_process()
    if share.world == 1 or in_a_group():
        yield Processes(share, device)
        return
    if not dist.is_available():
        raise FuseMixLiteError("this torch has no torch.distributed: unset RANK and WORLD_SIZE, or install one that has")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        why = f"WORLD_SIZE={share.world}, but no {' and '.join(missing)}"
        raise FuseMixLiteError(f"{why}: start fit with torchrun or accelerate launch, or unset RANK and WORLD_SIZE")
    here, gpus = os.environ.get("LOCAL_WORLD_SIZE", "1"), torch.cuda.device_count()
    if device.type == "cuda" and here.isdecimal() and int(here) > gpus > 1:  # 1: each process may see one of its own
        raise FuseMixLiteError(f"{here} processes for {gpus} GPUs: fit takes one process a GPU, start {gpus}")
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise _gone(share, error) from error
    try:
        yield Processes(share, device)
    finally:
        time.sleep(0.1)  # right after a message, gloo of torch 2.6 may wait for its own threads for ever
        dist.destroy_process_group()


def _gone(share: Share, error: Exception) -> FuseMixLiteError:
    told = " ".join(str(error).split())[:200]
    where = f"process {share.rank + 1} of {share.world} cannot reach the others ({told})"
    return FuseMixLiteError(f"{where}: if one has stopped, it says why; the same command goes on from the last checkpoint")
