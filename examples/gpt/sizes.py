# SPDX-License-Identifier: Apache-2.0
"""How large a GPT is."""

from dataclasses import dataclass, fields

from onnx import ModelProto


@dataclass(frozen=True)
class Sizes:
    """How large a GPT is."""

    context: int = 64
    width: int = 32
    heads: int = 4
    layers: int = 2


def sizes_of(model: ModelProto) -> Sizes:
    """Return the sizes that export_gpt.py wrote among the model's metadata.

    Raises:
        ValueError: Where they are not there.
    """
    properties = {each.key: each.value for each in model.metadata_props}
    missing = [field.name for field in fields(Sizes) if field.name not in properties]
    if missing:
        raise ValueError(f"its metadata lacks {', '.join(missing)}")
    return Sizes(**{field.name: int(properties[field.name]) for field in fields(Sizes)})
