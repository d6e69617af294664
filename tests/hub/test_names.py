"""What people paste becomes one kind of name, or is refused with a sentence."""

import pytest

from quantolab.errors import ArgumentError
from quantolab.hub.names import HubName, is_address, read_hub_name

H = "https://huggingface.co/"
FLUX = "black-forest-labs/FLUX.1-dev"
SHA = "0123456789abcdef0123456789abcdef01234567"

PASTED = {
    FLUX: HubName(FLUX),
    f"  {FLUX}\n": HubName(FLUX),
    f"'{FLUX}'": HubName(FLUX),
    f"{FLUX}@v1": HubName(FLUX, "v1"),
    f"{FLUX}@{SHA}": HubName(FLUX, SHA),
    f"{FLUX}@refs/pr/3": HubName(FLUX, "refs/pr/3"),
    f"{FLUX}@refs/pr/3/transformer": HubName(FLUX, "refs/pr/3", "transformer"),
    f"{FLUX}/transformer": HubName(FLUX, None, "transformer"),
    f"{FLUX}@v1/transformer/": HubName(FLUX, "v1", "transformer"),
    f"{FLUX}/flux1-dev.safetensors": HubName(FLUX, None, "flux1-dev.safetensors"),
    f"{FLUX}/a/b.safetensors": HubName(FLUX, None, "a/b.safetensors"),
    f"hf://{FLUX}@v1/x.safetensors": HubName(FLUX, "v1", "x.safetensors"),
    f"{H}{FLUX}": HubName(FLUX),
    f"{H}{FLUX}/": HubName(FLUX),
    f"{H}{FLUX}?library=diffusers": HubName(FLUX),
    f"{H}{FLUX}#usage": HubName(FLUX),
    f"{H}{FLUX}/discussions/4": HubName(FLUX),
    f"{H}{FLUX}/tree/main": HubName(FLUX, "main"),
    f"{H}{FLUX}/tree/main/transformer": HubName(FLUX, "main", "transformer"),
    f"{H}{FLUX}/tree/refs%2Fpr%2F3/vae": HubName(FLUX, "refs/pr/3", "vae"),
    f"{H}{FLUX}/blob/main/flux1-dev.safetensors": HubName(FLUX, "main", "flux1-dev.safetensors"),
    f"{H}{FLUX}/resolve/{SHA}/a%20b.safetensors?download=true": HubName(
        FLUX, SHA, "a b.safetensors"
    ),
    f"{H}{FLUX}/raw/v1/model_index.json": HubName(FLUX, "v1", "model_index.json"),
    f"{H}{FLUX}/commit/{SHA}": HubName(FLUX, SHA),
    f"http://hf.co/{FLUX}": HubName(FLUX),
    f"huggingface.co/{FLUX}/blob/main/x.safetensors": HubName(FLUX, "main", "x.safetensors"),
    f"{FLUX}/": HubName(FLUX),
    f"HF.co/{FLUX}": HubName(FLUX),
    f"www.HuggingFace.co/{FLUX}": HubName(FLUX),
    f"HTTPS://HuggingFace.co/{FLUX}": HubName(FLUX),
    f"{H}{FLUX}.git": HubName(FLUX),
    f"git clone {H}{FLUX}": HubName(FLUX),
    f"git@hf.co:{FLUX}": HubName(FLUX),
    f"hf://models/{FLUX}": HubName(FLUX),
    f"`{FLUX}`,": HubName(FLUX),
    f"\u201c{FLUX}\u201d": HubName(FLUX),
    f"{FLUX}@feature%2Fx/vae": HubName(FLUX, "feature/x", "vae"),
    f"{H}{FLUX}/tree/feature%2Fx/vae/": HubName(FLUX, "feature/x", "vae"),
    f"{H}{FLUX}/resolve/main/x.safetensors?download=true#L1": HubName(
        FLUX, "main", "x.safetensors"
    ),
}


@pytest.mark.parametrize("text", PASTED)
def test_a_pasted_name_is_understood(text):
    name = read_hub_name(text)
    assert name == PASTED[text]
    assert read_hub_name(str(name)) == name  # how it is shown can be pasted again


REFUSED = {
    f"{H}datasets/owner/pictures": "under 'datasets'",
    f"{H}spaces/owner/app": "under 'spaces'",
    f"{H}black-forest-labs": "names no repository",
    f"{H}": "names no repository",
    f"{H}{FLUX}/nonsense/main": "is no page of a model",
    f"{H}{FLUX}/resolve/main/../../x.safetensors": "leads out of its repository",
    f"{FLUX}/../../etc/passwd": "leads out of its repository",
    "https://civitai.com/models/618692": "HF_ENDPOINT",
    "https://user:secret@example.org/a/b?token=hf_secret": "lies on 'example.org'",
    "https://huggingface.co.example.org/a/b": r"lies on 'huggingface.co.example.org'",
    "https://user:secret@[bad/a/b": "is no address",
    "https://": "names no host",
    f"ftp://huggingface.co/{FLUX}": "begins with ftp://; .* https://, http:// or hf://",
    "file:///models/x": "begins with file://",
    "datasets/owner/pictures": "under 'datasets'",
    "hf://spaces/owner/app": "under 'spaces'",
    f"{H}{FLUX}/tree/..": "names no branch",
    f"{FLUX}@": r"names no revision: '' .*OWNER/NAME@REVISION",
    f"{FLUX}@ main": "names no revision: ' main'",
    f"{FLUX} @main x": "names no revision",
    f"{FLUX}@v1@v2": "names no revision: 'v1@v2'",
    f"{FLUX}@v1#usage": "names no revision",
    f"{FLUX}@../x": "names no revision",
    f"{FLUX}@-x": "names no revision",
}


@pytest.mark.parametrize("text", REFUSED)
def test_an_address_of_something_else_is_refused(text):
    with pytest.raises(ArgumentError, match=REFUSED[text]) as caught:
        read_hub_name(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "demo",
        "FLUX.1-dev",
        "a b/c",
        "",
        "a/",
        "C:\\models\\x",
        "/a/b",
        "a //b",
        "a/b?x=1",
        "a/b\n c/d",
    ],
)
def test_what_no_hub_model_can_be_called(text):
    assert read_hub_name(text) is None


def test_a_revision_beside_the_name():
    assert read_hub_name(FLUX, "v1") == HubName(FLUX, "v1")
    assert read_hub_name(f"{FLUX}@v1", "v1") == HubName(FLUX, "v1")
    with pytest.raises(ArgumentError, match=r"two revisions are named: 'v1'.*'v2'"):
        read_hub_name(f"{FLUX}@v1", "v2")
    for nonsense in ("", "a b", "x?y", "x:y", "..", "/x", 3):
        with pytest.raises(ArgumentError, match=r"is no branch, tag or commit"):
            read_hub_name(FLUX, nonsense)


def test_a_mirror_stands_for_the_hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example.org/below")
    for text in (f"https://hub.example.org/below/{FLUX}/tree/v1", f"{H}{FLUX}/tree/v1"):
        assert read_hub_name(text) == HubName(FLUX, "v1")
    with pytest.raises(ArgumentError, match=r"https://hub\.example\.org/below"):
        read_hub_name(f"https://other.org/{FLUX}")


def test_what_can_only_be_an_address():
    assert is_address(f"{H}{FLUX}") and is_address(f"huggingface.co/{FLUX}")
    assert is_address(f"hf://{FLUX}") and not is_address(FLUX) and not is_address("./x")
