"""Several processes fit one model: the loss, the gradients and the weights of one process with the same batch."""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints import ended, fork
from test_pairs import on_disk, toy_pairs
from torch import distributed as dist

from fusemix_lite import Checkpoints, FuseMixLiteError, FusionModel, checkpoints, fit, losses, workflow
from fusemix_lite.distributed import Processes, joined
from fusemix_lite.launched import Share, own_device
from fusemix_lite.losses import dense_infonce, shared_infonce

ROOT = Path(__file__).parents[1]
STEPS = 24
QUICK = {"steps": STEPS, "batch_size": 9, "shared_dim": 5, "evals": 4, "lr": 0.01, "dropout": 0.0, "progress": False}
CASES = {  # shares of 9 pairs differ, and where a step is not mixed it has as many
    "none": {"augment": "none"},
    "fusemix": {"alpha": 0.5},
    "each pair, a share of the steps": {"per": "pair", "mix_probability": 0.5, "mask_negatives": True},
    "noise at one temperature": {"augment": "noise", "temperature": 0.05},
    "standardised": {"standardize": True, "depth": 2},
    "one tower": {"depth": {"image": "identity", "text": 1}, "shared_dim": 8},
}
pytestmark = pytest.mark.skipif(not (hasattr(os, "fork") and dist.is_available()), reason="needs fork, and torch.distributed")


def run(case="fusemix", **more):
    """What comes of a run: losses, looks, weights."""
    result = fit(toy_pairs(12), toy_pairs(10, seed=1), **QUICK | CASES[case] | more)
    losses = torch.tensor([[entry["loss"], entry["temperature"]] for entry in result.history], dtype=torch.float64)
    return {"losses": losses, "looks": torch.tensor([e["val_mean"] for e in result.history if "val" in e]), **weights(result)}


def weights(result):
    return {f"weights/{name}": tensor for name, tensor in result.model.state_dict().items()}


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(folder, call, world=2, expect=0):
    """Run a call in processes that were started together: what each returned, or the error that it raised, as text.

    `expect` is the exit code; None: whatever comes.
    """
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    folder.mkdir(exist_ok=True)

    def one(rank):
        signal.alarm(120)  # who waits for nobody would wait for half an hour
        os.environ.update(place, RANK=str(rank))
        try:
            found = call()
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / f"{rank}.safetensors")
        except FuseMixLiteError as error:
            (folder / f"{rank}.txt").write_text(str(error), "utf-8")
        except BaseException:
            traceback.print_exc()
            raise

    codes = [ended(child) for child in [fork(lambda rank=rank: one(rank)) for rank in range(world)]]
    assert expect is None or codes == [expect] * world
    told = [folder / f"{rank}.txt" for rank in range(world)]
    return [told[n].read_text("utf-8") if told[n].exists() else load_file(folder / f"{n}.safetensors") for n in range(world)]


def close(found, expected, within=1e-5):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=within, msg=lambda text, name=name: f"{name}: {text}")


def same_bits(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


# --- the loss and its gradients ----------------------------------------------------------------------------------------------


def gradients(B, same=None):
    """Loss and gradients of a step in fp64 over all processes that there are: each embeds its share of B pairs."""
    with joined(torch.device("cpu")) as processes:
        torch.manual_seed(0)
        model = FusionModel({"image": 6, "text": 4}, 5, 1, dropout=0.0).double()
        z = {name: torch.randn(B, dim, dtype=torch.float64) for name, dim in model.in_dims.items()}
        own = processes.share.rows(B)
        u, v = (model.embed(name, z[name][own]) for name in z)
        if processes.share.world == 1:
            loss = dense_infonce(u, v, model.temperature, same)
        else:
            loss = processes.loss(u, v, model.temperature, B, same)
        loss.backward()
        processes.add_gradients(model, stop=False)
        return {"loss": loss.detach().clone(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("labels", [None, [[0, 1, 0, 2, 2, 0, 3, 1]], [[0, 1, 0, 2, 2, 0, 3, 1], [5, 0, 1, 2, 3, 4, 4, 0]]])
@pytest.mark.parametrize(("world", "B", "tile"), [(2, 8, 1024), (2, 7, 1024), (3, 8, 3), (3, 2, 1)])
def test_loss_and_gradients_are_those_of_one_process(tmp_path, monkeypatch, world, B, tile, labels):
    """In fp64, so that rounding cannot hide anything; also where shares differ by a row, or one has none."""
    monkeypatch.setitem(losses.TILE, "cpu", tile)
    same = None if labels is None else torch.tensor(labels)[:, :B]
    expected = gradients(B, same)
    assert len(expected) == 22 and all(tensor.abs().max() > 1e-6 for tensor in expected.values())
    for found in together(tmp_path / "out", lambda: gradients(B, same), world):
        close(found, expected, 1e-12)


def test_a_shared_loss_of_one_share_is_the_loss():
    """Without processes: the share is the whole batch; at the coldest temperature too, and with the products in bf16."""
    u, v = (torch.nn.functional.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1) for _ in range(2))
    for temperature in (0.07, 0.001):
        found, expected = [], []
        for told, loss in (
            (found, lambda *z: shared_infonce(*z, slice(0, 9), lambda own: own, tile=4)),
            (expected, dense_infonce),
        ):
            inputs = [z.clone().requires_grad_() for z in (u, v, torch.tensor(temperature, dtype=torch.float64))]
            value = loss(*inputs)
            told += [value.detach(), *torch.autograd.grad(value, inputs)]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        half = shared_infonce(u.float(), v.float(), 0.07, slice(0, 9), lambda own: own)
    exact = dense_infonce(u, v, 0.07)
    assert half.dtype == torch.float32 and half.item() != exact.item() and half.item() == pytest.approx(exact.item(), rel=0.02)


def rows_of_others_are_zero(self, own, total, whole=Processes.gather):
    found, mine = torch.zeros_like(whole(self, own, total)), self.share.rows(total)
    found[mine] = own
    return found


def own_sums_only(self, own, total, whole=Processes.gather):
    found = whole(self, own, total)
    if own.shape[1] == 3:  # log-sum-exps and the logits of targets
        found[: self.share.rows(total).start] *= 0.5
    return found


def counted_twice(self, model, stop, add=Processes.add_gradients):
    model.temperature.grad.mul_(self.share.world)
    return add(self, model, stop)


BREAKS = {
    "negatives of its own share only": ("gather", rows_of_others_are_zero),
    "log-sum-exps of others that are wrong": ("gather", own_sums_only),
    "gradients not added up": ("add_gradients", lambda self, model, stop: None),
    "the temperature's counted twice": ("add_gradients", counted_twice),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_left_out_shows(tmp_path, monkeypatch, name):
    """Deliberate breaks of what processes tell each other."""
    expected = gradients(8)
    monkeypatch.setattr(Processes, *BREAKS[name])
    found = together(tmp_path / "out", lambda: gradients(8))[1]
    with pytest.raises(AssertionError):
        close(found, expected)


# --- a whole run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_several_processes_is_that_of_one(tmp_path, case):
    expected = run(case)
    for found in together(tmp_path / "out", lambda: run(case)):
        close(found, expected)


def test_a_run_from_stores_on_disk(tmp_path, monkeypatch):
    stored = on_disk(toy_pairs(12), tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "toy_pairs", lambda *_, **__: stored)
    expected = run()
    close(together(tmp_path / "out", run, 3)[2], expected)


def test_dropout_differs_between_processes_and_comes_again(tmp_path):
    """Were the masks alike, rows at the same place of two shares would share theirs."""

    def masks():
        with joined(torch.device("cpu")) as processes:
            processes.seed_dropout(3, 7)
            return {"mask": torch.rand(50)}

    one, two = together(tmp_path / "masks", masks)
    assert not torch.equal(one["mask"], two["mask"])
    first, again = (together(tmp_path / name, lambda: run(dropout=0.3)) for name in ("first", "again"))
    assert all(same_bits(found, first[0]) for found in [*first, *again])  # and no process has weights of its own
    assert not torch.equal(first[0]["losses"], run(dropout=0.3)["losses"])


def test_one_process_alone_draws_the_dropout_that_it_always_drew(monkeypatch):
    expected = run(dropout=0.3)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert same_bits(run(dropout=0.3), expected) and not dist.is_initialized()


def test_a_group_of_the_callers_own_is_used_and_left(tmp_path):
    def own_group():
        dist.init_process_group("gloo")
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
        found = run()
        dist.barrier()
        dist.destroy_process_group()
        return found

    expected = run()
    for found in together(tmp_path / "out", own_group):
        close(found, expected)


# --- what goes wrong ---------------------------------------------------------------------------------------------------------


def test_killed_and_gone_on_with_it_is_the_same_run(tmp_path, monkeypatch):
    """Only the first process sees the checkpoints; a killed one is an error of the other, in a line."""
    monkeypatch.setattr(checkpoints, "SHARE", 1.0)
    expected = together(tmp_path / "whole", lambda: run(dropout=0.3))[0]
    loss = Processes.loss

    def own_checkpoints(**options):
        return Checkpoints(tmp_path / f"checkpoints of {os.environ['RANK']}", every=0, **options)

    for victim, stop in ((1, 9), (0, 6)):

        def dies(victim=victim, stop=stop):
            calls = iter(range(1, 1000))

            def counted(*given):
                if os.environ["RANK"] == str(victim) and next(calls) == stop:
                    os.kill(os.getpid(), signal.SIGKILL)
                return loss(*given)

            Processes.loss = counted
            return run(dropout=0.3, checkpoint=own_checkpoints())

        with pytest.raises(FileNotFoundError, match=f"{victim}.safetensors"):  # who was killed has left nothing
            together(tmp_path / f"killed {victim}", dies, expect=None)
        told = (tmp_path / f"killed {victim}" / f"{1 - victim}.txt").read_text("utf-8")
        assert f"process {2 - victim} of 2 cannot reach the others" in told and len(told.splitlines()) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it goes on, and says so
        found = together(tmp_path / "on", lambda: run(dropout=0.3, checkpoint=own_checkpoints()))
    assert same_bits(found[0], expected) and same_bits(found[1], expected)
    assert not (tmp_path / "checkpoints of 1").exists()


def test_processes_of_different_runs_are_refused(tmp_path):
    found = together(tmp_path / "out", lambda: run(seed=int(os.environ["RANK"]) // 2), 3)
    assert "this one has seed 1, not 0: give all of them the same" in found[2]
    assert all("1 of them differ from the first" in told for told in found[:2])


def test_checkpoints_of_fewer_processes_are_refused(tmp_path):
    run(checkpoint=Checkpoints(tmp_path / "kept", every=0))
    found = together(tmp_path / "out", lambda: run(checkpoint=tmp_path / "kept"))
    assert "processes 1, not 2" in found[0] and found[1] == f"the first process stops: {found[0]}"


def test_a_loss_that_is_not_finite_stops_all(tmp_path):
    spoilt = toy_pairs(12)
    spoilt.x[3] = float("nan")
    found = together(tmp_path / "out", lambda: weights(fit(spoilt, **QUICK)))
    assert all("the loss is nan at step 1: image latents row 3 are not finite" in told for told in found)


@pytest.mark.parametrize("heard_by", [(0, 1), (0,), (1,)])
def test_a_signal_to_any_of_them_stops_all_after_the_same_step(tmp_path, monkeypatch, heard_by):
    """As a launcher or a terminal sends it: the first process writes a checkpoint, and all of them go on from there."""
    expected = together(tmp_path / "whole", lambda: run(dropout=0.3))[0]
    loss, kept = Processes.loss, tmp_path / "kept"

    def stopped():
        calls = iter(range(1, 1000))

        def heard(*given):
            if next(calls) == 5 + int(os.environ["RANK"]) and int(os.environ["RANK"]) in heard_by:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(*given)

        Processes.loss = heard
        return run(dropout=0.3, checkpoint=kept)

    with pytest.raises(FileNotFoundError), warnings.catch_warnings():  # nobody comes to an end
        warnings.simplefilter("ignore")
        together(tmp_path / "stopped", stopped, expect=-signal.SIGTERM)
    step = 6 if heard_by == (1,) else 5
    assert [file.name[:19] for file in kept.glob("checkpoint-*")] == [f"checkpoint-{step:08d}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = together(tmp_path / "on", lambda: run(dropout=0.3, checkpoint=kept))
    assert same_bits(found[0], expected) and same_bits(found[1], expected)


def test_what_stops_the_first_at_the_start_is_said_by_all(tmp_path):
    (tmp_path / "file").write_text("")
    first, other = together(tmp_path / "out", lambda: run(checkpoint=tmp_path / "file" / "kept"))
    assert "cannot hold checkpoints" in first and other == f"the first process stops: {first}"


def test_without_a_meeting_place(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(FuseMixLiteError, match="WORLD_SIZE=2, but no MASTER_ADDR: start fit with torchrun"):
        run()
    assert not dist.is_initialized()


def test_a_meeting_place_that_makes_no_sense(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "here")
    with pytest.raises(FuseMixLiteError, match="process 1 of 2 cannot reach the others"):
        run()


@pytest.mark.parametrize(("total", "world"), [(9, 2), (8, 3), (1, 4), (0, 2), (20_480, 8)])
def test_shares_are_all_of_it_once_and_nearly_equal(total, world):
    places = [Share(rank, world).rows(total) for rank in range(world)]
    assert [row for place in places for row in range(total)[place]] == list(range(total))
    sizes = [place.stop - place.start for place in places]
    assert max(sizes) - min(sizes) <= 1


def test_a_gpu_by_number_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "abc")
    with pytest.raises(FuseMixLiteError, match="LOCAL_RANK=abc names no GPU"):
        own_device("auto")
    assert own_device("cpu") == "cpu" and own_device("cuda:1") == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto") == own_device("cuda") == own_device(torch.device("cuda")) == "cuda:1"


def test_more_processes_than_gpus(monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FuseMixLiteError, match="4 processes for 2 GPUs: .* start 2"), joined(torch.device("cuda:0")):
        pass


# --- launchers ---------------------------------------------------------------------------------------------------------------

LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "accelerate": (
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--main_process_port", "{port}", "--mixed_precision", "no", "--dynamo_backend", "no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_command_under_a_launcher(tmp_path, launcher):
    """One model, written once, said once; a look at validation is that of a single process."""
    if launcher == "accelerate" and not find_spec("accelerate"):
        pytest.skip("accelerate is not installed")
    pairs = toy_pairs(40)
    save_file({"x": pairs.x, "y": pairs.y, "owner": pairs.owner}, tmp_path / "pack.safetensors")
    given = [f"--{name}={tmp_path / 'pack.safetensors'}:{name}" for name in ("x", "y", "owner")]
    given += ["--steps", "12", "--batch-size", "16", "--shared-dim", "8", "--dropout", "0", "--device", "cpu", "--json"]
    command = ["-m", "fusemix_lite", "fit", *given]
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}

    def told(*command):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    one = told(*command, "--out", tmp_path / "alone")
    launch = (option.format(port=port()) for option in LAUNCHERS[launcher])
    two = told("-m", *launch, *command, "--out", tmp_path / "together")
    assert two["val"] == one["val"] and two["best_step"] == one["best_step"]
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("alone", "together")]
    close(models[1], models[0])
    assert not list((tmp_path / "together").glob("*.tmp")) and not (tmp_path / "together" / workflow.CHECKPOINT).exists()
