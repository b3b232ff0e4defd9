"""What a run is made with: equal to itself in the next process, and seen when it is another."""

import argparse
import dataclasses
import enum
import functools
import json
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.errors import ConfigError
from loopax.run.configuration import as_mapping, differences


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Word(enum.StrEnum):
    A = "a"


@dataclasses.dataclass
class Inner:
    rate: float = 0.1


@dataclasses.dataclass
class Other:
    rate: float = 0.1


@dataclasses.dataclass
class Config:
    value: Any = None
    inner: Inner = dataclasses.field(default_factory=Inner)


class Says:
    def __init__(self, what):
        self.what = what

    def __repr__(self):
        return f"Says({self.what})"

    def method(self):
        pass


def act(x, y=0):
    return x


VALUES = {
    "plain": ({"a": [1, 2.5, "x", None, True]}, {"a": [1, 2.5, "x", None, True]}),
    "nan": (float("nan"), "nan"),
    "infinity": ([math.inf, -math.inf], ["inf", "-inf"]),
    "set": ({"b", "a"}, ["a", "b"]),
    "set of several kinds": (frozenset({2, "a", (1, 2)}), ["a", 2, [1, 2]]),
    "tuple": ((1, (2,)), [1, [2]]),
    "path": (Path("a") / "b", "a/b"),
    "enum": ([Colour.RED, Word.A], ["Colour.RED", "a"]),
    "numpy numbers": (
        [np.float64(0.5), np.int32(3), np.bool_(True), jnp.ones(())],
        [0.5, 3, True, 1],
    ),
    "types": (
        [np.dtype("float32"), jnp.float32, jnp.bfloat16, np.int8],
        ["float32"] * 2 + ["bfloat16", "int8"],
    ),
    "function": (act, f"{__name__}:act"),
    "class": (Inner, f"{__name__}:Inner"),
    "built in": ([math.sin, len, np.tanh], ["math:sin", "builtins:len", "numpy:tanh"]),
    "partial": (
        functools.partial(act, 1, y=2),
        {"partial": f"{__name__}:act", "args": [1], "keywords": {"y": 2}},
    ),
    "jitted": (jax.jit(act), f"{__name__}:act"),
    "method": (Says(3).method, ["Says(3)", "method"]),
    "tells what it is": (Says(3), "Says(3)"),
    "keys": ({1: "a", None: "b"}, {"1": "a", "None": "b"}),
    "words of numpy": (np.array(["a", "b"], object), ["a", "b"]),
    "a dataclass": (Inner(), {"rate": 0.1, "class": f"{__name__}:Inner"}),
}


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES.keys())
def test_a_value_is_plain_and_equal_to_itself_by_way_of_json(value, expected):
    told = as_mapping(Config(value))
    assert told["value"] == expected
    again = as_mapping(json.loads(json.dumps(told, allow_nan=False)))
    assert differences(again, told) == []


DIFFERENT = {
    "activation": (jax.nn.silu, jnp.tanh),
    "relu": (jax.nn.relu, jax.nn.relu6),
    "array": (np.arange(3), np.array([0, 1, 3])),
    "type of an array": (np.zeros(3, np.float32), np.zeros(3)),
    "key": (jax.random.key(0), jax.random.key(1)),
    "partial": (functools.partial(act, y=1), functools.partial(act, y=2)),
    "class of a part": (Inner(), Other()),
    "set": ({1, 2}, {1, 3}),
    "type": (jnp.float32, jnp.bfloat16),
    "module": (nn.Dense(3), nn.Dense(4)),
    "method": (Says(3).method, Says(4).method),
    "nan": (float("nan"), 1.0),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_another_value_is_seen(one, other):
    [*lines] = differences(as_mapping(Config(one)), as_mapping(Config(other)))
    assert lines
    assert all(line.startswith("value") for line in lines)


def local():
    def inside(x):
        return x

    return inside


REFUSED = {
    "lambda": (lambda x: x, "value is a lambda"),
    "local function": (local(), r"value is made inside of another function \(local.<locals>"),
    "object": (object(), "value is an object, which does not tell what it holds"),
    "inside": ([{"a": object()}], r"value\[0\].a is an object"),
    "optimiser": (optax.adam(1e-3), r"value\[0\] is made inside of another function"),
    "partial": (functools.partial(lambda: 0), "value is a lambda"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_compared_is_refused_at_the_first_start(
    tmp_path, dataset, line_loss, line_state, value, message
):
    with pytest.raises(ConfigError, match=f"config's {message}") as caught:
        loopax.fit(
            line_state(),
            line_loss,
            dataset.batches(2),
            steps=1,
            run_dir=tmp_path / "run",
            config=Config(value),
            progress=False,
        )
    assert "give" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_holds_its_fields_in_another_way_is_a_configuration_too():
    assert as_mapping(argparse.Namespace(rate=1)) == {"rate": 1}
    assert as_mapping(None) == {}
    for wrong in (3, "fast", [1], Config, act):
        with pytest.raises(ConfigError, match=r"config is .*; it must be a dataclass or a mapping"):
            as_mapping(wrong)
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(ConfigError, match="config contains itself"):
        as_mapping(loop)


def test_a_configuration_of_the_version_before_is_still_the_same():
    before = {"value": {"a": [1, 2.5]}, "inner": {"rate": 0.1}}
    assert differences(before, as_mapping(Config({"a": (1, 2.5)}))) == []
    assert differences(before, as_mapping(Config({"a": (1, 2)}))) == [
        "value.a = [1, 2.5], not [1, 2]"
    ]


def test_the_order_of_a_set_does_not_count():
    one, other = {0, 8}, {8, 0}
    assert [*one] != [*other], "as with words from one process to the next"
    assert as_mapping({"a": one}) == as_mapping({"a": other}) == {"a": [0, 8]}


def test_two_ways_to_name_one_file_are_one_setting(tmp_path, monkeypatch):
    (tmp_path / "d.npz").write_text("")
    (tmp_path / "link").symlink_to("d.npz")
    (tmp_path / "other").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("./d.npz", "link", "~/d.npz", str(tmp_path / "d.npz")):
        assert differences({"data": "d.npz"}, {"data": name}) == []
    assert differences({"data": "d.npz"}, {"data": "other"}) == ["data = 'd.npz', not 'other'"]
