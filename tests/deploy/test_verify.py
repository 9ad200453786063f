"""Every way in which a policy folder can be bad, caused for real, is refused by its own name."""

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy import errors
from deploy.artifacts import Published, publish, verify
from deploy.digests import file_digest
from deploy.manifest import Draft, FileEntry, Manifest, make_manifest
from deploy.safetensors_check import check_finite, read_header
from feedback.schema import PolicyKind
from tests.deploy.folders import (
    TARGETS,
    adapter_draft,
    edit_tensors,
    full_draft,
    make_adapter,
    make_model,
    publish_adapter,
    publish_full,
    shapes,
)

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(base: Path, root: Path, tmp_path: Path) -> Published:
    return publish_adapter(base, root, tmp_path)


@pytest.fixture
def full(base: Path, root: Path, tmp_path: Path) -> Published:
    return publish_full(base, root, tmp_path)


def write_anew(folder: Path) -> None:
    """Published files are read-only; someone who damages one is not stopped by that."""
    for path in folder.iterdir():
        path.chmod(0o644)


def seal(folder: Path, draft: Draft) -> Path:
    """A manifest that truthfully lists what is in the folder, as an attacker or a faulty publisher would write it."""
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json" and path.is_file()]
    files = {name: FileEntry(sha256=file_digest(folder / name), size=(folder / name).stat().st_size) for name in names}
    manifest = make_manifest(draft, files)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder.rename(folder.parent / manifest.version)


def test_what_is_published_verifies(adapter: Published, full: Published, base: Path) -> None:
    assert verify(adapter.path, shapes(base), digest=adapter.digest) == adapter.manifest
    assert verify(full.path, shapes(base)) == full.manifest
    assert adapter.version == f"v1-{adapter.digest[:8]}"
    assert not any(path.stat().st_mode & (stat.S_IWUSR | stat.S_IXUSR) for path in adapter.path.iterdir())


@pytest.mark.parametrize("kept", [0, 5, 40, -1], ids=lambda kept: f"keeps {kept}")
def test_truncated(adapter: Published, base: Path, kept: int) -> None:
    path = adapter.path / "adapter_model.safetensors"
    write_anew(adapter.path)
    os.truncate(path, kept if kept >= 0 else path.stat().st_size - 1)
    with pytest.raises(errors.Truncated, match=r"Truncated: adapter_model.safetensors"):
        verify(adapter.path, shapes(base))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_anywhere_is_refused(adapter: Published, base: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*adapter.manifest.files, "manifest.json"]))
    path = adapter.path / name
    path.chmod(0o644)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) * 8 - 1))
    damaged = bytearray(whole)
    damaged[place // 8] ^= 1 << (place % 8)
    path.write_bytes(damaged)
    try:
        with pytest.raises(errors.BadArtifact) as caught:
            verify(adapter.path, shapes(base))
        if name != "manifest.json":
            assert isinstance(caught.value, errors.WrongDigest | errors.Pickle)
    finally:
        path.write_bytes(whole)


def test_a_manifest_that_was_edited(adapter: Published, base: Path) -> None:
    path = adapter.path / "manifest.json"
    body = json.loads(path.read_bytes())
    body["probe"]["tolerance_nats"] = 100.0
    path.chmod(0o644)
    path.write_text(json.dumps(body))
    with pytest.raises(errors.WrongDigest, match=r"manifest.json"):
        verify(adapter.path, shapes(base))


def test_a_folder_that_was_replaced_by_another_sound_one(adapter: Published, base: Path) -> None:
    with pytest.raises(errors.WrongDigest):
        verify(adapter.path, shapes(base), digest="0" * 64)
    renamed = adapter.path.rename(adapter.path.parent / "v9-00000000")
    with pytest.raises(errors.BadManifest, match="v9-00000000"):
        verify(renamed, shapes(base))


def test_longer_file(adapter: Published, base: Path) -> None:
    write_anew(adapter.path)
    with (adapter.path / "adapter_config.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(errors.WrongDigest, match=r"adapter_config.json"):
        verify(adapter.path, shapes(base))


def test_unlisted_file(adapter: Published, base: Path) -> None:
    (adapter.path / "extra.json").write_text("{}")
    with pytest.raises(errors.UnlistedFile, match=r"extra.json"):
        verify(adapter.path, shapes(base))


def test_missing_file(adapter: Published, base: Path) -> None:
    (adapter.path / "adapter_config.json").unlink()
    with pytest.raises(errors.MissingFile, match=r"adapter_config.json"):
        verify(adapter.path, shapes(base))


def test_a_file_that_the_kind_needs(base: Path, root: Path, tmp_path: Path) -> None:
    staging = make_adapter(tmp_path / "staging")
    (staging / "adapter_model.safetensors").unlink()
    with pytest.raises(errors.MissingFile, match=r"adapter_model.safetensors"):
        publish(staging, adapter_draft(base), root)


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.PT", "a.pth", "b.pkl", "c.ckpt"])
def test_pickle_by_name(adapter: Published, base: Path, name: str) -> None:
    (adapter.path / name).write_bytes(b"anything")
    with pytest.raises(errors.Pickle, match=name):
        verify(adapter.path, shapes(base))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_by_content_whatever_its_name(base: Path, tmp_path: Path, protocol: int) -> None:
    folder = make_adapter(tmp_path / "folder")
    (folder / "notes.json").write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(errors.Pickle, match=r"notes.json"):
        verify(seal(folder, adapter_draft(base)), shapes(base))


def test_torch_checkpoint_renamed_to_safetensors(base: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = make_adapter(tmp_path / "folder")
    torch.save({"x": torch.zeros(2)}, folder / "adapter_model.safetensors")
    with pytest.raises(errors.Pickle, match=r"adapter_model.safetensors"):
        verify(seal(folder, adapter_draft(base)), shapes(base))


@pytest.mark.parametrize("name", ["modeling_kudos.py", "kernel.so", "Makefile"])
def test_files_that_no_policy_needs(base: Path, tmp_path: Path, name: str) -> None:
    folder = make_adapter(tmp_path / "folder")
    (folder / name).write_text("print('hello')")
    with pytest.raises(errors.ForbiddenFile, match=name):
        verify(seal(folder, adapter_draft(base)), shapes(base))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_auto_map(base: Path, tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "folder")
    path = folder / name
    body = json.loads(path.read_bytes()) if path.exists() else {}
    body["nested"] = [{"auto_map": {"AutoModel": "modeling.Evil"}}]
    path.write_text(json.dumps(body))
    with pytest.raises(errors.AutoMap, match=name):
        verify(seal(folder, full_draft(base)), None)


def test_a_vocabulary_may_hold_the_word_auto_map(base: Path, root: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "folder")
    (folder / "added_tokens.json").write_text(json.dumps({"auto_map": 12}))
    assert verify(publish(folder, adapter_draft(base), root).path, shapes(base)).number == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_not_finite(base: Path, tmp_path: Path, bad: float, dtype: Any) -> None:
    folder = make_adapter(tmp_path / "folder")

    def poison(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q_PROJ}.lora_B.weight"] = tensors[f"{Q_PROJ}.lora_B.weight"].astype(dtype)
        tensors[f"{Q_PROJ}.lora_B.weight"][-1, -1] = bad

    edit_tensors(folder / "adapter_model.safetensors", poison)
    with pytest.raises(errors.NotFinite, match=r"q_proj.lora_B.weight is NaN or infinite at item 63 of 64"):
        verify(seal(folder, adapter_draft(base)), shapes(base))


def _header(body: Any, data: bytes = b"") -> bytes:
    raw = json.dumps(body).encode()
    return len(raw).to_bytes(8, "little") + raw + data


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bits=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=50), dtype=st.sampled_from(["BF16", "F16"]))
def test_half_precision_is_judged_as_numpy_judges_it(tmp_path: Path, bits: list[int], dtype: str) -> None:
    path, items = tmp_path / "x.safetensors", np.array(bits, dtype="<u2")
    entry = {"dtype": dtype, "shape": [len(items)], "data_offsets": [0, items.nbytes]}
    path.write_bytes(_header({"x": entry}, items.tobytes()))
    # A bfloat16 is the upper half of a float32.
    values = items.view("<f2") if dtype == "F16" else (items.astype("<u4") << 16).view("<f4")
    if np.isfinite(values).all():
        check_finite(path, read_header(path))
    else:
        with pytest.raises(errors.NotFinite):
            check_finite(path, read_header(path))


def _transpose(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{Q_PROJ}.lora_A.weight"] = np.ascontiguousarray(tensors[f"{Q_PROJ}.lora_A.weight"].T)


def _drop_b(tensors: dict[str, np.ndarray]) -> None:
    del tensors[f"{Q_PROJ}.lora_B.weight"]


def _another_layer(tensors: dict[str, np.ndarray]) -> None:
    for side in "AB":
        name = f"{Q_PROJ}.lora_{side}.weight"
        tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)


def _another_name(tensors: dict[str, np.ndarray]) -> None:
    tensors["base_model.model.lm_head.weight"] = np.zeros((40, 16), dtype=np.float32)


def _nothing(tensors: dict[str, np.ndarray]) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_transpose, r"lora_A.weight is \[16, 4\]; on this base it must be \[4, 16\]"),
        (_drop_b, "q_proj has no lora_B"),
        (_another_layer, r"has no matrix model.layers.7.self_attn.q_proj.weight in the base"),
        (_another_name, "is not the name of a LoRA tensor"),
        (_nothing, "holds no tensor"),
    ],
)
def test_adapter_of_a_wrong_shape(base: Path, tmp_path: Path, edit: Callable[..., None], says: str) -> None:
    folder = make_adapter(tmp_path / "folder")
    edit_tensors(folder / "adapter_model.safetensors", edit)
    with pytest.raises(errors.WrongShape, match=says):
        verify(seal(folder, adapter_draft(base)), shapes(base))


def _cut_embedding(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:20].copy()


def _drop_norm(tensors: dict[str, np.ndarray]) -> None:
    del tensors["model.norm.weight"]


def _add_tensor(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.2.mlp.gate_proj.weight"] = np.zeros((24, 16), dtype=np.float32)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_cut_embedding, r"model.embed_tokens.weight is \[20, 16\]; on this base it must be \[40, 16\]"),
        (_drop_norm, r"the checkpoint lacks model.norm.weight"),
        (_add_tensor, r"the checkpoint has model.layers.2.mlp.gate_proj.weight, which the base does not"),
    ],
)
def test_full_checkpoint_of_a_wrong_shape(base: Path, tmp_path: Path, edit: Callable[..., None], says: str) -> None:
    folder = make_model(tmp_path / "folder", seed=1)
    edit_tensors(folder / "model.safetensors", edit)
    with pytest.raises(errors.WrongShape, match=says):
        verify(seal(folder, full_draft(base)), shapes(base))


def test_full_checkpoint_of_another_architecture(base: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "folder", seed=1, num_attention_heads=4)
    with pytest.raises(errors.WrongShape, match="num_attention_heads = 4; the base has 2"):
        verify(seal(folder, full_draft(base)), shapes(base))


def test_tied_embeddings_may_be_written_out(base: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "folder", seed=1)
    edit_tensors(folder / "model.safetensors", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert verify(seal(folder, full_draft(base)), shapes(base)).kind is PolicyKind.FULL


def test_wrong_tokenizer(adapter: Published, base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ another }}")
    with pytest.raises(errors.WrongTokenizer, match="was made for the tokenizer"):
        verify(adapter.path, shapes(base))


def test_full_checkpoint_that_brings_another_tokenizer(base: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "folder", seed=1)
    vocabulary = json.loads((folder / "tokenizer.json").read_text().replace("token39", "surprise"))
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(errors.WrongTokenizer, match="is not the one that its manifest names"):
        verify(seal(folder, full_draft(base)), shapes(base))


def test_wrong_base(adapter: Published, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other-base", seed=99)
    with pytest.raises(errors.WrongBase, match="was made for the base"):
        verify(adapter.path, shapes(other))


def test_symbolic_link(adapter: Published, base: Path, tmp_path: Path) -> None:
    path = adapter.path / "adapter_config.json"
    shutil.copy(path, tmp_path / "outside.json")
    path.unlink()
    path.symlink_to(tmp_path / "outside.json")
    with pytest.raises(errors.UnsafePath, match=r"adapter_config.json is a link"):
        verify(adapter.path, shapes(base))


def test_a_link_in_place_of_the_folder_or_a_pipe_in_it(adapter: Published, base: Path, tmp_path: Path) -> None:
    link = tmp_path / adapter.version
    link.symlink_to(adapter.path)
    with pytest.raises(errors.UnsafePath):
        verify(link, shapes(base))
    os.mkfifo(adapter.path / "pipe.json")
    with pytest.raises(errors.UnsafePath, match=r"pipe.json"):
        verify(adapter.path, shapes(base))


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "a/../../b.json", "a\\b.json", "./a.json", "a//b"])
def test_path_traversal(base: Path, tmp_path: Path, name: str) -> None:
    folder = make_adapter(tmp_path / "folder")
    files = {name: FileEntry(sha256="0" * 64, size=1)}
    manifest = make_manifest(adapter_draft(base), files)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(errors.UnsafePath):
        verify(folder.rename(tmp_path / manifest.version), shapes(base))


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.__setitem__(key, value)


@pytest.mark.parametrize(
    "edit",
    [
        _set("format", 2),
        _set("kind", "pickle"),
        _set("surprise", 1),
        _set("files", {"a.json": {"sha256": "short", "size": 1}}),
        _set("lora", None),
        _set("number", -1),
        lambda body: body["probe"]["cases"][0]["logprobs"].append(0.0),
        lambda body: body["probe"].update(tolerance_nats=float("nan")),
        lambda body: body.pop("probe"),
    ],
)
def test_bad_manifest(adapter: Published, base: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = adapter.path / "manifest.json"
    body = json.loads(path.read_bytes())
    edit(body)
    path.chmod(0o644)
    path.write_text(json.dumps(body))
    with pytest.raises(errors.BadManifest, match=r"manifest.json"):
        verify(adapter.path, shapes(base))


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_unreadable_manifest(adapter: Published, base: Path, content: bytes | None) -> None:
    path = adapter.path / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.BadManifest):
        verify(adapter.path, shapes(base))


@pytest.mark.parametrize(("key", "value"), [("r", 8), ("lora_alpha", 64), ("target_modules", ["q_proj"])])
def test_adapter_config_that_contradicts_the_manifest(base: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = make_adapter(tmp_path / "folder")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(errors.BadManifest, match=f"adapter_config.json.*{key if key != 'target_modules' else ''}"):
        verify(seal(folder, adapter_draft(base)), shapes(base))
    assert TARGETS != ["q_proj"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ((1 << 40).to_bytes(8, "little"), errors.BadTensors),
        ((200).to_bytes(8, "little") + b"{}", errors.Truncated),
        (b"\x02\0\0\0\0\0\0\0[]", errors.BadTensors),
        (_header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4), errors.BadTensors),
        (_header({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4), errors.BadTensors),
        (_header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4), errors.BadTensors),
        (_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8), errors.BadTensors),
        (_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 2), errors.Truncated),
        (_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 9), errors.BadTensors),
        (_header({"x": 3}), errors.BadTensors),
    ],
)
def test_malformed_safetensors(tmp_path: Path, content: bytes, error: type[errors.BadArtifact]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(error):
        read_header(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_header(path)
    except errors.BadArtifact:
        return
    assert isinstance(tensors, dict)


def test_every_refusal_names_itself() -> None:
    for error in errors.BadArtifact.__subclasses__():
        assert str(error("reason")).startswith(f"{error.__name__}: ")
        assert error("reason").status == 422


def test_round_trip_of_the_manifest(adapter: Published) -> None:
    body = json.loads((adapter.path / "manifest.json").read_bytes())
    assert Manifest.model_validate(body).digest == adapter.digest
