"""The codebook study: its lines, and that its part reads them."""

from __future__ import annotations

from dataclasses import replace

from undiffuse.data import DataOptions, open_data
from undiffuse.papers.vq_codebook import DIGITS, codebook_part, codebook_study


def test_the_study_compares_what_it_says() -> None:
    options = replace(DIGITS, steps=2, codes=16, width=4)
    data = open_data("digits", DataOptions(source="digits", limit=200))
    stages = codebook_study(options=options, more=2, sizes=(16,), drawn=(8,), data=data)
    assert [(stage.name, stage.health.codes) for stage in stages] == [
        ("base", 16),
        ("keep training", 16),
        ("keep training with restarts", 16),
        ("rebuilt, 16 codes", 16),
        ("rebuilt, 16 codes, refit", 16),
        ("N(mean, std), 8 codes, refit", 8),
    ]
    health = {stage.name: stage.health for stage in stages}
    assert health["rebuilt, 16 codes"].distance < health["base"].distance  # the encoder is the same, the codes are not
    assert len({stage.health.items for stage in stages}) == 1
    part = codebook_part(stages)
    assert len(part.rows) == 6
    usage, gain, _ = part.measures
    assert usage.value == health["rebuilt, 16 codes, refit"].usage
    assert gain.value == 1 - health["rebuilt, 16 codes, refit"].error / health["keep training"].error
