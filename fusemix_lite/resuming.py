"""Where a training run stands, as a checkpoint holds it and as a run goes on from it: every tensor, generator and number."""

import hashlib
import math
import time
import warnings
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from .checkpoints import State, check_layout
from .pairs import LatentPairs
from .rows import STATISTICS


class Batches(Sized, Protocol):
    """Batches of shuffled epochs that can be gone on with: see `training.ShuffledBatches`."""

    generator: Generator
    epoch: Tensor
    taken: int

    def go_to(self, epoch: Tensor, taken: int) -> None: ...


@dataclass
class Run:
    """Where a training run stands: all that its checkpoints hold.

    Attributes:
        model, optimizer, batches: as the last step left them.
        steps: of the whole run.
        started: what `time.perf_counter` said then.
        columns: the numbers that every step notes.
        history, best, best_step, best_mean: what has come of it; `best` holds the weights of the best look at validation.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    steps: int
    started: float
    columns: tuple[str, ...] = ("loss", "temperature", "lr")
    history: list[dict] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_step: int = 0
    best_mean: float = -1.0

    def add(self, entry: dict) -> None:
        """Note a step. Where it looked at validation, keep the weights if they are the best."""
        self.history.append(entry)
        if self._is_best(entry):
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def finished(self) -> tuple[nn.Module, list[dict], int]:
        """The model with its best weights (the last ones where nobody looked), the history, and the step that they are of."""
        if self.best is not None:
            self.model.load_state_dict(self.best)
        return self.model.eval(), self.history, self.best_step or self.steps

    @property
    def seconds(self) -> float:
        """Wall time, that of processes before this one too."""
        return time.perf_counter() - self.started

    def state(self) -> State:
        """What it takes to go on from here, bit for bit."""
        tensors = self._weights(self.best) | {f"generator/{name}": g.get_state() for name, g in self._generators().items()}
        for name, p in self._learning().items():
            tensors |= {f"{what}/{name}": moment for what, moment in self.optimizer.state[p].items()}
        tensors["epoch"] = self.batches.epoch
        history = [[entry[what] for what in self.columns] for entry in self.history]
        tensors["history"] = torch.tensor(history, dtype=torch.float64)  # as JSON, a million steps would not fit a header
        looks = [{what: entry[what] for what in ("step", "val", "val_mean")} for entry in self.history if "val" in entry]
        facts = {"taken": self.batches.taken, "looks": looks, "seconds": self.seconds, "threads": torch.get_num_threads()}
        return tensors, facts

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], facts: dict) -> None:
        """Become the run that `state` told of. What is no such state raises some error and changes nothing."""
        step, taken, seconds, looks = facts["step"], facts["taken"], facts["seconds"], [*map(_plain_look, facts["looks"])]
        generators, learning, weights = self._generators(), self._learning(), self.model.state_dict()
        if {type(step), type(taken)} != {int} or not (1 <= step <= self.steps and 1 <= taken <= len(self.batches)):
            raise ValueError(f"it stands at batch {taken!r} of step {step!r}")
        if not 0 <= seconds < math.inf or not all(1 <= look["step"] <= step for look in looks):
            raise ValueError("its facts are out of range")
        like = self._weights(weights if looks else None)
        like |= {f"generator/{name}": generator.get_state() for name, generator in generators.items()}
        for name, p in learning.items():
            like |= {f"step/{name}": torch.zeros(()), f"exp_avg/{name}": p, f"exp_avg_sq/{name}": p}
        like["epoch"] = self.batches.generator.get_state()
        like["history"] = torch.empty(step, len(self.columns), dtype=torch.float64, device="meta")
        check_layout(tensors, like)
        for name, generator in generators.items():
            Generator(generator.device).set_state(tensors[f"generator/{name}"])  # refuses what is no state
        Generator(self.batches.generator.device).set_state(tensors["epoch"])
        if facts.get("threads") != torch.get_num_threads():
            told = f"{torch.get_num_threads()} threads, begun with {facts.get('threads')!r:.20}"
            warnings.warn(f"{told}: the last digits may differ from those of a run that was not stopped", stacklevel=4)

        self.best = {name: tensor.clone() for name, tensor in weights.items()} if looks else None
        for name, tensor in self._weights(self.best).items():
            tensor.copy_(tensors[name])
        for name, p in learning.items():  # in memory laid out as the weights are, as the optimiser would have made them
            moments = {what: torch.empty_like(p).copy_(tensors[f"{what}/{name}"]) for what in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[p] = {"step": tensors[f"step/{name}"].clone().to(p.device), **moments}
        self.batches.go_to(tensors["epoch"], taken)
        for name, generator in generators.items():
            generator.set_state(tensors[f"generator/{name}"].clone())
        rows = enumerate(tensors["history"].tolist(), 1)
        self.history = [{"step": i} | dict(zip(self.columns, row, strict=True)) for i, row in rows]
        self.best_step, self.best_mean = 0, -1.0
        for look in looks:
            self.history[look["step"] - 1] |= look
            self._is_best(look)
        self.started -= seconds

    def _is_best(self, entry: dict) -> bool:
        if entry.get("val_mean", -1.0) <= self.best_mean:
            return False
        self.best_step, self.best_mean = entry["step"], entry["val_mean"]
        return True

    def _weights(self, best: dict[str, Tensor] | None) -> dict[str, Tensor]:
        parts = {"model": self.model.state_dict(), "best": best or {}}
        return {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}

    def _learning(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _generators(self) -> dict[str, Generator]:
        """All that anything random of a step comes from."""
        device = next(self.model.parameters()).device
        found = {"batches": self.batches.generator, "cpu": torch.default_generator}
        return found | ({"cuda": torch.cuda.default_generators[device.index]} if device.type == "cuda" else {})


def stamp(pairs: LatentPairs) -> str:
    """What tells pairs from others: sizes, and a digest of their numbers; of large ones, of rows evenly spread over them."""
    digest = hashlib.sha256(pairs.owner.numpy())
    for z in (pairs.x, pairs.y):
        rows = torch.linspace(0, len(z) - 1, min(len(z), max(2, STATISTICS // z.shape[1])), dtype=torch.float64)
        digest.update(z.index_select(0, rows.round().long()).contiguous().numpy())
    return f"{pairs!r} {digest.hexdigest()[:16]}"


def _plain_look(look: dict) -> dict:
    """A look at validation, as it was before JSON made texts of its ks."""
    val = {way: {int(k): value for k, value in at.items()} for way, at in look["val"].items()}
    values = [look["val_mean"], *(value for at in val.values() for value in at.values())]
    if type(look["step"]) is not int or not all(isinstance(value, float) and 0 <= value <= 100 for value in values):
        raise ValueError("a look at validation is no such thing")
    return {"val": val, "val_mean": look["val_mean"], "step": look["step"]}
