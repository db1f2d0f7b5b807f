"""Items that an encoder cannot take, told from an encoder that is broken.

Of a batch that fails every item is tried alone. Those that fail alone are left out, and the others are encoded together, as if
those had not been there. So the same batch always comes out the same, and a pass that died and went on has the bytes of one
that did not.
"""

from collections.abc import Sequence
from typing import Any

import torch

from . import decoding
from .blame import reason
from .encoders import BaseEncoder, encode_together
from .errors import FuseMixLiteError
from .feeding import Batch, batches_of, path_of

KEPT = "what was written is kept, and the same again goes on from there"


def encode_batch(
    encoders: Sequence[BaseEncoder], batch: Batch, values: Sequence[Any], precision: str = "fp32"
) -> tuple[Batch, list[torch.Tensor]]:
    """Latents (B, D) of each of several encoders that share a forward pass, and the batch without the items that failed.

    Raises what is the fault of the machine, not of an item; FuseMixLiteError as the encoders do, for one that fails on a blank
    item as well, and for one that takes items one by one and not together.
    """
    if not batch.indices:
        return batch, []
    try:
        return batch, encode_together(encoders, batch.inputs, precision)
    except FuseMixLiteError:
        raise  # the encoder knows what is wrong
    except Exception as error:  # of a model, any kind
        why = reason(error)
    failed = [entry for index in batch.indices if (entry := _failure(encoders, index, values, precision))]
    if not failed:
        try:
            return batch, encode_together(encoders, batch.inputs, precision)  # the first time may have been an accident
        except FuseMixLiteError:
            raise
        except Exception as error:
            told = f"encoder {encoders[0].id} fails on {len(batch.indices)} items together that it takes one by one"
            remedy = "use a smaller batch_size (--batch-size)"
            raise FuseMixLiteError(f"{told} ({reason(error)}): {remedy}; {KEPT}") from error
    if len(failed) == len(batch.indices):
        check_with_a_blank(encoders, precision, why)
        return Batch([], None, batch.left_out + failed), []
    alone = {entry["index"] for entry in failed}
    rest = batches_of(encoders[:1], [index for index in batch.indices if index not in alone], values.__getitem__)[0]
    return encode_batch(encoders, rest._replace(left_out=batch.left_out + failed + rest.left_out), values, precision)


def _failure(encoders: Sequence[BaseEncoder], index: int, values: Sequence[Any], precision: str) -> dict | None:
    """Why an item cannot be encoded, as the quarantine has it; None if it can."""
    (batch,) = batches_of(encoders[:1], [index], values.__getitem__)
    if batch.left_out:  # it was there a moment ago
        return batch.left_out[0]
    try:
        encode_together(encoders, batch.inputs, precision)
    except FuseMixLiteError:
        raise
    except Exception as error:
        return {"index": index, "path": path_of(values[index], encoders[0].modality), "reason": reason(error)}
    return None


def check_with_a_blank(encoders: Sequence[BaseEncoder], precision: str, why: str) -> None:
    """Raise if an encoder takes nothing at all (any more); `why` it took none of the items."""
    first = encoders[0]
    try:
        encode_together(encoders, first.to_inputs([first.prepare(decoding.blank(first.modality))]), precision)
    except FuseMixLiteError:
        raise
    except Exception as error:
        reason(error)  # which may be the machine's
        remedy = "start again; if it comes to this again on a GPU, --device cpu finds the item that broke it"
        raise FuseMixLiteError(f"encoder {first.id} fails on every item, even a blank one ({why}): {remedy}; {KEPT}") from error
