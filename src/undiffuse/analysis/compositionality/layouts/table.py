"""The published benchmarks whose own file layouts are read: one literal table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from undiffuse.analysis.compositionality.layouts.files import Missing
from undiffuse.analysis.compositionality.task import Task
from undiffuse.errors import DataError
from undiffuse.words import did_you_mean

_HOME = "undiffuse.analysis.compositionality.layouts"


@dataclass(frozen=True)
class Layout:
    """A benchmark on disk.

    Args:
        reader: "module:function" of this package, from a folder to its tasks.
        files: What the folder holds.
        source: The paper.
    """

    reader: str
    files: str
    source: str


LAYOUTS: dict[str, Layout] = {
    "vg-relation": Layout(
        "captions:vg_relation", "visual_genome_relation.json, images/", "Yuksekgonul et al. 2023, arXiv:2210.01936"
    ),
    "vg-attribution": Layout(
        "captions:vg_attribution",
        "visual_genome_attribution.json, images/",
        "Yuksekgonul et al. 2023, arXiv:2210.01936",
    ),
    "coco-order": Layout(
        "order:coco_order",
        "coco_karpathy_test.json and the pictures at the paths that it names (val2014/...); or coco_order.json, rows "
        "with image_path and caption_options, the right one first",
        "Yuksekgonul et al. 2023, arXiv:2210.01936",
    ),
    "flickr-order": Layout(
        "order:flickr_order",
        "flickr30k_test.json, flickr30k-images/; or flickr30k_order.json, rows with image_path and caption_options",
        "Yuksekgonul et al. 2023, arXiv:2210.01936",
    ),
    "sugarcrepe": Layout(
        "captions:sugar_crepe",
        "data/add_obj.json, add_att, replace_obj, replace_att, replace_rel, swap_obj, swap_att; val2017/ of COCO",
        "Hsieh et al. 2023, arXiv:2306.14610",
    ),
    "winoground": Layout(
        "pairs:winoground",
        "data/examples.jsonl, data/images/ex_0_img_0.png, ...",
        "Thrush et al. 2022, arXiv:2204.03162",
    ),
    "cola": Layout(
        "pairs:cola_multi",
        "data/COLA_multiobjects_matching_benchmark.json, images/ by the names at the end of the addresses",
        "Ray et al. 2023, arXiv:2305.03689",
    ),
    "cola-single": Layout(
        "captions:cola_single",
        "data/COLA_singleobjects_benchmark_GQA.json, _CLEVR.json or _PACO.json; images/",
        "Ray et al. 2023, arXiv:2305.03689",
    ),
    "eqben": Layout(
        "pairs:eqben", "eqben_subset_10percent_final.json, image_subset/", "Wang et al. 2023, arXiv:2303.14465"
    ),
    "valse": Layout(
        "captions:valse",
        "data/existence.json, plurals, counting-small-quant, counting-hard, counting-adversarial, relations, "
        "action-replacement, actant-swap, coreference-standard, coreference-hard, foil-it; images/, all in one folder",
        "Parcalabescu et al. 2022, arXiv:2112.07566",
    ),
    "vl-checklist": Layout(
        "captions:vl_checklist",
        "corpus/**/*.yaml with ANNO_PATH and IMG_ROOT, and the files and folders that these name, such as "
        "data/Attribute/vg/color.json and vg/",
        "Zhao et al. 2022, arXiv:2207.00221",
    ),
    "whats-up": Layout(
        "captions:whats_up",
        "controlled_images_dataset.json with controlled_images/, controlled_clevr_dataset.json with controlled_clevr/, "
        "coco_qa_one_obj.json and coco_qa_two_obj.json with val2017/, vg_qa_one_obj.json and vg_qa_two_obj.json with "
        "vg_images/; any of them",
        "Kamath et al. 2023, arXiv:2310.19785",
    ),
    "spec": Layout(
        "pairs:spec",
        "count/image2text.json, count/text2image.json and the pictures that they name; likewise absolute_size, "
        "relative_size, absolute_spatial, relative_spatial, existence",
        "Peng et al. 2024, arXiv:2312.00081",
    ),
    "countbench": Layout(
        "captions:count_bench",
        "CountBench.json, images/ by the names at the end of the addresses, or 0.jpg, 1.jpg, ...",
        "Paiss et al. 2023, arXiv:2302.12066",
    ),
    "mmvp": Layout(
        "pairs:mmvp", "Questions.csv, 'MLLM_VLM Images/<Type>/<Question ID>.jpg'", "Tong et al. 2024, arXiv:2401.06209"
    ),
    "naturalbench": Layout(
        "pairs:natural_bench", "metadata.json, images/ (NaturalBench-Retrieval)", "Li et al. 2024, arXiv:2410.14669"
    ),
    "vismin": Layout(
        "pairs:vismin",
        "vismin.json or metadata.jsonl: rows with image_0, text_0, image_1, text_1, category (the columns of the "
        "published table, its pictures written as files); images/",
        "Awal et al. 2024, arXiv:2407.16772",
    ),
    "clevr": Layout(
        "captions:clevr",
        "captions/pair_binding_color.json, spatial.json, ...: picture -> lists that end in a right and a wrong text; "
        "images/",
        "Krojer et al. 2023, arXiv:2305.16397",
    ),
    "svo": Layout(
        "pairs:svo",
        "svo_probes.csv with images/<id>.jpg; or svo.json (pos_id, neg_id, sentence, neg_type) with images/<id>",
        "Hendricks and Nematzadeh 2021, arXiv:2106.09141",
    ),
    "mmbias": Layout(
        "pairs:mm_bias",
        "textual_phrases.txt (JSON: pleasant_phrases, unpleasant_phrases), data/Images/<kind>/<group>/*.jpg",
        "Janghorbani and de Melo 2023, arXiv:2303.12734",
    ),
}
"""Name -> layout."""


def open_layout(name: str, folder: str | Path) -> list[Task]:
    """Read the tasks of a benchmark from the folder that its authors publish.

    Pictures are only named here; they are read when they are scored.

    Raises:
        ValueError: An unknown name; the message lists those there are.
        DataError: The folder or its files are not there; the message tells the layout.
    """
    if name not in LAYOUTS:
        raise ValueError(f"benchmark {name!r} is unknown; choose {', '.join(LAYOUTS)}.{did_you_mean(name, LAYOUTS)}")
    layout, place = LAYOUTS[name], Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(f"there is no folder {place}; {name} needs one with: {layout.files}. It is not downloaded.")
    module, _, function = layout.reader.partition(":")
    try:
        return getattr(import_module(f"{_HOME}.{module}"), function)(place)
    except Missing as error:
        raise DataError(f"{error}; {name} needs: {layout.files}.") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{place} is not laid out as {name} is ({type(error).__name__}: {error}): {layout.files}."
        ) from error
