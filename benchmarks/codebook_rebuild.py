"""What the rebuild of a mostly unused codebook is worth on pictures of yours, beside as many steps of further training.

    python benchmarks/codebook_rebuild.py --data cifar10/train.zip --size 32 --items 1500

A codec of patches is trained as VQ-VAEs were first, by gradients and without restarts. Then its codebook is rebuilt by
k-means and the decoder refit, and beside it all is trained on, both for the same number of further steps. Asked are a
usage of at least 0.98 and a held-out error at least a tenth below that of training on. The study is that of
`undiffuse papers vq-ddm`, which runs it on digits; without --data it runs on them here too.
"""

from __future__ import annotations

import argparse
import sys
import time

from undiffuse.codecs.options import VQOptions
from undiffuse.data import DataOptions, open_data
from undiffuse.data.dataset import Dataset
from undiffuse.events import Event, Message
from undiffuse.papers.vq_codebook import codebook_part, codebook_study, crops
from undiffuse.report.measures import Results, machine_settings, publish, script_options


def patches(asked: argparse.Namespace) -> Dataset:
    """Return square patches of the first items; see `crops`."""
    data = open_data(asked.data, DataOptions(source=asked.data, size=asked.size, limit=asked.items))
    return crops(data, asked.patch or data.spec.shape[-1], asked.seed)


def main() -> None:
    """Train, rebuild, compare and print JSON."""
    parser = script_options(__doc__)
    parser.add_argument("--data", default="digits", help="pictures: a folder, a zip, or a name")
    parser.add_argument("--size", type=int, help="side that pictures are brought to")
    parser.add_argument("--patch", type=int, help="side of the patches; default: whole pictures")
    parser.add_argument("--items", type=int, default=1500, help="pictures that are read")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--halvings", type=int, default=2, help="a token stands for a square of 2 ** this pixels")
    parser.add_argument("--steps", type=int, default=1000, help="steps before the rebuild")
    parser.add_argument("--more", type=int, default=400, help="steps after it")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    steps, more = (4, 2) if asked.quick else (asked.steps, asked.more)
    codec = VQOptions(
        codes=min(asked.codes, 32) if asked.quick else asked.codes,
        channels=8,
        halvings=asked.halvings,
        width=16,
        codebook="gradient",
        restart=0,
        steps=steps,
        batch_size=32,
        lr=2e-3,
    )
    data, began = patches(asked), time.perf_counter()

    def hear(event: Event) -> None:
        if isinstance(event, Message):
            print(f"{time.perf_counter() - began:6.0f} s  {event.text}", file=sys.stderr, flush=True)

    stages = codebook_study(
        data=data, options=codec, more=more, sizes=(codec.codes,), drawn=(), seed=asked.seed, listener=hear
    )
    details = {stage.name: stage.health.to_json() for stage in stages}
    shape = " x ".join(str(side) for side in data.spec.shape[1:])
    settings = machine_settings(data=asked.data, items=len(data), steps=steps, more=more, seed=asked.seed)
    said = f"A codec of {codec.codes} codes on {len(data)} items of {shape} pixels, rebuilt or trained on."
    publish(Results("Rebuild of a codebook", said, tuple(codebook_part(stages).measures), settings, details), asked.out)


if __name__ == "__main__":
    main()
