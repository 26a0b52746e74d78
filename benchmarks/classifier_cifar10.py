"""Train the shipped classifier of CIFAR-10, whose features the metrics of natural 32 x 32 images use.

    python benchmarks/classifier_cifar10.py train.zip test.zip OUT [--epochs 12] [--device cuda]

`train.zip` and `test.zip` hold the pictures in folders named by class. The result is a folder with config.json (which
states the accuracy on test.zip) and model.safetensors; the shipped one is src/undiffuse/builtin/cifar10-classifier.
The run goes on from OUT/checkpoint.safetensors after an interruption and removes it at the end.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from undiffuse.data import open_data
from undiffuse.events import Advanced, Event
from undiffuse.metrics import save_classifier, train_classifier


def main() -> None:
    """Train, state the accuracy, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", help="training pictures in class folders")
    parser.add_argument("test", help="pictures that the accuracy is measured on")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    train = open_data(options.train)
    started = time.perf_counter()

    def tell(event: Event) -> None:
        if isinstance(event, Advanced) and (event.info or event.done % 20 == 0):
            figures = "  ".join(f"{name} {value:.4f}" for name, value in event.info.items())
            print(f"step {event.done}  {time.perf_counter() - started:.0f} s  {figures}", flush=True)

    checkpoint = options.out / "checkpoint.safetensors"
    classifier = train_classifier(
        train,
        open_data(options.test, spec=train.spec),
        epochs=options.epochs,
        seed=options.seed,
        device=options.device,
        checkpoint=checkpoint,
        listener=tell,
    )
    info = {"name": "cifar10-classifier", "data": "CIFAR-10, training set", **classifier.config.info}
    save_classifier(classifier, options.out, info)
    checkpoint.unlink(missing_ok=True)
    print(f"accuracy {info['accuracy']:.4f} on {info['held_out_images']} held-out images: {options.out}")


if __name__ == "__main__":
    main()
