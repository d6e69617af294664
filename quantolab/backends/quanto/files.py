"""How weights lie in a safetensors file: the layout that decides its size."""

from __future__ import annotations

import json

import torch

_ALIGNMENT = 8  # safetensors pads its header to this

# Names of dtypes in a safetensors header; source: the format's specification.
_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def file_bytes(module: torch.nn.Module) -> int:
    """Return the bytes that a module's weights take in one safetensors file.

    Counted from the tensors that the file holds: eight bytes, the header and the payload. A test
    holds it equal to the size of files really written.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in stored_tensors(module).items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-text // _ALIGNMENT) * _ALIGNMENT + offset


def stored_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's state dict as plain tensors, in the order the file format keeps.

    That is by dtype size, largest first, then by name; tensors that share storage come once.
    """
    seen: set = set()
    kept = {}
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tensor.nbytes, tensor.dtype)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor
    return dict(sorted(kept.items(), key=lambda item: (-item[1].element_size(), item[0])))
