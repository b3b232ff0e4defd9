"""`tf.train.Example`, the usual form of an example in a file, without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from loopax.extras import require

_SCHEMA = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type {
  name: "BytesList"
  field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED }
}
message_type {
  name: "FloatList"
  field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED }
}
message_type {
  name: "Int64List"
  field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED }
}
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 type_name: ".tensorflow.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type_name: ".tensorflow.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type_name: ".tensorflow.Int64List" oneof_index: 0 }
  oneof_decl { name: "kind" }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 type_name: ".tensorflow.Features.FeatureEntry" label: LABEL_REPEATED
  }
  nested_type {
    name: "FeatureEntry"
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type_name: ".tensorflow.Feature" }
    options { map_entry: true }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type_name: ".tensorflow.Features" }
}
"""

Fields = Mapping[str, Any]
"""The fields of an example: bytes, or numbers."""


def as_example(fields: Fields) -> bytes:
    """The fields of an example as a serialised `tf.train.Example`: whole numbers, text or bytes."""
    example = _example()()
    for name, value in fields.items():
        feature = example.features.feature[name]
        if isinstance(value, int | np.integer):
            feature.int64_list.value.append(int(value))
        else:
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    return bytes(example.SerializeToString())


def from_example(content: bytes) -> Fields:
    """The fields of a serialised `tf.train.Example`; one value is itself, several are an array."""
    fields = {}
    for name, feature in _example().FromString(content).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else []
        dtype = {"int64_list": np.int64, "float_list": np.float32}.get(kind, object)
        several = np.array([*values], dtype)
        fields[name] = several[0] if len(several) == 1 else several
    return fields


@functools.cache
def _example() -> Any:
    """The class of `tf.train.Example`."""
    require("grain", "reading examples", "google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    # Of its own, as the usual one has TensorFlow's where that is imported.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
