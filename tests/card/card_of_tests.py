"""A CUDA card for machines that have none: tensors "on cuda" stay on the CPU, and are counted.

What it is: bytes of every storage put on the card or made there, in blocks of 512, per device and
over all processes; a peak; an out-of-memory error where a card of that size has one; devices that
answer for themselves alone; copies from pinned memory that are made when they are waited for, and
not before. What it isn't: fast, or a judge of kernels. It says that it is too old
for every special kernel (compute capability 7.5), so weights are in their generic classes.

``QUANTOLAB_TEST_CARD`` holds a JSON object: ``bytes``, a list with the size of each device;
``context``, what each process takes beside its tensors; ``block``, what the allocator rounds up to,
where a model is a scaled-down one; ``folder``, where processes count together
and log what they do.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import sys
import types
import weakref
from pathlib import Path
from typing import ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

BLOCK, SEGMENT = 512, 2 << 20  # bytes; of the allocator, and of what it keeps
_SLOTS, _MOST_DEVICES = 256, 4
_SLOT = struct.Struct(f"{1 + _MOST_DEVICES}q")  # process, bytes on each device
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DEVICE, _IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__


class Ledger:
    """What every process has on the card, in a file that all of them map."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ledger"
        self._slot: int | None = None
        self._pid = 0
        self._map: mmap.mmap | None = None

    def put(self, held: list[int]) -> None:
        """Write what this process holds on each device."""
        if self._pid != os.getpid():  # the parent's slot isn't a forked child's
            self._open()
        _SLOT.pack_into(self._map, self._slot * _SLOT.size, self._pid, *held)

    def others(self, device: int, *, living: bool) -> int:
        """Return what all other processes hold on a device; of the dead, nothing if asked so."""
        if self._map is None:
            self._open()
        total = 0
        for slot in range(_SLOTS):
            pid, *held = _SLOT.unpack_from(self._map, slot * _SLOT.size)
            if pid and pid != os.getpid() and (not living or _lives(pid)):
                total += held[device]
        return total

    def _open(self) -> None:
        with self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size == 0:
                file.write(bytes(_SLOTS * _SLOT.size))
                file.flush()
            self._map = mmap.mmap(file.fileno(), _SLOTS * _SLOT.size)
            pids = [_SLOT.unpack_from(self._map, s * _SLOT.size)[0] for s in range(_SLOTS)]
            self._slot = next(s for s, pid in enumerate(pids) if not pid or not _lives(pid))
            self._pid = os.getpid()
            _SLOT.pack_into(self._map, self._slot * _SLOT.size, self._pid, *[0] * _MOST_DEVICES)
            fcntl.flock(file, fcntl.LOCK_UN)  # the map keeps the file, and so its lock


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Device:
    """One card as this process sees it."""

    def __init__(self, index: int, size: int, context: int, ledger: Ledger) -> None:
        self.index, self.size, self.context = index, size, context
        self.now = self.peak = self.reserved = self.reserved_peak = 0
        self._ledger = ledger

    @property
    def holds(self) -> int:
        """What this process takes, its context included."""
        return self.now + (self.context if self.now or self.reserved_peak else 0)

    def free(self) -> int:
        """What nobody has taken."""
        return max(0, self.size - self.holds - self._ledger.others(self.index, living=True))

    def take(self, count: int) -> None:
        """Take some bytes, or run out of memory."""
        after = self.now + count + self.context
        if after + self._ledger.others(self.index, living=False) > self.size and (
            after + self._ledger.others(self.index, living=True) > self.size
        ):
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {count / 1e6:.1f} MB. GPU {self.index} has "
                f"a total capacity of {self.size / 1e6:.1f} MB of which {self.free() / 1e6:.1f} MB "
                "is free."
            )
        self.now += count
        self.peak = max(self.peak, self.now)
        self.reserved = max(self.reserved, -(-self.now // SEGMENT) * SEGMENT)
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def reset(self) -> None:
        """Forget the peaks so far."""
        self.peak, self.reserved_peak = self.now, self.reserved


class Card:
    """All devices, and which storage lies on which."""

    def __init__(self, said: dict) -> None:
        self.folder = Path(said["folder"])
        self.ledger = Ledger(self.folder)
        context, self.block = said.get("context", 0), said.get("block", BLOCK)
        self.devices = [
            Device(i, size, context, self.ledger) for i, size in enumerate(said["bytes"])
        ]
        self.current = 0
        Stream.card = self
        self.stream = self.default_stream = Stream()
        self._pinned: dict[int, weakref.ref] = {}
        self._places: dict[int, tuple[int, int]] = {}  # storage: device and bytes
        self._watched: dict[int, weakref.ref] = {}

    def index_of(self, device: object) -> int | None:
        """Return the number of a device of this card; None for others."""
        if device is None or isinstance(device, bool):
            return None
        if isinstance(device, int):
            return device
        try:
            device = torch.device(device)
        except (TypeError, RuntimeError):
            return None
        if device.type != "cuda":
            return None
        return self.current if device.index is None else device.index

    def device(self, device: object = None) -> Device:
        """Return a device, by default the current one."""
        index = self.index_of(device)
        index = self.current if index is None else index
        if index >= len(self.devices):
            raise RuntimeError(f"CUDA error: invalid device ordinal {index}")
        return self.devices[index]

    def place_of(self, tensor: torch.Tensor) -> int | None:
        """Return the number of the device that a tensor lies on; None if on none."""
        for part in _parts(tensor):
            if part.is_meta:
                return None
            place = self._places.get(part.untyped_storage()._cdata)
            return None if place is None else place[0]
        return None

    def add(self, tensor: torch.Tensor, index: int) -> None:
        """Count a tensor's storage as lying on a device, until it is freed."""
        for part in _parts(tensor):
            if part.is_meta:
                continue
            storage = part.untyped_storage()
            key, count = storage._cdata, storage.nbytes()
            if key in self._places or not count:
                continue
            count = -(-count // self.block) * self.block
            self.device(index).take(count)
            self._places[key] = index, count

            def freed(_: object, key: int = key) -> None:
                place, freed_bytes = self._places.pop(key)
                self._watched.pop(key, None)
                self.devices[place].now -= freed_bytes
                self._tell()

            self._watched[key] = weakref.ref(storage, freed)
            self._tell()

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy in memory from which a card copies while the processor goes on."""
        if self.is_pinned(tensor):
            return tensor
        copy = tensor.detach().clone()
        self.log(pinned=copy.untyped_storage().nbytes())
        return self.count_as_pinned(copy)

    def count_as_pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take a tensor's memory for pinned."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._pinned[key] = weakref.ref(storage, lambda _: self._pinned.pop(key, None))
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Return whether a plain tensor lies in pinned memory."""
        return tensor.untyped_storage()._cdata in self._pinned

    def synchronize(self) -> None:
        """Wait for all copies."""
        for stream in list(Stream.all):
            stream.synchronize()

    def _tell(self) -> None:
        held = [device.holds for device in self.devices]
        self.ledger.put([*held, *[0] * (_MOST_DEVICES - len(held))])

    def log(self, **what: object) -> None:
        """Write a line on what happens, and how full each device is."""
        figures = [{"now": d.now, "peak": d.peak, "context": d.context} for d in self.devices]
        line = json.dumps({"pid": os.getpid(), **what, "devices": figures})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")


class Stream:
    """Copies in the order in which they were asked for, made once somebody waits for them."""

    all: ClassVar[weakref.WeakSet[Stream]] = weakref.WeakSet()
    card: Card

    def __init__(self, device: object = None) -> None:
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._made = 0
        self.all.add(self)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy later; until then the target holds what nobody wrote."""
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            target.reshape(-1).view(torch.uint8).fill_(0xA5)
        self._waiting.append((target, source))

    def synchronize(self, count: int | None = None) -> None:
        """Wait for the copies that were asked for, or for the first ones of them."""
        count = len(self._waiting) if count is None else count
        waiting, self._waiting = self._waiting[:count], self._waiting[count:]
        self._made += len(waiting)
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            for target, source in waiting:
                target.copy_(source)

    @property
    def asked(self) -> int:
        """How many copies were asked for so far."""
        return self._made + len(self._waiting)

    def reach(self, asked: int) -> None:
        """Wait for as many copies as were asked for at some time."""
        self.synchronize(max(0, asked - self._made))

    def wait_stream(self, other: Stream) -> None:
        """Let what is asked of this one begin after what was asked of another."""
        other.synchronize()

    def __enter__(self) -> Stream:
        self._before, self.card.stream = self.card.stream, self
        return self

    def __exit__(self, *_) -> None:
        self.card.stream = self._before


class Event:
    """What has been asked of a stream so far, to be waited for."""

    def __init__(self, **how: object) -> None:
        self._stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Take what was asked until now."""
        self._stream = stream or Stream.card.stream
        self._asked = self._stream.asked

    def synchronize(self) -> None:
        """Wait for it, and for nothing that was asked later."""
        if self._stream is not None:
            self._stream.reach(self._asked)


def _parts(tensor: torch.Tensor):
    if type(tensor) not in _PLAIN and hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    else:
        yield tensor


class _Functions(TorchFunctionMode):
    """What is asked to go to a card, or come from one, or where it is."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, card = dict(kwargs or {}), self.card
        if function == _DEVICE:
            with torch._C.DisableTorchFunction():
                index = card.place_of(args[0])
            return function(*args) if index is None else torch.device("cuda", index)
        if function == _IS_CUDA:
            with torch._C.DisableTorchFunction():
                return card.place_of(args[0]) is not None
        if function in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            return self._moved(function, args, kwargs)
        if function in (torch.Tensor.pin_memory, torch.Tensor.is_pinned):
            with torch._C.DisableTorchFunction():
                return self._pinned(function is torch.Tensor.pin_memory, args[0])
        if function is torch.Tensor.copy_ and kwargs.get("non_blocking"):
            with torch._C.DisableTorchFunction():
                target, source = args
                if card.place_of(target) is not None and card.is_pinned(source):
                    card.stream.copy(target, source.detach())
                    return target
        if kwargs.get("pin_memory"):
            made = function(*args, **{**kwargs, "pin_memory": False})
            with torch._C.DisableTorchFunction():
                card.log(pinned=made.untyped_storage().nbytes())
                return card.count_as_pinned(made)
        index = card.index_of(kwargs.get("device"))
        if index is not None:
            made = function(*args, **{**kwargs, "device": "cpu"})
            with torch._C.DisableTorchFunction():
                if isinstance(made, torch.Tensor):
                    card.add(made, index)
            return made
        return function(*args, **kwargs)

    def _pinned(self, asked, tensor):
        """Pin a tensor, or say whether it is: a wrapper is as its parts are."""
        if type(tensor) in _PLAIN:
            return (self.card.pin if asked else self.card.is_pinned)(tensor)
        if not asked:
            return all(map(self.card.is_pinned, _parts(tensor)))
        from quantolab.backends.quanto.writes import mapped, own, owned

        if not owned(tensor):  # what becomes of others is up to their classes, and not known here
            raise RuntimeError(f"a {type(tensor).__name__} can't be pinned")
        return own(mapped(tensor, self.card.pin))

    def _moved(self, function, args, kwargs):
        tensor = args[0]
        with torch._C.DisableTorchFunction():
            dtype, target = self._asked(function, args[1:], kwargs)
            here, there = self.card.place_of(tensor), self.card.index_of(target)
            if target is None:
                there = here
        elsewhere = target is not None and torch.device(target).type not in ("cpu", "cuda")
        if elsewhere or (here is None and there is None):
            return function(*args, **kwargs)
        if tensor.is_meta:
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        same = here == there and not kwargs.get("copy")
        if type(tensor) not in _PLAIN:  # a wrapper: each of its parts moves
            return self._wrapper_moved(tensor, target, dtype, same, kwargs.get("non_blocking"))
        with torch._C.DisableTorchFunction():
            wanted = tensor.dtype if dtype is None else dtype
            if same and wanted == tensor.dtype:
                return tensor
            later = kwargs.get("non_blocking") and there is not None and self.card.is_pinned(tensor)
            if here is not None:  # what was asked of the card before comes before this
                self.card.stream.synchronize()
            with torch.utils._python_dispatch._disable_current_modes():
                moved = tensor.detach().to(wanted, copy=True)
            if later and wanted == tensor.dtype:
                self.card.stream.copy(moved, tensor.detach())
            if there is not None:
                self.card.add(moved, there)
        return moved

    def _asked(self, function, rest, kwargs):
        """Return the dtype and the device that ``to``, ``cuda`` or ``cpu`` is asked for."""
        dtype, target = kwargs.get("dtype"), kwargs.get("device")
        for one in rest:
            if isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, torch.Tensor):
                where = self.card.place_of(one)
                dtype, target = one.dtype, "cpu" if where is None else f"cuda:{where}"
            elif isinstance(one, (str, torch.device)) or type(one) is int:
                target = one
        if function is torch.Tensor.cpu:
            return dtype, "cpu"
        if function is torch.Tensor.cuda and target is None:
            return dtype, "cuda"
        return dtype, f"cuda:{target}" if type(target) is int else target

    def _wrapper_moved(self, tensor, target, dtype, same, later):
        if target is None or (same and dtype in (None, tensor.dtype)):
            with torch._C.DisableTorchFunction():
                return tensor if target is not None else tensor.to(dtype)
        with torch._C.DisableTorchFunction():
            made = tensor
            if type(tensor).__name__.startswith("TinyGemmWeight"):  # packed for the other device
                tensor = tensor.weight_qbits_tensor()
            names, context = tensor.__tensor_flatten__()
            parts = {name: getattr(tensor, name) for name in names}
        device = {"device": target, "non_blocking": later}
        moved = {n: self._moved(torch.Tensor.to, (p,), dict(device)) for n, p in parts.items()}
        with torch._C.DisableTorchFunction():
            whole = type(tensor).__tensor_unflatten__(moved, context, None, None)
        # As in a real move, which asks the weight's own class: what quantolab made stays its own.
        if "quantolab.backends.quanto.writes" not in sys.modules:
            return whole
        from quantolab.backends.quanto.writes import own, owned

        return own(whole) if owned(made) else whole


class _Operations(TorchDispatchMode):
    """What is made from tensors of a device lies there too; a product needs all on one."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def _keep_order(self, function, given) -> None:
        """Have copies made first that a device was asked for before this."""
        plain = (t for t in given if type(t) in _PLAIN)
        if not _is_view(function) and any(self.card.place_of(t) is not None for t in plain):
            self.card.stream.synchronize()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        self._keep_order(function, given)
        if any(isinstance(t, FakeTensor) for t in given):
            return function(*args, **(kwargs or {}))
        if any(type(t) not in _PLAIN for t in given):
            return NotImplemented
        places = {self.card.place_of(t) for t in given if t.dim()}
        if function._schema.name == "quanto::qbytes_mm" and places != {None}:
            from optimum.quanto.library.qbytes_mm import qbytes_mm

            with self:  # a card has no packed product, and counts what the plain one makes
                return qbytes_mm(*args)
        made = function(*args, **(kwargs or {}))
        index = next((place for place in places if place is not None), None)
        if index is None:
            return made
        if len(places) > 1 and function._schema.name in _PRODUCTS:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices"
            )
        for one in tree_flatten(made)[0]:
            if isinstance(one, torch.Tensor):
                self.card.add(one, index)
        return made


def _is_view(function) -> bool:
    """Return whether an operation looks at a tensor's memory in another way, and does nothing."""
    aliases = [given.alias_info for given in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::convolution", "aten::add.Tensor"}


def insert(said: dict | None = None) -> Card:
    """Put a card into this process."""
    card = Card(said or json.loads(os.environ["QUANTOLAB_TEST_CARD"]))
    _answer(card)
    _log_jobs(card)
    make = torch.Tensor._make_wrapper_subclass

    def make_wrapper(cls, *args, device=None, **kwargs):
        here = None if card.index_of(device) is not None else device
        return make(cls, *args, device=here, **kwargs)

    torch.Tensor._make_wrapper_subclass = staticmethod(make_wrapper)
    _Functions(card).__enter__()
    _Operations(card).__enter__()
    return card


def _answer(card: Card) -> None:
    """Let torch.cuda answer for the card."""
    cuda = torch.cuda

    def empty_cache() -> None:
        for device in card.devices:
            device.reserved = -(-device.now // SEGMENT) * SEGMENT

    def properties(device=None):
        return types.SimpleNamespace(
            name="test card", total_memory=card.device(device).size, major=7, minor=5,
            multi_processor_count=1, gcnArchName="",
        )  # fmt: skip

    def synchronize(device=None) -> None:
        card.synchronize()
        card.log(synchronized=card.device(device).index)

    def information(device=None) -> tuple[int, int]:
        return card.device(device).free(), card.device(device).size

    def set_device(device) -> None:
        card.current = card.device(device).index

    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: len(card.devices),
        "current_device": lambda: card.current,
        "set_device": set_device,
        "get_device_name": lambda device=None: "test card",
        "get_device_capability": lambda device=None: (7, 5),
        "get_device_properties": properties,
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": synchronize,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: stream,
        "current_stream": lambda device=None: card.stream,
        "default_stream": lambda device=None: card.default_stream,
        "empty_cache": empty_cache,
        "ipc_collect": lambda: None,
        "mem_get_info": information,
        "memory_allocated": lambda device=None: card.device(device).now,
        "max_memory_allocated": lambda device=None: card.device(device).peak,
        "memory_reserved": lambda device=None: card.device(device).reserved,
        "max_memory_reserved": lambda device=None: card.device(device).reserved_peak,
        "reset_peak_memory_stats": lambda device=None: card.device(device).reset(),
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)


def _log_jobs(card: Card) -> None:
    """Log each job and stage of a child, with what is on the card when it begins and ends."""
    from quantolab.processes import jobs

    run_job, stage = jobs.run_job, jobs.Desk.stage

    def logged(order, tell, questions=()):
        name = order.does.partition(":")[2]
        card.log(job=name, stage="begins")
        try:
            run_job(order, tell, questions)
        finally:
            card.log(job=name, stage="ends")

    def enter(self, name, done=None, total=None):
        card.log(stage=name)
        stage(self, name, done, total)

    jobs.run_job, jobs.Desk.stage = logged, enter
