"""The card of the audio-to-image chapter's two models, generator and reader. All that it says comes from their folders."""

import json
import math
from pathlib import Path

from .generation import CODE, PACKAGED, SIDE
from .scene_viewing import GUESSING

READER = "lite-reader"

_CARD = """\
# lite-generator and lite-reader

Two models that ship with the package for the chapter [Audio to image](../book/11-audio-to-image.ipynb): one draws what a
latent says, the other says what is drawn. Neither has met a sound.

| fact | generator | reader |
|---|---|---|
| Model | `fusemix_lite.generation.LatentToImage`: a U-Net of `diffusers` over codes of {code} numbers, and a decoder | \
`fusemix_lite.scene_viewing.SceneReader`: a small ConvNet |
| In | unit-norm latents of `{text}`, {dim} dimensions | pictures, {side} × {side} |
| Out | pictures, {side} × {side} | kind, size, number and colour at three places, and the background |
| Learnt from | {items:,} scenes of `image-text/train`, {captions} captions each | {reader_items:,} scenes of `unimodal/train` |
| Training | decoder {coder_steps:,} steps, U-Net {steps:,} steps of flow matching, {minutes:.0f} minutes of one CPU thread | \
{reader_steps:,} steps, {reader_minutes:.0f} minutes |
| Parameters | {parameters:.2f} million | {reader_parameters:.2f} million |
| File | {megabytes:.1f} MB, fp16 safetensors | {reader_megabytes:.1f} MB |
| Licence | MIT | MIT |

```python
import torch
import torch.nn.functional as F

from fusemix_lite import generation, load_encoder

latents = F.normalize(load_encoder("{text}").encode(["a large red bell at night"]), dim=1)
pictures = generation.load_generator().generate(latents, torch.Generator().manual_seed(0))  # (1, 3, {side}, {side}) uint8
```

`python -m fusemix_lite.pretrain_generator {generator}` and `… {reader}` train them again.

## What they can do

Agreement with {val_items} validation scenes of `image-text`, in %, as the reader sees it: in the drawn pictures, in them after
they have been a code in between (no generator can do better than that), and in pictures made from one caption each. The last
column also chose the sampler, by *kinds*: {sampler_steps} steps, guidance {guidance:g}. New scenes may give a little less.

| factor | drawn | decoded | from a caption | guessing |
|---|--:|--:|--:|--:|
{agreement}

## Limits

- `{text}` is a bag of words: of "a red bell and a blue car" the generator is not told which is red.
- It draws one small procedural world, and of anything else something from that world.
- The reader learnt from drawn pictures. Where generated ones are blurred in other ways, it errs more, and every agreement is
  lower for it.
"""


def generator_card(weights: Path) -> str:
    """The card in Markdown, from the folders of both models below `weights`."""
    made, read = (json.loads((weights / name / "fusemix_lite.json").read_text("utf-8")) for name in (PACKAGED, READER))
    config = json.loads((weights / PACKAGED / "config.json").read_text("utf-8"))
    recipe, sampler, reader = made["pretraining"], made["sampler"], read["pretraining"]
    chosen = next(row for row in sampler["tried"] if all(row[key] == sampler[key] for key in ("steps", "guidance")))
    files = {name: weights / name / "model.safetensors" for name in (PACKAGED, READER)}
    rows = [
        f"| {name} | {drawn:.1f} | {made['read']['decoded'][name]:.1f} | {chosen[name]:.1f} | "
        + (f"{GUESSING[name]:.1f} |" if name in GUESSING else "– |")
        for name, drawn in made["read"]["drawn"].items()
    ]
    return _CARD.format(
        code=" × ".join(map(str, CODE)), text=recipe["text"], dim=config["dim"], side=SIDE, items=recipe["items"],
        captions=recipe["captions"], steps=recipe["steps"], coder_steps=recipe["coder"]["steps"], minutes=recipe["cpu_minutes"],
        reader_items=reader["items"], reader_steps=reader["steps"], reader_minutes=reader["cpu_minutes"],
        parameters=parameters(files[PACKAGED]) / 1e6, reader_parameters=parameters(files[READER]) / 1e6,
        megabytes=files[PACKAGED].stat().st_size / 1e6, reader_megabytes=files[READER].stat().st_size / 1e6,
        generator=PACKAGED, reader=READER, val_items=sampler["items"], sampler_steps=sampler["steps"],
        guidance=sampler["guidance"], agreement="\n".join(rows),
    )  # fmt: skip


def parameters(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
