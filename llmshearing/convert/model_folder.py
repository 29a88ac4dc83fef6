"""A Hugging Face folder, as something to convert: weights that stay on disk, config, tokenizer."""

from __future__ import annotations

import json
import logging
import math
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llmshearing.architecture.families import FAMILIES
from llmshearing.convert.checkpoint import Checkpoint
from llmshearing.convert.held import HeldFile
from llmshearing.convert.stored import Piece, Record, StoredTensor
from llmshearing.convert.weight_files import DTYPES
from llmshearing.errors import InputError, one_line
from llmshearing.fileio import read_json

log = logging.getLogger(__name__)

_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # what the format allows
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip

_NAMED_TEMPLATES = "additional_chat_templates"


class ModelFolder(Checkpoint):
    """A Hugging Face folder of safetensors. It has no state of a training run."""

    def __init__(self, path: Path, held: ExitStack) -> None:
        super().__init__(path, held)
        config = read_json(path / "config.json")
        if not isinstance(config, dict):
            raise InputError(f"'{path / 'config.json'}' is not the config of a model.")
        self._config = config
        self.tensors = {}
        for name in _weight_files(path):
            self.tensors |= self._tensors_of(path / name)

    def _tensors_of(self, path: Path) -> dict[str, StoredTensor]:
        """What the header of a safetensors file says is in it."""
        file = self._hold(HeldFile(path))
        length = bytearray(8)
        file.read_into(memoryview(length), 0, "its header")
        (size,) = struct.unpack("<Q", length)
        if not 0 < size <= min(_LONGEST_HEADER, file.size):
            raise InputError(f"'{path}' is not a safetensors file, or it is truncated.")
        header = bytearray(size)
        file.read_into(memoryview(header), 8, "its header")
        try:
            entries = json.loads(header)
            entries.pop("__metadata__", None)
            return {name: _stored(file, 8 + size, name, entry) for name, entry in entries.items()}
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"'{path}' has a header that is damaged, or tensors that are not floating point."
            ) from error

    def check(self) -> None:
        """See :meth:`Checkpoint.check`: opening left nothing for later."""

    def load(self, *keys: str) -> Any:
        """See :meth:`Checkpoint.load`: there is none."""

    def huggingface(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config, and the tokenizer's files as Composer would have saved them."""
        if (self.path / _NAMED_TEMPLATES).exists():
            log.warning("The named chat templates in '%s' are not copied.", self.path / _NAMED_TEMPLATES)
        return _with_layers(self._config, self.path), {
            name: {"file_extension": Path(name).suffix, "content": _content(self.path / name)}
            for name in _TOKENIZER
            if (self.path / name).is_file()
        }

    def generation(self) -> dict[str, Any] | None:
        """See :meth:`Checkpoint.generation`: what the folder's generation_config.json says."""
        path = self.path / "generation_config.json"
        if not path.is_file():
            return None
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(f"'{path}' is not a generation config.")
        return content


def _with_layers(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config with the kinds of its layers, which ``transformers`` gives them by index where it leaves them out."""
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    lacking = [name for name in family.per_layer if not config.get(name)] if family is not None else []
    if family is None or not ((family.alternates and lacking) or "no_rope_layers" in lacking):
        return dict(config)
    from transformers import AutoConfig  # which takes seconds

    try:
        made: Any = AutoConfig.for_model(**config)
    except Exception as error:  # what a value is wrong for decides what it raises
        raise InputError(f"No model can be made of the config in '{path}': {one_line(error)}") from error
    found = {name: getattr(made, name, None) for name in lacking}  # none in transformers before 4.53
    return {**config, **{name: list(kinds) for name, kinds in found.items() if kinds}}


def _weight_files(folder: Path) -> list[str]:
    """Names of its safetensors files as ``transformers`` finds them: a whole one before an index, an earlier save's."""
    whole, index = "model.safetensors", folder / "model.safetensors.index.json"
    if (folder / whole).is_file():
        return [whole]
    if not index.is_file():
        raise InputError(
            f"'{folder}' holds no safetensors. Load it with transformers and save it again by save_pretrained."
        )
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise InputError(f"'{index}' is not an index of safetensors files.")
    return sorted(set(weight_map.values()))


def _stored(file: HeldFile, start: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    shape, dtype = tuple(map(int, entry["shape"])), _DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or begin < 0 or end - begin != size:
        raise ValueError("not its size")
    if start + end > file.size:
        raise InputError(f"'{file.path}' ends within tensor '{name}': the file is truncated.")
    piece = Piece(file, start + begin, 0, shape[0] if shape else 1, Record(start + begin, size, None))
    return StoredTensor(name, shape, dtype, (piece,))


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return read_json(path)
    try:
        return path.read_bytes() if path.suffix == ".model" else _text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read: {error}.") from error


def _text(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return text.split("\n") if path.suffix == ".txt" else text  # as Composer does
