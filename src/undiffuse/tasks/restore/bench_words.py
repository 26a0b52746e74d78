"""Short words for the operators of benchmarks, such as inpaint50 and sr4. Torch-free."""

from __future__ import annotations

import re

from undiffuse.words import did_you_mean

WORDS: dict[str, tuple[str, str]] = {
    "denoise": ("denoise", "nothing but noise"),
    "inpaintN": ("inpaint:random,missing={}", "N % of the pixels are missing, others in each picture"),
    "boxN": ("inpaint:box,size={}", "a square hole of N pixels"),
    "srN": ("downsample:factor={}", "N times smaller, by means"),
    "bicubicN": ("downsample:factor={},method=bicubic", "N times smaller, bicubic"),
    "blurN": ("blur:gaussian,sigma={},boundary=reflect", "Gaussian blur, standard deviation N pixels"),
    "motionN": ("blur:motion,size={}", "motion blur of N taps"),
    "colourise": ("colourise", "grey from RGB"),
    "jpegN": ("jpeg:quality={}", "JPEG of quality N"),
    "hdr": ("hdr", "clipped at half the brightness"),
    "csN": ("cs:dct,ratio={}", "N % of the cosine transform"),
}
"""Word -> the text that `parse_operator` reads, and what it is; N is a number."""
STANDARD = ("inpaint50", "box16", "sr2", "blur1", "denoise", "colourise", "jpeg20")
"""What the word "standard" stands for in a list: the common tasks of pictures in colour of 32 pixels or more."""
_DEFAULTS = {"blur": "1", "inpaint": "50", "sr": "2", "jpeg": "20"}
_PERCENT = ("inpaint", "cs")


def operator_text(word: str) -> str:
    """Return what `parse_operator` reads for a word; any other text with a colon is passed on.

    Raises:
        ValueError: The word is unknown.
    """
    found = re.fullmatch(r"([a-z]+)(\d*\.?\d*)", word)
    name, number = found.groups() if found else ("", "")
    if word in WORDS:
        return WORDS[word][0]
    if f"{name}N" in WORDS and (number or name in _DEFAULTS):
        value = number or _DEFAULTS[name]
        return WORDS[f"{name}N"][0].format(f"{float(value) / 100:g}" if name in _PERCENT else value)
    if ":" in word:
        if "," in word.partition(":")[0]:
            raise ValueError(f'operators with options are parted by ";": write {word.replace(",", ";", 1)!r}.')
        return word
    raise ValueError(
        f"operator {word!r} is unknown; take one of {', '.join(WORDS)} (N a number), or a text such as "
        f"blur:gaussian,sigma=2.{did_you_mean(word, WORDS)}"
    )


def split_operators(text: str) -> list[str]:
    """Split "inpaint50,sr2" or "blur:gaussian,sigma=2;downsample:4" into operators; texts with options go by ";".

    The word "standard" becomes `STANDARD`.
    """
    parts = [part.strip() for part in text.split(";")]
    groups = [part.split(",") if ":" not in part else [part] for part in parts]
    words = [word.strip() for group in groups for word in group if word.strip()]
    return [one for word in words for one in (STANDARD if word == "standard" else (word,))]
