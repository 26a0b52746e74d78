"""Volumes restored with a prior of slices: slices by themselves, and held to their neighbours (DiffusionMBIR).

    python benchmarks/volumes.py [--out results.json]

Eight volumes of six digits each, 30 % of the pixels of each slice with noise 0.05, and the exact prior of a digit. The
slices drift slowly, three times as fast, or change to another digit in the middle. Figures are the PSNR of the mean of
four samples, in dB.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators import Mask
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.tasks.restore.exact import digits_prior
from undiffuse.tasks.restore.run import restore

VOLUMES, SLICES, KNOWN, NOISE = 8, 6, 0.3, 0.05
METHODS = {"dds": {}, "mmps": {}, "diffusion-mbir": {}, "diffusion-mbir, lam 0.4": {"lam": 0.4}}


def volumes(held_out: Tensor) -> dict[str, Tensor]:
    """Return volumes (B, Z, 1, 8, 8) by what their slices do."""
    first, second = held_out[:VOLUMES, None], held_out[VOLUMES : 2 * VOLUMES, None]
    along = torch.linspace(-0.5, 0.5, SLICES).double()[:, None, None, None]
    drift = avg_pool2d(KeyedNoise(5, range(VOLUMES)).normal("data", 0, (1, 8, 8), torch.float64), 3, 1, 1)[:, None]
    half = (-1, SLICES // 2, -1, -1, -1)
    return {
        "drift slowly": (first + along * drift).clamp(-1, 1),
        "drift three times as fast": (first + 3 * along * drift).clamp(-1, 1),
        "change to another one in the middle": torch.cat([first.expand(half), second.expand(half)], 1),
    }


def main() -> None:
    """Measure and print JSON."""
    asked = script_options(__doc__).parse_args()
    prior, held_out = digits_prior()
    assert prior.spec is not None
    model, shape = Model(prior, prior.spec), (SLICES, 1, 8, 8)
    mask = Mask(shape, (KeyedNoise(1, [0]).uniform("operator", 0, shape)[0] < KNOWN).double())
    noise = KeyedNoise(2, range(VOLUMES)).normal("measure", 0, shape, torch.float64)
    rows = []
    for kind, truth in volumes(held_out.double()).items():
        y = mask.measured(mask(truth) + NOISE * noise)
        for name, options in METHODS.items():
            method, steps = name.partition(",")[0], 5 if asked.quick else 30
            found = restore(model, y, mask, method, noise_std=NOISE, samples=4, steps=steps, options=options)
            error = (found.mean - truth).square().flatten(1).mean(1)
            rows.append(Measure(f"digits that {kind}: {name}", float((10 * torch.log10(4 / error)).mean()), "dB"))
    said = "Volumes of digits with 30 % of their pixels, restored with the exact prior of a slice."
    publish(Results("Volumes", said, tuple(rows), machine_settings()), asked.out)


if __name__ == "__main__":
    main()
