"""Frozen text encoders: the outputs of transformers, kept once per caption, and refused where they are not the same."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.data.encoders import write_encoder, write_tokenizer
from tests.data.files import pixels, save
from undiffuse.cache import cache_folder
from undiffuse.data import open_data
from undiffuse.data.encoder_files import EncoderFiles
from undiffuse.data.encoders import TextEncoder, encode_captions
from undiffuse.data.options import DataOptions
from undiffuse.errors import CheckpointError, DataError

pytest.importorskip("transformers", reason="needs transformers")

CAPTIONS = ["a red square", "green", "", "a photo of a blue circle", "a red square"]
HALF = 2.0**-11  # relative error of rounding to float16; two roundings of near-equal numbers differ by twice that


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "clip")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


def kept() -> list[Path]:
    return sorted((cache_folder() / "embeddings").glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
@pytest.mark.parametrize("marks", [True, False])
def test_outputs_are_those_of_transformers_one_caption_at_a_time(kind: str, marks: bool, tmp_path: Path):
    import transformers

    folder = write_encoder(tmp_path / kind, kind, marks=marks)
    found = TextEncoder(str(folder)).encode(CAPTIONS, 128)
    kinds = {"clip": "CLIPTextModel", "t5": "T5EncoderModel", "bert": "BertModel"}
    network = getattr(transformers, kinds[kind]).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert found.outputs.dtype == torch.float16 and found.outputs.shape == (5, 6 + 2 * marks, 16) and found.cut == 0
    for caption, rows in zip(CAPTIONS, found.outputs.float(), strict=True):
        ids = tokenizer(caption, return_tensors="pt").input_ids.long()
        count = ids.shape[1]
        assert count == len(caption.split()) + 2 * marks
        assert (rows[count:] == 0).all()
        if count:
            with torch.no_grad():
                expected = network(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(rows[:count], expected, rtol=2 * HALF, atol=1e-6)
            assert (rows[:count] != 0).any(1).all()


def test_long_captions_lose_their_end_but_keep_its_mark(encoder: Path):
    whole = TextEncoder(str(encoder))
    cut = whole.encode(["a red square of green", "red"], 4)
    assert cut.outputs.shape[1] == 4 and cut.cut == 1
    assert torch.equal(cut.outputs[0], whole.encode(["a red"], 9).outputs[0])  # [begin] a red [end]
    assert whole.encode(["a " * 30], 128).outputs.shape[1] == 10  # the network has no more places


def test_loading_leaves_the_generator_and_the_identity_alone(tmp_path: Path):
    """BERT saved for masked words has no pooler, which transformers then draws."""
    folder = write_encoder(tmp_path / "bert", "bert")
    state = torch.get_rng_state()
    names = set()
    for _ in range(2):
        loaded = TextEncoder(str(folder))
        loaded.encode(["red"], 9)
        names.add(loaded.identity)
    assert len(names) == 1
    assert torch.equal(state, torch.get_rng_state())


def test_a_caption_is_encoded_once_and_kept(encoder: Path, monkeypatch: pytest.MonkeyPatch):
    encoded: list[list[str]] = []
    whole = TextEncoder.encode

    def watched(self: TextEncoder, captions: list[str], most: int):
        encoded.append(captions)
        return whole(self, captions, most)

    monkeypatch.setattr(TextEncoder, "encode", watched)
    first, identity = encode_captions(str(encoder), CAPTIONS, 9)
    again, same = encode_captions(str(encoder), CAPTIONS, 9, identity)
    assert encoded == [CAPTIONS[:4]] and len(kept()) == 1 and identity == same
    assert torch.equal(first.outputs, again.outputs) and first.cut == again.cut == 0
    assert torch.equal(first.outputs[0], first.outputs[4]) and first.outputs.shape == (5, 8, 16)
    encode_captions(str(encoder), [*CAPTIONS, "red"], 9)
    short, _ = encode_captions(str(encoder), CAPTIONS, 3)
    assert len(kept()) == len(encoded) == 3
    assert short.cut == 2 and short.outputs.shape[1] == 3


def test_what_is_kept_needs_no_network(encoder: Path, monkeypatch: pytest.MonkeyPatch):
    first, _ = encode_captions(str(encoder), CAPTIONS, 9)
    monkeypatch.setattr(EncoderFiles, "load_network", lambda _: pytest.fail("the network was loaded"))
    assert torch.equal(encode_captions(str(encoder), CAPTIONS, 9)[0].outputs, first.outputs)


def change_weights(folder: Path) -> None:
    write_encoder(folder, seed=1)


def change_tokenizer(folder: Path) -> None:
    write_tokenizer(folder, marks=False)


def change_options(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))


@pytest.mark.parametrize("change", [change_weights, change_tokenizer, change_options])
def test_another_encoder_in_its_place_is_encoded_anew_or_refused(change, encoder: Path, tmp_path: Path):
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    first, identity = encode_captions(str(folder), CAPTIONS, 9)
    change(folder)
    second, other = encode_captions(str(folder), CAPTIONS, 9)
    assert other != identity and len(kept()) == 2
    assert first.outputs.shape != second.outputs.shape or not torch.equal(first.outputs, second.outputs)
    with pytest.raises(CheckpointError, match=r"has changed: its hash is .* put the former files back"):
        encode_captions(str(folder), CAPTIONS, 9, identity)


def test_the_version_of_transformers_plays_no_part(encoder: Path, tmp_path: Path):
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "0.0"}))
    assert TextEncoder(str(folder)).identity == TextEncoder(str(encoder)).identity


def test_shards_and_pipelines_are_read_too(encoder: Path, tmp_path: Path):
    pipe = tmp_path / "pipe"
    write_encoder(pipe / "text_encoder", max_shard_size="2KB")
    assert not (pipe / "text_encoder" / "model.safetensors").exists()
    (pipe / "tokenizer").mkdir()
    for path in (pipe / "text_encoder").glob("*token*"):
        path.rename(pipe / "tokenizer" / path.name)
    outputs = TextEncoder(str(encoder)).encode(CAPTIONS, 9).outputs
    assert torch.equal(TextEncoder(str(pipe)).encode(CAPTIONS, 9).outputs, outputs)
    assert len(EncoderFiles.find(str(pipe)).weights) > 1
    EncoderFiles.find(str(pipe)).weights[0].unlink()
    with pytest.raises(CheckpointError, match="lacks model-00001"):
        TextEncoder(str(pipe))


def test_a_name_on_the_hub_fetches_safetensors_only(encoder: Path, monkeypatch: pytest.MonkeyPatch):
    from fnmatch import fnmatch

    import huggingface_hub

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "owner/name"
        for pickled in ("pytorch_model.bin", "model.pt", "tokenizer.pkl", "modeling.py"):
            assert not any(fnmatch(pickled, pattern) for pattern in allow_patterns)
        for path in encoder.iterdir():
            assert any(fnmatch(path.name, pattern) for pattern in allow_patterns), path
        return str(encoder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert TextEncoder("hf://owner/name").identity == TextEncoder(str(encoder)).identity
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(CheckpointError, match="cannot load the files of the encoder hf://owner/name"):
        TextEncoder("hf://owner/name")


def test_pickled_weights_are_never_read(encoder: Path, tmp_path: Path):
    folder = tmp_path / "pickled"
    shutil.copytree(encoder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors; pickled weights are never read"):
        TextEncoder(str(folder))


def test_code_in_the_folder_is_never_run(encoder: Path, tmp_path: Path):
    folder, proof = tmp_path / "code", tmp_path / "proof"
    shutil.copytree(encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "code.Mine", "AutoModel": "code.Mine", "AutoModelForTextEncoding": "code.Mine"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": auto}))
    (folder / "code.py").write_text(f"open({str(proof)!r}, 'w')\n")
    with pytest.raises(CheckpointError, match="cannot load the network"):
        TextEncoder(str(folder)).encode(["red"], 9)
    assert not proof.exists()


def test_what_is_no_encoder_is_refused_in_one_line(encoder: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"the encoder gone is gone: .*give the encoder's outputs as tensors"):
        TextEncoder("gone")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        TextEncoder(str(tmp_path))
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot load the network of the encoder"):
        TextEncoder(str(folder)).encode(["red"], 9)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="no table of options"):
        _ = TextEncoder(str(folder)).identity


def test_without_transformers_the_way_to_it_is_named(encoder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"need transformers: pip install 'undiffuse\[pretrained\]'"):
        TextEncoder(str(encoder)).encode(["red"], 9)


def test_weights_that_are_lacking_are_never_made_up(encoder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if "final_layer_norm" in name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 of its weights"):
        TextEncoder(str(folder)).encode(["red"], 9)


@pytest.mark.parametrize(("kind", "reason"), [("vit", "reads no text"), ("bart", "also decodes")])
def test_networks_that_do_not_encode_text_are_refused(kind: str, reason: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=f"is a {kind} network, which {reason}|is a {kind} network that {reason}"):
        TextEncoder(str(write_encoder(tmp_path, kind))).encode(["red"], 9)


def test_roberta_counts_its_places_from_the_padding(tmp_path: Path):
    assert TextEncoder(str(write_encoder(tmp_path, "roberta"))).encode(["a " * 30], 128).outputs.shape[1] == 11


def test_a_tokenizer_of_another_network_is_refused(tmp_path: Path):
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=5, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.CLIPTextModel(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="the token 6 but its network knows 5"):
        TextEncoder(str(tmp_path)).encode(["green"], 9)


# -- data sets -----------------------------------------------------------------------------------------


def pictures(folder: Path, captions: list[str]) -> Path:
    folder.mkdir()
    for at, caption in enumerate(captions):
        save(folder / f"{at}.png", pixels(4, 4, seed=at))
        (folder / f"{at}.txt").write_text(caption)
    return folder


@pytest.mark.parametrize("lazy", [False, True])
def test_captions_of_pictures_become_embeddings(lazy: bool, encoder: Path, tmp_path: Path):
    place = pictures(tmp_path / "photos", CAPTIONS)
    data = open_data(str(place), DataOptions(encoder=str(encoder), lazy=lazy, caption_length=5))
    part = data.spec.cond["caption"]
    assert (part.kind, part.length, part.width, part.encoder) == ("embedding", 5, 16, str(encoder))
    assert part.encoder_hash == TextEncoder(str(encoder)).identity
    batch = data.batch(torch.tensor([4, 1, 2]))["cond"]["caption"]
    expected = TextEncoder(str(encoder)).encode([CAPTIONS[at] for at in (4, 1, 2)], 5).outputs
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, expected.float(), rtol=2 * HALF, atol=1e-6)
    assert data.cond["caption"].dtype == torch.float16
    line = f"text of 5 tokens at most, read by {encoder} (width 16); 1 were cut (data.caption_length); warning: 1 of 5"
    assert line in "\n".join(data.summary())


def test_data_for_a_model_go_through_the_models_encoder(encoder: Path, tmp_path: Path):
    place = pictures(tmp_path / "photos", CAPTIONS)
    spec = open_data(str(place), DataOptions(encoder=str(encoder))).spec
    other = pictures(tmp_path / "others", ["red", "blue"])
    data = open_data(str(other), spec=spec)
    assert data.spec == spec
    rows = data.batch(torch.arange(2))["cond"]["caption"]
    assert rows.shape == (2, 8, 16) and ((rows != 0).any(2).sum(1) == 3).all()
    shutil.rmtree(tmp_path / "photos")
    write_encoder(tmp_path / "changed", seed=3)
    moved = replace(spec, cond={"caption": replace(spec.cond["caption"], encoder=str(tmp_path / "changed"))})
    with pytest.raises(CheckpointError, match="has changed"):
        open_data(str(other), spec=moved)


def test_columns_of_a_table_are_read_too(encoder: Path, tmp_path: Path):
    table = tmp_path / "points.csv"
    table.write_text("x,y,caption\n" + "\n".join(f"{at},{at}.5,{text}" for at, text in enumerate(CAPTIONS)))
    options = DataOptions(cond="caption:text", encoder=str(encoder))
    data = open_data(str(table), options)
    assert data.batch(torch.arange(5))["cond"]["caption"].shape == (5, 8, 16)
    again = open_data(str(table), spec=data.spec)
    assert torch.equal(again.cond["caption"], data.cond["caption"])


def test_an_encoder_without_captions_is_refused(encoder: Path, tmp_path: Path):
    place = pictures(tmp_path / "photos", CAPTIONS)
    with pytest.raises(DataError, match="no captions were found"):
        open_data(str(place), DataOptions(encoder=str(encoder), cond="none"))
    with pytest.raises(DataError, match="has no use for text"):
        (tmp_path / "a.txt").write_text("words " * 100)
        open_data(str(tmp_path / "a.txt"), DataOptions(encoder=str(encoder)))
    (tmp_path / "rows.jsonl").write_text('{"x": [1, 2], "caption": "red"}\n' * 9)
    with pytest.raises(DataError, match=r"which a stream does not allow; set data\.stream=false"):
        open_data(str(tmp_path / "rows.jsonl"), DataOptions(encoder=str(encoder), stream=True))
    spec = open_data(str(place), DataOptions(encoder=str(encoder))).spec
    with pytest.raises(DataError, match="reads all captions"):
        open_data(str(tmp_path / "rows.jsonl"), DataOptions(key="x", stream=True), spec)
