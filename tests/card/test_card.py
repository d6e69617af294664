"""The test card itself: it counts what lies on it, forgets what is freed, and is full when full."""

import json


def printed(card, script):
    return json.loads(card.run(script))


def test_storages_are_counted_once_and_forgotten(test_card):
    now, views, half, gone, peak = printed(
        test_card(1_000_000),
        """
import json, torch
device = card.devices[0]
a = torch.ones(1000, device="cuda")
now, view = device.now, a.view(10, 100)[3:]
views = device.now
b = (a * 2).half()
half = device.now
del a, b, view
print(json.dumps([now, views, half, device.now, torch.cuda.max_memory_allocated()]))
""",
    )
    assert now == views == 4096
    assert half == 4096 + 2048
    assert gone == 0
    assert peak == 4096 + 4096 + 2048


def test_a_quantized_module_takes_its_bytes_and_says_where_it_is(test_card):
    held, on_card, back, where = printed(
        test_card(10_000_000),
        """
import json, torch, quantolab as ql
module = torch.nn.Sequential(torch.nn.Linear(256, 256, dtype=torch.bfloat16)).to("cuda")
module, _ = ql.quantize(module, "int4")
held = ql.weight_bytes(module)
on_card = card.devices[0].now
x = torch.ones(1, 256, dtype=torch.bfloat16, device="cuda")
where = str(next(module.parameters()).device), str(module(x).device)
del x
module.to("cpu")
print(json.dumps([held, on_card, card.devices[0].now, where]))
""",
    )
    assert held <= on_card <= held + 8 * 512
    assert back == 0
    assert where == ["cuda:0", "cuda:0"]


def test_devices_are_full_for_themselves(test_card):
    said, first, second = printed(
        test_card(1_000_000, 8_000_000),
        """
import json, torch
large = torch.ones(1_000_000, device="cuda:1")
try:
    torch.ones(1_000_000, device="cuda:0")
except torch.OutOfMemoryError as error:
    said = str(error)
mem = torch.cuda.mem_get_info
print(json.dumps([said, mem(0)[0], mem("cuda:1")[0]]))
""",
    )
    assert "CUDA out of memory" in said
    assert "GPU 0" in said
    assert first == 1_000_000
    assert second == 8_000_000 - 4_000_256


def test_processes_share_the_card(test_card):
    before, beside, after = printed(
        test_card(10_000_000, context=1_000_000),
        """
import json, os, signal, torch
free = lambda: torch.cuda.mem_get_info()[0]
before = free()
ready, done = os.pipe(), os.pipe()
pid = os.fork()
if not pid:
    kept = torch.ones(1024, device="cuda")
    os.write(ready[1], b"1"); os.read(done[0], 1); os._exit(0)
os.read(ready[0], 1)
beside = free()
os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
print(json.dumps([before, beside, free()]))
""",
    )
    assert before == after == 10_000_000
    assert beside == 10_000_000 - 1_000_000 - 4096


def test_a_product_over_two_devices_is_refused(test_card):
    said = test_card(1_000_000).run(
        """
import torch
try:
    torch.ones(4, 4, device="cuda") @ torch.ones(4, 4)
except RuntimeError as error:
    print(error)
"""
    )
    assert "Expected all tensors to be on the same device" in said


def test_copies_from_pinned_memory_are_made_when_they_are_waited_for(test_card):
    said = printed(
        test_card(1_000_000),
        """
import json, torch
pinned = torch.ones(4).pin_memory()
stream = torch.cuda.Stream()
def there(wait, change=0):
    with torch.cuda.stream(stream):
        moved = pinned.to("cuda", non_blocking=True)
    pinned.add_(change)
    if wait:
        stream.synchronize()
    values = moved.to("cpu").tolist()
    stream.synchronize()
    return values == [1.0] * 4
ordered = (pinned.to("cuda", non_blocking=True) + 1).to("cpu").tolist()
pageable = torch.ones(4).to("cuda", non_blocking=True).to("cpu").tolist()
says = [pinned.is_pinned(), torch.ones(4).is_pinned(), there(True), there(False), there(True, 1)]
print(json.dumps([says, ordered, pageable]))
""",
    )
    says, ordered, pageable = said
    # Waited for, it is there; not waited for, or when its source was changed meanwhile, it isn't.
    assert says == [True, False, True, False, False]
    assert ordered == [2.0] * 4
    assert pageable == [1.0] * 4


def test_an_event_waits_for_what_was_asked_before_it(test_card):
    said = printed(
        test_card(1_000_000),
        """
import json, torch
pinned = torch.ones(3, 4, pin_memory=True)
there = torch.empty(3, 4, device="cuda")
event = torch.cuda.Event()
there[0].copy_(pinned[0], non_blocking=True)
event.record(torch.cuda.current_stream("cuda"))
there[1].copy_(pinned[1], non_blocking=True)
event.synchronize()
pinned.zero_()
print(json.dumps(there.to("cpu")[:2].tolist()))
""",
    )
    assert said == [[1.0] * 4, [0.0] * 4]  # the second was read after it had changed
