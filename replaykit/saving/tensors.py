"""A checkpoint in a dict of tensors."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.saving.manifest import FORMAT, checksum_of, unpacked

_MANIFEST = "manifest"


class Tensors:
    """A dict of tensors with the arrays of a checkpoint. It has the interface of a `Directory`."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        if not isinstance(tensors, Mapping):
            raise TypeError(f"state_dict is a {type(tensors).__name__}; expected the dict that state_dict() returned")
        self.token: str = secrets.token_hex(8)
        self._tensors = dict(tensors)

    def has(self, name: str) -> bool:
        """False: there are no earlier files."""
        return False

    def write(self, name: str, array: npt.NDArray[Any], former: Any = None) -> list[Any]:
        """Copy an array to a tensor (of bytes if torch lacks the dtype). Returns a reference: name, dtype and shape."""
        import torch

        array = np.array(array, order="C")
        while name in self._tensors:
            name += "'"
        try:
            self._tensors[name] = torch.from_numpy(array)
        except (TypeError, ValueError):
            self._tensors[name] = torch.from_numpy(array.reshape(-1).view(np.uint8))
        return [name, array.dtype.str, list(array.shape)]

    def read(self, reference: Any) -> npt.NDArray[Any]:
        """The array of a reference."""
        name, dtype, shape = reference
        if name not in self._tensors:
            raise ValueError(f"state_dict has no {name!r:.50}")
        array = np.ascontiguousarray(self._tensors[name].detach().cpu().numpy())
        return np.asarray(array.reshape(-1).view(np.dtype(dtype)).reshape(shape))

    def with_manifest(self, content: dict[str, Any]) -> dict[str, Any]:
        """The dict, with a manifest that has this content."""
        text = json.dumps({"format": FORMAT, "checksum": checksum_of(content), "content": content})
        return self._tensors | {_MANIFEST: text}

    def manifest(self) -> dict[str, Any]:
        """The content of the manifest."""
        if _MANIFEST not in self._tensors:
            raise ValueError("state_dict has no manifest; expected the dict that state_dict() returned")
        return unpacked(self._tensors[_MANIFEST], "the manifest of state_dict")
