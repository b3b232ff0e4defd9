"""Pretrained models: where they are found, what of a file is believed, what others can read."""

import importlib
import json
import os
import shutil
import struct
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from loopax.errors import CheckpointError, ConfigError, DataError, LoopaxError, StorageError
from loopax.models.bert import BertForSequenceClassification
from loopax.recipes.bert.pretrained import head_order, params_for, read_pretrained
from loopax.recipes.bert.saving import save_pretrained
from loopax.recipes.bert.tokens import encode
from loopax.weights import read_weights, save_weights

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"
CLASSES = ("bad", "so-so", "good")


@pytest.fixture(scope="module")
def pretrained():
    return read_pretrained(TINY)


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture, to be spoilt."""
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(TINY / name, copy)
    return copy


def rewritten(folder, change):
    """Writes the weights of `folder` anew, as `change` gives them for a mapping by name."""
    weights = read_weights(folder / "model.safetensors")
    save_weights(folder / "model.safetensors", change(weights))


def configured(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, error, match):
    with pytest.raises(error, match=match) as raised:
        read_pretrained(folder)
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


def assert_same(left, right):
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)
        assert left[path].dtype == right[path].dtype


# --- Where a model is found ---------------------------------------------------


def test_a_folder(pretrained):
    assert pretrained.folder == TINY.resolve()
    assert pretrained.source == str(TINY.resolve())
    assert pretrained.config.hidden_size == 32
    assert pretrained.class_names == CLASSES
    assert pretrained.pooling == "pooler"
    assert len(pretrained.digest) == 64
    assert pretrained.weights["bert/pooler/dense/kernel"].shape == (32, 32)
    assert pretrained.weights["classifier/kernel"].shape == (32, 3)
    assert pretrained.tokenizer.truncation is None
    assert pretrained.tokenizer.padding is None


def test_another_file_has_another_digest(pretrained, folder):
    assert read_pretrained(folder).digest == pretrained.digest
    rewritten(folder, lambda weights: {**weights, "classifier.bias": np.ones(3, np.float32)})
    assert read_pretrained(folder).digest != pretrained.digest


def test_an_installed_package_is_read_and_not_imported(tmp_path, monkeypatch, pretrained):
    package, info = tmp_path / "some_bert", tmp_path / "some_bert-1.2.dist-info"
    info.mkdir()
    shutil.copytree(TINY, package / "files")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-bert\nVersion: 1.2\n")
    names = ["some_bert/__init__.py", *(f"some_bert/files/{p.name}" for p in TINY.iterdir())]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert metadata.version("some-bert") == "1.2"
    found = read_pretrained("some-bert")
    assert found.folder == package / "files"
    assert found.source == "some-bert 1.2"
    assert_same(found.weights, pretrained.weights)
    assert "some_bert" not in sys.modules


@pytest.mark.parametrize("name", ["bert-tiny-of-nobody", "some-owner/some.bert"])
def test_a_name_on_the_hub_is_downloaded(monkeypatch, tmp_path, name):
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "0a1b2c"
    shutil.copytree(TINY, snapshot)
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = read_pretrained(name)
    (asked_name, patterns), *others = asked
    assert (asked_name, others) == (name, [])
    assert {"config.json", "model*.safetensors", "tokenizer.json", "vocab.txt"} <= {*patterns}
    assert not any("bin" in pattern for pattern in patterns)
    assert found.folder == snapshot
    assert found.source == f"{name} at 0a1b2c"


def test_what_the_hub_does_not_give_is_one_line(monkeypatch):
    import huggingface_hub

    def snapshot_download(name, allow_patterns):
        raise OSError("cannot connect\x1b[31m\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    message = refused("no-such-bert", ConfigError, "no-such-bert: is neither a folder nor")
    assert message.endswith(r"cannot connect\x1b[31m")


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "/no/such/folder", "", " ", "two words"])
def test_what_can_only_be_a_path_is_not_asked_for_at_the_hub(monkeypatch, tmp_path, name):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    refused(name or "./", ConfigError, "there is no such folder|has no config.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_is_missing_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, ConfigError, f"has no {name}")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(TINY, ConfigError, r"needs tokenizers: pip install 'loopax\[bert\]'")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("no-such-bert", ConfigError, r"needs huggingface_hub: pip install")


# --- What of a file is believed -----------------------------------------------


def without_prefix(weights):
    return {name.removeprefix("bert."): array for name, array in weights.items()}


def old_names(weights):
    def old(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta")

    return {old(name): array for name, array in weights.items()}


def with_what_is_of_no_use(weights):
    return {
        **weights,
        "bert.embeddings.position_ids": np.arange(40)[None],
        "cls.predictions.bias": np.zeros(7, np.float32),
        "cls.seq_relationship.weight": np.full((2, 32), np.nan, np.float32),
        "qa_outputs.weight": np.zeros((2, 32), np.float32),
    }


@pytest.mark.parametrize("change", [without_prefix, old_names, with_what_is_of_no_use])
def test_files_of_all_times_give_the_same(folder, pretrained, change):
    rewritten(folder, change)
    assert_same(read_pretrained(folder).weights, pretrained.weights)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_precisions_become_float32(folder, pretrained, dtype):
    rewritten(folder, lambda weights: {name: a.astype(dtype) for name, a in weights.items()})
    expected = {
        path: np.asarray(array).astype(dtype).astype(np.float32)
        for path, array in pretrained.weights.items()
    }
    assert_same(read_pretrained(folder).weights, expected)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
QUERY_PATH = "bert/encoder/layer/1/attention/self/query/kernel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {n: a for n, a in w.items() if n != QUERY}, QUERY_PATH),
        (lambda w: {n: a for n, a in w.items() if n != "bert.pooler.dense.bias"}, "bert/pooler/d"),
        (lambda w: {n: a for n, a in w.items() if n != "classifier.weight"}, "classifier/kernel"),
        (lambda w: {n: a for n, a in w.items() if "layer.1" not in n}, "has 1 layers; .* says 2"),
        (lambda w: {**w, QUERY: w[QUERY][:, :-1]}, rf"{QUERY_PATH} is float32\[31, 32\] there"),
        (lambda w: {**w, "classifier.bias": np.zeros(4, np.float32)}, "classifier/kernel is"),
        (lambda w: {**w, QUERY: w[QUERY].astype(np.int32)}, f"{QUERY_PATH} is int32"),
        (lambda w: {**w, QUERY: w[QUERY] * np.nan}, f"{QUERY_PATH} holds NaN or infinity"),
        (lambda w: {**w, QUERY: w[QUERY].astype(float) * 1e300}, f"{QUERY_PATH} holds NaN"),
        (lambda w: {**w, "bert.adapter.weight": w[QUERY]}, "adapter/kernel"),
        (lambda w: {**w, QUERY.replace("query", "mixer"): w[QUERY]}, "mixer/kernel"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, message):
    rewritten(folder, change)
    refused(folder, CheckpointError, rf"model\.safetensors: .*{message}")


def test_a_file_without_pooler_and_head_is_the_encoder_alone(folder):
    def encoder_only(weights):
        return {n: a for n, a in weights.items() if not n.startswith(("bert.pooler", "class"))}

    rewritten(folder, encoder_only)
    pretrained = read_pretrained(folder)
    assert {path.split("/")[1] for path in pretrained.weights} == {"embeddings", "encoder"}
    assert pretrained.class_names == ()
    model = BertForSequenceClassification(pretrained.config, 2, "mean")
    params_for(pretrained, model, jax.random.key(0))
    model = BertForSequenceClassification(pretrained.config, 2)
    with pytest.raises(ConfigError, match=r"has no bert\.pooler.* pool by mean"):
        params_for(pretrained, model, jax.random.key(0))


def test_the_classifier_of_another_task_is_left_aside(folder):
    configured(folder, architectures=["BertForTokenClassification"])
    pretrained = read_pretrained(folder)
    assert not any(path.startswith("classifier") for path in pretrained.weights)
    assert pretrained.class_names == ()


def test_classes_without_names_are_numbered(folder):
    configured(folder, id2label=None)
    assert read_pretrained(folder).class_names == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[1]", "holds a list; it must be a JSON object"),
        (b'{"model_type": "gpt2"}', "model_type is 'gpt2'"),
        (b"{}", "vocab_size is missing"),
        (b'{"pooling": "max"}', "pooling is 'max'"),
    ],
)
def test_a_config_that_is_none_is_refused(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refused(folder, ConfigError, rf"config\.json: {message}")


def test_an_absurd_number_of_layers_is_refused_at_once(folder):
    configured(folder, num_hidden_layers=2**30)
    refused(folder, CheckpointError, "has 2 layers; config.json says 1073741824")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b'{"version": "1.0", "model": {"type": "None"}}', b"[" * 10**5]
)
def test_a_tokenizer_that_is_none_is_refused(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    refused(folder, CheckpointError, r"tokenizer\.json: is not a tokenizer")


def test_a_tokenizer_of_another_vocabulary_is_refused(folder):
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["model"]["vocab"]["extra"] = 4000
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    refused(folder, CheckpointError, r"has a token 4000, and config.json a vocab_size of 99;")


def test_a_header_that_lies_is_refused(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 2**40) + content[8:])
    refused(folder, CheckpointError, "is not a sound safetensors file")
    path.write_bytes(content[: len(content) // 2])
    refused(folder, CheckpointError, "is not a sound safetensors file")


@given(
    flips=st.lists(st.tuples(st.integers(0, 12_000), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_damage_is_refused_or_reads_as_numbers(tmp_path_factory, flips):
    """Whatever bytes are wrong in the header or just behind it, only our errors come out."""
    folder = tmp_path_factory.mktemp("flipped")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(TINY / name, folder)
    content = bytearray((TINY / "model.safetensors").read_bytes())
    for position, mask in flips:
        content[position] ^= mask
    (folder / "model.safetensors").write_bytes(content)
    try:
        weights = read_pretrained(folder).weights
    except LoopaxError as error:
        # Damage may also pass unseen, so `pytest.raises` would ask for too much.
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert all(np.isfinite(array).all() for array in weights.values())


# --- Where training begins ----------------------------------------------------


def test_a_head_of_the_same_classes_is_taken_by_name_and_another_is_new(pretrained):
    first, second, third = pretrained.class_names
    theirs = pretrained.weights["classifier/kernel"]
    for names, pooling, order in [
        ((first, second, third), "pooler", [0, 1, 2]),
        ((third, first.upper(), second), "pooler", [2, 0, 1]),
        ((first, second, "other"), "pooler", None),
        ((first, second), "pooler", None),
        ((first, second, third), "mean", None),
    ]:
        model = BertForSequenceClassification(pretrained.config, len(names), pooling)
        params = params_for(pretrained, model, jax.random.key(0), names)["params"]
        kernel = np.asarray(params["classifier"]["kernel"])
        assert kernel.shape == (32, len(names))
        if order is not None:
            np.testing.assert_array_equal(kernel, theirs[:, order])
        else:
            assert not np.isin(kernel, theirs).any()
        np.testing.assert_array_equal(
            params["bert"]["encoder"]["layer"]["1"]["attention"]["self"]["query"]["kernel"],
            pretrained.weights[QUERY_PATH],
        )
        form = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        assert jax.tree.structure({"params": params}) == jax.tree.structure(form)


def test_a_new_head_is_that_of_the_key(pretrained):
    model = BertForSequenceClassification(pretrained.config, 2)

    def head(key):
        return np.asarray(params_for(pretrained, model, key)["params"]["classifier"]["kernel"])

    np.testing.assert_array_equal(head(jax.random.key(1)), head(jax.random.key(1)))
    assert not np.allclose(head(jax.random.key(1)), head(jax.random.key(2)))
    expected = model.init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    np.testing.assert_allclose(
        head(jax.random.key(1)), expected["params"]["classifier"]["kernel"], atol=1e-7
    )


# --- Texts as tokens ----------------------------------------------------------


def test_tokens_are_those_that_were_kept(pretrained):
    reference = np.load(TINY / "reference.npz")
    rows = [tuple(text for text in row if text) for row in reference["texts"].tolist()]
    columns, _ = encode(pretrained.tokenizer, rows, 40)
    assert {column.dtype for column in columns.values()} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(columns["input_ids"], reference["input_ids"])
    np.testing.assert_array_equal(columns["token_type_ids"], reference["token_type_ids"])
    np.testing.assert_array_equal(columns["length"], reference["attention_mask"].sum(1))
    single, _ = encode(pretrained.tokenizer, [row[:1] for row in rows], 40)
    assert set(single) == {"input_ids", "length"}


words = st.lists(st.sampled_from(["the", "film", "good", "☃", "bad!", "longest", "A"]), max_size=12)
texts = st.one_of(words.map(" ".join), st.text(st.characters(exclude_categories=["Cs"])))
rows = st.lists(st.one_of(st.tuples(texts), st.tuples(texts, texts)), max_size=6)


@given(rows=rows, max_length=st.integers(8, 30))
def test_every_row_is_whole_between_its_special_tokens(pretrained, rows, max_length):
    tokenizer = pretrained.tokenizer
    columns, _ = encode(tokenizer, rows, max_length)
    ids, length = columns["input_ids"], columns["length"]
    cls, sep, pad = map(tokenizer.token_to_id, ("[CLS]", "[SEP]", "[PAD]"))
    assert ids.shape == (len(rows), length.max(initial=0))
    assert length.max(initial=0) <= max_length
    for index, row in enumerate(rows):
        kept, rest = ids[index, : length[index]], ids[index, length[index] :]
        assert (rest == pad).all()
        assert (kept[0], kept[-1]) == (cls, sep)
        parts = [tokenizer.encode(text, add_special_tokens=False).ids for text in row]
        whole = len(row) + 1 + sum(map(len, parts))
        assert length[index] == min(whole, max_length)
        segments = columns.get("token_type_ids", np.zeros_like(ids))[index]
        assert not segments[length[index] :].any()
        if len(row) == 1:
            assert kept[1:-1].tolist() == parts[0][: length[index] - 2]
            assert not segments.any()
            continue
        second = int(segments.sum()) - 1
        first = length[index] - 3 - second
        assert kept[1 : 1 + first].tolist() == parts[0][:first]
        assert kept[2 + first : -1].tolist() == parts[1][:second]
        # Only the longer one is cut, down to the length of the other.
        if first < len(parts[0]):
            assert first >= second - 1 or second == len(parts[1])
            assert second == len(parts[1]) or abs(first - second) <= 1


def test_encoding_leaves_the_tokenizer_as_it_was(pretrained):
    before = pretrained.tokenizer.to_str()
    encode(pretrained.tokenizer, [("the film " * 20,)], 10)
    assert pretrained.tokenizer.to_str() == before
    assert pretrained.tokenizer.truncation is None


@pytest.mark.parametrize(
    "row", ["text", (), ("a", "b", "c"), (None,), (1,), ("\ud800",), ("a", b"b")]
)
def test_a_row_that_is_none_is_named(pretrained, row):
    with pytest.raises(DataError, match=r"row 1 is .*it must be one or two texts") as error:
        encode(pretrained.tokenizer, [("good",), row], 10)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("row", "least"), [(("a",), 3), (("a", "b"), 5)])
def test_a_length_without_room_is_refused(pretrained, row, least):
    with pytest.raises(
        ConfigError, match=f"max_length is {least - 1}; it must be at least {least}"
    ):
        encode(pretrained.tokenizer, [row], least - 1)
    assert encode(pretrained.tokenizer, [row], least)[0]["length"][0] == least


def test_no_rows_are_no_tokens(pretrained):
    columns, _ = encode(pretrained.tokenizer, [], 10)
    assert columns["input_ids"].shape == (0, 0)
    assert columns["length"].shape == (0,)


# --- What is written ----------------------------------------------------------


def saved(pretrained, folder, pooling="pooler", names=CLASSES):
    model = BertForSequenceClassification(pretrained.config, 3, pooling)
    params = params_for(pretrained, model, jax.random.key(0), pretrained.class_names)
    save_pretrained(folder, model, params, pretrained.tokenizer, names)
    return model, params


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_what_is_written_reads_back_bit_for_bit(pretrained, tmp_path, pooling):
    model, params = saved(pretrained, tmp_path / "out", pooling, ("schlecht", "na ja", "schön"))
    again = read_pretrained(tmp_path / "out")
    assert (again.config, again.pooling) == (pretrained.config, pooling)
    assert again.class_names == ("schlecht", "na ja", "schön")
    assert again.tokenizer.to_str() == pretrained.tokenizer.to_str()
    read = params_for(again, model, jax.random.key(5), again.class_names)
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_the_files_are_those_that_transformers_looks_for(pretrained, tmp_path):
    saved(pretrained, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["model_type"] == "bert"
    assert config["id2label"] == {"0": "bad", "1": "so-so", "2": "good"}
    assert config["label2id"] == {"bad": 0, "so-so": 1, "good": 2}
    original = TINY / "model.safetensors"
    with (
        safe_open(tmp_path / "out/model.safetensors", "numpy") as ours,
        safe_open(original, "numpy") as theirs,
    ):
        assert ours.metadata() == {"format": "pt"}
        assert set(ours.keys()) == set(theirs.keys())
        # The file has `keys` and cannot be iterated over.
        for name in theirs.keys():  # noqa: SIM118
            np.testing.assert_array_equal(ours.get_tensor(name), theirs.get_tensor(name))
    tokens = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert (tokens["cls_token"], tokens["model_max_length"]) == ("[CLS]", 40)


def test_what_pools_by_mean_says_so_and_brings_its_code(pretrained, tmp_path):
    saved(pretrained, tmp_path / "out", "mean")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] != "bert"  # which stock transformers would load with a new pooler
    module, name = config["auto_map"]["AutoModelForSequenceClassification"].split(".")
    code = (tmp_path / "out" / f"{module}.py").read_text()
    assert f"class {name}(" in code
    compile(code, module, "exec")
    names = read_weights(tmp_path / "out/model.safetensors")
    assert not any("pooler" in name for name in names)


def test_a_folder_written_before_is_replaced_as_a_whole(pretrained, tmp_path):
    saved(pretrained, tmp_path / "out", "mean")
    saved(pretrained, tmp_path / "out")
    assert not (tmp_path / "out/modeling_mean_pooling.py").exists()
    assert read_pretrained(tmp_path / "out").pooling == "pooler"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_left_alone(pretrained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds 'thesis\.txt' and would be replaced"):
        saved(pretrained, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: is a file"):
        saved(pretrained, tmp_path / "file")


def test_a_write_that_fails_leaves_what_was_there(pretrained, tmp_path, monkeypatch):
    saved(pretrained, tmp_path / "out")
    before = read_pretrained(tmp_path / "out").digest

    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="out: cannot be written"):
        saved(pretrained, tmp_path / "out", "mean")
    with pytest.raises(StorageError, match="new: cannot be written"):
        saved(pretrained, tmp_path / "new")
    assert read_pretrained(tmp_path / "out").digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "b"), ("a", "b", "c", "d")])
def test_names_that_do_not_tell_the_classes_apart_are_refused(pretrained, tmp_path, names):
    with pytest.raises(ConfigError, match=r"class_names are .* different names; the model has 3"):
        saved(pretrained, tmp_path / "out", names=names)
    assert not (tmp_path / "out").exists()


def test_weights_in_several_files_and_words_alone_are_a_model_too(pretrained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    arrays = read_weights(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(arrays)
    parts = {"model-00001-of-00002.safetensors": names[::2]}
    parts["model-00002-of-00002.safetensors"] = names[1::2]
    for file, part in parts.items():
        save_weights(folder / file, {name: arrays[name] for name in part})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    vocabulary = pretrained.tokenizer.get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    found = read_pretrained(folder)
    for path, array in pretrained.weights.items():
        np.testing.assert_array_equal(found.weights[path], array)
    rows = [("The film is GREAT, really!", "dull")]
    one, other = (encode(each.tokenizer, rows, 30)[0] for each in (found, pretrained))
    for name, column in other.items():
        np.testing.assert_array_equal(one[name], column)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, CheckpointError, "names model-00002-of-00002.safetensors, which is not there")


def test_a_folder_of_torch_weights_alone_says_what_to_do(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    refused(tmp_path / "model", ConfigError, "pytorch_model.bin, which can run code")


def test_a_head_of_several_classes_at_once_is_left_aside(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((TINY / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert read_pretrained(tmp_path / "model").class_names == ()


def test_how_sentence_transformers_pool_is_asked_of_their_folder(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    said = tmp_path / "model" / "1_Pooling" / "config.json"
    said.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert read_pretrained(TINY).pooling == "pooler", "its head saw that"
    assert read_pretrained(tmp_path / "model").pooling == "mean"
    assert read_pretrained(tmp_path / "model").notes == ()
    said.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}))
    (note,) = read_pretrained(tmp_path / "model").notes
    assert "1_Pooling/config.json: pools by cls, which is not supported here" in note


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_told_as_one(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 133466304\n")
    refused(folder, ConfigError, f"{name} is a pointer of Git LFS; `git lfs pull`")


@pytest.mark.parametrize("inner", ["snapshots/0a1b", "0_Transformer"])
def test_a_folder_around_a_model_names_the_model(tmp_path, inner):
    shutil.copytree(TINY, tmp_path / "around" / inner)
    refused(tmp_path / "around", ConfigError, f"name {tmp_path}/around/{inner}, which has one")


def test_an_index_of_nothing_is_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    refused(folder, CheckpointError, "index.json: has no weight_map")


def test_classes_that_differ_in_case_alone_make_no_head_fit(folder):
    configured(folder, id2label={"0": "Pos", "1": "pos", "2": "neg"})
    assert head_order(read_pretrained(folder), "pooler", ("pos", "Pos", "neg")) is None


def test_special_tokens_of_a_list_of_words_are_whole_and_needed(folder, pretrained):
    words = sorted(pretrained.tokenizer.get_vocab(), key=pretrained.tokenizer.get_vocab().get)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(words))
    tokens = read_pretrained(folder).tokenizer.encode("a [MASK] film").tokens
    assert tokens == ["[CLS]", "a", "[MASK]", "film", "[SEP]"]
    (folder / "vocab.txt").write_text("\n".join(words).replace("[CLS]", "cls"))
    refused(folder, CheckpointError, r"vocab.txt: is not a tokenizer: cls_token not found")


def test_many_texts_are_tokenised_in_blocks(pretrained, monkeypatch):
    rows = [("good film",), ("",), ("a very good and long film",), ("bad",), ("so bad film",)]
    whole, cut = encode(pretrained.tokenizer, rows, 5)
    monkeypatch.setattr("loopax.recipes.bert.tokens.BLOCK", 2)
    columns, cut_in_blocks = encode(pretrained.tokenizer, rows, 5)
    assert columns.keys() == whole.keys()
    for name, column in whole.items():
        np.testing.assert_array_equal(columns[name], column)
    np.testing.assert_array_equal(cut_in_blocks, cut)
    assert cut.any()
    assert not cut.all()
